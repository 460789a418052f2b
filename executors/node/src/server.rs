//! What an executor serves to its scheduler: taking tasks, cancelling them, removing what jobs left.

use std::path::PathBuf;
use std::sync::Arc;

use ballista_core::serde::BallistaCodec;
use ballista_core::serde::protobuf::executor_grpc_server::ExecutorGrpc;
use ballista_core::serde::protobuf::{
    CancelTasksParams, CancelTasksResult, LaunchMultiTaskParams, LaunchMultiTaskResult, LaunchTaskParams,
    LaunchTaskResult, RemoveJobDataParams, RemoveJobDataResult, StopExecutorParams, StopExecutorResult,
};
use ballista_core::serde::scheduler::from_proto::get_task_definition_vec;
use ballista_executor::executor::Executor;
use datafusion_proto::protobuf::{LogicalPlanNode, PhysicalPlanNode};
use rowmill_wire::alive::RunningTask;
use rowmill_wire::handshake::Caller;
use tokio::sync::{MutexGuard, mpsc};
use tonic::{Request, Response, Status};

use crate::tasks::Tasks;
use crate::terms::Followed;
use crate::work_dir::{WorkDir, is_plain};

/// The service.
pub(crate) struct TaskServer {
    pub(crate) executor: Arc<Executor>,
    pub(crate) tasks: Arc<Tasks>,
    pub(crate) codec: BallistaCodec<LogicalPlanNode, PhysicalPlanNode>,
    pub(crate) shuffle: PathBuf,
    /// Told when the scheduler has given this executor up, with what ran then.
    pub(crate) given_up: mpsc::Sender<(String, Vec<RunningTask>)>,
    /// Whose words count.
    pub(crate) followed: Arc<Followed>,
}

impl TaskServer {
    /// Refuses a scheduler whose term is over.
    async fn follow<T>(&self, request: &Request<T>) -> Result<MutexGuard<'_, u64>, Status> {
        let term = request.extensions().get::<Caller>().map_or(0, |caller| caller.term);
        self.followed.follow(term, &self.tasks).await.map_err(Status::failed_precondition)
    }
}

#[async_trait::async_trait]
impl ExecutorGrpc for TaskServer {
    async fn launch_task(&self, _: Request<LaunchTaskParams>) -> Result<Response<LaunchTaskResult>, Status> {
        Err(Status::unimplemented("tasks are launched with launch_multi_task"))
    }

    async fn launch_multi_task(
        &self,
        request: Request<LaunchMultiTaskParams>,
    ) -> Result<Response<LaunchMultiTaskResult>, Status> {
        let _followed = self.follow(&request).await?;
        let LaunchMultiTaskParams { multi_tasks, .. } = request.into_inner();
        let mut failed_jobs = Vec::new();
        for message in multi_tasks {
            let job = message.job_id.clone();
            if !is_plain(&job) {
                failed_jobs.push(job);
                continue;
            }
            let functions = &self.executor.function_registry;
            let decoded = get_task_definition_vec(
                message,
                self.executor.runtime_producer.clone(),
                self.executor.produce_config(),
                functions.scalar_functions.clone(),
                functions.aggregate_functions.clone(),
                functions.window_functions.clone(),
                functions.higher_order_functions.clone(),
                self.codec.clone(),
            );
            match decoded {
                Ok(tasks) => {
                    for task in tasks {
                        self.tasks.start(task);
                    }
                }
                Err(error) => {
                    tracing::error!(job, "the job's tasks cannot be decoded: {error}");
                    failed_jobs.push(job);
                }
            }
        }
        Ok(Response::new(LaunchMultiTaskResult { failed_jobs }))
    }

    async fn stop_executor(
        &self,
        request: Request<StopExecutorParams>,
    ) -> Result<Response<StopExecutorResult>, Status> {
        let _followed = self.follow(&request).await?;
        let StopExecutorParams { executor_id, reason, .. } = request.into_inner();
        if executor_id == self.executor.metadata.id {
            // The scheduler took the silence for death and runs the tasks elsewhere. What it gives to this executor once
            // it has joined again is not meant.
            let _ = self.given_up.try_send((reason, self.tasks.open()));
        }
        Ok(Response::new(StopExecutorResult {}))
    }

    async fn cancel_tasks(&self, request: Request<CancelTasksParams>) -> Result<Response<CancelTasksResult>, Status> {
        let _followed = self.follow(&request).await?;
        let mut cancelled = true;
        for task in request.into_inner().task_infos {
            cancelled &= self.tasks.cancel(&task.job_id, task.stage_id, task.task_id).await;
        }
        Ok(Response::new(CancelTasksResult { cancelled }))
    }

    async fn remove_job_data(
        &self,
        request: Request<RemoveJobDataParams>,
    ) -> Result<Response<RemoveJobDataResult>, Status> {
        drop(self.follow(&request).await?);
        let RemoveJobDataParams { job_id, remove_stage_ids, .. } = request.into_inner();
        let shuffle = self.shuffle.clone();
        tokio::task::spawn_blocking(move || WorkDir::remove_job(&shuffle, &job_id, &remove_stage_ids))
            .await
            .map_err(|error| Status::internal(error.to_string()))?
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(RemoveJobDataResult {}))
    }
}
