//! What an executor serves of what its tasks have made: Ballista's service, for names that are plain names. Ballista puts
//! the name of a job into a path as it comes, and `..` or `/` in it leads to the files of others.

use arrow_flight::flight_service_server::FlightService;
use arrow_flight::{
    Action, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest, PollInfo, SchemaResult, Ticket,
};
use ballista_core::serde::decode_protobuf;
use ballista_core::serde::scheduler::Action as Fetch;
use ballista_executor::flight_service::BallistaFlightService;
use tonic::{Request, Response, Status, Streaming};

use crate::work_dir::is_plain;

/// The service, to be mounted behind the handshake.
pub(crate) struct Results {
    ballista: BallistaFlightService,
}

impl Results {
    /// Serves what lies in a folder.
    pub(crate) fn new(folder: String) -> Self {
        Self { ballista: BallistaFlightService::new(folder) }
    }
}

/// Looks at the job that is named.
fn check(bytes: &[u8]) -> Result<(), Status> {
    let fetch = decode_protobuf(bytes).map_err(|_| Status::invalid_argument("that names no part of a job"))?;
    let Fetch::FetchPartition { job_id, .. } = &fetch;
    match is_plain(job_id.as_str()) {
        true => Ok(()),
        false => Err(Status::invalid_argument("a job's name is letters and digits")),
    }
}

fn refuse<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("executors serve the results of tasks and nothing else"))
}

#[async_trait::async_trait]
impl FlightService for Results {
    type DoActionStream = <BallistaFlightService as FlightService>::DoActionStream;
    type DoExchangeStream = <BallistaFlightService as FlightService>::DoExchangeStream;
    type DoGetStream = <BallistaFlightService as FlightService>::DoGetStream;
    type DoPutStream = <BallistaFlightService as FlightService>::DoPutStream;
    type HandshakeStream = <BallistaFlightService as FlightService>::HandshakeStream;
    type ListActionsStream = <BallistaFlightService as FlightService>::ListActionsStream;
    type ListFlightsStream = <BallistaFlightService as FlightService>::ListFlightsStream;

    async fn do_get(&self, request: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        check(&request.get_ref().ticket)?;
        self.ballista.do_get(request).await
    }

    async fn do_action(&self, request: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        check(&request.get_ref().body)?;
        self.ballista.do_action(request).await
    }

    async fn get_schema(&self, _: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        refuse()
    }

    async fn get_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        refuse()
    }

    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        refuse()
    }

    async fn handshake(
        &self,
        _: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        refuse()
    }

    async fn list_flights(&self, _: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        refuse()
    }

    async fn do_put(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        refuse()
    }

    async fn list_actions(&self, _: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        refuse()
    }

    async fn do_exchange(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoExchangeStream>, Status> {
        refuse()
    }
}
