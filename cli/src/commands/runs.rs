//! Durable runs: `run --durable`, `resume`, `retry`, `runs`, `show`, `items`, `logs`, `cancel`, `gc`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rowmill::spec::{Diagnostic, Diagnostics};
use rowmill::store::{CancelResult, PageRequest, Run, RunFilter, RunId, RunStatus, StageStatus};
use rowmill::{Inputs, ResumeOptions, RunError, RunReport, Runs, RunsOptions, Session, Workflow};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::sql::execute;
use super::{open_session, open_session_on};
use crate::args::{ClusterArguments, RowFormat};
use crate::exit;
use crate::output::{bytes, count, failure, places_table, table};
use crate::progress::Progress;
use crate::settings::Settings;

fn refuse(reports: &Diagnostics, settings: &Settings) -> u8 {
    failure(reports, settings.is_json(), settings.is_colored())
}

/// The store of durable runs as configured; otherwise the exit code, the reason being told.
async fn open_runs(session: &Session, create: bool, settings: &Settings) -> Result<Runs, u8> {
    let options = settings.runs_options().map_err(|reports| refuse(&reports, settings))?;
    session.runs(RunsOptions { create, ..options }).await.map_err(|reports| refuse(&reports, settings))
}

async fn opened(create: bool, settings: &Settings) -> Result<(Session, Runs), u8> {
    let session = open_session(settings)?;
    let runs = open_runs(&session, create, settings).await?;
    Ok((session, runs))
}

/// The same for whoever goes on with a run, with its calls on the cluster that is named, if one is.
async fn opened_on(cluster: &ClusterArguments, settings: &Settings) -> Result<Runs, u8> {
    let session = open_session_on(cluster, settings).await?;
    open_runs(&session, false, settings).await
}

/// Tells a person which run this is, before anything can go wrong with it.
fn announce(run: RunId, settings: &Settings) {
    if !settings.is_json() {
        eprintln!("run {run}");
    }
}

/// Runs a workflow durably.
pub(crate) async fn run_durably(
    session: &Session,
    path: &Path,
    workflow: Arc<Workflow>,
    inputs: &Inputs,
    cancel: &CancellationToken,
    progress: &Progress,
    settings: &Settings,
) -> Result<Result<RunReport, RunError>, u8> {
    let runs = open_runs(session, true, settings).await?;
    Ok(runs.run(path, workflow, inputs, cancel, progress, |run| announce(run, settings)).await)
}

/// Goes on with a run.
pub(crate) async fn resume(name: &str, how: ResumeOptions, cluster: &ClusterArguments, settings: &Settings) -> u8 {
    let runs = match opened_on(cluster, settings).await {
        Ok(runs) => runs,
        Err(code) => return code,
    };
    let run = match runs.named(name).await {
        Ok(run) => run,
        Err(reports) => return refuse(&reports, settings),
    };
    let cancel = CancellationToken::new();
    super::run::listen_for_signals(cancel.clone());
    let progress = Progress::new(settings.progress());
    let outcome = runs.resume(run, how, &cancel, &progress, |run| announce(run, settings)).await;
    progress.finish();
    super::run::finish(outcome, settings)
}

/// Tries the failed items of a run again.
pub(crate) async fn retry(name: &str, unknown: bool, cluster: &ClusterArguments, settings: &Settings) -> u8 {
    let runs = match opened_on(cluster, settings).await {
        Ok(runs) => runs,
        Err(code) => return code,
    };
    let run = match runs.named(name).await {
        Ok(run) => run,
        Err(reports) => return refuse(&reports, settings),
    };
    let cancel = CancellationToken::new();
    super::run::listen_for_signals(cancel.clone());
    let progress = Progress::new(settings.progress());
    let outcome = runs.retry(run, unknown, &cancel, &progress, |run| announce(run, settings)).await;
    progress.finish();
    super::run::finish(outcome, settings)
}

/// Lists runs.
pub(crate) async fn list(status: Option<&str>, limit: u32, settings: &Settings) -> u8 {
    let (_, runs) = match opened(false, settings).await {
        Ok(opened) => opened,
        Err(code) => return code,
    };
    let statuses = match status.map(str::parse::<RunStatus>).transpose() {
        Ok(status) => status.into_iter().collect(),
        Err(error) => {
            let known: Vec<&str> = RunStatus::ALL.iter().map(|status| status.as_str()).collect();
            let report = Diagnostic::error("RM0420", error.to_string()).help(format!("known are {}", known.join(", ")));
            return refuse(&Diagnostics { reports: vec![report], ..Diagnostics::default() }, settings);
        }
    };
    let page = match runs.list(RunFilter { statuses, ..RunFilter::default() }, &PageRequest::first(limit.max(1))).await
    {
        Ok(page) => page,
        Err(reports) => return refuse(&reports, settings),
    };
    if settings.is_json() {
        println!("{}", json!({"runs": page.items}));
        return exit::SUCCESS;
    }
    let rows: Vec<Vec<String>> = page
        .items
        .iter()
        .map(|run| {
            vec![
                run.id.to_string(),
                run.workflow_name.clone(),
                run.status.to_string(),
                instant(run.created_ms),
                took(run),
                count(run.counts.total()),
                count(run.counts.failed + run.counts.dead_lettered + run.counts.unknown),
            ]
        })
        .collect();
    print!("{}", table(&["run", "workflow", "status", "created", "took", "items", "failures"], &rows));
    exit::SUCCESS
}

/// Shows one run: its stages, how far they are, and where they ran.
pub(crate) async fn show(name: &str, settings: &Settings) -> u8 {
    let (_, runs) = match opened(false, settings).await {
        Ok(opened) => opened,
        Err(code) => return code,
    };
    let found = async {
        let run = runs.find(runs.named(name).await?).await?;
        let stages = runs.stages(&run).await?;
        let places = runs.places(run.id).await?;
        Ok::<_, Diagnostics>((run, stages, places))
    };
    let (run, stages, places) = match found.await {
        Ok(found) => found,
        Err(reports) => return refuse(&reports, settings),
    };
    if settings.is_json() {
        println!("{}", json!({"run": run, "stages": stages, "places": places}));
        return exit::SUCCESS;
    }
    println!("run       {}", run.id);
    println!("workflow  {}", run.workflow_name);
    println!("status    {}", run.status);
    println!("created   {} by {}", instant(run.created_ms), run.actor);
    println!("took      {}", took(&run));
    for (name, value) in &run.parameters {
        println!("param     {name} = {}", value.as_str().unwrap_or_default());
    }
    if let Some(error) = &run.error {
        println!("error     {error}");
    }
    let rows: Vec<Vec<String>> = stages
        .iter()
        .map(|stage| {
            let outcomes = stage.counts.iter().flat_map(|step| {
                rowmill::step::Outcome::ALL
                    .iter()
                    .zip(step.counts.to_array())
                    .filter(|(_, items)| *items > 0)
                    .map(|(outcome, items)| format!("{} {outcome}", count(items)))
                    .collect::<Vec<_>>()
            });
            vec![
                stage.name.clone(),
                stage.class.clone(),
                match stage.status {
                    StageStatus::Failed => "failed".to_owned(),
                    status => status.to_string(),
                },
                match stage.chunk_count {
                    Some(all) => format!("{} of {all}", stage.committed_chunks),
                    None => stage.committed_chunks.to_string(),
                },
                outcomes.collect::<Vec<_>>().join(", "),
            ]
        })
        .collect();
    print!("{}", table(&["stage", "class", "status", "chunks", "outcomes"], &rows));
    if !places.is_empty() {
        println!();
        print!("{}", places_table(&places));
    }
    if matches!(run.status, RunStatus::Stopped | RunStatus::Running | RunStatus::Queued) {
        println!("`rowmill resume {}` goes on from what is committed", run.id);
    }
    exit::SUCCESS
}

/// Shows the items of a run that are not simply ok.
pub(crate) async fn items(
    name: &str,
    status: &[String],
    sql: Option<String>,
    limit: usize,
    format: Option<RowFormat>,
    settings: &Settings,
) -> u8 {
    let (_, runs) = match opened(false, settings).await {
        Ok(opened) => opened,
        Err(code) => return code,
    };
    let context = async { runs.items(runs.named(name).await?).await };
    let context = match context.await {
        Ok(context) => context,
        Err(reports) => return refuse(&reports, settings),
    };
    let query = match sql {
        Some(sql) => sql,
        None => {
            let mut words = Vec::new();
            for word in status {
                if rowmill::step::Outcome::from_name(word).is_none() {
                    let known: Vec<&str> = rowmill::step::Outcome::ALL.iter().map(|outcome| outcome.as_str()).collect();
                    let report = Diagnostic::error("RM0420", format!("`{word}` is no outcome"))
                        .help(format!("known are {}", known.join(", ")));
                    return refuse(&Diagnostics { reports: vec![report], ..Diagnostics::default() }, settings);
                }
                words.push(format!("'{word}'"));
            }
            let filter = match words.is_empty() {
                true => String::new(),
                false => format!("WHERE outcome IN ({})", words.join(", ")),
            };
            format!("SELECT * FROM items {filter} ORDER BY step, chunk, row LIMIT {limit}")
        }
    };
    let format = format.unwrap_or(if settings.is_json() { RowFormat::Json } else { RowFormat::Table });
    match execute(&context, &query, format, settings).await {
        Ok(_) => exit::SUCCESS,
        Err(code) => code,
    }
}

/// Shows what happened to a run.
pub(crate) async fn logs(name: &str, settings: &Settings) -> u8 {
    let (_, runs) = match opened(false, settings).await {
        Ok(opened) => opened,
        Err(code) => return code,
    };
    let events = async { runs.events(runs.named(name).await?).await };
    match events.await {
        Ok(events) if settings.is_json() => println!("{}", json!({"events": events})),
        Ok(events) => {
            for event in events {
                println!("{}  {:<16} {:<12} {}", instant(event.at_ms), event.kind, event.actor, event.detail);
            }
        }
        Err(reports) => return refuse(&reports, settings),
    }
    exit::SUCCESS
}

/// Asks for a run to be cancelled.
pub(crate) async fn cancel(name: &str, reason: Option<&str>, settings: &Settings) -> u8 {
    let (_, runs) = match opened(false, settings).await {
        Ok(opened) => opened,
        Err(code) => return code,
    };
    let answer = async {
        let run = runs.named(name).await?;
        Ok::<_, Diagnostics>((run, runs.cancel(run, reason).await?))
    };
    let (run, answer) = match answer.await {
        Ok(answer) => answer,
        Err(reports) => return refuse(&reports, settings),
    };
    let (text, code) = match answer {
        CancelResult::Requested => {
            ("asked; whoever works on it stops when it renews its lease".to_owned(), exit::SUCCESS)
        }
        CancelResult::Cancelled => ("cancelled".to_owned(), exit::SUCCESS),
        CancelResult::AlreadyEnded(status) => (format!("has ended already: {status}"), exit::FAILED),
    };
    match settings.is_json() {
        true => println!("{}", json!({"run": run.to_string(), "answer": text})),
        false => println!("run {run}: {text}"),
    }
    code
}

/// Removes what ended runs left.
pub(crate) async fn gc(age: Duration, dry: bool, settings: &Settings) -> u8 {
    let (_, runs) = match opened(false, settings).await {
        Ok(opened) => opened,
        Err(code) => return code,
    };
    match runs.collect(age, dry).await {
        Ok(collected) if settings.is_json() => {
            println!("{}", json!({"runs": collected.runs, "bytes": collected.bytes, "dry_run": dry}));
        }
        Ok(collected) => {
            let verb = if dry { "would remove" } else { "removed" };
            println!("{verb} {} runs, {}", count(collected.runs), bytes(collected.bytes));
        }
        Err(reports) => return refuse(&reports, settings),
    }
    exit::SUCCESS
}

/// An instant in UTC, to the second.
fn instant(ms: i64) -> String {
    chrono::DateTime::from_timestamp_millis(ms).map_or_else(String::new, |at| at.format("%F %T").to_string())
}

fn took(run: &Run) -> String {
    match (run.started_ms, run.ended_ms) {
        (Some(started), Some(ended)) => {
            crate::output::duration(Duration::from_millis(u64::try_from(ended - started).unwrap_or(0)))
        }
        _ => String::new(),
    }
}
