//! The store's logic, written once in the SQL that SQLite and PostgreSQL share.
//!
//! A backend (`sqlite.rs`, `postgres.rs`) gives transactions, moves values in and out, sorts the driver's errors, and
//! says what time it is. Everything that decides lives here, so that no backend can decide differently. Rules for this
//! folder: a transaction locks the run's lease row first; statements touch several rows in key order; every statement
//! that writes is written so that its repetition changes nothing.

mod effects;
mod events;
mod journal;
mod lease;
pub(crate) mod migrate;
mod progress;
mod retention;
mod runs;
mod store;
mod value;

use std::borrow::Cow;
use std::fmt::Debug;
use std::time::Duration;

pub(crate) use store::SqlStore;
pub(crate) use value::{Cell, Row, Value};

use crate::clock::Now;
use crate::error::{Error, Result};

/// Statement text. Owned text is built from our own fragments and placeholders only, never from data.
pub(crate) type Sql = Cow<'static, str>;

/// What the two databases do not share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Sqlite,
    Postgres,
}

impl Dialect {
    /// The dialect's variant of a statement.
    pub(crate) fn pick(self, sqlite: &'static str, postgres: &'static str) -> Sql {
        Sql::Borrowed(match self {
            Dialect::Sqlite => sqlite,
            Dialect::Postgres => postgres,
        })
    }
}

/// A transaction. Dropped without a commit, it is rolled back.
pub(crate) trait Tx: Send {
    /// Runs a statement and returns how many rows it touched.
    fn execute(&mut self, sql: impl Into<Sql> + Send, args: &[Value<'_>]) -> impl Future<Output = Result<u64>> + Send;

    /// Runs a statement and returns its rows.
    fn rows(&mut self, sql: impl Into<Sql> + Send, args: &[Value<'_>])
    -> impl Future<Output = Result<Vec<Row>>> + Send;

    /// Runs several statements that take no values.
    fn script(&mut self, sql: &'static str) -> impl Future<Output = Result<()>> + Send;

    /// Makes the transaction's changes durable.
    fn commit(self) -> impl Future<Output = Result<()>> + Send;

    /// Which SQL this transaction speaks.
    fn dialect(&self) -> Dialect;

    /// The store, for messages.
    fn store(&self) -> &str;

    /// The clock, where it is not the database's.
    fn local_now(&self) -> Option<Now>;
}

/// A database that transactions can be begun on.
pub(crate) trait Backend: Send + Sync + Debug + 'static {
    type Tx: Tx;

    /// Begins a transaction that may write; on SQLite, writers wait here for each other.
    fn begin_write(&self) -> impl Future<Output = Result<Self::Tx>> + Send;

    /// Begins a transaction that only reads and sees one state of the store.
    fn begin_read(&self) -> impl Future<Output = Result<Self::Tx>> + Send;

    /// The store, for messages.
    fn describe(&self) -> &str;

    /// For how long a call is repeated when the connection breaks under it.
    fn reconnect_for(&self) -> Duration;

    /// Looks for damage.
    fn check(&self) -> impl Future<Output = Result<()>> + Send;

    /// Gives space back.
    fn optimize(&self) -> impl Future<Output = Result<()>> + Send;

    /// Closes the connections.
    fn close(&self) -> impl Future<Output = ()> + Send;
}

/// The time by the store's clock.
pub(crate) async fn now(tx: &mut impl Tx) -> Result<Now> {
    if let Some(now) = tx.local_now() {
        return Ok(now);
    }
    let rows = tx.rows("SELECT rowmill_now_ms()", &[]).await?;
    let ms = one(rows, tx.store())?.int(0)?;
    Ok(Now { wall_ms: ms, lease_ms: ms, epoch: SERVER_EPOCH.to_owned() })
}

/// The epoch of a database server's own clock.
pub(crate) const SERVER_EPOCH: &str = "server";

/// The only row of a result that must have one.
pub(crate) fn one(rows: Vec<Row>, store: &str) -> Result<Row> {
    rows.into_iter().next().ok_or_else(|| Error::Corrupted {
        store: store.to_owned(),
        message: "a statement that always has a result had none".to_owned(),
    })
}

/// A count or position as the databases keep it.
pub(crate) fn to_i64(value: u64, field: &'static str) -> Result<i64> {
    i64::try_from(value).map_err(|_| Error::invalid(field, format!("{value} is more than the store can keep")))
}

/// A duration in whole milliseconds, at least one.
pub(crate) fn to_ms(duration: Duration, field: &'static str) -> Result<i64> {
    // A hundred years: sums with the clock cannot overflow.
    const MOST_MS: u128 = 100 * 366 * 24 * 3_600_000;
    let ms = duration.as_millis();
    if ms > MOST_MS {
        return Err(Error::invalid(field, "is longer than a hundred years"));
    }
    Ok(ms.max(1) as i64)
}

/// Refuses text that a database cannot keep or index.
pub(crate) fn check_text(text: &str, field: &'static str, most_bytes: usize) -> Result<()> {
    if text.contains('\0') {
        return Err(Error::invalid(field, "contains a NUL character"));
    }
    if text.len() > most_bytes {
        return Err(Error::invalid(field, format!("has {} bytes, allowed are {most_bytes}", text.len())));
    }
    Ok(())
}

/// The longest text that may be long (a workflow, an error, a manifest entry).
pub(crate) const LONG_TEXT_BYTES: usize = 64 << 20;
/// The longest text that is indexed.
pub(crate) const KEY_TEXT_BYTES: usize = 512;

/// Statement text with rows of placeholders: `head` followed by `rows` tuples of `columns` placeholders, then `tail`.
pub(crate) fn values_sql(head: &str, rows: usize, columns: usize, tail: &str) -> String {
    use std::fmt::Write as _;
    let mut sql = String::with_capacity(head.len() + tail.len() + rows * columns * 6);
    sql.push_str(head);
    let mut n = 0;
    for row in 0..rows {
        sql.push_str(if row == 0 { " (" } else { ", (" });
        for column in 0..columns {
            n += 1;
            // Writing to a string cannot fail.
            let _ = write!(sql, "{}${n}", if column == 0 { "" } else { ", " });
        }
        sql.push(')');
    }
    sql.push(' ');
    sql.push_str(tail);
    sql
}
