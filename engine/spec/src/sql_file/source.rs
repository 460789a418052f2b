//! `CREATE EXTERNAL TABLE`: a source of a SQL file.

use indexmap::IndexMap;
use sqlparser::tokenizer::Token;

use super::columns::{Column, Types, column_list};
use super::options::{SqlOption, distinct, file_settings, read_options, unknown_option};
use super::statements::{format, insert, name_of, once, path};
use super::tokens::{Cursor, Refused};
use crate::codes;
use crate::diagnostic::Diagnostic;
use crate::keys;
use crate::model::{FileSource, SchemaPolicy, Source, SourceKind, Workflow};
use crate::read::bad_word;
use crate::report::Reporter;
use crate::span::Spanned;
use crate::types::LogicalType;

/// `EXTERNAL TABLE name [(column type, ...)] STORED AS format [PARTITIONED BY (...)] LOCATION 'path' [OPTIONS (...)]`,
/// the clauses in any order; or `EXTERNAL TABLE name STORED AS RANGE OPTIONS (start 0, end 1000)`.
pub(super) fn external_table(
    cursor: &mut Cursor<'_>,
    workflow: &mut Workflow,
    reporter: &mut Reporter,
) -> Result<(), Refused> {
    let name = name_of(cursor, "source")?;
    let mut columns: Option<IndexMap<String, Spanned<LogicalType>>> = None;
    if cursor.peek().is_some_and(|next| next.token == Token::LParen) {
        let list = column_list(cursor, Types::Required, reporter)?;
        columns = Some(list.into_iter().filter_map(|(name, kind)| Some((name.value, kind?))).collect());
    }
    let mut source = FileSource::new(Vec::new());
    let mut partitions: Vec<Column> = Vec::new();
    let mut options: Vec<SqlOption> = Vec::new();
    let mut seen = Vec::new();
    let mut range = false;
    while cursor.peek().is_some() {
        if cursor.take_all(&["STORED", "AS"]) {
            once(cursor, &mut seen, "STORED AS")?;
            range = cursor.take("RANGE");
            if !range {
                source.format = format(cursor, reporter)?;
            }
        } else if cursor.take_all(&["PARTITIONED", "BY"]) {
            once(cursor, &mut seen, "PARTITIONED BY")?;
            partitions = column_list(cursor, Types::Optional, reporter)?;
        } else if cursor.take("LOCATION") {
            once(cursor, &mut seen, "LOCATION")?;
            source.paths = path(cursor, reporter)?.into_iter().collect();
        } else if cursor.take("OPTIONS") {
            options.extend(read_options(cursor)?);
        } else {
            return Err(cursor.refuse(
                format!("this is no part of source `{}`", name.value),
                "a source has `STORED AS`, `PARTITIONED BY`, `LOCATION` and `OPTIONS`",
            ));
        }
    }
    if range {
        let others = columns.is_some() || seen.iter().any(|clause| *clause != "STORED AS");
        return range_source(&name, others, options, workflow, reporter);
    }
    if !seen.contains(&"LOCATION") {
        return Err(Box::new(
            Diagnostic::error(codes::MISSING_KEY, format!("source `{}` has no `LOCATION`", name.value))
                .at(name.span, "it says nowhere its rows come from")
                .help("add `LOCATION 'path'`"),
        ));
    }
    for (column, kind) in partitions {
        // Hive style: a partition column may be declared among the columns, and only named here.
        let declared = columns.as_mut().and_then(|columns| columns.shift_remove(&column.value));
        match kind.or(declared) {
            Some(kind) => {
                source.partitions.insert(column.value, kind);
            }
            None => reporter.push(
                Diagnostic::error(codes::MISSING_KEY, format!("partition column `{}` has no type", column.value))
                    .at(column.span, "")
                    .help(format!("write `PARTITIONED BY ({} BIGINT)`", column.value)),
            ),
        }
    }
    source.schema = columns.filter(|columns| !columns.is_empty());
    let mut description = None;
    let mut policy = None;
    let settings = file_settings(
        options,
        &keys::CSV,
        &["schema_policy", "description"],
        source.known_format(),
        reporter,
        |option, reporter| match option.key.as_str() {
            "description" => description = Some(option.value.value.clone()),
            _ => match SchemaPolicy::from_word(&option.value) {
                Some(found) => policy = Some(Spanned::new(found, option.value.span)),
                None => {
                    reporter.push(bad_word("`schema_policy`", &option.value, SchemaPolicy::WORDS, option.value.span));
                }
            },
        },
    );
    source.compression = settings.compression;
    source.csv = settings.csv;
    source.schema_policy = policy.unwrap_or(source.schema_policy);
    let source = Source { name: name.clone(), kind: SourceKind::Files(Box::new(source)), description };
    insert(&mut workflow.sources, &name, source, |source| source.name.span)
}

/// A source that generates its rows.
fn range_source(
    name: &Spanned<String>,
    others: bool,
    options: Vec<SqlOption>,
    workflow: &mut Workflow,
    reporter: &mut Reporter,
) -> Result<(), Refused> {
    if others {
        let message = format!("source `{}` is a range, which has neither columns nor a location", name.value);
        let report = Diagnostic::error(codes::NOT_APPLICABLE, message).at(name.span, "");
        return Err(Box::new(report.help("a range has `OPTIONS (start 0, end 1000)` only")));
    }
    let (mut start, mut end) = (None, None);
    let mut description = None;
    for option in distinct(options, reporter) {
        let bound = match option.key.as_str() {
            "start" => &mut start,
            "end" => &mut end,
            "description" => {
                description = Some(option.value.value);
                continue;
            }
            _ => {
                reporter.push(unknown_option(&option.key, &["start", "end", "description"]));
                continue;
            }
        };
        match option.value.parse::<i64>() {
            Ok(value) => *bound = Some(Spanned::new(value, option.value.span)),
            Err(_) => {
                // Stands for the value, so that the option is not reported as missing too.
                *bound = Some(Spanned::new(0, option.value.span));
                let message = format!("`{}` must be a whole number", option.key.value);
                let report = Diagnostic::error(codes::WRONG_TYPE, message).at(option.value.span, "");
                reporter.push(report.help("write digits only"));
            }
        }
    }
    let Some(end) = end else {
        return Err(Box::new(
            Diagnostic::error(codes::MISSING_KEY, format!("the range of source `{}` has no `end`", name.value))
                .at(name.span, "`end` is missing here")
                .help("add `OPTIONS (end 1000)`: one past the last value"),
        ));
    };
    let start = start.unwrap_or_else(|| Spanned::bare(0));
    let source = Source { name: name.clone(), kind: SourceKind::Range { start, end }, description };
    insert(&mut workflow.sources, name, source, |source| source.name.span)
}
