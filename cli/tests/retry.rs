//! `rowmill retry`: items that failed are tried again, what hangs on them is made anew, and nothing else is repeated.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::Value;

use crate::service::{Service, number};
use crate::support::Scratch;

const WORKFLOW: &str = "
rowmill: 1
name: retried
durable: true
sources: {numbers: {range: {end: 200}}}
steps:
  asked:
    http: {from: numbers, connection: api, path: '/item/{value}', response: {answer: {json: /answer, type: int64}}}
    on_error: dead_letter
  booked:
    http: {from: asked, connection: api, method: POST, path: '/book/{value}', response: {receipt: {json: /answer, type: int64}}}
    effects: once
    on_error: dead_letter
  sums: {sql: 'SELECT value % 10 AS bucket, sum(answer) AS total FROM booked GROUP BY value % 10'}
  told:
    http: {from: sums, connection: api, path: '/sum/{bucket}/{total}', response: {said: {json: /answer, type: int64}}}
    on_error: {default: {said: -1}}
sinks:
  rows: {from: booked, path: rows.csv}
  told: {from: told, path: told.csv}
";

fn counted(seen: &[String]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for request in seen {
        *counts.entry(request.clone()).or_default() += 1;
    }
    counts
}

fn lines(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().skip(1).collect();
    lines.sort_unstable();
    lines
}

#[test]
fn failed_items_are_tried_again_and_nothing_else_is() {
    let mended = Arc::new(AtomicBool::new(false));
    let state = Arc::clone(&mended);
    let service = Service::start(move |path, _| {
        let mended = state.load(Ordering::SeqCst);
        let answer = |value: u64| (200, format!("{{\"answer\": {value}}}"));
        match path {
            _ if path.starts_with("/item/") && number(path) % 50 == 17 && !mended => (404, String::new()),
            "/book/30" if !mended => (400, "{\"error\": \"closed\"}".to_owned()),
            _ if path.starts_with("/sum/4/") && !mended => (422, String::new()),
            _ => answer(number(path)),
        }
    });
    let space = Scratch::new();
    space.write("flow.yaml", WORKFLOW);
    space.write("rowmill.yaml", format!("{}state: {{chunk_rows: 30}}\n", service.configuration("")));
    let done = space.rowmill(&["run", "flow.yaml"]);
    assert_eq!(done.code, 3, "{}{}", done.out, done.err);
    let read = |name: &str| std::fs::read_to_string(space.path(name)).unwrap();
    assert_eq!(read("rows.csv").lines().count(), 1 + 195);
    let first = read("rows.csv");

    // Nothing is mended yet: the same items fail again, under a version of their own, and no result is lost.
    let before = service.seen().len();
    let same = space.rowmill(&["retry", "last"]);
    assert_eq!(same.code, 3, "{}{}", same.out, same.err);
    assert_eq!(read("rows.csv"), first);
    assert_eq!(service.seen().len() - before, 4 + 1 + 1, "only what failed was sent");
    assert_eq!(lines(&read("told.csv"))[4], "4,1980,-1");

    mended.store(true, Ordering::SeqCst);
    let before = service.seen().len();
    let done = space.rowmill(&["retry", "last", "--output", "json"]);
    assert_eq!(done.code, 0, "{}{}", done.out, done.err);
    let report: Value = serde_json::from_str(&done.out).unwrap();
    for (step, items) in [("asked", 200), ("booked", 200), ("told", 10)] {
        let step = report["items"].as_array().unwrap().iter().find(|items| items["step"] == step).unwrap();
        assert_eq!(step["outcomes"]["ok"], items, "{step}");
    }
    let new = counted(&service.seen()[before..]);
    let expected: BTreeMap<String, usize> = [
        "GET /item/17",
        "GET /item/67",
        "GET /item/117",
        "GET /item/167",
        "POST /book/17",
        "POST /book/67",
        "POST /book/117",
        "POST /book/167",
        "POST /book/30",
        "GET /sum/7/2040",
        "GET /sum/0/1900",
        "GET /sum/4/1980",
    ]
    .map(|request| (request.to_owned(), 1))
    .into();
    assert_eq!(new, expected);
    let rows = read("rows.csv");
    assert_eq!(rows.lines().count(), 201);
    let wanted: Vec<String> = (0..200).map(|value| format!("{value},{value},{value}")).collect();
    let mut wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    wanted.sort_unstable();
    assert_eq!(lines(&rows), wanted);
    // The rows are where they would have been.
    let places: Vec<u64> = rows.lines().skip(1).map(|row| row.split(',').next().unwrap().parse().unwrap()).collect();
    assert!(places.is_sorted(), "{places:?}");
    assert_eq!(lines(&read("told.csv")).len(), 10);

    let over = space.rowmill(&["retry", "last"]);
    assert_eq!(over.code, 1, "{}", over.err);
    assert!(over.err.contains("RM0809"), "{}", over.err);
    let items = space.rowmill(&["items", "last", "--format", "csv"]);
    assert_eq!(items.out.lines().count(), 1, "{}", items.out);
}

/// Calls below a step that changed are paired by what they read, and many read the same: through several retries each
/// row keeps an answer to its own call, and no answered call is made again.
#[test]
fn equal_calls_keep_their_rows_through_several_retries() {
    let version = Arc::new(AtomicUsize::new(1));
    let state = Arc::clone(&version);
    let answered: Arc<AtomicUsize> = Arc::default();
    let count = Arc::clone(&answered);
    let service = Service::start(move |path, before| {
        let version = state.load(Ordering::SeqCst);
        let item = path.starts_with("/item/");
        match item {
            true if number(path) % 25 == 17 && version < 2 => (404, String::new()),
            true if number(path) % 50 == 17 && version < 3 => (404, String::new()),
            false if before % 5 == 3 && version < 4 => (400, "{\"error\": \"closed\"}".to_owned()),
            false => {
                count.fetch_add(1, Ordering::SeqCst);
                (200, format!("{{\"answer\": {}}}", number(path) * 1000))
            }
            true => (200, format!("{{\"answer\": {}}}", number(path))),
        }
    });
    let space = Scratch::new();
    space.write("rowmill.yaml", format!("{}state: {{chunk_rows: 23}}\n", service.configuration("")));
    space.write(
        "flow.yaml",
        "
rowmill: 1
name: equal
durable: true
sources: {numbers: {range: {end: 200}}}
steps:
  asked:
    http: {from: numbers, connection: api, path: '/item/{value}', response: {answer: {json: /answer, type: int64}}}
    on_error: dead_letter
  bucketed: {sql: 'SELECT value, value % 4 AS bucket FROM asked'}
  kinds:
    http: {from: bucketed, connection: api, method: POST, path: '/kind/{bucket}', response: {kind: {json: /answer, type: int64}}}
    effects: once
    on_error: dead_letter
sinks: {out: {from: kinds, path: out.csv}}
",
    );
    for attempt in 1..=4 {
        version.store(attempt, Ordering::SeqCst);
        let arguments: &[&str] = if attempt == 1 { &["run", "flow.yaml"] } else { &["retry", "last"] };
        let done = space.rowmill(arguments);
        assert_eq!(done.code, if attempt == 4 { 0 } else { 3 }, "version {attempt}: {}{}", done.out, done.err);
        let text = std::fs::read_to_string(space.path("out.csv")).unwrap();
        let rows: Vec<Vec<u64>> =
            text.lines().skip(1).map(|line| line.split(',').map(|word| word.parse().unwrap()).collect()).collect();
        assert_eq!(rows.len(), answered.load(Ordering::SeqCst), "version {attempt}: a row for each answer");
        assert!(rows.iter().map(|row| row[0]).is_sorted(), "version {attempt}: {text}");
        for row in &rows {
            assert_eq!((row[1], row[2]), (row[0] % 4, row[0] % 4 * 1000), "version {attempt}: {row:?}");
        }
    }
    assert_eq!(answered.load(Ordering::SeqCst), 200);
}

/// Equal items stand beside each other, each gives several rows, and an item that comes new reads what they read.
#[test]
fn rows_of_equal_items_are_shared_out_evenly() {
    let service = Service::start(|path, before| match path == "/item/1" && before == 0 {
        true => (400, String::new()),
        false => (200, format!("{{\"answer\": {}}}", number(path))),
    });
    let space = Scratch::new();
    let database = space.path("t.db");
    let fill = "import sqlite3,sys; d=sqlite3.connect(sys.argv[1]); d.execute('create table t(k text, w integer)'); \
                d.executemany('insert into t values(?,?)',[('d',1),('d',2),('d',3)]); d.commit()";
    assert!(std::process::Command::new("python3").args(["-c", fill]).arg(&database).status().unwrap().success());
    let connection = format!("  db: {{kind: sqlite, url: \"sqlite:{}\"}}\n", database.display());
    space.write("rowmill.yaml", service.configuration("") + &connection);
    space.write("in.csv", "id,k\n1,d\n2,d\n2,d\n");
    space.write(
        "flow.yaml",
        "
rowmill: 1
name: shared
durable: true
sources: {s: {path: in.csv}}
steps:
  asked:
    http: {from: s, connection: api, path: '/item/{id}', response: {answer: {json: /answer, type: int64}}}
    retry: none
    on_error: dead_letter
  found:
    lookup: {from: asked, connection: db, query: 'SELECT w FROM t WHERE k = {k}', types: {w: int64}, matches: all}
sinks: {out: {from: found, path: out.csv}}
",
    );
    let done = space.rowmill(&["run", "flow.yaml"]);
    assert_eq!(done.code, 3, "{}{}", done.out, done.err);
    let done = space.rowmill(&["retry", "last"]);
    assert_eq!(done.code, 0, "{}{}", done.out, done.err);
    let text = std::fs::read_to_string(space.path("out.csv")).unwrap();
    let mut wanted: Vec<String> = (1..=3).map(|w| format!("1,d,1,{w}")).collect();
    wanted.extend((1..=3).flat_map(|w| [format!("2,d,2,{w}"), format!("2,d,2,{w}")]));
    assert_eq!(lines(&text), wanted);
}

/// A call that may be made only once and was answered in a way that nobody can read has had its effect.
#[test]
fn answered_once_calls_are_not_sent_again_unasked() {
    let service = Service::start(|path, _| match number(path) {
        3 => (200, "no json".to_owned()),
        4 => (422, "no".to_owned()),
        other => (200, format!("{{\"answer\": {other}}}")),
    });
    let space = Scratch::new();
    space.write("rowmill.yaml", service.configuration(""));
    space.write(
        "flow.yaml",
        "
rowmill: 1
name: answered
durable: true
sources: {numbers: {range: {end: 6}}}
steps:
  booked:
    http: {from: numbers, connection: api, method: POST, path: '/book/{value}', response: {receipt: {json: /answer, type: int64}}}
    effects: once
    on_error: dead_letter
sinks: {out: {from: booked, path: out.csv}}
",
    );
    let done = space.rowmill(&["run", "flow.yaml"]);
    assert_eq!(done.code, 3, "{}{}", done.out, done.err);
    assert_eq!(service.seen().len(), 6);
    assert_eq!(space.rowmill(&["retry", "last"]).code, 3);
    assert_eq!(service.seen()[6..], ["POST /book/4"], "who was refused in words is asked again, and nobody else");
    assert_eq!(space.rowmill(&["retry", "last", "--unknown"]).code, 3);
    let mut last = service.seen()[7..].to_vec();
    last.sort();
    assert_eq!(last, ["POST /book/3", "POST /book/4"]);
}

#[test]
fn rows_of_a_lookup_are_used_again_below_a_step_that_changed() {
    let mended = Arc::new(AtomicBool::new(false));
    let state = Arc::clone(&mended);
    let service = Service::start(move |path, _| match number(path) % 7 == 3 && !state.load(Ordering::SeqCst) {
        true => (404, String::new()),
        false => (200, format!("{{\"answer\": {}}}", number(path) % 5)),
    });
    let space = Scratch::new();
    let database = space.path("t.db");
    let fill = "import sqlite3,sys; d=sqlite3.connect(sys.argv[1]); d.execute('create table t(k integer, v text)'); \
                d.executemany('insert into t values(?,?)',[(1,'a'),(1,'b'),(3,'c'),(4,'d'),(4,'d')]); d.commit()";
    let empty =
        "import sqlite3,sys; d=sqlite3.connect(sys.argv[1]); d.execute('update t set v = \\'other\\''); d.commit()";
    let python = |script: &str| {
        let made = std::process::Command::new("python3").args(["-c", script]).arg(&database).status().unwrap();
        assert!(made.success());
    };
    python(fill);
    space.write(
        "rowmill.yaml",
        format!(
            "{}  db: {{kind: sqlite, url: \"sqlite:{}\"}}\nstate: {{chunk_rows: 20}}\n",
            service.configuration(""),
            database.display()
        ),
    );
    space.write(
        "flow.yaml",
        "
rowmill: 1
name: looked-up
durable: true
sources: {numbers: {range: {end: 100}}}
steps:
  twice: {sql: 'SELECT value FROM numbers UNION ALL SELECT value FROM numbers WHERE value > 90'}
  asked:
    http: {from: twice, connection: api, path: '/item/{value}', response: {answer: {json: /answer, type: int64}}}
    on_error: dead_letter
  found:
    lookup: {from: asked, connection: db, query: 'SELECT v FROM t WHERE k = {answer}', types: {v: string}, on_missing: skip, matches: all}
sinks: {out: {from: found, path: out.csv}}
",
    );
    let done = space.rowmill(&["run", "flow.yaml"]);
    assert_eq!(done.code, 3, "{}{}", done.out, done.err);
    let first = std::fs::read_to_string(space.path("out.csv")).unwrap();
    // Rows that were looked up before keep what was found then; only new ones see the table as it is now.
    python(empty);
    mended.store(true, Ordering::SeqCst);
    let done = space.rowmill(&["retry", "last"]);
    assert_eq!(done.code, 0, "{}{}", done.out, done.err);
    let second = std::fs::read_to_string(space.path("out.csv")).unwrap();
    // Equal calls are one to another: which of the items that read one answer gets an old result is not told.
    let of_call = |line: &str| line.split_once(',').unwrap().1.to_owned();
    let of_item = |line: &str| line.split(',').next().unwrap().to_owned();
    let mut items: Vec<String> = first.lines().skip(1).map(of_item).collect();
    let mut wanted: Vec<String> = first.lines().skip(1).map(of_call).collect();
    let failed = (0..100u64).chain(91..100).filter(|value| value % 7 == 3);
    for value in failed {
        let matches = match value % 5 {
            1 | 4 => 2,
            3 => 1,
            _ => 0,
        };
        wanted.extend(std::iter::repeat_n(format!("{},other", value % 5), matches));
        items.extend(std::iter::repeat_n(value.to_string(), matches));
    }
    let sorted = |mut lines: Vec<String>| {
        lines.sort_unstable();
        lines
    };
    assert_eq!(sorted(second.lines().skip(1).map(of_call).collect()), sorted(wanted));
    assert_eq!(sorted(second.lines().skip(1).map(of_item).collect()), sorted(items));
}

#[test]
fn dead_letters_have_a_sink() {
    let service = Service::start(|path, _| match number(path) % 40 == 7 {
        true => (422, "no".to_owned()),
        false => (200, format!("{{\"answer\": {}}}", number(path))),
    });
    let flow = "
rowmill: 1
name: letters
sources: {numbers: {range: {end: 200}}}
steps:
  words: {sql: 'SELECT value, CASE WHEN value = 150 THEN NULL ELSE value * 10 END AS ten FROM numbers'}
  asked:
    http: {from: words, connection: api, path: '/item/{value}', response: {answer: {json: /answer, type: int64}}}
    on_error: dead_letter
  parsed:
    sql: SELECT value, 10 / (value % 100) AS part FROM asked
    on_error: dead_letter
sinks:
  good: {from: parsed, path: good.csv}
  bad: {from: asked.dead_letters, path: bad.json}
  odd: {from: Parsed.Dead_Letters, path: odd.csv}
";
    for durable in [false, true] {
        let space = Scratch::new();
        space.write("flow.yaml", flow);
        space.write("rowmill.yaml", service.configuration(""));
        let arguments = if durable { vec!["run", "flow.yaml", "--durable"] } else { vec!["run", "flow.yaml"] };
        let done = space.rowmill(&arguments);
        assert_eq!(done.code, 3, "{}{}", done.out, done.err);
        let read = |name: &str| std::fs::read_to_string(space.path(name)).unwrap();
        let bad = read("bad.json");
        let letters: Vec<Value> = bad.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(letters.len(), 5, "{bad}");
        let one = letters.iter().find(|letter| letter["value"] == 47).unwrap();
        assert_eq!((one["ten"].as_i64(), one["error_code"].as_str()), (Some(470), Some("status")), "{one}");
        assert_eq!(one["error_status"], 422);
        assert_eq!(one["error_attempts"], 1);
        let odd = read("odd.csv");
        assert_eq!(odd.lines().count(), 1 + 2, "{odd}");
        assert!(odd.lines().any(|line| line.starts_with("100,") && line.contains("division by zero")), "{odd}");
        assert_eq!(read("good.csv").lines().count(), 1 + 193);
    }
    // They are the only thing that anybody reads of the step.
    let space = Scratch::new();
    let only = flow.replace("  good: {from: parsed, path: good.csv}\n", "").replace("  odd: {from: Parsed", "  #");
    space.write("flow.yaml", &only);
    space.write("rowmill.yaml", service.configuration(""));
    let done = space.rowmill(&["run", "flow.yaml"]);
    assert_eq!(done.code, 3, "{}{}", done.out, done.err);
    assert_eq!(std::fs::read_to_string(space.path("bad.json")).unwrap().lines().count(), 5);
    // Who puts nothing aside has none.
    space.write("flow.yaml", only.replace("on_error: dead_letter", "on_error: skip"));
    let done = space.rowmill(&["check", "flow.yaml"]);
    assert_eq!(done.code, 1, "{}{}", done.out, done.err);
    assert!(done.err.contains("RM0204") && done.err.contains("on_error: dead_letter"), "{}", done.err);
}

/// Rows of equal items that are called once, one of them a default: nobody can tell which row is whose, and the calls must
/// not be made again. That is said before a version is begun, and the run stays as it was.
#[test]
fn a_retry_that_would_have_to_repeat_calls_is_refused_before_it_begins() {
    let space = Scratch::new();
    space.write("in.csv", "v\n1\n2\n2\n3\n");
    space.write(
        "split.py",
        "import json, sys\nseen = set()\nfor line in sys.stdin:\n    it = json.loads(line)\n    v = it['item']['v']\n    if v == 2 and v in seen:\n        print(json.dumps({'id': it['id'], 'error': 'twice'}), flush=True)\n        continue\n    seen.add(v)\n    print(json.dumps({'id': it['id'], 'ok': [{'w': v}] * v}), flush=True)\n",
    );
    space.write(
        "flow.yaml",
        "
rowmill: 1
name: split
durable: true
sources: {rows: {path: in.csv}}
steps:
  split:
    command: {from: rows, argv: [python3, split.py], reads: [v], output: {w: int64}, fan_out: true}
    in_flight: 1
    on_error: {default: {w: -1}}
sinks: {out: {from: split, path: out.csv}}
",
    );
    space.rowmill(&["run", "flow.yaml"]).ok();
    let first = std::fs::read_to_string(space.path("out.csv")).unwrap();
    for _ in 0..2 {
        space.rowmill(&["retry", "last"]).fails(1, &["RM0809", "`split`", "equal items"]);
        assert_eq!(std::fs::read_to_string(space.path("out.csv")).unwrap(), first);
        let items = space.rowmill(&["items", "last", "--format", "csv"]).ok();
        assert_eq!(items.rows().len(), 1, "{}", items.out);
    }
    let runs = space.rowmill(&["runs", "--output", "json"]).ok();
    assert!(runs.out.contains("\"succeeded\""), "{}", runs.out);
}
