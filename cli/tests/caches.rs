//! `rowmill cache`, and whole results of SQL steps that are kept from one run to the next.

use serde_json::Value;

use crate::service::{Service, number};
use crate::support::Scratch;

const CALLS: &str = "
rowmill: 1
name: cached
sources: {numbers: {range: {end: 50}}}
steps:
  asked:
    http: {from: numbers, connection: api, path: '/item/{value}', response: {answer: {json: /answer, type: int64}}}
    cache: {tier: disk}
  other:
    http: {from: numbers, connection: api, path: '/other/{value}', response: {answer: {json: /answer, type: int64}}}
    cache: {tier: disk, max_size: 1MB}
sinks:
  out: {from: asked, path: out.csv}
  more: {from: other, path: more.csv}
";

#[test]
fn caches_are_filled_shown_and_cleared() {
    let service = Service::start(|path, _| (200, format!("{{\"answer\": {}}}", number(path))));
    let space = Scratch::new();
    space.write("flow.yaml", CALLS);
    space.write("rowmill.yaml", service.configuration(""));
    let nothing = space.rowmill(&["cache", "stats"]);
    assert!(nothing.code == 0 && nothing.out.contains("nothing is kept"), "{}{}", nothing.out, nothing.err);

    let warm = space.rowmill(&["cache", "warm", "flow.yaml", "--step", "asked"]);
    assert_eq!(warm.code, 0, "{}{}", warm.out, warm.err);
    assert_eq!(service.seen().len(), 50);
    assert!(!space.path("out.csv").exists(), "a sink is left alone");
    let run = space.rowmill(&["run", "flow.yaml", "--output", "json"]);
    assert_eq!(run.code, 0, "{}{}", run.out, run.err);
    assert_eq!(service.seen().len(), 100, "only the step that was not warm is asked for");
    let report: Value = serde_json::from_str(&run.out).unwrap();
    let asked = report["items"].as_array().unwrap().iter().find(|items| items["step"] == "asked").unwrap();
    assert_eq!(asked["outcomes"]["cached"], 50);

    let stats = space.rowmill(&["cache", "stats", "--output", "json"]);
    let stats: Value = serde_json::from_str(&stats.out).unwrap();
    let places = stats["caches"].as_array().unwrap();
    assert_eq!(places.len(), 2, "{stats}");
    assert!(places.iter().all(|place| place["entries"] == 50), "{stats}");

    let one = space.rowmill(&["cache", "clear", "flow.yaml", "--step", "other"]);
    assert_eq!(one.code, 0, "{}{}", one.out, one.err);
    assert_eq!(space.rowmill(&["run", "flow.yaml"]).code, 0);
    assert_eq!(service.seen().len(), 150, "the other step's results were not forgotten");
    let unclear = space.rowmill(&["cache", "clear"]);
    assert!(unclear.code == 1 && unclear.err.contains("--all"), "{}", unclear.err);
    assert_eq!(space.rowmill(&["cache", "clear", "--all"]).code, 0);
    assert_eq!(space.rowmill(&["run", "flow.yaml"]).code, 0);
    assert_eq!(service.seen().len(), 250);
    let none = space.rowmill(&["cache", "warm", "flow.yaml", "--step", "nobody"]);
    assert!(none.code == 1 && none.err.contains("RM0706"), "{}", none.err);
}

const RESULTS: &str = "
rowmill: 1
name: results
params: {least: {type: int64, default: 1}}
sources: {rows: {path: rows.csv}}
steps:
  clean: {sql: 'SELECT k, n FROM rows WHERE n >= $least'}
  sums:
    sql: SELECT k, sum(n) AS total FROM clean GROUP BY k ORDER BY k
    cache: {ttl: 1d}
  top: {sql: SELECT * FROM sums WHERE total > 0 ORDER BY k LIMIT 100}
sinks:
  out: {from: top, path: out.csv}
";

/// Rows that `clean` gave: none where the result below it was kept.
fn made(space: &Scratch, more: &[&str]) -> u64 {
    let mut arguments = vec!["run", "flow.yaml", "--output", "json"];
    arguments.extend(more);
    let done = space.rowmill(&arguments);
    assert_eq!(done.code, 0, "{}{}", done.out, done.err);
    let report: Value = serde_json::from_str(&done.out).unwrap();
    let step = report["steps"].as_array().unwrap().iter().find(|step| step["name"] == "clean").unwrap();
    step["rows"].as_u64().unwrap()
}

#[test]
fn a_result_is_made_again_only_when_what_it_hangs_on_changed() {
    let space = Scratch::new();
    space.write("flow.yaml", RESULTS);
    space.write("rows.csv", "k,n\na,1\nb,2\na,3\n");
    let out = || std::fs::read_to_string(space.path("out.csv")).unwrap();
    assert_eq!(made(&space, &[]), 3);
    assert_eq!(out(), "k,total\na,4\nb,2\n");
    std::fs::remove_file(space.path("out.csv")).unwrap();
    assert_eq!(made(&space, &[]), 0, "the result is kept");
    assert_eq!(out(), "k,total\na,4\nb,2\n");
    assert_eq!(made(&space, &["--durable"]), 0, "for durable runs too");

    assert_eq!(made(&space, &["--set", "least=2"]), 2, "another parameter");
    assert_eq!(out(), "k,total\na,3\nb,2\n");
    assert_eq!(made(&space, &[]), 0, "and the first is still there");
    // A line above it is no change of the step.
    space.write("flow.yaml", format!("# A word.\n{RESULTS}"));
    assert_eq!(made(&space, &[]), 0);
    space.write("flow.yaml", RESULTS.replace("n >= $least", "n > $least"));
    assert_eq!(made(&space, &[]), 2, "another query below it");
    space.write("flow.yaml", RESULTS);
    space.write("rows.csv", "k,n\na,1\nb,2\na,3\nc,5\n");
    assert_eq!(made(&space, &[]), 4, "another file");
    assert_eq!(out(), "k,total\na,4\nb,2\nc,5\n");

    // One that is not whole is made again.
    let results = space.path(".rowmill/cache/results");
    for result in std::fs::read_dir(&results).unwrap() {
        for file in std::fs::read_dir(result.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|end| end == "arrow") {
                std::fs::write(path, "torn").unwrap();
            }
        }
    }
    assert_eq!(made(&space, &[]), 4);
    assert_eq!(out(), "k,total\na,4\nb,2\nc,5\n");
    let cleared = space.rowmill(&["cache", "clear", "flow.yaml"]);
    assert!(cleared.code == 0 && cleared.out.contains("sums"), "{}{}", cleared.out, cleared.err);
    assert_eq!(made(&space, &[]), 4);
}

#[test]
fn what_is_no_function_of_its_input_is_not_kept() {
    let space = Scratch::new();
    space.write("rows.csv", "k,n\na,1\n");
    for (from, to, code, word) in [
        ("sum(n) AS total", "sum(n) + random() AS total", "RM0313", "random"),
        ("SELECT k, n FROM", "SELECT k, n, now() AS at FROM", "RM0313", "now"),
        ("cache: {ttl: 1d}", "cache: {tier: memory}", "RM0113", "tier"),
        ("cache: {ttl: 1d}", "cache: {key: [k]}", "RM0113", "key"),
    ] {
        space.write("flow.yaml", RESULTS.replace(from, to));
        let done = space.rowmill(&["check", "flow.yaml"]);
        assert_eq!(done.code, 1, "{to}: {}{}", done.out, done.err);
        assert!(done.err.contains(word), "{to}: {}", done.err);
        assert!(done.err.contains(code), "{to}: {}", done.err);
    }
    // Rows of which only some were asked for are no result to keep.
    space.write("rows.csv", "k,n\na,1\nb,1\nc,1\n");
    space.write("flow.yaml", RESULTS.replace("ORDER BY k LIMIT 100", "LIMIT 1").replace(" ORDER BY k\n", "\n"));
    assert_eq!(made(&space, &[]), 3);
    assert_eq!(std::fs::read_to_string(space.path("out.csv")).unwrap().lines().count(), 1 + 1);
    space.write("flow.yaml", RESULTS.replace(" ORDER BY k\n", "\n"));
    assert_eq!(made(&space, &[]), 3);
    assert_eq!(std::fs::read_to_string(space.path("out.csv")).unwrap().lines().count(), 1 + 3);
}
