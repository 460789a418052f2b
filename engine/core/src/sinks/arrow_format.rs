//! Arrow IPC files with the compression that a sink asks for; DataFusion's own writer knows LZ4 only.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::ipc::writer::{FileWriter, IpcWriteOptions};
use arrow::ipc::{CompressionType, MetadataVersion};
use async_trait::async_trait;
use datafusion::catalog::Session;
use datafusion::common::runtime::SpawnedTask;
use datafusion::common::{DataFusionError, GetExt, Result, Statistics};
use datafusion::datasource::file_format::arrow::ArrowFormat;
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use datafusion::datasource::file_format::write::demux::DemuxedStreamReceiver;
use datafusion::datasource::file_format::write::{ObjectWriterBuilder, get_writer_schema};
use datafusion::datasource::file_format::{FileFormat, FileFormatFactory};
use datafusion::datasource::physical_plan::{FileScanConfig, FileSink, FileSinkConfig, FileSource};
use datafusion::datasource::sink::{DataSink, DataSinkExec};
use datafusion::datasource::table_schema::TableSchema;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::LexRequirement;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan};
use futures::future::{BoxFuture, FutureExt as _};
use object_store::path::Path as ObjectPath;
use object_store::{ObjectMeta, ObjectStore};
use rowmill_spec::Compression;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc::Receiver;

/// Bytes that are encoded before they go to the store.
const FLUSH_BYTES: usize = 1 << 20;

/// Makes writers of Arrow files.
#[derive(Debug, Clone, Copy)]
pub(super) struct IpcFormatFactory {
    compression: Option<CompressionType>,
}

impl IpcFormatFactory {
    /// `None` and those that Arrow IPC does not know write plain buffers.
    pub(super) fn new(compression: Compression) -> Self {
        let compression = match compression {
            Compression::Lz4 => Some(CompressionType::LZ4_FRAME),
            Compression::Zstd => Some(CompressionType::ZSTD),
            _ => None,
        };
        IpcFormatFactory { compression }
    }
}

impl GetExt for IpcFormatFactory {
    fn get_ext(&self) -> String {
        "arrow".to_owned()
    }
}

impl FileFormatFactory for IpcFormatFactory {
    fn create(&self, _state: &dyn Session, _options: &HashMap<String, String>) -> Result<Arc<dyn FileFormat>> {
        Ok(FileFormatFactory::default(self))
    }

    fn default(&self) -> Arc<dyn FileFormat> {
        Arc::new(IpcFormat { reader: ArrowFormat, compression: self.compression })
    }
}

/// Reads as DataFusion does, and writes with a compression.
#[derive(Debug)]
struct IpcFormat {
    reader: ArrowFormat,
    compression: Option<CompressionType>,
}

#[async_trait]
impl FileFormat for IpcFormat {
    fn get_ext(&self) -> String {
        self.reader.get_ext()
    }

    fn get_ext_with_compression(&self, compression: &FileCompressionType) -> Result<String> {
        self.reader.get_ext_with_compression(compression)
    }

    fn compression_type(&self) -> Option<FileCompressionType> {
        None
    }

    async fn infer_schema(
        &self,
        state: &dyn Session,
        store: &Arc<dyn ObjectStore>,
        objects: &[ObjectMeta],
    ) -> Result<SchemaRef> {
        self.reader.infer_schema(state, store, objects).await
    }

    async fn infer_stats(
        &self,
        state: &dyn Session,
        store: &Arc<dyn ObjectStore>,
        table_schema: SchemaRef,
        object: &ObjectMeta,
    ) -> Result<Statistics> {
        self.reader.infer_stats(state, store, table_schema, object).await
    }

    async fn create_physical_plan(&self, state: &dyn Session, scan: FileScanConfig) -> Result<Arc<dyn ExecutionPlan>> {
        self.reader.create_physical_plan(state, scan).await
    }

    async fn create_writer_physical_plan(
        &self,
        input: Arc<dyn ExecutionPlan>,
        _state: &dyn Session,
        config: FileSinkConfig,
        order: Option<LexRequirement>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let sink = Arc::new(IpcSink { config, compression: self.compression });
        Ok(Arc::new(DataSinkExec::new(input, sink, order)))
    }

    fn file_source(&self, table_schema: TableSchema) -> Arc<dyn FileSource> {
        self.reader.file_source(table_schema)
    }
}

/// Writes each file that the demultiplexer opens.
#[derive(Debug)]
struct IpcSink {
    config: FileSinkConfig,
    compression: Option<CompressionType>,
}

impl DisplayAs for IpcSink {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.compression {
            Some(compression) => write!(f, "ArrowSink(compression={compression:?})"),
            None => f.write_str("ArrowSink(compression=none)"),
        }
    }
}

#[async_trait]
impl FileSink for IpcSink {
    fn config(&self) -> &FileSinkConfig {
        &self.config
    }

    async fn spawn_writer_tasks_and_join(
        &self,
        context: &Arc<TaskContext>,
        demux_task: SpawnedTask<Result<()>>,
        mut files: DemuxedStreamReceiver,
        object_store: Arc<dyn ObjectStore>,
    ) -> Result<u64> {
        let options =
            IpcWriteOptions::try_new(64, false, MetadataVersion::V5)?.try_with_compression(self.compression)?;
        let schema = get_writer_schema(&self.config);
        let buffer_bytes = context.session_config().options().execution.objectstore_writer_buffer_size;
        let mut tasks = tokio::task::JoinSet::new();
        while let Some((path, batches)) = files.recv().await {
            let store = Arc::clone(&object_store);
            tasks.spawn(write_file(path, batches, store, Arc::clone(&schema), options.clone(), buffer_bytes));
        }
        let mut rows = 0;
        while let Some(written) = tasks.join_next().await {
            rows += written.map_err(|error| DataFusionError::ExecutionJoin(Box::new(error)))??;
        }
        demux_task.join_unwind().await.map_err(|error| DataFusionError::ExecutionJoin(Box::new(error)))??;
        Ok(rows)
    }
}

/// Writes one file and gives its rows.
fn write_file(
    path: ObjectPath,
    mut batches: Receiver<RecordBatch>,
    store: Arc<dyn ObjectStore>,
    schema: SchemaRef,
    options: IpcWriteOptions,
    buffer_bytes: usize,
) -> BoxFuture<'static, Result<u64>> {
    async move {
        let mut encoder = FileWriter::try_new_with_options(Vec::with_capacity(FLUSH_BYTES), &schema, options)?;
        let mut file = ObjectWriterBuilder::new(FileCompressionType::UNCOMPRESSED, &path, store)
            .with_buffer_size(Some(buffer_bytes))
            .build()?;
        let mut rows = 0;
        while let Some(batch) = batches.recv().await {
            rows += batch.num_rows() as u64;
            encoder.write(&batch)?;
            let encoded = encoder.get_mut();
            if encoded.len() >= FLUSH_BYTES {
                file.write_all(encoded).await?;
                encoded.clear();
            }
        }
        encoder.finish()?;
        file.write_all(encoder.get_mut()).await?;
        file.shutdown().await?;
        Ok(rows)
    }
    .boxed()
}

#[async_trait]
impl DataSink for IpcSink {
    fn schema(&self) -> &SchemaRef {
        self.config.output_schema()
    }

    async fn write_all(&self, data: SendableRecordBatchStream, context: &Arc<TaskContext>) -> Result<u64> {
        FileSink::write_all(self, data, context).await
    }
}
