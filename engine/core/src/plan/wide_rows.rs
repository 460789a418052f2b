//! Batches of wide rows, bounded by bytes: a batch of documents may not take a hundred thousand bytes a row.
//!
//! Scans of wide rows read few rows at a time (`sources/table.rs`). What stands above them is seen to by a rule at the end of
//! the optimizer: filters do not gather such batches up again, and projections that make text, which may be much longer
//! than what it is made from, evaluate a batch piece by piece.

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, AsArray as _, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, Statistics, internal_err};
use datafusion::datasource::physical_plan::FileScanConfig;
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::projection::Projector;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::execution_plan::{CardinalityEffect, ChildrenPropertiesMode, ReplaceChildrenOptions};
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    ChildStats, DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, StatisticsArgs,
};
use futures::StreamExt as _;

use super::meter::MeterExec;

/// Bytes that a batch of wide rows aims at.
pub(crate) const BATCH_BYTES: usize = 8 << 20;
/// Rows that are evaluated before it is known how long they become.
const FIRST_ROWS: usize = 256;
/// How much longer a piece may be than the one before.
const GROWTH: usize = 16;

/// Rows of a batch whose rows have so many bytes, of `most` at most.
pub(crate) fn rows_for(row_bytes: usize, most: usize) -> usize {
    (BATCH_BYTES / row_bytes.max(1)).clamp(1, most.max(1))
}

/// Bytes that the rows of a batch stand for: what is shared between rows counts for each of them.
pub(crate) fn bytes_of(batch: &RecordBatch) -> usize {
    batch.columns().iter().map(|column| array_bytes(column)).sum()
}

fn array_bytes(array: &dyn Array) -> usize {
    const LENGTH: u128 = 0xffff_ffff;
    let lengths = |views: &[u128]| views.iter().map(|view| (view & LENGTH) as usize + size_of::<u128>()).sum();
    match array.data_type() {
        DataType::Utf8View => lengths(array.as_string_view().views()),
        DataType::BinaryView => lengths(array.as_binary_view().views()),
        _ => array.to_data().get_slice_memory_size().unwrap_or_else(|_| array.get_array_memory_size()),
    }
}

/// The rule; see the module.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WideRows;

impl PhysicalOptimizerRule for WideRows {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        bounded(plan).map(|(plan, _)| plan)
    }

    fn name(&self) -> &str {
        "wide_rows"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// A plan that holds its batches to size, and the rows of its batches where those are few.
fn bounded(plan: Arc<dyn ExecutionPlan>) -> Result<(Arc<dyn ExecutionPlan>, Option<usize>)> {
    if let Some(scan) = plan.downcast_ref::<DataSourceExec>() {
        let rows = scan.data_source().downcast_ref::<FileScanConfig>().and_then(|files| files.batch_size);
        return Ok((plan, rows));
    }
    let (mut changed, mut few) = (false, None);
    let mut children = Vec::with_capacity(plan.children().len());
    for child in plan.children() {
        let (new, rows) = bounded(Arc::clone(child))?;
        changed |= !Arc::ptr_eq(&new, child);
        few = rows;
        children.push(new);
    }
    let plan = if changed { datafusion::physical_plan::replace_children_if_necessary(plan, children)? } else { plan };
    if let Some(filter) = plan.downcast_ref::<FilterExec>() {
        return Ok(match few {
            Some(rows) => (Arc::new(filter.with_batch_size(rows)?), few),
            None => (plan, None),
        });
    }
    if let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
        return Ok(match makes_text(projection) {
            true => (Arc::new(PiecewiseExec::try_new(projection.clone())?), few),
            false => (plan, few),
        });
    }
    let hands_on =
        plan.downcast_ref::<MeterExec>().is_some() || plan.downcast_ref::<CoalescePartitionsExec>().is_some();
    Ok((plan, few.filter(|_| hands_on)))
}

/// Whether a column is computed whose values may be of any length.
fn makes_text(projection: &ProjectionExec) -> bool {
    let schema = projection.schema();
    let columns = projection.expr().iter().zip(schema.fields());
    columns.into_iter().any(|(column, field)| {
        let kind = field.data_type();
        let any_length = kind.is_string() || kind.is_binary() || kind.is_list() || matches!(kind, DataType::Struct(_));
        any_length && column.expr.downcast_ref::<Column>().is_none()
    })
}

/// A projection that evaluates its expressions on pieces of a batch, so that what they make is bounded.
#[derive(Debug, Clone)]
pub(crate) struct PiecewiseExec {
    inner: ProjectionExec,
    projector: Projector,
}

impl PiecewiseExec {
    fn try_new(inner: ProjectionExec) -> Result<Self> {
        let projector = inner.projection_expr().make_projector(&inner.input().schema())?;
        Ok(PiecewiseExec { inner, projector })
    }
}

impl DisplayAs for PiecewiseExec {
    fn fmt_as(&self, kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt_as(kind, f)
    }
}

impl ExecutionPlan for PiecewiseExec {
    fn name(&self) -> &str {
        "PiecewiseExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.inner.properties()
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        self.inner.maintains_input_order()
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        self.inner.benefits_from_input_partitioning()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![self.inner.input()]
    }

    fn apply_expressions(
        &self,
        visit: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        self.inner.apply_expressions(visit)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let inner = Arc::new(self.inner.clone()).replace_children(children, options)?;
        match inner.downcast_ref::<ProjectionExec>() {
            Some(inner) => Ok(Arc::new(PiecewiseExec::try_new(inner.clone())?)),
            None => internal_err!("a projection stays one"),
        }
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.inner.input().execute(partition, context)?;
        let schema = self.inner.schema();
        let pieces = Pieces {
            input,
            projector: self.projector.clone(),
            schema: Arc::clone(&schema),
            rest: None,
            rows: FIRST_ROWS,
        };
        let pieces = futures::stream::try_unfold(pieces, Pieces::next);
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, pieces)))
    }

    fn child_stats_requests(&self, partition: Option<usize>) -> Vec<ChildStats> {
        self.inner.child_stats_requests(partition)
    }

    fn statistics_from_inputs(
        &self,
        inputs: &[Arc<Statistics>],
        arguments: &StatisticsArgs,
    ) -> Result<Arc<Statistics>> {
        self.inner.statistics_from_inputs(inputs, arguments)
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::Equal
    }
}

/// Pieces of batches, projected.
struct Pieces {
    input: SendableRecordBatchStream,
    projector: Projector,
    schema: SchemaRef,
    rest: Option<RecordBatch>,
    /// Rows of the next piece.
    rows: usize,
}

impl Pieces {
    async fn next(mut self) -> Result<Option<(RecordBatch, Self)>> {
        let batch = match self.rest.take() {
            Some(batch) => batch,
            None => match self.input.next().await.transpose()? {
                Some(batch) => batch,
                None => return Ok(None),
            },
        };
        let rows = self.rows.min(batch.num_rows());
        if rows < batch.num_rows() {
            self.rest = Some(batch.slice(rows, batch.num_rows() - rows));
        }
        let made = self.projector.project_batch(&batch.slice(0, rows))?;
        let options = RecordBatchOptions::new().with_row_count(Some(made.num_rows()));
        let made = RecordBatch::try_new_with_options(Arc::clone(&self.schema), made.columns().to_vec(), &options)?;
        if rows > 0 {
            self.rows = rows_for(bytes_of(&made).div_ceil(rows), rows.saturating_mul(GROWTH).max(FIRST_ROWS));
        }
        Ok(Some((made, self)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringViewArray};

    use super::*;

    #[test]
    fn rows_are_as_many_as_fit() {
        assert_eq!(rows_for(8, 16_384), 16_384);
        assert_eq!(rows_for(0, 16_384), 16_384);
        assert_eq!(rows_for(85_000, 16_384), 98);
        assert_eq!(rows_for(usize::MAX, 16_384), 1);
    }

    #[test]
    fn what_rows_share_counts_for_each() {
        let text = "x".repeat(1_000);
        let views: ArrayRef = Arc::new(StringViewArray::from_iter_values(vec![text.as_str(); 10]));
        let batch = RecordBatch::try_from_iter([("a", views), ("b", Arc::new(Int64Array::from(vec![1; 10])) as _)]);
        let batch = batch.unwrap();
        assert_eq!(bytes_of(&batch), 10 * (1_000 + 16 + 8));
        assert_eq!(bytes_of(&batch.slice(3, 2)), 2 * (1_000 + 16 + 8));
    }
}
