//! TLS between the processes of a cluster, and tokens that submit and do not join. Everything here is on this machine;
//! that plain text is refused beyond it is tested where the rule stands (`rowmill_wire::transport`) and below.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use ballista_core::serde::protobuf::executor_grpc_client::ExecutorGrpcClient;
use ballista_core::serde::protobuf::scheduler_grpc_client::SchedulerGrpcClient;
use ballista_core::serde::protobuf::{RegisterExecutorParams, StopExecutorParams};
use rowmill_scheduler::{Error, Options, Scheduler};
use rowmill_wire::alive::{AliveRequest, say_alive};
use rowmill_wire::handshake::{Handshake, Submitter, Token};
use rowmill_wire::jobs;
use rowmill_wire::transport::{ConnectError, TlsFiles, Transport};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Code;

use crate::support::{Process, TOKEN, handshake, local, on_cluster, options, refused, session};

const SUBMITS: &str = "a-token-that-submits-0123456789";

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/tls").join(format!("{name}.pem"))
}

fn transport(ca: &str, identity: Option<&str>, mutual: bool) -> Transport {
    let key = identity.map(|name| file(&format!("{name}-key")));
    Transport::tls(&TlsFiles { ca: file(ca), certificate: identity.map(file), key, mutual }).unwrap()
}

fn with(transport: Transport) -> Options {
    Options { handshake: handshake().with_transport(transport), ..options() }
}

fn executor(root: &Path, scheduler: &Scheduler, classes: &[&str], ca: &str, identity: &str) -> Command {
    let mut command = Process::command(root, scheduler, classes);
    command.arg("--tls-ca").arg(file(ca)).arg("--tls-certificate").arg(file(identity));
    command.arg("--tls-key").arg(file(&format!("{identity}-key")));
    command
}

async fn reach(scheduler: &Scheduler, handshake: &Handshake) -> Result<(), String> {
    let channel = handshake.connect(&scheduler.address().to_string(), |endpoint| endpoint).await;
    let channel = channel.map_err(|error| format!("{error:?}"))?;
    jobs::status(channel).await.map(drop).map_err(|status| format!("{:?}", status.code()))
}

/// Two executors, so that what one makes the other reads: Ballista's own connections, too, go through TLS.
#[tokio::test(flavor = "multi_thread")]
async fn queries_run_over_mutual_tls() {
    let scheduler = Scheduler::start(with(transport("ca", Some("member"), true))).await.unwrap();
    let roots = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let _scans = Process::spawn(executor(roots[0].path(), &scheduler, &["io"], "ca", "member"));
    let _rest = Process::spawn(executor(roots[1].path(), &scheduler, &["cpu"], "ca", "member"));
    let context = session().await;
    let sql = "select n_regionkey, count(*), sum(s_acctbal) from supplier join nation on s_nationkey = n_nationkey \
               group by n_regionkey order by 1";
    assert_eq!(on_cluster(&scheduler, &context, sql).await, local(sql).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_judged_on_both_sides() {
    let scheduler = Scheduler::start(with(transport("ca", Some("member"), true))).await.unwrap();
    let by = |transport| handshake().with_transport(transport);
    assert_eq!(reach(&scheduler, &by(transport("ca", Some("member"), true))).await, Ok(()));
    for (what, transport) in [
        ("another authority is trusted here", transport("other-ca", Some("member"), true)),
        ("no certificate is shown", transport("ca", None, true)),
        ("one of another authority is shown", transport("ca", Some("stranger"), true)),
        ("one that has expired is shown", transport("ca", Some("expired"), true)),
    ] {
        let refused = reach(&scheduler, &by(transport)).await.unwrap_err();
        assert!(refused.starts_with("Untrusted"), "{what}: {refused}");
    }
    // Plain text is not spoken: neither with the right token, nor garbage.
    assert!(reach(&scheduler, &handshake()).await.is_err());
    let mut plain = tokio::net::TcpStream::connect(scheduler.address()).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut said = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(20), plain.read_to_end(&mut said)).await.unwrap();
    assert!(said.len() < 16, "an alert at most: {said:?}");
    // The right certificate and a wrong token get nothing.
    let wrong = Handshake::new(Token::try_new("another-token-0123456789abcdef").unwrap());
    let wrong = wrong.with_transport(transport("ca", Some("member"), true));
    assert_eq!(reach(&scheduler, &wrong).await, Err("Unauthenticated".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_are_judged_too() {
    for (identity, says) in [("elsewhere", "NotValidForName"), ("expired", "Expired"), ("stranger", "UnknownIssuer")] {
        let scheduler = Scheduler::start(with(transport("ca", Some(identity), false))).await.unwrap();
        let client = handshake().with_transport(transport("ca", None, false));
        let address = scheduler.address().to_string();
        match client.connect(&address, |endpoint| endpoint).await {
            Err(ConnectError::Untrusted { why, .. }) => {
                println!("{identity}: {why}");
                let expected = match says {
                    "NotValidForName" => "not valid for",
                    "Expired" => "expired",
                    _ => "UnknownIssuer",
                };
                assert!(why.contains(expected), "{identity}: {why}");
            }
            other => panic!("{identity}: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_mutual_tls_the_token_alone_decides() {
    let scheduler = Scheduler::start(with(transport("ca", Some("member"), false))).await.unwrap();
    assert_eq!(reach(&scheduler, &handshake().with_transport(transport("ca", None, false))).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_executor_with_wrong_certificates_does_not_join() {
    let scheduler = Scheduler::start(with(transport("ca", Some("member"), true))).await.unwrap();
    let root = tempfile::tempdir().unwrap();
    for (ca, identity) in [("ca", "stranger"), ("other-ca", "member")] {
        let (code, said) = refused(executor(root.path(), &scheduler, &["cpu"], ca, identity));
        assert_eq!(code, Some(75), "{said}");
        assert!(said.contains("no TLS"), "{said}");
        assert!(!said.contains(TOKEN), "{said}");
    }
    assert!(scheduler.executors().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_served_to_a_network_in_plain_text() {
    let everywhere = "0.0.0.0:0".parse().unwrap();
    let Err(Error::Transport(error)) = Scheduler::start(Options { listen: everywhere, ..options() }).await else {
        panic!("it listens")
    };
    assert!(error.to_string().contains("cluster.insecure"), "{error}");
    let insecure = Options { listen: everywhere, ..with(Transport::insecure()) };
    assert!(Scheduler::start(insecure).await.is_ok());
    let scheduler = Scheduler::start(options()).await.unwrap();
    let root = tempfile::tempdir().unwrap();
    let mut command = Process::command(root.path(), &scheduler, &["cpu"]);
    command.args(["--listen", "0.0.0.0"]);
    let (code, said) = refused(command);
    assert_eq!(code, Some(75), "{said}");
    assert!(said.contains("without TLS"), "{said}");
    let sent = handshake().connect("192.0.2.1:7780", |endpoint| endpoint).await;
    assert!(matches!(sent, Err(ConnectError::Transport(_))), "{sent:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_submits_does_not_join() {
    let own = handshake().with_submitters(Submitter::read(&format!("{SUBMITS} acme/data")).unwrap());
    let scheduler = Scheduler::start(Options { handshake: own, ..options() }).await.unwrap();
    let root = tempfile::tempdir().unwrap();
    let submitters = root.path().join("submitters");
    std::fs::write(&submitters, format!("{SUBMITS} acme/data\n")).unwrap();
    let mut command = Process::command(root.path(), &scheduler, &["cpu", "io"]);
    command.arg("--submitters-file").arg(&submitters);
    let executor = Process::spawn(command);
    let client = Handshake::new(Token::try_new(SUBMITS).unwrap());
    let address = scheduler.address().to_string();
    let channel = client.connect(&address, |endpoint| endpoint).await.unwrap();
    assert_eq!(jobs::status(channel.clone()).await.unwrap().executors.len(), 1);
    let registered =
        SchedulerGrpcClient::new(channel.clone()).register_executor(RegisterExecutorParams::default()).await;
    assert_eq!(registered.unwrap_err().code(), Code::PermissionDenied);
    let alive = say_alive(channel, AliveRequest::default()).await.unwrap_err();
    assert_eq!(alive.code(), Code::PermissionDenied);
    // Nor does it give tasks to an executor, wherever that listens.
    let ports = listening(&executor);
    let mut denied = 0;
    for port in ports {
        let channel = client.connect(&format!("127.0.0.1:{port}"), |endpoint| endpoint).await.unwrap();
        let asked = ExecutorGrpcClient::new(channel).stop_executor(StopExecutorParams::default()).await;
        denied += u32::from(asked.unwrap_err().code() == Code::PermissionDenied);
    }
    assert_eq!(denied, 1, "the port of tasks");
    // A process that has only this token cannot be an executor.
    let second = tempfile::tempdir().unwrap();
    let mut command = Process::command(second.path(), &scheduler, &["cpu"]);
    command.env("ROWMILL_CLUSTER_TOKEN", SUBMITS);
    let (code, said) = refused(command);
    assert_eq!(code, Some(75), "{said}");
    assert!(said.contains("does not join"), "{said}");
}

/// The ports that a process listens on, as the kernel knows them.
pub(crate) fn listening(process: &Process) -> Vec<u16> {
    let text = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let fds = std::fs::read_dir(format!("/proc/{}/fd", process.child.id())).unwrap();
    let own: Vec<String> = fds
        .filter_map(|fd| Some(std::fs::read_link(fd.ok()?.path()).ok()?.to_string_lossy().into_owned()))
        .filter_map(|link| Some(link.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    text.lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let listens =
                fields.get(3) == Some(&"0A") && own.iter().any(|inode| Some(&inode.as_str()) == fields.get(9));
            let port = fields.get(1)?.rsplit_once(':')?.1;
            listens.then(|| u16::from_str_radix(port, 16).ok()).flatten()
        })
        .collect()
}

/// With everything logged that can be.
#[tokio::test(flavor = "multi_thread")]
async fn no_log_shows_a_token() {
    let scheduler = Scheduler::start(with(transport("ca", Some("member"), true))).await.unwrap();
    let root = tempfile::tempdir().unwrap();
    let log = root.path().join("log");
    let mut command = executor(root.path(), &scheduler, &["cpu", "io"], "ca", "member");
    command.env("ROWMILL_LOG", "trace").stderr(Stdio::from(std::fs::File::create(&log).unwrap()));
    let process = Process::spawn_as_is(command);
    let context = session().await;
    let sql = "select count(*) from nation";
    assert_eq!(on_cluster(&scheduler, &context, sql).await, local(sql).await);
    drop(process);
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(said.len() > 10_000, "everything is logged: {} bytes", said.len());
    let line = said.lines().find(|line| line.contains(TOKEN));
    assert_eq!(line, None);
}
