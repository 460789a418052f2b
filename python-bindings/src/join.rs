//! Joins of frames: which columns come out, under which names.

use datafusion::common::{Column, DataFusionError, Result, TableReference, unqualified_field_not_found};
use datafusion::functions::expr_fn::coalesce;
use datafusion::logical_expr::{Expr, JoinType, LogicalPlan, LogicalPlanBuilder};

use crate::frame::join_type;

const LEFT: &str = "__left";
const RIGHT: &str = "__right";

/// Joins two plans on pairs of expressions. Where a pair is the same column on both sides it comes out once; other
/// columns of the right side whose names are taken get `suffix`.
pub(crate) fn join(
    left: &LogicalPlan,
    right: &LogicalPlan,
    left_on: Vec<Expr>,
    right_on: Vec<Expr>,
    how: &str,
    suffix: &str,
) -> Result<LogicalPlan> {
    let one = LogicalPlanBuilder::from(left.clone()).alias(LEFT)?;
    let two = LogicalPlanBuilder::from(right.clone()).alias(RIGHT)?.build()?;
    let cross = how == "cross";
    let kind = if cross { JoinType::Inner } else { join_type(how)? };
    // Keys that are plain columns of one name on both sides.
    let shared: Vec<String> = left_on
        .iter()
        .zip(&right_on)
        .filter_map(|pair| match pair {
            (Expr::Column(left), Expr::Column(right)) if left.name == right.name => Some(left.name.clone()),
            _ => None,
        })
        .collect();
    let joined = if cross {
        one.cross_join(two)?
    } else {
        let on = left_on.into_iter().map(|expr| qualified(expr, LEFT, left)).collect::<Result<Vec<_>>>()?;
        let with = right_on.into_iter().map(|expr| qualified(expr, RIGHT, right)).collect::<Result<Vec<_>>>()?;
        let equal: Vec<Expr> = on.into_iter().zip(with).map(|(left, right)| left.eq(right)).collect();
        one.join_on(two, kind, equal)?
    };
    let column = |side: &str, name: &str| Expr::Column(Column::new(Some(TableReference::bare(side)), name));
    let mut columns = Vec::new();
    let mut taken: Vec<String> = Vec::new();
    for field in left.schema().fields() {
        let name = field.name();
        let own = column(LEFT, name);
        columns.push(match shared.contains(name) {
            true if kind == JoinType::Full => coalesce(vec![own, column(RIGHT, name)]).alias(name),
            true if kind == JoinType::Right => column(RIGHT, name).alias(name),
            _ => own.alias(name),
        });
        taken.push(name.clone());
    }
    if !matches!(kind, JoinType::LeftSemi | JoinType::LeftAnti) {
        for field in right.schema().fields() {
            let name = field.name();
            if shared.contains(name) {
                continue;
            }
            let new = if taken.contains(name) { format!("{name}{suffix}") } else { name.clone() };
            if taken.contains(&new) {
                let message = format!("both sides of the join have columns `{name}` and `{new}`; give another suffix");
                return Err(DataFusionError::Plan(message));
            }
            columns.push(column(RIGHT, name).alias(&new));
            taken.push(new);
        }
    }
    joined.project(columns)?.build()
}

/// The expression with its columns looked for on one side, where they must be.
fn qualified(expr: Expr, side: &str, plan: &LogicalPlan) -> Result<Expr> {
    use datafusion::common::tree_node::{Transformed, TreeNode as _};
    let found = expr.transform(|part| {
        Ok(match part {
            Expr::Column(column) => {
                if plan.schema().index_of_column_by_name(None, &column.name).is_none() {
                    return Err(unqualified_field_not_found(&column.name, plan.schema()));
                }
                Transformed::yes(Expr::Column(Column::new(Some(TableReference::bare(side)), column.name)))
            }
            other => Transformed::no(other),
        })
    })?;
    Ok(found.data)
}
