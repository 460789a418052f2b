//! The method: its client's side, and the service to be mounted behind the handshake.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;
use futures::future::BoxFuture;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::{NamedService, StreamingService};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::{ClientMessage, ExecutorMessage};
use crate::MESSAGE_BYTES;

const ATTEMPTS: &str = "/rowmill.Calls/Attempts";

/// Speaks to an executor; `asks` begins with the step to open.
///
/// # Errors
/// The executor is out of reach, or refuses the handshake.
pub async fn attempts(
    channel: Channel,
    asks: impl Stream<Item = ClientMessage> + Send + 'static,
) -> Result<Streaming<ExecutorMessage>, Status> {
    let client = tonic::client::Grpc::new(channel);
    let mut client = client.max_decoding_message_size(MESSAGE_BYTES).max_encoding_message_size(MESSAGE_BYTES);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = http::uri::PathAndQuery::from_static(ATTEMPTS);
    let answer = client.streaming(Request::new(asks), path, ProstCodec::default()).await?;
    Ok(answer.into_inner())
}

/// What an executor answers, as it happens.
pub type ExecutorStream = Pin<Box<dyn Stream<Item = Result<ExecutorMessage, Status>> + Send>>;

/// What an executor does for those who have attempts made.
pub trait TakesCalls: Send + Sync + 'static {
    /// Serves one step of one run, until either side ends.
    fn attempts(&self, asks: Streaming<ClientMessage>) -> ExecutorStream;
}

/// The service.
#[derive(Clone)]
pub struct CallsServer {
    taker: Arc<dyn TakesCalls>,
}

impl CallsServer {
    /// A service that hands every stream to `taker`.
    pub fn new(taker: Arc<dyn TakesCalls>) -> Self {
        Self { taker }
    }
}

impl StreamingService<ClientMessage> for CallsServer {
    type Response = ExecutorMessage;
    type ResponseStream = ExecutorStream;
    type Future = std::future::Ready<Result<Response<ExecutorStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<ClientMessage>>) -> Self::Future {
        std::future::ready(Ok(Response::new(self.taker.attempts(request.into_inner()))))
    }
}

impl NamedService for CallsServer {
    const NAME: &'static str = "rowmill.Calls";
}

impl Service<http::Request<Body>> for CallsServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let own = self.clone();
        Box::pin(async move {
            if request.uri().path() != ATTEMPTS {
                return Ok(Status::unimplemented("there is no such method").into_http());
            }
            let server = tonic::server::Grpc::new(ProstCodec::default());
            let mut server = server.apply_max_message_size_config(Some(MESSAGE_BYTES), Some(MESSAGE_BYTES));
            Ok(server.streaming(own, request).await)
        })
    }
}
