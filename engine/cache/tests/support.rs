//! Keys, rows and times for the tests.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arrow::array::{ArrayRef, AsArray as _, Int64Array, RecordBatch, StringViewArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use rowmill_cache::{CacheKey, CacheTier, Entries, Freshness, Probe, Scope, StoredAt, keys, millis};
use rowmill_step::{Fingerprint, FingerprintBuilder};

pub(crate) fn fingerprint(version: u32) -> Fingerprint {
    FingerprintBuilder::new("test", version).finish()
}

pub(crate) fn scope(version: u32) -> Scope {
    Scope::new("tenant", &fingerprint(version))
}

pub(crate) fn schema() -> SchemaRef {
    let fields = vec![Field::new("x", DataType::Int64, true), Field::new("text", DataType::Utf8View, true)];
    Arc::new(Schema::new(fields))
}

pub(crate) fn keys_of(version: u32, ids: &[i64]) -> Vec<CacheKey> {
    let column: ArrayRef = Arc::new(Int64Array::from(ids.to_vec()));
    keys("tenant", &fingerprint(version), &[column], ids.len()).unwrap()
}

/// The row that belongs to an item: anything else that comes back is wrong data.
pub(crate) fn rows_of(ids: &[i64]) -> RecordBatch {
    let numbers: ArrayRef = Arc::new(Int64Array::from_iter(ids.iter().map(|id| (id % 7 != 0).then_some(id * 10))));
    let texts = ids.iter().map(|id| Some(format!("the text of item {id}, long enough for a buffer")));
    let texts: ArrayRef = Arc::new(StringViewArray::from_iter(texts));
    RecordBatch::try_new(schema(), vec![numbers, texts]).unwrap()
}

pub(crate) fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
}

pub(crate) fn always() -> Freshness {
    Freshness::new(at(0), None)
}

pub(crate) async fn store(tier: &dyn CacheTier, version: u32, ids: &[i64], seconds: u64) {
    let (keys, rows) = (keys_of(version, ids), rows_of(ids));
    let stored_at = StoredAt::All(millis(at(seconds)));
    let entries = Entries { keys: &keys, rows: &rows, lengths: None, stored_at, ttl: None };
    tier.store(&scope(version), entries).await.unwrap();
}

pub(crate) async fn probe(tier: &dyn CacheTier, version: u32, ids: &[i64], fresh: Freshness) -> Probe {
    tier.probe(&scope(version), &schema(), &keys_of(version, ids), fresh).await.unwrap()
}

/// Which of the items are found; each that is must come with its own row.
pub(crate) async fn found(tier: &dyn CacheTier, version: u32, ids: &[i64], fresh: Freshness) -> Vec<i64> {
    let probe = probe(tier, version, ids, fresh).await;
    right(&probe, ids)
}

pub(crate) fn right(probe: &Probe, ids: &[i64]) -> Vec<i64> {
    assert_eq!(probe.hits.len(), ids.len());
    let (rows, items) = probe.rows(&schema()).unwrap();
    let found: Vec<i64> = items.iter().map(|item| ids[*item as usize]).collect();
    assert_eq!(rows, rows_of(&found), "every row is the row of its item");
    found
}

pub(crate) fn numbers(batch: &RecordBatch) -> Vec<Option<i64>> {
    batch.column(0).as_primitive::<Int64Type>().iter().collect()
}
