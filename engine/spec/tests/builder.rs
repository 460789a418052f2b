//! The builder is held to the rules of the text form.

use rowmill_spec::{Compression, CsvOptions, Format, LogicalType, Value, Workflow, codes};

fn codes_of(builder: rowmill_spec::WorkflowBuilder) -> Vec<&'static str> {
    builder.build().unwrap_err().reports.iter().map(|report| report.code).collect()
}

#[test]
fn a_workflow_is_built() {
    let workflow = Workflow::builder("flight-delays")
        .description("Which carriers are late")
        .param("month", LogicalType::Int8, Some(Value::from(1)))
        .param("day", LogicalType::Date, Some(Value::from("2013-01-31")))
        .var("dir", LogicalType::String, Some(Value::from("data")))
        .source_files("flights", ["${vars.dir}/flights.parquet"])
        .source_files_with("w", ["w.csv"], |files| files.csv(CsvOptions { delimiter: b';', ..CsvOptions::default() }))
        .range("numbers", 0, 1000)
        .source_provided("t")
        .sql("clean", "SELECT * FROM flights WHERE month = $month")
        .sink("report", "clean", "out/${params.month}.parquet")
        .sink_with("parts", "clean", "out/parts", |sink| sink.format(Format::Csv).partition_by(["month"]))
        .build()
        .unwrap();
    assert_eq!(workflow.sources.len(), 4);
    assert_eq!(workflow.params["month"].default.as_ref().unwrap().value.logical_type(), LogicalType::Int8);
    assert_eq!(workflow.params["day"].default.as_ref().unwrap().value.to_string(), "2013-01-31");
    assert!(workflow.sinks["parts"].is_directory());
}

#[test]
fn steps_of_every_kind_are_built() {
    use rowmill_spec::{
        BatchSize, CachePolicy, CommandStep, Effects, HttpBody, HttpMany, HttpStep, ItemPolicy, JsonTemplate,
        LookupStep, Matches, MaxErrors, OnMissing, Resources, Retry, RowOrder, Spanned, Template, config::Secret,
    };
    use std::time::Duration;
    let body = JsonTemplate::from(&serde_json::json!({"id": "{id}", "day": "${params.day}", "n": [1, null]}));
    let http = HttpStep::new("t", "weather", Template::of("/v1/many"))
        .method("POST")
        .header("Accept", "application/json")
        .query("day", "${params.day}")
        .body(HttpBody::Json(body))
        .json("temp", "/main/temp", LogicalType::Float64)
        .ok([(200, 201)])
        .not_found(OnMissing::Skip)
        .many(HttpMany::new(100));
    let lookup = LookupStep::new("weather", "fleet", "SELECT seats FROM planes WHERE id = {id}")
        .kind("seats", LogicalType::Int64)
        .on_missing(OnMissing::Fail)
        .matches(Matches::One);
    let command = CommandStep::new("planes", vec![Template::of("python3"), Template::of("${params.day}.py")])
        .read("temp")
        .column("score", LogicalType::Float64)
        .env("A", "b")
        .secret_env("TOKEN", Secret::reference("env:TOKEN").unwrap())
        .fan_out()
        .memory(1 << 30);
    let items = ItemPolicy::default()
        .effects(Effects::Idempotent)
        .default_on_error([("temp", Value::from(0.0)), ("day", Value::from("2013-01-31"))])
        .max_errors(MaxErrors::Share { share: 0.01, after: Some(10) })
        .retry(Retry::attempts(3))
        .timeout(Duration::from_secs(1))
        .deadline(Duration::from_secs(60))
        .in_flight(8)
        .cache(CachePolicy { ttl: Some(Spanned::bare(Duration::from_secs(60))), ..CachePolicy::default() })
        .order(RowOrder::Any);
    let base = || Workflow::builder("f").param("day", LogicalType::Date, None).source_provided("t");
    let files = Workflow::builder("f").param("day", LogicalType::Date, None).source_files("t", ["t.csv"]);
    let workflow = files
        .step("weather", http.clone(), items.clone(), Resources::default())
        .step("planes", lookup, ItemPolicy::default().batch_rows(500).dead_letters(), Resources::default())
        .step("scored", command, ItemPolicy::default().skip_errors().batch_bytes(1 << 20), Resources::default())
        .durable()
        .build()
        .unwrap_or_else(|reports| panic!("{reports}"));
    assert_eq!(workflow.steps["planes"].items.batch, BatchSize { rows: Some(Spanned::bare(500)), bytes: None });
    let yaml = workflow.to_yaml().unwrap();
    let read = rowmill_spec::parse_yaml("t.yaml", &yaml).unwrap_or_else(|reports| panic!("{reports}\n{yaml}"));
    assert_eq!(read.to_yaml().unwrap(), yaml);
    assert!(read.durable && read.steps.len() == 3);
    let one = |http: HttpStep, items: ItemPolicy| codes_of(base().step("s", http, items, Resources::default()));
    assert_eq!(one(http.clone().header("x", "${nope"), ItemPolicy::default()), [codes::BAD_TEMPLATE]);
    assert_eq!(one(http.clone().header("x", "${vars.day}"), ItemPolicy::default()), [codes::UNKNOWN_VAR]);
    assert_eq!(one(http.clone(), ItemPolicy::default().in_flight(0)), [codes::BAD_VALUE]);
    assert_eq!(one(http.clone(), ItemPolicy::default().timeout(Duration::from_nanos(5))), [codes::BAD_VALUE]);
    assert_eq!(one(http.clone(), ItemPolicy::default().retry(Retry::attempts(0))), [codes::BAD_VALUE]);
    assert_eq!(
        one(http.clone(), ItemPolicy::default().max_errors(MaxErrors::Share { share: 1.5, after: None })),
        [codes::BAD_VALUE]
    );
    assert_eq!(one(http, ItemPolicy::default().batch_rows(1)), [codes::NOT_APPLICABLE]);
}

#[test]
fn the_rules_of_the_text_hold() {
    let base = || Workflow::builder("f").sql("s", "SELECT 1");
    assert_eq!(codes_of(Workflow::builder("f")), [codes::NOTHING_TO_DO]);
    assert_eq!(codes_of(Workflow::builder("a b").sql("s", "SELECT 1")), [codes::BAD_NAME]);
    assert_eq!(codes_of(base().sql("s", "SELECT 2")), [codes::DUPLICATE_NAME]);
    assert_eq!(codes_of(base().sql("S", "SELECT 2")), [codes::DUPLICATE_NAME]);
    assert_eq!(codes_of(base().range("s", 0, 1)), [codes::DUPLICATE_NAME]);
    assert_eq!(codes_of(base().range("r", 1, 0)), [codes::BAD_VALUE]);
    assert_eq!(codes_of(base().sql("t", " ")), [codes::BAD_VALUE]);
    assert_eq!(codes_of(base().source_files("t", ["${params.x}"])), [codes::UNKNOWN_PARAM]);
    assert_eq!(codes_of(base().source_files("t", ["${x}"])), [codes::BAD_TEMPLATE, codes::BAD_VALUE]);
    assert_eq!(codes_of(base().source_files("t", [""; 0])), [codes::BAD_VALUE]);
    assert_eq!(codes_of(base().param("p", LogicalType::Binary, None)), [codes::UNUSABLE_TYPE]);
    assert_eq!(codes_of(base().param("p", LogicalType::Int8, Some(Value::from("x")))), [codes::BAD_LITERAL]);
    assert_eq!(codes_of(base().param("p", LogicalType::Int8, Some(Value::from(300)))), [codes::BAD_LITERAL]);
    let bzip2 = base().sink_with("o", "s", "o.parquet", |sink| sink.compression(Compression::Bzip2));
    assert_eq!(codes_of(bzip2), [codes::BAD_COMBINATION]);
    let csv = CsvOptions { header: false, ..CsvOptions::default() };
    assert_eq!(
        codes_of(base().sink_with("o", "s", "o.parquet", |sink| sink.csv(csv.clone()))),
        [codes::NOT_APPLICABLE]
    );
    let clash = CsvOptions { delimiter: b'"', ..CsvOptions::default() };
    assert_eq!(codes_of(base().sink_with("o", "s", "o.csv", |sink| sink.csv(clash))), [codes::BAD_COMBINATION]);
}
