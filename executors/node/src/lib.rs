//! An executor: the process that joins a cluster and runs tasks of the classes that it serves.
//!
//! ```text
//!   scheduler ──LaunchMultiTask──▶ server.rs ──▶ tasks.rs: a runtime of its own, one thread for each slot
//!       ▲                                          │ shuffle files under work_dir
//!       │ task status, again until taken           ▼
//!       └────────────────────────────── report ◀───┘        other executors ◀── Flight ── work_dir
//!       ▲ heartbeat and signs of life: member.rs; terms.rs refuses a scheduler that was replaced
//!
//!   client ──groups of items──▶ calls/: attempts of steps that are not SQL, kept warm between runs
//! ```
//! Ballista's own executor drops a task's status when reporting fails, stops when it has missed heartbeats, keeps "is
//! terminating" in a static of the process, and serves without asking who calls. This one reports until the scheduler has
//! taken it, joins again, drains, and demands the token and the build of every caller.
//!
//! One process is one executor. It keeps object-store clients and file metadata warm between tasks, in one runtime
//! environment; connections to other executors are made for each fetch.

mod calls;
mod disk;
mod error;
mod member;
mod options;
mod process;
mod results;
mod server;
mod tasks;
mod terms;
mod work_dir;

pub use calls::{BuildsSteps, BuiltStep};
pub use error::Error;
pub use options::{Describe, Options};
pub use process::run;
