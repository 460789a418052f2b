//! The sections of step kinds beside `sql`: `http`, `lookup`, `command` and `python`.

use indexmap::IndexMap;

use super::{Fields, Reading};
use crate::codes;
use crate::diagnostic::Diagnostic;
use crate::keys;
use crate::model::{
    CommandFormat, CommandStep, HttpBody, HttpMany, HttpStep, Limit, LookupStep, Matches, OnMissing, OutputColumn,
    PythonGiven, PythonStep, ResponseColumn, ResponseSource, ResultMatch,
};
use crate::names::normalize;
use crate::span::{Span, Spanned};
use crate::template::Template;
use crate::types::LogicalType;
use crate::yaml::{Kind, Node};

pub(super) fn from(reading: &mut Reading<'_>, fields: &Fields<'_>) -> Option<Spanned<String>> {
    let name = fields.get("from").and_then(|node| reading.text(node, "`from`"))?;
    Some(Spanned::new(normalize(&name.value), name.span))
}

fn connection(reading: &mut Reading<'_>, fields: &Fields<'_>) -> Option<Spanned<String>> {
    fields.get("connection").and_then(|node| reading.outer_name(node, "connection"))
}

/// One of the words, of which `null` may stand without quotes.
fn on_missing(reading: &mut Reading<'_>, fields: &Fields<'_>, key: &str) -> Option<Spanned<OnMissing>> {
    let node = fields.get(key)?;
    match &node.kind {
        Kind::Scalar(scalar) if scalar.is_null() && !scalar.value.is_empty() => {
            Some(Spanned::new(OnMissing::Null, node.span))
        }
        _ => reading.word(node, &format!("`{key}`"), OnMissing::WORDS, OnMissing::from_word),
    }
}

/// Columns by name, each read by `read`.
fn columns<T>(
    reading: &mut Reading<'_>,
    node: &Node,
    what: &str,
    mut read: impl FnMut(&mut Reading<'_>, &Spanned<String>, &Node) -> Option<T>,
) -> IndexMap<String, T> {
    let mut columns = IndexMap::new();
    for (key, value) in reading.mapping(node, what).unwrap_or(&[]) {
        let name = Spanned::new(normalize(&key.value), key.span);
        if name.value.is_empty() {
            reading
                .report(Diagnostic::error(codes::BAD_NAME, "a column needs a name").at(key.span, "").help("name it"));
            continue;
        }
        if let Some(column) = read(reading, &name, value)
            && columns.insert(name.value.clone(), column).is_some()
        {
            let report = Diagnostic::error(codes::DUPLICATE_KEY, format!("column `{}` stands twice", name.value));
            reading.report(report.at(key.span, "the second time").help("remove one of the two"));
        }
    }
    columns
}

/// Where a section stands: its value, or its key where the value takes several lines.
pub(super) fn place(key: &Spanned<String>, node: &Node) -> Span {
    if matches!(node.kind, Kind::Scalar(_)) { node.span } else { key.span }
}

pub(super) fn http(reading: &mut Reading<'_>, key: &Spanned<String>, node: &Node, who: &str) -> Option<HttpStep> {
    let fields = reading.fields(&keys::HTTP, node, key.span, &format!("`http` of {who}"))?;
    let from = from(reading, &fields);
    let connection = connection(reading, &fields);
    let path = fields.get("path").and_then(|node| reading.filled_text(node, "`path`"));
    let mut pairs =
        |name: &str| fields.get(name).map_or_else(Vec::new, |node| reading.text_map(node, &format!("`{name}`"), true));
    let (query, headers) = (pairs("query"), pairs("headers"));
    let method = fields.get("method").and_then(|node| reading.text(node, "`method`"));
    let body = fields.entry("body").and_then(|(key, node)| body(reading, key, node, who));
    let response = fields.entry("response").map(|(key, node)| {
        let columns = columns(reading, node, "`response`", response_column);
        Spanned::new(columns, place(key, node))
    });
    let ok = fields.get("ok").map(|node| Spanned::new(reading.status_ranges(node, "`ok`"), node.span));
    let mut statuses = |name: &str| {
        let node = fields.get(name)?;
        let statuses = reading.statuses(node, &format!("`{name}`")).into_iter().map(|status| status.value).collect();
        Some(Spanned::new(statuses, node.span))
    };
    let (not_found_statuses, retry_statuses) = (statuses("not_found_statuses"), statuses("retry_statuses"));
    let not_found = on_missing(reading, &fields, "not_found");
    let many = fields.entry("many").map(|(key, node)| many(reading, key, node, who));
    let idempotency_header = fields.get("idempotency_header").and_then(|node| {
        let name = reading.text(node, "`idempotency_header`")?;
        let header = (name.value != "none").then_some(name.value);
        Some(Spanned::new(header, name.span))
    });
    let many = match many {
        Some(many) => Some(many?),
        None => None,
    };
    Some(HttpStep {
        from: from?,
        connection: connection?,
        method,
        path: path?,
        query,
        headers,
        body,
        response: response?,
        ok,
        not_found,
        not_found_statuses,
        retry_statuses,
        many,
        idempotency_header,
    })
}

/// The one of some keys that is there; several or none are reported.
fn one_of<'n>(
    reading: &mut Reading<'_>,
    fields: &Fields<'n>,
    choices: &[&'static str],
    what: &str,
    at: Span,
) -> Option<(&'n Spanned<String>, &'n Node)> {
    let found: Vec<_> = choices.iter().filter_map(|key| fields.entry(key)).collect();
    let listed = crate::suggest::listed(choices.iter().copied());
    match found.as_slice() {
        [one] => Some(*one),
        [] => {
            let report = Diagnostic::error(codes::MISSING_KEY, format!("{what} has none of {listed}"));
            reading.report(report.at(at, "one of them is missing here").help(format!("give one of {listed}")));
            None
        }
        [(first, _), (second, _), ..] => {
            let (first, second) = (*first, *second);
            let report = Diagnostic::error(
                codes::BAD_COMBINATION,
                format!("{what} has both `{}` and `{}`", first.value, second.value),
            )
            .at(second.span, "the second")
            .at(first.span, "the first");
            reading.report(report.help(format!("keep one of {listed}")));
            None
        }
    }
}

fn body(reading: &mut Reading<'_>, key: &Spanned<String>, node: &Node, who: &str) -> Option<Spanned<HttpBody>> {
    let whose = format!("the body of {who}");
    let fields = reading.fields(&keys::HTTP_BODY, node, key.span, &whose)?;
    let content_type = fields.get("content_type").and_then(|node| reading.text(node, "`content_type`"));
    let (kind, value) = one_of(reading, &fields, &["json", "text", "form", "column"], &whose, key.span)?;
    if matches!(kind.as_str(), "json" | "form")
        && let Some((key, _)) = fields.entry("content_type")
    {
        let report = Diagnostic::error(
            codes::NOT_APPLICABLE,
            format!("`content_type` does not apply to a `{}` body", kind.value),
        )
        .at(key.span, "its content type is fixed");
        reading.report(report.help("remove it, or write the body as `text`"));
    }
    let body = match kind.as_str() {
        "json" => HttpBody::Json(reading.json(value, &whose)?),
        "text" => HttpBody::Text { text: reading.filled_text(value, &whose)?, content_type },
        "form" => HttpBody::Form(reading.text_map(value, "`form`", true)),
        _ => HttpBody::Column { name: reading.column_name(value, "`column`")?, content_type },
    };
    Some(Spanned::new(body, kind.span))
}

fn response_column(reading: &mut Reading<'_>, name: &Spanned<String>, node: &Node) -> Option<ResponseColumn> {
    let whose = format!("column `{}` of the response", name.value);
    let fields = reading.fields(&keys::HTTP_RESPONSE, node, name.span, &whose)?;
    let nullable = fields.get("nullable").and_then(|node| reading.flag(node, "`nullable`"));
    let kind = fields.get("type").map(|node| reading.logical_type(node, &format!("the type of {whose}")));
    let (key, value) = one_of(reading, &fields, &["json", "body", "status", "header"], &whose, name.span)?;
    if key.value != "json"
        && let Some((type_key, _)) = fields.entry("type")
    {
        let help = match key.as_str() {
            "header" => "remove it: a header is a `string`".to_owned(),
            other => {
                format!("write the type in its place: `{other}: {}`", if other == "body" { "string" } else { "int32" })
            }
        };
        let report = Diagnostic::error(codes::NOT_APPLICABLE, format!("`type` does not apply to `{}`", key.value));
        reading.report(report.at(type_key.span, format!("{whose} comes from `{}`", key.value)).help(help));
    }
    let words = |word: &str| match word {
        "string" => Some(LogicalType::String),
        "binary" => Some(LogicalType::Binary),
        "int32" => Some(LogicalType::Int32),
        "int64" => Some(LogicalType::Int64),
        "uint16" => Some(LogicalType::UInt16),
        _ => None,
    };
    let (source, kind) = match key.as_str() {
        "json" => {
            // An empty pointer is the whole answer, and YAML has two ways to write it.
            let pointer = reading.text(value, "`json`")?;
            let Some(kind) = kind else {
                let report = Diagnostic::error(codes::MISSING_KEY, format!("{whose} has no `type`"));
                reading.report(
                    report.at(name.span, "`type` is missing here").help("add `type: ...`: the type of the value"),
                );
                return None;
            };
            (Spanned::new(ResponseSource::Json(pointer.value), value.span), kind?)
        }
        "body" => {
            let kind = reading.word(value, "`body`", &["string", "binary"], words)?;
            (Spanned::new(ResponseSource::Body, value.span), kind)
        }
        "status" => {
            let kind = reading.word(value, "`status`", &["int32", "int64", "uint16"], words)?;
            (Spanned::new(ResponseSource::Status, value.span), kind)
        }
        _ => {
            let header = reading.text(value, "`header`")?;
            let kind = Spanned::new(LogicalType::String, value.span);
            (Spanned::new(ResponseSource::Header(header.value), value.span), kind)
        }
    };
    Some(ResponseColumn { kind, nullable, source })
}

fn many(reading: &mut Reading<'_>, key: &Spanned<String>, node: &Node, who: &str) -> Option<Spanned<HttpMany>> {
    let fields = reading.fields(&keys::HTTP_MANY, node, key.span, &format!("`many` of {who}"))?;
    let max_items = fields.get("max_items").and_then(|node| reading.count(node, "`max_items`", 1));
    let max_bytes = fields.get("max_bytes").and_then(|node| reading.size(node, "`max_bytes`"));
    let envelope = fields.get("envelope").map(|node| reading.json(node, "`envelope`"));
    let results = fields.get("results").and_then(|node| reading.text(node, "`results`"));
    let error = fields.get("error").and_then(|node| reading.text(node, "`error`"));
    let matching = fields.get("match").map(|node| matching(reading, node, who));
    let many = HttpMany {
        max_items: max_items?,
        max_bytes,
        envelope: match envelope {
            Some(envelope) => Some(envelope?),
            None => None,
        },
        results,
        matching: match matching {
            Some(matching) => Some(matching?),
            None => None,
        },
        error,
    };
    Some(Spanned::new(many, key.span))
}

fn matching(reading: &mut Reading<'_>, node: &Node, who: &str) -> Option<Spanned<ResultMatch>> {
    if !matches!(node.kind, Kind::Mapping(_)) {
        let found = reading.word(node, "`match`", &["order"], |word| (word == "order").then_some(ResultMatch::Order));
        return found;
    }
    let fields = reading.fields(&keys::HTTP_MATCH, node, node.span, &format!("`match` of {who}"))?;
    let column = fields.get("column").and_then(|node| reading.column_name(node, "`column`"));
    let pointer = fields.get("pointer").and_then(|node| reading.text(node, "`pointer`"));
    Some(Spanned::new(ResultMatch::Key { column: column?.value, pointer: pointer?.value }, node.span))
}

pub(super) fn lookup(reading: &mut Reading<'_>, key: &Spanned<String>, node: &Node, who: &str) -> Option<LookupStep> {
    let fields = reading.fields(&keys::LOOKUP, node, key.span, &format!("`lookup` of {who}"))?;
    let from = from(reading, &fields);
    let connection = connection(reading, &fields);
    let query = fields.get("query").and_then(|node| reading.mapped(node, "`query`"));
    let types = fields.get("types").map_or_else(IndexMap::new, |node| reading.columns(node, "`types`"));
    let on_missing = on_missing(reading, &fields, "on_missing");
    let matches =
        fields.get("matches").and_then(|node| reading.word(node, "`matches`", Matches::WORDS, Matches::from_word));
    Some(LookupStep { from: from?, connection: connection?, query: query?, types, on_missing, matches })
}

pub(super) fn command(reading: &mut Reading<'_>, key: &Spanned<String>, node: &Node, who: &str) -> Option<CommandStep> {
    let fields = reading.fields(&keys::COMMAND, node, key.span, &format!("`command` of {who}"))?;
    let from = from(reading, &fields);
    let argv = fields.get("argv").and_then(|node| argv(reading, node));
    let reads = names(reading, &fields, "reads");
    let pass_env = names(reading, &fields, "pass_env").map_or_else(Vec::new, |names| names.value);
    let output = fields
        .entry("output")
        .map(|(key, node)| Spanned::new(columns(reading, node, "`output`", output_column), place(key, node)));
    let env = fields.get("env").map_or_else(Vec::new, |node| reading.text_map(node, "`env`", false));
    let mut secret_env = IndexMap::new();
    if let Some(node) = fields.get("secret_env") {
        for (name, value) in reading.mapping(node, "`secret_env`").unwrap_or(&[]) {
            if let Some(secret) = reading.secret(value, &format!("`{}` of `secret_env`", name.value)) {
                secret_env.insert(name.value.clone(), secret);
            }
        }
    }
    let format = fields
        .get("format")
        .and_then(|node| reading.word(node, "`format`", CommandFormat::WORDS, CommandFormat::from_word));
    let fan_out = fields.get("fan_out").and_then(|node| reading.flag(node, "`fan_out`"));
    let working_directory =
        fields.get("working_directory").and_then(|node| reading.template(node, "`working_directory`"));
    let mut limit = |key: &str, size: bool| limit(reading, &fields, key, size);
    let (memory, cpu_seconds) = (limit("memory", true), limit("cpu_seconds", false));
    let (open_files, file_bytes) = (limit("open_files", false), limit("file_bytes", true));
    let max_answer_bytes = fields.get("max_answer_bytes").and_then(|node| reading.size(node, "`max_answer_bytes`"));
    let version = fields.get("version").and_then(|node| reading.text(node, "`version`"));
    Some(CommandStep {
        from: from?,
        argv: argv?,
        format,
        reads: reads?,
        output: output?,
        fan_out,
        env: env.into_iter().map(|(name, text)| (name.value, text)).collect(),
        pass_env,
        secret_env,
        working_directory,
        memory,
        cpu_seconds,
        open_files,
        file_bytes,
        max_answer_bytes,
        version,
    })
}

/// One column, or a list of them.
fn names(reading: &mut Reading<'_>, fields: &Fields<'_>, key: &str) -> Option<Spanned<Vec<Spanned<String>>>> {
    let node = fields.get(key)?;
    let what = format!("`{key}`");
    Some(Spanned::new(reading.one_or_many(node, |reading, node| reading.column_name(node, &what)), node.span))
}

/// A limit on a process: a size or a count, or `none`.
fn limit(reading: &mut Reading<'_>, fields: &Fields<'_>, key: &str, size: bool) -> Option<Spanned<Limit>> {
    let node = fields.get(key)?;
    if matches!(&node.kind, Kind::Scalar(scalar) if &*scalar.value == "none") {
        return Some(Spanned::new(Limit::None, node.span));
    }
    let what = format!("`{key}`");
    let most = if size { reading.size(node, &what) } else { reading.count(node, &what, 1) }?;
    Some(Spanned::new(Limit::Most(most.value), node.span))
}

pub(super) fn python(reading: &mut Reading<'_>, key: &Spanned<String>, node: &Node, who: &str) -> Option<PythonStep> {
    let fields = reading.fields(&keys::PYTHON, node, key.span, &format!("`python` of {who}"))?;
    let from = from(reading, &fields);
    let function = fields.get("function").and_then(|node| reading.text(node, "`function`"));
    let reads = names(reading, &fields, "reads");
    let output = fields
        .entry("output")
        .map(|(key, node)| Spanned::new(columns(reading, node, "`output`", output_column), place(key, node)));
    let given =
        fields.get("given").and_then(|node| reading.word(node, "`given`", PythonGiven::WORDS, PythonGiven::from_word));
    let fan_out = fields.get("fan_out").and_then(|node| reading.flag(node, "`fan_out`"));
    let calls = fields.get("calls").and_then(|node| reading.count(node, "`calls`", 1));
    let rate_limit = fields.get("rate_limit").and_then(|node| reading.rate(node, "`rate_limit`"));
    let version = fields.get("version").and_then(|node| reading.text(node, "`version`"));
    let start_timeout = fields.get("start_timeout").and_then(|node| reading.duration(node, "`start_timeout`"));
    let mut limit = |key: &str, size: bool| limit(reading, &fields, key, size);
    let (memory, cpu_seconds, open_files) =
        (limit("memory", true), limit("cpu_seconds", false), limit("open_files", false));
    let max_answer_bytes = fields.get("max_answer_bytes").and_then(|node| reading.size(node, "`max_answer_bytes`"));
    Some(PythonStep {
        from: from?,
        function: function?,
        reads: reads?,
        output: output?,
        given,
        fan_out,
        calls,
        rate_limit,
        version,
        start_timeout,
        memory,
        cpu_seconds,
        open_files,
        max_answer_bytes,
    })
}

fn argv(reading: &mut Reading<'_>, node: &Node) -> Option<Spanned<Vec<Template>>> {
    match &node.kind {
        Kind::Sequence(items) => {
            let texts = items.iter().filter_map(|item| reading.filled_text(item, "`argv`")).collect();
            Some(Spanned::new(texts, node.span))
        }
        _ => {
            reading.wrong_type(
                node,
                "`argv` must be a list",
                "write the program and each argument apart: `argv: [python3, score.py]`; no shell splits a line",
            );
            None
        }
    }
}

fn output_column(reading: &mut Reading<'_>, name: &Spanned<String>, node: &Node) -> Option<OutputColumn> {
    let about = format!("the type of column `{}`", name.value);
    if let Kind::Scalar(scalar) = &node.kind
        && !scalar.is_null()
    {
        return Some(OutputColumn { kind: reading.logical_type(node, &about)?, nullable: None });
    }
    let fields = reading.fields(&keys::OUTPUT, node, name.span, &format!("column `{}` of the output", name.value))?;
    let nullable = fields.get("nullable").and_then(|node| reading.flag(node, "`nullable`"));
    let kind = fields.get("type").and_then(|node| reading.logical_type(node, &about))?;
    Some(OutputColumn { kind, nullable })
}
