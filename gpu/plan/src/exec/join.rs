//! A hash join on the device. Only keys and row numbers travel; the pairs that match come back, and the rows are put
//! together on the host, so they may have columns of any type.
//!
//! ```text
//! build side ─▶ gathered whole, keys on the device ─┐
//! probe side ─▶ chunk ─▶ keys on the device ─▶ pairs of row numbers ─▶ take both sides ─▶ output
//!                 └────▶ twin: HashJoinExec over the build side and this chunk
//! ```
//! Rows that are kept without a match are those of the probe side, so each chunk is joined by itself. DataFusion builds
//! from its left side; where it keeps unmatched rows of that side, the sides change places here.
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
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::StreamExt as _;
use parking_lot::Mutex;
use rowmill_gpu::batch::DeviceBatch;
use rowmill_gpu::device::Device;
use rowmill_gpu::expr::GpuExpr;
use rowmill_gpu::ops::join::{Join, JoinKind};

use super::{Chunk, Counts, Output, ReplayExec, give_up, halving, one_partition, over};
use crate::context::GpuContext;
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
    probe: Side,
    build: Side,
    /// Whether DataFusion's left side probes.
    left_probes: bool,
    kind: JoinKind,
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
        let kernel = Join::try_new(probe.device_schema(), build.device_schema(), on, kind);
        let kernel = kernel.map_err(|error| error.to_string())?;
        Ok(Self { kernel, probe, build, left_probes, kind, projection, twin, text })
    }

    fn keeps_both(&self) -> bool {
        matches!(self.kind, JoinKind::Inner | JoinKind::Left)
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
        let left_fields = if self.left_probes { &self.probe } else { &self.build }.schema.fields().len();
        // A semi or anti join gives one side only.
        let left_fields = if !self.keeps_both() && !self.left_probes { 0 } else { left_fields };
        let columns = self.projection.iter().map(|at| {
            let (of_left, at) = if *at < left_fields { (true, *at) } else { (false, *at - left_fields) };
            match (&build_rows, of_left == self.left_probes) {
                (Some(rows), false) => Ok(take(build.column(at), rows, None)?),
                _ => Ok(take(pairs.probe.column(at), &probe_rows, None)?),
            }
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
        let (left, right) = (self.left.execute(0, Arc::clone(&context))?, self.right.execute(0, Arc::clone(&context))?);
        let (probe, build) = if self.query.left_probes { (left, right) } else { (right, left) };
        let mut builder = RecordBatchReceiverStreamBuilder::new(self.schema(), 2);
        let counts = Counts::new(&self.metrics);
        let run = Run {
            gpu: Arc::clone(&self.gpu),
            query: Arc::clone(&self.query),
            output: Output {
                sender: builder.tx(),
                schema: self.schema(),
                batch_rows: context.session_config().batch_size().max(1),
                counts: counts.clone(),
            },
            counts,
            context,
            on_device: Arc::new(Mutex::new(None)),
        };
        builder.spawn(run.all(probe, build));
        Ok(builder.build())
    }
}

/// One execution.
struct Run {
    gpu: Arc<GpuContext>,
    query: Arc<Query>,
    output: Output,
    counts: Counts,
    context: Arc<TaskContext>,
    /// The keys of the build side, once they are there.
    on_device: Arc<Mutex<Option<DeviceBatch>>>,
}

impl Run {
    async fn all(self, mut probe: SendableRecordBatchStream, mut build: SendableRecordBatchStream) -> Result<()> {
        let build_schema = build.schema();
        let mut built = Chunk::new("GpuJoinExec build", Arc::clone(&build_schema), &self.context);
        while let Some(batch) = build.next().await {
            if !built.push(batch?) {
                // What does not fit here is DataFusion's to report, or to do with less.
                let read = std::mem::take(&mut built.batches);
                built.clear();
                let rest = ReplayExec::rows(&build_schema, read, Some(build));
                let probe_schema = probe.schema();
                let all = ReplayExec::rows(&probe_schema, Vec::new(), Some(probe));
                return self.twin(all, rest).await.map(drop);
            }
        }
        let whole = concat_batches(&build_schema, &built.batches)?;
        built.batches.clear();
        let mut chunk = Chunk::new("GpuJoinExec", probe.schema(), &self.context);
        while let Some(batch) = probe.next().await {
            let room = chunk.push(batch?);
            if (!room || chunk.bytes >= self.gpu.options().launch_bytes) && !self.flush(&mut chunk, &whole).await? {
                return Ok(());
            }
        }
        if !chunk.is_empty() {
            self.flush(&mut chunk, &whole).await?;
        }
        Ok(())
    }

    /// Joins what was gathered. False when nobody wants the result any more.
    async fn flush(&self, chunk: &mut Chunk, build: &RecordBatch) -> Result<bool> {
        let rows = chunk.rows;
        if self.gpu.decide(Operator::Join, Some(rows as u64), chunk.bytes as u64).offload {
            let query = Arc::clone(&self.query);
            let (probe, build_side) = (chunk.concat()?, build.clone());
            let kept = Arc::clone(&self.on_device);
            let work = move |device: &Arc<Device>| -> rowmill_gpu::Result<Vec<Pairs>> {
                let mut kept = kept.lock();
                if kept.is_none() {
                    *kept = Some(DeviceBatch::upload(device, &query.build.keys(&build_side)?)?);
                }
                let Some(keys) = kept.as_ref() else { return Ok(Vec::new()) };
                halving(device, &probe, &mut |probe: &RecordBatch| query.pairs(device, probe, keys))
            };
            match self.gpu.on_lane(work).await? {
                Ok(found) => {
                    self.counts.gpu_rows.add(rows);
                    chunk.clear();
                    for pairs in found {
                        // A piece at a time: many pairs of long texts are more than one array can hold.
                        let (end, step) = (pairs.probe_rows.len(), self.output.batch_rows);
                        for from in (0..end).step_by(step) {
                            let range = from..(from + step).min(end);
                            let joined = self.query.rows(&pairs, build, range, &self.output.schema)?;
                            if !self.output.send(&joined).await? {
                                return Ok(false);
                            }
                        }
                    }
                    return Ok(true);
                }
                Err(error) => give_up("GpuJoinExec", &error)?,
            }
        }
        self.counts.cpu_rows.add(rows);
        let probe = ReplayExec::rows(&chunk.schema, std::mem::take(&mut chunk.batches), None);
        let build = ReplayExec::rows(&build.schema(), vec![build.clone()], None);
        let wanted = self.twin(probe, build).await?;
        chunk.clear();
        Ok(wanted)
    }

    async fn twin(&self, probe: Arc<dyn ExecutionPlan>, build: Arc<dyn ExecutionPlan>) -> Result<bool> {
        let (left, right) = if self.query.left_probes { (probe, build) } else { (build, probe) };
        let twin = over(&self.query.twin, &mut [left, right].into_iter())?;
        self.output.send_all(&twin, &self.context).await
    }
}
