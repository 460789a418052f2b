//! The logical types of columns and parameters, above Arrow's encodings, and literal values of them.

mod parse;
mod value;
#[cfg(test)]
mod value_tests;
mod zone;

use std::fmt;

pub use parse::TypeError;
pub(crate) use parse::words as type_words;
pub(crate) use value::check_usable;

/// Unit of a time or a timestamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TimeUnit {
    /// `s`
    Second,
    /// `ms`
    Millisecond,
    /// `us`
    Microsecond,
    /// `ns`
    Nanosecond,
}

/// A logical type. Which Arrow encoding carries it (plain, view, large, dictionary) is the engine's affair; two
/// encodings of one logical type are the same type to a workflow.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LogicalType {
    /// `bool`
    Bool,
    /// `int8`
    Int8,
    /// `int16`
    Int16,
    /// `int32`
    Int32,
    /// `int64`
    Int64,
    /// `uint8`
    UInt8,
    /// `uint16`
    UInt16,
    /// `uint32`
    UInt32,
    /// `uint64`
    UInt64,
    /// `float32`
    Float32,
    /// `float64`
    Float64,
    /// `decimal(precision, scale)`, precision 1 to 38.
    Decimal {
        /// Digits in all.
        precision: u8,
        /// Digits after the point.
        scale: i8,
    },
    /// `string`
    String,
    /// `binary`
    Binary,
    /// `date`: days since 1970-01-01.
    Date,
    /// `time(unit)`: since midnight.
    Time(TimeUnit),
    /// `timestamp(unit)` or `timestamp(unit, zone)`; plain `timestamp` is microseconds without a zone.
    Timestamp {
        /// Unit.
        unit: TimeUnit,
        /// IANA zone or offset; `None` for a local timestamp.
        zone: Option<String>,
    },
    /// `list<T>`
    List(Box<LogicalType>),
    /// `struct<name: T, ...>`
    Struct(Vec<(String, LogicalType)>),
}

impl fmt::Display for TimeUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TimeUnit::Second => "s",
            TimeUnit::Millisecond => "ms",
            TimeUnit::Microsecond => "us",
            TimeUnit::Nanosecond => "ns",
        })
    }
}

impl fmt::Display for LogicalType {
    /// The text that parses back to the same type.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LogicalType::Bool => f.write_str("bool"),
            LogicalType::Int8 => f.write_str("int8"),
            LogicalType::Int16 => f.write_str("int16"),
            LogicalType::Int32 => f.write_str("int32"),
            LogicalType::Int64 => f.write_str("int64"),
            LogicalType::UInt8 => f.write_str("uint8"),
            LogicalType::UInt16 => f.write_str("uint16"),
            LogicalType::UInt32 => f.write_str("uint32"),
            LogicalType::UInt64 => f.write_str("uint64"),
            LogicalType::Float32 => f.write_str("float32"),
            LogicalType::Float64 => f.write_str("float64"),
            LogicalType::Decimal { precision, scale } => write!(f, "decimal({precision}, {scale})"),
            LogicalType::String => f.write_str("string"),
            LogicalType::Binary => f.write_str("binary"),
            LogicalType::Date => f.write_str("date"),
            LogicalType::Time(unit) => write!(f, "time({unit})"),
            LogicalType::Timestamp { unit, zone: None } => write!(f, "timestamp({unit})"),
            LogicalType::Timestamp { unit, zone: Some(zone) } => write!(f, "timestamp({unit}, {zone})"),
            LogicalType::List(item) => write!(f, "list<{item}>"),
            LogicalType::Struct(fields) => {
                f.write_str("struct<")?;
                for (at, (name, kind)) in fields.iter().enumerate() {
                    write!(f, "{}{name}: {kind}", if at == 0 { "" } else { ", " })?;
                }
                f.write_str(">")
            }
        }
    }
}

/// A value of a parameter or a variable, of its declared type.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A null of the given type.
    Null(LogicalType),
    /// `bool`
    Bool(bool),
    /// `int8` to `int64`; the type says which, the value is in its range.
    Int(LogicalType, i64),
    /// `uint8` to `uint64`; the type says which, the value is in its range.
    UInt(LogicalType, u64),
    /// `float32`, `float64`
    Float(LogicalType, f64),
    /// `decimal`: the unscaled value.
    Decimal {
        /// Value times ten to the scale.
        unscaled: i128,
        /// Digits in all.
        precision: u8,
        /// Digits after the point.
        scale: i8,
    },
    /// `string`
    String(String),
    /// `date`: days since 1970-01-01.
    Date(i32),
    /// `timestamp`: units since 1970-01-01T00:00:00 (UTC where there is a zone).
    Timestamp {
        /// Count of units.
        value: i64,
        /// Unit.
        unit: TimeUnit,
        /// Zone, as in the type.
        zone: Option<String>,
    },
    /// `list<T>`: for `IN`-like use through `array_has`.
    List(LogicalType, Vec<Value>),
}
