//! Submitting a plan and hearing what becomes of it; and what a cluster is doing.
//!
//! Two methods, `/rowmill.Jobs/Submit` and `/rowmill.Jobs/Status`, with protobuf messages. The answers to a submission
//! come as a stream, and the stream is the client's hold on its job: when it breaks before the end, the job is
//! cancelled; while it is open after the end, the result is kept. Something is said at least every [`BEAT`], so that
//! neither side waits for one that is gone.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ballista_core::serde::protobuf::PartitionLocation;
use futures::Stream;
use futures::future::BoxFuture;
use prost::Message;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::{NamedService, ServerStreamingService, UnaryService};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::MESSAGE_BYTES;
use crate::handshake::Caller;

/// The scheduler says something about a job at least so often.
pub const BEAT: Duration = Duration::from_secs(2);

const SUBMIT: &str = "/rowmill.Jobs/Submit";
const STATUS: &str = "/rowmill.Jobs/Status";

/// A setting of DataFusion's or Ballista's.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Setting {
    /// Its key.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Its value.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// A plan to run.
#[derive(Clone, PartialEq, Message)]
pub struct SubmitRequest {
    /// What people call the job.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The physical plan, encoded with [`crate::codec::RowmillCodec`].
    #[prost(bytes = "vec", tag = "2")]
    pub plan: Vec<u8>,
    /// The settings it was planned with.
    #[prost(message, repeated, tag = "3")]
    pub settings: Vec<Setting>,
    /// The class of its stages that do not say one.
    #[prost(string, tag = "4")]
    pub class: String,
    /// Slots that one partition of such a stage takes.
    #[prost(uint32, tag = "5")]
    pub slots: u32,
    /// The queue that it waits in; empty for the default one.
    #[prost(string, tag = "6")]
    pub queue: String,
    /// The organisation that it is for; empty for none, or for the one that the token names.
    #[prost(string, tag = "7")]
    pub organisation: String,
    /// The team in it; empty for none.
    #[prost(string, tag = "8")]
    pub team: String,
    /// Bytes of memory that are kept for one partition of a stage that does not say it; zero for its slots' share.
    #[prost(uint64, tag = "9")]
    pub memory_bytes: u64,
}

/// What left a step in the attempts that stand.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Counted {
    /// The step.
    #[prost(string, tag = "1")]
    pub step: String,
    /// Rows.
    #[prost(uint64, tag = "2")]
    pub rows: u64,
    /// Bytes of Arrow data.
    #[prost(uint64, tag = "3")]
    pub bytes: u64,
    /// Batches.
    #[prost(uint64, tag = "4")]
    pub batches: u64,
}

/// The end of a job that succeeded.
#[derive(Clone, PartialEq, Message)]
pub struct Finished {
    /// The files of its result.
    #[prost(message, repeated, tag = "1")]
    pub files: Vec<PartitionLocation>,
    /// What its steps counted.
    #[prost(message, repeated, tag = "2")]
    pub counted: Vec<Counted>,
    /// Who ran it.
    #[prost(message, repeated, tag = "3")]
    pub ran: Vec<Ran>,
}

/// What one executor ran of a job, in one class: the attempts that stand.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Ran {
    /// Its name.
    #[prost(string, tag = "1")]
    pub executor: String,
    /// The machine that it runs on; empty where it has left since.
    #[prost(string, tag = "2")]
    pub host: String,
    /// The class that the tasks asked for.
    #[prost(string, tag = "3")]
    pub class: String,
    /// Tasks.
    #[prost(uint64, tag = "4")]
    pub tasks: u64,
    /// How long they ran together, in milliseconds, by the executor's clock.
    #[prost(uint64, tag = "5")]
    pub busy_ms: u64,
}

/// The end of a job that failed.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Failed {
    /// Why.
    #[prost(string, tag = "1")]
    pub reason: String,
    /// Whether nobody could run it: its class has no executor.
    #[prost(bool, tag = "2")]
    pub unplaced: bool,
}

/// What becomes of a job.
#[derive(Clone, PartialEq, Message)]
pub struct Progress {
    /// What is new.
    #[prost(oneof = "Event", tags = "1, 2, 3, 4, 5, 6")]
    pub event: Option<Event>,
}

/// What is new about a job.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Event {
    /// It was taken, under this id.
    #[prost(string, tag = "1")]
    Accepted(String),
    /// Nothing, but the scheduler lives.
    #[prost(bool, tag = "2")]
    Beat(bool),
    /// It succeeded.
    #[prost(message, tag = "3")]
    Finished(Finished),
    /// It failed.
    #[prost(message, tag = "4")]
    Failed(Failed),
    /// It waits in a queue, before it is taken.
    #[prost(message, tag = "5")]
    Waiting(Waiting),
    /// It was not admitted.
    #[prost(message, tag = "6")]
    Refused(Refused),
}

/// A job that waits.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Waiting {
    /// The queue.
    #[prost(string, tag = "1")]
    pub queue: String,
    /// Jobs that wait in it, this one among them.
    #[prost(uint32, tag = "2")]
    pub waiting: u32,
    /// Jobs of it that run.
    #[prost(uint32, tag = "3")]
    pub running: u32,
}

/// Why a job was not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum RefusedFor {
    /// Waiting would not help: there is no such queue, or the token does not submit for that organisation.
    Never = 0,
    /// The queue is full.
    Full = 1,
    /// It waited as long as the queue's jobs may.
    Late = 2,
}

/// A job that was not admitted.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Refused {
    /// Why, in words.
    #[prost(string, tag = "1")]
    pub reason: String,
    /// What kind of reason that is.
    #[prost(enumeration = "RefusedFor", tag = "2")]
    pub kind: i32,
}

/// Asks what a cluster is doing.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct StatusRequest {}

/// An executor.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ExecutorState {
    /// Its name, which begins with its classes.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its slots.
    #[prost(uint32, tag = "2")]
    pub slots: u32,
    /// Slots that tasks take.
    #[prost(uint32, tag = "3")]
    pub busy: u32,
    /// Where it serves results.
    #[prost(string, tag = "4")]
    pub address: String,
    /// Whether it leaves and takes nothing new.
    #[prost(bool, tag = "5")]
    pub draining: bool,
    /// Why it takes no tasks although it does not leave; empty where it takes them.
    #[prost(string, tag = "6")]
    pub closed: String,
}

/// A job that runs.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct JobState {
    /// Its id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// What people call it.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Its stages.
    #[prost(uint32, tag = "3")]
    pub stages: u32,
    /// Stages that have ended.
    #[prost(uint32, tag = "4")]
    pub ended: u32,
    /// Partitions that wait for a slot.
    #[prost(uint32, tag = "5")]
    pub waiting: u32,
    /// Classes that partitions wait for.
    #[prost(string, repeated, tag = "6")]
    pub waiting_for: Vec<String>,
}

/// What a cluster is doing.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct StatusResponse {
    /// Its executors, by name.
    #[prost(message, repeated, tag = "1")]
    pub executors: Vec<ExecutorState>,
    /// Its jobs, by id, which is by age.
    #[prost(message, repeated, tag = "2")]
    pub jobs: Vec<JobState>,
    /// Its queues, by name.
    #[prost(message, repeated, tag = "3")]
    pub queues: Vec<QueueState>,
    /// Organisations and teams that have something there.
    #[prost(message, repeated, tag = "4")]
    pub tenants: Vec<TenantState>,
    /// The scheduler that leads, `host:port`.
    #[prost(string, tag = "5")]
    pub leader: String,
    /// The term that it leads in; zero where it is the only scheduler.
    #[prost(uint64, tag = "6")]
    pub term: u64,
}

/// A queue.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct QueueState {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Higher goes first.
    #[prost(uint32, tag = "2")]
    pub priority: u32,
    /// Jobs that wait.
    #[prost(uint32, tag = "3")]
    pub waiting: u32,
    /// Jobs that may wait.
    #[prost(uint32, tag = "4")]
    pub max_queued: u32,
    /// Jobs that run.
    #[prost(uint32, tag = "5")]
    pub running: u32,
    /// Jobs that may run; zero for no limit of its own.
    #[prost(uint32, tag = "6")]
    pub max_running: u32,
    /// How long the oldest that waits has done so, in milliseconds.
    #[prost(uint64, tag = "7")]
    pub oldest_ms: u64,
}

/// What an organisation or a team has.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TenantState {
    /// `organisation` or `organisation/team`; empty for those who do not say.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Jobs that run.
    #[prost(uint64, tag = "2")]
    pub jobs: u64,
    /// Partitions that are worked on.
    #[prost(uint64, tag = "3")]
    pub tasks: u64,
}

/// Submits a plan.
///
/// # Errors
/// The scheduler is out of reach, or refuses the handshake or the plan.
pub async fn submit(channel: Channel, request: SubmitRequest) -> Result<Streaming<Progress>, Status> {
    let mut client = client(channel).await?;
    let path = http::uri::PathAndQuery::from_static(SUBMIT);
    let answer = client.server_streaming(Request::new(request), path, ProstCodec::default()).await?;
    Ok(answer.into_inner())
}

/// Asks what the cluster is doing.
///
/// # Errors
/// The scheduler is out of reach, or refuses the handshake.
pub async fn status(channel: Channel) -> Result<StatusResponse, Status> {
    let mut client = client(channel).await?;
    let path = http::uri::PathAndQuery::from_static(STATUS);
    let answer = client.unary(Request::new(StatusRequest {}), path, ProstCodec::default()).await?;
    Ok(answer.into_inner())
}

async fn client(channel: Channel) -> Result<tonic::client::Grpc<Channel>, Status> {
    let client = tonic::client::Grpc::new(channel);
    let mut client = client.max_decoding_message_size(MESSAGE_BYTES).max_encoding_message_size(MESSAGE_BYTES);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    Ok(client)
}

/// What becomes of a job, as it happens.
pub type ProgressStream = Pin<Box<dyn Stream<Item = Result<Progress, Status>> + Send>>;

/// What a scheduler does for those who submit.
pub trait TakesJobs: Send + Sync + 'static {
    /// Takes a plan of a caller whose token was looked at.
    fn submit(&self, request: SubmitRequest, caller: Caller) -> BoxFuture<'static, Result<ProgressStream, Status>>;

    /// Says what the cluster is doing, as far as it is the caller's business.
    fn status(&self, caller: Caller) -> BoxFuture<'static, Result<StatusResponse, Status>>;
}

/// The service, to be mounted behind the handshake.
#[derive(Clone)]
pub struct JobsServer {
    taker: Arc<dyn TakesJobs>,
}

impl JobsServer {
    /// A service that hands everything to `taker`.
    pub fn new(taker: Arc<dyn TakesJobs>) -> Self {
        Self { taker }
    }
}

impl ServerStreamingService<SubmitRequest> for JobsServer {
    type Response = Progress;
    type ResponseStream = ProgressStream;
    type Future = BoxFuture<'static, Result<Response<ProgressStream>, Status>>;

    fn call(&mut self, request: Request<SubmitRequest>) -> Self::Future {
        let caller = request.extensions().get::<Caller>().cloned().unwrap_or_default();
        let taken = self.taker.submit(request.into_inner(), caller);
        Box::pin(async move { Ok(Response::new(taken.await?)) })
    }
}

/// The other method has an adapter of its own, so that both requests can be told apart by their types.
struct StatusMethod(Arc<dyn TakesJobs>);

impl UnaryService<StatusRequest> for StatusMethod {
    type Response = StatusResponse;
    type Future = BoxFuture<'static, Result<Response<StatusResponse>, Status>>;

    fn call(&mut self, request: Request<StatusRequest>) -> Self::Future {
        let status = self.0.status(request.extensions().get::<Caller>().cloned().unwrap_or_default());
        Box::pin(async move { Ok(Response::new(status.await?)) })
    }
}

impl NamedService for JobsServer {
    const NAME: &'static str = "rowmill.Jobs";
}

impl Service<http::Request<Body>> for JobsServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let own = self.clone();
        Box::pin(async move {
            let limits = (Some(MESSAGE_BYTES), Some(MESSAGE_BYTES));
            Ok(match request.uri().path() {
                SUBMIT => {
                    let server = tonic::server::Grpc::new(ProstCodec::default());
                    server.apply_max_message_size_config(limits.0, limits.1).server_streaming(own, request).await
                }
                STATUS => {
                    let mut server = tonic::server::Grpc::new(ProstCodec::default());
                    server.unary(StatusMethod(own.taker), request).await
                }
                _ => Status::unimplemented("there is no such method").into_http(),
            })
        })
    }
}
