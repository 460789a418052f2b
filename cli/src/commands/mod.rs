//! One file per command.

mod cache;
mod check;
mod cluster;
mod config;
mod explain;
mod gpu;
mod init;
mod prompt;
mod run;
mod runs;
mod sql;

use std::sync::Arc;

use clap::CommandFactory as _;
use rowmill::{Diagnostics, Inputs, ResumeOptions, Session, Workflow, load, load_vars};

use crate::args::{Arguments, ClusterAction, ClusterArguments, Command, WorkflowArguments};
use crate::exit;
use crate::output::failure;
use crate::settings::Settings;

/// Runs the command and gives the exit code.
pub(crate) async fn dispatch(arguments: Arguments, settings: Settings) -> u8 {
    match arguments.command {
        Command::Run { workflow, preview, durable, cluster, .. } => {
            run::run(&workflow, preview, durable, &cluster, &settings).await
        }
        Command::Resume { run, steal, restart, unknown, cluster } => {
            runs::resume(&run, ResumeOptions { steal, restart, unknown }, &cluster, &settings).await
        }
        Command::Retry { run, unknown, cluster } => runs::retry(&run, unknown, &cluster, &settings).await,
        Command::Runs { status, limit } => runs::list(status.as_deref(), limit, &settings).await,
        Command::Show { run } => runs::show(&run, &settings).await,
        Command::Items { run, status, sql, limit, format } => {
            runs::items(&run, &status, sql, limit, format, &settings).await
        }
        Command::Logs { run } => runs::logs(&run, &settings).await,
        Command::Cancel { run, reason } => runs::cancel(&run, reason.as_deref(), &settings).await,
        Command::Gc { older_than, dry_run } => runs::gc(older_than, dry_run, &settings).await,
        Command::Cache { command } => cache::cache(command, &settings).await,
        Command::Check { workflow } => check::check(&workflow, &settings).await,
        Command::Explain { workflow, format, cluster } => {
            explain::explain(&workflow, format, &cluster, &settings).await
        }
        Command::Cluster { action } => match action {
            ClusterAction::Up { executors, slots, port, standby, dir } => {
                cluster::up(executors.as_deref(), slots, port, standby, dir.as_deref(), &settings).await
            }
            ClusterAction::Status { cluster, dir } => cluster::status(&cluster, dir.as_deref(), &settings).await,
            ClusterAction::Down { grace_s, dir } => cluster::down(grace_s, dir.as_deref(), &settings).await,
        },
        Command::Top { cluster, dir, interval_s } => {
            cluster::top(&cluster, dir.as_deref(), interval_s, &settings).await
        }
        Command::Scheduler(arguments) => cluster::scheduler(&arguments, &settings).await,
        Command::Executor(arguments) => cluster::executor(&arguments, &settings).await,
        Command::Init { folder } => init::init(&folder, &settings),
        Command::Sql { query, file, format } => sql::sql(query, file, format, &settings).await,
        Command::Gpu { action } => gpu::gpu(action, &settings).await,
        Command::Config { action } => config::config(action, &settings),
        Command::Error { code } => config::error(&code, &settings),
        Command::Completions { shell } => {
            completions(shell);
            exit::SUCCESS
        }
    }
}

/// Prints a completion script.
pub(crate) fn completions(shell: clap_complete::Shell) {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "rowmill", &mut script);
    // Who closes the pipe has read enough.
    if let Err(error) = std::io::Write::write_all(&mut std::io::stdout(), &script) {
        tracing::debug!("the script was not taken: {error}");
    }
}

/// A connection to the cluster of this address.
pub(crate) fn cluster_at(
    address: &str,
    token_file: Option<std::path::PathBuf>,
    settings: &Settings,
) -> Result<rowmill_cluster::Cluster, Diagnostics> {
    cluster::at(address, token_file.as_deref(), settings)
}

/// A session as configured; otherwise the exit code, the reason being told.
fn open_session(settings: &Settings) -> Result<Session, u8> {
    let refuse = |reports: &Diagnostics| failure(reports, settings.is_json(), settings.is_colored());
    let options = settings.session_options().map_err(|reports| refuse(&reports))?;
    Session::try_new(options).map_err(|error| refuse(&Session::report(&error)))
}

/// A session whose SQL and calls go to the cluster that is named, if one is; otherwise the exit code, the reason being told.
async fn open_session_on(cluster: &ClusterArguments, settings: &Settings) -> Result<Session, u8> {
    let refuse = |reports: &Diagnostics| failure(reports, settings.is_json(), settings.is_colored());
    let Some(cluster) = cluster::open(cluster, settings).map_err(|reports| refuse(&reports))? else {
        return open_session(settings);
    };
    let mut options = settings.session_options().map_err(|reports| refuse(&reports))?;
    options.elsewhere = Some(Arc::new(cluster));
    Session::try_new(options).map_err(|error| refuse(&Session::report(&error)))
}

/// A workflow with its inputs; otherwise the exit code, the reason being told.
fn open_workflow(arguments: &WorkflowArguments, settings: &Settings) -> Result<(Arc<Workflow>, Inputs), u8> {
    let refuse = |reports: &Diagnostics| failure(reports, settings.is_json(), settings.is_colored());
    let (workflow, mut inputs) = load(&arguments.path).map_err(|reports| refuse(&reports))?;
    inputs.params = arguments.set.clone();
    if let Some(path) = &arguments.vars {
        inputs.vars = load_vars(path, &workflow).map_err(|reports| refuse(&reports))?;
    }
    Ok((workflow, inputs))
}

/// Prints warnings, where there are any.
fn warn(warnings: &Diagnostics, settings: &Settings) {
    if !warnings.reports.is_empty() && !settings.is_json() {
        eprint!("{}", warnings.render(settings.is_colored()));
    }
}
