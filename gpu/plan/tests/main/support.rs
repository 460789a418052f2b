//! Plans of SQL over the test batches, run with and without the rule, and compared.
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::{SortColumn, concat_batches, lexsort_to_indices, take_record_batch};
use arrow::datatypes::{DataType, Float64Type};
use datafusion::common::Result;
use datafusion::datasource::MemTable;
use datafusion::physical_plan::{ExecutionPlan, collect, displayable};
use datafusion::prelude::{SessionConfig, SessionContext};
use rowmill_gpu_plan::{GpuContext, GpuOptions, GpuRule, GpuUse, Rewritten};

use crate::data;

/// The options of most tests: everything with a kernel is taken, in small launches.
pub(crate) fn always() -> GpuOptions {
    GpuOptions { usage: GpuUse::Always, launch_bytes: 64 * 1024, ..GpuOptions::default() }
}

/// A session with tables `t` and `u`, in batches that begin anywhere.
pub(crate) fn session(rows: usize, partitions: usize, seed: u64) -> SessionContext {
    let config = SessionConfig::new().with_target_partitions(partitions).with_batch_size(400);
    let context = SessionContext::new_with_config(config);
    for (name, rows, seed) in [("t", rows, seed), ("u", rows / 3 + 1, seed + 100)] {
        let whole = data::batch(rows, seed);
        let parts = (0..partitions)
            .map(|part| {
                let (from, to) = (rows * part / partitions, rows * (part + 1) / partitions);
                let middle = (from + to) / 2;
                vec![whole.slice(from, middle - from), whole.slice(middle, to - middle)]
            })
            .collect();
        context.register_table(name, Arc::new(MemTable::try_new(whole.schema(), parts).unwrap())).unwrap();
    }
    context
}

/// The plan of a query, and what the rule makes of another one like it: nodes such as repartitions run once only, so the
/// two share none.
pub(crate) async fn plans(
    context: &SessionContext,
    gpu: &Arc<GpuContext>,
    sql: &str,
) -> (Arc<dyn ExecutionPlan>, Rewritten) {
    let plan = async || {
        let plan = context.sql(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        plan.create_physical_plan().await.unwrap_or_else(|error| panic!("{sql}: {error}"))
    };
    let rewritten = GpuRule::new(Arc::clone(gpu)).rewrite(plan().await).unwrap();
    (plan().await, rewritten)
}

pub(crate) fn text(plan: &Arc<dyn ExecutionPlan>) -> String {
    displayable(plan.as_ref()).indent(false).to_string()
}

pub(crate) async fn rows(context: &SessionContext, plan: &Arc<dyn ExecutionPlan>) -> Result<RecordBatch> {
    let batches = collect(Arc::clone(plan), context.task_ctx()).await?;
    Ok(concat_batches(&plan.schema(), &batches)?)
}

/// The columns of a plan's output that its sort is by, as far as they are columns.
pub(crate) fn sorted_columns(plan: &Arc<dyn ExecutionPlan>) -> Vec<usize> {
    use datafusion::physical_expr::expressions::Column;
    let ordering = plan.properties().output_ordering().into_iter().flatten();
    ordering.map_while(|key| key.expr.downcast_ref::<Column>().map(Column::index)).collect()
}

/// The sum of a counter over all nodes of a plan.
pub(crate) fn count(plan: &Arc<dyn ExecutionPlan>, name: &str) -> usize {
    let own = plan.metrics().and_then(|metrics| metrics.sum_by_name(name)).map_or(0, |value| value.as_usize());
    own + plan.children().into_iter().map(|child| count(child, name)).sum::<usize>()
}

/// Rows in the order of their columns, those of approximate floats last.
fn in_order(batch: &RecordBatch, exact: &[usize]) -> RecordBatch {
    if exact.is_empty() || batch.num_rows() == 0 {
        return batch.clone();
    }
    let columns: Vec<SortColumn> =
        exact.iter().map(|at| SortColumn { values: Arc::clone(batch.column(*at)), options: None }).collect();
    take_record_batch(batch, &lexsort_to_indices(&columns, None).unwrap()).unwrap()
}

/// Compares two results as bags. Columns whose name begins with `about` are floats within rounding, all others equal.
pub(crate) fn assert_same(expected: &RecordBatch, found: &RecordBatch, what: &str) {
    assert_eq!(expected.schema().fields(), found.schema().fields(), "{what}");
    let (about, exact): (Vec<usize>, Vec<usize>) =
        (0..expected.num_columns()).partition(|at| expected.schema().field(*at).name().starts_with("about"));
    let (expected, found) = (in_order(expected, &exact), in_order(found, &exact));
    data::assert_equal(&expected.project(&exact).unwrap(), &found.project(&exact).unwrap(), what);
    for at in about {
        let (left, right) = (expected.column(at), found.column(at));
        assert_eq!(left.data_type(), &DataType::Float64, "{what}");
        for row in 0..left.len() {
            assert_eq!(left.is_null(row), right.is_null(row), "{what}: row {row}");
            let (l, r) = (value(left, row), value(right, row));
            let close = l == r || (l.is_nan() && r.is_nan()) || ((l - r) / l).abs() < 1e-9;
            assert!(close || left.is_null(row), "{what}: row {row}: {l} {r}");
        }
    }
}

fn value(array: &ArrayRef, row: usize) -> f64 {
    array.as_primitive::<Float64Type>().value(row)
}

/// Runs a query both ways; fails unless the device took part. Both may fail alike.
pub(crate) async fn check(context: &SessionContext, gpu: &Arc<GpuContext>, sql: &str, node: &str) {
    let (plan, rewritten) = plans(context, gpu, sql).await;
    let taken = &rewritten.plan;
    if text(&plan).contains("PlaceholderRowExec") {
        // Answered from what is known about an empty table.
        return;
    }
    assert!(text(taken).contains(node), "{sql}\n{:#?}\n{}", rewritten.notes, text(&plan));
    assert_eq!(plan.schema().fields(), taken.schema().fields(), "{sql}");
    match (rows(context, &plan).await, rows(context, taken).await) {
        (Ok(expected), Ok(found)) => {
            assert_same(&expected, &found, sql);
            assert_eq!(count(taken, "cpu_rows"), 0, "{sql}");
        }
        (Err(expected), Err(found)) => {
            assert_eq!(expected.strip_backtrace(), found.strip_backtrace(), "{sql}");
        }
        (expected, found) => panic!("{sql}: expected {expected:?}, found {found:?}"),
    }
}
