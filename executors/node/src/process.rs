//! The life of an executor: listen, join, say that it is alive, drain, leave.

use std::net::SocketAddr;
use std::sync::Arc;

use arrow_flight::flight_service_server::FlightServiceServer;
use ballista_core::extension::SessionConfigExt;
use ballista_core::registry::BallistaFunctionRegistry;
use ballista_core::serde::protobuf::ExecutorRegistration;
use ballista_core::serde::protobuf::executor_grpc_server::ExecutorGrpcServer;
use ballista_core::serde::{BallistaCodec, BallistaLogicalExtensionCodec};
use ballista_executor::execution_engine::DefaultExecutionEngine;
use ballista_executor::executor::Executor;
use ballista_executor::executor_process::{ExecutorProcessConfig, structure_executor_metadata};
use ballista_executor::metrics::LoggingMetricsCollector;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::future::BoxFuture;
use rowmill_wire::MESSAGE_BYTES;
use rowmill_wire::calls::CallsServer;
use rowmill_wire::codec::RowmillCodec;
use rowmill_wire::handshake::{Handshake, Right};
use rowmill_wire::leader::Schedulers;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::transport::server::Router;

use crate::calls::{Calls, Taker};
use crate::disk::Disk;
use crate::error::Error;
use crate::member::Member;
use crate::options::Options;
use crate::results::Results;
use crate::server::TaskServer;
use crate::tasks::Tasks;
use crate::terms::Followed;
use crate::work_dir::WorkDir;

/// Share of the machine's memory that tasks may reserve when nothing is configured.
const MEMORY_SHARE: f64 = 0.6;

/// Runs an executor until `stop` says so; then drains and leaves.
///
/// # Errors
/// A port or the work directory cannot be used, or a scheduler refuses it at the start. One that is silent is waited for,
/// then and later.
pub fn run(options: Options, stop: BoxFuture<'static, ()>) -> BoxFuture<'static, Result<(), Error>> {
    // Boxed, so that Ballista's code is generated in this crate and not in each that calls it.
    Box::pin(run_until(options, stop))
}

async fn run_until(options: Options, mut stop: BoxFuture<'static, ()>) -> Result<(), Error> {
    // Others would refuse to speak with it there, and only once they want its results.
    options.handshake.transport().check_host(&options.host)?;
    let work_dir = WorkDir::take(&options.work_dir)?;
    let (flight, flight_port) = listen(&options, options.flight_port).await?;
    let (task_listener, task_port) = listen(&options, options.task_port).await?;
    let metadata = registration(&options, flight_port, task_port);
    let runtime = runtime(&options, &work_dir)?;
    let engine = Arc::new(DefaultExecutionEngine::new());
    let override_fn = options.handshake.override_fn();
    let executor = Arc::new(Executor::new(
        metadata.clone(),
        &work_dir.shuffle().to_string_lossy(),
        Arc::new(move |_| Ok(Arc::clone(&runtime))),
        Arc::new(move || {
            SessionConfig::new_with_ballista()
                .with_ballista_physical_extension_codec(RowmillCodec::shared())
                .with_ballista_override_create_grpc_client_endpoint(override_fn.clone())
        }),
        // Ballista's own leave out what plans of lists, structs and maps call.
        Arc::new(BallistaFunctionRegistry::from(&SessionContext::new().state())),
        Arc::new(LoggingMetricsCollector::default()),
        options.slots as usize,
        engine.clone(),
    ));
    let disk = Arc::new(Disk::new(work_dir.shuffle()));
    let tasks = Arc::new(Tasks::try_new(executor.clone(), engine, disk.clone(), &options)?);
    let (given_up, mut gone) = mpsc::channel(4);
    let followed = Arc::new(Followed::default());
    let server = TaskServer {
        followed: followed.clone(),
        executor: executor.clone(),
        tasks: tasks.clone(),
        codec: BallistaCodec::new(Arc::new(BallistaLogicalExtensionCodec::default()), RowmillCodec::shared()),
        shuffle: work_dir.shuffle().to_owned(),
        given_up,
    };
    let task_service = ExecutorGrpcServer::new(server)
        .max_decoding_message_size(MESSAGE_BYTES)
        .max_encoding_message_size(MESSAGE_BYTES);
    let flight_service = FlightServiceServer::new(Results::new(executor.work_dir.clone()))
        .max_decoding_message_size(MESSAGE_BYTES)
        .max_encoding_message_size(MESSAGE_BYTES);
    // Tasks come from the scheduler; results are read by other executors and by clients, whose calls it makes, too.
    let (joined, submits) = (options.handshake.guard(Right::Join), options.handshake.guard(Right::Submit));
    let task_router = Server::builder().add_service(InterceptedService::new(task_service, joined));
    let calls = Calls::new(options.name.clone(), options.slots, options.steps.clone());
    let calls_service = CallsServer::new(Arc::new(Taker(calls.clone())));
    let flight_router = Server::builder()
        .add_service(InterceptedService::new(flight_service, submits.clone()))
        .add_service(InterceptedService::new(calls_service, submits));
    // They end with the set.
    let mut servers = JoinSet::new();
    serve(&mut servers, &options.handshake, task_router, task_listener)?;
    serve(&mut servers, &options.handshake, flight_router, flight)?;
    let sweeping = calls.clone();
    servers.spawn(async move { sweeping.sweep().await });

    let mut member = Member {
        options: &options,
        metadata,
        tasks: &tasks,
        work_dir: &work_dir,
        schedulers: Schedulers::new(options.schedulers.clone(), options.handshake.transport()),
        followed,
        disk: disk.clone(),
        at: None,
        draining: false,
        memory_bytes: memory(&options).unwrap_or(0),
    };
    tokio::select! {
        () = &mut stop => return Ok(()),
        joined = member.join_when_there() => joined?,
    }
    println!("executor {} joined: tasks on port {task_port}, results on port {flight_port}", options.name);
    let mut beats = tokio::time::interval(options.heartbeat);
    beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = &mut stop => break,
            Some((reason, running)) = gone.recv() => {
                tracing::warn!("the scheduler gave this executor up ({reason}); it begins anew");
                // What they wrote bears names that nobody asks for, and goes when the scheduler says so.
                tasks.stop(running).await;
            }
            _ = beats.tick() => { member.beat().await; }
            () = disk.changed() => { member.beat().await; }
        }
    }

    // Drain: nothing new; finish what runs, and stay while somebody will read what is here, within the grace period;
    // hand back the rest.
    member.draining = true;
    calls.drain();
    member.beat().await;
    tracing::info!("draining: {} tasks and {} groups of items run", tasks.open().len(), calls.running());
    let grace = tokio::time::sleep(options.drain);
    tokio::pin!(grace);
    loop {
        tokio::select! {
            () = &mut grace => {
                let (tasks, groups) = (tasks.open().len(), calls.running());
                tracing::warn!("leaving with {tasks} tasks and {groups} groups of items that did not finish in time");
                break;
            }
            _ = beats.tick() => {
                let idle = tasks.open().is_empty() && calls.is_idle();
                if !member.beat().await && idle {
                    break;
                }
            }
        }
    }
    member.leave().await;
    calls.stop().await;
    tasks.stop_all().await;
    tasks.shut_down();
    servers.abort_all();
    Ok(())
}

async fn listen(options: &Options, port: u16) -> Result<(TcpListener, u16), Error> {
    let address = SocketAddr::new(options.listen, port);
    let fail = |source| Error::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(fail)?;
    let port = listener.local_addr().map_err(fail)?.port();
    Ok((listener, port))
}

fn serve(servers: &mut JoinSet<()>, handshake: &Handshake, router: Router, listener: TcpListener) -> Result<(), Error> {
    let serving = router.serve_with_incoming(handshake.incoming(listener)?);
    servers.spawn(async move {
        if let Err(error) = serving.await {
            tracing::error!("a server of the executor stopped: {error}");
        }
    });
    Ok(())
}

fn registration(options: &Options, flight_port: u16, task_port: u16) -> ExecutorRegistration {
    let config = Arc::new(ExecutorProcessConfig {
        executor_id: options.name.to_string(),
        // As it stands in a URL.
        external_host: Some(match options.host.contains(':') && !options.host.starts_with('[') {
            true => format!("[{}]", options.host),
            false => options.host.clone(),
        }),
        port: flight_port,
        grpc_port: task_port,
        ..ExecutorProcessConfig::default()
    });
    structure_executor_metadata(&config, options.slots)
}

/// One environment for all tasks: clients and file metadata stay warm, memory is shared.
fn runtime(options: &Options, work_dir: &WorkDir) -> Result<Arc<RuntimeEnv>, Error> {
    let mut builder = RuntimeEnvBuilder::new().with_temp_file_path(work_dir.spill());
    if let Some(stores) = &options.stores {
        builder = builder.with_object_store_registry(Arc::clone(stores));
    }
    if let Some(bytes) = memory(options) {
        builder = builder.with_memory_pool(Arc::new(FairSpillPool::new(usize::try_from(bytes).unwrap_or(usize::MAX))));
    }
    Ok(builder.build_arc()?)
}

/// Bytes of memory that tasks share.
fn memory(options: &Options) -> Option<u64> {
    options.memory_bytes.or_else(|| Some((machine_memory()? as f64 * MEMORY_SHARE) as u64))
}

/// Bytes of memory that this process may use: its control group's limit or the machine's memory, whichever is less.
fn machine_memory() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let total_kib: u64 =
        info.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim().trim_end_matches(" kB").parse().ok()?;
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    Some(group.unwrap_or(u64::MAX).min(total_kib * 1024))
}
