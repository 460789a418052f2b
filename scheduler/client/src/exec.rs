//! A leaf whose rows a cluster makes.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result, Statistics, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, ReplaceChildrenOptions};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties, StatisticsArgs, StatisticsContext,
    displayable,
};
use futures::{StreamExt as _, TryStreamExt as _};
use rowmill_engine::places::PlaceLog;
use rowmill_engine::plan::meter::Meter;
use rowmill_wire::class::Demand;
use tokio::sync::OnceCell;

use crate::result::JobResult;
use crate::submit::Cluster;

/// A part of a plan that a cluster runs.
#[derive(Debug)]
pub(crate) struct Placed {
    /// What people call it.
    pub(crate) name: String,
    /// What its stages ask for where they say nothing else.
    pub(crate) demand: Demand,
    /// The stage that it is a part of.
    pub(crate) stage: String,
    /// The part as it was planned here.
    pub(crate) plan: Arc<dyn ExecutionPlan>,
    /// The part as it is sent.
    pub(crate) bytes: Vec<u8>,
    /// What the steps in it count into.
    pub(crate) meters: HashMap<Arc<str>, Arc<Meter>>,
    /// Where it is noted who ran it.
    pub(crate) places: Arc<PlaceLog>,
}

/// Yields the rows that a cluster makes of a part of a plan. The part is submitted when the first partition is read, and
/// rows flow when all of them are here.
#[derive(Debug)]
pub struct ClusterExec {
    placed: Arc<Placed>,
    cluster: Cluster,
    properties: Arc<PlanProperties>,
    statistics: Arc<Statistics>,
    result: Arc<OnceCell<Result<Arc<JobResult>, Arc<DataFusionError>>>>,
}

impl ClusterExec {
    pub(crate) fn new(placed: Placed, cluster: Cluster) -> Self {
        let own = placed.plan.properties();
        let partitions = own.output_partitioning().partition_count();
        // Which rows come in which of several partitions is the cluster's business.
        let equivalence = match partitions {
            1 => own.equivalence_properties().clone(),
            _ => EquivalenceProperties::new(placed.plan.schema()),
        };
        let partitioning = Partitioning::UnknownPartitioning(partitions);
        let properties = PlanProperties::new(equivalence, partitioning, EmissionType::Final, Boundedness::Bounded);
        let statistics = StatisticsContext::new()
            .compute(placed.plan.as_ref(), &StatisticsArgs::new())
            .unwrap_or_else(|_| Arc::new(Statistics::new_unknown(&placed.plan.schema())));
        Self { placed: Arc::new(placed), cluster, properties: Arc::new(properties), statistics, result: Arc::default() }
    }

    /// The part that runs elsewhere.
    pub fn part(&self) -> &Arc<dyn ExecutionPlan> {
        &self.placed.plan
    }

    /// What it asks for.
    pub fn demand(&self) -> &Demand {
        &self.placed.demand
    }
}

impl DisplayAs for ClusterExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Demand { class, memory_bytes, .. } = &self.placed.demand;
        write!(f, "ClusterExec: class={class}, ")?;
        if *memory_bytes > 0 {
            write!(f, "memory={memory_bytes} bytes, ")?;
        }
        write!(f, "runs on the cluster:")?;
        for line in displayable(self.placed.plan.as_ref()).indent(false).to_string().lines() {
            write!(f, "\n    | {line}")?;
        }
        Ok(())
    }
}

impl ExecutionPlan for ClusterExec {
    fn name(&self) -> &str {
        "ClusterExec"
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
            false => internal_err!("what runs on a cluster is a leaf"),
        }
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        match children.is_empty() {
            true => Ok(self),
            false => internal_err!("what runs on a cluster is a leaf"),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let (cluster, placed, result) = (self.cluster.clone(), Arc::clone(&self.placed), Arc::clone(&self.result));
        let partitions = self.properties.output_partitioning().partition_count();
        let rows = async move {
            // Whoever reads first has the part run; the others wait for that.
            match result.get_or_init(|| cluster.run(&placed, partitions, &context)).await {
                Ok(result) => result.rows(partition),
                Err(error) => Err(DataFusionError::Shared(Arc::clone(error))),
            }
        };
        let rows = futures::stream::once(rows).try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows.boxed())))
    }

    fn statistics_from_inputs(
        &self,
        _inputs: &[Arc<Statistics>],
        arguments: &StatisticsArgs,
    ) -> Result<Arc<Statistics>> {
        Ok(match arguments.partition() {
            None => Arc::clone(&self.statistics),
            Some(_) => Arc::new(Statistics::new_unknown(&self.schema())),
        })
    }
}
