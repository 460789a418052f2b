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
