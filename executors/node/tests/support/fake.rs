//! An executor that is none: it joins as one does, and the test says what it does with what it is given.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use ballista_core::BALLISTA_PROTOCOL_VERSION;
use ballista_core::serde::protobuf::executor_grpc_server::{ExecutorGrpc, ExecutorGrpcServer};
use ballista_core::serde::protobuf::executor_resource::Resource;
use ballista_core::serde::protobuf::scheduler_grpc_client::SchedulerGrpcClient;
use ballista_core::serde::protobuf::{
    CancelTasksParams, CancelTasksResult, ExecutorOperatingSystemSpecification, ExecutorRegistration, ExecutorResource,
    ExecutorSpecification, ExecutorStatus, HeartBeatParams, LaunchMultiTaskParams, LaunchMultiTaskResult,
    LaunchTaskParams, LaunchTaskResult, RegisterExecutorParams, RemoveJobDataParams, RemoveJobDataResult,
    StopExecutorParams, StopExecutorResult, TaskStatus, UpdateTaskStatusParams, executor_status,
};
use rowmill_scheduler::Scheduler;
use rowmill_wire::alive::{AliveRequest, say_alive};
use rowmill_wire::name::ExecutorName;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use super::handshake;

/// Takes every task, runs none, reports none, and stays alive.
pub(crate) struct Fake {
    pub(crate) metadata: ExecutorRegistration,
    pub(crate) channel: Channel,
    /// Messages with tasks that came.
    pub(crate) taken: Arc<AtomicUsize>,
    /// Whether it says that it takes nothing new.
    pub(crate) draining: Arc<AtomicBool>,
    // They end with the set.
    tasks: JoinSet<()>,
}

struct Forgetful {
    taken: Arc<AtomicUsize>,
}

#[async_trait::async_trait]
impl ExecutorGrpc for Forgetful {
    async fn launch_task(&self, _: Request<LaunchTaskParams>) -> Result<Response<LaunchTaskResult>, Status> {
        Ok(Response::new(LaunchTaskResult { success: true }))
    }

    async fn launch_multi_task(
        &self,
        _: Request<LaunchMultiTaskParams>,
    ) -> Result<Response<LaunchMultiTaskResult>, Status> {
        self.taken.fetch_add(1, Ordering::SeqCst);
        Ok(Response::new(LaunchMultiTaskResult::default()))
    }

    async fn stop_executor(&self, _: Request<StopExecutorParams>) -> Result<Response<StopExecutorResult>, Status> {
        Ok(Response::new(StopExecutorResult {}))
    }

    async fn cancel_tasks(&self, _: Request<CancelTasksParams>) -> Result<Response<CancelTasksResult>, Status> {
        Ok(Response::new(CancelTasksResult { cancelled: true }))
    }

    async fn remove_job_data(&self, _: Request<RemoveJobDataParams>) -> Result<Response<RemoveJobDataResult>, Status> {
        Ok(Response::new(RemoveJobDataResult {}))
    }
}

impl Fake {
    /// One for these classes that claims so much; it has not joined.
    pub(crate) async fn new(scheduler: &Scheduler, classes: &[&str], slots: u32) -> Self {
        let taken = Arc::new(AtomicUsize::new(0));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = u32::from(listener.local_addr().unwrap().port());
        let service = ExecutorGrpcServer::new(Forgetful { taken: taken.clone() });
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
        });
        let metadata = ExecutorRegistration {
            id: ExecutorName::try_new(classes).unwrap().to_string(),
            host: Some("127.0.0.1".to_owned()),
            port,
            grpc_port: port,
            specification: Some(ExecutorSpecification {
                resources: vec![ExecutorResource { resource: Some(Resource::Vcores(slots)) }],
            }),
            os_info: Some(ExecutorOperatingSystemSpecification::default()),
            ballista_protocol_version: BALLISTA_PROTOCOL_VERSION,
        };
        let channel = handshake().connect(&scheduler.address().to_string(), |endpoint| endpoint).await.unwrap();
        Self { metadata, channel, taken, draining: Arc::default(), tasks }
    }

    /// Joins, and goes on saying that it lives and has so much memory.
    pub(crate) async fn join(&mut self, scheduler: &Scheduler, memory_bytes: u64) {
        let before = scheduler.executors().await.len();
        let (channel, metadata, draining) = (self.channel.clone(), self.metadata.clone(), self.draining.clone());
        self.tasks.spawn(async move {
            loop {
                let _ = beat(&channel, &metadata).await;
                let message = AliveRequest {
                    executor: metadata.id.clone(),
                    draining: draining.load(Ordering::SeqCst),
                    memory_bytes,
                    ..AliveRequest::default()
                };
                let _ = say_alive(channel.clone(), message).await;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while scheduler.executors().await.len() == before {
            assert!(tokio::time::Instant::now() < deadline, "it does not join");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Says what became of tasks, as `executor`.
    pub(crate) async fn report(&self, executor: &str, task_status: Vec<TaskStatus>) -> Result<(), Status> {
        let message = UpdateTaskStatusParams { executor_id: executor.to_owned(), task_status };
        SchedulerGrpcClient::new(self.channel.clone()).update_task_status(message).await.map(drop)
    }
}

/// A heartbeat of whoever has this registration.
pub(crate) async fn beat(channel: &Channel, metadata: &ExecutorRegistration) -> Result<(), Status> {
    let message = HeartBeatParams {
        executor_id: metadata.id.clone(),
        metrics: Vec::new(),
        status: Some(ExecutorStatus { status: Some(executor_status::Status::Active(String::new())) }),
        metadata: Some(metadata.clone()),
    };
    SchedulerGrpcClient::new(channel.clone()).heart_beat_from_executor(message).await.map(drop)
}

/// Registers whoever has this registration.
pub(crate) async fn register(channel: &Channel, metadata: &ExecutorRegistration) -> Result<(), Status> {
    let message = RegisterExecutorParams { metadata: Some(metadata.clone()) };
    SchedulerGrpcClient::new(channel.clone()).register_executor(message).await.map(drop)
}
