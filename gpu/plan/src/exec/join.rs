//! A hash join on the device. Only keys and row numbers travel; the pairs that match come back, and the rows are put
//! together on the host, so they may have columns of any type.
//!
//! ```text
//! build side ─▶ gathered whole, keys on the device ─┐
//! probe side ─▶ chunk ─▶ keys on the device ─▶ pairs of row numbers ─▶ take both sides ─▶ output
//!                 └────▶ twin: HashJoinExec over the build side and this chunk
//! ```
//! Rows that are kept without a match are those of the probe side, so each chunk is joined by itself. DataFusion builds
//! from its left side; where it keeps unmatched rows of that side, the sides change places here. An operator above that
//! works on the device too takes the joined rows there: see [`super::feed`].
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray as _, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, take};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt32Type};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, EmissionType, ReplaceChildrenOptions};
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::{RecordBatchReceiverStreamBuilder, RecordBatchStreamAdapter};
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::StreamExt as _;
use parking_lot::Mutex;
use rowmill_gpu::batch::DeviceBatch;
use rowmill_gpu::device::Device;
use rowmill_gpu::expr::GpuExpr;
use rowmill_gpu::ops::join::{Join, JoinKind};

use super::{Chunk, Counts, Output, ReplayExec, give_up, halving, one_partition, over};
use crate::context::{GpuContext, Watch};
use crate::decide::Operator;
use crate::lower::Reason;

/// One side: its schema, and the columns that its keys read.
pub(crate) struct Side {
    pub(crate) schema: SchemaRef,
    pub(crate) columns: Vec<usize>,
}

impl Side {
    /// The keys' columns, then the rows' numbers.
    fn device_schema(&self) -> SchemaRef {
        let mut fields: Vec<Field> = self.columns.iter().map(|at| self.schema.field(*at).clone()).collect();
        fields.push(Field::new("__row", DataType::UInt32, false));
        Arc::new(Schema::new(fields))
    }

    fn keys(&self, batch: &RecordBatch) -> rowmill_gpu::Result<RecordBatch> {
        let rows = u32::try_from(batch.num_rows())
            .map_err(|_| rowmill_gpu::Error::Unsupported("more than four thousand million rows".into()))?;
        let mut columns: Vec<ArrayRef> = self.columns.iter().map(|at| Arc::clone(batch.column(*at))).collect();
        columns.push(Arc::new(UInt32Array::from_iter_values(0..rows)));
        Ok(RecordBatch::try_new(self.device_schema(), columns)?)
    }
}

/// What is joined.
pub(crate) struct Query {
    kernel: Join,
    /// Keys over the columns of the probe side's and the build side's [`Side::columns`].
    pub(super) on: Vec<(GpuExpr, GpuExpr)>,
    pub(super) probe: Side,
    pub(super) build: Side,
    /// Whether DataFusion's left side probes.
    pub(super) left_probes: bool,
    pub(super) kind: JoinKind,
    /// Columns of the output among those of DataFusion's left side, then those of its right side.
    projection: Vec<usize>,
    twin: Arc<dyn ExecutionPlan>,
    text: String,
}

/// Row numbers of both sides, pair by pair. A semi or anti join has those of the probe side only.
struct Pairs {
    probe: RecordBatch,
    probe_rows: ArrayRef,
    build_rows: Option<ArrayRef>,
}

/// The parts of a [`Query`].
pub(crate) struct Parts {
    pub(crate) left: Side,
    pub(crate) right: Side,
    /// Keys over the columns of each side's [`Side::columns`], left and right.
    pub(crate) on: Vec<(GpuExpr, GpuExpr)>,
    pub(crate) left_probes: bool,
    pub(crate) kind: JoinKind,
    pub(crate) projection: Vec<usize>,
    /// DataFusion's join over two [`ReplayExec`].
    pub(crate) twin: Arc<dyn ExecutionPlan>,
    pub(crate) text: String,
}

impl Query {
    /// Plans the kernels.
    ///
    /// # Errors
    /// What has no kernel.
    pub(crate) fn try_new(parts: Parts) -> Result<Self, Reason> {
        let Parts { left, right, on, left_probes, kind, projection, twin, text } = parts;
        let (probe, build, on) = match left_probes {
            true => (left, right, on),
            false => (right, left, on.into_iter().map(|(left, right)| (right, left)).collect()),
        };
        let kernel = Join::try_new(probe.device_schema(), build.device_schema(), on.clone(), kind);
        let kernel = kernel.map_err(|error| error.to_string())?;
        Ok(Self { kernel, on, probe, build, left_probes, kind, projection, twin, text })
    }

    /// Whether columns of the build side come out too.
    pub(super) fn keeps_both(&self) -> bool {
        matches!(self.kind, JoinKind::Inner | JoinKind::Left)
    }

    /// Where a column of the output comes from: whether of the probe side, and its position there.
    pub(super) fn origin(&self, output: usize) -> Option<(bool, usize)> {
        let at = *self.projection.get(output)?;
        // A semi or anti join gives one side only, the one that probes.
        if !self.keeps_both() {
            return Some((true, at));
        }
        let left_fields = if self.left_probes { &self.probe } else { &self.build }.schema.fields().len();
        let (of_left, at) = if at < left_fields { (true, at) } else { (false, at - left_fields) };
        Some((of_left == self.left_probes, at))
    }

    /// The plan's twin over rows of both sides.
    pub(super) fn twin(
        &self,
        probe: Arc<dyn ExecutionPlan>,
        build: Arc<dyn ExecutionPlan>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let (left, right) = if self.left_probes { (probe, build) } else { (build, probe) };
        over(&self.twin, &mut [left, right].into_iter())
    }

    /// Which rows of one chunk of the probe side belong to which of the build side.
    fn pairs(&self, device: &Device, probe: &RecordBatch, build_keys: &DeviceBatch) -> rowmill_gpu::Result<Pairs> {
        let keys = DeviceBatch::upload(device, &self.probe.keys(probe)?)?;
        let pairs = self.kernel.run(device, &keys, build_keys)?;
        let numbers = |at: usize| match pairs.columns().get(at) {
            Some(column) => column.download(device),
            None => Err(rowmill_gpu::Error::Invalid("a join without row numbers".into())),
        };
        let build_rows = match self.keeps_both() {
            true => Some(numbers(self.probe.columns.len() + 1 + self.build.columns.len())?),
            false => None,
        };
        Ok(Pairs { probe: probe.clone(), probe_rows: numbers(self.probe.columns.len())?, build_rows })
    }

    /// The joined rows of some pairs.
    fn rows(&self, pairs: &Pairs, build: &RecordBatch, range: Range<usize>, schema: &SchemaRef) -> Result<RecordBatch> {
        let part = |rows: &ArrayRef| rows.slice(range.start, range.len()).as_primitive::<UInt32Type>().clone();
        let probe_rows = part(&pairs.probe_rows);
        let build_rows = pairs.build_rows.as_ref().map(part);
        let columns = (0..self.projection.len()).map(|output| match (self.origin(output), &build_rows) {
            (Some((true, at)), _) => Ok(take(pairs.probe.column(at), &probe_rows, None)?),
            (Some((false, at)), Some(rows)) => Ok(take(build.column(at), rows, None)?),
            _ => internal_err!("a join gives a column of neither side"),
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(range.len()));
        Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?)
    }
}

/// The join.
pub(crate) struct GpuJoinExec {
    gpu: Arc<GpuContext>,
    query: Arc<Query>,
    left: Arc<dyn ExecutionPlan>,
    right: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl GpuJoinExec {
    /// `query` over DataFusion's two sides, each of one partition.
    pub(crate) fn new(
        gpu: Arc<GpuContext>,
        query: Arc<Query>,
        left: Arc<dyn ExecutionPlan>,
        right: Arc<dyn ExecutionPlan>,
        schema: SchemaRef,
    ) -> Self {
        let properties = one_partition(EquivalenceProperties::new(schema), EmissionType::Incremental);
        Self { gpu, query, left, right, properties, metrics: ExecutionPlanMetricsSet::new() }
    }
}

impl fmt::Debug for GpuJoinExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GpuJoinExec").field("query", &self.query.text).finish_non_exhaustive()
    }
}

impl DisplayAs for GpuJoinExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GpuJoinExec: {}", self.query.text)
    }
}

impl ExecutionPlan for GpuJoinExec {
    fn name(&self) -> &str {
        "GpuJoinExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.left, &self.right]
    }

    fn apply_expressions(
        &self,
        _visit: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match <[_; 2]>::try_from(children) {
            Ok([left, right]) => {
                let (gpu, query) = (Arc::clone(&self.gpu), Arc::clone(&self.query));
                Ok(Arc::new(Self::new(gpu, query, left, right, self.schema())))
            }
            Err(_) => internal_err!("a join has two inputs"),
        }
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        if partition != 0 {
            return internal_err!("GpuJoinExec has one partition");
        }
        let mut builder = RecordBatchReceiverStreamBuilder::new(self.schema(), 2);
        let counts = Counts::new(&self.metrics);
        let output = Output {
            sender: builder.tx(),
            schema: self.schema(),
            batch_rows: context.session_config().batch_size().max(1),
            counts,
        };
        builder.spawn(all(self.execution(&context), output));
        Ok(builder.build())
    }
}

impl GpuJoinExec {
    /// An execution of it, for whoever takes its rows.
    pub(super) fn execution(&self, context: &Arc<TaskContext>) -> Execution {
        let (left, right) = (Arc::clone(&self.left), Arc::clone(&self.right));
        let (probe, build) = if self.query.left_probes { (left, right) } else { (right, left) };
        Execution {
            gpu: Arc::clone(&self.gpu),
            query: Arc::clone(&self.query),
            schema: self.schema(),
            counts: Counts::new(&self.metrics),
            context: Arc::clone(context),
            probe,
            build,
            keys: Arc::new(Mutex::new(None)),
            watch: Mutex::default(),
        }
    }

    /// What is joined.
    pub(super) fn query(&self) -> &Arc<Query> {
        &self.query
    }

    /// The side that probes.
    pub(super) fn probe(&self) -> &Arc<dyn ExecutionPlan> {
        if self.query.left_probes { &self.left } else { &self.right }
    }
}

/// One execution.
pub(super) struct Execution {
    pub(super) gpu: Arc<GpuContext>,
    pub(super) query: Arc<Query>,
    pub(super) schema: SchemaRef,
    pub(super) counts: Counts,
    pub(super) context: Arc<TaskContext>,
    pub(super) probe: Arc<dyn ExecutionPlan>,
    build: Arc<dyn ExecutionPlan>,
    /// The keys of the build side, once they are on the device.
    keys: Arc<Mutex<Option<DeviceBatch>>>,
    watch: Mutex<Watch>,
}

/// The build side.
pub(super) enum Built {
    /// Whole, and the memory that it takes.
    Whole(RecordBatch, Chunk),
    /// What does not fit here is DataFusion's to report, or to do with less: what was read, and the rest.
    TooLarge(Arc<dyn ExecutionPlan>),
}

/// Joins everything, for a reader on the host.
async fn all(join: Execution, output: Output) -> Result<()> {
    let (built, _held) = match join.build().await? {
        Built::Whole(built, held) => (built, held),
        Built::TooLarge(build) => {
            let twin = join.query.twin(Arc::clone(&join.probe), build)?;
            return output.send_all(&twin, &join.context).await.map(drop);
        }
    };
    let mut probe = join.probe.execute(0, Arc::clone(&join.context))?;
    let mut chunk = Chunk::new("GpuJoinExec", probe.schema(), &join.context);
    let mut more = true;
    while more {
        match probe.next().await {
            Some(batch) => {
                if chunk.push(batch?) && chunk.bytes < join.gpu.options().launch_bytes {
                    continue;
                }
            }
            None => more = false,
        }
        if chunk.is_empty() {
            continue;
        }
        let mut rows = join.rows(&mut chunk, &built, output.batch_rows).await?;
        while let Some(batch) = rows.next().await {
            if !output.send(&batch?).await? {
                return Ok(());
            }
        }
        chunk.clear();
    }
    Ok(())
}

impl Execution {
    /// Reads the build side.
    pub(super) async fn build(&self) -> Result<Built> {
        let mut build = self.build.execute(0, Arc::clone(&self.context))?;
        let schema = build.schema();
        let mut built = Chunk::new("GpuJoinExec build", Arc::clone(&schema), &self.context);
        while let Some(batch) = build.next().await {
            if !built.push(batch?) {
                let read = std::mem::take(&mut built.batches);
                return Ok(Built::TooLarge(ReplayExec::rows(&schema, read, Some(build))));
            }
        }
        let whole = concat_batches(&schema, &built.batches)?;
        built.batches.clear();
        Ok(Built::Whole(whole, built))
    }

    /// The joined rows of a chunk, on the host: pairs from the device where that pays, else from the twin.
    pub(super) async fn rows(
        &self,
        chunk: &mut Chunk,
        build: &RecordBatch,
        batch_rows: usize,
    ) -> Result<SendableRecordBatchStream> {
        let rows = chunk.rows;
        let kernels = || {
            let shared = [rowmill_gpu::ops::gather::sort_source(), rowmill_gpu::ops::gather::gather_source()];
            self.query.kernel.sources().into_iter().chain(shared).collect()
        };
        let decision = self.gpu.decide_now(Operator::Join, rows, chunk.bytes, false, kernels);
        if decision.offload && self.watch.lock().allows() {
            let query = Arc::clone(&self.query);
            let (probe, build_side) = (chunk.concat()?, build.clone());
            let kept = Arc::clone(&self.keys);
            let work = move |device: &Arc<Device>| -> rowmill_gpu::Result<Vec<Pairs>> {
                let mut kept = kept.lock();
                if kept.is_none() {
                    *kept = Some(DeviceBatch::upload(device, &query.build.keys(&build_side)?)?);
                }
                let Some(keys) = kept.as_ref() else { return Ok(Vec::new()) };
                halving(device, &probe, &mut |probe: &RecordBatch| query.pairs(device, probe, keys))
            };
            match self.gpu.on_lane(work).await? {
                Ok((found, took)) => {
                    self.counts.gpu_rows.add(rows);
                    self.watch.lock().saw(Operator::Join, &decision, took);
                    return Ok(self.assembled(found, build.clone(), batch_rows));
                }
                Err(error) => give_up("GpuJoinExec", &error)?,
            }
        }
        self.counts.cpu_rows.add(rows);
        let probe = ReplayExec::rows(&chunk.schema, std::mem::take(&mut chunk.batches), None);
        let build = ReplayExec::rows(&build.schema(), vec![build.clone()], None);
        self.query.twin(probe, build)?.execute(0, Arc::clone(&self.context))
    }

    /// The rows of some pairs, a piece at a time: many pairs of long texts are more than one array can hold.
    fn assembled(&self, found: Vec<Pairs>, build: RecordBatch, batch_rows: usize) -> SendableRecordBatchStream {
        let (query, schema) = (Arc::clone(&self.query), Arc::clone(&self.schema));
        let pieces = found.into_iter().flat_map(move |pairs| {
            let (query, schema, build) = (Arc::clone(&query), Arc::clone(&schema), build.clone());
            let end = pairs.probe_rows.len();
            (0..end).step_by(batch_rows).map(move |from| {
                let range = from..(from + batch_rows).min(end);
                query.rows(&pairs, &build, range, &schema)
            })
        });
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), futures::stream::iter(pieces)))
    }
}
