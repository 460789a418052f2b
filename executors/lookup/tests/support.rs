//! A table of planes, in any database, and a way to run a lookup over items.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray};
use rowmill_step::conformance::{Driven, Options, drive};
use rowmill_step::{Failure, StaticConnections, StepContext, StepExecutor as _};
use rowmill_step_lookup::{LookupOptions, LookupStep};
use serde_json::{Value, json};

/// What every database is filled with, in words that all of them know.
pub(crate) const SCHEMA: [&str; 4] = [
    "create table planes (tailnum varchar(20), name varchar(40), seats integer, weight double precision)",
    "insert into planes values ('N1', 'one', 10, 1.5), ('N2', 'two', 20, 2.5), ('N2', 'two again', 21, null), \
     ('N3', null, null, 3.5), (null, 'nameless', 0, 0.0), ('O''Hare', 'quoted', 5, 5.0)",
    "create table numbers (n integer primary key, doubled integer)",
    "create index planes_tailnum on planes (tailnum)",
];

/// A database under test.
pub(crate) trait Place: Send + Sync {
    /// The settings of the connection.
    fn settings(&self) -> Value;
    /// Runs statements.
    fn run(&self, sql: &str);
    /// Lookups run as set queries of at most so many items.
    fn most(&self) -> usize;
}

pub(crate) fn context(settings: Value) -> StepContext {
    let mut context = StepContext::new("run-1", "planes", "tenant");
    context.connections = Arc::new(StaticConnections::default().with("db", settings));
    context
}

pub(crate) fn keys(values: &[Option<&str>]) -> RecordBatch {
    let column: ArrayRef = Arc::new(StringArray::from(values.to_vec()));
    RecordBatch::try_from_iter_with_nullable([("tailnum", column, true)]).unwrap()
}

pub(crate) async fn run(options: LookupOptions, context: &StepContext, input: RecordBatch) -> Driven {
    try_run(options, context, input).await.unwrap()
}

pub(crate) async fn try_run(
    options: LookupOptions,
    context: &StepContext,
    input: RecordBatch,
) -> Result<Driven, Failure> {
    let step = LookupStep::try_new(options).unwrap();
    let reads: Vec<usize> = step.describe().reads.iter().map(|name| input.schema().index_of(name).unwrap()).collect();
    let input = input.project(&reads).unwrap();
    drive(&step, context, &input.schema(), vec![input], &Options::default()).await
}

pub(crate) fn texts(driven: &Driven, column: usize) -> Vec<Option<String>> {
    driven.output.column(column).as_string::<i32>().iter().map(|text| text.map(str::to_owned)).collect()
}

/// SQLite in a file.
pub(crate) struct Sqlite {
    pub(crate) directory: tempfile::TempDir,
}

impl Sqlite {
    pub(crate) fn new() -> Self {
        let place = Self { directory: tempfile::tempdir().unwrap() };
        SCHEMA.iter().for_each(|sql| place.run(sql));
        place
    }

    pub(crate) fn path(&self) -> String {
        self.directory.path().join("db.sqlite").to_string_lossy().into_owned()
    }
}

impl Place for Sqlite {
    fn settings(&self) -> Value {
        json!({"url": format!("sqlite://{}", self.path())})
    }

    fn run(&self, sql: &str) {
        use sqlx::Connection as _;
        let path = self.path();
        let sql = sql.to_owned();
        // A thread of its own: the caller may be inside a runtime.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path).create_if_missing(true);
                let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
                sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
                connection.close().await.unwrap();
            });
        })
        .join()
        .unwrap();
    }

    fn most(&self) -> usize {
        400
    }
}
