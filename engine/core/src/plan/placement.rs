//! The seam for resource classes with operators of their own: whoever has some, such as a GPU's, rewrites the physical
//! plans of segments of that class. The engine names none.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use datafusion::common::Result;
use datafusion::execution::SessionState;
use datafusion::physical_plan::ExecutionPlan;
use rowmill_spec::ResourceClass;

/// Rewrites the plans of one class.
pub trait ClassPlanner: fmt::Debug + Send + Sync {
    /// The plan as it is to run; the same results in the same types. The node at the top keeps its columns.
    ///
    /// # Errors
    /// [`Unserved`] when the class cannot be served as it was asked for.
    fn place(&self, plan: Arc<dyn ExecutionPlan>) -> Result<Placed>;
}

/// A class that cannot be served here as it was asked for. Travels inside a `DataFusionError`.
#[derive(Debug, thiserror::Error)]
#[error("class `{class}` cannot be served here: {reason}")]
pub struct Unserved {
    /// The class.
    pub class: &'static str,
    /// Why, and what to do.
    pub reason: String,
}

/// A plan and what `explain` says about it.
#[derive(Debug, Clone)]
pub struct Placed {
    /// The plan.
    pub plan: Arc<dyn ExecutionPlan>,
    /// A sentence for each node that was taken or could have been.
    pub notes: Vec<String>,
}

/// The planners of a session, by class.
#[derive(Debug, Clone, Default)]
pub struct ClassPlanners(pub BTreeMap<&'static str, Arc<dyn ClassPlanner>>);

/// Lets the planner of `class`, if the session has one, rewrite `plan`.
pub(crate) fn place(state: &SessionState, class: &ResourceClass, plan: Arc<dyn ExecutionPlan>) -> Result<Placed> {
    let planners = state.config().get_extension::<ClassPlanners>();
    match planners.as_ref().and_then(|planners| planners.0.get(class.as_str())) {
        Some(planner) => planner.place(plan),
        None => Ok(Placed { plan, notes: Vec::new() }),
    }
}
