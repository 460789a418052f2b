//! Running parts of plans somewhere else than in this process: the seam that a cluster plugs into.
//!
//! The engine plans a workflow as ever and hands each segment's physical plan to an [`Elsewhere`], which may replace
//! what it can run elsewhere by leaves that yield the same rows. What is left (writers of sinks, steps that are not
//! SQL, spools) runs here.

use std::fmt;
use std::sync::Arc;

use datafusion::common::{DataFusionError, Result};
use datafusion::optimizer::OptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionConfig;
use rowmill_spec::Diagnostic;

/// A segment whose plan may run elsewhere.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// What people call it: the workflow and the segment's last step.
    pub name: &'a str,
    /// The class that it asks for.
    pub class: &'a str,
    /// Whether a step of this process reads its rows, so that a part that only reads is as well read here.
    pub read_here: bool,
}

/// Somewhere else to run plans.
pub trait Elsewhere: fmt::Debug + Send + Sync {
    /// Sets what plans must be made with, so that they can run elsewhere.
    fn configure(&self, config: &mut SessionConfig);

    /// Rules for the logical optimizer, to go before DataFusion's own.
    fn rules(&self) -> Vec<Arc<dyn OptimizerRule + Send + Sync>>;

    /// The plan with what can run elsewhere replaced. The same rows come out of it, and the same counts go into its
    /// meters.
    ///
    /// # Errors
    /// A plan that cannot be rebuilt.
    fn place(&self, part: Part<'_>, plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>>;
}

/// An error that was reported where it happened, on its way to the run.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}", .report.message)]
pub struct Reported {
    /// The report.
    pub report: Diagnostic,
    /// Whether memory ran out, so that another plan may go through.
    pub out_of_memory: bool,
}

impl Reported {
    /// Puts a report into an error.
    pub fn into_error(self) -> DataFusionError {
        DataFusionError::External(Box::new(self))
    }
}
