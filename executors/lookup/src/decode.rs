//! Rows of a database into columns.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryBuilder, BooleanBuilder, Date32Builder, Float32Builder, Float64Builder, Int16Builder,
    Int32Builder, Int64Builder, StringBuilder, TimestampMicrosecondBuilder, UInt64Builder,
};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Date32Type, TimeUnit};
use chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};
use sqlx::mysql::MySqlRow;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, TypeInfo as _, ValueRef as _};

/// The types in which values come out of a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Bool,
    Int16,
    Int32,
    Int64,
    UInt64,
    Float32,
    Float64,
    Text,
    Bytes,
    Date,
    Timestamp,
    TimestampTz,
}

impl Kind {
    /// The Arrow type of such a column.
    pub(crate) fn data_type(self) -> DataType {
        match self {
            Self::Bool => DataType::Boolean,
            Self::Int16 => DataType::Int16,
            Self::Int32 => DataType::Int32,
            Self::Int64 => DataType::Int64,
            Self::UInt64 => DataType::UInt64,
            Self::Float32 => DataType::Float32,
            Self::Float64 => DataType::Float64,
            Self::Text => DataType::Utf8,
            Self::Bytes => DataType::Binary,
            Self::Date => DataType::Date32,
            Self::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
            Self::TimestampTz => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        }
    }

    /// PostgreSQL's types by name; `None` for one that is taken as text.
    pub(crate) fn of_postgres(name: &str) -> Option<Self> {
        Some(match name {
            "BOOL" => Self::Bool,
            "INT2" => Self::Int16,
            "INT4" => Self::Int32,
            "INT8" => Self::Int64,
            "FLOAT4" => Self::Float32,
            "FLOAT8" => Self::Float64,
            "TEXT" | "VARCHAR" => Self::Text,
            "BYTEA" => Self::Bytes,
            "DATE" => Self::Date,
            "TIMESTAMP" => Self::Timestamp,
            "TIMESTAMPTZ" => Self::TimestampTz,
            _ => return None,
        })
    }

    /// MySQL's and MariaDB's types by name; `None` for one that is taken as text.
    pub(crate) fn of_mysql(name: &str) -> Option<Self> {
        Some(match name {
            "BOOLEAN" => Self::Bool,
            "TINYINT" | "SMALLINT" | "MEDIUMINT" | "INT" => Self::Int32,
            "TINYINT UNSIGNED" | "SMALLINT UNSIGNED" | "MEDIUMINT UNSIGNED" | "INT UNSIGNED" | "BIGINT UNSIGNED" => {
                Self::UInt64
            }
            "BIGINT" => Self::Int64,
            "FLOAT" => Self::Float32,
            "DOUBLE" => Self::Float64,
            "VARCHAR" | "CHAR" | "TEXT" | "TINYTEXT" | "MEDIUMTEXT" | "LONGTEXT" => Self::Text,
            "BINARY" | "VARBINARY" | "BLOB" | "TINYBLOB" | "MEDIUMBLOB" | "LONGBLOB" => Self::Bytes,
            "DATE" => Self::Date,
            "DATETIME" => Self::Timestamp,
            "TIMESTAMP" => Self::TimestampTz,
            _ => return None,
        })
    }

    /// SQLite's declared types by name; `None` for one that is taken as text.
    pub(crate) fn of_sqlite(name: &str) -> Option<Self> {
        Some(match name {
            "BOOLEAN" => Self::Bool,
            "INTEGER" => Self::Int64,
            "REAL" => Self::Float64,
            "TEXT" => Self::Text,
            "BLOB" => Self::Bytes,
            _ => return None,
        })
    }

    /// The kind in which values of a wanted type are best asked for, where the database does not say one (SQLite's
    /// expressions).
    pub(crate) fn for_type(data_type: &DataType) -> Self {
        match data_type {
            DataType::Boolean => Self::Bool,
            other if other.is_integer() => Self::Int64,
            other if other.is_floating() => Self::Float64,
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView => Self::Bytes,
            _ => Self::Text,
        }
    }
}

/// A column of the answer.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// The type that the step promises.
    pub(crate) data_type: DataType,
}

/// A row of any of the databases. Column 0 is the item's ordinal, the query's columns begin at 1.
pub(crate) trait Cells {
    fn ordinal(&self) -> Result<i64, sqlx::Error>;
    fn int(&self, index: usize, kind: Kind) -> Result<Option<i64>, sqlx::Error>;
    fn uint(&self, index: usize) -> Result<Option<u64>, sqlx::Error>;
    fn boolean(&self, index: usize) -> Result<Option<bool>, sqlx::Error>;
    fn float(&self, index: usize, kind: Kind) -> Result<Option<f64>, sqlx::Error>;
    fn text(&self, index: usize) -> Result<Option<&str>, sqlx::Error>;
    fn bytes(&self, index: usize) -> Result<Option<&[u8]>, sqlx::Error>;
    fn date(&self, index: usize) -> Result<Option<NaiveDate>, sqlx::Error>;
    fn timestamp(&self, index: usize) -> Result<Option<NaiveDateTime>, sqlx::Error>;
    fn timestamp_utc(&self, index: usize) -> Result<Option<DateTime<Utc>>, sqlx::Error>;
}

macro_rules! same_cells {
    () => {
        fn text(&self, index: usize) -> Result<Option<&str>, sqlx::Error> {
            self.check(index, "TEXT")?;
            self.try_get_unchecked(index)
        }

        fn bytes(&self, index: usize) -> Result<Option<&[u8]>, sqlx::Error> {
            self.check(index, "BLOB")?;
            self.try_get_unchecked(index)
        }

        fn boolean(&self, index: usize) -> Result<Option<bool>, sqlx::Error> {
            self.check(index, "INTEGER")?;
            self.try_get_unchecked(index)
        }

        fn date(&self, index: usize) -> Result<Option<NaiveDate>, sqlx::Error> {
            self.try_get_unchecked(index)
        }

        fn timestamp(&self, index: usize) -> Result<Option<NaiveDateTime>, sqlx::Error> {
            self.try_get_unchecked(index)
        }

        fn timestamp_utc(&self, index: usize) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
            self.try_get_unchecked(index)
        }
    };
}

/// Whether a value has the storage class that is asked for. Only SQLite's values have one of their own.
trait Check {
    fn check(&self, _index: usize, _class: &str) -> Result<(), sqlx::Error> {
        Ok(())
    }
}

impl Check for PgRow {}
impl Check for MySqlRow {}

impl Check for SqliteRow {
    fn check(&self, index: usize, class: &str) -> Result<(), sqlx::Error> {
        let value = self.try_get_raw(index)?;
        let found = value.type_info();
        // SQLite would turn any value into any other, `'abc'` into 0; that is not what a typed column means.
        let fits = value.is_null() || found.name() == class || (class == "REAL" && found.name() == "INTEGER");
        // Declared types such as BOOLEAN and DATE name the class by the declaration.
        let fits = fits || (class == "INTEGER" && found.name() == "BOOLEAN");
        if fits {
            Ok(())
        } else {
            Err(sqlx::Error::Decode(format!("the value is {}, not {class}", found.name()).into()))
        }
    }
}

impl Cells for PgRow {
    fn ordinal(&self) -> Result<i64, sqlx::Error> {
        // WITH ORDINALITY counts from 1.
        self.try_get_unchecked::<i64, _>(0).map(|ordinal| ordinal - 1)
    }

    fn int(&self, index: usize, kind: Kind) -> Result<Option<i64>, sqlx::Error> {
        Ok(match kind {
            Kind::Int16 => self.try_get_unchecked::<Option<i16>, _>(index)?.map(i64::from),
            Kind::Int32 => self.try_get_unchecked::<Option<i32>, _>(index)?.map(i64::from),
            _ => self.try_get_unchecked::<Option<i64>, _>(index)?,
        })
    }

    fn uint(&self, _index: usize) -> Result<Option<u64>, sqlx::Error> {
        Err(sqlx::Error::Decode("PostgreSQL has no unsigned integers".into()))
    }

    fn float(&self, index: usize, kind: Kind) -> Result<Option<f64>, sqlx::Error> {
        Ok(match kind {
            Kind::Float32 => self.try_get_unchecked::<Option<f32>, _>(index)?.map(f64::from),
            _ => self.try_get_unchecked::<Option<f64>, _>(index)?,
        })
    }

    same_cells!();
}

impl Cells for MySqlRow {
    fn ordinal(&self) -> Result<i64, sqlx::Error> {
        self.try_get_unchecked::<i64, _>(0)
    }

    fn int(&self, index: usize, _kind: Kind) -> Result<Option<i64>, sqlx::Error> {
        self.try_get_unchecked(index)
    }

    fn uint(&self, index: usize) -> Result<Option<u64>, sqlx::Error> {
        self.try_get_unchecked(index)
    }

    fn float(&self, index: usize, kind: Kind) -> Result<Option<f64>, sqlx::Error> {
        Ok(match kind {
            Kind::Float32 => self.try_get_unchecked::<Option<f32>, _>(index)?.map(f64::from),
            _ => self.try_get_unchecked::<Option<f64>, _>(index)?,
        })
    }

    same_cells!();
}

impl Cells for SqliteRow {
    fn ordinal(&self) -> Result<i64, sqlx::Error> {
        self.try_get_unchecked::<i64, _>(0)
    }

    fn int(&self, index: usize, _kind: Kind) -> Result<Option<i64>, sqlx::Error> {
        self.check(index, "INTEGER")?;
        self.try_get_unchecked(index)
    }

    fn uint(&self, index: usize) -> Result<Option<u64>, sqlx::Error> {
        Ok(self.int(index, Kind::Int64)?.and_then(|value| u64::try_from(value).ok()))
    }

    fn float(&self, index: usize, _kind: Kind) -> Result<Option<f64>, sqlx::Error> {
        self.check(index, "REAL")?;
        self.try_get_unchecked(index)
    }

    same_cells!();
}

/// What a row lacks: its index, and the text.
pub(crate) type Fault = (usize, String);

/// One column of the rows in the given order; `None` in it is a row of NULLs (an item that matched nothing). Values that
/// cannot be read are NULL and are named in `faults`.
pub(crate) fn column<R: Cells>(
    rows: &[R],
    order: &[Option<usize>],
    index: usize,
    column: &Column,
    faults: &mut Vec<Fault>,
) -> Result<ArrayRef, arrow::error::ArrowError> {
    let at = index + 1;
    macro_rules! build {
        ($builder:expr, |$row:ident| $read:expr) => {{
            let mut builder = $builder;
            for (position, source) in order.iter().enumerate() {
                let value = match source {
                    None => None,
                    Some(source) => {
                        let $row = &rows[*source];
                        $read.unwrap_or_else(|error| {
                            faults.push((position, format!("column `{}`: {error}", column.name)));
                            None
                        })
                    }
                };
                builder.append_option(value);
            }
            Arc::new(builder.finish()) as ArrayRef
        }};
    }
    let size = order.len();
    let narrow = |value: Result<Option<i64>, sqlx::Error>| value.map(|v| v.and_then(|v| i32::try_from(v).ok()));
    let base: ArrayRef = match column.kind {
        Kind::Bool => build!(BooleanBuilder::with_capacity(size), |row| row.boolean(at)),
        Kind::Int16 => build!(Int16Builder::with_capacity(size), |row| row
            .int(at, Kind::Int16)
            .map(|v| v.and_then(|v| i16::try_from(v).ok()))),
        Kind::Int32 => build!(Int32Builder::with_capacity(size), |row| narrow(row.int(at, Kind::Int32))),
        Kind::Int64 => build!(Int64Builder::with_capacity(size), |row| row.int(at, Kind::Int64)),
        Kind::UInt64 => build!(UInt64Builder::with_capacity(size), |row| row.uint(at)),
        Kind::Float32 => {
            build!(Float32Builder::with_capacity(size), |row| row.float(at, Kind::Float32).map(|v| v.map(|v| v as f32)))
        }
        Kind::Float64 => build!(Float64Builder::with_capacity(size), |row| row.float(at, Kind::Float64)),
        Kind::Text => build!(StringBuilder::with_capacity(size, size * 16), |row| row.text(at)),
        Kind::Bytes => build!(BinaryBuilder::with_capacity(size, size * 16), |row| row.bytes(at)),
        Kind::Date => {
            build!(Date32Builder::with_capacity(size), |row| row.date(at).map(|v| v.map(Date32Type::from_naive_date)))
        }
        Kind::Timestamp => build!(TimestampMicrosecondBuilder::with_capacity(size), |row| row
            .timestamp(at)
            .map(|v| v.map(|v| v.and_utc().timestamp_micros()))),
        Kind::TimestampTz => build!(TimestampMicrosecondBuilder::with_capacity(size).with_timezone("UTC"), |row| row
            .timestamp_utc(at)
            .map(|v| v.map(|v| v.timestamp_micros()))),
    };
    if base.data_type() == &column.data_type {
        return Ok(base);
    }
    let cast = cast_with_options(&base, &column.data_type, &CastOptions { safe: true, ..CastOptions::default() })?;
    if cast.null_count() != base.null_count() {
        for position in (0..size).filter(|row| cast.is_null(*row) && base.is_valid(*row)) {
            faults.push((position, format!("column `{}`: the value is not a {}", column.name, column.data_type)));
        }
    }
    Ok(cast)
}
