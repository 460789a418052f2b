//! Values on their way into and out of a database.

use std::str::FromStr;

use crate::error::{Error, Result};

/// A value to bind. A missing value still has a type, which PostgreSQL wants to know.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Value<'a> {
    Int(Option<i64>),
    Text(Option<&'a str>),
    Blob(Option<&'a [u8]>),
}

impl From<i64> for Value<'_> {
    fn from(value: i64) -> Self {
        Value::Int(Some(value))
    }
}

impl From<u32> for Value<'_> {
    fn from(value: u32) -> Self {
        Value::Int(Some(i64::from(value)))
    }
}

impl From<Option<i64>> for Value<'_> {
    fn from(value: Option<i64>) -> Self {
        Value::Int(value)
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(value: &'a str) -> Self {
        Value::Text(Some(value))
    }
}

impl<'a> From<&'a String> for Value<'a> {
    fn from(value: &'a String) -> Self {
        Value::Text(Some(value))
    }
}

impl<'a> From<Option<&'a str>> for Value<'a> {
    fn from(value: Option<&'a str>) -> Self {
        Value::Text(value)
    }
}

impl<'a> From<&'a [u8]> for Value<'a> {
    fn from(value: &'a [u8]) -> Self {
        Value::Blob(Some(value))
    }
}

/// Values of different types as one slice.
macro_rules! args {
    ($($value:expr),* $(,)?) => { &[$($crate::sql::Value::from($value)),*][..] };
}
pub(crate) use args;

/// A value that came out.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Cell {
    Null,
    Int(i64),
    Text(String),
    Blob(Vec<u8>),
}

/// A row that came out. A value of another type than the schema's means that the store is damaged.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) cells: Vec<Cell>,
    pub(crate) store: std::sync::Arc<str>,
}

impl Row {
    pub(crate) fn corrupted(&self, message: impl Into<String>) -> Error {
        Error::Corrupted { store: self.store.to_string(), message: message.into() }
    }

    fn wrong(&self, column: usize, wanted: &str) -> Error {
        let found = match self.cells.get(column) {
            None => "nothing",
            Some(Cell::Null) => "NULL",
            Some(Cell::Int(_)) => "a number",
            Some(Cell::Text(_)) => "text",
            Some(Cell::Blob(_)) => "bytes",
        };
        self.corrupted(format!("column {column} of a row holds {found} instead of {wanted}"))
    }

    pub(crate) fn int(&self, column: usize) -> Result<i64> {
        match self.cells.get(column) {
            Some(Cell::Int(value)) => Ok(*value),
            _ => Err(self.wrong(column, "a number")),
        }
    }

    pub(crate) fn opt_int(&self, column: usize) -> Result<Option<i64>> {
        match self.cells.get(column) {
            Some(Cell::Null) => Ok(None),
            _ => self.int(column).map(Some),
        }
    }

    /// A number that is never negative.
    pub(crate) fn uint(&self, column: usize) -> Result<u64> {
        u64::try_from(self.int(column)?).map_err(|_| self.wrong(column, "a number that is not negative"))
    }

    pub(crate) fn opt_uint(&self, column: usize) -> Result<Option<u64>> {
        match self.cells.get(column) {
            Some(Cell::Null) => Ok(None),
            _ => self.uint(column).map(Some),
        }
    }

    pub(crate) fn uint32(&self, column: usize) -> Result<u32> {
        u32::try_from(self.int(column)?).map_err(|_| self.wrong(column, "a number of 32 bits"))
    }

    pub(crate) fn text(&self, column: usize) -> Result<&str> {
        match self.cells.get(column) {
            Some(Cell::Text(value)) => Ok(value),
            _ => Err(self.wrong(column, "text")),
        }
    }

    pub(crate) fn string(&self, column: usize) -> Result<String> {
        self.text(column).map(str::to_owned)
    }

    pub(crate) fn opt_string(&self, column: usize) -> Result<Option<String>> {
        match self.cells.get(column) {
            Some(Cell::Null) => Ok(None),
            _ => self.string(column).map(Some),
        }
    }

    pub(crate) fn blob(&self, column: usize) -> Result<Vec<u8>> {
        match self.cells.get(column) {
            Some(Cell::Blob(value)) => Ok(value.clone()),
            _ => Err(self.wrong(column, "bytes")),
        }
    }

    pub(crate) fn opt_blob(&self, column: usize) -> Result<Option<Vec<u8>>> {
        match self.cells.get(column) {
            Some(Cell::Null) => Ok(None),
            _ => self.blob(column).map(Some),
        }
    }

    /// Text that has a Rust form: an id, a status.
    pub(crate) fn parse<T: FromStr>(&self, column: usize) -> Result<T> {
        let text = self.text(column)?;
        text.parse().map_err(|_| self.corrupted(format!("`{text}` in column {column} is not valid there")))
    }

    /// Text that is JSON.
    pub(crate) fn json<T: serde::de::DeserializeOwned>(&self, column: usize) -> Result<T> {
        serde_json::from_str(self.text(column)?)
            .map_err(|error| self.corrupted(format!("the JSON in column {column} cannot be read: {error}")))
    }
}
