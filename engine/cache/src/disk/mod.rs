//! The disk tier: append-only segment files in one directory, shared by any number of processes.
//!
//! Each process writes to one segment, on which it holds a lock, and reads those of all. A process that begins takes
//! over the newest segment that nobody writes and that has room (cutting off what a killed one left half-written), or
//! makes a new one at its first store. When the directory is full, the oldest segments are removed; whoever wrote to
//! one notices and begins another. There is no fsync: what the machine loses at a power cut does not add up and is a
//! miss.

mod index;
mod segment;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use parking_lot::Mutex;

use crate::ipc::{decode, encode, same};
use crate::{CacheError, CacheKey, CacheTier, Entries, Freshness, Hit, Probe, Scope, TierStats};
use index::{Index, Place};

/// Where the disk tier is and how large.
#[derive(Debug, Clone)]
pub struct DiskOptions {
    /// The directory, made if it is not there.
    pub directory: PathBuf,
    /// Bytes of all segments at most; what is written last may stand over it until the next write.
    pub max_bytes: u64,
    /// Bytes after which a segment is full.
    pub segment_bytes: u64,
    /// How old a look at the directory may be: what another process wrote is seen after this at the latest.
    pub look_again: Duration,
}

impl DiskOptions {
    /// A cache in `directory` of at most `max_bytes`, in segments of a sixteenth of it, 64 MiB at most.
    pub fn new(directory: impl Into<PathBuf>, max_bytes: u64) -> Self {
        let segment_bytes = (max_bytes / 16).clamp(1 << 16, 1 << 26);
        Self { directory: directory.into(), max_bytes, segment_bytes, look_again: Duration::from_millis(50) }
    }
}

/// A cache on disk. Clones share it.
#[derive(Clone)]
pub struct DiskTier(Arc<Mutex<Index>>);

impl std::fmt::Debug for DiskTier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DiskTier")
    }
}

impl DiskTier {
    /// Opens the cache and reads the lists of keys of all segments.
    ///
    /// # Errors
    /// [`CacheError::Io`]: the directory cannot be made or read.
    pub async fn open(options: DiskOptions) -> Result<Self, CacheError> {
        let index = blocking(move || Index::open(options)).await?;
        Ok(Self(Arc::new(Mutex::new(index))))
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Mutex<Index>) -> Result<T, CacheError> + Send + 'static,
    ) -> Result<T, CacheError> {
        let index = self.0.clone();
        blocking(move || work(&index)).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CacheError> + Send + 'static,
) -> Result<T, CacheError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(CacheError::Io {
            path: "disk tier".to_owned(),
            error: std::io::Error::other(format!("reading or writing panicked or was cancelled: {error}")),
        }),
    }
}

/// Looks keys up: places under the lock, bodies outside it.
fn probe(index: &Mutex<Index>, schema: &SchemaRef, keys: &[CacheKey], fresh: Freshness) -> Result<Probe, CacheError> {
    let places: Vec<Option<Place>> = {
        let mut index = index.lock();
        index.look_again()?;
        keys.iter().map(|key| index.place(*key).filter(|place| fresh.is_live(place.stored_at_ms))).collect()
    };
    let mut probe = Probe::misses(keys.len());
    // By block, so that each is read once.
    let mut order: Vec<(usize, Place)> =
        places.into_iter().enumerate().filter_map(|(key, place)| place.map(|place| (key, place))).collect();
    order.sort_unstable_by_key(|(key, place)| (place.block, *key));
    for group in order.chunk_by(|a, b| a.1.block == b.1.block) {
        let block = group[0].1.block;
        let Some((file, body)) = index.lock().body(block) else { continue };
        let batch = segment::read_body(&file, body.at, body.len, body.sum).and_then(|bytes| decode(&bytes));
        let Some(batch) = batch else {
            index.lock().unreadable(block);
            continue;
        };
        if !same(batch.schema_ref(), schema) {
            continue;
        }
        let number = u32::try_from(probe.batches.len()).unwrap_or(u32::MAX);
        let rows = batch.num_rows() as u64;
        let Ok(batch) = batch.with_schema(schema.clone()) else { continue };
        probe.batches.push(batch);
        for (key, place) in group {
            if u64::from(place.row) + u64::from(place.rows) <= rows {
                let Place { row, rows, stored_at_ms, .. } = *place;
                probe.hits[*key] = Some(Hit { batch: number, row, rows, stored_at_ms });
            }
        }
    }
    let found = probe.found() as u64;
    index.lock().count(found, keys.len() as u64 - found);
    Ok(probe)
}

#[async_trait]
impl CacheTier for DiskTier {
    async fn probe(
        &self,
        _scope: &Scope,
        schema: &SchemaRef,
        keys: &[CacheKey],
        fresh: Freshness,
    ) -> Result<Probe, CacheError> {
        let (schema, keys) = (schema.clone(), keys.to_vec());
        self.with(move |index| probe(index, &schema, &keys, fresh)).await
    }

    async fn store(&self, scope: &Scope, entries: Entries<'_>) -> Result<(), CacheError> {
        entries.check()?;
        if entries.keys.is_empty() {
            return Ok(());
        }
        let bytes = segment::block(scope.id(), &entries, &encode(entries.rows, true)?);
        self.with(move |index| index.lock().append(&bytes)).await
    }

    async fn stats(&self) -> TierStats {
        let stats = self.with(|index| {
            let mut index = index.lock();
            index.look_again()?;
            Ok(index.stats())
        });
        stats.await.unwrap_or_else(|_| TierStats { tier: "disk", ..TierStats::default() })
    }

    async fn clear(&self, scope: Option<&Scope>) -> Result<(), CacheError> {
        let scope = scope.map(Scope::id);
        self.with(move |index| index.lock().clear(scope)).await
    }
}
