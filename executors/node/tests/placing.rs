//! Stages run where their class says, and results are those of plain DataFusion.

use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::execution::context::SessionContext;
use rowmill_scheduler::{Options, Scheduler};
use rowmill_wire::class::{Demand, mark};
use rowmill_wire::name::ExecutorName;

use crate::support::{Process, local, on_cluster, options, plan, query, session};

#[tokio::test(flavor = "multi_thread")]
async fn tpch_on_two_classes_equals_plain_datafusion() {
    let scheduler = Scheduler::start(options()).await.unwrap();
    let _cpu = Process::start(&scheduler, &["cpu"]);
    let _io = Process::start(&scheduler, &["io"]);
    let context = session().await;
    for number in 1..=22 {
        let sql = query(number);
        let began = Instant::now();
        let plan = plan(&context, &sql).await;
        let job = scheduler.submit(&format!("q{number:02}"), Arc::clone(&context), plan).await.unwrap();
        let id = job.id().clone();
        let answer = tokio::time::timeout(Duration::from_secs(60), job.collect()).await.expect("in time");
        let answer = crate::support::lines(&answer.unwrap_or_else(|error| panic!("q{number:02}: {error}")));
        let took = began.elapsed();
        assert_eq!(answer, local(&sql).await, "q{number:02}");
        let stages = scheduler.placements(&id).await.unwrap().expect("the job is kept for some seconds");
        let mut classes: Vec<&str> = stages.iter().map(|stage| stage.class.as_str()).collect();
        for stage in &stages {
            assert!(!stage.executors.is_empty());
            for executor in &stage.executors {
                let name: ExecutorName = executor.parse().unwrap();
                assert_eq!(name.classes(), std::slice::from_ref(&stage.class), "q{number:02}, stage {}", stage.stage);
            }
        }
        classes.sort_unstable();
        classes.dedup();
        assert!(classes.contains(&"io"), "q{number:02}: {stages:?}");
        println!("q{number:02}: {} stages on {classes:?} in {} ms", stages.len(), took.as_millis());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_waits_for_its_class() {
    let scheduler = Scheduler::start(options()).await.unwrap();
    let _cpu = Process::start(&scheduler, &["cpu"]);
    let context = session().await;
    // Not answered from the files' statistics.
    let sql = "select count(*) from lineitem where l_quantity > 10";
    let marked = plan(&context, sql).await;
    let mut job = scheduler.submit("waits", Arc::clone(&context), marked).await.unwrap();
    let early = tokio::time::timeout(Duration::from_secs(2), job.wait()).await;
    assert!(early.is_err(), "nobody serves io yet");
    let _io = Process::start(&scheduler, &["io"]);
    tokio::time::timeout(Duration::from_secs(20), job.wait()).await.expect("an executor came").unwrap();
    assert_eq!(on_cluster(&scheduler, &context, sql).await, local(sql).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_that_nobody_serves_fails_with_the_reason() {
    let mut options = options();
    options.warn_after = Duration::from_millis(300);
    options.queue_timeout = Duration::from_secs(2);
    let scheduler = Scheduler::start(options).await.unwrap();
    let _cpu = Process::start(&scheduler, &["cpu"]);
    let context = session().await;
    let sql = "select count(*) from nation where n_nationkey > 3";
    let plan = context.sql(sql).await.unwrap().create_physical_plan().await.unwrap();
    let marked = mark(plan.clone(), |node| (node.name() == "DataSourceExec").then(|| Demand::plain("gpu"))).unwrap();
    let mut job = scheduler.submit("gpu", Arc::clone(&context), marked).await.unwrap();
    let error = tokio::time::timeout(Duration::from_secs(20), job.wait()).await.expect("it is refused").unwrap_err();
    let text = error.to_string();
    assert!(text.contains("class gpu") && text.contains("executors for cpu"), "{text}");
    // The rest of the cluster goes on.
    let mut job = scheduler.submit("cpu", Arc::clone(&context), plan).await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), job.wait()).await.expect("in time").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_kept_for_those_who_ask_for_it() {
    let mut options = options();
    options.warn_after = Duration::from_millis(300);
    options.queue_timeout = Duration::from_secs(2);
    let scheduler = Scheduler::start(options).await.unwrap();
    // Two slots of 256 MiB.
    let _cpu = Process::start(&scheduler, &["cpu"]);
    let context = session().await;
    let sql = "select l_suppkey, sum(l_quantity) from lineitem group by l_suppkey";
    let asking = async |mib: u64| {
        let demand = Demand::plain("cpu").with_memory(mib << 20);
        let mut state = context.state();
        state.config_mut().set_extension(Arc::new(demand));
        let plan = context.sql(sql).await.unwrap().create_physical_plan().await.unwrap();
        let own = Arc::new(SessionContext::new_with_state(state));
        scheduler.submit("heavy", own, plan).await.unwrap()
    };
    for mib in [0, 200, 300, 512] {
        let answer = tokio::time::timeout(Duration::from_secs(60), asking(mib).await.collect()).await.expect("in time");
        assert_eq!(crate::support::lines(&answer.unwrap()), local(sql).await, "{mib} MiB");
    }
    let mut large = asking(513).await;
    let error = tokio::time::timeout(Duration::from_secs(20), large.wait()).await.expect("it is refused").unwrap_err();
    let text = error.to_string();
    assert!(text.contains("537919488 bytes") && text.contains("has 536870912"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_of_a_finished_job_goes_after_seconds() {
    let scheduler = Scheduler::start(Options { keep_finished: Duration::from_secs(2), ..options() }).await.unwrap();
    let _cpu = Process::start(&scheduler, &["cpu", "io"]);
    let context = session().await;
    let marked = plan(&context, "select count(*) from lineitem where l_quantity > 10").await;
    let job = scheduler.submit("short", Arc::clone(&context), marked).await.unwrap();
    let id = job.id().clone();
    job.collect().await.unwrap();
    assert!(scheduler.placements(&id).await.unwrap().is_some(), "it is kept for some seconds");
    let deadline = Instant::now() + Duration::from_secs(20);
    while scheduler.placements(&id).await.unwrap().is_some() {
        assert!(Instant::now() < deadline, "the state of the job stays");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn contradicting_markers_fail_with_the_reason() {
    let scheduler = Scheduler::start(options()).await.unwrap();
    let _cpu = Process::start(&scheduler, &["cpu"]);
    let context = session().await;
    let plan = plan(&context, "select n_name from nation where n_nationkey > 3").await;
    let twice = mark(plan, |node| (node.name() == "ClassExec").then(|| Demand::plain("gpu"))).unwrap();
    let mut job = scheduler.submit("both", Arc::clone(&context), twice).await.unwrap();
    let error = tokio::time::timeout(Duration::from_secs(20), job.wait()).await.expect("it is refused").unwrap_err();
    assert!(error.to_string().contains("an exchange must stand between"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_is_too_large_is_refused_at_once() {
    let scheduler = Scheduler::start(options()).await.unwrap();
    let context = session().await;
    let text = "x".repeat(40 << 20);
    let plan = context
        .sql(&format!("select n_name || '{text}' from nation"))
        .await
        .unwrap()
        .create_physical_plan()
        .await
        .unwrap();
    let error = scheduler.submit("large", Arc::clone(&context), plan).await.unwrap_err();
    assert!(error.to_string().contains("a message holds"), "{error}");
}
