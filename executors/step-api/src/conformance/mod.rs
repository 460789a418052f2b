//! The suite that every step kind passes. A step kind writes a [`Fixture`]: it builds the executor, makes input whose
//! rows have numbers, says what is expected, counts what reached the other side, and injects faults there.
//! [`check_all`] then runs every case; each case that injects a fault asserts that the fault happened.
//!
//! The suite drives sessions through [`drive`], a small stand-in for the engine's operator.

// The suite is test code that other crates call, so it asserts and expects.
#![expect(clippy::expect_used, reason = "a failed expectation here is a failed test")]

mod cases;
mod driver;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use arrow::array::RecordBatch;
use async_trait::async_trait;

pub use cases::check_all;
pub use driver::{Driven, Options, drive};

use crate::{StepContext, StepExecutor};

/// What goes wrong on the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing, which also ends the fault before.
    None,
    /// The item of this row fails, every time, with a failure that is not retryable.
    Poison(u64),
    /// The next so many calls fail with a failure that is retryable and safe to repeat.
    Transient(u64),
    /// Calls hang until the fault ends.
    Stall,
    /// The other side dies while it works on the item of this row, every time.
    Crash(u64),
}

/// What the suite needs to know about a step kind.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// A context in which the executor finds its connections.
    fn context(&self) -> StepContext;

    /// The executor under test.
    async fn executor(&self) -> Arc<dyn StepExecutor>;

    /// Input rows by number: only the columns that the step reads, the number recoverable by the other side.
    fn input(&self, rows: Range<u64>) -> RecordBatch;

    /// The same with a NULL wherever the step allows one; `None` if it allows none.
    fn input_with_nulls(&self, rows: Range<u64>) -> Option<RecordBatch>;

    /// The rows that the step adds for this input when nothing fails.
    fn expected(&self, input: &RecordBatch) -> RecordBatch;

    /// How many items reached the other side since the fixture was made.
    fn items_seen(&self) -> u64;

    /// Makes the other side faulty; false if this kind knows no such fault.
    fn inject(&self, fault: Fault) -> bool;

    /// How often a fault has happened since the fixture was made.
    fn fired(&self) -> u64;
}
