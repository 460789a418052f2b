//! `rowmill scheduler`, `rowmill executor`, `rowmill cluster`, `rowmill top`: the processes of a cluster, and one machine's worth of them.

mod executor;
mod local;
mod processes;
mod scheduler;
mod security;
mod show;
mod steps;
mod top;

use std::path::Path;
use std::time::Duration;

use rowmill::Diagnostics;
use rowmill::spec::{Diagnostic, Fault};
use rowmill_cluster::{Cluster, Options, Routing, parse_address};
use rowmill_wire::handshake::Token;

pub(crate) use executor::executor;
pub(crate) use local::{down, up};
pub(crate) use scheduler::scheduler;
use security::token;
pub(crate) use show::status;
pub(crate) use top::top;

use crate::args::ClusterArguments;
use crate::settings::Settings;

/// The variable that holds a cluster's token.
pub(crate) const TOKEN_VARIABLE: &str = "ROWMILL_CLUSTER_TOKEN";
/// The word for the cluster that `rowmill cluster up` started.
const LOCAL: &str = "local";
/// How long a cluster may be silent during a run.
const PATIENCE: Duration = Duration::from_secs(60);

/// A report of one error.
fn one(report: Diagnostic) -> Diagnostics {
    Diagnostics { reports: vec![report], ..Diagnostics::default() }
}

/// A report that the command line is wrong.
fn usage(message: impl Into<String>, help: &str) -> Diagnostics {
    one(Diagnostic::error("RM0420", message).help(help))
}

/// A report that the machine does not do what it should.
fn environment(code: &'static str, message: impl Into<String>, help: &str) -> Diagnostics {
    one(Diagnostic::error(code, message).fault(Fault::Environment).help(help))
}

/// A connection to the cluster that the arguments name; `None` where they name none.
pub(crate) fn open(arguments: &ClusterArguments, settings: &Settings) -> Result<Option<Cluster>, Diagnostics> {
    match &arguments.cluster {
        None => Ok(None),
        Some(address) => at(address, arguments.token_file.as_deref(), settings).map(Some),
    }
}

/// A connection to the cluster of this address.
pub(crate) fn at(address: &str, token_file: Option<&Path>, settings: &Settings) -> Result<Cluster, Diagnostics> {
    let (address, token) = match address {
        LOCAL => {
            let record = processes::Record::read(&local::folder(None, settings))?.ok_or_else(|| {
                usage("there is no cluster on this machine", "start one: `rowmill cluster up --executors cpu=2`")
            })?;
            let file = token_file.map_or_else(|| record.token_file(), Path::to_owned);
            (record.schedulers().join(","), token(Some(&file))?)
        }
        other => (other.to_owned(), token(token_file)?),
    };
    let help = "write --cluster HOST:PORT, or HOST:PORT,HOST:PORT for several schedulers, or --cluster local for one that `rowmill cluster up` started";
    let schedulers = parse_address(&address).map_err(|error| usage(error.to_string(), help))?;
    let partitions = settings.config().execution.partitions.unwrap_or_else(|| settings.threads()).max(2);
    connection(schedulers, token, partitions, settings)
}

/// A connection to these schedulers.
fn connection(
    schedulers: Vec<String>,
    token: Token,
    partitions: usize,
    settings: &Settings,
) -> Result<Cluster, Diagnostics> {
    let stores = settings.session_options()?.stores;
    let handshake = security::client(token, settings)?;
    let routing = routing(settings.config().cluster.routing);
    let (queue, tenant) = (settings.config().cluster.queue.clone(), security::tenant(settings)?);
    Cluster::try_new(Options { schedulers, handshake, queue, tenant, partitions, stores, patience: PATIENCE, routing })
        .map_err(|error| rowmill::Session::report(&error))
}

/// The strategy of a word of the configuration.
fn routing(word: &str) -> Routing {
    match word {
        "least_connections" => Routing::LeastConnections,
        "weighted" => Routing::Weighted,
        "consistent_hash" => Routing::ConsistentHash,
        _ => Routing::RoundRobin,
    }
}

/// Ends when SIGTERM or Ctrl-C comes.
async fn asked_to_stop() {
    let terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
    match terminate {
        Ok(mut terminate) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        }
        Err(error) => {
            tracing::warn!(%error, "SIGTERM cannot be heard");
            let _ = tokio::signal::ctrl_c().await;
        }
    }
}
