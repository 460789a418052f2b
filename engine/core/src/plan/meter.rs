//! The boundary of a step inside a segment: counts the rows and bytes that leave it, and hides nothing.
//!
//! DataFusion plans consecutive SQL steps as one query. A [`MeterNode`] stands at the top of each step; filters,
//! limits and column pruning go through it, so that the query is as fast as if it were written in one piece, and what
//! is counted are the rows that were really made there: those that a filter of a later step removed inside the scan
//! never were.

use std::collections::HashSet;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DFSchemaRef, Result, Statistics, internal_err};
use datafusion::config::ConfigOptions;
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, Extension, LogicalPlan, UserDefinedLogicalNodeCore};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::execution_plan::{CardinalityEffect, ChildrenPropertiesMode, ReplaceChildrenOptions};
use datafusion::physical_plan::filter_pushdown::{
    ChildPushdownResult, FilterDescription, FilterPushdownPhase, FilterPushdownPropagation,
};
use datafusion::physical_plan::{
    ChildStats, DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, StatisticsArgs,
};
use futures::{Stream, StreamExt};

use crate::error::StepFailure;

/// Rows and bytes that have left one step in one run. Shared by every partition of it.
#[derive(Debug, Default)]
pub struct Meter {
    rows: AtomicU64,
    bytes: AtomicU64,
    batches: AtomicU64,
}

impl Meter {
    /// Counts one batch.
    pub fn count(&self, batch: &RecordBatch) {
        self.rows.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
        self.batches.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(sliced_bytes(batch), Ordering::Relaxed);
    }

    /// Counts rows that were made before: by an earlier attempt of a durable run.
    pub fn add(&self, rows: u64, bytes: u64) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts batches that were made elsewhere, with their rows and bytes.
    pub fn add_batches(&self, rows: u64, bytes: u64, batches: u64) {
        self.add(rows, bytes);
        self.batches.fetch_add(batches, Ordering::Relaxed);
    }

    /// Rows so far.
    pub fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    /// Bytes of Arrow data so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Batches so far.
    pub fn batches(&self) -> u64 {
        self.batches.load(Ordering::Relaxed)
    }
}

/// Bytes that the rows of a batch occupy, reckoned from its slices: a small slice of a large buffer counts small.
fn sliced_bytes(batch: &RecordBatch) -> u64 {
    batch.columns().iter().map(|column| column.to_data().get_slice_memory_size().unwrap_or(0) as u64).sum()
}

/// The step boundary in a logical plan.
#[derive(Debug, Clone)]
pub struct MeterNode {
    /// The step.
    pub step: Arc<str>,
    /// What it counts into.
    pub meter: Arc<Meter>,
    input: LogicalPlan,
}

impl MeterNode {
    /// Puts a boundary on top of `input`.
    pub fn wrap(step: Arc<str>, meter: Arc<Meter>, input: LogicalPlan) -> LogicalPlan {
        LogicalPlan::Extension(Extension { node: Arc::new(MeterNode { step, meter, input }) })
    }
}

impl PartialEq for MeterNode {
    fn eq(&self, other: &Self) -> bool {
        self.step == other.step && self.input == other.input
    }
}
impl Eq for MeterNode {}
impl PartialOrd for MeterNode {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        (self == other).then_some(std::cmp::Ordering::Equal)
    }
}
impl Hash for MeterNode {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.step.hash(state);
        self.input.hash(state);
    }
}

impl UserDefinedLogicalNodeCore for MeterNode {
    fn name(&self) -> &str {
        "Step"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        self.input.schema()
    }

    fn expressions(&self) -> Vec<Expr> {
        Vec::new()
    }

    fn prevent_predicate_push_down_columns(&self) -> HashSet<String> {
        // Nothing is prevented: the steps of one segment are pure SQL, so which of two filters runs first is unseen.
        HashSet::new()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Step: {}", self.step)
    }

    fn with_exprs_and_inputs(&self, _expressions: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        match (inputs.pop(), inputs.is_empty()) {
            (Some(input), true) => Ok(MeterNode { step: self.step.clone(), meter: self.meter.clone(), input }),
            _ => internal_err!("a step boundary has one input"),
        }
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        Some(vec![output_columns.to_vec()])
    }

    fn supports_limit_pushdown(&self) -> bool {
        true
    }
}

/// The step boundary in a physical plan.
#[derive(Debug, Clone)]
pub struct MeterExec {
    step: Arc<str>,
    meter: Arc<Meter>,
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl MeterExec {
    /// Counts what `input` yields into `meter`.
    pub fn new(step: Arc<str>, meter: Arc<Meter>, input: Arc<dyn ExecutionPlan>) -> Self {
        let properties = input.properties().clone();
        MeterExec { step, meter, input, properties }
    }

    /// The step whose boundary this is.
    pub fn step(&self) -> &Arc<str> {
        &self.step
    }

    /// What it counts into.
    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// Whose rows it counts.
    pub fn input(&self) -> &Arc<dyn ExecutionPlan> {
        &self.input
    }

    fn over(&self, input: Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
        Arc::new(MeterExec::new(self.step.clone(), self.meter.clone(), input))
    }
}

impl DisplayAs for MeterExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StepExec: {}", self.step)
    }
}

impl ExecutionPlan for MeterExec {
    fn name(&self) -> &str {
        "StepExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
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
            (Some(input), true) => Ok(self.over(input)),
            _ => internal_err!("a step boundary has one input"),
        }
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, context).map_err(|error| StepFailure::wrap(&self.step, error))?;
        Ok(Box::pin(MeterStream { input, step: self.step.clone(), meter: self.meter.clone() }))
    }

    fn child_stats_requests(&self, partition: Option<usize>) -> Vec<ChildStats> {
        vec![ChildStats::At(partition)]
    }

    fn statistics_from_inputs(
        &self,
        inputs: &[Arc<Statistics>],
        _arguments: &StatisticsArgs,
    ) -> Result<Arc<Statistics>> {
        match inputs {
            [input] => Ok(Arc::clone(input)),
            _ => internal_err!("a step boundary has one input"),
        }
    }

    fn supports_limit_pushdown(&self) -> bool {
        true
    }

    fn with_fetch(&self, limit: Option<usize>) -> Option<Arc<dyn ExecutionPlan>> {
        self.input.with_fetch(limit).map(|input| self.over(input))
    }

    fn fetch(&self) -> Option<usize> {
        self.input.fetch()
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::Equal
    }

    fn gather_filters_for_pushdown(
        &self,
        _phase: FilterPushdownPhase,
        parent_filters: Vec<Arc<dyn PhysicalExpr>>,
        _config: &ConfigOptions,
    ) -> Result<FilterDescription> {
        FilterDescription::from_children(parent_filters, &self.children())
    }

    fn handle_child_pushdown_result(
        &self,
        _phase: FilterPushdownPhase,
        child_pushdown_result: ChildPushdownResult,
        _config: &ConfigOptions,
    ) -> Result<FilterPushdownPropagation<Arc<dyn ExecutionPlan>>> {
        Ok(FilterPushdownPropagation::if_all(child_pushdown_result))
    }
}

struct MeterStream {
    input: SendableRecordBatchStream,
    step: Arc<str>,
    meter: Arc<Meter>,
}

impl Stream for MeterStream {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.input.poll_next_unpin(context) {
            Poll::Ready(Some(Ok(batch))) => {
                self.meter.count(&batch);
                Poll::Ready(Some(Ok(batch)))
            }
            // The innermost boundary that an error passes is the step it happened in.
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(StepFailure::wrap(&self.step, error)))),
            other => other,
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.input.size_hint()
    }
}

impl RecordBatchStream for MeterStream {
    fn schema(&self) -> SchemaRef {
        self.input.schema()
    }
}
