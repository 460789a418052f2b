//! How many keys a second does the memory tier answer, and how many are hashed? Medians of 11 rounds, on one core.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use rowmill_cache::{CacheError, Entries, Freshness, MemoryTier, Scope, StoredAt, keys, millis};
use rowmill_step::FingerprintBuilder;

const ENTRIES: i64 = 1_000_000;
const BATCH: usize = 8192;

/// Keys in batches; `stride` scatters them over the blocks in which they were stored.
fn batches(stride: i64) -> Vec<ArrayRef> {
    let ids: Vec<i64> = (0..ENTRIES).map(|n| n * stride % ENTRIES).collect();
    ids.chunks(BATCH).map(|ids| Arc::new(Int64Array::from(ids.to_vec())) as ArrayRef).collect()
}

fn median(name: &str, mut round: impl FnMut() -> Result<(), CacheError>) -> Result<(), CacheError> {
    let mut rates = Vec::new();
    for _ in 0..11 {
        let started = Instant::now();
        round()?;
        rates.push(ENTRIES as f64 / started.elapsed().as_secs_f64() / 1e6);
    }
    rates.sort_by(f64::total_cmp);
    println!("{name:44} {:7.2} M keys/s", rates[5]);
    Ok(())
}

fn main() -> Result<(), CacheError> {
    let fingerprint = FingerprintBuilder::new("bench", 1).finish();
    let scope = Scope::new("bench", &fingerprint);
    let schema = Arc::new(Schema::new(vec![Field::new("y", DataType::Int64, true)]));
    let now = SystemTime::now();
    let fresh = Freshness::new(now, None);
    let hash = |column: &ArrayRef| keys("bench", &fingerprint, std::slice::from_ref(column), column.len());

    let ordered = batches(1);
    median("hash integers", || ordered.iter().try_for_each(|column| hash(column).map(|_| ())))?;
    let texts: Vec<ArrayRef> = (0..ENTRIES)
        .collect::<Vec<_>>()
        .chunks(BATCH)
        .map(|ids| Arc::new(StringArray::from_iter_values(ids.iter().map(|id| format!("item-{id:012}")))) as ArrayRef)
        .collect();
    median("hash texts of 17 bytes", || texts.iter().try_for_each(|column| hash(column).map(|_| ())))?;

    let tier = MemoryTier::new(1 << 30);
    for column in &ordered {
        let rows = RecordBatch::try_new(schema.clone(), vec![column.clone()])?;
        let keys = hash(column)?;
        let entries =
            Entries { keys: &keys, rows: &rows, lengths: None, stored_at: StoredAt::All(millis(now)), ttl: None };
        tier.insert(&scope, entries)?;
    }
    for (name, stride) in [("probe, in the order of storing", 1), ("probe, scattered over all blocks", 7_919)] {
        let asked = batches(stride).iter().map(hash).collect::<Result<Vec<_>, _>>()?;
        median(name, || {
            for keys in &asked {
                if tier.lookup(&schema, keys, fresh).found() != keys.len() {
                    return Err(CacheError::Shape("an entry is missing".to_owned()));
                }
            }
            Ok(())
        })?;
        median(&format!("{name}, and gather the rows"), || {
            asked.iter().try_for_each(|keys| tier.lookup(&schema, keys, fresh).rows(&schema).map(|_| ()))
        })?;
    }
    let none = keys("other", &fingerprint, &ordered[..1], BATCH)?;
    median("probe misses", || {
        (0..ENTRIES as usize / BATCH).try_for_each(|_| match tier.lookup(&schema, &none, fresh).found() {
            0 => Ok(()),
            _ => Err(CacheError::Shape("an entry too many".to_owned())),
        })
    })
}
