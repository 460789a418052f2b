//! Progress of a run: stages, the chunk manifest, the journal, versions of the result, events.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::model::run::named;
use crate::model::{OutcomeCounts, StepCounts};

/// A stage of a run, in one version of its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StageId {
    /// The version of the result, from 1 on.
    pub version: u32,
    /// The stage's number in the plan.
    pub stage: u32,
}

impl StageId {
    /// A chunk of this stage.
    pub fn chunk(self, chunk: u64) -> ChunkId {
        ChunkId { version: self.version, stage: self.stage, chunk }
    }
}

/// A chunk of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ChunkId {
    /// The version of the result, from 1 on.
    pub version: u32,
    /// The stage's number in the plan.
    pub stage: u32,
    /// The chunk's position in the stage's input, from 0 on.
    pub chunk: u64,
}

impl ChunkId {
    /// The stage it belongs to.
    pub fn stage_id(self) -> StageId {
        StageId { version: self.version, stage: self.stage }
    }
}

/// A stage to be registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewStage {
    /// Its identity.
    pub id: StageId,
    /// Its name, for people.
    pub name: String,
    /// Its resource class.
    pub class: String,
    /// The fingerprint of its plan, compared on resume.
    pub fingerprint: String,
    /// Opaque to the store.
    pub payload: Vec<u8>,
}

/// Where a stage stands. It only moves forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StageStatus {
    /// Registered.
    Pending,
    /// Tasks of it have been started.
    Running,
    /// Every chunk is committed.
    Done,
    /// Given up.
    Failed,
}

named!(StageStatus, "stage status", {
    Pending => "pending",
    Running => "running",
    Done => "done",
    Failed => "failed",
});

/// A stage as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// Its identity.
    pub id: StageId,
    /// Its name.
    pub name: String,
    /// Its resource class.
    pub class: String,
    /// The fingerprint of its plan.
    pub fingerprint: String,
    /// Opaque to the store.
    #[serde(skip)]
    pub payload: Vec<u8>,
    /// Where it stands.
    pub status: StageStatus,
    /// Why it failed.
    pub error: Option<String>,
    /// How many chunks its manifest has, once it is sealed.
    pub chunk_count: Option<u64>,
    /// How many of them are committed.
    pub committed_chunks: u64,
    /// When it began to run, by the store's clock, in milliseconds since 1970.
    pub started_ms: Option<i64>,
    /// When it ended.
    pub ended_ms: Option<i64>,
    /// Sums over its committed chunks, by step.
    pub counts: Vec<StepCounts>,
}

/// One entry of a chunk manifest: a slice of a stage's input, read verbatim on resume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkSpec {
    /// The chunk's position.
    pub chunk: u64,
    /// Where the slice lies.
    pub path: String,
    /// The object's etag, where there is one.
    pub etag: Option<String>,
    /// The object's size.
    pub size_bytes: Option<u64>,
    /// The first row of the slice.
    pub row_start: Option<u64>,
    /// How many rows it has.
    pub row_count: Option<u64>,
    /// The fingerprint of its schema.
    pub schema_fingerprint: String,
    /// How many partitions it is read as.
    pub partitions: u32,
    /// Opaque to the store.
    pub payload: Vec<u8>,
}

/// An attempt's wish to commit its chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkCommit {
    /// The chunk.
    pub chunk: ChunkId,
    /// The attempt, unique among the attempts under one fencing token.
    pub attempt: u32,
    /// Where its output lies, under a name that no other attempt uses.
    pub output: String,
    /// Where its ledger lies, if it has anything but ok items.
    pub ledger: Option<String>,
    /// Rows in the output.
    pub rows_out: u64,
    /// Bytes in the output.
    pub bytes_out: u64,
    /// What became of the items, for each step of the stage.
    pub counts: Vec<StepCounts>,
    /// Opaque to the store.
    pub payload: Vec<u8>,
}

/// A committed chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedChunk {
    /// What was committed.
    pub commit: ChunkCommit,
    /// The token of the owner that committed it.
    pub token: u64,
    /// When, by the store's clock, in milliseconds since 1970.
    pub committed_ms: i64,
}

/// Which attempt committed a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Winner {
    /// Its owner's token.
    pub token: u64,
    /// The attempt.
    pub attempt: u32,
    /// Its output.
    pub output: String,
}

/// What became of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommitResult {
    /// This attempt committed the chunk, now or in an earlier try whose reply was lost.
    Committed,
    /// Another attempt did; this one's output is garbage.
    AlreadyCommitted {
        /// The attempt that did.
        winner: Winner,
    },
    /// The run belongs to another owner now, and nothing was written.
    Fenced,
}

/// An event to be appended to a run's audit trail.
#[derive(Debug, Clone, PartialEq)]
pub struct NewEvent {
    /// Unique, so that an event told twice is stored once.
    pub id: Uuid,
    /// What happened, as a stable name.
    pub kind: String,
    /// Who did it.
    pub actor: String,
    /// More about it. Must not carry secrets.
    pub detail: serde_json::Value,
}

impl NewEvent {
    /// An event with a new identity.
    pub fn new(kind: impl Into<String>, actor: impl Into<String>, detail: serde_json::Value) -> Self {
        NewEvent { id: Uuid::new_v4(), kind: kind.into(), actor: actor.into(), detail }
    }
}

/// An event as stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunEvent {
    /// Grows within a run; the cursor of its listing.
    pub seq: i64,
    /// Its identity; the store's own events have one too.
    pub id: String,
    /// When, by the store's clock, in milliseconds since 1970.
    pub at_ms: i64,
    /// What happened.
    pub kind: String,
    /// Who did it.
    pub actor: String,
    /// More about it.
    pub detail: serde_json::Value,
}

/// A version of a run's result: 1 for the run itself, one more for each retry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunVersion {
    /// Its number, from 1 on.
    pub version: u32,
    /// When work on it began, by the store's clock, in milliseconds since 1970.
    pub opened_ms: i64,
    /// When it was published.
    pub published_ms: Option<i64>,
    /// Where its output lies, once published.
    pub output: Option<String>,
    /// Its outcome counts, once published.
    pub counts: Option<OutcomeCounts>,
    /// Opaque to the store.
    #[serde(skip)]
    pub payload: Vec<u8>,
}
