//! Durable runs whose SQL runs on a cluster: what they write, where it was made, and how they go on when a process dies.

use std::collections::BTreeSet;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use serde_json::Value;

use crate::cluster::{Cluster, sorted};
use crate::service::{Service, number};
use crate::support::{Answer, Scratch};

const PATIENCE: Duration = Duration::from_secs(60);

/// SQL row by row, calls, SQL row by row, calls; and a wide step beside them.
const FLOW: &str = "\
rowmill: 1
name: ordered
durable: true
sources:
  orders: {path: orders.csv}
  customers: {path: customers.jsonl}
steps:
  large: {sql: 'SELECT id, customer, amount * 2 AS double FROM orders WHERE id % 3 <> 0'}
  priced:
    http: {from: large, connection: api, path: '/price/{id}', response: {price: {json: /answer, type: int64}}}
    in_flight: 8
  some: {sql: 'SELECT *, price + 1 AS next FROM priced WHERE price % 5 <> 0'}
  rated:
    http: {from: some, connection: api, path: '/rate/{id}', response: {rate: {json: /answer, type: int64}}}
    in_flight: 8
  totals:
    sql: |
      SELECT c.country, count(*) AS orders, sum(o.id) AS ids
      FROM orders o JOIN customers c ON o.customer = c.customer GROUP BY c.country
  answered:
    http: {from: totals, connection: api, path: '/total/{orders}', response: {answer: {json: /answer, type: int64}}}
sinks:
  rows: {from: rated, path: out/rows.csv}
  totals: {from: answered, path: out/totals.csv}
";

/// 1,200 orders, of which 800 are priced and 640 rated.
fn write_sources(scratch: &Scratch) {
    let mut text = String::from("id,customer,amount\n");
    for id in 0..1_200 {
        text += &format!("{id},c{},{}\n", id % 97, id % 1_000);
    }
    scratch.write("orders.csv", text);
    let names: String =
        (0..90).map(|at| format!("{{\"customer\": \"c{at}\", \"country\": \"l{}\"}}\n", at % 7)).collect();
    scratch.write("customers.jsonl", names);
}

/// A service that takes a while for each answer.
fn service() -> Service {
    Service::start(|path, _| {
        std::thread::sleep(Duration::from_millis(10));
        (200, format!("{{\"answer\": {}}}", number(path) * 2))
    })
}

fn space(service: &Service, flow: &str) -> Scratch {
    let space = Scratch::new();
    space.write("rowmill.yaml", format!("{}state: {{chunk_rows: 50}}\n", service.configuration("")));
    space.write("flow.yaml", flow);
    write_sources(&space);
    space
}

fn text(scratch: &Scratch, name: &str) -> String {
    std::fs::read_to_string(scratch.path(name)).unwrap()
}

/// Begins a run in a process of its own.
fn begin(cluster: &Cluster, more: &[&str]) -> Child {
    let mut command = cluster.command();
    command.args(["run", "flow.yaml"]).args(more);
    command.stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null()).spawn().unwrap()
}

#[track_caller]
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Kills a run when the service was asked so often since.
fn kill_after(mut run: Child, service: &Service, asked: usize) {
    let before = service.seen().len();
    wait_until("the run does not ask so often", || {
        assert!(run.try_wait().unwrap().is_none(), "it ended before it was killed");
        service.seen().len() >= before + asked
    });
    run.kill().unwrap();
    run.wait().unwrap();
}

fn json(answer: &Answer) -> Value {
    serde_json::from_str(&answer.out).unwrap_or_else(|_| panic!("{}{}", answer.out, answer.err))
}

/// The processes that a stage ran in.
fn processes(shown: &Value, stage: &str) -> BTreeSet<String> {
    let places = shown["places"].as_array().unwrap().iter();
    places
        .filter(|place| place["stage"] == stage)
        .map(|place| place["process"].as_str().unwrap().split('.').next().unwrap().to_owned())
        .collect()
}

#[test]
fn a_durable_run_is_made_on_the_cluster_and_says_where() {
    let service = service();
    let space = space(&service, FLOW);
    let cluster = Cluster::start_in(space, "cpu=2,io=1");
    cluster.rowmill(&["run", "flow.yaml"]).ok();
    let (rows, totals) = (text(&cluster.scratch, "out/rows.csv"), sorted(&cluster.scratch, "out/totals.csv"));
    assert_eq!(rows.lines().count(), 641);
    // Of a run in one process, everything is the client's.
    let here = json(&cluster.rowmill(&["show", "last", "--output", "json"]).ok());
    let clients = here["places"].as_array().unwrap().iter().all(|place| place["process"] == "client");
    assert!(clients && !here["places"].as_array().unwrap().is_empty(), "{here}");

    std::fs::remove_dir_all(cluster.scratch.path("out")).unwrap();
    let done = json(&cluster.rowmill(&["run", "flow.yaml", "--cluster", "local", "--output", "json"]).ok());
    assert_eq!(text(&cluster.scratch, "out/rows.csv"), rows, "made row by row: the same bytes");
    assert_eq!(sorted(&cluster.scratch, "out/totals.csv"), totals);
    let shown = json(&cluster.rowmill(&["show", "last", "--output", "json"]).ok());
    assert_eq!(shown["places"], done["places"]);
    let of = |stage: &str| processes(&shown, stage).into_iter().collect::<Vec<_>>();
    // An executor of class cpu serves memory and io, too.
    let cpu = |names: &[String]| names.iter().all(|name| name.starts_with("cpu"));
    assert!(!of("priced.input").is_empty() && cpu(&of("priced.input")), "{shown}");
    assert!(cpu(&of("answered.input")), "{shown}");
    assert!(of("priced").iter().all(|name| name.contains("io")) && !of("priced").is_empty(), "{shown}");
    assert_eq!(of("rated.input"), ["client"], "{shown}");
    assert!(of("sinks").contains(&"client".to_owned()), "{shown}");
    let items: u64 = shown["places"].as_array().unwrap().iter().filter_map(|place| place["items"].as_u64()).sum();
    assert_eq!(items, 800 + 640 + 7, "{shown}");
    let table = cluster.rowmill(&["show", "last"]).ok().out;
    assert!(table.contains("ran in") && table.contains("priced.input"), "{table}");

    // Before the run, `explain` says the same.
    let told = cluster.rowmill(&["explain", "flow.yaml", "--cluster", "local"]).ok().out;
    for part in ["ClusterExec: class=cpu", "calls on the cluster: class=io", "runs in the client: its input is there"] {
        assert!(told.contains(part), "no {part:?} in {told}");
    }
    // A run that is not durable tells where it ran when it is over.
    cluster.scratch.write("flow.yaml", FLOW.replace("durable: true\n", ""));
    let plain = json(&cluster.rowmill(&["run", "flow.yaml", "--cluster", "local", "--output", "json"]).ok());
    assert!(processes(&plain, "priced").iter().all(|name| name.contains("io")), "{plain}");
    for stage in ["priced.input", "answered.input"] {
        let names = processes(&plain, stage);
        assert!(!names.is_empty() && names.iter().all(|name| name.starts_with("cpu")), "{stage}: {plain}");
    }
}

#[test]
fn a_change_of_class_that_would_mix_the_rows_of_a_durable_run_stays_in_the_client() {
    let service = service();
    // Two steps of different classes, both row by row, over a file that is read in several parts.
    let flow = "\
rowmill: 1
name: classes
durable: true
sources: {rows: {path: 'parts/*.csv'}}
steps:
  some: {sql: 'SELECT id, id % 7 AS seven FROM rows WHERE id % 3 <> 0'}
  more: {sql: 'SELECT *, seven + 1 AS eight FROM some WHERE seven <> 3', resources: {class: memory}}
  other: {sql: 'SELECT id % 5 AS five, id FROM rows WHERE id % 2 = 0'}
  sums: {sql: 'SELECT five, sum(id) AS ids FROM other GROUP BY five', resources: {class: memory}}
  called: {http: {from: more, connection: api, path: '/item/{id}', response: {answer: {json: /answer, type: int64}}}}
sinks:
  rows: {from: called, path: out/rows.csv}
  sums: {from: sums, path: out/sums.csv}
";
    let space = space(&service, flow);
    for part in 0..4 {
        let rows: String = (0..100).map(|row| format!("{}\n", part * 100 + row)).collect();
        space.write(&format!("parts/{part}.csv"), format!("id\n{rows}"));
    }
    let cluster = Cluster::start_in(space, "cpu=2");
    let partitions = ["--option", "execution.partitions=4"];
    let explain = |durable: bool| {
        cluster.scratch.write("flow.yaml", if durable { flow.to_owned() } else { flow.replace("durable: true\n", "") });
        cluster.rowmill(&[&["explain", "flow.yaml", "--cluster", "local"], &partitions[..]].concat()).ok().out
    };
    let (plain, durable) = (explain(false), explain(true));
    assert!(plain.contains("class=memory"), "{plain}");
    assert!(durable.contains("memory: runs in the client: a change of class would mix rows"), "{durable}");
    // What is wide has no order to keep.
    assert!(durable.contains("ClusterExec: class=memory") && durable.contains("ClusterExec: class=cpu"), "{durable}");
    cluster.rowmill(&[&["run", "flow.yaml"], &partitions[..]].concat()).ok();
    let rows = text(&cluster.scratch, "out/rows.csv");
    assert_eq!(rows.lines().count(), 1 + (0..400).filter(|id| id % 3 != 0 && id % 7 != 3).count());
    cluster.rowmill(&[&["run", "flow.yaml", "--cluster", "local"], &partitions[..]].concat()).ok();
    assert_eq!(text(&cluster.scratch, "out/rows.csv"), rows, "four parts of a source, in their order");
    assert_eq!(sorted(&cluster.scratch, "out/sums.csv").lines().count(), 6);
}

/// Killed in its first step and in its second, and gone on with on the cluster or without it: the rows are those of a run
/// that nobody disturbed, in the same order.
#[test]
fn a_durable_run_whose_client_is_killed_goes_on_with_a_cluster_and_without() {
    let service = service();
    let cluster = Cluster::start_in(space(&service, FLOW), "cpu=1,io=1");
    cluster.rowmill(&["run", "flow.yaml"]).ok();
    let (rows, totals) = (text(&cluster.scratch, "out/rows.csv"), sorted(&cluster.scratch, "out/totals.csv"));
    let there = &["--cluster", "local"][..];
    let here = &[][..];
    for (begun, resumed, asked) in [(there, there, 150), (there, here, 150), (here, there, 700), (there, here, 1_100)] {
        std::fs::remove_dir_all(cluster.scratch.path("out")).unwrap();
        kill_after(begin(&cluster, begun), &service, asked);
        assert!(!cluster.scratch.path("out/rows.csv").exists(), "nothing was published");
        cluster.rowmill(&[&["resume", "last", "--steal"], resumed].concat()).ok();
        assert_eq!(text(&cluster.scratch, "out/rows.csv"), rows, "{begun:?} {resumed:?} {asked}");
        assert_eq!(sorted(&cluster.scratch, "out/totals.csv"), totals, "{begun:?} {resumed:?} {asked}");
    }
}

#[test]
fn an_executor_that_dies_under_the_sql_of_a_durable_run_costs_time_only() {
    let service = service();
    // Some seconds of work, all of it on executors of class cpu.
    let slow = FLOW.replace(
        "FROM orders o JOIN customers c ON o.customer = c.customer GROUP BY",
        "FROM orders o JOIN orders p ON o.id % 20 = p.id % 20 JOIN orders q ON q.id % 10 = p.id % 10 \
         JOIN customers c ON o.customer = c.customer GROUP BY",
    );
    let slow = slow.replace("count(*) AS orders", "count(DISTINCT o.id) AS orders");
    let cluster = Cluster::start_in(space(&service, &slow), "cpu=2,io=1");
    cluster.rowmill(&["run", "flow.yaml"]).ok();
    let (rows, totals) = (text(&cluster.scratch, "out/rows.csv"), sorted(&cluster.scratch, "out/totals.csv"));
    std::fs::remove_dir_all(cluster.scratch.path("out")).unwrap();
    let victim = cluster.pid("cpu-1");
    let mut run = begin(&cluster, &["--cluster", "local"]);
    let status = || json(&cluster.rowmill(&["cluster", "status", "--output", "json"]));
    wait_until("no task of the wide step is seen on a cpu executor", || {
        assert!(run.try_wait().unwrap().is_none(), "it ended before an executor was killed");
        let status = status();
        let at_work = |job: &Value| job["name"].as_str().is_some_and(|name| name.contains("answered"));
        status["jobs"].as_array().is_some_and(|jobs| jobs.iter().any(at_work))
    });
    kill_process(victim, Signal::KILL).unwrap();
    assert!(run.wait().unwrap().success());
    assert_eq!(text(&cluster.scratch, "out/rows.csv"), rows);
    assert_eq!(sorted(&cluster.scratch, "out/totals.csv"), totals);
}

/// Where a step's rows are made one by one of another's, its calls begin before the other has made all of its own; and what
/// is killed in the middle goes on without a call that is made twice.
#[test]
fn chunks_flow_from_one_step_of_calls_to_the_next() {
    let service = service();
    let flow = FLOW.replace("'/price/{id}'", "'/price/{id}', method: POST");
    let flow = flow.replace("'/rate/{id}'", "'/rate/{id}', method: POST");
    let flow = flow.replace("in_flight: 8", "in_flight: 8\n    on_error: dead_letter");
    let space = space(&service, &flow);
    let state = |command: &mut std::process::Command| {
        command.env("ROWMILL_STATE__DIR", space.path("state"));
    };
    let rowmill = |arguments: &[&str]| -> Answer {
        let mut command = space.command();
        state(&mut command);
        command.args(arguments).output().unwrap().into()
    };
    rowmill(&["run", "flow.yaml"]).ok();
    let rows = text(&space, "out/rows.csv");
    let seen: Vec<String> = service.seen();
    let first = seen.iter().position(|line| line.contains("/rate/")).unwrap();
    let last = seen.iter().rposition(|line| line.contains("/price/")).unwrap();
    assert!(first < last / 2, "the second step began at {first}, the first ended at {last}");

    std::fs::remove_dir_all(space.path("out")).unwrap();
    let mut command = space.command();
    state(&mut command);
    command.args(["run", "flow.yaml"]).stdout(Stdio::null()).stderr(Stdio::null());
    let before = seen.len();
    kill_after(command.spawn().unwrap(), &service, 500);
    let done = rowmill(&["resume", "last", "--steal", "--output", "json"]);
    assert!(matches!(done.code, 0 | 3), "{}{}", done.out, done.err);
    let report = json(&done);
    let calls: Vec<String> = service.seen().split_off(before);
    let once: Vec<&String> = calls.iter().filter(|line| line.starts_with("POST")).collect();
    assert_eq!(once.iter().collect::<BTreeSet<_>>().len(), once.len(), "a call was made twice");
    let unknown = |at: usize| report["items"][at]["outcomes"]["unknown"].as_u64().unwrap_or(0);
    assert!(unknown(0) <= 16 && unknown(1) <= 16, "{report}");
    // What came through is what comes through undisturbed, in the same order.
    let got = text(&space, "out/rows.csv");
    let mut all = rows.lines();
    assert!(got.lines().all(|line| all.any(|other| other == line)), "rows in another order, or other rows");
    assert!(got.lines().count() as u64 + unknown(0) + unknown(1) >= rows.lines().count() as u64);
}
