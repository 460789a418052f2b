//! Runs: results, order, parameters, spools, memory, cancellation.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::Scratch;

const ORDERS: &str = "id,customer,amount,day\n1,ada,120.5,2026-01-03\n2,grace,18.2,2026-01-03\n3,ada,75,2026-01-04\n4,edsger,42.1,2026-01-05\n";

#[test]
fn the_starter_runs() {
    let scratch = Scratch::new();
    scratch.rowmill(&["init", "starter"]).ok();
    scratch.rowmill(&["check", "starter/flow.yaml"]).ok();
    let answer = scratch.rowmill(&["run", "starter/flow.yaml", "--preview"]).ok();
    assert!(answer.out.contains("grace") && answer.out.contains("310.0"), "{}", answer.out);
    scratch.rowmill(&["init", "starter"]).fails(2, &["exists already"]);
}

#[test]
fn parameters_are_typed_values() {
    let scratch = Scratch::new();
    scratch.write("orders.csv", ORDERS);
    scratch.write(
        "flow.yaml",
        "rowmill: 1\nname: p\nparams:\n  who: {type: string, default: ada}\n  since: {type: date, default: 2026-01-01}\n  most: {type: int64, default: 10}\nsources:\n  orders: {path: orders.csv}\nsteps:\n  s: {sql: \"SELECT id FROM orders WHERE customer = $who AND day >= $since ORDER BY id LIMIT $most\"}\nsinks:\n  out: {from: s, path: out.csv}\n",
    );
    scratch.rowmill(&["run", "flow.yaml"]).ok();
    assert_eq!(std::fs::read_to_string(scratch.path("out.csv")).unwrap(), "id\n1\n3\n");
    scratch.rowmill(&["run", "flow.yaml", "--set", "since=2026-01-04", "--set", "most=1"]).ok();
    assert_eq!(std::fs::read_to_string(scratch.path("out.csv")).unwrap(), "id\n3\n");
    // What would be an injection is a customer's strange name.
    for name in ["' OR '1'='1", "ada'; DROP TABLE orders; --", "x\u{0}y"] {
        let answer = scratch
            .command()
            .args(["run", "flow.yaml", "--set"])
            .arg(format!("who={}", name.replace('\0', "\\0")))
            .output()
            .unwrap();
        assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
        assert_eq!(std::fs::read_to_string(scratch.path("out.csv")).unwrap(), "id\n");
    }
    scratch.rowmill(&["run", "flow.yaml", "--set", "since=soon"]).fails(2, &["RM0403", "since"]);
    scratch.rowmill(&["run", "flow.yaml", "--set", "sinse=2026-01-01"]).fails(2, &["RM0401", "did you mean `since`?"]);
    scratch.rowmill(&["run", "nothing.yaml"]).fails(2, &["nothing.yaml"]);
}

#[test]
fn an_ordered_step_is_written_in_order() {
    let scratch = Scratch::new();
    scratch
        .run("rowmill: 1\nname: o\nsources:\n  n: {range: {start: 0, end: 200000}}\nsteps:\n  s: {sql: \"SELECT value FROM n ORDER BY value DESC\"}\nsinks:\n  out: {from: s, path: out.csv}\n")
        .ok();
    let text = std::fs::read_to_string(scratch.path("out.csv")).unwrap();
    let values: Vec<i64> = text.lines().skip(1).map(|line| line.parse().unwrap()).collect();
    assert_eq!(values.len(), 200_000);
    assert!(values.windows(2).all(|pair| pair[0] > pair[1]));
}

#[test]
fn a_step_with_several_readers_runs_once() {
    let scratch = Scratch::new();
    // random() shows it: were the step run twice, its readers would see different numbers.
    scratch
        .run("rowmill: 1\nname: spool\nsources:\n  n: {range: {start: 0, end: 100000}}\nsteps:\n  drawn: {sql: \"SELECT value, random() AS r FROM n\"}\n  high: {sql: \"SELECT sum(r) AS s FROM drawn\"}\n  joined: {sql: \"SELECT count(*) AS same FROM drawn a JOIN drawn b ON a.value = b.value AND a.r = b.r\"}\nsinks:\n  a: {from: high, path: a.csv}\n  b: {from: joined, path: b.csv}\n  c: {from: drawn, path: c.parquet}\n")
        .ok();
    assert_eq!(std::fs::read_to_string(scratch.path("b.csv")).unwrap(), "same\n100000\n");
    let total = scratch.sql("SELECT sum(r) FROM 'c.parquet'").rows()[0].parse::<f64>().unwrap();
    let seen: f64 = std::fs::read_to_string(scratch.path("a.csv")).unwrap().lines().nth(1).unwrap().parse().unwrap();
    assert!((total - seen).abs() < 1e-6 * total, "{total} {seen}");
}

#[test]
fn a_spool_larger_than_memory_goes_to_disk() {
    let scratch = Scratch::new();
    scratch.write(
        "flow.yaml",
        "rowmill: 1\nname: spool\nsources:\n  n: {range: {start: 0, end: 20000000}}\nsteps:\n  wide: {sql: \"SELECT value, value * 2 AS a, value * 3 AS b FROM n\"}\n  one: {sql: \"SELECT sum(a) AS s FROM wide\"}\n  two: {sql: \"SELECT max(b) AS m FROM wide WHERE value > (SELECT avg(value) FROM wide)\"}\nsinks:\n  a: {from: one, path: a.csv}\n  b: {from: two, path: b.csv}\n",
    );
    scratch.rowmill(&["run", "flow.yaml", "--memory", "200MB"]).ok();
    assert_eq!(std::fs::read_to_string(scratch.path("a.csv")).unwrap(), "s\n399999980000000\n");
    assert_eq!(std::fs::read_to_string(scratch.path("b.csv")).unwrap(), "m\n59999997\n");
}

#[test]
fn a_diamond_of_thirty_steps_is_linear() {
    let scratch = Scratch::new();
    let mut text = String::from("rowmill: 1\nname: diamond\nsources:\n  s0: {range: {start: 0, end: 100}}\nsteps:\n");
    for step in 1..=30 {
        let before = step - 1;
        text.push_str(&format!(
            "  s{step}: {{sql: \"SELECT a.value FROM s{before} a JOIN s{before} b ON a.value = b.value\"}}\n"
        ));
    }
    text.push_str("sinks:\n  out: {from: s30, path: out.csv}\n");
    let started = Instant::now();
    scratch.run(&text).ok();
    assert_eq!(std::fs::read_to_string(scratch.path("out.csv")).unwrap().lines().count(), 101);
    // Exponential would be 2^30 scans; the bound is only there to tell the two apart.
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
}

#[test]
fn a_step_that_nobody_needs_does_not_run() {
    let scratch = Scratch::new();
    scratch.write("orders.csv", ORDERS);
    let answer = scratch
        .run("rowmill: 1\nname: lazy\nsources:\n  orders: {path: orders.csv}\n  gone: {path: gone.csv}\nsteps:\n  used: {sql: SELECT id FROM orders}\n  idle: {sql: SELECT * FROM gone}\nsinks:\n  out: {from: used, path: out.csv}\n")
        .ok();
    assert!(answer.out.contains("not needed, not run: idle"), "{}", answer.out);
    // check looks at everything
    scratch.rowmill(&["check", "flow.yaml"]).fails(1, &["gone.csv"]);
}

#[test]
fn wide_steps_spill_within_the_limit() {
    let scratch = Scratch::new();
    scratch.write(
        "flow.yaml",
        "rowmill: 1\nname: sort\nsources:\n  n: {range: {start: 0, end: 12000000}}\nsteps:\n  s: {sql: \"SELECT value, value * 7919 % 1000003 AS k FROM n ORDER BY k, value\"}\n  g: {sql: \"SELECT k, count(*) AS n FROM s GROUP BY k\"}\nsinks:\n  out: {from: s, path: out.parquet}\n  groups: {from: g, path: groups.parquet}\n",
    );
    scratch.rowmill(&["run", "flow.yaml", "--memory", "300MB"]).ok();
    assert_eq!(scratch.sql("SELECT count(*), min(k), max(k) FROM 'out.parquet'").rows(), ["12000000,0,1000002"]);
    assert_eq!(scratch.sql("SELECT count(*), sum(n) FROM 'groups.parquet'").rows(), ["1000003,12000000"]);
}

#[test]
fn a_join_that_does_not_fit_is_sorted_instead() {
    let scratch = Scratch::new();
    scratch.write(
        "flow.yaml",
        "rowmill: 1\nname: join\nsources:\n  a: {range: {start: 0, end: 6000000}}\n  b: {range: {start: 0, end: 6000000}}\nsteps:\n  j: {sql: \"SELECT count(*) AS n FROM (SELECT value, md5(value::varchar) AS h FROM a) x JOIN (SELECT value, md5(value::varchar) AS h FROM b) y ON x.h = y.h\"}\nsinks:\n  out: {from: j, path: out.csv}\n",
    );
    let answer = scratch.rowmill(&["run", "flow.yaml", "--memory", "400MB", "--output", "json"]).ok();
    assert_eq!(std::fs::read_to_string(scratch.path("out.csv")).unwrap(), "n\n6000000\n");
    let json: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!(json["replanned"], true, "the hash join fitted, so nothing was tested");
}

#[test]
fn ctrl_c_leaves_the_old_result_and_nothing_else() {
    let scratch = Scratch::new();
    scratch.write("out/out.csv", "old\n");
    scratch.write(
        "flow.yaml",
        "rowmill: 1\nname: long\nsources:\n  n: {range: {start: 0, end: 100000000000}}\nsteps:\n  s: {sql: \"SELECT value FROM n\"}\nsinks:\n  out: {from: s, path: out/out.csv}\n",
    );
    let mut child = scratch.command().args(["run", "flow.yaml"]).stderr(Stdio::piped()).spawn().unwrap();
    // Wait until it writes, so that there is something to leave behind.
    let deadline = Instant::now() + Duration::from_secs(30);
    while scratch.names("out").len() < 2 {
        assert!(Instant::now() < deadline, "the run never started to write");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(300));
    let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    assert_eq!(scratch.names("out"), ["out.csv"]);
    assert_eq!(std::fs::read_to_string(scratch.path("out/out.csv")).unwrap(), "old\n");
}

#[test]
fn what_a_killed_run_left_is_swept_by_the_next() {
    let scratch = Scratch::new();
    let flow = |end: &str| {
        format!(
            "rowmill: 1\nname: long\nsources:\n  n: {{range: {{start: 0, end: {end}}}}}\nsteps:\n  s: {{sql: \"SELECT value FROM n\"}}\nsinks:\n  out: {{from: s, path: out/out.csv}}\n"
        )
    };
    scratch.write("flow.yaml", flow("100000000000"));
    let mut child = scratch.command().args(["run", "flow.yaml"]).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while scratch.names("out").is_empty() {
        assert!(Instant::now() < deadline, "the run never started to write");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(200));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(scratch.names("out").iter().any(|name| name.contains(".rowmill-")), "the kill left nothing to sweep");
    scratch.run(&flow("10")).ok();
    assert_eq!(scratch.names("out"), ["out.csv"]);
}

#[test]
fn explain_draws_the_graph() {
    let scratch = Scratch::new();
    scratch.rowmill(&["init"]).ok();
    let text = scratch.rowmill(&["explain", "flow.yaml"]).ok().out;
    assert!(text.contains("stage 1") && text.contains("class memory") && text.contains("DataSourceExec"), "{text}");
    let mermaid = scratch.rowmill(&["explain", "flow.yaml", "--format", "mermaid"]).ok().out;
    assert!(mermaid.starts_with("flowchart") && mermaid.contains("large --> customers"), "{mermaid}");
    let dot = scratch.rowmill(&["explain", "flow.yaml", "--format", "dot"]).ok().out;
    assert!(dot.starts_with("digraph") && dot.contains("\"orders\" -> \"large\""), "{dot}");
    let json = scratch.rowmill(&["explain", "flow.yaml", "--format", "json"]).ok().out;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["nodes"].as_array().unwrap().len(), 4);
    // Explaining runs nothing.
    assert_eq!(scratch.names("."), ["flow.yaml", "orders.csv"]);
}

#[test]
fn sql_reads_files_and_standard_input() {
    let scratch = Scratch::new();
    scratch.write("orders.csv", ORDERS);
    let answer = scratch.sql("SELECT customer, sum(amount) AS total FROM 'orders.csv' GROUP BY customer ORDER BY 1");
    assert_eq!(answer.rows(), ["ada,195.5", "edsger,42.1", "grace,18.2"]);
    scratch.write("q.sql", "CREATE VIEW v AS SELECT 1 AS one; SELECT one + 1 AS two FROM v;");
    assert_eq!(scratch.rowmill(&["sql", "-f", "q.sql", "--format", "json"]).ok().out.trim(), "{\"two\":2}");
    scratch.rowmill(&["sql", "SELECT * FROM ordres"]).fails(1, &["no table `ordres`", "orders.csv"]);
    scratch.rowmill(&["sql", "SELECT nonsense"]).fails(1, &["nonsense"]);
    scratch.rowmill(&["sql", "SELECT FROM WHERE"]).fails(1, &["error"]);
}

#[test]
fn a_reader_that_leaves_is_no_crash() {
    let scratch = Scratch::new();
    let mut child = scratch
        .command()
        .args(["config", "workflow-schema"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(0) && !said.contains("panicked"), "{:?} {said}", output.status);
}
