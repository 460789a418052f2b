//! How bytes travel between the processes of a cluster: TLS, both sides showing certificates where that is demanded, or
//! as they are, and then on one machine alone unless somebody says otherwise.
//!
//! ```text
//!   listen.rs    Handshake::incoming(listener) ─▶ connections for `serve_with_incoming`
//!   connect.rs   Handshake::connect(address)   ─▶ a channel, for our own clients
//!                Handshake::override_fn()      ─▶ for Ballista's clients, which connect by themselves:
//!   forward.rs     its endpoint is turned to a socket of this process, behind which TLS begins
//! ```
//! tonic's own TLS is not used: its feature would switch `logging` on in rustls, which lies below DataFusion, and Ballista
//! has an `http://` before the address of each executor.

mod connect;
mod forward;
mod listen;
mod tls;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

pub use connect::ConnectError;
pub use listen::{Connection, Incoming};
pub(crate) use tls::Tls;
pub use tls::TlsFiles;

/// Why bytes cannot travel as asked.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// A file cannot be read, or does not hold what it should.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate without its key, or a key without its certificate.
    #[error("a certificate and its key belong together: set both `cluster.tls.certificate` and `cluster.tls.key`")]
    HalfAnIdentity,
    /// Serving needs a certificate.
    #[error("serving with TLS needs a certificate: set `cluster.tls.certificate` and `cluster.tls.key`")]
    NoCertificate,
    /// rustls'.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] tokio_rustls::rustls::Error),
    /// Plain text on a network.
    #[error(
        "{0} is not this machine alone, and without TLS whoever sees the network sees the token and the rows: configure \
         `cluster.tls`, or set `cluster.insecure: true` if the network is yours alone"
    )]
    Plain(String),
    /// The operating system's.
    #[error("{0}")]
    System(#[from] std::io::Error),
}

/// How bytes travel. Cheap to clone.
#[derive(Clone)]
pub struct Transport(Kind);

#[derive(Clone)]
enum Kind {
    /// As they are; `anywhere` or between processes of one machine.
    Plain {
        anywhere: bool,
    },
    Tls(Arc<Tls>),
}

impl Default for Transport {
    /// As they are, on this machine alone.
    fn default() -> Self {
        Self(Kind::Plain { anywhere: false })
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            Kind::Plain { anywhere: false } => "Transport(plain, on this machine)",
            Kind::Plain { anywhere: true } => "Transport(plain)",
            Kind::Tls(_) => "Transport(TLS)",
        })
    }
}

impl Transport {
    /// As they are, wherever to: for networks that are trusted.
    pub fn insecure() -> Self {
        Self(Kind::Plain { anywhere: true })
    }

    /// With TLS.
    ///
    /// # Errors
    /// A file cannot be read or does not hold what it should.
    pub fn tls(files: &TlsFiles) -> Result<Self, TransportError> {
        Ok(Self(Kind::Tls(Arc::new(Tls::try_new(files)?))))
    }

    /// Whether it is TLS.
    pub fn is_tls(&self) -> bool {
        matches!(self.0, Kind::Tls(_))
    }

    fn as_tls(&self) -> Option<&Arc<Tls>> {
        match &self.0 {
            Kind::Tls(tls) => Some(tls),
            Kind::Plain { .. } => None,
        }
    }

    /// Refuses plain text to another machine than this one.
    ///
    /// # Errors
    /// [`TransportError::Plain`].
    pub fn check_host(&self, host: &str) -> Result<(), TransportError> {
        match &self.0 {
            Kind::Plain { anywhere: false } if !is_loopback(host) => Err(TransportError::Plain(host.to_owned())),
            _ => Ok(()),
        }
    }
}

/// Whether a host is this machine, by its name alone: what a name server says is not asked.
fn is_loopback(host: &str) -> bool {
    let host = bare(host);
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => address.is_loopback(),
        Ok(IpAddr::V6(address)) => {
            address.is_loopback() || address.to_ipv4_mapped().is_some_and(|address| address.is_loopback())
        }
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}

/// A host without the brackets that an IPv6 address has in a URL.
fn bare(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_stays_on_this_machine() {
        let plain = Transport::default();
        for own in ["127.0.0.1", "127.8.9.10", "localhost", "LOCALHOST", "::1", "[::1]", "::ffff:127.0.0.1"] {
            assert!(plain.check_host(own).is_ok(), "{own}");
        }
        for other in ["0.0.0.0", "10.0.0.1", "::", "example.com", "localhost.example.com", "127.0.0.1.example.com"] {
            assert!(plain.check_host(other).is_err(), "{other}");
            assert!(Transport::insecure().check_host(other).is_ok(), "{other}");
        }
    }
}
