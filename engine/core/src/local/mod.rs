//! The local runner: every stage of a workflow in this process, streaming from sources to sinks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::UInt64Type;
use datafusion::common::runtime::SpawnedTask;
use datafusion::common::{DataFusionError, Result, ToDFSchema as _};
use datafusion::execution::TaskContext;
use datafusion::logical_expr::{EmptyRelation, LogicalPlan};
use datafusion::physical_plan::{ExecutionPlan, collect_partitioned, execute_stream_partitioned};
use futures::future::{BoxFuture, Either, select, try_join_all};
use futures::{FutureExt as _, StreamExt as _};
use indexmap::IndexMap;
use rowmill_items::{LedgerSample, Tally, TallySnapshot};
use rowmill_spec::{Diagnostic, Diagnostics, Fault, Format, LogicalType, Workflow};
use rowmill_step::{Effects, Outcome};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::calls::RunScope;
use crate::compile::cut_segments::Root;
use crate::compile::{CheckedStep, Compiled, Inputs, Planned, compile, plan};
use crate::error::{is_out_of_memory, report, stopped_report};
use crate::plan::meter::Meter;
use crate::runtime::Engine;
use crate::sinks::{SinkTarget, StagedSink};
use crate::sources::files;
use crate::types::logical_type;

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
                    warnings: compiled.warnings,
                });
            }
            Err(stop) => {
                let refused = refused(engine, &compiled, &staged, id);
                discard(staged).await;
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

pub(crate) async fn stage(engine: &Engine, compiled: &Compiled, id: Uuid) -> Result<Vec<StagedSink>, Stop> {
    let mut staged = Vec::new();
    for sink in &compiled.sinks {
        let store = engine.runtime().object_store(&sink.location.store);
        let place = match store {
            Ok(store) => StagedSink::stage(sink, id, &store).map_err(|error| error.to_string()),
            Err(error) => Err(error.strip_backtrace()),
        };
        match place {
            Ok(place) => staged.push(place),
            Err(message) => {
                discard(staged).await;
                return Err(Stop::Report(Box::new(environment(message))));
            }
        }
    }
    Ok(staged)
}

fn environment(message: String) -> Diagnostic {
    let lower = message.to_lowercase();
    let (code, help) = if lower.contains("permission denied") || lower.contains("read-only") {
        ("RM0703", "check who owns the folder, or write somewhere else")
    } else if lower.contains("no space left") || lower.contains("quota") {
        ("RM0702", "free some space, or write to a larger disk")
    } else {
        ("RM0704", "the run published nothing and can be started again")
    };
    Diagnostic::error(code, message).fault(Fault::Environment).help(help)
}

/// Why execution ended early.
#[derive(Debug)]
pub(crate) enum Stop {
    /// An operator failed; whether the plans held hash joins.
    Error(DataFusionError, bool),
    Report(Box<Diagnostic>),
    Cancelled,
}

#[derive(Debug, Default)]
pub(crate) struct Done {
    /// Rows written, by sink.
    pub(crate) written: Vec<u64>,
    collected: IndexMap<String, Vec<RecordBatch>>,
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

/// Executes the plans of sinks and of collected steps side by side, and seals what they wrote.
pub(crate) async fn run_roots(
    engine: &Engine,
    compiled: &Compiled,
    planned: &Planned,
    staged: &mut [StagedSink],
    cancel: &CancellationToken,
) -> Result<Done, Stop> {
    let hashing = has_hash_join(planned);
    let drains = planned.to_completion.iter().map(|plan| {
        let context = Arc::new(TaskContext::from(&compiled.state));
        SpawnedTask::spawn(drain(Arc::clone(plan), context))
    });
    let drains: Vec<_> = drains.collect();
    let tasks: Vec<_> = planned
        .roots
        .iter()
        .map(|root| {
            let context = Arc::new(TaskContext::from(&compiled.state));
            let plan = Arc::clone(&root.plan);
            // Each root runs on a task of its own: consumers of one spool must not wait for each other.
            SpawnedTask::spawn(collect_partitioned(plan, context))
        })
        .collect();
    let all = async {
        let roots = try_join_all(tasks.into_iter().map(joined));
        let drains = try_join_all(drains.into_iter().map(joined));
        futures::try_join!(roots, drains).map(|(results, _)| results)
    };
    let results = match select(Box::pin(all), Box::pin(cancel.cancelled())).await {
        Either::Left((results, _)) => results.map_err(|error| Stop::Error(error, hashing))?,
        // Dropping the futures aborts every task below them.
        Either::Right(((), _)) => return Err(Stop::Cancelled),
    };
    let written: Vec<Option<u64>> = written_by_sink(compiled, planned, &results);
    for (at, (sink, place)) in compiled.sinks.iter().zip(staged.iter()).enumerate() {
        if sink.is_directory() && written.get(at).copied().flatten() == Some(0) {
            write_empty(compiled, sink, place).await.map_err(|error| Stop::Error(error, false))?;
        }
    }
    for place in staged.iter_mut() {
        place.seal().await.map_err(|error| Stop::Report(Box::new(environment(error.to_string()))))?;
    }
    if let Some(file) = files::changed(&compiled.files, engine.runtime()).await {
        return Err(Stop::Report(Box::new(source_changed(&file))));
    }
    if cancel.is_cancelled() {
        return Err(Stop::Cancelled);
    }
    let mut done = Done { written: vec![0; compiled.sinks.len()], ..Done::default() };
    for (root, partitions) in planned.roots.iter().zip(results) {
        let batches: Vec<RecordBatch> = partitions.into_iter().flatten().collect();
        match &root.root {
            Root::Sink(at) => {
                if let Some(count) = done.written.get_mut(*at) {
                    *count = written_rows(&batches);
                }
            }
            Root::Collect(name) => {
                done.collected.insert(name.clone(), batches);
            }
            Root::Step(_) => {}
        }
    }
    Ok(done)
}

async fn joined<T: 'static>(task: SpawnedTask<Result<T>>) -> Result<T> {
    match task.join().await {
        Ok(result) => result,
        Err(error) if error.is_panic() => Err(panicked(error)),
        Err(error) => Err(DataFusionError::ExecutionJoin(Box::new(error))),
    }
}

/// Reads a plan to its end for the sake of what its steps do.
async fn drain(plan: Arc<dyn ExecutionPlan>, context: Arc<TaskContext>) -> Result<()> {
    let streams = execute_stream_partitioned(plan, context)?;
    try_join_all(streams.into_iter().map(|mut stream| async move {
        while let Some(batch) = stream.next().await {
            drop(batch?);
        }
        Ok(())
    }))
    .await
    .map(drop)
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

pub(crate) fn tallies(compiled: &Compiled) -> IndexMap<String, Arc<Tally>> {
    let steps = compiled.steps.iter();
    steps.filter_map(|(name, step)| Some((name.clone(), Arc::clone(step.tally()?)))).collect()
}

fn items_reports(compiled: &Compiled, scope: &RunScope) -> Vec<ItemsReport> {
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

/// Whether every step can be run again without anybody noticing.
fn is_pure(compiled: &Compiled) -> bool {
    compiled.steps.values().filter_map(|step| step.call()).all(|call| call.policy.effects == Effects::Pure)
}

/// Why a sink's disk refused to take its rows, if it did. Writers of DataFusion say only that they failed; the store
/// knows why.
fn refused(engine: &Engine, compiled: &Compiled, staged: &[StagedSink], id: Uuid) -> Option<Diagnostic> {
    let failure = engine.local_files().take_write_failure(&id.to_string())?;
    let place = staged.iter().position(|place| place.holds(&failure.path));
    let sink = place.and_then(|at| Some((staged.get(at)?.sink(), compiled.sinks.get(at)?.path.as_str())));
    let message = match sink {
        Some((sink, path)) => format!("sink `{sink}`: cannot write `{path}`: {}", failure.message),
        None => format!("cannot write `/{}`: {}", failure.path, failure.message),
    };
    Some(environment(message))
}

fn source_changed(file: &str) -> Diagnostic {
    Diagnostic::error("RM0604", format!("{file}; the result would mix two versions, so it was not published"))
        .fault(Fault::Data)
        .help("run it again when nobody writes to its sources")
}

/// Rows that each sink's plan wrote.
fn written_by_sink(compiled: &Compiled, planned: &Planned, results: &[Vec<Vec<RecordBatch>>]) -> Vec<Option<u64>> {
    let mut written = vec![None; compiled.sinks.len()];
    for (root, partitions) in planned.roots.iter().zip(results) {
        if let Root::Sink(at) = root.root
            && let Some(place) = written.get_mut(at)
        {
            *place = Some(partitions.iter().map(|batches| written_rows(batches)).sum());
        }
    }
    written
}

/// An empty result still has a schema: a directory gets one file without rows.
async fn write_empty(compiled: &Compiled, sink: &SinkTarget, staged: &StagedSink) -> Result<()> {
    let Some(schema) = compiled.schema_of(&sink.from) else { return Ok(()) };
    let kept: Vec<usize> = (0..schema.fields().len())
        .filter(|at| !sink.partition_by.iter().any(|column| column == schema.field(*at).name()))
        .collect();
    let schema = Arc::new(schema.project(&kept)?).to_dfschema_ref()?;
    let rows = LogicalPlan::EmptyRelation(EmptyRelation { produce_one_row: false, schema });
    let plan = sink.copy_empty(rows, staged)?;
    let plan = compiled.state.create_physical_plan(&plan).await?;
    collect_partitioned(plan, Arc::new(TaskContext::from(&compiled.state))).await?;
    Ok(())
}

fn panicked(error: tokio::task::JoinError) -> DataFusionError {
    let panic = error.into_panic();
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    DataFusionError::Internal(format!("an operator panicked: {text}"))
}

fn has_hash_join(planned: &Planned) -> bool {
    fn walk(plan: &Arc<dyn ExecutionPlan>) -> bool {
        // What runs elsewhere may hold one.
        matches!(plan.name(), "HashJoinExec" | "NestedLoopJoinExec" | "ClusterExec")
            || plan.children().into_iter().any(walk)
    }
    planned.roots.iter().any(|root| walk(&root.plan)) || planned.apart.iter().any(|(_, plan)| walk(plan))
}

/// A write plan answers with one row: how many it wrote.
fn written_rows(batches: &[RecordBatch]) -> u64 {
    batches
        .iter()
        .filter_map(|batch| batch.column(0).as_primitive_opt::<UInt64Type>())
        .flat_map(|counts| counts.iter().flatten())
        .sum()
}

pub(crate) async fn publish(
    compiled: &Compiled,
    staged: Vec<StagedSink>,
    written: &[u64],
) -> Result<Vec<SinkReport>, Diagnostic> {
    let mut published: Vec<SinkReport> = Vec::new();
    let mut waiting = staged.into_iter();
    for (at, sink) in compiled.sinks.iter().enumerate() {
        let Some(place) = waiting.next() else { break };
        if let Err(error) = place.publish().await {
            discard(waiting.collect()).await;
            let report = environment(error.to_string());
            return Err(match published.is_empty() {
                true => report,
                false => {
                    let names: Vec<&str> = published.iter().map(|sink| sink.name.as_str()).collect();
                    report.help(format!(
                        "already published: {}; the other sinks hold their old version",
                        names.join(", ")
                    ))
                }
            });
        }
        let rows = written.get(at).copied().unwrap_or(0);
        let schema = compiled.schema_of(&sink.from);
        let partitions = sink
            .partition_by
            .iter()
            .map(|column| {
                let kind = schema.as_ref().and_then(|schema| schema.field_with_name(column).ok());
                (column.clone(), kind.and_then(|field| logical_type(field.data_type())).unwrap_or(LogicalType::String))
            })
            .collect();
        published.push(SinkReport {
            name: sink.name.clone(),
            path: sink.path.clone(),
            rows,
            format: sink.format,
            partitions,
        });
    }
    Ok(published)
}

pub(crate) async fn discard(staged: Vec<StagedSink>) {
    for place in staged {
        place.discard().await;
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
