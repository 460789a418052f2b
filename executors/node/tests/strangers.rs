//! What those get from the processes of a cluster who have no business there: no token, a wrong one, one of somebody else;
//! names that lead elsewhere, and messages that are too large.

use std::sync::Arc;

use arrow_flight::flight_service_client::FlightServiceClient;
use ballista_core::serde::protobuf::action::ActionType;
use ballista_core::serde::protobuf::executor_grpc_client::ExecutorGrpcClient;
use ballista_core::serde::protobuf::scheduler_grpc_client::SchedulerGrpcClient;
use ballista_core::serde::protobuf::{
    Action, ExecutorStoppedParams, FetchPartition, LaunchMultiTaskParams, RemoveJobDataParams, StopExecutorParams,
};
use datafusion::execution::context::SessionContext;
use futures::StreamExt as _;
use prost::Message as _;
use rowmill_scheduler::{Options, Scheduler};
use rowmill_wire::calls::crew::watch;
use rowmill_wire::calls::{Ask, ClientMessage, OpenStep, attempts};
use rowmill_wire::handshake::{Build, Handshake, Submitter, Token};
use rowmill_wire::jobs::{self, Event, SubmitRequest};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::admission::{next, request};
use crate::security::listening;
use crate::support::{Process, TOKEN, handshake, local, on_cluster, options, session};

const TINY: &str = "select count(*) from nation where n_nationkey > 3";
const ACME: &str = "a-token-of-acme-0123456789";
const GLOBEX: &str = "a-token-of-globex-0123456789";

async fn plain(address: &str, agent: Option<String>) -> Channel {
    let mut endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    if let Some(agent) = agent {
        endpoint = endpoint.user_agent(agent).unwrap();
    }
    endpoint.connect().await.unwrap()
}

/// Everything that clients may ask, of a scheduler and of an executor.
async fn ask_everything(scheduler: Channel, tasks: Channel, results: Channel) -> Vec<(&'static str, Status)> {
    let open = ClientMessage { ask: Some(Ask::Open(OpenStep::default())) };
    let calls = attempts(results.clone(), futures::stream::iter([open])).await;
    let mut flight = FlightServiceClient::new(results);
    let mut executor = ExecutorGrpcClient::new(tasks);
    vec![
        ("submit", jobs::submit(scheduler.clone(), SubmitRequest::default()).await.map(drop).unwrap_err()),
        ("status", jobs::status(scheduler.clone()).await.map(drop).unwrap_err()),
        ("crew", watch(scheduler, "cpu").await.map(drop).unwrap_err()),
        ("calls", calls.map(drop).unwrap_err()),
        ("results", flight.do_get(arrow_flight::Ticket::new("x")).await.map(drop).unwrap_err()),
        ("blocks", flight.do_action(arrow_flight::Action::new("IO_BLOCK_TRANSPORT", "x")).await.map(drop).unwrap_err()),
        ("launch", executor.launch_multi_task(LaunchMultiTaskParams::default()).await.map(drop).unwrap_err()),
        ("remove", executor.remove_job_data(RemoveJobDataParams::default()).await.map(drop).unwrap_err()),
        ("stop", executor.stop_executor(StopExecutorParams::default()).await.map(drop).unwrap_err()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_anything_without_the_token() {
    let scheduler = Scheduler::start(options()).await.unwrap();
    let executor = Process::start(&scheduler, &["cpu", "io"]);
    let results = scheduler.executors().await.remove(0).address;
    let ports = listening(&executor);
    let tasks = ports.iter().find(|port| !results.ends_with(&format!(":{port}"))).expect("it takes tasks somewhere");
    let addresses = [scheduler.address().to_string(), format!("127.0.0.1:{tasks}"), results];
    let build = Build::own();
    let cut = &TOKEN[..TOKEN.len() - 1];
    for agent in [
        None,
        Some(String::new()),
        Some(format!("rowmill build={build} token=")),
        Some(format!("rowmill build={build} token={cut}")),
        Some(format!("rowmill build={build} token={TOKEN}x")),
        Some(format!("rowmill build={build} token=another-token-0123456789abcdef")),
        Some(format!("rowmill build={build}")),
    ] {
        let [scheduler, tasks, results] = [0, 1, 2].map(|at| plain(&addresses[at], agent.clone()));
        for (what, status) in ask_everything(scheduler.await, tasks.await, results.await).await {
            assert_eq!(status.code(), Code::Unauthenticated, "{what}, {agent:?}: {status}");
            assert!(!status.message().contains(TOKEN), "{what}: {status}");
        }
    }
    // Another build is told so, by whoever it speaks to.
    let other = handshake().with_build(Build::named("99.0.0"));
    let mut channels = Vec::new();
    for address in &addresses {
        channels.push(other.connect(address, |endpoint| endpoint).await.unwrap());
    }
    let [scheduler_channel, tasks, results] = channels.try_into().unwrap();
    for (what, status) in ask_everything(scheduler_channel, tasks, results).await {
        assert_eq!(status.code(), Code::FailedPrecondition, "{what}: {status}");
        assert!(status.message().contains("99.0.0"), "{what}: {status}");
    }
    let context = session().await;
    assert_eq!(on_cluster(&scheduler, &context, TINY).await, local(TINY).await, "it goes on");
}

fn fetch(job: &str, stage_id: u32, partition_id: u32, file_id: Option<u64>) -> Vec<u8> {
    let fetch = FetchPartition { job_id: job.to_owned(), stage_id, partition_id, file_id, ..FetchPartition::default() };
    Action { action_type: Some(ActionType::FetchPartition(fetch)), settings: Vec::new() }.encode_to_vec()
}

/// What an executor serves under this name, or why not.
async fn served(channel: &Channel, job: &str) -> Result<Vec<u8>, Status> {
    let mut flight = FlightServiceClient::new(channel.clone());
    let ticket = arrow_flight::Ticket::new(fetch(job, 7, 0, None));
    let got = flight.do_get(ticket).await;
    let action = arrow_flight::Action::new("IO_BLOCK_TRANSPORT", fetch(job, 7, 0, None));
    let mut blocks = flight.do_action(action).await?.into_inner();
    assert!(got.is_ok(), "one way serves it and the other does not");
    let mut bytes = Vec::new();
    while let Some(block) = blocks.next().await {
        bytes.extend_from_slice(&block?.body);
    }
    Ok(bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_jobs_do_not_lead_out_of_the_work_directory() {
    let own = handshake().with_submitters(Submitter::read(&format!("{ACME} acme")).unwrap());
    let scheduler = Scheduler::start(Options { handshake: own, ..options() }).await.unwrap();
    let root = tempfile::tempdir().unwrap();
    let submitters = root.path().join("submitters");
    std::fs::write(&submitters, format!("{ACME} acme\n")).unwrap();
    let mut command = Process::command(root.path(), &scheduler, &["cpu", "io"]);
    command.arg("--submitters-file").arg(&submitters);
    let _executor = Process::spawn(command);
    // A file as Ballista names them, which is somebody else's; one of a job lies beside it.
    let write = |folder: std::path::PathBuf| {
        std::fs::create_dir_all(folder.join("7/0")).unwrap();
        let schema = arrow::datatypes::Schema::empty();
        let file = std::fs::File::create(folder.join("7/0/data.arrow")).unwrap();
        arrow::ipc::writer::StreamWriter::try_new(file, &schema).unwrap().finish().unwrap();
    };
    write(root.path().join("mine"));
    write(root.path().join("work/shuffle/job1"));
    let address = scheduler.executors().await.remove(0).address;
    let client = Handshake::new(Token::try_new(ACME).unwrap());
    let channel = client.connect(&address, |endpoint| endpoint).await.unwrap();
    assert!(!served(&channel, "job1").await.unwrap().is_empty());
    let absolute = root.path().join("mine").display().to_string();
    for job in ["../../mine", &absolute, "job1/../../../mine", "..", ".", "", "./job1", "job1\0"] {
        let refused = served(&channel, job).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{job:?}: {refused}");
        let mut flight = FlightServiceClient::new(channel.clone());
        let ticket = arrow_flight::Ticket::new(fetch(job, 7, 0, None));
        assert_eq!(flight.do_get(ticket).await.map(drop).unwrap_err().code(), Code::InvalidArgument, "{job:?}");
    }
    // What a submitter's token is not for.
    let removed = ExecutorGrpcClient::new(channel.clone()).remove_job_data(RemoveJobDataParams::default()).await;
    assert!(removed.is_err());
    assert!(root.path().join("work/shuffle/job1/7/0/data.arrow").exists());
}

async fn submit(channel: &Channel, context: &Arc<SessionContext>, name: &str) -> tonic::Streaming<jobs::Progress> {
    // Nobody serves its class, so that it stays.
    let request = SubmitRequest { name: name.to_owned(), ..request(context, TINY, "", "nobody").await };
    let mut progress = jobs::submit(channel.clone(), request).await.unwrap();
    assert!(matches!(next(&mut progress).await, Event::Accepted(_)));
    progress
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_others_are_not_seen() {
    let tokens = format!("{ACME} acme\n{GLOBEX} globex/data");
    let own = handshake().with_submitters(Submitter::read(&tokens).unwrap());
    let scheduler = Scheduler::start(Options { handshake: own, ..options() }).await.unwrap();
    let context = session().await;
    let address = scheduler.address().to_string();
    let channel = async |token: &str| {
        let client = Handshake::new(Token::try_new(token).unwrap());
        client.connect(&address, |endpoint| endpoint).await.unwrap()
    };
    let (acme, globex, cluster) = (channel(ACME).await, channel(GLOBEX).await, channel(TOKEN).await);
    let _acme = submit(&acme, &context, "\u{1b}]0;acme's\u{7} secret plans").await;
    let _globex = submit(&globex, &context, "globex").await;
    let _nobody = submit(&cluster, &context, "nobody's").await;
    for (who, sees, tenants) in [
        (&acme, &["]0;acme's secret plans"][..], &["acme"][..]),
        (&globex, &["globex"], &["globex/data"]),
        (&cluster, &["]0;acme's secret plans", "globex", "nobody's"], &["", "acme", "globex/data"]),
    ] {
        let status = jobs::status(who.clone()).await.unwrap();
        let mut names: Vec<&str> = status.jobs.iter().map(|job| job.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, sees);
        let mut shown: Vec<&str> = status.tenants.iter().map(|own| own.name.as_str()).collect();
        shown.sort_unstable();
        assert_eq!(shown, tenants);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn plans_and_messages_that_are_too_large_are_refused_and_nothing_else_suffers() {
    let scheduler = Scheduler::start(options()).await.unwrap();
    let _executor = Process::start(&scheduler, &["cpu", "io"]);
    let context = session().await;
    let channel = handshake().connect(&scheduler.address().to_string(), |endpoint| endpoint).await.unwrap();
    // More than a plan may have.
    let large = SubmitRequest { plan: vec![7; 40 << 20], class: "cpu".to_owned(), ..SubmitRequest::default() };
    let refused = jobs::submit(channel.clone(), large).await.map(drop).unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("a message holds"), "{refused}");
    // More than a message, from somebody who keeps to no limit.
    let large = ExecutorStoppedParams { reason: "x".repeat(80 << 20), ..ExecutorStoppedParams::default() };
    let mut client = SchedulerGrpcClient::new(channel.clone()).max_encoding_message_size(usize::MAX);
    assert_eq!(client.executor_stopped(large).await.map(drop).unwrap_err().code(), Code::OutOfRange);
    let garbage = SubmitRequest { plan: vec![7; 1 << 10], class: "cpu".to_owned(), ..SubmitRequest::default() };
    let refused = match jobs::submit(channel.clone(), garbage).await {
        Err(status) => status,
        Ok(mut progress) => progress.message().await.unwrap_err(),
    };
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    let status = jobs::status(channel).await.unwrap();
    assert_eq!((status.jobs.len(), status.queues[0].running), (0, 0), "no place is kept: {status:?}");
    assert_eq!(on_cluster(&scheduler, &context, TINY).await, local(TINY).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_with_tasks_that_is_too_large_harms_no_executor() {
    let scheduler = Scheduler::start(options()).await.unwrap();
    let executor = Process::start(&scheduler, &["cpu", "io"]);
    let results = scheduler.executors().await.remove(0).address;
    let tasks = *listening(&executor).iter().find(|port| !results.ends_with(&format!(":{port}"))).unwrap();
    let channel = handshake().connect(&format!("127.0.0.1:{tasks}"), |endpoint| endpoint).await.unwrap();
    let large = LaunchMultiTaskParams { scheduler_endpoint: "x".repeat(80 << 20), ..LaunchMultiTaskParams::default() };
    let mut client = ExecutorGrpcClient::new(channel).max_encoding_message_size(usize::MAX);
    let refused = client.launch_multi_task(large).await.map(drop).unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    let context = session().await;
    assert_eq!(on_cluster(&scheduler, &context, TINY).await, local(TINY).await);
    assert_eq!(scheduler.executors().await.len(), 1);
}
