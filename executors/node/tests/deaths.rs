//! Executors that are killed, stopped for a while, or asked to leave.

use std::time::{Duration, Instant};

use rowmill_scheduler::Scheduler;
use rustix::process::Signal;

use crate::support::{Process, local, on_cluster, options, query, session};

/// A job that takes some seconds, so that there is something to disturb.
const LONG: &str = "select count(*), sum(a.l_quantity) from lineitem a join lineitem b on a.l_suppkey = b.l_suppkey \
                    where a.l_linenumber < 4";
const TINY: &str = "select count(*) from nation where n_nationkey > 3";

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_executor_costs_no_result_and_no_slot() {
    let scheduler = Scheduler::start(options()).await.unwrap();
    let _stays = Process::start(&scheduler, &["cpu", "io"]);
    let mut dies = Process::start(&scheduler, &["cpu", "io"]);
    let context = session().await;
    let expected = local(LONG).await;
    let running = async { on_cluster(&scheduler, &context, LONG).await };
    let killing = async {
        tokio::time::sleep(Duration::from_millis(400)).await;
        dies.child.kill().unwrap();
        dies.child.wait().unwrap();
        std::fs::remove_dir_all(&dies.work_dir).unwrap();
    };
    let (answer, ()) = tokio::join!(running, killing);
    assert_eq!(answer, expected);
    // No slot has leaked: as many tiny jobs at once as there ever were slots, all through at once.
    let expected = local(TINY).await;
    for _ in 0..4 {
        let began = Instant::now();
        assert_eq!(on_cluster(&scheduler, &context, TINY).await, expected);
        assert!(began.elapsed() < Duration::from_secs(10), "a tiny job took {:?}", began.elapsed());
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while scheduler.executors().await.len() != 1 {
        assert!(Instant::now() < deadline, "the dead executor is still listed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_executor_that_slept_joins_again() {
    let scheduler = Scheduler::start(options()).await.unwrap();
    let _stays = Process::start(&scheduler, &["cpu", "io"]);
    let sleeps = Process::start(&scheduler, &["cpu", "io"]);
    let context = session().await;
    let expected = local(LONG).await;
    let running = async { on_cluster(&scheduler, &context, LONG).await };
    let sleeping = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        sleeps.signal(Signal::STOP);
        // Longer than the timeout of executors.
        tokio::time::sleep(Duration::from_secs(6)).await;
        sleeps.signal(Signal::CONT);
    };
    let (answer, ()) = tokio::join!(running, sleeping);
    assert_eq!(answer, expected);
    let deadline = Instant::now() + Duration::from_secs(20);
    while scheduler.executors().await.len() != 2 {
        assert!(Instant::now() < deadline, "the executor does not come back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let sql = query(3);
    assert_eq!(on_cluster(&scheduler, &context, &sql).await, local(&sql).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_executor_leaves_and_nothing_is_lost() {
    let scheduler = Scheduler::start(options()).await.unwrap();
    let _stays = Process::start(&scheduler, &["cpu", "io"]);
    let mut leaves = Process::start(&scheduler, &["cpu", "io"]);
    let context = session().await;
    let expected = local(LONG).await;
    let running = async { on_cluster(&scheduler, &context, LONG).await };
    let leaving = async {
        tokio::time::sleep(Duration::from_millis(400)).await;
        leaves.signal(Signal::TERM);
    };
    let (answer, ()) = tokio::join!(running, leaving);
    assert_eq!(answer, expected);
    let status = leaves.wait(Duration::from_secs(40)).expect("it leaves");
    assert!(status.success(), "{status}");
    let deadline = Instant::now() + Duration::from_secs(10);
    while scheduler.executors().await.len() != 1 {
        assert!(Instant::now() < deadline, "the executor that left is still listed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(on_cluster(&scheduler, &context, TINY).await, local(TINY).await);
}
