//! Measures each operator on the CPU and on the device, over the same rows in the same run: the table that decisions go
//! by, and how close the device comes to what its memory and its link can do.
//!
//! The CPU's times are DataFusion's with all of its partitions. The device's are those of the plan that the rule makes,
//! input in the host's memory; and of the kernels alone, input on the device.
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, Float64Array, Int32Array, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field};
use datafusion::common::Result;
use datafusion::datasource::MemTable;
use datafusion::error::DataFusionError;
use datafusion::physical_plan::{ExecutionPlan, collect};
use datafusion::prelude::{SessionConfig, SessionContext};
use rowmill_gpu::batch::DeviceBatch;
use rowmill_gpu::device::Device;
use rowmill_gpu::expr::column;
use rowmill_gpu::measure::{Bandwidths, bandwidths, best_ms};
use rowmill_gpu::ops::aggregate::{Aggregate, AggregateFunction};
use rowmill_gpu::ops::filter_aggregate::FilterAggregate;
use rowmill_gpu::ops::group_by::GroupBy;
use rowmill_gpu::ops::join::{Join, JoinKind};
use rowmill_gpu::ops::sort::{Sort, SortKey};
use rowmill_gpu::ops::top_k::{Corpus, Metric};

use crate::context::GpuContext;
use crate::decide::{Measurement, OffloadTable, Operator};
use crate::rule::GpuRule;

/// How often each time is taken; the best counts.
const REPEATS: usize = 3;
/// Bytes of the buffers that bandwidths are measured with.
const BANDWIDTH_BYTES: usize = 256 << 20;
/// Dimensions of the corpus, and queries at once.
const DIMS: usize = 384;
const QUERIES: usize = 64;

/// What was measured.
#[derive(Debug, Clone)]
pub struct Report {
    /// The yardsticks.
    pub bandwidths: Bandwidths,
    /// The table.
    pub table: OffloadTable,
}

/// Measures every operator over each of `rows`; `say` hears of each as it is done.
///
/// # Errors
/// When the device fails; a size that it has no room for is left out.
pub async fn measure(
    gpu: &Arc<GpuContext>,
    rows: &[u64],
    partitions: usize,
    mut say: impl FnMut(&Measurement),
) -> Result<Report> {
    let device = Arc::clone(gpu.device().map_err(DataFusionError::Execution)?);
    let most = device.memory().budget_bytes() / 4;
    let bandwidths = bandwidths(&device, BANDWIDTH_BYTES.min(most).max(1 << 20)).map_err(outside)?;
    let mut table = OffloadTable { device: device.info().name.clone(), measured: Vec::new() };
    for &rows in rows {
        let data = Data::new(rows);
        for operator in Operator::ALL {
            let measured = match operator {
                Operator::TopK => top_k(&device, rows),
                other => relational(gpu, &device, &data, other, partitions).await,
            };
            match measured {
                Ok(measurement) => {
                    say(&measurement);
                    table.measured.push(measurement);
                }
                Err(DataFusionError::External(error))
                    if matches!(
                        error.downcast_ref::<rowmill_gpu::Error>(),
                        Some(rowmill_gpu::Error::OutOfMemory { .. })
                    ) =>
                {
                    tracing::info!(rows, operator = operator.as_str(), "left out: no room on the device");
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(Report { bandwidths, table })
}

fn outside(error: rowmill_gpu::Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

struct Data {
    batch: RecordBatch,
    /// The build side of the join: a tenth of the rows.
    keys: RecordBatch,
}

impl Data {
    /// 28 bytes a row: a key with a hundredth as many values, an integer, a double, a day.
    fn new(rows: u64) -> Self {
        let groups = (rows / 100).max(1);
        // A multiplicative hash (Knuth) spreads the rows; the same numbers in every run.
        let mixed = |n: u64| n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
        let batch = batch([
            ("k", Arc::new(Int64Array::from_iter_values((0..rows).map(|n| (mixed(n) % groups) as i64))) as ArrayRef),
            ("i", Arc::new(Int64Array::from_iter_values((0..rows).map(|n| mixed(n + 1) as i64))) as ArrayRef),
            ("f", Arc::new(Float64Array::from_iter_values((0..rows).map(|n| (mixed(n) % 1000) as f64))) as ArrayRef),
            ("d", Arc::new(Int32Array::from_iter_values((0..rows).map(|n| (mixed(n) % 1000) as i32))) as ArrayRef),
        ]);
        let build =
            Int64Array::from_iter_values((0..(rows / 10).max(1)).map(|n| (mixed(n) % groups.max(10)) as i64 * 7));
        Self { batch, keys: self::batch([("k", Arc::new(build) as ArrayRef)]) }
    }
}

fn batch<const N: usize>(columns: [(&str, ArrayRef); N]) -> RecordBatch {
    RecordBatch::try_from_iter(columns)
        .unwrap_or_else(|_| RecordBatch::new_empty(Arc::new(arrow::datatypes::Schema::empty())))
}

async fn relational(
    gpu: &Arc<GpuContext>,
    device: &Arc<Device>,
    data: &Data,
    operator: Operator,
    partitions: usize,
) -> Result<Measurement> {
    let (sql, bytes_per_row) = match operator {
        Operator::FilterAggregate => ("SELECT sum(f), sum(i), min(k), count(*) FROM t WHERE d < 900", 28),
        Operator::GroupBy => ("SELECT k, sum(f) FROM t GROUP BY k", 16),
        Operator::Sort => ("SELECT i, f FROM t ORDER BY i", 16),
        _ => ("SELECT t.i FROM t WHERE k IN (SELECT k FROM b)", 16),
    };
    let config = SessionConfig::new().with_target_partitions(partitions).with_batch_size(16_384);
    let context = SessionContext::new_with_config(config);
    let rows = data.batch.num_rows();
    let table = |batch: &RecordBatch| {
        let share = batch.num_rows().div_ceil(partitions).max(1);
        let part = |at: usize| {
            let from = (at * share).min(batch.num_rows());
            vec![batch.slice(from, share.min(batch.num_rows() - from))]
        };
        MemTable::try_new(batch.schema(), (0..partitions).map(part).collect())
    };
    context.register_table("t", Arc::new(table(&data.batch)?))?;
    context.register_table("b", Arc::new(table(&data.keys)?))?;
    let plan = context.sql(sql).await?.create_physical_plan().await?;
    let taken = GpuRule::new(Arc::clone(gpu)).rewrite(Arc::clone(&plan))?.plan;
    let (cpu_ms, host_ms) = (time(&context, &plan).await?, time(&context, &taken).await?);
    let resident_ms = resident(device, data, operator).map_err(outside)?;
    Ok(Measurement {
        operator,
        rows: rows as u64,
        bytes: rows as u64 * bytes_per_row,
        cpu_ms,
        host_ms,
        resident_ms: Some(resident_ms),
    })
}

async fn time(context: &SessionContext, plan: &Arc<dyn ExecutionPlan>) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..REPEATS {
        let plan = datafusion::physical_plan::execution_plan::reset_plan_states(Arc::clone(plan))?;
        let start = Instant::now();
        collect(plan, context.task_ctx()).await?;
        best = best.min(start.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(best)
}

/// The kernels alone, over rows that are on the device.
fn resident(device: &Arc<Device>, data: &Data, operator: Operator) -> rowmill_gpu::Result<f64> {
    let schema = data.batch.schema();
    let rows = DeviceBatch::upload(device, &data.batch)?;
    let sum = || Aggregate::new(AggregateFunction::Sum, column(2), "s");
    match operator {
        Operator::FilterAggregate => {
            let query = FilterAggregate::try_new(schema, None, &[sum()])?;
            best_ms(|| query.run(device, &rows).map(drop))
        }
        Operator::GroupBy => {
            let query = GroupBy::try_new(schema, None, vec![("k".into(), column(0))], &[sum()])?;
            best_ms(|| query.run(device, &rows).map(drop))
        }
        Operator::Sort => {
            let keys = vec![SortKey { expr: column(1), descending: false, nulls_first: false }];
            let query = Sort::try_new(schema, keys, None)?;
            best_ms(|| query.run(device, &rows).and_then(|_| device.synchronize()))
        }
        _ => {
            let keys = DeviceBatch::upload(device, &data.keys)?;
            let query = Join::try_new(schema, data.keys.schema(), vec![(column(0), column(0))], JoinKind::LeftSemi)?;
            best_ms(|| query.run(device, &rows, &keys).and_then(|_| device.synchronize()))
        }
    }
}

fn top_k(device: &Arc<Device>, rows: u64) -> Result<Measurement> {
    let vectors = |count: u64, seed: u64| {
        let item = Arc::new(Field::new_list_field(DataType::Float32, true));
        let value = |n: u64| ((n + seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as f32 / (1 << 24) as f32 - 0.5;
        let values = Float32Array::from_iter_values((0..count * DIMS as u64).map(value));
        FixedSizeListArray::try_new(item, DIMS as i32, Arc::new(values), None)
    };
    let (corpus, queries) = (vectors(rows, 0)?, vectors(QUERIES as u64, 1 << 40)?);
    let search = |corpus: &Corpus| best_ms(|| corpus.search(&queries, 10).map(drop));
    let on_device = || Corpus::try_new(&corpus, Metric::Cosine, Some(device));
    // The first time its kernel is compiled, which is not what a copy takes.
    on_device().map_err(outside)?;
    let start = Instant::now();
    let resident = on_device().map_err(outside)?;
    let upload_ms = start.elapsed().as_secs_f64() * 1000.0;
    let resident_ms = search(&resident).map_err(outside)?;
    let in_memory = Corpus::try_new(&corpus, Metric::Cosine, None).map_err(outside)?;
    Ok(Measurement {
        operator: Operator::TopK,
        rows,
        bytes: rows * DIMS as u64 * 4,
        cpu_ms: search(&in_memory).map_err(outside)?,
        host_ms: upload_ms + resident_ms,
        resident_ms: Some(resident_ms),
    })
}
