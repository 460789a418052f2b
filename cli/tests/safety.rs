//! What attacks get when they come through steps: secrets that services send back, values that want to be SQL, caches
//! of somebody else's credentials, addresses that nobody may call.

use std::path::Path;

use crate::service::{Service, number};
use crate::support::Scratch;

const CANARY: &str = "c4n4ry-Zz9/8e7d+";

/// The ways in which a secret could be written.
fn forms() -> Vec<String> {
    let base64 = "YzRuNHJ5LVp6OS84ZTdkKw==";
    vec![CANARY.to_owned(), base64.to_owned(), "c4n4ry-Zz9%2F8e7d%2B".to_owned(), "c4n4ry-Zz9%2f8e7d%2b".to_owned()]
}

fn holds(bytes: &[u8], form: &str) -> bool {
    bytes.windows(form.len()).any(|window| window == form.as_bytes())
}

fn search(folder: &Path, forms: &[String], looked_at: &mut usize) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            search(&path, forms, looked_at);
            continue;
        }
        // The file that the configuration refers to is where the secret lives.
        if path.ends_with("token.txt") {
            continue;
        }
        *looked_at += 1;
        let bytes = std::fs::read(&path).unwrap();
        for form in forms {
            assert!(!holds(&bytes, form), "{} holds {form}", path.display());
        }
    }
}

#[test]
fn a_secret_that_a_service_sends_back_is_nowhere() {
    let echo = forms().join(" ");
    let service = Service::start(move |path, _| match number(path) % 10 {
        3 => (422, format!("{{\"error\": \"the token {echo} may not do this\"}}")),
        4 => (200, format!("not json, but {echo}")),
        _ => (200, format!("{{\"answer\": {}}}", number(path))),
    });
    let space = Scratch::new();
    space.write("token.txt", format!("{CANARY}\n"));
    let configuration = service
        .configuration(", auth: {bearer: {token: 'file:token.txt'}}, headers: {x-plain: shown}")
        .replace("file:token.txt", &format!("file:{}", space.path("token.txt").display()));
    space.write("rowmill.yaml", configuration);
    let flow = "
rowmill: 1
name: secretive
sources: {numbers: {range: {end: 40}}}
steps:
  called:
    http: {from: numbers, connection: api, path: '/item/{value}', response: {answer: {json: /answer, type: int64}}}
    POLICY
sinks:
  out: {from: called, path: out.csv}
";
    let letters = "on_error: dead_letter\n    cache: {tier: disk}";
    space.write(
        "flow.yaml",
        flow.replace("POLICY", letters).replace("  out:", "  bad: {from: called.dead_letters, path: bad.csv}\n  out:"),
    );
    space.write("stops.yaml", flow.replace("    POLICY\n", ""));
    let mut said = Vec::new();
    for (code, arguments) in [
        (3, &["run", "flow.yaml", "--durable", "--option", "log.level=trace"][..]),
        (3, &["run", "flow.yaml", "--output", "json"]),
        (1, &["run", "stops.yaml", "--durable"]),
        (0, &["explain", "flow.yaml"]),
        (0, &["check", "flow.yaml"]),
        (0, &["config", "show"]),
        (0, &["runs"]),
        (0, &["show", "last"]),
        (0, &["logs", "last"]),
        (0, &["items", "last"]),
        (0, &["cache", "stats"]),
    ] {
        let answer = space.rowmill(arguments);
        assert_eq!(answer.code, code, "{arguments:?}: {}{}", answer.out, answer.err);
        said.push((arguments.join(" "), answer.out + &answer.err));
    }
    let first = said[1].1.clone();
    assert!(first.contains("may not do this"), "the rest of the message is there: {first}");
    for (command, text) in said {
        for form in forms() {
            assert!(!text.contains(&form), "`{command}` shows {form}: {text}");
        }
    }
    let mut looked_at = 0;
    search(&space.path(""), &forms(), &mut looked_at);
    assert!(looked_at > 8, "run store, ledgers, chunks, caches and sinks are {looked_at} files");
}

#[test]
fn values_are_no_sql() {
    let space = Scratch::new();
    let database = space.path("t.db");
    let script = "import sqlite3,sys; d=sqlite3.connect(sys.argv[1]); d.execute('create table t(k text, v text)'); \
                  d.execute('insert into t values(?,?)', ('a','found')); d.execute('insert into t values(?,?)', \
                  (\"'; DROP TABLE t; --\", 'quoted')); d.commit()";
    let made = std::process::Command::new("python3").args(["-c", script]).arg(&database).status().unwrap();
    assert!(made.success());
    space.write(
        "rowmill.yaml",
        format!("connections: {{db: {{kind: sqlite, url: \"sqlite:{}\"}}}}\n", database.display()),
    );
    let long = "x".repeat(1 << 20);
    let rows: Vec<String> = ["a", "'; DROP TABLE t; --", "\\u0000", "a' OR '1'='1", &long]
        .iter()
        .map(|key| format!("{{\"k\": \"{key}\"}}"))
        .collect();
    space.write("keys.json", rows.join("\n"));
    space.write(
        "flow.yaml",
        "
rowmill: 1
name: injected
sources: {keys: {path: keys.json}}
steps:
  found:
    lookup: {from: keys, connection: db, query: 'SELECT v FROM t WHERE k = {k}', types: {v: string}, on_missing: 'null'}
    on_error: dead_letter
  short: {sql: 'SELECT substr(k, 1, 20) AS k, v FROM found'}
sinks: {out: {from: short, path: out.json}}
",
    );
    let done = space.rowmill(&["run", "flow.yaml"]);
    assert!(done.code == 0 || done.code == 3, "{}{}", done.out, done.err);
    let out = std::fs::read_to_string(space.path("out.json")).unwrap();
    assert!(out.contains("\"v\":\"found\"") && out.contains("\"v\":\"quoted\""), "{out}");
    assert_eq!(out.matches("\"v\":\"found\"").count(), 1, "no value became a condition: {out}");
    let again = space.rowmill(&["run", "flow.yaml"]);
    assert_eq!(again.code, done.code, "the table is still there: {}", again.err);
}

#[test]
fn results_of_other_credentials_are_not_seen() {
    let service = Service::start(|path, _| (200, format!("{{\"answer\": {}}}", number(path))));
    let space = Scratch::new();
    space.write("rowmill.yaml", service.configuration(", auth: {bearer: {token: env:TOKEN}}"));
    space.write(
        "flow.yaml",
        "
rowmill: 1
name: shared
sources: {numbers: {range: {end: 20}}}
steps:
  called:
    http: {from: numbers, connection: api, path: '/item/{value}', response: {answer: {json: /answer, type: int64}}}
    cache: {tier: disk}
sinks: {out: {from: called, path: out.csv}}
",
    );
    for (token, calls) in [("one", 20), ("one", 20), ("two", 40), ("one", 40)] {
        let done = space.command().args(["run", "flow.yaml"]).env("TOKEN", token).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        assert_eq!(service.seen().len(), calls, "{token}");
    }
}

#[test]
fn addresses_of_the_machine_itself_are_not_called() {
    let space = Scratch::new();
    space.write(
        "flow.yaml",
        "
rowmill: 1
name: inward
sources: {numbers: {range: {end: 1}}}
steps:
  called:
    http: {from: numbers, connection: api, path: '/latest/meta-data/{value}', response: {answer: {json: /a, type: int64}}}
    timeout: 5s
sinks: {out: {from: called, path: out.csv}}
",
    );
    for address in ["169.254.169.254", "[::ffff:169.254.169.254]", "0xA9FEA9FE", "100.100.100.200", "[fd00:ec2::254]"] {
        space.write("rowmill.yaml", format!("connections: {{api: {{kind: http, base_url: 'http://{address}'}}}}\n"));
        let done = space.rowmill(&["run", "flow.yaml"]);
        assert!(done.code == 1 || done.code == 75, "{address}: {}{}", done.out, done.err);
        assert!(done.err.contains("that is never called"), "{address}: {}", done.err);
    }
}
