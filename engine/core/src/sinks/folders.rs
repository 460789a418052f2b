//! Sinks of folders: how many of their files are open at a time.
//!
//! DataFusion's writers open a file for each folder that they meet and close them all at the end, and an open file
//! takes a megabyte or so. Here rows go to them in rounds, and a round has so many folders at most:
//!
//! ```text
//!  rows ──▶ held, up to a share of the memory ──┬─ few folders: one round, which goes on until there are too many
//!                                               └─ many: sorted by folder, a round for every few of them
//! ```
//!
//! Each round closes its files, so that a folder may get several: their rows are in the order in which they came, by the
//! number that each round puts into the names of its files.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use ahash::AHashMap;
use arrow::array::{AsArray as _, RecordBatch, StringArray};
use arrow::compute::{cast, interleave_record_batch};
use arrow::datatypes::{DataType, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::Session;
use datafusion::common::{GetExt, Result, Statistics, internal_err};
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use datafusion::datasource::file_format::{FileFormat, FileFormatFactory};
use datafusion::datasource::physical_plan::{FileScanConfig, FileSinkConfig, FileSource};
use datafusion::datasource::sink::{DataSink, DataSinkExec};
use datafusion::datasource::table_schema::TableSchema;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryLimit, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, SessionState, TaskContext};
use datafusion::physical_expr::LexRequirement;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::metrics::MetricsSet;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan};
use futures::StreamExt as _;
use object_store::{ObjectMeta, ObjectStore};
use tokio::sync::mpsc;

use crate::plan::wide_rows::bytes_of;

/// Bytes that an open file is taken to need: what its writers encode and compress into, for some columns.
const FILE_BYTES: usize = 4 << 20;
/// Share of the memory that may be held to be sorted by folder, and the same for open files.
const SHARE: usize = 4;
/// Rows of a batch that is put together of held ones.
const ROWS: usize = 8_192;

/// Makes writers of folders over those of a format.
#[derive(Debug, Clone)]
pub(super) struct FoldersFactory {
    inner: Arc<dyn FileFormatFactory>,
}

impl FoldersFactory {
    /// Writes what `inner` writes.
    pub(super) fn new(inner: Arc<dyn FileFormatFactory>) -> Self {
        FoldersFactory { inner }
    }
}

impl GetExt for FoldersFactory {
    fn get_ext(&self) -> String {
        self.inner.get_ext()
    }
}

impl FileFormatFactory for FoldersFactory {
    fn create(&self, state: &dyn Session, options: &HashMap<String, String>) -> Result<Arc<dyn FileFormat>> {
        Ok(Arc::new(FoldersFormat { inner: self.inner.create(state, options)? }))
    }

    fn default(&self) -> Arc<dyn FileFormat> {
        Arc::new(FoldersFormat { inner: FileFormatFactory::default(self.inner.as_ref()) })
    }
}

/// A format, written folder by folder.
#[derive(Debug)]
struct FoldersFormat {
    inner: Arc<dyn FileFormat>,
}

#[async_trait]
impl FileFormat for FoldersFormat {
    fn get_ext(&self) -> String {
        self.inner.get_ext()
    }

    fn get_ext_with_compression(&self, compression: &FileCompressionType) -> Result<String> {
        self.inner.get_ext_with_compression(compression)
    }

    fn compression_type(&self) -> Option<FileCompressionType> {
        self.inner.compression_type()
    }

    async fn infer_schema(
        &self,
        state: &dyn Session,
        store: &Arc<dyn ObjectStore>,
        objects: &[ObjectMeta],
    ) -> Result<SchemaRef> {
        self.inner.infer_schema(state, store, objects).await
    }

    async fn infer_stats(
        &self,
        state: &dyn Session,
        store: &Arc<dyn ObjectStore>,
        table_schema: SchemaRef,
        object: &ObjectMeta,
    ) -> Result<Statistics> {
        self.inner.infer_stats(state, store, table_schema, object).await
    }

    async fn create_physical_plan(&self, state: &dyn Session, scan: FileScanConfig) -> Result<Arc<dyn ExecutionPlan>> {
        self.inner.create_physical_plan(state, scan).await
    }

    async fn create_writer_physical_plan(
        &self,
        input: Arc<dyn ExecutionPlan>,
        state: &dyn Session,
        config: FileSinkConfig,
        order: Option<LexRequirement>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if config.table_partition_cols.is_empty() {
            return self.inner.create_writer_physical_plan(input, state, config, order).await;
        }
        let Some(session) = state.as_any().downcast_ref::<SessionState>() else {
            return internal_err!("files are written by sessions of the engine");
        };
        let first =
            self.inner.create_writer_physical_plan(Arc::clone(&input), state, config.clone(), order.clone()).await?;
        let sink = FoldersSink { format: Arc::clone(&self.inner), session: Box::new(session.clone()), config, first };
        Ok(Arc::new(DataSinkExec::new(input, Arc::new(sink), order)))
    }

    fn file_source(&self, table_schema: TableSchema) -> Arc<dyn FileSource> {
        self.inner.file_source(table_schema)
    }
}

/// Writes rows into folders, round by round.
struct FoldersSink {
    format: Arc<dyn FileFormat>,
    session: Box<SessionState>,
    config: FileSinkConfig,
    /// The writer of the first round.
    first: Arc<dyn ExecutionPlan>,
}

impl fmt::Debug for FoldersSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FoldersSink").field("format", &self.format).finish_non_exhaustive()
    }
}

impl DisplayAs for FoldersSink {
    fn fmt_as(&self, kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first.downcast_ref::<DataSinkExec>() {
            Some(writer) => writer.sink().fmt_as(kind, f),
            None => f.write_str("FoldersSink"),
        }
    }
}

/// Rows that wait for a round.
#[derive(Default)]
struct Held {
    batches: Vec<RecordBatch>,
    /// The folder of each row of each batch.
    folders: Vec<Vec<u32>>,
    known: AHashMap<String, u32>,
}

impl Held {
    fn add(&mut self, batch: RecordBatch, names: &[StringArray]) {
        let folders = (0..batch.num_rows()).map(|row| {
            let name = folder_name(names, row);
            match self.known.get(name.as_ref()) {
                Some(known) => *known,
                None => {
                    let number = self.known.len() as u32;
                    self.known.insert(name.into_owned(), number);
                    number
                }
            }
        });
        let folders = folders.collect();
        self.folders.push(folders);
        self.batches.push(batch);
    }

    /// The rows of each folder, in the order in which they came.
    fn by_folder(&self) -> Vec<Vec<(usize, usize)>> {
        let mut rows = vec![Vec::new(); self.known.len()];
        for (at, folders) in self.folders.iter().enumerate() {
            for (row, folder) in folders.iter().enumerate() {
                if let Some(rows) = rows.get_mut(*folder as usize) {
                    rows.push((at, row));
                }
            }
        }
        rows
    }
}

/// The values of a row that name its folder, as one text. Two folders of one text would share a round, no more.
fn folder_name(names: &[StringArray], row: usize) -> std::borrow::Cow<'_, str> {
    match names {
        [one] => one.value(row).into(),
        many => many.iter().map(|name| name.value(row)).collect::<Vec<_>>().join("/").into(),
    }
}

impl FoldersSink {
    /// The columns that name folders.
    fn names(&self, batch: &RecordBatch) -> Result<Vec<StringArray>> {
        let columns = self.config.table_partition_cols.iter().map(|(name, _)| {
            let Some(column) = batch.column_by_name(name) else { return internal_err!("column {name} is not there") };
            Ok(cast(column, &DataType::Utf8)?.as_string::<i32>().clone())
        });
        columns.collect()
    }

    /// A writer of a round of its own, whose files come after those of the rounds before.
    async fn writer(&self, round: usize) -> Result<Arc<dyn ExecutionPlan>> {
        if round == 0 {
            return Ok(Arc::clone(&self.first));
        }
        let mut config = self.config.clone();
        config.file_extension = format!("{round:06}.{}", config.file_extension);
        let nothing = Arc::new(EmptyExec::new(Arc::clone(self.config.output_schema())));
        self.format.create_writer_physical_plan(nothing, self.session.as_ref(), config, None).await
    }

    /// Runs `feed`, whose batches a round of its own writes; gives the rows written, and what `feed` leaves.
    async fn round<T, F>(
        &self,
        round: &mut usize,
        context: &Arc<TaskContext>,
        feed: impl FnOnce(mpsc::Sender<Result<RecordBatch>>) -> F,
    ) -> Result<(u64, T)>
    where
        F: Future<Output = Result<T>>,
    {
        let writer = self.writer(*round).await?;
        *round += 1;
        let Some(writer) = writer.downcast_ref::<DataSinkExec>() else {
            return internal_err!("a format writes by a sink");
        };
        let (sender, receiver) = mpsc::channel(2);
        let batches = futures::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|batch| (batch, receiver))
        });
        let schema = Arc::clone(self.config.output_schema());
        let written = writer.sink().write_all(Box::pin(RecordBatchStreamAdapter::new(schema, batches)), context);
        futures::try_join!(written, feed(sender))
    }

    /// Writes what is held, and what follows it, for as long as there are few folders. Gives the batch with which there
    /// were too many.
    async fn few(
        &self,
        held: Held,
        input: &mut SendableRecordBatchStream,
        most: usize,
        sender: mpsc::Sender<Result<RecordBatch>>,
    ) -> Result<Option<RecordBatch>> {
        let Held { batches, mut known, .. } = held;
        for batch in batches {
            if sender.send(Ok(batch)).await.is_err() {
                return Ok(None); // the writer failed, and says why
            }
        }
        while let Some(batch) = input.next().await.transpose()? {
            let names = self.names(&batch)?;
            for row in 0..batch.num_rows() {
                let name = folder_name(&names, row);
                if !known.contains_key(name.as_ref()) {
                    known.insert(name.into_owned(), 0);
                }
            }
            if known.len() > most {
                return Ok(Some(batch));
            }
            if sender.send(Ok(batch)).await.is_err() {
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// Writes what is held, some folders at a time.
    async fn many(&self, held: Held, most: usize, round: &mut usize, context: &Arc<TaskContext>) -> Result<u64> {
        let rows = held.by_folder();
        let batches: Vec<&RecordBatch> = held.batches.iter().collect();
        let mut written = 0;
        let batches = batches.as_slice();
        for some in rows.chunks(most) {
            let feed = |sender: mpsc::Sender<Result<RecordBatch>>| async move {
                for rows in some.concat().chunks(ROWS) {
                    if sender.send(Ok(interleave_record_batch(batches, rows)?)).await.is_err() {
                        break; // the writer failed, and says why
                    }
                }
                Ok(())
            };
            written += self.round(round, context, feed).await?.0;
        }
        Ok(written)
    }
}

#[async_trait]
impl DataSink for FoldersSink {
    fn metrics(&self) -> Option<MetricsSet> {
        None
    }

    fn schema(&self) -> &SchemaRef {
        self.config.output_schema()
    }

    async fn write_all(&self, mut input: SendableRecordBatchStream, context: &Arc<TaskContext>) -> Result<u64> {
        let pool = match context.memory_pool().memory_limit() {
            MemoryLimit::Finite(bytes) => bytes,
            MemoryLimit::Infinite | MemoryLimit::Unknown => usize::MAX,
        };
        let most_bytes = (pool / SHARE).clamp(4 << 20, 1 << 30);
        let most_folders = (pool / SHARE / FILE_BYTES).clamp(4, 256);
        let reservation = MemoryConsumer::new("FoldersSink").with_can_spill(true).register(context.memory_pool());
        let (mut written, mut round, mut next, mut ended) = (0, 0, None, false);
        while !ended {
            let mut held = Held::default();
            while reservation.size() < most_bytes {
                let batch = match next.take() {
                    Some(batch) => batch,
                    None => match input.next().await.transpose()? {
                        Some(batch) => batch,
                        None => {
                            ended = true;
                            break;
                        }
                    },
                };
                let bytes = bytes_of(&batch);
                let names = self.names(&batch)?;
                held.add(batch, &names);
                if !has_room(&reservation, bytes) {
                    break;
                }
            }
            if held.batches.is_empty() {
                break;
            }
            if held.known.len() <= most_folders {
                reservation.free();
                let feed = |sender| self.few(held, &mut input, most_folders, sender);
                let (rows, rest) = self.round(&mut round, context, feed).await?;
                written += rows;
                ended |= rest.is_none();
                next = rest;
            } else {
                written += self.many(held, most_folders, &mut round, context).await?;
            }
            reservation.free();
        }
        Ok(written)
    }
}

/// Takes memory for what is held already; `false` where that is all there is.
fn has_room(reservation: &MemoryReservation, bytes: usize) -> bool {
    reservation.try_grow(bytes).is_ok()
}
