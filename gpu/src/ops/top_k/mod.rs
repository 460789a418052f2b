//! The `k` rows of a corpus of embeddings that are most similar to each query, by cosine, dot product or L2 distance.
//! [`Corpus`] is for callers who do not mind where; [`cpu`] searches in memory, [`gpu`] with a corpus kept on the device.
//! Both rank in single precision, and give the same rows wherever scores differ by more than the rounding of those sums.
//! The scores of the rows that were found are then computed again, in double precision and in one order: what a row scores
//! hangs neither on the device nor on the queries that are searched with it. Ties go to the lower row.
//!
//! Never a result: null rows, rows whose score is NaN (a NaN inside, or a cosine with a vector of zeros). So a query may
//! have fewer than `k` results.
mod corpus;
pub mod cpu;
pub mod gpu;
mod simd;

use arrow::array::{Array, AsArray, FixedSizeListArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Float16Type, Float32Type, UInt16Type};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

pub use corpus::Corpus;

use crate::error::{Error, Result};

/// What "similar" means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Cosine of the angle; largest first.
    Cosine,
    /// Dot product; largest first.
    Dot,
    /// Euclidean distance; smallest first.
    L2,
}

/// One result.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Neighbour {
    /// The row of the corpus.
    pub row: u32,
    /// The cosine, the dot product or the distance.
    pub score: f32,
}

/// Vectors of one length in one buffer.
#[derive(Clone)]
pub(crate) struct Vectors {
    pub(crate) values: Values,
    pub(crate) rows: usize,
    pub(crate) dims: usize,
    pub(crate) nulls: Option<NullBuffer>,
}

/// The items, as they were given.
#[derive(Clone)]
pub(crate) enum Values {
    F32(arrow::buffer::ScalarBuffer<f32>),
    F16(arrow::buffer::ScalarBuffer<f16>),
    Bf16(arrow::buffer::ScalarBuffer<u16>),
}

impl Vectors {
    /// Takes a column of `FixedSizeList` of `Float32`, `Float16`, or `UInt16` for bfloat16, which Arrow has no type for.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for other items, [`Error::Invalid`] for null items or lists of length zero.
    pub(crate) fn try_new(list: &FixedSizeListArray) -> Result<Self> {
        let rows = list.len();
        let dims = usize::try_from(list.value_length()).unwrap_or(0);
        if dims == 0 {
            return Err(Error::Invalid("embeddings have at least one dimension".into()));
        }
        if rows >= u32::MAX as usize {
            return Err(Error::Unsupported("a corpus of more than four thousand million rows".into()));
        }
        let first = usize::try_from(list.value_offset(0)).unwrap_or(0);
        let items = list.values().slice(first, rows * dims);
        // A null list may hide null items, which is fine; an item that is null in a list that is not is an error.
        if items.null_count() > 0 {
            let hidden = |item: usize| list.is_null(item / dims);
            if (0..items.len()).any(|item| items.is_null(item) && !hidden(item)) {
                return Err(Error::Invalid("an embedding has a null item".into()));
            }
        }
        let values = match items.data_type() {
            DataType::Float32 => Values::F32(items.as_primitive::<Float32Type>().values().clone()),
            DataType::Float16 => Values::F16(items.as_primitive::<Float16Type>().values().clone()),
            DataType::UInt16 => Values::Bf16(items.as_primitive::<UInt16Type>().values().clone()),
            other => return Err(Error::Unsupported(format!("embeddings of {other}"))),
        };
        Ok(Self { values, rows, dims, nulls: list.nulls().cloned() })
    }

    /// Rows `from..from + count` by themselves.
    pub(crate) fn part(&self, from: usize, count: usize) -> Self {
        let range = (from * self.dims, count * self.dims);
        let values = match &self.values {
            Values::F32(values) => Values::F32(values.slice(range.0, range.1)),
            Values::F16(values) => Values::F16(values.slice(range.0, range.1)),
            Values::Bf16(values) => Values::Bf16(values.slice(range.0, range.1)),
        };
        let nulls = self.nulls.as_ref().map(|nulls| nulls.slice(from, count));
        Self { values, rows: count, dims: self.dims, nulls }
    }

    pub(crate) fn is_valid(&self, row: usize) -> bool {
        self.nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row))
    }

    /// Rows `from..from + count` as f32: borrowed, or converted into `scratch`.
    pub(crate) fn f32_rows<'a>(&'a self, from: usize, count: usize, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        let range = from * self.dims..(from + count) * self.dims;
        match &self.values {
            Values::F32(values) => return &values[range],
            Values::F16(values) => {
                scratch.resize(range.len(), 0.0);
                values[range].convert_to_f32_slice(scratch);
            }
            Values::Bf16(values) => {
                scratch.clear();
                scratch.extend(values[range].iter().map(|&bits| bf16::from_bits(bits).to_f32()));
            }
        }
        scratch
    }
}

/// Queries have the corpus's dimensions; a query with a null or NaN has no results.
fn check_queries(queries: &FixedSizeListArray, dims: usize) -> Result<Vectors> {
    let queries = Vectors::try_new(queries)?;
    if queries.dims != dims {
        return Err(Error::Invalid(format!("queries have {} dimensions, the corpus has {dims}", queries.dims)));
    }
    Ok(queries)
}

/// Gives what was found for `query` the scores that are promised, and their order.
fn score_again(corpus: &Vectors, metric: Metric, query: &[f32], found: &mut [Neighbour]) {
    let mut scratch = Vec::new();
    let square = simd::dot(query, query);
    for neighbour in found.iter_mut() {
        let row = corpus.f32_rows(neighbour.row as usize, 1, &mut scratch);
        let score = match metric {
            Metric::Dot => simd::dot(row, query),
            Metric::Cosine => simd::dot(row, query) / (simd::dot(row, row) * square).sqrt(),
            Metric::L2 => simd::square_distance(row, query).sqrt(),
        };
        neighbour.score = score as f32;
    }
    match metric {
        Metric::L2 => found.sort_unstable_by(|a, b| a.score.total_cmp(&b.score).then(a.row.cmp(&b.row))),
        _ => found.sort_unstable_by(|a, b| b.score.total_cmp(&a.score).then(a.row.cmp(&b.row))),
    }
}

/// A score and its row as one number: the larger, the better; of equal scores the lower row is better.
pub(crate) fn rank(score: f32, row: u32) -> u64 {
    let bits = score.to_bits();
    let ordered = bits ^ if bits >> 31 == 1 { u32::MAX } else { 1 << 31 };
    u64::from(ordered) << 32 | u64::from(!row)
}

/// The row of a [`rank`].
pub(crate) fn row_of(rank: u64) -> u32 {
    !(rank as u32)
}

/// The score of a [`rank`].
pub(crate) fn score_of(rank: u64) -> f32 {
    let ordered = (rank >> 32) as u32;
    f32::from_bits(ordered ^ if ordered >> 31 == 1 { 1 << 31 } else { u32::MAX })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_order_scores_and_then_rows() {
        let scores = [f32::NEG_INFINITY, -1.0, -0.0, 0.0, 1e-30, 3.0];
        for pair in scores.windows(2) {
            assert!(rank(pair[0], 0) < rank(pair[1], 9));
        }
        assert!(rank(1.0, 3) > rank(1.0, 4));
        assert_eq!((row_of(rank(-2.5, 77)), score_of(rank(-2.5, 77))), (77, -2.5));
        assert_eq!(score_of(rank(2.5, 7)), 2.5);
    }
}
