//! What holds for the items of one step.

use std::time::Duration;

use arrow::array::RecordBatch;
use rowmill_step::{BatchTarget, Effects, MaxErrors, OnError, RetryPolicy, StepDescription};

/// In which order a step hands its rows on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// In the order in which they came.
    Input,
    /// As they get ready. Within a unit of the input the order is kept.
    Any,
}

/// What holds for the items of one step.
#[derive(Debug, Clone)]
pub struct StepPolicy {
    /// What running the step again means.
    pub effects: Effects,
    /// What becomes of an item that failed for good. The default is one row of the step's columns.
    pub on_error: OnError<RecordBatch>,
    /// How many may fail before the run stops.
    pub max_errors: Option<MaxErrors>,
    /// When an item is tried again.
    pub retry: RetryPolicy,
    /// Time for one attempt.
    pub timeout: Option<Duration>,
    /// Time for an item, from the start of its first attempt, waits included.
    pub deadline: Option<Duration>,
    /// The size of groups, and how many are in flight.
    pub target: BatchTarget,
    /// In which order rows are handed on.
    pub order: Order,
    /// Bytes of input that one partition holds while items are under way.
    pub reorder_bytes: usize,
    /// How long calls that are made once may take to end after a durable run was told to stop: what is cut off is
    /// `unknown`, and nobody makes it again unasked.
    pub drain: Duration,
}

impl StepPolicy {
    /// Bytes of input that one partition holds, where nothing else is said.
    pub const REORDER_BYTES: usize = 64 << 20;

    /// The time for calls that are made once to end, where nothing else is said.
    pub const DRAIN: Duration = Duration::from_secs(10);

    /// The policy where the workflow says nothing: what the step kind says of itself, the usual retries, and the first
    /// failure stops the run.
    pub fn of(description: &StepDescription) -> Self {
        Self {
            effects: description.effects,
            on_error: OnError::Fail,
            max_errors: None,
            retry: RetryPolicy::default(),
            timeout: None,
            deadline: None,
            target: description.target,
            order: Order::Input,
            reorder_bytes: Self::REORDER_BYTES,
            drain: Self::DRAIN,
        }
    }
}
