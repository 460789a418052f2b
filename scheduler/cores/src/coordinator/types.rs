//! What the coordinator is told and what it asks for.

use crate::ids::{AttemptId, ChunkKey, ClassId, ExecutorId, ReservationId, RunId};
use crate::resources::Resources;

/// Bounds and times of the coordinator, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How long an attempt lives without a sign of life.
    pub lease_ms: u64,
    /// The first wait before a failed chunk is tried again; it doubles with each failure.
    pub retry_base_ms: u64,
    /// The longest wait before a retry.
    pub retry_cap_ms: u64,
    /// How long an answer of the journal is waited for before it is asked again.
    pub journal_ms: u64,
    /// How many attempts of one chunk may be lost with their executors before the run fails: a chunk that kills whoever
    /// runs it must not eat the cluster.
    pub max_lost: u32,
    /// How many chunks of one stage may be asked for or run at a time, whatever the plan says.
    pub max_in_flight_per_stage: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            lease_ms: 10_000,
            retry_base_ms: 500,
            retry_cap_ms: 30_000,
            journal_ms: 5_000,
            max_lost: 16,
            max_in_flight_per_stage: 1024,
        }
    }
}

/// What became of an attempt, as its executor says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskResult {
    /// Its output is complete and waits to be committed.
    Succeeded,
    /// It failed by itself. `retryable` is false when a retry cannot help.
    Failed {
        /// Whether another try may succeed.
        retryable: bool,
    },
    /// The executor did not run it, or hands it back: full, draining, or going away.
    HandedBack,
}

/// Why a run failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// A chunk failed as often as it may, or in a way that no retry helps.
    Chunk(ChunkKey),
    /// A chunk's executors were lost as often as they may.
    Lost(ChunkKey),
    /// Admission refused a chunk: the reason is with the refusal.
    Refused(ChunkKey),
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunEnd {
    /// Every chunk is committed.
    Succeeded,
    /// It failed.
    Failed(Failure),
    /// Somebody cancelled it.
    Cancelled,
}

/// What the driver has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Ask admission for a place.
    Request {
        /// For this chunk.
        key: ChunkKey,
        /// On an executor of this class.
        class: ClassId,
        /// With room for this.
        needs: Resources,
    },
    /// Take a request back.
    Withdraw(ChunkKey),
    /// Send an attempt to an executor. It must report within the lease.
    Launch {
        /// The attempt's name.
        attempt: AttemptId,
        /// Where.
        executor: ExecutorId,
    },
    /// Tell an executor to stop an attempt; it may be out of reach.
    Cancel {
        /// The attempt's name.
        attempt: AttemptId,
        /// Where it was sent.
        executor: ExecutorId,
    },
    /// An attempt lives: prolong its reservation.
    Renew(ReservationId),
    /// An attempt is over: give its reservation back.
    Release(ReservationId),
    /// Ask the journal to commit an attempt's output.
    Commit(AttemptId),
    /// Write a run's end into the journal.
    End {
        /// The run.
        run: RunId,
        /// How it ended.
        end: RunEnd,
    },
    /// Another scheduler owns the runs: stop.
    StepDown,
}
