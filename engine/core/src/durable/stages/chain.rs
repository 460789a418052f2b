//! Stages of calls that run side by side: where a step's input is made row by row of what another step of calls gives,
//! each chunk goes on to it as soon as it is committed.
//!
//! ```text
//!  step A    chunk 3 ── calls ▶ commit
//!  SQL                chunk 2 ── row by row ▶ commit as chunk 2 of B's input
//!  step B                        chunk 1 ── calls ▶ commit
//! ```
//!
//! So `cpu` works on one chunk while `io` works on another. A chunk waits for its turn on disk, and its number in a queue
//! that is no longer than the stage has chunks. What is between two stages of calls is made of one committed chunk, with
//! the same rows in the same order whenever it is made, and it is committed before a call is made with it: the manifests of
//! such stages are sealed at their ends, all else holds as for other stages. What is not made row by row (joins,
//! aggregates, sorting, limits, steps with any number of rows for an item) waits for the whole stage above it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use datafusion::common::runtime::SpawnedTask;
use datafusion::common::{DataFusionError, Result, internal_err};
use datafusion::execution::TaskContext;
use datafusion::physical_plan::{ExecutionPlan, replace_children_if_necessary};
use futures::future::try_join_all;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use parking_lot::Mutex;
use rowmill_spec::{Diagnostic, Fault};
use rowmill_step::Cardinality;
use rowmill_store::{ChunkCommit, ChunkSpec, CommitResult, StageId, StageStatus};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::calls::{CallInput, CallStage, OpenCalls, spec_of};
use super::{Attempt, Stop, Work};
use crate::durable::chunks::{ChunkScanExec, ChunkWriter, LateFiles};
use crate::places::{MadeBy, Place};
use crate::plan::meter::MeterExec;
use crate::plan::streamed::StreamedExec;

/// Operators whose rows are those of their input, one after the other.
const ROW_WISE: &[&str] = &["CoalesceBatchesExec", "CooperativeExec", "FilterExec", "ProjectionExec"];

/// Chunks of a stage that are worked on at the same time, at least, where others of its chain take their share.
const LEAST_SHARE: usize = 2;

/// Stages of calls that are planned and not run yet.
#[derive(Default)]
pub(super) struct Chain {
    stages: Vec<CallStage>,
}

/// How a stage of calls gets its chunks out of another's.
pub(super) struct Feed {
    /// The other stage's place in the chain.
    parent: usize,
    /// The stage of the input.
    pub(super) stage: StageId,
    pub(super) name: String,
    /// What makes a chunk of the input: a plan over the other stage's files.
    plan: Arc<dyn ExecutionPlan>,
}

/// A stage of calls that came to its end.
pub(super) struct Ended {
    pub(super) step: String,
    pub(super) ledgers: Vec<PathBuf>,
    /// Whether its rows are other ones than in the version before.
    pub(super) changed: bool,
}

/// What a stage tells those that it feeds.
enum Ready {
    /// A chunk is committed.
    Chunk(ChunkCommit),
    /// That was all.
    All,
}

impl Chain {
    /// How `plan`, the input of the stage `name`, is fed by a stage of the chain; `None` where it has to wait for whole
    /// stages.
    pub(super) fn feed(&self, stage: StageId, name: &str, plan: &Arc<dyn ExecutionPlan>) -> Option<Feed> {
        let feeds = |own: &CallStage| {
            own.operator.executor().describe().cardinality == Cardinality::OneToOne && is_row_wise(plan, &own.files)
        };
        let parent = self.stages.iter().position(feeds)?;
        Some(Feed { parent, stage, name: name.to_owned(), plan: Arc::clone(plan) })
    }

    pub(super) fn push(&mut self, stage: CallStage) {
        self.stages.push(stage);
    }
}

/// Whether a plan makes its rows one by one of those in `files`.
fn is_row_wise(plan: &Arc<dyn ExecutionPlan>, files: &LateFiles) -> bool {
    if let Some(scan) = plan.downcast_ref::<ChunkScanExec>() {
        return scan.reads(files);
    }
    if let Some(streamed) = plan.downcast_ref::<StreamedExec>() {
        return is_row_wise(streamed.input(), files);
    }
    let row_wise = plan.downcast_ref::<MeterExec>().is_some() || ROW_WISE.contains(&plan.name());
    match plan.children().as_slice() {
        [input] => row_wise && plan.fetch().is_none() && is_row_wise(input, files),
        _ => false,
    }
}

/// The same plan over one of the files.
fn over_file(plan: &Arc<dyn ExecutionPlan>, file: &Path) -> Result<Arc<dyn ExecutionPlan>> {
    if let Some(scan) = plan.downcast_ref::<ChunkScanExec>() {
        return Ok(Arc::new(scan.of_file(file.to_owned())));
    }
    if let Some(streamed) = plan.downcast_ref::<StreamedExec>() {
        return over_file(streamed.input(), file);
    }
    match plan.children().as_slice() {
        [input] => {
            let input = over_file(input, file)?;
            replace_children_if_necessary(Arc::clone(plan), vec![input])
        }
        _ => internal_err!("{} is not row by row", plan.name()),
    }
}

impl Work<'_> {
    /// Runs what was planned until now, and leaves the chain empty.
    pub(super) async fn end_chain(&self, attempt: &Attempt<'_>, chain: &mut Chain) -> Result<Vec<Ended>, Stop> {
        let stages = std::mem::take(&mut chain.stages);
        if stages.is_empty() {
            return Ok(Vec::new());
        }
        let mut open = Vec::with_capacity(stages.len());
        for own in &stages {
            open.push(self.open_calls(attempt, own).await?);
        }
        let most = self.durable.chunks_in_flight.max(1);
        let share = match stages.len() {
            1 => most,
            many => (most / many).max(LEAST_SHARE),
        };
        let (to, from): (Vec<_>, Vec<_>) = stages.iter().map(|_| unbounded_channel::<Ready>()).unzip();
        let work: Vec<_> = stages
            .iter()
            .zip(&open)
            .zip(from)
            .enumerate()
            .map(|(at, ((own, open), ready))| {
                let fed_by_it = |other: &CallStage| matches!(&other.input, CallInput::Fed(feed) if feed.parent == at);
                let next = stages.iter().zip(&to).filter(|(other, _)| fed_by_it(other)).map(|(_, to)| to.clone());
                self.one_of_chain(attempt, own, open, ready, next.collect(), share)
            })
            .collect();
        for (own, to) in stages.iter().zip(to) {
            if let CallInput::Whole(chunks, _) = &own.input {
                // Whoever listens is among the work below.
                chunks.iter().for_each(|chunk| drop(to.send(Ready::Chunk(chunk.commit.clone()))));
                let _heard = to.send(Ready::All);
            }
        }
        let ended = try_join_all(work).await;
        if ended.is_err() {
            for own in &stages {
                own.operator.cancel();
            }
            for own in &stages {
                own.operator.close().await;
            }
        }
        ended
    }

    /// One stage of a chain, from its first chunk to its end.
    async fn one_of_chain(
        &self,
        attempt: &Attempt<'_>,
        own: &CallStage,
        open: &OpenCalls,
        mut ready: UnboundedReceiver<Ready>,
        next: Vec<UnboundedSender<Ready>>,
        share: usize,
    ) -> Result<Ended, Stop> {
        // Who does not listen has ended, and with it the chain.
        let tell = |commit: &ChunkCommit| {
            next.iter().for_each(|next| drop(next.send(Ready::Chunk(commit.clone()))));
        };
        let inputs = match &own.input {
            CallInput::Whole(..) => BTreeMap::new(),
            CallInput::Fed(feed) => self.open_feed(feed).await?,
        };
        let inputs = Mutex::new(inputs);
        let (mut more, mut all) = (true, 0);
        let mut working = FuturesUnordered::new();
        let mut held = Vec::new();
        loop {
            tokio::select! {
                told = ready.recv(), if more && working.len() < share => match told {
                    Some(Ready::Chunk(chunk)) => {
                        all += 1;
                        match open.done.get(&chunk.chunk.chunk) {
                            Some(done) => tell(done),
                            None => working.push(self.link(attempt, own, open, &inputs, chunk).boxed()),
                        }
                    }
                    Some(Ready::All) => more = false,
                    // The stage above failed, and that is what the chain ends with.
                    None => std::future::pending().await,
                },
                Some(done) = working.next(), if !working.is_empty() => match done? {
                    (commit, false) => tell(&commit),
                    (commit, true) => held.push(commit),
                },
                else => break,
            }
        }
        drop(working);
        let chunks = self.close_calls(own, &held, all).await?;
        held.iter().for_each(tell);
        if let CallInput::Fed(feed) = &own.input {
            // The input is sealed first: an attempt that finds it sealed takes it as it is.
            let specs: Vec<ChunkSpec> = inputs.into_inner().values().map(spec_of).collect();
            patiently!(self.durable.store.put_chunks(&self.fence, feed.stage, &specs, true))?;
            self.status(feed.stage, StageStatus::Done).await?;
            patiently!(self.durable.store.put_chunks(&self.fence, own.stage, &specs, true))?;
        }
        self.status(own.stage, StageStatus::Done).await?;
        let files = chunks.iter().map(|chunk| self.path(&chunk.commit.output)).collect();
        if own.files.set(vec![Arc::new(files)]).is_err() {
            return Err(Stop::Error(DataFusionError::Internal(format!("step {} ended twice", own.call.step))));
        }
        next.iter().for_each(|next| drop(next.send(Ready::All)));
        Ok(Ended { step: own.call.step.to_string(), ledgers: self.ledgers(&chunks), changed: open.changed })
    }

    /// One chunk of a stage, its input made where that is still to be done.
    async fn link(
        &self,
        attempt: &Attempt<'_>,
        own: &CallStage,
        open: &OpenCalls,
        inputs: &Mutex<BTreeMap<u64, ChunkCommit>>,
        chunk: ChunkCommit,
    ) -> Result<(ChunkCommit, bool), Stop> {
        let CallInput::Fed(feed) = &own.input else { return self.chunk(attempt, own, open, &chunk).await };
        let number = chunk.chunk.chunk;
        let known = inputs.lock().get(&number).cloned();
        let input = match known {
            Some(input) => input,
            None => {
                let made = self.feed_one(feed, &chunk).await?;
                inputs.lock().insert(number, made.clone());
                made
            }
        };
        self.chunk(attempt, own, open, &input).await
    }

    /// The chunks of an input that earlier attempts made.
    async fn open_feed(&self, feed: &Feed) -> Result<BTreeMap<u64, ChunkCommit>, Stop> {
        self.status(feed.stage, StageStatus::Running).await?;
        let made = self.committed(feed.stage).await?.into_iter();
        Ok(made.map(|chunk| (chunk.commit.chunk.chunk, chunk.commit)).collect())
    }

    /// Makes and commits one chunk of an input.
    async fn feed_one(&self, feed: &Feed, from: &ChunkCommit) -> Result<ChunkCommit, Stop> {
        let began = Instant::now();
        let number = from.chunk.chunk;
        let plan = over_file(&feed.plan, &self.path(&from.output))?;
        let context = Arc::new(TaskContext::from(&self.compiled.state));
        let token = self.fence.token;
        let path = self.stage_folder(feed.stage, &feed.name).join(format!("{number:06}-{token}.arrow"));
        let write = async move {
            let mut writer = ChunkWriter::create(&path, &plan.schema())?;
            let mut rows = plan.execute(0, context)?;
            while let Some(batch) = rows.next().await.transpose()? {
                writer.write(&batch)?;
            }
            writer.finish_aside().await
        };
        let task = {
            let _compute = self.engine.enter_compute();
            SpawnedTask::spawn(write)
        };
        let file = task.join().await.map_err(|error| DataFusionError::ExecutionJoin(Box::new(error)))??;
        let made = MadeBy { made: vec![Place::client("cpu", 1, 0, began.elapsed())] };
        let commit = ChunkCommit {
            chunk: feed.stage.chunk(number),
            attempt: self.attempt_number(),
            output: self.relative(&file.path),
            ledger: None,
            rows_out: file.rows,
            bytes_out: file.bytes,
            counts: Vec::new(),
            payload: serde_json::to_vec(&made).unwrap_or_default(),
        };
        match patiently!(self.durable.store.commit_chunk(&self.fence, &commit))? {
            CommitResult::Committed => Ok(commit),
            CommitResult::Fenced => Err(Stop::Lost),
            // Whoever has the lease has read what was committed before.
            CommitResult::AlreadyCommitted { winner } => {
                let message = format!("chunk {number} of {} is committed already: {}", feed.name, winner.output);
                Err(Stop::Report(Box::new(Diagnostic::error("RM0900", message).fault(Fault::Internal))))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray as _, Int64Array, RecordBatch};
    use arrow::datatypes::{DataType, Field, Int64Type, Schema};
    use datafusion::logical_expr::Operator;
    use datafusion::physical_expr::expressions::{BinaryExpr, Column, lit};
    use datafusion::physical_plan::common::collect;
    use datafusion::physical_plan::filter::FilterExec;
    use datafusion::physical_plan::limit::GlobalLimitExec;

    use super::*;

    #[tokio::test]
    async fn a_chunk_goes_on_alone_where_rows_are_made_one_by_one() {
        let folder = tempfile::tempdir().unwrap();
        let schema = Arc::new(Schema::new(vec![Field::new("x", DataType::Int64, true)]));
        let files: Vec<PathBuf> = (0..2_i64)
            .map(|chunk| {
                let rows = Int64Array::from_iter_values(chunk * 10..chunk * 10 + 10);
                let mut writer = ChunkWriter::create(&folder.path().join(chunk.to_string()), &schema).unwrap();
                writer.write(&RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(rows)]).unwrap()).unwrap();
                writer.finish().unwrap().path
            })
            .collect();
        let (late, other) = (LateFiles::default(), LateFiles::default());
        let scan: Arc<dyn ExecutionPlan> = Arc::new(ChunkScanExec::late(Arc::from("a"), &late, schema));
        let scan: Arc<dyn ExecutionPlan> = Arc::new(StreamedExec::new(Arc::from("a"), scan));
        let large = BinaryExpr::new(Arc::new(Column::new("x", 0)), Operator::GtEq, lit(5_i64));
        let filter: Arc<dyn ExecutionPlan> = Arc::new(FilterExec::try_new(Arc::new(large), scan).unwrap());
        assert!(is_row_wise(&filter, &late) && !is_row_wise(&filter, &other));
        let limit: Arc<dyn ExecutionPlan> = Arc::new(GlobalLimitExec::new(Arc::clone(&filter), 0, Some(3)));
        assert!(!is_row_wise(&limit, &late), "which rows it takes hangs on those before");
        // Nobody reads it before its files are known; over one of them it can be read at once.
        let early = filter.execute(0, Arc::default()).err().unwrap();
        assert!(early.to_string().contains("before they are made"), "{early}");
        for (file, expected) in files.iter().zip([5..10, 10..20]) {
            let rows = over_file(&filter, file).unwrap().execute(0, Arc::default()).unwrap();
            let rows: Vec<i64> = collect(rows)
                .await
                .unwrap()
                .iter()
                .flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec())
                .collect();
            assert_eq!(rows, expected.collect::<Vec<i64>>());
        }
    }
}
