//! Who may join and submit, and what an executor refuses at its start.

use std::process::Command;

use ballista_core::serde::protobuf::scheduler_grpc_client::SchedulerGrpcClient;
use ballista_core::serde::protobuf::{
    CancelJobParams, ExecuteQueryParams, ExecutorStoppedParams, GetJobStatusParams, RegisterExecutorParams,
    UpdateTaskStatusParams,
};
use rowmill_scheduler::Scheduler;
use rowmill_wire::alive::{AliveRequest, say_alive};
use rowmill_wire::handshake::{Build, Handshake, Token};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::support::{Process, TOKEN, handshake, options, refused};

async fn connect(scheduler: &Scheduler, handshake: Option<Handshake>) -> Channel {
    let address = scheduler.address().to_string();
    match handshake {
        Some(handshake) => handshake.connect(&address, |endpoint| endpoint).await.unwrap(),
        None => Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap(),
    }
}

/// Tries everything that a scheduler offers.
async fn attack(channel: Channel) -> Vec<(&'static str, Status)> {
    let mut client = SchedulerGrpcClient::new(channel.clone());
    vec![
        ("register", client.register_executor(RegisterExecutorParams::default()).await.unwrap_err()),
        ("submit", client.execute_query(ExecuteQueryParams::default()).await.unwrap_err()),
        ("status", client.get_job_status(GetJobStatusParams::default()).await.unwrap_err()),
        ("cancel", client.cancel_job(CancelJobParams::default()).await.unwrap_err()),
        ("report", client.update_task_status(UpdateTaskStatusParams::default()).await.unwrap_err()),
        ("stop", client.executor_stopped(ExecutorStoppedParams::default()).await.unwrap_err()),
        ("alive", say_alive(channel, AliveRequest::default()).await.unwrap_err()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_token_nothing_is_served() {
    let scheduler = Scheduler::start(options()).await.unwrap();
    let wrong = Handshake::new(Token::try_new("another-token-0123456789abcdef").unwrap());
    for handshake in [None, Some(wrong)] {
        for (what, status) in attack(connect(&scheduler, handshake.clone()).await).await {
            assert_eq!(status.code(), Code::Unauthenticated, "{what}: {status}");
        }
    }
    // With the token the scheduler answers; an executor that says it is alive is heard.
    let channel = connect(&scheduler, Some(handshake())).await;
    assert!(say_alive(channel, AliveRequest::default()).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_build_is_told_so() {
    let scheduler = Scheduler::start(options()).await.unwrap();
    let other = handshake().with_build(Build::named("99.0.0"));
    for (what, status) in attack(connect(&scheduler, Some(other)).await).await {
        assert_eq!(status.code(), Code::FailedPrecondition, "{what}: {status}");
        assert!(status.message().contains("99.0.0") && status.message().contains("one build"), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn executors_serve_their_scheduler_only() {
    let scheduler = Scheduler::start(options()).await.unwrap();
    let _cpu = Process::start(&scheduler, &["cpu"]);
    let executor = scheduler.executors().await.remove(0);
    let endpoint = Endpoint::from_shared(format!("http://{}", executor.address)).unwrap();
    let channel = endpoint.connect().await.unwrap();
    let mut client = arrow_flight::flight_service_client::FlightServiceClient::new(channel);
    let status = client.do_get(arrow_flight::Ticket::new("anything")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn executors_that_cannot_work_say_why() {
    let scheduler = Scheduler::start(options()).await.unwrap();
    let root = tempfile::tempdir().unwrap();
    let command = |classes: &[&str]| Process::command(root.path(), &scheduler, classes);
    let check = |command: Command, code: i32, says: &str| {
        let (exit, said) = refused(command);
        assert_eq!(exit, Some(code), "{said}");
        assert!(said.contains(says), "{said}");
        assert!(!said.contains(TOKEN), "{said}");
    };
    check(command(&["CPU"]), 2, "`CPU` is not a class");
    let mut wrong_token = command(&["cpu"]);
    wrong_token.env("ROWMILL_CLUSTER_TOKEN", "another-token-0123456789abcdef");
    check(wrong_token, 75, "the cluster token is missing or wrong");
    let mut short_token = command(&["cpu"]);
    short_token.env("ROWMILL_CLUSTER_TOKEN", "short");
    check(short_token, 2, "the cluster token has 5 characters");
    let mut no_slots = command(&["cpu"]);
    no_slots.args(["--heartbeat-ms", "0"]);
    assert_ne!(refused(no_slots).0, Some(0));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut port = command(&["cpu"]);
    port.args(["--task-port", &taken.local_addr().unwrap().port().to_string()]);
    check(port, 75, "choose another port");
    let full = tempfile::tempdir().unwrap();
    std::fs::create_dir(full.path().join("work")).unwrap();
    std::fs::write(full.path().join("work/notes.txt"), "mine").unwrap();
    check(Process::command(full.path(), &scheduler, &["cpu"]), 75, "it holds other files");
    let mut liar = Command::new(env!("CARGO_BIN_EXE_rowmill-executor"));
    liar.args(["--class", "cpu", "--slots", "1000000", "--scheduler", &scheduler.address().to_string()])
        .arg("--work-dir")
        .arg(root.path().join("liar"))
        .env("ROWMILL_CLUSTER_TOKEN", TOKEN)
        .stderr(std::process::Stdio::piped());
    check(liar, 75, "claims 1000000 slots");
    assert!(scheduler.executors().await.is_empty());
}
