//! The search on the CPU: all cores, every block of the corpus read from memory once for all queries.
//!
//! ```text
//! block of rows (fits the cache) x panel of up to 64 queries ─▶ tile of scores ─▶ above a query's threshold? ─▶ its heap
//! ```
//! A query's threshold is the worst of its best `k` so far, so almost every score is rejected by one comparison of 16.
//! Sums are accumulated in f32, dimension by dimension. L2 is ranked by `q·c - |c|²/2`, which orders rows as the distance
//! does up to rounding.
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::FixedSizeListArray;
use rayon::prelude::*;

use super::simd::{self, Level};
use super::{Metric, Neighbour, Vectors, check_queries, rank, row_of, score_again, score_of};
use crate::error::Result;

/// The part of a core's second-level cache that a block of the corpus takes; a panel of queries has the rest.
const BLOCK_BYTES: usize = 128 * 1024;

/// A corpus in memory, ready to be searched by one metric.
pub struct CpuCorpus {
    vectors: Vectors,
    metric: Metric,
    /// Per row: what its dot products are multiplied with, and what is added; NaN keeps a row out.
    scale: Vec<f32>,
    bias: Vec<f32>,
    level: Level,
}

/// The best `k` of one query so far.
struct Best {
    k: usize,
    heap: BinaryHeap<Reverse<u64>>,
}

impl Best {
    fn new(k: usize) -> Self {
        Self { k, heap: BinaryHeap::with_capacity(k + 1) }
    }

    /// Takes a rank in and returns the score that the next one must exceed.
    fn push(&mut self, rank: u64) -> f32 {
        if self.heap.len() < self.k {
            self.heap.push(Reverse(rank));
        } else if let Some(mut worst) = self.heap.peek_mut()
            && rank > worst.0
        {
            *worst = Reverse(rank);
        }
        match self.heap.peek() {
            Some(worst) if self.heap.len() == self.k => score_of(worst.0),
            _ => f32::NEG_INFINITY,
        }
    }
}

impl CpuCorpus {
    /// Takes a column of embeddings; reads it once for the norms that `metric` needs.
    ///
    /// # Errors
    /// As for a column that is not a list of floats.
    pub fn try_new(list: &FixedSizeListArray, metric: Metric) -> Result<Self> {
        let vectors = Vectors::try_new(list)?;
        let factors: Vec<(f32, f32)> = (0..vectors.rows)
            .into_par_iter()
            .map_init(Vec::new, |scratch, row| {
                if !vectors.is_valid(row) {
                    return (f32::NAN, f32::NAN);
                }
                match metric {
                    Metric::Dot => (1.0, 0.0),
                    Metric::Cosine => {
                        let values = vectors.f32_rows(row, 1, scratch);
                        // A vector of zeros has no direction: 1 / 0 times 0 is NaN, and NaN is never a result.
                        ((1.0 / simd::dot(values, values).sqrt()) as f32, 0.0)
                    }
                    Metric::L2 => {
                        let values = vectors.f32_rows(row, 1, scratch);
                        (1.0, (-0.5 * simd::dot(values, values)) as f32)
                    }
                }
            })
            .collect();
        let (scale, bias) = factors.into_iter().unzip();
        Ok(Self { vectors, metric, scale, bias, level: Level::detect() })
    }

    /// The `k` best rows of each query, best first.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] when the queries' dimensions are not the corpus's.
    pub fn search(&self, queries: &FixedSizeListArray, k: usize) -> Result<Vec<Vec<Neighbour>>> {
        let queries = check_queries(queries, self.vectors.dims)?;
        if queries.rows == 0 || k == 0 || self.vectors.rows == 0 {
            return Ok(vec![Vec::new(); queries.rows]);
        }
        let k = k.min(self.vectors.rows);
        let prepared = self.prepare(&queries);
        let width = self.level.panel_width(queries.rows);
        let panels = pack(&prepared, self.vectors.dims, width);
        let tile = self.level.tile_rows(width);
        let block_rows = (BLOCK_BYTES / (self.vectors.dims * 4)).div_ceil(tile).max(1) * tile;
        let next = AtomicUsize::new(0);
        // Each thread takes blocks as it gets to them and keeps its own heaps: one heap per query and thread fills once.
        let partial: Vec<Vec<Best>> = (0..rayon::current_num_threads())
            .into_par_iter()
            .map(|_| self.search_blocks(&next, block_rows, &prepared, &panels, k))
            .collect();
        Ok((0..queries.rows)
            .into_par_iter()
            .map_init(Vec::new, |scratch, query| {
                let mut ranks: Vec<u64> =
                    partial.iter().flat_map(|best| best[query].heap.iter().map(|rank| rank.0)).collect();
                ranks.sort_unstable_by(|a, b| b.cmp(a));
                ranks.truncate(k);
                self.finish(&ranks, queries.f32_rows(query, 1, scratch))
            })
            .collect())
    }

    /// Queries as f32; for cosine, of length one.
    fn prepare(&self, queries: &Vectors) -> Vec<Vec<f32>> {
        let mut scratch = Vec::new();
        (0..queries.rows)
            .map(|query| {
                if !queries.is_valid(query) {
                    return vec![f32::NAN; queries.dims];
                }
                let values = queries.f32_rows(query, 1, &mut scratch).to_vec();
                if self.metric != Metric::Cosine {
                    return values;
                }
                let length = simd::dot(&values, &values).sqrt();
                values.iter().map(|&value| (f64::from(value) / length) as f32).collect()
            })
            .collect()
    }

    fn search_blocks(
        &self,
        next: &AtomicUsize,
        block_rows: usize,
        prepared: &[Vec<f32>],
        panels: &[Vec<f32>],
        k: usize,
    ) -> Vec<Best> {
        let queries = prepared.len();
        let width = self.level.panel_width(queries);
        let dims = self.vectors.dims;
        let tile = self.level.tile_rows(width);
        let mut best: Vec<Best> = (0..queries).map(|_| Best::new(k)).collect();
        // Lanes behind the last query never pass.
        let mut thresholds = vec![f32::INFINITY; panels.len() * width];
        thresholds[..queries].fill(f32::NEG_INFINITY);
        let mut scores = vec![0.0; tile * width];
        let mut scratch = Vec::new();
        loop {
            let from = next.fetch_add(1, Ordering::Relaxed) * block_rows;
            if from >= self.vectors.rows {
                return best;
            }
            let count = block_rows.min(self.vectors.rows - from);
            let rows = self.vectors.f32_rows(from, count, &mut scratch);
            for (panel, values) in panels.iter().enumerate() {
                let first_query = panel * width;
                let thresholds = &mut thresholds[first_query..first_query + width];
                for start in (0..count).step_by(tile) {
                    let height = tile.min(count - start);
                    if queries <= simd::FEW {
                        simd::dot_few(self.level, &rows[start * dims..], height, dims, prepared, &mut scores);
                    } else {
                        simd::dot_tile(self.level, &rows[start * dims..], height, dims, values, width, &mut scores);
                    }
                    for (row, scores) in scores.chunks_exact_mut(width).take(height).enumerate() {
                        let row = from + start + row;
                        let (scale, bias) = (self.scale[row], self.bias[row]);
                        for (part, scores) in scores.chunks_exact_mut(16).enumerate() {
                            let limits = &thresholds[part * 16..part * 16 + 16];
                            let mut passes = false;
                            for (score, limit) in scores.iter_mut().zip(limits) {
                                *score = *score * scale + bias;
                                passes |= *score > *limit;
                            }
                            if passes {
                                let from = first_query + part * 16;
                                push(scores, &mut thresholds[part * 16..part * 16 + 16], &mut best[from..], row);
                            }
                        }
                    }
                }
            }
        }
    }

    fn finish(&self, ranks: &[u64], query: &[f32]) -> Vec<Neighbour> {
        let found = ranks.iter().map(|&rank| Neighbour { row: row_of(rank), score: score_of(rank) });
        let mut found: Vec<Neighbour> = found.collect();
        score_again(&self.vectors, self.metric, query, &mut found);
        found
    }
}

/// Puts the scores of one row that exceed their thresholds into the heaps.
#[cold]
#[inline(never)]
fn push(scores: &[f32], thresholds: &mut [f32], best: &mut [Best], row: usize) {
    let row = u32::try_from(row).unwrap_or(u32::MAX);
    for ((&score, threshold), best) in scores.iter().zip(thresholds).zip(best) {
        if score > *threshold {
            *threshold = best.push(rank(score, row));
        }
    }
}

/// Queries with their dimensions outermost, `width` queries to a panel, zeros behind the last.
fn pack(queries: &[Vec<f32>], dims: usize, width: usize) -> Vec<Vec<f32>> {
    queries
        .chunks(width)
        .map(|chunk| {
            let mut panel = vec![0.0; dims * width];
            for (at, query) in chunk.iter().enumerate() {
                for (dim, &value) in query.iter().enumerate() {
                    panel[dim * width + at] = value;
                }
            }
            panel
        })
        .collect()
}
