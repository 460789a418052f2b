//! The partial step of an aggregate on the device. It gives the states that DataFusion's partial aggregate gives, any
//! number of rows for one group, and DataFusion's final aggregate above merges them; so a chunk may be cut in halves,
//! and any of them may be taken by the CPU's twin, which is DataFusion's partial aggregate itself.
//!
//! ```text
//! input ─▶ chunk ─▶ device: filter, arguments, groups ─▶ states ─┐
//!             └───▶ twin: FilterExec, AggregateExec(Partial) ────┴▶ AggregateExec(Final)
//! ```
use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray as _, Int64Array, RecordBatch};
use arrow::compute::kernels::cmp::eq;
use arrow::compute::{cast, nullif};
use arrow::datatypes::{DataType, Decimal128Type, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, EmissionType, ReplaceChildrenOptions};
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::StreamExt as _;
use rowmill_gpu::Error;
use rowmill_gpu::device::Device;
use rowmill_gpu::ops::filter_aggregate::{AggregateState, FilterAggregate};
use rowmill_gpu::ops::group_by::GroupBy;

use super::{Chunk, Counts, Output, ReplayExec, give_up, halving, one_partition, over};
use crate::context::GpuContext;
use crate::decide::Operator;

/// How the device's columns become columns of a state.
#[derive(Debug, Clone)]
pub(crate) struct StateColumn {
    /// The device's column.
    pub(crate) from: usize,
    /// The type of the state.
    pub(crate) to: DataType,
    /// Whether zero is written as null: an average that is merged by group takes any count for a value that was there.
    pub(crate) null_for_zero: bool,
}

impl StateColumn {
    /// Whether values of `from` can be a state of `to` as they are.
    pub(crate) fn fits(from: &DataType, to: &DataType) -> bool {
        match (from, to) {
            (DataType::Int64, DataType::UInt64) => true,
            (DataType::Decimal128(_, s1), DataType::Decimal128(_, s2)) => s1 == s2,
            _ => from == to,
        }
    }

    fn make(&self, columns: &[ArrayRef]) -> Result<ArrayRef> {
        let mut column = &columns[self.from];
        let without_zeros;
        if self.null_for_zero {
            let zero = Int64Array::new_scalar(0);
            without_zeros = nullif(column, &eq(column, &zero)?)?;
            column = &without_zeros;
        }
        Ok(match (column.data_type(), &self.to) {
            (from, to) if from == to => Arc::clone(column),
            // Sums wrap in 128 bits on both sides, whatever the precision is called.
            (DataType::Decimal128(..), DataType::Decimal128(precision, scale)) => {
                let values = column.as_primitive::<Decimal128Type>().clone();
                Arc::new(values.with_precision_and_scale(*precision, *scale)?)
            }
            (_, to) => cast(column, to)?,
        })
    }
}

/// The kernels of one aggregate.
pub(crate) enum Kernels {
    /// Without groups.
    Fused(FilterAggregate),
    /// With groups.
    Grouped(GroupBy),
}

/// What is computed.
pub(crate) struct Query {
    pub(crate) kernels: Kernels,
    /// The states, in the order of the output.
    pub(crate) states: Vec<StateColumn>,
    /// DataFusion's nodes over a [`ReplayExec`].
    pub(crate) twin: Arc<dyn ExecutionPlan>,
    /// For people.
    pub(crate) text: String,
}

/// The partial aggregate.
pub(crate) struct GpuAggregateExec {
    gpu: Arc<GpuContext>,
    query: Arc<Query>,
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl GpuAggregateExec {
    /// `query` over `input`, which has one partition; `schema` is that of the partial aggregate that is replaced.
    pub(crate) fn new(
        gpu: Arc<GpuContext>,
        query: Arc<Query>,
        input: Arc<dyn ExecutionPlan>,
        schema: SchemaRef,
    ) -> Self {
        let properties = one_partition(EquivalenceProperties::new(schema), EmissionType::Final);
        Self { gpu, query, input, properties, metrics: ExecutionPlanMetricsSet::new() }
    }
}

impl fmt::Debug for GpuAggregateExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GpuAggregateExec").field("query", &self.query.text).finish_non_exhaustive()
    }
}

impl DisplayAs for GpuAggregateExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name(), self.query.text)
    }
}

impl ExecutionPlan for GpuAggregateExec {
    fn name(&self) -> &str {
        match self.query.kernels {
            Kernels::Fused(_) => "GpuFilterAggregateExec",
            Kernels::Grouped(_) => "GpuGroupByExec",
        }
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
            (Some(input), true) => {
                Ok(Arc::new(Self::new(Arc::clone(&self.gpu), Arc::clone(&self.query), input, self.schema())))
            }
            _ => internal_err!("an aggregate has one input"),
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
            return internal_err!("{} has one partition", self.name());
        }
        let input = self.input.execute(0, Arc::clone(&context))?;
        let mut builder = RecordBatchReceiverStreamBuilder::new(self.schema(), 2);
        let counts = Counts::new(&self.metrics);
        let run = Run {
            name: self.name().to_owned(),
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
            state: None,
            answered: false,
            gave_up: false,
        };
        builder.spawn(run.all(input));
        Ok(builder.build())
    }
}

/// One execution.
struct Run {
    name: String,
    gpu: Arc<GpuContext>,
    query: Arc<Query>,
    output: Output,
    counts: Counts,
    context: Arc<TaskContext>,
    /// Without groups: what the device has seen so far.
    state: Option<AggregateState>,
    /// Whether anything was sent; without groups there is always a row.
    answered: bool,
    /// Whether a chunk had rows that no kernel does: the next one is likely to have some too.
    gave_up: bool,
}

impl Run {
    async fn all(mut self, mut input: SendableRecordBatchStream) -> Result<()> {
        let mut chunk = Chunk::new(&self.name, input.schema(), &self.context);
        while let Some(batch) = input.next().await {
            let room = chunk.push(batch?);
            if (!room || chunk.bytes >= self.gpu.options().launch_bytes) && !self.flush(&mut chunk).await? {
                return Ok(());
            }
        }
        if !chunk.is_empty() && !self.flush(&mut chunk).await? {
            return Ok(());
        }
        if let Kernels::Fused(query) = &self.query.kernels
            && (self.state.is_some() || !self.answered)
        {
            let state = self.state.take().unwrap_or_else(|| query.start());
            match query.finish(&state) {
                Ok(row) => {
                    self.send(&[row]).await?;
                }
                Err(error) => return internal_err!("{}: {error}", self.name),
            }
        }
        Ok(())
    }

    /// Aggregates what was gathered. False when nobody wants the result any more.
    async fn flush(&mut self, chunk: &mut Chunk) -> Result<bool> {
        let operator = match self.query.kernels {
            Kernels::Fused(_) => Operator::FilterAggregate,
            Kernels::Grouped(_) => Operator::GroupBy,
        };
        let rows = chunk.rows;
        let pays = || self.gpu.decide(operator, Some(rows as u64), chunk.bytes as u64).offload;
        let wanted = if !self.gave_up && pays() {
            let outcome = self.on_device(chunk).await?;
            match outcome {
                Ok(wanted) => {
                    self.counts.gpu_rows.add(rows);
                    Some(wanted)
                }
                Err(error) => {
                    give_up(&self.name, &error)?;
                    self.gave_up = matches!(error, Error::Data(_) | Error::Unsupported(_));
                    None
                }
            }
        } else {
            None
        };
        let wanted = match wanted {
            Some(wanted) => wanted,
            None => {
                self.counts.cpu_rows.add(rows);
                self.answered = true;
                let leaf = ReplayExec::rows(&chunk.schema, std::mem::take(&mut chunk.batches), None);
                let twin = over(&self.query.twin, &mut std::iter::once(leaf))?;
                self.output.send_all(&twin, &self.context).await?
            }
        };
        chunk.clear();
        Ok(wanted)
    }

    async fn on_device(&mut self, chunk: &Chunk) -> Result<rowmill_gpu::Result<bool>> {
        let query = Arc::clone(&self.query);
        let (schema, batches) = (Arc::clone(&chunk.schema), chunk.batches.clone());
        let work = move |device: &Arc<Device>| -> rowmill_gpu::Result<(Option<AggregateState>, Vec<RecordBatch>)> {
            // One buffer per column, made on the thread that may block.
            let batch = arrow::compute::concat_batches(&schema, &batches)?;
            match &query.kernels {
                Kernels::Fused(query) => {
                    let mut state = query.start();
                    let mut one = |batch: &RecordBatch| query.run(device, &query.upload(device, batch)?);
                    for part in halving(device, &batch, &mut one)? {
                        query.merge(&mut state, &part);
                    }
                    Ok((Some(state), Vec::new()))
                }
                Kernels::Grouped(query) => {
                    let mut one = |batch: &RecordBatch| query.run(device, &query.upload(device, batch)?);
                    Ok((None, halving(device, &batch, &mut one)?))
                }
            }
        };
        match self.gpu.on_lane(work).await? {
            Ok((state, groups)) => {
                if let (Some(state), Kernels::Fused(query)) = (state, &self.query.kernels) {
                    match &mut self.state {
                        Some(all) => query.merge(all, &state),
                        None => self.state = Some(state),
                    }
                }
                Ok(Ok(self.send(&groups).await?))
            }
            Err(error) => Ok(Err(error)),
        }
    }

    async fn send(&mut self, batches: &[RecordBatch]) -> Result<bool> {
        for batch in batches {
            let columns = self.query.states.iter().map(|state| state.make(batch.columns()));
            let columns = columns.collect::<Result<Vec<_>>>()?;
            let states = RecordBatch::try_new(Arc::clone(&self.output.schema), columns)?;
            self.answered = true;
            if !self.output.send(&states).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
