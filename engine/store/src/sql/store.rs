//! The store over any backend: each call one transaction, repeated while a broken connection permits it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use async_trait::async_trait;

use crate::effect::{Appended, ChunkEffects, EffectBatch};
use crate::error::{Error, Result};
use crate::model::*;
use crate::sql::{Backend, Tx, effects, events, journal, lease, progress, retention, runs};
use crate::store::RunStore;

/// A run store over a backend.
#[derive(Debug)]
pub(crate) struct SqlStore<B> {
    backend: B,
}

impl<B: Backend> SqlStore<B> {
    pub(crate) fn new(backend: B) -> Self {
        SqlStore { backend }
    }
}

/// Decides how long a call goes on after its connection broke. Repeating is right because every call bears it.
struct Patience {
    until: Instant,
    pause: Duration,
}

impl Patience {
    fn new(patience: Duration) -> Self {
        Patience { until: Instant::now() + patience, pause: Duration::ZERO }
    }

    /// Waits and says true if the call should be repeated.
    async fn again(&mut self, error: &Error) -> bool {
        if !matches!(error, Error::Unavailable { .. }) || Instant::now() + self.pause >= self.until {
            return false;
        }
        // At once the first time: a pooled connection that went stale is replaced by a new one.
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).clamp(Duration::from_millis(20), Duration::from_secs(1));
        true
    }
}

macro_rules! transact {
    ($self:ident, $begin:ident, |$tx:ident| $body:expr) => {{
        let mut patience = Patience::new($self.backend.reconnect_for());
        loop {
            let outcome = async {
                let mut transaction = $self.backend.$begin().await?;
                let $tx = &mut transaction;
                let value = $body.await?;
                transaction.commit().await?;
                Ok(value)
            }
            .await;
            match outcome {
                Err(error) if patience.again(&error).await => {}
                outcome => break outcome,
            }
        }
    }};
}

#[async_trait]
impl<B: Backend> RunStore for SqlStore<B> {
    fn describe(&self) -> &str {
        self.backend.describe()
    }

    async fn submit(&self, new: &NewRun) -> Result<Submitted> {
        transact!(self, begin_write, |tx| runs::submit(tx, new))
    }

    async fn run(&self, scope: &Scope, run: RunId) -> Result<Run> {
        transact!(self, begin_read, |tx| runs::get(tx, scope, run))
    }

    async fn workflow_text(&self, scope: &Scope, run: RunId) -> Result<String> {
        transact!(self, begin_read, |tx| runs::workflow_text(tx, scope, run))
    }

    async fn runs(&self, filter: &RunFilter, page: &PageRequest<RunCursor>) -> Result<Page<Run, RunCursor>> {
        transact!(self, begin_read, |tx| runs::list(tx, filter, page))
    }

    async fn count_runs(&self, filter: &RunFilter) -> Result<BTreeMap<RunStatus, u64>> {
        transact!(self, begin_read, |tx| runs::count(tx, filter))
    }

    async fn claimable(&self, limit: u32) -> Result<Vec<RunId>> {
        transact!(self, begin_read, |tx| runs::claimable(tx, limit))
    }

    async fn request_cancel(
        &self,
        scope: &Scope,
        run: RunId,
        actor: &str,
        reason: Option<&str>,
    ) -> Result<CancelResult> {
        transact!(self, begin_write, |tx| runs::request_cancel(tx, scope, run, actor, reason))
    }

    async fn acquire(&self, run: RunId, owner: &Owner, ttl: Duration, mode: AcquireMode) -> Result<Acquired> {
        transact!(self, begin_write, |tx| lease::acquire(tx, run, owner, ttl, mode))
    }

    async fn renew(&self, fence: &Fence, ttl: Duration) -> Result<Renewed> {
        transact!(self, begin_write, |tx| lease::renew(tx, fence, ttl))
    }

    async fn release(&self, fence: &Fence) -> Result<()> {
        transact!(self, begin_write, |tx| lease::release(tx, fence))
    }

    async fn acquire_named(&self, name: &str, owner: &Owner, ttl: Duration) -> Result<NamedLease> {
        transact!(self, begin_write, |tx| lease::acquire_named(tx, name, owner, ttl))
    }

    async fn renew_named(&self, fence: &NamedFence, ttl: Duration) -> Result<()> {
        transact!(self, begin_write, |tx| lease::renew_named(tx, fence, ttl))
    }

    async fn release_named(&self, fence: &NamedFence) -> Result<()> {
        transact!(self, begin_write, |tx| lease::release_named(tx, fence))
    }

    async fn start(&self, fence: &Fence) -> Result<()> {
        transact!(self, begin_write, |tx| runs::start(tx, fence))
    }

    async fn finish(&self, fence: &Fence, finish: &Finish) -> Result<()> {
        transact!(self, begin_write, |tx| runs::finish(tx, fence, finish))
    }

    async fn put_stages(&self, fence: &Fence, stages: &[NewStage]) -> Result<()> {
        transact!(self, begin_write, |tx| progress::put_stages(tx, fence, stages))
    }

    async fn set_stage_status(
        &self,
        fence: &Fence,
        stage: StageId,
        status: StageStatus,
        error: Option<&str>,
    ) -> Result<()> {
        transact!(self, begin_write, |tx| progress::set_status(tx, fence, stage, status, error))
    }

    async fn stages(&self, run: RunId, version: u32) -> Result<Vec<Stage>> {
        transact!(self, begin_read, |tx| progress::list_stages(tx, run, version))
    }

    async fn put_chunks(&self, fence: &Fence, stage: StageId, chunks: &[ChunkSpec], seal: bool) -> Result<()> {
        transact!(self, begin_write, |tx| progress::put_chunks(tx, fence, stage, chunks, seal))
    }

    async fn drop_unsealed_chunks(&self, fence: &Fence, stage: StageId) -> Result<()> {
        transact!(self, begin_write, |tx| progress::drop_unsealed(tx, fence, stage))
    }

    async fn chunks(&self, run: RunId, stage: StageId, page: &PageRequest<u64>) -> Result<Page<ChunkSpec, u64>> {
        transact!(self, begin_read, |tx| progress::list_chunks(tx, run, stage, page))
    }

    async fn commit_chunks(&self, fence: &Fence, commits: &[ChunkCommit]) -> Result<Vec<CommitResult>> {
        let outcome: Result<_> = transact!(self, begin_write, |tx| journal::commit(tx, fence, commits));
        match outcome {
            Err(Error::Fenced { .. }) => Ok(vec![CommitResult::Fenced; commits.len()]),
            outcome => outcome,
        }
    }

    async fn committed(
        &self,
        run: RunId,
        stage: StageId,
        page: &PageRequest<u64>,
    ) -> Result<Page<CommittedChunk, u64>> {
        transact!(self, begin_read, |tx| journal::list(tx, run, stage, page))
    }

    async fn append_effects(&self, fence: &Fence, batch: &EffectBatch) -> Result<Appended> {
        transact!(self, begin_write, |tx| effects::append(tx, fence, batch))
    }

    async fn effects(&self, run: RunId, chunk: ChunkId) -> Result<ChunkEffects> {
        transact!(self, begin_read, |tx| effects::read(tx, run, chunk))
    }

    async fn append_events(&self, fence: &Fence, events: &[NewEvent]) -> Result<()> {
        transact!(self, begin_write, |tx| events::append(tx, fence, events))
    }

    async fn events(&self, run: RunId, page: &PageRequest<i64>) -> Result<Page<RunEvent, i64>> {
        transact!(self, begin_read, |tx| events::list(tx, run, page))
    }

    async fn publish_version(
        &self,
        fence: &Fence,
        version: u32,
        output: &str,
        counts: &OutcomeCounts,
        payload: &[u8],
    ) -> Result<()> {
        transact!(self, begin_write, |tx| progress::publish(tx, fence, version, output, counts, payload))
    }

    async fn versions(&self, run: RunId) -> Result<Vec<RunVersion>> {
        transact!(self, begin_read, |tx| progress::list_versions(tx, run))
    }

    async fn collectable(&self, class: Retention, age: Duration, limit: u32) -> Result<Vec<RunId>> {
        transact!(self, begin_read, |tx| retention::collectable(tx, class, age, limit))
    }

    async fn begin_collection(&self, run: RunId, class: Retention, age: Duration) -> Result<bool> {
        transact!(self, begin_write, |tx| retention::begin(tx, run, class, age))
    }

    async fn end_collection(&self, run: RunId, class: Retention) -> Result<()> {
        transact!(self, begin_write, |tx| retention::end(tx, run, class))
    }

    async fn check(&self) -> Result<()> {
        self.backend.check().await
    }

    async fn optimize(&self) -> Result<()> {
        self.backend.optimize().await
    }

    async fn close(&self) {
        self.backend.close().await;
    }
}
