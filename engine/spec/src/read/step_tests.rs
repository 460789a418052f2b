//! Steps of every kind: what is read, and that every key changes something.

use std::time::Duration;

use super::parse_yaml;
use crate::codes;
use crate::model::*;
use crate::reference::STEPS_EXAMPLE;
use crate::types::{LogicalType, Value};

fn read(text: &str) -> Workflow {
    parse_yaml("t.yaml", text).unwrap_or_else(|reports| panic!("{reports}\n{text}"))
}

fn step(body: &str) -> Step {
    read(&format!("rowmill: 1\nname: f\nsources: {{t: {{path: t.csv}}}}\nparams: {{p: string}}\nsteps:\n  s:\n{body}"))
        .steps
        .swap_remove("s")
        .unwrap()
}

fn codes_of(body: &str) -> Vec<&'static str> {
    let text = format!("rowmill: 1\nname: f\nsources: {{t: {{path: t.csv}}}}\nsteps:\n  s:\n{body}");
    let reports = parse_yaml("t.yaml", &text).unwrap_err();
    reports.reports.iter().map(|report| report.code).collect()
}

#[test]
fn the_example_of_all_kinds_is_read() {
    let workflow = read(STEPS_EXAMPLE);
    assert!(workflow.durable);
    let weather = &workflow.steps["weather"];
    let StepKind::Http(http) = &weather.kind else { panic!("no http step") };
    assert_eq!((http.from.value.as_str(), http.connection.value.as_str()), ("flights", "weather"));
    assert_eq!(http.path.pieces.len(), 2);
    assert_eq!(http.not_found.as_ref().unwrap().value, OnMissing::Null);
    assert_eq!(http.response["temp"].kind.value, LogicalType::Float64);
    assert_eq!(http.response["temp"].source.value, ResponseSource::Json("/main/temp".to_owned()));
    assert_eq!(http.response["code"].source.value, ResponseSource::Status);
    assert_eq!(weather.items.effects.as_ref().unwrap().value, Effects::Idempotent);
    assert!(matches!(weather.items.on_error.as_ref().unwrap().value, OnError::DeadLetter));
    assert_eq!(weather.items.max_errors.as_ref().unwrap().value, MaxErrors::Share { share: 0.01, after: None });
    let retry = &weather.items.retry.as_ref().unwrap().value;
    assert_eq!(retry.max_backoff.as_ref().unwrap().value, Duration::from_secs(10));
    assert_eq!(weather.items.cache.as_ref().unwrap().ttl.as_ref().unwrap().value, Duration::from_secs(3600));
    let StepKind::Lookup(planes) = &workflow.steps["planes"].kind else { panic!("no lookup step") };
    assert_eq!(planes.types["seats"].value, LogicalType::Int64);
    let scored = &workflow.steps["scored"];
    let StepKind::Command(command) = &scored.kind else { panic!("no command step") };
    assert_eq!(command.argv.len(), 3);
    assert_eq!(command.memory.as_ref().unwrap().value, Limit::Most(2_000_000_000));
    assert_eq!(command.secret_env["MODEL_TOKEN"].value.to_string(), "env:MODEL_TOKEN");
    let OnError::Default(values) = &scored.items.on_error.as_ref().unwrap().value else { panic!("no default") };
    assert_eq!(values["score"].text(), Some("0.0"));
    assert_eq!(values["score"].read(&LogicalType::Float64).unwrap().value, Value::from(0.0));
    assert_eq!(values["score"].read(&LogicalType::Int64).unwrap_err().code, codes::BAD_LITERAL);
    assert_eq!(workflow.texts.line_column(values["score"].span).unwrap().0, 40);
    let kinds: Vec<_> =
        workflow.steps.values().map(|step| (step.kind.key(), step.kind.from().unwrap().value.as_str())).collect();
    let expected = [
        ("http", "flights"),
        ("lookup", "weather"),
        ("command", "planes"),
        ("python", "scored"),
        ("gpu", "ranked"),
        ("model", "alike"),
    ];
    assert_eq!(kinds, expected);
}

const HTTP: &str =
    "    http:\n      from: t\n      connection: c\n      path: /x\n      response: {a: {json: /a, type: int8}}\n";
const LOOKUP: &str = "    lookup:\n      from: t\n      connection: c\n      query: SELECT a FROM u WHERE b = {b}\n";
const PYTHON: &str = "    python:\n      from: t\n      function: m:f\n      reads: [a]\n      output: {b: int8}\n";
const COMMAND: &str = "    command:\n      from: t\n      argv: [cat]\n      reads: [a]\n      output: {b: int8}\n";

#[test]
fn every_key_changes_the_model_and_reads_back() {
    let cases: &[(&str, &[&str])] = &[
        (
            HTTP,
            &[
                "      method: POST",
                "      query: {a: '{a}'}",
                "      query: {a: ['{a}', b]}",
                "      headers: {Accept: x}",
                "      body: {json: {a: '{a}', b: [1, true, null, 1.5, '5', ''], '': {}}}",
                "      body: {text: 'a {a}', content_type: text/x}",
                "      body: {form: {a: '{a}', b: [x, y]}}",
                "      body: {column: a}",
                "      body: {column: a, content_type: image/png}",
                "      ok: [200-204, 206]",
                "      ok: 200",
                "      not_found: skip",
                "      not_found: null",
                "      not_found_statuses: [404, 410]",
                "      retry_statuses: 503",
                "      many: {max_items: 10}",
                "      many: {max_items: 10, max_bytes: 1MB, envelope: {items: '{items}'}, results: /r, match: order, error: /e}",
                "      many: {max_items: 10, match: {column: a, pointer: /id}}",
                "      idempotency_header: X-Key",
                "      idempotency_header: none",
                "    effects: idempotent",
                "    on_error: skip",
                "    on_error: dead_letter",
                "    on_error: fail",
                "    on_error: {default: {a: 1, b: 'x y', c: null, d: [1, 2], e: 2013-01-01, f: '5', g: \"\"}}",
                "    max_errors: 100",
                "    max_errors: 1.5%",
                "    max_errors: {share: 1%, after: 10}",
                "    retry: 5",
                "    retry: none",
                "    retry: {}",
                "    retry: {initial_backoff: 1s}",
                "    retry: {factor: 1.5}",
                "    retry: {max_backoff: 1m}",
                "    retry: {jitter: none}",
                "    retry: {honour_retry_after: false}",
                "    retry: {max_retry_after: 1h}",
                "    retry: {codes: [timeout, status]}",
                "    retry: {codes: decode, statuses: [500, 501]}",
                "    timeout: 250ms",
                "    deadline: 2m",
                "    in_flight: 64",
                "    cache: {}",
                "    cache: {key: a, ttl: 7d, tier: disk, max_size: 256MB}",
                "    cache: {tier: redis, connection: r}",
                "    order: any",
                "    resources: {class: gpu}",
                "    description: x",
            ],
        ),
        (
            LOOKUP,
            &[
                "      types: {a: int8}",
                "      on_missing: fail",
                "      on_missing: null",
                "      matches: one",
                "    batch: {rows: 5}",
                "    batch: {bytes: 1MiB}",
            ],
        ),
        (
            COMMAND,
            &[
                "      format: arrow",
                "      fan_out: true",
                "      env: {A: 'b ${params.p}'}",
                "      pass_env: [HOME, PATH]",
                "      secret_env: {A: file:/run/a}",
                "      working_directory: /tmp",
                "      memory: 1GB",
                "      memory: none",
                "      cpu_seconds: 5",
                "      open_files: 100",
                "      file_bytes: none",
                "      max_answer_bytes: 1MB",
                "      version: '2'",
            ],
        ),
        (
            PYTHON,
            &[
                "      given: values",
                "      given: numpy",
                "      fan_out: true",
                "      calls: 8",
                "      rate_limit: 3000/min",
                "      version: '2'",
                "      start_timeout: 5s",
                "      memory: 1GB",
                "      memory: none",
                "      cpu_seconds: 5",
                "      open_files: 100",
                "      max_answer_bytes: 1MB",
                "    batch: {rows: 5}",
                "    in_flight: 2",
            ],
        ),
        ("    sql: SELECT 1\n", &["    on_error: skip", "    max_errors: 3"]),
    ];
    let strip = |text: &str| -> String {
        text.split("Span {")
            .map(|part| part.split_once("end:").map_or(part, |(_, rest)| rest.split_once('}').unwrap().1))
            .collect()
    };
    for (base, lines) in cases {
        let mut seen = vec![strip(&format!("{:?}", step(base)))];
        for line in *lines {
            let text = format!("{base}{line}\n");
            let model = strip(&format!("{:?}", step(&text)));
            assert!(!seen.contains(&model), "{line} changes nothing");
            seen.push(model);
            let whole = format!("rowmill: 1\nname: f\nparams: {{p: string}}\nsteps:\n  s:\n{text}");
            let yaml = read(&whole).to_yaml().unwrap();
            let again = read(&yaml);
            assert_eq!(again.to_yaml().unwrap(), yaml, "{line}");
            let (was, is) = (read(&whole), again);
            let items = |workflow: &Workflow| strip(&format!("{:?}", workflow.steps["s"].items));
            let same = |text: String| text.replace("Plain", "Double").replace("Single", "Double");
            assert_eq!(same(items(&was)), same(items(&is)), "{yaml}");
        }
    }
}

#[test]
fn what_does_not_apply_is_refused() {
    for line in [
        "effects: pure",
        "retry: 3",
        "timeout: 1s",
        "deadline: 1s",
        "batch: {rows: 1}",
        "in_flight: 2",
        "cache: {key: [a]}",
        "cache: {tier: memory}",
        "cache: {max_size: 1MB}",
        "order: any",
    ] {
        assert_eq!(codes_of(&format!("    sql: SELECT 1\n    {line}\n")), [codes::NOT_APPLICABLE], "{line}");
    }
    assert_eq!(codes_of(&format!("{HTTP}    batch: {{rows: 5}}\n")), [codes::NOT_APPLICABLE]);
    assert_eq!(
        codes_of("    sql: SELECT 1\n    lookup: {from: t, connection: c, query: SELECT 1}\n"),
        [codes::BAD_COMBINATION]
    );
    assert_eq!(codes_of("    description: x\n"), [codes::MISSING_KEY]);
    assert_eq!(codes_of("    htp: {}\n"), [codes::UNKNOWN_KEY]);
    assert_eq!(codes_of(&format!("{HTTP}    cache: {{}}\n    effects: once\n")), [codes::BAD_COMBINATION]);
    assert_eq!(codes_of(&format!("{HTTP}    cache: {{tier: redis}}\n")), [codes::MISSING_KEY]);
    assert_eq!(codes_of(&format!("{HTTP}    cache: {{connection: r}}\n")), [codes::NOT_APPLICABLE]);
    assert_eq!(codes_of(&format!("{HTTP}    timeout: 5s\n    deadline: 1s\n")), [codes::BAD_COMBINATION]);
    assert_eq!(codes_of(&LOOKUP.replace("{b}", "'${params.p}' AND c = {b}")), [codes::BAD_TEMPLATE]);
    assert_eq!(codes_of(&HTTP.replace("/x\n", "/${params.q}\n")), [codes::UNKNOWN_PARAM]);
    assert_eq!(codes_of(&HTTP.replace("from: t", "from: s")), [codes::CYCLE]);
}

#[test]
fn dollar_quotes_of_databases_are_no_templates() {
    let lookup = LOOKUP.replace("{b}", "$${params.p}$$ AND c = {b}");
    let StepKind::Lookup(read) = step(&lookup).kind else { panic!("no lookup step") };
    assert!(read.query.text.contains("$${params.p}$$"));
}

#[test]
fn a_plain_secret_is_not_shown() {
    let body = format!("{COMMAND}      secret_env: {{TOKEN: canary-1, OTHER: [canary-2]}}\n      formt: arrow\n");
    let text = format!("rowmill: 1\nname: f\nsteps:\n  s:\n{body}");
    let reports = parse_yaml("t.yaml", &text).unwrap_err();
    assert_eq!(reports.reports.iter().filter(|report| report.code == codes::PLAIN_SECRET).count(), 2);
    let rendered = format!("{} {}", reports.render(false), reports.to_json());
    assert!(!rendered.contains("canary"), "{rendered}");
}
