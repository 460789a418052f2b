//! The SQLite backend: one file on one machine, in WAL mode, synced at every commit.
//!
//! One connection writes, so that the writers of a process queue here instead of meeting as "database is locked"; the
//! busy timeout is for other processes. A few connections read beside it, each transaction seeing one state. An
//! in-memory store is one connection that is never given back.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::pool::PoolOptions;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqliteRow, SqliteSynchronous,
};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Decode, Executor, Row as _, Sqlite, Transaction, TypeInfo, ValueRef,
};

use crate::clock::{Clock, Now, SystemClock};
use crate::error::{Error, Result};
use crate::sql::migrate::{self, SCHEMA_VERSION};
use crate::sql::{Backend, Cell, Dialect, Row, Sql, SqlStore, Tx, Value};
use crate::store::RunStore;

/// Marks the file as ours in SQLite's header ("RMil").
const APPLICATION_ID: i64 = 0x524d_696c;

/// How to open a SQLite store.
#[derive(Debug, Clone)]
pub struct SqliteOptions {
    /// The file, or `None` for a store in memory that lives as long as it is open.
    pub path: Option<PathBuf>,
    /// Whether a missing file is created.
    pub create: bool,
    /// How long to wait for another process that writes.
    pub busy_timeout: Duration,
    /// How many connections read.
    pub readers: u32,
    /// The most bytes that the file may grow to; beyond it the store is [`Error::Full`].
    pub max_bytes: Option<u64>,
    /// Files up to this size are checked for damage when they are opened.
    pub check_up_to_bytes: u64,
    /// The machine's clock; replaced in tests only.
    pub clock: Arc<dyn Clock>,
}

impl SqliteOptions {
    /// A store in this file.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        SqliteOptions {
            path: Some(path.into()),
            create: true,
            busy_timeout: Duration::from_secs(10),
            readers: 4,
            max_bytes: None,
            check_up_to_bytes: 32 << 20,
            clock: Arc::new(SystemClock::new()),
        }
    }

    /// A store in memory, for runs that need not survive.
    pub fn memory() -> Self {
        SqliteOptions { path: None, ..SqliteOptions::file("") }
    }

    fn connect_options(&self) -> SqliteConnectOptions {
        let base = match &self.path {
            Some(path) => SqliteConnectOptions::new().filename(path).create_if_missing(self.create),
            None => SqliteConnectOptions::new().in_memory(true),
        };
        let options = base
            .busy_timeout(self.busy_timeout)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(false)
            .pragma("cell_size_check", "on")
            .pragma("cache_size", "-16384")
            .disable_statement_logging();
        match self.max_bytes {
            Some(bytes) => options.pragma("max_page_count", (bytes / PAGE_BYTES).max(1).to_string()),
            None => options,
        }
    }
}

/// SQLite's page size, which we leave at its default.
const PAGE_BYTES: u64 = 4096;

/// Opens a SQLite store, creating or migrating it where needed.
///
/// Fails with [`Error::Busy`] when another process holds its lock, [`Error::Corrupted`] when it is damaged or no
/// database, [`Error::NewerVersion`], or [`Error::Denied`] when it cannot be opened or is somebody else's database.
pub async fn open_sqlite(options: SqliteOptions) -> Result<Arc<dyn RunStore>> {
    Ok(Arc::new(SqlStore::new(SqliteBackend::open(options).await?)))
}

/// Opens a store in memory: the whole trait, and nothing survives.
pub async fn open_memory() -> Result<Arc<dyn RunStore>> {
    open_sqlite(SqliteOptions::memory()).await
}

#[derive(Debug)]
pub(crate) struct SqliteBackend {
    store: Arc<str>,
    writer: SqlitePool,
    /// `None` for a store in memory, which has one connection only.
    readers: Option<SqlitePool>,
    clock: Arc<dyn Clock>,
}

impl SqliteBackend {
    async fn open(options: SqliteOptions) -> Result<Self> {
        let store: Arc<str> = match &options.path {
            Some(path) => format!("sqlite:{}", path.display()).into(),
            None => "sqlite in memory".into(),
        };
        let connect = options.connect_options();
        let Some(path) = &options.path else {
            if options.max_bytes.is_some() {
                return Err(Error::invalid("max_bytes", "is for stores in a file; this one is in memory"));
            }
            let writer = pool(1).connect_with(connect).await.map_err(|error| sort(&store, error))?;
            let backend = SqliteBackend { store, writer, readers: None, clock: options.clock };
            let mut tx = backend.begin_write().await?;
            migrate::apply(&mut tx, 0).await?;
            tx.commit().await?;
            return Ok(backend);
        };
        prepare(&options, path, &connect, &store).await?;
        let connect = connect
            .journal_mode(SqliteJournalMode::Wal)
            .pragma("wal_autocheckpoint", "4000")
            .pragma("journal_size_limit", (64 << 20).to_string());
        let writer = pool(1).connect_with(connect.clone()).await.map_err(|error| sort(&store, error))?;
        let readers = pool(options.readers.max(1)).connect_lazy_with(connect);
        Ok(SqliteBackend { store, writer, readers: Some(readers), clock: options.clock })
    }

    async fn begin_on(&self, pool: &SqlitePool, sql: &'static str) -> Result<SqliteTx<'static>> {
        let inner = pool.begin_with(sql).await.map_err(|error| sort(&self.store, error))?;
        Ok(SqliteTx { store: self.store.clone(), inner, clock: self.clock.clone() })
    }
}

/// A pool whose connections stay: a SQLite connection holds a file, not a server's resources.
fn pool(connections: u32) -> PoolOptions<Sqlite> {
    PoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(60))
        .test_before_acquire(false)
        .idle_timeout(None)
        .max_lifetime(None)
        .after_release(|connection: &mut SqliteConnection, _| {
            Box::pin(async move {
                // A full disk and the like make SQLite roll back by itself. The driver's own rollback then fails, and it
                // believes for ever that a transaction is open: such a connection is replaced by a new one. The ping
                // waits for a rollback that is merely queued.
                if connection.is_in_transaction() {
                    connection.ping().await?;
                }
                Ok(!connection.is_in_transaction())
            })
        })
}

/// Makes sure that the file is a sound store of our version, before any setting of ours touches it.
async fn prepare(options: &SqliteOptions, path: &Path, connect: &SqliteConnectOptions, store: &Arc<str>) -> Result<()> {
    if !options.create && !path.exists() {
        return Err(Error::Denied { store: store.to_string(), message: "there is no such file".to_owned() });
    }
    // Two processes that create the file together can meet in ways that SQLite's busy handler does not cover.
    let until = Instant::now() + options.busy_timeout;
    loop {
        match try_prepare(options, path, connect, store).await {
            Err(Error::Busy { .. }) if Instant::now() < until => tokio::time::sleep(Duration::from_millis(20)).await,
            outcome => return outcome,
        }
    }
}

async fn try_prepare(
    options: &SqliteOptions,
    path: &Path,
    connect: &SqliteConnectOptions,
    store: &Arc<str>,
) -> Result<()> {
    let mut connection = connect.connect().await.map_err(|error| sort(store, error))?;
    let outcome = prepare_on(options, path, &mut connection, store).await;
    let closed = connection.close().await.map_err(|error| sort(store, error));
    outcome.and(closed)
}

async fn prepare_on(
    options: &SqliteOptions,
    path: &Path,
    connection: &mut SqliteConnection,
    store: &Arc<str>,
) -> Result<()> {
    let version = identify(connection, store).await?;
    if version > 0 && std::fs::metadata(path).is_ok_and(|file| file.len() <= options.check_up_to_bytes) {
        check_on(connection, store, "PRAGMA quick_check(1)").await?;
    }
    if version < SCHEMA_VERSION {
        let inner = connection.begin_with("BEGIN IMMEDIATE").await.map_err(|error| sort(store, error))?;
        let mut tx = SqliteTx { store: store.clone(), inner, clock: options.clock.clone() };
        // Again under the lock: another process may have created or migrated it by now.
        let version = identify(&mut tx.inner, store).await?;
        migrate::apply(&mut tx, version).await?;
        let sql = format!("PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION}");
        let raw = sqlx::raw_sql(AssertSqlSafe(sql));
        tx.inner.execute(raw).await.map_err(|error| sort(store, error))?;
        tx.commit().await?;
        sync_parent(path);
    }
    let wal = sqlx::raw_sql("PRAGMA journal_mode = WAL");
    connection.execute(wal).await.map_err(|error| sort(store, error))?;
    Ok(())
}

/// Makes the new file's name as durable as its contents. Where a directory cannot be synced, the name is as durable as
/// the file system makes it.
fn sync_parent(path: &Path) {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let Err(error) = std::fs::File::open(parent).and_then(|directory| directory.sync_all()) {
        tracing::debug!(%error, "the run store's directory was not synced");
    }
}

/// The schema version of the file: 0 if it is new and empty. Refuses other people's databases and newer versions.
async fn identify(connection: &mut SqliteConnection, store: &Arc<str>) -> Result<i64> {
    let sql = "SELECT (SELECT application_id FROM pragma_application_id), (SELECT user_version FROM \
               pragma_user_version), (SELECT COUNT(*) FROM sqlite_schema)";
    let row = sqlx::query(sql).fetch_one(connection).await.map_err(|error| sort(store, error))?;
    let row = read_row(&row, store)?;
    let (application_id, version, objects) = (row.int(0)?, row.int(1)?, row.int(2)?);
    if application_id == APPLICATION_ID {
        migrate::check_version(version, store)?;
        return Ok(version);
    }
    if application_id == 0 && version == 0 && objects == 0 {
        return Ok(0);
    }
    Err(Error::Denied {
        store: store.to_string(),
        message: "it is a SQLite database, but no Rowmill run store; name another file".to_owned(),
    })
}

async fn check_on(connection: &mut SqliteConnection, store: &Arc<str>, sql: &'static str) -> Result<()> {
    let rows = sqlx::query(sql).fetch_all(connection).await.map_err(|error| sort(store, error))?;
    for row in &rows {
        let row = read_row(row, store)?;
        if row.text(0)? != "ok" {
            return Err(row.corrupted(row.string(0)?));
        }
    }
    Ok(())
}

impl Backend for SqliteBackend {
    type Tx = SqliteTx<'static>;

    async fn begin_write(&self) -> Result<SqliteTx<'static>> {
        self.begin_on(&self.writer, "BEGIN IMMEDIATE").await
    }

    async fn begin_read(&self) -> Result<SqliteTx<'static>> {
        self.begin_on(self.readers.as_ref().unwrap_or(&self.writer), "BEGIN").await
    }

    fn describe(&self) -> &str {
        &self.store
    }

    fn reconnect_for(&self) -> Duration {
        Duration::ZERO
    }

    async fn check(&self) -> Result<()> {
        let mut connection = self.writer.acquire().await.map_err(|error| sort(&self.store, error))?;
        check_on(&mut connection, &self.store, "PRAGMA integrity_check(1)").await
    }

    async fn optimize(&self) -> Result<()> {
        let mut connection = self.writer.acquire().await.map_err(|error| sort(&self.store, error))?;
        let sql = "PRAGMA optimize; VACUUM; PRAGMA wal_checkpoint(TRUNCATE)";
        connection.execute(sqlx::raw_sql(sql)).await.map_err(|error| sort(&self.store, error))?;
        Ok(())
    }

    async fn close(&self) {
        if let Some(readers) = &self.readers {
            readers.close().await;
        }
        self.writer.close().await;
    }
}

#[derive(Debug)]
pub(crate) struct SqliteTx<'c> {
    store: Arc<str>,
    inner: Transaction<'c, Sqlite>,
    clock: Arc<dyn Clock>,
}

/// A query with its values bound. Only fixed statements are kept prepared; built ones differ too much.
macro_rules! bound {
    ($sql:expr, $args:expr) => {{
        let mut query = match $sql.into() {
            Sql::Borrowed(sql) => sqlx::query(sql),
            Sql::Owned(sql) => sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(false),
        };
        for arg in $args {
            query = match *arg {
                Value::Int(value) => query.bind(value),
                Value::Text(value) => query.bind(value),
                Value::Blob(value) => query.bind(value),
            };
        }
        query
    }};
}
pub(crate) use bound;

impl Tx for SqliteTx<'_> {
    async fn execute(&mut self, sql: impl Into<Sql> + Send, args: &[Value<'_>]) -> Result<u64> {
        let done = bound!(sql, args).execute(&mut *self.inner).await.map_err(|error| sort(&self.store, error))?;
        Ok(done.rows_affected())
    }

    async fn rows(&mut self, sql: impl Into<Sql> + Send, args: &[Value<'_>]) -> Result<Vec<Row>> {
        let rows = bound!(sql, args).fetch_all(&mut *self.inner).await.map_err(|error| sort(&self.store, error))?;
        rows.iter().map(|row| read_row(row, &self.store)).collect()
    }

    async fn script(&mut self, sql: &'static str) -> Result<()> {
        self.inner.execute(sqlx::raw_sql(sql)).await.map_err(|error| sort(&self.store, error))?;
        Ok(())
    }

    async fn commit(self) -> Result<()> {
        self.inner.commit().await.map_err(|error| sort(&self.store, error))
    }

    fn dialect(&self) -> Dialect {
        Dialect::Sqlite
    }

    fn store(&self) -> &str {
        &self.store
    }

    fn local_now(&self) -> Option<Now> {
        Some(self.clock.now())
    }
}

fn read_row(row: &SqliteRow, store: &Arc<str>) -> Result<Row> {
    let read = |at: usize| -> Result<Cell, sqlx::Error> {
        let raw = row.try_get_raw(at)?;
        if raw.is_null() {
            return Ok(Cell::Null);
        }
        let kind = raw.type_info().name().to_owned();
        match kind.as_str() {
            "TEXT" => <String as Decode<'_, Sqlite>>::decode(raw).map(Cell::Text),
            "BLOB" => <Vec<u8> as Decode<'_, Sqlite>>::decode(raw).map(Cell::Blob),
            _ => <i64 as Decode<'_, Sqlite>>::decode(raw).map(Cell::Int),
        }
        .map_err(sqlx::Error::Decode)
    };
    let cells: Result<Vec<Cell>, sqlx::Error> = (0..row.len()).map(read).collect();
    Ok(Row { cells: cells.map_err(|error| sort(store, error))?, store: store.clone() })
}

/// Sorts a driver's error by fault. Codes: <https://www.sqlite.org/rescode.html>.
fn sort(store: &Arc<str>, error: sqlx::Error) -> Error {
    let store = store.to_string();
    let message = error.to_string();
    if let sqlx::Error::Database(database) = &error {
        let code = database.code().and_then(|code| i32::from_str(&code).ok()).unwrap_or(1);
        let message = format!("{} (SQLite code {code})", database.message());
        const IOERR_CORRUPTFS: i32 = 10 | (33 << 8);
        return match (code, code & 0xff) {
            (IOERR_CORRUPTFS, _) | (_, 11 | 26) => Error::Corrupted { store, message },
            (_, 5 | 6) => Error::Busy { store, message },
            (_, 13) => Error::Full { store, message },
            (_, 3 | 8 | 14 | 23) => Error::Denied { store, message },
            (_, 7 | 10) => Error::Unavailable { store, message },
            (_, 18) => Error::Invalid { field: "value", message },
            _ => Error::Internal { store, message },
        };
    }
    match error {
        sqlx::Error::PoolTimedOut => Error::Busy { store, message: "the writer was busy for a minute".to_owned() },
        sqlx::Error::PoolClosed => Error::Denied { store, message: "it was closed".to_owned() },
        sqlx::Error::Io(_) | sqlx::Error::WorkerCrashed => Error::Unavailable { store, message },
        sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } => Error::Corrupted { store, message },
        _ => Error::Internal { store, message },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What durability rests on, asked of the connection that writes.
    #[tokio::test]
    async fn the_writer_syncs_its_log_at_every_commit() {
        let files = tempfile::tempdir().unwrap();
        let backend = SqliteBackend::open(SqliteOptions::file(files.path().join("runs.sqlite"))).await.unwrap();
        let mut tx = backend.begin_write().await.unwrap();
        let rows = tx.rows("SELECT journal_mode, synchronous FROM pragma_journal_mode, pragma_synchronous", &[]).await;
        let row = rows.unwrap().remove(0);
        assert_eq!((row.text(0).unwrap(), row.int(1).unwrap()), ("wal", 2));
    }

    #[tokio::test]
    async fn a_store_in_memory_has_no_size() {
        let options = SqliteOptions { max_bytes: Some(1 << 20), ..SqliteOptions::memory() };
        assert!(matches!(open_sqlite(options).await, Err(Error::Invalid { field: "max_bytes", .. })));
    }
}
