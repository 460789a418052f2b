//! Files that are locked, damaged, full, foreign or from the future: each gives the error of its own, and nothing that
//! was there is touched or lost.

use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use rowmill_store::*;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};

use crate::support::*;

async fn raw(path: &Path) -> sqlx::SqliteConnection {
    SqliteConnectOptions::new().filename(path).create_if_missing(true).connect().await.unwrap()
}

fn impatient(path: &Path) -> SqliteOptions {
    SqliteOptions { busy_timeout: Duration::from_millis(200), ..SqliteOptions::file(path) }
}

/// A closed store with a run that has many chunks, effects and a long workflow text.
async fn filled(path: &Path) -> RunId {
    let store = open_sqlite(SqliteOptions::file(path)).await.unwrap();
    let (run, fence) = begun(&*store, &Owner::new("a")).await;
    store.put_chunks(&fence, S0, &(0..3000).map(spec).collect::<Vec<_>>(), true).await.unwrap();
    let commits: Vec<ChunkCommit> = (0..2000).map(|chunk| commit(S0.chunk(chunk), 1)).collect();
    store.commit_chunks(&fence, &commits).await.unwrap();
    let records = (0..200).map(|key| record(S0.chunk(2500), key, EffectKind::Result, &[key; 5000])).collect();
    store.append_effects(&fence, &EffectBatch::new(records)).await.unwrap();
    store.optimize().await.unwrap();
    store.close().await;
    run
}

#[tokio::test]
async fn a_locked_file_is_busy_and_then_works() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("runs.sqlite");
    let store = open_sqlite(impatient(&path)).await.unwrap();
    let (run, fence) = begun(&*store, &Owner::new("a")).await;
    let mut other = raw(&path).await;
    other.execute("BEGIN IMMEDIATE").await.unwrap();
    let begin = Instant::now();
    let error = store.commit_chunk(&fence, &commit(S0.chunk(0), 1)).await.unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error:?}");
    assert!(error.is_retryable());
    assert!(begin.elapsed() >= Duration::from_millis(200), "it waited for the busy timeout");
    assert!(error.to_string().contains("runs.sqlite"), "{error}");
    // Readers do not wait for writers.
    assert!(store.committed(run, S0, &all()).await.unwrap().items.is_empty());
    other.execute("ROLLBACK").await.unwrap();
    assert_eq!(store.commit_chunk(&fence, &commit(S0.chunk(0), 1)).await.unwrap(), CommitResult::Committed);

    // A new store that another process holds exclusively cannot be opened, and can be afterwards.
    let path = files.path().join("new.sqlite");
    let mut other = raw(&path).await;
    other.execute("BEGIN EXCLUSIVE").await.unwrap();
    let error = open_sqlite(impatient(&path)).await.unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error:?}");
    other.execute("ROLLBACK").await.unwrap();
    other.close().await.unwrap();
    open_sqlite(impatient(&path)).await.unwrap();
}

#[tokio::test]
async fn a_damaged_header_is_corruption() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("runs.sqlite");
    filled(&path).await;
    let mut file = std::fs::File::options().write(true).open(&path).unwrap();
    file.write_all(b"garbage garbage garbage").unwrap();
    drop(file);
    let before = std::fs::read(&path).unwrap();
    let error = open_sqlite(SqliteOptions::file(&path)).await.unwrap_err();
    assert!(matches!(error, Error::Corrupted { .. }), "{error:?}");
    assert_eq!(error.fault(), Fault::Corrupted);
    assert_eq!(std::fs::read(&path).unwrap(), before, "a damaged file is left as it is");
}

/// Whichever page is overwritten, the damage is found when the store is opened, or by the read that meets it.
#[tokio::test]
async fn a_damaged_page_is_corruption() {
    let files = tempfile::tempdir().unwrap();
    let whole = files.path().join("whole.sqlite");
    let run = filled(&whole).await;
    let pages = std::fs::metadata(&whole).unwrap().len() / 4096;
    assert!(pages > 100, "{pages}");
    let (mut found_at_open, mut found_by_reading, mut sound) = (0, 0, 0);
    for (at, page) in (1..pages).step_by(7).enumerate() {
        // Every other time the page's head is left alone, as by a sector that went bad inside it: then SQLite sees
        // nothing wrong where the page holds the inside of a long value, and only our checksum does.
        let skipped = 8 * (at as u64 % 2);
        let path = files.path().join("damaged.sqlite");
        std::fs::copy(&whole, &path).unwrap();
        let mut file = std::fs::File::options().write(true).open(&path).unwrap();
        file.seek(SeekFrom::Start(page * 4096 + skipped)).unwrap();
        file.write_all(&vec![0xa5; 4096 - skipped as usize]).unwrap();
        drop(file);
        match open_sqlite(SqliteOptions::file(&path)).await {
            Err(Error::Corrupted { .. }) => found_at_open += 1,
            Err(other) => panic!("page {page}: {other:?}"),
            Ok(store) => {
                match store.effects(run, S0.chunk(2500)).await {
                    Err(Error::Corrupted { .. }) => found_by_reading += 1,
                    Ok(effects) if effects.by_key.len() == 200 => sound += 1,
                    other => panic!("page {page}: {other:?}"),
                }
                store.close().await;
            }
        }
        // Large files are not checked when they are opened; then the reads find it.
        let unchecked = SqliteOptions { check_up_to_bytes: 0, ..SqliteOptions::file(&path) };
        if let Ok(store) = open_sqlite(unchecked).await {
            for error in [
                store.committed(run, S0, &all()).await.err(),
                store.chunks(run, S0, &all()).await.err(),
                store.effects(run, S0.chunk(2500)).await.err(),
            ] {
                assert!(error.as_ref().is_none_or(|error| error.fault() == Fault::Corrupted), "page {page}: {error:?}");
            }
            store.close().await;
        }
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(files.path().join(format!("damaged.sqlite{suffix}")));
        }
    }
    eprintln!("found at open {found_at_open}, by reading {found_by_reading}, elsewhere {sound}");
    assert!(found_at_open > 10 && found_by_reading > 10, "{found_at_open} {found_by_reading}");
}

#[tokio::test]
async fn a_full_disk_loses_nothing() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("runs.sqlite");
    let small = SqliteOptions { max_bytes: Some(600 << 10), ..SqliteOptions::file(&path) };
    let store = open_sqlite(small).await.unwrap();
    let (run, fence) = begun(&*store, &Owner::new("a")).await;
    let mut committed = 0;
    let error = loop {
        match store.commit_chunk(&fence, &commit(S0.chunk(committed), 1)).await {
            Ok(result) => assert_eq!(result, CommitResult::Committed),
            Err(error) => break error,
        }
        committed += 1;
        assert!(committed < 100_000, "it never filled up");
    };
    assert!(matches!(error, Error::Full { .. }), "{error:?}");
    assert!(!error.is_retryable());
    let batch = EffectBatch::new(vec![record(S0.chunk(committed), 1, EffectKind::Result, &[0; 100_000])]);
    let error = store.append_effects(&fence, &batch).await.unwrap_err();
    assert!(matches!(error, Error::Full { .. }), "{error:?}");
    // What was confirmed is there, what was refused is not, and reading goes on.
    assert_eq!(store.stages(run, 1).await.unwrap()[0].committed_chunks, committed);
    assert!(store.effects(run, S0.chunk(committed)).await.unwrap().by_key.is_empty());
    store.close().await;
    // With room again, the run goes on where it stopped.
    let store = open_sqlite(SqliteOptions::file(&path)).await.unwrap();
    store.check().await.unwrap();
    assert_eq!(store.commit_chunk(&fence, &commit(S0.chunk(committed), 1)).await.unwrap(), CommitResult::Committed);
    let stage = store.stages(run, 1).await.unwrap().remove(0);
    assert_eq!(stage.committed_chunks, committed + 1);
    assert_eq!(stage.counts[0].counts.total(), 100 * (committed + 1));
}

#[tokio::test]
async fn newer_and_foreign_files_are_refused_and_left_alone() {
    let files = tempfile::tempdir().unwrap();
    let newer = files.path().join("newer.sqlite");
    filled(&newer).await;
    let mut connection = raw(&newer).await;
    let sql = format!("PRAGMA user_version = {}", SCHEMA_VERSION + 1);
    connection.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.unwrap();
    connection.close().await.unwrap();
    match open_sqlite(SqliteOptions::file(&newer)).await.unwrap_err() {
        error @ Error::NewerVersion { .. } => {
            let text = error.to_string();
            assert!(
                text.contains(&format!("version {}", SCHEMA_VERSION + 1)) && text.contains("newer.sqlite"),
                "{text}"
            );
        }
        other => panic!("{other:?}"),
    }

    let foreign = files.path().join("foreign.sqlite");
    let mut connection = raw(&foreign).await;
    connection.execute("CREATE TABLE accounts (id INTEGER)").await.unwrap();
    connection.close().await.unwrap();
    let before = std::fs::read(&foreign).unwrap();
    let error = open_sqlite(SqliteOptions::file(&foreign)).await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error:?}");
    assert_eq!(std::fs::read(&foreign).unwrap(), before);

    let absent = files.path().join("no/such/folder/runs.sqlite");
    assert!(matches!(open_sqlite(SqliteOptions::file(&absent)).await, Err(Error::Denied { .. })));
    let absent = SqliteOptions { create: false, ..SqliteOptions::file(files.path().join("absent.sqlite")) };
    assert!(matches!(open_sqlite(absent).await, Err(Error::Denied { .. })));
    assert!(!files.path().join("absent.sqlite").exists());
    assert!(open_sqlite(SqliteOptions::file(files.path())).await.is_err(), "a directory");
}

/// Jumps of the wall clock change what people read, and no lease.
#[tokio::test]
async fn wall_clock_jumps_move_no_lease() {
    let harness = Harness::sqlite().await;
    let Hands::Local(clock) = &harness.hands else { unreachable!() };
    let (a, b) = (Owner::new("a"), Owner::new("b"));
    let (run, fence) = begun(&*harness.store, &a).await;
    for jump in [86_400_000, -2 * 86_400_000, 5] {
        clock.wall_ms.fetch_add(jump, std::sync::atomic::Ordering::SeqCst);
        let held = harness.store.acquire(run, &b, TTL, AcquireMode::Free).await.unwrap();
        assert!(matches!(held, Acquired::Held { .. }), "{held:?}");
        harness.store.renew(&fence, TTL).await.unwrap();
    }
    harness.advance(TTL.as_millis() as i64).await;
    take(&*harness.store, run, &b, AcquireMode::Free).await;
}
