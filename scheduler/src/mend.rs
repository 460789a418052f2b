//! What the watch does to the cluster: gives executors up, asks whether a process is there, has files removed.

use std::time::Duration;

use ballista_core::JobId;
use ballista_core::serde::protobuf::scheduler_grpc_server::SchedulerGrpc;
use ballista_core::serde::protobuf::{CleanJobDataParams, ExecutorStoppedParams, UpdateTaskStatusParams};

use crate::watch::Server;

/// How long the answer may take whether a process is there.
const PROBE: Duration = Duration::from_millis(500);

/// Takes back everything that the graphs say of an executor.
pub(crate) async fn give_up(server: &Server, executor: String, reason: &str) {
    let message = ExecutorStoppedParams { executor_id: executor, reason: reason.to_owned() };
    if let Err(error) = SchedulerGrpc::executor_stopped(server, tonic::Request::new(message)).await {
        tracing::error!("an executor could not be given up: {error}");
    }
}

/// Looks again at what waits, since an executor takes more than it did. Ballista does so when it hears of tasks, of none
/// as well.
pub(crate) async fn offer_again(server: &Server, executor: String) {
    let message = UpdateTaskStatusParams { executor_id: executor, task_status: Vec::new() };
    if let Err(error) = SchedulerGrpc::update_task_status(server, tonic::Request::new(message)).await {
        tracing::error!("what waits is not looked at: {error}");
    }
}

/// Whether nobody listens where an executor did: its process has died. A process that sleeps or starves still has its
/// port, and a machine that is gone does not say so; for these there is the timeout.
pub(crate) async fn is_gone(host: &str, port: u16) -> bool {
    // Brackets around an IPv6 address belong to URLs.
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match tokio::time::timeout(PROBE, tokio::net::TcpStream::connect((host, port))).await {
        Ok(Err(error)) => error.kind() == std::io::ErrorKind::ConnectionRefused,
        Ok(Ok(_)) | Err(_) => false,
    }
}

/// Has the executors remove what a job wrote.
pub(crate) async fn clean(server: &Server, job: &JobId) {
    let message = CleanJobDataParams { job_id: job.to_string(), remove_stage_ids: Vec::new() };
    if let Err(error) = SchedulerGrpc::clean_job_data(server, tonic::Request::new(message)).await {
        tracing::warn!(job = %job, "the job's files could not be removed: {error}");
    }
}
