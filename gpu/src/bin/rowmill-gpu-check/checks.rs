//! Every operator against its CPU reference, at numbers of rows where warps, blocks and launches end.
use std::sync::Arc;

use arrow::array::{Float64Array, Int64Array, RecordBatch};
use arrow::compute::{SortColumn, lexsort_to_indices, take_record_batch};
use rowmill_gpu::batch::DeviceBatch;
use rowmill_gpu::device::Device;
use rowmill_gpu::expr::{BinaryOp, GpuExpr, column, literal};
use rowmill_gpu::ops::aggregate::{Aggregate, AggregateFunction};
use rowmill_gpu::ops::filter_aggregate::FilterAggregate;
use rowmill_gpu::ops::group_by::GroupBy;
use rowmill_gpu::ops::join::{Join, JoinKind};
use rowmill_gpu::ops::project::Project;
use rowmill_gpu::ops::sort::{Sort, SortKey};
use rowmill_gpu::ops::top_k::Metric;
use rowmill_gpu::ops::top_k::cpu::CpuCorpus;
use rowmill_gpu::ops::top_k::gpu::GpuCorpus;
use rowmill_gpu::{Error, Result};

use crate::data;

/// The outcome for one operator.
pub(crate) struct Check {
    pub(crate) name: &'static str,
    pub(crate) failure: Option<String>,
}

const ROWS: [usize; 7] = [0, 1, 31, 33, 1025, 70_000, 300_000];

/// Runs all checks; one that fails does not keep the others from running.
pub(crate) fn all(device: &Arc<Device>) -> Vec<Check> {
    type Run = fn(&Arc<Device>, usize) -> Result<()>;
    let checks: [(&'static str, Run); 6] = [
        ("project", project),
        ("filter + aggregate", filter_aggregate),
        ("group by", group_by),
        ("top-k", top_k),
        ("sort", sort),
        ("join", join),
    ];
    // The emulator is four orders of magnitude slower than a device.
    let largest = if device.info().name == "CPU emulator" { 1025 } else { usize::MAX };
    let run = |run: Run| {
        ROWS.iter()
            .filter(|&&rows| rows <= largest)
            .find_map(|&rows| run(device, rows).err().map(|error| format!("{rows} rows: {error}")))
    };
    checks.into_iter().map(|(name, check)| Check { name, failure: run(check) }).collect()
}

fn differ(what: &str) -> Error {
    Error::Invalid(format!("{what} differs from the CPU reference"))
}

/// Bit-equal after bringing rows into one order; NaN equals itself.
fn compare(expected: &RecordBatch, found: &RecordBatch, what: &str) -> Result<()> {
    if expected.num_rows() != found.num_rows() || expected.num_columns() != found.num_columns() {
        return Err(differ(what));
    }
    let sorted = |batch: &RecordBatch| -> Result<RecordBatch> {
        if batch.num_rows() < 2 {
            return Ok(batch.clone());
        }
        let columns: Vec<_> =
            batch.columns().iter().map(|c| SortColumn { values: Arc::clone(c), options: None }).collect();
        Ok(take_record_batch(batch, &lexsort_to_indices(&columns, None)?)?)
    };
    let (expected, found) = (sorted(expected)?, sorted(found)?);
    for (left, right) in expected.columns().iter().zip(found.columns()) {
        let order = arrow::array::make_comparator(left, right, arrow::compute::SortOptions::default())?;
        if (0..left.len()).any(|row| order(row, row).is_ne()) {
            return Err(differ(what));
        }
    }
    Ok(())
}

fn positive() -> Result<GpuExpr> {
    let dated = GpuExpr::IsNotNull(Box::new(column(3)));
    let real = column(2).binary(BinaryOp::Greater, literal(Float64Array::new_scalar(-1.0))?);
    Ok(real.binary(BinaryOp::Or, dated))
}

/// `least` is the column whose smallest value is asked for: of floats with NaN only where there are no groups.
fn aggregates(least: usize) -> Vec<Aggregate> {
    use AggregateFunction::{Avg, Count, Max, Min, Sum};
    vec![
        Aggregate::count_rows("rows"),
        Aggregate::new(Sum, column(1), "sum"),
        Aggregate::new(Min, column(least), "min"),
        Aggregate::new(Max, column(3), "max"),
        Aggregate::new(Avg, column(4), "avg"),
        Aggregate::new(Count, column(1), "count"),
    ]
}

fn project(device: &Arc<Device>, rows: usize) -> Result<()> {
    let batch = data::batch(rows, 100, 1)?;
    let seven = literal(Int64Array::new_scalar(7))?;
    let expressions = vec![
        ("a".to_owned(), column(1).binary(BinaryOp::Multiply, column(0))),
        ("b".to_owned(), column(1).binary(BinaryOp::Remainder, seven)),
        ("c".to_owned(), column(4).binary(BinaryOp::Multiply, column(4))),
        ("d".to_owned(), positive()?),
    ];
    let query = Project::try_new(&batch.schema(), expressions)?;
    let found = query.run(device, &query.upload(device, &batch)?)?.download(device)?;
    compare(&query.run_on_cpu(&batch)?, &found, "the projection")
}

fn filter_aggregate(device: &Arc<Device>, rows: usize) -> Result<()> {
    let batch = data::batch(rows, 100, 2)?;
    let query = FilterAggregate::try_new(batch.schema(), Some(positive()?), &aggregates(2))?;
    let found = query.finish(&query.run_host(device, &batch)?)?;
    compare(&query.finish(&query.run_on_cpu(&batch)?)?, &found, "the aggregate")
}

fn group_by(device: &Arc<Device>, rows: usize) -> Result<()> {
    for groups in [1, 100, 10_000, 1 << 40] {
        let batch = data::batch(rows, groups, groups)?;
        for keys in [vec![0], vec![2], vec![0, 3, 2]] {
            let keys = keys.into_iter().map(|at| (format!("k{at}"), column(at))).collect();
            let query = GroupBy::try_new(batch.schema(), Some(positive()?), keys, &aggregates(1))?;
            let found = query.run(device, &query.upload(device, &batch)?)?;
            compare(&query.run_on_cpu(&batch)?, &found, &format!("grouping into {groups}"))?;
        }
    }
    Ok(())
}

/// Scores within the rounding of f32 sums; rows may swap where scores are that close.
fn top_k(device: &Arc<Device>, rows: usize) -> Result<()> {
    for (brain, dims) in [(false, 96), (true, 96), (true, 7)] {
        let (corpus, queries) = (data::embeddings(rows, dims, brain, 3), data::embeddings(70, dims, brain, 4));
        for metric in [Metric::Dot, Metric::Cosine, Metric::L2] {
            let on_device = GpuCorpus::upload(device, &corpus, metric)?;
            let on_cpu = CpuCorpus::try_new(&corpus, metric)?;
            for asked in [1, 3, 8, 70] {
                let queries = queries.slice(0, asked);
                let (expected, found) = (on_cpu.search(&queries, 10)?, on_device.search(&queries, 10)?);
                for (expected, found) in expected.iter().zip(&found) {
                    let close = expected.iter().zip(found).all(|(e, f)| (e.score - f.score).abs() < 2e-3);
                    if expected.len() != found.len() || !close {
                        return Err(differ(&format!("{metric:?} with {asked} queries")));
                    }
                }
            }
        }
    }
    Ok(())
}

fn sort(device: &Arc<Device>, rows: usize) -> Result<()> {
    let batch = data::batch(rows, 50, 5)?;
    let key = |at, descending| SortKey { expr: column(at), descending, nulls_first: descending };
    let query = Sort::try_new(batch.schema(), vec![key(2, true), key(0, false), key(4, false)], None)?;
    let found = query.run(device, &DeviceBatch::upload(device, &batch)?)?.download(device)?;
    let expected = query.run_on_cpu(&batch)?;
    // The order itself is what is checked here.
    for (left, right) in expected.columns().iter().zip(found.columns()) {
        let order = arrow::array::make_comparator(left, right, arrow::compute::SortOptions::default())?;
        if left.len() != right.len() || (0..left.len()).any(|row| order(row, row).is_ne()) {
            return Err(differ("the order"));
        }
    }
    Ok(())
}

fn join(device: &Arc<Device>, rows: usize) -> Result<()> {
    let domain = (rows as u64 / 2).max(4);
    let (left, right) = (data::batch(rows, domain, 6)?, data::batch(rows / 3, domain, 7)?);
    for kind in [JoinKind::Inner, JoinKind::Left, JoinKind::LeftSemi, JoinKind::LeftAnti] {
        let query = Join::try_new(left.schema(), right.schema(), vec![(column(0), column(0))], kind)?;
        let found = query.run(device, &DeviceBatch::upload(device, &left)?, &DeviceBatch::upload(device, &right)?)?;
        compare(&query.run_on_cpu(&left, &right)?, &found.download(device)?, &format!("{kind:?}"))?;
    }
    Ok(())
}
