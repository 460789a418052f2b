//! Turns our logical nodes into our operators, and leaves everything else to DataFusion's planner.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::Session;
use datafusion::common::{Result, internal_err};
use datafusion::execution::context::QueryPlanner;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{LogicalPlan, UserDefinedLogicalNode};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner};

use super::guarded::{GuardedExec, GuardedNode};
use super::meter::{MeterExec, MeterNode};

/// The planner that sessions of the engine use.
#[derive(Debug, Default)]
pub struct StepPlanner;

#[async_trait]
impl QueryPlanner for StepPlanner {
    async fn create_physical_plan(&self, plan: &LogicalPlan, state: &dyn Session) -> Result<Arc<dyn ExecutionPlan>> {
        DefaultPhysicalPlanner::with_extension_planners(vec![Arc::new(NodePlanner)])
            .create_physical_plan(plan, state)
            .await
    }
}

struct NodePlanner;

#[async_trait]
impl ExtensionPlanner for NodePlanner {
    async fn plan_extension(
        &self,
        _planner: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        _logical_inputs: &[&LogicalPlan],
        physical_inputs: &[Arc<dyn ExecutionPlan>],
        _state: &dyn Session,
        _context: &PhysicalPlanningContext,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        if let Some(node) = node.as_any().downcast_ref::<GuardedNode>() {
            return match physical_inputs {
                [input] => Ok(Some(Arc::new(GuardedExec::new(Arc::clone(node.guard()), Arc::clone(input))))),
                _ => internal_err!("a guarded step has one input"),
            };
        }
        let Some(node) = node.as_any().downcast_ref::<MeterNode>() else { return Ok(None) };
        match physical_inputs {
            [input] => Ok(Some(Arc::new(MeterExec::new(node.step.clone(), node.meter.clone(), Arc::clone(input))))),
            _ => internal_err!("a step boundary has one input"),
        }
    }
}
