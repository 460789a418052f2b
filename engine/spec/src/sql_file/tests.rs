//! SQL files: the statements, their places, and what is refused.

use super::*;
use crate::model::{Compression, Format, ResourceClass, SchemaPolicy, SourceKind, StepKind};
use crate::types::Value;

const EXAMPLE: &str = "\
-- rowmill: 1
-- name: flight-delays
-- description: Which carriers are late
-- An ordinary comment: with a colon.
-- param month int64 = 1
-- param days list<date> = [2013-01-01, 2013-01-02]
-- param price decimal(5, 2)
-- var data_dir string = 'da''ta'
CREATE EXTERNAL TABLE flights STORED AS PARQUET LOCATION '${vars.data_dir}/flights.parquet';
create external table weather (time TIMESTAMP(us, UTC), temp DECIMAL(5, 2), note VARCHAR(20), n INT, year BIGINT)
  STORED AS CSV PARTITIONED BY (year) LOCATION 'weather/'
  OPTIONS ('format.has_header' 'false', delimiter ';', compression gzip, infer_rows = 5, schema_policy 'union');
/* a block; comment */
CREATE VIEW clean AS
  SELECT *, ';' AS semicolon -- a comment; inside
  FROM flights WHERE month = $month;
CREATE VIEW worst WITH (class = 'memory', memory = '4GiB', description = 'The worst') AS (SELECT carrier FROM clean GROUP BY carrier);
COPY worst TO 'out/worst.parquet';
COPY worst TO 'out/w/' STORED AS CSV PARTITIONED BY (carrier) OPTIONS (header false, null '-', name 'parts');
COPY worst TO 'out/again.arrow' (compression zstd);
COPY (SELECT count(*) AS n FROM (SELECT 1)) TO 'out/é.jsonl'
";

fn place(text: &str, span: Span) -> &str {
    &text[span.start as usize..span.end as usize]
}

fn rendered(text: &str) -> String {
    parse_sql("t.sql", text).unwrap_err().render(false)
}

#[test]
fn the_example_is_read_whole() {
    let workflow = parse_sql("x.sql", EXAMPLE).unwrap_or_else(|reports| panic!("{reports}"));
    assert_eq!(workflow.name.value, "flight-delays");
    assert_eq!(workflow.description.as_deref(), Some("Which carriers are late"));
    assert_eq!(workflow.params["month"].default.as_ref().unwrap().value, Value::from(1_i64));
    assert!(
        matches!(&workflow.params["days"].default.as_ref().unwrap().value, Value::List(_, days) if days.len() == 2)
    );
    assert_eq!(workflow.params["price"].kind.value.to_string(), "decimal(5, 2)");
    assert_eq!(workflow.vars["data_dir"].default.as_ref().unwrap().value, Value::from("da'ta"));
    let SourceKind::Files(weather) = &workflow.sources["weather"].kind else { panic!() };
    let types: Vec<String> =
        weather.schema.as_ref().unwrap().iter().map(|(name, kind)| format!("{name} {}", kind.value)).collect();
    assert_eq!(types, ["time timestamp(us, UTC)", "temp decimal(5, 2)", "note string", "n int32"]);
    assert_eq!(weather.partitions["year"].value.to_string(), "int64");
    assert_eq!((weather.csv.header, weather.csv.delimiter, weather.csv.infer_rows), (false, b';', 5));
    assert_eq!(weather.compression.as_ref().unwrap().value, Compression::Gzip);
    assert_eq!(weather.schema_policy.value, SchemaPolicy::Union);
    let StepKind::Sql(clean) = &workflow.steps["clean"].kind else { panic!("no query") };
    assert!(clean.text.text.starts_with("SELECT *") && clean.text.text.ends_with("$month"));
    let at = clean.text.text.find("flights").unwrap();
    assert_eq!(place(EXAMPLE, clean.text.span_of(at..at + 7)), "flights");
    assert_eq!(workflow.steps["worst"].resources.class.as_ref().unwrap().value, ResourceClass::Memory);
    assert_eq!(workflow.steps["worst"].resources.memory.as_ref().unwrap().value, 4 << 30);
    assert_eq!(workflow.steps["worst"].description.as_deref(), Some("The worst"));
    assert_eq!(workflow.sinks.keys().collect::<Vec<_>>(), ["worst", "parts", "worst_2", "copy"]);
    assert_eq!(workflow.sinks["parts"].partition_by[0].value, "carrier");
    assert_eq!(workflow.sinks["parts"].known_format(), Some(Format::Csv));
    assert_eq!(workflow.sinks["parts"].csv.null.as_deref(), Some("-"));
    assert_eq!(workflow.sinks["copy"].from.value, "copy");
    assert_eq!(workflow.sinks["copy"].path.text, "out/é.jsonl");
    let StepKind::Sql(copy) = &workflow.steps["copy"].kind else { panic!("no query") };
    assert_eq!(copy.text.text, "SELECT count(*) AS n FROM (SELECT 1)");
}

#[test]
fn the_file_names_the_workflow() {
    let text = "CREATE VIEW a AS SELECT 1;";
    assert_eq!(parse_sql("dir/my-flow.sql", text).unwrap().name.value, "my-flow");
    assert!(parse_sql("my flow.sql", text).unwrap_err().render(false).contains("-- name: some-name"));
}

#[test]
fn queries_keep_what_datafusion_takes() {
    for query in [
        "SELECT arr[1], {'a': 1}, x::int, $1, $name, 'it''s', \"Q\" FROM t",
        "WITH r AS (SELECT 1) SELECT * EXCLUDE (a) FROM r QUALIFY row_number() OVER () = 1",
        "SELECT CASE WHEN a THEN 1 END, INTERVAL '1 day', E'\\n', X'00', @x, a -> b, a ->> 'c', a #> b FROM t",
        "VALUES (1, 'a'), (2, 'b')",
        "SELECT $$dollar; quoted$$, 1e5, .5, a || b, a << 2, ~a, a ~* 'x', a @> b",
    ] {
        let text = format!("CREATE VIEW s AS {query} ;\n");
        let workflow = parse_sql("t.sql", &text).unwrap_or_else(|reports| panic!("{reports}"));
        let StepKind::Sql(sql) = &workflow.steps["s"].kind else { panic!("no query") };
        assert_eq!(sql.text.text, query);
    }
}

#[test]
fn ranges_are_sources() {
    let text = "CREATE EXTERNAL TABLE n STORED AS RANGE OPTIONS (start -5, end 1000, description 'Numbers');\nCREATE VIEW s AS SELECT 1";
    let workflow = parse_sql("t.sql", text).unwrap_or_else(|reports| panic!("{reports}"));
    assert_eq!(workflow.sources["n"].description.as_deref(), Some("Numbers"));
    assert!(
        matches!(&workflow.sources["n"].kind, SourceKind::Range { start, end } if (start.value, end.value) == (-5, 1000))
    );
    for (rest, code) in [
        ("OPTIONS (start 5)", codes::MISSING_KEY),
        ("OPTIONS (end x)", codes::WRONG_TYPE),
        ("OPTIONS (end 1, end 2)", codes::DUPLICATE_KEY),
        ("OPTIONS (end 1, step 2)", codes::UNKNOWN_KEY),
        ("LOCATION 'x' OPTIONS (end 1)", codes::NOT_APPLICABLE),
    ] {
        let reports =
            parse_sql("t.sql", &format!("CREATE EXTERNAL TABLE n STORED AS RANGE {rest}; CREATE VIEW s AS SELECT 1"))
                .unwrap_err();
        assert_eq!(reports.reports.iter().map(|report| report.code).collect::<Vec<_>>(), [code], "{reports}");
    }
}

#[test]
fn nothing_that_is_written_is_lost() {
    let base = "CREATE VIEW s AS SELECT 1;";
    for (text, code) in [
        ("CREATE EXTERNAL TABLE t STORED AS CSV STORED AS JSON LOCATION 't'", codes::SQL_FILE_SYNTAX),
        ("CREATE EXTERNAL TABLE t STORED AS CSV LOCATION 't' LOCATION 'u'", codes::SQL_FILE_SYNTAX),
        ("CREATE EXTERNAL TABLE t (a, b INT) STORED AS CSV LOCATION 't'", codes::MISSING_KEY),
        (
            "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION 't' OPTIONS (header true) OPTIONS (header false)",
            codes::DUPLICATE_KEY,
        ),
        ("CREATE EXTERNAL TABLE t STORED AS CSV WITH ORDER (a) LOCATION 't'", codes::SQL_FILE_SYNTAX),
        ("CREATE EXTERNAL TABLE IF NOT EXISTS t STORED AS CSV LOCATION 't'", codes::SQL_FILE_SYNTAX),
        ("CREATE VIEW v WITH (class = 'cpu', class = 'io') AS SELECT 1", codes::DUPLICATE_KEY),
        ("CREATE VIEW v WITH (memory = 'much') AS SELECT 1", codes::BAD_VALUE),
        ("CREATE VIEW v WITH (memory = '0MB') AS SELECT 1", codes::BAD_VALUE),
        ("COPY s TO 'x/' PARTITIONED BY (a INT)", codes::NOT_APPLICABLE),
        ("COPY s TO 'x/' PARTITIONED BY (a) PARTITIONED BY (b)", codes::SQL_FILE_SYNTAX),
        ("COPY s TO 'x.parquet' OPTIONS (header true)", codes::NOT_APPLICABLE),
        ("COPY s TO 'x.csv' OPTIONS (comment '#')", codes::UNKNOWN_KEY),
        ("COPY s TO 'x.csv' OPTIONS (compression snappy)", codes::BAD_COMBINATION),
    ] {
        let reports = parse_sql("t.sql", &format!("{base}{text}")).unwrap_err();
        assert_eq!(reports.reports.iter().map(|report| report.code).collect::<Vec<_>>(), [code], "{reports}");
    }
}

#[test]
fn statements_without_a_place_are_refused() {
    for (text, help) in [
        ("SELECT 1", "make it a step"),
        ("INSERT INTO t SELECT 1", "COPY"),
        ("SET x = 1", "a workflow has"),
        ("CREATE OR REPLACE VIEW a AS SELECT 1", "without `OR REPLACE`"),
        ("CREATE TABLE a AS SELECT 1", "make it a step"),
        ("DROP TABLE a", "a workflow has"),
    ] {
        let report = rendered(text);
        assert!(report.contains("RM0118") && report.contains(help), "{report}");
    }
}

#[test]
fn errors_are_told_all_at_once_with_their_places() {
    let text = "\
-- param month int99
-- param month int8 = 300
CREATE EXTERNAL TABLE a STORED AS PARQET LOCATION 'a';
CREATE EXTERNAL TABLE b STORED AS PARQUET;
CREATE EXTERNAL TABLE c STORED AS PARQUET LOCATION 'c' OPTIONS (delimiter ';', heder true);
CREATE EXTERNAL TABLE d (x INTT, y INT NOT NULL) STORED AS CSV LOCATION 'd';
CREATE VIEW v WITH (clas = 'memory') AS SELECT 1;
CREATE VIEW v AS SELECT 2;
CREATE VIEW w (a, b) AS SELECT 2;
CREATE VIEW x SELECT 2;
CREATE VIEW y AS;
COPY v TO out;
COPY v 'out.csv';
COPY (SELECT 1 TO 'x';
COPY v TO '${params.mnth}.csv';
";
    let reports = parse_sql("t.sql", text).unwrap_err();
    let rendered = reports.render(false);
    let lines: Vec<usize> =
        reports.reports.iter().map(|report| reports.texts.line_column(report.labels[0].0).unwrap().0).collect();
    assert_eq!(lines, [1, 2, 2, 3, 4, 5, 5, 6, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], "{rendered}");
}

#[test]
fn unclosed_quotes_are_placed() {
    let reports = parse_sql("t.sql", "CREATE VIEW é AS SELECT 'abc").unwrap_err();
    assert_eq!(reports.reports[0].code, codes::SQL_FILE_SYNTAX);
    assert_eq!(reports.texts.line_column(reports.reports[0].labels[0].0), Some((1, 25)));
    assert!(rendered("/* open").contains("RM0117"));
}

#[test]
fn versions_and_empty_files() {
    assert!(rendered("-- rowmill: 2\nCREATE VIEW a AS SELECT gizmo;").contains("newer Rowmill"));
    assert!(rendered("").contains("RM0119"));
    assert!(rendered(";;; -- nothing\n").contains("RM0119"));
    assert!(rendered("-- name: a b\nCREATE VIEW a AS SELECT 1").contains("RM0110"));
    assert!(rendered("-- name: a\n-- name: b\nCREATE VIEW a AS SELECT 1").contains("RM0104"));
}

#[test]
fn windows_do_not_change_what_is_read() {
    // Statements, strings and comments of all lengths cross the ends of windows.
    let mut text = String::new();
    for step in 0..400 {
        let filler = "é; ".repeat(step * 7 % 911);
        text.push_str(&format!("-- param p{step} string = 'a;b'\nCREATE VIEW s{step} AS SELECT '{filler}' /* {filler} */ AS c, $${filler}$$;\n"));
    }
    let workflow = parse_sql("t.sql", &text).unwrap_or_else(|reports| panic!("{reports}"));
    assert_eq!((workflow.steps.len(), workflow.params.len()), (400, 400));
    for (step, (name, value)) in workflow.steps.iter().enumerate() {
        let StepKind::Sql(sql) = &value.kind else { panic!("no query") };
        assert_eq!(name, &format!("s{step}"));
        assert_eq!(place(&text, value.name.span), name);
        assert_eq!(place(&text, sql.text.span), sql.text.text);
        assert!(sql.text.text.starts_with("SELECT '") && sql.text.text.ends_with("$$"));
    }
    let broken = format!("{text}CREATE VIEW x AS SELECT 'open");
    let reports = parse_sql("t.sql", &broken).unwrap_err();
    assert_eq!(reports.texts.line_column(reports.reports[0].labels[0].0), Some((801, 25)));
}

#[test]
fn a_statement_has_a_limit() {
    let start = std::time::Instant::now();
    for text in
        ["(".repeat(8_000_000), format!("CREATE VIEW a AS SELECT '{}", "x".repeat(8_000_000)), "\n".repeat(8_000_000)]
    {
        let reports = parse_sql("t.sql", &text).unwrap_err();
        assert_eq!(reports.reports[0].code, codes::TEXT_LIMIT);
    }
    assert!(start.elapsed() < std::time::Duration::from_secs(1), "{:?}", start.elapsed());
}

#[test]
fn a_long_line_is_read_in_linear_time() {
    let text = format!("CREATE VIEW a AS SELECT {}", vec!["é"; 100_000].join(", "));
    let start = std::time::Instant::now();
    assert!(parse_sql("t.sql", &text).is_ok());
    assert!(start.elapsed() < std::time::Duration::from_secs(2), "{:?}", start.elapsed());
}
