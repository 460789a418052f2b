//! PostgreSQL and MariaDB, real servers. Where a server is not installed, the test says so and passes, unless
//! `REQUIRE_DATABASES` promises that it is.

use std::time::{Duration, Instant};

use rowmill_step::conformance::Options;
use rowmill_step::{FailureCode, Sent, StepExecutor as _};
use rowmill_step_lookup::{LookupOptions, LookupStep};
use serde_json::json;

use crate::servers::Server;
use crate::support::{Place, context, keys, run, texts, try_run};

fn started(server: Result<Server, String>) -> Option<Server> {
    match server {
        Ok(server) => Some(server),
        Err(reason) => {
            assert!(std::env::var_os("REQUIRE_DATABASES").is_none(), "{reason}");
            eprintln!("ignored: {reason}");
            None
        }
    }
}

const QUERY: &str = "select name from planes where tailnum = {tailnum}";

#[tokio::test(flavor = "multi_thread")]
async fn postgres() {
    let Some(mut server) = started(Server::postgres()) else { return };
    crate::meaning::check(&server).await;
    types_without_an_arrow_type_become_text(&server).await;
    statement_timeouts(&server, "select pg_sleep(30)::text as s from planes where tailnum = {tailnum}").await;
    cancelling_frees_the_slot(&server, "select pg_sleep(30)::text as s from planes where tailnum = {tailnum}").await;
    writes_are_refused(&server).await;
    set_queries_beat_single_ones(&server).await;
    a_dead_server_is_a_failure_that_passes(&mut server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb() {
    let Some(mut server) = started(Server::mariadb()) else { return };
    crate::meaning::check(&server).await;
    statement_timeouts(&server, "select sleep(30) as s from planes where tailnum = {tailnum}").await;
    cancelling_frees_the_slot(&server, "select sleep(30) as s from planes where tailnum = {tailnum}").await;
    wrong_passwords_are_not_shown(&server).await;
    a_dead_server_is_a_failure_that_passes(&mut server).await;
}

async fn types_without_an_arrow_type_become_text(server: &Server) {
    let query = "select 12.50::numeric as n, '{\"a\": 1}'::jsonb as j, array[1,2] as a, '10:00'::time as t, \
                 '6ba7b810-9dad-11d1-80b4-00c04fd430c8'::uuid as u, {tailnum}::char(5) as c";
    let driven = run(LookupOptions::new("db", query), &context(server.settings()), keys(&[Some("x")])).await;
    let row: Vec<_> = (0..6).map(|column| texts(&driven, column)[0].clone().unwrap()).collect();
    assert_eq!(row, ["12.50", "{\"a\": 1}", "{1,2}", "10:00:00", "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "x"]);
}

async fn statement_timeouts(server: &Server, query: &str) {
    let mut settings = server.settings();
    settings["statement_timeout_ms"] = json!(300);
    let started = Instant::now();
    let driven = run(LookupOptions::new("db", query), &context(settings), keys(&[Some("N1")])).await;
    assert!(started.elapsed() < Duration::from_secs(10));
    let failure = &driven.failures[0].1;
    assert!(failure.code() == FailureCode::Timeout && failure.is_retryable(), "{failure:?}");
}

async fn cancelling_frees_the_slot(server: &Server, query: &str) {
    let mut settings = server.settings();
    settings["pool_size"] = json!(1);
    settings["max_overflow"] = json!(0);
    let context = context(settings);
    let step = LookupStep::try_new(LookupOptions::new("db", query)).unwrap();
    let input = keys(&[Some("N1")]);
    let how = Options { timeout: Some(Duration::from_millis(300)), ..Options::default() };
    let driven = rowmill_step::conformance::drive(&step, &context, &input.schema(), vec![input], &how).await.unwrap();
    assert_eq!(driven.failures[0].1.code(), FailureCode::Timeout, "{:?}", driven.failures);
    // The only connection is not kept waiting by the query that still sleeps.
    let started = Instant::now();
    let driven = run(LookupOptions::new("db", QUERY), &context, keys(&[Some("N1")])).await;
    assert!(driven.failures.is_empty() && started.elapsed() < Duration::from_secs(10), "{:?}", driven.failures);
    assert_eq!(step.describe().kind, "lookup");
}

async fn writes_are_refused(server: &Server) {
    server.run(
        "create function sneaky(x text) returns text language sql as $$ insert into numbers values (1, 1); select x $$",
    );
    let query = "select sneaky({tailnum}) as s";
    let driven = run(LookupOptions::new("db", query), &context(server.settings()), keys(&[Some("N1")])).await;
    assert!(driven.failures[0].1.message().contains("read-only"), "{:?}", driven.failures);
}

async fn wrong_passwords_are_not_shown(server: &Server) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "wrong-c4nary").unwrap();
    let mut settings = server.settings();
    settings["password"] = json!(format!("file:{}", file.path().display()));
    let failure = try_run(LookupOptions::new("db", QUERY), &context(settings), keys(&[Some("x")])).await.unwrap_err();
    assert_eq!((failure.code(), failure.how_far()), (FailureCode::Setup, Sent::Never), "{failure:?}");
    assert!(!format!("{failure:?}").contains("c4nary"), "{failure:?}");
}

/// One set query must be worth at least 20 single ones; here only that it is much faster, since tests do not time.
async fn set_queries_beat_single_ones(server: &Server) {
    server.run("insert into numbers select n, n * 2 from generate_series(1, 20000) n; analyze numbers");
    let numbers: arrow::array::ArrayRef = std::sync::Arc::new(arrow::array::Int64Array::from_iter_values(0..20_000));
    let input = arrow::array::RecordBatch::try_from_iter([("n", numbers)]).unwrap();
    let options = LookupOptions::new("db", "select doubled from numbers where n = {n}");
    let context = context(server.settings());
    let step = LookupStep::try_new(options).unwrap();
    let mut rates = Vec::new();
    for group_rows in [1, 1000] {
        let rows = if group_rows == 1 { 2000 } else { 20_000 };
        let input = input.slice(0, rows);
        let started = Instant::now();
        let how = Options { group_rows: Some(group_rows), ..Options::default() };
        let driven =
            rowmill_step::conformance::drive(&step, &context, &input.schema(), vec![input], &how).await.unwrap();
        assert_eq!(driven.output.num_rows(), rows);
        assert_eq!(driven.calls as usize, rows / group_rows);
        rates.push(rows as f64 / started.elapsed().as_secs_f64());
    }
    println!(
        "lookups per second: {:.0} one by one, {:.0} in sets ({:.0} times)",
        rates[0],
        rates[1],
        rates[1] / rates[0]
    );
    assert!(rates[1] > rates[0] * 2.0, "{rates:?}");
}

async fn a_dead_server_is_a_failure_that_passes(server: &mut Server) {
    let mut settings = server.settings();
    settings["pool_timeout_ms"] = json!(1000);
    let context = context(settings);
    assert!(run(LookupOptions::new("db", QUERY), &context, keys(&[Some("N1")])).await.failures.is_empty());
    server.kill();
    let failure = match try_run(LookupOptions::new("db", QUERY), &context, keys(&[Some("N1")])).await {
        Ok(driven) => driven.failures[0].1.clone(),
        Err(failure) => failure,
    };
    assert!(failure.is_retryable(), "{failure:?}");
    let code = failure.code();
    assert!(matches!(code, FailureCode::Connect | FailureCode::Transport | FailureCode::Exhausted), "{failure:?}");
}
