//! Admission: which job is handed to Ballista, and whose partitions get the next free slots.
//!
//! ```text
//!   client ─▶ taker.rs ─▶ Desk::enter ─ queue ─▶ Place ─▶ Ballista            desk.rs: jobs
//!                                                  │ graphs with pending partitions
//!   Ballista's pass ─▶ cluster_state.rs ─▶ Desk::place ─▶ grants ─▶ tasks     places.rs: partitions
//! ```
//! What is decided stands in `rowmill_cores::admission`; here are names instead of numbers, a clock, and those who wait.
//! A job is a run of the core, a pending partition of a running stage a chunk. At most twice as many jobs as there are
//! slots of a class are handed to Ballista; the others wait here.
//!
//! A place is held by what holds the client's stream, and goes with it. What partitions hold is compared with the
//! execution graphs in each pass: what no graph names is free.

mod desk;
mod options;
mod places;

pub(crate) use desk::{Admitted, Ask, Desk, Place, QueueView, Refused, TenantView};
pub(crate) use options::DEFAULT_QUEUE;
pub use options::{AdmissionOptions, QueueOptions, QuotaOptions};
pub(crate) use places::{Executor, Grants, RunningTask, Stage};
