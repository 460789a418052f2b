//! What a tier of the cache is: batches of keys in, rows out.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::{interleave_record_batch, take_record_batch};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;

use crate::{CacheKey, Scope};

/// What went wrong with the cache. None of it is a reason to fail a run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// The caller's keys and rows do not fit together.
    #[error("the cache was handed what does not fit together: {0}")]
    Shape(String),
    /// Arrow refused a column.
    #[error("the cache cannot handle a column: {0}")]
    Arrow(#[from] arrow::error::ArrowError),
    /// The cache's directory or a file of it.
    #[error("the cache at {path}: {error}")]
    Io {
        /// The directory or file.
        path: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// Redis.
    #[error("the cache in Redis: {0}")]
    Redis(String),
}

/// Milliseconds since 1970 of a moment.
pub fn millis(at: SystemTime) -> i64 {
    let of = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
    at.duration_since(UNIX_EPOCH).map_or_else(|before| -of(before.duration()), of)
}

/// Which entries are live: those stored after a moment that the run's start and the time to live give, so that a run
/// that is resumed sees the same entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freshness {
    after_ms: i64,
}

impl Freshness {
    /// Live is what was stored at `stored_at` with `stored_at + ttl > run_start`; without `ttl`, everything.
    pub fn new(run_start: SystemTime, ttl: Option<Duration>) -> Self {
        let after_ms = ttl.map_or(i64::MIN, |ttl| {
            millis(run_start).saturating_sub(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX))
        });
        Self { after_ms }
    }

    /// Whether an entry stored then is live.
    pub fn is_live(self, stored_at_ms: i64) -> bool {
        self.after_ms == i64::MIN || stored_at_ms > self.after_ms
    }
}

/// Where a key's rows are in [`Probe::batches`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit {
    /// Which batch.
    pub batch: u32,
    /// Its first row.
    pub row: u32,
    /// How many rows: 1 for a step that gives one row for an item, any number (also 0) for one that fans out.
    pub rows: u32,
    /// When it was stored, in milliseconds since 1970.
    pub stored_at_ms: i64,
}

/// What a probe found.
#[derive(Debug, Clone, Default)]
pub struct Probe {
    /// Batches of the schema that was asked for. They hold other rows too.
    pub batches: Vec<RecordBatch>,
    /// For each key, in the order they were asked for, where its rows are, or that it is a miss.
    pub hits: Vec<Option<Hit>>,
}

impl Probe {
    /// Nothing found for so many keys.
    pub fn misses(keys: usize) -> Self {
        Self { batches: Vec::new(), hits: vec![None; keys] }
    }

    /// How many keys were found.
    pub fn found(&self) -> usize {
        self.hits.iter().flatten().count()
    }

    /// The indexes of the keys that were not found.
    pub fn missed(&self) -> UInt32Array {
        (0u32..).zip(&self.hits).filter(|(_, hit)| hit.is_none()).map(|(index, _)| index).collect::<Vec<_>>().into()
    }

    /// The rows of all hits in the order of the keys, and for each row the index of its key.
    ///
    /// # Errors
    /// Those of arrow: the batches differ in schema, which no tier does.
    pub fn rows(&self, schema: &SchemaRef) -> Result<(RecordBatch, Vec<u32>), CacheError> {
        let mut places = Vec::with_capacity(self.hits.len());
        let mut items = Vec::with_capacity(self.hits.len());
        for (item, hit) in (0u32..).zip(&self.hits) {
            let Some(hit) = hit else { continue };
            for row in hit.row..hit.row + hit.rows {
                places.push((hit.batch as usize, row as usize));
                items.push(item);
            }
        }
        let rows = match self.batches.as_slice() {
            _ if places.is_empty() => RecordBatch::new_empty(schema.clone()),
            [batch] => {
                let start = places[0].1;
                if places.iter().zip(start..).all(|((_, row), expected)| *row == expected) {
                    batch.slice(start, places.len())
                } else {
                    let rows: UInt32Array = places
                        .iter()
                        .map(|(_, row)| u32::try_from(*row).unwrap_or(u32::MAX))
                        .collect::<Vec<_>>()
                        .into();
                    take_record_batch(batch, &rows)?
                }
            }
            batches => interleave_record_batch(&batches.iter().collect::<Vec<_>>(), &places)?,
        };
        Ok((rows, items))
    }
}

/// When entries were stored, in milliseconds since 1970.
#[derive(Debug, Clone, Copy)]
pub enum StoredAt<'a> {
    /// All at once.
    All(i64),
    /// Each at its own time, when entries move from one tier to another.
    Each(&'a [i64]),
}

/// Results to be stored: ok results only.
#[derive(Debug, Clone, Copy)]
pub struct Entries<'a> {
    /// The keys.
    pub keys: &'a [CacheKey],
    /// The rows of all keys, in their order.
    pub rows: &'a RecordBatch,
    /// How many rows each key has; `None` if each has one.
    pub lengths: Option<&'a [u32]>,
    /// When.
    pub stored_at: StoredAt<'a>,
    /// How long they may be wanted; tiers that forget by themselves do so after it.
    pub ttl: Option<Duration>,
}

impl Entries<'_> {
    /// Checks that keys, lengths and rows fit together.
    ///
    /// # Errors
    /// [`CacheError::Shape`].
    pub fn check(&self) -> Result<(), CacheError> {
        let keys = self.keys.len();
        let rows = match self.lengths {
            Some(lengths) if lengths.len() != keys => {
                return Err(CacheError::Shape(format!("{keys} keys with {} lengths", lengths.len())));
            }
            Some(lengths) => lengths.iter().map(|length| *length as usize).sum(),
            None => keys,
        };
        if rows != self.rows.num_rows() {
            return Err(CacheError::Shape(format!("{rows} rows for keys, {} rows at hand", self.rows.num_rows())));
        }
        if let StoredAt::Each(each) = self.stored_at
            && each.len() != keys
        {
            return Err(CacheError::Shape(format!("{keys} keys with {} times", each.len())));
        }
        if u32::try_from(rows).is_err() || u32::try_from(keys).is_err() {
            return Err(CacheError::Shape("more than 2^32 rows at once".to_owned()));
        }
        Ok(())
    }

    /// Key, first row, number of rows, time: one for each key.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (CacheKey, u32, u32, i64)> {
        let mut row = 0;
        self.keys.iter().enumerate().map(move |(index, key)| {
            let rows = self.lengths.map_or(1, |lengths| lengths[index]);
            let first = row;
            row += rows;
            let at = match self.stored_at {
                StoredAt::All(at) => at,
                StoredAt::Each(each) => each[index],
            };
            (*key, first, rows, at)
        })
    }
}

/// What a tier holds and what it was asked, since the process began.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TierStats {
    /// `memory`, `disk` or `redis`.
    pub tier: &'static str,
    /// Entries, where they are counted.
    pub entries: Option<u64>,
    /// Bytes, where they are counted.
    pub bytes: Option<u64>,
    /// Keys found.
    pub hits: u64,
    /// Keys not found, or no longer live.
    pub misses: u64,
    /// Entries stored.
    pub stored: u64,
    /// Entries that had to make room.
    pub evicted: u64,
    /// Blocks that could not be read: torn, corrupt, of another version.
    pub unreadable: u64,
}

/// One tier.
#[async_trait]
pub trait CacheTier: std::fmt::Debug + Send + Sync {
    /// Looks keys up. What cannot be read, has another schema or is not live is a miss.
    ///
    /// # Errors
    /// The tier cannot be asked at all.
    async fn probe(
        &self,
        scope: &Scope,
        schema: &SchemaRef,
        keys: &[CacheKey],
        fresh: Freshness,
    ) -> Result<Probe, CacheError>;

    /// Stores entries; later ones take the place of earlier ones with the same key.
    ///
    /// # Errors
    /// [`CacheError::Shape`], or the tier cannot take them; earlier entries stay whole.
    async fn store(&self, scope: &Scope, entries: Entries<'_>) -> Result<(), CacheError>;

    /// What it holds.
    async fn stats(&self) -> TierStats;

    /// Forgets a step's entries, or all.
    ///
    /// # Errors
    /// The tier cannot be asked.
    async fn clear(&self, scope: Option<&Scope>) -> Result<(), CacheError>;
}
