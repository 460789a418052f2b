//! Rowmill's scheduler: Ballista's, embedded, with our placement.
//!
//! ```text
//!   Scheduler::submit(plan) ─▶ admission ─▶ Ballista's event loop ─▶ Cluster::bind_schedulable_tasks (cluster_state.rs)
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
//! Reports of attempts count once (claims.rs, intake.rs), stages read what the attempts that stand have made (inputs.rs),
//! and so do clients (job.rs).
//! Several schedulers of one store elect one that leads (election/); what a term of leadership has in memory ends with it.
//! Clients submit over the same server (taker.rs): [`rowmill_wire::jobs`]; and ask it who serves a class (crews.rs).

mod admission;
mod claims;
pub mod cluster_state;
mod crews;
mod election;
mod error;
mod inputs;
mod intake;
mod job;
mod judge;
mod mend;
mod options;
mod placement;
mod serve;
mod taker;
mod term;
mod unserved;
mod watch;

pub use admission::{AdmissionOptions, QueueOptions, QuotaOptions};
pub use election::{Candidate, Election, StoreAt, StoreError};
pub use error::Error;
pub use job::{Finished, Job};
pub use options::Options;
pub use serve::{ExecutorInfo, Placement, Scheduler, session_config};
