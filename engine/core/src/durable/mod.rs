//! Durable runs: what they need in order to go on after the process, or the machine, has died.
//!
//! ```text
//!  run row ── workflow text, parameters, stamps of the source files, the instant that is `now()`
//!   └ for each step that is not SQL, in order
//!       stage IN    its input, cut into chunk files; committed whole, so it is made again if it was not finished
//!       stage OUT   each chunk through the step operator, several in flight:
//!                   output and ledger files synced ▶ journal commit (fenced) ▶ effect log of the chunk dropped
//!                   (and on to the next step's input, where that is made row by row of it)
//!   └ sinks         over committed chunks, staged and published as in any run ▶ version published ▶ run finished
//! ```
//!
//! SQL between those stages is computed again when a run goes on, here or on a cluster: it is pure, its clock stands still
//! at the run's start, and what it reads is either committed or stamped. A step whose rows several others read is a stage of its
//! own, so that all of them see the same rows. Calls are never made again whose result is in the effect log; the window
//! in which a crash loses results is the log's flush interval (100 ms).

/// How long a call to the run store is repeated while it says that another try can help.
const STORE_PATIENCE: Duration = Duration::from_secs(60);

/// Repeats a call to the run store while that can help: a restart of its server is no reason to give a run up.
macro_rules! patiently {
    ($call:expr) => {{
        let started = std::time::Instant::now();
        let mut wait = std::time::Duration::from_millis(50);
        loop {
            match $call.await {
                Err(error) if error.is_retryable() && started.elapsed() < $crate::durable::STORE_PATIENCE => {
                    tracing::warn!("the run store did not answer and is asked again: {error}");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(std::time::Duration::from_secs(2));
                }
                done => break done,
            }
        }
    }};
}

pub(crate) mod chunks;
pub mod inspect;
mod lease;
mod payload;
mod process;
mod retry;
mod reuse;
mod stages;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::Utc;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use rowmill_items::{StepStopped, StopReason};
use rowmill_spec::{Diagnostic, Diagnostics, Fault, SourceKind, Workflow};
use rowmill_store::{
    AcquireMode, Acquired, Error, Fence, Finish, OutcomeCounts, Owner, RunId, RunStatus, RunStore, Scope,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::compile::{Inputs, compile};
use crate::error::{report, stopped_report};
use crate::local::{Observer, RunError, RunReport};
use crate::runtime::Engine;
use lease::Lease;
use payload::{PAYLOAD_FORMAT, given_params, new_run, stamps};
pub use payload::{Payload, Stamp, fingerprint, inputs_of, read_payload};
pub use process::describe as describe_process;
pub use retry::RetryChoice;

/// Rows of a chunk where nothing else is said.
pub const CHUNK_ROWS: usize = 32_768;

/// Where durable runs live, and how they are cut.
#[derive(Debug, Clone)]
pub struct Durable {
    /// The run store.
    pub store: Arc<dyn RunStore>,
    /// Chunks and ledgers lie under `runs/` here.
    pub folder: PathBuf,
    /// Rows of a chunk.
    pub chunk_rows: usize,
    /// Chunks of a stage that are worked on at the same time.
    pub chunks_in_flight: usize,
    /// How long a run is ours without a renewal.
    pub lease: Duration,
    /// This process.
    pub owner: Owner,
    /// Who asked.
    pub actor: String,
}

impl Durable {
    /// The folder of a run.
    pub fn folder_of(&self, run: RunId) -> PathBuf {
        self.folder.join("runs").join(run.to_string())
    }
}

/// What is run.
#[derive(Debug)]
pub enum Task<'a> {
    /// A new run of the workflow whose text this is, read from `path`.
    New {
        /// The run's id.
        run: RunId,
        /// The text.
        text: &'a str,
        /// Its file.
        path: PathBuf,
    },
    /// A run that was begun before.
    Resume {
        /// The run.
        run: RunId,
        /// Whether to take it from an owner whose lease has not expired.
        steal: bool,
        /// Whether to make `once` calls again of which nobody knows whether they happened.
        unknown: bool,
    },
    /// A run that ended, some of whose items failed: another version of its result.
    Retry {
        /// The run.
        run: RunId,
        /// Which items are tried again.
        choice: RetryChoice,
    },
}

/// Runs a workflow durably, or goes on with a run. For one that goes on, `workflow` and `inputs` are those that the
/// store holds (see [`read_payload`]).
///
/// # Errors
/// As a run in memory; further that the store cannot be used, that somebody else holds the run, that it has ended, or
/// that a source changed since it began.
pub fn run<'a>(
    engine: &'a Engine,
    durable: &'a Durable,
    workflow: Arc<Workflow>,
    inputs: &'a Inputs,
    task: Task<'a>,
    cancel: &'a CancellationToken,
    observer: &'a dyn Observer,
) -> BoxFuture<'a, Result<RunReport, RunError>> {
    run_durable(engine, durable, workflow, inputs, task, cancel, observer).boxed()
}

async fn run_durable(
    engine: &Engine,
    durable: &Durable,
    workflow: Arc<Workflow>,
    inputs: &Inputs,
    task: Task<'_>,
    cancel: &CancellationToken,
    observer: &dyn Observer,
) -> Result<RunReport, RunError> {
    let refuse = |report: Diagnostic| -> RunError {
        RunError::Failed(Diagnostics { reports: vec![report], texts: Arc::clone(&workflow.texts) })
    };
    let began = Instant::now();
    refuse_what_cannot_be_replayed(&workflow, inputs).map_err(refuse)?;
    let (run, mode) = match &task {
        Task::New { run, .. } | Task::Resume { run, steal: false, .. } => (*run, AcquireMode::Free),
        Task::Resume { run, steal: true, .. } => (*run, AcquireMode::Steal),
        Task::Retry { run, .. } => (*run, AcquireMode::Reopen),
    };
    let earlier = match &task {
        Task::New { .. } => None,
        Task::Resume { .. } | Task::Retry { .. } => {
            let found =
                patiently!(durable.store.run(&Scope::all(), run)).map_err(|error| refuse(store_report(&error)))?;
            Some((read_payload(&found).map_err(refuse)?, found.version))
        }
    };
    let (earlier, version_before) = earlier.unzip();
    let started = earlier.as_ref().map_or_else(Utc::now, |payload| payload.started);
    let stores = &engine.options().stores;
    let compiled =
        compile(Arc::clone(&workflow), inputs, engine.durable_session(started), stores, engine.host()).await?;
    let stamps = stamps(&compiled);
    match (&task, &earlier) {
        (Task::New { text, path, .. }, _) => {
            let payload = Payload {
                format: PAYLOAD_FORMAT,
                base: inputs.base.clone(),
                path: path.clone(),
                params: given_params(inputs),
                vars: inputs.vars.iter().map(|(name, value)| (name.clone(), value.to_string())).collect(),
                started,
                files: stamps,
            };
            let new = new_run(run, &workflow, text, &payload, &durable.actor).map_err(refuse)?;
            patiently!(durable.store.submit(&new)).map_err(|error| refuse(store_report(&error)))?;
        }
        (_, Some(payload)) if payload.files != stamps => {
            let gone = payload.files.iter().filter(|file| !stamps.contains(file));
            let come = stamps.iter().filter(|file| !payload.files.contains(file));
            let changed: BTreeSet<&str> = gone.chain(come).map(Stamp::path).collect();
            let changed: Vec<&str> = changed.into_iter().collect();
            return Err(refuse(
                Diagnostic::error(
                    "RM0802",
                    format!("run {run} cannot go on: its sources changed since it began: {}", changed.join(", ")),
                )
                .fault(Fault::Data)
                .help("a run that goes on would mix two versions; start over with `rowmill resume --restart`"),
            ));
        }
        _ => {}
    }
    if let (Task::Retry { choice, .. }, Some(version)) = (&task, version_before) {
        let before = retry::Before::read(durable, run, version, *choice).await;
        let before = before.map_err(|error| refuse(store_report(&error)))?;
        let redactor = &engine.options().host.redactor;
        tokio::task::block_in_place(|| before.refuse_unclear(&compiled, &durable.folder_of(run), redactor))
            .map_err(refuse)?;
    }
    let held = hold(durable, run, mode).await.map_err(refuse)?;
    let fence = held.fence;
    let lease = Lease::keep(Arc::clone(&durable.store), fence, durable.lease, cancel);
    // Of a retry that died before it had written its choice down, all that is known is what this one says.
    let choice = match &task {
        Task::Retry { choice, .. } => Some(*choice),
        Task::Resume { unknown: true, .. } => Some(RetryChoice { unknown: true }),
        _ => None,
    };
    let version = held.version;
    let unknown = matches!(&task, Task::Resume { unknown: true, .. });
    let mut work = stages::Work {
        engine,
        durable,
        compiled: &compiled,
        inputs,
        run,
        version,
        fence,
        began,
        unknown,
        before: None,
    };
    let outcome = match patiently!(durable.store.start(&fence)) {
        Ok(()) => match work.look_back(choice).await {
            Ok(()) => work.run(&lease.cancel, observer).await,
            Err(stop) => Err(stop),
        },
        Err(error) => Err(error.into()),
    };
    let ended = lease.end();
    let settled = settle(durable, &fence, version, outcome, ended, &workflow).await;
    if let Err(RunError::Failed(reports)) = &settled
        && reports.reports.iter().any(|report| report.code == "RM0805")
        && let Err(stop) = work.sweep(true).await
    {
        tracing::warn!("files of this attempt at run {run} stay: {stop:?}");
    }
    settled
}

/// Takes a run, from a process that is dead too.
///
/// # Errors
/// It is held by one that may live, or it has ended.
async fn hold(durable: &Durable, run: RunId, mode: AcquireMode) -> Result<rowmill_store::Lease, Diagnostic> {
    let mut acquired = patiently!(durable.store.acquire(run, &durable.owner, durable.lease, mode));
    if let Ok(Acquired::Held { owner, .. }) = &acquired
        && process::is_dead(owner)
    {
        tracing::info!("run {run} is held by {owner}, which is dead");
        acquired = patiently!(durable.store.acquire(run, &durable.owner, durable.lease, AcquireMode::Steal));
    }
    match acquired.map_err(|error| store_report(&error))? {
        Acquired::Lease(held) => Ok(held),
        Acquired::Held { owner, expires_in } => {
            let seconds = expires_in.as_secs() + 1;
            let help =
                format!("if that process is dead, its lease ends within {seconds} s; `--steal` takes the run at once");
            Err(Diagnostic::error("RM0803", format!("run {run} is held by {owner}"))
                .fault(Fault::Environment)
                .help(help))
        }
        Acquired::Ended(status) => Err(Diagnostic::error("RM0804", format!("run {run} has ended: {status}"))
            .help("a run that ended does not go on; start the workflow again")),
    }
}

/// Ends a run that nobody goes on with, so that it cannot be resumed beside the one that takes its place. A run that has
/// ended stays as it is.
///
/// # Errors
/// A process that may live works on it, or the store cannot be reached.
pub async fn give_up(durable: &Durable, run: RunId, steal: bool, reason: &str) -> Result<(), Diagnostic> {
    let found = patiently!(durable.store.run(&Scope::all(), run)).map_err(|error| store_report(&error))?;
    if found.status.is_ended() {
        return Ok(());
    }
    let held = hold(durable, run, if steal { AcquireMode::Steal } else { AcquireMode::Free }).await?;
    patiently!(durable.store.release(&held.fence)).map_err(|error| store_report(&error))?;
    let asked = patiently!(durable.store.request_cancel(&Scope::all(), run, &durable.actor, Some(reason)));
    asked.map(|_| ()).map_err(|error| store_report(&error))
}

/// Writes down how the run ended.
async fn settle(
    durable: &Durable,
    fence: &Fence,
    version: u32,
    outcome: Result<RunReport, stages::Stop>,
    ended: lease::Ended,
    workflow: &Workflow,
) -> Result<RunReport, RunError> {
    let failed = |report: Diagnostic| {
        RunError::Failed(Diagnostics { reports: vec![report], texts: Arc::clone(&workflow.texts) })
    };
    let lost = || {
        let message = format!("run {} was taken over by another process", fence.run);
        failed(
            Diagnostic::error("RM0805", message)
                .fault(Fault::Environment)
                .help("this process stopped; what it had committed counts for the one that goes on"),
        )
    };
    let finish = |status, error: Option<String>, counts| async move {
        let finish = Finish { status, error, counts };
        patiently!(durable.store.finish(fence, &finish))
    };
    let stop = match outcome {
        Ok(report) => {
            let mut counts = OutcomeCounts::default();
            for items in &report.items {
                counts.add(stages::store_counts(&items.counts.outcomes));
            }
            let status = match report.items.iter().any(|items| items.failures() > 0) {
                true => RunStatus::SucceededWithFailures,
                false => RunStatus::Succeeded,
            };
            return match finish(status, None, counts).await {
                Ok(()) => Ok(report),
                Err(Error::Fenced { .. }) => Err(lost()),
                Err(error) => Err(failed(store_report(&error))),
            };
        }
        Err(stop) => stop,
    };
    let held = matches!(&stop, stages::Stop::Stopped(StepStopped { reason: StopReason::Item { held: true, .. }, .. }));
    let report = match (stop, ended) {
        (stages::Stop::Lost, _) | (_, lease::Ended::Lost) => return Err(lost()),
        (_, lease::Ended::Expired) => {
            let message = format!("run {}: the run store did not answer for as long as the lease lasts", fence.run);
            return Err(failed(
                Diagnostic::error("RM0808", message)
                    .fault(Fault::Environment)
                    .help(format!("`rowmill resume {}` goes on from what is committed", fence.run)),
            ));
        }
        (stages::Stop::Cancelled, _) => None,
        (stages::Stop::Report(report), _) => Some(*report),
        (stages::Stop::Error(error), _) => Some(report(&error)),
        (stages::Stop::Stopped(stopped), _) => Some(stopped_report(&stopped)),
    };
    let report = report.map(|report| match report.fault {
        Fault::Environment => report.help(format!("`rowmill resume {}` goes on from what is committed", fence.run)),
        _ if held => report.help(format!(
            "whether that call had its effect is not known, so it is not made again unasked: look at the other side, then `rowmill resume {} --unknown` makes such calls again",
            fence.run
        )),
        _ if report.code == "RM0610" => {
            report.help(format!("with the cause mended, `rowmill resume {}` tries those items again", fence.run))
        }
        _ if report.code == "RM0611" => report.help(format!(
            "with the cause mended, `rowmill resume {}` goes on, and tries those items again whose chunks are not committed",
            fence.run
        )),
        _ => report,
    });
    let status = match report.as_ref().map(|report| report.fault) {
        // What changed can be put back, and items that failed are tried again: their chunks are not committed.
        _ if report.as_ref().is_some_and(|report| matches!(report.code, "RM0802" | "RM0610" | "RM0611")) => {
            RunStatus::Stopped
        }
        // A retry goes on from the version that is published: an end would make that version's run one without a result.
        _ if version > 1 => RunStatus::Stopped,
        // Ctrl-C leaves a run that can go on; `rowmill cancel` ends it.
        None if ended == lease::Ended::CancelAsked => RunStatus::Cancelled,
        None | Some(Fault::Environment | Fault::Internal) => RunStatus::Stopped,
        Some(Fault::Workflow | Fault::Data) => RunStatus::Failed,
    };
    let message = report.as_ref().map(|report| report.message.clone());
    match durable.store.finish(fence, &Finish { status, error: message, counts: OutcomeCounts::default() }).await {
        Ok(()) => {}
        Err(Error::Fenced { .. }) => return Err(lost()),
        // The lease ends by itself, and then the run can go on all the same.
        Err(error) => tracing::warn!("the run store did not take the run's end: {error}"),
    }
    Err(report.map_or(RunError::Cancelled, failed))
}

fn refuse_what_cannot_be_replayed(workflow: &Workflow, inputs: &Inputs) -> Result<(), Diagnostic> {
    if let Some(source) = workflow.sources.values().find(|source| matches!(source.kind, SourceKind::Provided)) {
        return Err(Diagnostic::error(
            "RM0806",
            format!("source `{}` is provided by the program, so the run cannot be durable", source.name.value),
        )
        .at(source.name.span, "")
        .help("a run that goes on in another process must find its rows again; write them to a file first"));
    }
    match inputs.collect.first() {
        Some(name) => Err(Diagnostic::error(
            "RM0806",
            format!("the rows of `{name}` are to be collected by the program, so the run cannot be durable"),
        )
        .help("give the step a sink")),
        None => Ok(()),
    }
}

/// An error of the run store as a report.
pub fn store_report(error: &rowmill_store::Error) -> Diagnostic {
    use rowmill_store::Fault as Of;
    let (code, fault) = match error.fault() {
        Of::Environment { .. } | Of::Corrupted | Of::NewerVersion => ("RM0808", Fault::Environment),
        Of::Bug => ("RM0900", Fault::Internal),
        _ => ("RM0807", Fault::Workflow),
    };
    Diagnostic::error(code, error.to_string()).fault(fault)
}

/// A fresh id for what one attempt of a run stages, so that a dead attempt's leavings are never taken for its own.
pub(crate) fn attempt_id() -> Uuid {
    Uuid::now_v7()
}
