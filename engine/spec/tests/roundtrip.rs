//! A workflow written as YAML reads back the same.

use proptest::prelude::*;
use rowmill_spec::{
    Compression, CsvOptions, Format, LogicalType, ResourceClass, Resources, SchemaPolicy, SourceKind, StepKind,
    TimeUnit, Value, Workflow,
};

/// The model without places.
fn bare(workflow: &Workflow) -> String {
    let mut text = format!(
        "{:?} {:?} {:?} {:?} {:?} {:?} {:?}",
        workflow.name,
        workflow.description,
        workflow.params,
        workflow.vars,
        workflow.sources,
        workflow.sinks,
        workflow
            .steps
            .values()
            .map(|step| {
                let StepKind::Sql(sql) = &step.kind else { panic!("no query") };
                (step.name.clone(), sql.text.text.clone(), step.resources.clone(), step.description.clone())
            })
            .collect::<Vec<_>>(),
    );
    while let Some(at) = text.find("Span { text: TextId(") {
        let end = at + text[at..].find('}').unwrap() + 1;
        text.replace_range(at..end, "");
    }
    text
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-zA-Z_é数][a-zA-Z0-9_é]{0,6}",
        Just("null".to_owned()),
        Just("true".to_owned()),
        Just("no".to_owned())
    ]
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[ -~\n]{0,40}",
        prop::collection::vec("[a-z0-9 ,.='\"#:-]{0,20}", 1..6).prop_map(|lines| lines.join("\n")),
    ]
}

fn query() -> impl Strategy<Value = String> {
    text().prop_map(|text| format!("SELECT {text}"))
}

fn value() -> impl Strategy<Value = (LogicalType, Value)> {
    prop_oneof![
        any::<i64>().prop_map(|value| (LogicalType::Int64, Value::from(value))),
        any::<i8>().prop_map(|value| (LogicalType::Int8, Value::Int(LogicalType::Int8, value.into()))),
        any::<u64>().prop_map(|value| (LogicalType::UInt64, Value::UInt(LogicalType::UInt64, value))),
        any::<bool>().prop_map(|value| (LogicalType::Bool, Value::from(value))),
        any::<f64>()
            .prop_filter("equal to itself", |value| !value.is_nan())
            .prop_map(|value| (LogicalType::Float64, Value::from(value))),
        text().prop_map(|value| (LogicalType::String, Value::from(value))),
        (-700_000..2_000_000).prop_map(|days| (LogicalType::Date, Value::Date(days))),
        any::<i32>().prop_map(|value| {
            let zone = Some("UTC".to_owned());
            let kind = LogicalType::Timestamp { unit: TimeUnit::Millisecond, zone: zone.clone() };
            (kind, Value::Timestamp { value: value.into(), unit: TimeUnit::Millisecond, zone })
        }),
        any::<i32>().prop_map(|value| (
            LogicalType::Decimal { precision: 12, scale: 3 },
            Value::Decimal { unscaled: value.into(), precision: 12, scale: 3 },
        )),
        prop::collection::vec(text().prop_map(Value::from), 0..4).prop_map(|values| (
            LogicalType::List(Box::new(LogicalType::String)),
            Value::List(LogicalType::String, values),
        )),
        Just((LogicalType::Date, Value::Null(LogicalType::Date))),
    ]
}

fn path() -> impl Strategy<Value = String> {
    "[ -~é]{0,12}[a-z]".prop_map(|path| path.replace("${", "$${").replace('*', "x"))
}

fn csv() -> impl Strategy<Value = CsvOptions> {
    (any::<bool>(), prop::option::of(Just(b'\\')), prop::option::of(text()), any::<bool>(), 1_usize..99).prop_map(
        |(header, escape, null, newlines_in_values, infer_rows)| CsvOptions {
            header,
            delimiter: b'\t',
            escape,
            comment: Some(b'#'),
            null: null.filter(|null| !null.is_empty()),
            newlines_in_values,
            infer_rows,
            ..CsvOptions::default()
        },
    )
}

prop_compose! {
    fn workflow()(
        title in name(),
        description in prop::option::of(text()),
        values in prop::collection::vec((name(), value(), any::<bool>()), 0..4),
        sources in prop::collection::vec((name(), path(), prop::option::of(csv()), name(), any::<bool>()), 0..4),
        ranges in prop::collection::vec((name(), any::<i64>(), 0_i64..1000), 0..3),
        steps in prop::collection::vec((name(), query(), prop::option::of("[a-z][a-z0-9_-]{0,39}")), 1..5),
        sinks in prop::collection::vec((name(), path(), text()), 0..4),
    ) -> Option<Workflow> {
        let mut builder = Workflow::builder(title);
        if let Some(text) = description.filter(|text| !text.is_empty()) {
            builder = builder.description(text);
        }
        for (at, (name, (kind, value), is_param)) in values.into_iter().enumerate() {
            let name = if at == 0 { name } else { format!("{name}_v{at}") };
            builder = if is_param { builder.param(name, kind, Some(value)) } else { builder.var(name, kind, Some(value)) };
        }
        for (at, (name, path, csv, column, union)) in sources.into_iter().enumerate() {
            let name = if at == 0 { name } else { format!("{name}_s{at}") };
            builder = builder.source_files_with(name, [path.clone(), path], |mut files| {
                if let Some(csv) = csv {
                    files = files.format(Format::Csv).compression(Compression::Gzip).csv(csv);
                }
                if union {
                    let kind = LogicalType::Struct(vec![("a".to_owned(), LogicalType::Time(TimeUnit::Second))]);
                    files = files.schema_policy(SchemaPolicy::Union).column(column.clone(), kind).partition(format!("{column}_"), LogicalType::Int8);
                }
                files
            });
        }
        for (at, (name, start, length)) in ranges.into_iter().enumerate() {
            builder = builder.range(format!("{name}_r{at}"), start, start.saturating_add(length));
        }
        let mut first = None;
        for (at, (name, query, class)) in steps.into_iter().enumerate() {
            let name = if at == 0 { name } else { format!("{name}_q{at}") };
            first.get_or_insert(name.clone());
            let resources = class.map(|class| Resources::class(ResourceClass::from_word(&class))).unwrap_or_default();
            builder = builder.sql_with(name, query, resources);
        }
        for (at, (name, path, column)) in sinks.into_iter().enumerate() {
            builder = builder.sink_with(format!("{name}_o{at}"), first.clone().unwrap_or_default(), path, |sink| {
                let sink = sink.format(Format::Parquet).compression(Compression::Snappy);
                if column.is_empty() { sink } else { sink.partition_by([column]) }
            });
        }
        // Names that collide make no workflow.
        builder.build().ok()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn yaml_reads_back(workflow in workflow()) {
        if let Some(workflow) = workflow {
            let yaml = workflow.to_yaml().unwrap();
            match rowmill_spec::parse_yaml("t.yaml", &yaml) {
                Ok(read) => {
                    prop_assert_eq!(bare(&read), bare(&workflow), "{}", yaml);
                    prop_assert_eq!(read.to_yaml().unwrap(), yaml);
                }
                Err(reports) => prop_assert!(false, "{}\n{}", reports, yaml),
            }
        }
    }
}

#[test]
fn most_generated_workflows_are_workflows() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let good = (0..200).filter(|_| workflow().new_tree(&mut runner).unwrap().current().is_some()).count();
    assert!(good > 80, "only {good} of 200");
}

#[test]
fn provided_sources_cannot_be_written() {
    let workflow = Workflow::builder("f").source_provided("t").sql("s", "SELECT * FROM t").build().unwrap();
    assert!(matches!(workflow.sources["t"].kind, SourceKind::Provided));
    assert_eq!(workflow.to_yaml().unwrap_err().reports[0].code, rowmill_spec::codes::NOT_IN_YAML);
}

#[test]
fn long_queries_stay_readable() {
    let workflow = Workflow::builder("f").sql("s", "SELECT a,\n  b\n\nFROM t\n").build().unwrap();
    let expected = "rowmill: 1\nname: f\nsteps:\n  s:\n    sql: |\n      SELECT a,\n        b\n\n      FROM t\n";
    assert_eq!(workflow.to_yaml().unwrap(), expected);
}
