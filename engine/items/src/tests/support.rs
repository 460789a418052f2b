//! A step kind that does what the test says, and what a run of it gave.

use std::collections::HashMap;
use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use arrow::array::{Array as _, ArrayRef, AsArray as _, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use async_trait::async_trait;
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use parking_lot::Mutex;
use rowmill_step::{
    BatchReply, BatchTarget, Cardinality, Effects, Failure, FailureCode, FingerprintBuilder, ItemBatch, Jitter,
    Outcome, Reserve, RetryPolicy, Sent, StepContext, StepDescription, StepExecutor, StepSession, StepShape,
};

use crate::*;

pub(super) type Value = Option<i64>;

/// What an attempt is asked, without Arrow.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) items: Vec<Value>,
    pub(super) attempt: u32,
    pub(super) batch: ItemBatch,
}

type Behave = Box<dyn Fn(Call) -> BoxFuture<'static, Result<BatchReply, Failure>> + Send + Sync>;
type Opens = Box<dyn Fn(usize) -> Result<(), Failure> + Send + Sync>;

pub(super) struct Scripted {
    description: StepDescription,
    behave: Behave,
    opens: Opens,
    pub(super) calls: Mutex<Vec<Vec<Value>>>,
    pub(super) flying: AtomicUsize,
    pub(super) peak: AtomicUsize,
    pub(super) opened: AtomicUsize,
    pub(super) closed: AtomicUsize,
}

impl Debug for Scripted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Scripted")
    }
}

pub(super) fn shape() -> StepShape {
    let of = |name| Arc::new(Schema::new(vec![Field::new(name, DataType::Int64, true)]));
    StepShape { input: of("x"), output: of("y") }
}

pub(super) fn output(values: Vec<Value>) -> RecordBatch {
    RecordBatch::try_new(shape().output, vec![Arc::new(Int64Array::from(values)) as ArrayRef]).unwrap()
}

/// Every item is ok: x + 1.
pub(super) fn plus_one(items: &[Value]) -> BatchReply {
    BatchReply::all_ok(output(items.iter().map(|item| item.map(|x| x + 1)).collect()))
}

pub(super) fn rejected() -> Failure {
    Failure::fixed(FailureCode::Rejected, "no such thing").sent(Sent::Answered)
}

pub(super) fn transport() -> Failure {
    Failure::fixed(FailureCode::Transport, "the line broke")
}

/// A reply in which items fail that `fails` has a failure for; the others are ok.
pub(super) fn partly(items: &[Value], fails: impl Fn(i64) -> Option<Failure>) -> BatchReply {
    let mut failures = Vec::new();
    let mut kept = Vec::new();
    for (index, item) in items.iter().enumerate() {
        match item.and_then(&fails) {
            Some(failure) => failures.push((index as u32, failure)),
            None => kept.push(*item),
        }
    }
    BatchReply { failures, ..plus_one(&kept) }
}

impl Scripted {
    pub(super) fn new<F>(target: (usize, usize), behave: impl Fn(Call) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<BatchReply, Failure>> + Send + 'static,
    {
        Self {
            description: StepDescription {
                kind: "scripted",
                summary: String::new(),
                reads: vec!["x".to_owned()],
                effects: Effects::Idempotent,
                cardinality: Cardinality::OneToOne,
                target: BatchTarget { rows: target.0, bytes: 1 << 20, in_flight: target.1 },
                connections: Vec::new(),
                fingerprint: FingerprintBuilder::new("scripted", 1).finish(),
            },
            behave: Box::new(move |call| behave(call).boxed()),
            opens: Box::new(|_| Ok(())),
            calls: Mutex::default(),
            flying: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            opened: AtomicUsize::new(0),
            closed: AtomicUsize::new(0),
        }
    }

    pub(super) fn effects(mut self, effects: Effects) -> Self {
        self.description.effects = effects;
        self
    }

    pub(super) fn fan_out(mut self) -> Self {
        self.description.cardinality = Cardinality::FanOut;
        self
    }

    pub(super) fn opens(mut self, opens: impl Fn(usize) -> Result<(), Failure> + Send + Sync + 'static) -> Self {
        self.opens = Box::new(opens);
        self
    }

    /// Attempts that were made for each item.
    pub(super) fn attempts(&self) -> HashMap<i64, usize> {
        let mut attempts = HashMap::new();
        for item in self.calls.lock().iter().flatten().flatten() {
            *attempts.entry(*item).or_default() += 1;
        }
        attempts
    }
}

struct Session(Arc<Scripted>);

/// The executor, which its sessions share.
#[derive(Debug)]
pub(super) struct Shared(pub(super) Arc<Scripted>);

struct Flying(Arc<Scripted>);

impl Drop for Flying {
    fn drop(&mut self) {
        self.0.flying.fetch_sub(1, SeqCst);
    }
}

#[async_trait]
impl StepExecutor for Shared {
    fn describe(&self) -> &StepDescription {
        &self.0.description
    }

    async fn output_schema(&self, _input: &SchemaRef, _context: &StepContext) -> Result<SchemaRef, Failure> {
        Ok(shape().output)
    }

    async fn open(&self, _context: &StepContext, _shape: &StepShape) -> Result<Box<dyn StepSession>, Failure> {
        let number = self.0.opened.fetch_add(1, SeqCst);
        (self.0.opens)(number)?;
        Ok(Box::new(Session(Arc::clone(&self.0))))
    }
}

#[async_trait]
impl StepSession for Session {
    async fn execute(&mut self, batch: ItemBatch) -> Result<BatchReply, Failure> {
        let items: Vec<Value> = batch.columns.column(0).as_primitive::<Int64Type>().iter().collect();
        self.0.calls.lock().push(items.clone());
        let now = self.0.flying.fetch_add(1, SeqCst) + 1;
        self.0.peak.fetch_max(now, SeqCst);
        let _flying = Flying(Arc::clone(&self.0));
        (self.0.behave)(Call { items, attempt: batch.attempt, batch }).await
    }

    async fn close(self: Box<Self>) -> Result<(), Failure> {
        self.0.closed.fetch_add(1, SeqCst);
        Ok(())
    }
}

/// A policy with exact waits: 10 ms, 20 ms, 40 ms.
pub(super) fn policy(step: &Scripted) -> StepPolicy {
    let retry = RetryPolicy { initial_backoff: Duration::from_millis(10), jitter: Jitter::None, ..Default::default() };
    StepPolicy { retry, on_error: rowmill_step::OnError::DeadLetter, ..StepPolicy::of(&step.description) }
}

pub(super) fn input_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("other", DataType::Utf8, true), Field::new("x", DataType::Int64, true)]))
}

pub(super) fn batch(values: impl IntoIterator<Item = Value>) -> RecordBatch {
    let values: Vec<Value> = values.into_iter().collect();
    let other = arrow::array::StringArray::from_iter_values(values.iter().map(|value| format!("{value:?}")));
    RecordBatch::try_new(input_schema(), vec![Arc::new(other), Arc::new(Int64Array::from(values))]).unwrap()
}

pub(super) fn numbers(rows: std::ops::Range<i64>) -> RecordBatch {
    batch(rows.map(Some))
}

pub(super) fn operator_in(step: &Arc<Scripted>, policy: StepPolicy, context: StepContext) -> Arc<StepOperator> {
    StepOperator::try_new(OperatorParts {
        executor: Arc::new(Shared(Arc::clone(step))),
        context,
        shape: shape(),
        input: input_schema(),
        policy,
        limits: Vec::new(),
        cache: None,
        tally: Arc::default(),
    })
    .unwrap()
}

pub(super) fn operator(step: &Arc<Scripted>, policy: StepPolicy) -> Arc<StepOperator> {
    operator_in(step, policy, StepContext::new("run", "step", ""))
}

pub(super) fn scope(operator: &StepOperator, place: u32, log: Option<ChunkLog>) -> Scope {
    let path = std::env::temp_dir().join(format!("rowmill-items-{}", uuid::Uuid::new_v4())).join("ledger.arrow");
    Scope {
        place,
        ledger: Arc::new(Ledger::new(&input_schema(), path)),
        tally: Arc::new(Tally::part_of(operator.tally())),
        log,
        earlier: None,
    }
}

pub(super) fn stream(batches: Vec<RecordBatch>) -> futures::stream::BoxStream<'static, Result<RecordBatch, BoxError>> {
    futures::stream::iter(batches.into_iter().map(Ok)).boxed()
}

/// What a run gave.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) rows: Vec<(Value, Value)>,
    pub(super) batches: usize,
    pub(super) error: Option<String>,
    pub(super) tally: TallySnapshot,
    pub(super) ledger: Arc<Ledger>,
}

impl Ran {
    pub(super) fn count(&self, outcome: Outcome) -> u64 {
        self.tally.outcomes.get(outcome)
    }
}

pub(super) fn rows_of(batch: &RecordBatch) -> Vec<(Value, Value)> {
    assert_eq!(batch.schema().fields().len(), 3);
    let column = |index: usize| batch.column(index).as_primitive::<Int64Type>().clone();
    let other = batch.column(0).as_string::<i32>();
    let (x, y) = (column(1), column(2));
    (0..batch.num_rows())
        .map(|row| {
            let value = |of: &Int64Array| of.is_valid(row).then(|| of.value(row));
            assert_eq!(other.value(row), format!("{:?}", value(&x)), "the columns of a row belong together");
            (value(&x), value(&y))
        })
        .collect()
}

pub(super) async fn drain(operator: &Arc<StepOperator>, scope: Scope, batches: Vec<RecordBatch>) -> Ran {
    let (ledger, tally) = (Arc::clone(&scope.ledger), Arc::clone(&scope.tally));
    let mut stream = operator.run(scope, stream(batches));
    let (mut rows, mut count, mut error) = (Vec::new(), 0, None);
    while let Some(next) = stream.next().await {
        match next {
            Ok(batch) => {
                assert!(batch.num_rows() > 0);
                count += 1;
                rows.extend(rows_of(&batch));
            }
            Err(failed) => error = Some(failed.to_string()),
        }
    }
    let tally = tally.snapshot();
    assert!(tally.is_conserved(), "{tally:?}");
    Ran { rows, batches: count, error, tally, ledger }
}

/// One partition from its start to its end; what can be said of any run is checked.
pub(super) async fn run(step: &Arc<Scripted>, policy: StepPolicy, batches: Vec<RecordBatch>) -> Ran {
    let in_flight = policy.target.in_flight;
    let operator = operator(step, policy);
    let ran = drain(&operator, scope(&operator, 0, None), batches).await;
    operator.close().await;
    let whole = operator.tally().snapshot();
    assert_eq!(
        (whole.items, whole.outcomes, whole.attempts),
        (ran.tally.items, ran.tally.outcomes, ran.tally.attempts)
    );
    assert_eq!((whole.in_flight, whole.waiting), (0, 0), "nothing is left behind");
    assert!(step.peak.load(SeqCst) <= in_flight, "{} in flight", step.peak.load(SeqCst));
    assert_eq!(step.flying.load(SeqCst), 0);
    ran
}

/// Memory that counts.
#[derive(Debug, Default)]
pub(super) struct Pool {
    pub(super) held: AtomicUsize,
    pub(super) most: AtomicUsize,
    pub(super) limit: Option<usize>,
}

impl Reserve for Pool {
    fn try_grow(&self, bytes: usize) -> bool {
        if self.limit.is_some_and(|limit| self.held.load(SeqCst) + bytes > limit) {
            return false;
        }
        let held = self.held.fetch_add(bytes, SeqCst) + bytes;
        self.most.fetch_max(held, SeqCst);
        true
    }

    fn shrink(&self, bytes: usize) {
        self.held.fetch_sub(bytes, SeqCst);
    }
}

pub(super) async fn sleep(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}
