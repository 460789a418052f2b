//! The conformance suite against SQLite. A database in this process has no log of its own, so the fixture counts items
//! where they pass, between the engine and the step.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{Int64Type, SchemaRef};
use async_trait::async_trait;
use rowmill_step::conformance::{Fault, Fixture, check_all};
use rowmill_step::{
    BatchReply, Failure, ItemBatch, StepContext, StepDescription, StepExecutor, StepSession, StepShape,
};
use rowmill_step_lookup::{LookupOptions, LookupStep, Matches};

use crate::support::{Place, Sqlite, context};

struct Numbers {
    place: Sqlite,
    poison: AtomicU64,
    items: Arc<AtomicU64>,
    fired: Arc<AtomicU64>,
    matches: Matches,
}

/// Counts what reaches the step's sessions with something to do, and failures that come back.
#[derive(Debug)]
struct Counting {
    inner: LookupStep,
    items: Arc<AtomicU64>,
    fired: Arc<AtomicU64>,
}

struct CountingSession {
    inner: Box<dyn StepSession>,
    items: Arc<AtomicU64>,
    fired: Arc<AtomicU64>,
}

#[async_trait]
impl StepExecutor for Counting {
    fn describe(&self) -> &StepDescription {
        self.inner.describe()
    }

    async fn output_schema(&self, input: &SchemaRef, context: &StepContext) -> Result<SchemaRef, Failure> {
        self.inner.output_schema(input, context).await
    }

    async fn open(&self, context: &StepContext, shape: &StepShape) -> Result<Box<dyn StepSession>, Failure> {
        let inner = self.inner.open(context, shape).await?;
        Ok(Box::new(CountingSession { inner, items: self.items.clone(), fired: self.fired.clone() }))
    }
}

#[async_trait]
impl StepSession for CountingSession {
    async fn execute(&mut self, batch: ItemBatch) -> Result<BatchReply, Failure> {
        self.items.fetch_add(batch.rows() as u64, Ordering::SeqCst);
        let result = self.inner.execute(batch).await;
        self.fired.fetch_add(u64::from(result.is_err()), Ordering::SeqCst);
        result
    }

    async fn close(self: Box<Self>) -> Result<(), Failure> {
        self.inner.close().await
    }
}

#[async_trait]
impl Fixture for Numbers {
    fn context(&self) -> StepContext {
        context(self.place.settings())
    }

    async fn executor(&self) -> Arc<dyn StepExecutor> {
        // The poisoned number makes SQLite's JSON parser fail, and with it the query.
        let poison = self.poison.load(Ordering::SeqCst);
        let query = format!(
            "select doubled from numbers where n = {{n}} and json_valid(json_extract(case when {{n}} = {poison} then '[' else '1' end, '$'))"
        );
        let options = LookupOptions { matches: self.matches, ..LookupOptions::new("db", &query) };
        let inner = LookupStep::try_new(options).unwrap();
        Arc::new(Counting { inner, items: self.items.clone(), fired: self.fired.clone() })
    }

    fn input(&self, rows: Range<u64>) -> RecordBatch {
        let column: ArrayRef = Arc::new(Int64Array::from_iter_values(rows.map(|n| n as i64)));
        RecordBatch::try_from_iter_with_nullable([("n", column, true)]).unwrap()
    }

    fn input_with_nulls(&self, rows: Range<u64>) -> Option<RecordBatch> {
        let column: ArrayRef = Arc::new(rows.map(|n| (n % 3 != 1).then_some(n as i64)).collect::<Int64Array>());
        Some(RecordBatch::try_from_iter_with_nullable([("n", column, true)]).unwrap())
    }

    fn expected(&self, input: &RecordBatch) -> RecordBatch {
        let numbers = input.column(0).as_primitive::<Int64Type>();
        let column: ArrayRef = Arc::new(numbers.iter().map(|n| n.map(|n| n * 2)).collect::<Int64Array>());
        RecordBatch::try_from_iter_with_nullable([("doubled", column, true)]).unwrap()
    }

    fn items_seen(&self) -> u64 {
        self.items.load(Ordering::SeqCst)
    }

    fn inject(&self, fault: Fault) -> bool {
        match fault {
            Fault::None => self.poison.store(u32::MAX.into(), Ordering::SeqCst),
            Fault::Poison(row) => self.poison.store(row, Ordering::SeqCst),
            // What hangs, dies or comes back is tested against the real servers.
            Fault::Transient(_) | Fault::Stall | Fault::Crash(_) => return false,
        }
        true
    }

    fn fired(&self) -> u64 {
        self.fired.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn sqlite() {
    for matches in [Matches::All, Matches::One] {
        let place = Sqlite::new();
        place.run(
            "with recursive c(n) as (select 0 union all select n + 1 from c where n < 6000) \
             insert into numbers select n, n * 2 from c",
        );
        let fixture = Numbers {
            place,
            poison: AtomicU64::new(u32::MAX.into()),
            items: Arc::default(),
            fired: Arc::default(),
            matches,
        };
        assert_eq!(check_all(&fixture).await, ["crash", "retry", "cancel_in_the_middle"]);
    }
}
