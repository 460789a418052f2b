//! Subqueries that stand for a value give one row or an error, on a cluster as in one process.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode as _};
use datafusion::common::{Column, Result};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, Subquery};
use datafusion::optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule};
use rowmill_wire::single_value::single_value;

/// Wraps each subquery of which it is not known that it gives one row at most. Those that look at the query around them
/// DataFusion takes with an aggregate or a limit only.
#[derive(Debug)]
pub(crate) struct OneRowSubqueries;

impl OptimizerRule for OneRowSubqueries {
    fn name(&self) -> &'static str {
        "one_row_subqueries"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::BottomUp)
    }

    fn supports_rewrite(&self) -> bool {
        true
    }

    fn rewrite(&self, plan: LogicalPlan, _config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        plan.map_expressions(|expression| {
            expression.transform_up(|expression| match expression {
                Expr::ScalarSubquery(own)
                    if own.outer_ref_columns.is_empty() && own.subquery.max_rows().is_none_or(|rows| rows > 1) =>
                {
                    let (table, field) = own.subquery.schema().qualified_field(0);
                    let value = single_value().call(vec![Expr::Column(Column::from((table, field.as_ref())))]);
                    let value = value.alias(field.name());
                    let one = LogicalPlanBuilder::from(Arc::unwrap_or_clone(own.subquery))
                        .aggregate(Vec::<Expr>::new(), vec![value])?
                        .build()?;
                    let (outer_ref_columns, spans) = (own.outer_ref_columns, own.spans);
                    let one = Subquery { subquery: Arc::new(one), outer_ref_columns, spans };
                    Ok(Transformed::yes(Expr::ScalarSubquery(one)))
                }
                other => Ok(Transformed::no(other)),
            })
        })
    }
}
