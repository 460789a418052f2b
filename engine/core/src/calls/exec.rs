//! A step that is not SQL inside a physical plan.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{
    Boundedness, ChildrenPropertiesMode, EmissionType, ReplaceChildrenOptions,
};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};
use futures::{StreamExt as _, TryStreamExt as _};
use rowmill_items::{BoxError, Ledger, Scope, StepOperator};

/// Runs a step operator over each partition of its input, or over all of them one after the other.
#[derive(Debug)]
pub struct CallExec {
    input: Arc<dyn ExecutionPlan>,
    in_order: bool,
    operator: Arc<StepOperator>,
    ledger: Arc<Ledger>,
    properties: Arc<PlanProperties>,
}

impl CallExec {
    /// The step over `input`, whose columns the operator was made for. With `in_order` its partitions are read one after
    /// the other, so that rows leave in the order of the input as a whole: files are cut into partitions in their order.
    pub fn new(
        input: Arc<dyn ExecutionPlan>,
        in_order: bool,
        operator: Arc<StepOperator>,
        ledger: Arc<Ledger>,
    ) -> Self {
        let partitions = if in_order { 1 } else { input.properties().partitioning.partition_count() };
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(operator.schema())),
            Partitioning::UnknownPartitioning(partitions),
            EmissionType::Incremental,
            Boundedness::Bounded,
        ));
        CallExec { input, in_order, operator, ledger, properties }
    }
}

impl DisplayAs for CallExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let description = self.operator.executor().describe();
        let policy = self.operator.policy();
        write!(
            f,
            "CallExec: {} {}, {}, in_flight={}, batch_rows={}",
            description.kind, description.summary, policy.effects, policy.target.in_flight, policy.target.rows
        )
    }
}

impl ExecutionPlan for CallExec {
    fn name(&self) -> &str {
        "CallExec"
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(self.operator.schema())
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
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
            (Some(input), true) => {
                let (operator, ledger) = (Arc::clone(&self.operator), Arc::clone(&self.ledger));
                Ok(Arc::new(CallExec::new(input, self.in_order, operator, ledger)))
            }
            _ => internal_err!("a step has one input"),
        }
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = match self.in_order {
            false => self.input.execute(partition, context)?.boxed(),
            true => {
                let input = Arc::clone(&self.input);
                let partitions = 0..input.properties().partitioning.partition_count();
                let one = move |partition| futures::future::ready(input.execute(partition, Arc::clone(&context)));
                futures::stream::iter(partitions).then(one).try_flatten().boxed()
            }
        };
        let input = input.map(|batch| batch.map_err(|error| Box::new(error) as BoxError));
        let scope = Scope {
            place: u32::try_from(partition).unwrap_or(u32::MAX),
            ledger: Arc::clone(&self.ledger),
            tally: Arc::clone(self.operator.tally()),
            log: None,
            earlier: None,
        };
        let output = self.operator.run(scope, input.boxed()).map(|batch| batch.map_err(datafusion_error));
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), output)))
    }
}

/// An error of the operator: the input's own comes out as it went in.
pub(crate) fn datafusion_error(error: BoxError) -> DataFusionError {
    match error.downcast::<DataFusionError>() {
        Ok(error) => *error,
        Err(other) => DataFusionError::External(other),
    }
}
