//! `rowmill scheduler`

use std::sync::Arc;
use std::time::Duration;

use rowmill::spec::config;
use rowmill_cluster::stores::Stores;
use rowmill_scheduler::{AdmissionOptions, Error, Options, QueueOptions, QuotaOptions, Scheduler};

use super::{asked_to_stop, environment, security};
use crate::args::SchedulerArguments;
use crate::exit;
use crate::output::failure;
use crate::settings::Settings;

pub(crate) async fn scheduler(arguments: &SchedulerArguments, settings: &Settings) -> u8 {
    let refuse = |reports| failure(&reports, settings.is_json(), settings.is_colored());
    let handshake =
        security::token(arguments.token_file.as_deref()).and_then(|token| security::server(token, settings));
    let handshake = match handshake {
        Ok(handshake) => handshake,
        Err(reports) => return refuse(reports),
    };
    let stores = match settings.session_options() {
        Ok(session) => Stores::new(session.stores),
        Err(reports) => return refuse(reports),
    };
    let options = Options {
        stores: Some(Arc::new(stores)),
        listen: arguments.listen,
        host: arguments.host.clone().unwrap_or_else(|| arguments.listen.ip().to_string()),
        queue_timeout: Duration::from_secs(arguments.queue_timeout_s),
        admission: admission(&settings.config().cluster),
        ..Options::local(handshake)
    };
    match Scheduler::start(options).await {
        Ok(scheduler) => {
            println!("the scheduler listens on {}", scheduler.address());
            asked_to_stop().await;
            exit::SUCCESS
        }
        Err(Error::Transport(error)) => refuse(security::refused(&error)),
        Err(error) => refuse(environment("RM0704", error.to_string(), "choose another address with --listen")),
    }
}

/// Queues and quotas, as configured.
fn admission(cluster: &config::Cluster) -> AdmissionOptions {
    let queue = |queue: &config::Queue| {
        let &config::Queue { priority, max_running, max_queued, timeout } = queue;
        QueueOptions { priority, max_running, max_queued, timeout }
    };
    let quota = |quota: &config::Quota| {
        let &config::Quota { weight, jobs, tasks, cpu_milli, memory_bytes, gpu_milli } = quota;
        QuotaOptions { weight, jobs, tasks, cpu_milli, memory_bytes, gpu_milli }
    };
    AdmissionOptions {
        queues: cluster.queues.iter().map(|(name, own)| (name.as_str().into(), queue(own))).collect(),
        quotas: cluster.quotas.iter().map(|(name, own)| (name.clone(), quota(own))).collect(),
        ageing: cluster.ageing,
        ..AdmissionOptions::default()
    }
}
