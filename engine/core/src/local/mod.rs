//! The local runner: every stage of a workflow in this process, streaming from sources to sinks.

mod reports;
mod roots;
mod staging;

use std::sync::Arc;
use std::time::Instant;

use datafusion::common::DataFusionError;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use indexmap::IndexMap;
use rowmill_items::Tally;
use rowmill_spec::{Diagnostic, Diagnostics, Workflow};
use rowmill_step::Effects;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::calls::RunScope;
use crate::compile::{Compiled, Inputs, compile, plan};
use crate::error::{is_out_of_memory, report, stopped_report};
use crate::plan::meter::Meter;
use crate::runtime::Engine;
use crate::sinks::StagedSink;
use crate::sources::files;
pub use reports::{ItemsReport, RunError, RunReport, SinkReport, StepReport};
use reports::{items_reports, places};
pub(crate) use reports::{step_reports, tallies};
use roots::source_changed;
pub(crate) use roots::{Done, run_roots};
pub(crate) use staging::{discard, publish, stage};
use staging::{environment, refused};

/// What watches a run: told once when it starts, with the meters to read as it goes.
pub trait Observer: Send + Sync {
    /// The workflow compiled, and its plans begin to run. Steps that are not SQL have a tally too.
    fn started(&self, run: Uuid, meters: &IndexMap<String, Arc<Meter>>, tallies: &IndexMap<String, Arc<Tally>>);
}

/// Nobody watches.
impl Observer for () {
    fn started(&self, _run: Uuid, _meters: &IndexMap<String, Arc<Meter>>, _tallies: &IndexMap<String, Arc<Tally>>) {}
}

/// Runs a workflow to its end.
///
/// # Errors
/// Everything that is wrong with the workflow; the first failure of a step; or that `cancel` was triggered. In each
/// case nothing was published, unless a report says which sinks were.
pub fn run<'a>(
    engine: &'a Engine,
    workflow: Arc<Workflow>,
    inputs: &'a Inputs,
    cancel: &'a CancellationToken,
    observer: &'a dyn Observer,
) -> BoxFuture<'a, Result<RunReport, RunError>> {
    // Boxed here, so that the code of the whole run is generated in this crate and not again in each that calls it.
    run_workflow(engine, workflow, inputs, cancel, observer).boxed()
}

async fn run_workflow(
    engine: &Engine,
    workflow: Arc<Workflow>,
    inputs: &Inputs,
    cancel: &CancellationToken,
    observer: &dyn Observer,
) -> Result<RunReport, RunError> {
    let started = Instant::now();
    let id = Uuid::now_v7();
    let mut replanned = false;
    loop {
        let state = engine.session(replanned);
        let stores = &engine.options().stores;
        let compiled = compile(Arc::clone(&workflow), inputs, state, stores, engine.host()).await?;
        if compiled.cut.segments.is_empty() {
            let nothing = Diagnostic::error(
                "RM0119",
                format!("workflow `{}` has no sink, so there is nothing to run", workflow.name.value),
            )
            .at(workflow.name.span, "")
            .help("add one: `sinks: {result: {from: STEP, path: out/result.parquet}}`");
            return Err(failed(&workflow, nothing).into());
        }
        let mut staged = match stage(engine, &compiled, id).await {
            Ok(staged) => staged,
            Err(Stop::Report(report)) => return Err(failed(&workflow, *report).into()),
            Err(Stop::Error(error, _)) => return Err(failed(&workflow, report(&error)).into()),
            Err(Stop::Cancelled) => return Err(RunError::Cancelled),
        };
        let folder = match ledger_folder(engine) {
            Ok(folder) => folder,
            Err(error) => {
                discard(staged).await;
                return Err(failed(&workflow, environment(format!("the folder for ledgers: {error}"))).into());
            }
        };
        let scope = engine.scope(&id.to_string(), &cancel.child_token(), folder.path().to_owned());
        let outcome = execute(engine, &compiled, inputs, &mut staged, &scope, cancel, observer).await;
        let outcome = end_steps(&compiled, &scope, outcome).await;
        match outcome {
            Ok(done) => {
                let sinks = match publish(&compiled, staged, &done.written).await {
                    Ok(sinks) => sinks,
                    Err(report) => return Err(failed(&workflow, report).into()),
                };
                return Ok(RunReport {
                    id,
                    workflow: workflow.name.value.clone(),
                    steps: step_reports(&compiled),
                    unneeded: compiled.unneeded.clone(),
                    sinks,
                    collected: done.collected,
                    elapsed: started.elapsed(),
                    items: items_reports(&compiled, &scope),
                    replanned,
                    places: places(&compiled, &scope),
                    warnings: compiled.warnings,
                });
            }
            Err(stop) => {
                let refused = refused(engine, &compiled, &staged, id);
                discard(staged).await;
                // Whatever steps say of being cancelled, the run was.
                if cancel.is_cancelled() {
                    return Err(RunError::Cancelled);
                }
                match stop {
                    // Hash joins cannot spill, sort-merge joins can (DESIGN 18). All steps are pure here, and nothing
                    // was published, so the run simply starts over.
                    Stop::Error(error, true) if !replanned && is_out_of_memory(&error) && is_pure(&compiled) => {
                        tracing::warn!("memory ran out in a hash join; starting over with sort-merge joins");
                        replanned = true;
                    }
                    Stop::Error(error, _) => {
                        // A file that was replaced under a reader fails in many ways; the reason is one.
                        let report = match files::changed(&compiled.files, engine.runtime()).await {
                            Some(file) => source_changed(&file),
                            None => refused.unwrap_or_else(|| report(&error)),
                        };
                        return Err(failed(&workflow, report).into());
                    }
                    Stop::Report(report) => return Err(failed(&workflow, *report).into()),
                    Stop::Cancelled => return Err(RunError::Cancelled),
                }
            }
        }
    }
}

fn failed(workflow: &Workflow, report: Diagnostic) -> Diagnostics {
    Diagnostics { reports: vec![report], texts: Arc::clone(&workflow.texts) }
}

/// Why execution ended early.
#[derive(Debug)]
pub(crate) enum Stop {
    /// An operator failed; whether the plans held hash joins.
    Error(DataFusionError, bool),
    Report(Box<Diagnostic>),
    Cancelled,
}

async fn execute(
    engine: &Engine,
    compiled: &Compiled,
    inputs: &Inputs,
    staged: &mut [StagedSink],
    scope: &RunScope,
    cancel: &CancellationToken,
    observer: &dyn Observer,
) -> Result<Done, Stop> {
    let planned = plan(compiled, inputs, staged, scope).await.map_err(|error| Stop::Error(error, false))?;
    let run = Uuid::parse_str(&scope.run).unwrap_or_default();
    observer.started(run, &compiled.meters, &tallies(compiled));
    run_roots(engine, compiled, &planned, staged, cancel).await
}

/// Where ledgers go that do not fit into memory; gone with the run.
fn ledger_folder(engine: &Engine) -> std::io::Result<tempfile::TempDir> {
    match &engine.options().temp_dir {
        Some(folder) => tempfile::Builder::new().prefix("rowmill-run-").tempdir_in(folder),
        None => tempfile::Builder::new().prefix("rowmill-run-").tempdir(),
    }
}

/// Ends the steps whose items have outcomes: waits for what is under way, and judges what could not be judged before
/// the end.
async fn end_steps(compiled: &Compiled, scope: &RunScope, outcome: Result<Done, Stop>) -> Result<Done, Stop> {
    if outcome.is_err() {
        scope.cancel.cancel();
    }
    let steps = scope.steps.lock().clone();
    for step in &steps {
        step.operator.close().await;
    }
    let done = outcome?;
    for step in &steps {
        step.operator.check_end().map_err(|stopped| Stop::Report(Box::new(stopped_report(&stopped))))?;
    }
    for guard in compiled.steps.values().filter_map(|step| step.guard()) {
        guard.check_end().map_err(|stopped| Stop::Report(Box::new(stopped_report(&stopped))))?;
    }
    Ok(done)
}

/// Whether every step can be run again without anybody noticing.
fn is_pure(compiled: &Compiled) -> bool {
    compiled.steps.values().filter_map(|step| step.call()).all(|call| call.policy.effects == Effects::Pure)
}
