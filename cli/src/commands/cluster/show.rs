//! `rowmill cluster status`

use std::path::Path;

use rowmill_cluster::{Cluster, ConnectError, SchedulerState};
use rowmill_wire::jobs::StatusResponse;

use super::processes::Record;
use super::{environment, local, open};
use crate::args::ClusterArguments;
use crate::exit;
use crate::output::failure;
use crate::settings::Settings;

/// The end of a log, in one line.
pub(super) fn last_lines(log: &Path, many: usize) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = lines.len().saturating_sub(many);
    lines.get(last..).unwrap_or_default().join("; ")
}

/// A connection to the cluster that is meant, and what of it has ended on this machine; otherwise the exit code, the
/// reason being told.
pub(super) fn connect(
    arguments: &ClusterArguments,
    folder: Option<&Path>,
    settings: &Settings,
) -> Result<(Cluster, Vec<String>), u8> {
    let refuse = |reports| failure(&reports, settings.is_json(), settings.is_colored());
    let local = ClusterArguments {
        cluster: Some(arguments.cluster.clone().unwrap_or_else(|| "local".to_owned())),
        token_file: arguments.token_file.clone(),
    };
    let record = Record::read(&local::folder(folder, settings)).map_err(refuse)?;
    let record = record.filter(|_| arguments.cluster.is_none());
    let dead: Vec<String> = record
        .iter()
        .flat_map(|record| {
            let dead = record.processes.iter().filter(|process| !process.lives());
            dead.map(|process| format!("{} has ended; its log: {}", process.name, record.log(&process.name).display()))
        })
        .collect();
    let opened = match (&record, folder) {
        (Some(record), Some(_)) => open(
            &ClusterArguments { cluster: Some(record.schedulers().join(",")), token_file: Some(record.token_file()) },
            settings,
        ),
        _ => open(&local, settings),
    };
    match opened.map_err(refuse)? {
        Some(cluster) => Ok((cluster, dead)),
        None => Err(exit::USAGE),
    }
}

/// What is seen of a cluster at one moment.
pub(super) struct Look {
    pub(super) status: StatusResponse,
    /// Its schedulers, where there may be several.
    schedulers: Vec<SchedulerState>,
}

/// Looks once.
pub(super) async fn look(cluster: &Cluster) -> Result<Look, ConnectError> {
    let status = cluster.status().await?;
    let schedulers = match status.term {
        0 => Vec::new(),
        _ => cluster.schedulers().await,
    };
    Ok(Look { status, schedulers })
}

/// A scheduler's address, and what it does.
fn role(scheduler: &SchedulerState) -> (&str, String) {
    let does = match &scheduler.role {
        Ok(role) if role.leads => format!("leads, term {}", role.term),
        Ok(_) => "stands by".to_owned(),
        Err(why) => format!("does not answer: {why}"),
    };
    (&scheduler.address, does)
}

pub(crate) async fn status(arguments: &ClusterArguments, folder: Option<&Path>, settings: &Settings) -> u8 {
    let (cluster, dead) = match connect(arguments, folder, settings) {
        Ok(found) => found,
        Err(code) => return code,
    };
    match look(&cluster).await {
        Ok(look) => {
            match settings.is_json() {
                true => println!("{}", json(&look, &dead)),
                false => print!("{}", text(&look, &dead)),
            }
            exit::SUCCESS
        }
        Err(error) => {
            for line in &dead {
                eprintln!("{line}");
            }
            let (code, help) = match error {
                ConnectError::Refused(_) => ("RM0708", "are token, certificates and build the cluster's?"),
                ConnectError::Insecure(_) => ("RM0720", "docs/cluster.md shows how certificates are made"),
                ConnectError::Silent(_) => ("RM0709", "`rowmill cluster up` starts what has ended"),
            };
            let report = environment(code, error.to_string(), help);
            failure(&report, settings.is_json(), settings.is_colored())
        }
    }
}

pub(super) fn text(Look { status, schedulers }: &Look, dead: &[String]) -> String {
    let mut lines: Vec<String> = Vec::new();
    if status.term > 0 && !schedulers.iter().any(|own| own.address == status.leader) {
        // It was named by another, or is reached under another name.
        lines.push(format!("scheduler {:<34} leads, term {}", status.leader, status.term));
    }
    for scheduler in schedulers {
        let (address, does) = role(scheduler);
        lines.push(format!("scheduler {address:<34} {does}"));
    }
    lines.push(format!("{:<44} {:>9}  {:<22} state", "executor", "slots", "address"));
    for executor in &status.executors {
        let slots = format!("{}/{}", executor.busy, executor.slots);
        let state = match executor.closed.as_str() {
            _ if executor.draining => "draining".to_owned(),
            "" => "ready".to_owned(),
            why => format!("takes no tasks: {why}"),
        };
        lines.push(format!("{:<44} {slots:>9}  {:<22} {state}", executor.name, executor.address));
    }
    if status.jobs.is_empty() {
        lines.push("no jobs".to_owned());
    }
    for job in &status.jobs {
        let waits = match job.waiting {
            0 => String::new(),
            many => format!(", {many} partitions wait for {}", job.waiting_for.join(", ")),
        };
        lines.push(format!("job {} ({}): {} of {} stages done{waits}", job.id, job.name, job.ended, job.stages));
    }
    for queue in &status.queues {
        let most = match queue.max_running {
            0 => String::new(),
            most => format!(" of {most}"),
        };
        let oldest = match queue.waiting {
            0 => String::new(),
            _ => format!(", the oldest for {} s", queue.oldest_ms / 1_000),
        };
        lines.push(format!(
            "queue {} (priority {}): {}{most} jobs run, {} of {} wait{oldest}",
            queue.name, queue.priority, queue.running, queue.waiting, queue.max_queued
        ));
    }
    for tenant in status.tenants.iter().filter(|tenant| !tenant.name.is_empty()) {
        lines.push(format!("{}: {} jobs, {} partitions", tenant.name, tenant.jobs, tenant.tasks));
    }
    lines.extend(dead.iter().cloned());
    lines.iter().map(|line| format!("{}\n", line.trim_end())).collect()
}

pub(super) fn json(Look { status, schedulers }: &Look, dead: &[String]) -> serde_json::Value {
    let schedulers: Vec<_> = schedulers
        .iter()
        .map(|scheduler| {
            let leads = scheduler.role.as_ref().is_ok_and(|role| role.leads);
            serde_json::json!({"address": scheduler.address, "leads": leads, "state": role(scheduler).1})
        })
        .collect();
    let executors: Vec<_> = status
        .executors
        .iter()
        .map(|executor| {
            serde_json::json!({
                "name": executor.name, "slots": executor.slots, "busy": executor.busy, "address": executor.address,
                "draining": executor.draining,
                "closed": (!executor.closed.is_empty()).then_some(&executor.closed),
            })
        })
        .collect();
    let jobs: Vec<_> = status
        .jobs
        .iter()
        .map(|job| {
            serde_json::json!({
                "id": job.id, "name": job.name, "stages": job.stages, "ended": job.ended, "waiting": job.waiting,
                "waiting_for": job.waiting_for,
            })
        })
        .collect();
    let queues: Vec<_> = status
        .queues
        .iter()
        .map(|queue| {
            serde_json::json!({
                "name": queue.name, "priority": queue.priority, "running": queue.running,
                "max_running": (queue.max_running > 0).then_some(queue.max_running), "waiting": queue.waiting,
                "max_queued": queue.max_queued, "oldest_ms": queue.oldest_ms,
            })
        })
        .collect();
    let tenants: Vec<_> = status
        .tenants
        .iter()
        .map(|tenant| serde_json::json!({"name": tenant.name, "jobs": tenant.jobs, "tasks": tenant.tasks}))
        .collect();
    serde_json::json!({
        "executors": executors, "jobs": jobs, "queues": queues, "tenants": tenants, "ended": dead,
        "leader": status.leader, "term": status.term, "schedulers": schedulers,
    })
}
