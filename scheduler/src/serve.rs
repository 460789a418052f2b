//! The scheduler in this process: Ballista's server behind our listener.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ballista_core::JobId;
use ballista_core::config::TaskSchedulingPolicy;
use ballista_core::extension::SessionConfigExt;
use ballista_core::serde::protobuf::scheduler_grpc_server::SchedulerGrpcServer;
use ballista_core::serde::protobuf::task_status::Status as TaskState;
use ballista_scheduler::cluster::{BallistaCluster, ClusterState, JobState};
use ballista_scheduler::config::SchedulerConfig;
use ballista_scheduler::scheduler_process::create_scheduler;
use ballista_scheduler::scheduler_server::event::SubmitPlan;
use ballista_scheduler::state::execution_stage::ExecutionStage;
use datafusion::execution::context::SessionContext;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionConfig;
use datafusion_proto::physical_plan::AsExecutionPlan;
use datafusion_proto::protobuf::PhysicalPlanNode;
use futures::future::BoxFuture;
use rowmill_wire::MESSAGE_BYTES;
use rowmill_wire::alive::{AliveResponse, AliveServer};
use rowmill_wire::calls::crew::CrewsServer;
use rowmill_wire::class::{Demand, class_of_stage};
use rowmill_wire::codec::RowmillCodec;
use rowmill_wire::handshake::{Handshake, Right, TenantName};
use rowmill_wire::jobs::JobsServer;
use rowmill_wire::leader::{Role, RoleServer};
use rowmill_wire::name::ExecutorName;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::service::interceptor::InterceptedService;

use crate::admission::{Ask, Desk, Place, Refused};
use crate::cluster_state::Cluster;
use crate::crews::Knower;
use crate::error::Error;
use crate::intake::Intake;
use crate::job::Job;
use crate::options::Options;
use crate::placement::{job_demand, taken_slots};
use crate::taker::Taker;
use crate::term::{Gate, Term};
use crate::watch::{Server, Watch};

/// How often a silent connection is asked whether it lives, and how long the answer may take.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Streams of one connection at a time.
const MOST_STREAMS: u32 = 20_000;
/// Room for a job's status changes until somebody reads them.
const UPDATES: usize = 64;

/// The configuration under which plans for the cluster are made: Ballista's, with our codec.
pub fn session_config() -> SessionConfig {
    SessionConfig::new_with_ballista().with_ballista_physical_extension_codec(RowmillCodec::shared())
}

/// An executor that has joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecutorInfo {
    /// Its name and classes.
    pub name: ExecutorName,
    /// Its slots.
    pub slots: u32,
    /// Slots that tasks take.
    pub busy: u32,
    /// Where it serves its intermediate results.
    pub address: String,
    /// Whether it leaves and takes nothing new.
    pub draining: bool,
    /// Why it takes no tasks although it does not leave.
    pub closed: Option<String>,
}

/// Where one stage of a job ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The stage in its job.
    pub stage: usize,
    /// The class that it asked for.
    pub class: String,
    /// The executor of each of its tasks.
    pub executors: Vec<String>,
}

/// A scheduler that serves. Dropping it stops it.
pub struct Scheduler {
    core: Core,
    address: SocketAddr,
    // Server and watch; they end with the set.
    _tasks: JoinSet<()>,
}

/// What submits and looks; shared with the service that clients speak to.
#[derive(Clone)]
pub(crate) struct Core {
    pub(crate) server: Server,
    cluster: Arc<Cluster>,
    jobs: Arc<dyn JobState>,
    watch: Arc<Watch>,
    pub(crate) desk: Arc<Desk>,
    handshake: Handshake,
    /// One environment for all plans that are read.
    pub(crate) runtime: Arc<RuntimeEnv>,
    /// The right to decide.
    pub(crate) term: Term,
    /// Where this scheduler is reached, `host:port`.
    pub(crate) reached: Arc<str>,
}

impl Scheduler {
    /// Starts a scheduler.
    ///
    /// # Errors
    /// The address is taken, or Ballista does not start.
    pub fn start(options: Options) -> BoxFuture<'static, Result<Self, Error>> {
        // Boxed here as everywhere below, so that Ballista's code is generated in this crate and not in each that calls it.
        Box::pin(Self::start_now(options))
    }

    async fn start_now(options: Options) -> Result<Self, Error> {
        let listen = |source| Error::Listen { address: options.listen, source };
        let listener = TcpListener::bind(options.listen).await.map_err(listen)?;
        Self::serve(options, listener, Term::only()).await
    }

    /// Serves what comes in at this listener for one term.
    ///
    /// # Errors
    /// Ballista does not start, or bytes cannot travel as configured.
    pub(crate) async fn serve(mut options: Options, listener: TcpListener, term: Term) -> Result<Self, Error> {
        let address = listener.local_addr().map_err(|source| Error::Listen { address: options.listen, source })?;
        options.handshake = options.handshake.with_term(term.number());
        let reached: Arc<str> = options.reached_at(address.port()).into();
        let config = Arc::new(ballista_config(&options, address.port(), &term));
        let stock = BallistaCluster::new_from_config(&config).await?;
        let desk = Arc::new(Desk::new(options.admission.clone()));
        let cluster = Arc::new(Cluster::new(options.strategy, desk.clone(), term.clone()));
        let jobs = stock.job_state();
        let joined = BallistaCluster::new(cluster.clone(), jobs.clone());
        let server: Server = create_scheduler(joined, config).await?;
        let watch = Arc::new(Watch::default());
        let mut runtime = RuntimeEnvBuilder::new();
        if let Some(stores) = &options.stores {
            runtime = runtime.with_object_store_registry(Arc::clone(stores));
        }
        let core = Core {
            server: server.clone(),
            cluster: cluster.clone(),
            jobs,
            watch: watch.clone(),
            desk: desk.clone(),
            handshake: options.handshake.clone(),
            runtime: runtime.build_arc()?,
            term: term.clone(),
            reached: reached.clone(),
        };
        let handshake = core.handshake.clone();
        let incoming = handshake.incoming(listener)?;
        let intake = SchedulerGrpcServer::new(Intake::new(server.clone(), watch.clone(), cluster.clone()))
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES);
        let hearing = (watch.clone(), cluster.clone());
        let (lease, number) = (options.lease, term.number());
        let alive = AliveServer::new(Arc::new(move |message| {
            let answer = hearing.0.hear(&hearing.1, message, lease);
            AliveResponse { term: number, ..answer }
        }));
        let jobs = JobsServer::new(Arc::new(Taker::new(core.clone())));
        let crews = CrewsServer::new(Arc::new(Knower::new(core.clone(), options.queue_timeout)));
        let own = (term.clone(), reached);
        let roles = RoleServer::new(Arc::new(move || {
            let leads = own.0.holds();
            let leader = if leads { own.1.to_string() } else { String::new() };
            Role { leads, term: own.0.number(), leader }
        }));
        let gate = |right| Gate::new(handshake.guard(right), &term);
        let serving = tonic::transport::Server::builder()
            // A client that was stopped keeps its connection open and must not keep its jobs for ever.
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            // Each job of a client is a stream of its own, and one that waits is one as well.
            .max_concurrent_streams(Some(MOST_STREAMS))
            .add_service(InterceptedService::new(intake, gate(Right::Join)))
            .add_service(InterceptedService::new(jobs, gate(Right::Submit)))
            .add_service(InterceptedService::new(crews, gate(Right::Submit)))
            .add_service(InterceptedService::new(alive, gate(Right::Join)))
            .add_service(InterceptedService::new(roles, handshake.guard(Right::Submit)))
            .serve_with_incoming(incoming);
        let watching = (watch.clone(), server.clone(), cluster.clone(), desk);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!("the scheduler's server stopped: {error}");
            }
        });
        tasks.spawn(async move { watching.0.run(watching.1, watching.2, watching.3, options).await });
        Ok(Self { core, address, _tasks: tasks })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The executors that have joined, in the order of their names.
    pub fn executors(&self) -> BoxFuture<'_, Vec<ExecutorInfo>> {
        Box::pin(self.core.executors())
    }

    /// Submits a physical plan to the default queue, and waits until it may begin. Hash exchanges cut it into stages; `rowmill_wire::class::ClassExec` says where they run,
    /// and [`Demand`] as an extension of the context's configuration where the others run.
    ///
    /// # Errors
    /// The plan cannot be encoded or is too large; the queue is full, or it waited too long; the event loop has stopped.
    pub fn submit<'a>(
        &'a self,
        name: &'a str,
        context: Arc<SessionContext>,
        plan: Arc<dyn ExecutionPlan>,
    ) -> BoxFuture<'a, Result<Job, Error>> {
        Box::pin(self.submit_now(name, context, plan))
    }

    async fn submit_now(
        &self,
        name: &str,
        context: Arc<SessionContext>,
        plan: Arc<dyn ExecutionPlan>,
    ) -> Result<Job, Error> {
        let encoded = PhysicalPlanNode::try_from_physical_plan(Arc::clone(&plan), RowmillCodec::shared().as_ref())?;
        let mut bytes = Vec::new();
        encoded.try_encode(&mut bytes)?;
        check_size(bytes.len())?;
        let class = job_demand(&context.copied_config()).class;
        let ask = Ask { queue: String::new(), tenant: TenantName::default(), class, bytes: bytes.len() as u64 };
        let refused = |refused: Refused| Error::NotAdmitted(refused.to_string());
        let (place, news) = self.core.desk.enter(ask).map_err(refused)?;
        news.await.map_err(|_| Error::Lost { job: name.to_owned() })?.map_err(refused)?;
        // A context of its own: the job's number is put into its configuration.
        let mut state = context.state();
        state.config_mut().set_extension(Arc::new(place.mark()));
        self.core.submit(name, place, Arc::new(SessionContext::new_with_state(state)), plan).await
    }

    /// Where each stage of a job ran, while its state is kept ([`Options::keep_finished`]); `None` afterwards.
    ///
    /// # Errors
    /// Ballista's job state cannot be read.
    pub fn placements<'a>(&'a self, job: &'a JobId) -> BoxFuture<'a, Result<Option<Vec<Placement>>, Error>> {
        Box::pin(self.core.placements(job))
    }

    /// Cancels a job; its tasks are told to stop.
    ///
    /// # Errors
    /// The event loop has stopped.
    pub fn cancel(&self, job: &JobId) -> BoxFuture<'_, Result<(), Error>> {
        let job = job.clone();
        Box::pin(async move { Ok(self.core.server.cancel_job(job).await?) })
    }
}

/// Refuses a plan that no message holds.
///
/// # Errors
/// When it is so large.
pub(crate) fn check_size(bytes: usize) -> Result<(), Error> {
    // A task's message holds one stage of the plan and its settings.
    let limit = MESSAGE_BYTES / 2;
    if bytes > limit { Err(Error::PlanTooLarge { bytes, limit }) } else { Ok(()) }
}

impl Core {
    pub(crate) async fn executors(&self) -> Vec<ExecutorInfo> {
        let jobs = self.server.state.task_manager.get_running_job_cache();
        let taken = taken_slots(&jobs).await;
        let mut all: Vec<ExecutorInfo> = self
            .cluster
            .registered_executor_metadata()
            .await
            .into_iter()
            .filter_map(|executor| {
                Some(ExecutorInfo {
                    name: executor.id.parse().ok()?,
                    slots: executor.specification.vcores,
                    busy: taken.get(&executor.id).copied().unwrap_or(0),
                    address: format!("{}:{}", executor.host, executor.port),
                    draining: self.cluster.is_draining(&executor.id),
                    closed: self.cluster.closed(&executor.id),
                })
            })
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Hands a job to Ballista. The context's configuration carries the mark of its place.
    pub(crate) async fn submit(
        &self,
        name: &str,
        place: Place,
        context: Arc<SessionContext>,
        plan: Arc<dyn ExecutionPlan>,
    ) -> Result<Job, Error> {
        let (sender, updates) = mpsc::channel(UPDATES);
        let id = self.server.submit_plan(name, context, &SubmitPlan::Physical(plan), Some(sender)).await?;
        place.name(&id);
        Ok(Job {
            id,
            updates,
            watch: self.watch.clone(),
            jobs: self.jobs.clone(),
            server: self.server.clone(),
            handshake: self.handshake.clone(),
            ended: false,
            place: Some(place),
        })
    }

    async fn placements(&self, job: &JobId) -> Result<Option<Vec<Placement>>, Error> {
        let Some(graph) = self.jobs.get_execution_graph(job).await? else { return Ok(None) };
        let mut placements: Vec<Placement> = graph
            .stages()
            .iter()
            .filter_map(|(id, stage)| {
                let (plan, config) = match stage {
                    ExecutionStage::Running(stage) => (&stage.plan, &stage.session_config),
                    ExecutionStage::Successful(stage) => (&stage.plan, &stage.session_config),
                    _ => return None,
                };
                let demand: Demand = class_of_stage(plan).ok()?.unwrap_or_else(|| job_demand(config));
                let tasks = stage.task_infos().unwrap_or_default().iter();
                let executors = tasks
                    .filter_map(|task| match &task.task_status {
                        TaskState::Running(running) => Some(running.executor_id.clone()),
                        TaskState::Successful(done) => Some(done.executor_id.clone()),
                        TaskState::Failed(_) => None,
                    })
                    .collect();
                Some(Placement { stage: *id, class: demand.class.to_string(), executors })
            })
            .collect();
        placements.sort_by_key(|placement| placement.stage);
        Ok(Some(placements))
    }
}

fn ballista_config(options: &Options, port: u16, term: &Term) -> SchedulerConfig {
    let mut config = SchedulerConfig::default()
        .with_hostname(options.host.clone())
        .with_port(port)
        .with_scheduler_policy(TaskSchedulingPolicy::PushStaged)
        .with_finished_job_state_clean_up_interval_seconds(options.keep_finished.as_secs().max(1))
        // Results go when nobody reads them any more (job.rs), not when a time has passed.
        .with_finished_job_data_clean_up_interval_seconds(0)
        .with_grpc_server_max_decoding_message_size(MESSAGE_BYTES as u32)
        .with_grpc_server_max_encoding_message_size(MESSAGE_BYTES as u32)
        .with_grpc_client_max_message_size(MESSAGE_BYTES as u32)
        .with_override_create_grpc_client_endpoint(options.handshake.override_fn());
    config.executor_timeout_seconds = options.executor_timeout.as_secs().max(1);
    config.expire_dead_executor_interval_seconds = 1;
    // An executor that leaves has waited already, and none says that it is terminating: Ballista would take what such a
    // one reports for lost.
    config.executor_termination_grace_period = 0;
    // Work waits for executors under our own watch.
    config.no_executors_grace_period_seconds = options.queue_timeout.as_secs().saturating_mul(2).max(1);
    config.override_physical_codec = Some(RowmillCodec::shared());
    config.job_id_generator = term.job_ids();
    config
}
