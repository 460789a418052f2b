//! Dot products of a tile of corpus rows with a panel of queries, for AVX-512, AVX2 and anything else.
//!
//! A panel holds up to 64 queries with their dimensions outermost: one load yields one dimension of 16 (or 8) queries,
//! which is multiplied by the same dimension of each of the tile's rows. So a row that was read from memory once serves
//! the whole panel from registers, and no sum has to be taken across a register's lanes.
//!
//! ```text
//!            16 queries │ 16 │ 16 │ 16        one dimension of the panel: 4 registers
//!   row 0        acc    │ acc│ acc│ acc
//!   ...                                       6 x 4 accumulators, one broadcast per row
//!   row 5        acc    │ acc│ acc│ acc
//! ```

/// The instructions used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    Avx512,
    Avx2,
    Portable,
}

impl Level {
    /// The best level of this machine.
    pub(super) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                return Self::Avx512;
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    /// Whether this machine has the level's instructions.
    fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            Self::Avx2 => Self::detect() != Self::Portable,
            Self::Avx512 => Self::detect() == Self::Avx512,
        }
    }

    /// Queries per panel.
    pub(super) fn panel_width(self, queries: usize) -> usize {
        match self {
            Self::Avx512 if queries > 32 => 64,
            Self::Avx512 if queries > 16 => 32,
            _ => 16,
        }
    }

    /// Rows per tile for a panel width.
    pub(super) fn tile_rows(self, width: usize) -> usize {
        match (self, width) {
            (Self::Avx512, 64) | (Self::Avx2, _) => 6,
            (Self::Avx512, _) => 12,
            (Self::Portable, _) => 4,
        }
    }
}

/// Computes `out[row * width + query]` for the rows of a tile, or of the rest of a block with fewer rows.
///
/// # Panics
/// When the slices are shorter than `rows`, `dims` and `width` say, or the machine lacks the level.
pub(super) fn dot_tile(
    level: Level,
    rows: &[f32],
    count: usize,
    dims: usize,
    panel: &[f32],
    width: usize,
    out: &mut [f32],
) {
    assert!(rows.len() >= count * dims && panel.len() >= dims * width && out.len() >= count * width);
    debug_assert!(level.is_available());
    let full = level.tile_rows(width);
    #[cfg(target_arch = "x86_64")]
    {
        let (rows, panel, out) = (rows.as_ptr(), panel.as_ptr(), out.as_mut_ptr());
        // SAFETY: the lengths were checked above, and `level` comes from `detect`.
        unsafe {
            match (level, width) {
                (Level::Avx512, 64) if count == full => return x86::avx512::<6, 4>(rows, dims, panel, out),
                (Level::Avx512, 32) if count == full => return x86::avx512::<12, 2>(rows, dims, panel, out),
                (Level::Avx512, 16) if count == full => return x86::avx512::<12, 1>(rows, dims, panel, out),
                (Level::Avx512, 64) => {
                    return each(count, dims, width, rows, out, |r, o| x86::avx512::<1, 4>(r, dims, panel, o));
                }
                (Level::Avx512, 32) => {
                    return each(count, dims, width, rows, out, |r, o| x86::avx512::<1, 2>(r, dims, panel, o));
                }
                (Level::Avx512, 16) => {
                    return each(count, dims, width, rows, out, |r, o| x86::avx512::<1, 1>(r, dims, panel, o));
                }
                (Level::Avx2, 16) if count == full => return x86::avx2::<6>(rows, dims, panel, out),
                (Level::Avx2, 16) => {
                    return each(count, dims, width, rows, out, |r, o| x86::avx2::<1>(r, dims, panel, o));
                }
                _ => {}
            }
        }
    }
    let _ = full;
    portable(rows, count, dims, panel, width, out);
}

/// The most queries that [`dot_few`] takes.
pub(super) const FEW: usize = 2;

/// The same for one or two queries, each a plain row: `out[row * 16 + query]`. Reading memory is all the work, so rows
/// are read straight through, four at a time.
///
/// # Panics
/// When the slices are shorter than `count`, `dims` and the number of queries say.
pub(super) fn dot_few(level: Level, rows: &[f32], count: usize, dims: usize, queries: &[Vec<f32>], out: &mut [f32]) {
    assert!(rows.len() >= count * dims && out.len() >= count * 16 && queries.len() <= FEW);
    let mut row = 0;
    while row < count {
        let height = if count - row >= 4 { 4 } else { 1 };
        for (at, query) in queries.iter().enumerate() {
            assert!(query.len() >= dims);
            let part = &rows[row * dims..];
            let sums = match level {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the lengths were checked above, and `level` comes from `detect`.
                Level::Avx512 if height == 4 => unsafe { x86::row_dots_avx512(part.as_ptr(), dims, query.as_ptr()) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                Level::Avx2 if height == 4 => unsafe { x86::row_dots_avx2(part.as_ptr(), dims, query.as_ptr()) },
                _ => {
                    let dot = |r: usize| part[r * dims..(r + 1) * dims].iter().zip(query).map(|(a, b)| a * b).sum();
                    let mut sums = [0.0; 4];
                    for (r, sum) in sums.iter_mut().enumerate().take(height) {
                        *sum = dot(r);
                    }
                    sums
                }
            };
            for (r, sum) in sums.iter().enumerate().take(height) {
                out[(row + r) * 16 + at] = *sum;
            }
        }
        row += height;
    }
}

/// Calls `one` for each row and its part of `out`.
///
/// # Safety
/// `rows` holds `count * dims` floats and `out` `count * width`.
#[cfg(target_arch = "x86_64")]
unsafe fn each(
    count: usize,
    dims: usize,
    width: usize,
    rows: *const f32,
    out: *mut f32,
    one: impl Fn(*const f32, *mut f32),
) {
    for row in 0..count {
        // SAFETY: within the ranges that the caller promises.
        unsafe { one(rows.add(row * dims), out.add(row * width)) };
    }
}

/// Sixteen queries at a time, left to the compiler.
fn portable(rows: &[f32], count: usize, dims: usize, panel: &[f32], width: usize, out: &mut [f32]) {
    for row in 0..count {
        let values = &rows[row * dims..(row + 1) * dims];
        for (part, sums) in out[row * width..(row + 1) * width].chunks_exact_mut(16).enumerate() {
            let mut local = [0.0_f32; 16];
            for (dim, &value) in values.iter().enumerate() {
                let start = dim * width + part * 16;
                for (sum, &query) in local.iter_mut().zip(&panel[start..start + 16]) {
                    *sum += value * query;
                }
            }
            sums.copy_from_slice(&local);
        }
    }
}

/// Adds up the products of two vectors in double precision: for norms and the scores of results, not for scanning.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    sum(a, b, |x, y| x * y)
}

/// The square of the distance of two vectors, in double precision.
pub(super) fn square_distance(a: &[f32], b: &[f32]) -> f64 {
    sum(a, b, |x, y| (x - y) * (x - y))
}

/// Eight sums side by side, then their sum: one order on every machine, and no chain of additions that wait.
fn sum(a: &[f32], b: &[f32], term: impl Fn(f64, f64) -> f64) -> f64 {
    let ((a_parts, a_rest), (b_parts, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut lanes = [0.0; 8];
    for (a, b) in a_parts.iter().zip(b_parts) {
        for ((lane, &x), &y) in lanes.iter_mut().zip(a).zip(b) {
            *lane += term(f64::from(x), f64::from(y));
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(&x, &y)| term(f64::from(x), f64::from(y))).sum();
    lanes.iter().sum::<f64>() + rest
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// `R` rows by `V` registers of 16 queries.
    ///
    /// # Safety
    /// AVX-512F; `rows` holds `R * dims` floats, `panel` `dims * V * 16`, `out` `R * V * 16`.
    #[target_feature(enable = "avx512f")]
    pub(super) fn avx512<const R: usize, const V: usize>(
        rows: *const f32,
        dims: usize,
        panel: *const f32,
        out: *mut f32,
    ) {
        let mut sums = [[_mm512_setzero_ps(); V]; R];
        let mut dim = 0;
        while dim < dims {
            let end = (dim + 16).min(dims);
            // The next tile's cache lines are on their way while this one is computed; a prefetch never faults.
            if R > 1 {
                for row in 0..R {
                    _mm_prefetch::<_MM_HINT_T0>(rows.wrapping_add((R + row) * dims + dim).cast());
                }
            }
            while dim < end {
                let mut queries = [_mm512_setzero_ps(); V];
                for (v, query) in queries.iter_mut().enumerate() {
                    // SAFETY: `dim < dims` and `v < V`.
                    *query = unsafe { _mm512_loadu_ps(panel.add((dim * V + v) * 16)) };
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: `row < R` and `dim < dims`.
                    let value = _mm512_set1_ps(unsafe { *rows.add(row * dims + dim) });
                    for (sum, query) in sums.iter_mut().zip(&queries) {
                        *sum = _mm512_fmadd_ps(value, *query, *sum);
                    }
                }
                dim += 1;
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                // SAFETY: `row < R` and `v < V`.
                unsafe { _mm512_storeu_ps(out.add((row * V + v) * 16), *sum) };
            }
        }
    }

    /// Four rows, one query, sixteen dimensions at a time.
    ///
    /// # Safety
    /// AVX-512F; `rows` holds `4 * dims` floats, `query` `dims`.
    #[target_feature(enable = "avx512f")]
    pub(super) fn row_dots_avx512(rows: *const f32, dims: usize, query: *const f32) -> [f32; 4] {
        let mut sums = [_mm512_setzero_ps(); 4];
        let mut dim = 0;
        while dim + 16 <= dims {
            // SAFETY: sixteen dimensions from `dim` on exist.
            let q = unsafe { _mm512_loadu_ps(query.add(dim)) };
            for (r, sum) in sums.iter_mut().enumerate() {
                let at = rows.wrapping_add(r * dims + dim);
                // SAFETY: as above.
                *sum = _mm512_fmadd_ps(q, unsafe { _mm512_loadu_ps(at) }, *sum);
            }
            dim += 16;
        }
        let mut out = sums.map(|sum| _mm512_reduce_add_ps(sum));
        while dim < dims {
            for (r, sum) in out.iter_mut().enumerate() {
                // SAFETY: `dim < dims`.
                *sum += unsafe { *query.add(dim) * *rows.add(r * dims + dim) };
            }
            dim += 1;
        }
        out
    }

    /// Four rows, one query, eight dimensions at a time.
    ///
    /// # Safety
    /// AVX2 and FMA; `rows` holds `4 * dims` floats, `query` `dims`.
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn row_dots_avx2(rows: *const f32, dims: usize, query: *const f32) -> [f32; 4] {
        let mut sums = [_mm256_setzero_ps(); 4];
        let mut dim = 0;
        while dim + 8 <= dims {
            // SAFETY: eight dimensions from `dim` on exist.
            let q = unsafe { _mm256_loadu_ps(query.add(dim)) };
            for (r, sum) in sums.iter_mut().enumerate() {
                // SAFETY: as above.
                *sum = _mm256_fmadd_ps(q, unsafe { _mm256_loadu_ps(rows.add(r * dims + dim)) }, *sum);
            }
            dim += 8;
        }
        let mut out = sums.map(|sum| {
            let mut lanes = [0.0_f32; 8];
            // SAFETY: eight floats.
            unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum) };
            lanes.iter().sum::<f32>()
        });
        while dim < dims {
            for (r, sum) in out.iter_mut().enumerate() {
                // SAFETY: `dim < dims`.
                *sum += unsafe { *query.add(dim) * *rows.add(r * dims + dim) };
            }
            dim += 1;
        }
        out
    }

    /// `R` rows by two registers of 8 queries.
    ///
    /// # Safety
    /// AVX2 and FMA; `rows` holds `R * dims` floats, `panel` `dims * 16`, `out` `R * 16`.
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2<const R: usize>(rows: *const f32, dims: usize, panel: *const f32, out: *mut f32) {
        let mut sums = [[_mm256_setzero_ps(); 2]; R];
        let mut dim = 0;
        while dim < dims {
            let end = (dim + 16).min(dims);
            if R > 1 {
                for row in 0..R {
                    _mm_prefetch::<_MM_HINT_T0>(rows.wrapping_add((R + row) * dims + dim).cast());
                }
            }
            while dim < end {
                // SAFETY: `dim < dims`.
                let queries =
                    unsafe { [_mm256_loadu_ps(panel.add(dim * 16)), _mm256_loadu_ps(panel.add(dim * 16 + 8))] };
                for (row, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: `row < R` and `dim < dims`.
                    let value = _mm256_set1_ps(unsafe { *rows.add(row * dims + dim) });
                    for (sum, query) in sums.iter_mut().zip(&queries) {
                        *sum = _mm256_fmadd_ps(value, *query, *sum);
                    }
                }
                dim += 1;
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                // SAFETY: `row < R`.
                unsafe { _mm256_storeu_ps(out.add(row * 16 + v * 8), *sum) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every level that this machine has, every width, whole tiles and rests.
    #[test]
    fn tiles_equal_plain_dot_products() {
        let dims = 37;
        for level in [Level::Avx512, Level::Avx2, Level::Portable] {
            if !level.is_available() {
                continue;
            }
            for queries in [1, 16, 17, 33, 64] {
                let width = level.panel_width(queries);
                for count in 1..=level.tile_rows(width) {
                    let rows: Vec<f32> = (0..count * dims).map(|i| (i as f32 * 0.37).sin()).collect();
                    let panel: Vec<f32> = (0..dims * width).map(|i| (i as f32 * 0.11).cos()).collect();
                    let mut out = vec![f32::NAN; count * width];
                    dot_tile(level, &rows, count, dims, &panel, width, &mut out);
                    for row in 0..count {
                        for query in 0..width {
                            let expected: f32 =
                                (0..dims).map(|dim| rows[row * dims + dim] * panel[dim * width + query]).sum();
                            let found = out[row * width + query];
                            assert!((expected - found).abs() < 1e-4, "{level:?} {width} {row} {query}");
                        }
                    }
                }
            }
        }
    }
    #[test]
    fn few_queries_equal_plain_dot_products() {
        for level in [Level::Avx512, Level::Avx2, Level::Portable] {
            if !level.is_available() {
                continue;
            }
            for (count, dims) in [(1, 1), (4, 16), (7, 37), (9, 8)] {
                let rows: Vec<f32> = (0..count * dims).map(|i| (i as f32 * 0.37).sin()).collect();
                let queries: Vec<Vec<f32>> =
                    (0..FEW).map(|q| (0..dims).map(|i| ((i + q) as f32 * 0.11).cos()).collect()).collect();
                let mut out = vec![f32::NAN; count * 16];
                dot_few(level, &rows, count, dims, &queries, &mut out);
                for row in 0..count {
                    for (at, query) in queries.iter().enumerate() {
                        let expected: f32 = (0..dims).map(|dim| rows[row * dims + dim] * query[dim]).sum();
                        assert!((expected - out[row * 16 + at]).abs() < 1e-4, "{level:?} {row} {at}");
                    }
                }
            }
        }
    }
}
