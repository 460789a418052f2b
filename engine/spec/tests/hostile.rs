//! No text makes a reader or a report panic.

use proptest::prelude::*;
use rowmill_spec::config::{Config, Inputs};
use rowmill_spec::{Diagnostics, parse, parse_values};

fn show<T>(result: Result<T, Diagnostics>) {
    if let Err(reports) = result {
        assert!(reports.has_errors());
        let _ = (reports.render(false), reports.render(true), reports.to_json());
    }
}

/// Words of workflows in any order, so that texts get further than the first token.
fn pieces() -> impl Strategy<Value = String> {
    let words: Vec<&'static str> = vec![
        "rowmill: 1\n",
        "name: f\n",
        "params:\n",
        "  month: int64\n",
        "  m: {type: ",
        "int64",
        "decimal(5,2)",
        ", default: ",
        "sources:\n",
        "  t:\n",
        "    path: ",
        "t.csv",
        "${params.month}",
        "${",
        "}",
        "$${",
        "\n",
        "  ",
        "steps:\n",
        "  s: {sql: ",
        "SELECT 1",
        "    sql: |\n",
        "      SELECT é\n",
        "\r\n",
        "sinks:\n",
        "  o: {from: s, path: ",
        "[",
        "]",
        "{",
        ", ",
        ": ",
        "- ",
        "'",
        "\"",
        "\\",
        "\\u00e9",
        "#",
        "&a ",
        "*a",
        "<<: ",
        "!t ",
        "---\n",
        "|",
        ">-\n",
        "\t",
        "\u{feff}",
        "🚀",
        "range: {start: 0, end: 5}",
        "csv: {delimiter: ",
        "schema: {a: ",
        "\0",
        "\u{2028}",
        "null",
        "~",
        "true",
        "1e9",
    ];
    prop::collection::vec(prop::sample::select(words), 0..40).prop_map(|words| words.concat())
}

fn sql_pieces() -> impl Strategy<Value = String> {
    let words: Vec<&'static str> = vec![
        "CREATE ",
        "EXTERNAL ",
        "TABLE ",
        "VIEW ",
        "v ",
        "t ",
        "AS ",
        "SELECT 1 ",
        "STORED ",
        "CSV ",
        "LOCATION ",
        "'t.csv' ",
        "OPTIONS ",
        "(",
        ")",
        ",",
        ";",
        "\n",
        "-- param m int64 = 1\n",
        "-- name: f\n",
        "-- var v ",
        "= ",
        "PARTITIONED BY ",
        "COPY ",
        "TO ",
        "WITH ",
        "class ",
        "'memory'",
        "$m ",
        "${params.m}",
        "'",
        "\"",
        "/*",
        "*/",
        "é",
        "header ",
        "true ",
        "INT ",
        "<",
        ">",
        ".",
        "$$",
    ];
    prop::collection::vec(prop::sample::select(words), 0..40).prop_map(|words| words.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn workflows(text in pieces()) {
        show(parse("t.yaml", &text));
        show(parse("t.yaml", &format!("rowmill: 1\nname: f\n{text}")));
        show(parse_values("v.yaml", &text));
        show(Config::load(&Inputs { project: Some(("c.yaml".to_owned(), text)), ..Inputs::default() }));
    }

    #[test]
    fn sql_files(text in sql_pieces()) {
        show(parse("t.sql", &text));
    }

    #[test]
    fn anything(text in any::<String>(), name in any::<String>()) {
        show(parse("t.yaml", &text));
        show(parse("t.sql", &text));
        show(parse(&name, &text));
        show(Config::load(&Inputs { flags: vec![(name, text)], ..Inputs::default() }));
    }
}

#[test]
fn long_lines_are_cut_quickly() {
    let long = "x".repeat(4_000_000);
    for text in [
        format!("rowmill: 1\nname: f\nsteps: {{s: {{sql: {long}, wrong: 1}}}}\n"),
        format!("rowmill: 1\nname: f\n{long}: 1\nsteps: {{s: {{sql: SELECT 1}}}}\n"),
        format!("rowmill: 1\nname: \"{long}\"\nsteps: {{s: {{sql: SELECT 1}}}}\n"),
        format!(
            "rowmill: 1\nname: f\nsteps: {{s: {{sql: SELECT 1}}}}\nvars:\n  ? \"{long}\"\n  : int8\n  ? \"{long}\"\n  : int8\n"
        ),
        format!(
            "rowmill: 1\nname: f\nsteps: {{s: {{sql: SELECT 1}}}}\nparams: {{p: {{type: int8, default: {long}}}, q: {long}}}\n"
        ),
    ] {
        let start = std::time::Instant::now();
        let rendered = parse("t.yaml", &text).unwrap_err().render(false);
        assert!(start.elapsed() < std::time::Duration::from_secs(2), "{:?}", start.elapsed());
        assert!(rendered.len() < 4_000, "{} bytes", rendered.len());
    }
}

#[test]
fn control_characters_are_not_passed_on() {
    let text = "rowmill: 1\nname: f\n\"\\e[31mred\\a\": 1\nsteps: {s: {sql: SELECT 1}}\n";
    let rendered = parse("t.yaml", text).unwrap_err().render(false);
    assert!(!rendered.contains('\u{1b}') && !rendered.contains('\u{7}'), "{rendered:?}");
    let raw = "rowmill: 1\nname: f\nsteps: {s: {sql: SELECT 1}}\nx\u{85}y\u{202e}: 1\n";
    let rendered = parse("t.yaml", raw).unwrap_err().render(false);
    assert!(!rendered.contains('\u{202e}') && !rendered.contains('\u{85}'), "{rendered:?}");
}
