//! The search on the device, over a corpus that stays there between searches.
//!
//! ```text
//! corpus ──score_few (up to 8 queries: one pass over memory) ──▶ scores of some rows ──select_top──▶ best k per
//!        └─score_many (more: a product of matrices)         ─┘   [query][row]                        query and segment
//!                                                                                          host: merge the segments
//! ```
//! Sums are f32. The product runs on the ordinary cores: tensor cores (cuBLAS) are not used yet.
use std::sync::Arc;

use arrow::array::{Array, FixedSizeListArray};

use super::{Metric, Neighbour, Values, Vectors, check_queries, row_of, score_of};
use crate::batch::DeviceColumn;
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

/// A corpus on a device, ready to be searched by one metric.
pub struct GpuCorpus {
    device: Arc<Device>,
    column: DeviceColumn,
    factor: DeviceBuffer,
    metric: Metric,
    item: u32,
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

fn item_of(vectors: &Vectors) -> u32 {
    match vectors.values {
        Values::F32(_) => 0,
        Values::F16(_) => 1,
        Values::Bf16(_) => 2,
    }
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
        if rows > 0 {
            let function = device.function(&source(item, dims, metric, 1), "corpus_factor", Floats::Fused)?;
            let arguments = Arguments::default()
                .pointer(&column.values)
                .maybe(column.validity.as_ref())
                .number(rows as u64)
                .number(dims as u64)
                .number(u64::from(metric == Metric::Cosine))
                .pointer(&factor);
            let size = Launch { blocks: device.grid(rows * 32), threads: 256, shared_bytes: 0 };
            // SAFETY: the corpus has `rows * dims` items, the factors `rows` floats.
            unsafe { device.launch(&function, size, arguments) }?;
        }
        Ok(Self { device: Arc::clone(device), column, factor, metric, item, dims })
    }

    /// What the corpus takes on the device.
    pub fn bytes(&self) -> usize {
        self.column.bytes() + self.factor.bytes()
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
        let asked = queries.rows;
        // score_few is compiled for 1, 2, 4 or 8; those beyond `asked` are zeros. Its queries must fit shared memory.
        let padded = asked.next_power_of_two();
        let few = asked <= FEW && padded * self.dims * 4 <= 48 * 1024;
        let sent = self.device.upload(&self.prepare(&queries, if few { padded } else { asked }))?;
        let text = source(self.item, self.dims, self.metric, if few { padded } else { 1 });
        let name = if few { "score_few" } else { "score_many" };
        let score = self.device.function(&text, name, Floats::Fused)?;
        let select = self.device.function(&text, "select_top", Floats::Fused)?;

        let chunk = (SCORE_BYTES / 4 / asked).clamp(STEP, rows.max(STEP));
        let scores = self.device.memory().allocate(chunk.min(rows) * asked * 4)?;
        // Enough blocks to fill the device, but not fewer than a few steps each.
        let wanted = (self.device.info().multiprocessors as usize * 8).div_ceil(asked);
        let segments = wanted.min(chunk.min(rows).div_ceil(4 * STEP)).max(1);
        let best = self.device.memory().allocate_filled(asked * segments * k * 8, 0)?;
        for first in (0..rows).step_by(chunk) {
            let count = chunk.min(rows - first);
            let arguments = Arguments::default()
                .pointer(&self.column.values)
                .pointer(&sent)
                .pointer(&self.factor)
                .number(first as u64)
                .number(count as u64)
                .number(self.dims as u64)
                .number(asked as u64)
                .pointer(&scores);
            let size = if few {
                let shared_bytes = u32::try_from(padded * self.dims * 4).unwrap_or(u32::MAX);
                Launch { blocks: self.device.grid(count.div_ceil(4) * 32), threads: 256, shared_bytes }
            } else {
                let blocks = count.div_ceil(64) * asked.div_ceil(64);
                Launch { blocks: u32::try_from(blocks).unwrap_or(u32::MAX), threads: 256, shared_bytes: 0 }
            };
            // SAFETY: rows `first..first + count` exist, the queries are `sent`, and `scores` has room for them all.
            unsafe { self.device.launch(&score, size, arguments) }?;
            let arguments = Arguments::default()
                .pointer(&scores)
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
            unsafe { self.device.launch(&select, size, arguments) }?;
        }
        let ranks = self.device.download_words(&best, asked * segments * k)?;
        Ok(ranks.chunks_exact(segments * k).map(|ranks| self.merge(ranks.to_vec(), k)).collect())
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

    fn merge(&self, mut ranks: Vec<u64>, k: usize) -> Vec<Neighbour> {
        ranks.sort_unstable_by(|a, b| b.cmp(a));
        let found = ranks.into_iter().take(k).take_while(|&rank| rank != 0);
        found
            .map(|rank| {
                let score = score_of(rank);
                // Minus the squared distance; a sum that rounds to nothing may be -0.
                let score = if self.metric == Metric::L2 { (-score).max(0.0).sqrt() } else { score };
                Neighbour { row: row_of(rank), score }
            })
            .collect()
    }
}
