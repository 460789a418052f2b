//! What holds for a named connection, shared by every step of the process that uses it: requests per second, tokens
//! per minute, calls in flight, a circuit breaker.
//!
//! ```text
//!   admit(cost) ──▶ queue, first come first served ──▶ Core::try_admit, all or nothing:
//!                   (one timer for the whole queue)      pause → breaker → slot → tokens
//!   the call is made right away, holding an Admission
//!   finish(failure?) ──▶ slot freed, breaker fed, whoever may go now is woken
//! ```
//!
//! A call takes its slot and its tokens in one step and only when it can leave at once: who waits holds nothing, and
//! nothing that was taken grows old. Every wait ends: an open breaker lets a call through after its cool-down, and a
//! pause that the other side asked for is cut to [`MAX_PAUSE`].
//!
//! What this crate leaves to others: retries and their waits, and shares of a limit among machines.

mod breaker;
mod bucket;
mod connection;
mod core;
mod registry;
mod settings;

pub use breaker::BreakerState;
pub use connection::{Admission, ConnectionLimits, LimitState};
pub use core::MAX_PAUSE;
pub use registry::LimitRegistry;
pub use settings::{BreakerSettings, LimitError, LimitSettings};
