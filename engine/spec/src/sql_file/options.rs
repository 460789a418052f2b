//! `WITH (...)` and `OPTIONS (...)`: keys and values of a statement of a SQL file.

use std::collections::HashMap;

use sqlparser::tokenizer::Token;

use super::tokens::{Cursor, Refused};
use crate::codes;
use crate::diagnostic::Diagnostic;
use crate::keys::{Key, Shape, Table};
use crate::model::{Compression, CsvOptions, Format};
use crate::read::bad_word;
use crate::report::Reporter;
use crate::span::{Span, Spanned};
use crate::suggest::{did_you_mean, listed};

/// One option.
pub(super) struct SqlOption {
    pub(super) key: Spanned<String>,
    pub(super) value: Spanned<String>,
}

/// Reads `(key = value, 'key' 'value', ...)`.
pub(super) fn read_options(cursor: &mut Cursor<'_>) -> Result<Vec<SqlOption>, Refused> {
    cursor.demand(&Token::LParen, "a list of options")?;
    let mut options = Vec::new();
    if cursor.take_token(&Token::RParen) {
        return Ok(options);
    }
    loop {
        let key = option_key(cursor)?;
        cursor.take_token(&Token::Eq);
        let value = option_value(cursor)?;
        options.push(SqlOption { key, value });
        if !cursor.take_token(&Token::Comma) {
            break;
        }
    }
    cursor.demand(&Token::RParen, "a list of options")?;
    Ok(options)
}

/// `header`, `format.has_header` or `'format.has_header'`; DataFusion's names stand for ours.
fn option_key(cursor: &mut Cursor<'_>) -> Result<Spanned<String>, Refused> {
    let missing = |cursor: &Cursor<'_>| cursor.refuse("the name of an option is missing here", "write `key = 'value'`");
    let Some(first) = cursor.next() else { return Err(missing(cursor)) };
    let mut range = first.range.clone();
    let mut text = match &first.token {
        Token::Word(word) => word.value.clone(),
        Token::SingleQuotedString(text) => text.clone(),
        _ => return Err(missing(cursor)),
    };
    while cursor.take_token(&Token::Period) {
        let Some(next) = cursor.next() else { return Err(missing(cursor)) };
        let Token::Word(word) = &next.token else { return Err(missing(cursor)) };
        text = format!("{text}.{}", word.value);
        range.end = next.range.end;
    }
    let text = text.to_ascii_lowercase();
    let text = match text.strip_prefix("format.").unwrap_or(&text) {
        "has_header" => "header",
        "null_value" => "null",
        "schema_infer_max_rec" => "infer_rows",
        other => other,
    };
    Ok(Spanned::new(text.to_owned(), cursor.span(&range)))
}

fn option_value(cursor: &mut Cursor<'_>) -> Result<Spanned<String>, Refused> {
    let missing =
        |cursor: &Cursor<'_>| cursor.refuse("the value of an option is missing here", "write `key = 'value'`");
    let minus = cursor.take_token(&Token::Minus);
    let Some(next) = cursor.next() else { return Err(missing(cursor)) };
    let text = match &next.token {
        Token::SingleQuotedString(text) | Token::EscapedStringLiteral(text) => text.clone(),
        Token::Number(text, _) => format!("{}{text}", if minus { "-" } else { "" }),
        Token::Word(word) => word.value.clone(),
        _ => return Err(missing(cursor)),
    };
    Ok(Spanned::new(text, cursor.span(&next.range)))
}

/// The options without those that stand twice, which are reported.
pub(super) fn distinct(options: Vec<SqlOption>, reporter: &mut Reporter) -> Vec<SqlOption> {
    let mut seen: HashMap<String, Span> = HashMap::with_capacity(options.len());
    let mut kept = Vec::with_capacity(options.len());
    for option in options {
        match seen.get(&option.key.value) {
            Some(earlier) => reporter.push(
                Diagnostic::error(codes::DUPLICATE_KEY, format!("option `{}` stands twice", option.key.value))
                    .at(option.key.span, "the second time")
                    .at(*earlier, "the first time")
                    .help("remove one of the two"),
            ),
            None => {
                seen.insert(option.key.value.clone(), option.key.span);
                kept.push(option);
            }
        }
    }
    kept
}

/// What options can set of files, read or written.
#[derive(Default)]
pub(super) struct FileSettings {
    pub(super) compression: Option<Spanned<Compression>>,
    pub(super) csv: CsvOptions,
}

/// Takes the options of files; those left over are given to `other`, which says whether it knew them.
pub(super) fn file_settings(
    options: Vec<SqlOption>,
    csv_table: &'static Table,
    others: &[&'static str],
    format: Option<Format>,
    reporter: &mut Reporter,
    mut other: impl FnMut(&SqlOption, &mut Reporter),
) -> FileSettings {
    let mut settings = FileSettings::default();
    for option in distinct(options, reporter) {
        let key = option.key.value.as_str();
        if key == "compression" {
            match Compression::from_word(&option.value.value.to_ascii_lowercase()) {
                Some(compression) => settings.compression = Some(Spanned::new(compression, option.value.span)),
                None => reporter.push(bad_word("`compression`", &option.value, Compression::WORDS, option.value.span)),
            }
        } else if let Some(csv_key) = csv_table.keys.iter().find(|known| known.name == key) {
            if let Some(format) = format.filter(|format| *format != Format::Csv) {
                reporter.push(
                    Diagnostic::error(codes::NOT_APPLICABLE, format!("`{key}` does not apply to {format} files"))
                        .at(option.key.span, "an option of CSV files")
                        .help("remove it, or declare `STORED AS CSV`"),
                );
            } else {
                csv_option(&mut settings.csv, csv_key, &option, reporter);
            }
        } else if others.contains(&key) {
            other(&option, reporter);
        } else {
            let known: Vec<&str> = others
                .iter()
                .copied()
                .chain(["compression"])
                .chain(csv_table.keys.iter().map(|key| key.name))
                .collect();
            reporter.push(unknown_option(&option.key, &known));
        }
    }
    settings
}

pub(super) fn unknown_option(key: &Spanned<String>, known: &[&str]) -> Diagnostic {
    let report = Diagnostic::error(codes::UNKNOWN_KEY, format!("unknown option `{}`", key.value)).at(key.span, "");
    let report = match did_you_mean(&key.value, known.iter().copied()) {
        Some(help) => report.help(help),
        None => report,
    };
    report.help(format!("known here: {}", listed(known.iter().copied())))
}

fn csv_option(csv: &mut CsvOptions, key: &Key, option: &SqlOption, reporter: &mut Reporter) {
    let text = option.value.value.as_str();
    let mut bad = |must: &str| {
        reporter.push(
            Diagnostic::error(codes::BAD_VALUE, format!("`{}` must be {must}", key.name))
                .at(option.value.span, "")
                .help(format!("write `{} = ...` with {must}", key.name)),
        );
    };
    match key.shape {
        Shape::Bool => match text.to_ascii_lowercase().as_str() {
            "true" | "false" => {
                let value = text.eq_ignore_ascii_case("true");
                if key.name == "header" { csv.header = value } else { csv.newlines_in_values = value }
            }
            _ => bad("true or false"),
        },
        Shape::Count(least) => match text.parse::<usize>() {
            Ok(count) if count as i64 >= least => csv.infer_rows = count,
            _ => bad("a whole number, at least 1"),
        },
        Shape::Character => {
            let byte = match text.as_bytes() {
                [byte] if byte.is_ascii() && !matches!(byte, b'\n' | b'\r' | 0) => *byte,
                b"\\t" => b'\t',
                _ => return bad("one ASCII character"),
            };
            match key.name {
                "delimiter" => csv.delimiter = byte,
                "quote" => csv.quote = byte,
                "escape" => csv.escape = Some(byte),
                _ => csv.comment = Some(byte),
            }
        }
        _ => csv.null = Some(text.to_owned()),
    }
}
