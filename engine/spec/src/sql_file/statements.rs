//! The statements of a SQL file, and those that make a step or a sink; sources are in `source`.

use indexmap::IndexMap;
use sqlparser::tokenizer::Token;

use super::columns::{Types, column_list};
use super::options::{SqlOption, distinct, file_settings, read_options, unknown_option};
use super::tokens::{Cursor, Lexeme, Refused};
use crate::codes;
use crate::config::parse_bytes;
use crate::diagnostic::Diagnostic;
use crate::keys;
use crate::model::{Format, ItemPolicy, ResourceClass, Resources, Sink, SqlStep, Step, StepKind, Workflow};
use crate::names::{bad_name, fold, is_identifier, normalize};
use crate::read::bad_word;
use crate::report::Reporter;
use crate::span::{MappedText, Span, Spanned};
use crate::template::Template;

/// Reads one statement into the workflow.
pub(super) fn read(cursor: &mut Cursor<'_>, workflow: &mut Workflow, reporter: &mut Reporter) -> Result<(), Refused> {
    if cursor.take_all(&["CREATE", "EXTERNAL", "TABLE"]) {
        return super::source::external_table(cursor, workflow, reporter);
    }
    if cursor.take_all(&["CREATE", "VIEW"]) {
        return view(cursor, workflow, reporter);
    }
    if cursor.take("COPY") {
        return copy(cursor, workflow, reporter);
    }
    Err(not_taken(cursor))
}

fn not_taken(cursor: &Cursor<'_>) -> Refused {
    let help = if cursor.sees("SELECT") || cursor.sees("WITH") {
        "make it a step: `CREATE VIEW name AS SELECT ...`"
    } else if cursor.sees("CREATE") && cursor.sees_at(1, "TABLE") {
        "make it a step: `CREATE VIEW name AS SELECT ...`; sources are `CREATE EXTERNAL TABLE`"
    } else if cursor.sees("CREATE") {
        "write `CREATE VIEW name AS ...` or `CREATE EXTERNAL TABLE name ...`, without `OR REPLACE` or other words between"
    } else if cursor.sees("INSERT") {
        "write the rows of a step with `COPY step TO 'path'`"
    } else {
        "a workflow has `CREATE EXTERNAL TABLE`, `CREATE VIEW` and `COPY` statements"
    };
    Box::new(
        Diagnostic::error(codes::SQL_FILE_STATEMENT, "this statement has no place in a workflow")
            .at(cursor.first(), "here")
            .help(help),
    )
}

pub(super) fn name_of(cursor: &mut Cursor<'_>, what: &str) -> Result<Spanned<String>, Refused> {
    if cursor.sees("IF") && cursor.sees_at(1, "NOT") {
        return Err(cursor.refuse("`IF NOT EXISTS` has no meaning in a workflow", "remove it"));
    }
    let (name, span) = cursor.name(&format!("a {what}"))?;
    let name = Spanned::new(normalize(&name), span);
    if !is_identifier(&name) {
        return Err(Box::new(bad_name(what, &name, span)));
    }
    Ok(name)
}

pub(super) fn insert<T>(
    map: &mut IndexMap<String, T>,
    name: &Spanned<String>,
    value: T,
    place: fn(&T) -> Span,
) -> Result<(), Refused> {
    match map.get(&name.value) {
        Some(earlier) => Err(Box::new(
            Diagnostic::error(codes::DUPLICATE_NAME, format!("`{}` is declared twice", name.value))
                .at(name.span, "the second time")
                .at(place(earlier), "the first time")
                .help("rename one of the two"),
        )),
        None => {
            map.insert(name.value.clone(), value);
            Ok(())
        }
    }
}

/// `VIEW name [WITH (class = 'memory', memory = '4GiB', description = '...')] AS query`
fn view(cursor: &mut Cursor<'_>, workflow: &mut Workflow, reporter: &mut Reporter) -> Result<(), Refused> {
    let name = name_of(cursor, "step")?;
    let mut resources = Resources::default();
    let mut description = None;
    if cursor.take("WITH") {
        for option in distinct(read_options(cursor)?, reporter) {
            match option.key.as_str() {
                "class" => {
                    let class = normalize(&option.value);
                    if is_identifier(&class.replace('-', "_")) {
                        resources.class = Some(Spanned::new(ResourceClass::from_word(&class), option.value.span));
                    } else {
                        reporter.push(bad_name("resource class", &class, option.value.span));
                    }
                }
                "memory" => match parse_bytes(&option.value) {
                    Ok(bytes @ 1..) => resources.memory = Some(Spanned::new(bytes, option.value.span)),
                    _ => reporter.push(
                        Diagnostic::error(codes::BAD_VALUE, "`memory` is a size such as `4GiB`")
                            .at(option.value.span, ""),
                    ),
                },
                "description" => description = Some(option.value.value),
                _ => reporter.push(unknown_option(&option.key, &["class", "memory", "description"])),
            }
        }
    }
    if cursor.peek().is_some_and(|next| next.token == Token::LParen) {
        return Err(
            cursor.refuse("a step takes its columns from its query", "name them in the query: `SELECT x AS name`")
        );
    }
    if !cursor.take("AS") {
        return Err(
            cursor.refuse(format!("step `{}` needs `AS` and a query here", name.value), "write `AS SELECT ...`")
        );
    }
    let place = cursor.here();
    let range = cursor.rest();
    if range.is_empty() {
        return Err(Box::new(
            Diagnostic::error(codes::BAD_VALUE, format!("the query of step `{}` is empty", name.value))
                .at(place, "a query is missing here")
                .help("write a query, such as `SELECT * FROM source`"),
        ));
    }
    let text = MappedText::plain(cursor.text.get(range.clone()).unwrap_or(""), cursor.span(&range));
    let kind = StepKind::Sql(SqlStep { text });
    let step = Step { name: name.clone(), kind, items: ItemPolicy::default(), resources, description };
    insert(&mut workflow.steps, &name, step, |step| step.name.span)
}

/// Refuses a clause that stands twice, so that neither is lost.
pub(super) fn once(cursor: &Cursor<'_>, seen: &mut Vec<&'static str>, clause: &'static str) -> Result<(), Refused> {
    if seen.contains(&clause) {
        return Err(cursor.refuse(format!("`{clause}` stands twice in one statement"), "remove one of the two"));
    }
    seen.push(clause);
    Ok(())
}

/// `step TO 'path'` or `(query) TO 'path'`, then `STORED AS`, `PARTITIONED BY` and `OPTIONS` in any order.
fn copy(cursor: &mut Cursor<'_>, workflow: &mut Workflow, reporter: &mut Reporter) -> Result<(), Refused> {
    let from = if cursor.peek().is_some_and(|next| next.token == Token::LParen) {
        anonymous_step(cursor, workflow)?
    } else {
        name_of(cursor, "step")?
    };
    if !cursor.take("TO") {
        return Err(cursor.refuse("a copy needs `TO` and a path here", "write `COPY step TO 'out/file.parquet'`"));
    }
    let path = path(cursor, reporter)?;
    let mut sink = Sink {
        name: from.clone(),
        from,
        path: path.clone().unwrap_or_else(|| Template::literal("")),
        format: None,
        compression: None,
        partition_by: Vec::new(),
        csv: crate::model::CsvOptions::default(),
    };
    let mut options: Vec<SqlOption> = Vec::new();
    let mut seen = Vec::new();
    while cursor.peek().is_some() {
        if cursor.take_all(&["STORED", "AS"]) {
            once(cursor, &mut seen, "STORED AS")?;
            sink.format = format(cursor, reporter)?;
        } else if cursor.take_all(&["PARTITIONED", "BY"]) {
            once(cursor, &mut seen, "PARTITIONED BY")?;
            let list = column_list(cursor, Types::Refused, reporter)?;
            sink.partition_by = list.into_iter().map(|(name, _)| name).collect();
        } else if cursor.take("OPTIONS") || cursor.peek().is_some_and(|next| next.token == Token::LParen) {
            options.extend(read_options(cursor)?);
        } else {
            return Err(cursor.refuse(
                "this is no part of a copy",
                "a copy has `STORED AS`, `PARTITIONED BY` and `OPTIONS` after its path",
            ));
        }
    }
    let mut name = None;
    let settings =
        file_settings(options, &keys::SINK_CSV, &["name"], sink.known_format(), reporter, |option, reporter| {
            let given = Spanned::new(normalize(&option.value), option.value.span);
            if is_identifier(&given) {
                name = Some(given);
            } else {
                reporter.push(bad_name("sink", &given, given.span));
            }
        });
    sink.compression = settings.compression;
    sink.csv = settings.csv;
    if path.is_none() {
        return Ok(());
    }
    match name {
        Some(name) => {
            sink.name = name.clone();
            insert(&mut workflow.sinks, &name, sink, |sink| sink.name.span)
        }
        None => {
            // A copy has no name of its own: it is called after what it copies.
            let taken = |name: &str| workflow.sinks.keys().any(|other| fold(other) == fold(name));
            let unique = unused(&sink.from.value, taken);
            sink.name = Spanned::new(unique.clone(), sink.from.span);
            workflow.sinks.insert(unique, sink);
            Ok(())
        }
    }
}

/// The query in parentheses becomes a step named `copy`, `copy_2` and so on.
fn anonymous_step(cursor: &mut Cursor<'_>, workflow: &mut Workflow) -> Result<Spanned<String>, Refused> {
    let place = cursor.here();
    let range = cursor.parenthesized()?;
    if range.is_empty() {
        return Err(Box::new(
            Diagnostic::error(codes::BAD_VALUE, "the query of a copy is empty")
                .at(place, "a query is missing here")
                .help("write `COPY (SELECT ...) TO 'path'`"),
        ));
    }
    let taken =
        |name: &str| workflow.steps.keys().chain(workflow.sources.keys()).any(|other| fold(other) == fold(name));
    let span = cursor.span(&range);
    let name = Spanned::new(unused("copy", taken), span);
    let text = MappedText::plain(cursor.text.get(range).unwrap_or(""), span);
    let kind = StepKind::Sql(SqlStep { text });
    let (items, resources) = (ItemPolicy::default(), Resources::default());
    let step = Step { name: name.clone(), kind, items, resources, description: None };
    workflow.steps.insert(name.value.clone(), step);
    Ok(name)
}

/// `name`, `name_2`, `name_3`: the first that is not taken.
fn unused(name: &str, taken: impl Fn(&str) -> bool) -> String {
    let mut candidate = name.to_owned();
    let mut count = 1;
    while taken(&candidate) {
        count += 1;
        candidate = format!("{name}_{count}");
    }
    candidate
}

pub(super) fn format(cursor: &mut Cursor<'_>, reporter: &mut Reporter) -> Result<Option<Spanned<Format>>, Refused> {
    let (word, span) = match cursor.peek() {
        Some(Lexeme { token: Token::SingleQuotedString(text), range }) => {
            cursor.next();
            (text.clone(), cursor.span(range))
        }
        _ => cursor.name("a format")?,
    };
    // NDJSON is what DataFusion calls lines of JSON as well.
    let word = word.to_ascii_lowercase();
    match Format::from_word(if matches!(word.as_str(), "ndjson" | "jsonl") { "json" } else { &word }) {
        Some(format) => Ok(Some(Spanned::new(format, span))),
        None => {
            reporter.push(bad_word("`STORED AS`", &word, Format::WORDS, span));
            Ok(None)
        }
    }
}

/// A path in quotes; `None` where it is reported.
pub(super) fn path(cursor: &mut Cursor<'_>, reporter: &mut Reporter) -> Result<Option<Template>, Refused> {
    let Some(Lexeme { token: Token::SingleQuotedString(text), range }) = cursor.peek() else {
        return Err(cursor.refuse("a path in single quotes is missing here", "write `'data/file.parquet'`"));
    };
    cursor.next();
    let span = cursor.span(range);
    if text.trim().is_empty() {
        let report = Diagnostic::error(codes::BAD_VALUE, "the path is empty").at(span, "");
        reporter.push(report.help("write a path, such as `'data/flights.parquet'`"));
        return Ok(None);
    }
    // The value begins after the quote; a doubled quote inside ends the exact correspondence.
    let mut source = MappedText::plain(text.clone(), Span { start: span.start + 1, ..span });
    if cursor.text.get(range.start + 1..range.end.saturating_sub(1)) != Some(text.as_str()) {
        source.pieces.clear();
    }
    match Template::parse(&source) {
        Ok(template) => Ok(Some(Template { span, ..template })),
        Err(error) => {
            let report = Diagnostic::error(codes::BAD_TEMPLATE, format!("in a path, {}", error.message))
                .at(source.span_of(error.range), "")
                .help("write `${params.NAME}` or `${vars.NAME}`; for a literal `${` write `$${`");
            reporter.push(report);
            Ok(None)
        }
    }
}
