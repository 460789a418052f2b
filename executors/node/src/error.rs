//! Why an executor does not start, or stops.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Errors of an executor process.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be listened on.
    #[error("the executor cannot listen on {address}: {source}; choose another port, or 0 for a free one")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Bytes cannot travel as configured.
    #[error("the executor does not serve: {0}")]
    Transport(#[from] rowmill_wire::transport::TransportError),
    /// The work directory cannot be used.
    #[error("the work directory {path} cannot be used: {reason}")]
    WorkDir {
        /// The directory.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// No scheduler takes the executor.
    #[error("no scheduler took the executor: {0}")]
    Refused(String),
    /// Ballista's.
    #[error(transparent)]
    Ballista(#[from] ballista_core::error::BallistaError),
    /// DataFusion's.
    #[error(transparent)]
    DataFusion(#[from] datafusion::error::DataFusionError),
    /// The operating system's.
    #[error("the executor failed: {0}")]
    System(#[from] std::io::Error),
}
