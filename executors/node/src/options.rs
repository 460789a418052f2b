//! What an executor is started with.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use datafusion::common::DataFusionError;
use datafusion::execution::object_store::ObjectStoreRegistry;
use rowmill_wire::handshake::Handshake;
use rowmill_wire::name::ExecutorName;

use crate::calls::BuildsSteps;

/// Says what went wrong in a task, for whoever waits for its job.
pub type Describe = Arc<dyn Fn(&DataFusionError) -> String + Send + Sync>;

/// Options of one executor.
#[derive(Clone)]
pub struct Options {
    /// Its name, which carries its classes.
    pub name: ExecutorName,
    /// Tasks that it runs at a time, in units of one partition.
    pub slots: u32,
    /// Where it listens.
    pub listen: IpAddr,
    /// The host name under which others reach it.
    pub host: String,
    /// The port of its intermediate results; 0 takes a free one.
    pub flight_port: u16,
    /// The port on which it takes tasks; 0 takes a free one.
    pub task_port: u16,
    /// Schedulers, `host:port`; it joins the first that takes it, which is the one that leads.
    pub schedulers: Vec<String>,
    /// Token and build.
    pub handshake: Handshake,
    /// Where intermediate results lie; swept at the start.
    pub work_dir: PathBuf,
    /// Memory of all tasks together, in bytes; `None` takes 60% of what the machine or its control group has.
    pub memory_bytes: Option<u64>,
    /// How long running tasks may take to finish after SIGTERM.
    pub drain: Duration,
    /// How often it says that it is alive.
    pub heartbeat: Duration,
    /// Where plans read files; DataFusion's own stores where absent.
    pub stores: Option<Arc<dyn ObjectStoreRegistry>>,
    /// How failures are told; as Ballista tells them where absent.
    pub describe: Option<Describe>,
    /// What builds steps that are not SQL; it runs SQL only where absent.
    pub steps: Option<Arc<dyn BuildsSteps>>,
}
