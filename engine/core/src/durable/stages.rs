//! The stages of a durable run, one after the other: chunks in, chunks through a step, sinks at the end.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::common::runtime::SpawnedTask;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::physical_plan::{ExecutionPlan, execute_stream_partitioned};
use futures::future::{BoxFuture, try_join_all};
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use indexmap::IndexMap;
use parking_lot::Mutex;
use rowmill_items::{
    BoxError, ChunkLog, EffectWriter, Ledger, LedgerSample, Scope, StepOperator, StepStopped, Tally, TallySnapshot,
};
use rowmill_spec::{Diagnostic, Fault};
use rowmill_store::{
    ChunkCommit, ChunkSpec, CommitResult, CommittedChunk, Fence, NewStage, PageRequest, RunId, StageId, StageStatus,
    StepCounts,
};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::chunks::{ChunkFile, ChunkScanExec, ChunkWriter, create_folder, read_chunk, write_chunks};
use super::reuse::Known;
use super::{Durable, attempt_id, fingerprint, store_report};
use crate::calls::exec::datafusion_error;
use crate::calls::{Call, RunScope};
use crate::compile::check_types::{Body, EdgeKind};
use crate::compile::cut_segments::Root;
use crate::compile::plan_segments::{keep, optimize_segments};
use crate::compile::{Compiled, Inputs, Planned, PlannedSink};
use crate::local::{self, ItemsReport, Observer, RunReport};
use crate::plan::dead_letters::{DeadLettersExec, Letters};
use crate::plan::edge::Producer;
use crate::plan::guarded::Guard;
use crate::plan::meter::MeterExec;
use crate::runtime::Engine;

/// Why the work ended early.
#[derive(Debug)]
pub(super) enum Stop {
    Report(Box<Diagnostic>),
    Error(DataFusionError),
    Stopped(StepStopped),
    Cancelled,
    /// Another process has the run.
    Lost,
}

impl From<rowmill_store::Error> for Stop {
    fn from(error: rowmill_store::Error) -> Self {
        match error {
            rowmill_store::Error::Fenced { .. } => Stop::Lost,
            error => Stop::Report(Box::new(store_report(&error))),
        }
    }
}

impl From<DataFusionError> for Stop {
    fn from(error: DataFusionError) -> Self {
        Stop::Error(error)
    }
}

impl From<local::Stop> for Stop {
    fn from(stop: local::Stop) -> Self {
        match stop {
            local::Stop::Error(error, _) => Stop::Error(error),
            local::Stop::Report(report) => Stop::Report(report),
            local::Stop::Cancelled => Stop::Cancelled,
        }
    }
}

/// What is kept of a guarded step's outcomes, beside its first chunk.
#[derive(Debug, Serialize, Deserialize)]
struct KeptOutcomes {
    counts: TallySnapshot,
    /// Relative to the run's folder.
    ledger: Option<String>,
}

/// One attempt to bring a run to its end.
pub(super) struct Work<'a> {
    pub(super) engine: &'a Engine,
    pub(super) durable: &'a Durable,
    pub(super) compiled: &'a Compiled,
    pub(super) inputs: &'a Inputs,
    pub(super) run: RunId,
    pub(super) version: u32,
    pub(super) fence: Fence,
    pub(super) began: Instant,
    /// The version of the result before this one.
    pub(super) before: Option<super::retry::Before>,
}

/// What the stages of one attempt share.
struct Attempt<'a> {
    scope: RunScope,
    effects: Arc<EffectWriter>,
    cancel: &'a CancellationToken,
    samples: Mutex<IndexMap<String, Vec<LedgerSample>>>,
}

impl Work<'_> {
    pub(super) async fn run(&self, cancel: &CancellationToken, observer: &dyn Observer) -> Result<RunReport, Stop> {
        let folder = self.durable.folder_of(self.run);
        create_folder(&folder).map_err(|error| self.cannot_write(&folder, &error.to_string()))?;
        let mut staged = local::stage(self.engine, self.compiled, attempt_id()).await?;
        let attempt = Attempt {
            scope: self.engine.scope(&self.run.to_string(), cancel, folder),
            effects: EffectWriter::start(Arc::clone(&self.durable.store), self.fence),
            cancel,
            samples: Mutex::default(),
        };
        observer.started(*self.run.as_uuid(), &self.compiled.meters, &local::tallies(self.compiled));
        let outcome = self.stages(&attempt, &mut staged).await;
        // What was called and answered is kept, however the attempt ended.
        if let Err(failure) = attempt.effects.close().await {
            tracing::warn!("the last results of calls may be lost: {}", failure.message());
        }
        let done = match outcome {
            Ok(done) => done,
            Err(stop) => {
                local::discard(staged).await;
                return Err(if cancel.is_cancelled() { Stop::Cancelled } else { stop });
            }
        };
        // A process that slept past its lease must not publish over the one that took the run. A rename cannot be
        // fenced; this makes sure that the lease lasts for much longer than it takes.
        let ours = match cancel.is_cancelled() {
            true => Err(Stop::Cancelled),
            false => patiently!(self.durable.store.renew(&self.fence, self.durable.lease)).map_err(Stop::from),
        };
        if let Err(stop) = ours {
            local::discard(staged).await;
            return Err(stop);
        }
        let sinks = local::publish(self.compiled, staged, &done.written).await;
        let sinks = sinks.map_err(|report| Stop::Report(Box::new(report)))?;
        let samples = attempt.samples.into_inner();
        let steps = self.compiled.steps.iter();
        let items: Vec<ItemsReport> = steps
            .filter_map(|(name, step)| {
                Some(ItemsReport {
                    step: name.clone(),
                    counts: step.tally()?.snapshot(),
                    samples: samples.get(name).cloned().unwrap_or_default(),
                })
            })
            .collect();
        let mut counts = rowmill_store::OutcomeCounts::default();
        items.iter().for_each(|items| counts.add(store_counts(&items.counts.outcomes)));
        let output: Vec<&str> = sinks.iter().map(|sink| sink.path.as_str()).collect();
        let output = output.join(", ");
        patiently!(self.durable.store.publish_version(&self.fence, self.version, &output, &counts, &[]))?;
        self.sweep(false).await?;
        Ok(RunReport {
            id: *self.run.as_uuid(),
            workflow: self.compiled.workflow.name.value.clone(),
            steps: local::step_reports(self.compiled),
            unneeded: self.compiled.unneeded.clone(),
            sinks,
            collected: IndexMap::new(),
            elapsed: self.began.elapsed(),
            items,
            replanned: false,
            warnings: self.compiled.warnings.clone(),
        })
    }

    async fn stages(
        &self,
        attempt: &Attempt<'_>,
        staged: &mut [crate::sinks::StagedSink],
    ) -> Result<local::Done, Stop> {
        let state = &self.compiled.state;
        let optimized = optimize_segments(self.compiled, self.inputs, staged)?;
        let mut planned = Planned::default();
        let mut next_stage = 0;
        // Steps whose rows are not those of the version before.
        let mut changed: HashSet<String> = HashSet::new();
        let mut ledgers: HashMap<String, Vec<PathBuf>> = HashMap::new();
        // Steps whose outcomes are known when the sinks are sealed.
        let mut late: Vec<(StageId, Arc<Guard>)> = Vec::new();
        for (segment, logical) in self.compiled.cut.segments.iter().zip(optimized.plans) {
            // Not placed by class: planned again, a durable run must give the same rows in the same order.
            let plan = state.query_planner().create_physical_plan(&logical, state).await?;
            let Root::Step(name) = &segment.root else {
                planned.roots.push(PlannedSink { root: segment.root.clone(), logical, plan, notes: Vec::new() });
                continue;
            };
            let Some(step) = self.compiled.steps.get(name) else { continue };
            let other_input = segment.inputs.iter().any(|input| changed.contains(input));
            if other_input {
                changed.insert(name.clone());
            }
            let plan = keep(self.compiled, name, plan, &attempt.scope);
            let producer: Arc<dyn ExecutionPlan> = match (&step.body, &step.edge) {
                // Pure, with one reader: computed where it is read.
                (Body::Query(_), EdgeKind::Streamed(_)) => plan,
                (Body::Query(_), _) => {
                    let print = fingerprint(&format!("{name} {}", logical.display_indent()));
                    let stage = self.stage(&mut next_stage, name, step.class.as_str(), print.clone()).await?;
                    let schema = plan.schema();
                    self.take_rows(stage, name, &print, other_input).await?;
                    let chunks = self.rows(attempt, stage, name, plan, None).await?;
                    self.scan(name, &chunks, schema)
                }
                // Its outcomes are kept with its rows, so it is a stage whoever reads it.
                (Body::Guarded(guard), edge) => {
                    let print = fingerprint(&format!("{name} {}", logical.display_indent()));
                    let stage = self.stage(&mut next_stage, name, step.class.as_str(), print.clone()).await?;
                    let ledger = self.stage_folder(stage, name).join(format!("{}.ledger.arrow", self.fence.token));
                    guard.begin(ledger, &attempt.scope.host.redactor)?;
                    if matches!(edge, EdgeKind::Streamed(_))
                        && self.compiled.sinks.iter().any(|sink| sink.from == *name)
                    {
                        // Its one reader is a sink, which is written anew by each attempt: its rows are not kept in
                        // chunks as well, and its outcomes are written down when the sink is sealed.
                        late.push((stage, Arc::clone(guard)));
                        if let Some(table) = step.edge.table() {
                            table.connect(Producer::Plan(plan))?;
                        }
                        continue;
                    }
                    self.take_rows(stage, name, &print, other_input).await?;
                    let schema = plan.schema();
                    let chunks = self.rows(attempt, stage, name, plan, Some(guard.as_ref())).await?;
                    ledgers.insert(name.clone(), self.ledgers(&chunks));
                    self.scan(name, &chunks, schema)
                }
                (Body::Call(call), _) => {
                    let print = fingerprint(&format!("{name} input {}", logical.display_indent()));
                    let input = format!("{name}.input");
                    let stage = self.stage(&mut next_stage, &input, "cpu", print.clone()).await?;
                    let schema = plan.schema();
                    let same = self.take_rows(stage, &input, &print, other_input).await?;
                    let chunks = self.rows(attempt, stage, &input, plan, None).await?;
                    let kind = call.executor.describe().fingerprint.0;
                    let print = fingerprint(&format!("{name} {print} {kind:?}"));
                    let stage = self.stage(&mut next_stage, name, step.class.as_str(), print).await?;
                    let (chunks, schema, other) = self.calls(attempt, stage, call, chunks, &schema, !same).await?;
                    if other {
                        changed.insert(name.clone());
                    }
                    ledgers.insert(name.clone(), self.ledgers(&chunks));
                    self.scan(name, &chunks, schema)
                }
                (Body::DeadLetters(of), _) => {
                    let letters = Letters::Files(ledgers.get(of.as_ref()).cloned().unwrap_or_default());
                    let exec = DeadLettersExec::new(Arc::clone(of), None, letters, Arc::clone(&step.schema));
                    let meter = self.compiled.meters.get(name).map_or_else(Arc::default, Arc::clone);
                    Arc::new(MeterExec::new(Arc::from(name.as_str()), meter, Arc::new(exec)))
                }
            };
            if let Some(edge) = step.edge.table() {
                edge.connect(Producer::Plan(producer))?;
            }
        }
        let done = local::run_roots(self.engine, self.compiled, &planned, staged, attempt.cancel).await?;
        for (stage, guard) in late {
            self.commit_outcomes(attempt, stage, &guard).await?;
        }
        Ok(done)
    }

    /// A stage of which only the outcomes are kept: one chunk without a file.
    async fn commit_outcomes(&self, attempt: &Attempt<'_>, stage: StageId, guard: &Guard) -> Result<(), Stop> {
        let payload = self.outcomes(attempt, guard)?;
        // An attempt that died between here and the end has said the same.
        if self.is_sealed(stage).await? && !self.committed(stage).await?.is_empty() {
            return Ok(());
        }
        let kept: Option<KeptOutcomes> = serde_json::from_slice(&payload).ok();
        let counts = kept
            .as_ref()
            .map(|kept| StepCounts { step: guard.step.to_string(), counts: store_counts(&kept.counts.outcomes) });
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
            ledger: kept.and_then(|kept| kept.ledger),
            rows_out: meter.map_or(0, |meter| meter.rows()),
            bytes_out: meter.map_or(0, |meter| meter.bytes()),
            counts: counts.into_iter().collect(),
            payload,
        };
        self.commit(std::slice::from_ref(&commit)).await?;
        self.status(stage, StageStatus::Done).await
    }

    fn scan(&self, name: &str, chunks: &[CommittedChunk], schema: SchemaRef) -> Arc<dyn ExecutionPlan> {
        let files = chunks.iter().map(|chunk| self.path(&chunk.commit.output)).collect();
        Arc::new(ChunkScanExec::new(Arc::from(name), files, schema))
    }

    fn ledgers(&self, chunks: &[CommittedChunk]) -> Vec<PathBuf> {
        chunks.iter().filter_map(|chunk| chunk.commit.ledger.as_ref()).map(|ledger| self.path(ledger)).collect()
    }

    /// Outputs are kept relative to the run's folder, so that the folder can be moved.
    fn path(&self, output: &str) -> PathBuf {
        self.durable.folder_of(self.run).join(output)
    }

    /// Where a stage's files lie. The name is for people; file systems take 255 bytes, and names may be longer.
    fn stage_folder(&self, stage: StageId, name: &str) -> PathBuf {
        let short = &name[..name.floor_char_boundary(100)];
        self.durable.folder_of(self.run).join(format!("v{}-{}-{short}", stage.version, stage.stage))
    }

    fn cannot_write(&self, path: &Path, message: &str) -> Stop {
        let report = Diagnostic::error("RM0704", format!("{}: {message}", path.display())).fault(Fault::Environment);
        Stop::Report(Box::new(
            report.help("durable runs live in `state.dir`; check who owns it and whether it is full"),
        ))
    }

    /// Removes files that no manifest and no commit of any version names: those of attempts that died, or, for a
    /// process that lost the run to another, only its own.
    pub(super) async fn sweep(&self, only_own: bool) -> Result<(), Stop> {
        let folder = self.durable.folder_of(self.run);
        // File names end with the token of the attempt.
        let own = only_own.then(|| format!("-{}.", self.fence.token));
        let mut kept: BTreeSet<PathBuf> = BTreeSet::new();
        for version in 1..=self.version {
            for stage in patiently!(self.durable.store.stages(self.run, version))? {
                // A manifest that is sealed and not committed yet is committed by whoever has the run now.
                kept.extend(self.manifest(stage.id).await?.into_iter().map(|spec| folder.join(spec.path)));
                for chunk in self.committed(stage.id).await? {
                    kept.insert(folder.join(&chunk.commit.output));
                    kept.extend(chunk.commit.ledger.map(|ledger| folder.join(ledger)));
                }
            }
        }
        let swept = tokio::task::spawn_blocking(move || remove_others(&folder, &kept, own.as_deref())).await;
        if let Ok(Err(error)) | Err(error) = swept.map_err(std::io::Error::other) {
            // They only take room, until `rowmill gc`.
            tracing::warn!("files of interrupted attempts of run {} stay: {error}", self.run);
        }
        Ok(())
    }

    /// Registers the next stage.
    async fn stage(&self, next: &mut u32, name: &str, class: &str, print: String) -> Result<StageId, Stop> {
        let id = StageId { version: self.version, stage: *next };
        *next += 1;
        let stage = NewStage {
            id,
            name: name.to_owned(),
            class: class.to_owned(),
            fingerprint: print,
            payload: self.stage_payload(),
        };
        match patiently!(self.durable.store.put_stages(&self.fence, std::slice::from_ref(&stage))) {
            Err(rowmill_store::Error::Conflict { .. }) => {
                let message = format!("run {}: stage `{name}` is not what it was when the run began", self.run);
                Err(Stop::Report(Box::new(Diagnostic::error("RM0802", message).fault(Fault::Data).help(
                    "the workflow, its configuration or Rowmill itself changed; start over with `rowmill resume --restart`",
                ))))
            }
            Err(error) => Err(error.into()),
            Ok(()) => Ok(id),
        }
    }

    pub(super) async fn committed(&self, stage: StageId) -> Result<Vec<CommittedChunk>, Stop> {
        let mut all = Vec::new();
        let mut page = PageRequest::first(10_000);
        loop {
            let found = patiently!(self.durable.store.committed(self.run, stage, &page))?;
            all.extend(found.items);
            match found.next {
                Some(next) => page = PageRequest::after(next, 10_000),
                None => return Ok(all),
            }
        }
    }

    pub(super) async fn manifest(&self, stage: StageId) -> Result<Vec<ChunkSpec>, Stop> {
        let mut all = Vec::new();
        let mut page = PageRequest::first(10_000);
        loop {
            let found = patiently!(self.durable.store.chunks(self.run, stage, &page))?;
            all.extend(found.items);
            match found.next {
                Some(next) => page = PageRequest::after(next, 10_000),
                None => return Ok(all),
            }
        }
    }

    pub(super) async fn is_sealed(&self, stage: StageId) -> Result<bool, Stop> {
        let stages = patiently!(self.durable.store.stages(self.run, self.version))?;
        Ok(stages.iter().any(|known| known.id == stage && known.chunk_count.is_some()))
    }

    async fn status(&self, stage: StageId, status: StageStatus) -> Result<(), Stop> {
        Ok(patiently!(self.durable.store.set_stage_status(&self.fence, stage, status, None))?)
    }

    /// A stage of rows that SQL makes: all of its chunks are committed together, or it is made again.
    async fn rows(
        &self,
        attempt: &Attempt<'_>,
        stage: StageId,
        name: &str,
        plan: Arc<dyn ExecutionPlan>,
        guard: Option<&Guard>,
    ) -> Result<Vec<CommittedChunk>, Stop> {
        let mut made_now = false;
        if !self.is_sealed(stage).await? {
            self.status(stage, StageStatus::Running).await?;
            patiently!(self.durable.store.drop_unsealed_chunks(&self.fence, stage))?;
            let files = tokio::select! {
                files = self.make_rows(stage, name, plan, guard.is_some()) => files?,
                () = attempt.cancel.cancelled() => return Err(Stop::Cancelled),
            };
            let mut specs: Vec<ChunkSpec> = (0..).zip(&files).map(|(chunk, file)| self.spec(chunk, file)).collect();
            if let (Some(guard), Some(first)) = (guard, specs.first_mut()) {
                first.payload = self.outcomes(attempt, guard)?;
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

    /// Ends a guarded step that has made all of its rows: what is kept of its outcomes, with its ledger on disk.
    fn outcomes(&self, attempt: &Attempt<'_>, guard: &Guard) -> Result<Vec<u8>, Stop> {
        guard.check_end().map_err(Stop::Stopped)?;
        let mut ledger = None;
        if let Some(own) = guard.ledger() {
            let path = tokio::task::block_in_place(|| own.finish());
            let path = path.map_err(|error| self.cannot_write(&error.path, &error.message))?;
            ledger = path.map(|path| self.relative(&path));
            attempt.samples.lock().insert(guard.step.to_string(), own.samples());
        }
        let kept = KeptOutcomes { counts: guard.tally.snapshot(), ledger };
        serde_json::to_vec(&kept).map_err(|error| {
            let message = format!("step `{}`: its counts cannot be kept: {error}", guard.step);
            Stop::Report(Box::new(Diagnostic::error("RM0900", message).fault(Fault::Internal)))
        })
    }

    /// A path as the journal keeps it.
    fn relative(&self, path: &Path) -> String {
        let folder = self.durable.folder_of(self.run);
        path.strip_prefix(&folder).unwrap_or(path).display().to_string()
    }

    /// The attempt's number among those of the run: its fencing token.
    fn attempt_number(&self) -> u32 {
        u32::try_from(self.fence.token).unwrap_or(u32::MAX)
    }

    fn spec(&self, chunk: u64, file: &ChunkFile) -> ChunkSpec {
        ChunkSpec {
            chunk,
            path: self.relative(&file.path),
            etag: None,
            size_bytes: Some(file.bytes),
            row_start: None,
            row_count: Some(file.rows),
            schema_fingerprint: String::new(),
            partitions: 1,
            payload: Vec::new(),
        }
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
        let partitions = execute_stream_partitioned(plan, context)?.into_iter().enumerate().map(|(at, rows)| {
            let folder = folder.clone();
            let name = move |chunk| folder.join(format!("{at:04}-{chunk:06}-{token}.arrow"));
            let task = SpawnedTask::spawn(write_chunks(rows, chunk_rows, name));
            async move { task.join().await.map_err(|error| DataFusionError::ExecutionJoin(Box::new(error)))? }
        });
        let mut files: Vec<ChunkFile> = try_join_all(partitions).await?.into_iter().flatten().collect();
        if some && files.is_empty() {
            files.push(tokio::task::block_in_place(|| ChunkWriter::create(&empty, &schema)?.finish())?);
        }
        Ok(files)
    }

    /// A stage of calls: every chunk through the step operator, each committed for itself. The answer tells also whether
    /// its rows are other ones than in the version before; `changed` says so of its input.
    async fn calls(
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
        let open: Vec<BoxFuture<'_, Result<(), Stop>>> = input
            .iter()
            .filter(|chunk| !done.contains_key(&chunk.commit.chunk.chunk))
            .map(|chunk| self.chunk(attempt, stage, call, &operator, chunk, &known).boxed())
            .collect();
        let work = futures::stream::iter(open).buffer_unordered(self.durable.chunks_in_flight.max(1));
        let outcome = work.try_collect::<Vec<()>>().await;
        if outcome.is_err() {
            operator.cancel();
        }
        operator.close().await;
        outcome?;
        operator.check_end().map_err(Stop::Stopped)?;
        self.status(stage, StageStatus::Done).await?;
        let chunks = self.committed(stage).await?;
        if chunks.len() != input.len() {
            let message = format!("step `{}`: {} of {} chunks are committed", call.step, chunks.len(), input.len());
            return Err(Stop::Report(Box::new(Diagnostic::error("RM0900", message).fault(Fault::Internal))));
        }
        Ok((chunks, Arc::clone(operator.schema()), changed))
    }

    async fn chunk(
        &self,
        attempt: &Attempt<'_>,
        stage: StageId,
        call: &Arc<Call>,
        operator: &Arc<StepOperator>,
        input: &CommittedChunk,
        known: &Arc<Known>,
    ) -> Result<(), Stop> {
        let number = input.commit.chunk.chunk;
        let id = stage.chunk(number);
        let log = patiently!(ChunkLog::open(&attempt.effects, id))?;
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
        match patiently!(self.durable.store.commit_chunk(&self.fence, &commit))? {
            CommitResult::Committed | CommitResult::AlreadyCommitted { .. } => Ok(()),
            CommitResult::Fenced => Err(Stop::Lost),
        }
    }
}

/// Removes every file below a run's folder that is not one of these, or every such file with a mark in its name.
fn remove_others(folder: &Path, kept: &BTreeSet<PathBuf>, mark: Option<&str>) -> std::io::Result<()> {
    for stage in std::fs::read_dir(folder)? {
        let stage = stage?;
        if !stage.file_type()?.is_dir() {
            continue;
        }
        for file in std::fs::read_dir(stage.path())? {
            let file = file?;
            let path = file.path();
            let marked = mark.is_none_or(|mark| file.file_name().to_string_lossy().contains(mark));
            if marked && !kept.contains(&path) {
                std::fs::remove_file(&path)?;
            }
        }
    }
    Ok(())
}

/// The run store's form of outcome counts.
pub(super) fn store_counts(counts: &rowmill_step::OutcomeCounts) -> rowmill_store::OutcomeCounts {
    rowmill_store::OutcomeCounts::from_array(rowmill_step::Outcome::ALL.map(|outcome| counts.get(outcome)))
}
