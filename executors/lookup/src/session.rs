//! One slot: a group of items goes out as set queries, and the rows come back to their items.

use std::ops::DerefMut as _;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, UInt32Array};
use arrow::compute::{filter_record_batch, take};
use async_trait::async_trait;
use futures::TryStreamExt as _;
use rowmill_step::{
    BatchReply, Failure, FailureCode, ItemBatch, Reservation, Sent, StepContext, StepSession, StepShape, Usage,
};
use sqlx::{AssertSqlSafe, Column as _, Executor as _, SqlSafeStr as _, Statement as _, TypeInfo as _};

use crate::bind::{Binding, Values, bind_arrays, bind_one};
use crate::database::Database;
use crate::decode::{Cells, Column, Kind, column};
use crate::failures::failure;
use crate::options::{LookupOptions, Matches, OnMissing};
use crate::query::{Dialect, Query, Selected};

/// SQLite's parser takes at most 500 parts of a union, and 32,766 parameters.
const SQLITE_MOST: (usize, usize) = (400, 32_000);
/// MySQL and MariaDB take 65,535 parameters; longer unions than this cost more to plan than they save.
const MYSQL_MOST: (usize, usize) = (500, 65_000);
/// Rows are counted against the step's memory in steps of so many.
const ROWS_PER_RESERVATION: usize = 1024;
/// What a row costs besides its values, about.
const ROW_BYTES: usize = 160;

/// One slot.
pub(crate) struct LookupSession {
    options: Arc<LookupOptions>,
    query: Arc<Query>,
    database: Arc<Database>,
    bindings: Vec<Binding>,
    columns: Vec<Column>,
    selected: Vec<Selected>,
    context: StepContext,
    shape: StepShape,
    /// The set query of the usual size.
    kept: Option<(usize, Arc<str>)>,
}

/// Asks the database for the query's columns. The second part says which of them the database turns into text.
pub(crate) async fn describe(
    database: &Database,
    query: &Query,
    bindings: &[Binding],
    options: &LookupOptions,
    context: &StepContext,
) -> Result<Vec<(Column, bool)>, Failure> {
    let casts: Vec<String> = bindings.iter().map(|binding| binding.cast.clone()).collect();
    let sql = AssertSqlSafe(query.single(&casts, database.dialect())).into_sql_str();
    let error = |error: sqlx::Error| failure(context, &error).sent(Sent::Never);
    macro_rules! columns {
        ($pool:expr) => {{
            let mut connection = $pool.acquire().await.map_err(error)?;
            let statement = (&mut *connection).prepare(sql).await.map_err(error)?;
            let columns = statement.columns().iter();
            columns.map(|c| (c.name().to_owned(), c.type_info().name().to_owned())).collect::<Vec<_>>()
        }};
    }
    let described: Vec<(String, String)> = match database {
        Database::Postgres(pool) => columns!(pool),
        Database::MySql(pool) => columns!(pool),
        Database::Sqlite(pool) => columns!(pool),
    };
    let wrong = |message: String| context.failure(FailureCode::Setup, message).sent(Sent::Never);
    if described.is_empty() {
        return Err(wrong("the query gives no columns".to_owned()));
    }
    for (name, _) in &options.types {
        if !described.iter().any(|(known, _)| known == name) {
            let known: Vec<_> = described.iter().map(|(name, _)| name.as_str()).collect();
            return Err(wrong(format!(
                "`types` names column `{name}`, which the query does not give: {}",
                known.join(", ")
            )));
        }
    }
    let mut columns = Vec::with_capacity(described.len());
    for (index, (name, type_name)) in described.iter().enumerate() {
        if described[..index].iter().any(|(other, _)| other == name) {
            return Err(wrong(format!("the query gives two columns `{name}`; name one of them with AS")));
        }
        let wanted = options.types.iter().find(|(known, _)| known == name).map(|(_, data_type)| data_type.clone());
        let kind = match database.dialect() {
            Dialect::Postgres => Kind::of_postgres(type_name),
            Dialect::MySql => Kind::of_mysql(type_name),
            Dialect::Sqlite => Kind::of_sqlite(type_name).or_else(|| wanted.as_ref().map(Kind::for_type)),
        };
        if let Some(wanted) = &wanted
            && !arrow::compute::can_cast_types(&kind.unwrap_or(Kind::Text).data_type(), wanted)
        {
            return Err(wrong(format!("column `{name}` is a {type_name} and cannot become a {wanted}")));
        }
        let as_text = kind.is_none();
        let kind = kind.unwrap_or(Kind::Text);
        let data_type = wanted.unwrap_or_else(|| kind.data_type());
        columns.push((Column { name: name.clone(), kind, data_type }, as_text));
    }
    Ok(columns)
}

impl LookupSession {
    pub(crate) fn new(
        options: Arc<LookupOptions>,
        query: Arc<Query>,
        database: Arc<Database>,
        bindings: Vec<Binding>,
        columns: Vec<(Column, bool)>,
        context: StepContext,
        shape: StepShape,
    ) -> Self {
        let selected =
            columns.iter().map(|(column, as_text)| Selected { name: column.name.clone(), as_text: *as_text }).collect();
        let columns = columns.into_iter().map(|(column, _)| column).collect();
        Self { options, query, database, bindings, columns, selected, context, shape, kept: None }
    }

    /// The set query for so many items; the text for the usual size is made once.
    fn sql(&mut self, items: usize) -> Arc<str> {
        if let Some((size, sql)) = &self.kept
            && (*size == items || self.database.dialect() == Dialect::Postgres)
        {
            return sql.clone();
        }
        let sql: Arc<str> = match self.database.dialect() {
            Dialect::Postgres => {
                let arrays: Vec<_> = self.bindings.iter().map(|binding| binding.array).collect();
                let casts: Vec<_> = self.bindings.iter().map(|binding| binding.cast.clone()).collect();
                self.query.lateral(&arrays, &casts, &self.selected).into()
            }
            dialect => self.query.union(items, &self.selected, dialect).into(),
        };
        self.kept = Some((items, sql.clone()));
        sql
    }

    /// Items of one set query at most.
    fn most(&self) -> usize {
        let places = self.query.places().count().max(1);
        match self.database.dialect() {
            Dialect::Postgres => usize::MAX,
            Dialect::Sqlite => SQLITE_MOST.0.min(SQLITE_MOST.1 / places).max(1),
            Dialect::MySql => MYSQL_MOST.0.min(MYSQL_MOST.1 / places).max(1),
        }
    }

    /// Sends the items, reads the rows, and gives each row to its item.
    async fn ask(&mut self, values: &[Values], items: usize, usage: &mut Usage) -> Result<Found, Failure> {
        let mut memory = Reservation::new(self.context.memory.clone());
        let context = self.context.clone();
        let error = |error: sqlx::Error| failure(&context, &error);
        let mut found = Found::default();
        let most = self.most();
        macro_rules! rows {
            ($connection:ident, $query:expr) => {{
                let mut rows = Vec::new();
                let mut stream = $query.fetch(&mut **$connection.deref_mut());
                let failed = loop {
                    match stream.try_next().await {
                        Ok(Some(row)) => {
                            if rows.len() % ROWS_PER_RESERVATION == 0 {
                                memory.grow(ROWS_PER_RESERVATION * (ROW_BYTES + 32 * self.columns.len()))?;
                            }
                            rows.push(row);
                        }
                        Ok(None) => break None,
                        Err(error) => break Some(error),
                    }
                };
                drop(stream);
                if let Some(failed) = failed {
                    // The database refused the query in words, so the connection is as good as before: groups that are
                    // cut in two to find a bad item would open one for each try.
                    $connection.done |= matches!(failed, sqlx::Error::Database(_));
                    return Err(error(failed));
                }
                rows
            }};
        }
        macro_rules! unions {
            ($pool:expr) => {{
                let mut connection = Guarded::new($pool.acquire().await.map_err(error)?);
                for first in (0..items).step_by(most) {
                    let size = most.min(items - first);
                    let sql = self.sql(size);
                    // Only statements of the full size are worth keeping prepared.
                    let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(size == most);
                    for item in first..first + size {
                        for place in self.query.places() {
                            query = bind_one!(query, &values[place], item);
                        }
                    }
                    usage.calls += 1;
                    let rows = rows!(connection, query);
                    found.add(&rows, first, size, self)?;
                }
                connection.done();
            }};
        }
        let database = self.database.clone();
        match &*database {
            Database::Postgres(pool) => {
                let arguments = bind_arrays(values).map_err(|error| {
                    self.context.failure(FailureCode::BadInput, error.to_string()).sent(Sent::Never)
                })?;
                let sql = self.sql(items);
                usage.calls += 1;
                let mut connection = Guarded::new(pool.acquire().await.map_err(error)?);
                let rows = rows!(connection, sqlx::query_with(AssertSqlSafe(sql), arguments));
                connection.done();
                found.add(&rows, 0, items, self)?;
            }
            Database::MySql(pool) => unions!(pool),
            Database::Sqlite(pool) => unions!(pool),
        }
        Ok(found)
    }

    fn reply(
        &self,
        found: Found,
        items: usize,
        unfit: &[u32],
        sent: &[u32],
        usage: Usage,
    ) -> Result<BatchReply, Failure> {
        let internal = |error: arrow::error::ArrowError| {
            self.context.failure(FailureCode::Internal, error.to_string()).sent(Sent::Answered)
        };
        let mut failures: Vec<(u32, Failure)> = unfit
            .iter()
            .map(|row| {
                let text = "a value cannot be sent to the database: out of range, or a NUL in a text";
                (*row, Failure::fixed(FailureCode::BadInput, text).sent(Sent::Never))
            })
            .collect();
        let bad = |text: &str| self.context.failure(FailureCode::Decode, text).sent(Sent::Answered);
        failures.extend(found.failed.iter().map(|(item, text)| (sent[*item as usize], bad(text))));
        let missing =
            Failure::fixed(FailureCode::NotFound, "the query gives no row for this item").sent(Sent::Answered);
        let several =
            Failure::fixed(FailureCode::Decode, "the query gives several rows for this item").sent(Sent::Answered);
        failures.extend(found.missing.iter().map(|item| (sent[*item as usize], missing.clone())));
        failures.extend(found.several.iter().map(|item| (sent[*item as usize], several.clone())));
        failures.sort_by_key(|(row, _)| *row);
        let output = match found.batches.len() {
            0 => RecordBatch::new_empty(self.shape.output.clone()),
            1 => found.batches[0].clone(),
            _ => arrow::compute::concat_batches(&self.shape.output, &found.batches).map_err(internal)?,
        };
        let sources: Vec<u32> = found.sources.iter().map(|item| sent[*item as usize]).collect();
        let skipped: Vec<u32> = found.skipped.iter().map(|item| sent[*item as usize]).collect();
        debug_assert!(sources.last().is_none_or(|last| (*last as usize) < items));
        let source_rows = (self.options.matches == Matches::All).then_some(sources);
        Ok(BatchReply { output, source_rows, skipped, failures, usage })
    }
}

/// A connection that is closed, not reused, if the work with it is dropped in the middle: what it still does must not
/// keep the next query waiting.
struct Guarded<DB: sqlx::Database> {
    connection: sqlx::pool::PoolConnection<DB>,
    done: bool,
}

impl<DB: sqlx::Database> Guarded<DB> {
    fn new(connection: sqlx::pool::PoolConnection<DB>) -> Self {
        Self { connection, done: false }
    }

    fn done(mut self) {
        self.done = true;
    }
}

impl<DB: sqlx::Database> std::ops::Deref for Guarded<DB> {
    type Target = sqlx::pool::PoolConnection<DB>;

    fn deref(&self) -> &Self::Target {
        &self.connection
    }
}

impl<DB: sqlx::Database> std::ops::DerefMut for Guarded<DB> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.connection
    }
}

impl<DB: sqlx::Database> Drop for Guarded<DB> {
    fn drop(&mut self) {
        if !self.done {
            self.connection.close_on_drop();
        }
    }
}

/// Rows that came back, given to the items that were sent.
#[derive(Default)]
struct Found {
    batches: Vec<RecordBatch>,
    /// For each row of the batches, its item.
    sources: Vec<u32>,
    skipped: Vec<u32>,
    missing: Vec<u32>,
    several: Vec<u32>,
    failed: Vec<(u32, String)>,
}

impl Found {
    /// Adds the rows of one query, which was for `size` items from `first` on.
    fn add<R: Cells>(&mut self, rows: &[R], first: usize, size: usize, session: &LookupSession) -> Result<(), Failure> {
        let context = &session.context;
        let broken = |text: String| context.failure(FailureCode::Decode, text).sent(Sent::Answered);
        let mut order: Vec<(usize, usize)> = Vec::with_capacity(rows.len());
        for (index, row) in rows.iter().enumerate() {
            let ordinal = row.ordinal().map_err(|error| broken(error.to_string()))?;
            let ordinal = usize::try_from(ordinal).ok().filter(|ordinal| *ordinal < size);
            order.push((ordinal.ok_or_else(|| broken("a row belongs to no item".to_owned()))?, index));
        }
        // Rows of one item keep the order in which they came, which is that of the query's ORDER BY.
        order.sort_by_key(|(ordinal, _)| *ordinal);
        let mut places: Vec<Option<usize>> = Vec::with_capacity(order.len().max(size));
        let mut owners: Vec<u32> = Vec::with_capacity(order.len().max(size));
        let mut at = 0;
        for item in 0..size {
            let start = at;
            while at < order.len() && order[at].0 == item {
                at += 1;
            }
            let owner = (first + item) as u32;
            match (at - start, session.options.on_missing, session.options.matches) {
                (0, OnMissing::Null, _) => {
                    places.push(None);
                    owners.push(owner);
                }
                (0, OnMissing::Skip, _) => self.skipped.push(owner),
                (0, OnMissing::Fail, _) => self.missing.push(owner),
                (2.., _, Matches::One) => self.several.push(owner),
                (_, _, Matches::First | Matches::One) => {
                    places.push(Some(order[start].1));
                    owners.push(owner);
                }
                (count, _, Matches::All) => {
                    places.extend(order[start..at].iter().map(|(_, index)| Some(*index)));
                    owners.extend(std::iter::repeat_n(owner, count));
                }
            }
        }
        let mut faults = Vec::new();
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(session.columns.len());
        let internal = |error: arrow::error::ArrowError| context.failure(FailureCode::Internal, error.to_string());
        for (index, spec) in session.columns.iter().enumerate() {
            columns.push(column(rows, &places, index, spec, &mut faults).map_err(internal)?);
        }
        let mut batch = RecordBatch::try_new(session.shape.output.clone(), columns).map_err(internal)?;
        if !faults.is_empty() {
            // An item with one bad row fails whole.
            faults.sort_by_key(|(position, _)| *position);
            let mut failed: Vec<(u32, String)> =
                faults.into_iter().map(|(position, text)| (owners[position], text)).collect();
            failed.dedup_by_key(|(owner, _)| *owner);
            let is_bad = |owner: &u32| failed.binary_search_by_key(owner, |(owner, _)| *owner).is_ok();
            let keep: BooleanArray = owners.iter().map(|owner| Some(!is_bad(owner))).collect();
            batch = filter_record_batch(&batch, &keep).map_err(internal)?;
            owners.retain(|owner| !is_bad(owner));
            self.failed.extend(failed);
        }
        self.batches.push(batch);
        self.sources.extend(owners);
        Ok(())
    }
}

#[async_trait]
impl StepSession for LookupSession {
    async fn execute(&mut self, batch: ItemBatch) -> Result<BatchReply, Failure> {
        let items = batch.rows();
        let mut usage = Usage::default();
        let dialect = self.database.dialect();
        let broken = |error: arrow::error::ArrowError| {
            Failure::new(FailureCode::Internal, error.to_string(), &self.context.redactor).sent(Sent::Never)
        };
        let mut values = Vec::with_capacity(self.bindings.len());
        let mut unfit: Vec<u32> = Vec::new();
        for (binding, array) in self.bindings.iter().zip(batch.columns.columns()) {
            let (bound, bad) = binding.values(array, dialect).map_err(broken)?;
            values.push(bound);
            unfit.extend(bad);
        }
        unfit.sort_unstable();
        unfit.dedup();
        let sent: Vec<u32> = (0..items as u32).filter(|row| unfit.binary_search(row).is_err()).collect();
        if !unfit.is_empty() {
            // Send only what can be sent.
            let indices = UInt32Array::from(sent.clone());
            values.clear();
            for (binding, array) in self.bindings.iter().zip(batch.columns.columns()) {
                let kept = take(array, &indices, None).map_err(broken)?;
                values.push(binding.values(&kept, dialect).map_err(broken)?.0);
            }
        }
        if sent.is_empty() {
            return self.reply(Found::default(), items, &unfit, &sent, usage);
        }
        let context = self.context.clone();
        let clock = async {
            match batch.deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending::<()>().await,
            }
        };
        let found = tokio::select! {
            biased;
            found = self.ask(&values, sent.len(), &mut usage) => found?,
            () = batch.cancel.cancelled() => {
                return Err(Failure::fixed(FailureCode::Cancelled, "cancelled while the query ran"));
            }
            () = clock => return Err(context.failure(FailureCode::Timeout, "no answer before the deadline")),
        };
        self.reply(found, items, &unfit, &sent, usage)
    }
}
