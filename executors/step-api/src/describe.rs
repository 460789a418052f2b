//! What a step says about itself before anything runs.

use std::sync::Arc;

use crate::{Effects, Fingerprint};

/// Whether the rows of the answer are the rows of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cardinality {
    /// One row for every item that is ok, in the order of the input.
    OneToOne,
    /// Any number of rows for an item; the reply names the item of each row.
    FanOut,
}

/// How large a group of items should be, and how many groups are worked on at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchTarget {
    /// Items of a group at most; at least 1.
    pub rows: usize,
    /// Bytes of a group's columns at most, as Arrow counts them; a single item may be larger.
    pub bytes: usize,
    /// Groups at once, which is also how many sessions are open; at least 1.
    pub in_flight: usize,
}

/// What a step says about itself. The engine plans, explains and caches by it and never asks which kind it is.
#[derive(Debug, Clone)]
pub struct StepDescription {
    /// The kind's name, for `explain`, spans and metrics only.
    pub kind: &'static str,
    /// One line of what it does, for `explain`; holds no secret.
    pub summary: String,
    /// The columns it reads, in the order in which [`crate::ItemBatch::columns`] holds them.
    pub reads: Vec<String>,
    /// What running it again means.
    pub effects: Effects,
    /// One row for each item, or any number.
    pub cardinality: Cardinality,
    /// The size of groups, and how many at once.
    pub target: BatchTarget,
    /// Names of the connections that it uses; limits, budgets and breakers hang on these.
    pub connections: Vec<Arc<str>>,
    /// What it does, for caches and for resuming.
    pub fingerprint: Fingerprint,
}
