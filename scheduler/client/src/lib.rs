//! Running workflows on a cluster: plugs into the engine where plans may run elsewhere
//! ([`rowmill_engine::elsewhere::Elsewhere`]).
//!
//! ```text
//!   engine: physical plan of a segment
//!      │ place.rs     the largest parts that a cluster runs with the same result become leaves
//!      ▼
//!   exec.rs           such a leaf: submits its part when it is first read, yields the rows of the result
//!      │ submit.rs    submits, follows, submits again where the cluster failed and not the plan
//!      ▼
//!   scheduler         rowmill_wire::jobs; reach.rs finds the one that leads
//! ```
//! What is placed is SQL alone, so it may be run again at will: a job that was lost with its scheduler or whose result
//! went with an executor is submitted anew until [`Options::patience`] has passed without a sign of the cluster.
//!
//! Of steps that are not SQL the attempts are made by executors, group by group (calls/).
//!
//! [`stores`] and [`failure`] are the other end: what an executor process needs to read files as the engine does, and to
//! say what went wrong as the engine does.

mod calls;
mod exec;
pub mod failure;
mod one_row;
mod options;
mod place;
mod reach;
mod result;
mod stays;
pub mod stores;
mod submit;

pub use exec::ClusterExec;
pub use options::{AddressError, Options, parse_address};
pub use reach::{ConnectError, SchedulerState};
pub use rowmill_cores::routing::Strategy as Routing;
pub use submit::Cluster;
