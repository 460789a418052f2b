//! What the tests share: stores with a clock that a test moves, and short ways to make runs, stages and commits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rowmill_store::clock::{Clock, Now};
use rowmill_store::*;

/// A clock that only a test moves.
#[derive(Debug)]
pub(crate) struct TestClock {
    pub(crate) wall_ms: AtomicI64,
    pub(crate) lease_ms: AtomicI64,
}

impl TestClock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(TestClock { wall_ms: AtomicI64::new(1_000_000), lease_ms: AtomicI64::new(5_000) })
    }
}

impl Clock for TestClock {
    fn now(&self) -> Now {
        Now {
            wall_ms: self.wall_ms.load(Ordering::SeqCst),
            lease_ms: self.lease_ms.load(Ordering::SeqCst),
            epoch: "test".to_owned(),
        }
    }
}

/// How a test moves a store's clock.
pub(crate) enum Hands {
    Local(Arc<TestClock>),
    Server { pool: sqlx::PgPool, schema: String },
}

/// A store under test.
pub(crate) struct Harness {
    pub(crate) store: Arc<dyn RunStore>,
    pub(crate) hands: Hands,
    _files: Option<tempfile::TempDir>,
}

impl Harness {
    pub(crate) async fn memory() -> Self {
        let clock = TestClock::new();
        let options = SqliteOptions { clock: clock.clone(), ..SqliteOptions::memory() };
        Harness { store: open_sqlite(options).await.unwrap(), hands: Hands::Local(clock), _files: None }
    }

    pub(crate) async fn sqlite() -> Self {
        let clock = TestClock::new();
        let files = tempfile::tempdir().unwrap();
        let options = SqliteOptions { clock: clock.clone(), ..SqliteOptions::file(files.path().join("runs.sqlite")) };
        Harness { store: open_sqlite(options).await.unwrap(), hands: Hands::Local(clock), _files: Some(files) }
    }

    /// A store in a new schema of a real server, whose clock is replaced by one that the test moves.
    pub(crate) async fn postgres(url: &str) -> Self {
        let schema = format!("t_{}", uuid::Uuid::new_v4().simple());
        let options = PostgresOptions { schema: schema.clone(), ..PostgresOptions::url(url) };
        let store = open_postgres(options).await.unwrap();
        let pool = sqlx::PgPool::connect(url).await.unwrap();
        let sql = format!(
            "CREATE TABLE {schema}.test_clock (ms BIGINT); INSERT INTO {schema}.test_clock VALUES (1000000);
             CREATE OR REPLACE FUNCTION {schema}.rowmill_now_ms() RETURNS BIGINT LANGUAGE sql VOLATILE
             AS $$ SELECT ms FROM {schema}.test_clock $$;"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&pool).await.unwrap();
        Harness { store, hands: Hands::Server { pool, schema }, _files: None }
    }

    /// Lets time pass by the store's clock.
    pub(crate) async fn advance(&self, ms: i64) {
        match &self.hands {
            Hands::Local(clock) => {
                clock.wall_ms.fetch_add(ms, Ordering::SeqCst);
                clock.lease_ms.fetch_add(ms, Ordering::SeqCst);
            }
            Hands::Server { pool, schema } => {
                let sql = format!("UPDATE {schema}.test_clock SET ms = ms + {ms}");
                sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(pool).await.unwrap();
            }
        }
    }
}

pub(crate) const TTL: Duration = Duration::from_millis(10_000);

pub(crate) fn new_run(name: &str) -> NewRun {
    NewRun {
        id: RunId::new(),
        workflow_name: name.to_owned(),
        workflow_text: format!("rowmill: 1\nname: {name}\n# héllo, 'quotes' \" and -- comments;\n"),
        workflow_fingerprint: format!("f-{name}"),
        parameters: serde_json::from_str(r#"{"day": "2024-01-01", "n": 3, "nested": {"b": [1, null], "a": 2.5}}"#)
            .unwrap(),
        organisation: "acme".to_owned(),
        team: "data".to_owned(),
        labels: BTreeMap::from([("env".to_owned(), "test".to_owned())]),
        actor: "ada".to_owned(),
        submit_key: None,
        payload: vec![0, 1, 255],
    }
}

pub(crate) fn stage(version: u32, stage: u32) -> NewStage {
    NewStage {
        id: StageId { version, stage },
        name: format!("stage {stage}"),
        class: "io".to_owned(),
        fingerprint: format!("s{stage}"),
        payload: vec![stage as u8],
    }
}

pub(crate) fn spec(chunk: u64) -> ChunkSpec {
    ChunkSpec {
        chunk,
        path: format!("in/{chunk}.parquet"),
        etag: chunk.is_multiple_of(2).then(|| format!("e{chunk}")),
        size_bytes: Some(chunk * 10),
        row_start: Some(chunk * 1000),
        row_count: None,
        schema_fingerprint: "sf".to_owned(),
        partitions: 4,
        payload: vec![1, 0, 2],
    }
}

pub(crate) const S0: StageId = StageId { version: 1, stage: 0 };

pub(crate) fn commit(chunk: ChunkId, attempt: u32) -> ChunkCommit {
    ChunkCommit {
        chunk,
        attempt,
        output: format!("out/{}-{}-{}-{attempt}.arrow", chunk.version, chunk.stage, chunk.chunk),
        ledger: chunk.chunk.is_multiple_of(3).then(|| "ledger".to_owned()),
        rows_out: 100,
        bytes_out: 4096,
        counts: vec![
            StepCounts { step: "a".into(), counts: OutcomeCounts { ok: 98, failed: 2, ..Default::default() } },
            StepCounts { step: "b".into(), counts: OutcomeCounts { ok: 90, cached: 8, ..Default::default() } },
        ],
        payload: vec![7; 3],
    }
}

pub(crate) fn record(chunk: ChunkId, key: u8, kind: EffectKind, bytes: &[u8]) -> EffectRecord {
    EffectRecord { chunk, key: [key; 16], kind, bytes: Bytes::copy_from_slice(bytes) }
}

/// Submits a run and takes it, with stage 0 registered.
pub(crate) async fn begun(store: &dyn RunStore, owner: &Owner) -> (RunId, Fence) {
    let run = store.submit(&new_run("flow")).await.unwrap().run.id;
    let fence = take(store, run, owner, AcquireMode::Free).await;
    store.start(&fence).await.unwrap();
    store.put_stages(&fence, &[stage(1, 0)]).await.unwrap();
    (run, fence)
}

pub(crate) async fn take(store: &dyn RunStore, run: RunId, owner: &Owner, mode: AcquireMode) -> Fence {
    match store.acquire(run, owner, TTL, mode).await.unwrap() {
        Acquired::Lease(lease) => lease.fence,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn all<C>() -> PageRequest<C> {
    PageRequest::first(10_000)
}

pub(crate) fn finish(status: RunStatus) -> Finish {
    Finish {
        status,
        error: (status == RunStatus::Failed).then(|| "step `a` failed".to_owned()),
        counts: OutcomeCounts { ok: 5, ..Default::default() },
    }
}

/// Calls every fenced write and returns the names of those that were not refused.
pub(crate) async fn zombie_writes(store: &dyn RunStore, fence: &Fence) -> Vec<&'static str> {
    let mut accepted = Vec::new();
    let mut check = |name, result: Result<()>| match result {
        Err(Error::Fenced { .. }) => {}
        other => {
            eprintln!("{name}: {other:?}");
            accepted.push(name);
        }
    };
    check("renew", store.renew(fence, TTL).await.map(|_| ()));
    check("start", store.start(fence).await);
    check("finish", store.finish(fence, &finish(RunStatus::Failed)).await);
    check("put_stages", store.put_stages(fence, &[stage(1, 9)]).await);
    check("set_stage_status", store.set_stage_status(fence, S0, StageStatus::Done, None).await);
    check("put_chunks", store.put_chunks(fence, S0, &[spec(0)], true).await);
    check("drop_unsealed_chunks", store.drop_unsealed_chunks(fence, S0).await);
    let batch = EffectBatch::new(vec![record(S0.chunk(0), 200, EffectKind::Result, b"zombie")]);
    check("append_effects", store.append_effects(fence, &batch).await.map(|_| ()));
    let event = NewEvent::new("zombie", "zombie", serde_json::Value::Null);
    check("append_events", store.append_events(fence, &[event]).await);
    let counts = OutcomeCounts::default();
    check("publish_version", store.publish_version(fence, 1, "zombie", &counts, &[]).await);
    if store.commit_chunk(fence, &commit(S0.chunk(0), 77)).await.unwrap() != CommitResult::Fenced {
        accepted.push("commit_chunks");
    }
    // Not an error, and must change nothing.
    store.release(fence).await.unwrap();
    accepted
}
