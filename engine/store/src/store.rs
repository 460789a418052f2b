//! The one trait behind which every run store stands.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;

use crate::effect::{Appended, ChunkEffects, EffectBatch};
use crate::error::{Error, Result};
use crate::model::*;

/// A store of runs.
///
/// Three rules hold for every method and every backend, and the shared suite checks them:
///
/// 1. **Each call bears being repeated.** When a call fails with a retryable error it may have been executed; the caller
///    repeats it with the same arguments and gets the answer it would have got.
/// 2. **Each write of an owner is fenced.** Methods that take a [`Fence`] check it inside their transaction and fail with
///    [`Error::Fenced`] (a commit answers [`CommitResult::Fenced`]) once the lease was taken over, released or ended.
///    A lease that has expired but was not taken over still writes.
/// 3. **Time is the store's.** No method takes a point in time; leases and ages are judged by the store's clock.
///
/// Each method is one transaction: it happens whole or not at all.
#[async_trait]
pub trait RunStore: Send + Sync + Debug {
    /// Where the store lies, for messages. Never contains a secret.
    fn describe(&self) -> &str;

    // Runs.

    /// Stores a new run as `Queued`, or finds the one that was submitted before under the same id or submit key.
    /// [`Error::Conflict`] if that one has another workflow or other parameters.
    async fn submit(&self, new: &NewRun) -> Result<Submitted>;

    /// A run. [`Error::NotFound`] also when it is outside the scope.
    async fn run(&self, scope: &Scope, run: RunId) -> Result<Run>;

    /// The text of a run's workflow, verbatim.
    async fn workflow_text(&self, scope: &Scope, run: RunId) -> Result<String>;

    /// Runs from new to old.
    async fn runs(&self, filter: &RunFilter, page: &PageRequest<RunCursor>) -> Result<Page<Run, RunCursor>>;

    /// How many runs there are in each state; states without runs are left out.
    async fn count_runs(&self, filter: &RunFilter) -> Result<BTreeMap<RunStatus, u64>>;

    /// Runs that are queued or running and that nobody holds, from old to new: what a coordinator may take up.
    async fn claimable(&self, limit: u32) -> Result<Vec<RunId>>;

    /// Asks for a run to be cancelled. The first request is kept. If nobody works on the run, it is cancelled at once.
    async fn request_cancel(
        &self,
        scope: &Scope,
        run: RunId,
        actor: &str,
        reason: Option<&str>,
    ) -> Result<CancelResult>;

    // Ownership.

    /// Takes a run, if the mode permits, for `ttl`. The same owner asking again keeps its token.
    async fn acquire(&self, run: RunId, owner: &Owner, ttl: Duration, mode: AcquireMode) -> Result<Acquired>;

    /// Makes a lease last `ttl` from now, by the store's clock.
    async fn renew(&self, fence: &Fence, ttl: Duration) -> Result<Renewed>;

    /// Lets a run go before its lease expires. Not an error if it is held by another already.
    async fn release(&self, fence: &Fence) -> Result<()>;

    /// Like [`RunStore::acquire`] for a name that is no run (a scheduler's leadership).
    async fn acquire_named(&self, name: &str, owner: &Owner, ttl: Duration) -> Result<NamedLease>;

    /// Like [`RunStore::renew`] for a name.
    async fn renew_named(&self, fence: &NamedFence, ttl: Duration) -> Result<()>;

    /// Like [`RunStore::release`] for a name.
    async fn release_named(&self, fence: &NamedFence) -> Result<()>;

    // Progress.

    /// Marks the run as `Running`. The first call sets the time it started.
    async fn start(&self, fence: &Fence) -> Result<()>;

    /// Ends or stops the run and releases its lease.
    async fn finish(&self, fence: &Fence, finish: &Finish) -> Result<()>;

    /// Registers stages. [`Error::Conflict`] if one is there with another plan (its name, class, fingerprint or payload).
    async fn put_stages(&self, fence: &Fence, stages: &[NewStage]) -> Result<()>;

    /// Moves a stage forward. Moving it backward is [`Error::Conflict`].
    async fn set_stage_status(
        &self,
        fence: &Fence,
        stage: StageId,
        status: StageStatus,
        error: Option<&str>,
    ) -> Result<()>;

    /// The stages of one version of a run, with how far they are.
    async fn stages(&self, run: RunId, version: u32) -> Result<Vec<Stage>>;

    /// Adds chunks to a stage's manifest. With `seal`, the manifest is complete: it then must hold the chunks 0 to n-1
    /// without a gap. [`Error::Conflict`] if a chunk is there with other contents, or the manifest is sealed already
    /// and lacks one of these.
    async fn put_chunks(&self, fence: &Fence, stage: StageId, chunks: &[ChunkSpec], seal: bool) -> Result<()>;

    /// Removes the uncommitted chunks of a manifest that was never sealed, so that it can be made again.
    /// [`Error::Conflict`] if it is sealed.
    async fn drop_unsealed_chunks(&self, fence: &Fence, stage: StageId) -> Result<()>;

    /// A stage's manifest in chunk order.
    async fn chunks(&self, run: RunId, stage: StageId, page: &PageRequest<u64>) -> Result<Page<ChunkSpec, u64>>;

    /// Commits chunks, each at most once, and deletes their effect logs, all in one transaction. The answers are in the
    /// order of the commits. [`Error::NotFound`] if a chunk's stage is not registered, or its sealed manifest does not
    /// have the chunk.
    async fn commit_chunks(&self, fence: &Fence, commits: &[ChunkCommit]) -> Result<Vec<CommitResult>>;

    /// Commits one chunk.
    async fn commit_chunk(&self, fence: &Fence, commit: &ChunkCommit) -> Result<CommitResult> {
        let results = self.commit_chunks(fence, std::slice::from_ref(commit)).await?;
        results.into_iter().next().ok_or_else(|| Error::Internal {
            store: self.describe().to_owned(),
            message: "a commit of one chunk gave no answer".to_owned(),
        })
    }

    /// A stage's journal in chunk order.
    async fn committed(&self, run: RunId, stage: StageId, page: &PageRequest<u64>)
    -> Result<Page<CommittedChunk, u64>>;

    // Effects.

    /// Appends records to the effect log; they are on disk when this returns. Records of chunks that are committed
    /// already are not stored, and the answer names those chunks.
    async fn append_effects(&self, fence: &Fence, batch: &EffectBatch) -> Result<Appended>;

    /// The effect log of one chunk, replayed.
    async fn effects(&self, run: RunId, chunk: ChunkId) -> Result<ChunkEffects>;

    // Audit trail and results.

    /// Appends events of the owner. (Submissions, changes of owner, cancel requests and ends are recorded by the store
    /// itself, in the transactions that make them.)
    async fn append_events(&self, fence: &Fence, events: &[NewEvent]) -> Result<()>;

    /// A run's events from old to new.
    async fn events(&self, run: RunId, page: &PageRequest<i64>) -> Result<Page<RunEvent, i64>>;

    /// Publishes a version of the result, once. [`Error::Conflict`] if it was published with another output, or is not
    /// the run's newest version.
    async fn publish_version(
        &self,
        fence: &Fence,
        version: u32,
        output: &str,
        counts: &OutcomeCounts,
        payload: &[u8],
    ) -> Result<()>;

    /// The versions of a run's result from old to new.
    async fn versions(&self, run: RunId) -> Result<Vec<RunVersion>>;

    // Retention.

    /// Ended runs whose data of this class may go: they ended at least `age` ago by the store's clock, nobody holds
    /// them, and the class has not been removed yet. Oldest first. Includes removals that were begun and not finished.
    async fn collectable(&self, class: Retention, age: Duration, limit: u32) -> Result<Vec<RunId>>;

    /// Claims the removal: from here on the run cannot be opened again, so its files may be deleted. Answers false if
    /// the run does not qualify (any more).
    async fn begin_collection(&self, run: RunId, class: Retention, age: Duration) -> Result<bool>;

    /// Removes the store's rows of this class after the files have gone. For [`Retention::Audit`] nothing of the run
    /// remains. Not an error if it was done before; [`Error::Conflict`] if the removal was never begun.
    async fn end_collection(&self, run: RunId, class: Retention) -> Result<()>;

    // Care.

    /// Reads the whole store and looks for damage: [`Error::Corrupted`].
    async fn check(&self) -> Result<()>;

    /// Gives space back and refreshes the database's statistics.
    async fn optimize(&self) -> Result<()>;

    /// Closes the store's connections after the calls under way. Later calls fail.
    async fn close(&self);
}
