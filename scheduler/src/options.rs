//! What a scheduler is started with.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use datafusion::execution::object_store::ObjectStoreRegistry;
use rowmill_cores::routing::Strategy;
use rowmill_wire::handshake::Handshake;

use crate::admission::AdmissionOptions;

/// Options of one scheduler.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The host name under which executors reach it.
    pub host: String,
    /// Token and build.
    pub handshake: Handshake,
    /// How executors of a class are chosen.
    pub strategy: Strategy,
    /// An executor that is silent for so long is taken as gone. One whose process has died is noticed sooner.
    pub executor_timeout: Duration,
    /// An attempt that its executor does not name for so long goes again.
    pub lease: Duration,
    /// How long a class may be without executors before a warning.
    pub warn_after: Duration,
    /// How long a stage waits for an executor of its class before its job fails.
    pub queue_timeout: Duration,
    /// Queues and quotas.
    pub admission: AdmissionOptions,
    /// Where plans read files, as far as a scheduler looks at them; DataFusion's own stores where absent.
    pub stores: Option<Arc<dyn ObjectStoreRegistry>>,
    /// How long the state of a finished job is kept.
    pub keep_finished: Duration,
}

impl Options {
    /// Where others reach a scheduler that listens on this port, `host:port`.
    pub(crate) fn reached_at(&self, port: u16) -> String {
        match self.host.contains(':') && !self.host.starts_with('[') {
            true => format!("[{}]:{port}", self.host),
            false => format!("{}:{port}", self.host),
        }
    }

    /// A scheduler on this machine alone, on a free port.
    pub fn local(handshake: Handshake) -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            host: "127.0.0.1".to_owned(),
            handshake,
            strategy: Strategy::default(),
            executor_timeout: Duration::from_secs(15),
            lease: Duration::from_secs(10),
            warn_after: Duration::from_secs(5),
            queue_timeout: Duration::from_secs(300),
            admission: AdmissionOptions::default(),
            stores: None,
            keep_finished: Duration::from_secs(10),
        }
    }
}
