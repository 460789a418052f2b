//! The partial step of an aggregate on the device. It gives the states that DataFusion's partial aggregate gives, any
//! number of rows for one group, and DataFusion's final aggregate above merges them; so a chunk may be cut in halves,
//! and any of them may be taken by the CPU's twin, which is DataFusion's partial aggregate itself.
//!
//! ```text
//! input ─▶ chunk ─▶ device: filter, arguments, groups ─▶ states ─┐
//!             └───▶ twin: FilterExec, AggregateExec(Partial) ────┴▶ AggregateExec(Final)
//! ```
//! Where the input is a join on the device, its rows stay there ([`super::feed`]).
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
use rowmill_gpu::batch::DeviceBatch;
use rowmill_gpu::device::Device;
use rowmill_gpu::ops::filter_aggregate::{AggregateState, FilterAggregate};
use rowmill_gpu::ops::group_by::GroupBy;

use super::feed::{Feed, Joined, Part};
use super::{Chunk, Counts, Output, ReplayExec, give_up, halving, one_partition, over};
use crate::context::{GpuContext, Watch};
use crate::decide::{Decision, Operator};

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

impl Query {
    fn upload(&self, device: &Device, rows: &RecordBatch) -> rowmill_gpu::Result<DeviceBatch> {
        match &self.kernels {
            Kernels::Fused(query) => query.upload(device, rows),
            Kernels::Grouped(query) => query.upload(device, rows),
        }
    }

    fn run(&self, device: &Device, rows: &DeviceBatch) -> rowmill_gpu::Result<Made> {
        match &self.kernels {
            Kernels::Fused(query) => Ok((Some(query.run(device, rows)?), None, rows.rows())),
            Kernels::Grouped(query) => Ok((None, Some(query.run(device, rows)?), rows.rows())),
        }
    }
}

/// The partial aggregate.
pub(crate) struct GpuAggregateExec {
    gpu: Arc<GpuContext>,
    query: Arc<Query>,
    input: Arc<dyn ExecutionPlan>,
    /// Whether the input's rows can be had on the device.
    fed: bool,
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
        let fed = Feed::is_possible(&input);
        Self { gpu, query, input, fed, properties, metrics: ExecutionPlanMetricsSet::new() }
    }
}

impl fmt::Debug for GpuAggregateExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GpuAggregateExec").field("query", &self.query.text).finish_non_exhaustive()
    }
}

impl DisplayAs for GpuAggregateExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}{}",
            self.name(),
            self.query.text,
            if self.fed { ", joined rows stay on the device" } else { "" }
        )
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
        let all: Vec<usize> = (0..self.input.schema().fields().len()).collect();
        let input = match Feed::try_new(&self.input, &all, &context).filter(|_| self.fed) {
            Some(feed) => Input::Feed(Box::new(feed)),
            None => Input::Rows(self.input.execute(0, Arc::clone(&context))?),
        };
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
            watch: Watch::default(),
        };
        let chunk = Chunk::new(self.name(), self.input.schema(), &run.context);
        builder.spawn(run.all(input, chunk));
        Ok(builder.build())
    }
}

/// Where the rows come from.
enum Input {
    Rows(SendableRecordBatchStream),
    Feed(Box<Feed>),
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
    watch: Watch,
}

/// What the device gives for a piece of the input: a state, or groups; and the rows of the piece.
type Made = (Option<AggregateState>, Option<RecordBatch>, usize);

impl Run {
    async fn all(mut self, input: Input, mut chunk: Chunk) -> Result<()> {
        let wanted = match input {
            Input::Rows(rows) => self.gather(rows, &mut chunk).await?,
            Input::Feed(mut feed) => loop {
                let wanted = match feed.next().await? {
                    None => break true,
                    Some(Part::Host(rows)) => self.gather(rows, &mut chunk).await?,
                    Some(Part::Device(joined)) => self.take(joined, &mut chunk).await?,
                };
                if !wanted {
                    break false;
                }
            },
        };
        if !wanted || (!chunk.is_empty() && !self.flush(&mut chunk).await?) {
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

    /// Takes rows of the host in. False when nobody wants the result any more.
    async fn gather(&mut self, mut rows: SendableRecordBatchStream, chunk: &mut Chunk) -> Result<bool> {
        while let Some(batch) = rows.next().await {
            let room = chunk.push(batch?);
            if (!room || chunk.bytes >= self.gpu.options().launch_bytes) && !self.flush(chunk).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn operator(&self) -> Operator {
        match self.query.kernels {
            Kernels::Fused(_) => Operator::FilterAggregate,
            Kernels::Grouped(_) => Operator::GroupBy,
        }
    }

    /// Whether the device is to do so many rows.
    fn decide(&self, rows: usize, bytes: usize, resident: bool) -> Decision {
        if self.gave_up || !self.watch.allows() {
            return Decision::plain(false, "the device did not keep its word");
        }
        let kernels = || match &self.query.kernels {
            Kernels::Fused(query) => vec![query.source().to_owned()],
            Kernels::Grouped(query) => vec![query.source().to_owned()],
        };
        self.gpu.decide_now(self.operator(), rows, bytes, resident, kernels)
    }

    /// Aggregates joined rows where they are; or has them brought to the host.
    async fn take(&mut self, joined: Joined, chunk: &mut Chunk) -> Result<bool> {
        let rows = joined.rows().num_rows();
        let decision = joined.with_joins(self.decide(rows, super::bytes_of(joined.rows()), true));
        if decision.offload {
            let (query, work) = (Arc::clone(&self.query), joined.clone());
            let work = move |device: &Arc<Device>| -> rowmill_gpu::Result<Vec<Made>> {
                let mut one = |part: &RecordBatch| query.run(device, &work.over(part).on_device(device)?);
                halving(device, work.rows(), &mut one)
            };
            match self.gpu.on_lane(work).await? {
                Ok((made, took)) => {
                    let rows = made.iter().map(|(_, _, rows)| rows).sum();
                    joined.done(rows);
                    self.counts.gpu_rows.add(rows);
                    self.counts.resident_rows.add(rows);
                    self.watch.saw(self.operator(), &decision, took);
                    return self.merge(made).await;
                }
                Err(error) => {
                    give_up(&self.name, &error)?;
                    self.gave_up = matches!(error, Error::Data(_) | Error::Unsupported(_));
                }
            }
        }
        let rows = joined.on_host().await?;
        self.gather(rows, chunk).await
    }

    /// Aggregates what was gathered. False when nobody wants the result any more.
    async fn flush(&mut self, chunk: &mut Chunk) -> Result<bool> {
        let rows = chunk.rows;
        let decision = self.decide(rows, chunk.bytes, false);
        let wanted = if decision.offload {
            let (query, schema, batches) = (Arc::clone(&self.query), Arc::clone(&chunk.schema), chunk.batches.clone());
            let work = move |device: &Arc<Device>| -> rowmill_gpu::Result<Vec<Made>> {
                // One buffer per column, made on the thread that may block.
                let batch = arrow::compute::concat_batches(&schema, &batches)?;
                let mut one = |part: &RecordBatch| query.run(device, &query.upload(device, part)?);
                halving(device, &batch, &mut one)
            };
            match self.gpu.on_lane(work).await? {
                Ok((made, took)) => {
                    self.counts.gpu_rows.add(rows);
                    self.watch.saw(self.operator(), &decision, took);
                    Some(self.merge(made).await?)
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

    /// Adds what the device gave. False when nobody wants the result any more.
    async fn merge(&mut self, made: Vec<Made>) -> Result<bool> {
        let mut groups = Vec::new();
        for (state, more, _) in made {
            groups.extend(more);
            if let (Some(state), Kernels::Fused(query)) = (state, &self.query.kernels) {
                match &mut self.state {
                    Some(all) => query.merge(all, &state),
                    None => self.state = Some(state),
                }
            }
        }
        self.send(&groups).await
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
