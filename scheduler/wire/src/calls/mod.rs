//! Attempts of steps that are not SQL, made on an executor.
//!
//! One method of an executor, `/rowmill.Calls/Attempts`: a stream of messages each way, one pair for each step of a run
//! and executor. The first message opens the step ([`OpenStep`]): its section of the workflow as text, the texts that its
//! templates name, the columns. Connections travel as names; the executor has their settings and secrets itself.
//!
//! ```text
//!   client                                             executor
//!     Open ───────────────────────────────────────────▶ builds the step, or finds it warm
//!     ◀────────────────────────── Opened {most} / Refused
//!     Groups: heads, and the rows of all in one batch ─▶ attempts
//!     ◀──────── Results: what became of each, and the rows of all in one batch
//!     Cancel {ids} ───────────────────────────────────▶ every group is answered, cancelled ones too
//!     ◀───────────────────────────── Draining: nothing new; the client ends the stream when it has all answers
//!     Beat ◀─────────────────────────────────────────▶ each side at least every [`crate::jobs::BEAT`]
//! ```
//! At most `most` groups are unanswered at a time, so neither side queues without bound, and what was sent may have begun:
//! nothing waits on an executor as long as it has room for it.
//!
//! [`crew`] is the scheduler's answer to who serves a class.

pub mod crew;
mod failures;
mod rows;
mod service;

use std::collections::BTreeMap;

use prost::Message;

pub use failures::{FailureMessage, ItemFailure, OutcomeMessage};
pub use rows::{pack, read_schema, unpack, write_schema};
pub use service::{CallsServer, ExecutorStream, TakesCalls, attempts};

use crate::MESSAGE_BYTES;

/// Bytes of a group's rows, or of its answer, at most: what is left of a message for heads and failures is plenty.
pub const ROWS_BYTES: usize = MESSAGE_BYTES - (8 << 20);

/// A step to open.
#[derive(Clone, PartialEq, Message)]
pub struct OpenStep {
    /// Its name.
    #[prost(string, tag = "1")]
    pub step: String,
    /// A workflow that holds the step alone, as YAML.
    #[prost(string, tag = "2")]
    pub text: String,
    /// What its templates name, as text: `params.day`.
    #[prost(btree_map = "string, string", tag = "3")]
    pub values: BTreeMap<String, String>,
    /// Where its relative paths start.
    #[prost(string, tag = "4")]
    pub base: String,
    /// The class that its calls ask for.
    #[prost(string, tag = "5")]
    pub class: String,
    /// Groups that it may have under way at once, on all executors together.
    #[prost(uint32, tag = "6")]
    pub in_flight: u32,
    /// The run, which items' keys hang on.
    #[prost(string, tag = "7")]
    pub run: String,
    /// On whose behalf it runs.
    #[prost(string, tag = "8")]
    pub tenant: String,
    /// The columns that it reads ([`write_schema`]).
    #[prost(bytes = "vec", tag = "9")]
    pub input: Vec<u8>,
    /// The columns that it adds.
    #[prost(bytes = "vec", tag = "10")]
    pub output: Vec<u8>,
}

/// A group of items, its rows apart.
#[derive(Clone, PartialEq, Message)]
pub struct GroupHead {
    /// Its number in the stream, never used twice.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Its rows, which follow those of the group before it.
    #[prost(uint32, tag = "2")]
    pub rows: u32,
    /// Which attempt this is, from 1.
    #[prost(uint32, tag = "3")]
    pub attempt: u32,
    /// What is left of the attempt's time, in microseconds.
    #[prost(uint64, optional, tag = "4")]
    pub time_us: Option<u64>,
    /// Items that follow each other: the ordinal of their file.
    #[prost(uint32, tag = "5")]
    pub file: u32,
    /// And the first row.
    #[prost(uint64, tag = "6")]
    pub first_row: u64,
    /// Items that do not follow each other: file of each.
    #[prost(uint32, repeated, tag = "7")]
    pub item_files: Vec<u32>,
    /// And row of each.
    #[prost(uint64, repeated, tag = "8")]
    pub item_rows: Vec<u64>,
}

/// Groups to attempt.
#[derive(Clone, PartialEq, Message)]
pub struct Groups {
    /// Each group.
    #[prost(message, repeated, tag = "1")]
    pub heads: Vec<GroupHead>,
    /// The rows of all of them ([`pack`]).
    #[prost(bytes = "vec", tag = "2")]
    pub rows: Vec<u8>,
}

/// Groups that nobody waits for any more, or whose run stops.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Cancel {
    /// Their numbers.
    #[prost(uint64, repeated, tag = "1")]
    pub ids: Vec<u64>,
    /// Whether items that are under way go on, and only no further ones are begun.
    #[prost(bool, tag = "2")]
    pub begun_go_on: bool,
}

/// What a client says.
#[derive(Clone, PartialEq, Message)]
pub struct ClientMessage {
    /// What it is.
    #[prost(oneof = "Ask", tags = "1, 2, 3, 4")]
    pub ask: Option<Ask>,
}

/// What a client says.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Ask {
    /// Open a step; first, and once.
    #[prost(message, tag = "1")]
    Open(OpenStep),
    /// Attempt these.
    #[prost(message, tag = "2")]
    Groups(Groups),
    /// Stop these.
    #[prost(message, tag = "3")]
    Cancel(Cancel),
    /// Nothing, but it lives.
    #[prost(bool, tag = "4")]
    Beat(bool),
}

/// The step is open.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Opened {
    /// Groups that may be unanswered at a time.
    #[prost(uint32, tag = "1")]
    pub most: u32,
}

/// The step is not opened.
#[derive(Clone, PartialEq, Message)]
pub struct Refused {
    /// Why.
    #[prost(message, optional, tag = "1")]
    pub failure: Option<FailureMessage>,
    /// Whether the executor is only about to leave.
    #[prost(bool, tag = "2")]
    pub draining: bool,
}

/// What became of groups.
#[derive(Clone, PartialEq, Message)]
pub struct Results {
    /// Each group.
    #[prost(message, repeated, tag = "1")]
    pub outcomes: Vec<OutcomeMessage>,
    /// The rows of all of them ([`pack`]); empty where there are none.
    #[prost(bytes = "vec", tag = "2")]
    pub rows: Vec<u8>,
}

/// What an executor says.
#[derive(Clone, PartialEq, Message)]
pub struct ExecutorMessage {
    /// What it is.
    #[prost(oneof = "Tell", tags = "1, 2, 3, 4, 5")]
    pub tell: Option<Tell>,
}

/// What an executor says.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Tell {
    /// The step is open.
    #[prost(message, tag = "1")]
    Opened(Opened),
    /// It is not, and nothing follows.
    #[prost(message, tag = "2")]
    Refused(Refused),
    /// What became of groups.
    #[prost(message, tag = "3")]
    Results(Results),
    /// It lives; so many groups of the step are under way.
    #[prost(uint32, tag = "4")]
    Beat(u32),
    /// It takes nothing new.
    #[prost(bool, tag = "5")]
    Draining(bool),
}

impl From<Ask> for ClientMessage {
    fn from(ask: Ask) -> Self {
        Self { ask: Some(ask) }
    }
}

impl From<Tell> for ExecutorMessage {
    fn from(tell: Tell) -> Self {
        Self { tell: Some(tell) }
    }
}
