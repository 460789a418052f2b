//! Rowmill's scheduler: Ballista's, embedded, with our placement.
//!
//! ```text
//!   Scheduler::submit(plan) ─▶ Ballista's event loop ─▶ Cluster::bind_schedulable_tasks (cluster_state.rs)
//!                                                          │ class of each stage, free slots from the graphs
//!                                                          ▼
//!   executors ◀── LaunchMultiTask ── tasks on executors of the class
//!      │ register, task status (Ballista's gRPC)      │ signs of life (rowmill_wire::alive)
//!      ▼                                               ▼
//!   serve.rs: one tonic server, token and build demanded of every call, no delay on its sockets
//!                                                      │
//!                                              watch.rs: leases of attempts, classes that nobody serves
//! ```
//! What Ballista does badly is done here: free slots are derived from the execution graphs (its own count leaks when an
//! executor dies); an attempt that its executor does not name any more goes again when its lease has run out; a stage
//! whose class has no executor waits with a warning and fails after the queue's timeout, with the reason.
//!
//! # Seams
//! - The **cluster runner** of `rowmill run --cluster` is a driver of [`rowmill_cores::coordinator`] and
//!   [`rowmill_cores::admission`]: `Action::Launch` submits the chunk's physical plan here ([`Scheduler::submit`]) and
//!   waits for [`Job::wait`]; `Action::Cancel` is [`Scheduler::cancel`]. The durable runner's journal answers
//!   `Action::Commit` and `Action::End`; its run lease gives the fence.
//! - **Step operators** are one arm each in `rowmill_wire::codec`; the stage of a step is marked with
//!   `rowmill_wire::class::ClassExec`.
//! - **Several schedulers**: [`rowmill_cores::election`] against the run store's named leases decides who calls
//!   [`Scheduler::start`]; executors try the addresses that they were given until one serves them.
//! - **`rowmill cluster up`** starts one process with a [`Scheduler`] and one `rowmill-executor` process for each executor.

pub mod cluster_state;
mod error;
mod job;
mod options;
mod placement;
mod serve;
mod watch;

pub use error::Error;
pub use job::{Job, Partition};
pub use options::Options;
pub use serve::{ExecutorInfo, Placement, Scheduler, session_config};
