//! Several schedulers of one store: one leads, the others name it, and what belongs to an earlier term is refused.

use std::time::{Duration, Instant};

use ballista_core::serde::protobuf::executor_grpc_client::ExecutorGrpcClient;
use ballista_core::serde::protobuf::scheduler_grpc_client::SchedulerGrpcClient;
use ballista_core::serde::protobuf::{LaunchMultiTaskParams, RegisterExecutorParams, StopExecutorParams};
use datafusion::common::runtime::SpawnedTask;
use rowmill_scheduler::{Candidate, Election, Error, Options, StoreAt};
use rowmill_wire::alive::{AliveRequest, say_alive};
use rowmill_wire::calls::crew::watch;
use rowmill_wire::handshake::{Handshake, Token};
use rowmill_wire::jobs::{StatusResponse, status};
use rowmill_wire::leader::{Role, Standby, role};
use tokio::sync::oneshot;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::support::{Process, TOKEN, handshake, options};

/// Long enough that a busy machine keeps its leader.
const LEASE: Duration = Duration::from_secs(2);
const LIMIT: Duration = Duration::from_secs(60);

/// A scheduler of several, in this process.
struct Own {
    address: String,
    stop: oneshot::Sender<()>,
    ended: SpawnedTask<Result<(), Error>>,
}

impl Own {
    async fn start(at: &StoreAt) -> Own {
        let election = Election::open(at, "tests", LEASE).await.unwrap();
        let candidate = Candidate::try_new(options(), election).await.unwrap();
        let address = candidate.address().to_string();
        let (stop, stopped) = oneshot::channel();
        let ended = SpawnedTask::spawn(candidate.run(Box::pin(async move { drop(stopped.await) })));
        Own { address, stop, ended }
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.ended.join().await.unwrap().unwrap();
    }

    async fn connect(&self, handshake: Handshake) -> Channel {
        handshake.connect(&self.address, |endpoint| endpoint).await.unwrap()
    }

    /// Its role; `None` while it takes or leaves the seat.
    async fn role(&self) -> Option<Role> {
        let channel = handshake().connect(&self.address, |endpoint| endpoint).await.ok()?;
        role(channel).await.ok()
    }

    async fn status(&self) -> Result<StatusResponse, Status> {
        status(self.connect(handshake()).await).await
    }
}

/// Waits until this holds.
async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut holds: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = holds().await {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until it leads; its term.
async fn leads(own: &Own) -> u64 {
    until("it does not lead", || async { own.role().await.filter(|role| role.leads).map(|role| role.term) }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_leads_and_the_others_name_it_to_those_who_have_the_token() {
    let folder = tempfile::tempdir().unwrap();
    let at = StoreAt::File(folder.path().join("schedulers.db"));
    let first = Own::start(&at).await;
    let term = leads(&first).await;
    let second = Own::start(&at).await;
    let named = || async { second.role().await.filter(|role| role.leader == first.address) };
    let role = until("it does not know the leader", named).await;
    assert!(!role.leads && role.term == 0, "{role:?}");

    // Whatever it is asked, it says who leads.
    let channel = second.connect(handshake()).await;
    let mut client = SchedulerGrpcClient::new(channel.clone());
    let refusals = vec![
        ("status", status(channel.clone()).await.unwrap_err()),
        ("crew", watch(channel.clone(), "cpu").await.unwrap_err()),
        ("register", client.register_executor(RegisterExecutorParams::default()).await.unwrap_err()),
        ("alive", say_alive(channel, AliveRequest::default()).await.unwrap_err()),
    ];
    for (what, status) in refusals {
        assert_eq!(status.code(), Code::Unavailable, "{what}: {status}");
        let standby = Standby::read(&status).unwrap_or_else(|| panic!("{what}: {status:?}"));
        assert_eq!(standby.leader.as_deref(), Some(first.address.as_str()), "{what}");
    }
    // And nothing to those who have not.
    let wrong = Handshake::new(Token::try_new("another-token-0123456789abcdef").unwrap());
    let status = status(second.connect(wrong).await).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(Standby::read(&status).is_none() && !status.message().contains(&first.address), "{status:?}");

    // One that stops lets go: the other need not wait for the lease to run out, and its term is a later one.
    assert_eq!(first.status().await.unwrap().leader, first.address);
    first.stop().await;
    let next = leads(&second).await;
    assert!(next > term, "{next} after {term}");
    let status = second.status().await.unwrap();
    assert_eq!((status.leader, status.term), (second.address.clone(), next));
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn executors_go_to_the_leader_and_refuse_what_an_earlier_one_says() {
    let folder = tempfile::tempdir().unwrap();
    let at = StoreAt::File(folder.path().join("schedulers.db"));
    let first = Own::start(&at).await;
    let term = leads(&first).await;
    let second = Own::start(&at).await;

    // The one that stands by is given first.
    let port = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().port()
    };
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_rowmill-executor"));
    command
        .args(["--class", "cpu", "--slots", "2", "--heartbeat-ms", "200", "--memory-mib", "256"])
        .args(["--scheduler", &format!("{},{}", second.address, first.address)])
        .args(["--task-port", &port.to_string()])
        .arg("--work-dir")
        .arg(folder.path().join("work"))
        .env("ROWMILL_CLUSTER_TOKEN", TOKEN)
        .stdout(std::process::Stdio::piped());
    let _executor = Process::spawn(command);
    let joined = |own: &Own| {
        let asked = handshake();
        let address = own.address.clone();
        move || {
            let (asked, address) = (asked.clone(), address.clone());
            async move {
                let channel = asked.connect(&address, |endpoint| endpoint).await.ok()?;
                let status = status(channel).await.ok()?;
                (status.executors.len() == 1).then_some(status.term)
            }
        }
    };
    assert_eq!(until("it does not join", joined(&first)).await, term);
    first.stop().await;
    let next = until("it does not join the next", joined(&second)).await;
    assert!(next > term);

    // What the first one says, had it only been stopped for a while.
    let say = |term: u64| async move {
        let own = handshake().with_term(term);
        let channel = own.connect(&format!("127.0.0.1:{port}"), |endpoint| endpoint).await.unwrap();
        ExecutorGrpcClient::new(channel)
    };
    let heard = || async { say(term).await.launch_multi_task(LaunchMultiTaskParams::default()).await.err() };
    let refused = until("an earlier term is not refused", heard).await;
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("another has taken over"), "{refused}");
    let refused = say(term).await.stop_executor(StopExecutorParams::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    // One without a store has no term: it is not the one that is followed.
    assert!(say(0).await.launch_multi_task(LaunchMultiTaskParams::default()).await.is_err());
    say(next).await.launch_multi_task(LaunchMultiTaskParams::default()).await.unwrap();
    second.stop().await;
}

#[tokio::test]
async fn a_scheduler_of_several_says_where_it_is_reached() {
    let folder = tempfile::tempdir().unwrap();
    let at = StoreAt::File(folder.path().join("schedulers.db"));
    let election = Election::open(&at, "tests", LEASE).await.unwrap();
    let nowhere = Options { host: "0.0.0.0".to_owned(), ..options() };
    assert!(matches!(Candidate::try_new(nowhere, election.clone()).await, Err(Error::NoHost)));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = Options { listen: listener.local_addr().unwrap(), ..options() };
    assert!(matches!(Candidate::try_new(taken, election).await, Err(Error::Listen { .. })));
}
