//! DataFusion's physical expressions as the kernels' expressions. What has no kernel is refused with a reason in words;
//! nothing here decides whether offloading pays.
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use datafusion::common::tree_node::{Transformed, TreeNode as _};
use datafusion::common::{Result as PlanResult, ScalarValue, internal_datafusion_err};
use datafusion::logical_expr::{ColumnarValue, Operator};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{
    BinaryExpr, CaseExpr, CastExpr, Column, InListExpr, IsNotNullExpr, IsNullExpr, Literal, NegativeExpr, NotExpr,
};
use rowmill_gpu::expr::{self, BinaryOp, GpuExpr};

/// Why something stays on the CPU, for people.
pub type Reason = String;

/// The longest list of an `IN` that is written out as comparisons.
const MAX_IN_LIST: usize = 32;

/// Lowers `expr`, whose columns are those of `schema`.
///
/// The result has the type that DataFusion gives the expression: where the two disagree it is refused.
///
/// # Errors
/// What has no kernel, in words.
pub fn lower(expr: &Arc<dyn PhysicalExpr>, schema: &Schema) -> Result<GpuExpr, Reason> {
    let lowered = lower_node(expr, schema)?;
    let own = lowered.data_type(schema).map_err(|error| error.to_string())?;
    let theirs = expr.data_type(schema).map_err(|error| error.strip_backtrace())?;
    match own == theirs {
        true => Ok(lowered),
        false => Err(format!("`{expr}` would be {own} there and is {theirs} here")),
    }
}

fn lower_node(expr: &Arc<dyn PhysicalExpr>, schema: &Schema) -> Result<GpuExpr, Reason> {
    let boxed = |expr| lower(expr, schema).map(Box::new);
    if let Some(column) = expr.downcast_ref::<Column>() {
        return Ok(expr::column(column.index()));
    }
    if let Some(literal) = expr.downcast_ref::<Literal>() {
        return constant(literal.value());
    }
    if let Some(binary) = expr.downcast_ref::<BinaryExpr>() {
        return lower_binary(binary, schema);
    }
    if let Some(not) = expr.downcast_ref::<NotExpr>() {
        return Ok(GpuExpr::Not(boxed(not.arg())?));
    }
    if let Some(negative) = expr.downcast_ref::<NegativeExpr>() {
        return Ok(GpuExpr::Negate(boxed(negative.arg())?));
    }
    if let Some(is_null) = expr.downcast_ref::<IsNullExpr>() {
        return Ok(GpuExpr::IsNull(boxed(is_null.arg())?));
    }
    if let Some(is_not_null) = expr.downcast_ref::<IsNotNullExpr>() {
        return Ok(GpuExpr::IsNotNull(boxed(is_not_null.arg())?));
    }
    if let Some(cast) = expr.downcast_ref::<CastExpr>() {
        if cast.cast_options().safe {
            return Err(format!("`{cast}` gives null where a value does not fit"));
        }
        if cast.expr().is::<Literal>() {
            // The kernel gets the value: what it was cast from may have no kernel, as the text of a date.
            let nothing = RecordBatch::new_empty(Arc::new(Schema::empty()));
            return match expr.evaluate(&nothing) {
                Ok(ColumnarValue::Scalar(value)) => constant(&value),
                _ => Err(format!("`{cast}` is no constant")),
            };
        }
        return Ok(lower(cast.expr(), schema)?.cast(cast.cast_type().clone()));
    }
    if let Some(case) = expr.downcast_ref::<CaseExpr>() {
        return lower_case(case, schema);
    }
    if let Some(list) = expr.downcast_ref::<InListExpr>() {
        return lower_in_list(list, schema);
    }
    Err(format!("`{expr}` has no kernel"))
}

fn constant(value: &ScalarValue) -> Result<GpuExpr, Reason> {
    let array = value.to_array().map_err(|error| error.strip_backtrace())?;
    Ok(GpuExpr::Literal(expr::Literal::try_new(array).map_err(|error| error.to_string())?))
}

fn lower_binary(binary: &BinaryExpr, schema: &Schema) -> Result<GpuExpr, Reason> {
    let (left, right) = operands(binary.left(), binary.right(), schema)?;
    let op = match binary.op() {
        Operator::Plus => BinaryOp::Add,
        Operator::Minus => BinaryOp::Subtract,
        Operator::Multiply => BinaryOp::Multiply,
        Operator::Divide => BinaryOp::Divide,
        Operator::Modulo => BinaryOp::Remainder,
        Operator::Eq => BinaryOp::Equal,
        Operator::NotEq => BinaryOp::NotEqual,
        Operator::Lt => BinaryOp::Less,
        Operator::LtEq => BinaryOp::LessOrEqual,
        Operator::Gt => BinaryOp::Greater,
        Operator::GtEq => BinaryOp::GreaterOrEqual,
        Operator::And => BinaryOp::And,
        Operator::Or => BinaryOp::Or,
        Operator::IsNotDistinctFrom => return Ok(same(left, right)),
        Operator::IsDistinctFrom => return Ok(GpuExpr::Not(Box::new(same(left, right)))),
        other => return Err(format!("operator `{other}` has no kernel")),
    };
    Ok(left.binary(op, right))
}

/// Two operands of one operator. A null without a type takes that of the other operand.
fn operands(
    left: &Arc<dyn PhysicalExpr>,
    right: &Arc<dyn PhysicalExpr>,
    schema: &Schema,
) -> Result<(GpuExpr, GpuExpr), Reason> {
    if is_untyped_null(left) {
        let right = lower(right, schema)?;
        return Ok((null_like(&right, schema)?, right));
    }
    let left = lower(left, schema)?;
    let right = if is_untyped_null(right) { null_like(&left, schema)? } else { lower(right, schema)? };
    Ok((left, right))
}

fn is_untyped_null(expr: &Arc<dyn PhysicalExpr>) -> bool {
    expr.downcast_ref::<Literal>().is_some_and(|literal| *literal.value() == ScalarValue::Null)
}

fn null_like(other: &GpuExpr, schema: &Schema) -> Result<GpuExpr, Reason> {
    let data_type = other.data_type(schema).map_err(|error| error.to_string())?;
    expr::null(&data_type).map_err(|error| error.to_string())
}

/// `left IS NOT DISTINCT FROM right`: never null. Where the two are equal neither is null, and the answer is true.
fn same(left: GpuExpr, right: GpuExpr) -> GpuExpr {
    let both_null =
        GpuExpr::IsNull(Box::new(left.clone())).binary(BinaryOp::And, GpuExpr::IsNull(Box::new(right.clone())));
    GpuExpr::Case {
        branches: vec![(left.binary(BinaryOp::Equal, right), GpuExpr::Not(Box::new(both_null.clone())))],
        otherwise: Some(Box::new(both_null)),
    }
}

fn lower_case(case: &CaseExpr, schema: &Schema) -> Result<GpuExpr, Reason> {
    let base = case.expr().map(|base| lower(base, schema)).transpose()?;
    if let Some(base) = &base
        && base.data_type(schema).map_err(|error| error.to_string())?.is_floating()
    {
        // Unlike `=`, which takes both zeros for one.
        return Err("`CASE` over a float tells its zeros apart".into());
    }
    let mut branches = Vec::with_capacity(case.when_then_expr().len());
    for (when, then) in case.when_then_expr() {
        let when = lower(when, schema)?;
        let condition = match &base {
            Some(base) => base.clone().binary(BinaryOp::Equal, when),
            None => when,
        };
        branches.push((condition, lower(then, schema)?));
    }
    let otherwise = case.else_expr().map(|otherwise| lower(otherwise, schema).map(Box::new)).transpose()?;
    Ok(GpuExpr::Case { branches, otherwise })
}

fn lower_in_list(list: &InListExpr, schema: &Schema) -> Result<GpuExpr, Reason> {
    if list.len() > MAX_IN_LIST {
        return Err(format!("`IN` of {} values; {MAX_IN_LIST} are compared one by one at most", list.len()));
    }
    let value = lower(list.expr(), schema)?;
    let data_type = value.data_type(schema).map_err(|error| error.to_string())?;
    if data_type.is_floating() {
        return Err("`IN` over floats treats zeros and NaN in its own way".into());
    }
    let mut any: Option<GpuExpr> = None;
    for item in list.list() {
        let item = if is_untyped_null(item) { null_like(&value, schema)? } else { lower(item, schema)? };
        let equal = value.clone().binary(BinaryOp::Equal, item);
        any = Some(match any {
            Some(any) => any.binary(BinaryOp::Or, equal),
            None => equal,
        });
    }
    let any = any.ok_or("`IN` of no values")?;
    Ok(if list.negated() { GpuExpr::Not(Box::new(any)) } else { any })
}

/// `expr` with each of its columns replaced by what `columns` has at its position.
///
/// # Errors
/// For a column that is not there.
pub fn substitute(
    expr: &Arc<dyn PhysicalExpr>,
    columns: &[Arc<dyn PhysicalExpr>],
) -> PlanResult<Arc<dyn PhysicalExpr>> {
    let replace = |expr: Arc<dyn PhysicalExpr>| match expr.downcast_ref::<Column>() {
        Some(column) => match columns.get(column.index()) {
            Some(replacement) => Ok(Transformed::yes(Arc::clone(replacement))),
            None => Err(internal_datafusion_err!("column {column} is not among {} columns", columns.len())),
        },
        None => Ok(Transformed::no(expr)),
    };
    Arc::clone(expr).transform_up(replace).map(|transformed| transformed.data)
}

/// The positions of the columns that `expr` reads, added to `found`.
pub(crate) fn columns_of(expr: &Arc<dyn PhysicalExpr>, found: &mut std::collections::BTreeSet<usize>) {
    if let Some(column) = expr.downcast_ref::<Column>() {
        found.insert(column.index());
    }
    for child in expr.children() {
        columns_of(child, found);
    }
}

/// Whether `expr` is a constant that is not null, such as the argument of `count(1)`.
pub(crate) fn is_constant(expr: &Arc<dyn PhysicalExpr>) -> bool {
    expr.downcast_ref::<Literal>().is_some_and(|literal| !literal.value().is_null())
}

/// One, as a number: what `count(*) FILTER` counts.
pub(crate) fn one() -> Result<GpuExpr, Reason> {
    constant(&ScalarValue::Int64(Some(1)))
}
