//! Steps that are not SQL, run as a user runs them: outcomes, retries, limits, caches, effects, wrong input.

use serde_json::Value;

use crate::service::{Service, number};
use crate::support::Scratch;

const WORKFLOW: &str = "
rowmill: 1
name: calls
sources: {numbers: {range: {end: 200}}}
steps:
  called:
    http:
      from: numbers
      connection: api
      path: /item/{value}
      response: {answer: {json: /answer, type: int64}}
    retry: {attempts: 4, initial_backoff: 1ms}
POLICY
sinks: {out: {from: called, path: out.csv}}
";

fn workflow(policy: &str) -> String {
    WORKFLOW.replace("POLICY", policy)
}

fn outcomes(report: &Value) -> &Value {
    &report["items"][0]["outcomes"]
}

#[test]
fn items_that_fail_are_dead_lettered_and_the_rest_is_written() {
    let service = Service::start(|path, _| match number(path) % 10 {
        3 => (404, "{}".to_owned()),
        _ => (200, format!("{{\"answer\": {}}}", number(path) * 2)),
    });
    let space = Scratch::new();
    space.write("flow.yaml", workflow("    on_error: dead_letter"));
    space.write("rowmill.yaml", service.configuration(""));
    let done = space.rowmill(&["run", "flow.yaml", "--output", "json"]);
    assert_eq!(done.code, 3, "{}{}", done.out, done.err);
    let report: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(outcomes(&report)["ok"], 180);
    assert_eq!(outcomes(&report)["dead_lettered"], 20);
    assert_eq!(report["outcome"], "succeeded_with_failures");
    let text = std::fs::read_to_string(space.path("out.csv")).unwrap();
    assert_eq!(text.lines().count(), 181);
    assert!(text.lines().any(|line| line == "7,14"), "{text}");
    assert!(!text.lines().any(|line| line.starts_with("13,")));
    assert_eq!(service.seen().len(), 200);
}

#[test]
fn the_first_failure_stops_a_run_that_says_nothing_else() {
    let service = Service::start(|path, _| match number(path) {
        50 => (400, "{\"error\": \"no such thing\"}".to_owned()),
        other => (200, format!("{{\"answer\": {other}}}")),
    });
    let space = Scratch::new();
    space.write("flow.yaml", workflow(""));
    space.write("rowmill.yaml", service.configuration(""));
    let done = space.rowmill(&["run", "flow.yaml"]);
    assert_eq!(done.code, 1, "{}", done.err);
    assert!(done.err.contains("RM0610") && done.err.contains("`called`"), "{}", done.err);
    assert!(done.err.contains("400"), "{}", done.err);
    assert!(!space.path("out.csv").exists());
}

#[test]
fn what_passes_is_tried_again() {
    let service = Service::start(|path, before| match (number(path) % 4, before) {
        (0, 0) => (503, "later".to_owned()),
        (1, 0 | 1) => (429, "slower".to_owned()),
        _ => (200, format!("{{\"answer\": {}}}", number(path))),
    });
    let space = Scratch::new();
    space.write("flow.yaml", workflow(""));
    space.write("rowmill.yaml", service.configuration(""));
    let done = space.rowmill(&["run", "flow.yaml", "--output", "json"]);
    assert_eq!(done.code, 0, "{}{}", done.out, done.err);
    let report: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(outcomes(&report)["ok"], 200);
    assert_eq!(service.seen().len(), 50 * 2 + 50 * 3 + 100);
}

#[test]
fn too_many_failures_stop_the_run() {
    let service = Service::start(|path, _| match number(path) % 2 {
        0 => (400, String::new()),
        _ => (200, "{\"answer\": 1}".to_owned()),
    });
    let space = Scratch::new();
    space.write("flow.yaml", workflow("    on_error: skip\n    max_errors: 10"));
    space.write("rowmill.yaml", service.configuration(""));
    let done = space.rowmill(&["run", "flow.yaml"]);
    assert_eq!(done.code, 1, "{}", done.err);
    assert!(done.err.contains("RM0611"), "{}", done.err);
}

#[test]
fn a_default_stands_in_for_what_failed() {
    let service = Service::start(|path, _| match number(path) {
        9 => (500, String::new()),
        other => (200, format!("{{\"answer\": {other}}}")),
    });
    let space = Scratch::new();
    space.write("flow.yaml", workflow("    on_error: {default: {answer: -1}}"));
    space.write("rowmill.yaml", service.configuration(""));
    let done = space.rowmill(&["run", "flow.yaml", "--output", "json"]);
    assert_eq!(done.code, 0, "{}{}", done.out, done.err);
    assert!(std::fs::read_to_string(space.path("out.csv")).unwrap().lines().any(|line| line == "9,-1"));
}

#[test]
fn results_are_cached_on_disk_and_equal_items_are_sent_once() {
    let service = Service::start(|path, _| (200, format!("{{\"answer\": {}}}", number(path))));
    let space = Scratch::new();
    let text = workflow("    cache: {tier: disk}")
        .replace("from: numbers", "from: tens")
        .replace("steps:", "steps:\n  tens: {sql: 'SELECT value % 10 AS value, value AS n FROM numbers'}");
    space.write("flow.yaml", &text);
    space.write("rowmill.yaml", service.configuration(""));
    for round in 0..2 {
        let done = space.rowmill(&["run", "flow.yaml", "--output", "json"]);
        assert_eq!(done.code, 0, "{}{}", done.out, done.err);
        let report: Value = serde_json::from_str(&done.out).unwrap();
        let cached = outcomes(&report)["cached"].as_u64().unwrap_or(0);
        let ok = outcomes(&report)["ok"].as_u64().unwrap_or(0);
        assert_eq!(cached + ok, 200, "{report}");
        assert_eq!(std::fs::read_to_string(space.path("out.csv")).unwrap().lines().count(), 201);
        // Two partitions may each ask once before either has stored its answers.
        assert!(service.seen().len() <= 20, "round {round}: {}", service.seen().len());
        if round == 1 {
            assert_eq!(ok, 0, "{report}");
        }
    }
}

#[test]
fn a_lookup_keeps_duplicates_and_misses() {
    let space = Scratch::new();
    let database = space.path("planes.db");
    let script = "import sqlite3,sys; d=sqlite3.connect(sys.argv[1]); d.execute('create table t(k integer, v text)'); \
                  d.executemany('insert into t values(?,?)',[(1,'a'),(1,'b'),(3,'c')]); d.commit()";
    let made = std::process::Command::new("python3").args(["-c", script]).arg(&database).status().unwrap();
    assert!(made.success());
    space.write(
        "rowmill.yaml",
        format!("connections: {{db: {{kind: sqlite, url: \"sqlite:{}\"}}}}\n", database.display()),
    );
    space.write(
        "flow.yaml",
        "
rowmill: 1
name: lookups
sources: {numbers: {range: {end: 5}}}
steps:
  twice: {sql: 'SELECT value FROM numbers UNION ALL SELECT value FROM numbers WHERE value = 3'}
  found:
    lookup: {from: twice, connection: db, query: 'SELECT v FROM t WHERE k = {value}', types: {v: string}, on_missing: 'null', matches: all}
sinks: {out: {from: found, path: out.csv}}
",
    );
    let done = space.rowmill(&["run", "flow.yaml"]);
    assert_eq!(done.code, 0, "{}{}", done.out, done.err);
    let text = std::fs::read_to_string(space.path("out.csv")).unwrap();
    let mut lines: Vec<&str> = text.lines().skip(1).collect();
    lines.sort_unstable();
    assert_eq!(lines, ["0,", "1,a", "1,b", "2,", "3,c", "3,c", "4,"]);
}

#[test]
fn a_durable_run_leaves_a_ledger_that_can_be_asked() {
    let service = Service::start(|path, _| match number(path) {
        17 => (404, String::new()),
        other => (200, format!("{{\"answer\": {other}}}")),
    });
    let space = Scratch::new();
    space.write("flow.yaml", workflow("    on_error: dead_letter"));
    space.write("rowmill.yaml", format!("{}state: {{chunk_rows: 30}}\n", service.configuration("")));
    let done = space.rowmill(&["run", "flow.yaml", "--durable"]);
    assert_eq!(done.code, 3, "{}{}", done.out, done.err);
    assert_eq!(std::fs::read_to_string(space.path("out.csv")).unwrap().lines().count(), 200);
    let items =
        space.rowmill(&["items", "last", "--format", "csv", "--sql", "SELECT step, outcome, code, item FROM items"]);
    assert_eq!(items.code, 0, "{}", items.err);
    assert!(items.out.contains("called,dead_lettered,not_found"), "{}", items.out);
    let runs = space.rowmill(&["runs", "--output", "json"]);
    let runs: Value = serde_json::from_str(&runs.out).unwrap();
    assert_eq!(runs["runs"][0]["status"], "succeeded_with_failures");
    let again = space.rowmill(&["resume", "last"]);
    assert_eq!(again.code, 1, "{}", again.err);
    assert!(again.err.contains("RM0804"), "{}", again.err);
    let gone = space.rowmill(&["gc", "--older-than", "0s"]);
    assert_eq!(gone.code, 0, "{}", gone.err);
    assert!(gone.out.contains("removed 1 runs"), "{}", gone.out);
}

#[test]
fn what_is_wrong_with_a_step_is_said_before_anything_runs() {
    let service = Service::start(|_, _| (200, "{}".to_owned()));
    let space = Scratch::new();
    space.write("rowmill.yaml", service.configuration(""));
    for (from, to, code, word) in [
        ("connection: api", "connection: apj", "RM0411", "apj"),
        ("{value}", "{valve}", "RM0304", "valve"),
        ("from: numbers", "from: number", "RM0204", "number"),
        ("answer: {json", "value: {json", "RM0311", "value"),
    ] {
        space.write("flow.yaml", workflow("").replace(from, to));
        let done = space.rowmill(&["check", "flow.yaml"]);
        assert_eq!(done.code, 1, "{from}: {}{}", done.out, done.err);
        assert!(done.err.contains(code) && done.err.contains(word), "{from}: {}", done.err);
    }
    assert!(service.seen().is_empty());
}

#[test]
fn a_step_that_is_made_once_runs_to_its_end_whoever_reads_it() {
    let service = Service::start(|path, _| (200, format!("{{\"answer\": {}}}", number(path))));
    let space = Scratch::new();
    let text = workflow("  few: {sql: SELECT * FROM called WHERE false}")
        .replace("path: /item/{value}", "method: POST\n      path: /item/{value}")
        .replace("from: called, path", "from: few, path");
    space.write("flow.yaml", &text);
    space.write("rowmill.yaml", service.configuration(""));
    let done = space.rowmill(&["run", "flow.yaml"]);
    assert_eq!(done.code, 0, "{}{}", done.out, done.err);
    assert_eq!(service.seen().len(), 200);
    assert_eq!(std::fs::read_to_string(space.path("out.csv")).unwrap().lines().count(), 1);
}

#[test]
fn items_that_stopped_a_durable_run_are_tried_again_and_the_others_are_not() {
    let service = Service::start(|path, before| match (number(path), before) {
        (150, 0) => (400, "{\"error\": \"not yet\"}".to_owned()),
        (other, _) => (200, format!("{{\"answer\": {other}}}")),
    });
    let space = Scratch::new();
    space.write("flow.yaml", workflow(""));
    space.write("rowmill.yaml", format!("{}state: {{chunk_rows: 50}}\n", service.configuration("")));
    let done = space.rowmill(&["run", "flow.yaml", "--durable"]);
    assert_eq!(done.code, 1, "{}{}", done.out, done.err);
    assert!(done.err.contains("RM0610") && done.err.contains("rowmill resume"), "{}", done.err);
    assert!(!space.path("out.csv").exists());
    let asked = service.seen().len();
    let again = space.rowmill(&["resume", "last"]);
    assert_eq!(again.code, 0, "{}{}", again.out, again.err);
    assert_eq!(std::fs::read_to_string(space.path("out.csv")).unwrap().lines().count(), 201);
    // Each item once, the one that failed twice, and those that were under way when the run stopped.
    let twice = service.seen().len().saturating_sub(201);
    assert!(twice <= 64, "{twice} calls were repeated after {asked}");
}

/// Files are cut into partitions in their order, and calls that take their time do not change it.
#[test]
fn rows_leave_in_the_order_of_the_whole_input_where_that_is_asked_for() {
    let service = Service::start(|path, _| {
        std::thread::sleep(std::time::Duration::from_millis(number(path) % 7 * 3));
        (200, format!("{{\"answer\": {}}}", number(path)))
    });
    let space = Scratch::new();
    for file in 0..4 {
        let rows: String = (file * 50..file * 50 + 50).map(|row| format!("{row}\n")).collect();
        space.write(&format!("in/{file}.csv"), format!("v\n{rows}"));
    }
    space.write("rowmill.yaml", format!("{}execution: {{partitions: 4}}\n", service.configuration("")));
    let flow = "
rowmill: 1
name: ordered
sources: {rows: {path: 'in/*.csv'}}
steps:
  asked:
    http: {from: rows, connection: api, path: '/item/{v}', response: {answer: {json: /answer, type: int64}}}
    order: input
sinks: {out: {from: asked, path: out.csv}}
";
    space.run(flow).ok();
    let out = std::fs::read_to_string(space.path("out.csv")).unwrap();
    let wanted: Vec<String> = (0..200).map(|row| format!("{row},{row}")).collect();
    assert_eq!(out.lines().skip(1).collect::<Vec<_>>(), wanted);
}

/// Items of a program are timed one by one: one that hangs takes no time from its neighbours, many that are slow do not
/// add up.
#[test]
fn a_slow_item_of_a_program_fails_alone() {
    let space = Scratch::new();
    space.write(
        "slow.py",
        "import json, sys, time\nfor line in sys.stdin:\n    it = json.loads(line)\n    v = it['item']['value']\n    time.sleep(60 if v == 5 else 0.25)\n    print(json.dumps({'id': it['id'], 'ok': {'w': v}}), flush=True)\n",
    );
    let flow = "
rowmill: 1
name: timed
sources: {rows: {range: {end: 12}}}
steps:
  made:
    command: {from: rows, argv: [python3, slow.py], reads: [value], output: {w: int64}}
    effects: idempotent
    in_flight: 1
    timeout: 2s
    on_error: dead_letter
sinks:
  out: {from: made, path: out.csv}
  bad: {from: made.dead_letters, path: bad.csv}
";
    space.write("flow.yaml", flow);
    let done = space.rowmill(&["run", "flow.yaml", "--output", "json"]);
    assert_eq!(done.code, 3, "{}{}", done.out, done.err);
    let report: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!((&outcomes(&report)["ok"], &outcomes(&report)["dead_lettered"]), (&11.into(), &1.into()), "{report}");
    assert_eq!(space.sql("SELECT value FROM 'bad.csv'").rows(), ["5"]);
}

/// One value of a column is another question than the same value of another.
#[test]
fn a_cache_does_not_mix_key_columns_up() {
    let service = Service::start(|path, _| (200, format!("{{\"answer\": {}}}", number(path))));
    let space = Scratch::new();
    space.write("rowmill.yaml", service.configuration(""));
    let flow = |key: &str| {
        workflow(&format!("    cache: {{tier: disk, key: [{key}]}}"))
            .replace("from: numbers", "from: both")
            .replace("steps:", "steps:\n  both: {sql: 'SELECT value, value + 1 AS next FROM numbers'}")
    };
    for key in ["value", "next"] {
        space.run(&flow(key)).ok();
        assert_eq!(space.sql("SELECT count(*) FROM 'out.csv' WHERE value <> answer").rows(), ["0"], "{key}");
    }
    assert_eq!(service.seen().len(), 400);
}

/// A step that reads no column asks once, and all items have the answer.
#[test]
fn a_step_without_columns_can_be_cached() {
    let service = Service::start(|_, _| (200, "{\"answer\": 7}".to_owned()));
    let space = Scratch::new();
    space.write("rowmill.yaml", service.configuration(""));
    space.run(&workflow("    cache: {tier: disk}").replace("/item/{value}", "/only")).ok();
    assert_eq!(space.sql("SELECT count(*), min(answer), max(answer) FROM 'out.csv'").rows(), ["200,7,7"]);
    assert!(service.seen().len() <= 8, "{}", service.seen().len());
}

/// An answer that is only near to the declared type is none.
#[test]
fn a_program_must_answer_with_the_types_that_are_declared() {
    let space = Scratch::new();
    space.write(
        "say.py",
        "import json, sys\nsaid = [1, 1.5, 2.0]\nfor line in sys.stdin:\n    it = json.loads(line)\n    print(json.dumps({'id': it['id'], 'ok': {'w': said[it['item']['value']]}}), flush=True)\n",
    );
    let flow = "
rowmill: 1
name: typed
sources: {rows: {range: {end: 3}}}
steps:
  said:
    command: {from: rows, argv: [python3, say.py], reads: [value], output: {w: int64}}
    effects: pure
    on_error: dead_letter
sinks:
  out: {from: said, path: out.csv}
  bad: {from: said.dead_letters, path: bad.csv}
";
    space.write("flow.yaml", flow);
    space.rowmill(&["run", "flow.yaml"]).fails(3, &[]);
    assert_eq!(space.sql("SELECT value, w FROM 'out.csv' ORDER BY value").rows(), ["0,1", "2,2"]);
    assert_eq!(
        space.sql("SELECT value, error_message LIKE '%1.5 is not a whole number%' FROM 'bad.csv'").rows(),
        ["1,true"]
    );
}
