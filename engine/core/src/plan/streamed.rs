//! A producer that is planned apart and read by one consumer, as a leaf of the consumer's plan.
//!
//! To DataFusion's physical optimizer the producer is a table with known partitions, order and statistics. Were it a
//! child, each consumer down a long chain would optimize every producer above it again, and planning would grow with
//! the cube of the number of steps. While rows flow the leaf is transparent, except that in long chains each
//! [`TASK_EVERY`]th runs on a task of its own: a batch is pulled through the whole chain by calls into calls, and the
//! stack of a thread ends.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use datafusion::common::tree_node::{TreeNode as _, TreeNodeRecursion};
use datafusion::common::{Result, Statistics, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::execution_plan::{ReplaceChildrenOptions, reset_plan_states};
use datafusion::physical_plan::stream::RecordBatchReceiverStream;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, StatisticsArgs, StatisticsContext,
};
use futures::StreamExt as _;

/// Streamed producers one below another until one gets a task.
const TASK_EVERY: usize = 4;
/// Batches that wait between two tasks.
const BATCHES_AHEAD: usize = 2;

/// Reads one producer.
#[derive(Debug, Clone)]
pub struct StreamedExec {
    step: Arc<str>,
    input: Arc<dyn ExecutionPlan>,
    statistics: Arc<Statistics>,
    properties: Arc<PlanProperties>,
    /// Streamed producers in the longest way down, this one included.
    depth: usize,
}

impl StreamedExec {
    /// A leaf that yields what `input`, the plan of `step`, makes.
    pub fn new(step: Arc<str>, input: Arc<dyn ExecutionPlan>) -> Self {
        let statistics = StatisticsContext::new()
            .compute(input.as_ref(), &StatisticsArgs::new())
            .unwrap_or_else(|_| Arc::new(Statistics::new_unknown(&input.schema())));
        let mut below = 0;
        // Stops at the leaves, and the next producer is one.
        let walked = input.apply(|plan| {
            if let Some(streamed) = (plan.as_ref() as &dyn Any).downcast_ref::<StreamedExec>() {
                below = below.max(streamed.depth);
            }
            Ok(TreeNodeRecursion::Continue)
        });
        debug_assert!(walked.is_ok(), "looking at a plan cannot fail");
        let properties = Arc::clone(input.properties());
        StreamedExec { step, input, statistics, properties, depth: below + 1 }
    }
}

impl StreamedExec {
    /// The plan of the producer.
    pub fn input(&self) -> &Arc<dyn ExecutionPlan> {
        &self.input
    }
}

impl DisplayAs for StreamedExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StreamedExec: step {}", self.step)
    }
}

impl ExecutionPlan for StreamedExec {
    fn name(&self) -> &str {
        "StreamedExec"
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
        children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match children.is_empty() {
            true => Ok(self),
            false => internal_err!("a streamed producer is a leaf"),
        }
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        match children.is_empty() {
            true => Ok(self),
            false => internal_err!("a streamed producer is a leaf"),
        }
    }

    fn reset_state(self: Arc<Self>) -> Result<Arc<dyn ExecutionPlan>> {
        // A recursive query reads its inputs again, from the start.
        let input = reset_plan_states(Arc::clone(&self.input))?;
        Ok(Arc::new(StreamedExec { input, ..StreamedExec::clone(&self) }))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        if !self.depth.is_multiple_of(TASK_EVERY) {
            return self.input.execute(partition, context);
        }
        let mut task = RecordBatchReceiverStream::builder(self.input.schema(), BATCHES_AHEAD);
        let (input, batches) = (Arc::clone(&self.input), task.tx());
        task.spawn(async move {
            let mut rows = input.execute(partition, context)?;
            while let Some(batch) = rows.next().await {
                // Who reads has left, or hears of the failure first: the rest need not be made.
                let ended = batch.is_err();
                if batches.send(batch).await.is_err() || ended {
                    break;
                }
            }
            Ok(())
        });
        Ok(task.build())
    }

    fn statistics_from_inputs(
        &self,
        _inputs: &[Arc<Statistics>],
        arguments: &StatisticsArgs,
    ) -> Result<Arc<Statistics>> {
        Ok(match arguments.partition() {
            None => Arc::clone(&self.statistics),
            Some(_) => Arc::new(Statistics::new_unknown(&self.input.schema())),
        })
    }
}
