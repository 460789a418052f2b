//! Stores of earlier versions: each one committed under `testdata/` is opened by this build, migrated, and must hold what
//! was put into it. A new version adds its file (`write_testdata` makes it) and nothing here.

use std::path::{Path, PathBuf};

use rowmill_store::*;

use crate::support::*;

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata")
}

/// A fixed identity, so that every version's file holds the same run.
fn fixed_run() -> NewRun {
    let id = "01980000-0000-7000-8000-000000000001".parse().unwrap();
    NewRun { id, submit_key: Some("fixture".into()), ..new_run("fixture") }
}

async fn write(store: &dyn RunStore) {
    let run = store.submit(&fixed_run()).await.unwrap().run.id;
    let fence = take(store, run, &Owner::new("fixture"), AcquireMode::Free).await;
    store.start(&fence).await.unwrap();
    store.put_stages(&fence, &[stage(1, 0), stage(1, 1)]).await.unwrap();
    store.put_chunks(&fence, S0, &(0..5).map(spec).collect::<Vec<_>>(), true).await.unwrap();
    store.set_stage_status(&fence, S0, StageStatus::Running, None).await.unwrap();
    let commits: Vec<ChunkCommit> = (0..3).map(|chunk| commit(S0.chunk(chunk), 1)).collect();
    store.commit_chunks(&fence, &commits).await.unwrap();
    let records =
        vec![record(S0.chunk(3), 1, EffectKind::Result, b"a result"), record(S0.chunk(3), 2, EffectKind::Intent, b"")];
    store.append_effects(&fence, &EffectBatch::new(records)).await.unwrap();
    store.append_events(&fence, &[NewEvent::new("note", "fixture", serde_json::json!({"n": 1}))]).await.unwrap();
    store.release(&fence).await.unwrap();
}

async fn verify(store: &dyn RunStore) {
    let new = fixed_run();
    let run = store.run(&Scope::organisation("acme"), new.id).await.unwrap();
    assert_eq!((run.status, run.version), (RunStatus::Running, 1));
    assert_eq!((&run.parameters, &run.labels, &run.payload), (&new.parameters, &new.labels, &new.payload));
    assert_eq!(store.workflow_text(&Scope::all(), new.id).await.unwrap(), new.workflow_text);
    assert!(!store.submit(&NewRun { id: RunId::new(), ..new.clone() }).await.unwrap().created);
    let chunks = store.chunks(new.id, S0, &all()).await.unwrap().items;
    assert_eq!(chunks, (0..5).map(spec).collect::<Vec<_>>());
    let committed = store.committed(new.id, S0, &all()).await.unwrap().items;
    let committed: Vec<ChunkCommit> = committed.into_iter().map(|chunk| chunk.commit).collect();
    assert_eq!(committed, (0..3).map(|chunk| commit(S0.chunk(chunk), 1)).collect::<Vec<_>>());
    let stages = store.stages(new.id, 1).await.unwrap();
    assert_eq!(stages.len(), 2);
    assert_eq!((stages[0].status, stages[0].chunk_count), (StageStatus::Running, Some(5)));
    assert_eq!(stages[0].counts[0].counts.total(), 300);
    let effects = store.effects(new.id, S0.chunk(3)).await.unwrap().by_key;
    assert_eq!(effects[&[1; 16]], Effect::Completed(bytes::Bytes::from_static(b"a result")));
    assert_eq!(effects[&[2; 16]], Effect::Intended);
    let kinds: Vec<String> =
        store.events(new.id, &all()).await.unwrap().items.into_iter().map(|event| event.kind).collect();
    assert_eq!(kinds, ["submitted", "owner", "note"]);
    // And it goes on.
    let fence = take(store, new.id, &Owner::new("later"), AcquireMode::Free).await;
    let result = store.commit_chunk(&fence, &commit(S0.chunk(3), 1)).await.unwrap();
    assert_eq!(result, CommitResult::Committed);
    store.check().await.unwrap();
}

/// Writes the files of this build's version. Run it, and commit what it wrote, before adding a migration.
#[tokio::test]
#[ignore = "writes testdata/ for the present version"]
async fn write_testdata() {
    let path = testdata().join(format!("store-v{SCHEMA_VERSION}.sqlite"));
    let _ = std::fs::remove_file(&path);
    let store = open_sqlite(SqliteOptions::file(&path)).await.unwrap();
    write(&*store).await;
    store.optimize().await.unwrap();
    store.close().await;
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
    }
    let Some(server) = crate::server::shared() else { return };
    let options = PostgresOptions { schema: "fixture".into(), ..PostgresOptions::url(server.url()) };
    let store = open_postgres(options).await.unwrap();
    write(&*store).await;
    store.close().await;
    let dump = server.dump("fixture");
    std::fs::write(testdata().join(format!("store-v{SCHEMA_VERSION}.postgres.sql")), dump).unwrap();
}

/// The committed files with this ending, with their versions.
fn stores(ending: &str) -> Vec<(i64, PathBuf)> {
    let mut found: Vec<(i64, PathBuf)> = std::fs::read_dir(testdata())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter_map(|path| {
            let name = path.file_name()?.to_str()?;
            let version = name.strip_prefix("store-v")?.strip_suffix(ending)?.parse().ok()?;
            Some((version, path))
        })
        .collect();
    found.sort();
    let versions: Vec<i64> = found.iter().map(|(version, _)| *version).collect();
    assert_eq!(versions, (1..=SCHEMA_VERSION).collect::<Vec<_>>(), "a store of each version is committed");
    found
}

#[tokio::test]
async fn sqlite_stores_of_every_version_are_read() {
    for (version, path) in stores(".sqlite") {
        let files = tempfile::tempdir().unwrap();
        let copy = files.path().join("runs.sqlite");
        std::fs::copy(&path, &copy).unwrap();
        eprintln!("version {version}");
        let store = open_sqlite(SqliteOptions::file(&copy)).await.unwrap();
        verify(&*store).await;
        store.close().await;
        open_sqlite(SqliteOptions::file(&copy)).await.unwrap().check().await.unwrap();
    }
}

#[tokio::test]
async fn postgres_stores_of_every_version_are_read() {
    let files = stores(".postgres.sql");
    let Some(server) = crate::server::shared() else { return };
    for (version, path) in files {
        eprintln!("version {version}");
        let pool = sqlx::PgPool::connect(&server.url()).await.unwrap();
        sqlx::raw_sql("DROP SCHEMA IF EXISTS fixture CASCADE").execute(&pool).await.unwrap();
        let dump = std::fs::read_to_string(path).unwrap();
        sqlx::raw_sql(sqlx::AssertSqlSafe(dump)).execute(&mut *pool.acquire().await.unwrap()).await.unwrap();
        let options = PostgresOptions { schema: "fixture".into(), ..PostgresOptions::url(server.url()) };
        let store = open_postgres(options).await.unwrap();
        verify(&*store).await;
        store.close().await;
    }
}
