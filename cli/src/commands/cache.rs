//! `rowmill cache stats | clear | warm`

use std::path::PathBuf;

use rowmill::{Diagnostics, Inputs, RunError};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::run::{finish, listen_for_signals};
use super::{open_session, open_workflow};
use crate::args::{CacheCommand, WorkflowArguments};
use crate::exit;
use crate::output::{bytes, count, failure, table};
use crate::progress::Progress;
use crate::settings::Settings;

/// Runs the command and gives the exit code.
pub(crate) async fn cache(command: CacheCommand, settings: &Settings) -> u8 {
    match command {
        CacheCommand::Stats => stats(settings).await,
        CacheCommand::Clear { workflow: None, all: false, .. } => {
            let report = rowmill::spec::Diagnostic::error("RM0706", "nothing says what is to be forgotten".to_owned())
                .help("name a workflow, or say `--all`");
            refuse(&Diagnostics { reports: vec![report], ..Diagnostics::default() }, settings)
        }
        CacheCommand::Clear { workflow, step, .. } => clear(workflow, step.as_deref(), settings).await,
        CacheCommand::Warm { workflow, step } => warm(&workflow, step.as_deref(), settings).await,
    }
}

fn refuse(reports: &Diagnostics, settings: &Settings) -> u8 {
    failure(reports, settings.is_json(), settings.is_colored())
}

async fn stats(settings: &Settings) -> u8 {
    let session = match open_session(settings) {
        Ok(session) => session,
        Err(code) => return code,
    };
    let places = match session.cache_stats().await {
        Ok(places) => places,
        Err(reports) => return refuse(&reports, settings),
    };
    if settings.is_json() {
        let places: Vec<_> = places
            .iter()
            .map(|place| {
                json!({
                    "place": place.place, "tier": place.tier, "entries": place.entries, "bytes": place.bytes,
                    "limit": place.limit,
                })
            })
            .collect();
        println!("{}", json!({"caches": places}));
        return exit::SUCCESS;
    }
    if places.is_empty() {
        println!("nothing is kept: there is no cache on disk yet, and no Redis in the configuration");
        return exit::SUCCESS;
    }
    let known = |value: Option<u64>, show: fn(u64) -> String| value.map_or_else(|| "-".to_owned(), show);
    let rows: Vec<Vec<String>> = places
        .iter()
        .map(|place| {
            vec![
                place.tier.to_owned(),
                place.place.clone(),
                known(place.entries, count),
                known(place.bytes, bytes),
                known(place.limit, bytes),
            ]
        })
        .collect();
    print!("{}", table(&["tier", "place", "entries", "bytes", "limit"], &rows));
    exit::SUCCESS
}

async fn clear(workflow: Option<PathBuf>, step: Option<&str>, settings: &Settings) -> u8 {
    let session = match open_session(settings) {
        Ok(session) => session,
        Err(code) => return code,
    };
    let forgotten = match workflow {
        None => session.cache_clear().await.map(|()| Vec::new()),
        Some(path) => {
            let arguments = WorkflowArguments { path, set: Vec::new(), vars: None };
            let (workflow, inputs): (_, Inputs) = match open_workflow(&arguments, settings) {
                Ok(opened) => opened,
                Err(code) => return code,
            };
            session.cache_clear_steps(workflow, &inputs, step).await
        }
    };
    match forgotten {
        Ok(steps) if settings.is_json() => println!("{}", json!({"cleared": steps})),
        Ok(steps) if steps.is_empty() => println!("all results are forgotten"),
        Ok(steps) => println!("results are forgotten of {}", steps.join(", ")),
        Err(reports) => return refuse(&reports, settings),
    }
    exit::SUCCESS
}

async fn warm(arguments: &WorkflowArguments, step: Option<&str>, settings: &Settings) -> u8 {
    let (workflow, inputs) = match open_workflow(arguments, settings) {
        Ok(opened) => opened,
        Err(code) => return code,
    };
    let session = match open_session(settings) {
        Ok(session) => session,
        Err(code) => return code,
    };
    let cancel = CancellationToken::new();
    listen_for_signals(cancel.clone());
    let progress = Progress::new(settings.progress());
    let outcome: Result<_, RunError> = session.cache_warm(&workflow, &inputs, step, &cancel, &progress).await;
    progress.finish();
    // The rows went nowhere: what counts is what became of the items.
    let outcome = outcome.map(|mut report| {
        report.sinks.clear();
        report
    });
    finish(outcome, settings)
}
