//! What only PostgreSQL can do: refuse a password, restart in the middle, keep a statement waiting, run out of
//! connections.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rowmill_store::*;
use sqlx::{AssertSqlSafe, Connection, Executor};

use crate::server::{self, PASSWORD};
use crate::support::*;

#[tokio::test]
async fn a_wrong_password_is_denied_and_never_printed() {
    let Some(server) = server::shared() else { return };
    let url = server.url().replace(PASSWORD, "wr0ng-s3cret");
    let options = PostgresOptions::url(url);
    let printed = format!("{options:?}");
    let error = open_postgres(options).await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error:?}");
    let text = format!("{error} {error:?} {printed}");
    assert!(!text.contains("s3cret"), "{text}");
    let store = open_postgres(PostgresOptions::url(server.url())).await.unwrap();
    let text = format!("{} {store:?}", store.describe());
    assert!(!text.contains("s3cret") && text.contains("rowmill@127.0.0.1"), "{text}");
}

#[tokio::test]
async fn an_absent_server_is_unavailable_at_once() {
    let begin = Instant::now();
    let error = open_postgres(PostgresOptions::url("postgres://me:s3cret@127.0.0.1:1/x")).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }) && error.is_retryable(), "{error:?}");
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert!(!format!("{error:?}").contains("s3cret"));
    let Some(server) = server::shared() else { return };
    let url = server
        .url()
        .replace("/postgres?", "/nowhere?")
        .replace(&format!("{}/postgres", server.port), &format!("{}/nowhere", server.port));
    let error = open_postgres(PostgresOptions::url(url)).await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error:?}");
}

#[tokio::test]
async fn newer_schemas_are_refused() {
    let Some(server) = server::shared() else { return };
    let options = PostgresOptions { schema: "newer".into(), ..PostgresOptions::url(server.url()) };
    open_postgres(options.clone()).await.unwrap().close().await;
    let mut connection = sqlx::PgConnection::connect(&server.url()).await.unwrap();
    connection.execute("UPDATE newer.rowmill_store_version SET version = version + 1").await.unwrap();
    match open_postgres(options).await.unwrap_err() {
        Error::NewerVersion { found, supported, .. } => {
            assert_eq!((found, supported), (SCHEMA_VERSION + 1, SCHEMA_VERSION))
        }
        other => panic!("{other:?}"),
    }
}

/// The server crashes and comes back while calls are under way: each is repeated until it is answered, and nothing
/// happens twice. Without patience the caller is told.
#[tokio::test]
async fn a_restart_in_the_middle_is_survived() {
    let Some(server) = server::start() else { return };
    let store = open_postgres(PostgresOptions::url(server.url())).await.unwrap();
    let (run, fence) = begun(&*store, &Owner::new("a")).await;
    let impatient = PostgresOptions { reconnect_for: Duration::ZERO, ..PostgresOptions::url(server.url()) };
    let impatient = open_postgres(impatient).await.unwrap();
    impatient.run(&Scope::all(), run).await.unwrap();
    let (started, wait) = tokio::sync::oneshot::channel();
    let writer = {
        let store = store.clone();
        async move {
            let mut started = Some(started);
            for chunk in 0..400 {
                let batch = EffectBatch::new(vec![record(S0.chunk(chunk), 1, EffectKind::Result, b"r")]);
                store.append_effects(&fence, &batch).await.unwrap();
                let result = store.commit_chunk(&fence, &commit(S0.chunk(chunk), 1)).await.unwrap();
                assert_eq!(result, CommitResult::Committed);
                if chunk == 20
                    && let Some(started) = started.take()
                {
                    started.send(()).unwrap();
                }
            }
        }
    };
    let restarter = async {
        wait.await.unwrap();
        let server = Arc::new(server);
        for _ in 0..2 {
            let server = server.clone();
            tokio::task::spawn_blocking(move || server.restart()).await.unwrap();
        }
        // Its pooled connection went with the server.
        let error = impatient.run(&Scope::all(), run).await.unwrap_err();
        assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
        impatient.run(&Scope::all(), run).await.unwrap();
    };
    tokio::join!(writer, restarter);
    let stage = store.stages(run, 1).await.unwrap().remove(0);
    assert_eq!((stage.committed_chunks, stage.counts[0].counts.total()), (400, 40_000));
}

#[tokio::test]
async fn statements_and_connections_are_waited_for_in_bounds() {
    let Some(server) = server::start() else { return };
    let options = PostgresOptions {
        schema: "bounds".into(),
        pool_size: 1,
        max_overflow: 1,
        acquire_timeout: Duration::from_millis(300),
        statement_timeout: Duration::from_millis(1500),
        reconnect_for: Duration::ZERO,
        ..PostgresOptions::url(server.url())
    };
    let store = open_postgres(options).await.unwrap();
    let (run, fence) = begun(&*store, &Owner::new("a")).await;
    let mut other = sqlx::PgConnection::connect(&server.url()).await.unwrap();
    let lock = "BEGIN; SELECT * FROM bounds.leases FOR UPDATE";
    other.execute(sqlx::raw_sql(AssertSqlSafe(lock.to_owned()))).await.unwrap();
    let one = commit(S0.chunk(0), 1);
    let (a, b, c) = tokio::join!(store.commit_chunk(&fence, &one), store.commit_chunk(&fence, &one), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        store.run(&Scope::all(), run).await
    });
    for error in [a.unwrap_err(), b.unwrap_err()] {
        assert!(matches!(error, Error::Busy { .. }) && error.is_retryable(), "{error:?}");
    }
    // Both connections were taken.
    let error = c.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    other.execute("ROLLBACK").await.unwrap();
    assert_eq!(store.commit_chunk(&fence, &one).await.unwrap(), CommitResult::Committed);
    // What was opened under load is closed again; the pool's own connection may stay.
    let begin = Instant::now();
    loop {
        let sql = "SELECT COUNT(*) FROM pg_stat_activity WHERE application_name = 'rowmill'";
        let count: i64 = sqlx::query_scalar(sql).fetch_one(&mut other).await.unwrap();
        if count <= 1 {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(5), "{count} connections stay");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
