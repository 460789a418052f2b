//! A step with several consumers runs once: what it makes is kept, and each consumer reads it at its own pace.
//!
//! ```text
//!                      ┌─ entry ─┬─ entry ─┬─ run on disk ─┬─ entry ─┐
//!  producer task ────▶ │ batch 0 │ batch 1 │ batches 2..90 │ batch 91│
//!                      └────▲────┴─────────┴───────▲───────┴─────────┘
//!                       reader B               reader A
//! ```
//!
//! Each partition has a log of its own. The producer runs on a task of its own, so no reader ever waits on another
//! reader being polled; it stays [`READ_AHEAD`] entries ahead of the fastest reader and never waits for the slowest.
//! Batches live in memory while the memory pool grants it and in spill files after that; a batch that every reader
//! has passed is dropped.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::common::runtime::SpawnedTask;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result, Statistics, internal_err};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, SpillFile, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::execution_plan::ReplaceChildrenOptions;
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, MetricsSet, SpillMetrics};
use datafusion::physical_plan::spill::get_record_batch_memory_size;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, SpillManager, StatisticsArgs, StatisticsContext,
};
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Entries that the producer makes ahead of the fastest reader.
const READ_AHEAD: usize = 4;
/// Bytes of batches that go into one spill file: large enough for sequential I/O, small enough that readers do not
/// wait long for it to be closed.
const RUN_BYTES: usize = 64 << 20;

/// The output of one step, kept for several readers.
#[derive(Debug)]
pub struct Spool {
    step: Arc<str>,
    input: Arc<dyn ExecutionPlan>,
    /// Whether entries stay until the end of the run: a recursive query opens its inputs again and again.
    keep_all: bool,
    /// Computed once: a chain of spools, each read twice, would otherwise be walked 2^n times.
    statistics: Arc<Statistics>,
    readers: AtomicUsize,
    metrics: ExecutionPlanMetricsSet,
    partitions: Vec<Partition>,
}

#[derive(Debug)]
struct Partition {
    log: Arc<Log>,
    producer: Mutex<Option<SpawnedTask<()>>>,
}

impl Spool {
    /// A spool over `input`, the plan of `step`.
    pub fn new(step: Arc<str>, input: Arc<dyn ExecutionPlan>, keep_all: bool) -> Self {
        let partitions = (0..input.properties().partitioning.partition_count())
            .map(|_| Partition { log: Arc::new(Log::default()), producer: Mutex::new(None) })
            .collect();
        let statistics = StatisticsContext::new()
            .compute(input.as_ref(), &StatisticsArgs::new())
            .unwrap_or_else(|_| Arc::new(Statistics::new_unknown(&input.schema())));
        Spool {
            step,
            input,
            keep_all,
            statistics,
            readers: AtomicUsize::new(0),
            metrics: ExecutionPlanMetricsSet::new(),
            partitions,
        }
    }

    /// The plan whose output is kept.
    pub fn input(&self) -> &Arc<dyn ExecutionPlan> {
        &self.input
    }

    /// The step whose output is kept.
    pub fn step(&self) -> &str {
        &self.step
    }

    fn read(self: &Arc<Self>, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let Some(place) = self.partitions.get(partition) else {
            return internal_err!("step {} has no partition {partition}", self.step);
        };
        {
            let mut producer = place.producer.lock();
            if producer.is_none() && !place.log.is_closed() {
                *producer = Some(self.produce(partition, &place.log, &context)?);
            }
        }
        let spill = self.spill_manager(partition, &context);
        let cursor = place.log.open(self);
        let reader = Reader { spool: Arc::clone(self), partition, cursor, spill, run: None };
        let stream = futures::stream::try_unfold(reader, |mut reader| async move {
            Ok(reader.next().await?.map(|batch| (batch, reader)))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.input.schema(), stream)))
    }

    fn spill_manager(&self, partition: usize, context: &Arc<TaskContext>) -> SpillManager {
        let metrics = SpillMetrics::new(&self.metrics, partition);
        SpillManager::new(context.runtime_env(), metrics, self.input.schema())
            .with_compression_type(context.session_config().spill_compression())
    }

    fn produce(&self, partition: usize, log: &Arc<Log>, context: &Arc<TaskContext>) -> Result<SpawnedTask<()>> {
        let mut input = self.input.execute(partition, Arc::clone(context))?;
        let reservation = MemoryConsumer::new(format!("spool of step {} ({partition})", self.step))
            .with_can_spill(true)
            .register(context.memory_pool());
        let spill = self.spill_manager(partition, context);
        let log = Arc::clone(log);
        log.state.lock().reservation = Some(reservation);
        Ok(SpawnedTask::spawn(async move {
            let result = log.fill(&mut input, &spill).await;
            log.close(result.err());
        }))
    }
}

/// What one partition has made so far.
#[derive(Default)]
struct Log {
    state: Mutex<State>,
    /// Woken when an entry arrives or the log closes.
    arrived: Notify,
    /// Woken when a reader wants more or leaves.
    wanted: Notify,
}

#[derive(Default)]
struct State {
    entries: VecDeque<Entry>,
    /// Index of the first entry still kept.
    first: usize,
    /// Next entry of each reader; `usize::MAX` for one that has left.
    cursors: Vec<usize>,
    /// Readers that will come, opened or not.
    expected: usize,
    keep_all: bool,
    closed: bool,
    failure: Option<Arc<DataFusionError>>,
    reservation: Option<MemoryReservation>,
}

#[derive(Clone)]
enum Entry {
    Batch(RecordBatch, usize),
    Run(Arc<dyn SpillFile>),
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        write!(f, "Log {{ entries: {}, closed: {} }}", state.first + state.entries.len(), state.closed)
    }
}

impl Log {
    fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// A new reader, at the beginning.
    fn open(&self, spool: &Spool) -> usize {
        let mut state = self.state.lock();
        state.cursors.push(0);
        state.expected = spool.readers.load(Ordering::Acquire);
        state.keep_all = spool.keep_all;
        self.wanted.notify_one();
        state.cursors.len() - 1
    }

    /// Whether the fastest reader is near enough to the end for the producer to go on.
    fn is_wanted(&self) -> bool {
        let state = self.state.lock();
        let end = state.first + state.entries.len();
        state.cursors.iter().any(|cursor| *cursor != usize::MAX && cursor + READ_AHEAD > end)
    }

    async fn fill(&self, input: &mut SendableRecordBatchStream, spill: &SpillManager) -> Result<()> {
        loop {
            while !self.is_wanted() {
                self.wanted.notified().await;
            }
            let Some(batch) = input.next().await.transpose()? else { return Ok(()) };
            let bytes = get_record_batch_memory_size(&batch);
            if self.push_in_memory(&batch, bytes) {
                continue;
            }
            // No memory: this batch and those after it go to a file, closed when it is large enough.
            let mut file = spill.create_in_progress_file("spool")?;
            let mut written = 0;
            let mut next = Some(batch);
            while let Some(batch) = next {
                file.append_batch(&batch)?;
                written += get_record_batch_memory_size(&batch);
                next = match written < RUN_BYTES {
                    true => input.next().await.transpose()?,
                    false => None,
                };
            }
            if let Some(file) = file.finish()? {
                self.push(Entry::Run(file));
            }
        }
    }

    fn push_in_memory(&self, batch: &RecordBatch, bytes: usize) -> bool {
        {
            let mut state = self.state.lock();
            let granted = state.reservation.as_mut().is_some_and(|reservation| reservation.try_grow(bytes).is_ok());
            if !granted {
                return false;
            }
        }
        self.push(Entry::Batch(batch.clone(), bytes));
        true
    }

    fn push(&self, entry: Entry) {
        self.state.lock().entries.push_back(entry);
        self.arrived.notify_waiters();
    }

    fn close(&self, failure: Option<DataFusionError>) {
        let mut state = self.state.lock();
        state.closed = true;
        state.failure = failure.map(Arc::new);
        drop(state);
        self.arrived.notify_waiters();
    }

    /// Moves a reader, or lets it leave, and drops what every reader has passed. Tells whether no reader is left.
    fn advance(&self, cursor: usize, to: usize) -> bool {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        if let Some(place) = state.cursors.get_mut(cursor) {
            *place = to;
        }
        let all_here = state.cursors.len() >= state.expected;
        if all_here && !state.keep_all {
            let slowest = state.cursors.iter().copied().min().unwrap_or(0);
            while state.first < slowest {
                match state.entries.pop_front() {
                    Some(Entry::Batch(_, bytes)) => {
                        if let Some(reservation) = state.reservation.as_mut() {
                            reservation.shrink(bytes);
                        }
                    }
                    Some(Entry::Run(_)) => {}
                    None => break,
                }
                state.first += 1;
            }
        }
        let deserted = all_here && !state.keep_all && state.cursors.iter().all(|cursor| *cursor == usize::MAX);
        drop(guard);
        self.wanted.notify_one();
        deserted
    }

    /// The entry at `position`, waiting for it; `None` at the end.
    async fn entry(&self, position: usize) -> Result<Option<Entry>> {
        loop {
            let arrived = self.arrived.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            {
                let state = self.state.lock();
                if position < state.first {
                    return internal_err!("a spool reader came after its rows were dropped");
                }
                if let Some(entry) = state.entries.get(position - state.first) {
                    return Ok(Some(entry.clone()));
                }
                if let Some(failure) = &state.failure {
                    return Err(DataFusionError::Shared(Arc::clone(failure)));
                }
                if state.closed {
                    return Ok(None);
                }
            }
            arrived.await;
        }
    }
}

struct Reader {
    spool: Arc<Spool>,
    partition: usize,
    cursor: usize,
    spill: SpillManager,
    run: Option<(SendableRecordBatchStream, usize)>,
}

impl Reader {
    fn log(&self) -> &Arc<Log> {
        &self.spool.partitions[self.partition].log
    }

    fn position(&self) -> usize {
        self.log().state.lock().cursors[self.cursor]
    }

    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some((run, position)) = &mut self.run {
                if let Some(batch) = run.next().await.transpose()? {
                    return Ok(Some(batch));
                }
                let next = *position + 1;
                self.run = None;
                self.log().advance(self.cursor, next);
            }
            let position = self.position();
            match self.log().entry(position).await? {
                None => return Ok(None),
                Some(Entry::Batch(batch, _)) => {
                    self.log().advance(self.cursor, position + 1);
                    return Ok(Some(batch));
                }
                Some(Entry::Run(file)) => {
                    self.run = Some((self.spill.read_spill_as_stream(file, None)?, position));
                }
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if self.log().advance(self.cursor, usize::MAX) {
            // Everyone has left (a LIMIT was reached, or the run is cancelled): the rest need not be made.
            self.spool.partitions[self.partition].producer.lock().take();
        }
    }
}

/// One reader of a [`Spool`], as a leaf of its consumer's plan.
#[derive(Debug)]
pub struct SpoolExec {
    spool: Arc<Spool>,
    properties: Arc<PlanProperties>,
}

impl SpoolExec {
    /// A new reader.
    pub fn new(spool: Arc<Spool>) -> Self {
        spool.readers.fetch_add(1, Ordering::AcqRel);
        let properties = spool.input.properties().clone();
        SpoolExec { spool, properties }
    }

    /// What it reads.
    pub fn spool(&self) -> &Arc<Spool> {
        &self.spool
    }
}

impl DisplayAs for SpoolExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpoolExec: step {}, read by {}", self.spool.step, self.spool.readers.load(Ordering::Relaxed))
    }
}

impl ExecutionPlan for SpoolExec {
    fn name(&self) -> &str {
        "SpoolExec"
    }

    fn schema(&self) -> SchemaRef {
        self.spool.input.schema()
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        // The producer is no child: it is planned and optimized once, not once for each reader.
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _visit: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match children.is_empty() {
            true => Ok(self),
            false => internal_err!("a spool reader is a leaf"),
        }
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        match children.is_empty() {
            true => Ok(self),
            false => internal_err!("a spool reader is a leaf"),
        }
    }

    fn reset_state(self: Arc<Self>) -> Result<Arc<dyn ExecutionPlan>> {
        // A recursive query reads its inputs again: the same log, from the start.
        Ok(self)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        self.spool.read(partition, context)
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.spool.metrics.clone_inner())
    }

    fn statistics_from_inputs(
        &self,
        _inputs: &[Arc<Statistics>],
        arguments: &StatisticsArgs,
    ) -> Result<Arc<Statistics>> {
        Ok(match arguments.partition() {
            None => Arc::clone(&self.spool.statistics),
            Some(_) => Arc::new(Statistics::new_unknown(&self.spool.input.schema())),
        })
    }
}

/// The reader inside a plan node, where it is one.
pub fn as_spool_reader(plan: &dyn ExecutionPlan) -> Option<&SpoolExec> {
    (plan as &dyn Any).downcast_ref::<SpoolExec>()
}
