//! What executors may say to Ballista's scheduler: register, live, report, leave. Everything else that Ballista serves
//! (submitting, sessions, metrics) is refused here: work comes in through [`crate::Scheduler::submit`] alone.
//!
//! Nothing is believed that the graphs contradict (judge.rs). And a report counts once. Executors repeat a report until it
//! was taken, and one whose answer was lost comes twice; Ballista would then enter the attempt's files twice, and the rows
//! in them would be read twice. And a report of an attempt whose lease ran out comes too late: its partitions are being
//! made again.

use std::sync::Arc;

use ballista_core::JobId;
use ballista_core::serde::protobuf::scheduler_grpc_server::SchedulerGrpc;
use ballista_core::serde::protobuf::{
    CancelJobParams, CancelJobResult, CleanJobDataParams, CleanJobDataResult, CreateUpdateSessionParams,
    CreateUpdateSessionResult, ExecuteQueryParams, ExecuteQueryResult, ExecutorStoppedParams, ExecutorStoppedResult,
    GetJobMetricsParams, GetJobMetricsResult, GetJobStatusParams, GetJobStatusResult, HeartBeatParams, HeartBeatResult,
    PollWorkParams, PollWorkResult, RegisterExecutorParams, RegisterExecutorResult, RemoveSessionParams,
    RemoveSessionResult, UpdateTaskStatusParams, UpdateTaskStatusResult,
};
use ballista_core::serde::protobuf::{ExecutorRegistration, TaskStatus};
use ballista_scheduler::cluster::ClusterState as _;
use tonic::{Request, Response, Status};

use crate::cluster_state::Cluster;
use crate::judge::{Verdict, judge, judge_registration};
use crate::watch::{Server, Watch};

/// The service that executors speak to.
#[derive(Clone)]
pub(crate) struct Intake {
    server: Server,
    watch: Arc<Watch>,
    cluster: Arc<Cluster>,
}

impl Intake {
    pub(crate) fn new(server: Server, watch: Arc<Watch>, cluster: Arc<Cluster>) -> Self {
        Self { server, watch, cluster }
    }

    /// Judges what an executor says of itself.
    async fn meet(&self, said: Option<&ExecutorRegistration>) -> Result<(), Status> {
        let said = said.ok_or_else(|| Status::invalid_argument("an executor says who it is"))?;
        let known = self.cluster.get_executor_metadata(&said.id).await.ok();
        judge_registration(said, known.as_ref()).map_err(|why| {
            tracing::warn!("an executor is refused: {why}");
            match known {
                Some(_) => Status::already_exists(why),
                None => Status::invalid_argument(why),
            }
        })
    }

    /// Those of an executor's reports that speak of what it was given and somebody waits for.
    async fn believed(&self, executor: &str, reports: Vec<TaskStatus>) -> Vec<TaskStatus> {
        let mut believed = Vec::with_capacity(reports.len());
        for report in reports {
            let name = crate::watch::name_of(&report);
            // A job that has ended needs no reports, and one that never was does not either.
            let Some(graph) = self.cluster.graph(&JobId::from(report.job_id.clone())) else { continue };
            let verdict = judge(&*graph.read().await, executor, report);
            match verdict {
                Verdict::Take(report) => believed.push(report),
                Verdict::Late => {}
                Verdict::Stranger(why) => {
                    tracing::warn!(executor, "the report of {name:?} is not believed: {why}");
                }
            }
        }
        believed
    }
}

fn refuse<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("this scheduler takes work from `rowmill run --cluster` only"))
}

#[tonic::async_trait]
impl SchedulerGrpc for Intake {
    async fn register_executor(
        &self,
        request: Request<RegisterExecutorParams>,
    ) -> Result<Response<RegisterExecutorResult>, Status> {
        self.meet(request.get_ref().metadata.as_ref()).await?;
        SchedulerGrpc::register_executor(&self.server, request).await
    }

    async fn heart_beat_from_executor(
        &self,
        request: Request<HeartBeatParams>,
    ) -> Result<Response<HeartBeatResult>, Status> {
        let HeartBeatParams { executor_id, metadata, .. } = request.get_ref();
        self.meet(metadata.as_ref()).await?;
        if metadata.as_ref().is_some_and(|own| own.id != *executor_id) {
            return Err(Status::invalid_argument("an executor speaks for itself alone"));
        }
        SchedulerGrpc::heart_beat_from_executor(&self.server, request).await
    }

    async fn update_task_status(
        &self,
        request: Request<UpdateTaskStatusParams>,
    ) -> Result<Response<UpdateTaskStatusResult>, Status> {
        let UpdateTaskStatusParams { executor_id, task_status } = request.into_inner();
        // Ballista knows whom it gave a task to and does not look. One that it does not know, or has given up, has none.
        let known = self.cluster.get_executor_metadata(&executor_id).await.is_ok();
        let believed = if known { self.believed(&executor_id, task_status).await } else { Vec::new() };
        let taken = self.watch.claim(&executor_id, believed);
        if !taken.is_empty() {
            let names = taken.iter().map(crate::watch::name_of).collect::<Vec<_>>();
            let message = UpdateTaskStatusParams { executor_id, task_status: taken };
            if let Err(status) = SchedulerGrpc::update_task_status(&self.server, Request::new(message)).await {
                // Nobody has heard it: it may be said again.
                self.watch.give_back(&names);
                return Err(status);
            }
        }
        Ok(Response::new(UpdateTaskStatusResult { success: true }))
    }

    async fn executor_stopped(
        &self,
        request: Request<ExecutorStoppedParams>,
    ) -> Result<Response<ExecutorStoppedResult>, Status> {
        SchedulerGrpc::executor_stopped(&self.server, request).await
    }

    async fn poll_work(&self, _: Request<PollWorkParams>) -> Result<Response<PollWorkResult>, Status> {
        refuse()
    }

    async fn create_update_session(
        &self,
        _: Request<CreateUpdateSessionParams>,
    ) -> Result<Response<CreateUpdateSessionResult>, Status> {
        refuse()
    }

    async fn remove_session(&self, _: Request<RemoveSessionParams>) -> Result<Response<RemoveSessionResult>, Status> {
        refuse()
    }

    type ExecuteQueryPushStream = <Server as SchedulerGrpc>::ExecuteQueryPushStream;

    async fn execute_query_push(
        &self,
        _: Request<ExecuteQueryParams>,
    ) -> Result<Response<Self::ExecuteQueryPushStream>, Status> {
        refuse()
    }

    async fn execute_query(&self, _: Request<ExecuteQueryParams>) -> Result<Response<ExecuteQueryResult>, Status> {
        refuse()
    }

    async fn get_job_status(&self, _: Request<GetJobStatusParams>) -> Result<Response<GetJobStatusResult>, Status> {
        refuse()
    }

    async fn get_job_metrics(&self, _: Request<GetJobMetricsParams>) -> Result<Response<GetJobMetricsResult>, Status> {
        refuse()
    }

    async fn cancel_job(&self, _: Request<CancelJobParams>) -> Result<Response<CancelJobResult>, Status> {
        refuse()
    }

    async fn clean_job_data(&self, _: Request<CleanJobDataParams>) -> Result<Response<CleanJobDataResult>, Status> {
        refuse()
    }
}
