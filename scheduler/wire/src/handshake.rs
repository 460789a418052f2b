//! Who may talk to whom: every request carries the cluster's token and the build of its sender, in the user agent, the
//! one header that each of Ballista's clients lets us set.
//!
//! The token opens everything that a cluster serves: joining, submitting, fetching intermediate results. A wrong one
//! gets nothing. Builds must be equal: plans are encoded by one build's operators and decoded by another's.

use std::fmt;

use ballista_core::BALLISTA_PROTOCOL_VERSION;
use ballista_core::extension::EndpointOverrideFn;
use tonic::metadata::MetadataMap;
use tonic::service::Interceptor;
use tonic::transport::Endpoint;
use tonic::{Request, Status};

/// Counts changes of what [`crate::codec`] writes.
const CODEC_VERSION: u32 = 2;

/// What a token must not be shorter than, in bytes.
const SHORTEST_TOKEN: usize = 16;

/// Why a token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It could be guessed.
    #[error("the cluster token has {0} characters; use at least 16 random ones, such as `openssl rand -hex 32` prints")]
    Short(usize),
    /// It cannot travel in a header.
    #[error("the cluster token may hold letters, digits and -_.~+/= only")]
    Character,
}

/// The secret that a cluster's processes share. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(std::sync::Arc<str>);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

impl Token {
    /// Takes a token from text; blanks around it are dropped.
    ///
    /// # Errors
    /// It is short or holds a character that headers do not carry.
    pub fn try_new(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() < SHORTEST_TOKEN {
            return Err(TokenError::Short(text.chars().count()));
        }
        if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.~+/=".contains(&byte)) {
            return Err(TokenError::Character);
        }
        Ok(Self(text.into()))
    }

    /// Compares in a time that does not depend on where the texts differ.
    fn matches(&self, other: &str) -> bool {
        let (own, other) = (self.0.as_bytes(), other.as_bytes());
        let mut difference = own.len() ^ other.len();
        for (at, byte) in own.iter().enumerate() {
            difference |= usize::from(byte ^ other.get(at).copied().unwrap_or(0));
        }
        difference == 0
    }
}

/// What a process was built from: versions of whatever reads or writes plans.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build(std::sync::Arc<str>);

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

/// Token and build of this process: puts them on what is sent, demands them of what comes in.
#[derive(Debug, Clone)]
pub struct Handshake {
    token: Token,
    build: Build,
}

impl Handshake {
    /// The handshake of a process with this token.
    pub fn new(token: Token) -> Self {
        Self { token, build: Build::own() }
    }

    /// The same with another build.
    pub fn with_build(self, build: Build) -> Self {
        Self { build, ..self }
    }

    /// Makes a client's connection carry the handshake.
    pub fn endpoint(&self, endpoint: Endpoint) -> Result<Endpoint, tonic::transport::Error> {
        let agent = format!("rowmill build={} token={}", self.build, self.token.0);
        Ok(endpoint.user_agent(agent)?.tcp_nodelay(true))
    }

    /// The same as a function, as Ballista's configuration takes it.
    pub fn override_fn(&self) -> EndpointOverrideFn {
        let own = self.clone();
        std::sync::Arc::new(move |endpoint| Ok(own.endpoint(endpoint)?))
    }

    /// Judges a request.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` without the token, and then nothing else is said; `FAILED_PRECONDITION` from another build.
    pub fn check(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let agent = metadata.get("user-agent").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let field = |name: &str| agent.split(' ').find_map(|word| word.strip_prefix(name));
        if !field("token=").is_some_and(|token| self.token.matches(token)) {
            return Err(Status::unauthenticated("the cluster token is missing or wrong"));
        }
        match field("build=") {
            Some(build) if build == &*self.build.0 => Ok(()),
            other => Err(Status::failed_precondition(format!(
                "this process was built as {} and the one that calls as {}; run one build of rowmill everywhere",
                self.build,
                other.unwrap_or("unknown")
            ))),
        }
    }
}

impl Interceptor for Handshake {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        self.check(request.metadata())?;
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
        Handshake::new(Token::try_new("0123456789abcdef").unwrap())
    }

    #[test]
    fn tokens_are_long_and_never_printed() {
        assert_eq!(Token::try_new("short").unwrap_err(), TokenError::Short(5));
        assert_eq!(Token::try_new("0123456789abcdef x").unwrap_err(), TokenError::Character);
        assert!(!format!("{:?}", handshake()).contains("0123456789abcdef"));
    }

    #[test]
    fn token_first_then_build() {
        let own = handshake();
        let good = format!("rowmill build={} token=0123456789abcdef tonic/0.14", own.build);
        assert!(own.check(&metadata(&good)).is_ok());
        for bad in ["", "rowmill", "rowmill build=1 token=0123456789abcde", "token=0123456789abcdeg", "token="] {
            let status = own.check(&metadata(bad)).unwrap_err();
            assert_eq!(status.code(), tonic::Code::Unauthenticated, "{bad}");
            assert!(!status.message().contains("build"), "{status}");
        }
        let status = own.check(&metadata("rowmill build=other token=0123456789abcdef")).unwrap_err();
        assert_eq!(status.code(), tonic::Code::FailedPrecondition);
        assert!(status.message().contains("other"), "{status}");
    }
}
