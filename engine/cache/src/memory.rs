//! The memory tier: an index in shards over a log of blocks, bounded in bytes.
//!
//! A block is a batch as it was stored. When room is needed, the oldest block goes: entries that were asked for since
//! they were written move into a new block at the log's end (once more: a second chance, as in CLOCK), the rest is
//! forgotten. So eviction works by entry, and dead rows do not keep their block alive.
//!
//! Locks: a probe holds the blocks and then all shards for reading; a writer holds one of them at a time.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arrow::array::{Array as _, ArrayRef, AsArray as _, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{DataType, SchemaRef};
use async_trait::async_trait;
use parking_lot::{Mutex, RwLock};

use crate::ipc::same;
use crate::{CacheError, CacheKey, CacheTier, Entries, Freshness, Hit, Probe, Scope, TierStats};

const SHARDS: usize = 16;

/// What an entry costs besides its rows: its place in the index with the index's spare room, and in the block's list.
const ENTRY_BYTES: usize = 112;

/// What a block costs besides its rows.
const BLOCK_BYTES: usize = 512;

/// Keys are hashes already.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u128(&mut self, value: u128) {
        self.0 = value as u64;
    }

    fn write_u32(&mut self, value: u32) {
        self.0 = u64::from(value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

type ByIdentity<K, V> = HashMap<K, V, BuildHasherDefault<Identity>>;

/// Where an entry is.
#[derive(Debug)]
struct Slot {
    stored_at_ms: i64,
    block: u32,
    row: u32,
    rows: u32,
    wanted: AtomicBool,
}

#[derive(Debug)]
struct Block {
    scope: u128,
    batch: RecordBatch,
    keys: Vec<CacheKey>,
    bytes: usize,
}

/// The blocks by number, and their order.
#[derive(Debug, Default)]
struct Log {
    order: VecDeque<u32>,
    free: Vec<u32>,
    bytes: usize,
}

/// A cache in memory.
pub struct MemoryTier {
    max_bytes: usize,
    shards: [RwLock<ByIdentity<CacheKey, Slot>>; SHARDS],
    blocks: RwLock<Vec<Option<Arc<Block>>>>,
    /// Held by whoever changes blocks, for the whole change.
    log: Mutex<Log>,
    hits: AtomicU64,
    misses: AtomicU64,
    stored: AtomicU64,
    evicted: AtomicU64,
}

impl std::fmt::Debug for MemoryTier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MemoryTier({} bytes at most)", self.max_bytes)
    }
}

fn shard(key: CacheKey) -> usize {
    // The index uses the low half.
    (key.0 >> 124) as usize % SHARDS
}

impl MemoryTier {
    /// An empty cache of at most `max_bytes`, the index included.
    pub fn new(max_bytes: usize) -> Self {
        Self {
            max_bytes,
            shards: std::array::from_fn(|_| RwLock::default()),
            blocks: RwLock::default(),
            log: Mutex::default(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            stored: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
        }
    }

    /// [`CacheTier::probe`], which never waits here.
    pub fn lookup(&self, schema: &SchemaRef, keys: &[CacheKey], fresh: Freshness) -> Probe {
        let mut probe = Probe { batches: Vec::new(), hits: Vec::with_capacity(keys.len()) };
        let mut found = 0u64;
        {
            let blocks = self.blocks.read();
            let shards: [_; SHARDS] = std::array::from_fn(|shard| self.shards[shard].read());
            // Which batch of the answer a block is; `None` for a block of another schema.
            let mut seen: ByIdentity<u32, Option<u32>> = HashMap::default();
            let mut last = (u32::MAX, None);
            for chunk in keys.chunks(64) {
                // The index is larger than the processor's caches: look-ups that do nothing else wait side by side.
                let mut slots = [None; 64];
                for (slot, key) in slots.iter_mut().zip(chunk) {
                    *slot = shards[shard(*key)].get(key);
                }
                for slot in &slots[..chunk.len()] {
                    let Some(slot) = slot.filter(|slot: &&Slot| fresh.is_live(slot.stored_at_ms)) else {
                        probe.hits.push(None);
                        continue;
                    };
                    if last.0 != slot.block {
                        let batch = *seen.entry(slot.block).or_insert_with(|| {
                            let block = blocks.get(slot.block as usize)?.as_ref()?;
                            let theirs = block.batch.schema_ref();
                            if !Arc::ptr_eq(theirs, schema) && !same(theirs, schema) {
                                return None;
                            }
                            probe.batches.push(block.batch.clone());
                            u32::try_from(probe.batches.len() - 1).ok()
                        });
                        last = (slot.block, batch);
                    }
                    let hit = last.1.map(|batch| {
                        if !slot.wanted.load(Ordering::Relaxed) {
                            slot.wanted.store(true, Ordering::Relaxed);
                        }
                        Hit { batch, row: slot.row, rows: slot.rows, stored_at_ms: slot.stored_at_ms }
                    });
                    found += u64::from(hit.is_some());
                    probe.hits.push(hit);
                }
            }
        }
        // Schemas of blocks may differ in metadata from the one that was asked for, and among each other.
        for batch in &mut probe.batches {
            if !Arc::ptr_eq(batch.schema_ref(), schema)
                && let Ok(renamed) = batch.clone().with_schema(schema.clone())
            {
                *batch = renamed;
            }
        }
        self.hits.fetch_add(found, Ordering::Relaxed);
        self.misses.fetch_add(keys.len() as u64 - found, Ordering::Relaxed);
        probe
    }

    /// [`CacheTier::store`], which never waits here.
    ///
    /// # Errors
    /// [`CacheError::Shape`].
    pub fn insert(&self, scope: &Scope, entries: Entries<'_>) -> Result<(), CacheError> {
        entries.check()?;
        if entries.keys.is_empty() {
            return Ok(());
        }
        let batch = compact(entries.rows)?;
        if bytes_of(&batch, entries.keys.len()) > self.max_bytes {
            return Ok(());
        }
        let mut log = self.log.lock();
        self.append(&mut log, scope.id(), batch, entries.iter())?;
        self.stored.fetch_add(entries.keys.len() as u64, Ordering::Relaxed);
        // Entries that are wanted again and again must not keep us here: after one round over the log, all must go.
        let mut chances = log.order.len();
        while log.bytes > self.max_bytes {
            self.evict(&mut log, chances > 0)?;
            chances = chances.saturating_sub(1);
        }
        Ok(())
    }

    /// Puts a block at the log's end and its entries into the index.
    fn append(
        &self,
        log: &mut Log,
        scope: u128,
        batch: RecordBatch,
        entries: impl Iterator<Item = (CacheKey, u32, u32, i64)>,
    ) -> Result<(), CacheError> {
        let mut by_shard: [Vec<(CacheKey, Slot)>; SHARDS] = std::array::from_fn(|_| Vec::new());
        let mut keys = Vec::new();
        let number = match log.free.pop() {
            Some(number) => number,
            None => {
                let mut blocks = self.blocks.write();
                blocks.push(None);
                u32::try_from(blocks.len() - 1).map_err(|_| CacheError::Shape("too many blocks".to_owned()))?
            }
        };
        for (key, row, rows, stored_at_ms) in entries {
            keys.push(key);
            let slot = Slot { stored_at_ms, block: number, row, rows, wanted: AtomicBool::new(false) };
            by_shard[shard(key)].push((key, slot));
        }
        let bytes = bytes_of(&batch, keys.len());
        log.bytes += bytes;
        log.order.push_back(number);
        self.blocks.write()[number as usize] = Some(Arc::new(Block { scope, batch, keys, bytes }));
        for (shard, slots) in self.shards.iter().zip(by_shard) {
            shard.write().extend(slots);
        }
        Ok(())
    }

    /// Takes the oldest block away, and puts what was asked for since back at the log's end if `spare` says so.
    fn evict(&self, log: &mut Log, spare: bool) -> Result<(), CacheError> {
        let Some(number) = log.order.pop_front() else { return Ok(()) };
        let Some(block) = self.blocks.read().get(number as usize).cloned().flatten() else { return Ok(()) };
        let mut spared = Vec::new();
        let mut gone = 0;
        for key in &block.keys {
            let mut shard = self.shards[shard(*key)].write();
            // The key may have been stored anew since.
            if shard.get(key).is_none_or(|slot| slot.block != number) {
                continue;
            }
            let Some(slot) = shard.remove(key) else { continue };
            if spare && slot.wanted.into_inner() {
                spared.push((*key, slot.row, slot.rows, slot.stored_at_ms));
            } else {
                gone += 1;
            }
        }
        self.drop_block(log, number, &block);
        self.evicted.fetch_add(gone, Ordering::Relaxed);
        if spared.is_empty() {
            return Ok(());
        }
        let rows: UInt32Array = spared.iter().flat_map(|(_, row, rows, _)| *row..row + rows).collect::<Vec<_>>().into();
        let batch = compact_views(take_record_batch(&block.batch, &rows)?);
        let mut next = 0;
        let entries = spared.into_iter().map(|(key, _, rows, at)| {
            let row = next;
            next += rows;
            (key, row, rows, at)
        });
        self.append(log, block.scope, batch, entries)
    }

    /// Forgets a block that no entry of the index names any more.
    fn drop_block(&self, log: &mut Log, number: u32, block: &Block) {
        self.blocks.write()[number as usize] = None;
        log.free.push(number);
        log.bytes -= block.bytes;
    }

    fn forget(&self, scope: Option<u128>) {
        let mut log = self.log.lock();
        let order = std::mem::take(&mut log.order);
        for number in order {
            let Some(block) = self.blocks.read().get(number as usize).cloned().flatten() else { continue };
            if scope.is_some_and(|scope| scope != block.scope) {
                log.order.push_back(number);
                continue;
            }
            for key in &block.keys {
                let mut shard = self.shards[shard(*key)].write();
                if shard.get(key).is_some_and(|slot| slot.block == number) {
                    shard.remove(key);
                }
            }
            self.drop_block(&mut log, number, &block);
        }
    }
}

fn bytes_of(batch: &RecordBatch, keys: usize) -> usize {
    batch.get_array_memory_size() + keys * ENTRY_BYTES + BLOCK_BYTES
}

/// A copy that holds these rows and nothing else, where the batch is a slice of something larger.
fn compact(batch: &RecordBatch) -> Result<RecordBatch, CacheError> {
    let needed: usize =
        batch.columns().iter().map(|column| column.to_data().get_slice_memory_size().unwrap_or(usize::MAX / 64)).sum();
    if batch.get_array_memory_size() <= needed.saturating_mul(2).saturating_add(BLOCK_BYTES) {
        return Ok(batch.clone());
    }
    let rows: UInt32Array = (0..u32::try_from(batch.num_rows()).unwrap_or(u32::MAX)).collect::<Vec<_>>().into();
    Ok(compact_views(take_record_batch(batch, &rows)?))
}

/// Views share their text with the batch that they were taken from; these get a copy of their own.
pub(crate) fn compact_views(batch: RecordBatch) -> RecordBatch {
    let own = |column: &ArrayRef| -> ArrayRef {
        match column.data_type() {
            DataType::Utf8View => Arc::new(column.as_string_view().gc()),
            DataType::BinaryView => Arc::new(column.as_binary_view().gc()),
            _ => column.clone(),
        }
    };
    let columns = batch.columns().iter().map(own).collect();
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(batch.schema(), columns, &options).unwrap_or(batch)
}

#[async_trait]
impl CacheTier for MemoryTier {
    async fn probe(
        &self,
        _scope: &Scope,
        schema: &SchemaRef,
        keys: &[CacheKey],
        fresh: Freshness,
    ) -> Result<Probe, CacheError> {
        Ok(self.lookup(schema, keys, fresh))
    }

    async fn store(&self, scope: &Scope, entries: Entries<'_>) -> Result<(), CacheError> {
        self.insert(scope, entries)
    }

    async fn stats(&self) -> TierStats {
        let entries = self.shards.iter().map(|shard| shard.read().len() as u64).sum();
        TierStats {
            tier: "memory",
            entries: Some(entries),
            bytes: Some(self.log.lock().bytes as u64),
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            stored: self.stored.load(Ordering::Relaxed),
            evicted: self.evicted.load(Ordering::Relaxed),
            unreadable: 0,
        }
    }

    async fn clear(&self, scope: Option<&Scope>) -> Result<(), CacheError> {
        self.forget(scope.map(Scope::id));
        Ok(())
    }
}
