//! The suite and the guard, tested with a step that doubles numbers and can be told to misbehave.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arrow::array::{AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use async_trait::async_trait;

use super::*;
use crate::{
    BatchReply, BatchTarget, Cardinality, Effects, Failure, FailureCode, FingerprintBuilder, ItemBatch, ItemIds,
    ItemKeys, Sent, StepDescription, StepSession, StepShape, attempt,
};

#[derive(Debug, Default)]
struct World {
    items: AtomicU64,
    fired: AtomicU64,
    poison: AtomicI64,
    transient: AtomicI64,
    stall: AtomicBool,
}

#[derive(Debug, Clone)]
struct Doubler {
    description: StepDescription,
    world: Arc<World>,
    deaf: bool,
    loses_rows: bool,
}

fn doubler(effects: Effects) -> Doubler {
    let description = StepDescription {
        kind: "double",
        summary: "doubles".to_owned(),
        reads: vec!["n".to_owned()],
        effects,
        cardinality: Cardinality::OneToOne,
        target: BatchTarget { rows: 64, bytes: 1 << 20, in_flight: 4 },
        connections: vec![],
        fingerprint: FingerprintBuilder::new("double", 1).finish(),
    };
    let world = Arc::new(World { poison: AtomicI64::new(-1), ..World::default() });
    Doubler { description, world, deaf: false, loses_rows: false }
}

fn schema(name: &str) -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new(name, DataType::Int64, true)]))
}

#[async_trait]
impl StepExecutor for Doubler {
    fn describe(&self) -> &StepDescription {
        &self.description
    }

    async fn output_schema(&self, _input: &SchemaRef, _context: &StepContext) -> Result<SchemaRef, Failure> {
        Ok(schema("doubled"))
    }

    async fn open(&self, _context: &StepContext, _shape: &StepShape) -> Result<Box<dyn StepSession>, Failure> {
        Ok(Box::new(self.clone()))
    }
}

#[async_trait]
impl StepSession for Doubler {
    async fn execute(&mut self, batch: ItemBatch) -> Result<BatchReply, Failure> {
        tokio::task::yield_now().await;
        self.world.items.fetch_add(batch.rows() as u64, Ordering::SeqCst);
        if batch.rows() > 0 && self.world.transient.fetch_sub(1, Ordering::SeqCst) > 0 {
            self.world.fired.fetch_add(1, Ordering::SeqCst);
            return Err(Failure::fixed(FailureCode::RateLimited, "later").sent(Sent::Refused));
        }
        if self.world.stall.load(Ordering::SeqCst) {
            self.world.fired.fetch_add(1, Ordering::SeqCst);
            if self.deaf {
                std::future::pending::<()>().await;
            }
            batch.cancel.cancelled().await;
            return Err(Failure::fixed(FailureCode::Cancelled, "cancelled"));
        }
        let input = batch.columns.column(0).as_primitive::<Int64Type>();
        let poison = self.world.poison.load(Ordering::SeqCst);
        if poison >= 0 && input.iter().any(|n| n == Some(poison)) {
            self.world.fired.fetch_add(1, Ordering::SeqCst);
            return Err(Failure::fixed(FailureCode::Rejected, "poisoned"));
        }
        let mut output: Int64Array = input.iter().map(|n| n.map(|n| n * 2)).collect();
        if self.loses_rows && output.len() > 1 {
            output = output.slice(1, output.len() - 1);
        }
        let output = RecordBatch::try_new(schema("doubled"), vec![Arc::new(output)]).unwrap();
        Ok(BatchReply::all_ok(output))
    }
}

struct Toy(Doubler);

#[async_trait]
impl Fixture for Toy {
    fn context(&self) -> StepContext {
        StepContext::new("run", "double", "tenant")
    }

    async fn executor(&self) -> Arc<dyn StepExecutor> {
        Arc::new(self.0.clone())
    }

    fn input(&self, rows: Range<u64>) -> RecordBatch {
        let column = Int64Array::from_iter_values(rows.map(|n| n as i64));
        RecordBatch::try_new(schema("n"), vec![Arc::new(column)]).unwrap()
    }

    fn input_with_nulls(&self, rows: Range<u64>) -> Option<RecordBatch> {
        let column: Int64Array = rows.map(|n| (n % 3 != 0).then_some(n as i64)).collect();
        Some(RecordBatch::try_new(schema("n"), vec![Arc::new(column)]).unwrap())
    }

    fn expected(&self, input: &RecordBatch) -> RecordBatch {
        let doubled: Int64Array =
            input.column(0).as_primitive::<Int64Type>().iter().map(|n| n.map(|n| n * 2)).collect();
        RecordBatch::try_new(schema("doubled"), vec![Arc::new(doubled)]).unwrap()
    }

    fn items_seen(&self) -> u64 {
        self.0.world.items.load(Ordering::SeqCst)
    }

    fn inject(&self, fault: Fault) -> bool {
        let world = &self.0.world;
        world.poison.store(-1, Ordering::SeqCst);
        world.transient.store(0, Ordering::SeqCst);
        world.stall.store(false, Ordering::SeqCst);
        match fault {
            Fault::None => {}
            Fault::Poison(row) => world.poison.store(row as i64, Ordering::SeqCst),
            Fault::Transient(times) => world.transient.store(times as i64, Ordering::SeqCst),
            Fault::Stall => world.stall.store(true, Ordering::SeqCst),
            Fault::Crash(_) => return false,
        }
        true
    }

    fn fired(&self) -> u64 {
        self.0.world.fired.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn a_good_step_passes() {
    for effects in [Effects::Pure, Effects::Idempotent] {
        assert_eq!(check_all(&Toy(doubler(effects))).await, ["crash"]);
    }
}

#[tokio::test]
async fn a_step_that_ignores_cancellation_is_dropped_and_passes() {
    let toy = Toy(Doubler { deaf: true, ..doubler(Effects::Pure) });
    assert_eq!(check_all(&toy).await, ["crash"]);
}

#[tokio::test]
#[should_panic(expected = "broke its contract")]
async fn a_step_that_loses_rows_does_not_pass() {
    check_all(&Toy(Doubler { loses_rows: true, ..doubler(Effects::Pure) })).await;
}

#[tokio::test]
async fn a_once_group_that_panics_is_unknown() {
    // The other cases cut groups in two, which `once` forbids; the suite's own case for it is the panic.
    let toy = Toy(doubler(Effects::Once));
    toy.inject(Fault::Poison(3));
    let schema = toy.input(0..1).schema();
    let driven = drive(&toy.0, &toy.context(), &schema, vec![toy.input(0..8)], &Options::default()).await.unwrap();
    assert_eq!(driven.attempts, 1, "never sent again");
    assert_eq!(driven.outcomes.get(crate::Outcome::Unknown), 8);
}

#[tokio::test]
async fn deadlines_hold_even_for_a_deaf_step() {
    let mut step = Doubler { deaf: true, ..doubler(Effects::Once) };
    let toy = Toy(step.clone());
    toy.inject(Fault::Stall);
    let context = toy.context();
    let started = Instant::now();
    let shape = StepShape { input: schema("n"), output: schema("doubled") };
    let batch = ItemBatch {
        columns: toy.input(0..2),
        keys: ItemKeys::new(ItemIds::Range { file: 0, rows: 0..2 }, Arc::new(context.keys())),
        attempt: 1,
        deadline: Some(tokio::time::Instant::now() + Duration::from_millis(50)),
        stop: context.cancel.clone(),
        cancel: context.cancel.clone(),
        place: None,
    };
    let ended = attempt(&mut step, batch, &context, &shape, Cardinality::OneToOne).await;
    let failure = ended.result.unwrap_err();
    assert_eq!((failure.code(), failure.how_far(), ended.usable), (FailureCode::Timeout, Sent::Maybe, false));
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(toy.fired(), 1);
}
