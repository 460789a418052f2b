//! What a scheduler answers that stands by: its role, and to everything else that another one leads.

use std::convert::Infallible;
use std::marker::PhantomData;
use std::sync::Arc;
use std::task::{Context, Poll};

use ballista_core::serde::protobuf::scheduler_grpc_server::SchedulerGrpcServer;
use parking_lot::Mutex;
use rowmill_wire::alive::AliveServer;
use rowmill_wire::calls::crew::CrewsServer;
use rowmill_wire::handshake::{Handshake, Right};
use rowmill_wire::jobs::JobsServer;
use rowmill_wire::leader::{Role, RoleServer, standby};
use tokio::net::TcpListener;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::metadata::MetadataMap;
use tonic::server::NamedService;
use tonic::service::interceptor::InterceptedService;

use crate::error::Error;
use crate::intake::Intake;

/// Where the leader is reached, as far as this process knows.
pub(super) type Known = Arc<Mutex<Option<String>>>;

/// Refuses in the place of the service `S`: whoever has a token that opens is told who leads.
struct Refusing<S> {
    handshake: Handshake,
    known: Known,
    service: PhantomData<fn() -> S>,
}

impl<S> Refusing<S> {
    fn new(handshake: &Handshake, known: &Known) -> Self {
        Self { handshake: handshake.clone(), known: known.clone(), service: PhantomData }
    }
}

impl<S> Clone for Refusing<S> {
    fn clone(&self) -> Self {
        Self::new(&self.handshake, &self.known)
    }
}

impl<S: NamedService> NamedService for Refusing<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Refusing<S> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let metadata = MetadataMap::from_headers(request.headers().clone());
        // Whoever may submit may know who leads; what more a call takes is for the leader to say.
        let status = match self.handshake.check(&metadata, Right::Submit) {
            Ok(_) => standby(self.known.lock().as_deref()),
            Err(refused) => refused,
        };
        std::future::ready(Ok(status.into_http()))
    }
}

/// Answers what comes in at this listener, until it is dropped.
///
/// # Errors
/// Bytes cannot travel as configured.
pub(super) async fn serve(handshake: Handshake, listener: TcpListener, known: Known) -> Result<(), Error> {
    let named = known.clone();
    let roles = RoleServer::new(Arc::new(move || Role {
        leads: false,
        term: 0,
        leader: named.lock().clone().unwrap_or_default(),
    }));
    let serving = tonic::transport::Server::builder()
        .add_service(Refusing::<SchedulerGrpcServer<Intake>>::new(&handshake, &known))
        .add_service(Refusing::<JobsServer>::new(&handshake, &known))
        .add_service(Refusing::<CrewsServer>::new(&handshake, &known))
        .add_service(Refusing::<AliveServer>::new(&handshake, &known))
        .add_service(InterceptedService::new(roles, handshake.guard(Right::Submit)))
        .serve_with_incoming(handshake.incoming(listener)?);
    serving.await.map_err(|error| Error::System(std::io::Error::other(error)))
}
