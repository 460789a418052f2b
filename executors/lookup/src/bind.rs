//! The items' values, made ready to be bound.

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Date32Array, Float64Array, Int64Array, StringArray,
    TimestampMicrosecondArray,
};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, TimeUnit};
use chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};

use crate::query::Dialect;

/// One column of the items, in one of the few types that are bound.
#[derive(Debug)]
pub(crate) enum Values {
    Bool(BooleanArray),
    Int(Int64Array),
    Float(Float64Array),
    Text(StringArray),
    Bytes(BinaryArray),
    Date(Date32Array),
    Timestamp(TimestampMicrosecondArray),
    TimestampTz(TimestampMicrosecondArray),
}

/// How a column is bound: the type it is brought to, PostgreSQL's type for its array, and the type that the query sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Binding {
    to: DataType,
    pub(crate) array: &'static str,
    pub(crate) cast: String,
}

impl Binding {
    /// How a column of this type is bound; `None` if it cannot be.
    pub(crate) fn of(data_type: &DataType) -> Option<Self> {
        use DataType as T;
        let micro = |zone: Option<&str>| T::Timestamp(TimeUnit::Microsecond, zone.map(Into::into));
        let (to, array, cast) = match data_type {
            T::Dictionary(_, value) => return Self::of(value),
            T::Boolean => (T::Boolean, "bool", "bool"),
            T::Int8 | T::Int16 | T::UInt8 => (T::Int64, "int8", "int2"),
            T::Int32 | T::UInt16 => (T::Int64, "int8", "int4"),
            T::Int64 | T::UInt32 | T::UInt64 => (T::Int64, "int8", "int8"),
            T::Float16 | T::Float32 => (T::Float64, "float8", "float4"),
            T::Float64 => (T::Float64, "float8", "float8"),
            T::Utf8 | T::LargeUtf8 | T::Utf8View => (T::Utf8, "text", "text"),
            T::Decimal32(..) | T::Decimal64(..) | T::Decimal128(..) | T::Decimal256(..) => (T::Utf8, "text", "numeric"),
            T::Binary | T::LargeBinary | T::BinaryView | T::FixedSizeBinary(_) => (T::Binary, "bytea", "bytea"),
            T::Date32 | T::Date64 => (T::Date32, "date", "date"),
            T::Timestamp(_, None) => (micro(None), "timestamp", "timestamp"),
            T::Timestamp(_, Some(_)) => (micro(Some("UTC")), "timestamptz", "timestamptz"),
            T::Time32(_) | T::Time64(_) => (T::Utf8, "text", "time"),
            _ => return None,
        };
        Some(Self { to, array, cast: cast.to_owned() })
    }

    /// Brings a column to its type. The second part names rows whose values do not fit and must not be sent.
    pub(crate) fn values(
        &self,
        column: &ArrayRef,
        dialect: Dialect,
    ) -> Result<(Values, Vec<u32>), arrow::error::ArrowError> {
        let cast = cast_with_options(column, &self.to, &CastOptions { safe: true, ..CastOptions::default() })?;
        let was_null = column.logical_nulls();
        let mut unfit: Vec<u32> = if cast.null_count() == was_null.as_ref().map_or(0, |nulls| nulls.null_count()) {
            Vec::new()
        } else {
            (0..column.len())
                .filter(|row| cast.is_null(*row) && was_null.as_ref().is_none_or(|nulls| nulls.is_valid(*row)))
                .map(|row| row as u32)
                .collect()
        };
        let values = match &self.to {
            DataType::Boolean => Values::Bool(cast.as_boolean().clone()),
            DataType::Int64 => Values::Int(cast.as_primitive().clone()),
            DataType::Float64 => Values::Float(cast.as_primitive().clone()),
            DataType::Binary => Values::Bytes(cast.as_binary().clone()),
            DataType::Date32 => Values::Date(cast.as_primitive().clone()),
            DataType::Timestamp(_, None) => Values::Timestamp(cast.as_primitive().clone()),
            DataType::Timestamp(_, Some(_)) => Values::TimestampTz(cast.as_primitive().clone()),
            _ => {
                let texts: StringArray = cast.as_string().clone();
                if dialect == Dialect::Postgres {
                    // PostgreSQL has no NUL in texts, and one of them would spoil the whole group.
                    let nul = |row: &usize| texts.is_valid(*row) && texts.value(*row).contains('\0');
                    unfit.extend((0..texts.len()).filter(nul).map(|row| row as u32));
                }
                Values::Text(texts)
            }
        };
        Ok((values, unfit))
    }
}

/// A day of Arrow's as a date.
pub(crate) fn date(array: &Date32Array, row: usize) -> Option<NaiveDate> {
    array.is_valid(row).then(|| array.value_as_date(row)).flatten()
}

/// A time of Arrow's without a zone.
pub(crate) fn timestamp(array: &TimestampMicrosecondArray, row: usize) -> Option<NaiveDateTime> {
    array.is_valid(row).then(|| array.value_as_datetime(row)).flatten()
}

/// A time of Arrow's in UTC.
pub(crate) fn timestamp_utc(array: &TimestampMicrosecondArray, row: usize) -> Option<DateTime<Utc>> {
    timestamp(array, row).map(|time| time.and_utc())
}

/// An iterator over a column's values that may be NULL.
macro_rules! nullable {
    ($array:expr) => {
        (0..$array.len()).map(|row| $array.is_valid(row).then(|| $array.value(row)))
    };
}

/// Binds whole columns as PostgreSQL's arrays.
pub(crate) fn bind_arrays(
    values: &[Values],
) -> Result<sqlx::postgres::PgArguments, Box<dyn std::error::Error + Send + Sync>> {
    use sqlx::Arguments as _;
    let mut arguments = sqlx::postgres::PgArguments::default();
    for column in values {
        match column {
            Values::Bool(array) => arguments.add(nullable!(array).collect::<Vec<_>>())?,
            Values::Int(array) => arguments.add(nullable!(array).collect::<Vec<_>>())?,
            Values::Float(array) => arguments.add(nullable!(array).collect::<Vec<_>>())?,
            Values::Text(array) => arguments.add(nullable!(array).collect::<Vec<Option<&str>>>())?,
            Values::Bytes(array) => arguments.add(nullable!(array).collect::<Vec<Option<&[u8]>>>())?,
            Values::Date(array) => arguments.add((0..array.len()).map(|row| date(array, row)).collect::<Vec<_>>())?,
            Values::Timestamp(array) => {
                arguments.add((0..array.len()).map(|row| timestamp(array, row)).collect::<Vec<_>>())?;
            }
            Values::TimestampTz(array) => {
                arguments.add((0..array.len()).map(|row| timestamp_utc(array, row)).collect::<Vec<_>>())?;
            }
        }
    }
    Ok(arguments)
}

/// Binds one value of one item to a query with `?`.
macro_rules! bind_one {
    ($query:expr, $values:expr, $row:expr) => {{
        use arrow::array::Array as _;
        let row: usize = $row;
        match $values {
            $crate::bind::Values::Bool(array) => $query.bind(array.is_valid(row).then(|| array.value(row))),
            $crate::bind::Values::Int(array) => $query.bind(array.is_valid(row).then(|| array.value(row))),
            $crate::bind::Values::Float(array) => $query.bind(array.is_valid(row).then(|| array.value(row))),
            $crate::bind::Values::Text(array) => $query.bind(array.is_valid(row).then(|| array.value(row).to_owned())),
            $crate::bind::Values::Bytes(array) => $query.bind(array.is_valid(row).then(|| array.value(row).to_vec())),
            $crate::bind::Values::Date(array) => $query.bind($crate::bind::date(array, row)),
            $crate::bind::Values::Timestamp(array) => $query.bind($crate::bind::timestamp(array, row)),
            $crate::bind::Values::TimestampTz(array) => $query.bind($crate::bind::timestamp_utc(array, row)),
        }
    }};
}
pub(crate) use bind_one;
