//! Logical types and values of a workflow as Arrow types and DataFusion scalars.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use datafusion::common::ScalarValue;
use rowmill_spec::{LogicalType, TimeUnit, Value};

/// The Arrow type that a declared column or parameter gets. Strings are `Utf8View`, as DataFusion reads them.
pub fn arrow_type(kind: &LogicalType) -> DataType {
    match kind {
        LogicalType::Bool => DataType::Boolean,
        LogicalType::Int8 => DataType::Int8,
        LogicalType::Int16 => DataType::Int16,
        LogicalType::Int32 => DataType::Int32,
        LogicalType::Int64 => DataType::Int64,
        LogicalType::UInt8 => DataType::UInt8,
        LogicalType::UInt16 => DataType::UInt16,
        LogicalType::UInt32 => DataType::UInt32,
        LogicalType::UInt64 => DataType::UInt64,
        LogicalType::Float32 => DataType::Float32,
        LogicalType::Float64 => DataType::Float64,
        LogicalType::Decimal { precision, scale } => DataType::Decimal128(*precision, *scale),
        LogicalType::String => DataType::Utf8View,
        LogicalType::Binary => DataType::BinaryView,
        LogicalType::Date => DataType::Date32,
        LogicalType::Time(unit @ (TimeUnit::Second | TimeUnit::Millisecond)) => DataType::Time32(arrow_unit(*unit)),
        LogicalType::Time(unit) => DataType::Time64(arrow_unit(*unit)),
        LogicalType::Timestamp { unit, zone } => DataType::Timestamp(arrow_unit(*unit), zone.as_deref().map(Arc::from)),
        LogicalType::List(item) => DataType::List(Arc::new(Field::new_list_field(arrow_type(item), true))),
        LogicalType::Struct(fields) => DataType::Struct(
            fields.iter().map(|(name, kind)| Field::new(name, arrow_type(kind), true)).collect::<Fields>(),
        ),
    }
}

/// The Arrow unit.
pub fn arrow_unit(unit: TimeUnit) -> arrow::datatypes::TimeUnit {
    match unit {
        TimeUnit::Second => arrow::datatypes::TimeUnit::Second,
        TimeUnit::Millisecond => arrow::datatypes::TimeUnit::Millisecond,
        TimeUnit::Microsecond => arrow::datatypes::TimeUnit::Microsecond,
        TimeUnit::Nanosecond => arrow::datatypes::TimeUnit::Nanosecond,
    }
}

/// A type as a person reads it: the logical name, whatever the encoding. `Utf8`, `LargeUtf8`, `Utf8View` and a
/// dictionary of them are all `string`.
pub fn logical_name(kind: &DataType) -> String {
    let unit = |unit: &arrow::datatypes::TimeUnit| match unit {
        arrow::datatypes::TimeUnit::Second => "s",
        arrow::datatypes::TimeUnit::Millisecond => "ms",
        arrow::datatypes::TimeUnit::Microsecond => "us",
        arrow::datatypes::TimeUnit::Nanosecond => "ns",
    };
    match kind {
        DataType::Boolean => "bool".into(),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "string".into(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            "binary".into()
        }
        DataType::Date32 | DataType::Date64 => "date".into(),
        DataType::Time32(of) | DataType::Time64(of) => format!("time({})", unit(of)),
        DataType::Timestamp(of, None) => format!("timestamp({})", unit(of)),
        DataType::Timestamp(of, Some(zone)) => format!("timestamp({}, {zone})", unit(of)),
        DataType::Decimal32(precision, scale)
        | DataType::Decimal64(precision, scale)
        | DataType::Decimal128(precision, scale)
        | DataType::Decimal256(precision, scale) => format!("decimal({precision}, {scale})"),
        DataType::Dictionary(_, value) => logical_name(value),
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item)
        | DataType::FixedSizeList(item, _) => format!("list<{}>", logical_name(item.data_type())),
        DataType::Struct(fields) => {
            let fields: Vec<String> =
                fields.iter().map(|field| format!("{}: {}", field.name(), logical_name(field.data_type()))).collect();
            format!("struct<{}>", fields.join(", "))
        }
        other => other.to_string().to_lowercase(),
    }
}

/// The logical type that an Arrow type carries, or `None` where the list has none (intervals, maps, unions).
pub fn logical_type(kind: &DataType) -> Option<LogicalType> {
    LogicalType::parse(&logical_name(kind)).ok()
}

/// Whether two Arrow types carry the same logical type.
pub fn same_logical_type(left: &DataType, right: &DataType) -> bool {
    left == right || logical_name(left) == logical_name(right)
}

/// The narrowest type that holds the values of both without loss of magnitude, or `None` where there is none.
///
/// Integers widen to the wider signed integer (`uint64` with a signed one has none), any integer with a float and two
/// unlike floats give `float64`, a null column takes the other's type, a date with a timestamp the timestamp, unlike
/// units of one timestamp the finer one. Everything else, text above all, never widens: a column that is a number in
/// one file and text in another is a mistake worth hearing of.
pub fn widen(left: &DataType, right: &DataType) -> Option<DataType> {
    use DataType::*;
    if left == right {
        return Some(left.clone());
    }
    if matches!(left, Null) {
        return Some(right.clone());
    }
    if matches!(right, Null) {
        return Some(left.clone());
    }
    if same_logical_type(left, right) {
        return Some(match (left, right) {
            (Utf8View, _) | (_, Utf8View) => Utf8View,
            (LargeUtf8, _) | (_, LargeUtf8) => LargeUtf8,
            (Dictionary(..), other) | (other, _) => other.clone(),
        });
    }
    let signed_bits = |kind: &DataType| match kind {
        Int8 => Some(8),
        Int16 | UInt8 => Some(16),
        Int32 | UInt16 => Some(32),
        Int64 | UInt32 => Some(64),
        _ => None,
    };
    if let (UInt8 | UInt16 | UInt32 | UInt64, UInt8 | UInt16 | UInt32 | UInt64) = (left, right) {
        let width = |kind: &DataType| kind.primitive_width().unwrap_or(8);
        return Some(if width(left) > width(right) { left.clone() } else { right.clone() });
    }
    if let (Some(left), Some(right)) = (signed_bits(left), signed_bits(right)) {
        return Some(match left.max(right) {
            8 => Int8,
            16 => Int16,
            32 => Int32,
            _ => Int64,
        });
    }
    match (left, right) {
        (Float16 | Float32 | Float64, other) | (other, Float16 | Float32 | Float64) if other.is_numeric() => {
            Some(Float64)
        }
        (Date32, Timestamp(unit, zone)) | (Timestamp(unit, zone), Date32) => Some(Timestamp(*unit, zone.clone())),
        (Timestamp(one, zone), Timestamp(two, other)) if zone == other => {
            Some(Timestamp((*one).max(*two), zone.clone()))
        }
        _ => None,
    }
}

/// A value as a DataFusion scalar of the type that [`arrow_type`] gives.
pub fn scalar(value: &Value) -> datafusion::common::Result<ScalarValue> {
    Ok(match value {
        Value::Null(kind) => ScalarValue::try_from(&arrow_type(kind))?,
        Value::Bool(value) => ScalarValue::Boolean(Some(*value)),
        Value::Int(kind, value) => ScalarValue::Int64(Some(*value)).cast_to(&arrow_type(kind))?,
        Value::UInt(kind, value) => ScalarValue::UInt64(Some(*value)).cast_to(&arrow_type(kind))?,
        Value::Float(kind, value) => ScalarValue::Float64(Some(*value)).cast_to(&arrow_type(kind))?,
        Value::Decimal { unscaled, precision, scale } => ScalarValue::Decimal128(Some(*unscaled), *precision, *scale),
        Value::String(value) => ScalarValue::Utf8View(Some(value.clone())),
        Value::Date(days) => ScalarValue::Date32(Some(*days)),
        Value::Timestamp { value, unit, zone } => {
            let zone = zone.as_deref().map(Arc::from);
            match unit {
                TimeUnit::Second => ScalarValue::TimestampSecond(Some(*value), zone),
                TimeUnit::Millisecond => ScalarValue::TimestampMillisecond(Some(*value), zone),
                TimeUnit::Microsecond => ScalarValue::TimestampMicrosecond(Some(*value), zone),
                TimeUnit::Nanosecond => ScalarValue::TimestampNanosecond(Some(*value), zone),
            }
        }
        Value::List(item, values) => {
            let values = values.iter().map(scalar).collect::<datafusion::common::Result<Vec<_>>>()?;
            ScalarValue::List(ScalarValue::new_list_nullable(&values, &arrow_type(item)))
        }
    })
}

/// The Arrow schema of declared columns, all nullable.
pub fn declared_schema<'a>(columns: impl Iterator<Item = (&'a str, &'a LogicalType)>) -> SchemaRef {
    Arc::new(Schema::new(
        columns.map(|(name, kind)| Arc::new(Field::new(name, arrow_type(kind), true)) as FieldRef).collect::<Vec<_>>(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widening_keeps_magnitude_and_refuses_text() {
        use DataType::*;
        assert_eq!(widen(&Int32, &Int64), Some(Int64));
        assert_eq!(widen(&UInt32, &Int32), Some(Int64));
        assert_eq!(widen(&UInt8, &UInt16), Some(UInt16));
        assert_eq!(widen(&UInt64, &Int64), None);
        assert_eq!(widen(&Int64, &Float32), Some(Float64));
        assert_eq!(widen(&Utf8, &Utf8View), Some(Utf8View));
        assert_eq!(widen(&Utf8, &Int64), None);
        assert_eq!(widen(&Null, &Int64), Some(Int64));
    }

    #[test]
    fn encodings_of_one_type_have_one_name() {
        let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
        assert!(same_logical_type(&dictionary, &DataType::Utf8View));
        assert!(!same_logical_type(&DataType::Int32, &DataType::Int64));
    }
}
