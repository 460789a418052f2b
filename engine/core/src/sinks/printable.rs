//! Times and dates as text: those that have none are told before a writer of text meets them.
//!
//! Timestamps reach further than a calendar does. Arrow's writer of JSON, and its printer of tables, put the text of an
//! error where such a value stands, and go on. What prints is one range of each type, so that of a column the smallest
//! value and the largest are looked at.

use arrow::array::{Array, AsArray as _, RecordBatch};
use arrow::compute::kernels::aggregate::{max, min};
use arrow::datatypes::{
    ArrowNativeType, ArrowPrimitiveType, DataType, Date32Type, Date64Type, Time32MillisecondType, Time32SecondType,
    Time64MicrosecondType, Time64NanosecondType, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType,
};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::common::{Result, internal_err};
use datafusion::logical_expr::{
    ColumnarValue, Expr, LogicalPlan, LogicalPlanBuilder, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};

/// Whether every value of a batch has a text.
///
/// # Errors
/// The first time or date that has none.
pub fn check_printable(batch: &RecordBatch) -> Result<(), ArrowError> {
    let schema = batch.schema();
    let columns = schema.fields().iter().zip(batch.columns()).filter(|(field, _)| has_times(field.data_type()));
    columns.into_iter().try_for_each(|(field, column)| {
        check(column).map_err(|error| match error {
            ArrowError::CastError(text) => ArrowError::CastError(format!("column `{}`: {text}", field.name())),
            other => ArrowError::CastError(format!("column `{}`: {other}", field.name())),
        })
    })
}

/// `rows`, which fail where a time or a date has no text.
///
/// # Errors
/// When the plan cannot be built.
pub(super) fn printable(rows: LogicalPlan) -> Result<LogicalPlan> {
    let schema = std::sync::Arc::clone(rows.schema());
    if !schema.fields().iter().any(|field| has_times(field.data_type())) {
        return Ok(rows);
    }
    let columns: Vec<Expr> = schema
        .iter()
        .map(|(qualifier, field)| {
            let column = Expr::from((qualifier, field));
            match has_times(field.data_type()) {
                true => {
                    let name = field.name().clone();
                    let function =
                        Printable { column: name.clone(), signature: Signature::any(1, Volatility::Immutable) };
                    ScalarUDF::new_from_impl(function).call(vec![column]).alias(name)
                }
                false => column,
            }
        })
        .collect();
    LogicalPlanBuilder::from(rows).project(columns)?.build()
}

fn has_times(kind: &DataType) -> bool {
    match kind {
        DataType::Dictionary(_, values) => has_times(values),
        DataType::Struct(fields) => fields.iter().any(|field| has_times(field.data_type())),
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::FixedSizeList(item, _)
        | DataType::Map(item, _) => has_times(item.data_type()),
        kind => kind.is_temporal() && !matches!(kind, DataType::Duration(_) | DataType::Interval(_)),
    }
}

fn check(array: &dyn Array) -> Result<(), ArrowError> {
    match array.data_type() {
        DataType::Dictionary(..) => check(array.as_any_dictionary().values()),
        // With the nulls of the structs, under which anything may lie.
        DataType::Struct(_) => array.as_struct().flatten().1.iter().try_for_each(|child| check(child)),
        DataType::List(_) => {
            let lists = array.as_list::<i32>();
            let (first, last) = (lists.value_offsets().first(), lists.value_offsets().last());
            match (first, last) {
                (Some(first), Some(last)) => {
                    check(&lists.values().slice(first.as_usize(), last.as_usize() - first.as_usize()))
                }
                _ => Ok(()),
            }
        }
        DataType::LargeList(_) => {
            let lists = array.as_list::<i64>();
            let (first, last) = (lists.value_offsets().first(), lists.value_offsets().last());
            match (first, last) {
                (Some(first), Some(last)) => {
                    check(&lists.values().slice(first.as_usize(), last.as_usize() - first.as_usize()))
                }
                _ => Ok(()),
            }
        }
        DataType::FixedSizeList(..) => check(array.as_fixed_size_list().values()),
        DataType::Map(..) => check(array.as_map().entries()),
        DataType::Timestamp(TimeUnit::Second, _) => check_ends::<TimestampSecondType>(array),
        DataType::Timestamp(TimeUnit::Millisecond, _) => check_ends::<TimestampMillisecondType>(array),
        DataType::Timestamp(TimeUnit::Microsecond, _) => check_ends::<TimestampMicrosecondType>(array),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => check_ends::<TimestampNanosecondType>(array),
        DataType::Date32 => check_ends::<Date32Type>(array),
        DataType::Date64 => check_ends::<Date64Type>(array),
        DataType::Time32(TimeUnit::Second) => check_ends::<Time32SecondType>(array),
        DataType::Time32(_) => check_ends::<Time32MillisecondType>(array),
        DataType::Time64(TimeUnit::Microsecond) => check_ends::<Time64MicrosecondType>(array),
        DataType::Time64(_) => check_ends::<Time64NanosecondType>(array),
        _ => Ok(()),
    }
}

fn check_ends<T: ArrowPrimitiveType>(array: &dyn Array) -> Result<(), ArrowError>
where
    T::Native: ArrowNativeType,
{
    let values = array.as_primitive::<T>();
    let ends: Vec<T::Native> = [min(values), max(values)].into_iter().flatten().collect();
    if ends.is_empty() {
        return Ok(());
    }
    let ends = arrow::array::PrimitiveArray::<T>::from_iter_values(ends).with_data_type(array.data_type().clone());
    let options = FormatOptions::default().with_display_error(false);
    let formatter = ArrayFormatter::try_new(&ends, &options)?;
    (0..ends.len()).try_for_each(|at| formatter.value(at).try_to_string().map(drop))
}

/// `printable(value)`: the value, if it has a text.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Printable {
    column: String,
    signature: Signature,
}

impl ScalarUDFImpl for Printable {
    fn name(&self) -> &str {
        "printable"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        match arguments {
            [kind] => Ok(kind.clone()),
            _ => internal_err!("printable takes one argument"),
        }
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [value] = arguments.args.as_slice() else { return internal_err!("printable takes one argument") };
        let array = value.to_array(1)?;
        check(&array).map_err(|error| match error {
            ArrowError::CastError(text) => ArrowError::CastError(format!("column `{}`: {text}", self.column)),
            other => ArrowError::CastError(format!("column `{}`: {other}", self.column)),
        })?;
        Ok(value.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        ArrayRef, Date32Array, ListArray, StructArray, TimestampMicrosecondArray, TimestampSecondArray,
    };
    use arrow::datatypes::{Field, Int32Type};

    use super::*;

    #[test]
    fn only_what_a_calendar_holds_prints() {
        let good: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![Some(0), None, Some(1 << 50)]));
        let far: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![Some(0), Some(i64::MAX)]));
        let early: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![i64::MIN, 5]));
        let zoned: ArrayRef = Arc::new(TimestampSecondArray::from(vec![i64::MAX]).with_timezone("Europe/Paris"));
        check(&good).unwrap();
        for bad in [&far, &early, &zoned] {
            check(bad).unwrap_err();
        }
        // What is sliced away does not count, and neither does what lies under a null.
        check(&far.slice(0, 1)).unwrap();
        check(&Date32Array::from(vec![i32::MAX])).unwrap_err();
        let inner = StructArray::new(
            vec![Field::new("t", far.data_type().clone(), true)].into(),
            vec![Arc::clone(&far)],
            Some(vec![true, false].into()),
        );
        check(&inner).unwrap();
        let lists = ListArray::from_iter_primitive::<Int32Type, _, _>([Some([Some(1)])]);
        check(&lists).unwrap();
    }
}
