//! The operator that calls a function for the batches of a partition, cut to the rows that were asked for.

use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, EmissionType, ReplaceChildrenOptions};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties as _, PlanProperties,
};
use futures::StreamExt as _;
use futures::stream::BoxStream;

use super::shape::Shape;

/// Rows that a function sees at once where nothing else is said: a column of numbers, and what is made of it, stay in the
/// cache of one core.
const SLICE_ROWS: usize = 1 << 16;

/// A function of the user's over the batches of a partition, in order.
#[derive(Debug)]
pub(super) struct PythonExec {
    shape: Arc<Shape>,
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl PythonExec {
    pub(super) fn new(shape: Arc<Shape>, input: Arc<dyn ExecutionPlan>) -> PythonExec {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&shape.schema)),
            datafusion::physical_plan::Partitioning::UnknownPartitioning(input.output_partitioning().partition_count()),
            EmissionType::Incremental,
            input.boundedness(),
        );
        PythonExec { shape, input, properties: Arc::new(properties) }
    }
}

impl DisplayAs for PythonExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PythonExec: {}", self.shape.call.name)?;
        if let Some(class) = &self.shape.class {
            write!(f, ", class={class}")?;
        }
        match self.shape.batch_rows {
            Some(rows) => write!(f, ", batch={rows}"),
            None => Ok(()),
        }
    }
}

impl ExecutionPlan for PythonExec {
    fn name(&self) -> &str {
        "PythonExec"
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
            (Some(input), true) => Ok(Arc::new(PythonExec::new(Arc::clone(&self.shape), input))),
            _ => internal_err!("a function has one input"),
        }
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, context)?;
        let shape = Arc::clone(&self.shape);
        let sized = sized(input, shape.batch_rows, SLICE_ROWS);
        let schema = Arc::clone(&shape.schema);
        let mapped = sized.map(move |batch| shape.apply(&batch?));
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, mapped)))
    }
}

/// Batches of exactly so many rows (the last one fewer), or without copying, of no more than the default.
fn sized(
    input: SendableRecordBatchStream,
    rows: Option<usize>,
    most: usize,
) -> BoxStream<'static, Result<RecordBatch>> {
    match rows {
        Some(rows) => {
            let gather = Gather { schema: input.schema(), input, rows, held: Vec::new(), count: 0, ended: false };
            futures::stream::try_unfold(gather, |mut gather| async move {
                Ok(gather.next().await?.map(|batch| (batch, gather)))
            })
            .boxed()
        }
        None => {
            let cut = input.map(move |batch| match batch {
                Ok(batch) => (0..batch.num_rows())
                    .step_by(most)
                    .map(|at| Ok(batch.slice(at, most.min(batch.num_rows() - at))))
                    .collect::<Vec<_>>(),
                Err(error) => vec![Err(error)],
            });
            cut.flat_map(futures::stream::iter).boxed()
        }
    }
}

/// Gathers rows until there are enough for a call.
struct Gather {
    input: SendableRecordBatchStream,
    schema: SchemaRef,
    rows: usize,
    held: Vec<RecordBatch>,
    count: usize,
    ended: bool,
}

impl Gather {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        while self.count < self.rows && !self.ended {
            match self.input.next().await.transpose()? {
                Some(batch) => {
                    self.count += batch.num_rows();
                    self.held.push(batch);
                }
                None => self.ended = true,
            }
        }
        if self.count == 0 {
            return Ok(None);
        }
        let mut held = std::mem::take(&mut self.held);
        let all = match held.len() {
            1 => held.remove(0),
            _ => concat_batches(&self.schema, &held)?,
        };
        let batch = all.slice(0, self.rows.min(self.count));
        self.count -= batch.num_rows();
        if self.count > 0 {
            self.held.push(all.slice(batch.num_rows(), self.count));
        }
        Ok(Some(batch))
    }
}
