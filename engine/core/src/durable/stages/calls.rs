//! Stages of calls: every chunk through the step operator, each committed for itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::common::DataFusionError;
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use rowmill_items::{BoxError, ChunkLog, Ledger, Scope, StepOperator, StepStopped, Tally, TallySnapshot};
use rowmill_spec::{Diagnostic, Fault};
use rowmill_step::MaxErrors;
use rowmill_store::{ChunkCommit, ChunkSpec, CommitResult, CommittedChunk, StageId, StageStatus, StepCounts};

use super::journal::store_counts;
use super::{Attempt, Stop, Work};
use crate::calls::Call;
use crate::calls::exec::datafusion_error;
use crate::durable::chunks::{ChunkWriter, read_chunk};
use crate::durable::reuse::Known;

impl Work<'_> {
    /// A stage of calls: every chunk through the step operator, each committed for itself. The answer tells also whether
    /// its rows are other ones than in the version before; `changed` says so of its input.
    pub(super) async fn calls(
        &self,
        attempt: &Attempt<'_>,
        stage: StageId,
        call: &Arc<Call>,
        input: Vec<CommittedChunk>,
        schema: &SchemaRef,
        changed: bool,
    ) -> Result<(Vec<CommittedChunk>, SchemaRef, bool), Stop> {
        let wrong = |message: String| Stop::Report(Box::new(Diagnostic::error("RM0705", message)));
        let operator = attempt.scope.operator(call, schema).map_err(wrong)?;
        if !self.is_sealed(stage).await? {
            let specs: Vec<ChunkSpec> = input
                .iter()
                .map(|chunk| ChunkSpec {
                    chunk: chunk.commit.chunk.chunk,
                    path: chunk.commit.output.clone(),
                    etag: None,
                    size_bytes: Some(chunk.commit.bytes_out),
                    row_start: None,
                    row_count: Some(chunk.commit.rows_out),
                    schema_fingerprint: String::new(),
                    partitions: 1,
                    payload: Vec::new(),
                })
                .collect();
            patiently!(self.durable.store.put_chunks(&self.fence, stage, &specs, true))?;
        }
        let (known, changed) = self.known(stage, call, &attempt.scope.host.redactor, changed).await?;
        let known = Arc::new(known);
        let done: BTreeMap<u64, CommittedChunk> =
            self.committed(stage).await?.into_iter().map(|chunk| (chunk.commit.chunk.chunk, chunk)).collect();
        if done.len() < input.len() {
            // A stage that an earlier attempt brought to its end stays done.
            self.status(stage, StageStatus::Running).await?;
        }
        let meter = self.compiled.meters.get(call.step.as_ref());
        for chunk in done.values() {
            if let Ok(counts) = serde_json::from_slice(&chunk.commit.payload) {
                call.tally.merge(&counts);
            }
            if let Some(meter) = meter {
                meter.add(chunk.commit.rows_out, chunk.commit.bytes_out);
            }
        }
        let open: Vec<BoxFuture<'_, Result<Option<ChunkCommit>, Stop>>> = input
            .iter()
            .filter(|chunk| !done.contains_key(&chunk.commit.chunk.chunk))
            .map(|chunk| self.chunk(attempt, stage, call, &operator, chunk, &known).boxed())
            .collect();
        let work = futures::stream::iter(open).buffer_unordered(self.durable.chunks_in_flight.max(1));
        let outcome = work.try_filter_map(|held| std::future::ready(Ok(held))).try_collect::<Vec<ChunkCommit>>().await;
        if outcome.is_err() {
            operator.cancel();
        }
        operator.close().await;
        let held = outcome?;
        operator.check_end().map_err(Stop::Stopped)?;
        self.commit(&held).await?;
        self.status(stage, StageStatus::Done).await?;
        let chunks = self.committed(stage).await?;
        if chunks.len() != input.len() {
            let message = format!("step `{}`: {} of {} chunks are committed", call.step, chunks.len(), input.len());
            return Err(Stop::Report(Box::new(Diagnostic::error("RM0900", message).fault(Fault::Internal))));
        }
        Ok((chunks, Arc::clone(operator.schema()), changed))
    }

    /// One chunk. A commit that is not made yet is handed back.
    async fn chunk(
        &self,
        attempt: &Attempt<'_>,
        stage: StageId,
        call: &Arc<Call>,
        operator: &Arc<StepOperator>,
        input: &CommittedChunk,
        known: &Arc<Known>,
    ) -> Result<Option<ChunkCommit>, Stop> {
        let number = input.commit.chunk.chunk;
        let id = stage.chunk(number);
        let log = patiently!(ChunkLog::open(&attempt.effects, id, self.unknown))?;
        let path = self.path(&input.commit.output);
        let known = Arc::clone(known);
        let read =
            tokio::task::spawn_blocking(move || Ok::<_, DataFusionError>((read_chunk(&path)?, known.earlier(number)?)));
        let (batches, earlier) = read.await.map_err(|error| DataFusionError::ExecutionJoin(Box::new(error)))??;
        let schema = batches.first().map(RecordBatch::schema);
        let folder = self.stage_folder(stage, &call.step);
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
        let commit = ChunkCommit {
            chunk: id,
            attempt: self.attempt_number(),
            output: spec.path,
            ledger: kept.map(|path| self.relative(&path)),
            rows_out: file.rows,
            bytes_out: file.bytes,
            counts: vec![StepCounts { step: call.step.to_string(), counts: store_counts(&counts.outcomes) }],
            payload: serde_json::to_vec(&counts).unwrap_or_default(),
        };
        if is_judged_at_the_end(&call.policy.max_errors, &call.tally.snapshot(), counts.errors()) {
            return Ok(Some(commit));
        }
        match patiently!(self.durable.store.commit_chunk(&self.fence, &commit))? {
            CommitResult::Committed | CommitResult::AlreadyCommitted { .. } => Ok(None),
            CommitResult::Fenced => Err(Stop::Lost),
        }
    }
}

/// Whether a chunk's failures may stop the run only when the step has ended: too few items were seen until now to judge a
/// share of them. What is committed stays as it is; such a chunk is to be tried again when the run goes on.
fn is_judged_at_the_end(limit: &Option<MaxErrors>, step: &TallySnapshot, errors: u64) -> bool {
    matches!(limit, Some(MaxErrors::Share { after, .. }) if errors > 0 && step.seen() < *after)
}
