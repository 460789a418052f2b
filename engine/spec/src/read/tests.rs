//! The example of the documentation, the tables of keys, and large workflows.

use std::time::{Duration, Instant};

use super::*;
use crate::json_schema::workflow_schema;
use crate::keys::{Shape, Table};
use crate::model::{Compression, Format, ResourceClass, SchemaPolicy, SourceKind, StepKind};
use crate::types::{LogicalType, Value};

const EXAMPLE: &str = r##"
rowmill: 1
name: flight-delays
description: Which carriers are late
params: {month: {type: int64, default: 1, description: The month}, day: int8}
vars: {data_dir: {type: string, default: data}}
sources:
  flights: {path: "${vars.data_dir}/flights.parquet"}
  weather:
    path: [weather/a.csv.gz, "weather/${params.month}.csv.gz"]
    schema: {time: "timestamp(us, UTC)", temp: "decimal(5, 2)"}
    schema_policy: union
    partitions: {year: int32}
    csv: {header: false, delimiter: "\t", quote: "'", escape: "\\", comment: "#", null: NA, newlines_in_values: true, infer_rows: 5}
    description: Hourly
  numbers: {range: {start: 0, end: 1000}}
steps:
  clean:
    sql: SELECT * FROM flights WHERE month = $month
  worst:
    sql: |
      SELECT carrier, avg(arr_delay) AS delay, count(*) AS flights
      FROM clean GROUP BY carrier
    resources: {class: memory, memory: 4GiB}
sinks:
  report: {from: worst, path: out/worst.parquet, compression: zstd}
  parts: {from: clean, path: out/parts/, format: csv, partition_by: [month, day], csv: {null: "-"}}
"##;

fn rendered(text: &str) -> String {
    parse_yaml("t.yaml", text).unwrap_err().render(false)
}

#[test]
fn memory_of_a_step_is_a_size_and_for_sql_alone() {
    let step = |step: &str| {
        let text = format!("rowmill: 1\nname: t\nsources: {{rows: {{range: {{end: 9}}}}}}\nsteps:\n  s:\n{step}");
        parse_yaml("t.yaml", &format!("{text}sinks: {{out: {{from: s, path: out.csv}}}}\n"))
    };
    let query = "    sql: SELECT value FROM rows\n";
    for (memory, bytes) in [("4GiB", 4 << 30), ("300MB", 300_000_000)] {
        let workflow = step(&format!("{query}    resources: {{memory: {memory}}}\n")).unwrap();
        assert_eq!(workflow.steps["s"].resources.memory.as_ref().unwrap().value, bytes);
        let again = workflow.to_yaml().unwrap();
        assert_eq!(parse_yaml("t.yaml", &again).unwrap().steps["s"].resources.memory.as_ref().unwrap().value, bytes);
    }
    for memory in ["much", "0MB", "-1"] {
        assert!(step(&format!("{query}    resources: {{memory: {memory}}}\n")).is_err(), "{memory}");
    }
    let call = "    http: {from: rows, connection: api, path: '/{value}', response: {a: {json: /a, type: int64}}}\n";
    let reports = step(&format!("{call}    resources: {{memory: 1GB}}\n")).unwrap_err().reports;
    assert_eq!(reports.iter().map(|report| report.code).collect::<Vec<_>>(), [codes::NOT_APPLICABLE], "{reports:?}");
}

#[test]
fn the_example_is_read_whole() {
    let workflow = parse_yaml("flow.yaml", EXAMPLE).unwrap();
    assert_eq!(workflow.name.value, "flight-delays");
    assert_eq!(workflow.params["month"].default.as_ref().unwrap().value, Value::from(1_i64));
    assert_eq!(workflow.params["day"].kind.value, LogicalType::Int8);
    let SourceKind::Files(weather) = &workflow.sources["weather"].kind else { panic!() };
    assert_eq!(weather.paths.len(), 2);
    assert_eq!(weather.known_format(), Some(Format::Csv));
    assert_eq!(weather.schema_policy.value, SchemaPolicy::Union);
    assert_eq!(weather.csv.delimiter, b'\t');
    assert_eq!((weather.csv.escape, weather.csv.comment), (Some(b'\\'), Some(b'#')));
    assert_eq!((weather.csv.null.as_deref(), weather.csv.infer_rows), (Some("NA"), 5));
    assert!(!weather.csv.header && weather.csv.newlines_in_values);
    assert!(matches!(&workflow.sources["numbers"].kind, SourceKind::Range { end, .. } if end.value == 1000));
    assert_eq!(workflow.steps["worst"].resources.class.as_ref().unwrap().value, ResourceClass::Memory);
    assert_eq!(workflow.steps["worst"].resources.memory.as_ref().unwrap().value, 4 << 30);
    let StepKind::Sql(sql) = &workflow.steps["worst"].kind else { panic!("no query") };
    let at = sql.text.text.find("FROM").unwrap();
    let span = sql.text.span_of(at..at + 4);
    assert_eq!(&EXAMPLE[span.start as usize..span.end as usize], "FROM");
    assert_eq!(workflow.texts.line_column(span), Some((23, 7)));
    assert_eq!(workflow.sinks["report"].compression.as_ref().unwrap().value, Compression::Zstd);
    assert_eq!(workflow.sinks["parts"].partition_by.len(), 2);
    assert!(workflow.warnings.is_empty());
}

#[test]
fn names_are_normalized() {
    let text =
        "rowmill: 1\nname: f\nsteps: {\"cafe\u{301}\": {sql: SELECT 1}}\nsinks: {o: {from: \"café\", path: x.csv}}\n";
    let workflow = parse_yaml("t.yaml", text).unwrap();
    assert!(workflow.steps.contains_key("café"));
    assert_eq!(workflow.sinks["o"].from.value, "café");
    let twice = "rowmill: 1\nname: f\nsteps: {\"cafe\u{301}\": {sql: SELECT 1}, \"café\": {sql: SELECT 2}}\n";
    assert!(rendered(twice).contains("RM0104"));
}

/// A text in which every section stands once, with `line` in the given place.
fn text_with(path: &[&str], key: &str, value: &str) -> String {
    let mut base = match path.first() {
        None => String::new(),
        Some(section) => format!("{section}:\n"),
    };
    for (depth, part) in path.iter().enumerate().skip(1) {
        base.push_str(&format!("{}{part}:\n", "  ".repeat(depth)));
    }
    base.push_str(&format!("{}{key}: {value}\n", "  ".repeat(path.len())));
    if key == "rowmill" { base } else { format!("rowmill: 1\n{base}") }
}

/// Walks every key of every table, and says how the text looks that has it.
fn walk(table: &'static Table, path: &mut Vec<&'static str>, seen: &mut Vec<String>) {
    for key in table.keys {
        let report = parse_yaml("t.yaml", &text_with(path, key.name, &example(key.shape)));
        let reports = report.err().map(|reports| reports.render(false)).unwrap_or_default();
        let place = format!("{}.{}", path.join("."), key.name);
        assert!(!reports.contains("RM0103"), "{place} is not known:\n{reports}");
        assert!(!reports.contains("RM0105"), "the example of {place} has the wrong type:\n{reports}");
        seen.push(place.trim_start_matches('.').to_owned());
        let misspelt = rendered(&text_with(path, &format!("{}x", key.name), "1"));
        if key.name != "rowmill" {
            // One letter is like any other.
            let told = key.name.len() == 1 || misspelt.contains(&format!("did you mean `{}`", key.name));
            assert!(misspelt.contains("RM0103") && told, "{place}:\n{misspelt}");
        }
        let inner = match key.shape {
            Shape::Object(inner) => Some((inner, false)),
            Shape::Either(shapes) => shapes.iter().find_map(|shape| match shape {
                Shape::Object(inner) => Some((*inner, false)),
                _ => None,
            }),
            Shape::Named(Shape::Object(inner) | Shape::TypeOr(inner))
            | Shape::Map(Shape::Object(inner) | Shape::TypeOr(inner)) => Some((*inner, true)),
            _ => None,
        };
        if let Some((inner, named)) = inner {
            path.push(key.name);
            if named {
                path.push("x");
            }
            walk(inner, path, seen);
            path.truncate(path.len() - if named { 2 } else { 1 });
        }
    }
}

/// Walks every property of the schema in the same way.
fn walk_schema(schema: &serde_json::Value, path: &str, seen: &mut Vec<String>) {
    if let Some(properties) = schema.get("properties").and_then(|found| found.as_object()) {
        assert_eq!(schema["additionalProperties"], false, "{path} takes anything");
        for (name, property) in properties {
            let place = format!("{path}.{name}").trim_start_matches('.').to_owned();
            seen.push(place.clone());
            walk_schema(property, &place, seen);
        }
    } else if let Some(values) = schema.get("additionalProperties").filter(|values| values.is_object()) {
        walk_schema(values, &format!("{path}.x"), seen);
    }
    let choices = ["oneOf", "anyOf"].into_iter().filter_map(|word| schema.get(word)?.as_array());
    for choice in choices.flatten() {
        if choice.get("properties").is_some() {
            walk_schema(choice, path, seen);
        }
    }
}

#[test]
fn reader_and_schema_know_the_same_keys() {
    let mut read = Vec::new();
    walk(&keys::WORKFLOW, &mut Vec::new(), &mut read);
    let mut schema = Vec::new();
    walk_schema(&workflow_schema(), "", &mut schema);
    read.sort();
    schema.sort();
    assert_eq!(read, schema);
    assert!(read.len() > 100, "{read:?}");
}

#[test]
fn every_key_has_an_effect() {
    // A key that is read but changes nothing would be a setting that is accepted and ignored.
    let base = "rowmill: 1\nname: f\nsteps: {s: {sql: SELECT 1}}\n";
    let plain = format!("{:?}", parse_yaml("t.yaml", base).unwrap());
    let with = |extra: &str| format!("{:?}", parse_yaml("t.yaml", &format!("{base}{extra}\n")).unwrap());
    let mut last = plain;
    for extra in [
        "sources: {t: {path: t.csv}}",
        "sources: {t: {path: t.csv, format: csv}}",
        "sources: {t: {path: t.csv, compression: none}}",
        "sources: {t: {path: t.csv, schema: {a: int8}}}",
        "sources: {t: {path: t.csv, schema_policy: union}}",
        "sources: {t: {path: t.csv, partitions: {a: int8}}}",
        "sources: {t: {path: t.csv, description: x}}",
        "sources: {t: {path: t.csv, csv: {header: false}}}",
        "sources: {t: {path: t.csv, csv: {delimiter: '|'}}}",
        "sources: {t: {path: t.csv, csv: {quote: '|'}}}",
        "sources: {t: {path: t.csv, csv: {escape: '|'}}}",
        "sources: {t: {path: t.csv, csv: {comment: '|'}}}",
        "sources: {t: {path: t.csv, csv: {null: '|'}}}",
        "sources: {t: {path: t.csv, csv: {newlines_in_values: true}}}",
        "sources: {t: {path: t.csv, csv: {infer_rows: 1}}}",
        "sources: {t: {range: {end: 2}}}",
        "sources: {t: {range: {start: 1, end: 2}}}",
        "sinks: {o: {from: s, path: o.csv}}",
        "sinks: {o: {from: s, path: o.csv, format: csv}}",
        "sinks: {o: {from: s, path: o.csv, compression: gzip}}",
        "sinks: {o: {from: s, path: o.csv, partition_by: a}}",
        "sinks: {o: {from: s, path: o.csv, csv: {header: false}}}",
        "sinks: {o: {from: s, path: o.csv, csv: {null: x}}}",
    ] {
        let next = with(extra);
        // Without places: they differ for any two texts.
        let strip = |text: &str| -> String {
            let model = text.split("texts:").next().unwrap_or("");
            model
                .split("Span {")
                .map(|part| part.split_once("end:").map_or(part, |(_, rest)| rest.split_once('}').unwrap().1))
                .collect()
        };
        assert_ne!(strip(&next), strip(&last), "{extra} changes nothing");
        last = next;
    }
}

#[test]
fn ten_thousand_steps_are_read_quickly() {
    let mut text = String::from("rowmill: 1\nname: big\nsources: {s0: {range: {end: 10}}}\nsteps:\n");
    for step in 1..=10_000 {
        text.push_str(&format!(
            "  s{step}:\n    sql: |\n      SELECT value + {step} AS value\n      FROM s{}\n",
            step - 1
        ));
    }
    let start = Instant::now();
    let workflow = parse_yaml("big.yaml", &text).unwrap();
    assert_eq!(workflow.steps.len(), 10_000);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    let wrong = text.replace("sql:", "sqll:");
    let start = Instant::now();
    let reports = parse_yaml("big.yaml", &wrong).unwrap_err();
    assert!(reports.render(false).contains("there may be more errors"));
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

#[test]
fn templates_point_into_quoted_texts() {
    let text = "rowmill: 1\nname: f\nparams: {month: int64}\nsources: {t: {path: \"d\\u00e9/${params.mnth}.csv\"}}\nsteps: {s: {sql: SELECT 1}}\n";
    let reports = parse_yaml("t.yaml", text).unwrap_err();
    let span = reports.reports[0].labels[0].0;
    assert_eq!(&text[span.start as usize..span.end as usize], "mnth");
    assert_eq!(reports.reports[0].help, ["did you mean `month`?"]);
}

#[test]
fn values_files() {
    let values =
        parse_values("v.yaml", "data_dir: /data\nlimit: 5\ndays: [2013-01-01, 2013-01-02]\nempty: ''\n").unwrap();
    assert_eq!(values.entries.len(), 4);
    assert_eq!(values.entries["limit"].read(&LogicalType::Int8).unwrap().value, Value::Int(LogicalType::Int8, 5));
    let days = LogicalType::List(Box::new(LogicalType::Date));
    assert!(matches!(values.entries["days"].read(&days).unwrap().value, Value::List(_, days) if days.len() == 2));
    let wrong = values.entries["data_dir"].read(&LogicalType::Int64).unwrap_err();
    assert_eq!(wrong.code, codes::BAD_LITERAL);
    assert_eq!(values.texts.line_column(wrong.labels[0].0), Some((1, 11)));
    assert!(parse_values("v.yaml", "a: {b: 1}\n").is_err());
    assert!(parse_values("v.yaml", "- a\n").is_err());
    assert!(parse_values("v.yaml", "a: 1\na: 2\n").is_err());
}

#[test]
fn sizes_are_refused_before_reading() {
    let huge = "#".repeat(200_000_000);
    let start = Instant::now();
    for result in [
        parse_yaml("t.yaml", &huge).map(|_| ()),
        parse_values("t.yaml", &huge).map(|_| ()),
        crate::parse_sql("t.sql", &huge).map(|_| ()),
    ] {
        assert_eq!(result.unwrap_err().reports[0].code, codes::TEXT_LIMIT);
    }
    assert!(start.elapsed() < Duration::from_millis(100), "{:?}", start.elapsed());
}

#[test]
fn dots_and_comments_are_no_documents() {
    let text = "rowmill: 1\nname: f\ndescription: ...\nparams: {m: {type: int64, description: ...}}   # a `comment`: too\nsteps:\n  s:\n    sql: SELECT avg(x) AS y, count(*) AS n FROM t GROUP BY z\n";
    let workflow = parse_yaml("t.yaml", text).unwrap_or_else(|reports| panic!("{reports}"));
    assert_eq!(workflow.description.as_deref(), Some("..."));
}
