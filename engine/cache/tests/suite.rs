//! What holds for every tier.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use rowmill_cache::{CacheTier, Entries, Freshness, StoredAt, millis};

use crate::support::{always, at, found, keys_of, numbers, probe, rows_of, schema, scope, store};

pub(crate) async fn check(tier: &dyn CacheTier) {
    hits_and_misses(tier).await;
    time_to_live(tier).await;
    fan_out(tier).await;
    other_schemas_and_steps(tier).await;
    what_does_not_fit_is_refused(tier).await;
    clearing(tier).await;
}

async fn hits_and_misses(tier: &dyn CacheTier) {
    assert_eq!(found(tier, 1, &[1, 2], always()).await, [0i64; 0]);
    store(tier, 1, &[1, 2, 3, 4, 5, 6, 7], 10).await;
    store(tier, 1, &[11, 12, 13], 10).await;
    store(tier, 1, &[], 10).await;
    assert_eq!(found(tier, 1, &[12, 99, 3, 3, 1, 98, 7, 13], always()).await, [12, 3, 3, 1, 7, 13]);
    assert_eq!(found(tier, 1, &[1, 2, 3], always()).await, [1, 2, 3]);
    assert_eq!(found(tier, 1, &[], always()).await, [0i64; 0]);
    let some = probe(tier, 1, &[99, 1], always()).await;
    assert_eq!(some.missed().values(), &[0]);
    let stats = tier.stats().await;
    assert!(stats.hits >= 10 && stats.misses >= 5 && stats.stored >= 10, "{stats:?}");
}

async fn time_to_live(tier: &dyn CacheTier) {
    store(tier, 2, &[1], 100).await;
    store(tier, 2, &[2], 101).await;
    let ttl = Some(Duration::from_secs(50));
    // Live if and only if stored_at + ttl > the run's start.
    assert_eq!(found(tier, 2, &[1, 2], Freshness::new(at(149), ttl)).await, [1, 2]);
    assert_eq!(found(tier, 2, &[1, 2], Freshness::new(at(150), ttl)).await, [2]);
    assert_eq!(found(tier, 2, &[1, 2], Freshness::new(at(151), ttl)).await, [0i64; 0]);
    // A run that began before they were stored and is resumed later.
    assert_eq!(found(tier, 2, &[1, 2], Freshness::new(at(0), ttl)).await, [1, 2]);
    store(tier, 2, &[1], 200).await;
    assert_eq!(found(tier, 2, &[1, 2], Freshness::new(at(151), ttl)).await, [1]);
}

async fn fan_out(tier: &dyn CacheTier) {
    let (keys, rows) = (keys_of(3, &[1, 2, 3]), rows_of(&[10, 11, 30, 31, 32]));
    let times = [millis(at(1)), millis(at(2)), millis(at(3))];
    let entries =
        Entries { keys: &keys, rows: &rows, lengths: Some(&[2, 0, 3]), stored_at: StoredAt::Each(&times), ttl: None };
    tier.store(&scope(3), entries).await.unwrap();
    let probe = probe(tier, 3, &[3, 2, 9, 1], always()).await;
    let (rows, items) = probe.rows(&schema()).unwrap();
    assert_eq!(numbers(&rows), [Some(300), Some(310), Some(320), Some(100), Some(110)]);
    assert_eq!(items, [0, 0, 0, 3, 3]);
    let (none, missing) = (probe.hits[1].unwrap(), probe.hits[2]);
    assert!(none.rows == 0 && none.stored_at_ms == times[1] && missing.is_none(), "no rows is a result too");
}

async fn other_schemas_and_steps(tier: &dyn CacheTier) {
    store(tier, 4, &[1], 1).await;
    let (scope, keys) = (scope(4), keys_of(4, &[1]));
    for field in ["x", "y"] {
        let other = Arc::new(Schema::new(vec![Field::new(field, DataType::Int64, true)]));
        let probe = tier.probe(&scope, &other, &keys, always()).await.unwrap();
        assert_eq!(probe.found(), 0, "rows of another schema are a miss");
        assert_eq!(probe.rows(&other).unwrap().0.schema(), other);
    }
    let noted = Schema::new(schema().fields().clone()).with_metadata([("note".to_owned(), "x".to_owned())].into());
    let noted = Arc::new(noted);
    let probe = tier.probe(&scope, &noted, &keys, always()).await.unwrap();
    assert_eq!(probe.rows(&noted).unwrap().0.schema(), noted, "metadata does not count");
    assert_eq!(probe.found(), 1);
    assert_eq!(found(tier, 5, &[1], always()).await, [0i64; 0], "another fingerprint is a miss");
    let column: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let theirs = rowmill_cache::keys("other", &crate::support::fingerprint(4), &[column], 1).unwrap();
    assert_eq!(tier.probe(&scope, &schema(), &theirs, always()).await.unwrap().found(), 0, "another tenant's too");
}

async fn what_does_not_fit_is_refused(tier: &dyn CacheTier) {
    let (keys, rows) = (keys_of(6, &[1, 2]), rows_of(&[1]));
    let times = [0];
    let all = StoredAt::All(0);
    for (lengths, stored_at) in
        [(None, all), (Some([1u32].as_slice()), all), (Some(&[1, 1]), all), (Some(&[1, 0]), StoredAt::Each(&times))]
    {
        let entries = Entries { keys: &keys, rows: &rows, lengths, stored_at, ttl: None };
        assert!(tier.store(&scope(6), entries).await.is_err());
    }
    assert_eq!(found(tier, 6, &[1, 2], always()).await, [0i64; 0]);
    // Steps without columns of their own: only the number of rows counts.
    let bare = Arc::new(Schema::empty());
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(2));
    let rows = RecordBatch::try_new_with_options(bare.clone(), vec![], &options).unwrap();
    let entries = Entries { keys: &keys, rows: &rows, lengths: None, stored_at: all, ttl: None };
    tier.store(&scope(6), entries).await.unwrap();
    let probe = tier.probe(&scope(6), &bare, &keys, always()).await.unwrap();
    assert_eq!((probe.found(), probe.rows(&bare).unwrap().0.num_rows()), (2, 2));
}

async fn clearing(tier: &dyn CacheTier) {
    store(tier, 7, &[1, 2], 1).await;
    store(tier, 8, &[1, 2], 1).await;
    tier.clear(Some(&scope(7))).await.unwrap();
    assert_eq!(found(tier, 7, &[1, 2], always()).await, [0i64; 0]);
    assert_eq!(found(tier, 8, &[1, 2], always()).await, [1, 2]);
    store(tier, 7, &[2], 2).await;
    assert_eq!(found(tier, 7, &[1, 2], always()).await, [2]);
    tier.clear(None).await.unwrap();
    for version in 1..9 {
        assert_eq!(found(tier, version, &[1, 2, 3], always()).await, [0i64; 0]);
    }
    store(tier, 7, &[5], 3).await;
    assert_eq!(found(tier, 7, &[5], always()).await, [5]);
}
