//! How long does the CPU path of top-k take beside faiss-cpu on the same data in the same run?
//!
//! `tools/compare_faiss.py` writes the data, runs faiss, and calls this with the files' names, the metric and the type of
//! the corpus's items; alone it makes its own data. Prints one line of JSON per number of queries.
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{ArrayRef, AsArray, FixedSizeListArray, Float16Array, Float32Array, UInt16Array};
use arrow::buffer::{Buffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, Float32Type};
use half::{bf16, f16};
use rowmill_gpu::ops::top_k::Metric;
use rowmill_gpu::ops::top_k::cpu::CpuCorpus;

const DIMS: usize = 384;

fn list(values: ScalarBuffer<f32>) -> FixedSizeListArray {
    let items: ArrayRef = Arc::new(Float32Array::new(values, None));
    FixedSizeListArray::new(Arc::new(Field::new("item", DataType::Float32, true)), DIMS as i32, items, None)
}

/// The raw floats of a file; rows of 384.
fn read(path: &str) -> FixedSizeListArray {
    let bytes = std::fs::read(path).unwrap_or_default();
    list(ScalarBuffer::from(Buffer::from_slice_ref(&bytes)))
}

/// The same rows with items of 16 bits.
fn narrowed(list: &FixedSizeListArray, items: &str) -> FixedSizeListArray {
    let values = list.values().as_primitive::<Float32Type>().values().iter();
    let items: ArrayRef = match items {
        "f16" => Arc::new(Float16Array::from_iter_values(values.map(|&value| f16::from_f32(value)))),
        "bf16" => Arc::new(UInt16Array::from_iter_values(values.map(|&value| bf16::from_f32(value).to_bits()))),
        _ => return list.clone(),
    };
    FixedSizeListArray::new(Arc::new(Field::new("item", items.data_type().clone(), true)), DIMS as i32, items, None)
}

fn generated(rows: usize, seed: u64) -> FixedSizeListArray {
    let mut state = seed;
    let value = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    list((0..rows * DIMS).map(value).collect())
}

/// The processor time of all threads so far, from /proc (Linux, in steps of 10 ms); on a busy machine it says more than
/// the clock. 0 where there is no /proc.
fn cpu_ms() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name in parentheses: the 12th and 13th fields are user and system time in hundredths of a second.
    let fields = text.rsplit(") ").next().unwrap_or_default().split(' ').skip(11).take(2);
    fields.filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() * 10.0
}

fn main() -> Result<(), rowmill_gpu::Error> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let (corpus, queries) = match arguments.as_slice() {
        [corpus, queries, ..] => (read(corpus), read(queries)),
        _ => (generated(100_000, 1), generated(512, 2)),
    };
    let metric = match arguments.get(2).map(String::as_str) {
        Some("l2") => Metric::L2,
        Some("cosine") => Metric::Cosine,
        _ => Metric::Dot,
    };
    let items = arguments.get(3).map_or("f32", String::as_str);
    let corpus = CpuCorpus::try_new(&narrowed(&corpus, items), metric)?;
    // One number of queries per line of input, so that the caller can alternate with another program.
    let counts: Box<dyn Iterator<Item = usize>> = match arguments.get(4) {
        Some(_) => Box::new(std::io::stdin().lines().map_while(Result::ok).filter_map(|line| line.trim().parse().ok())),
        None => Box::new([1, 8, 64, 512].into_iter()),
    };
    for count in counts {
        let asked = queries.slice(0, count);
        corpus.search(&asked, 10)?;
        let (start, cpu) = (Instant::now(), cpu_ms());
        let found = corpus.search(&asked, 10)?;
        let (ms, cpu_ms) = (start.elapsed().as_secs_f64() * 1000.0, cpu_ms() - cpu);
        let rows: Vec<Vec<u32>> = found.iter().map(|list| list.iter().map(|n| n.row).collect()).collect();
        let rows = serde_json::json!({ "queries": count, "ms": ms, "cpu_ms": cpu_ms, "rows": rows });
        println!("{rows}");
    }
    Ok(())
}
