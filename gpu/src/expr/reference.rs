//! Evaluates a [`GpuExpr`] with Arrow's kernels: the CPU path, and what the kernels are tested against.
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float32Array, Float64Array, RecordBatch, UInt32Array, make_array,
    new_null_array,
};
use arrow::compute::kernels::{boolean, cmp, numeric};
use arrow::compute::{CastOptions, cast_with_options, filter, filter_record_batch, interleave, take};
use arrow::datatypes::{DataType, Float32Type, Float64Type};

use super::{BinaryOp, GpuExpr};
use crate::error::{DataFault, Error, Result};

/// Evaluates `expr` for every row of `batch`.
///
/// # Errors
/// [`Error::Data`] when a row fails, [`Error::Invalid`] and [`Error::Unsupported`] as [`GpuExpr::data_type`].
pub fn evaluate(expr: &GpuExpr, batch: &RecordBatch) -> Result<ArrayRef> {
    match expr {
        GpuExpr::Column(at) => {
            expr.data_type(&batch.schema())?;
            Ok(Arc::clone(batch.column(*at)))
        }
        GpuExpr::Literal(literal) => {
            let zeros = UInt32Array::from(vec![0; batch.num_rows()]);
            Ok(take(literal.array(), &zeros, None)?)
        }
        GpuExpr::Binary { op, left, right } if op.is_logical() => logical(*op, left, right, batch),
        GpuExpr::Binary { op, left, right } => {
            expr.data_type(&batch.schema())?;
            binary(*op, &evaluate(left, batch)?, &evaluate(right, batch)?)
        }
        GpuExpr::Not(input) => Ok(Arc::new(boolean::not(evaluate(input, batch)?.as_boolean())?)),
        GpuExpr::Negate(input) => {
            expr.data_type(&batch.schema())?;
            numeric::neg_wrapping(evaluate(input, batch)?.as_ref()).map_err(fault_of)
        }
        GpuExpr::IsNull(input) => Ok(Arc::new(boolean::is_null(evaluate(input, batch)?.as_ref())?)),
        GpuExpr::IsNotNull(input) => Ok(Arc::new(boolean::is_not_null(evaluate(input, batch)?.as_ref())?)),
        GpuExpr::Cast { input, to } => {
            expr.data_type(&batch.schema())?;
            let strict = CastOptions { safe: false, ..CastOptions::default() };
            let input = evaluate(input, batch)?;
            cast_with_options(input.as_ref(), to, &strict).map_err(|_| DataFault::Cast.into())
        }
        GpuExpr::Case { branches, otherwise } => {
            case(&expr.data_type(&batch.schema())?, branches, otherwise.as_deref(), batch)
        }
    }
}

/// The rows for which `filter` is true; all of them without one.
pub(crate) fn passing(batch: &RecordBatch, predicate: Option<&GpuExpr>) -> Result<RecordBatch> {
    match predicate {
        Some(predicate) => Ok(filter_record_batch(batch, evaluate(predicate, batch)?.as_boolean())?),
        None => Ok(batch.clone()),
    }
}

fn binary(op: BinaryOp, left: &dyn Array, right: &dyn Array) -> Result<ArrayRef> {
    let zeroed;
    let (left, right) = match op.is_arithmetic() || op.is_logical() {
        true => (left, right),
        false => {
            zeroed = (one_zero(left), one_zero(right));
            (zeroed.0.as_ref(), zeroed.1.as_ref())
        }
    };
    let (l, r): (&dyn arrow::array::Datum, &dyn arrow::array::Datum) = (&left, &right);
    let compared = match op {
        BinaryOp::Add => return numeric::add_wrapping(l, r).map_err(fault_of),
        BinaryOp::Subtract => return numeric::sub_wrapping(l, r).map_err(fault_of),
        BinaryOp::Multiply => return numeric::mul_wrapping(l, r).map_err(fault_of),
        BinaryOp::Divide => return numeric::div(l, r).map_err(fault_of),
        BinaryOp::Remainder => return numeric::rem(l, r).map_err(fault_of),
        BinaryOp::Equal => cmp::eq(l, r),
        BinaryOp::NotEqual => cmp::neq(l, r),
        BinaryOp::Less => cmp::lt(l, r),
        BinaryOp::LessOrEqual => cmp::lt_eq(l, r),
        BinaryOp::Greater => cmp::gt(l, r),
        BinaryOp::GreaterOrEqual => cmp::gt_eq(l, r),
        BinaryOp::And => boolean::and_kleene(left.as_boolean(), right.as_boolean()),
        BinaryOp::Or => boolean::or_kleene(left.as_boolean(), right.as_boolean()),
    };
    Ok(Arc::new(compared?))
}

/// Floats as DataFusion compares them: -0.0 is 0.0, everything else as it is.
fn one_zero(array: &dyn Array) -> ArrayRef {
    match array.data_type() {
        DataType::Float32 => {
            let zeroed: Float32Array =
                array.as_primitive::<Float32Type>().unary(|value| if value == 0.0 { 0.0 } else { value });
            Arc::new(zeroed)
        }
        DataType::Float64 => {
            let zeroed: Float64Array =
                array.as_primitive::<Float64Type>().unary(|value| if value == 0.0 { 0.0 } else { value });
            Arc::new(zeroed)
        }
        _ => make_array(array.to_data()),
    }
}

/// Arrow's errors of the data as faults; the rest as they are.
fn fault_of(error: arrow::error::ArrowError) -> Error {
    match error {
        arrow::error::ArrowError::DivideByZero => DataFault::DivideByZero.into(),
        arrow::error::ArrowError::ArithmeticOverflow(_) => DataFault::Overflow.into(),
        other => other.into(),
    }
}

/// The right side is evaluated only on the rows that the left side leaves open.
fn logical(op: BinaryOp, left: &GpuExpr, right: &GpuExpr, batch: &RecordBatch) -> Result<ArrayRef> {
    let left = evaluate(left, batch)?;
    let decided_by = op == BinaryOp::Or;
    let open: BooleanArray = left.as_boolean().iter().map(|value| Some(value != Some(decided_by))).collect();
    let right = evaluate(right, &filter_record_batch(batch, &open)?)?;
    let open_left = filter(&left, &open)?;
    let joined = binary(op, &open_left, &right)?;
    merge(&open, &joined, &left)
}

/// Takes `inside` in order where `mask` is true, and `outside` at its own row where it is not.
fn merge(mask: &BooleanArray, inside: &ArrayRef, outside: &ArrayRef) -> Result<ArrayRef> {
    let mut next = 0;
    let indices: Vec<(usize, usize)> = (0..mask.len())
        .map(|row| {
            if mask.value(row) {
                next += 1;
                (0, next - 1)
            } else {
                (1, row)
            }
        })
        .collect();
    Ok(interleave(&[inside.as_ref(), outside.as_ref()], &indices)?)
}

fn case(
    data_type: &DataType,
    branches: &[(GpuExpr, GpuExpr)],
    otherwise: Option<&GpuExpr>,
    batch: &RecordBatch,
) -> Result<ArrayRef> {
    let Some(((condition, value), rest)) = branches.split_first() else {
        return match otherwise {
            Some(otherwise) => evaluate(otherwise, batch),
            None => Ok(new_null_array(data_type, batch.num_rows())),
        };
    };
    let condition = evaluate(condition, batch)?;
    let chosen: BooleanArray = condition.as_boolean().iter().map(|value| Some(value == Some(true))).collect();
    let inside = evaluate(value, &filter_record_batch(batch, &chosen)?)?;
    let left_over = filter_record_batch(batch, &boolean::not(&chosen)?)?;
    let outside = case(data_type, rest, otherwise, &left_over)?;
    let (mut in_next, mut out_next) = (0, 0);
    let indices: Vec<(usize, usize)> = chosen
        .values()
        .iter()
        .map(|chosen| {
            let next = if chosen { &mut in_next } else { &mut out_next };
            *next += 1;
            (usize::from(!chosen), *next - 1)
        })
        .collect();
    Ok(interleave(&[inside.as_ref(), outside.as_ref()], &indices)?)
}
