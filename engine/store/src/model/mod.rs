//! The data of a run store: plain values, independent of any database.
//!
//! No type here carries a time that a caller chose. Durations go in, times come out.

mod counts;
mod lease;
mod page;
mod progress;
mod run;

pub use counts::{Outcome, OutcomeCounts, StepCounts};
pub use lease::{AcquireMode, Acquired, CancelRequest, Fence, Lease, NamedFence, NamedLease, Owner, Renewed};
pub use page::{MAX_PAGE, Page, PageRequest, RunCursor};
pub use progress::{
    ChunkCommit, ChunkId, ChunkSpec, CommitResult, CommittedChunk, NewEvent, NewStage, RunEvent, RunVersion, Stage,
    StageId, StageStatus, Winner,
};
pub use run::{
    CancelResult, Finish, NewRun, Retention, Run, RunFilter, RunId, RunStatus, Scope, Submitted, UnknownName,
};
