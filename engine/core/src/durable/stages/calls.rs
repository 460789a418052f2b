//! Stages of calls: every chunk through the step operator, each committed for itself. Which of them run side by side is
//! said in [`super::chain`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::RecordBatch;
use datafusion::common::DataFusionError;
use futures::StreamExt as _;
use rowmill_items::{BoxError, ChunkLog, Ledger, Scope, StepOperator, StepStopped, Tally, TallySnapshot};
use rowmill_spec::{Diagnostic, Fault};
use rowmill_step::MaxErrors;
use rowmill_store::{ChunkCommit, ChunkSpec, CommitResult, CommittedChunk, StageId, StageStatus, StepCounts};
use serde::Serialize;

use super::chain::Feed;
use super::journal::store_counts;
use super::{Attempt, Stop, Work};
use crate::calls::Call;
use crate::calls::exec::datafusion_error;
use crate::durable::chunks::{ChunkWriter, LateFiles, read_chunk};
use crate::durable::reuse::Known;
use crate::places::{MadeBy, of_calls};

/// A stage of calls, planned.
pub(super) struct CallStage {
    pub(super) stage: StageId,
    pub(super) call: Arc<Call>,
    /// The class of its calls.
    pub(super) class: String,
    pub(super) operator: Arc<StepOperator>,
    pub(super) input: CallInput,
    /// Its files, once all of its chunks are committed.
    pub(super) files: LateFiles,
}

/// Where a stage of calls has its chunks from.
pub(super) enum CallInput {
    /// They are all there; whether they are other ones than in the version before.
    Whole(Vec<CommittedChunk>, bool),
    /// Each is made when a chunk of another stage is there.
    Fed(Feed),
}

/// A stage of calls at work.
pub(super) struct OpenCalls {
    known: Arc<Known>,
    /// Chunks that an earlier attempt committed.
    pub(super) done: BTreeMap<u64, ChunkCommit>,
    /// Whether its rows are other ones than in the version before.
    pub(super) changed: bool,
}

/// What is kept of a chunk of calls beside its output.
#[derive(Serialize)]
struct ChunkRecord {
    #[serde(flatten)]
    counts: TallySnapshot,
    #[serde(flatten)]
    made: MadeBy,
}

/// The manifest's entry for a chunk that another stage made.
pub(super) fn spec_of(commit: &ChunkCommit) -> ChunkSpec {
    ChunkSpec {
        chunk: commit.chunk.chunk,
        path: commit.output.clone(),
        etag: None,
        size_bytes: Some(commit.bytes_out),
        row_start: None,
        row_count: Some(commit.rows_out),
        schema_fingerprint: String::new(),
        partitions: 1,
        payload: Vec::new(),
    }
}

impl Work<'_> {
    /// Begins a stage of calls, or goes on with it.
    pub(super) async fn open_calls(&self, attempt: &Attempt<'_>, own: &CallStage) -> Result<OpenCalls, Stop> {
        let CallStage { stage, call, .. } = own;
        let (known, changed) = match &own.input {
            CallInput::Whole(chunks, changed) => {
                if !self.is_sealed(*stage).await? {
                    let specs: Vec<ChunkSpec> = chunks.iter().map(|chunk| spec_of(&chunk.commit)).collect();
                    patiently!(self.durable.store.put_chunks(&self.fence, *stage, &specs, true))?;
                }
                self.known(*stage, call, &attempt.scope.host.redactor, *changed).await?
            }
            CallInput::Fed(_) => (Known::Nothing, false),
        };
        let done: BTreeMap<u64, ChunkCommit> =
            self.committed(*stage).await?.into_iter().map(|chunk| (chunk.commit.chunk.chunk, chunk.commit)).collect();
        let all_done = match &own.input {
            // A stage that an earlier attempt brought to its end stays done.
            CallInput::Whole(chunks, _) => done.len() == chunks.len(),
            CallInput::Fed(_) => false,
        };
        if !all_done {
            self.status(*stage, StageStatus::Running).await?;
        }
        let meter = self.compiled.meters.get(call.step.as_ref());
        for commit in done.values() {
            if let Ok(counts) = serde_json::from_slice(&commit.payload) {
                call.tally.merge(&counts);
            }
            if let Some(meter) = meter {
                meter.add(commit.rows_out, commit.bytes_out);
            }
        }
        Ok(OpenCalls { known: Arc::new(known), done, changed })
    }

    /// Ends a stage of calls all of whose chunks were made, of which `held` are not committed yet and `all` were to be.
    pub(super) async fn close_calls(
        &self,
        own: &CallStage,
        held: &[ChunkCommit],
        all: usize,
    ) -> Result<Vec<CommittedChunk>, Stop> {
        let CallStage { stage, call, operator, .. } = own;
        operator.close().await;
        operator.check_end().map_err(Stop::Stopped)?;
        self.commit(held).await?;
        let chunks = self.committed(*stage).await?;
        if chunks.len() != all {
            let message = format!("step `{}`: {} of {all} chunks are committed", call.step, chunks.len());
            return Err(Stop::Report(Box::new(Diagnostic::error("RM0900", message).fault(Fault::Internal))));
        }
        Ok(chunks)
    }

    /// One chunk: its commit, and whether that is still to be made.
    pub(super) async fn chunk(
        &self,
        attempt: &Attempt<'_>,
        own: &CallStage,
        open: &OpenCalls,
        input: &ChunkCommit,
    ) -> Result<(ChunkCommit, bool), Stop> {
        let CallStage { stage, call, class, operator, .. } = own;
        let began = Instant::now();
        let number = input.chunk.chunk;
        let id = stage.chunk(number);
        let log = patiently!(ChunkLog::open(&attempt.effects, id, self.unknown))?;
        let path = self.path(&input.output);
        let known = Arc::clone(&open.known);
        let read =
            tokio::task::spawn_blocking(move || Ok::<_, DataFusionError>((read_chunk(&path)?, known.earlier(number)?)));
        let (batches, earlier) = read.await.map_err(|error| DataFusionError::ExecutionJoin(Box::new(error)))??;
        let schema = batches.first().map(RecordBatch::schema);
        let folder = self.stage_folder(*stage, &call.step);
        let output = folder.join(format!("{number:06}-{}.arrow", self.fence.token));
        let ledger_path = folder.join(format!("{number:06}-{}.ledger.arrow", self.fence.token));
        let item = schema.unwrap_or_else(|| Arc::clone(&call.input));
        let ledger = Arc::new(Ledger::new(&item, ledger_path));
        let tally = Arc::new(Tally::part_of(&call.tally));
        let scope = Scope {
            place: u32::try_from(number).unwrap_or(u32::MAX),
            ledger: Arc::clone(&ledger),
            tally: Arc::clone(&tally),
            log: Some(log),
            earlier,
        };
        let batches = futures::stream::iter(batches.into_iter().map(Ok::<_, BoxError>)).boxed();
        let mut rows = operator.run(scope, batches);
        let disk = |error: arrow::error::ArrowError| Stop::Error(error.into());
        let mut writer = ChunkWriter::create(&output, operator.schema()).map_err(disk)?;
        let meter = self.compiled.meters.get(call.step.as_ref());
        while let Some(batch) = rows.next().await {
            let batch = batch.map_err(|error| match error.downcast::<StepStopped>() {
                Ok(stopped) => Stop::Stopped(*stopped),
                Err(other) => Stop::Error(datafusion_error(other)),
            })?;
            if let Some(meter) = meter {
                meter.count(&batch);
            }
            writer.write(&batch).map_err(disk)?;
        }
        if attempt.cancel.is_cancelled() {
            return Err(Stop::Cancelled);
        }
        // The order that makes a commit true: files on disk, then their names, then the journal.
        let file = writer.finish_aside().await?;
        let ledger_of_task = Arc::clone(&ledger);
        let kept = tokio::task::spawn_blocking(move || ledger_of_task.finish()).await;
        let kept = kept.map_err(|error| DataFusionError::ExecutionJoin(Box::new(error)))?;
        let kept = kept.map_err(|error| self.cannot_write(&error.path, &error.message))?;
        if !ledger.samples().is_empty() {
            let mut samples = attempt.samples.lock();
            let known = samples.entry(call.step.to_string()).or_default();
            let room = 10usize.saturating_sub(known.len());
            known.extend(ledger.samples().into_iter().take(room));
        }
        let spec = self.spec(number, &file);
        let counts = tally.snapshot();
        let record = ChunkRecord { counts, made: MadeBy { made: of_calls(class, &tally, began.elapsed()) } };
        let commit = ChunkCommit {
            chunk: id,
            attempt: self.attempt_number(),
            output: spec.path,
            ledger: kept.map(|path| self.relative(&path)),
            rows_out: file.rows,
            bytes_out: file.bytes,
            counts: vec![StepCounts { step: call.step.to_string(), counts: store_counts(&counts.outcomes) }],
            payload: serde_json::to_vec(&record).unwrap_or_default(),
        };
        if is_judged_at_the_end(&call.policy.max_errors, &call.tally.snapshot(), counts.errors()) {
            return Ok((commit, true));
        }
        match patiently!(self.durable.store.commit_chunk(&self.fence, &commit))? {
            CommitResult::Committed | CommitResult::AlreadyCommitted { .. } => Ok((commit, false)),
            CommitResult::Fenced => Err(Stop::Lost),
        }
    }
}

/// Whether a chunk's failures may stop the run only when the step has ended: too few items were seen until now to judge a
/// share of them. What is committed stays as it is; such a chunk is to be tried again when the run goes on.
fn is_judged_at_the_end(limit: &Option<MaxErrors>, step: &TallySnapshot, errors: u64) -> bool {
    matches!(limit, Some(MaxErrors::Share { after, .. }) if errors > 0 && step.seen() < *after)
}
