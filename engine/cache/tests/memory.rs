//! The memory tier's own: bounds, eviction, slices; and tiers over each other.

use std::sync::Arc;

use rowmill_cache::{CacheTier, Entries, MemoryTier, ResultCache, StoredAt, millis};

use crate::support::{always, at, found, keys_of, right, rows_of, schema, scope, store};

#[tokio::test]
async fn it_passes_the_suite() {
    crate::suite::check(&MemoryTier::new(1 << 24)).await;
}

#[tokio::test]
async fn it_stays_in_its_bounds_and_keeps_what_is_asked_for() {
    let limit = 1 << 18;
    let tier = MemoryTier::new(limit);
    let wanted: Vec<i64> = (0..20).collect();
    for block in 0..400i64 {
        let ids: Vec<i64> = (block * 20..block * 20 + 20).collect();
        store(&tier, 1, &ids, 1).await;
        let stats = tier.stats().await;
        assert!(stats.bytes.unwrap() <= limit as u64, "{stats:?}");
        assert_eq!(found(&tier, 1, &wanted, always()).await, wanted, "asked for all the time: never evicted");
    }
    let stats = tier.stats().await;
    assert_eq!(stats.entries.unwrap() + stats.evicted, 8000, "{stats:?}");
    let old: Vec<i64> = (20..40).collect();
    assert_eq!(found(&tier, 1, &old, always()).await, [0i64; 0]);
    // What is larger than the whole cache is not stored, and drives nothing out.
    let many: Vec<i64> = (100_000..110_000).collect();
    store(&tier, 1, &many, 1).await;
    assert_eq!(found(&tier, 1, &wanted, always()).await, wanted);
}

#[tokio::test]
async fn entries_that_are_all_wanted_still_make_room() {
    let tier = MemoryTier::new(1 << 16);
    for block in 0..200i64 {
        let ids: Vec<i64> = (block * 10..block * 10 + 10).collect();
        store(&tier, 1, &ids, 1).await;
        let all: Vec<i64> = (0..block * 10 + 10).collect();
        found(&tier, 1, &all, always()).await;
        assert!(tier.stats().await.bytes.unwrap() <= 1 << 16);
    }
}

#[tokio::test]
async fn a_slice_does_not_keep_the_whole() {
    let tier = MemoryTier::new(1 << 22);
    let ids: Vec<i64> = (0..10_000).collect();
    let whole = rows_of(&ids);
    for start in (0..10_000usize).step_by(1000) {
        let keys = keys_of(1, &ids[start..start + 10]);
        let rows = whole.slice(start, 10);
        let entries =
            Entries { keys: &keys, rows: &rows, lengths: None, stored_at: StoredAt::All(millis(at(1))), ttl: None };
        tier.store(&scope(1), entries).await.unwrap();
    }
    assert!(tier.stats().await.bytes.unwrap() < 100_000);
    assert_eq!(found(&tier, 1, &ids[3000..3010], always()).await, ids[3000..3010]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_and_writers_at_once_never_see_a_wrong_row() {
    let tier = Arc::new(MemoryTier::new(1 << 17));
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..4i64 {
        let tier = tier.clone();
        tasks.spawn(async move {
            for round in 0..150i64 {
                let ids: Vec<i64> = (0..32).map(|n| (n * 31 + round * 17 + task * 7) % 900).collect();
                let mut once = ids.clone();
                once.sort_unstable();
                once.dedup();
                store(&*tier, 1, &once, 1).await;
                found(&*tier, 1, &ids, always()).await;
                if round % 50 == 0 {
                    tier.clear(Some(&scope(1))).await.unwrap();
                }
            }
        });
    }
    tasks.join_all().await;
}

#[tokio::test]
async fn hits_of_lower_tiers_move_up_with_their_times() {
    let (upper, lower) = (Arc::new(MemoryTier::new(1 << 20)), Arc::new(MemoryTier::new(1 << 20)));
    let cache = ResultCache::new(vec![upper.clone(), lower.clone()]);
    store(&*lower, 1, &[1, 2, 3], 5).await;
    store(&*upper, 1, &[4, 5], 6).await;
    let ids = [5, 3, 9, 1, 4];
    let probe = cache.probe(&scope(1), &schema(), &keys_of(1, &ids), always()).await;
    assert_eq!(right(&probe, &ids), [5, 3, 1, 4]);
    let above = crate::support::probe(&*upper, 1, &ids, always()).await;
    assert_eq!(right(&above, &ids), [5, 3, 1, 4]);
    assert_eq!(above.hits[1].unwrap().stored_at_ms, millis(at(5)));
    assert_eq!(found(&*lower, 1, &[4], always()).await, [0i64; 0], "nothing moves down by itself");
    let (keys, rows) = (keys_of(1, &[7]), rows_of(&[7]));
    let stored_at = StoredAt::All(millis(at(7)));
    cache.store(&scope(1), Entries { keys: &keys, rows: &rows, lengths: None, stored_at, ttl: None }).await;
    for tier in cache.tiers() {
        assert_eq!(found(&**tier, 1, &[7], always()).await, [7]);
    }
    assert_eq!(cache.stats().await.len(), 2);
    assert!(cache.clear(None).await.is_empty());
    assert_eq!(cache.probe(&scope(1), &schema(), &keys, always()).await.found(), 0);
}
