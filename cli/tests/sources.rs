//! Sources: formats, compression, globs, partitions, schema policies.

use crate::support::Scratch;

/// A workflow that copies one source to `out.csv`, sorted by its first column.
fn copy(source: &str) -> String {
    format!(
        "rowmill: 1\nname: copy\nsources:\n  t: {{{source}}}\nsteps:\n  s: {{sql: SELECT * FROM t ORDER BY 1}}\nsinks:\n  out: {{from: s, path: out.csv}}\n"
    )
}

fn out(scratch: &Scratch) -> String {
    std::fs::read_to_string(scratch.path("out.csv")).unwrap()
}

#[test]
fn every_format_and_compression_goes_round() {
    let scratch = Scratch::new();
    scratch.write("a.csv", "id,name,price,day\n1,\"a, \"\"b\"\"\",1.5,2026-01-01\n2,,2.25,2026-01-02\n");
    let mut sinks = String::new();
    let paths = [
        "o.parquet",
        "o.arrow",
        "o.json",
        "o.jsonl.gz",
        "o.csv",
        "o.csv.gz",
        "o.csv.zst",
        "o.csv.bz2",
        "o.csv.xz",
        "o.json.zst",
    ];
    for (at, path) in paths.iter().enumerate() {
        sinks.push_str(&format!("  o{at}: {{from: s, path: out/{path}}}\n"));
    }
    scratch.run(&format!("rowmill: 1\nname: f\nsources:\n  t: {{path: a.csv}}\nsteps:\n  s: {{sql: SELECT * FROM t ORDER BY id}}\nsinks:\n{sinks}")).ok();
    for path in paths {
        scratch.run(&copy(&format!("path: out/{path}, schema_policy: strict"))).ok();
        assert_eq!(
            out(&scratch),
            "id,name,price,day\n1,\"a, \"\"b\"\"\",1.5,2026-01-01\n2,,2.25,2026-01-02\n",
            "{path}"
        );
    }
}

#[test]
fn globs_directories_and_lists() {
    let scratch = Scratch::new();
    scratch.write("in/a.csv", "x\n1\n");
    scratch.write("in/b.csv", "x\n2\n");
    scratch.write("in/_hidden.csv", "x\n9\n");
    scratch.write("in/deep/c.csv", "x\n3\n");
    // What markers and writers in the middle of their work leave: one rule for directories and patterns.
    scratch.write("in/.b.csv", "x\n7\n");
    scratch.write("in/deep/.part/d.csv", "x\n8\n");
    scratch.write("in/_SUCCESS", "");
    scratch.write("in/[odd].csv", "x\n4\n");
    for (source, expected) in [
        ("path: in/a.csv", "x\n1\n"),
        ("path: \"in/?.csv\"", "x\n1\n2\n"),
        ("path: [in/a.csv, in/deep/c.csv]", "x\n1\n3\n"),
        ("path: \"in/**/*.csv\"", "x\n1\n2\n3\n4\n"),
        ("path: \"in/_h*.csv\"", "x\n9\n"),
        ("path: \"in/**/.part/*.csv\"", "x\n8\n"),
        ("path: in/, format: csv", "x\n1\n2\n3\n4\n"),
        ("path: \"in/*\"", "x\n1\n2\n4\n"),
        ("path: in/", "x\n1\n2\n3\n4\n"),
        ("path: in", "x\n1\n2\n3\n4\n"),
        ("path: \"in/[odd].csv\"", "x\n4\n"),
    ] {
        scratch.run(&copy(source)).ok();
        assert_eq!(out(&scratch), expected, "{source}");
    }
    scratch.run(&copy("path: \"in/z*.csv\"")).fails(1, &["RM0502", "z*.csv"]);
}

#[test]
fn partition_folders_become_columns_and_prune() {
    let scratch = Scratch::new();
    scratch.write("in/year=2012/month=1/a.csv", "x\n1\n");
    scratch.write("in/year=2013/month=2/b.csv", "x\n2\n");
    // Never read when year = 2013 is asked for: it is no CSV of this schema.
    scratch.write("in/year=2014/month=__HIVE_DEFAULT_PARTITION__/c.csv", "x\n3\n");
    scratch.run(&copy("path: in/, partitions: {year: int32, month: int32}")).ok();
    assert_eq!(out(&scratch), "x,year,month\n1,2012,1\n2,2013,2\n3,2014,\n");
    let explained = {
        scratch.write("flow.yaml", "rowmill: 1\nname: p\nsources:\n  t: {path: in/, partitions: {year: int32, month: int32}}\nsteps:\n  s: {sql: SELECT x FROM t WHERE year = 2013}\nsinks:\n  out: {from: s, path: out.csv}\n");
        scratch.rowmill(&["explain", "flow.yaml"]).ok().out
    };
    assert!(explained.contains("year=2013") && !explained.contains("year=2012"), "{explained}");
    scratch.run(&copy("path: in/, partitions: {day: int32}")).fails(1, &["RM0508", "day=..."]);
    scratch.run(&copy("path: in/, partitions: {month: date}")).fails(1, &["RM0508", "is not date"]);
}

#[test]
fn files_that_disagree_follow_the_policy() {
    let scratch = Scratch::new();
    scratch.write("in/a.csv", "id,x\n1,1\n");
    scratch.write("in/b.csv", "x,id,extra\n2.5,2,e\n");
    scratch.run(&copy("path: in/")).fails(1, &["RM0506", "a.csv", "b.csv"]);
    scratch.run(&copy("path: in/, schema_policy: union")).ok();
    assert_eq!(out(&scratch), "id,x,extra\n1,1.0,\n2,2.5,e\n");
    scratch.write("in/c.csv", "id,x\nthree,3\n");
    scratch.run(&copy("path: in/, schema_policy: union")).fails(1, &["RM0506", "`id`", "string"]);
    // The same over Parquet, where the scan itself adapts.
    for (name, query) in
        [("a", "SELECT 1::int AS id, 1::int AS x"), ("b", "SELECT 2.5::double AS x, 2::bigint AS id, 'e' AS extra")]
    {
        scratch.write("flow.yaml", format!("rowmill: 1\nname: w\nsteps:\n  s: {{sql: \"{query}\"}}\nsinks:\n  out: {{from: s, path: pq/{name}.parquet}}\n"));
        scratch.rowmill(&["run", "flow.yaml"]).ok();
    }
    scratch.run(&copy("path: pq/")).fails(1, &["RM0506"]);
    scratch.run(&copy("path: pq/, schema_policy: union")).ok();
    assert_eq!(out(&scratch), "id,x,extra\n1,1.0,\n2,2.5,e\n");
}

#[test]
fn declared_schemas_go_by_name() {
    let scratch = Scratch::new();
    scratch.write("a.csv", "b,a\n1,2026-01-01\n");
    scratch.run(&copy("path: a.csv, schema: {a: date, b: \"decimal(5,2)\"}")).ok();
    assert_eq!(out(&scratch), "a,b\n2026-01-01,1.00\n");
    scratch.run(&copy("path: a.csv, schema: {a: date, c: int64}")).fails(1, &["RM0507", "`c`"]);
    scratch.run(&copy("path: a.csv, schema: {a: date, c: int64}, schema_policy: union")).ok();
    assert_eq!(out(&scratch), "a,c\n2026-01-01,\n");
    scratch.run(&copy("path: a.csv, schema: {a: int64, b: int64}")).fails(1, &["step `s`", "2026-01-01"]);
}

#[test]
fn csv_dialects() {
    let scratch = Scratch::new();
    scratch.write("a.csv", "# note\nid;text;n\n1;'x;y';NA\n2;NA;5\n");
    scratch.run(&copy("path: a.csv, csv: {delimiter: \";\", quote: \"'\", comment: \"#\", null: NA}")).ok();
    assert_eq!(out(&scratch), "id,text,n\n1,x;y,\n2,,5\n");
    scratch.write("c.csv", "a,b\nNA,1\n,2\n");
    scratch.run(&copy("path: c.csv, csv: {\"null\": NA}").replace("ORDER BY 1", "ORDER BY b")).ok();
    assert_eq!(out(&scratch), "a,b\n,1\n,2\n");
    scratch.write("b.csv", "1,2\n3,4\n");
    scratch.run(&copy("path: b.csv, csv: {header: false}, schema: {a: int64, b: string}")).ok();
    assert_eq!(out(&scratch), "a,b\n1,2\n3,4\n");
}

#[test]
fn quoted_line_breaks_survive_a_split() {
    let scratch = Scratch::new();
    // Larger than what is ever read by one task, with a line break inside quotes in every row.
    let mut text = String::from("id,note\n");
    for id in 0..400_000 {
        text.push_str(&format!("{id},\"line one of {id}\nline two\"\n"));
    }
    scratch.write("big.csv", &text);
    assert!(text.len() > (12 << 20));
    scratch
        .run("rowmill: 1\nname: q\nsources:\n  t: {path: big.csv}\nsteps:\n  s: {sql: \"SELECT count(*) AS n, sum(id) AS s FROM t WHERE note LIKE '%two'\"}\nsinks:\n  out: {from: s, path: out.csv}\n")
        .ok();
    assert_eq!(out(&scratch), "n,s\n400000,79999800000\n");
}

#[test]
fn names_match_whatever_their_case() {
    let scratch = Scratch::new();
    scratch.write("a.csv", "Id,Customer Name,lower\n1,ada,x\n");
    scratch
        .run("rowmill: 1\nname: c\nsources:\n  Orders: {path: a.csv}\nsteps:\n  Picked: {sql: 'SELECT id, \"Customer Name\", LOWER FROM orders WHERE ID = 1'}\n  last: {sql: SELECT * FROM PICKED}\nsinks:\n  out: {from: last, path: out.csv}\n")
        .ok();
    assert_eq!(out(&scratch), "Id,Customer Name,lower\n1,ada,x\n");
}

#[test]
fn a_list_parameter_becomes_rows() {
    let scratch = Scratch::new();
    scratch.write(
        "flow.yaml",
        "rowmill: 1\nname: l\nparams:\n  ids: {type: list<int64>, default: [3, 1]}\n  names: {type: list<string>, default: [\"it's\", b]}\nsteps:\n  s: {sql: \"SELECT unnest($ids) AS id, unnest($names) AS name\"}\n  t: {sql: \"SELECT id, name, array_has($ids, id) AS known FROM s ORDER BY id\"}\n  u: {sql: \"SELECT n.x FROM unnest($ids) AS n(x) ORDER BY x\"}\nsinks:\n  out: {from: t, path: out.csv}\n  u: {from: u, path: u.csv}\n",
    );
    scratch.rowmill(&["run", "flow.yaml"]).ok();
    assert_eq!(out(&scratch), "id,name,known\n1,b,true\n3,it's,true\n");
    assert_eq!(std::fs::read_to_string(scratch.path("u.csv")).unwrap(), "x\n1\n3\n");
    scratch.rowmill(&["run", "flow.yaml", "--set", "ids=[7]", "--set", "names=['x']"]).ok();
    assert_eq!(out(&scratch), "id,name,known\n7,x,true\n");
}

#[test]
fn compression_is_obeyed_whatever_the_name() {
    let scratch = Scratch::new();
    scratch.write("plain.csv.gz", "x\n1\n");
    scratch.run(&copy("path: plain.csv.gz, compression: none")).ok();
    assert_eq!(out(&scratch), "x\n1\n");
    scratch.run(&copy("path: plain.csv.gz")).fails(1, &["RM0505", "plain.csv.gz"]);
    let sink = |sink: &str| {
        let text = copy("path: plain.csv.gz, compression: none");
        text.replace("path: out.csv", sink)
    };
    scratch.run(&sink("path: out.csv.gz, compression: none")).fails(1, &["RM0509", "out.csv.gz"]);
    scratch.run(&sink("path: out.csv.gz")).ok();
    assert_eq!(scratch.sql("SELECT * FROM 'out.csv.gz'").rows(), ["1"]);
}

#[test]
fn nan_is_no_constant_and_is_never_passed_over() {
    let scratch = Scratch::new();
    // Five and five are the bounds of the one file, four and five of the other.
    scratch.write("same.csv", "k,f\n1,5\n2,NaN\n3,5\n");
    scratch.write("range.csv", "k,f\n1,4\n2,NaN\n3,5\n");
    for name in ["same", "range"] {
        scratch
            .run(&format!("rowmill: 1\nname: w\nsources:\n  t: {{path: {name}.csv, schema: {{k: int64, f: float64}}}}\nsteps:\n  s: {{sql: \"SELECT k, f FROM t ORDER BY k\"}}\nsinks:\n  out: {{from: s, path: {name}.parquet}}\n"))
            .ok();
    }
    scratch.run(&copy("path: same.parquet")).ok();
    assert_eq!(out(&scratch), "k,f\n1,5.0\n2,NaN\n3,5.0\n");
    assert_eq!(scratch.sql("SELECT k, f FROM 'same.parquet' ORDER BY k").rows(), ["1,5.0", "2,NaN", "3,5.0"]);
    let step = |sql: &str| {
        scratch
            .run(&format!("rowmill: 1\nname: r\nsources:\n  t: {{path: range.parquet}}\nsteps:\n  s: {{sql: \"{sql}\"}}\nsinks:\n  out: {{from: s, path: out.csv}}\n"))
            .ok();
        let rows = out(&scratch);
        // The same of a file by its name.
        let named = scratch.sql(&sql.replace("FROM t", "FROM 'range.parquet'"));
        assert_eq!(named.out, rows, "{sql}");
        rows
    };
    assert_eq!(step("SELECT k FROM t WHERE f > 6"), "k\n2\n");
    assert_eq!(step("SELECT k FROM t WHERE f = 'NaN'"), "k\n2\n");
    assert_eq!(step("SELECT k FROM t WHERE k = 2 AND f <> 4"), "k\n2\n");
    assert_eq!(step("SELECT max(f) AS m FROM t"), "m\nNaN\n");
    assert_eq!(step("SELECT k FROM t ORDER BY f DESC LIMIT 1"), "k\n2\n");
    // With groups as without, wherever among the rows it stands.
    assert_eq!(step("SELECT k > 0 AS g, max(f) AS m, min(f) AS n FROM t GROUP BY 1"), "g,m,n\ntrue,NaN,4.0\n");
    assert_eq!(
        step(
            "SELECT g, max(x) AS m, min(x) AS n FROM (VALUES (1, 'NaN'::double), (1, 2.0), (2, 1.0), (2, 'NaN'::double), (3, NULL)) AS v(g, x) GROUP BY g ORDER BY g"
        ),
        "g,m,n\n1,NaN,2.0\n2,NaN,1.0\n3,,\n"
    );
    // What is asked of other columns still spares reading: the scan says what it passes over by.
    let plan = scratch
        .rowmill(&["sql", "EXPLAIN SELECT k FROM 'range.parquet' WHERE k = 2 AND f > 6", "--format", "csv"])
        .ok();
    assert!(plan.out.contains("pruning_predicate=k_null_count"), "{}", plan.out);
    assert!(!plan.out.contains("f_max"), "{}", plan.out);
}

#[test]
fn files_without_columns_are_refused() {
    let scratch = Scratch::new();
    scratch.write("a.json", "{}\n{}\n");
    scratch.run(&copy("path: a.json")).fails(1, &["RM0505", "a.json", "no columns", "schema:"]);
    scratch.run(&copy("path: a.json, schema: {x: int64}")).ok();
    assert_eq!(out(&scratch), "x\n\"\"\n\"\"\n");
}

#[test]
fn damaged_parquet_is_told_with_its_name() {
    let scratch = Scratch::new();
    scratch
        .run(
            "rowmill: 1\nname: p\nsteps:\n  s: {sql: SELECT 1 AS one}\nsinks:\n  out: {from: s, path: whole.parquet}\n",
        )
        .ok();
    let whole = std::fs::read(scratch.path("whole.parquet")).unwrap();
    scratch.write("long.parquet", [b"PAR1".as_slice(), &[b'x'; 100], b"PAR1"].concat());
    scratch.write("cut.parquet", &whole[..whole.len() - 20]);
    scratch.write("short.parquet", "PAR1PAR1");
    let mut twisted = whole.clone();
    let tail = twisted.len() - 8;
    twisted[tail..tail + 4].copy_from_slice(&7_u32.to_le_bytes());
    scratch.write("twisted.parquet", twisted);
    for name in ["long.parquet", "cut.parquet", "short.parquet", "twisted.parquet"] {
        scratch.run(&copy(&format!("path: {name}"))).fails(1, &["RM0505", name]);
        scratch.rowmill(&["sql", &format!("SELECT * FROM '{name}'")]).fails(1, &["RM0505", name]);
    }
}

#[test]
fn byte_order_marks_are_no_part_of_a_text() {
    let scratch = Scratch::new();
    scratch.write("a.json", b"\xef\xbb\xbf{\"id\":1}\n{\"id\":2}\r\n");
    scratch.write("a.csv", b"\xef\xbb\xbfid\r\n1\r\n2\r\n");
    for name in ["a.json", "a.csv"] {
        scratch.run(&copy(&format!("path: {name}"))).ok();
        assert_eq!(out(&scratch), "id\n1\n2\n", "{name}");
        assert_eq!(scratch.sql(&format!("SELECT id FROM '{name}' ORDER BY 1")).rows(), ["1", "2"], "{name}");
    }
    scratch.write("flow.sql", b"\xef\xbb\xbfCREATE VIEW q AS SELECT 1 AS n;\r\nCOPY q TO 'out.csv';\r\n");
    scratch.rowmill(&["run", "flow.sql"]).ok();
    assert_eq!(out(&scratch), "n\n1\n");
    scratch.write("q.sql", b"\xef\xbb\xbfSELECT 7 AS n");
    assert_eq!(scratch.rowmill(&["sql", "-f", "q.sql", "--format", "csv"]).ok().out, "n\n7\n");
}

#[test]
fn files_by_their_names_are_read_as_sources_are() {
    let scratch = Scratch::new();
    scratch.write("g/a.csv", "a,b\n1,2\n");
    scratch.write("g/_x.csv", "junk\n");
    scratch.write("g/.h.csv", "junk\n");
    scratch.write("s/[x].csv", "a\n2\n");
    scratch.write("p/y=2013/a.csv", "v\n1\n");
    scratch.write("p/y=2014/a.csv", "v\n2\n");
    scratch.write("twice.csv", "a,a\n1,2\n");
    scratch.write("odd.csv.gz", "plain\n");
    assert_eq!(scratch.sql("SELECT * FROM 'g/'").out, "a,b\n1,2\n");
    assert_eq!(scratch.sql("SELECT * FROM 's/[x].csv'").out, "a\n2\n");
    assert_eq!(scratch.sql("SELECT v, y FROM 'p/' ORDER BY v").out, "v,y\n1,2013\n2,2014\n");
    assert_eq!(scratch.sql("SELECT count(*) AS n FROM 'p/*/*.csv'").out, "n\n2\n");
    scratch.rowmill(&["sql", "SELECT * FROM 'twice.csv'"]).fails(1, &["RM0505", "two columns named `a`"]);
    scratch.rowmill(&["sql", "SELECT * FROM 'odd.csv.gz'"]).fails(1, &["RM0505", "odd.csv.gz"]);
    scratch.rowmill(&["sql", "SELECT * FROM nothing"]).fails(1, &["there is no table `nothing`"]);
}

#[test]
fn whole_numbers_of_json_are_exact_or_refused() {
    let scratch = Scratch::new();
    // Beyond the rows that say what columns are, and large enough to be read by several tasks.
    let mut lines = String::new();
    for id in 0..300_000_i64 {
        lines.push_str(&format!("{{\"id\": {}, \"deep\": {{\"list\": [{id}, {id}]}}}}\n", i64::MAX - id));
    }
    scratch.write("a.json", &lines);
    let sum = "SELECT count(*) AS n, min(id) AS low, max(id) AS high, sum(deep['list'][2]) AS sum FROM t";
    let flow = |source: &str| {
        format!(
            "rowmill: 1\nname: whole\nsources:\n  t: {{{source}}}\nsteps:\n  s: {{sql: \"{sum}\"}}\nsinks:\n  out: {{from: s, path: out.csv}}\n"
        )
    };
    scratch.run(&flow("path: a.json")).ok();
    let expected = "n,low,high,sum\n300000,9223372036854475808,9223372036854775807,44999850000\n";
    assert_eq!(out(&scratch), expected);
    for (wrong, shown) in [
        ("{\"id\": 2.5, \"deep\": null}", "2.5 as Int64"),
        ("{\"id\": 9223372036854775808, \"deep\": null}", "9223372036854775808 as Int64"),
        ("{\"id\": 1, \"deep\": {\"list\": [0.5]}}", "0.5 as Int64"),
    ] {
        scratch.write("b.json", format!("{lines}{wrong}\n"));
        scratch.run(&flow("path: b.json")).fails(1, &[shown]);
        assert_eq!(out(&scratch), expected, "{wrong}");
    }
    scratch.write("c.json", "{\"id\": 1.0, \"name\": 7}\n{\"id\": 12e2, \"name\": \"x\"}\n");
    scratch.run(&copy("path: c.json, schema: {id: int16, name: text}")).ok();
    assert_eq!(out(&scratch), "id,name\n1,7\n1200,x\n");
}
