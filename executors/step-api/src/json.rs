//! Whether a JSON value is one of a column's type. Arrow's own reader takes what is near: 1.5 as the integer 1, or as the
//! second day of 1970.

use arrow::datatypes::DataType;
use serde_json::{Number, Value};

/// Whether a value can be read as this type without becoming another one; null always can.
///
/// # Errors
/// What it should have been.
pub fn json_fits(value: &Value, kind: &DataType) -> Result<(), String> {
    let not = |what: &str| Err(format!("{} is not {what}", excerpt(value)));
    match (kind, value) {
        (_, Value::Null) => Ok(()),
        (DataType::Dictionary(_, kind), _) => json_fits(value, kind),
        (kind, Value::Number(number)) if kind.is_integer() || kind.is_temporal() => match whole(number, kind) {
            true => Ok(()),
            false => not("a whole number that fits"),
        },
        (DataType::Decimal32(_, scale) | DataType::Decimal64(_, scale), Value::Number(number))
        | (DataType::Decimal128(_, scale) | DataType::Decimal256(_, scale), Value::Number(number)) => {
            match places(&number.to_string()) <= i64::from(*scale) {
                true => Ok(()),
                false => not(&format!("a number of {scale} decimal places")),
            }
        }
        (DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _), Value::Array(values)) => {
            values.iter().try_for_each(|value| json_fits(value, item.data_type()))
        }
        (DataType::Struct(fields), Value::Object(values)) => fields.iter().try_for_each(|field| {
            let value = values.get(field.name()).unwrap_or(&Value::Null);
            json_fits(value, field.data_type()).map_err(|what| format!("`{}`: {what}", field.name()))
        }),
        (DataType::Map(entries, _), Value::Object(values)) => match entries.data_type() {
            DataType::Struct(fields) if fields.len() == 2 => {
                values.values().try_for_each(|value| json_fits(value, fields[1].data_type()))
            }
            _ => Ok(()),
        },
        // The reader refuses the rest by itself.
        _ => Ok(()),
    }
}

/// Whether it is an integer of this type. `5.0` is how some services write 5.
fn whole(number: &Number, kind: &DataType) -> bool {
    if number.is_f64() {
        return number.as_f64().is_some_and(|float| float.fract() == 0.0 && float.abs() < 9e15);
    }
    matches!(kind, DataType::UInt64) || number.is_i64()
}

/// Decimal places of a number in JSON.
fn places(text: &str) -> i64 {
    let (digits, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let fraction = digits.split_once('.').map_or("", |(_, fraction)| fraction.trim_end_matches('0'));
    i64::try_from(fraction.len()).unwrap_or(i64::MAX).saturating_sub(exponent.parse::<i64>().unwrap_or(0))
}

/// The beginning of a value.
fn excerpt(value: &Value) -> String {
    const MOST: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(MOST) {
        None => text,
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::{Field, TimeUnit};
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_only_near_does_not_fit() {
        let list = DataType::List(Arc::new(Field::new("item", DataType::Int32, true)));
        let of = |kind| DataType::Struct(vec![Field::new("a", kind, true)].into());
        let time = DataType::Timestamp(TimeUnit::Second, None);
        let good = [
            (json!(5), DataType::Int64),
            (json!(5.0), DataType::Int8),
            (json!(null), DataType::Int64),
            (json!(18_446_744_073_709_551_615_u64), DataType::UInt64),
            (json!(1.5), DataType::Float32),
            (json!(1.25), DataType::Decimal128(10, 2)),
            (json!(1.5e3), DataType::Decimal128(10, 0)),
            (json!("2026-01-01"), DataType::Date32),
            (json!([1, null, 2]), list.clone()),
            (json!({"a": 1}), of(DataType::Int64)),
            (json!({}), of(DataType::Int64)),
        ];
        for (value, kind) in good {
            assert_eq!(json_fits(&value, &kind), Ok(()), "{value} {kind}");
        }
        let bad = [
            (json!(1.5), DataType::Int64),
            (json!(1.5), DataType::Date32),
            (json!(1e30), time.clone()),
            (json!(9_223_372_036_854_775_808_u64), time),
            (json!(9_223_372_036_854_775_808_u64), DataType::Int64),
            (json!(1.005), DataType::Decimal128(10, 2)),
            (json!([1, 2.5]), list),
            (json!({"a": 0.5}), of(DataType::Int64)),
        ];
        for (value, kind) in bad {
            assert!(json_fits(&value, &kind).is_err(), "{value} {kind}");
        }
    }
}
