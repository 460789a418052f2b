//! `rowmill scheduler`

use std::sync::Arc;
use std::time::Duration;

use rowmill::Diagnostics;
use rowmill::spec::config;
use rowmill_cluster::stores::Stores;
use rowmill_scheduler::{
    AdmissionOptions, Candidate, Election, Error, Options, QueueOptions, QuotaOptions, Scheduler, StoreAt,
};

use super::{asked_to_stop, environment, security, usage};
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
    let store = arguments.store.as_ref().or(settings.config().cluster.store.as_ref());
    let served = match store.map(|text| store_at(text)).transpose() {
        Ok(None) => alone(options).await,
        Ok(Some(at)) => one_of_several(options, &at, &settings.config().cluster).await,
        Err(reports) => return refuse(reports),
    };
    match served {
        Ok(()) => exit::SUCCESS,
        Err(error) => refuse(match &error {
            Error::Transport(error) => security::refused(error),
            Error::NoHost => usage(error.to_string(), "give it with --host"),
            Error::Election(_) => usage(error.to_string(), "`cluster.store`, `cluster.name`, `cluster.lease`"),
            Error::Store(_) => environment("RM0704", error.to_string(), "`cluster.store` says where it is"),
            _ => environment("RM0704", error.to_string(), "choose another address with --listen"),
        }),
    }
}

async fn alone(options: Options) -> Result<(), Error> {
    let scheduler = Scheduler::start(options).await?;
    println!("the scheduler listens on {}", scheduler.address());
    asked_to_stop().await;
    Ok(())
}

async fn one_of_several(options: Options, at: &StoreAt, cluster: &config::Cluster) -> Result<(), Error> {
    let election = Election::open(at, &cluster.name, cluster.lease).await?;
    let candidate = Candidate::try_new(options, election).await?;
    println!("the scheduler listens on {}", candidate.address());
    candidate.run(Box::pin(asked_to_stop())).await
}

/// The store that a text names.
fn store_at(text: &str) -> Result<StoreAt, Diagnostics> {
    let help =
        "write a path, `postgres://USER@HOST/DATABASE`, or `env:NAME` or `file:/path` where a URL with a password is";
    let found = match config::Secret::reference(text) {
        Some(secret) => {
            let found = secret.resolve(|name| std::env::var(name).ok(), |path| std::fs::read_to_string(path));
            found.map_err(|error| environment("RM0703", format!("the schedulers' store: {error}"), help))?
        }
        // Whoever sees the command line or the configuration would see it.
        None if has_password(text) => return Err(usage("the URL of the schedulers' store holds a password", help)),
        None => text.to_owned(),
    };
    StoreAt::parse(&found).map_err(|error| usage(format!("the schedulers' store: {error}"), help))
}

/// Whether a URL holds a password.
fn has_password(text: &str) -> bool {
    let Some((_, rest)) = text.split_once("://") else { return false };
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let named = authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'));
    named || rest.to_ascii_lowercase().contains("password=")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_stands_on_a_command_line() {
        for url in ["postgres://u:p@h/d", "postgres://h/d?user=u&password=p", "postgresql://u:p@h?sslPassword=x"] {
            assert!(has_password(url), "{url}");
            assert!(store_at(url).is_err(), "{url}");
        }
        for text in ["postgres://u@h:5432/d", "postgres://[::1]:5432/d", "a/b:c@d.db"] {
            assert!(!has_password(text), "{text}");
        }
        assert_eq!(store_at("schedulers.db").unwrap(), StoreAt::File("schedulers.db".into()));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("url");
        std::fs::write(&file, "postgres://u:p@h/d\n").unwrap();
        let found = store_at(&format!("file:{}", file.display())).unwrap();
        assert_eq!(found, StoreAt::Postgres("postgres://u:p@h/d".to_owned()));
        assert!(store_at("file:/nowhere/url").is_err());
        assert!(store_at("mysql://h/d").is_err());
    }
}
