//! Decision cores of the cluster. Each is a state machine: events in, actions out, no input or output, no threads, no
//! clock of its own. Time is a number of milliseconds that the caller passes in ([`clock::Steady`] makes one that never
//! runs backwards), randomness a seed. So ten thousand schedules with lost messages, crashes and jumping clocks are
//! simulated in seconds, and a fault that a seed finds is found again by the same seed.
//!
//! ```text
//!  run ──▶ admission::enqueue ──StartRun──▶ coordinator::submit ──Request──▶ admission::request
//!                                                                              │ quotas, fair shares, routing
//!             executor ◀──Launch── coordinator::placed ◀──Grant────────────────┘
//!                │ alive, finished
//!                ▼
//!           coordinator ──Release──▶ admission      coordinator ──Commit──▶ journal (fenced by election's lease)
//! ```
//! - [`coordinator`]: runs, stages, chunks; attempts under leases; retries; commits; resume.
//! - [`admission`]: queues, quotas, fair shares, reservations, classes that nobody serves.
//! - [`routing`]: which executor of those that fit.
//! - [`election`]: which scheduler leads.
//! - [`journal`]: the rules that a store must keep.

pub mod admission;
pub mod clock;
pub mod coordinator;
pub mod election;
pub mod ids;
pub mod journal;
pub mod resources;
pub mod routing;
mod sabotage;
pub mod seed;
#[cfg(test)]
mod sim;
