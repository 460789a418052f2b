//! A guarded step inside a physical plan.

use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::BatchCoalescer;
use arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{
    Boundedness, ChildrenPropertiesMode, EmissionType, ReplaceChildrenOptions,
};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};
use futures::{StreamExt as _, stream};
use rowmill_step::ItemIds;

use super::Guard;
use super::rows::Sorter;

/// Runs a guarded step over each partition of its input.
#[derive(Debug)]
pub struct GuardedExec {
    input: Arc<dyn ExecutionPlan>,
    guard: Arc<Guard>,
    properties: Arc<PlanProperties>,
}

impl GuardedExec {
    /// The step over `input`, which has the columns that its chain takes.
    pub fn new(guard: Arc<Guard>, input: Arc<dyn ExecutionPlan>) -> Self {
        let partitions = input.properties().partitioning.partition_count();
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&guard.schema)),
            Partitioning::UnknownPartitioning(partitions),
            EmissionType::Incremental,
            Boundedness::Bounded,
        ));
        GuardedExec { input, guard, properties }
    }
}

impl DisplayAs for GuardedExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuardedExec: {}, {}", self.guard.describe(), self.guard.chain.describe())
    }
}

impl ExecutionPlan for GuardedExec {
    fn name(&self) -> &str {
        "GuardedExec"
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.guard.schema)
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
            (Some(input), true) => Ok(Arc::new(GuardedExec::new(Arc::clone(&self.guard), input))),
            _ => internal_err!("a guarded step has one input"),
        }
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let rows = context.session_config().batch_size();
        let run = Run {
            input: self.input.execute(partition, context)?,
            sorter: Sorter::try_new(&self.guard.chain)?,
            place: u32::try_from(partition).unwrap_or(u32::MAX),
            next: 0,
            // Filters leave small batches, which cost whoever comes next.
            gathered: self.guard.chain.filters().then(|| BatchCoalescer::new(self.schema(), rows)),
            over: false,
            guard: Arc::clone(&self.guard),
        };
        let output = stream::unfold(run, |mut run| async move {
            match run.advance().await {
                Ok(Some(rows)) => Some((Ok(rows), run)),
                Ok(None) => None,
                Err(error) => {
                    run.over = true;
                    run.gathered = None;
                    Some((Err(error), run))
                }
            }
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), output)))
    }
}

/// One partition on its way.
struct Run {
    input: SendableRecordBatchStream,
    sorter: Sorter,
    guard: Arc<Guard>,
    place: u32,
    /// The ordinal of the next row that comes in.
    next: u64,
    gathered: Option<BatchCoalescer>,
    over: bool,
}

impl Run {
    /// The next rows; none when the input is over.
    async fn advance(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some(rows) = self.gathered.as_mut().and_then(BatchCoalescer::next_completed_batch) {
                return Ok(Some(rows));
            }
            if self.over {
                return Ok(None);
            }
            let Some(batch) = self.input.next().await.transpose()? else {
                self.over = true;
                if let Some(gathered) = &mut self.gathered {
                    gathered.finish_buffered_batch()?;
                }
                continue;
            };
            if batch.num_rows() == 0 {
                continue;
            }
            let first = self.next;
            self.next += batch.num_rows() as u64;
            let ids = ItemIds::Range { file: self.place, rows: first..self.next };
            let sorted = self.sorter.sort(&batch)?;
            let rows = self.guard.settle(&batch, &ids, sorted)?;
            match &mut self.gathered {
                Some(gathered) => gathered.push_batch(rows)?,
                None if rows.num_rows() > 0 => return Ok(Some(rows)),
                None => {}
            }
        }
    }
}
