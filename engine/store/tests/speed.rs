//! How fast the store is on a file of this machine, each figure with the least that the design needs. Run with
//! `--nocapture` to read them.

use std::time::{Duration, Instant};

use bytes::Bytes;
use rowmill_store::*;

use crate::support::*;

fn records(chunk: u64, count: u64) -> Vec<EffectRecord> {
    let bytes = Bytes::from_static(&[b'x'; 100]);
    let key = |n: u64| ((u128::from(chunk) << 64) | u128::from(n)).to_le_bytes();
    (0..count)
        .map(|n| EffectRecord { chunk: S0.chunk(chunk), key: key(n), kind: EffectKind::Result, bytes: bytes.clone() })
        .collect()
}

#[tokio::test]
async fn effects_and_commits_are_fast() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("runs.sqlite");
    let store = open_sqlite(SqliteOptions::file(&path)).await.unwrap();
    let (run, fence) = begun(&*store, &Owner::new("a")).await;

    // Flushes of 10,000 results of 100 bytes over 4 chunks, as 100 ms of a fast step would give.
    let batches: Vec<EffectBatch> = (0..50)
        .map(|flush| EffectBatch::new((0..4).flat_map(|chunk| records(flush * 4 + chunk, 2_500)).collect()))
        .collect();
    let begin = Instant::now();
    for batch in &batches {
        store.append_effects(&fence, batch).await.unwrap();
    }
    let elapsed = begin.elapsed();
    let per_second = 500_000.0 / elapsed.as_secs_f64();
    eprintln!("effects appended and synced: {per_second:.0} a second (flushes of 10,000 x 100 bytes)");
    assert!(per_second > 100_000.0, "{per_second}");

    let begin = Instant::now();
    let mut read = 0;
    for chunk in 0..200 {
        read += store.effects(run, S0.chunk(chunk)).await.unwrap().by_key.len();
    }
    assert_eq!(read, 500_000);
    eprintln!("effects read back: {:.0} a second", 500_000.0 / begin.elapsed().as_secs_f64());

    // Chunks with 1,000 effects each: one transaction a chunk, effects included.
    let mut took = Vec::new();
    for chunk in 1_000..1_100 {
        store.append_effects(&fence, &EffectBatch::new(records(chunk, 1_000))).await.unwrap();
        let begin = Instant::now();
        store.commit_chunk(&fence, &commit(S0.chunk(chunk), 1)).await.unwrap();
        took.push(begin.elapsed());
        assert!(store.effects(run, S0.chunk(chunk)).await.unwrap().by_key.is_empty());
    }
    took.sort();
    eprintln!("commit of a chunk with 1,000 effects: median {:?}, worst {:?}", took[50], took[99]);
    assert!(took[50] < Duration::from_millis(100), "{:?}", took[50]);

    let commits: Vec<ChunkCommit> = (10_000..11_000).map(|chunk| commit(S0.chunk(chunk), 1)).collect();
    let begin = Instant::now();
    store.commit_chunks(&fence, &commits).await.unwrap();
    eprintln!("chunks committed in one group: {:.0} a second", 1_000.0 / begin.elapsed().as_secs_f64());

    store.put_stages(&fence, &[stage(1, 1)]).await.unwrap();
    let specs: Vec<ChunkSpec> = (0..100_000).map(spec).collect();
    let begin = Instant::now();
    store.put_chunks(&fence, StageId { version: 1, stage: 1 }, &specs, true).await.unwrap();
    eprintln!("manifest entries written: {:.0} a second", 100_000.0 / begin.elapsed().as_secs_f64());

    let mut took: Vec<Duration> = Vec::new();
    for _ in 0..50 {
        let begin = Instant::now();
        store.renew(&fence, TTL).await.unwrap();
        took.push(begin.elapsed());
    }
    took.sort();
    eprintln!("renewal of a lease: median {:?}", took[25]);
}
