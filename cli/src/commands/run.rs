//! `rowmill run`

use std::sync::Arc;

use rowmill::spec::Workflow;
use rowmill::{Inputs, RunError, RunReport, Session};
use tokio_util::sync::CancellationToken;

use super::runs::run_durably;
use super::{open_session_on, open_workflow, warn};
use crate::args::{ClusterArguments, WorkflowArguments};
use crate::exit;
use crate::output::{exit_code, failure, summary, summary_json};
use crate::progress::Progress;
use crate::settings::Settings;

pub(crate) async fn run(
    arguments: &WorkflowArguments,
    preview: Option<usize>,
    durable: bool,
    cluster: &ClusterArguments,
    settings: &Settings,
) -> u8 {
    let (workflow, inputs) = match open_workflow(arguments, settings) {
        Ok(opened) => opened,
        Err(code) => return code,
    };
    let session = match open_session_on(cluster, settings).await {
        Ok(session) => session,
        Err(code) => return code,
    };
    let cancel = CancellationToken::new();
    listen_for_signals(cancel.clone());
    let progress = Progress::new(settings.progress());
    let outcome = match durable || workflow.durable {
        true => {
            let path = &arguments.path;
            let run = run_durably(&session, path, workflow, &inputs, &cancel, &progress, settings);
            match run.await {
                Ok(outcome) => outcome,
                Err(code) => return code,
            }
        }
        false => session.run_observed(workflow, &inputs, &cancel, &progress).await,
    };
    progress.finish();
    match (outcome, preview) {
        (Ok(report), Some(rows)) if !settings.is_json() => {
            let code = finish(Ok(report.clone()), settings);
            match show_results(&session, &report, &inputs, rows, settings).await {
                exit::SUCCESS => code,
                other => other,
            }
        }
        (outcome, _) => finish(outcome, settings),
    }
}

/// Tells how a run ended, and gives the exit code.
pub(super) fn finish(outcome: Result<RunReport, RunError>, settings: &Settings) -> u8 {
    match outcome {
        Ok(report) => {
            warn(&report.warnings, settings);
            match settings.is_json() {
                true => println!("{}", summary_json(&report)),
                false => print!("{}", summary(&report)),
            }
            exit_code(&report)
        }
        Err(RunError::Failed(reports)) => failure(&reports, settings.is_json(), settings.is_colored()),
        Err(RunError::Cancelled) => {
            match settings.is_json() {
                true => println!("{}", serde_json::json!({"outcome": "cancelled", "exit_code": exit::CANCELLED})),
                false => eprintln!("cancelled; nothing was published"),
            }
            exit::CANCELLED
        }
    }
}

/// Listens on a thread and a runtime of its own: an operator that computes for long may hold every thread of the run's,
/// and it is just then that people press Ctrl-C.
pub(super) fn listen_for_signals(cancel: CancellationToken) {
    let listen = move || match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(cancel_on_signal(cancel)),
        Err(error) => tracing::warn!(%error, "signals will not stop the run cleanly"),
    };
    if let Err(error) = std::thread::Builder::new().name("signals".to_owned()).spawn(listen) {
        tracing::warn!(%error, "signals will not stop the run cleanly");
    }
}

/// The first Ctrl-C (or SIGTERM) stops the run cleanly, the second at once.
async fn cancel_on_signal(cancel: CancellationToken) {
    let mut terminate = match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        Ok(terminate) => terminate,
        Err(error) => {
            tracing::warn!(%error, "SIGTERM will not stop the run cleanly");
            return;
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
    cancel.cancel();
    eprintln!("stopping; once more to stop at once");
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
    std::process::exit(i32::from(exit::CANCELLED));
}

/// Reads the results back as any reader would, and shows their first rows.
async fn show_results(session: &Session, report: &RunReport, inputs: &Inputs, rows: usize, settings: &Settings) -> u8 {
    for sink in &report.sinks {
        println!("\n{} ({})", sink.name, sink.path);
        if let Err(code) = show_result(session, sink, inputs, rows, settings).await {
            return code;
        }
    }
    exit::SUCCESS
}

async fn show_result(
    session: &Session,
    sink: &rowmill::SinkReport,
    inputs: &Inputs,
    rows: usize,
    settings: &Settings,
) -> Result<(), u8> {
    let refuse = |reports: &rowmill::Diagnostics| failure(reports, false, settings.is_colored());
    let workflow = Workflow::builder("preview")
        .source_files_with("result", [sink.path.clone()], |options| {
            sink.partitions.iter().fold(options.format(sink.format), |options, (name, kind)| {
                options.partition(name.as_str(), kind.clone())
            })
        })
        .sql("head", format!("SELECT * FROM result LIMIT {rows}"))
        .build()
        .map_err(|reports| refuse(&reports))?;
    let inputs = Inputs { base: inputs.base.clone(), collect: vec!["head".to_owned()], ..Inputs::default() };
    let mut report = match session.run(Arc::new(workflow), &inputs).await {
        Ok(report) => report,
        Err(RunError::Failed(reports)) => return Err(refuse(&reports)),
        Err(RunError::Cancelled) => return Err(exit::CANCELLED),
    };
    let batches = report.collected.shift_remove("head").unwrap_or_default();
    match crate::output::rows(&batches) {
        Ok(table) => println!("{table}"),
        Err(error) => eprintln!("cannot print the rows: {error}"),
    }
    Ok(())
}
