//! Whole numbers by way of their text.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, FixedSizeListArray, GenericListArray, MapArray, OffsetSizeTrait,
    PrimitiveBuilder, RecordBatch, RecordBatchOptions, StringViewArray, StructArray,
};
use arrow::datatypes::{
    DataType, Field, FieldRef, Fields, Int8Type, Int16Type, Int32Type, Int64Type, Schema, SchemaRef, UInt8Type,
    UInt16Type, UInt32Type, UInt64Type,
};
use arrow::error::ArrowError;

/// The schema with text in the place of whole numbers, at any depth.
pub(crate) fn as_text(schema: &Schema) -> SchemaRef {
    Arc::new(Schema::new_with_metadata(fields_as_text(schema.fields()), schema.metadata().clone()))
}

fn fields_as_text(fields: &Fields) -> Fields {
    fields.iter().map(field_as_text).collect()
}

fn field_as_text(field: &FieldRef) -> FieldRef {
    let inner = |field: &FieldRef| field_as_text(field);
    let kind = match field.data_type() {
        kind if kind.is_integer() => DataType::Utf8View,
        DataType::Struct(fields) => DataType::Struct(fields_as_text(fields)),
        DataType::List(item) => DataType::List(inner(item)),
        DataType::LargeList(item) => DataType::LargeList(inner(item)),
        DataType::FixedSizeList(item, size) => DataType::FixedSizeList(inner(item), *size),
        DataType::Map(entries, sorted) => DataType::Map(inner(entries), *sorted),
        _ => return Arc::clone(field),
    };
    Arc::new(field.as_ref().clone().with_data_type(kind))
}

/// The batch under the schema that [`as_text`] was made of.
///
/// # Errors
/// A text is no number of its column's type; the error names the column and shows the text.
pub(crate) fn as_numbers(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let columns: Result<Vec<ArrayRef>, ArrowError> =
        batch.columns().iter().zip(schema.fields()).map(|(column, field)| restore(column, field)).collect();
    let rows = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns?, &rows)
}

fn restore(array: &ArrayRef, field: &Field) -> Result<ArrayRef, ArrowError> {
    if array.data_type() == field.data_type() {
        return Ok(Arc::clone(array));
    }
    Ok(match field.data_type() {
        DataType::Int8 => parse::<Int8Type>(array.as_string_view(), field)?,
        DataType::Int16 => parse::<Int16Type>(array.as_string_view(), field)?,
        DataType::Int32 => parse::<Int32Type>(array.as_string_view(), field)?,
        DataType::Int64 => parse::<Int64Type>(array.as_string_view(), field)?,
        DataType::UInt8 => parse::<UInt8Type>(array.as_string_view(), field)?,
        DataType::UInt16 => parse::<UInt16Type>(array.as_string_view(), field)?,
        DataType::UInt32 => parse::<UInt32Type>(array.as_string_view(), field)?,
        DataType::UInt64 => parse::<UInt64Type>(array.as_string_view(), field)?,
        DataType::Struct(fields) => Arc::new(structure(array.as_struct(), fields)?),
        DataType::List(item) => Arc::new(list(array.as_list::<i32>(), item)?),
        DataType::LargeList(item) => Arc::new(list(array.as_list::<i64>(), item)?),
        DataType::FixedSizeList(item, size) => {
            let own = array.as_fixed_size_list();
            let values = restore(own.values(), item)?;
            Arc::new(FixedSizeListArray::try_new(Arc::clone(item), *size, values, own.nulls().cloned())?)
        }
        DataType::Map(entries, sorted) => {
            let own = array.as_map();
            let DataType::Struct(fields) = entries.data_type() else { return Ok(Arc::clone(array)) };
            let values = structure(own.entries(), fields)?;
            let offsets = own.offsets().clone();
            Arc::new(MapArray::try_new(Arc::clone(entries), offsets, values, own.nulls().cloned(), *sorted)?)
        }
        _ => Arc::clone(array),
    })
}

fn structure(array: &StructArray, fields: &Fields) -> Result<StructArray, ArrowError> {
    let columns: Result<Vec<ArrayRef>, ArrowError> =
        array.columns().iter().zip(fields).map(|(column, field)| restore(column, field)).collect();
    StructArray::try_new_with_length(fields.clone(), columns?, array.nulls().cloned(), array.len())
}

fn list<O: OffsetSizeTrait>(array: &GenericListArray<O>, item: &FieldRef) -> Result<GenericListArray<O>, ArrowError> {
    let values = restore(array.values(), item)?;
    GenericListArray::try_new(Arc::clone(item), array.offsets().clone(), values, array.nulls().cloned())
}

/// A whole number that a type may hold.
trait Whole: ArrowPrimitiveType<Native: std::str::FromStr + TryFrom<i128>> {}

impl<T: ArrowPrimitiveType<Native: std::str::FromStr + TryFrom<i128>>> Whole for T {}

fn parse<T: Whole>(texts: &StringViewArray, field: &Field) -> Result<ArrayRef, ArrowError> {
    let mut numbers = PrimitiveBuilder::<T>::with_capacity(texts.len());
    for text in texts {
        let Some(text) = text else {
            numbers.append_null();
            continue;
        };
        let number = text.parse::<T::Native>().ok().or_else(|| written_otherwise::<T>(text));
        let Some(number) = number else {
            // As DataFusion's reader says it of other types.
            let shown: String = text.chars().take(80).collect();
            let (name, kind) = (field.name(), field.data_type());
            return Err(ArrowError::JsonError(format!(
                "whilst decoding field '{name}': failed to parse {shown} as {kind}"
            )));
        };
        numbers.append_value(number);
    }
    Ok(Arc::new(numbers.finish()))
}

/// A whole number that is written with a fraction of zeros, an exponent, or both: `1.0`, `12e2`, `1.5e1`.
fn written_otherwise<T: Whole>(text: &str) -> Option<T::Native> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (sign, digits) = match mantissa.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, mantissa),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let fraction = fraction.trim_end_matches('0');
    // digits * 10^power, in numbers that hold any of 64 bits.
    let power = exponent.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    let (digits, zeros) = match digits.trim_end_matches('0') {
        "" => return T::Native::try_from(0).ok(),
        significant => (significant, i32::try_from(digits.len() - significant.len()).ok()?),
    };
    let power = u32::try_from(power.checked_add(zeros)?).ok().filter(|power| *power <= 20)?;
    let number = digits.parse::<i128>().ok()?.checked_mul(10_i128.checked_pow(power)?)?;
    T::Native::try_from(sign * number).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn int64(text: &str) -> Option<i64> {
        let field = Field::new("n", DataType::Int64, true);
        let numbers = parse::<Int64Type>(&StringViewArray::from(vec![Some(text)]), &field).ok()?;
        Some(numbers.as_primitive::<Int64Type>().value(0))
    }

    #[test]
    fn numbers_are_exact_or_refused() {
        for (text, number) in [
            ("0", 0),
            ("-0", 0),
            ("-0.0", 0),
            ("0e5", 0),
            ("42", 42),
            ("1.0", 1),
            ("-17.000", -17),
            ("12e2", 1_200),
            ("1.5e1", 15),
            ("1.50E+1", 15),
            ("1200e-2", 12),
            ("9223372036854775807", i64::MAX),
            ("-9223372036854775808", i64::MIN),
            ("9223372036854775807.0", i64::MAX),
            ("0.9223372036854775807e19", i64::MAX),
        ] {
            assert_eq!(int64(text), Some(number), "{text}");
        }
        for text in [
            "2.5",
            "1e-1",
            "9223372036854775808",
            "9223372036854775807.5",
            "1e19",
            "1e400",
            "1e99999999999",
            "",
            "-",
            ".5",
            "abc",
            "0x10",
            "1 ",
            "--1",
            "1.2.3",
            "1e",
            "1e2e3",
            "NaN",
        ] {
            assert_eq!(int64(text), None, "{text}");
        }
        let field = Field::new("n", DataType::UInt8, true);
        assert!(parse::<UInt8Type>(&StringViewArray::from(vec![Some("255.0"), None]), &field).is_ok());
        let error = parse::<UInt8Type>(&StringViewArray::from(vec![Some("-1")]), &field).unwrap_err().to_string();
        assert!(error.contains("field 'n'") && error.contains("-1 as UInt8"), "{error}");
    }
}
