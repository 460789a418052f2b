//! Running tasks on threads of their own, and reporting what became of them until the scheduler has taken it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ballista_core::error::BallistaError;
use ballista_core::serde::protobuf::scheduler_grpc_client::SchedulerGrpcClient;
use ballista_core::serde::protobuf::{
    FailedTask, OperatorMetricsSet, SuccessfulTask, TaskStatus, UpdateTaskStatusParams, failed_task, task_status,
};
use ballista_core::serde::scheduler::{TaskDefinition, TaskKey};
use ballista_executor::execution_engine::{ExecutionEngine, QueryStageExecutor};
use ballista_executor::executor::Executor;
use datafusion::arrow::error::ArrowError;
use datafusion::common::DataFusionError;
use datafusion::execution::TaskContext;
use parking_lot::Mutex;
use rowmill_wire::MESSAGE_BYTES;
use rowmill_wire::alive::RunningTask;
use rowmill_wire::handshake::Handshake;
use rowmill_wire::transport::ConnectError;
use tokio::runtime::Runtime;
use tonic::transport::Channel;

use crate::disk::Disk;
use crate::options::{Describe, Options};

/// The longest wait before a report is tried again.
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// How long a call to the scheduler may take.
const CALL: Duration = Duration::from_secs(10);
/// Tasks that one attempt of a stage may have.
const TASKS_PER_ATTEMPT: u32 = 1 << 20;
/// Attempts that a stage may have.
const ATTEMPTS_PER_STAGE: u32 = 1 << 11;

/// A number that no other attempt at work of the same stage has, on whichever executor.
///
/// Ballista numbers the tasks of a stage anew when the stage is rolled back, names files by these numbers, and reads a
/// file of that name from its own disk before it asks the executor that wrote it. So what an earlier attempt left here
/// would be taken for what a later one wrote elsewhere. With the stage's attempt in the number, names are never used
/// twice.
fn unique_number(stage_attempt: usize, task: usize) -> Option<usize> {
    let (attempt, task) = (u32::try_from(stage_attempt).ok()?, u32::try_from(task).ok()?);
    let fits = attempt < ATTEMPTS_PER_STAGE && task < TASKS_PER_ATTEMPT;
    fits.then(|| (attempt * TASKS_PER_ATTEMPT + task) as usize)
}

/// The tasks of this process.
pub(crate) struct Tasks {
    executor: Arc<Executor>,
    engine: Arc<dyn ExecutionEngine>,
    describe: Option<Describe>,
    disk: Arc<Disk>,
    /// Runs, or has run and is not reported.
    open: Mutex<HashMap<RunningTask, TaskKey>>,
    /// Tasks that nobody waits for: their reports are not sent.
    dropped: Mutex<std::collections::HashSet<RunningTask>>,
    /// The scheduler that takes its signs of life.
    scheduler: Mutex<Option<Channel>>,
    threads: Mutex<Option<Runtime>>,
}

impl Tasks {
    pub(crate) fn try_new(
        executor: Arc<Executor>,
        engine: Arc<dyn ExecutionEngine>,
        disk: Arc<Disk>,
        options: &Options,
    ) -> std::io::Result<Self> {
        let threads = tokio::runtime::Builder::new_multi_thread()
            .worker_threads((options.slots as usize).clamp(1, 256))
            // Deep plans recurse; upstream's binary takes as much.
            .thread_stack_size(32 << 20)
            .thread_name("task")
            .enable_all()
            .build()?;
        Ok(Self {
            executor,
            engine,
            describe: options.describe.clone(),
            disk,
            open: Mutex::default(),
            dropped: Mutex::default(),
            scheduler: Mutex::default(),
            threads: Mutex::new(Some(threads)),
        })
    }

    /// What this process answers for.
    pub(crate) fn open(&self) -> Vec<RunningTask> {
        self.open.lock().keys().cloned().collect()
    }

    /// Reports go this way from now on: the one that signs of life go, which is known to lead to the scheduler. The
    /// address in a message with tasks may be one that only the scheduler's own machine understands.
    pub(crate) fn report_to(&self, scheduler: Channel) {
        *self.scheduler.lock() = Some(scheduler);
    }

    /// Begins a task.
    pub(crate) fn start(self: &Arc<Self>, task: TaskDefinition) {
        let name = RunningTask {
            job: task.job_id.to_string(),
            stage: task.stage_id as u32,
            stage_attempt: task.stage_attempt_num as u32,
            task: task.task_id as u32,
        };
        if self.open.lock().insert(name.clone(), key_of(&task)).is_some() {
            // The same message twice: it runs already.
            return;
        }
        let own = Arc::clone(self);
        let threads = self.threads.lock();
        if let Some(threads) = threads.as_ref() {
            let reports = tokio::runtime::Handle::current();
            threads.spawn(async move {
                let status = own.run(task).await;
                // Reporting waits for the network, which is no work for these threads.
                reports.spawn(async move { own.report(name, status).await });
            });
        }
    }

    /// Stops tasks that nobody waits for.
    pub(crate) async fn stop(&self, tasks: Vec<RunningTask>) {
        for name in tasks {
            let key = self.open.lock().get(&name).cloned();
            if let Some(key) = key {
                self.dropped.lock().insert(name);
                // False when it has ended meanwhile.
                let _ = self.executor.cancel_task(key.job_id, key.stage_id, key.task_id).await;
            }
        }
    }

    /// Stops a task by the name that Ballista gives it, which does not say of which attempt at the stage it is: the
    /// oldest that is open, since a newer one was begun because the older was given up.
    pub(crate) async fn cancel(&self, job: &str, stage: u32, task: u32) -> bool {
        let oldest = {
            let open = self.open.lock();
            let named = open.iter().filter(|(name, _)| name.job == job && name.stage == stage && name.task == task);
            named.min_by_key(|(name, _)| name.stage_attempt).map(|(_, key)| key.clone())
        };
        match oldest {
            Some(key) => self.executor.cancel_task(key.job_id, key.stage_id, key.task_id).await.unwrap_or(false),
            None => false,
        }
    }

    /// Stops everything.
    pub(crate) async fn stop_all(&self) {
        self.stop(self.open()).await;
    }

    /// Ends the task threads without waiting for them.
    pub(crate) fn shut_down(&self) {
        if let Some(threads) = self.threads.lock().take() {
            threads.shutdown_background();
        }
    }

    async fn run(&self, task: TaskDefinition) -> TaskStatus {
        let start_exec_time = epoch_ms();
        let key = key_of(&task);
        let task_id = task.task_id;
        let (attempt, launch_time) = (task.stage_attempt_num, task.launch_time);
        let (stage, outcome) = match self.prepare(task) {
            Ok((stage, context)) => {
                let outcome = self.executor.execute_query_stage(key.clone(), stage.clone(), context).await;
                (Some(stage), outcome)
            }
            Err(error) => (None, Err(error)),
        };
        let metrics = stage.as_ref().map(|stage| metrics(stage.as_ref())).unwrap_or_default();
        let windows = match (&outcome, &stage) {
            (Ok(_), Some(stage)) => stage.collect_window_state_reports(),
            _ => Ok(Vec::new()),
        };
        let status = match (outcome, windows) {
            (Ok(partitions), Ok(window_state)) => task_status::Status::Successful(SuccessfulTask {
                executor_id: self.executor.metadata.id.clone(),
                partitions,
                runtime_stats: stage.as_ref().map(|stage| stage.collect_runtime_stats_reports()).unwrap_or_default(),
                task_column_stats: stage.as_ref().map(|stage| stage.collect_column_stats()).unwrap_or_default(),
                window_state,
            }),
            // Window state that cannot be collected would make a later stage wrong: the task has failed.
            (Ok(_), Err(error)) => task_status::Status::Failed(self.failed(BallistaError::from(error))),
            (Err(error), _) => task_status::Status::Failed(self.failed(error)),
        };
        TaskStatus {
            task_id: task_id as u32,
            job_id: key.job_id.into(),
            stage_id: key.stage_id as u32,
            stage_attempt_num: attempt as u32,
            launch_time,
            start_exec_time,
            end_exec_time: epoch_ms(),
            metrics,
            status: Some(status),
        }
    }

    /// A failure as Ballista sorts it. One that would come again each time is told in our words.
    fn failed(&self, error: BallistaError) -> FailedTask {
        if self.disk.judge(&error) {
            // Elsewhere there is room. Ballista takes what Arrow says of a full disk for a fault of the query.
            return FailedTask::from(BallistaError::IoError(std::io::Error::other(error.to_string())));
        }
        if broke_off(&error) {
            // Tried again, it finds out that the executor is gone, which Ballista knows to mend.
            return FailedTask::from(BallistaError::IoError(std::io::Error::other(error.to_string())));
        }
        let told = self.describe.as_ref().map(|describe| match &error {
            BallistaError::DataFusionError(error) => describe(error.as_ref()),
            BallistaError::ArrowError(error) => describe(&DataFusionError::Execution(error.to_string())),
            other => describe(&DataFusionError::Internal(other.to_string())),
        });
        let mut failed = FailedTask::from(error);
        if let (Some(told), Some(failed_task::FailedReason::ExecutionError(_))) = (told, &failed.failed_reason) {
            failed.error = told;
        }
        failed
    }

    fn prepare(&self, task: TaskDefinition) -> Result<(Arc<dyn QueryStageExecutor>, Arc<TaskContext>), BallistaError> {
        let identity = format!(
            "{}/{}.{}/{}.{}",
            task.job_id, task.stage_id, task.stage_attempt_num, task.task_id, task.task_attempt_num
        );
        let Some(number) = unique_number(task.stage_attempt_num, task.task_id) else {
            return Err(BallistaError::General(format!(
                "attempt {} of stage {} has a task {}; that is more than can be told apart",
                task.stage_attempt_num, task.stage_id, task.task_id
            )));
        };
        let stage = self.engine.create_query_stage_exec(
            task.job_id,
            task.stage_id,
            number,
            task.global_output_partition_ids,
            rowmill_json::with_exact_sources(task.plan)?,
            &self.executor.work_dir,
            &task.session_config,
        )?;
        let runtime =
            self.executor.produce_runtime_for_session(&task.session_id, &task.session_config, task.vcores_consumed)?;
        let functions = task.function_registry;
        let context = TaskContext::new(
            Some(identity),
            task.session_id,
            task.session_config,
            functions.scalar_functions.clone(),
            functions.higher_order_functions.clone(),
            functions.aggregate_functions.clone(),
            functions.window_functions.clone(),
            runtime,
        );
        Ok((stage, Arc::new(context)))
    }

    /// Reports until the scheduler has taken it, or nobody waits for it any more.
    async fn report(&self, name: RunningTask, status: TaskStatus) {
        let mut wait = Duration::from_millis(50);
        if matches!(status.status, Some(task_status::Status::Failed(_))) {
            // Before it is tried again the scheduler has to know where not.
            self.disk.until_heard().await;
        }
        while !self.dropped.lock().contains(&name) {
            match self.try_report(&status).await {
                Ok(()) => break,
                Err(error) => {
                    tracing::warn!(job = name.job, stage = name.stage, task = name.task, "not reported yet: {error}");
                }
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
        self.dropped.lock().remove(&name);
        self.open.lock().remove(&name);
    }

    async fn try_report(&self, status: &TaskStatus) -> Result<(), String> {
        let channel = self.scheduler.lock().clone().ok_or("no scheduler has taken this executor")?;
        let message = UpdateTaskStatusParams {
            executor_id: self.executor.metadata.id.clone(),
            task_status: vec![status.clone()],
        };
        let mut client = SchedulerGrpcClient::new(channel)
            .max_encoding_message_size(MESSAGE_BYTES)
            .max_decoding_message_size(MESSAGE_BYTES);
        client.update_task_status(message).await.map(|_| ()).map_err(|status| status.to_string())
    }
}

/// Whether the way to another executor broke off in the middle. Ballista sees that while it reads rows, and not while it
/// reads what stands before them.
fn broke_off(error: &BallistaError) -> bool {
    match error {
        BallistaError::TonicError(_)
        | BallistaError::GrpcError(_)
        | BallistaError::GrpcConnectionError(_)
        | BallistaError::GrpcActionError(_) => true,
        BallistaError::ArrowError(error) => matches!(error.as_ref(), ArrowError::IpcError(_)),
        BallistaError::DataFusionError(error) => match error.find_root() {
            DataFusionError::External(inner) => inner.downcast_ref::<BallistaError>().is_some_and(broke_off),
            _ => false,
        },
        _ => false,
    }
}

/// How Ballista's executor knows a task here: by a number that earlier attempts at its stage do not have, so that
/// stopping one of those does not stop this.
fn key_of(task: &TaskDefinition) -> TaskKey {
    let number = unique_number(task.stage_attempt_num, task.task_id).unwrap_or(task.task_id);
    TaskKey { job_id: task.job_id.clone(), stage_id: task.stage_id, task_id: number }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        // A runtime must not be dropped, and so waited for, where asynchronous code runs.
        self.shut_down();
    }
}

/// Connects to a scheduler, `host:port`.
pub(crate) async fn connect(handshake: &Handshake, scheduler: &str) -> Result<Channel, ConnectError> {
    handshake.connect(scheduler, |endpoint| endpoint.connect_timeout(CALL).timeout(CALL)).await
}

fn metrics(stage: &dyn QueryStageExecutor) -> Vec<OperatorMetricsSet> {
    stage.collect_plan_metrics().into_iter().filter_map(|set| set.try_into().ok()).collect()
}

fn epoch_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
