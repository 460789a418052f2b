//! The cases themselves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use async_trait::async_trait;

use super::{Driven, Fault, Fixture, Options, drive};
use crate::{
    BatchReply, Effects, Failure, FailureCode, ItemBatch, Outcome, RetryPolicy, StepContext, StepDescription,
    StepExecutor, StepSession, StepShape,
};

/// Time in which anything here ends, or it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs every case. Returns the names of the cases that do not apply, because the kind knows no such fault or takes no
/// NULL; the caller asserts that list, so that a case cannot fall away unseen.
///
/// # Panics
/// If the step kind fails a case.
pub async fn check_all(fixture: &dyn Fixture) -> Vec<&'static str> {
    let mut absent = Vec::new();
    empty_input(fixture).await;
    one_row(fixture).await;
    if !nulls(fixture).await {
        absent.push("nulls");
    }
    many_small_batches(fixture).await;
    one_huge_batch(fixture).await;
    slow_consumer(fixture).await;
    panic_in_the_step(fixture).await;
    if !poisoned_row(fixture).await {
        absent.push("poisoned_row");
    }
    if !crash(fixture).await {
        absent.push("crash");
    }
    if !retry(fixture).await {
        absent.push("retry");
    }
    if !cancel_in_the_middle(fixture).await {
        absent.push("cancel_in_the_middle");
    }
    absent
}

async fn run(fixture: &dyn Fixture, batches: Vec<RecordBatch>, options: &Options) -> Driven {
    let executor = fixture.executor().await;
    run_with(fixture, executor.as_ref(), batches, options).await
}

async fn run_with(
    fixture: &dyn Fixture,
    executor: &dyn StepExecutor,
    batches: Vec<RecordBatch>,
    options: &Options,
) -> Driven {
    let context = fixture.context();
    let schema = fixture.input(0..1).schema();
    let items: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let driven = tokio::time::timeout(PATIENCE, drive(executor, &context, &schema, batches, options))
        .await
        .expect("the step ends in time")
        .expect("the step describes its output");
    assert_eq!(driven.outcomes.total(), items as u64, "items are conserved: {:?}", driven.outcomes);
    driven
}

async fn empty_input(fixture: &dyn Fixture) {
    let before = fixture.items_seen();
    let driven = run(fixture, vec![], &Options::default()).await;
    assert_eq!((driven.output.num_rows(), driven.attempts), (0, 0));
    let driven = run(fixture, vec![fixture.input(0..0)], &Options::default()).await;
    assert_eq!(driven.output.num_rows(), 0);
    assert_eq!(fixture.items_seen(), before, "no items, no calls");
    // A group without items must not confuse a session either.
    let executor = fixture.executor().await;
    let (context, input) = (fixture.context(), fixture.input(0..0));
    let output = executor.output_schema(&input.schema(), &context).await.expect("output schema");
    let shape = StepShape { input: input.schema(), output };
    let mut session = executor.open(&context, &shape).await.expect("session opens");
    let keys = crate::ItemKeys::new(crate::ItemIds::Range { file: 0, rows: 0..0 }, Arc::new(context.keys()));
    let batch = ItemBatch {
        columns: input,
        keys,
        attempt: 1,
        deadline: None,
        stop: context.cancel.clone(),
        cancel: context.cancel.clone(),
        place: None,
    };
    let reply = session.execute(batch).await.expect("an empty group is no error");
    assert_eq!(reply.output.num_rows(), 0);
    session.close().await.expect("the session closes");
    assert_eq!(fixture.items_seen(), before, "no items, no calls");
}

async fn one_row(fixture: &dyn Fixture) {
    let before = fixture.items_seen();
    let input = fixture.input(5..6);
    let driven = run(fixture, vec![input.clone()], &Options::default()).await;
    assert_clean(fixture, &input, &driven);
    assert_eq!(fixture.items_seen() - before, 1, "one item, one call");
}

async fn nulls(fixture: &dyn Fixture) -> bool {
    let Some(input) = fixture.input_with_nulls(0..50) else { return false };
    assert!(input.columns().iter().any(|column| column.null_count() > 0), "the fixture put NULLs in");
    let driven = run(fixture, vec![input.clone()], &Options::default()).await;
    assert_clean(fixture, &input, &driven);
    true
}

async fn many_small_batches(fixture: &dyn Fixture) {
    let before = fixture.items_seen();
    let batches: Vec<_> = (0..200).map(|n| fixture.input(n * 3..n * 3 + 3)).collect();
    let driven = run(fixture, batches, &Options::default()).await;
    assert_clean(fixture, &fixture.input(0..600), &driven);
    assert_eq!(fixture.items_seen() - before, 600, "each item is called once");
}

async fn one_huge_batch(fixture: &dyn Fixture) {
    let before = fixture.items_seen();
    let input = fixture.input(0..5000);
    let driven = run(fixture, vec![input.clone()], &Options::default()).await;
    assert_clean(fixture, &input, &driven);
    assert_eq!(fixture.items_seen() - before, 5000, "each item is called once");
    let in_flight = fixture.executor().await.describe().target.in_flight;
    assert!(driven.most_in_flight <= in_flight, "no more sessions than the step allows");
}

async fn slow_consumer(fixture: &dyn Fixture) {
    let before = fixture.items_seen();
    let batches: Vec<_> = (0..20).map(|n| fixture.input(n * 2..n * 2 + 2)).collect();
    let options = Options { consumer_delay: Duration::from_millis(5), group_rows: Some(2), ..Options::default() };
    let driven = run(fixture, batches, &options).await;
    assert_clean(fixture, &fixture.input(0..40), &driven);
    assert_eq!(fixture.items_seen() - before, 40);
}

/// A session that is dropped at any await (here by a panic while its work is under way) leaves nothing behind that
/// harms the next one.
async fn panic_in_the_step(fixture: &dyn Fixture) {
    let inner = fixture.executor().await;
    let executor = PanicOnce { inner, panics_left: Arc::new(std::sync::atomic::AtomicU64::new(1)) };
    let input = fixture.input(0..20);
    let options = Options { group_rows: Some(5), ..Options::default() };
    let effects = executor.describe().effects;
    let driven = run_with(fixture, &executor, vec![input.clone()], &options).await;
    assert_eq!(executor.panics_left.load(std::sync::atomic::Ordering::Relaxed), 0, "the panic happened");
    if effects == Effects::Once {
        assert_eq!(driven.outcomes.get(Outcome::Unknown), 5, "the group that was under way may have happened");
        assert_eq!(driven.outcomes.get(Outcome::Ok), 15);
        assert!(driven.failures.iter().all(|(_, failure)| failure.code() == FailureCode::Panicked));
    } else {
        // Cutting the group in two tried its items again, and the panic does not come back.
        assert_clean(fixture, &input, &driven);
    }
}

async fn poisoned_row(fixture: &dyn Fixture) -> bool {
    if !fixture.inject(Fault::Poison(17)) {
        return false;
    }
    let fired = fixture.fired();
    let driven = run(fixture, vec![fixture.input(0..40)], &Options::default()).await;
    fixture.inject(Fault::None);
    assert!(fixture.fired() > fired, "the fault happened");
    let rows: Vec<_> = driven.failures.iter().map(|(row, _)| *row).collect();
    assert_eq!(rows, [17], "exactly the poisoned row fails: {:?}", driven.failures);
    assert!(!driven.failures[0].1.message().is_empty(), "and says why");
    assert!(!driven.sources.contains(&17));
    let healthy: Vec<_> =
        [fixture.input(0..17), fixture.input(18..40)].iter().map(|input| fixture.expected(input)).collect();
    let expected = arrow::compute::concat_batches(&driven.output.schema(), &healthy).expect("one schema");
    assert_eq!(driven.output, expected, "the rest is as if nothing had happened");
    true
}

async fn crash(fixture: &dyn Fixture) -> bool {
    if !fixture.inject(Fault::Crash(9)) {
        return false;
    }
    let fired = fixture.fired();
    let effects = fixture.executor().await.describe().effects;
    let driven = run(fixture, vec![fixture.input(0..30)], &Options::default()).await;
    fixture.inject(Fault::None);
    assert!(fixture.fired() > fired, "the fault happened");
    let rows: Vec<_> = driven.failures.iter().map(|(row, _)| *row).collect();
    assert_eq!(rows, [9], "exactly the item that was under way fails: {:?}", driven.failures);
    let outcome = if effects == Effects::Once { Outcome::Unknown } else { Outcome::Failed };
    assert_eq!(driven.outcomes.get(outcome), 1);
    assert_eq!(driven.outcomes.get(Outcome::Ok), 29);
    true
}

async fn retry(fixture: &dyn Fixture) -> bool {
    if !fixture.inject(Fault::Transient(3)) {
        return false;
    }
    let (fired, seen) = (fixture.fired(), fixture.items_seen());
    let input = fixture.input(0..10);
    let retry = RetryPolicy {
        attempts: 5,
        initial_backoff: Duration::from_millis(1),
        max_retry_after: Duration::from_millis(50),
        ..RetryPolicy::default()
    };
    let options = Options { retry, group_rows: Some(1), ..Options::default() };
    let driven = run(fixture, vec![input.clone()], &options).await;
    fixture.inject(Fault::None);
    assert_eq!(fixture.fired() - fired, 3, "the fault happened as often as it should");
    assert_clean(fixture, &input, &driven);
    assert_eq!(driven.attempts, 13, "each fault costs one more attempt and nothing else");
    assert_eq!(fixture.items_seen() - seen, 13, "and so the other side sees it");
    // Without a retry the same faults are failures.
    fixture.inject(Fault::Transient(3));
    let driven = run(fixture, vec![input], &Options { group_rows: Some(1), ..Options::default() }).await;
    fixture.inject(Fault::None);
    assert_eq!(driven.failures.len(), 3, "{:?}", driven.failures);
    assert!(driven.failures.iter().all(|(_, failure)| failure.is_retryable()));
    true
}

async fn cancel_in_the_middle(fixture: &dyn Fixture) -> bool {
    if !fixture.inject(Fault::Stall) {
        return false;
    }
    let fired = fixture.fired();
    let options = Options { group_rows: Some(4), ..Options::default() };
    let started = Instant::now();
    let (driven, ()) = futures::join!(run(fixture, vec![fixture.input(0..400)], &options), async {
        // Wait until something hangs, then cancel.
        while fixture.fired() == fired {
            assert!(started.elapsed() < PATIENCE, "a call reaches the other side");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        options.cancel.cancel();
    });
    fixture.inject(Fault::None);
    assert!(started.elapsed() < Duration::from_secs(10), "cancelling does not wait for the other side");
    assert_eq!(driven.outcomes.get(Outcome::Ok), 0);
    assert!(driven.outcomes.get(Outcome::NotRun) > 0, "items that were not sent are not run");
    assert!(driven.failures.iter().all(|(_, failure)| failure.code() == FailureCode::Cancelled), "{driven:?}");
    // Afterwards the step works as before.
    one_row(fixture).await;
    true
}

fn assert_clean(fixture: &dyn Fixture, input: &RecordBatch, driven: &Driven) {
    assert!(driven.failures.is_empty(), "nothing fails: {:?}", driven.failures.first());
    let expected = fixture.expected(input);
    assert_eq!(driven.output.schema(), expected.schema());
    assert_eq!(driven.output, expected);
}

/// Panics in the first session's first call, after the real work was begun and is dropped in the middle.
#[derive(Debug)]
struct PanicOnce {
    inner: Arc<dyn StepExecutor>,
    panics_left: Arc<std::sync::atomic::AtomicU64>,
}

struct PanicOnceSession {
    inner: Box<dyn StepSession>,
    panics_left: Arc<std::sync::atomic::AtomicU64>,
}

#[async_trait]
impl StepExecutor for PanicOnce {
    fn describe(&self) -> &StepDescription {
        self.inner.describe()
    }

    async fn output_schema(
        &self,
        input: &arrow::datatypes::SchemaRef,
        context: &StepContext,
    ) -> Result<arrow::datatypes::SchemaRef, Failure> {
        self.inner.output_schema(input, context).await
    }

    async fn open(&self, context: &StepContext, shape: &StepShape) -> Result<Box<dyn StepSession>, Failure> {
        let inner = self.inner.open(context, shape).await?;
        Ok(Box::new(PanicOnceSession { inner, panics_left: self.panics_left.clone() }))
    }
}

#[async_trait]
impl StepSession for PanicOnceSession {
    async fn execute(&mut self, batch: ItemBatch) -> Result<BatchReply, Failure> {
        use std::sync::atomic::Ordering;
        let take = |left: u64| left.checked_sub(1);
        if self.panics_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
            let mut work = self.inner.execute(batch);
            // One poll begins the work; it is then dropped wherever it stands.
            let _ = futures::poll!(&mut work);
            std::panic::resume_unwind(Box::new("planned by the suite"));
        }
        self.inner.execute(batch).await
    }

    async fn close(self: Box<Self>) -> Result<(), Failure> {
        self.inner.close().await
    }
}
