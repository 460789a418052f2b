//! What travels between client, scheduler and executor, recorded on its way: no secret is in it. And what processes of a
//! cluster say when they cannot start.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arrow::datatypes::{DataType, Field, Schema};
use futures::StreamExt as _;
use rowmill_wire::calls::{Ask, ClientMessage, OpenStep, Tell, attempts, write_schema};
use rowmill_wire::handshake::{Handshake, Token};

use crate::cluster::sorted;
use crate::service::{Service, number};
use crate::support::Scratch;

const TOKEN: &str = "a-token-of-the-tests-0123456789";
const CANARY: &str = "c4n4ry-Zz9/8e7d+";
const PATIENCE: Duration = Duration::from_secs(60);

/// The ways in which the secret could be written.
const FORMS: [&str; 4] = [CANARY, "YzRuNHJ5LVp6OS84ZTdkKw==", "c4n4ry-Zz9%2F8e7d%2B", "c4n4ry-Zz9%2f8e7d%2b"];

type Record = Arc<Mutex<Vec<u8>>>;

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Stands on 127.0.0.2 in front of a port of 127.0.0.1, and writes down what goes through.
fn tap(port: u16, record: &Record) {
    let listener = TcpListener::bind(("127.0.0.2", port)).unwrap();
    let record = Arc::clone(record);
    std::thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let Ok(far) = TcpStream::connect(("127.0.0.1", port)) else { continue };
            for (mut from, mut to) in [(near.try_clone().unwrap(), far.try_clone().unwrap()), (far, near)] {
                let record = Arc::clone(&record);
                std::thread::spawn(move || {
                    let mut buffer = vec![0; 1 << 16];
                    while let Ok(length @ 1..) = from.read(&mut buffer) {
                        record.lock().unwrap().extend_from_slice(&buffer[..length]);
                        if to.write_all(&buffer[..length]).is_err() {
                            break;
                        }
                    }
                    let _ = to.shutdown(std::net::Shutdown::Both);
                });
            }
        }
    });
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(scratch: &Scratch, name: &str, arguments: &[&str], ready: &str) -> Running {
    let path = scratch.path(&format!("{name}.log"));
    let log = std::fs::File::create(&path).unwrap();
    let mut command = scratch.command();
    command.args(arguments).env("API_TOKEN", CANARY).env("KEY", CANARY).stdin(Stdio::null());
    let running = Running(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
    let deadline = Instant::now() + PATIENCE;
    loop {
        let said = std::fs::read_to_string(&path).unwrap();
        if said.contains(ready) {
            return running;
        }
        assert!(Instant::now() < deadline, "{name} does not come up: {said}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A scheduler and an executor of which everybody speaks through a tap.
struct Tapped {
    scratch: Scratch,
    record: Record,
    scheduler: String,
    results: u16,
    _processes: [Running; 2],
}

impl Tapped {
    fn start(scratch: Scratch) -> Self {
        scratch.write("token", TOKEN);
        let record = Record::default();
        let [scheduler, tasks, results] = [free_port(), free_port(), free_port()];
        for port in [scheduler, tasks, results] {
            tap(port, &record);
        }
        let (own, seen) = (format!("127.0.0.1:{scheduler}"), format!("127.0.0.2:{scheduler}"));
        let arguments = ["scheduler", "--listen", &own, "--host", "127.0.0.2", "--token-file", "token"];
        let first = start(&scratch, "scheduler", &arguments, "listens on");
        let (tasks, result_port) = (tasks.to_string(), results.to_string());
        let arguments = [
            "executor",
            "--scheduler",
            &seen,
            "--class",
            "cpu",
            "--class",
            "io",
            "--slots",
            "2",
            "--work-dir",
            "work",
            "--token-file",
            "token",
            "--host",
            "127.0.0.2",
            "--task-port",
            &tasks,
            "--result-port",
            &result_port,
        ];
        let second = start(&scratch, "executor", &arguments, "joined");
        Self { scratch, record, scheduler: seen, results, _processes: [first, second] }
    }

    /// Where something stands in what went through.
    fn holds(&self, what: &str) -> bool {
        self.record.lock().unwrap().windows(what.len()).any(|window| window == what.as_bytes())
    }
}

#[test]
fn no_secret_travels_between_processes() {
    // Some services repeat what they were shown.
    let service = Service::start(|path, _| match number(path) {
        7 => (400, format!("{{\"error\": \"no item for {CANARY}\"}}")),
        other => (200, format!("{{\"answer\": {}}}", other * 2)),
    });
    let scratch = Scratch::new();
    let auth = ", auth: {bearer: {token: 'env:API_TOKEN'}}";
    let store = "object_store: {s3: {access_key_id: 'env:KEY', secret_access_key: 'env:KEY'}}\n";
    scratch.write("rowmill.yaml", service.configuration(auth) + store);
    let keys: String = (0..300).map(|value| format!("{value},k{}\n", value % 7)).collect();
    scratch.write("keys.csv", format!("value,kind\n{keys}"));
    scratch.write(
        "flow.yaml",
        "rowmill: 1
name: tapped
sources: {keys: {path: keys.csv}}
steps:
  counted: {sql: 'SELECT kind, max(value) AS value FROM keys GROUP BY kind'}
  called:
    http: {from: keys, connection: api, path: '/item/{value}', response: {answer: {json: /answer, type: int64}}}
    on_error: dead_letter
    resources: {class: io}
sinks:
  counted: {from: counted, path: out/counted.csv}
  called: {from: called, path: out/called.csv}
",
    );
    let tapped = Tapped::start(scratch);
    for more in [&[][..], &["--durable"]] {
        let mut command = tapped.scratch.command();
        command.args(["run", "flow.yaml", "--cluster", &tapped.scheduler, "--token-file", "token"]).args(more);
        // The client could read the secrets as well, and has no use for them.
        let done = command.env("API_TOKEN", CANARY).env("KEY", CANARY).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned() + &String::from_utf8_lossy(&done.stdout);
        assert_eq!(done.status.code(), Some(3), "{said}");
        assert!(FORMS.iter().all(|form| !said.contains(form)), "{said}");
        assert_eq!(sorted(&tapped.scratch, "out/called.csv").lines().count(), 300);
    }
    assert!(service.shown().iter().any(|line| line.contains(CANARY)), "the service was shown the secret");
    // Plans, calls and what came back went through here.
    for part in ["max(keys.value)", "keys.csv", "/item/", "no item for"] {
        assert!(tapped.holds(part), "{part} was not recorded");
    }
    for form in FORMS {
        assert!(!tapped.holds(form), "{form} went over the wire");
    }
}

/// A function that was pickled somewhere travels nowhere, and what pretends to be one is not looked for on an executor.
#[test]
fn an_executor_loads_no_functions_that_are_sent_to_it() {
    let scratch = Scratch::new();
    scratch.write("rowmill.yaml", "state: {dir: state}\n");
    let tapped = Tapped::start(scratch);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answer = runtime.block_on(async {
        let client = Handshake::new(Token::try_new(TOKEN).unwrap());
        let channel = client.connect(&format!("127.0.0.1:{}", tapped.results), |endpoint| endpoint).await.unwrap();
        let text = "rowmill: 1
name: sent
sources: {rows: {range: {end: 1}}}
steps:
  evil: {python: {from: rows, function: '__program__:evil', reads: [value], output: {x: int64}}}
sinks: {out: {from: evil, path: out.csv}}
";
        let open = OpenStep {
            step: "evil".to_owned(),
            text: text.to_owned(),
            class: "io".to_owned(),
            in_flight: 1,
            base: tapped.scratch.path("").display().to_string(),
            input: write_schema(&Schema::new(vec![Field::new("value", DataType::Int64, false)])).unwrap(),
            output: write_schema(&Schema::new(vec![Field::new("x", DataType::Int64, true)])).unwrap(),
            ..OpenStep::default()
        };
        let asks = futures::stream::iter([ClientMessage { ask: Some(Ask::Open(open)) }]);
        let mut answers = attempts(channel, asks.chain(futures::stream::pending())).await.unwrap();
        loop {
            match answers.message().await.unwrap().and_then(|message| message.tell) {
                Some(Tell::Beat(_)) => {}
                other => return other,
            }
        }
    });
    let Some(Tell::Refused(refused)) = answer else { panic!("{answer:?}") };
    let why = format!("{refused:?}");
    assert!(why.contains("`evil` lives in the program"), "{why}");
}

#[test]
fn processes_that_cannot_start_say_why() {
    let scratch = Scratch::new();
    scratch.write("token", TOKEN);
    scratch.write("file", "");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let listen = format!("127.0.0.1:{port}");
    scratch
        .rowmill(&["scheduler", "--listen", &listen, "--token-file", "token"])
        .fails(75, &["RM0704", &listen, "--listen"]);
    let executor = |more: &[&str]| {
        let own = ["executor", "--scheduler", "127.0.0.1:1", "--class", "cpu", "--token-file", "token"];
        scratch.rowmill(&[&own[..], more].concat())
    };
    for flag in ["--task-port", "--result-port"] {
        executor(&["--work-dir", "work", flag, &port]).fails(75, &["RM0704", &listen]);
    }
    executor(&["--work-dir", "file"]).fails(75, &["RM0703", "file", "--work-dir"]);
    executor(&["--work-dir", "/proc/work"]).fails(75, &["RM0703", "/proc/work"]);
    executor(&["--work-dir", "work", "--class", "GPU"]).fails(2, &["`GPU` is not a class"]);
    executor(&["--work-dir", "work", "--slots", "0"]).fails(2, &["--slots 1"]);
    // Two executors, one folder.
    scratch.write("work/.rowmill-executor", "");
    let lock = std::fs::File::options().write(true).open(scratch.path("work/.rowmill-executor")).unwrap();
    lock.lock().unwrap();
    executor(&["--work-dir", "work"]).fails(75, &["RM0703", "another executor uses it"]);
    // A full disk, where one can be mounted.
    let disk = scratch.path("disk");
    std::fs::create_dir(&disk).unwrap();
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "rowmill-test"]).arg(&disk).output();
    if mount.is_ok_and(|done| done.status.success()) {
        let mut ballast = std::fs::File::create(disk.join("ballast")).unwrap();
        while ballast.write_all(&[7; 4096]).is_ok() {}
        let answer = executor(&["--work-dir", "disk/work"]);
        let _ = Command::new("umount").arg("-l").arg(&disk).status();
        answer.fails(75, &["RM0703", "No space left"]);
    } else {
        println!("no small disk can be mounted here");
    }
}
