//! Who serves a class, as the scheduler knows it: `/rowmill.Crews/Watch`, a stream that says it at once, when it changes,
//! and at least every [`crate::jobs::BEAT`].

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;
use futures::future::BoxFuture;
use prost::Message;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::{NamedService, ServerStreamingService};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

const WATCH: &str = "/rowmill.Crews/Watch";

/// Asks who serves a class.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct CrewRequest {
    /// The class.
    #[prost(string, tag = "1")]
    pub class: String,
}

/// An executor that serves it.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct CrewMember {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Where it serves, `host:port`.
    #[prost(string, tag = "2")]
    pub address: String,
    /// Its slots.
    #[prost(uint32, tag = "3")]
    pub slots: u32,
}

/// Who serves a class.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Crew {
    /// Executors that take new work, by name.
    #[prost(message, repeated, tag = "1")]
    pub members: Vec<CrewMember>,
    /// How long work waits for one, in milliseconds.
    #[prost(uint64, tag = "2")]
    pub queue_timeout_ms: u64,
}

/// Asks who serves a class, from now on.
///
/// # Errors
/// The scheduler is out of reach, or refuses the handshake or the class.
pub async fn watch(channel: Channel, class: &str) -> Result<Streaming<Crew>, Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = http::uri::PathAndQuery::from_static(WATCH);
    let request = Request::new(CrewRequest { class: class.to_owned() });
    Ok(client.server_streaming(request, path, ProstCodec::default()).await?.into_inner())
}

/// Who serves a class, as it changes.
pub type CrewStream = Pin<Box<dyn Stream<Item = Result<Crew, Status>> + Send>>;

/// What knows who serves a class.
pub trait KnowsCrews: Send + Sync + 'static {
    /// Says who serves a class until nobody listens.
    fn watch(&self, class: String) -> Result<CrewStream, Status>;
}

/// The service, to be mounted behind the handshake.
#[derive(Clone)]
pub struct CrewsServer {
    knower: Arc<dyn KnowsCrews>,
}

impl CrewsServer {
    /// A service that asks `knower`.
    pub fn new(knower: Arc<dyn KnowsCrews>) -> Self {
        Self { knower }
    }
}

impl ServerStreamingService<CrewRequest> for CrewsServer {
    type Response = Crew;
    type ResponseStream = CrewStream;
    type Future = std::future::Ready<Result<Response<CrewStream>, Status>>;

    fn call(&mut self, request: Request<CrewRequest>) -> Self::Future {
        std::future::ready(self.knower.watch(request.into_inner().class).map(Response::new))
    }
}

impl NamedService for CrewsServer {
    const NAME: &'static str = "rowmill.Crews";
}

impl Service<http::Request<Body>> for CrewsServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let own = self.clone();
        Box::pin(async move {
            if request.uri().path() != WATCH {
                return Ok(Status::unimplemented("there is no such method").into_http());
            }
            let mut server = tonic::server::Grpc::new(ProstCodec::default());
            Ok(server.server_streaming(own, request).await)
        })
    }
}
