//! Pass (of `check_types`): a SQL step with an error policy becomes a chain over the rows of one input.

use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::Result;
use datafusion::common::tree_node::{TreeNode as _, TreeNodeRecursion};
use datafusion::execution::SessionState;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::optimizer::Optimizer;
use datafusion::optimizer::common_subexpr_eliminate::CommonSubexprEliminate;
use datafusion::optimizer::optimize_projections::OptimizeProjections;
use datafusion::optimizer::simplify_expressions::SimplifyExpressions;
use rowmill_spec::{Diagnostic, MappedText, OnError as OnErrorText, Step};
use rowmill_step::OnError;

use super::sql_errors::planning_error;
use crate::calls::default_row;
use crate::plan::guarded::{Chain, Guard, GuardParts};

/// Whether the step's rows have outcomes. Plain `on_error: fail` is what a query does anyway.
pub(super) fn is_guarded(step: &Step) -> bool {
    let plain = step.items.on_error.as_ref().is_none_or(|policy| matches!(policy.value, OnErrorText::Fail));
    !plain || step.items.max_errors.is_some()
}

/// The step whose analysed query, over the one relation `reads`, is `plan`.
///
/// # Errors
/// A query that is not row-wise; a default that does not fit the columns.
pub(super) fn guard(
    step: &Step,
    text: &MappedText,
    reads: &[String],
    plan: LogicalPlan,
    state: &SessionState,
) -> Result<Guard, Vec<Diagnostic>> {
    let name = &step.name.value;
    let [from] = reads else {
        let what = match reads.is_empty() {
            true => "reads no step or source",
            false => "reads more than one step or source",
        };
        return Err(vec![not_row_wise(name, text, what)]);
    };
    if let Some(what) = wide(&plan) {
        return Err(vec![not_row_wise(name, text, &format!("has {what}"))]);
    }
    // Filters stay where they are written: what is evaluated for which rows is part of what the step says. The chain
    // is as narrow and as simple as in a plain plan otherwise.
    let optimizer = Optimizer::with_rules(vec![
        Arc::new(SimplifyExpressions::new()),
        Arc::new(CommonSubexprEliminate::new()),
        Arc::new(OptimizeProjections::new()),
    ]);
    let made = optimizer.optimize(plan, state, |_, _| {}).and_then(|plan| Ok((Chain::try_new(&plan, state)?, plan)));
    let ((chain, columns), plan) = made.map_err(|error| vec![planning_error(name, text, &error)])?;
    let fields: Vec<_> =
        plan.schema().fields().iter().map(|field| field.as_ref().clone().with_nullable(true)).collect();
    let schema: SchemaRef = Arc::new(Schema::new(fields));
    let on_error = match &step.items.on_error {
        None => OnError::Fail,
        Some(policy) => OnError::from_spec(&policy.value, |values| default_row(step, values, &schema))?,
    };
    Ok(Guard::from(GuardParts {
        step: Arc::from(name.as_str()),
        from: from.clone(),
        columns,
        chain,
        schema,
        on_error,
        max_errors: step.items.max_errors.as_ref().map(|most| most.value.into()),
    }))
}

fn not_row_wise(name: &str, text: &MappedText, what: &str) -> Diagnostic {
    let message = format!("step `{name}`: `on_error` and `max_errors` need a row-wise query, and this one {what}");
    Diagnostic::error("RM0312", message)
        .at(text.span, "")
        .help("put the conversions into a SQL step of their own before it, and the error policy there")
}

/// What makes a query more than columns, expressions and filters over one relation.
fn wide(plan: &LogicalPlan) -> Option<&'static str> {
    let mut found = None;
    let walked = plan.apply(|node| {
        found = found.or(match node {
            LogicalPlan::Projection(_)
            | LogicalPlan::Filter(_)
            | LogicalPlan::SubqueryAlias(_)
            | LogicalPlan::TableScan(_) => None,
            LogicalPlan::Aggregate(_) => Some("an aggregate"),
            LogicalPlan::Join(_) => Some("a join"),
            LogicalPlan::Sort(_) => Some("an ORDER BY"),
            LogicalPlan::Limit(_) => Some("a LIMIT"),
            LogicalPlan::Distinct(_) => Some("a DISTINCT"),
            LogicalPlan::Window(_) => Some("a window"),
            LogicalPlan::Union(_) => Some("a UNION"),
            LogicalPlan::Unnest(_) => Some("an unnest"),
            LogicalPlan::RecursiveQuery(_) => Some("a recursive query"),
            LogicalPlan::Values(_) => Some("VALUES"),
            _ => Some("more than columns, expressions and WHERE"),
        });
        node.apply_expressions(|expression| {
            expression.apply(|expression| {
                found = found.or(match expression {
                    Expr::ScalarSubquery(_) | Expr::Exists(_) | Expr::InSubquery(_) | Expr::SetComparison(_) => {
                        Some("a subquery")
                    }
                    Expr::AggregateFunction(_) => Some("an aggregate"),
                    Expr::WindowFunction(_) => Some("a window"),
                    Expr::Unnest(_) => Some("an unnest"),
                    _ => None,
                });
                Ok(TreeNodeRecursion::Continue)
            })
        })?;
        Ok(if found.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    match walked {
        Ok(_) => found,
        Err(_) => Some("more than columns, expressions and WHERE"),
    }
}
