//! Comment lines that say something: `-- name: x`, `-- description: x`, `-- param x int64 = 1`, `-- var x string`.

use std::ops::Range;

use crate::codes;
use crate::diagnostic::Diagnostic;
use crate::keys::FORMAT_VERSION;
use crate::model::{Param, Variable, Workflow};
use crate::names::{bad_name, is_identifier, normalize};
use crate::read::bad_type;
use crate::report::Reporter;
use crate::span::{MappedText, Span, Spanned, TextId};
use crate::types::{LogicalType, Value};

/// What the comment lines have said so far.
#[derive(Default)]
pub(super) struct Header {
    name: Option<Span>,
    description: Option<Span>,
    /// Whether the text is of a version that is not read, so that nothing else matters.
    pub(super) refused: bool,
}

impl Header {
    /// Looks at one comment; `range` are the bytes of all of it, the two dashes included.
    pub(super) fn line(
        &mut self,
        id: TextId,
        comment: &str,
        range: &Range<usize>,
        workflow: &mut Workflow,
        reporter: &mut Reporter,
    ) {
        let whole = Span::new(id, range.clone());
        let lead = comment.len() - comment.trim_start().len();
        let body = MappedText::plain(comment.trim(), Span::new(id, range.start + 2 + lead..range.end));
        let text = body.text.clone();
        let word_end = text.find(|c: char| !c.is_alphanumeric()).unwrap_or(text.len());
        let (word, rest) = text.split_at(word_end);
        // Only `word:` and `param `/`var ` are ours; every other comment is a comment.
        let value_at = word_end + (rest.len() - rest.trim_start_matches([':', ' ', '\t']).len());
        let value = text.get(value_at..).unwrap_or("").to_owned();
        match word {
            "rowmill" if rest.starts_with(':') => match value.parse::<i64>() {
                Ok(FORMAT_VERSION) => {}
                version => {
                    self.refused = true;
                    let message = match version {
                        Ok(version) => {
                            format!("the text is of version {version}, and this program reads version {FORMAT_VERSION}")
                        }
                        Err(_) => "this is not a version of the format".to_owned(),
                    };
                    let report = Diagnostic::error(codes::FORMAT_VERSION, message).at(whole, "");
                    reporter.push(report.help("write `-- rowmill: 1`, or use a newer Rowmill"));
                }
            },
            "name" if rest.starts_with(':') => {
                if twice(&mut self.name, whole, "the workflow's name", reporter) {
                    return;
                }
                let name = Spanned::new(normalize(&value), body.span_of(value_at..text.len()));
                workflow.name = name;
            }
            "description" if rest.starts_with(':') => {
                if twice(&mut self.description, whole, "the workflow's description", reporter) {
                    return;
                }
                workflow.description = Some(value);
            }
            "param" | "var" if rest.starts_with([' ', '\t']) => {
                if let Some((name, kind, default)) = declaration(word, &body, value_at, whole, reporter) {
                    declare(word, name, kind, default, workflow, reporter);
                }
            }
            _ => {}
        }
    }
}

fn twice(seen: &mut Option<Span>, here: Span, what: &str, reporter: &mut Reporter) -> bool {
    let Some(earlier) = seen.replace(here) else { return false };
    let report = Diagnostic::error(codes::DUPLICATE_KEY, format!("{what} stands twice"));
    reporter.push(report.at(here, "the second time").at(earlier, "the first time").help("remove one of the two"));
    true
}

type Declared = (Spanned<String>, Spanned<LogicalType>, Option<Spanned<Value>>);

/// Reads `NAME TYPE [= VALUE]` from byte `at` of the comment.
fn declaration(word: &str, body: &MappedText, at: usize, whole: Span, reporter: &mut Reporter) -> Option<Declared> {
    let what = if word == "param" { "parameter" } else { "variable" };
    let text = body.text.as_str();
    let (head, value) = match text.get(at..)?.split_once('=') {
        Some((head, value)) => (head, Some((at + head.len() + 1, value))),
        None => (text.get(at..)?, None),
    };
    let name_end = head.find(char::is_whitespace).unwrap_or(head.len());
    let name = Spanned::new(normalize(&head[..name_end]), body.span_of(at..at + name_end));
    if !is_identifier(&name) {
        reporter.push(bad_name(what, &name, if name.value.is_empty() { whole } else { name.span }));
        return None;
    }
    let type_text = head[name_end..].trim();
    let type_at = at + name_end + (head[name_end..].len() - head[name_end..].trim_start().len());
    if type_text.is_empty() {
        let report =
            Diagnostic::error(codes::MISSING_KEY, format!("{what} `{}` has no type", name.value)).at(whole, "");
        reporter.push(report.help(format!("write `-- {word} {} int64`", name.value)));
        return None;
    }
    let kind = match LogicalType::parse(type_text) {
        Ok(kind) => Spanned::new(kind, body.span_of(type_at..type_at + type_text.len())),
        Err(error) => {
            let place = body.span_of(type_at + error.range.start..type_at + error.range.end);
            reporter.push(bad_type(&format!("the type of {what} `{}`", name.value), &error, place));
            // References to the name are not reported as well.
            return Some((name, Spanned::new(LogicalType::String, whole), None));
        }
    };
    let default = value.and_then(|(value_at, value)| {
        let lead = value.len() - value.trim_start().len();
        let trimmed = value.trim();
        let place = body.span_of(value_at + lead..value_at + lead + trimmed.len());
        let plain = match trimmed.strip_prefix('\'').and_then(|text| text.strip_suffix('\'')) {
            Some(quoted) => quoted.replace("''", "'"),
            None => trimmed.to_owned(),
        };
        match Value::parse(&kind, &plain) {
            Ok(value) => Some(Spanned::new(value, place)),
            Err(message) => {
                let report = Diagnostic::error(
                    codes::BAD_LITERAL,
                    format!("the default of {what} `{}` does not fit its type", name.value),
                );
                let report = report.at(place, message).help(format!("give a value of type {}", kind.value));
                // A type that no value can have is reported once, by the check of the whole workflow.
                if crate::types::check_usable(&kind).is_ok() {
                    reporter.push(report);
                }
                None
            }
        }
    });
    Some((name, kind, default))
}

fn declare(
    word: &str,
    name: Spanned<String>,
    kind: Spanned<LogicalType>,
    default: Option<Spanned<Value>>,
    workflow: &mut Workflow,
    reporter: &mut Reporter,
) {
    let key = name.value.clone();
    let place = name.span;
    let earlier = if word == "param" {
        let param = Param { name, kind, default, description: None };
        workflow.params.insert(key.clone(), param).map(|earlier| earlier.name.span)
    } else {
        let variable = Variable { name, kind, default, description: None };
        workflow.vars.insert(key.clone(), variable).map(|earlier| earlier.name.span)
    };
    if let Some(earlier) = earlier {
        let report = Diagnostic::error(codes::DUPLICATE_KEY, format!("`{key}` is declared twice"));
        reporter.push(report.at(place, "the second time").at(earlier, "the first time").help("remove one of the two"));
    }
}
