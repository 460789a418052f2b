//! Several schedulers: one leads, the others stand by and take over.

use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use crate::cluster::{Cluster, certificate, long_flow, orders, sorted};
use crate::support::Scratch;

const LIMIT: Duration = Duration::from_secs(60);

fn start(scratch: Scratch) -> Cluster {
    let cluster = Cluster { scratch };
    let up = ["cluster", "up", "--executors", "cpu=1", "--slots", "2", "--port", "0", "--standby", "1"];
    cluster.rowmill(&up).ok();
    orders(&cluster.scratch);
    cluster
}

/// Who leads: address, name of the process, term.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Leader {
    address: String,
    name: String,
    term: u64,
}

/// The leader, if somebody leads now.
fn leader(cluster: &Cluster) -> Option<Leader> {
    let said = cluster.rowmill(&["cluster", "status", "--output", "json"]);
    let status: serde_json::Value = (said.code == 0).then(|| serde_json::from_str(&said.out).unwrap())?;
    let address = status["leader"].as_str().unwrap().to_owned();
    let record = cluster.record();
    let mut processes = record["processes"].as_array().unwrap().iter();
    let listens = |process: &&serde_json::Value| {
        process["arguments"].as_array().unwrap().iter().any(|argument| argument == address.as_str())
            && process["name"].as_str().unwrap().starts_with("scheduler")
    };
    let name = processes.find(listens).unwrap()["name"].as_str().unwrap().to_owned();
    Some(Leader { address, name, term: status["term"].as_u64().unwrap() })
}

/// Waits until another one leads.
fn next_leader(cluster: &Cluster, before: &Leader) -> Leader {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = leader(cluster).filter(|found| found.address != before.address) {
            assert!(found.term > before.term, "{found:?} after {before:?}");
            return found;
        }
        assert!(Instant::now() < deadline, "nobody takes over from {before:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Asks this scheduler alone.
fn ask(cluster: &Cluster, address: &str) -> crate::support::Answer {
    let token = cluster.scratch.path("state/cluster/token").display().to_string();
    cluster.rowmill(&["cluster", "status", "--cluster", address, "--token-file", &token])
}

#[test]
fn a_standby_takes_over_when_the_leader_dies_under_a_run() {
    let cluster = start(Scratch::new());
    let first = leader(&cluster).unwrap();
    assert!(first.term > 0);
    let status = cluster.status();
    let schedulers = status["schedulers"].as_array().unwrap();
    assert_eq!(schedulers.len(), 2, "{status}");
    assert_eq!(schedulers.iter().filter(|own| own["leads"] == true).count(), 1, "{status}");
    let told = cluster.rowmill(&["cluster", "status"]).ok().out;
    assert!(told.contains(&format!("leads, term {}", first.term)) && told.contains("stands by"), "{told}");

    // One that is asked alone and stands by names the leader, and nobody follows it to an address that was not given.
    let standby = schedulers.iter().find(|own| own["leads"] == false).unwrap()["address"].as_str().unwrap();
    ask(&cluster, standby).fails(75, &["stands by", &first.address, "was not given"]);
    ask(&cluster, &format!("{standby},{}", first.address)).ok();

    // The leader dies under a run; nobody starts it again.
    cluster.scratch.write("flow.yaml", long_flow());
    let mut run = cluster.command().args(["run", "flow.yaml", "--cluster", "local"]).spawn().unwrap();
    let deadline = Instant::now() + LIMIT;
    while cluster.status()["jobs"].as_array().unwrap().is_empty() {
        assert!(Instant::now() < deadline && run.try_wait().unwrap().is_none(), "no job is seen");
    }
    kill_process(cluster.pid(&first.name), Signal::KILL).unwrap();
    let second = next_leader(&cluster, &first);
    assert!(run.wait().unwrap().success());
    let there = sorted(&cluster.scratch, "out/ranked.csv");
    cluster.rowmill(&["run", "flow.yaml"]).ok();
    assert_eq!(sorted(&cluster.scratch, "out/ranked.csv"), there);

    // It is started again, and stands by; one that is told to stop hands over.
    cluster.rowmill(&["cluster", "up", "--standby", "2"]).fails(2, &["started with --standby 1", "cluster down"]);
    cluster.rowmill(&["cluster", "up"]).ok();
    assert_eq!(leader(&cluster).unwrap(), second);
    kill_process(cluster.pid(&second.name), Signal::TERM).unwrap();
    let third = next_leader(&cluster, &second);
    assert_eq!(third.address, first.address);
    cluster.rowmill(&["run", "flow.yaml", "--cluster", "local"]).ok();
}

#[test]
fn a_leader_that_was_stopped_for_longer_than_its_lease_does_not_lead_when_it_goes_on() {
    let cluster = start(Scratch::new());
    let first = leader(&cluster).unwrap();
    cluster.scratch.write("flow.yaml", long_flow());
    let mut run = cluster.command().args(["run", "flow.yaml", "--cluster", "local"]).spawn().unwrap();
    let deadline = Instant::now() + LIMIT;
    while cluster.status()["jobs"].as_array().unwrap().is_empty() {
        assert!(Instant::now() < deadline && run.try_wait().unwrap().is_none(), "no job is seen");
    }
    kill_process(cluster.pid(&first.name), Signal::STOP).unwrap();
    let second = next_leader(&cluster, &first);
    kill_process(cluster.pid(&first.name), Signal::CONT).unwrap();
    // From its first step on it does not lead. While it leaves its seat connections break.
    let deadline = Instant::now() + LIMIT;
    loop {
        let said = ask(&cluster, &first.address);
        assert_eq!(said.code, 75, "{}{}", said.out, said.err);
        if said.err.contains("stands by") {
            break;
        }
        assert!(Instant::now() < deadline, "{}", said.err);
    }
    assert!(run.wait().unwrap().success());
    assert_eq!(leader(&cluster).unwrap(), second);
    let there = sorted(&cluster.scratch, "out/ranked.csv");
    cluster.rowmill(&["run", "flow.yaml"]).ok();
    assert_eq!(sorted(&cluster.scratch, "out/ranked.csv"), there);
}

#[test]
fn with_certificates_a_leader_that_is_named_is_gone_to() {
    let scratch = Scratch::new();
    scratch.write(
        "rowmill.yaml",
        format!(
            "cluster:\n  lease: 3s\n  tls:\n    ca: {}\n    certificate: {}\n    key: {}\n",
            certificate("ca"),
            certificate("member"),
            certificate("member-key")
        ),
    );
    let cluster = start(scratch);
    let first = leader(&cluster).unwrap();
    let status = cluster.status();
    let standby = status["schedulers"].as_array().unwrap().iter().find(|own| own["leads"] == false).unwrap();
    let told = ask(&cluster, standby["address"].as_str().unwrap()).ok().out;
    assert!(told.contains(&first.address) && told.contains("leads, term"), "{told}");
    // And its certificate is looked at: here the one who asks trusts another authority.
    cluster.scratch.write(
        "other.yaml",
        format!(
            "cluster:\n  tls:\n    ca: {}\n    certificate: {}\n    key: {}\n",
            certificate("other-ca"),
            certificate("member"),
            certificate("member-key")
        ),
    );
    let refused = cluster.rowmill(&["cluster", "status", "--config", "other.yaml"]);
    refused.fails(75, &["RM0708", "no TLS"]);
}

#[test]
fn stores_that_cannot_work_are_refused() {
    let scratch = Scratch::new();
    scratch.write("token", "a-token-of-the-tests-0123456789");
    let scheduler = |more: &[&str]| {
        scratch.rowmill(&[&["scheduler", "--listen", "127.0.0.1:0", "--token-file", "token"], more].concat())
    };
    let canary = "postgres://user:canary-1234@db/rowmill";
    let said = scheduler(&["--store", canary]).fails(2, &["holds a password", "file:/path"]);
    assert!(!said.err.contains("canary"), "{}", said.err);
    scheduler(&["--store", "mysql://db/rowmill"]).fails(2, &["a store is a file"]);
    scheduler(&["--store", "env:NO_SUCH_VARIABLE"]).fails(75, &["NO_SUCH_VARIABLE"]);
    scheduler(&["--store", "no/such/folder/schedulers.db"]).fails(75, &["RM0704", "schedulers.db"]);
    scheduler(&["--store", "schedulers.db", "--option", "cluster.lease=10ms"]).fails(2, &["at least 1 s"]);
    let wide = ["scheduler", "--listen", "0.0.0.0:0", "--token-file", "token", "--store", "schedulers.db"];
    scratch.rowmill(&[&wide[..], &["--option", "cluster.insecure=true"]].concat()).fails(2, &["--host"]);
}
