//! Running parts of plans somewhere else than in this process: the seam that a cluster plugs into.
//!
//! The engine plans a workflow as ever and hands each segment's physical plan to an [`Elsewhere`], which may replace
//! what it can run elsewhere by leaves that yield the same rows. Of a step that is not SQL, the attempts may be made
//! elsewhere; what holds for its items (groups, retries, limits, ledger, effect log, cache) stays here. What is left
//! (writers of sinks, spools) runs here.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use datafusion::common::{DataFusionError, Result};
use datafusion::optimizer::OptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionConfig;
use rowmill_spec::{Diagnostic, Step};
use rowmill_step::{Effects, StepExecutor, StepShape};

use crate::places::PlaceLog;

/// A segment whose plan may run elsewhere.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// What people call it: the workflow and the segment's last step.
    pub name: &'a str,
    /// The class that it asks for.
    pub class: &'a str,
    /// Bytes of memory that each of its partitions asks for; zero where none of its steps says so.
    pub memory_bytes: u64,
    /// Its last step, or what it reads; with `.input` where that is a step whose input it makes.
    pub stage: &'a str,
    /// Whether a step of this process reads its rows, so that a part that only reads is as well read here.
    pub read_here: bool,
    /// Whether what is made row by row must come in the same order whenever it is made again, as in durable runs.
    pub in_order: bool,
    /// Where it is noted who ran it.
    pub places: &'a Arc<PlaceLog>,
}

/// A segment's plan with what runs elsewhere replaced.
#[derive(Debug, Clone)]
pub struct Sent {
    /// The plan.
    pub plan: Arc<dyn ExecutionPlan>,
    /// Whether all of it runs elsewhere.
    pub whole: bool,
    /// Sentences for `explain`.
    pub notes: Vec<String>,
}

/// A step that is not SQL, checked, whose attempts may be made elsewhere.
#[derive(Debug, Clone, Copy)]
pub struct Attempts<'a> {
    /// The step as it was written.
    pub step: &'a Step,
    /// The texts of the parameters and variables that its templates name: `params.day`.
    pub values: &'a BTreeMap<String, String>,
    /// Where relative paths start.
    pub base: &'a Path,
    /// The class that its calls ask for.
    pub class: &'a str,
    /// What running it again means, as the workflow has it.
    pub effects: Effects,
    /// Groups that are under way at once.
    pub in_flight: usize,
    /// What makes attempts in this process.
    pub executor: &'a Arc<dyn StepExecutor>,
    /// The columns that it reads and adds.
    pub shape: &'a StepShape,
}

/// Somewhere else to run plans.
pub trait Elsewhere: fmt::Debug + Send + Sync {
    /// Sets what plans must be made with, so that they can run elsewhere.
    fn configure(&self, config: &mut SessionConfig);

    /// Rules for the logical optimizer, to go before DataFusion's own. Durable runs go without: whether a cluster is
    /// there must not change what their stages are.
    fn rules(&self) -> Vec<Arc<dyn OptimizerRule + Send + Sync>>;

    /// The plan with what can run elsewhere replaced. The same rows come out of it, and the same counts go into its
    /// meters.
    ///
    /// # Errors
    /// A plan that cannot be rebuilt.
    fn place(&self, part: Part<'_>, plan: Arc<dyn ExecutionPlan>) -> Result<Sent>;

    /// What makes the attempts of a step elsewhere; the step's own executor where they are made here. Nothing is asked
    /// of anybody yet.
    ///
    /// # Errors
    /// The step cannot be sent.
    fn attempts(&self, step: Attempts<'_>) -> std::result::Result<Arc<dyn StepExecutor>, Diagnostic> {
        Ok(Arc::clone(step.executor))
    }
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
