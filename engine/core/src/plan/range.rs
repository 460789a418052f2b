//! A source that counts: one `int64` column `value`, made in parallel, a batch at a time.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::{Result, Statistics};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::memory::{LazyBatchGenerator, LazyMemoryExec};
use parking_lot::RwLock;

/// The numbers from `start` to before `end`.
#[derive(Debug)]
pub struct RangeTable {
    start: i64,
    end: i64,
    schema: SchemaRef,
}

impl RangeTable {
    /// A table of `end - start` rows; none where `end <= start`.
    pub fn new(start: i64, end: i64) -> Self {
        let schema = Arc::new(Schema::new(vec![Field::new("value", DataType::Int64, false)]));
        RangeTable { start, end: end.max(start), schema }
    }
}

#[async_trait]
impl TableProvider for RangeTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        // A limit is no reason to make fewer: batches are made on demand, and the limit above stops asking.
        let _ = limit;
        let partitions = state.config().target_partitions().max(1);
        let batch_rows = state.config().batch_size().max(1);
        let total = self.end.abs_diff(self.start);
        let share = total.div_ceil(partitions as u64).max(1);
        let generators = (0..partitions as u64)
            .map(|partition| {
                let low = self.start.saturating_add_unsigned((partition * share).min(total));
                let high = self.start.saturating_add_unsigned(((partition + 1) * share).min(total));
                let generator = RangeGenerator { schema: self.schema.clone(), range: low..high, next: low, batch_rows };
                Arc::new(RwLock::new(generator)) as Arc<RwLock<dyn LazyBatchGenerator>>
            })
            .collect();
        let plan = LazyMemoryExec::try_new(self.schema.clone(), generators)?;
        Ok(Arc::new(plan.with_projection(projection.cloned())))
    }

    fn statistics(&self) -> Option<Statistics> {
        let mut statistics = Statistics::new_unknown(&self.schema);
        statistics.num_rows = Precision::Exact(self.end.abs_diff(self.start) as usize);
        Some(statistics)
    }
}

/// Makes the numbers of one partition, one batch a call.
#[derive(Debug)]
struct RangeGenerator {
    schema: SchemaRef,
    range: Range<i64>,
    next: i64,
    batch_rows: usize,
}

impl fmt::Display for RangeGenerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "range: {}..{}, batch_rows={}", self.range.start, self.range.end, self.batch_rows)
    }
}

impl LazyBatchGenerator for RangeGenerator {
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }

    fn generate_next_batch(&mut self) -> Result<Option<RecordBatch>> {
        if self.next >= self.range.end {
            return Ok(None);
        }
        let end = self.next.saturating_add(self.batch_rows as i64).min(self.range.end);
        let values: ArrayRef = Arc::new(Int64Array::from_iter_values(self.next..end));
        self.next = end;
        Ok(Some(RecordBatch::try_new(self.schema.clone(), vec![values])?))
    }

    fn reset_state(&self) -> Arc<RwLock<dyn LazyBatchGenerator>> {
        Arc::new(RwLock::new(RangeGenerator {
            schema: self.schema.clone(),
            range: self.range.clone(),
            next: self.range.start,
            batch_rows: self.batch_rows,
        }))
    }
}
