//! The step operator: what stands between a stream of record batches and a step kind that makes one attempt at a time.
//!
//! ```text
//!  batches ─▶ units ─▶ groups ─▶ slots ─▶ attempts ─▶ settled pieces ─▶ units in order ─▶ batches
//!              │        │         │         │ retry, backoff, bisection      │
//!              │        │         │         └ effect log: intents, results    └ outcomes: tally, ledger
//!              │        │         └ a session each, `in_flight` for all partitions of the step
//!              │        └ at most the target's rows and bytes
//!              └ reserved from the memory pool, held until all of its items are settled
//! ```
//!
//! [`StepOperator`] is shared by all partitions of a step; [`StepOperator::run`] drives one partition on a task of its
//! own, so that calls in flight go on while the consumer is slow. An item that waits for its next attempt holds no
//! slot. A unit in which nothing went wrong costs no more than its columns: the input passes through as it is, and the
//! step's columns are put beside it.
//!
//! This crate knows neither plans nor DataFusion, and no step kind.

mod cached;
mod driver;
mod earlier;
mod effects;
mod intake;
mod ledger;
mod operator;
mod outcomes;
mod policy;
mod replay;
mod replies;
mod sessions;
mod settle;
mod size;
mod tally;
mod unit;
mod writer;

#[cfg(test)]
mod tests;

pub use cached::StepCache;
pub use earlier::{Earlier, Fate};
pub use effects::{ChunkLog, Replay};
pub use ledger::{Ledger, LedgerError, LedgerSample, details_of, item_fields, ledger_schema, read_ledger};
pub use operator::{BoxError, ItemStream, OperatorParts, Scope, StepOperator, StepStopped, StopReason, too_many};
pub use policy::{Order, StepPolicy};
pub use tally::{MadeThere, Tally, TallySnapshot};
pub use unit::Loss;
pub use writer::EffectWriter;
