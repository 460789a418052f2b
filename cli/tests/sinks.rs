//! Sinks: replaced whole, never mixed, valid when empty.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::support::Scratch;

#[test]
fn an_empty_result_is_a_valid_file() {
    let scratch = Scratch::new();
    let mut sinks = String::new();
    for (at, path) in ["e.parquet", "e.csv", "e.arrow", "dir/", "parts/"].iter().enumerate() {
        let partitions = if *path == "parts/" { ", partition_by: [k]" } else { "" };
        sinks.push_str(&format!("  o{at}: {{from: s, path: out/{path}{partitions}}}\n"));
    }
    scratch
        .run(&format!("rowmill: 1\nname: empty\nsources:\n  n: {{range: {{start: 0, end: 10}}}}\nsteps:\n  s: {{sql: \"SELECT value, value % 2 AS k, 'x' AS t FROM n WHERE value < 0\"}}\nsinks:\n{sinks}"))
        .ok();
    assert_eq!(scratch.rowmill(&["sql", "SELECT * FROM 'out/e.parquet'", "--format", "csv"]).ok().out, "value,k,t\n");
    assert_eq!(std::fs::read_to_string(scratch.path("out/e.csv")).unwrap(), "value,k,t\n");
    for source in
        ["path: out/e.parquet", "path: out/e.arrow", "path: out/dir/", "path: out/parts/, partitions: {k: int64}"]
    {
        scratch
            .run(&format!("rowmill: 1\nname: back\nsources:\n  t: {{{source}}}\nsteps:\n  s: {{sql: \"SELECT count(*) AS n, sum(value) AS v, max(t) AS t FROM t\"}}\nsinks:\n  out: {{from: s, path: back.csv}}\n"))
            .ok();
        assert_eq!(std::fs::read_to_string(scratch.path("back.csv")).unwrap(), "n,v,t\n0,,\n", "{source}");
    }
}

#[test]
fn a_directory_is_exchanged_whole() {
    let scratch = Scratch::new();
    let flow = |factor: i64| {
        format!(
            "rowmill: 1\nname: d\nsources:\n  n: {{range: {{start: 0, end: 1000}}}}\nsteps:\n  s: {{sql: \"SELECT value * {factor} AS v, value % 7 AS k FROM n\"}}\nsinks:\n  out: {{from: s, path: out/d/, partition_by: [k]}}\n"
        )
    };
    scratch.run(&flow(1)).ok();
    assert_eq!(scratch.names("out/d").len(), 9, "{:?}", scratch.names("out/d"));
    assert_eq!(scratch.names("out/d/k=3"), ["part-00000.parquet"]);
    scratch.run(&flow(2)).ok();
    assert_eq!(scratch.names("out"), ["d"]);
    scratch
        .run("rowmill: 1\nname: r\nsources:\n  t: {path: out/d/, partitions: {k: int64}}\nsteps:\n  s: {sql: \"SELECT count(*) AS n, sum(v) AS v, sum(k) AS k FROM t\"}\nsinks:\n  out: {from: s, path: r.csv}\n")
        .ok();
    assert_eq!(std::fs::read_to_string(scratch.path("r.csv")).unwrap(), "n,v,k\n1000,999000,2997\n");
}

#[test]
fn a_directory_of_others_is_not_replaced() {
    let scratch = Scratch::new();
    scratch.write("out/precious.txt", "mine");
    scratch
        .run("rowmill: 1\nname: d\nsteps:\n  s: {sql: SELECT 1 AS x}\nsinks:\n  out: {from: s, path: out/}\n")
        .fails(1, &["RM0510", "did not write"]);
    assert_eq!(scratch.names("out"), ["precious.txt"]);
}

#[test]
fn values_cannot_lead_out_of_a_partitioned_directory() {
    let scratch = Scratch::new();
    scratch
        .run("rowmill: 1\nname: d\nsteps:\n  s: {sql: \"SELECT * FROM (VALUES (1, '../../up'), (2, '/etc/x'), (3, 'a=b%2F..'), (4, '.')) AS t(v, k)\"}\nsinks:\n  out: {from: s, path: out/d/, partition_by: [k]}\n")
        .ok();
    assert_eq!(scratch.names("."), ["flow.yaml", "out"]);
    assert_eq!(scratch.names("out"), ["d"]);
    // Four folders and two markers, and every value comes back as it was.
    assert_eq!(scratch.names("out/d").len(), 6, "{:?}", scratch.names("out/d"));
    scratch
        .run("rowmill: 1\nname: r\nsources:\n  t: {path: out/d/, partitions: {k: string}}\nsteps:\n  s: {sql: \"SELECT v, k FROM t ORDER BY v\"}\nsinks:\n  out: {from: s, path: r.csv}\n")
        .ok();
    assert_eq!(std::fs::read_to_string(scratch.path("r.csv")).unwrap(), "v,k\n1,../../up\n2,/etc/x\n3,a=b%2F..\n4,.\n");
}

#[test]
fn a_polling_reader_never_sees_a_mix() {
    let scratch = Scratch::new();
    let flow = |run: usize| {
        format!(
            "rowmill: 1\nname: d\nsources:\n  n: {{range: {{start: 0, end: 50}}}}\nsteps:\n  s: {{sql: \"SELECT {run} AS run, value % 5 AS k FROM n\"}}\nsinks:\n  file: {{from: s, path: out/f.csv}}\n  dir: {{from: s, path: out/d/, partition_by: [k], format: csv}}\n"
        )
    };
    scratch.run(&flow(0)).ok();
    let (stop, polls) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let text = std::fs::read_to_string(scratch.path("out/f.csv")).expect("the file is always there");
                let runs: std::collections::BTreeSet<&str> =
                    text.lines().skip(1).filter_map(|line| line.split(',').next()).collect();
                assert_eq!((runs.len(), text.lines().count()), (1, 51), "{text}");
                // The directory: hold it open, as a reader that lists and then reads does.
                let folder = std::fs::File::open(scratch.path("out/d")).expect("the directory is always there");
                let here = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&folder));
                let mut seen = std::collections::BTreeSet::new();
                let mut parts = 0;
                for k in 0..5 {
                    let Ok(text) = std::fs::read_to_string(format!("{here}/k={k}/part-00000.csv")) else { break };
                    seen.extend(text.lines().skip(1).map(str::to_owned));
                    parts += 1;
                }
                // A version that was replaced meanwhile may be gone, but never mixed.
                if parts == 5 {
                    assert_eq!(seen.len(), 1, "{seen:?}");
                    polls.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        for run in 1..12 {
            scratch.run(&flow(run)).ok();
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(polls.load(Ordering::Relaxed) > 20, "the reader saw too little to prove anything");
}

#[test]
fn a_failed_run_publishes_no_sink() {
    let scratch = Scratch::new();
    scratch.write("out/a.csv", "old\n");
    scratch
        .run("rowmill: 1\nname: f\nsources:\n  n: {range: {start: 0, end: 1000}}\nsteps:\n  good: {sql: SELECT value FROM n}\n  bad: {sql: \"SELECT 1 / (value - 999) AS x FROM n\"}\nsinks:\n  a: {from: good, path: out/a.csv}\n  b: {from: bad, path: out/b.csv}\n")
        .fails(1, &["RM0602", "step `bad`"]);
    assert_eq!(scratch.names("out"), ["a.csv"]);
    assert_eq!(std::fs::read_to_string(scratch.path("out/a.csv")).unwrap(), "old\n");
}

#[test]
fn null_partition_values_stay_null() {
    let scratch = Scratch::new();
    scratch
        .run("rowmill: 1\nname: n\nsteps:\n  s: {sql: \"SELECT * FROM (VALUES (1, 0, false, date '2026-01-02', 1.50), (2, NULL, NULL, NULL, NULL)) AS t(v, i, b, d, m)\"}\nsinks:\n  out: {from: s, path: out/d/, partition_by: [i, b, d, m]}\n")
        .ok();
    scratch
        .run("rowmill: 1\nname: r\nsources:\n  t: {path: out/d/, partitions: {i: int64, b: bool, d: date, m: \"decimal(5, 2)\"}}\nsteps:\n  s: {sql: SELECT * FROM t ORDER BY v}\nsinks:\n  out: {from: s, path: r.csv}\n")
        .ok();
    assert_eq!(
        std::fs::read_to_string(scratch.path("r.csv")).unwrap(),
        "v,i,b,d,m\n1,0,false,2026-01-02,1.50\n2,,,,\n"
    );
}

#[test]
fn links_and_devices_are_not_replaced() {
    let scratch = Scratch::new();
    scratch.write("target.csv", "old\n");
    std::os::unix::fs::symlink("target.csv", scratch.path("link.csv")).unwrap();
    let flow = |path: &str| {
        format!(
            "rowmill: 1\nname: l\nsteps:\n  s: {{sql: SELECT 1 AS x}}\nsinks:\n  out: {{from: s, path: {path}, format: csv}}\n"
        )
    };
    scratch.run(&flow("link.csv")).fails(1, &["RM0510", "symbolic link"]);
    let socket = std::os::unix::net::UnixListener::bind(scratch.path("socket")).unwrap();
    scratch.run(&flow("socket")).fails(1, &["RM0510", "neither a file"]);
    drop(socket);
    assert_eq!(std::fs::read_to_string(scratch.path("target.csv")).unwrap(), "old\n");
}

#[test]
fn csv_tells_null_from_empty_text() {
    let scratch = Scratch::new();
    let flow = |csv: &str| {
        format!(
            "rowmill: 1\nname: csv\nsteps:\n  s: {{sql: \"SELECT * FROM (VALUES (1, 'a', 'x;y'), (2, '', 'say \\\"hi\\\"'), (3, NULL, 'two\\nlines')) AS t(id, \\\"na;me\\\", note) ORDER BY id\"}}\nsinks:\n  out: {{from: s, path: out.csv{csv}}}\n"
        )
    };
    scratch.run(&flow(", csv: {delimiter: ';'}")).ok();
    let text = std::fs::read_to_string(scratch.path("out.csv")).unwrap();
    assert_eq!(text, "id;\"na;me\";note\n1;a;\"x;y\"\n2;\"\";\"say \"\"hi\"\"\"\n3;;\"two\nlines\"\n");
    // With a text for null, an empty text needs no quotes.
    scratch.run(&flow(", csv: {null: NULL}")).ok();
    let text = std::fs::read_to_string(scratch.path("out.csv")).unwrap();
    assert_eq!(text, "id,na;me,note\n1,a,x;y\n2,,\"say \"\"hi\"\"\"\n3,NULL,\"two\nlines\"\n");
    // Readers here see no quotes: everything comes back, but an empty text comes back as null.
    scratch
        .run("rowmill: 1\nname: back\nsources:\n  t: {path: out.csv, csv: {null: NULL, newlines_in_values: true}}\nsteps:\n  s: {sql: \"SELECT id, \\\"na;me\\\" AS name, note FROM t ORDER BY id\"}\nsinks:\n  out: {from: s, path: back.parquet}\n")
        .ok();
    let back =
        scratch.sql("SELECT id, name, note = concat('two', chr(10), 'lines') AS l FROM 'back.parquet' ORDER BY id");
    assert_eq!(back.rows(), ["1,a,false", "2,,false", "3,,true"]);
    // A delimiter that numbers hold.
    scratch.run("rowmill: 1\nname: dots\nsteps:\n  s: {sql: \"SELECT 1.5 AS a, 2 AS b, date '2026-01-02' AS c\"}\nsinks:\n  out: {from: s, path: dots.csv, csv: {delimiter: '.'}}\n").ok();
    assert_eq!(std::fs::read_to_string(scratch.path("dots.csv")).unwrap(), "a.b.c\n\"1.5\".2.2026-01-02\n");
}

#[test]
fn arrow_files_take_the_compression_that_is_asked_for() {
    let scratch = Scratch::new();
    let mut sizes = Vec::new();
    for compression in ["none", "lz4", "zstd"] {
        scratch.run(&format!("rowmill: 1\nname: a\nsources:\n  n: {{range: {{start: 0, end: 300000}}}}\nsteps:\n  s: {{sql: \"SELECT value, value::varchar AS t FROM n\"}}\nsinks:\n  one: {{from: s, path: {compression}.arrow, compression: {compression}}}\n  many: {{from: s, path: {compression}/, format: arrow, compression: {compression}}}\n")).ok();
        sizes.push(std::fs::metadata(scratch.path(&format!("{compression}.arrow"))).unwrap().len());
        scratch.run(&format!("rowmill: 1\nname: b\nsources:\n  t: {{path: {compression}.arrow}}\n  u: {{path: {compression}/}}\nsteps:\n  s: {{sql: \"SELECT count(*) AS n, sum(t.value) AS s, sum(u.t::bigint) AS x FROM t JOIN u ON t.value = u.value\"}}\nsinks:\n  out: {{from: s, path: out.csv}}\n")).ok();
        let text = std::fs::read_to_string(scratch.path("out.csv")).unwrap();
        assert_eq!(text, "n,s,x\n300000,44999850000,44999850000\n", "{compression}");
    }
    assert!(sizes[0] > sizes[1] && sizes[1] > sizes[2], "{sizes:?}");
    scratch.run("rowmill: 1\nname: c\nsteps:\n  s: {sql: SELECT 1 AS one}\nsinks:\n  o: {from: s, path: o.arrow, compression: gzip}\n").fails(1, &["RM0", "gzip"]);
}

#[test]
fn times_without_a_text_are_errors_and_no_values() {
    let scratch = Scratch::new();
    let flow = |path: &str, value: &str| {
        format!(
            "rowmill: 1\nname: t\nsources:\n  n: {{range: {{end: 2}}}}\nsteps:\n  s: {{sql: \"SELECT value, {value} AS t FROM n\"}}\nsinks:\n  out: {{from: s, path: {path}}}\n"
        )
    };
    for value in [
        "arrow_cast(9223372036854775807 - value, 'Timestamp(Microsecond, None)')",
        "arrow_cast(2147483647 - value, 'Date32')",
        "make_array(arrow_cast(9223372036854775807 - value, 'Timestamp(Second, Some(+01:00))'))",
    ] {
        let value = value.replace("Some(+01:00)", "Some(\\\"+01:00\\\")");
        scratch.run(&flow("out.json", &value)).fails(1, &["RM0601", "column `t`"]);
        scratch.run(&flow("d/", &value).replace("path: d/", "path: d/, format: json")).fails(1, &["RM0601"]);
        assert_eq!(scratch.names("."), ["flow.yaml"], "{value}");
        let query = format!("SELECT {} AS t", value.replace("value", "1").replace("\\\"", "\""));
        for format in ["table", "json"] {
            let answer = scratch.rowmill(&["sql", &query, "--format", format]);
            answer.fails(1, &["RM0601"]);
        }
    }
    scratch.run(&flow("out.json", "arrow_cast(value, 'Timestamp(Microsecond, None)')")).ok();
    let text = std::fs::read_to_string(scratch.path("out.json")).unwrap();
    assert!(text.lines().any(|line| line == "{\"value\":0,\"t\":\"1970-01-01T00:00:00\"}"), "{text}");
}

/// Runs `flow.yaml` with this text and a memory of 200 MB; gives the most memory that the process had, in bytes.
fn peak_bytes(scratch: &Scratch, text: &str) -> u64 {
    scratch.write("flow.yaml", text);
    let mut command = scratch.command();
    let silent = std::process::Stdio::null;
    let mut child =
        command.args(["run", "flow.yaml", "--memory", "200MB", "--threads", "2"]).stdout(silent()).spawn().unwrap();
    let mut peak = 0;
    loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let most = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        peak = peak.max(most.unwrap_or(0) << 10);
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{text}");
            return peak;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn many_folders_are_written_with_few_open_files() {
    let scratch = Scratch::new();
    let peak = peak_bytes(
        &scratch,
        "rowmill: 1\nname: p\nsources:\n  n: {range: {end: 30000}}\nsteps:\n  s: {sql: \"SELECT value AS v, value % 1500 AS k FROM n ORDER BY v\"}\nsinks:\n  out: {from: s, path: d/, partition_by: [k]}\n",
    );
    assert!(peak < 500 << 20, "{} MB", peak >> 20);
    assert_eq!(scratch.names("d").len(), 1_502);
    assert_eq!(scratch.names("d/k=7"), ["part-00000.parquet"]);
    // What came first stands first.
    let rows = scratch.sql("SELECT v FROM 'd/k=7/'");
    let expected: Vec<String> = (0..20).map(|at| (at * 1500 + 7).to_string()).collect();
    assert_eq!(rows.rows(), expected);
    let all = scratch.sql("SELECT count(*) AS n, sum(v) AS s, count(DISTINCT k) AS k FROM 'd/'");
    assert_eq!(all.rows(), ["30000,449985000,1500"]);
}

#[test]
fn wide_rows_take_no_more_memory_than_others() {
    let scratch = Scratch::new();
    let step = |source: &str, sql: &str| {
        format!(
            "rowmill: 1\nname: w\nsources:\n  t: {{{source}}}\nsteps:\n  s: {{sql: \"{sql}\"}}\nsinks:\n  out: {{from: s, path: out.parquet}}\n"
        )
    };
    // Made long by an expression, without a word of it in the source.
    let long = "repeat(md5(value::varchar), 2500)";
    let peak = peak_bytes(&scratch, &step("range: {end: 12000}", &format!("SELECT value, {long} AS doc FROM t")));
    assert!(peak < 700 << 20, "made: {} MB", peak >> 20);
    assert_eq!(
        scratch.sql("SELECT count(*) AS n, sum(length(doc)) AS l FROM 'out.parquet'").rows(),
        ["12000,960000000"]
    );
}
