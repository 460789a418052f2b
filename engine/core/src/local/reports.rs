//! What a run says of itself when it is over: its steps, its items and its sinks, or why it failed.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use indexmap::IndexMap;
use rowmill_items::{LedgerSample, Tally, TallySnapshot};
use rowmill_spec::{Diagnostics, Format, LogicalType};
use rowmill_step::Outcome;
use uuid::Uuid;

use crate::calls::RunScope;
use crate::compile::{CheckedStep, Compiled};
use crate::places::{Place, StagePlace, of_calls, of_stage};

/// What a run did.
#[derive(Debug, Clone)]
pub struct RunReport {
    /// Its id (UUIDv7).
    pub id: Uuid,
    /// The workflow's name.
    pub workflow: String,
    /// Steps in order: rows and bytes that left them.
    pub steps: Vec<StepReport>,
    /// Steps that nobody needed.
    pub unneeded: Vec<String>,
    /// Sinks, as published.
    pub sinks: Vec<SinkReport>,
    /// Rows that the program asked for, by step.
    pub collected: IndexMap<String, Vec<RecordBatch>>,
    /// From the start to the last publication.
    pub elapsed: Duration,
    /// Steps that are not simply SQL: what became of their items.
    pub items: Vec<ItemsReport>,
    /// Whether joins had to sort because hashing did not fit into memory.
    pub replanned: bool,
    /// Which process did what, where a cluster was there; of a run that is not durable, what executors did.
    pub places: Vec<StagePlace>,
    /// Warnings of the compiler.
    pub warnings: Diagnostics,
}

/// What left a step.
#[derive(Debug, Clone)]
pub struct StepReport {
    /// The step.
    pub name: String,
    /// Its class.
    pub class: String,
    /// Rows.
    pub rows: u64,
    /// Bytes of Arrow data.
    pub bytes: u64,
    /// Batches.
    pub batches: u64,
}

/// What became of the items of one step.
#[derive(Debug, Clone)]
pub struct ItemsReport {
    /// The step.
    pub step: String,
    /// The counts.
    pub counts: TallySnapshot,
    /// The first few items that are not simply ok.
    pub samples: Vec<LedgerSample>,
}

impl ItemsReport {
    /// Items that did not get their result, and that no default stands in for.
    pub fn failures(&self) -> u64 {
        [Outcome::Failed, Outcome::DeadLettered, Outcome::Unknown]
            .into_iter()
            .map(|outcome| self.counts.outcomes.get(outcome))
            .sum()
    }
}

/// What a sink published.
#[derive(Debug, Clone)]
pub struct SinkReport {
    /// The sink.
    pub name: String,
    /// Its path as the workflow says it.
    pub path: String,
    /// Rows.
    pub rows: u64,
    /// The format of its files.
    pub format: Format,
    /// Columns that became folders, with their types, for whoever reads it back.
    pub partitions: Vec<(String, LogicalType)>,
}

/// How a run ended that did not succeed.
#[derive(Debug)]
pub enum RunError {
    /// Reports; their gravest fault says whose it is.
    Failed(Diagnostics),
    /// It was cancelled; nothing was published.
    Cancelled,
}

impl std::fmt::Display for RunError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RunError::Failed(reports) => reports.fmt(f),
            RunError::Cancelled => f.write_str("the run was cancelled; nothing was published"),
        }
    }
}

impl std::error::Error for RunError {}

impl From<Diagnostics> for RunError {
    fn from(reports: Diagnostics) -> Self {
        RunError::Failed(reports)
    }
}

pub(crate) fn step_reports(compiled: &Compiled) -> Vec<StepReport> {
    compiled
        .steps
        .iter()
        .filter_map(|(name, step)| {
            let meter = compiled.meters.get(name)?;
            Some(StepReport {
                name: name.clone(),
                class: step.class.as_str().to_owned(),
                rows: meter.rows(),
                bytes: meter.bytes(),
                batches: meter.batches(),
            })
        })
        .collect()
}

pub(super) fn items_reports(compiled: &Compiled, scope: &RunScope) -> Vec<ItemsReport> {
    let running = scope.steps.lock();
    let samples = |step: &CheckedStep, tally: &Arc<Tally>| match step.guard() {
        Some(guard) => guard.ledger().map(|ledger| ledger.samples()).unwrap_or_default(),
        None => {
            let own = running.iter().filter(|step| Arc::ptr_eq(step.operator.tally(), tally));
            own.flat_map(|step| step.ledger.samples()).collect()
        }
    };
    let steps = compiled.steps.iter();
    steps
        .filter_map(|(name, step)| {
            let tally = step.tally()?;
            Some(ItemsReport { step: name.clone(), counts: tally.snapshot(), samples: samples(step, tally) })
        })
        .collect()
}

/// What executors did for a run, by step.
pub(super) fn places(compiled: &Compiled, scope: &RunScope) -> Vec<StagePlace> {
    let mut queried: IndexMap<String, Vec<Place>> = IndexMap::new();
    for (step, place) in scope.places.take() {
        queried.entry(step).or_default().push(place);
    }
    let mut all: Vec<StagePlace> = queried.into_iter().flat_map(|(step, places)| of_stage(&step, places)).collect();
    for (name, step) in &compiled.steps {
        let Some(call) = step.call() else { continue };
        let made = of_calls(step.class.as_str(), &call.tally, Duration::ZERO);
        all.extend(of_stage(name, made.into_iter().filter(|place| !place.is_client())));
    }
    all
}

pub(crate) fn tallies(compiled: &Compiled) -> IndexMap<String, Arc<Tally>> {
    let steps = compiled.steps.iter();
    steps.filter_map(|(name, step)| Some((name.clone(), Arc::clone(step.tally()?)))).collect()
}
