//! The sections of a workflow: parameters, variables, sources, steps, sinks.

use indexmap::IndexMap;

use super::{Fields, Reading};
use crate::codes;
use crate::diagnostic::Diagnostic;
use crate::keys;
use crate::model::{
    Compression, CsvOptions, FileSource, Format, Param, ResourceClass, Resources, SchemaPolicy, Sink, Source,
    SourceKind, SqlStep, Step, StepKind, Variable,
};
use crate::names::{self, normalize};
use crate::span::{Span, Spanned};
use crate::suggest::listed;
use crate::types::{LogicalType, Value, check_usable};
use crate::yaml::{Kind, Node};

/// The type, the default and the description of a parameter or a variable.
struct Declaration {
    kind: Spanned<LogicalType>,
    default: Option<Spanned<Value>>,
    description: Option<String>,
}

pub(super) fn param(reading: &mut Reading<'_>, name: Spanned<String>, node: &Node) -> Option<Param> {
    let Declaration { kind, default, description } = declaration(reading, &keys::PARAM, "parameter", &name, node)?;
    Some(Param { name, kind, default, description })
}

pub(super) fn variable(reading: &mut Reading<'_>, name: Spanned<String>, node: &Node) -> Option<Variable> {
    let Declaration { kind, default, description } = declaration(reading, &keys::VARIABLE, "variable", &name, node)?;
    Some(Variable { name, kind, default, description })
}

fn declaration(
    reading: &mut Reading<'_>,
    table: &'static keys::Table,
    what: &str,
    name: &Spanned<String>,
    node: &Node,
) -> Option<Declaration> {
    let who = format!("{what} `{}`", name.value);
    let about_type = format!("the type of {who}");
    // `month: int64` says the type alone.
    if let Kind::Scalar(scalar) = &node.kind
        && !scalar.is_null()
    {
        let kind = reading.logical_type(node, &about_type).unwrap_or_else(|| unknown_type(node));
        return Some(Declaration { kind, default: None, description: None });
    }
    let fields = reading.fields(table, node, name.span, &who)?;
    let description = description(reading, &fields);
    let Some(kind) = fields.get("type").and_then(|node| reading.logical_type(node, &about_type)) else {
        return Some(Declaration { kind: unknown_type(node), default: None, description });
    };
    if check_usable(&kind).is_err() {
        // Reported by the check of the whole workflow; its default cannot be read.
        return Some(Declaration { kind, default: None, description });
    }
    let default = fields.get("default").and_then(|node| match Value::from_node(&kind, node) {
        Ok(value) => Some(Spanned::new(value, node.span)),
        Err(message) => {
            let report = Diagnostic::error(codes::BAD_LITERAL, format!("the default of {who} does not fit its type"))
                .at(reading.first_line(node.span), message)
                .at(kind.span, "the type is declared here");
            reading.report(report.help(format!("give a value of type {}", kind.value)));
            None
        }
    });
    Some(Declaration { kind, default, description })
}

/// Stands for a type that was reported, so that references to the name are not reported as well; the workflow itself
/// never gets out.
fn unknown_type(node: &Node) -> Spanned<LogicalType> {
    Spanned::new(LogicalType::String, node.span)
}

fn description(reading: &mut Reading<'_>, fields: &Fields<'_>) -> Option<String> {
    let node = fields.get("description")?;
    reading.text(node, "`description`").map(|text| text.value)
}

pub(super) fn source(reading: &mut Reading<'_>, name: Spanned<String>, node: &Node) -> Option<Source> {
    let who = format!("source `{}`", name.value);
    let fields = reading.fields(&keys::SOURCE, node, name.span, &who)?;
    let description = description(reading, &fields);
    let kind = match (fields.entry("path"), fields.entry("range")) {
        (Some((path, _)), Some((range, _))) => {
            let report = Diagnostic::error(codes::BAD_COMBINATION, format!("{who} has both `path` and `range`"))
                .at(range.span, "generated rows")
                .at(path.span, "rows of files");
            reading.report(report.help("make two sources of it, or remove one of the two"));
            return None;
        }
        (None, None) => {
            let report = Diagnostic::error(codes::MISSING_KEY, format!("{who} says nowhere its rows come from"))
                .at(name.span, "`path` or `range` is missing here");
            reading.report(report.help("add `path: data/file.parquet`, or `range: {end: 1000}`"));
            // The other keys are looked at all the same.
            SourceKind::Files(Box::new(files(reading, &fields, &who)))
        }
        (None, Some((_, range))) => {
            for (key, _) in fields.present().filter(|(key, _)| !matches!(key.as_str(), "range" | "description")) {
                let report =
                    Diagnostic::error(codes::NOT_APPLICABLE, format!("`{}` does not apply to a range", key.value))
                        .at(key.span, "this is a setting of files");
                reading.report(report.help("remove it, or give a `path` instead of `range`"));
            }
            self::range(reading, &name, range)?
        }
        (Some(_), None) => SourceKind::Files(Box::new(files(reading, &fields, &who))),
    };
    Some(Source { name, kind, description })
}

fn range(reading: &mut Reading<'_>, name: &Spanned<String>, node: &Node) -> Option<SourceKind> {
    let who = format!("the range of source `{}`", name.value);
    let fields = reading.fields(&keys::RANGE, node, name.span, &who)?;
    let start = match fields.get("start") {
        Some(node) => Spanned::new(reading.integer(node, "`start`", i64::MIN)?, node.span),
        None => Spanned::bare(0),
    };
    let node = fields.get("end")?;
    let end = Spanned::new(reading.integer(node, "`end`", i64::MIN)?, node.span);
    Some(SourceKind::Range { start, end })
}

fn files(reading: &mut Reading<'_>, fields: &Fields<'_>, who: &str) -> FileSource {
    let mut source = FileSource::new(Vec::new());
    if let Some(node) = fields.get("path") {
        source.paths = reading.one_or_many(node, |reading, node| reading.template(node, "`path`"));
        if matches!(&node.kind, Kind::Sequence(items) if items.is_empty()) {
            let report = Diagnostic::error(codes::BAD_VALUE, format!("the `path` of {who} is an empty list"));
            reading.report(report.at(node.span, "").help("give at least one path"));
        }
    }
    source.format = format(reading, fields);
    source.compression = compression(reading, fields);
    if let Some((key, node)) = fields.entry("schema") {
        let columns = reading.columns(node, "`schema`");
        if matches!(&node.kind, Kind::Mapping(entries) if entries.is_empty()) {
            let report = Diagnostic::error(codes::BAD_VALUE, format!("the `schema` of {who} has no columns"));
            reading.report(report.at(key.span, "").help("list the columns, or remove `schema` to infer them"));
        }
        source.schema = Some(columns);
    }
    if let Some(node) = fields.get("schema_policy")
        && let Some(policy) = reading.word(node, "`schema_policy`", SchemaPolicy::WORDS, SchemaPolicy::from_word)
    {
        source.schema_policy = policy;
    }
    if let Some(node) = fields.get("partitions") {
        source.partitions = reading.columns(node, "`partitions`");
    }
    let known = source.known_format();
    source.csv = csv(reading, fields, &keys::CSV, known, who);
    source
}

fn format(reading: &mut Reading<'_>, fields: &Fields<'_>) -> Option<Spanned<Format>> {
    let node = fields.get("format")?;
    reading.word(node, "`format`", Format::WORDS, Format::from_word)
}

fn compression(reading: &mut Reading<'_>, fields: &Fields<'_>) -> Option<Spanned<Compression>> {
    let node = fields.get("compression")?;
    reading.word(node, "`compression`", Compression::WORDS, Compression::from_word)
}

/// The CSV options of a source or a sink; the defaults where they are absent or wrong.
fn csv(
    reading: &mut Reading<'_>,
    fields: &Fields<'_>,
    table: &'static keys::Table,
    format: Option<Format>,
    who: &str,
) -> CsvOptions {
    let mut options = CsvOptions::default();
    let Some((key, node)) = fields.entry("csv") else { return options };
    let Some(csv) = reading.fields(table, node, key.span, &format!("`csv` of {who}")) else { return options };
    if let Some(format) = format.filter(|format| *format != Format::Csv) {
        let report = Diagnostic::error(codes::NOT_APPLICABLE, format!("`csv` does not apply to {format} files"))
            .at(key.span, format!("the format of {who} is {format}"));
        reading.report(report.help("remove `csv`, or declare `format: csv`"));
        return options;
    }
    let get = |name: &str| if table.keys.iter().any(|key| key.name == name) { csv.get(name) } else { None };
    let mut character = |name: &str| {
        let node = get(name)?;
        reading.character(node, &format!("`{name}`"))
    };
    options.delimiter = character("delimiter").unwrap_or(options.delimiter);
    options.quote = character("quote").unwrap_or(options.quote);
    options.escape = character("escape");
    options.comment = character("comment");
    let mut boolean = |name: &str, default: bool| {
        get(name).and_then(|node| reading.boolean(node, &format!("`{name}`"))).unwrap_or(default)
    };
    options.header = boolean("header", options.header);
    options.newlines_in_values = boolean("newlines_in_values", options.newlines_in_values);
    if let Some(node) = get("null") {
        // `null: NULL` and `null: null` mean those very characters; the empty field is null whatever is said.
        options.null = match &node.kind {
            Kind::Scalar(scalar) => Some(scalar.value.to_string()).filter(|text| !text.is_empty()),
            _ => {
                reading.wrong_type(node, "`null` must be a text", "the empty field is null already");
                None
            }
        };
    }
    if let Some(node) = get("infer_rows")
        && let Some(rows) = reading.integer(node, "`infer_rows`", 1)
    {
        options.infer_rows = usize::try_from(rows).unwrap_or(usize::MAX);
    }
    options
}

pub(super) fn step(reading: &mut Reading<'_>, name: Spanned<String>, node: &Node) -> Option<Step> {
    let who = format!("step `{}`", name.value);
    // `step: SELECT ...` is a likely slip.
    if let Kind::Scalar(scalar) = &node.kind
        && !scalar.is_null()
    {
        let help = format!("write `{}: {{sql: ...}}`, or `sql:` on a line of its own below the name", name.value);
        reading.wrong_type(node, &format!("{who} must be a mapping"), &help);
        return None;
    }
    let fields = reading.fields(&keys::STEP, node, name.span, &who)?;
    let description = description(reading, &fields);
    let mut resources = Resources::default();
    if let Some((key, node)) = fields.entry("resources")
        && let Some(fields) = reading.fields(&keys::RESOURCES, node, key.span, &format!("`resources` of {who}"))
    {
        resources.class = fields.get("class").and_then(|node| class(reading, node));
        resources.memory = fields.get("memory").and_then(|node| reading.size(node, "`memory`"));
    }
    let items = super::items::items(reading, &fields, &who);
    let kind = step_kind(reading, &fields, &name, &who)?;
    Some(Step { name, kind, items, resources, description })
}

/// The one kind that the step has; every section that stands there is read, so that all errors are told.
fn step_kind(reading: &mut Reading<'_>, fields: &Fields<'_>, name: &Spanned<String>, who: &str) -> Option<StepKind> {
    let found: Vec<_> = keys::KINDS.iter().filter_map(|kind| fields.entry(kind)).collect();
    let mut kinds: Vec<Option<StepKind>> = Vec::with_capacity(found.len());
    for (key, node) in &found {
        kinds.push(match key.as_str() {
            "sql" => reading.mapped(node, &format!("`sql` of {who}")).map(|text| StepKind::Sql(SqlStep { text })),
            "http" => super::steps::http(reading, key, node, who).map(|http| StepKind::Http(Box::new(http))),
            "lookup" => super::steps::lookup(reading, key, node, who).map(|step| StepKind::Lookup(Box::new(step))),
            "python" => super::steps::python(reading, key, node, who).map(|step| StepKind::Python(Box::new(step))),
            "command" => super::steps::command(reading, key, node, who).map(|step| StepKind::Command(Box::new(step))),
            "gpu" => super::computed::gpu(reading, key, node, who).map(|step| StepKind::Gpu(Box::new(step))),
            _ => super::computed::model(reading, key, node, who).map(|step| StepKind::Model(Box::new(step))),
        });
    }
    let kinds_listed = listed(keys::KINDS.iter().copied());
    match found.as_slice() {
        [] if fields.misspelt(keys::KINDS) => None,
        [] => {
            let report = Diagnostic::error(codes::MISSING_KEY, format!("{who} does not say what it does"))
                .at(name.span, "`sql`, `http`, `lookup`, `command`, `python`, `gpu` or `model` is missing here");
            reading.report(report.help("add `sql: SELECT ...`, or one of the other kinds of steps"));
            None
        }
        [_] => kinds.pop().flatten(),
        [(first, _), (second, _), ..] => {
            let report = Diagnostic::error(
                codes::BAD_COMBINATION,
                format!("{who} is both a `{}` and a `{}` step", first.value, second.value),
            )
            .at(second.span, "the second kind")
            .at(first.span, "the first kind");
            reading.report(report.help(format!("make two steps of it; each has one of {kinds_listed}")));
            None
        }
    }
}

fn class(reading: &mut Reading<'_>, node: &Node) -> Option<Spanned<ResourceClass>> {
    let word = reading.text(node, "`class`")?;
    let word = Spanned::new(normalize(&word.value), word.span);
    if !names::is_class(&word.value) {
        let message = format!("`{}` cannot be the name of a resource class", word.value.escape_debug());
        let rule = "classes begin with a small letter and hold small letters, digits, `_` and `-`, at most 40";
        let builtin = listed(keys::CLASSES.iter().copied());
        let report = Diagnostic::error(codes::BAD_NAME, message).at(node.span, rule);
        reading.report(report.help(format!("the built-in classes are {builtin}")));
        return None;
    }
    Some(Spanned::new(ResourceClass::from_word(&word.value), word.span))
}

pub(super) fn sink(reading: &mut Reading<'_>, name: Spanned<String>, node: &Node) -> Option<Sink> {
    let who = format!("sink `{}`", name.value);
    let fields = reading.fields(&keys::SINK, node, name.span, &who)?;
    let from = fields.get("from").and_then(|node| reading.text(node, "`from`"));
    let path = fields.get("path").and_then(|node| reading.template(node, "`path`"));
    let format = format(reading, &fields);
    let compression = compression(reading, &fields);
    let partition_by = fields.get("partition_by").map_or_else(Vec::new, |node| {
        reading.one_or_many(node, |reading, node| {
            let column = reading.text(node, "`partition_by`")?;
            Some(Spanned::new(normalize(&column.value), column.span))
        })
    });
    // Even where `from` or `path` is missing, the other keys are looked at.
    let mut sink = Sink {
        name,
        from: from.clone().unwrap_or_else(|| Spanned::bare(String::new())),
        path: path.clone().unwrap_or_else(|| crate::template::Template::literal("")),
        format,
        compression,
        partition_by,
        csv: CsvOptions::default(),
    };
    sink.csv = csv(reading, &fields, &keys::SINK_CSV, sink.known_format(), &who);
    let from = from?;
    path?;
    sink.from = Spanned::new(normalize(&from.value), from.span);
    Some(sink)
}

impl FileSource {
    /// Files at these paths, everything else as by default.
    pub fn new(paths: Vec<crate::template::Template>) -> Self {
        FileSource {
            paths,
            format: None,
            compression: None,
            schema: None,
            schema_policy: Spanned::new(SchemaPolicy::Strict, Span::NONE),
            partitions: IndexMap::new(),
            csv: CsvOptions::default(),
        }
    }
}
