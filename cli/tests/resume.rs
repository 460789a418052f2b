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
    let stopped = interrupted(&space, || service.seen().len() >= 6);
    assert_eq!(stopped.code, 130, "{}", stopped.err);
    let before = service.seen().len();
    assert!(before < 20, "it was not stopped in the middle");
    space.rowmill(&["resume", "last"]).ok();
    let counts = counted(&service.seen());
    assert_eq!(counts.len(), 20);
    assert!(counts.values().all(|calls| *calls == 1), "{counts:?}");
    assert_eq!(space.sql("SELECT count(*), sum(receipt) FROM 'rows.csv'").rows(), ["20,190"]);
}

/// Items of a group whose turn had not come are left alone by a Ctrl-C: they are neither failed nor unknown.
#[test]
fn items_whose_turn_had_not_come_are_done_by_the_resume() {
    for (effects, once) in [("idempotent", false), ("once", true)] {
        let space = Scratch::new();
        space.write(
            "slow.py",
            "import json, sys, time\nfor line in sys.stdin:\n    it = json.loads(line)\n    v = it['item']['value']\n    open('seen', 'a').write(f'{v}\\n')\n    time.sleep(0.2)\n    print(json.dumps({'id': it['id'], 'ok': {'w': v}}), flush=True)\n",
        );
        space.write(
            "flow.yaml",
            format!(
                "
rowmill: 1
name: slow
durable: true
sources: {{rows: {{range: {{end: 15}}}}}}
steps:
  made:
    command: {{from: rows, argv: [python3, slow.py], reads: [value], output: {{w: int64}}}}
    effects: {effects}
    in_flight: 1
    on_error: dead_letter
sinks: {{out: {{from: made, path: out.csv}}}}
"
            ),
        );
        let seen = || std::fs::read_to_string(space.path("seen")).unwrap_or_default().lines().count();
        let stopped = interrupted(&space, || seen() >= 3);
        assert_eq!(stopped.code, 130, "{}", stopped.err);
        assert!(seen() < 15, "it was not stopped in the middle");
        space.rowmill(&["resume", "last"]).ok();
        assert_eq!(space.sql("SELECT count(*), sum(w) FROM 'out.csv'").rows(), ["15,105"]);
        assert!(!once || seen() == 15, "{} calls", seen());
    }
}

/// A share of errors that could only be judged at the end leaves a run that goes on once the cause is mended.
#[test]
fn a_run_with_too_many_errors_goes_on_when_the_cause_is_mended() {
    for limit in ["3", "10%"] {
        let mended = Arc::new(AtomicBool::new(false));
        let state = Arc::clone(&mended);
        let service = Service::start(move |path, _| match number(path) {
            value if value % 2 == 1 && !state.load(Ordering::SeqCst) => (404, String::new()),
            value => (200, format!("{{\"answer\": {value}}}")),
        });
        let space = Scratch::new();
        let flow = WORKFLOW.replace("method: POST, ", "");
        space.write(
            "flow.yaml",
            flow.replace("in_flight: 4", &format!("on_error: dead_letter\n    max_errors: {limit}")),
        );
        space.write("rowmill.yaml", service.configuration(""));
        space.rowmill(&["run", "flow.yaml"]).fails(1, &["RM0611", "resume"]);
        space.rowmill(&["resume", "last"]).fails(1, &["RM0611"]);
        mended.store(true, Ordering::SeqCst);
        space.rowmill(&["resume", "last"]).ok();
        assert_eq!(space.sql("SELECT count(*), sum(receipt) FROM 'rows.csv'").rows(), ["20,190"], "{limit}");
    }
}

/// Ctrl-C while operators compute that do not pause.
#[test]
fn a_durable_run_stops_while_it_computes() {
    let space = Scratch::new();
    space.write(
        "flow.yaml",
        "
rowmill: 1
name: computed
durable: true
sources: {n: {range: {end: 3000000}}}
steps:
  pairs: {sql: 'SELECT count(*) AS pairs FROM n a JOIN n b ON a.value * 7 % 1000003 < b.value * 3 % 999983'}
sinks: {out: {from: pairs, path: out.csv}}
",
    );
    let begun = Instant::now();
    let stopped = interrupted(&space, || begun.elapsed() > Duration::from_secs(2));
    assert_eq!(stopped.code, 130, "{}", stopped.err);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert!(!space.names(".").iter().any(|name| name.contains(".rowmill-")), "staging was left behind");
}

/// Runs `flow.yaml` and interrupts it when `now` says so.
fn interrupted(space: &Scratch, now: impl Fn() -> bool) -> Answer {
    let mut command = space.command();
    command.args(["run", "flow.yaml", "--progress", "none"]).stdout(Stdio::null()).stderr(Stdio::piped());
    let run = command.spawn().unwrap();
    let begun = Instant::now();
    while !now() {
        assert!(begun.elapsed() < Duration::from_secs(30), "it does not get to work");
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = rustix::process::Pid::from_raw(run.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    run.wait_with_output().unwrap().into()
}

#[test]
fn a_run_that_is_started_over_does_not_go_on_beside_the_new_one() {
    let (service, mended) = closed_for_one(422);
    let space = space(&service);
    space.rowmill(&["run", "flow.yaml"]).fails(1, &["RM0610", "422"]);
    // A file that cannot be run does not cost the run that can go on.
    space.write("flow.yaml", "rowmill: 1\nname: flow\nsteps: {a: {sql: SELECT nothing FROM nowhere}}\n");
    space.rowmill(&["resume", "last", "--restart"]).fails(1, &["nowhere"]);
    let status = |at: usize| {
        let rows = space.rowmill(&["runs", "--output", "json"]).ok().out;
        let runs: serde_json::Value = serde_json::from_str(&rows).unwrap();
        runs["runs"][at]["status"].as_str().map(str::to_owned)
    };
    assert_eq!(status(0).as_deref(), Some("stopped"));
    space.write("flow.yaml", WORKFLOW);
    mended.store(true, Ordering::SeqCst);
    space.rowmill(&["resume", "last", "--restart"]).ok();
    assert_eq!((status(0).as_deref(), status(1).as_deref()), (Some("succeeded"), Some("cancelled")));
    assert_eq!(space.sql("SELECT count(*), sum(receipt) FROM 'rows.csv'").rows(), ["20,190"]);
}
