//! Signs of life. An executor says every heartbeat which attempts it runs; a task that the scheduler believes to be
//! running and that its executor does not name is lost, and goes again when its lease has run out. (Ballista's own
//! heartbeats say only that the process lives.)
//!
//! One unary gRPC method, `/rowmill.Executors/Alive`, with protobuf messages.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use prost::Message;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::{NamedService, UnaryService};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// The path of the method.
pub const PATH: &str = "/rowmill.Executors/Alive";

/// One attempt that runs.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct RunningTask {
    /// Ballista's job.
    #[prost(string, tag = "1")]
    pub job: String,
    /// The stage in the job.
    #[prost(uint32, tag = "2")]
    pub stage: u32,
    /// The stage's attempt.
    #[prost(uint32, tag = "3")]
    pub stage_attempt: u32,
    /// The task in the stage; every attempt has its own.
    #[prost(uint32, tag = "4")]
    pub task: u32,
}

/// What an executor says.
#[derive(Clone, PartialEq, Message)]
pub struct AliveRequest {
    /// Its name.
    #[prost(string, tag = "1")]
    pub executor: String,
    /// What it runs, and what it has finished and could not report yet.
    #[prost(message, repeated, tag = "2")]
    pub running: Vec<RunningTask>,
    /// Whether it takes nothing new.
    #[prost(bool, tag = "3")]
    pub draining: bool,
    /// Jobs of which it holds something.
    #[prost(string, repeated, tag = "4")]
    pub held: Vec<String>,
    /// Memory that its tasks share, in bytes; zero where that is not known.
    #[prost(uint64, tag = "5")]
    pub memory_bytes: u64,
    /// Why it takes no tasks although it does not leave; empty where it takes them.
    #[prost(string, tag = "6")]
    pub closed: String,
}

/// What the scheduler answers.
#[derive(Clone, PartialEq, Message)]
pub struct AliveResponse {
    /// Tasks that the executor should stop: nobody waits for them.
    #[prost(message, repeated, tag = "1")]
    pub stop: Vec<RunningTask>,
    /// Whether it holds what somebody will read: an executor that drains stays as long.
    #[prost(bool, tag = "2")]
    pub needed: bool,
    /// Jobs that nobody reads any more: what is held of them goes.
    #[prost(string, repeated, tag = "3")]
    pub forget: Vec<String>,
    /// The term that the scheduler leads in; zero where it is the only one.
    #[prost(uint64, tag = "4")]
    pub term: u64,
}

/// Sends a sign of life.
///
/// # Errors
/// The scheduler is out of reach, or refuses the handshake.
pub async fn say_alive(channel: Channel, message: AliveRequest) -> Result<AliveResponse, Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = http::uri::PathAndQuery::from_static(PATH);
    let answer = client.unary(Request::new(message), path, ProstCodec::default()).await?;
    Ok(answer.into_inner())
}

/// What hears signs of life.
pub type Hear = Arc<dyn Fn(AliveRequest) -> AliveResponse + Send + Sync>;

/// The service of signs of life, to be mounted beside Ballista's behind the handshake.
#[derive(Clone)]
pub struct AliveServer {
    hear: Hear,
}

impl AliveServer {
    /// A service that hands every message to `hear`.
    pub fn new(hear: Hear) -> Self {
        Self { hear }
    }
}

impl UnaryService<AliveRequest> for AliveServer {
    type Response = AliveResponse;
    type Future = std::future::Ready<Result<Response<AliveResponse>, Status>>;

    fn call(&mut self, request: Request<AliveRequest>) -> Self::Future {
        std::future::ready(Ok(Response::new((self.hear)(request.into_inner()))))
    }
}

impl NamedService for AliveServer {
    const NAME: &'static str = "rowmill.Executors";
}

impl Service<http::Request<Body>> for AliveServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let own = self.clone();
        Box::pin(async move {
            if request.uri().path() == PATH {
                let mut server = tonic::server::Grpc::new(ProstCodec::default());
                Ok(server.unary(own, request).await)
            } else {
                Ok(Status::unimplemented("there is no such method").into_http())
            }
        })
    }
}
