//! Executors that say what is not so: of tasks that they were never given, of themselves, of what they have.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ballista_core::serde::protobuf::failed_task::FailedReason;
use ballista_core::serde::protobuf::task_status::Status as TaskState;
use ballista_core::serde::protobuf::{
    ExecutionError, ExecutorRegistration, FailedTask, FetchPartitionError, ShuffleWritePartition, SuccessfulTask,
    TaskStatus,
};
use rowmill_scheduler::{AdmissionOptions, Options, QuotaOptions, Scheduler};
use tonic::Code;

use crate::support::fake::{Fake, beat, register};
use crate::support::{Process, TOKEN, lines, local, on_cluster, options, plan, session};

/// A job that takes some seconds.
const LONG: &str = "select count(*), sum(a.l_quantity) from lineitem a join lineitem b on a.l_suppkey = b.l_suppkey \
                    where a.l_linenumber < 4";
const TINY: &str = "select count(*) from nation where n_nationkey > 3";

/// Everything that could be said of the first stages of a job.
fn lies(job: &str, liar: &str) -> Vec<TaskStatus> {
    let files = (0..4).map(|partition_id| ShuffleWritePartition { partition_id, ..Default::default() }).collect();
    let done = SuccessfulTask { executor_id: liar.to_owned(), partitions: files, ..SuccessfulTask::default() };
    let failed = |reason| {
        let error = "it cannot be done".to_owned();
        Some(TaskState::Failed(FailedTask { error, failed_reason: reason, ..FailedTask::default() }))
    };
    let fetch = FetchPartitionError { executor_id: liar.to_owned(), map_stage_id: 77, map_partition_id: 0 };
    let said = [
        Some(TaskState::Successful(done)),
        failed(Some(FailedReason::ExecutionError(ExecutionError {}))),
        failed(Some(FailedReason::FetchPartitionError(fetch))),
        failed(None),
        None,
    ];
    let mut all = Vec::new();
    for stage_id in 0..5 {
        for task_id in [0, 1, 3, 1_000, u32::MAX] {
            for stage_attempt_num in [0, 1, 9] {
                all.extend(said.iter().map(|status| TaskStatus {
                    task_id,
                    job_id: job.to_owned(),
                    stage_id,
                    stage_attempt_num,
                    launch_time: 0,
                    start_exec_time: 0,
                    end_exec_time: 0,
                    metrics: Vec::new(),
                    status: status.clone(),
                }));
            }
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_of_tasks_that_were_never_given_are_not_believed() {
    let scheduler = Scheduler::start(options()).await.unwrap();
    let _works = Process::start(&scheduler, &["cpu", "io"]);
    let mut liar = Fake::new(&scheduler, &["cpu", "io"], 2).await;
    // It gets no tasks, so everything that it says of one is a lie.
    liar.draining.store(true, Ordering::SeqCst);
    liar.join(&scheduler, 0).await;
    let own = liar.metadata.id.clone();
    let context = session().await;
    let expected = local(LONG).await;
    let job = scheduler.submit("lied to", Arc::clone(&context), plan(&context, LONG).await).await.unwrap();
    let id = job.id().to_string();
    let mut answer = Box::pin(job.collect());
    let mut said = 0;
    let answer = loop {
        tokio::select! {
            answer = &mut answer => break answer,
            () = tokio::time::sleep(Duration::from_millis(150)) => {
                for executor in [own.as_str(), "cpu.nobody", ""] {
                    liar.report(executor, lies(&id, executor)).await.unwrap();
                    said += 1;
                }
                liar.report(&own, lies("no-such-job", &own)).await.unwrap();
            }
        }
    };
    assert!(said > 3, "there was time to lie");
    assert_eq!(lines(&answer.unwrap()), expected);
    assert_eq!(liar.taken.load(Ordering::SeqCst), 0);
    assert_eq!(on_cluster(&scheduler, &context, TINY).await, local(TINY).await, "the scheduler goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_executor_under_one_id_is_refused() {
    let scheduler = Scheduler::start(options()).await.unwrap();
    let mut first = Fake::new(&scheduler, &["io"], 1).await;
    first.join(&scheduler, 0).await;
    let second = Fake::new(&scheduler, &["io"], 1).await;
    let impostor = ExecutorRegistration { id: first.metadata.id.clone(), ..second.metadata.clone() };
    for refused in
        [register(&second.channel, &impostor).await.unwrap_err(), beat(&second.channel, &impostor).await.unwrap_err()]
    {
        assert_eq!(refused.code(), Code::AlreadyExists, "{refused}");
        assert!(refused.message().contains(&impostor.id) && refused.message().contains("127.0.0.1"), "{refused}");
    }
    let executors = scheduler.executors().await;
    assert_eq!(executors.len(), 1);
    assert!(executors[0].address.ends_with(&format!(":{}", first.metadata.port)), "{executors:?}");
    // Whoever says again who he is goes on, and so does the next one under a name of its own.
    beat(&first.channel, &first.metadata).await.unwrap();
    register(&second.channel, &second.metadata).await.unwrap();
    assert_eq!(scheduler.executors().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_registration_is_refused_and_harms_nobody() {
    let scheduler = Scheduler::start(options()).await.unwrap();
    let fake = Fake::new(&scheduler, &["cpu"], 1).await;
    let own = fake.metadata.clone();
    for broken in [
        ExecutorRegistration { host: None, ..own.clone() },
        ExecutorRegistration { port: 0, ..own.clone() },
        ExecutorRegistration { grpc_port: 1 << 20, ..own.clone() },
        ExecutorRegistration { specification: None, ..own.clone() },
        ExecutorRegistration { os_info: None, ..own.clone() },
    ] {
        for refused in
            [register(&fake.channel, &broken).await.unwrap_err(), beat(&fake.channel, &broken).await.unwrap_err()]
        {
            assert_eq!(refused.code(), Code::InvalidArgument, "{broken:?}: {refused}");
        }
    }
    for id in ["", "CPU.1", "cpu", "../cpu.1", "\u{1b}[31mcpu.1"] {
        let broken = ExecutorRegistration { id: id.to_owned(), ..own.clone() };
        assert!(register(&fake.channel, &broken).await.is_err(), "{id:?}");
    }
    assert!(scheduler.executors().await.is_empty());
    register(&fake.channel, &own).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_executor_that_claims_more_than_it_has_slows_nobody_but_itself() {
    let quota = QuotaOptions { memory_bytes: Some(8 << 30), ..QuotaOptions::default() };
    let quotas = BTreeMap::from([("acme".to_owned(), quota)]);
    let admission = AdmissionOptions { quotas, ..AdmissionOptions::default() };
    let scheduler = Scheduler::start(Options { admission, lease: Duration::from_secs(2), ..options() }).await.unwrap();
    // A machine of its dreams, which takes tasks and runs none.
    let mut braggart = Fake::new(&scheduler, &["cpu", "io"], 4_096).await;
    braggart.join(&scheduler, u64::MAX).await;
    let context = session().await;
    let helping = async {
        while braggart.taken.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        braggart.draining.store(true, Ordering::SeqCst);
        Process::start(&scheduler, &["cpu", "io"])
    };
    let asking = async { on_cluster(&scheduler, &context, TINY).await };
    let (answer, helper) = tokio::join!(asking, helping);
    assert_eq!(answer, local(TINY).await);
    drop(helper);
    // One that runs what it takes, with more slots than it has threads, gives the same.
    let root = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_rowmill-executor"));
    command
        .args(["--class", "cpu", "--class", "io", "--slots", "400", "--memory-mib", "100000000"])
        .args(["--scheduler", &scheduler.address().to_string()])
        .arg("--work-dir")
        .arg(root.path().join("work"))
        .env("ROWMILL_CLUSTER_TOKEN", TOKEN)
        .stdout(Stdio::piped());
    let _brags = Process::spawn(command);
    assert_eq!(on_cluster(&scheduler, &context, LONG).await, local(LONG).await);
}
