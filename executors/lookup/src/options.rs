//! What a workflow says about a lookup step.

use arrow::datatypes::DataType;
use rowmill_step::{BatchTarget, Effects};

/// What is wrong with a step's options; the text names the option.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{option}`: {message}")]
pub struct OptionsError {
    /// The option.
    pub option: &'static str,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// What to do with an item whose query gives no row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnMissing {
    /// One row with NULLs, like a left join.
    Null,
    /// The row is dropped.
    Skip,
    /// The item fails.
    Fail,
}

/// What to do with an item whose query gives several rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Matches {
    /// A row for each: the step fans out.
    All,
    /// The first; which one that is, the query's ORDER BY says.
    First,
    /// The item fails.
    One,
}

/// What a workflow says about a lookup step.
#[derive(Debug, Clone)]
pub struct LookupOptions {
    /// Name of the connection.
    pub connection: String,
    /// The query for one item. `{column}` outside of quotes and comments is that column's value, bound.
    pub query: String,
    /// Types of columns for which the database's own are not wanted, or not known (SQLite's expressions).
    pub types: Vec<(String, DataType)>,
    /// No row for an item.
    pub on_missing: OnMissing,
    /// Several rows for an item.
    pub matches: Matches,
    /// What asking again means; idempotent unless declared.
    pub effects: Effects,
    /// The size of groups, and how many queries at once.
    pub target: BatchTarget,
}

impl LookupOptions {
    /// Options with the defaults: NULLs for what is missing, a row for every match, a thousand items in a query.
    pub fn new(connection: &str, query: &str) -> Self {
        Self {
            connection: connection.to_owned(),
            query: query.to_owned(),
            types: Vec::new(),
            on_missing: OnMissing::Null,
            matches: Matches::All,
            effects: Effects::Idempotent,
            target: BatchTarget { rows: 1000, bytes: 4 << 20, in_flight: 4 },
        }
    }
}
