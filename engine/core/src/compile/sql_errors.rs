//! From what DataFusion says about a query to a report that points into the workflow's text.

use std::ops::Range;

use datafusion::common::{Column, DataFusionError, SchemaError};
use datafusion::sql::sqlparser::parser::ParserError;
use datafusion::sql::sqlparser::tokenizer::Span as SqlSpan;
use rowmill_spec::{Diagnostic, Fault, MappedText, Span};

/// The nearest of `known` to `name`, if it is near enough to be meant.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let folded = name.to_lowercase();
    known
        .map(|other| (strsim::damerau_levenshtein(&folded, &other.to_lowercase()), other))
        .filter(|(distance, _)| *distance <= name.chars().count().max(3) / 3)
        .min()
        .map(|(_, other)| other)
}

/// The place in the file of a place in the SQL text; the whole text where there is none.
pub fn place(text: &MappedText, span: SqlSpan) -> Span {
    range(text, span).map_or(text.span, |range| text.span_of(range))
}

fn range(text: &MappedText, span: SqlSpan) -> Option<Range<usize>> {
    if span.start.line == 0 {
        return None;
    }
    let start = text.offset_at(span.start.line, span.start.column)?;
    let end = text.offset_at(span.end.line, span.end.column).unwrap_or(start);
    Some(start..end.max(start))
}

/// A syntax error, at the token that could not be read.
pub fn syntax_error(step: &str, text: &MappedText, error: &DataFusionError) -> Diagnostic {
    let message = match error.find_root() {
        DataFusionError::SQL(error, _) => match error.as_ref() {
            ParserError::ParserError(message) | ParserError::TokenizerError(message) => message.clone(),
            ParserError::RecursionLimitExceeded => "it is nested too deeply".to_owned(),
        },
        other => other.strip_backtrace(),
    };
    let (message, span) = match message.split_once(" at Line: ") {
        Some((before, place)) => {
            let mut numbers = place
                .split(", Column: ")
                .map(|number| number.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<u64>().ok());
            let (line, column) = (numbers.next().flatten(), numbers.next().flatten());
            let offset = line.zip(column).and_then(|(line, column)| text.offset_at(line, column));
            (before.to_owned(), offset.map(|start| text.span_of(word_at(&text.text, start))))
        }
        None if message.contains("EOF") => {
            let end = text.text.trim_end().len();
            (message, Some(text.span_of(end.saturating_sub(1)..end)))
        }
        None => (message, None),
    };
    let message = message.trim_start_matches("sql parser error: ").trim();
    Diagnostic::error("RM0301", format!("step `{step}`: {}", lower_first(message))).at(span.unwrap_or(text.span), "")
}

fn word_at(text: &str, start: usize) -> Range<usize> {
    let rest = &text[start.min(text.len())..];
    let length = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
    start..start + length.max(1).min(rest.len())
}

/// Whatever planning says about the query of `step`.
pub fn planning_error(step: &str, text: &MappedText, error: &DataFusionError) -> Diagnostic {
    let at_column = |column: &Column| {
        column
            .spans()
            .first()
            .and_then(|span| {
                let start = text.offset_at(span.start.line, span.start.column)?;
                let end = text.offset_at(span.end.line, span.end.column)?;
                Some(text.span_of(start..end))
            })
            .or_else(|| find_word(text, &column.name))
            .unwrap_or(text.span)
    };
    if let Some(SchemaError::FieldNotFound { field, valid_fields }) = schema_error(error) {
        let named = valid_fields.iter().map(|column| column.name.as_str());
        let report = Diagnostic::error("RM0304", format!("step `{step}` reads unknown column `{}`", field.flat_name()))
            .at(
                at_column(field),
                match field.relation.as_ref() {
                    Some(relation) => format!("not in `{relation}`"),
                    None => String::new(),
                },
            );
        return match nearest(&field.name, named) {
            Some(other) => report.help(format!("did you mean `{other}`?")),
            None => report.help(known_columns(valid_fields)),
        };
    }
    if let Some(SchemaError::AmbiguousReference { field }) = schema_error(error) {
        return Diagnostic::error(
            "RM0305",
            format!("step `{step}`: column `{}` is in more than one table", field.name),
        )
        .at(at_column(field), "")
        .help("put the table's name before it, and give each output column a name of its own");
    }
    let diagnostic_span = diagnostic_of(error).and_then(|diagnostic| {
        let span = diagnostic.span?;
        let start = text.offset_at(span.start.line, span.start.column)?;
        let end = text.offset_at(span.end.line, span.end.column)?;
        Some(text.span_of(start..end.max(start)))
    });
    let message = clean(&error.find_root().strip_backtrace());
    let (code, message, help) = classify(&message);
    let span = diagnostic_span.or_else(|| guess(text, &message)).unwrap_or(text.span);
    let fault = match error.find_root() {
        DataFusionError::Internal(_) => Fault::Internal,
        _ => Fault::Workflow,
    };
    let mut report = Diagnostic::error(code, format!("step `{step}`: {}", lower_first(&logical_words(&message))))
        .at(span, "")
        .fault(fault);
    if let Some(help) = help {
        report = report.help(help);
    }
    report
}

/// The same for a query that stands in no workflow, so that there is no text to point into; `before` begins the message.
pub fn unplaced(before: &str, error: &DataFusionError) -> Diagnostic {
    let of = |code, message: &str, help: Option<String>| {
        let report = Diagnostic::error(code, format!("{before}{message}"));
        match help {
            Some(help) => report.help(help),
            None => report,
        }
    };
    if let DataFusionError::SQL(error, _) = error {
        return match error.as_ref() {
            ParserError::ParserError(message) | ParserError::TokenizerError(message) => {
                of("RM0301", &lower_first(message), None)
            }
            ParserError::RecursionLimitExceeded => of("RM0301", "it is nested too deeply", None),
        };
    }
    match schema_error(error) {
        Some(SchemaError::FieldNotFound { field, valid_fields }) => {
            let near = nearest(&field.name, valid_fields.iter().map(|column| column.name.as_str()));
            let help = near.map_or_else(|| known_columns(valid_fields), |other| format!("did you mean `{other}`?"));
            return of("RM0304", &format!("there is no column `{}`", field.name), Some(help));
        }
        Some(SchemaError::AmbiguousReference { field }) => {
            let message = format!("column `{}` is in more than one table", field.name);
            return of("RM0305", &message, Some("put the table's name before it".to_owned()));
        }
        _ => {}
    }
    let message = clean(&clean(&error.strip_backtrace()));
    if let Some(table) = message.strip_prefix("table '").and_then(|rest| rest.strip_suffix("' not found")) {
        return of("RM0302", &format!("there is no table `{}`", table.rsplit('.').next().unwrap_or(table)), None);
    }
    let (code, message, help) = classify(&message);
    of(code, &lower_first(&logical_words(&message)), help)
}

fn known_columns(valid: &[Column]) -> String {
    let mut names: Vec<&str> = valid.iter().map(|column| column.name.as_str()).collect();
    names.dedup();
    let more = names.len().saturating_sub(12);
    names.truncate(12);
    match more {
        0 if names.is_empty() => "there are no columns here".to_owned(),
        0 => format!("the columns here are {}", names.join(", ")),
        more => format!("the columns here are {} and {more} more", names.join(", ")),
    }
}

fn schema_error(error: &DataFusionError) -> Option<&SchemaError> {
    match error {
        DataFusionError::SchemaError(error, _) => Some(error),
        DataFusionError::Diagnostic(_, inner) | DataFusionError::Context(_, inner) => schema_error(inner),
        DataFusionError::Shared(inner) => schema_error(inner),
        DataFusionError::Collection(errors) => errors.iter().find_map(schema_error),
        _ => None,
    }
}

fn diagnostic_of(error: &DataFusionError) -> Option<&datafusion::common::Diagnostic> {
    match error {
        DataFusionError::Diagnostic(diagnostic, _) => Some(diagnostic),
        DataFusionError::Context(_, inner) => diagnostic_of(inner),
        DataFusionError::Shared(inner) => diagnostic_of(inner),
        DataFusionError::Collection(errors) => errors.iter().find_map(diagnostic_of),
        _ => None,
    }
}

/// Takes DataFusion's own words for the kind of error away.
fn clean(message: &str) -> String {
    let mut message = message;
    for prefix in [
        "Error during planning: ",
        "Schema error: ",
        "Execution error: ",
        "This feature is not implemented: ",
        "External error: ",
        "Arrow error: ",
        "type_coercion\ncaused by\n",
        "Internal error: ",
    ] {
        message = message.strip_prefix(prefix).unwrap_or(message);
    }
    message.trim().to_owned()
}

/// A code, the message, and a next move.
fn classify(message: &str) -> (&'static str, String, Option<String>) {
    let lower = message.to_lowercase();
    if let Some(function) = message.split("Function '").nth(1).and_then(|rest| rest.split('\'').next())
        && message.contains("failed to match any signature")
    {
        return ("RM0307", unmatched_call(function, message), None);
    }
    if let Some(column) = lower.contains("must be in group by").then(|| message.split("column \"").nth(1)).flatten() {
        let column = column.split('"').next().unwrap_or("");
        let help = "add the column to GROUP BY, or aggregate it".to_owned();
        return ("RM0310", format!("column `{column}` is neither in GROUP BY nor inside an aggregate"), Some(help));
    }
    let first_line = message.lines().next().unwrap_or(message).trim_end_matches('.').to_owned();
    if lower.contains("invalid function") {
        let help = message
            .lines()
            .find_map(|line| line.trim().strip_prefix("Did you mean '"))
            .map(|rest| format!("did you mean `{}`?", rest.trim_end_matches(['?', '\'', '.'])));
        return ("RM0306", first_line, help);
    }
    let about_types = [
        "coerce",
        "cannot infer common",
        "cast",
        "signature",
        "unsupported type",
        "type mismatch",
        "data type",
        "must be boolean",
        "boolean",
        "types",
        "expects",
        "argument",
    ];
    if about_types.iter().any(|word| lower.contains(word)) {
        return ("RM0307", first_line, None);
    }
    if lower.contains("group by") || lower.contains("aggregate") {
        return ("RM0310", first_line, Some("add the column to GROUP BY, or aggregate it".to_owned()));
    }
    ("RM0308", first_line, None)
}

/// One sentence out of the list of all signatures that did not match.
fn unmatched_call(function: &str, message: &str) -> String {
    let between = |part: &str, before: &str, after: &str| -> Option<String> {
        let rest = part.split(before).nth(1)?;
        Some(rest.split(after).next().unwrap_or(rest).trim().to_owned())
    };
    let alternatives: Vec<&str> = message.split("Error during planning: ").skip(1).collect();
    let mut wanted: Vec<String> =
        alternatives.iter().filter_map(|part| between(part, "requires ", ", but received")).collect();
    let mut counts: Vec<String> =
        alternatives.iter().filter_map(|part| between(part, "expects ", " arguments")).collect();
    wanted.dedup();
    counts.sort();
    counts.dedup();
    let given = alternatives
        .iter()
        .find_map(|part| between(part, "but received ", " (").or_else(|| between(part, "but received ", ",")));
    let or = |names: &[String]| names.join(" or ");
    match (wanted.is_empty(), counts.is_empty(), given) {
        (false, _, Some(given)) => format!("function `{function}` takes {}, not {given}", or(&wanted)),
        (true, false, Some(given)) => format!("function `{function}` takes {} arguments, not {given}", or(&counts)),
        _ => format!("function `{function}` does not take these arguments"),
    }
}

/// Arrow's names of types, as a workflow spells them.
fn logical_words(message: &str) -> String {
    let mut text = String::with_capacity(message.len());
    let mut word = String::new();
    let mut quoted = false;
    for c in message.chars().chain([' ']) {
        if c.is_alphanumeric() || c == '_' {
            word.push(c);
            continue;
        }
        text.push_str(match word.as_str() {
            _ if quoted => &word,
            "Utf8" | "LargeUtf8" | "Utf8View" => "string",
            "Boolean" => "bool",
            "Date32" | "Date64" => "date",
            "Int8" => "int8",
            "Int16" => "int16",
            "Int32" => "int32",
            "Int64" => "int64",
            "UInt8" => "uint8",
            "UInt16" => "uint16",
            "UInt32" => "uint32",
            "UInt64" => "uint64",
            "Float32" => "float32",
            "Float64" => "float64",
            _ => &word,
        });
        word.clear();
        if matches!(c, '`' | '\'' | '"') {
            quoted = !quoted;
        }
        text.push(c);
    }
    text.truncate(text.trim_end().len());
    text
}

/// Looks for a name that the message mentions in the SQL text.
fn guess(text: &MappedText, message: &str) -> Option<Span> {
    let mut words: Vec<&str> = Vec::new();
    for quote in ['\'', '`', '"'] {
        words.extend(message.split(quote).skip(1).step_by(2));
    }
    // `t.column` and function names without quotes.
    words.extend(message.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '.')).filter(|word| word.len() > 2));
    words.iter().flat_map(|word| [Some(*word), word.rsplit('.').next()]).flatten().find_map(|word| {
        let common = matches!(
            word.to_lowercase().as_str(),
            "for"
                | "the"
                | "and"
                | "not"
                | "with"
                | "from"
                | "type"
                | "types"
                | "function"
                | "error"
                | "column"
                | "select"
                | "arguments"
                | "in"
                | "is"
                | "to"
                | "failed"
                | "call"
                | "group"
                | "order"
                | "where"
        );
        (!common && !word.is_empty() && word.chars().all(|c| c.is_alphanumeric() || c == '_'))
            .then(|| find_word(text, word))
            .flatten()
    })
}

/// The first place of `word` in the SQL as a word of its own, regardless of case.
fn find_word(text: &MappedText, word: &str) -> Option<Span> {
    if word.is_empty() {
        return None;
    }
    let (haystack, needle) = (text.text.to_ascii_lowercase(), word.to_ascii_lowercase());
    let mut from = 0;
    while let Some(found) = haystack[from..].find(&needle) {
        let start = from + found;
        let end = start + needle.len();
        let part = |c: char| c.is_alphanumeric() || c == '_';
        let alone = !haystack[..start].chars().next_back().is_some_and(part)
            && !haystack[end..].chars().next().is_some_and(part);
        if alone {
            return Some(text.span_of(start..end));
        }
        from = end;
    }
    None
}

fn lower_first(message: &str) -> String {
    let mut characters = message.chars();
    match (characters.next(), message.chars().nth(1)) {
        // A word in capitals (an SQL keyword) stays.
        (Some(first), Some(second)) if first.is_uppercase() && second.is_lowercase() => {
            first.to_lowercase().chain(characters).collect()
        }
        _ => message.to_owned(),
    }
}
