//! What SQL can say and DataFusion answers wrongly, without a word. It is refused, with what to write instead.
//!
//! Queries are looked at as the planner makes them, before the optimizer turns subqueries into joins. What DataFusion
//! cannot plan at all is no concern of this file: it says so itself.

use std::ops::ControlFlow;

use datafusion::common::tree_node::{TreeNode as _, TreeNodeRecursion};
use datafusion::common::{JoinConstraint, JoinType, Result, plan_err};
use datafusion::execution::SessionState;
use datafusion::logical_expr::{BinaryExpr, Expr, LogicalPlan, Operator, SortExpr as Sort, Subquery};
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{Query, SetExpr, SetOperator, SetQuantifier, Visit as _, Visitor};

/// Plans a statement, unless its answer would be wrong.
///
/// # Errors
/// DataFusion's, and what is refused here.
pub async fn plan_statement(state: &SessionState, statement: Statement) -> Result<LogicalPlan> {
    if let Statement::Statement(sql) = &statement
        && let ControlFlow::Break(operator) = sql.visit(&mut Multisets)
    {
        return plan_err!(
            "{operator} ALL does not count rows that come several times; number them with row_number() and leave ALL out"
        );
    }
    let plan = state.statement_to_plan(statement).await?;
    plan.apply_with_subqueries(|node| {
        match node {
            LogicalPlan::Join(join) => {
                let outer = matches!(join.join_type, JoinType::Right | JoinType::Full);
                if outer && join.join_constraint == JoinConstraint::Using {
                    return plan_err!(
                        "USING and NATURAL in a RIGHT or FULL join make keys null that only the right side has; write ON, \
                         and coalesce(l.key, r.key) for the key"
                    );
                }
                join.filter.iter().try_for_each(|filter| chosen(filter, false))?;
            }
            LogicalPlan::Filter(filter) => chosen(&filter.predicate, true)?,
            LogicalPlan::Aggregate(aggregate) => ordered(&aggregate.aggr_expr)?,
            _ => {}
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(plan)
}

/// Finds EXCEPT ALL and INTERSECT ALL, which are planned as joins that keep every row of the left side or none.
struct Multisets;

impl Visitor for Multisets {
    type Break = &'static str;

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<&'static str> {
        fn find(set: &SetExpr) -> ControlFlow<&'static str> {
            let SetExpr::SetOperation { op, set_quantifier, left, right } = set else {
                return ControlFlow::Continue(());
            };
            let all = matches!(set_quantifier, SetQuantifier::All | SetQuantifier::AllByName);
            match op {
                SetOperator::Except | SetOperator::Minus if all => ControlFlow::Break("EXCEPT"),
                SetOperator::Intersect if all => ControlFlow::Break("INTERSECT"),
                _ => {
                    find(left)?;
                    find(right)
                }
            }
        }
        find(&query.body)
    }
}

/// Checks the subqueries in a condition that chooses rows, where false and null mean the same. `alone` is true where the
/// condition is one of those that must all hold: only there NOT IN is planned as a join that minds nulls.
fn chosen(condition: &Expr, alone: bool) -> Result<()> {
    match condition {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
            chosen(left, alone)?;
            chosen(right, alone)
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
            chosen(left, false)?;
            chosen(right, false)
        }
        Expr::Not(inner) => match inner.as_ref() {
            Expr::InSubquery(list) => in_list(&list.subquery, !list.negated, alone),
            inner => valued(inner),
        },
        Expr::InSubquery(list) => in_list(&list.subquery, list.negated, alone),
        other => valued(other),
    }
}

fn in_list(subquery: &Subquery, negated: bool, alone: bool) -> Result<()> {
    if negated && !(alone && subquery.outer_ref_columns.is_empty()) {
        return plan_err!(
            "NOT IN goes wrong with nulls where its query reads the rows outside of it, and beside OR; write NOT EXISTS"
        );
    }
    grouped(subquery)
}

/// Checks the subqueries in an expression of which every value counts.
fn valued(expression: &Expr) -> Result<()> {
    expression
        .apply(|inner| {
            match inner {
                Expr::InSubquery(_) => {
                    return plan_err!(
                        "IN over a query is false here where it should be null; join with the distinct values instead"
                    );
                }
                Expr::Exists(exists) => grouped(&exists.subquery)?,
                _ => {}
            }
            Ok(TreeNodeRecursion::Continue)
        })
        .map(drop)
}

/// Checks that no DISTINCT aggregate stands beside one of the opposite order, whose order it would take.
fn ordered(aggregates: &[Expr]) -> Result<()> {
    let mut orders: Vec<(bool, &Sort)> = Vec::new();
    for aggregate in aggregates {
        aggregate.apply(|inner| {
            if let Expr::AggregateFunction(function) = inner {
                orders.extend(function.params.order_by.first().map(|sort| (function.params.distinct, sort)));
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
    }
    let turned = |(distinct, sort): &(bool, &Sort)| {
        *distinct && orders.iter().any(|(_, other)| other.expr == sort.expr && other.asc != sort.asc)
    };
    if orders.iter().any(turned) {
        return plan_err!(
            "ORDER BY inside of a DISTINCT function is lost beside another that orders the other way round; turn the list \
             with array_reverse, or compute it in a step of its own"
        );
    }
    Ok(())
}

/// Without groups there is a row also where nothing comes in; joined on what hangs on outer rows, there is none.
fn grouped(subquery: &Subquery) -> Result<()> {
    fn is_total(plan: &LogicalPlan) -> bool {
        match plan {
            LogicalPlan::Aggregate(aggregate) => aggregate.group_expr.is_empty(),
            LogicalPlan::Projection(_) | LogicalPlan::SubqueryAlias(_) | LogicalPlan::Sort(_) => {
                plan.inputs().into_iter().all(is_total)
            }
            _ => false,
        }
    }
    if !subquery.outer_ref_columns.is_empty() && is_total(&subquery.subquery) {
        return plan_err!(
            "EXISTS and IN miss the total over no rows where their query reads the rows outside of it; compare the total: \
             0 = (SELECT count(*) FROM ...)"
        );
    }
    Ok(())
}
