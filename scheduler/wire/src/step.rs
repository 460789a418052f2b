//! The boundary of a step on an executor: counts what leaves the step, and puts the step's name on errors.
//!
//! Counts travel as metrics of the operator, under names that say what they are; the scheduler reads them out of the
//! reports of attempts and sums up those that stand.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result, Statistics, internal_err};
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::execution_plan::{CardinalityEffect, ChildrenPropertiesMode, ReplaceChildrenOptions};
use datafusion::physical_plan::metrics::{Count, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet};
use datafusion::physical_plan::{
    ChildStats, DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, StatisticsArgs,
};
use futures::{Stream, StreamExt as _};

const ROWS: &str = "rowmill.rows:";
const BYTES: &str = "rowmill.bytes:";
const BATCHES: &str = "rowmill.batches:";

/// What left a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepCount {
    /// Rows.
    pub rows: u64,
    /// Bytes of Arrow data.
    pub bytes: u64,
    /// Batches.
    pub batches: u64,
}

impl StepCount {
    /// Adds another count.
    pub fn add(&mut self, other: StepCount) {
        self.rows += other.rows;
        self.bytes += other.bytes;
        self.batches += other.batches;
    }
}

/// The name under which a step's rows are counted.
pub fn rows_name(step: &str) -> String {
    format!("{ROWS}{step}")
}

/// The step and what was counted, if a metric is one of a step's.
pub fn read_count(name: &str, value: u64) -> Option<(&str, StepCount)> {
    if let Some(step) = name.strip_prefix(ROWS) {
        return Some((step, StepCount { rows: value, ..StepCount::default() }));
    }
    if let Some(step) = name.strip_prefix(BYTES) {
        return Some((step, StepCount { bytes: value, ..StepCount::default() }));
    }
    let step = name.strip_prefix(BATCHES)?;
    Some((step, StepCount { batches: value, ..StepCount::default() }))
}

/// A failure with the step it happened in.
#[derive(Debug, thiserror::Error)]
#[error("step `{step}`: {source}")]
pub struct InStep {
    /// The step.
    pub step: Arc<str>,
    /// What happened.
    pub source: DataFusionError,
}

/// Counts what leaves a step.
#[derive(Debug, Clone)]
pub struct CountExec {
    step: Arc<str>,
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl CountExec {
    /// The boundary of `step` above `input`.
    pub fn new(step: Arc<str>, input: Arc<dyn ExecutionPlan>) -> Self {
        let properties = input.properties().clone();
        Self { step, input, properties, metrics: ExecutionPlanMetricsSet::new() }
    }

    /// The step.
    pub fn step(&self) -> &Arc<str> {
        &self.step
    }
}

impl DisplayAs for CountExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CountExec: step {}", self.step)
    }
}

impl ExecutionPlan for CountExec {
    fn name(&self) -> &str {
        "CountExec"
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
            (Some(input), true) => Ok(Arc::new(Self::new(Arc::clone(&self.step), input))),
            _ => internal_err!("a step boundary has one input"),
        }
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let in_step = |source| in_step(&self.step, source);
        let input = self.input.execute(partition, context).map_err(in_step)?;
        let count =
            |prefix: &str| MetricBuilder::new(&self.metrics).counter(format!("{prefix}{}", self.step), partition);
        Ok(Box::pin(CountStream {
            input,
            step: Arc::clone(&self.step),
            rows: count(ROWS),
            bytes: count(BYTES),
            batches: count(BATCHES),
        }))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
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

    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::Equal
    }
}

/// The innermost boundary that an error passes is the step it happened in.
fn in_step(step: &Arc<str>, source: DataFusionError) -> DataFusionError {
    match find(&source) {
        Some(_) => source,
        None => DataFusionError::External(Box::new(InStep { step: Arc::clone(step), source })),
    }
}

/// The step failure inside an error, if there is one.
pub fn find(error: &DataFusionError) -> Option<&InStep> {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(found) = error.downcast_ref::<InStep>() {
            return Some(found);
        }
        source = error.source();
    }
    None
}

struct CountStream {
    input: SendableRecordBatchStream,
    step: Arc<str>,
    rows: Count,
    bytes: Count,
    batches: Count,
}

impl Stream for CountStream {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.input.poll_next_unpin(context) {
            Poll::Ready(Some(Ok(batch))) => {
                self.rows.add(batch.num_rows());
                self.batches.add(1);
                let sliced =
                    |column: &datafusion::arrow::array::ArrayRef| column.to_data().get_slice_memory_size().unwrap_or(0);
                self.bytes.add(batch.columns().iter().map(sliced).sum());
                Poll::Ready(Some(Ok(batch)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(in_step(&self.step, error)))),
            other => other,
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.input.size_hint()
    }
}

impl RecordBatchStream for CountStream {
    fn schema(&self) -> SchemaRef {
        self.input.schema()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_by_name() {
        let rows = rows_name("a:b");
        assert_eq!(read_count(&rows, 7), Some(("a:b", StepCount { rows: 7, ..StepCount::default() })));
        assert_eq!(read_count("output_rows", 7), None);
    }

    #[test]
    fn the_innermost_step_stays_on_an_error() {
        let inner = in_step(&"inner".into(), DataFusionError::Execution("divide by zero".to_owned()));
        let outer = in_step(&"outer".into(), inner.context("somewhere"));
        assert_eq!(find(&outer).map(|failure| failure.step.to_string()), Some("inner".to_owned()));
    }
}
