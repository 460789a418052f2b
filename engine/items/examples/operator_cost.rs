//! What the step operator costs for an item: a step kind that does nothing, groups of one item and of 8,192, beside
//! the same batches passed through a channel. Prints the medians of 11 rounds in nanoseconds of the thread's time on a
//! core (Linux only), so that other load on the machine hardly counts.
//!
//! ```text
//! cargo run --release -p rowmill-items --example operator_cost
//! ```
#![allow(clippy::allow_attributes)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::disallowed_methods)]

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use futures::StreamExt as _;
use rowmill_items::{Ledger, OperatorParts, Scope, StepOperator, StepPolicy, Tally};
use rowmill_step::{
    BatchReply, BatchTarget, Cardinality, Effects, Failure, FingerprintBuilder, ItemBatch, StepContext,
    StepDescription, StepExecutor, StepSession, StepShape,
};

const BATCH: usize = 8192;

#[derive(Debug)]
struct Echo(StepDescription);

struct EchoSession(SchemaRef);

#[async_trait]
impl StepExecutor for Echo {
    fn describe(&self) -> &StepDescription {
        &self.0
    }

    async fn output_schema(&self, _input: &SchemaRef, _context: &StepContext) -> Result<SchemaRef, Failure> {
        Ok(schema("y"))
    }

    async fn open(&self, _context: &StepContext, shape: &StepShape) -> Result<Box<dyn StepSession>, Failure> {
        Ok(Box::new(EchoSession(Arc::clone(&shape.output))))
    }
}

#[async_trait]
impl StepSession for EchoSession {
    async fn execute(&mut self, batch: ItemBatch) -> Result<BatchReply, Failure> {
        let columns = batch.columns.columns().to_vec();
        Ok(BatchReply::all_ok(RecordBatch::try_new(Arc::clone(&self.0), columns).unwrap()))
    }
}

fn schema(name: &str) -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new(name, DataType::Int64, true)]))
}

fn input(batches: usize) -> Vec<RecordBatch> {
    let column = |at: usize| Int64Array::from_iter_values((at * BATCH..(at + 1) * BATCH).map(|x| x as i64));
    (0..batches).map(|at| RecordBatch::try_new(schema("x"), vec![Arc::new(column(at))]).unwrap()).collect()
}

/// How long this thread has been on a core.
fn on_core() -> Duration {
    let times = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux counts a thread's time");
    Duration::from_nanos(times.split(' ').next().unwrap().parse().unwrap())
}

async fn through(batches: Vec<RecordBatch>, rows: usize, in_flight: usize) -> Duration {
    let description = StepDescription {
        kind: "echo",
        summary: String::new(),
        reads: vec!["x".to_owned()],
        effects: Effects::Pure,
        cardinality: Cardinality::OneToOne,
        target: BatchTarget { rows, bytes: usize::MAX, in_flight },
        connections: Vec::new(),
        fingerprint: FingerprintBuilder::new("echo", 1).finish(),
    };
    let operator = StepOperator::try_new(OperatorParts {
        policy: StepPolicy::of(&description),
        executor: Arc::new(Echo(description)),
        context: StepContext::new("run", "step", ""),
        shape: StepShape { input: schema("x"), output: schema("y") },
        input: schema("x"),
        limits: Vec::new(),
        cache: None,
        tally: Arc::default(),
    })
    .unwrap();
    let ledger = Arc::new(Ledger::new(&schema("x"), std::env::temp_dir().join("operator_cost.arrow")));
    let tally = Arc::new(Tally::part_of(operator.tally()));
    let scope = Scope { place: 0, ledger, tally, log: None, earlier: None };
    let items: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let start = on_core();
    let mut stream = operator.run(scope, futures::stream::iter(batches.into_iter().map(Ok)).boxed());
    let mut got = 0;
    while let Some(batch) = stream.next().await {
        got += batch.unwrap().num_rows();
    }
    let taken = on_core() - start;
    assert_eq!(got, items);
    operator.close().await;
    assert!(operator.tally().snapshot().is_conserved());
    taken
}

async fn passed(batches: Vec<RecordBatch>) -> Duration {
    let start = on_core();
    let (sender, mut receiver) = tokio::sync::mpsc::channel(2);
    let task = tokio::spawn(async move {
        for batch in batches {
            sender.send(batch).await.unwrap();
        }
    });
    let mut got = 0;
    while let Some(batch) = receiver.recv().await {
        got += batch.num_rows();
    }
    task.await.unwrap();
    assert!(got > 0);
    on_core() - start
}

fn median(mut times: Vec<Duration>, items: usize) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e9 / items as f64
}

fn main() {
    // One thread: what is measured is work, not waiting for another core.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for (rows, batches, in_flight) in [(1, 25, 1), (1, 25, 256), (100, 500, 16), (BATCH, 5000, 4)] {
            let data = input(batches);
            let items = batches * BATCH;
            let (mut steps, mut plain) = (Vec::new(), Vec::new());
            for _ in 0..11 {
                plain.push(passed(data.clone()).await);
                steps.push(through(data.clone(), rows, in_flight).await);
            }
            let (step, plain) = (median(steps, items), median(plain, items));
            println!("groups of {rows:>4}, {in_flight:>3} in flight: {step:>8.2} ns an item, passed on {plain:.2} ns");
        }
    });
}
