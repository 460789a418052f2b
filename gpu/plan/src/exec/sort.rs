//! A sort on the device. Only the keys and the rows' numbers travel; the rows themselves are put in order on the host, so
//! they may have columns of any type. Each chunk becomes a sorted run; several runs are merged by DataFusion.
//!
//! ```text
//! input ─▶ chunk ─▶ device: row numbers in order ─▶ take ─▶ run ─┬▶ one run: the output
//!                                                                └▶ several: SortPreservingMergeExec
//! no room in memory, or an error: everything so far and the rest ─▶ SortExec, which spills
//! ```
use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray as _, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt32Type};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, LexOrdering, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, EmissionType, ReplaceChildrenOptions};
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::StreamExt as _;
use rowmill_gpu::device::Device;
use rowmill_gpu::ops::gather::gather_source;
use rowmill_gpu::ops::sort::{Sort, SortKey};

use super::{Chunk, Counts, Output, ReplayExec, give_up, halving, one_partition, over};
use crate::context::{GpuContext, Watch};
use crate::decide::Operator;
use crate::lower::Reason;

/// What is sorted.
pub(crate) struct Query {
    /// Columns of the input that the keys read, then the rows' numbers.
    kernel: Sort,
    /// Those columns' positions in the input.
    columns: Vec<usize>,
    ordering: LexOrdering,
    twin: Arc<dyn ExecutionPlan>,
    device_schema: SchemaRef,
}

impl Query {
    /// Keys whose columns are those of `columns`, in that order.
    ///
    /// # Errors
    /// What has no kernel.
    pub(crate) fn try_new(
        schema: &SchemaRef,
        columns: Vec<usize>,
        keys: Vec<SortKey>,
        ordering: LexOrdering,
        twin: Arc<dyn ExecutionPlan>,
    ) -> Result<Self, Reason> {
        let mut fields: Vec<Field> = columns.iter().map(|at| schema.field(*at).clone()).collect();
        fields.push(Field::new("__row", DataType::UInt32, false));
        let device_schema = Arc::new(Schema::new(fields));
        let kernel = Sort::try_new(Arc::clone(&device_schema), keys, None).map_err(|error| error.to_string())?;
        Ok(Self { kernel, columns, ordering, twin, device_schema })
    }

    /// A sorted copy of `batch`.
    fn sort(&self, device: &Device, batch: &RecordBatch) -> rowmill_gpu::Result<RecordBatch> {
        let rows = u32::try_from(batch.num_rows())
            .map_err(|_| rowmill_gpu::Error::Unsupported("more than four thousand million rows".into()))?;
        let mut columns: Vec<ArrayRef> = self.columns.iter().map(|at| Arc::clone(batch.column(*at))).collect();
        columns.push(Arc::new(UInt32Array::from_iter_values(0..rows)));
        let keys = RecordBatch::try_new(Arc::clone(&self.device_schema), columns)?;
        let sorted = self.kernel.run(device, &rowmill_gpu::batch::DeviceBatch::upload(device, &keys)?)?;
        let order = match sorted.columns().last() {
            Some(order) => order.download(device)?,
            None => return Err(rowmill_gpu::Error::Invalid("a sort without columns".into())),
        };
        Ok(take_record_batch(batch, order.as_primitive::<UInt32Type>())?)
    }
}

/// The sort.
pub(crate) struct GpuSortExec {
    gpu: Arc<GpuContext>,
    query: Arc<Query>,
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl GpuSortExec {
    /// `query` over `input`, which has one partition.
    pub(crate) fn new(gpu: Arc<GpuContext>, query: Arc<Query>, input: Arc<dyn ExecutionPlan>) -> Self {
        let equivalences = EquivalenceProperties::new_with_orderings(input.schema(), [query.ordering.clone()]);
        let properties = one_partition(equivalences, EmissionType::Final);
        Self { gpu, query, input, properties, metrics: ExecutionPlanMetricsSet::new() }
    }
}

impl fmt::Debug for GpuSortExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GpuSortExec").field("ordering", &self.query.ordering).finish_non_exhaustive()
    }
}

impl DisplayAs for GpuSortExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GpuSortExec: expr=[{}]", self.query.ordering)
    }
}

impl ExecutionPlan for GpuSortExec {
    fn name(&self) -> &str {
        "GpuSortExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _visit: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.is_empty()) {
            (Some(input), true) => Ok(Arc::new(Self::new(Arc::clone(&self.gpu), Arc::clone(&self.query), input))),
            _ => internal_err!("a sort has one input"),
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
            return internal_err!("GpuSortExec has one partition");
        }
        let input = self.input.execute(0, Arc::clone(&context))?;
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
            runs: Vec::new(),
            watch: Watch::default(),
        };
        builder.spawn(run.all(input));
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
    /// Sorted, each for itself.
    runs: Vec<RecordBatch>,
    watch: Watch,
}

impl Run {
    async fn all(mut self, mut input: SendableRecordBatchStream) -> Result<()> {
        let schema = input.schema();
        let mut chunk = Chunk::new("GpuSortExec", Arc::clone(&schema), &self.context);
        // The runs' memory stays taken until the end.
        let mut held = Chunk::new("GpuSortExec runs", Arc::clone(&schema), &self.context);
        let mut more = true;
        while more {
            let mut room = true;
            match input.next().await {
                Some(batch) => room = chunk.push(batch?),
                None => more = false,
            }
            if more && room && chunk.bytes < self.gpu.options().launch_bytes {
                continue;
            }
            if chunk.is_empty() {
                continue;
            }
            let runs = if room { self.sort(&mut chunk).await? } else { None };
            let Some(runs) = runs else {
                // The twin sorts everything that was read, sorted or not, and what is still to come.
                let mut read = std::mem::take(&mut self.runs);
                read.append(&mut chunk.batches);
                self.counts.cpu_rows.add(read.iter().map(RecordBatch::num_rows).sum());
                held.clear();
                chunk.clear();
                let leaf = ReplayExec::rows(&schema, read, Some(input));
                let twin = over(&self.query.twin, &mut std::iter::once(leaf))?;
                return self.output.send_all(&twin, &self.context).await.map(drop);
            };
            chunk.clear();
            for run in &runs {
                // Its place was the chunk's; where it is gone now, the next chunk finds no room.
                held.push(run.clone());
            }
            self.runs.extend(runs);
        }
        let runs = std::mem::take(&mut self.runs);
        if let [run] = runs.as_slice() {
            return self.output.send(run).await.map(drop);
        }
        if runs.is_empty() {
            return Ok(());
        }
        let batch_rows = self.output.batch_rows;
        let partitions = runs.into_iter().map(|run| {
            let slices = (0..run.num_rows()).step_by(batch_rows);
            let slices = slices.map(|from| run.slice(from, batch_rows.min(run.num_rows() - from))).collect();
            ReplayExec::rows(&schema, slices, None)
        });
        let all = UnionExec::try_new(partitions.collect())?;
        let merged: Arc<dyn ExecutionPlan> = Arc::new(SortPreservingMergeExec::new(self.query.ordering.clone(), all));
        self.output.send_all(&merged, &self.context).await.map(drop)
    }

    /// The chunk as sorted runs; `None` where the CPU is to sort.
    async fn sort(&mut self, chunk: &mut Chunk) -> Result<Option<Vec<RecordBatch>>> {
        let kernels = || self.query.kernel.sources().into_iter().chain([gather_source()]).collect();
        let decision = self.gpu.decide_now(Operator::Sort, chunk.rows, chunk.bytes, false, kernels);
        let offload = decision.offload && self.watch.allows();
        if !offload {
            // Once runs are there they are merged with one that the CPU makes: the twin would sort them again.
            return if self.runs.is_empty() { Ok(None) } else { self.sort_on_cpu(chunk).await.map(Some) };
        }
        let query = Arc::clone(&self.query);
        let (schema, batches) = (Arc::clone(&chunk.schema), chunk.batches.clone());
        let work = move |device: &Arc<Device>| -> rowmill_gpu::Result<Vec<RecordBatch>> {
            let batch = arrow::compute::concat_batches(&schema, &batches)?;
            halving(device, &batch, &mut |batch: &RecordBatch| query.sort(device, batch))
        };
        match self.gpu.on_lane(work).await? {
            Ok((runs, took)) => {
                self.watch.saw(Operator::Sort, &decision, took);
                self.counts.gpu_rows.add(chunk.rows);
                Ok(Some(runs))
            }
            Err(error) => give_up("GpuSortExec", &error).map(|()| None),
        }
    }

    /// The chunk as one sorted run, by the twin.
    async fn sort_on_cpu(&mut self, chunk: &mut Chunk) -> Result<Vec<RecordBatch>> {
        self.counts.cpu_rows.add(chunk.rows);
        let leaf = ReplayExec::rows(&chunk.schema, std::mem::take(&mut chunk.batches), None);
        let twin = over(&self.query.twin, &mut std::iter::once(leaf))?;
        let sorted = datafusion::physical_plan::collect(twin, Arc::clone(&self.context)).await?;
        Ok(vec![arrow::compute::concat_batches(&chunk.schema, &sorted)?])
    }
}
