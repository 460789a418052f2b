//! Stages of rows that SQL makes: their chunks, which are committed together, and what is kept of a guarded step's
//! outcomes.

use std::sync::Arc;
use std::time::Instant;

use datafusion::common::runtime::SpawnedTask;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::physical_plan::{ExecutionPlan, execute_stream_partitioned};
use futures::future::try_join_all;
use rowmill_items::TallySnapshot;
use rowmill_spec::{Diagnostic, Fault};
use rowmill_store::{ChunkCommit, ChunkSpec, CommittedChunk, StageId, StageStatus, StepCounts};
use serde::{Deserialize, Serialize};

use super::journal::store_counts;
use super::{Attempt, Stop, Work};
use crate::durable::chunks::{ChunkFile, ChunkWriter, write_chunks};
use crate::elsewhere::Sent;
use crate::places::{MadeBy, Place};
use crate::plan::guarded::Guard;

/// What is kept of a guarded step's outcomes, beside its first chunk.
#[derive(Debug, Serialize, Deserialize)]
struct KeptOutcomes {
    counts: TallySnapshot,
    /// Relative to the run's folder.
    ledger: Option<String>,
}

/// What is kept beside the first chunk of a stage.
#[derive(Serialize)]
struct RowsRecord<'a> {
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    kept: Option<&'a KeptOutcomes>,
    #[serde(flatten)]
    made: MadeBy,
}

impl RowsRecord<'_> {
    fn to_bytes(&self, step: &str) -> Result<Vec<u8>, Stop> {
        serde_json::to_vec(self).map_err(|error| {
            let message = format!("step `{step}`: its counts cannot be kept: {error}");
            Stop::Report(Box::new(Diagnostic::error("RM0900", message).fault(Fault::Internal)))
        })
    }
}

impl Work<'_> {
    /// A stage of rows that SQL of this class makes: all of its chunks are committed together, or it is made again. So it
    /// may be made anywhere, and in any order where it is not made row by row: nobody has seen what was made before.
    pub(super) async fn rows(
        &self,
        attempt: &Attempt<'_>,
        stage: StageId,
        name: &str,
        class: &str,
        sent: Sent,
        guard: Option<&Guard>,
    ) -> Result<Vec<CommittedChunk>, Stop> {
        let mut made_now = false;
        if !self.is_sealed(stage).await? {
            self.status(stage, StageStatus::Running).await?;
            patiently!(self.durable.store.drop_unsealed_chunks(&self.fence, stage))?;
            if !self.committed(stage).await?.is_empty() {
                return Err(self.changed_stage(name));
            }
            let began = Instant::now();
            let files = tokio::select! {
                files = self.make_rows(stage, name, sent.plan, guard.is_some()) => files?,
                () = attempt.cancel.cancelled() => return Err(Stop::Cancelled),
            };
            let mut specs: Vec<ChunkSpec> = (0..).zip(&files).map(|(chunk, file)| self.spec(chunk, file)).collect();
            let mut made = attempt.scope.places.take_all();
            if !sent.whole || made.is_empty() {
                made.insert(0, Place::client(class, specs.len() as u64, 0, began.elapsed()));
            }
            if let Some(first) = specs.first_mut() {
                let kept = guard.map(|guard| self.outcomes(attempt, guard)).transpose()?;
                first.payload = RowsRecord { kept: kept.as_ref(), made: MadeBy { made } }.to_bytes(name)?;
            }
            made_now = true;
            patiently!(self.durable.store.put_chunks(&self.fence, stage, &specs, true))?;
        }
        let specs = self.manifest(stage).await?;
        let kept: Option<KeptOutcomes> =
            guard.and(specs.first()).and_then(|first| serde_json::from_slice(&first.payload).ok());
        if let (Some(guard), Some(kept), false) = (guard, &kept, made_now) {
            guard.tally.merge(&kept.counts);
            if let Some(meter) = self.compiled.meters.get(name) {
                let sum = |of: fn(&ChunkSpec) -> Option<u64>| specs.iter().filter_map(of).sum();
                meter.add(sum(|spec| spec.row_count), sum(|spec| spec.size_bytes));
            }
        }
        let committed = self.committed(stage).await?;
        if committed.len() == specs.len() {
            self.status(stage, StageStatus::Done).await?;
            return Ok(committed);
        }
        // Sealed and not committed: its files were on disk before the seal.
        let commits: Vec<ChunkCommit> = specs
            .iter()
            .map(|spec| {
                // All outcomes of the stage are in its first chunk's commit.
                let kept = kept.as_ref().filter(|_| spec.chunk == 0);
                let counts =
                    kept.map(|kept| StepCounts { step: name.to_owned(), counts: store_counts(&kept.counts.outcomes) });
                ChunkCommit {
                    chunk: stage.chunk(spec.chunk),
                    attempt: self.attempt_number(),
                    output: spec.path.clone(),
                    ledger: kept.and_then(|kept| kept.ledger.clone()),
                    rows_out: spec.row_count.unwrap_or(0),
                    bytes_out: spec.size_bytes.unwrap_or(0),
                    counts: counts.into_iter().collect(),
                    payload: spec.payload.clone(),
                }
            })
            .collect();
        self.commit(&commits).await?;
        self.status(stage, StageStatus::Done).await?;
        self.committed(stage).await
    }

    /// The files of a stage of rows; where `some`, there is one even if there are no rows.
    async fn make_rows(
        &self,
        stage: StageId,
        name: &str,
        plan: Arc<dyn ExecutionPlan>,
        some: bool,
    ) -> Result<Vec<ChunkFile>> {
        let context = Arc::new(TaskContext::from(&self.compiled.state));
        let folder = self.stage_folder(stage, name);
        let schema = plan.schema();
        let empty = folder.join(format!("empty-{}.arrow", self.fence.token));
        let (token, chunk_rows) = (self.fence.token, self.durable.chunk_rows.max(1));
        let write = |(at, rows)| {
            let folder = folder.clone();
            let name = move |chunk| folder.join(format!("{at:04}-{chunk:06}-{token}.arrow"));
            let task = SpawnedTask::spawn(write_chunks(rows, chunk_rows, name));
            async move { task.join().await.map_err(|error| DataFusionError::ExecutionJoin(Box::new(error)))? }
        };
        let partitions: Vec<_> = {
            let _compute = self.engine.enter_compute();
            execute_stream_partitioned(plan, context)?.into_iter().enumerate().map(write).collect()
        };
        let mut files: Vec<ChunkFile> = try_join_all(partitions).await?.into_iter().flatten().collect();
        if some && files.is_empty() {
            files.push(tokio::task::block_in_place(|| ChunkWriter::create(&empty, &schema)?.finish())?);
        }
        Ok(files)
    }

    /// Ends a guarded step that has made all of its rows: what is kept of its outcomes, with its ledger on disk.
    fn outcomes(&self, attempt: &Attempt<'_>, guard: &Guard) -> Result<KeptOutcomes, Stop> {
        guard.check_end().map_err(Stop::Stopped)?;
        let mut ledger = None;
        if let Some(own) = guard.ledger() {
            let path = tokio::task::block_in_place(|| own.finish());
            let path = path.map_err(|error| self.cannot_write(&error.path, &error.message))?;
            ledger = path.map(|path| self.relative(&path));
            attempt.samples.lock().insert(guard.step.to_string(), own.samples());
        }
        Ok(KeptOutcomes { counts: guard.tally.snapshot(), ledger })
    }

    /// A stage of which only the outcomes are kept: one chunk without a file.
    pub(super) async fn commit_outcomes(
        &self,
        attempt: &Attempt<'_>,
        stage: StageId,
        guard: &Guard,
    ) -> Result<(), Stop> {
        let kept = self.outcomes(attempt, guard)?;
        // An attempt that died between here and the end has said the same.
        if self.is_sealed(stage).await? && !self.committed(stage).await?.is_empty() {
            return self.status(stage, StageStatus::Done).await;
        }
        let payload = RowsRecord { kept: Some(&kept), made: MadeBy::default() }.to_bytes(&guard.step)?;
        let counts = StepCounts { step: guard.step.to_string(), counts: store_counts(&kept.counts.outcomes) };
        if !self.is_sealed(stage).await? {
            self.status(stage, StageStatus::Running).await?;
            patiently!(self.durable.store.drop_unsealed_chunks(&self.fence, stage))?;
            let spec = ChunkSpec {
                chunk: 0,
                path: "-".to_owned(),
                etag: None,
                size_bytes: None,
                row_start: None,
                row_count: None,
                schema_fingerprint: String::new(),
                partitions: 1,
                payload: Vec::new(),
            };
            patiently!(self.durable.store.put_chunks(&self.fence, stage, std::slice::from_ref(&spec), true))?;
        }
        let meter = self.compiled.meters.get(guard.step.as_ref());
        let commit = ChunkCommit {
            chunk: stage.chunk(0),
            attempt: self.attempt_number(),
            output: "-".to_owned(),
            ledger: kept.ledger,
            rows_out: meter.map_or(0, |meter| meter.rows()),
            bytes_out: meter.map_or(0, |meter| meter.bytes()),
            counts: vec![counts],
            payload,
        };
        self.commit(std::slice::from_ref(&commit)).await?;
        self.status(stage, StageStatus::Done).await
    }
}
