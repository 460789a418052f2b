//! The search on the device, over a corpus that stays there between searches.
//!
//! ```text
//! corpus ─┬─score_few (up to 8 queries: one pass over memory) ──▶ scores of some rows ──select_top──▶ best k per
//!         ├─cuBLAS (more: a product of matrices)              ─┤   [query][row]     finishes them,    query and segment
//!         └─score_many (the same, where cuBLAS cannot be had) ─┘                    and keeps k     host: merge the segments
//! ```
//! Sums are f32. The product takes the items as they are: queries for a corpus of f16 or bf16 are cut into as many such
//! numbers as add up to them, up to three, so that no bit of a query is lost; queries that cannot be are left to
//! `score_many`.
use std::sync::Arc;

use arrow::array::{Array, FixedSizeListArray};
use half::{bf16, f16};

use super::{Metric, Neighbour, Values, Vectors, check_queries, row_of, score_of};
use crate::batch::DeviceColumn;
use crate::blas::{Item, Product};
use crate::compile::Floats;
use crate::device::{Arguments, Device, Launch};
use crate::error::{Error, Result};
use crate::kernels;
use crate::memory::DeviceBuffer;

/// Up to this many queries one pass over memory is all the work.
const FEW: usize = 8;
/// Scores kept at a time.
const SCORE_BYTES: usize = 64 * 1024 * 1024;
/// Scores a block looks at between two looks at its buffer; the kernel's 256 * ITEMS.
const STEP: usize = 1024;
/// The selection's largest buffer, in ranks: 32 KiB of shared memory.
const LARGEST_BUFFER: usize = 4096;
/// Queries that are searched together; more are several searches.
const TOGETHER: usize = 4096;
/// Parts of 8 bits that an f32 needs at most.
const MOST_PARTS: usize = 3;

/// A corpus on a device, ready to be searched by one metric.
pub struct GpuCorpus {
    device: Arc<Device>,
    column: DeviceColumn,
    factor: DeviceBuffer,
    /// For L2: what is added to a product.
    bias: Option<DeviceBuffer>,
    /// Whether an item is infinite: zeros that stand for nothing would then be NaN in a product.
    infinite: bool,
    metric: Metric,
    item: Item,
    dims: usize,
}

/// The kernels for one kind of items; `queries` is 1, 2, 4 or 8. For tests that compile them without a device.
pub fn source(item: u32, dims: usize, metric: Metric, queries: usize) -> String {
    let item_bytes = if item == 0 { 4 } else { 2 };
    format!(
        "{}#define ITEM {item}\n#define ITEM_BYTES {item_bytes}\n#define L2 {}\n#define QUERIES {queries}\n#define WHOLE {}\n{}",
        kernels::COMMON,
        u8::from(metric == Metric::L2),
        u8::from((dims * item_bytes).is_multiple_of(16)),
        kernels::TOP_K
    )
}

fn item_of(vectors: &Vectors) -> Item {
    match vectors.values {
        Values::F32(_) => Item::F32,
        Values::F16(_) => Item::F16,
        Values::Bf16(_) => Item::Bf16,
    }
}

/// How the scores of one group of queries are computed.
enum Scoring {
    /// By a kernel, whose queries these are.
    Kernel { name: &'static str, queries: DeviceBuffer, padded: usize },
    /// By products of matrices with these parts of the queries; and the lengths of the queries as they were sent.
    Products { parts: Vec<DeviceBuffer>, lengths: Vec<f64> },
}

impl GpuCorpus {
    /// Copies a column of embeddings to the device and computes what `metric` needs of each row.
    ///
    /// # Errors
    /// As [`super::cpu::CpuCorpus::try_new`], and [`Error::OutOfMemory`].
    pub fn upload(device: &Arc<Device>, list: &FixedSizeListArray, metric: Metric) -> Result<Self> {
        let vectors = Vectors::try_new(list)?;
        let (rows, dims, item) = (vectors.rows, vectors.dims, item_of(&vectors));
        let values = match &vectors.values {
            Values::F32(values) => device.upload(values.inner().as_slice())?,
            Values::F16(values) => device.upload(values.inner().as_slice())?,
            Values::Bf16(values) => device.upload(values.inner().as_slice())?,
        };
        let validity = match &vectors.nulls {
            Some(nulls) if nulls.null_count() > 0 => Some(device.upload(&crate::batch::padded_bitmap(nulls.inner()))?),
            _ => None,
        };
        let column = DeviceColumn { data_type: list.data_type().clone(), rows, values, validity };
        let factor = device.memory().allocate(rows * 4)?;
        let bias = if metric == Metric::L2 { Some(device.memory().allocate(rows * 4)?) } else { None };
        let infinite = device.memory().allocate_filled(4, 0)?;
        let mode = match metric {
            Metric::Dot => 0,
            Metric::Cosine => 1,
            Metric::L2 => 2,
        };
        if rows > 0 {
            let function = device.function(&source(item as u32, dims, metric, 1), "corpus_factor", Floats::Fused)?;
            let arguments = Arguments::default()
                .pointer(&column.values)
                .maybe(column.validity.as_ref())
                .number(rows as u64)
                .number(dims as u64)
                .number(mode)
                .pointer(&factor)
                .maybe(bias.as_ref())
                .pointer(&infinite);
            let size = Launch { blocks: device.grid(rows * 32), threads: 256, shared_bytes: 0 };
            // SAFETY: the corpus has `rows * dims` items, factors and bias `rows` floats; for L2 there is a bias.
            unsafe { device.launch(&function, size, arguments) }?;
        }
        let infinite = device.download_u32(&infinite, 1)?[0] != 0;
        Ok(Self { device: Arc::clone(device), column, factor, bias, infinite, metric, item, dims })
    }

    /// What the corpus takes on the device.
    pub fn bytes(&self) -> usize {
        self.column.bytes() + self.factor.bytes() + self.bias.as_ref().map_or(0, DeviceBuffer::bytes)
    }

    /// The `k` best rows of each query, best first.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the queries' dimensions are not the corpus's, [`Error::Unsupported`] for a `k` beyond
    /// 3,072, [`Error::OutOfMemory`].
    pub fn search(&self, queries: &FixedSizeListArray, k: usize) -> Result<Vec<Vec<Neighbour>>> {
        let queries = check_queries(queries, self.dims)?;
        let rows = self.column.rows;
        if queries.rows == 0 || k == 0 || rows == 0 {
            return Ok(vec![Vec::new(); queries.rows]);
        }
        let k = k.min(rows);
        let capacity = (k + STEP).next_power_of_two();
        if capacity > LARGEST_BUFFER {
            return Err(Error::Unsupported(format!("the best {k} rows; the selection keeps at most 3072")));
        }
        let mut found = Vec::with_capacity(queries.rows);
        for from in (0..queries.rows).step_by(TOGETHER) {
            let group = queries.part(from, TOGETHER.min(queries.rows - from));
            let scoring = self.scoring(&group)?;
            match self.search_group(&group, k, capacity, &scoring) {
                // cuBLAS refused, and is not asked again.
                Err(Error::Unsupported(_)) if matches!(scoring, Scoring::Products { .. }) => {
                    found.extend(self.search_group(&group, k, capacity, &self.scoring(&group)?)?);
                }
                other => found.extend(other?),
            }
        }
        Ok(found)
    }

    /// Chooses how a group of queries is scored, and sends them.
    fn scoring(&self, queries: &Vectors) -> Result<Scoring> {
        let asked = queries.rows;
        // score_few is compiled for 1, 2, 4 or 8; those beyond `asked` are zeros. Its queries must fit shared memory.
        let padded = asked.next_power_of_two();
        if asked <= FEW && padded * self.dims * 4 <= 48 * 1024 {
            let queries = self.device.upload(&self.prepare(queries, padded))?;
            return Ok(Scoring::Kernel { name: "score_few", queries, padded });
        }
        if asked > FEW
            && self.device.blas().is_some_and(|blas| blas.is_usable())
            && let Some((parts, lengths)) = self.parts(queries)
        {
            let parts = parts.iter().map(|part| self.device.upload(part)).collect::<Result<Vec<_>>>()?;
            return Ok(Scoring::Products { parts, lengths });
        }
        let queries = self.device.upload(&self.prepare(queries, asked))?;
        Ok(Scoring::Kernel { name: "score_many", queries, padded: 1 })
    }

    fn search_group(
        &self,
        queries: &Vectors,
        k: usize,
        capacity: usize,
        scoring: &Scoring,
    ) -> Result<Vec<Vec<Neighbour>>> {
        let (asked, rows, device) = (queries.rows, self.column.rows, &self.device);
        let text = match scoring {
            Scoring::Kernel { padded, .. } => source(self.item as u32, self.dims, self.metric, *padded),
            Scoring::Products { .. } => source(self.item as u32, self.dims, self.metric, 1),
        };
        let select = device.function(&text, "select_top", Floats::Fused)?;
        let chunk = (SCORE_BYTES / 4 / asked).clamp(STEP, rows.max(STEP));
        let scores = device.memory().allocate(chunk.min(rows) * asked * 4)?;
        // Enough blocks to fill the device, but not fewer than a few steps each.
        let wanted = (device.info().multiprocessors as usize * 8).div_ceil(asked);
        let segments = wanted.min(chunk.min(rows).div_ceil(4 * STEP)).max(1);
        let best = device.memory().allocate_filled(asked * segments * k * 8, 0)?;
        for first in (0..rows).step_by(chunk) {
            let count = chunk.min(rows - first);
            let (factor, bias) = match scoring {
                Scoring::Kernel { name, queries, padded } => {
                    self.score_by_kernel(&text, name, queries, *padded, (first, count, asked), &scores)?;
                    (None, None)
                }
                Scoring::Products { parts, .. } => {
                    self.score_by_products(parts, (first, count, asked), &scores)?;
                    (Some(&self.factor), self.bias.as_ref())
                }
            };
            let arguments = Arguments::default()
                .pointer(&scores)
                .maybe(factor)
                .maybe(bias)
                .number(first as u64)
                .number(count as u64)
                .number(segments as u64)
                .number(k as u64)
                .number(capacity as u64)
                .pointer(&best);
            let size = Launch {
                blocks: u32::try_from(asked * segments).unwrap_or(u32::MAX),
                threads: 256,
                shared_bytes: u32::try_from(capacity * 8).unwrap_or(u32::MAX),
            };
            // SAFETY: `best` has `k` ranks per query and segment, the buffer `capacity`, of which at most `capacity`
            // are filled between two sorts.
            unsafe { device.launch(&select, size, arguments) }?;
        }
        let ranks = device.download_words(&best, asked * segments * k)?;
        let ranks = ranks.chunks_exact(segments * k).enumerate();
        Ok(ranks
            .map(|(query, ranks)| {
                let length = match scoring {
                    Scoring::Kernel { .. } => None,
                    Scoring::Products { lengths, .. } => Some(lengths[query]),
                };
                self.merge(ranks.to_vec(), k, length)
            })
            .collect())
    }

    fn score_by_kernel(
        &self,
        text: &str,
        name: &str,
        queries: &DeviceBuffer,
        padded: usize,
        (first, count, asked): (usize, usize, usize),
        scores: &DeviceBuffer,
    ) -> Result<()> {
        let function = self.device.function(text, name, Floats::Fused)?;
        let arguments = Arguments::default()
            .pointer(&self.column.values)
            .pointer(queries)
            .pointer(&self.factor)
            .number(first as u64)
            .number(count as u64)
            .number(self.dims as u64)
            .number(asked as u64)
            .pointer(scores);
        let size = if name == "score_few" {
            let shared_bytes = u32::try_from(padded * self.dims * 4).unwrap_or(u32::MAX);
            Launch { blocks: self.device.grid(count.div_ceil(4) * 32), threads: 256, shared_bytes }
        } else {
            let blocks = count.div_ceil(64) * asked.div_ceil(64);
            Launch { blocks: u32::try_from(blocks).unwrap_or(u32::MAX), threads: 256, shared_bytes: 0 }
        };
        // SAFETY: rows `first..first + count` exist, the queries were sent, and `scores` has room for them all.
        unsafe { self.device.launch(&function, size, arguments) }
    }

    fn score_by_products(
        &self,
        parts: &[DeviceBuffer],
        (first, count, asked): (usize, usize, usize),
        scores: &DeviceBuffer,
    ) -> Result<()> {
        let Some(blas) = self.device.blas() else {
            return Err(Error::Unsupported("a product without cuBLAS".into()));
        };
        let width = if self.item == Item::F32 { 4 } else { 2 };
        for (at, part) in parts.iter().enumerate() {
            let product = Product {
                item: self.item,
                corpus: self.column.values.pointer() + (first * self.dims * width) as u64,
                rows: count,
                queries: part.pointer(),
                asked,
                dims: self.dims,
                scores: scores.pointer(),
                add: at > 0,
            };
            // SAFETY: rows `first..first + count` exist, each part holds all queries, and `scores` has room for them all.
            unsafe { blas.start(&product) }?;
        }
        Ok(())
    }

    /// The queries as parts of the corpus's type that add up to them, and their lengths; `None` where no three do. By
    /// cosine only the direction counts: those are sent at a length of one to two.
    fn parts(&self, queries: &Vectors) -> Option<(Vec<Vec<u8>>, Vec<f64>)> {
        let mut scratch = Vec::new();
        let mut lengths = Vec::with_capacity(queries.rows);
        let mut rest = Vec::with_capacity(queries.rows * self.dims);
        for query in 0..queries.rows {
            let values = queries.f32_rows(query, 1, &mut scratch);
            let length = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
            let nothing = !queries.is_valid(query) || (self.metric == Metric::Cosine && length == 0.0);
            let scale = match self.metric {
                _ if nothing => f64::NAN,
                // A power of two, which loses no bit.
                Metric::Cosine if length.is_finite() => (-length.log2().floor()).exp2(),
                _ => 1.0,
            };
            rest.extend(values.iter().map(|&value| (f64::from(value) * scale) as f32));
            lengths.push(length * scale);
        }
        let mut parts = Vec::new();
        for _ in 0..MOST_PARTS {
            let mut part = Vec::with_capacity(rest.len() * 4);
            for value in &mut rest {
                let taken = match self.item {
                    Item::F32 => {
                        part.extend_from_slice(&value.to_le_bytes());
                        *value
                    }
                    Item::F16 => {
                        let taken = f16::from_f32(*value);
                        part.extend_from_slice(&taken.to_le_bytes());
                        taken.to_f32()
                    }
                    Item::Bf16 => {
                        let taken = bf16::from_f32(*value);
                        part.extend_from_slice(&taken.to_le_bytes());
                        taken.to_f32()
                    }
                };
                match (value.is_finite(), taken.is_finite()) {
                    (true, false) => return None,
                    (true, true) => *value -= taken,
                    (false, _) => *value = 0.0,
                }
            }
            parts.push(part);
            if rest.iter().all(|value| *value == 0.0) {
                // Zeros of a second part times an infinite item would be NaN.
                return (parts.len() == 1 || !self.infinite).then_some((parts, lengths));
            }
        }
        None
    }

    /// The bytes of the queries as f32: for cosine of length one, nulls as NaN, zeros up to `count`.
    fn prepare(&self, queries: &Vectors, count: usize) -> Vec<u8> {
        let mut scratch = Vec::new();
        let mut bytes = Vec::with_capacity(count * self.dims * 4);
        for query in 0..queries.rows {
            let values = queries.f32_rows(query, 1, &mut scratch);
            let length = match self.metric {
                _ if !queries.is_valid(query) => f64::NAN,
                Metric::Cosine => values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt(),
                _ => 1.0,
            };
            for &value in values {
                bytes.extend_from_slice(&((f64::from(value) / length) as f32).to_le_bytes());
            }
        }
        bytes.resize(count * self.dims * 4, 0);
        bytes
    }

    /// The best of all segments. `product`: the scores are those of products with a query of this length.
    fn merge(&self, mut ranks: Vec<u64>, k: usize, product: Option<f64>) -> Vec<Neighbour> {
        ranks.sort_unstable_by(|a, b| b.cmp(a));
        let found = ranks.into_iter().take(k).take_while(|&rank| rank != 0);
        found
            .map(|rank| {
                let score = score_of(rank);
                let score = match (self.metric, product) {
                    (Metric::Dot, _) | (Metric::Cosine, None) => score,
                    (Metric::Cosine, Some(length)) => (f64::from(score) / length) as f32,
                    // Minus the squared distance; a sum that rounds to nothing may be -0.
                    (Metric::L2, None) => (-score).max(0.0).sqrt(),
                    (Metric::L2, Some(length)) => (length * length - 2.0 * f64::from(score)).max(0.0).sqrt() as f32,
                };
                Neighbour { row: row_of(rank), score }
            })
            .collect()
    }
}
