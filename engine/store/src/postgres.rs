//! The PostgreSQL backend: a pool of connections to one server, tables in a schema of their own.
//!
//! The server's clock is the store's clock. Writers run at READ COMMITTED, because the logic locks the rows that decide
//! (the lease) and then reads what is there; readers run at REPEATABLE READ and see one state.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sqlx::pool::PoolOptions;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgRow};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Decode, Executor, Postgres, Row as _, Transaction, TypeInfo, ValueRef,
};
use url::Url;

use crate::clock::Now;
use crate::error::{Error, Result};
use crate::sql::migrate::{self, SCHEMA_VERSION};
use crate::sql::{Backend, Cell, Dialect, Row, Sql, SqlStore, Tx, Value};
use crate::sqlite::bound;
use crate::store::RunStore;

/// How to reach a PostgreSQL store. Its debug form shows no password.
#[derive(Clone)]
pub struct PostgresOptions {
    /// `postgres://user:password@host:port/database`. Hidden from the debug form.
    pub url: String,
    /// The schema that holds the tables; created if it is missing and we may. Lower-case letters, digits and `_`.
    pub schema: String,
    /// Connections that are kept once opened.
    pub pool_size: u32,
    /// Connections above that, opened under load and closed when given back.
    pub max_overflow: u32,
    /// How long a call waits for a connection.
    pub acquire_timeout: Duration,
    /// How long the server works on one statement.
    pub statement_timeout: Duration,
    /// The age at which a connection is replaced.
    pub recycle: Duration,
    /// For how long a call is repeated after its connection broke, so that a restart of the server is survived. Zero
    /// reports the first failure.
    pub reconnect_for: Duration,
}

impl PostgresOptions {
    /// A store on this server: `postgres://user:password@host:port/database`, with `?sslmode=` and the like as libpq
    /// knows them.
    pub fn url(url: impl Into<String>) -> Self {
        PostgresOptions {
            url: url.into(),
            schema: "rowmill".to_owned(),
            pool_size: 4,
            max_overflow: 8,
            acquire_timeout: Duration::from_secs(30),
            statement_timeout: Duration::from_secs(60),
            recycle: Duration::from_secs(1800),
            reconnect_for: Duration::from_secs(30),
        }
    }

    /// The store's description and the driver's options, or what is wrong with ours.
    fn connect_options(&self) -> Result<(Place, PgConnectOptions)> {
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let starts_well = self.schema.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
        if !starts_well || !self.schema.chars().all(legal) || self.schema.len() > 63 {
            return Err(Error::invalid(
                "schema",
                format!("`{}` is not made of lower-case letters, digits and `_`", self.schema.escape_debug()),
            ));
        }
        if self.pool_size == 0 {
            return Err(Error::invalid("pool_size", "must be at least 1"));
        }
        // The URL itself is never repeated: it may hold a password even where it cannot be parsed.
        let url = Url::parse(&self.url)
            .ok()
            .filter(|url| matches!(url.scheme(), "postgres" | "postgresql"))
            .ok_or_else(|| Error::invalid("url", "is not of the form postgres://user:password@host:port/database"))?;
        let secrets = secrets(&url);
        let options = PgConnectOptions::from_str(&self.url)
            .map_err(|error| Error::invalid("url", scrub(&secrets, &error.to_string())))?;
        let store = format!(
            "postgres://{}@{}:{}/{} (schema {})",
            options.get_username(),
            options.get_host(),
            options.get_port(),
            options.get_database().unwrap_or(options.get_username()),
            self.schema
        );
        let options = options
            .application_name("rowmill")
            .options([
                ("search_path", self.schema.clone()),
                ("statement_timeout", self.statement_timeout.as_millis().to_string()),
                // A server that is set to lose the last commits in a crash must not lose ours.
                ("synchronous_commit", "on".to_owned()),
                // An owner that vanished in the middle of a transaction must not keep its locks.
                ("idle_in_transaction_session_timeout", self.statement_timeout.as_millis().to_string()),
            ])
            .disable_statement_logging();
        Ok((Place { store: store.into(), secrets: secrets.into() }, options))
    }
}

impl fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresOptions")
            .field("url", &"(hidden)")
            .field("schema", &self.schema)
            .field("pool_size", &self.pool_size)
            .field("max_overflow", &self.max_overflow)
            .field("acquire_timeout", &self.acquire_timeout)
            .field("statement_timeout", &self.statement_timeout)
            .field("recycle", &self.recycle)
            .field("reconnect_for", &self.reconnect_for)
            .finish()
    }
}

/// The password in the forms in which it stands in a URL or a message.
fn secrets(url: &Url) -> Vec<String> {
    let mut secrets: Vec<String> = url
        .query_pairs()
        .filter(|(key, _)| key == "password" || key == "sslpassword")
        .map(|(_, value)| value.into_owned())
        .collect();
    if let Some(password) = url.password() {
        secrets.push(password.to_owned());
        secrets.push(
            url::form_urlencoded::parse(format!("p={}", password.replace('+', "%2B")).as_bytes())
                .map(|(_, value)| value.into_owned())
                .collect(),
        );
    }
    secrets.retain(|secret| !secret.is_empty());
    secrets
}

fn scrub(secrets: &[String], message: &str) -> String {
    secrets.iter().fold(message.to_owned(), |message, secret| message.replace(secret, "***"))
}

/// The store, for messages, and what must not be in them.
#[derive(Clone)]
struct Place {
    store: Arc<str>,
    secrets: Arc<[String]>,
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.store)
    }
}

/// Opens a PostgreSQL store, creating or migrating its tables where needed.
///
/// Fails with [`Error::Unavailable`] when the server cannot be reached within the acquire timeout, [`Error::Denied`]
/// when it refuses us, [`Error::NewerVersion`], or [`Error::Invalid`] for options that cannot work.
pub async fn open_postgres(options: PostgresOptions) -> Result<Arc<dyn RunStore>> {
    Ok(Arc::new(SqlStore::new(PostgresBackend::open(options).await?)))
}

#[derive(Debug)]
pub(crate) struct PostgresBackend {
    place: Place,
    pool: PgPool,
    /// The pool as its own hook sees it; emptied when the backend goes, or the two would keep each other alive.
    own: Arc<Mutex<Option<PgPool>>>,
    reconnect_for: Duration,
}

impl PostgresBackend {
    async fn open(options: PostgresOptions) -> Result<Self> {
        let (place, connect) = options.connect_options()?;
        // One connection by itself first: it says why it cannot be made, where a pool only says that it waited.
        let connected = tokio::time::timeout(options.acquire_timeout, connect.connect()).await;
        let mut connection = match connected {
            Ok(connection) => connection.map_err(|error| sort(&place, error))?,
            Err(_) => {
                let message = format!("no connection within {} ms", options.acquire_timeout.as_millis());
                return Err(Error::Unavailable { store: place.store.to_string(), message });
            }
        };
        let outcome = prepare(&options, &mut connection, &place).await;
        let closed = connection.close().await.map_err(|error| sort(&place, error));
        outcome.and(closed)?;

        let own = Arc::new(Mutex::new(None::<PgPool>));
        let (hook, pool_size) = (own.clone(), options.pool_size);
        let pool = PoolOptions::new()
            .max_connections(options.pool_size.saturating_add(options.max_overflow))
            .acquire_timeout(options.acquire_timeout)
            .max_lifetime(options.recycle)
            .idle_timeout(options.recycle)
            // A stale connection shows itself in its first statement, and the call is repeated; testing each one would
            // cost every call a round trip.
            .test_before_acquire(false)
            .after_release(move |_, _| {
                let keep = hook.lock().as_ref().is_none_or(|pool| pool.size() <= pool_size);
                Box::pin(async move { Ok(keep) })
            })
            .connect_lazy_with(connect);
        *own.lock() = Some(pool.clone());
        Ok(PostgresBackend { place, pool, own, reconnect_for: options.reconnect_for })
    }

    async fn begin_on(&self, sql: &'static str) -> Result<PostgresTx<'static>> {
        let inner = self.pool.begin_with(sql).await.map_err(|error| sort(&self.place, error))?;
        Ok(PostgresTx { place: self.place.clone(), inner })
    }
}

/// Creates the schema and migrates the tables, one process at a time.
async fn prepare(options: &PostgresOptions, connection: &mut PgConnection, place: &Place) -> Result<()> {
    let inner = connection.begin().await.map_err(|error| sort(place, error))?;
    let mut tx = PostgresTx { place: place.clone(), inner };
    let schema = &options.schema;
    let lock =
        "SELECT CAST(1 AS BIGINT) FROM (SELECT pg_advisory_xact_lock(hashtext('rowmill run store'), hashtext($1))) l";
    tx.rows(lock, &[Value::from(schema)]).await?;
    let found = "SELECT COUNT(*) FROM pg_namespace WHERE nspname = $1";
    if tx.rows(found, &[Value::from(schema)]).await?.first().map(|row| row.int(0)).transpose()? == Some(0) {
        // The name was checked to be an identifier.
        tx.execute(format!("CREATE SCHEMA {schema}"), &[]).await?;
    }
    let found = "SELECT COUNT(*) FROM pg_tables WHERE schemaname = $1 AND tablename = 'rowmill_store_version'";
    let fresh = tx.rows(found, &[Value::from(schema)]).await?.first().map(|row| row.int(0)).transpose()? == Some(0);
    let mut version = 0;
    if fresh {
        tx.script("CREATE TABLE rowmill_store_version (version BIGINT NOT NULL)").await?;
    } else if let Some(row) = tx.rows("SELECT version FROM rowmill_store_version", &[]).await?.first() {
        version = row.int(0)?;
    }
    migrate::apply(&mut tx, version).await?;
    if version < SCHEMA_VERSION {
        tx.execute("DELETE FROM rowmill_store_version", &[]).await?;
        let insert = "INSERT INTO rowmill_store_version (version) VALUES ($1)";
        tx.execute(insert, &[Value::from(SCHEMA_VERSION)]).await?;
    }
    tx.commit().await
}

impl Backend for PostgresBackend {
    type Tx = PostgresTx<'static>;

    async fn begin_write(&self) -> Result<PostgresTx<'static>> {
        self.begin_on("BEGIN ISOLATION LEVEL READ COMMITTED").await
    }

    async fn begin_read(&self) -> Result<PostgresTx<'static>> {
        self.begin_on("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await
    }

    fn describe(&self) -> &str {
        &self.place.store
    }

    fn reconnect_for(&self) -> Duration {
        self.reconnect_for
    }

    /// Reads every row of every table; the server verifies its own pages where checksums are on.
    async fn check(&self) -> Result<()> {
        let mut tx = self.begin_read().await?;
        let found = "SELECT COUNT(*) FROM rowmill_store_version WHERE version = $1";
        let count = tx.rows(found, &[Value::from(SCHEMA_VERSION)]).await?;
        if count.first().map(|row| row.int(0)).transpose()? != Some(1) {
            return Err(Error::Corrupted {
                store: self.place.store.to_string(),
                message: "its schema version is missing or has changed since it was opened".to_owned(),
            });
        }
        for table in TABLES {
            let sql = format!("SELECT CAST(COALESCE(SUM(length(CAST(t AS TEXT))), 0) AS BIGINT) FROM {table} t");
            tx.rows(sql, &[]).await?;
        }
        tx.commit().await
    }

    async fn optimize(&self) -> Result<()> {
        let mut connection = self.pool.acquire().await.map_err(|error| sort(&self.place, error))?;
        for table in TABLES {
            // Not in a transaction: VACUUM refuses to be in one.
            let sql = sqlx::raw_sql(AssertSqlSafe(format!("VACUUM (ANALYZE) {table}")));
            connection.execute(sql).await.map_err(|error| sort(&self.place, error))?;
        }
        Ok(())
    }

    async fn close(&self) {
        self.pool.close().await;
    }
}

const TABLES: [&str; 10] =
    ["leases", "runs", "run_labels", "run_versions", "stages", "chunks", "journal", "step_counts", "effects", "events"];

impl Drop for PostgresBackend {
    fn drop(&mut self) {
        self.own.lock().take();
    }
}

#[derive(Debug)]
pub(crate) struct PostgresTx<'c> {
    place: Place,
    inner: Transaction<'c, Postgres>,
}

impl Tx for PostgresTx<'_> {
    async fn execute(&mut self, sql: impl Into<Sql> + Send, args: &[Value<'_>]) -> Result<u64> {
        let done = bound!(sql, args).execute(&mut *self.inner).await.map_err(|error| sort(&self.place, error))?;
        Ok(done.rows_affected())
    }

    async fn rows(&mut self, sql: impl Into<Sql> + Send, args: &[Value<'_>]) -> Result<Vec<Row>> {
        let rows = bound!(sql, args).fetch_all(&mut *self.inner).await.map_err(|error| sort(&self.place, error))?;
        rows.iter().map(|row| read_row(row, &self.place)).collect()
    }

    async fn script(&mut self, sql: &'static str) -> Result<()> {
        self.inner.execute(sqlx::raw_sql(sql)).await.map_err(|error| sort(&self.place, error))?;
        Ok(())
    }

    async fn commit(self) -> Result<()> {
        let PostgresTx { place, inner } = self;
        inner.commit().await.map_err(|error| sort(&place, error))
    }

    fn dialect(&self) -> Dialect {
        Dialect::Postgres
    }

    fn store(&self) -> &str {
        &self.place.store
    }

    fn local_now(&self) -> Option<Now> {
        None
    }
}

fn read_row(row: &PgRow, place: &Place) -> Result<Row> {
    let read = |at: usize| -> Result<Cell, sqlx::Error> {
        let raw = row.try_get_raw(at)?;
        if raw.is_null() {
            return Ok(Cell::Null);
        }
        let kind = raw.type_info().name().to_owned();
        match kind.as_str() {
            "INT8" => <i64 as Decode<'_, Postgres>>::decode(raw).map(Cell::Int),
            "BYTEA" => <Vec<u8> as Decode<'_, Postgres>>::decode(raw).map(Cell::Blob),
            "TEXT" => <String as Decode<'_, Postgres>>::decode(raw).map(Cell::Text),
            other => Err(format!("a column has the unexpected type {other}").into()),
        }
        .map_err(sqlx::Error::Decode)
    };
    let cells: Result<Vec<Cell>, sqlx::Error> = (0..row.len()).map(read).collect();
    Ok(Row { cells: cells.map_err(|error| sort(place, error))?, store: place.store.clone() })
}

/// Sorts a driver's error by fault. Codes: <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
fn sort(place: &Place, error: sqlx::Error) -> Error {
    let store = place.store.to_string();
    let message = scrub(&place.secrets, &error.to_string());
    if let sqlx::Error::Database(database) = &error {
        let code = database.code().map(|code| code.into_owned()).unwrap_or_default();
        let message = format!("{} (SQLSTATE {code})", scrub(&place.secrets, database.message()));
        return match code.as_str() {
            // Deadlock and serialization failure, a server that stops or starts, too many connections: try again.
            "40P01" | "40001" | "57P01" | "57P02" | "57P03" | "53300" | "25P03" => {
                Error::Unavailable { store, message }
            }
            "57014" | "55P03" => Error::Busy { store, message },
            "53100" | "53200" => Error::Full { store, message },
            "25006" | "42501" | "3D000" => Error::Denied { store, message },
            "22021" => Error::Invalid { field: "value", message },
            "54000" | "54001" => Error::Invalid { field: "value", message },
            code if code.starts_with("08") => Error::Unavailable { store, message },
            code if code.starts_with("28") => Error::Denied { store, message },
            code if code.starts_with("XX") => Error::Corrupted { store, message },
            // The tables are not those that were found when the store was opened.
            "42P01" | "42703" => Error::Corrupted { store, message },
            _ => Error::Internal { store, message },
        };
    }
    match error {
        sqlx::Error::PoolTimedOut => Error::Unavailable {
            store,
            message: "no connection became free or could be opened within the acquire timeout".to_owned(),
        },
        sqlx::Error::PoolClosed => Error::Denied { store, message: "it was closed".to_owned() },
        // A transaction that could not begin, or words that make no sense, on a connection that broke.
        sqlx::Error::Io(_) | sqlx::Error::BeginFailed | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => {
            Error::Unavailable { store, message }
        }
        sqlx::Error::Tls(_) => Error::Denied { store, message },
        sqlx::Error::Configuration(_) => Error::Invalid { field: "url", message },
        sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } => Error::Corrupted { store, message },
        _ => Error::Internal { store, message },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_printed_nowhere() {
        let options = PostgresOptions::url("postgres://me:c%40nary-s3cret@db.example:5433/runs?password=0ther-s3cret");
        let (place, _) = options.connect_options().unwrap();
        let sorted = sort(&place, sqlx::Error::Protocol("got c%40nary-s3cret, c@nary-s3cret and 0ther-s3cret".into()));
        let text = format!("{options:?} {place:?} {} {sorted} {sorted:?}", place.store);
        assert!(!text.contains("s3cret"), "{text}");
        assert!(text.contains("me@db.example:5433/runs"), "{text}");
        for bad in ["postgres//me:s3cret@db/x", "mysql://me:s3cret@db/x", "postgres://me:s3cret@db:port/x"] {
            let error = PostgresOptions::url(bad).connect_options().unwrap_err();
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn schema_names_are_identifiers() {
        for bad in ["", "a b", "a;drop", "A", "1a", "a\"b", &"a".repeat(64)] {
            let mut options = PostgresOptions::url("postgres://me@db/x");
            options.schema = bad.to_owned();
            assert!(matches!(options.connect_options(), Err(Error::Invalid { field: "schema", .. })), "{bad}");
        }
    }
}
