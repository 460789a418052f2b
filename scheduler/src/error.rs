//! What can go wrong between submitting a plan and reading its result.

/// Errors of the scheduler.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be listened on.
    #[error("the scheduler cannot listen on {address}: {source}; is another scheduler running there?")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Bytes cannot travel as configured.
    #[error("the scheduler does not serve: {0}")]
    Transport(#[from] rowmill_wire::transport::TransportError),
    /// Ballista refused.
    #[error("the scheduler failed: {0}")]
    Ballista(#[from] ballista_core::error::BallistaError),
    /// A plan could not be built, or a result not be read.
    #[error(transparent)]
    DataFusion(#[from] datafusion::error::DataFusionError),
    /// A job failed.
    #[error("job {job} failed: {reason}")]
    Failed {
        /// The job.
        job: String,
        /// Why, as the scheduler or an executor says.
        reason: String,
    },
    /// Admission did not take a job, or not in time.
    #[error("{0}")]
    NotAdmitted(String),
    /// A job was ended because nobody could run it.
    #[error("job {job} failed: {reason}")]
    Unplaced {
        /// The job.
        job: String,
        /// Why.
        reason: String,
    },
    /// A job succeeded, and its result cannot be read any more; the same plan may be run again.
    #[error("the result of job {job} is lost: {reason}")]
    ResultLost {
        /// The job.
        job: String,
        /// Why.
        reason: String,
    },
    /// The job's status is not reported any more.
    #[error("job {job} was lost: the scheduler stopped")]
    Lost {
        /// The job.
        job: String,
    },
    /// The store of the schedulers cannot be used.
    #[error("the schedulers' store: {0}")]
    Store(#[from] rowmill_store::Error),
    /// Schedulers cannot elect one of them so.
    #[error(transparent)]
    Election(crate::election::StoreError),
    /// Others are told where the leader is reached.
    #[error("a scheduler of several needs the name or address under which others reach it")]
    NoHost,
    /// The operating system's.
    #[error("the scheduler failed: {0}")]
    System(#[from] std::io::Error),
    /// A plan does not fit into a message.
    #[error("the plan takes {bytes} bytes and a message holds {limit}; read tables from files instead of from memory")]
    PlanTooLarge {
        /// The plan's size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
}
