//! An attempt that its executor does not name any more goes again.

use std::sync::atomic::Ordering;
use std::time::Duration;

use rowmill_scheduler::Scheduler;

use crate::support::fake::Fake;
use crate::support::{Process, local, on_cluster, options, session};

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_was_forgotten_goes_again() {
    let mut options = options();
    options.lease = Duration::from_secs(2);
    let scheduler = Scheduler::start(options).await.unwrap();
    let mut forgetful = Fake::new(&scheduler, &["cpu", "io"], 1).await;
    forgetful.join(&scheduler, 0).await;
    let context = session().await;
    let sql = "select count(*) from nation where n_nationkey > 3";
    let asking = async { on_cluster(&scheduler, &context, sql).await };
    let helping = async {
        // The forgetful one is alone, so it gets the task.
        while forgetful.taken.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // It takes no second one, and stays alive: only the lease can free the task.
        forgetful.draining.store(true, Ordering::SeqCst);
        Process::start(&scheduler, &["cpu", "io"])
    };
    let (answer, _helper) = tokio::join!(asking, helping);
    assert_eq!(answer, local(sql).await);
    assert_eq!(forgetful.taken.load(Ordering::SeqCst), 1);
    assert_eq!(scheduler.executors().await.len(), 2, "the forgetful one was never taken for dead");
}
