//! Steps that are not SQL on a cluster: calls are made by executors, and what holds for items holds as it does here, also
//! when executors die, stop, leave, or lack what a step needs.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::cluster::{Cluster, sorted};
use crate::service::{Service, number};
use crate::support::Scratch;

const PATIENCE: Duration = Duration::from_secs(60);

/// What a run of `flow.yaml` on the cluster says, with something done to the cluster once the service was asked so often.
fn run_and(cluster: &Cluster, more: &[&str], asked: impl Fn() -> usize, when: usize, what: impl FnOnce()) -> Value {
    let out = cluster.scratch.path("run.out");
    let mut command = cluster.command();
    command.args(["run", "flow.yaml", "--cluster", "local", "--output", "json"]).args(more);
    let file = std::fs::File::create(&out).unwrap();
    let mut run = command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while asked() < when {
        assert!(
            Instant::now() < deadline && run.try_wait().unwrap().is_none(),
            "it was not asked so often: {}",
            said(&out)
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    what();
    loop {
        if run.try_wait().unwrap().is_some() {
            break;
        }
        if Instant::now() > deadline {
            let _ = run.kill();
            panic!("the run does not end: {}", said(&out));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let text = said(&out);
    let json = text.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("{text}"));
    serde_json::from_str(json).unwrap_or_else(|_| serde_json::from_str(&text).unwrap())
}

fn said(path: &std::path::Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// How many items of the first step had an outcome.
fn outcome(report: &Value, word: &str) -> u64 {
    report["items"][0]["outcomes"][word].as_u64().unwrap_or(0)
}

/// A service that takes a while for each answer.
fn slow() -> Service {
    Service::start(|path, _| {
        std::thread::sleep(Duration::from_millis(10));
        (200, format!("{{\"answer\": {}}}", number(path) * 2))
    })
}

/// 600 calls, 16 at a time.
fn calls(method: &str, policy: &str) -> String {
    format!(
        "rowmill: 1
name: calls
sources: {{numbers: {{range: {{end: 600}}}}}}
steps:
  called:
    http:
      from: numbers
      connection: api
      method: {method}
      path: /item/{{value}}
      response: {{answer: {{json: /answer, type: int64}}}}
    in_flight: 16
{policy}sinks: {{out: {{from: called, path: out/rows.csv}}}}
"
    )
}

fn rows(count: impl Iterator<Item = u64>) -> String {
    let mut lines: Vec<String> = count.map(|value| format!("{value},{}", value * 2)).collect();
    lines.push("value,answer".to_owned());
    lines.sort_unstable();
    lines.join("\n")
}

#[test]
fn calls_give_on_a_cluster_what_they_give_here() {
    let service = Service::start(|path, before| match (number(path) % 10, before) {
        (3, _) => (404, "{}".to_owned()),
        (4, 0) => (503, "later".to_owned()),
        _ => (200, format!("{{\"answer\": {}}}", number(path) * 2)),
    });
    let space = Scratch::new();
    let database = space.path("names.db");
    let script = "import sqlite3,sys; d=sqlite3.connect(sys.argv[1]); d.execute('create table t(k integer, v text)'); \
                  d.executemany('insert into t values(?,?)',[(at,'n%d'%at) for at in range(0,400,2)]); d.commit()";
    assert!(std::process::Command::new("python3").args(["-c", script]).arg(&database).status().unwrap().success());
    let connections = service.configuration("");
    space.write("rowmill.yaml", format!("{connections}  db: {{kind: sqlite, url: 'sqlite:{}'}}\n", database.display()));
    // Paths are relative to where the run was started, and whoever starts the script leaves its mark there.
    space.write(
        "bin/score.py",
        "import json, os, sys
open('parents', 'a').write('%d\\n' % os.getppid())
for line in sys.stdin:
    item = json.loads(line)
    row = {'score': item['item']['value'] * 1.5, 'city': sys.argv[1]}
    print(json.dumps({'id': item['id'], 'ok': row}), flush=True)
",
    );
    let flow = "rowmill: 1
name: everything
params: {city: {type: string, default: 'Bern ${x} \"q\"'}}
sources: {numbers: {range: {end: 400}}}
steps:
  some: {sql: 'SELECT value, value % 7 AS seven FROM numbers WHERE value <> 11'}
  called:
    http:
      from: some
      connection: api
      path: /item/{value}
      headers: {x-city: '${params.city}'}
      response: {answer: {json: /answer, type: int64}}
    retry: {attempts: 3, initial_backoff: 1ms}
    on_error: {default: {answer: -1}}
  found:
    lookup: {from: called, connection: db, query: 'SELECT v FROM t WHERE k = {value}', types: {v: string}, on_missing: 'null', matches: first}
  scored:
    command:
      from: found
      argv: [python3, ./bin/score.py, '${params.city}']
      reads: [value]
      output: {score: float64, city: string}
    batch: {rows: 32}
    effects: pure
    resources: {class: cpu}
  sums: {sql: 'SELECT seven, count(*) AS items, sum(answer) AS answers, count(v) AS names, sum(score) AS scores FROM scored GROUP BY seven'}
sinks:
  rows: {from: scored, path: out/rows.csv}
  sums: {from: sums, path: out/sums.csv}
"
    .replace("${x}", "$${x}");
    let cluster = Cluster::start_in(space, "cpu=1,io=2");
    cluster.compare(&flow, &["out/rows.csv", "out/sums.csv"]);
    assert_eq!(sorted(&cluster.scratch, "out/rows.csv").lines().count(), 400);
    // The last to start the script were executors, those of the class that was asked for.
    let parents: BTreeSet<String> = said(&cluster.scratch.path("parents")).lines().map(str::to_owned).collect();
    let executor = cluster.pid("cpu-1").as_raw_nonzero().to_string();
    assert!(parents.contains(&executor) && parents.len() == 2, "{parents:?} {executor}");
    let told = cluster.rowmill(&["explain", "flow.yaml", "--cluster", "local"]).ok();
    for part in ["calls on the cluster: class=io", "calls on the cluster: class=cpu"] {
        assert!(told.out.contains(part), "{}", told.out);
    }
    cluster.scratch.write("durable.yaml", flow.replace("name: everything", "name: everything\ndurable: true"));
    let told = cluster.rowmill(&["explain", "durable.yaml", "--cluster", "local"]).ok();
    assert!(told.out.contains("durable: rows are written down by the client"), "{}", told.out);
    assert!(told.out.contains("calls on the cluster: class=io"), "{}", told.out);
    // Durably too, and with every strategy; the order of rows is that of the input.
    for routing in ["least_connections", "weighted", "consistent_hash"] {
        let option = format!("cluster.routing={routing}");
        let expected = said(&cluster.scratch.path("out/rows.csv"));
        cluster.rowmill(&["run", "flow.yaml", "--cluster", "local", "--durable", "--option", &option]).ok();
        assert_eq!(sorted(&cluster.scratch, "out/rows.csv").lines().count(), expected.lines().count(), "{routing}");
    }
}

#[test]
fn what_may_be_repeated_ends_well_although_executors_die_and_stop() {
    let service = slow();
    let space = Scratch::new();
    space.write("rowmill.yaml", service.configuration(""));
    // One attempt: what was lost with an executor does not count as one.
    space.write("flow.yaml", calls("GET", "    retry: {attempts: 1}\n"));
    let cluster = Cluster::start_in(space, "io=2");
    for (round, (signal, more)) in [
        (Signal::KILL, &[][..]),
        (Signal::KILL, &["--durable"][..]),
        (Signal::STOP, &[][..]),
        (Signal::TERM, &["--durable"][..]),
    ]
    .into_iter()
    .enumerate()
    {
        cluster.rowmill(&["cluster", "up"]).ok();
        let before = service.seen().len();
        let victim = cluster.pid("io-1");
        let asked = || service.seen().len() - before;
        let report = run_and(&cluster, more, asked, 100, || kill_process(victim, signal).unwrap());
        let _ = kill_process(victim, Signal::CONT);
        assert_eq!(outcome(&report, "ok"), 600, "{round}: {report}");
        assert_eq!(sorted(&cluster.scratch, "out/rows.csv"), rows(0..600), "{round}");
        let again = asked() - 600;
        assert!(again <= if signal == Signal::TERM { 0 } else { 16 }, "{round}: {again} calls were made twice");
        await_end(victim, signal);
    }
}

/// Waits until a process that is to end has ended.
fn await_end(pid: Pid, signal: Signal) {
    let stat = format!("/proc/{}/stat", pid.as_raw_nonzero());
    let lives = || std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "));
    let deadline = Instant::now() + PATIENCE;
    while signal != Signal::STOP && lives() {
        assert!(Instant::now() < deadline, "the executor does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn what_happens_once_is_never_sent_twice() {
    let service = slow();
    let space = Scratch::new();
    space.write("rowmill.yaml", format!("{}state: {{chunk_rows: 200}}\n", service.configuration("")));
    space.write("flow.yaml", calls("POST", "    on_error: dead_letter\n"));
    let cluster = Cluster::start_in(space, "io=2");
    for (signal, more) in
        [(Signal::KILL, &[][..]), (Signal::KILL, &["--durable"][..]), (Signal::TERM, &["--durable"][..])]
    {
        cluster.rowmill(&["cluster", "up"]).ok();
        let before = service.seen().len();
        let victim = cluster.pid("io-2");
        let asked = || service.seen().len() - before;
        let report = run_and(&cluster, more, asked, 150, || kill_process(victim, signal).unwrap());
        await_end(victim, signal);
        let seen = service.seen()[before..].to_vec();
        let distinct: BTreeSet<&String> = seen.iter().collect();
        assert_eq!(distinct.len(), seen.len(), "a call was made twice");
        let unknown = outcome(&report, "unknown");
        assert_eq!(outcome(&report, "ok") + unknown, 600, "{report}");
        match signal {
            // Who leaves in good order finishes what it has.
            Signal::TERM => assert_eq!(unknown, 0, "{report}"),
            _ => assert!((1..=16).contains(&unknown), "{report}"),
        }
        assert_eq!(sorted(&cluster.scratch, "out/rows.csv").lines().count() as u64, 601 - unknown);
        if !more.is_empty() {
            let items = cluster.rowmill(&["items", "last", "--status", "unknown", "--format", "csv"]);
            assert_eq!(items.rows().len() as u64, unknown, "{}{}", items.out, items.err);
        }
    }
}

#[test]
fn a_durable_run_goes_on_on_the_cluster_after_its_client_died() {
    let service = slow();
    let space = Scratch::new();
    space.write("rowmill.yaml", format!("{}state: {{chunk_rows: 100}}\n", service.configuration("")));
    space.write("flow.yaml", calls("POST", "    on_error: dead_letter\n"));
    let cluster = Cluster::start_in(space, "io=1");
    let mut run = cluster.command();
    run.args(["run", "flow.yaml", "--cluster", "local", "--durable"]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut run = run.spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while service.seen().len() < 150 {
        assert!(Instant::now() < deadline && run.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(2));
    }
    run.kill().unwrap();
    run.wait().unwrap();
    let done = cluster.rowmill(&["resume", "last", "--steal", "--cluster", "local", "--output", "json"]);
    assert!(matches!(done.code, 0 | 3), "{}{}", done.out, done.err);
    let report: Value = serde_json::from_str(&done.out).unwrap();
    let seen = service.seen();
    let distinct: BTreeSet<&String> = seen.iter().collect();
    assert_eq!(distinct.len(), seen.len(), "a call was made twice");
    assert_eq!(outcome(&report, "ok") + outcome(&report, "unknown"), 600, "{report}");
    assert!(outcome(&report, "unknown") <= 16, "{report}");
}

#[test]
fn limits_of_a_connection_hold_for_all_executors_together() {
    let at_once = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let (now, top) = (Arc::clone(&at_once), Arc::clone(&most));
    let service = Service::start(move |path, _| {
        top.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(5));
        now.fetch_sub(1, Ordering::SeqCst);
        (200, format!("{{\"answer\": {}}}", number(path) * 2))
    });
    let space = Scratch::new();
    space.write("rowmill.yaml", service.configuration(", limits: {max_in_flight: 3}"));
    space.write("flow.yaml", calls("GET", ""));
    let cluster = Cluster::start_in(space, "io=2");
    cluster.rowmill(&["run", "flow.yaml", "--cluster", "local"]).ok();
    assert_eq!(sorted(&cluster.scratch, "out/rows.csv"), rows(0..600));
    assert!(most.load(Ordering::SeqCst) <= 3, "{most:?} at once");
}

#[test]
fn an_executor_that_lacks_what_a_step_needs_is_named_and_secrets_stay_where_they_are() {
    const SECRET: &str = "a-secret-of-the-executor-8514";
    let service = Service::start(|path, _| match number(path) {
        // Some services repeat what they were shown.
        7 => (400, format!("{{\"error\": \"no item for {SECRET}\"}}")),
        other => (200, format!("{{\"answer\": {}}}", other * 2)),
    });
    let cluster = Cluster::start("io=1");
    // The executor read its configuration when there was none yet.
    cluster.scratch.write("flow.yaml", calls("GET", "    on_error: dead_letter\n"));
    let auth = ", auth: {bearer: {token: 'env:API_TOKEN'}}";
    cluster.scratch.write("rowmill.yaml", service.configuration(auth));
    let run = ["run", "flow.yaml", "--cluster", "local"];
    cluster.rowmill(&run).fails(75, &["RM0711", "step `called`", "executor io.", "there is no connection `api`"]);
    assert!(service.seen().is_empty());
    // Now it knows the connection and not the secret; the client has neither need nor use of it.
    kill_process(cluster.pid("io-1"), Signal::KILL).unwrap();
    await_end(cluster.pid("io-1"), Signal::KILL);
    cluster.rowmill(&["cluster", "up"]).ok();
    cluster.rowmill(&run).fails(75, &["RM0711", "step `called`", "executor io.", "`API_TOKEN` is not set"]);
    assert!(service.seen().is_empty());
    kill_process(cluster.pid("io-1"), Signal::KILL).unwrap();
    await_end(cluster.pid("io-1"), Signal::KILL);
    let up = cluster.command().env("API_TOKEN", SECRET).args(["cluster", "up"]).stdout(Stdio::null()).status().unwrap();
    assert!(up.success());
    let done = cluster.rowmill(&[&run[..], &["--durable", "--option", "log.level=trace"]].concat());
    assert_eq!(done.code, 3, "{}{}", done.out, done.err);
    assert!(!done.out.contains(SECRET) && !done.err.contains(SECRET));
    assert!(service.shown().iter().any(|line| line.contains(&format!("Bearer {SECRET}"))));
    let items = cluster.rowmill(&["items", "last", "--status", "dead_lettered", "--format", "csv"]).ok();
    assert!(items.out.contains("no item for") && !items.out.contains(SECRET), "{}", items.out);
    // Nothing that a run keeps holds it.
    let mut folders = vec![cluster.scratch.path("state")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(bytes) = std::fs::read(&path) {
                let found = bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes());
                assert!(!found, "{}", path.display());
            }
        }
    }
}

#[test]
fn strangers_and_classes_that_nobody_serves_are_told_so() {
    let service = slow();
    let space = Scratch::new();
    space.write("rowmill.yaml", service.configuration(""));
    space.write("flow.yaml", calls("GET", ""));
    space.write("token", "a-token-of-the-tests-0123456789");
    space.write("other", "another-token-0123456789abcdef");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let mut scheduler = space.command();
    scheduler.args(["scheduler", "--listen", &address, "--queue-timeout-s", "2", "--token-file", "token"]);
    let mut scheduler = scheduler.stdout(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while std::net::TcpStream::connect(&address).is_err() {
        assert!(Instant::now() < deadline, "the scheduler does not come up");
        std::thread::sleep(Duration::from_millis(20));
    }
    let run = |token: &str| space.rowmill(&["run", "flow.yaml", "--cluster", &address, "--token-file", token]);
    let unserved = run("token");
    let stranger = run("other");
    scheduler.kill().unwrap();
    scheduler.wait().unwrap();
    unserved.fails(75, &["RM0707", "step `called`", "class io", "2 s"]);
    stranger.fails(75, &["RM0708", "the cluster token is missing or wrong"]);
    assert!(service.seen().is_empty() && !space.path("out/rows.csv").exists());
}
