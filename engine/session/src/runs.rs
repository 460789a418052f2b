//! Durable runs of a session: start, go on, look into, cancel, clear away.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use rowmill_engine::compile::Inputs;
use rowmill_engine::durable::{
    self, CHUNK_ROWS, Durable, RetryChoice, Task, inputs_of, inspect, read_payload, store_report,
};
use rowmill_engine::local::{Observer, RunError, RunReport};
use rowmill_engine::places::StagePlace;
use rowmill_engine::sql::SqlContext;
use rowmill_spec::{Diagnostic, Diagnostics, Fault, Workflow};
use rowmill_store::{
    CancelResult, Owner, Page, PageRequest, PostgresOptions, Retention, Run, RunCursor, RunEvent, RunFilter, RunId,
    RunStatus, Scope, SqliteOptions, Stage, open_postgres, open_sqlite,
};
use tokio_util::sync::CancellationToken;

use crate::Session;

/// Where durable runs live.
#[derive(Debug, Clone)]
pub struct RunsOptions {
    /// The folder of chunks and ledgers, and of the SQLite store.
    pub folder: PathBuf,
    /// The URL of a PostgreSQL store; SQLite where absent.
    pub postgres: Option<String>,
    /// Whether the store is made if it is not there.
    pub create: bool,
    /// Rows of a chunk; the engine's choice where absent.
    pub chunk_rows: Option<usize>,
    /// How long a run stays ours without a renewal.
    pub lease: Duration,
}

impl RunsOptions {
    /// Runs in a folder, with a SQLite store.
    pub fn folder(folder: impl Into<PathBuf>) -> Self {
        RunsOptions {
            folder: folder.into(),
            postgres: None,
            create: true,
            chunk_rows: None,
            lease: Duration::from_secs(30),
        }
    }
}

/// The durable runs of one store.
#[derive(Debug, Clone)]
pub struct Runs {
    session: Session,
    durable: Arc<Durable>,
}

/// How a run goes on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResumeOptions {
    /// Take it from a process whose lease has not ended.
    pub steal: bool,
    /// Use nothing of it but its workflow's file, as it is now, and its parameters: a new run is made, and this one is
    /// cancelled unless it has ended.
    pub restart: bool,
    /// Also make `once` calls again of which nobody knows whether they happened.
    pub unknown: bool,
}

/// What was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Runs whose files and records went.
    pub runs: u64,
    /// Bytes of files.
    pub bytes: u64,
}

/// What a run was made of.
struct Kept {
    workflow: Arc<Workflow>,
    inputs: Inputs,
    path: PathBuf,
}

/// Who runs this process: by name where the environment says it, else by number.
fn actor() -> String {
    use std::os::unix::fs::MetadataExt as _;
    let named = |name| std::env::var(name).ok().filter(|name| !name.is_empty());
    let number = || std::fs::metadata("/proc/self").map(|process| format!("user {}", process.uid())).ok();
    named("USER").or_else(|| named("LOGNAME")).or_else(number).unwrap_or_else(|| "unknown".to_owned())
}

fn refuse(error: &rowmill_store::Error) -> Diagnostics {
    Diagnostics { reports: vec![store_report(error)], ..Diagnostics::default() }
}

fn one(report: Diagnostic) -> Diagnostics {
    Diagnostics { reports: vec![report], ..Diagnostics::default() }
}

impl Session {
    /// Opens the store of durable runs.
    ///
    /// # Errors
    /// When it cannot be opened, or is not there and is not to be made.
    pub async fn runs(&self, options: RunsOptions) -> Result<Runs, Diagnostics> {
        let folder = std::path::absolute(&options.folder).unwrap_or_else(|_| options.folder.clone());
        let store = match options.postgres {
            Some(url) => open_postgres(PostgresOptions::url(url)).await,
            None => {
                let path = folder.join("runs.db");
                if !options.create && !path.exists() {
                    return Err(one(Diagnostic::error(
                        "RM0807",
                        format!("there are no durable runs in {}", folder.display()),
                    )
                    .help("`rowmill run --durable` makes the first one; `state.dir` says where they live")));
                }
                if let Err(error) = std::fs::create_dir_all(&folder) {
                    let report = Diagnostic::error("RM0808", format!("{}: {error}", folder.display()));
                    return Err(one(report.fault(Fault::Environment).help("`state.dir` says where durable runs live")));
                }
                // The folder's own name is on disk before anything in it counts.
                if let Some(above) = folder.parent()
                    && let Err(error) = std::fs::File::open(above).and_then(|above| above.sync_all())
                {
                    tracing::warn!("{}: {error}", above.display());
                }
                open_sqlite(SqliteOptions { create: options.create, ..SqliteOptions::file(path) }).await
            }
        };
        let durable = Durable {
            store: store.map_err(|error| refuse(&error))?,
            folder,
            chunk_rows: options.chunk_rows.unwrap_or(CHUNK_ROWS),
            chunks_in_flight: 4,
            lease: options.lease,
            owner: Owner::new(durable::describe_process()),
            actor: actor(),
        };
        Ok(Runs { session: self.clone(), durable: Arc::new(durable) })
    }
}

impl Runs {
    /// Runs the workflow that was read from `path`, durably. `started` hears the run's id before anything else
    /// happens.
    ///
    /// # Errors
    /// As [`durable::run`].
    pub async fn run(
        &self,
        path: &Path,
        workflow: Arc<Workflow>,
        inputs: &Inputs,
        cancel: &CancellationToken,
        observer: &dyn Observer,
        started: impl FnOnce(RunId) + Send,
    ) -> Result<RunReport, RunError> {
        let text = crate::load::read_text(path)?;
        let run = RunId::new();
        started(run);
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let task = Task::New { run, text: &text, path };
        durable::run(self.session.engine(), &self.durable, workflow, inputs, task, cancel, observer).await
    }

    /// Goes on with a run, as `how` says.
    ///
    /// # Errors
    /// As [`durable::run`]; also when the workflow's file is not what it was when the run began.
    pub async fn resume(
        &self,
        run: RunId,
        how: ResumeOptions,
        cancel: &CancellationToken,
        observer: &dyn Observer,
        started: impl FnOnce(RunId) + Send,
    ) -> Result<RunReport, RunError> {
        let ResumeOptions { steal, restart, unknown } = how;
        let kept = self.kept(run, restart).await?;
        if restart {
            // The old run is given up for one that can begin, and before it begins: both could make the same calls.
            self.session.check(Arc::clone(&kept.workflow), &kept.inputs).await?;
            durable::give_up(&self.durable, run, steal, "started over").await.map_err(one)?;
            return self.run(&kept.path, kept.workflow, &kept.inputs, cancel, observer, started).await;
        }
        started(run);
        let task = Task::Resume { run, steal, unknown };
        let (workflow, inputs) = (kept.workflow, &kept.inputs);
        durable::run(self.session.engine(), &self.durable, workflow, inputs, task, cancel, observer).await
    }

    /// Tries the items of a finished run again that failed, from the steps that they failed in, and publishes another
    /// version of its result. What depends on their rows is made anew; calls that were answered are not repeated. Items
    /// of `once` steps that may have happened are left alone unless `unknown` says that they are to be sent again.
    ///
    /// # Errors
    /// As [`durable::run`]; also when the run did not finish or no item of it failed, and when the workflow's file is
    /// not what it was when the run began.
    pub async fn retry(
        &self,
        run: RunId,
        unknown: bool,
        cancel: &CancellationToken,
        observer: &dyn Observer,
        started: impl FnOnce(RunId) + Send,
    ) -> Result<RunReport, RunError> {
        let found = self.find(run).await?;
        let refuse = |message: String, help: String| Err(one(Diagnostic::error("RM0809", message).help(help)).into());
        match found.status {
            // A run whose items were only skipped has succeeded, and some of them may have failed.
            RunStatus::SucceededWithFailures | RunStatus::Succeeded => {}
            RunStatus::Queued | RunStatus::Running | RunStatus::Stopped => {
                let help = format!("`rowmill resume {run}` goes on with it, items that stopped it included");
                return refuse(format!("run {run} has not finished: {}", found.status), help);
            }
            RunStatus::Failed | RunStatus::Cancelled => {
                let help = format!("`rowmill resume {run} --restart` starts over");
                return refuse(format!("run {run} has no result: {}", found.status), help);
            }
        }
        let kept = self.kept(run, false).await?;
        let choice = RetryChoice { unknown };
        if !inspect::has_retryable(&self.durable, &kept.workflow, run, choice).await.map_err(one)? {
            let help = match unknown {
                false => {
                    "failures of SQL come again for the same values; items that are `unknown` are sent again with `--unknown`"
                }
                true => {
                    "failures of SQL come again for the same values: mend the workflow or its sources, and run it anew"
                }
            };
            return refuse(format!("run {run} has no item that a retry could change"), help.to_owned());
        }
        started(run);
        let task = Task::Retry { run, choice };
        let (workflow, inputs) = (kept.workflow, &kept.inputs);
        durable::run(self.session.engine(), &self.durable, workflow, inputs, task, cancel, observer).await
    }

    /// What a run was made of; with `changed`, its workflow as the file says it now.
    async fn kept(&self, run: RunId, changed: bool) -> Result<Kept, Diagnostics> {
        let found = self.find(run).await?;
        let payload = read_payload(&found).map_err(one)?;
        let stored = self.durable.store.workflow_text(&Scope::all(), run).await.map_err(|error| refuse(&error))?;
        let now = crate::load::read_text(&payload.path);
        if !changed && now.as_ref().is_ok_and(|now| *now != stored) {
            return Err(one(Diagnostic::error(
                "RM0802",
                format!("run {run} cannot go on: {} changed since it began", payload.path.display()),
            )
            .help("put the file back, or start over with what it says now: `rowmill resume --restart`")));
        }
        let text = if changed { now? } else { stored };
        let workflow = Arc::new(rowmill_spec::parse(&payload.path.display().to_string(), &text)?);
        let inputs = inputs_of(&workflow, &payload).map_err(one)?;
        Ok(Kept { workflow, inputs, path: payload.path })
    }

    /// A run.
    ///
    /// # Errors
    /// When there is none of this id.
    pub async fn find(&self, run: RunId) -> Result<Run, Diagnostics> {
        self.durable.store.run(&Scope::all(), run).await.map_err(|error| refuse(&error))
    }

    /// The run that a person means: its id, the beginning of one, or `last`.
    ///
    /// # Errors
    /// When none or several fit.
    pub async fn named(&self, name: &str) -> Result<RunId, Diagnostics> {
        if let Ok(run) = name.parse::<RunId>() {
            return Ok(run);
        }
        let page = self.list(RunFilter::default(), &PageRequest::first(1000)).await?;
        let mut fitting = page.items.iter().filter(|run| name == "last" || run.id.to_string().starts_with(name));
        let refuse = |message: String| {
            one(Diagnostic::error("RM0807", message).help("`rowmill runs` lists the runs; `last` means the newest"))
        };
        match (fitting.next(), fitting.next()) {
            (Some(run), None) => Ok(run.id),
            (Some(run), Some(_)) if name == "last" => Ok(run.id),
            (Some(_), Some(_)) => Err(refuse(format!("several runs begin with `{name}`"))),
            (None, _) => Err(refuse(format!("there is no run `{name}`"))),
        }
    }

    /// Runs from new to old.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn list(
        &self,
        filter: RunFilter,
        page: &PageRequest<RunCursor>,
    ) -> Result<Page<Run, RunCursor>, Diagnostics> {
        self.durable.store.runs(&filter, page).await.map_err(|error| refuse(&error))
    }

    /// The stages of a run's newest version.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn stages(&self, run: &Run) -> Result<Vec<Stage>, Diagnostics> {
        self.durable.store.stages(run.id, run.version).await.map_err(|error| refuse(&error))
    }

    /// Which process did what for the stages of a run's newest version: the client, and executors of clusters.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn places(&self, run: RunId) -> Result<Vec<StagePlace>, Diagnostics> {
        inspect::places(&self.durable, run).await.map_err(one)
    }

    /// What happened to a run.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn events(&self, run: RunId) -> Result<Vec<RunEvent>, Diagnostics> {
        let page = self.durable.store.events(run, &PageRequest::first(10_000)).await;
        page.map(|page| page.items).map_err(|error| refuse(&error))
    }

    /// Asks for a run to be cancelled; whoever works on it hears it when it renews its lease.
    ///
    /// # Errors
    /// When there is no such run.
    pub async fn cancel(&self, run: RunId, reason: Option<&str>) -> Result<CancelResult, Diagnostics> {
        let answer = self.durable.store.request_cancel(&Scope::all(), run, &self.durable.actor, reason).await;
        answer.map_err(|error| refuse(&error))
    }

    /// A run's items that are not simply ok; the columns are those of [`inspect::items_schema`].
    ///
    /// # Errors
    /// When there is no such run, or its ledgers cannot be read.
    pub async fn item_rows(&self, run: RunId) -> Result<Vec<RecordBatch>, Diagnostics> {
        inspect::items(&self.durable, run).await.map_err(one)
    }

    /// SQL in which `items` is the table of a run's items that are not simply ok.
    ///
    /// # Errors
    /// When there is no such run, or its ledgers cannot be read.
    pub async fn items(&self, run: RunId) -> Result<SqlContext, Diagnostics> {
        let batches = inspect::items(&self.durable, run).await.map_err(one)?;
        let context = self.session.sql_context();
        context.register("items", inspect::items_schema(), batches).map_err(|error| Session::report(&error))?;
        Ok(context)
    }

    /// Removes the files and the records of runs that ended at least `age` ago. Runs that can go on are left alone.
    ///
    /// # Errors
    /// When the store or a folder cannot be changed.
    pub async fn collect(&self, age: Duration, dry: bool) -> Result<Collected, Diagnostics> {
        let store = &self.durable.store;
        let mut collected = Collected::default();
        loop {
            let runs = store.collectable(Retention::Audit, age, 1000).await.map_err(|error| refuse(&error))?;
            for run in &runs {
                let folder = self.durable.folder_of(*run);
                collected.bytes += bytes_below(&folder);
                collected.runs += 1;
                if dry {
                    continue;
                }
                let ours = store.begin_collection(*run, Retention::Audit, age).await.map_err(|error| refuse(&error))?;
                if !ours {
                    continue;
                }
                match std::fs::remove_dir_all(&folder) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        let report = Diagnostic::error("RM0703", format!("{}: {error}", folder.display()));
                        return Err(one(report.fault(Fault::Environment).help("remove it, and collect again")));
                    }
                    _ => {}
                }
                store.end_collection(*run, Retention::Audit).await.map_err(|error| refuse(&error))?;
            }
            if dry || runs.len() < 1000 {
                return Ok(collected);
            }
        }
    }
}

fn bytes_below(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => bytes_below(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}
