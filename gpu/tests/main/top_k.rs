//! The similarity search: the CPU path against plain sums in double precision, the kernels against the same.
use std::sync::Arc;

use arrow::array::*;
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field};
use half::{bf16, f16};
use proptest::prelude::*;
use rowmill_gpu::device::DeviceOptions;
use rowmill_gpu::ops::top_k::cpu::CpuCorpus;
use rowmill_gpu::ops::top_k::gpu::GpuCorpus;
use rowmill_gpu::ops::top_k::{Corpus, Metric, Neighbour};

use crate::data::Random;
use crate::emulator;

const METRICS: [Metric; 3] = [Metric::Dot, Metric::Cosine, Metric::L2];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Item {
    F32,
    F16,
    Bf16,
}

/// Embeddings in which all three kinds of items are exact, some rows null, zero or NaN; sliced.
fn embeddings(rows: usize, dims: usize, item: Item, special: bool, random: &mut Random) -> FixedSizeListArray {
    let before = random.below(4);
    let all = rows + before;
    let mut values: Vec<f32> = (0..all * dims).map(|_| random.below(255) as f32 / 16.0 - 8.0).collect();
    let mut valid = vec![true; all];
    for row in 0..all {
        if special {
            match random.below(12) {
                0 => valid[row] = false,
                1 => values[row * dims..(row + 1) * dims].fill(0.0),
                2 => values[row * dims] = f32::NAN,
                _ => {}
            }
        }
    }
    let (data_type, items): (_, ArrayRef) = match item {
        Item::F32 => (DataType::Float32, Arc::new(Float32Array::from(values))),
        Item::F16 => {
            (DataType::Float16, Arc::new(Float16Array::from_iter_values(values.iter().map(|&v| f16::from_f32(v)))))
        }
        Item::Bf16 => {
            let bits = values.iter().map(|&v| bf16::from_f32(v).to_bits());
            (DataType::UInt16, Arc::new(UInt16Array::from_iter_values(bits)))
        }
    };
    let field = Arc::new(Field::new("item", data_type, true));
    let list = FixedSizeListArray::new(field, dims as i32, items, Some(NullBuffer::from(valid)));
    list.slice(before, rows)
}

fn vector(list: &FixedSizeListArray, row: usize) -> Option<Vec<f64>> {
    if list.is_null(row) {
        return None;
    }
    let items = list.value(row);
    if let Some(bits) = items.as_primitive_opt::<arrow::datatypes::UInt16Type>() {
        return Some(bits.values().iter().map(|&bits| bf16::from_bits(bits).to_f64()).collect());
    }
    let wide = arrow::compute::cast(&items, &DataType::Float64).unwrap();
    Some(wide.as_primitive::<arrow::datatypes::Float64Type>().values().to_vec())
}

/// The true score of a row; `None` when it is never a result.
fn score(metric: Metric, query: &[f64], row: &[f64]) -> Option<f64> {
    let dot: f64 = query.iter().zip(row).map(|(a, b)| a * b).sum();
    let length = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    let score = match metric {
        Metric::Dot => dot,
        Metric::Cosine => dot / (length(query) * length(row)),
        Metric::L2 => query.iter().zip(row).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt(),
    };
    (!score.is_nan()).then_some(score)
}

/// Every result has its true score, the scores are in order, and none that is left out is better than the last.
fn check(
    metric: Metric,
    corpus: &FixedSizeListArray,
    queries: &FixedSizeListArray,
    k: usize,
    found: &[Vec<Neighbour>],
    what: &str,
) {
    assert_eq!(found.len(), queries.len(), "{what}");
    for (at, results) in found.iter().enumerate() {
        let query = vector(queries, at);
        let scores: Vec<Option<f64>> =
            (0..corpus.len()).map(|row| score(metric, query.as_ref()?, vector(corpus, row).as_ref()?)).collect();
        let mut sorted: Vec<f64> = scores.iter().flatten().copied().collect();
        sorted.sort_by(|a, b| if metric == Metric::L2 { a.total_cmp(b) } else { b.total_cmp(a) });
        sorted.truncate(k);
        assert_eq!(results.len(), sorted.len(), "{what}: query {at}");
        let mut rows: Vec<u32> = results.iter().map(|result| result.row).collect();
        for (result, best) in results.iter().zip(&sorted) {
            // Norms of up to 100 items of up to 8; f32 sums.
            let tolerance = 1e-2;
            assert!(
                (f64::from(result.score) - best).abs() < tolerance,
                "{what}: query {at}: {result:?}, expected {best}"
            );
            let own = scores[result.row as usize].expect("a row that is never a result");
            assert!((f64::from(result.score) - own).abs() < tolerance, "{what}: query {at}: {result:?} is {own}");
        }
        rows.sort_unstable();
        rows.dedup();
        assert_eq!(rows.len(), results.len(), "{what}: a row twice");
    }
}

#[test]
fn the_cpu_search_is_right() {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 60,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    runner
        .run(&(0..1200_usize, 1..80_usize, 1..70_usize, 0..30_usize, any::<u64>()), |(rows, dims, queries, k, seed)| {
            let random = &mut Random::new(seed);
            let item = [Item::F32, Item::F16, Item::Bf16][random.below(3)];
            let corpus = embeddings(rows, dims, item, true, random);
            let asked = embeddings(queries, dims, Item::F32, true, random);
            for metric in METRICS {
                let found = CpuCorpus::try_new(&corpus, metric).unwrap().search(&asked, k).unwrap();
                check(
                    metric,
                    &corpus,
                    &asked,
                    k,
                    &found,
                    &format!("{metric:?} {item:?} {rows} x {dims}, {queries} queries, k {k}"),
                );
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn the_kernels_find_the_same() {
    let device = emulator::device();
    for (dims, item) in [(16, Item::F32), (7, Item::F32), (24, Item::Bf16), (16, Item::F16), (5, Item::Bf16)] {
        for metric in METRICS {
            for (rows, queries, k) in
                [(0, 1, 3), (1, 1, 1), (31, 2, 40), (33, 3, 5), (1025, 8, 10), (300, 9, 7), (130, 70, 3)]
            {
                let random = &mut Random::new((dims + rows) as u64);
                let corpus = embeddings(rows, dims, item, true, random);
                let asked = embeddings(queries, dims, item, true, random);
                let found = GpuCorpus::upload(&device.device, &corpus, metric).unwrap().search(&asked, k).unwrap();
                let what = format!("{metric:?} {item:?} {rows} x {dims}, {queries} queries, k {k}");
                check(metric, &corpus, &asked, k, &found, &what);
                let on_cpu = CpuCorpus::try_new(&corpus, metric).unwrap().search(&asked, k).unwrap();
                let lengths = |found: &[Vec<Neighbour>]| found.iter().map(Vec::len).collect::<Vec<_>>();
                assert_eq!(lengths(&found), lengths(&on_cpu), "{what}");
            }
        }
    }
}

/// More than eight queries are a product of matrices; without cuBLAS, or where it refuses, a kernel does the same.
#[test]
fn many_queries_are_products_of_matrices() {
    for (setting, uses_it) in [("here", true), ("missing", false), ("refusing", false)] {
        let device = emulator::device();
        let _setting = emulator::Setting::new("GPU_EMU_BLAS", setting);
        for (dims, item, asked_as) in [
            (16, Item::F32, Item::F32),
            (7, Item::F16, Item::F16),
            (24, Item::Bf16, Item::Bf16),
            // Queries that no single number of 16 bits holds.
            (8, Item::Bf16, Item::F32),
            (8, Item::F16, Item::F32),
        ] {
            let random = &mut Random::new(dims as u64);
            let corpus = embeddings(700, dims, item, true, random);
            for queries in [9, 70] {
                let asked = embeddings(queries, dims, asked_as, true, random);
                // A little that only an f32 keeps.
                let asked = if asked_as == Item::F32 { scaled(&asked, 1.0 + 1.0 / 65536.0) } else { asked };
                for metric in METRICS {
                    let before = device.device.products();
                    let found = GpuCorpus::upload(&device.device, &corpus, metric).unwrap().search(&asked, 5).unwrap();
                    let what = format!("{setting} {metric:?} {item:?} {dims}, {queries} queries");
                    check(metric, &corpus, &asked, 5, &found, &what);
                    assert_eq!(device.device.products() > before, uses_it, "{what}");
                }
            }
        }
    }
}

/// Every number times a factor, as f32.
fn scaled(list: &FixedSizeListArray, factor: f32) -> FixedSizeListArray {
    let values: Float32Array = list.values().as_primitive::<arrow::datatypes::Float32Type>().unary(|v| v * factor);
    let field = Arc::new(Field::new("item", DataType::Float32, true));
    FixedSizeListArray::new(field, list.value_length(), Arc::new(values), list.nulls().cloned())
}

/// No bit of a query is lost on the way to a corpus of 16 bits: rows that differ only by what the last bits of the query
/// say are told apart, as in memory.
#[test]
fn the_last_bits_of_a_query_count() {
    let device = emulator::device();
    // The second row wins by the small part of the query alone.
    let rows = [[1.0_f32, 0.0], [1.0, 1.0], [1.0, -1.0]];
    for item in [Item::F16, Item::Bf16] {
        let corpus = list_of(&rows.concat(), 2, item);
        let query = [1.0_f32 + 1.0 / 512.0, 1.0 / 2_097_152.0];
        let asked = list_of(&query.repeat(9), 2, Item::F32);
        let found = GpuCorpus::upload(&device.device, &corpus, Metric::Dot).unwrap().search(&asked, 3).unwrap();
        assert!(device.device.products().is_some_and(|products| products > 0));
        for results in &found {
            assert_eq!(results.iter().map(|result| result.row).collect::<Vec<_>>(), [1, 0, 2], "{item:?}");
        }
    }
    // What three numbers of 16 bits do not hold is left to a kernel: an f16 ends at 65504.
    let corpus = list_of(&rows.concat(), 2, Item::F16);
    let asked = list_of(&[1e9_f32, 3.0].repeat(9), 2, Item::F32);
    let before = device.device.products();
    let found = GpuCorpus::upload(&device.device, &corpus, Metric::Dot).unwrap().search(&asked, 1).unwrap();
    assert_eq!((device.device.products(), found.len()), (before, 9));
}

fn list_of(values: &[f32], dims: i32, item: Item) -> FixedSizeListArray {
    let (data_type, items): (_, ArrayRef) = match item {
        Item::F32 => (DataType::Float32, Arc::new(Float32Array::from(values.to_vec()))),
        Item::F16 => {
            let values = values.iter().map(|&v| f16::from_f32(v));
            (DataType::Float16, Arc::new(Float16Array::from_iter_values(values)))
        }
        Item::Bf16 => {
            let bits = values.iter().map(|&v| bf16::from_f32(v).to_bits());
            (DataType::UInt16, Arc::new(UInt16Array::from_iter_values(bits)))
        }
    };
    FixedSizeListArray::new(Arc::new(Field::new("item", data_type, true)), dims, items, None)
}

/// Rows whose squares leave the range of f32 while their cosines do not: the norms are sums in double precision.
#[test]
fn very_long_and_very_short_rows_have_cosines() {
    let device = emulator::device();
    let rows = [[1e25_f32, 1e25], [1e-25, 2e-25], [3.0, -1.0], [1e25, -1e25]];
    let corpus = list_of(&rows.concat(), 2, Item::F32);
    let asked = list_of(&[1.0, 2.0].repeat(9), 2, Item::F32);
    for queries in [1, 9] {
        let asked = asked.slice(0, queries);
        let on_cpu = CpuCorpus::try_new(&corpus, Metric::Cosine).unwrap().search(&asked, 4).unwrap();
        let found = GpuCorpus::upload(&device.device, &corpus, Metric::Cosine).unwrap().search(&asked, 4).unwrap();
        let order =
            |found: &[Vec<Neighbour>]| found.iter().map(|r| r.iter().map(|n| n.row).collect()).collect::<Vec<Vec<_>>>();
        assert_eq!(order(&found), order(&on_cpu));
        assert_eq!(order(&found)[0], [1, 0, 2, 3]);
    }
}

/// A corpus stays in memory until its searches there have earned its way to the device.
#[test]
fn a_corpus_goes_to_the_device_once_it_pays() {
    let device = emulator::device();
    let random = &mut Random::new(9);
    let corpus = embeddings(500, 8, Item::F32, true, random);
    let asked = embeddings(3, 8, Item::F32, false, random);
    let expected = CpuCorpus::try_new(&corpus, Metric::L2).unwrap().search(&asked, 5).unwrap();
    let never = Some((Arc::clone(&device.device), std::time::Duration::from_secs(3600)));
    let patient = Corpus::once_it_pays(&corpus, Metric::L2, never).unwrap();
    let soon = Some((Arc::clone(&device.device), std::time::Duration::from_nanos(1)));
    let eager = Corpus::once_it_pays(&corpus, Metric::L2, soon).unwrap();
    assert!(!eager.is_on_device());
    for _ in 0..4 {
        assert_eq!(patient.search(&asked, 5).unwrap(), expected);
        assert_eq!(eager.search(&asked, 5).unwrap(), expected);
    }
    assert!(eager.is_on_device() && !patient.is_on_device());
}

/// One search on the device over 16 dimensions of f32, checked.
pub(crate) fn check_kernels(
    device: &emulator::Emulated,
    metric: Metric,
    rows: usize,
    queries: usize,
    k: usize,
    what: &str,
) {
    // cuBLAS orders its own threads.
    let _setting = emulator::Setting::new("GPU_EMU_BLAS", "refusing");
    let random = &mut Random::new(rows as u64);
    let corpus = embeddings(rows, 16, Item::F32, true, random);
    let asked = embeddings(queries, 16, Item::F32, true, random);
    let found = GpuCorpus::upload(&device.device, &corpus, metric).unwrap().search(&asked, k).unwrap();
    check(metric, &corpus, &asked, k, &found, what);
}

/// More rows than the selection's buffer holds, so that it sorts and prunes in between.
#[test]
fn the_selection_prunes() {
    let device = emulator::device();
    let random = &mut Random::new(77);
    let corpus = embeddings(9000, 4, Item::F32, false, random);
    let asked = embeddings(2, 4, Item::F32, false, random);
    for k in [1, 100, 1500] {
        let found = GpuCorpus::upload(&device.device, &corpus, Metric::L2).unwrap().search(&asked, k).unwrap();
        check(Metric::L2, &corpus, &asked, k, &found, &format!("k {k}"));
    }
}

#[test]
fn ties_go_to_the_lower_row() {
    let device = emulator::device();
    let ones = |rows: usize| {
        let items: ArrayRef = Arc::new(Float32Array::from(vec![1.0; rows * 3]));
        FixedSizeListArray::new(Arc::new(Field::new("item", DataType::Float32, true)), 3, items, None)
    };
    let rows = |found: Vec<Vec<Neighbour>>| found[0].iter().map(|n| n.row).collect::<Vec<_>>();
    for metric in METRICS {
        let cpu = CpuCorpus::try_new(&ones(2000), metric).unwrap().search(&ones(1), 4).unwrap();
        assert_eq!(rows(cpu), [0, 1, 2, 3]);
        let gpu = GpuCorpus::upload(&device.device, &ones(2000), metric).unwrap().search(&ones(1), 4).unwrap();
        assert_eq!(rows(gpu), [0, 1, 2, 3]);
    }
}

/// No device, a device without room, a request without a kernel: the same results from the CPU.
#[test]
fn a_search_that_cannot_be_offloaded_is_finished_on_the_cpu() {
    let random = &mut Random::new(5);
    let corpus = embeddings(4000, 8, Item::F32, true, random);
    let asked = embeddings(3, 8, Item::F32, false, random);
    let expected = CpuCorpus::try_new(&corpus, Metric::L2).unwrap();
    let alone = Corpus::try_new(&corpus, Metric::L2, None).unwrap();
    assert!(!alone.is_on_device());
    assert_eq!(alone.search(&asked, 5).unwrap(), expected.search(&asked, 5).unwrap());
    {
        let device = emulator::device();
        let kept = Corpus::try_new(&corpus, Metric::L2, Some(&device.device)).unwrap();
        assert!(kept.is_on_device());
        let found = kept.search(&asked, 5).unwrap();
        check(Metric::L2, &corpus, &asked, 5, &found, "kept on the device");
        // More than the selection's buffer holds.
        assert_eq!(kept.search(&asked, 3500).unwrap(), expected.search(&asked, 3500).unwrap());
    }
    let budget_bytes = Some(1000);
    let device = emulator::open(&DeviceOptions { budget_bytes, ..DeviceOptions::default() });
    let refused = Corpus::try_new(&corpus, Metric::L2, Some(&device.device)).unwrap();
    assert!(!refused.is_on_device());
    assert_eq!(refused.search(&asked, 5).unwrap(), expected.search(&asked, 5).unwrap());
}

#[test]
fn wrong_queries_are_refused_in_words() {
    let random = &mut Random::new(1);
    let corpus = CpuCorpus::try_new(&embeddings(5, 4, Item::F32, false, random), Metric::Dot).unwrap();
    let error = corpus.search(&embeddings(1, 3, Item::F32, false, random), 2).unwrap_err();
    assert_eq!(error.to_string(), "queries have 3 dimensions, the corpus has 4");
}
