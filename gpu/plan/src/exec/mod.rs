//! The operators, and what they share: gathering input for a launch, and DataFusion's own node as the CPU's twin.
pub(crate) mod aggregate;
pub(crate) mod feed;
pub(crate) mod join;
pub(crate) mod sort;

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{
    Boundedness, ChildrenPropertiesMode, EmissionType, ReplaceChildrenOptions,
};
use datafusion::physical_plan::metrics::{Count, ExecutionPlanMetricsSet, MetricBuilder};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};
use futures::StreamExt as _;
use parking_lot::Mutex;
use rowmill_gpu::Error;
use rowmill_gpu::device::Device;
use tokio::sync::mpsc::Sender;

/// How often a batch that the device has no room for is halved before the CPU takes it.
const HALVINGS: u32 = 3;

/// The properties of a node with one partition.
pub(crate) fn one_partition(equivalences: EquivalenceProperties, emission: EmissionType) -> Arc<PlanProperties> {
    let partitioning = Partitioning::UnknownPartitioning(1);
    Arc::new(PlanProperties::new(equivalences, partitioning, emission, Boundedness::Bounded))
}

/// Counts of one operator, shown by `EXPLAIN ANALYZE`.
#[derive(Debug, Clone)]
pub(crate) struct Counts {
    /// Rows that came out.
    output_rows: Count,
    /// Input rows that the device took.
    pub(crate) gpu_rows: Count,
    /// Input rows that the CPU's twin took.
    pub(crate) cpu_rows: Count,
    /// Those of the device's that were there already.
    pub(crate) resident_rows: Count,
}

impl Counts {
    fn new(metrics: &ExecutionPlanMetricsSet) -> Self {
        let count = |name| MetricBuilder::new(metrics).counter(name, 0);
        Self {
            output_rows: MetricBuilder::new(metrics).output_rows(0),
            gpu_rows: count("gpu_rows"),
            cpu_rows: count("cpu_rows"),
            resident_rows: count("resident_rows"),
        }
    }
}

/// Where an operator's rows go. A closed receiver ends the operator without an error.
pub(crate) struct Output {
    sender: Sender<Result<RecordBatch>>,
    schema: SchemaRef,
    batch_rows: usize,
    counts: Counts,
}

impl Output {
    /// Sends the columns of a batch under the operator's schema, in batches of the session's size. False when nobody
    /// wants them any more.
    async fn send(&self, batch: &RecordBatch) -> Result<bool> {
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let columns = batch.columns().to_vec();
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?;
        self.counts.output_rows.add(batch.num_rows());
        let mut from = 0;
        while from < batch.num_rows() {
            let rows = self.batch_rows.min(batch.num_rows() - from);
            if self.sender.send(Ok(batch.slice(from, rows))).await.is_err() {
                return Ok(false);
            }
            from += rows;
        }
        Ok(true)
    }

    /// Sends everything that a plan of one partition gives.
    async fn send_all(&self, plan: &Arc<dyn ExecutionPlan>, context: &Arc<TaskContext>) -> Result<bool> {
        let mut rows = plan.execute(0, Arc::clone(context))?;
        while let Some(batch) = rows.next().await {
            if !self.send(&batch?).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Batches that wait for a launch, and the memory that they take of the session's pool.
pub(crate) struct Chunk {
    schema: SchemaRef,
    batches: Vec<RecordBatch>,
    rows: usize,
    bytes: usize,
    reservation: MemoryReservation,
}

impl Chunk {
    fn new(name: &str, schema: SchemaRef, context: &TaskContext) -> Self {
        let reservation = MemoryConsumer::new(name.to_owned()).register(context.memory_pool());
        Self { schema, batches: Vec::new(), rows: 0, bytes: 0, reservation }
    }

    /// Takes a batch in; false where the pool has no room for it beside what is here (it is taken all the same).
    fn push(&mut self, batch: RecordBatch) -> bool {
        let bytes = bytes_of(&batch);
        let room = self.reservation.try_grow(bytes).is_ok();
        self.rows += batch.num_rows();
        self.bytes += bytes;
        self.batches.push(batch);
        room
    }

    fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The batches as one. A launch has one buffer per column.
    fn concat(&self) -> Result<RecordBatch> {
        Ok(concat_batches(&self.schema, &self.batches)?)
    }

    fn clear(&mut self) {
        self.batches.clear();
        (self.rows, self.bytes) = (0, 0);
        self.reservation.free();
    }
}

/// Bytes that the rows of a batch occupy; a small slice of a large buffer counts small.
pub(crate) fn bytes_of(batch: &RecordBatch) -> usize {
    // The lower half of a view is its text's length; texts of up to 12 bytes lie in the view itself.
    let texts =
        |views: &[u128]| -> usize { views.iter().map(|view| *view as u32 as usize).filter(|len| *len > 12).sum() };
    let bytes = |column: &ArrayRef| {
        let behind_views = match column.data_type() {
            DataType::Utf8View => texts(column.as_string_view().views()),
            DataType::BinaryView => texts(column.as_binary_view().views()),
            _ => 0,
        };
        column.to_data().get_slice_memory_size().unwrap_or(0) + behind_views
    };
    batch.columns().iter().map(bytes).sum()
}

/// Runs `work` over `batch`, or over its halves where the device has no room, in order.
///
/// # Errors
/// Those of `work`; what was made of earlier halves is then lost.
pub(crate) fn halving<T>(
    device: &Device,
    batch: &RecordBatch,
    work: &mut impl FnMut(&RecordBatch) -> rowmill_gpu::Result<T>,
) -> rowmill_gpu::Result<Vec<T>> {
    fn go<T>(
        device: &Device,
        batch: &RecordBatch,
        halvings: u32,
        work: &mut impl FnMut(&RecordBatch) -> rowmill_gpu::Result<T>,
        out: &mut Vec<T>,
    ) -> rowmill_gpu::Result<()> {
        match work(batch) {
            Err(Error::OutOfMemory { .. }) if halvings > 0 && batch.num_rows() > 1 => {
                device.memory().trim()?;
                let half = batch.num_rows() / 2;
                go(device, &batch.slice(0, half), halvings - 1, work, out)?;
                go(device, &batch.slice(half, batch.num_rows() - half), halvings - 1, work, out)
            }
            other => other.map(|made| out.push(made)),
        }
    }
    let mut out = Vec::new();
    go(device, batch, HALVINGS, work, &mut out).map(|()| out)
}

/// What an operator does about an error of the device: everything but a mistake of ours is the twin's to do again. A
/// row's own fault too: the twin finds it with DataFusion's words.
///
/// # Errors
/// Mistakes of ours.
pub(crate) fn give_up(operator: &str, error: &Error) -> Result<()> {
    match error {
        Error::Invalid(what) => internal_err!("{operator}: {what}"),
        Error::Data(_) | Error::Unsupported(_) => Ok(()),
        other => {
            tracing::warn!("{operator}: {other}; these rows are finished on the CPU");
            Ok(())
        }
    }
}

/// A leaf that gives rows which were read before; once.
pub(crate) struct ReplayExec {
    rows: Mutex<Option<SendableRecordBatchStream>>,
    properties: Arc<PlanProperties>,
}

impl ReplayExec {
    /// The leaf of a plan that [`over`] puts rows below.
    pub(crate) fn place(schema: &SchemaRef) -> Arc<dyn ExecutionPlan> {
        Self::make(schema, None)
    }

    /// Gives `batches`, then `rest`.
    pub(crate) fn rows(
        schema: &SchemaRef,
        batches: Vec<RecordBatch>,
        rest: Option<SendableRecordBatchStream>,
    ) -> Arc<dyn ExecutionPlan> {
        let first = futures::stream::iter(batches.into_iter().map(Ok));
        let rows: SendableRecordBatchStream = match rest {
            Some(rest) => Box::pin(RecordBatchStreamAdapter::new(Arc::clone(schema), first.chain(rest))),
            None => Box::pin(RecordBatchStreamAdapter::new(Arc::clone(schema), first)),
        };
        Self::make(schema, Some(rows))
    }

    fn make(schema: &SchemaRef, rows: Option<SendableRecordBatchStream>) -> Arc<dyn ExecutionPlan> {
        let properties = one_partition(EquivalenceProperties::new(Arc::clone(schema)), EmissionType::Incremental);
        Arc::new(Self { rows: Mutex::new(rows), properties })
    }
}

/// `plan` over other children.
pub(crate) fn with_children(
    plan: &Arc<dyn ExecutionPlan>,
    children: Vec<Arc<dyn ExecutionPlan>>,
) -> Result<Arc<dyn ExecutionPlan>> {
    Arc::clone(plan).replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
}

/// `plan` with `leaves` in place of its places, from left to right.
pub(crate) fn over(
    plan: &Arc<dyn ExecutionPlan>,
    leaves: &mut impl Iterator<Item = Arc<dyn ExecutionPlan>>,
) -> Result<Arc<dyn ExecutionPlan>> {
    if plan.is::<ReplayExec>() {
        return match leaves.next() {
            Some(leaf) => Ok(leaf),
            None => internal_err!("a plan has more places than rows"),
        };
    }
    let children = plan.children().into_iter().map(|child| over(child, leaves)).collect::<Result<Vec<_>>>()?;
    // A hash join with other children still has the table of those before: a twin is run once for each chunk.
    with_children(plan, children)?.reset_state()
}

impl fmt::Debug for ReplayExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplayExec").finish_non_exhaustive()
    }
}

impl DisplayAs for ReplayExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReplayExec")
    }
}

impl ExecutionPlan for ReplayExec {
    fn name(&self) -> &str {
        "ReplayExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _visit: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn with_new_children(self: Arc<Self>, _children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, _partition: usize, _context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        match self.rows.lock().take() {
            Some(rows) => Ok(rows),
            None => internal_err!("rows are replayed once"),
        }
    }
}
