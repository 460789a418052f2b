//! `rowmill resume` where calls are made once: what is known to have been refused is made again, what may have happened
//! only when that is asked for, and a run that is told to stop lets such calls end.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::service::{Service, number};
use crate::support::{Answer, Scratch};

const WORKFLOW: &str = "
rowmill: 1
name: booked
durable: true
sources: {numbers: {range: {end: 20}}}
steps:
  booked:
    http: {from: numbers, connection: api, method: POST, path: '/book/{value}', response: {receipt: {json: /answer, type: int64}}}
    in_flight: 4
sinks:
  rows: {from: booked, path: rows.csv}
";

fn counted(seen: &[String]) -> BTreeMap<u64, usize> {
    let mut counts = BTreeMap::new();
    for request in seen {
        *counts.entry(number(request)).or_default() += 1;
    }
    counts
}

fn space(service: &Service) -> Scratch {
    let space = Scratch::new();
    space.write("flow.yaml", WORKFLOW);
    space.write("rowmill.yaml", service.configuration(""));
    space
}

/// The calls of item 7 end with this status until the service is mended.
fn closed_for_one(status: u16) -> (Service, Arc<AtomicBool>) {
    let mended = Arc::new(AtomicBool::new(false));
    let state = Arc::clone(&mended);
    let service = Service::start(move |path, _| match number(path) {
        7 if !state.load(Ordering::SeqCst) => (status, "{\"error\": \"closed\"}".to_owned()),
        value => (200, format!("{{\"answer\": {value}}}")),
    });
    (service, mended)
}

#[test]
fn a_call_that_may_have_happened_is_made_again_only_when_asked_for() {
    let (service, mended) = closed_for_one(500);
    let space = space(&service);
    space.rowmill(&["run", "flow.yaml"]).fails(1, &["RM0610", "--unknown"]);
    mended.store(true, Ordering::SeqCst);
    space.rowmill(&["resume", "last"]).fails(1, &["RM0610", "is not made again unasked", "--unknown"]);
    assert_eq!(counted(&service.seen())[&7], 1, "sent again unasked");
    space.rowmill(&["retry", "last", "--unknown"]).fails(1, &["RM0809", "resume"]);
    space.rowmill(&["resume", "last", "--restart", "--unknown"]).fails(2, &["--unknown"]);
    space.rowmill(&["resume", "last", "--unknown"]).ok();
    let counts = counted(&service.seen());
    assert_eq!(counts.len(), 20);
    assert!(counts.iter().all(|(item, calls)| *calls == if *item == 7 { 2 } else { 1 }), "{counts:?}");
    assert_eq!(space.sql("SELECT count(*), sum(receipt) FROM 'rows.csv'").rows(), ["20,190"]);
}

#[test]
fn a_call_that_was_refused_is_made_again_by_a_resume() {
    let (service, mended) = closed_for_one(422);
    let space = space(&service);
    let stopped = space.rowmill(&["run", "flow.yaml"]).fails(1, &["RM0610", "422"]);
    assert!(!stopped.err.contains("--unknown"), "{}", stopped.err);
    space.rowmill(&["resume", "last"]).fails(1, &["RM0610", "422"]);
    assert_eq!(counted(&service.seen())[&7], 2);
    mended.store(true, Ordering::SeqCst);
    space.rowmill(&["resume", "last"]).ok();
    let counts = counted(&service.seen());
    assert!(counts.iter().all(|(item, calls)| *calls == if *item == 7 { 3 } else { 1 }), "{counts:?}");
}

#[test]
fn calls_that_are_made_once_end_before_a_stopped_run_does() {
    let service = Service::start(|path, _| {
        std::thread::sleep(Duration::from_millis(700));
        (200, format!("{{\"answer\": {}}}", number(path)))
    });
    let space = space(&service);
    let run = space
        .command()
        .args(["run", "flow.yaml", "--progress", "none"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while service.seen().len() < 6 {
        assert!(begun.elapsed() < Duration::from_secs(30), "it does not get to work");
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = rustix::process::Pid::from_raw(run.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let stopped: Answer = run.wait_with_output().unwrap().into();
    assert_eq!(stopped.code, 130, "{}", stopped.err);
    let before = service.seen().len();
    assert!(before < 20, "it was not stopped in the middle");
    space.rowmill(&["resume", "last"]).ok();
    let counts = counted(&service.seen());
    assert_eq!(counts.len(), 20);
    assert!(counts.values().all(|calls| *calls == 1), "{counts:?}");
    assert_eq!(space.sql("SELECT count(*), sum(receipt) FROM 'rows.csv'").rows(), ["20,190"]);
}
