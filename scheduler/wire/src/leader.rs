//! Which of several schedulers leads.
//!
//! A scheduler that stands by answers every call with a status that names the leader ([`standby`]); whoever called goes
//! there ([`Schedulers`]). Two things are answered by leaders and standbys alike: `/rowmill.Schedulers/Role`, which says
//! which of the two a process is, and calls without a token that opens, which get nothing.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use prost::Message;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::metadata::MetadataValue;
use tonic::server::{NamedService, UnaryService};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::transport::Transport;

/// The path of the method.
pub const PATH: &str = "/rowmill.Schedulers/Role";
/// Marks the status of a scheduler that stands by, and names the leader where it is known.
const HEADER: &str = "rowmill-leader";

/// Asks a scheduler for its role.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RoleRequest {}

/// A scheduler's role.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Role {
    /// Whether it leads: places work, and takes it.
    #[prost(bool, tag = "1")]
    pub leads: bool,
    /// The term that it leads in; zero where it stands by, and where it is the only scheduler.
    #[prost(uint64, tag = "2")]
    pub term: u64,
    /// Where the leader is reached, `host:port`, as far as it is known; empty otherwise.
    #[prost(string, tag = "3")]
    pub leader: String,
}

/// Asks a scheduler for its role.
///
/// # Errors
/// It is out of reach, or refuses the handshake.
pub async fn role(channel: Channel) -> Result<Role, Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = http::uri::PathAndQuery::from_static(PATH);
    Ok(client.unary(Request::new(RoleRequest {}), path, ProstCodec::default()).await?.into_inner())
}

/// Says which role this process has now.
pub type SaysRole = Arc<dyn Fn() -> Role + Send + Sync>;

/// The service of roles, to be mounted behind the handshake.
#[derive(Clone)]
pub struct RoleServer {
    role: SaysRole,
}

impl RoleServer {
    /// A service that asks `role`.
    pub fn new(role: SaysRole) -> Self {
        Self { role }
    }
}

impl UnaryService<RoleRequest> for RoleServer {
    type Response = Role;
    type Future = std::future::Ready<Result<Response<Role>, Status>>;

    fn call(&mut self, _: Request<RoleRequest>) -> Self::Future {
        std::future::ready(Ok(Response::new((self.role)())))
    }
}

impl NamedService for RoleServer {
    const NAME: &'static str = "rowmill.Schedulers";
}

impl Service<http::Request<Body>> for RoleServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let own = self.clone();
        Box::pin(async move {
            if request.uri().path() != PATH {
                return Ok(Status::unimplemented("there is no such method").into_http());
            }
            let mut server = tonic::server::Grpc::new(ProstCodec::default());
            Ok(server.unary(own, request).await)
        })
    }
}

/// What a scheduler that does not lead answers. The code is one after which callers try again.
pub fn standby(leader: Option<&str>) -> Status {
    let mut status = Status::unavailable(match leader {
        Some(leader) => format!("this scheduler stands by; {leader} leads"),
        None => "this scheduler stands by, and it knows of none that leads".to_owned(),
    });
    // An address that no header can hold is none.
    let leader = leader.and_then(|leader| MetadataValue::try_from(leader).ok());
    status.metadata_mut().insert(HEADER, leader.unwrap_or_else(|| MetadataValue::from_static("")));
    status
}

/// What a scheduler said that stands by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standby {
    /// Where it says that the leader is reached.
    pub leader: Option<String>,
}

impl Standby {
    /// What a status says of who leads; `None` where whoever answered does not stand by.
    pub fn read(status: &Status) -> Option<Self> {
        let leader = status.metadata().get(HEADER)?.to_str().unwrap_or_default();
        Some(Self { leader: (!leader.is_empty()).then(|| leader.to_owned()) })
    }
}

/// The schedulers that a process was given, and where it goes on looking for the one that leads.
///
/// A leader that is named and was not given is gone to with TLS only: there the certificate says that it belongs to the
/// cluster before the token is sent. Without TLS anybody who answers on a scheduler's port could name any address, and
/// would have the token sent there.
#[derive(Debug, Clone)]
pub struct Schedulers {
    given: Vec<String>,
    /// Whether certificates are checked.
    checks: bool,
    /// Where looking begins.
    next: usize,
    /// Who was named and may be gone to.
    named: Option<String>,
    /// Who did not answer since somebody last did.
    silent: Vec<String>,
}

impl Schedulers {
    /// Looks for the leader among these addresses, `host:port`.
    pub fn new(given: Vec<String>, transport: &Transport) -> Self {
        Self { given, checks: transport.is_tls(), next: 0, named: None, silent: Vec::new() }
    }

    /// How many were given.
    pub fn count(&self) -> usize {
        self.given.len()
    }

    /// Who is asked, one after the other.
    pub fn order(&self) -> Vec<String> {
        let mut order: Vec<String> = self.named.iter().cloned().collect();
        let (before, from) = self.given.split_at(self.next.min(self.given.len()));
        for address in from.iter().chain(before) {
            if !order.contains(address) {
                order.push(address.clone());
            }
        }
        order
    }

    /// Whoever was asked leads: it is the first to be asked again.
    pub fn leads(&mut self, address: &str) {
        self.silent.clear();
        if let Some(at) = self.given.iter().position(|given| given == address) {
            self.next = at;
            self.named = None;
        }
    }

    /// Whoever was asked does not answer, or not any more: the others are next.
    pub fn silent(&mut self, address: &str) {
        self.pass(address);
        if !self.silent.iter().any(|silent| silent == address) {
            self.silent.push(address.to_owned());
        }
    }

    /// Whoever was asked stands by: the one that it names is next, or else the others. Says it in words.
    pub fn stands_by(&mut self, address: &str, standby: &Standby) -> String {
        self.pass(address);
        let Some(leader) = &standby.leader else {
            return format!("{address} stands by, and it knows of none that leads");
        };
        if leader == address {
            // It has just stepped down, or is about to lead.
            return format!("{address} does not lead yet");
        }
        let given = self.given.contains(leader);
        if given && self.silent.contains(leader) {
            // It has died, and its lease has not run out yet: it is asked in its turn.
            return format!("{address} stands by, and {leader}, which leads, does not answer");
        }
        if given || self.checks {
            self.named = Some(leader.clone());
            return format!("{address} stands by, and {leader} leads");
        }
        format!(
            "{address} stands by; {leader}, which it says leads, was not given, and without TLS no other scheduler is \
             sent the token: give the addresses of all schedulers"
        )
    }

    /// Goes on to the one after this.
    fn pass(&mut self, address: &str) {
        if self.named.as_deref() == Some(address) {
            self.named = None;
        }
        if let Some(at) = self.given.iter().position(|given| given == address) {
            self.next = (at + 1) % self.given.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(addresses: &[&str]) -> Vec<String> {
        addresses.iter().map(|address| (*address).to_owned()).collect()
    }

    fn names(leader: &str) -> Standby {
        Standby { leader: Some(leader.to_owned()) }
    }

    #[test]
    fn a_status_names_the_leader() {
        let status = standby(Some("10.0.0.2:7780"));
        assert_eq!(status.code(), tonic::Code::Unavailable);
        assert_eq!(Standby::read(&status), Some(names("10.0.0.2:7780")));
        assert_eq!(Standby::read(&standby(None)), Some(Standby { leader: None }));
        assert_eq!(Standby::read(&standby(Some("a\nb"))), Some(Standby { leader: None }));
        assert_eq!(Standby::read(&Status::unavailable("gone")), None);
    }

    #[test]
    fn the_named_leader_is_next_and_then_the_others() {
        let mut schedulers = Schedulers::new(given(&["a:1", "b:1", "c:1"]), &Transport::default());
        assert_eq!(schedulers.order(), ["a:1", "b:1", "c:1"]);
        schedulers.stands_by("a:1", &names("c:1"));
        assert_eq!(schedulers.order(), ["c:1", "b:1", "a:1"]);
        schedulers.silent("c:1");
        assert_eq!(schedulers.order(), ["a:1", "b:1", "c:1"], "it died since");
        let said = schedulers.stands_by("a:1", &names("c:1"));
        assert!(said.contains("does not answer"), "{said}");
        assert_eq!(schedulers.order(), ["b:1", "c:1", "a:1"], "which the one that stands by does not know yet");
        schedulers.leads("b:1");
        assert_eq!(schedulers.order(), ["b:1", "c:1", "a:1"]);
        schedulers.stands_by("a:1", &names("c:1"));
        assert_eq!(schedulers.order(), ["c:1", "b:1", "a:1"], "it may have come back since");
        schedulers.silent("c:1");
        schedulers.stands_by("a:1", &Standby { leader: None });
        assert_eq!(schedulers.order(), ["b:1", "c:1", "a:1"]);
        schedulers.stands_by("b:1", &names("b:1"));
        assert_eq!(schedulers.order(), ["c:1", "a:1", "b:1"], "nobody is sent to where it comes from");
    }

    #[test]
    fn without_certificates_nobody_is_led_to_an_address_that_was_not_given() {
        let mut schedulers = Schedulers::new(given(&["127.0.0.1:1"]), &Transport::default());
        let said = schedulers.stands_by("127.0.0.1:1", &names("127.0.0.1:2"));
        assert!(said.contains("127.0.0.1:2") && said.contains("was not given"), "{said}");
        assert_eq!(schedulers.order(), ["127.0.0.1:1"]);
        let mut schedulers = Schedulers::new(given(&["10.0.0.1:1"]), &Transport::insecure());
        schedulers.stands_by("10.0.0.1:1", &names("10.0.0.2:1"));
        assert_eq!(schedulers.order(), ["10.0.0.1:1"]);
        let mut checked = Schedulers { checks: true, ..schedulers };
        checked.stands_by("10.0.0.1:1", &names("10.0.0.2:1"));
        assert_eq!(checked.order(), ["10.0.0.2:1", "10.0.0.1:1"]);
    }
}
