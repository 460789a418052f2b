//! Names of the things that the cores decide about. Text (executor names, class names) is mapped to numbers by whoever
//! drives the cores, so that a decision compares integers.

use std::fmt;

/// A run, as the run store names it (a UUIDv7's 128 bits).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(pub u128);

/// An executor process. A process that starts again is another executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExecutorId(pub u64);

/// A resource class: `cpu`, `memory`, `io`, `gpu` or one that the configuration adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassId(pub u16);

/// A queue of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueId(pub u16);

/// A fencing token. It grows with every change of hands; a larger one makes every smaller one void.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Fence(pub u64);

/// A reservation of resources for one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReservationId(pub u64);

/// Who a run belongs to. Quotas exist for organisations and for teams in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tenant {
    /// The organisation.
    pub organisation: u32,
    /// The team, unique within the organisation.
    pub team: u32,
}

/// One chunk of one stage of one run: the durable unit of progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkKey {
    /// The run.
    pub run: RunId,
    /// The stage's position in the run's plan.
    pub stage: u32,
    /// The chunk's position in the stage.
    pub chunk: u32,
}

impl fmt::Display for ChunkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "run {:032x}, stage {}, chunk {}", self.run.0, self.stage, self.chunk)
    }
}

/// One try of a chunk. The fence of the scheduler that launched it is part of the name, so that no two schedulers ever
/// launch attempts of one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId {
    /// What is tried.
    pub key: ChunkKey,
    /// The launching scheduler's fence.
    pub fence: Fence,
    /// Counts the tries under this fence, from 1.
    pub number: u32,
}
