//! Values from texts, as declared: ranges are checked, decimals are exact, dates are real dates.

use std::fmt;

use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime};

use super::{LogicalType, TimeUnit, Value, zone};
use crate::yaml::{Kind, Node, Style};

impl Value {
    /// Reads a text (of a command line, say) as a value of the type; the error says what was wanted.
    ///
    /// Texts are taken as they are; `null` is a null of any other type; lists are written `[1, 2]`.
    pub fn parse(kind: &LogicalType, text: &str) -> Result<Value, String> {
        if let LogicalType::List(item) = kind {
            return parse_list(item, text);
        }
        if *kind != LogicalType::String && matches!(text.trim(), "null" | "NULL") {
            return check_usable(kind).map(|()| Value::Null(kind.clone()));
        }
        parse_scalar(kind, text)
    }

    /// Reads a node of a YAML text.
    pub(crate) fn from_node(kind: &LogicalType, node: &Node) -> Result<Value, String> {
        check_usable(kind)?;
        match (&node.kind, kind) {
            (Kind::Sequence(items), LogicalType::List(item)) => {
                let values: Result<Vec<Value>, String> =
                    items.iter().map(|node| Value::from_node(item, node)).collect();
                Ok(Value::List((**item).clone(), values?))
            }
            (Kind::Scalar(scalar), _) if scalar.is_null() => {
                if scalar.value.is_empty() {
                    return Err("a value is missing here; write `null` for a null, `''` for the empty text".to_owned());
                }
                Ok(Value::Null(kind.clone()))
            }
            (Kind::Scalar(scalar), LogicalType::List(_)) => {
                Err(format!("a list is wanted, not `{}`", shorten(&scalar.value)))
            }
            (Kind::Scalar(scalar), _) => {
                let number = matches!(kind, LogicalType::Bool | LogicalType::Float32 | LogicalType::Float64)
                    || kind.is_integer();
                if number && scalar.style != Style::Plain {
                    return Err(format!("a value of type {kind} is wanted, not a quoted text; remove the quotes"));
                }
                parse_scalar(kind, &scalar.value)
            }
            _ => Err(format!("a value of type {kind} is wanted, not {}", node.noun())),
        }
    }

    /// The type of the value.
    pub fn logical_type(&self) -> LogicalType {
        match self {
            Value::Null(kind) | Value::Int(kind, _) | Value::UInt(kind, _) | Value::Float(kind, _) => kind.clone(),
            Value::Bool(_) => LogicalType::Bool,
            Value::Decimal { precision, scale, .. } => LogicalType::Decimal { precision: *precision, scale: *scale },
            Value::String(_) => LogicalType::String,
            Value::Date(_) => LogicalType::Date,
            Value::Timestamp { unit, zone, .. } => LogicalType::Timestamp { unit: *unit, zone: zone.clone() },
            Value::List(item, _) => LogicalType::List(Box::new(item.clone())),
        }
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Value::Bool(value)
    }
}

impl From<i32> for Value {
    fn from(value: i32) -> Self {
        Value::Int(LogicalType::Int32, i64::from(value))
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Value::Int(LogicalType::Int64, value)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Value::Float(LogicalType::Float64, value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Value::String(value.to_owned())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Value::String(value)
    }
}

impl LogicalType {
    /// Whether it is one of `int8` to `uint64`.
    pub fn is_integer(&self) -> bool {
        integer_range(self).is_some()
    }
}

/// Whether parameters and variables can have the type; else why not.
pub(crate) fn check_usable(kind: &LogicalType) -> Result<(), String> {
    match kind {
        LogicalType::Binary | LogicalType::Time(_) | LogicalType::Struct(_) => {
            Err(format!("parameters and variables cannot be of type {kind}"))
        }
        LogicalType::List(item) if matches!(**item, LogicalType::List(_)) => {
            Err("parameters and variables cannot be lists of lists".to_owned())
        }
        LogicalType::List(item) => check_usable(item),
        _ => Ok(()),
    }
}

fn integer_range(kind: &LogicalType) -> Option<(i128, i128)> {
    Some(match kind {
        LogicalType::Int8 => (i8::MIN.into(), i8::MAX.into()),
        LogicalType::Int16 => (i16::MIN.into(), i16::MAX.into()),
        LogicalType::Int32 => (i32::MIN.into(), i32::MAX.into()),
        LogicalType::Int64 => (i64::MIN.into(), i64::MAX.into()),
        LogicalType::UInt8 => (0, u8::MAX.into()),
        LogicalType::UInt16 => (0, u16::MAX.into()),
        LogicalType::UInt32 => (0, u32::MAX.into()),
        LogicalType::UInt64 => (0, u64::MAX.into()),
        _ => return None,
    })
}

/// A text of the user's for a message: cut, and without line breaks.
fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(60).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

fn parse_list(item: &LogicalType, text: &str) -> Result<Value, String> {
    let kind = LogicalType::List(Box::new(item.clone()));
    check_usable(&kind)?;
    if text.trim() == "null" {
        return Ok(Value::Null(kind));
    }
    let mut reporter = crate::report::Reporter::default();
    let node = crate::yaml::parse(crate::span::TextId(0), text, &mut reporter);
    match node {
        Some(node @ Node { kind: Kind::Sequence(_), .. }) => Value::from_node(&kind, &node),
        _ => Err(format!("`{}` is not a list; write `[a, b]`", shorten(text))),
    }
}

fn parse_scalar(kind: &LogicalType, text: &str) -> Result<Value, String> {
    let trimmed = text.trim();
    let wrong = || format!("`{}` is not a value of type {kind}", shorten(text));
    match kind {
        LogicalType::Bool => match trimmed {
            "true" | "True" | "TRUE" => Ok(Value::Bool(true)),
            "false" | "False" | "FALSE" => Ok(Value::Bool(false)),
            _ => Err(format!("`{}` is neither `true` nor `false`", shorten(text))),
        },
        LogicalType::Float32 | LogicalType::Float64 => {
            let value = parse_float(trimmed).ok_or_else(wrong)?;
            if *kind == LogicalType::Float32 && value.is_finite() && !(value as f32).is_finite() {
                return Err(format!("`{}` is out of the range of {kind}", shorten(text)));
            }
            // The value is kept as the type can hold it, so that it prints as it computes.
            let value = if *kind == LogicalType::Float32 { f64::from(value as f32) } else { value };
            Ok(Value::Float(kind.clone(), value))
        }
        LogicalType::Decimal { precision, scale } => parse_decimal(trimmed, *precision, *scale),
        LogicalType::String => Ok(Value::String(text.to_owned())),
        LogicalType::Date => parse_date(trimmed).map(|date| Value::Date(days(date))),
        LogicalType::Timestamp { unit, zone } => parse_timestamp(trimmed, *unit, zone.as_deref()),
        LogicalType::Binary | LogicalType::Time(_) | LogicalType::Struct(_) | LogicalType::List(_) => {
            check_usable(kind)?;
            Err(wrong())
        }
        _ => {
            let (low, high) = integer_range(kind).ok_or_else(wrong)?;
            let digits = trimmed.strip_prefix(['+', '-']).unwrap_or(trimmed);
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(wrong());
            }
            let value: i128 =
                trimmed.parse().map_err(|_| format!("`{}` is out of the range of {kind}", shorten(text)))?;
            if !(low..=high).contains(&value) {
                return Err(format!("{value} is out of the range of {kind}, {low} to {high}"));
            }
            Ok(if low == 0 { Value::UInt(kind.clone(), value as u64) } else { Value::Int(kind.clone(), value as i64) })
        }
    }
}

fn parse_float(text: &str) -> Option<f64> {
    match text.to_ascii_lowercase().as_str() {
        "inf" | "+inf" | ".inf" | "+.inf" => return Some(f64::INFINITY),
        "-inf" | "-.inf" => return Some(f64::NEG_INFINITY),
        "nan" | ".nan" => return Some(f64::NAN),
        _ => {}
    }
    // Rust also reads "infinity" and "nan" with signs; digits must be there.
    if !text.bytes().any(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: f64 = text.parse().ok()?;
    value.is_finite().then_some(value)
}

fn parse_decimal(text: &str, precision: u8, scale: i8) -> Result<Value, String> {
    let kind = LogicalType::Decimal { precision, scale };
    let wrong = || format!("`{}` is not a value of type {kind}", shorten(text));
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let is_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !is_digits(whole) || !is_digits(fraction) {
        return Err(wrong());
    }
    let fraction = fraction.trim_end_matches('0');
    let places = usize::try_from(scale).map_err(|_| wrong())?;
    if fraction.len() > places {
        return Err(format!("`{}` has more than the {scale} digits after the point of {kind}", shorten(text)));
    }
    let whole = whole.trim_start_matches('0');
    if whole.len() + places > usize::from(precision) {
        return Err(format!("`{}` is out of the range of {kind}", shorten(text)));
    }
    let all = format!("{whole}{fraction:0<places$}");
    let unscaled: i128 = if all.is_empty() { 0 } else { all.parse().map_err(|_| wrong())? };
    Ok(Value::Decimal { unscaled: if negative { -unscaled } else { unscaled }, precision, scale })
}

/// `YYYY-MM-DD`, and nothing looser.
fn parse_date(text: &str) -> Result<NaiveDate, String> {
    let wrong = || format!("`{}` is not a date; write it as 2013-01-31", shorten(text));
    let shaped = text.len() == 10
        && text
            .bytes()
            .enumerate()
            .all(|(at, byte)| if matches!(at, 4 | 7) { byte == b'-' } else { byte.is_ascii_digit() });
    if !shaped {
        return Err(wrong());
    }
    NaiveDate::parse_from_str(text, "%Y-%m-%d").map_err(|_| format!("`{text}` is not a day of the calendar"))
}

fn days(date: NaiveDate) -> i32 {
    date.signed_duration_since(NaiveDate::default()).num_days() as i32
}

/// A date, or a date and a time after `T` or a blank, with an offset or without.
fn parse_timestamp(text: &str, unit: TimeUnit, zone: Option<&str>) -> Result<Value, String> {
    let wrong =
        || format!("`{}` is not a timestamp; write it as 2013-01-31 09:30:00 or 2013-01-31T09:30:00Z", shorten(text));
    let (local, offset) = read_timestamp(text).ok_or_else(wrong)?;
    let utc = match (offset, zone) {
        (Some(_), None) => {
            return Err(format!(
                "`{}` has an offset, but the type timestamp({unit}) has no zone; remove the offset or declare \
                 timestamp({unit}, UTC)",
                shorten(text)
            ));
        }
        (Some(offset), Some(_)) => local.checked_sub_offset(offset).ok_or_else(wrong)?,
        (None, Some(zone)) => zone::to_utc(zone, local)?,
        (None, None) => local,
    };
    let nanos =
        i128::from(utc.and_utc().timestamp()) * 1_000_000_000 + i128::from(utc.and_utc().timestamp_subsec_nanos());
    let per_unit = match unit {
        TimeUnit::Second => 1_000_000_000,
        TimeUnit::Millisecond => 1_000_000,
        TimeUnit::Microsecond => 1_000,
        TimeUnit::Nanosecond => 1,
    };
    if nanos % per_unit != 0 {
        return Err(format!("`{}` is finer than the unit `{unit}` of the type", shorten(text)));
    }
    let value = i64::try_from(nanos / per_unit)
        .map_err(|_| format!("`{}` is out of the range of timestamp({unit})", shorten(text)))?;
    Ok(Value::Timestamp { value, unit, zone: zone.map(str::to_owned) })
}

fn read_timestamp(text: &str) -> Option<(NaiveDateTime, Option<chrono::FixedOffset>)> {
    let date = parse_date(text.get(..10)?).ok()?;
    let rest = text.get(10..)?;
    if rest.is_empty() {
        return Some((date.and_time(NaiveTime::MIN), None));
    }
    let rest = rest.strip_prefix(['T', 't', ' '])?;
    let clock_length = rest.find(|c: char| !(c.is_ascii_digit() || matches!(c, ':' | '.'))).unwrap_or(rest.len());
    let (clock, offset) = rest.split_at(clock_length);
    let offset = match offset.trim_start() {
        "" => None,
        "Z" | "z" => Some(chrono::FixedOffset::east_opt(0)?),
        text => Some(zone::offset(text)?),
    };
    let (hms, fraction) = match clock.split_once('.') {
        Some((hms, fraction)) => (hms, Some(fraction)),
        None => (clock, None),
    };
    let mut parts = hms.split(':').map(|part| if part.len() == 2 { part.parse::<u32>().ok() } else { None });
    let (hour, minute) = (parts.next()??, parts.next()??);
    let second = match parts.next() {
        Some(second) => second?,
        None if fraction.is_none() => 0,
        None => return None,
    };
    if parts.next().is_some() {
        return None;
    }
    let nanos = match fraction {
        None => 0,
        Some(digits) if (1..=9).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            format!("{digits:0<9}").parse().ok()?
        }
        Some(_) => return None,
    };
    Some((date.and_time(NaiveTime::from_hms_nano_opt(hour, minute, second, nanos)?), offset))
}

impl fmt::Display for Value {
    /// The text that [`Value::parse`] reads back as the same value; timestamps with a zone are shown in UTC.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Null(_) => f.write_str("null"),
            Value::Bool(value) => write!(f, "{value}"),
            Value::Int(_, value) => write!(f, "{value}"),
            Value::UInt(_, value) => write!(f, "{value}"),
            Value::Float(LogicalType::Float32, value) => write!(f, "{:?}", *value as f32),
            Value::Float(_, value) => write!(f, "{value:?}"),
            Value::Decimal { unscaled, scale, .. } => {
                let places = usize::try_from(*scale).unwrap_or(0);
                let digits = format!("{:0>width$}", unscaled.unsigned_abs(), width = places + 1);
                let (whole, fraction) = digits.split_at(digits.len() - places);
                let sign = if *unscaled < 0 { "-" } else { "" };
                if places == 0 { write!(f, "{sign}{whole}") } else { write!(f, "{sign}{whole}.{fraction}") }
            }
            Value::String(value) => f.write_str(value),
            Value::Date(days) => match NaiveDate::default().checked_add_signed(chrono::TimeDelta::days((*days).into()))
            {
                Some(date) => write!(f, "{date}"),
                None => write!(f, "{days} days since 1970-01-01"),
            },
            Value::Timestamp { value, unit, zone } => {
                let time = match unit {
                    TimeUnit::Second => DateTime::from_timestamp(*value, 0),
                    TimeUnit::Millisecond => DateTime::from_timestamp_millis(*value),
                    TimeUnit::Microsecond => DateTime::from_timestamp_micros(*value),
                    TimeUnit::Nanosecond => Some(DateTime::from_timestamp_nanos(*value)),
                };
                match time {
                    Some(time) => {
                        write!(f, "{}{}", time.format("%Y-%m-%dT%H:%M:%S%.f"), if zone.is_some() { "Z" } else { "" })
                    }
                    None => write!(f, "{value} {unit} since 1970-01-01"),
                }
            }
            Value::List(item, values) => {
                f.write_str("[")?;
                for (at, value) in values.iter().enumerate() {
                    if at > 0 {
                        f.write_str(", ")?;
                    }
                    match value {
                        // Quotes keep a text from being read as something else.
                        Value::String(text) if *item == LogicalType::String => {
                            f.write_str(&crate::yaml::quote(text))?;
                        }
                        value => write!(f, "{value}")?,
                    }
                }
                f.write_str("]")
            }
        }
    }
}
