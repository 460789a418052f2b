//! How close each operator comes to the device's copy bandwidth and its link, measured in the same run.
use std::sync::Arc;

use arrow::array::{Date32Array, RecordBatch};
use rowmill_gpu::Result;
use rowmill_gpu::batch::DeviceBatch;
use rowmill_gpu::device::Device;
use rowmill_gpu::expr::{BinaryOp, column, literal};
use rowmill_gpu::measure::{Bandwidths, bandwidths, best_ms, product_gflops};
use rowmill_gpu::ops::aggregate::{Aggregate, AggregateFunction};
use rowmill_gpu::ops::filter_aggregate::FilterAggregate;
use rowmill_gpu::ops::group_by::GroupBy;
use rowmill_gpu::ops::join::{Join, JoinKind};
use rowmill_gpu::ops::sort::{Sort, SortKey};
use rowmill_gpu::ops::top_k::Metric;
use rowmill_gpu::ops::top_k::gpu::GpuCorpus;
use serde_json::{Value, json};

use crate::data;

/// One measured operator.
struct Measure {
    name: String,
    rows: usize,
    ms: f64,
    /// Bytes that had to be read, at least; or multiplications and additions that had to be done.
    work: f64,
    /// The yardstick's name and bandwidth.
    against: (&'static str, f64),
}

/// Everything measured.
pub(crate) struct Report {
    bandwidths: Bandwidths,
    compile_ms: (f64, f64),
    measures: Vec<Measure>,
}

impl Measure {
    /// 10^9 per second.
    fn rate(&self) -> f64 {
        self.work / self.ms / 1e6
    }

    fn share(&self) -> f64 {
        self.rate() / self.against.1
    }
}

impl Report {
    pub(crate) fn print(&self) {
        let b = &self.bandwidths;
        println!("\ncopy {:.0} GB/s, link to device {:.1} GB/s, to host {:.1} GB/s", b.copy, b.to_device, b.to_host);
        println!("G/s: gigabytes, or 10^9 multiplications and additions beside the product");
        println!("a kernel: {:.1} ms cold, {:.3} ms from the cache\n", self.compile_ms.0, self.compile_ms.1);
        println!("{:<34} {:>12} {:>10} {:>9} {:>9} {:>8}", "operator", "rows", "ms", "M rows/s", "G/s", "share");
        for m in &self.measures {
            println!(
                "{:<34} {:>12} {:>10.3} {:>9.0} {:>9.1} {:>6.1}% of {}",
                m.name,
                m.rows,
                m.ms,
                m.rows as f64 / m.ms / 1e3,
                m.rate(),
                m.share() * 100.0,
                m.against.0
            );
        }
    }

    pub(crate) fn json(&self) -> Value {
        let measures: Vec<Value> = self
            .measures
            .iter()
            .map(|m| {
                json!({
                    "operator": m.name, "rows": m.rows, "ms": m.ms, "rate": m.rate(),
                    "against": m.against.0, "share": m.share(),
                })
            })
            .collect();
        json!({
            "copy_gb_per_s": self.bandwidths.copy,
            "to_device_gb_per_s": self.bandwidths.to_device,
            "to_host_gb_per_s": self.bandwidths.to_host,
            "compile_cold_ms": self.compile_ms.0,
            "compile_cached_ms": self.compile_ms.1,
            "measures": measures,
        })
    }
}

/// Measures with `rows` rows; the search takes as many embeddings as fit the same bytes.
pub(crate) fn all(device: &Arc<Device>, rows: usize) -> Result<Report> {
    let bandwidths = bandwidths(device, (rows * 32).clamp(1 << 20, 1 << 30))?;
    let copy = ("copy", bandwidths.copy);
    let mut measures = Vec::new();

    let batch = data::plain(rows, 1000, 1)?;
    let query = filter_sum(&batch)?;
    let resident = query.upload(device, &batch)?;
    let start = std::time::Instant::now();
    query.run(device, &resident)?;
    let cold = start.elapsed().as_secs_f64() * 1000.0;
    let cached = best_ms(|| query.run(device, &resident.clone()).map(|_| ()))?;
    let bytes = query.row_bytes()? * rows as f64;
    measures.push(Measure { name: "filter + sum, resident".into(), rows, ms: cached, work: bytes, against: copy });
    let ms = best_ms(|| query.run_host(device, &batch).map(|_| ()))?;
    let link = ("link", bandwidths.to_device);
    measures.push(Measure { name: "filter + sum, from host".into(), rows, ms, work: bytes, against: link });
    drop(resident);

    for exponent in [0, 4, 8, 10, 12, 16, 20, 23] {
        let groups = 1_u64 << exponent;
        if groups as usize > rows {
            continue;
        }
        let batch = data::plain(rows, groups, 2)?;
        let sum = [Aggregate::new(AggregateFunction::Sum, column(3), "sum")];
        let query = GroupBy::try_new(batch.schema(), None, vec![("key".into(), column(0))], &sum)?;
        let resident = query.upload(device, &batch)?;
        let ms = best_ms(|| query.run(device, &resident).map(|_| ()))?;
        let bytes = query.row_bytes()? * rows as f64;
        measures.push(Measure { name: format!("group by, {groups} groups"), rows, ms, work: bytes, against: copy });
    }
    search(device, rows, copy, &mut measures)?;
    move_rows(device, rows, copy, &mut measures)?;
    Ok(Report { bandwidths, compile_ms: ((cold - cached).max(0.0), cached_lookup(device, &query)?), measures })
}

/// 28 bytes a row: a date is compared, a decimal summed, a key's maximum taken.
fn filter_sum(batch: &RecordBatch) -> Result<FilterAggregate> {
    let recent = column(1).binary(BinaryOp::Less, literal(Date32Array::new_scalar(15_000))?);
    let aggregates = [
        Aggregate::new(AggregateFunction::Sum, column(2), "sum"),
        Aggregate::new(AggregateFunction::Max, column(0), "max"),
    ];
    FilterAggregate::try_new(batch.schema(), Some(recent), &aggregates)
}

/// What finding a compiled kernel takes: the run over one row.
fn cached_lookup(device: &Arc<Device>, query: &FilterAggregate) -> Result<f64> {
    let one = query.upload(device, &data::plain(1, 1, 1)?)?;
    best_ms(|| query.run(device, &one).map(|_| ()))
}

fn search(device: &Arc<Device>, rows: usize, copy: (&'static str, f64), measures: &mut Vec<Measure>) -> Result<()> {
    let (dims, width) = (768, 2);
    let vectors = (rows * 32 / (dims * width)).max(1);
    let corpus = GpuCorpus::upload(device, &data::embeddings(vectors, dims, true, 3), Metric::Dot)?;
    let all = data::embeddings(512, dims, true, 4);
    let product = product_gflops(device)?.map(|rate| ("the bf16 product", rate));
    for asked in [1_u16, 8, 64, 256, 512] {
        let queries = all.slice(0, usize::from(asked));
        let ms = best_ms(|| corpus.search(&queries, 10).map(|_| ()))?;
        let values = (vectors * dims) as f64;
        let name = format!("top-10 of bf16 x 768, {asked} queries");
        // Few queries read the corpus once; many are a product of matrices.
        measures.push(match product.filter(|_| asked > 8) {
            Some(product) => {
                Measure { name, rows: vectors, ms, work: 2.0 * values * f64::from(asked), against: product }
            }
            None => Measure { name, rows: vectors, ms, work: values * width as f64, against: copy },
        });
    }
    Ok(())
}

fn move_rows(device: &Arc<Device>, rows: usize, copy: (&'static str, f64), measures: &mut Vec<Measure>) -> Result<()> {
    let batch = data::plain(rows, u64::MAX, 5)?.project(&[0, 3])?;
    let resident = DeviceBatch::upload(device, &batch)?;
    let key = SortKey { expr: column(0), descending: false, nulls_first: false };
    let query = Sort::try_new(batch.schema(), vec![key], None)?;
    let ms = best_ms(|| query.run(device, &resident).and_then(|_| device.synchronize()))?;
    let bytes = rows as f64 * 16.0;
    measures.push(Measure { name: "sort by an i64, 16 B rows".into(), rows, ms, work: bytes, against: copy });

    let domain = (rows as u64 / 4).max(1);
    let (left, right) =
        (data::plain(rows, domain, 6)?.project(&[0, 3])?, data::plain(rows / 4 + 1, domain, 7)?.project(&[0, 3])?);
    let (l, r) = (DeviceBatch::upload(device, &left)?, DeviceBatch::upload(device, &right)?);
    let query = Join::try_new(left.schema(), right.schema(), vec![(column(0), column(0))], JoinKind::Inner)?;
    let ms = best_ms(|| query.run(device, &l, &r).and_then(|_| device.synchronize()))?;
    measures.push(Measure { name: "inner join, 4 : 1 rows".into(), rows, ms, work: bytes * 1.25, against: copy });
    Ok(())
}
