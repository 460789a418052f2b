//! The list of the kernels that are the same for every query. Kernels of expressions are written by `ops` and
//! `expr::cuda`; all begin with [`COMMON`].
//!
//! | file | kernels | used by |
//! |---|---|---|
//! | `common.cuh` | none; types, bitmaps, total order, checked arithmetic, reductions, hashing | all |
//! | `atomics.cuh` | none; accumulators under contention | group-by |
//! | `group_by.cu` | `clear_table`, `group_rows`, `collect_groups` | `ops::group_by`, behind the query's own part |
//! | `radix_sort.cu` | `first_order`, `gather_keys`, `count_digits`, `sum_runs`, `scan_one`, `scan_runs`, `scatter` | `ops::sort`; the scans also `ops::join` |
//! | `gather.cu` | `gather_1` to `gather_16`, `gather_bits` | `ops::gather` |
//! | `hash_join.cu` | `build_table`, `count_matches`, `write_matches` | `ops::join` |
//! | `top_k.cu` | `corpus_factor`, `score_few`, `score_many`, `select_top` | `ops::top_k` |
use crate::ops::aggregate::WordOp;

/// Types, bitmaps, total order, checked arithmetic, reductions, hashing.
pub(crate) const COMMON: &str = include_str!("../kernels/common.cuh");

/// The fixed part of the group-by.
pub(crate) const GROUP_BY: &str = include_str!("../kernels/group_by.cu");

/// Scores and selection of the similarity search.
pub(crate) const TOP_K: &str = include_str!("../kernels/top_k.cu");

/// The radix sort of row numbers, and exclusive sums.
pub(crate) const RADIX_SORT: &str = include_str!("../kernels/radix_sort.cu");

/// Rows by their numbers.
pub(crate) const GATHER: &str = include_str!("../kernels/gather.cu");

/// The hash join over key words.
pub(crate) const HASH_JOIN: &str = include_str!("../kernels/hash_join.cu");

/// Accumulators under contention.
pub(crate) const ATOMICS: &str = include_str!("../kernels/atomics.cuh");

/// The start value of an accumulator in CUDA C.
pub(crate) fn identity(op: WordOp) -> &'static str {
    match op {
        WordOp::AddU64 | WordOp::AddF64 | WordOp::MaxU64 | WordOp::AddI128 => "0",
        WordOp::MinU64 => "~0ull",
        WordOp::MinI128 => "(i128)(~(u128)0 >> 1)",
        WordOp::MaxI128 => "(i128)((u128)1 << 127)",
    }
}
