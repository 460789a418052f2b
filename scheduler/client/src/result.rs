//! What a cluster made of a part of a plan, once it is here.

use std::sync::Arc;

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::record_batch::{RecordBatch, RecordBatchOptions};
use datafusion::common::Result;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, SpillFile, TaskContext};
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, SpillMetrics};
use datafusion::physical_plan::spill::{SpillManager, get_record_batch_memory_size};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt as _;

/// The batch under the schema that was planned: what a stage writes knows no metadata of fields, and may know less or more
/// of nulls.
///
/// # Errors
/// Its columns are others.
pub(crate) fn as_planned(batch: RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let rows = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), batch.columns().to_vec(), &rows)?)
}

/// What a cluster made of a part, here.
#[derive(Debug)]
pub(crate) struct JobResult {
    pub(crate) schema: SchemaRef,
    pub(crate) partitions: Vec<Kept>,
}

impl JobResult {
    /// The rows of a partition.
    ///
    /// # Errors
    /// There is no such partition.
    pub(crate) fn rows(&self, partition: usize) -> Result<SendableRecordBatchStream> {
        let Some(kept) = self.partitions.get(partition) else {
            return datafusion::common::internal_err!("a result has no partition {partition}");
        };
        Ok(kept.rows(&self.schema))
    }
}

/// Rows of a result.
#[derive(Clone)]
pub(crate) enum Piece {
    Batch(RecordBatch),
    Spilled(Arc<dyn SpillFile>),
}

/// The rows of one partition: in memory as far as it goes, then on disk.
pub(crate) struct Kept {
    pub(crate) pieces: Vec<Piece>,
    reservation: MemoryReservation,
    pub(crate) spill: SpillManager,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").field("pieces", &self.pieces.len()).finish_non_exhaustive()
    }
}

impl Kept {
    pub(crate) fn new(schema: &SchemaRef, context: &Arc<TaskContext>, partition: usize) -> Self {
        let metrics = SpillMetrics::new(&ExecutionPlanMetricsSet::new(), partition);
        let spill = SpillManager::new(context.runtime_env(), metrics, Arc::clone(schema))
            .with_compression_type(context.session_config().spill_compression());
        let consumer = MemoryConsumer::new("results of a cluster").with_can_spill(true);
        Self { pieces: Vec::new(), reservation: consumer.register(context.memory_pool()), spill }
    }

    /// Keeps a batch in memory; false where there is none left.
    pub(crate) fn keep(&mut self, batch: &RecordBatch) -> bool {
        let granted = self.reservation.try_grow(get_record_batch_memory_size(batch)).is_ok();
        if granted {
            self.pieces.push(Piece::Batch(batch.clone()));
        }
        granted
    }

    fn rows(&self, schema: &SchemaRef) -> SendableRecordBatchStream {
        let spill = self.spill.clone();
        let rows = futures::stream::iter(self.pieces.clone()).flat_map(move |piece| match piece {
            Piece::Batch(batch) => futures::stream::once(async move { Ok(batch) }).boxed(),
            Piece::Spilled(file) => match spill.read_spill_as_stream(file, None) {
                Ok(rows) => rows.boxed(),
                Err(error) => futures::stream::once(async move { Err(error) }).boxed(),
            },
        });
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(schema), rows.boxed()))
    }
}
