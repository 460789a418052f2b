//! What a step kind implements, and what the engine may count on: executors, items and their keys, outcomes,
//! effects, failures, secrets, retry and error policies, and the conformance suite that every step kind passes.
//!
//! ```text
//!   engine's step operator                                   a step kind (http, lookup, command ...)
//!   ─────────────────────                                    ─────────────────────────────────────
//!   re-batch, cache, deduplicate, limit   ── ItemBatch ──▶   one attempt for one group of items
//!   retry, bisect, on_error, ledger       ◀── BatchReply ──  ok rows as columns, failures as a sparse list
//! ```
//!
//! The operator owns everything that has to do with *many* attempts: batching, concurrency, order, retry with
//! backoff, limits, deduplication, cache, bisection, error policy, ledger and effect log. An executor makes **one
//! attempt for one group of items** and says exactly what became of it. This crate never names a step kind.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod connections;
mod context;
mod describe;
mod effects;
mod executor;
mod factory;
mod failure;
mod fingerprint;
mod guard;
mod item;
mod json;
mod outcome;
mod policy;
mod redact;
mod retry;
mod secret;

pub use connections::{ConnectionSettings, Connections, SharedClients, StaticConnections};
pub use context::{NoLimit, Reservation, Reserve, StepContext};
pub use describe::{BatchTarget, Cardinality, StepDescription};
pub use effects::Effects;
pub use executor::{BatchReply, CallCost, ItemBatch, Place, StepExecutor, StepSession, StepShape, Usage, Whereabouts};
pub use factory::{Fill, StepFactory, arrow_type, batch_target, fill_with, refused, wrong_kind};
pub use failure::{Failure, FailureCode, Sent, Verdict};
pub use fingerprint::{Fingerprint, FingerprintBuilder};
pub use guard::{Attempt, attempt, caught};
pub use item::{ItemId, ItemIds, ItemKey, ItemKeys, KeyDeriver};
pub use json::json_fits;
pub use outcome::{Outcome, OutcomeCounts};
pub use policy::{ErrorDecision, MaxErrors, OnError, error_decision};
pub use redact::{MAX_MESSAGE_BYTES, Redactor, neutralise};
pub use retry::{Jitter, RetryPolicy};
pub use secret::{Secret, SecretRef};
