//! The reader of files: whole ones, and ranges of lines.

use std::io::BufReader;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::json::ReaderBuilder;
use arrow::json::reader::Decoder as ArrowDecoder;
use datafusion::common::tree_node::{Transformed, TreeNode as _, TreeNodeRecursion};
use datafusion::common::{DataFusionError, Result, exec_datafusion_err};
use datafusion::datasource::physical_plan::{FileScanConfig, FileScanConfigBuilder, FileSource, JsonSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::projection::ProjectionExprs;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion_datasource::boundary_stream::AlignedBoundaryStream;
use datafusion_datasource::decoder::{Decoder, DecoderDeserializer, deserialize_stream};
use datafusion_datasource::file_compression_type::FileCompressionType;
use datafusion_datasource::file_stream::{FileOpenFuture, FileOpener};
use datafusion_datasource::projection::{ProjectionOpener, SplitProjection};
use datafusion_datasource::{PartitionedFile, TableSchema as FileTableSchema};
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::{GetOptions, GetResultPayload, ObjectStore};

use crate::whole::{as_numbers, as_text};

/// Lines of JSON. In plans, and on the way to other processes, it is DataFusion's `JsonSource`.
#[derive(Clone)]
pub struct ExactJsonSource {
    inner: Arc<dyn FileSource>,
    projection: SplitProjection,
    batch_size: Option<usize>,
}

impl ExactJsonSource {
    /// Lines with the columns of a table.
    pub fn new(table_schema: TableSchema) -> Self {
        let projection = SplitProjection::unprojected(&table_schema);
        Self { inner: Arc::new(JsonSource::new(table_schema)), projection, batch_size: None }
    }
}

impl FileSource for ExactJsonSource {
    fn create_file_opener(
        &self,
        store: Arc<dyn ObjectStore>,
        config: &FileScanConfig,
        _partition: usize,
    ) -> Result<Arc<dyn FileOpener>> {
        let file_schema = self.table_schema().file_schema();
        let schema = Arc::new(file_schema.project(&self.projection.file_indices)?);
        let opener = Opener {
            read: as_text(&schema),
            schema,
            batch_size: self.batch_size.ok_or_else(|| exec_datafusion_err!("no size of batches was set"))?,
            compression: config.file_compression_type,
            store,
        };
        ProjectionOpener::try_new(self.projection.clone(), Arc::new(opener), file_schema)
    }

    fn table_schema(&self) -> &FileTableSchema {
        self.inner.table_schema()
    }

    fn with_batch_size(&self, batch_size: usize) -> Arc<dyn FileSource> {
        let inner = self.inner.with_batch_size(batch_size);
        Arc::new(Self { inner, batch_size: Some(batch_size), ..self.clone() })
    }

    fn projection(&self) -> Option<&ProjectionExprs> {
        self.inner.projection()
    }

    fn metrics(&self) -> &ExecutionPlanMetricsSet {
        self.inner.metrics()
    }

    fn file_type(&self) -> &str {
        self.inner.file_type()
    }

    fn try_pushdown_projection(&self, projection: &ProjectionExprs) -> Result<Option<Arc<dyn FileSource>>> {
        let Some(inner) = self.inner.try_pushdown_projection(projection)? else { return Ok(None) };
        let merged = self.projection.source.try_merge(projection)?;
        let projection = SplitProjection::new(self.table_schema().file_schema(), &merged);
        Ok(Some(Arc::new(Self { inner, projection, batch_size: self.batch_size })))
    }

    fn apply_expressions(
        &self,
        visit: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        self.inner.apply_expressions(visit)
    }

    fn try_to_proto(
        &self,
        base: &FileScanConfig,
        context: &datafusion::physical_plan::proto::ExecutionPlanEncodeCtx<'_>,
    ) -> Result<Option<datafusion_proto::protobuf::PhysicalPlanNode>> {
        self.inner.try_to_proto(base, context)
    }
}

/// The plan with this reader in the place of DataFusion's, which is what a plan that was sent has.
///
/// # Errors
/// A scan cannot be rebuilt.
pub fn with_exact_sources(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let replaced = plan.transform_up(|node| {
        let scan = node.downcast_ref::<DataSourceExec>().and_then(|scan| {
            let config = scan.data_source().downcast_ref::<FileScanConfig>()?;
            config.file_source().downcast_ref::<JsonSource>().map(|_| config)
        });
        let Some(config) = scan else { return Ok(Transformed::no(node)) };
        let mut source = ExactJsonSource::new(config.file_source().table_schema().clone());
        if let Some(projection) = config.file_source().projection() {
            source.projection = SplitProjection::new(source.table_schema().file_schema(), projection);
            source.inner = Arc::clone(config.file_source());
        }
        let config = FileScanConfigBuilder::from(config.clone()).with_source(Arc::new(source)).build();
        Ok(Transformed::yes(DataSourceExec::from_data_source(config) as _))
    })?;
    Ok(replaced.data)
}

/// Opens one file, or a range of its lines.
struct Opener {
    /// The columns that are asked for, and how they are read at first.
    schema: SchemaRef,
    read: SchemaRef,
    batch_size: usize,
    compression: FileCompressionType,
    store: Arc<dyn ObjectStore>,
}

/// Arrow's decoder for streams.
#[derive(Debug)]
struct Lines(ArrowDecoder);

impl Decoder for Lines {
    fn decode(&mut self, bytes: &[u8]) -> Result<usize, ArrowError> {
        self.0.decode(bytes)
    }

    fn flush(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        self.0.flush()
    }

    fn can_flush_early(&self) -> bool {
        false
    }
}

impl FileOpener for Opener {
    fn open(&self, file: PartitionedFile) -> Result<FileOpenFuture> {
        let store = Arc::clone(&self.store);
        let compression = self.compression;
        let reader =
            ReaderBuilder::new(Arc::clone(&self.read)).with_batch_size(self.batch_size).with_coerce_primitive(true);
        let schema = Arc::clone(&self.schema);
        let restore = move |batch: Result<RecordBatch, ArrowError>| Ok(as_numbers(&batch?, &schema)?);
        Ok(Box::pin(async move {
            let location = &file.object_meta.location;
            let bytes = match &file.range {
                Some(range) => {
                    let place = |place: i64| {
                        u64::try_from(place).map_err(|_| exec_datafusion_err!("a file has no place {place}"))
                    };
                    let (start, end, size) = (place(range.start)?, place(range.end)?, file.object_meta.size);
                    let lines = AlignedBoundaryStream::new(store, location.clone(), start, end, size, b'\n').await?;
                    lines.map_err(DataFusionError::from).boxed()
                }
                None => match store.get_opts(location, GetOptions::default()).await?.payload {
                    // Read where the reader stands: a stream of a local file is many small pieces.
                    GetResultPayload::File(file, _) => {
                        let bytes = BufReader::new(compression.convert_read(file)?);
                        return Ok(futures::stream::iter(reader.build(bytes)?).map(restore).boxed());
                    }
                    GetResultPayload::Stream(bytes) => bytes.map_err(DataFusionError::from).boxed(),
                },
            };
            let bytes = compression.convert_stream(bytes)?.fuse();
            let decoder = DecoderDeserializer::new(Lines(reader.build_decoder()?));
            Ok(deserialize_stream(bytes, decoder).map(restore).boxed())
        }))
    }
}
