//! An attempt that its executor does not name any more goes again.

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
    LaunchTaskParams, LaunchTaskResult, RemoveJobDataParams, RemoveJobDataResult, StopExecutorParams,
    StopExecutorResult, executor_status,
};
use rowmill_scheduler::Scheduler;
use rowmill_wire::alive::{AliveRequest, say_alive};
use rowmill_wire::name::ExecutorName;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::support::{Process, handshake, local, on_cluster, options, session};

/// Takes every task, runs none, reports none, and stays alive.
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

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_was_forgotten_goes_again() {
    let mut options = options();
    options.lease = Duration::from_secs(2);
    let scheduler = Scheduler::start(options).await.unwrap();
    let taken = Arc::new(AtomicUsize::new(0));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = u32::from(listener.local_addr().unwrap().port());
    let service = ExecutorGrpcServer::new(Forgetful { taken: taken.clone() });
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
    });
    let name = ExecutorName::try_new(&["cpu", "io"]).unwrap().to_string();
    let metadata = ExecutorRegistration {
        id: name.clone(),
        host: Some("127.0.0.1".to_owned()),
        port,
        grpc_port: port,
        specification: Some(ExecutorSpecification {
            resources: vec![ExecutorResource { resource: Some(Resource::Vcores(1)) }],
        }),
        os_info: Some(ExecutorOperatingSystemSpecification::default()),
        ballista_protocol_version: BALLISTA_PROTOCOL_VERSION,
    };
    let channel = handshake().connect(&scheduler.address().to_string(), |endpoint| endpoint).await.unwrap();
    let draining = Arc::new(AtomicBool::new(false));
    let drains = draining.clone();
    tasks.spawn(async move {
        loop {
            let message = HeartBeatParams {
                executor_id: name.clone(),
                metrics: Vec::new(),
                status: Some(ExecutorStatus { status: Some(executor_status::Status::Active(String::new())) }),
                metadata: Some(metadata.clone()),
            };
            let _ = SchedulerGrpcClient::new(channel.clone()).heart_beat_from_executor(message).await;
            let message = AliveRequest {
                executor: name.clone(),
                draining: drains.load(Ordering::SeqCst),
                ..AliveRequest::default()
            };
            let _ = say_alive(channel.clone(), message).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while scheduler.executors().await.is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "the forgetful executor does not join");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let context = session().await;
    let sql = "select count(*) from nation where n_nationkey > 3";
    let asking = async { on_cluster(&scheduler, &context, sql).await };
    let helping = async {
        // The forgetful one is alone, so it gets the task.
        while taken.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // It takes no second one, and stays alive: only the lease can free the task.
        draining.store(true, Ordering::SeqCst);
        Process::start(&scheduler, &["cpu", "io"])
    };
    let (answer, _helper) = tokio::join!(asking, helping);
    assert_eq!(answer, local(sql).await);
    assert_eq!(taken.load(Ordering::SeqCst), 1);
    assert_eq!(scheduler.executors().await.len(), 2, "the forgetful one was never taken for dead");
}
