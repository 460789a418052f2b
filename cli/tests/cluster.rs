//! `rowmill cluster`: processes on this machine, workflows on them, and what goes wrong.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Answer, Scratch};

/// A cluster of its own that is stopped when the test ends.
pub(crate) struct Cluster {
    pub(crate) scratch: Scratch,
}

impl Cluster {
    pub(crate) fn start(executors: &str) -> Cluster {
        Cluster::start_in(Scratch::new(), executors)
    }

    /// Started in a folder that holds a configuration.
    pub(crate) fn start_in(scratch: Scratch, executors: &str) -> Cluster {
        let cluster = Cluster { scratch };
        cluster.rowmill(&["cluster", "up", "--executors", executors, "--slots", "2", "--port", "0"]).ok();
        cluster
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = self.scratch.command();
        command.env("ROWMILL_STATE__DIR", self.scratch.path("state"));
        command
    }

    #[track_caller]
    pub(crate) fn rowmill(&self, arguments: &[&str]) -> Answer {
        // A file takes what is said: a cluster's processes may outlive the command that started them.
        let (out, err) = (self.scratch.path("said.out"), self.scratch.path("said.err"));
        let mut command = self.command();
        command.args(arguments).stdin(Stdio::null());
        command.stdout(std::fs::File::create(&out).unwrap()).stderr(std::fs::File::create(&err).unwrap());
        let status = command.status().unwrap();
        Answer {
            code: status.code().unwrap_or(-1),
            out: std::fs::read_to_string(out).unwrap(),
            err: std::fs::read_to_string(err).unwrap(),
        }
    }

    /// The record of the processes.
    pub(crate) fn record(&self) -> serde_json::Value {
        let text = std::fs::read_to_string(self.scratch.path("state/cluster/cluster.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    pub(crate) fn token(&self) -> String {
        std::fs::read_to_string(self.scratch.path("state/cluster/token")).unwrap().trim().to_owned()
    }

    pub(crate) fn pid(&self, name: &str) -> rustix::process::Pid {
        let record = self.record();
        let processes = record["processes"].as_array().unwrap();
        let process = processes.iter().find(|process| process["name"] == name).unwrap();
        rustix::process::Pid::from_raw(i32::try_from(process["pid"].as_i64().unwrap()).unwrap()).unwrap()
    }

    pub(crate) fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.rowmill(&["cluster", "status", "--output", "json"]).ok().out).unwrap()
    }

    /// Runs `flow.yaml` here and on the cluster; both must say and write the same.
    #[track_caller]
    pub(crate) fn compare(&self, flow: &str, results: &[&str]) {
        self.scratch.write("flow.yaml", flow);
        let here: serde_json::Value =
            serde_json::from_str(&self.rowmill(&["run", "flow.yaml", "--output", "json"]).ok().out).unwrap();
        let expected: Vec<String> = results.iter().map(|name| sorted(&self.scratch, name)).collect();
        std::fs::remove_dir_all(self.scratch.path("out")).unwrap();
        let there = self.rowmill(&["run", "flow.yaml", "--cluster", "local", "--output", "json"]).ok();
        let there: serde_json::Value = serde_json::from_str(&there.out).unwrap();
        for (name, expected) in results.iter().zip(expected) {
            assert_eq!(sorted(&self.scratch, name), expected, "{name}");
        }
        let rows = |report: &serde_json::Value| -> Vec<(String, u64)> {
            let steps = report["steps"].as_array().unwrap().iter();
            steps.map(|step| (step["name"].to_string(), step["rows"].as_u64().unwrap())).collect()
        };
        assert_eq!(rows(&there), rows(&here), "steps count the same");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.rowmill(&["cluster", "down", "--grace-s", "1"]);
    }
}

/// The lines of a result, sorted.
pub(crate) fn sorted(scratch: &Scratch, name: &str) -> String {
    let text = std::fs::read_to_string(scratch.path(name)).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}

pub(crate) fn orders(scratch: &Scratch) {
    let mut text = String::from("id,customer,amount,day\n");
    for id in 0..5_000 {
        text += &format!("{id},c{},{}.25,2026-01-{:02}\n", id % 97, id % 1_000, id % 28 + 1);
    }
    scratch.write("orders.csv", text);
    let names: String =
        (0..90).map(|at| format!("{{\"customer\": \"c{at}\", \"country\": \"l{}\"}}\n", at % 7)).collect();
    scratch.write("customers.jsonl", names);
}

pub(crate) const FLOW: &str = "\
rowmill: 1
name: countries
sources:
  orders: {path: orders.csv}
  customers: {path: customers.jsonl}
steps:
  large: {sql: \"SELECT * FROM orders WHERE amount > 100\"}
  joined: {sql: \"SELECT o.*, c.country FROM large o LEFT JOIN customers c ON o.customer = c.customer\"}
  totals:
    sql: |
      SELECT country, count(*) AS orders, sum(amount) AS amount, max(day) AS last
      FROM joined GROUP BY country
  ranked: {sql: \"SELECT *, rank() OVER (ORDER BY amount DESC) AS place FROM totals ORDER BY place\"}
  rare:
    sql: SELECT id, amount FROM orders WHERE customer NOT IN (SELECT customer FROM customers) ORDER BY id LIMIT 20
sinks:
  ranked: {from: ranked, path: out/ranked.csv}
  rare: {from: rare, path: out/rare.csv}
";

#[test]
fn workflows_give_on_a_cluster_what_they_give_here() {
    let cluster = Cluster::start("cpu=2,io=1");
    orders(&cluster.scratch);
    let status = cluster.status();
    assert_eq!(status["executors"].as_array().unwrap().len(), 3, "{status}");
    cluster.compare(FLOW, &["out/ranked.csv", "out/rare.csv"]);
    // A class of its own, a step that is read twice, and what a cluster does not run.
    let flow = FLOW.replace("  totals:\n", "  totals:\n    resources: {class: io, memory: 64MB}\n").replace(
        "  rare:\n    sql: SELECT id,",
        "  again: {sql: \"SELECT count(*) AS n, random() < 2 AS yes FROM large\"}\n  rare:\n    sql: SELECT id,",
    ) + "  again: {from: again, path: out/again.csv}\n";
    cluster.compare(&flow, &["out/ranked.csv", "out/rare.csv", "out/again.csv"]);
    // `explain` says what runs there.
    cluster
        .scratch
        .write("classes.yaml", FLOW.replace("  totals:\n", "  totals:\n    resources: {class: io, memory: 64MB}\n"));
    let told = cluster.rowmill(&["explain", "classes.yaml", "--cluster", "local"]).ok();
    assert!(
        told.out.contains("ClusterExec: class=io, memory=64000000 bytes")
            && told.out.contains("ClusterExec: class=cpu"),
        "{}",
        told.out
    );
    // An error of the data is told as it is here.
    let broken = FLOW.replace("SELECT * FROM orders WHERE amount > 100", "SELECT *, 1 / (id - 4000) AS x FROM orders");
    let broken = broken.replace("o.*, c.country", "o.*, c.country, o.x AS y");
    cluster.scratch.write("broken.yaml", broken.replace("max(day) AS last", "max(day) AS last, sum(y) AS y"));
    let here = cluster.rowmill(&["run", "broken.yaml"]).fails(1, &["RM0602", "step `large`"]);
    let there = cluster.rowmill(&["run", "broken.yaml", "--cluster", "local"]).fails(1, &["RM0602", "step `large`"]);
    assert_eq!(there.err, here.err);
    // Nothing is left on the executors, and no slot is taken.
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let status = cluster.status();
        let busy: u64 = status["executors"].as_array().unwrap().iter().map(|one| one["busy"].as_u64().unwrap()).sum();
        if busy == 0 && status["jobs"].as_array().unwrap().is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "{status}");
        std::thread::sleep(Duration::from_millis(50));
    }
    cluster.rowmill(&["cluster", "down"]).ok();
    cluster.rowmill(&["run", "flow.yaml", "--cluster", "local"]).fails(2, &["there is no cluster on this machine"]);
}

/// The workflow with some seconds of work.
pub(crate) fn long_flow() -> String {
    FLOW.replace(
        "SELECT country, count(*) AS orders, sum(amount) AS amount, max(day) AS last\n      FROM joined GROUP BY country",
        "SELECT a.country, count(*) AS orders, sum(a.amount + b.amount) AS amount, max(a.day) AS last\n      \
         FROM joined a JOIN joined b ON a.id % 10 = b.id % 10 JOIN orders c ON c.id % 100 = a.id % 100\n      \
         GROUP BY a.country",
    )
}

#[test]
fn a_scheduler_that_dies_under_a_run_costs_time_only() {
    let cluster = Cluster::start("cpu=1");
    orders(&cluster.scratch);
    cluster.scratch.write("flow.yaml", long_flow());
    let mut run = cluster.command().args(["run", "flow.yaml", "--cluster", "local"]).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while cluster.status()["jobs"].as_array().unwrap().is_empty() {
        assert!(Instant::now() < deadline && run.try_wait().unwrap().is_none(), "no job is seen");
    }
    rustix::process::kill_process(cluster.pid("scheduler"), rustix::process::Signal::KILL).unwrap();
    let dead = cluster.rowmill(&["cluster", "status"]);
    assert_eq!(dead.code, 75, "{}{}", dead.out, dead.err);
    cluster.rowmill(&["cluster", "up", "--executors", "cpu=1"]).ok();
    assert!(run.wait().unwrap().success());
    let there = sorted(&cluster.scratch, "out/ranked.csv");
    cluster.rowmill(&["run", "flow.yaml"]).ok();
    assert_eq!(sorted(&cluster.scratch, "out/ranked.csv"), there);
}

#[test]
fn a_cluster_refuses_strangers_and_says_why_it_does_not_come_up() {
    let cluster = Cluster::start("io=1");
    orders(&cluster.scratch);
    cluster.scratch.write("flow.yaml", FLOW);
    let address = cluster.record()["address"].as_str().unwrap().to_owned();
    cluster.scratch.write("other", "another-token-0123456789abcdef");
    let run = |arguments: &[&str]| {
        cluster.rowmill(&[&["run", "flow.yaml", "--cluster", address.as_str()], arguments].concat())
    };
    run(&["--token-file", "other"]).fails(75, &["RM0708", "the cluster token is missing or wrong"]);
    run(&[]).fails(2, &["the cluster's token is missing"]);
    cluster.rowmill(&["run", "flow.yaml", "--cluster", "a b"]).fails(2, &[]);
    cluster.rowmill(&["cluster", "up", "--executors", "GPU=1"]).fails(2, &["`GPU` is not a class"]);
    let record = std::fs::read_to_string(cluster.scratch.path("state/cluster/cluster.json")).unwrap();
    assert!(!record.contains(&cluster.token()));
    // A port that somebody has.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    cluster.rowmill(&["cluster", "up", "--port", &port, "--dir", "elsewhere"]).fails(75, &["cannot be used"]);
}

#[test]
fn a_cluster_on_this_machine_is_mended_and_watched() {
    let cluster = Cluster::start("cpu=1,io=1");
    // What has ended is started again, and nothing has to be said of it.
    let first = cluster.pid("io-1");
    rustix::process::kill_process(first, rustix::process::Signal::KILL).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while std::fs::read_to_string(format!("/proc/{}/stat", first.as_raw_pid())).is_ok_and(|stat| !stat.contains(") Z "))
    {
        assert!(Instant::now() < deadline, "the executor does not die");
        std::thread::sleep(Duration::from_millis(10));
    }
    cluster.rowmill(&["cluster", "up"]).ok();
    assert_ne!(cluster.pid("io-1"), first);
    // Folders of others are not taken, so that `down` never clears one.
    cluster.scratch.write("mine/notes.txt", "years of work");
    cluster.rowmill(&["cluster", "up", "--dir", "mine", "--port", "0"]).fails(75, &["RM0703", "holds other files"]);
    assert_eq!(cluster.scratch.names("mine"), ["notes.txt"]);
    // Two looks, and it ends when it is told to.
    let mut top = cluster.command().args(["top"]).stdout(Stdio::piped()).spawn().unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(top.stdout.take().unwrap()));
    let looks = lines.map_while(Result::ok).filter(|line| line.contains("of 4 slots busy, 0 jobs")).take(2).count();
    assert_eq!(looks, 2);
    let pid = rustix::process::Pid::from_raw(i32::try_from(top.id()).unwrap()).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    assert_eq!(top.wait().unwrap().code(), Some(0));
}

/// A certificate of the tests.
pub(crate) fn certificate(name: &str) -> String {
    crate::support::checkout().join("testdata/tls").join(format!("{name}.pem")).display().to_string()
}

#[test]
fn a_cluster_speaks_tls_and_has_queues_where_it_is_configured() {
    let cluster = Cluster { scratch: Scratch::new() };
    let tls = |ca: &str, identity: &str| {
        format!(
            "  tls:\n    ca: {}\n    certificate: {}\n    key: {}\n",
            certificate(ca),
            certificate(identity),
            certificate(&format!("{identity}-key"))
        )
    };
    let queues = "  queues:\n    nightly: {priority: 1, max_running: 1, timeout: 5s}\n  quotas:\n    acme: {jobs: 3}\n";
    cluster.scratch.write("rowmill.yaml", format!("cluster:\n{}{queues}", tls("ca", "member")));
    cluster.scratch.write("submitters", "a-token-that-submits-0123456789 acme\n");
    let submitters = cluster.scratch.path("submitters").display().to_string();
    let submitters = format!("cluster.submitters=file:{submitters}");
    let up = ["cluster", "up", "--executors", "cpu=2", "--slots", "2", "--port", "0", "--option", &submitters];
    cluster.rowmill(&up).ok();
    orders(&cluster.scratch);
    // Files of two executors, and a queue of its own: all of it over TLS.
    cluster.compare(FLOW, &["out/ranked.csv", "out/rare.csv"]);
    cluster.rowmill(&["run", "flow.yaml", "--cluster", "local", "--queue", "nightly"]).ok();
    let unknown = cluster.rowmill(&["run", "flow.yaml", "--cluster", "local", "--queue", "weekly"]);
    unknown.fails(75, &["RM0723", "no queue `weekly`; it has default, nightly"]);
    cluster.rowmill(&["run", "flow.yaml", "--queue", "nightly"]).fails(2, &["--cluster"]);
    let status = cluster.status();
    let names: Vec<&str> =
        status["queues"].as_array().unwrap().iter().map(|own| own["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["default", "nightly"], "{status}");
    cluster.rowmill(&["cluster", "status"]).ok().out.find("queue nightly (priority 1)").unwrap();
    // A token that submits runs workflows, for its organisation alone.
    let address = cluster.record()["address"].as_str().unwrap().to_owned();
    cluster.scratch.write("token", "a-token-that-submits-0123456789");
    let by_token = |more: &[&str]| {
        let own = ["run", "flow.yaml", "--cluster", address.as_str(), "--token-file", "token"];
        cluster.rowmill(&[&own, more].concat())
    };
    by_token(&[]).ok();
    by_token(&["--option", "cluster.organisation=globex"]).fails(75, &["RM0723", "submits for acme"]);
    // Other certificates, none, and plain text.
    for (ca, identity) in [("other-ca", "member"), ("ca", "stranger"), ("ca", "expired")] {
        cluster.scratch.write("other.yaml", format!("cluster:\n{}", tls(ca, identity)));
        by_token(&["--config", "other.yaml"]).fails(75, &["RM0708", "no TLS"]);
    }
    cluster.scratch.write("other.yaml", format!("cluster:\n  tls: {{ca: {}}}\n", certificate("ca")));
    by_token(&["--config", "other.yaml"]).fails(75, &["RM0708"]);
    // A client that is killed gives its place back: the queue has one.
    cluster.scratch.write(
        "long.yaml",
        "rowmill: 1\nname: long\nsources:\n  orders: {path: orders.csv}\nsteps:\n  long:\n    sql: |\n      \
         SELECT count(*) AS n, sum(a.amount + b.amount + c.amount) AS amount FROM orders a\n      \
         JOIN orders b ON a.id % 5 = b.id % 5 JOIN orders c ON c.id % 10 = a.id % 10\n\
         sinks:\n  long: {from: long, path: out/long.csv}\n",
    );
    let mut run = cluster.command();
    run.args(["run", "long.yaml", "--cluster", "local", "--queue", "nightly"]).stderr(Stdio::null());
    let mut run = run.stdout(Stdio::null()).spawn().unwrap();
    let running = || cluster.status()["queues"][1]["running"].as_u64().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while running() == 0 {
        assert!(Instant::now() < deadline && run.try_wait().unwrap().is_none(), "no job is seen");
    }
    cluster
        .rowmill(&["run", "flow.yaml", "--cluster", "local", "--queue", "nightly"])
        .fails(75, &["RM0722", "`nightly`"]);
    run.kill().unwrap();
    run.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while running() > 0 {
        assert!(Instant::now() < deadline, "the place is not given back");
    }
    // No log shows a token.
    let token = std::fs::read_to_string(cluster.scratch.path("state/cluster/token")).unwrap();
    for log in cluster.scratch.names("state/cluster/logs") {
        let said = std::fs::read_to_string(cluster.scratch.path("state/cluster/logs").join(&log)).unwrap();
        assert!(!said.contains(token.trim()) && !said.contains("a-token-that-submits"), "{log}");
    }
}

#[test]
fn plain_text_stays_on_this_machine() {
    let scratch = Scratch::new();
    scratch.write("token", "a-token-of-the-tests-0123456789");
    orders(&scratch);
    scratch.write("flow.yaml", FLOW);
    let run = |arguments: &[&str]| Answer::from(scratch.command().args(arguments).output().unwrap());
    let scheduler = ["scheduler", "--listen", "0.0.0.0:0", "--token-file", "token"];
    run(&scheduler).fails(75, &["RM0720", "cluster.insecure"]);
    let executor = ["executor", "--scheduler", "127.0.0.1:1", "--class", "cpu", "--work-dir", "work"];
    run(&[&executor[..], &["--listen", "0.0.0.0", "--token-file", "token"]].concat()).fails(75, &["RM0720"]);
    let client = ["run", "flow.yaml", "--cluster", "192.0.2.1:7780", "--token-file", "token"];
    run(&client).fails(75, &["RM0720", "192.0.2.1"]);
    // Half of what TLS needs is told.
    let half = [&scheduler[..], &["--option", "cluster.tls.key=key.pem"]].concat();
    run(&half).fails(75, &["RM0720", "cluster.tls.ca"]);
    let ca = format!("cluster.tls.ca={}", certificate("ca"));
    run(&[&scheduler[..], &["--option", &ca]].concat()).fails(75, &["RM0720", "needs a certificate"]);
    let missing = [&scheduler[..], &["--option", "cluster.tls.ca=nowhere.pem"]].concat();
    run(&missing).fails(75, &["RM0720", "nowhere.pem"]);
}
