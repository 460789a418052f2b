//! Who may talk to whom: every request carries a token and the build of its sender, in the user agent, the one header
//! that each of Ballista's clients lets us set.
//!
//! The cluster's token joins and submits; tokens of [`Submitter`]s submit, read results, and nothing else. A wrong one
//! gets nothing. Builds must be equal: plans are encoded by one build's operators and decoded by another's.
//!
//! A handshake also says how bytes travel ([`Transport`]): whoever listens takes [`Handshake::incoming`] and whoever
//! connects takes [`Handshake::connect`], and both have TLS where it is configured.

use std::fmt;
use std::sync::Arc;

use ballista_core::BALLISTA_PROTOCOL_VERSION;
use tonic::metadata::MetadataMap;
use tonic::service::Interceptor;
use tonic::transport::Endpoint;
use tonic::{Request, Status};

pub use crate::token::{Submitter, TenantName, Token, TokenError};
use crate::transport::Transport;

/// Counts changes of what [`crate::codec`] writes.
const CODEC_VERSION: u32 = 3;

/// What a process was built from: versions of whatever reads or writes plans.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build(Arc<str>);

impl Build {
    /// The build of this process.
    pub fn own() -> Self {
        Self::named(env!("CARGO_PKG_VERSION"))
    }

    /// A build with another version of Rowmill, for tests of what happens when builds differ.
    pub fn named(version: &str) -> Self {
        let text = format!(
            "{version}-b{}.{BALLISTA_PROTOCOL_VERSION}-d{}-c{CODEC_VERSION}",
            ballista_core::BALLISTA_VERSION,
            datafusion::DATAFUSION_VERSION
        );
        Self(text.into())
    }
}

impl fmt::Display for Build {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a service asks of whoever calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// The cluster's own token: joining, reporting, taking tasks.
    Join,
    /// That, or one that submits: submitting, looking, reading results.
    Submit,
}

/// Who calls, found in the extensions of a request that passed a [`Guard`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// Whom the caller's token submits for, where it says so: the caller may not say otherwise.
    pub tenant: Option<TenantName>,
}

/// Token, build and transport of this process: puts them on what is sent, demands them of what comes in.
#[derive(Debug, Clone)]
pub struct Handshake {
    token: Token,
    submitters: Arc<[Submitter]>,
    build: Build,
    pub(crate) transport: Transport,
}

impl Handshake {
    /// The handshake of a process with this token: the cluster's, or, for a client, one that submits. Bytes travel as
    /// they are, and on this machine alone.
    pub fn new(token: Token) -> Self {
        Self { token, submitters: Arc::default(), build: Build::own(), transport: Transport::default() }
    }

    /// The same with another build.
    pub fn with_build(self, build: Build) -> Self {
        Self { build, ..self }
    }

    /// The same, and those who hold these tokens may submit here.
    pub fn with_submitters(self, submitters: Vec<Submitter>) -> Self {
        Self { submitters: submitters.into(), ..self }
    }

    /// The same with bytes that travel so.
    pub fn with_transport(self, transport: Transport) -> Self {
        Self { transport, ..self }
    }

    /// How bytes travel.
    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    /// Makes what is sent over an endpoint carry token and build. [`Self::connect`] and [`Self::override_fn`] do.
    pub(crate) fn sign(&self, endpoint: Endpoint) -> Result<Endpoint, tonic::transport::Error> {
        let agent = format!("rowmill build={} token={}", self.build, self.token.reveal());
        Ok(endpoint.user_agent(agent)?.tcp_nodelay(true))
    }

    /// Judges a request.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` without a token that is known, and then nothing else is said; `PERMISSION_DENIED` with one that
    /// does not give the right; `FAILED_PRECONDITION` from another build.
    pub fn check(&self, metadata: &MetadataMap, right: Right) -> Result<Caller, Status> {
        let agent = metadata.get("user-agent").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let field = |name: &str| agent.split(' ').find_map(|word| word.strip_prefix(name));
        let token = field("token=").unwrap_or_default();
        let mut found = self.token.matches(token).then(Caller::default);
        let joins = found.is_some();
        // All of them, whichever it is: how long it takes says nothing.
        for submitter in &*self.submitters {
            if submitter.token.matches(token) && !joins {
                found = Some(Caller { tenant: submitter.tenant.clone() });
            }
        }
        let caller = found.ok_or_else(|| Status::unauthenticated("the cluster token is missing or wrong"))?;
        if right == Right::Join && !joins {
            return Err(Status::permission_denied("this token submits; it does not join, and gives no tasks"));
        }
        match field("build=") {
            Some(build) if build == &*self.build.0 => Ok(caller),
            other => Err(Status::failed_precondition(format!(
                "this process was built as {} and the one that calls as {}; run one build of rowmill everywhere",
                self.build,
                other.unwrap_or("unknown")
            ))),
        }
    }

    /// Guards a service: whoever lacks the right does not reach it.
    pub fn guard(&self, right: Right) -> Guard {
        Guard { handshake: self.clone(), right }
    }
}

/// Lets those through who have a right, and says in the extensions of their requests who they are ([`Caller`]).
#[derive(Debug, Clone)]
pub struct Guard {
    handshake: Handshake,
    right: Right,
}

impl Interceptor for Guard {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let caller = self.handshake.check(request.metadata(), self.right)?;
        request.extensions_mut().insert(caller);
        Ok(request)
    }
}

/// As a guard of what the cluster's own token alone opens.
impl Interceptor for Handshake {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        self.check(request.metadata(), Right::Join)?;
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(agent: &str) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        metadata.insert("user-agent", agent.parse().unwrap());
        metadata
    }

    fn handshake() -> Handshake {
        let submitters = Submitter::read("submit-0123456789 acme/data\nsubmit-abcdefghij").unwrap();
        Handshake::new(Token::try_new("0123456789abcdef").unwrap()).with_submitters(submitters)
    }

    #[test]
    fn token_first_then_build() {
        let own = handshake();
        assert!(!format!("{own:?}").contains("0123456789"));
        let good = format!("rowmill build={} token=0123456789abcdef tonic/0.14", own.build);
        assert!(own.check(&metadata(&good), Right::Join).is_ok());
        for bad in ["", "rowmill", "rowmill build=1 token=0123456789abcde", "token=0123456789abcdeg", "token="] {
            for right in [Right::Join, Right::Submit] {
                let status = own.check(&metadata(bad), right).unwrap_err();
                assert_eq!(status.code(), tonic::Code::Unauthenticated, "{bad}");
                assert!(!status.message().contains("build"), "{status}");
            }
        }
        let status = own.check(&metadata("rowmill build=other token=0123456789abcdef"), Right::Join).unwrap_err();
        assert_eq!(status.code(), tonic::Code::FailedPrecondition);
        assert!(status.message().contains("other"), "{status}");
    }

    #[test]
    fn a_token_that_submits_does_not_join() {
        let own = handshake();
        let agent = |token: &str| metadata(&format!("rowmill build={} token={token}", own.build));
        let caller = own.check(&agent("submit-0123456789"), Right::Submit).unwrap();
        assert_eq!(caller.tenant.unwrap().to_string(), "acme/data");
        assert_eq!(own.check(&agent("submit-abcdefghij"), Right::Submit).unwrap(), Caller::default());
        assert_eq!(own.check(&agent("0123456789abcdef"), Right::Submit).unwrap(), Caller::default());
        let status = own.check(&agent("submit-0123456789"), Right::Join).unwrap_err();
        assert_eq!(status.code(), tonic::Code::PermissionDenied);
    }
}
