//! Values of steps that need more than a word: times, sizes, shares, statuses, texts with `${...}`, JSON.

use std::time::Duration;

use super::Reading;
use crate::codes;
use crate::config::{Secret, parse_bytes};
use crate::diagnostic::Diagnostic;
use crate::model::{JsonTemplate, Rate};
use crate::names::{self, is_identifier, normalize};
use crate::span::Spanned;
use crate::template::Template;
use crate::units::{parse_duration, parse_rate, parse_share};
use crate::yaml::{Kind, Node, Scalar, Style};

impl Reading<'_> {
    fn parsed<T>(
        &mut self,
        node: &Node,
        what: &str,
        shape: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Spanned<T>> {
        let text = match &node.kind {
            Kind::Scalar(scalar) if !scalar.is_null() => &scalar.value,
            _ => {
                self.wrong_type(node, &format!("{what} must be {shape}"), &format!("write {shape}"));
                return None;
            }
        };
        match parse(text) {
            Ok(value) => Some(Spanned::new(value, node.span)),
            Err(reason) => {
                let report = Diagnostic::error(codes::BAD_VALUE, format!("{what} cannot be read: {reason}"));
                self.report(report.at(node.span, "").help(format!("{what} is {shape}")));
                None
            }
        }
    }

    /// A time.
    pub(super) fn duration(&mut self, node: &Node, what: &str) -> Option<Spanned<Duration>> {
        self.parsed(node, what, "a time such as `250ms`, `5s` or `2m`", parse_duration)
    }

    /// A size of at least one byte.
    pub(super) fn size(&mut self, node: &Node, what: &str) -> Option<Spanned<u64>> {
        self.parsed(node, what, "a size such as `512KB` or `4MiB`", |text| match parse_bytes(text)? {
            0 => Err("it must be more than nothing".to_owned()),
            bytes => Ok(bytes),
        })
    }

    /// Calls in a time.
    pub(super) fn rate(&mut self, node: &Node, what: &str) -> Option<Spanned<Rate>> {
        self.parsed(node, what, "a rate such as `50/s`", parse_rate)
    }

    /// A share.
    pub(super) fn share(&mut self, node: &Node, what: &str) -> Option<Spanned<f64>> {
        self.parsed(node, what, "a share such as `1%`", parse_share)
    }

    /// A number of 1 or more, with or without a fraction.
    pub(super) fn factor(&mut self, node: &Node, what: &str) -> Option<Spanned<f64>> {
        self.parsed(node, what, "a number of 1 or more", |text| match text.parse::<f64>() {
            Ok(number) if number.is_finite() && number >= 1.0 => Ok(number),
            _ => Err(format!("`{}` is not a number of 1 or more", text.chars().take(40).collect::<String>())),
        })
    }

    /// A count of at least one.
    pub(super) fn count(&mut self, node: &Node, what: &str, least: i64) -> Option<Spanned<u64>> {
        let count = self.integer(node, what, least)?;
        Some(Spanned::new(count.unsigned_abs(), node.span))
    }

    /// `true` or `false`, with its place.
    pub(super) fn flag(&mut self, node: &Node, what: &str) -> Option<Spanned<bool>> {
        Some(Spanned::new(self.boolean(node, what)?, node.span))
    }

    /// One status or a list of them.
    pub(super) fn statuses(&mut self, node: &Node, what: &str) -> Vec<Spanned<u16>> {
        self.one_or_many(node, |reading, node| {
            reading.parsed(node, what, "a status from 100 to 599, or a list of them", status)
        })
    }

    /// One status, a range, or a list of them.
    pub(super) fn status_ranges(&mut self, node: &Node, what: &str) -> Vec<(u16, u16)> {
        self.one_or_many(node, |reading, node| {
            let range =
                reading.parsed(node, what, "a status such as `200`, a range such as `200-204`, or a list", |text| {
                    let (first, last) = text.split_once('-').unwrap_or((text, text));
                    let range = (status(first.trim())?, status(last.trim())?);
                    if range.0 > range.1 { Err(format!("`{text}` ends before it begins")) } else { Ok(range) }
                })?;
            Some(range.value)
        })
    }

    /// The name of something outside of the workflow: a connection.
    pub(super) fn outer_name(&mut self, node: &Node, what: &'static str) -> Option<Spanned<String>> {
        let name = self.text(node, &format!("`{what}`"))?;
        let name = Spanned::new(normalize(&name.value), name.span);
        if !is_identifier(&name) {
            self.report(names::bad_name(what, &name, name.span));
            return None;
        }
        Some(name)
    }

    /// The name of a column: any text that is not empty.
    pub(super) fn column_name(&mut self, node: &Node, what: &str) -> Option<Spanned<String>> {
        let name = self.text(node, what)?;
        if name.value.is_empty() {
            self.report(
                Diagnostic::error(codes::BAD_NAME, format!("{what} names a column with an empty name"))
                    .at(node.span, "")
                    .help("give the column's name"),
            );
            return None;
        }
        Some(Spanned::new(normalize(&name.value), name.span))
    }

    /// A reference to a secret; whatever else stands there is not repeated.
    pub(super) fn secret(&mut self, node: &Node, what: &str) -> Option<Spanned<Secret>> {
        if let Kind::Scalar(scalar) = &node.kind
            && let Some(secret) = Secret::reference(&scalar.value)
        {
            return Some(Spanned::new(secret, node.span));
        }
        self.reporter.masks.push(node.span);
        let report = Diagnostic::error(codes::PLAIN_SECRET, format!("{what} is not a reference to a secret"));
        self.report(report.at(node.span, "not shown here").help("write `env:NAME` or `file:/path`"));
        None
    }

    /// A text with `${...}` that may be empty.
    pub(super) fn filled_text(&mut self, node: &Node, what: &str) -> Option<Template> {
        let source = self.mapped(node, what)?;
        match Template::parse(&source) {
            Ok(template) => Some(template),
            Err(error) => {
                let report = Diagnostic::error(codes::BAD_TEMPLATE, format!("in {what}, {}", error.message))
                    .at(source.span_of(error.range), "")
                    .help("write `${params.NAME}` or `${vars.NAME}`; for a literal `${` write `$${`");
                self.report(report);
                None
            }
        }
    }

    /// A mapping from texts to texts with `${...}`; with `many`, a list gives a name several times.
    pub(super) fn text_map(&mut self, node: &Node, what: &str, many: bool) -> Vec<(Spanned<String>, Template)> {
        let mut pairs = Vec::new();
        for (name, value) in self.mapping(node, what).unwrap_or(&[]) {
            let whose = format!("`{}` of {what}", name.value);
            if name.value.is_empty() {
                let report = Diagnostic::error(codes::BAD_NAME, format!("{what} has an empty name"));
                self.report(report.at(name.span, "").help("give it a name"));
                continue;
            }
            match &value.kind {
                Kind::Sequence(items) if many => {
                    for item in items {
                        pairs.extend(self.filled_text(item, &whose).map(|text| (name.clone(), text)));
                    }
                }
                _ => pairs.extend(self.filled_text(value, &whose).map(|text| (name.clone(), text))),
            }
        }
        pairs
    }

    /// JSON whose strings are templates.
    pub(super) fn json(&mut self, node: &Node, what: &str) -> Option<JsonTemplate> {
        Some(match &node.kind {
            Kind::Scalar(scalar) if scalar.is_null() => JsonTemplate::Null,
            Kind::Scalar(scalar) => match plain_json(scalar) {
                Some(value) => value,
                None => JsonTemplate::Text(self.filled_text(node, what)?),
            },
            Kind::Sequence(items) => {
                JsonTemplate::List(items.iter().map(|item| self.json(item, what)).collect::<Option<_>>()?)
            }
            Kind::Mapping(entries) => {
                let mut fields = Vec::with_capacity(entries.len());
                let mut whole = true;
                for (name, value) in entries {
                    // `{day}` without quotes is a mapping with one empty value to YAML.
                    if matches!(&value.kind, Kind::Scalar(scalar) if scalar.value.is_empty() && scalar.style == Style::Plain)
                        && entries.len() == 1
                    {
                        let report = Diagnostic::error(
                            codes::BAD_VALUE,
                            format!("in {what}, `{{{}}}` is a mapping to YAML", name.value),
                        );
                        self.report(report.at(name.span, "").help(format!("put it in quotes: \"{{{}}}\"", name.value)));
                        whole = false;
                        continue;
                    }
                    match self.json(value, what) {
                        Some(value) => fields.push((name.value.clone(), value)),
                        None => whole = false,
                    }
                }
                if !whole {
                    return None;
                }
                JsonTemplate::Object(fields)
            }
        })
    }
}

fn status(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(status) if (100..=599).contains(&status) => Ok(status),
        _ => Err(format!("`{}` is not a status from 100 to 599", text.chars().take(40).collect::<String>())),
    }
}

/// `true`, `5` or `1.5`, where they stand without quotes.
fn plain_json(scalar: &Scalar) -> Option<JsonTemplate> {
    if scalar.style != Style::Plain {
        return None;
    }
    match &*scalar.value {
        "true" | "True" | "TRUE" => Some(JsonTemplate::Bool(true)),
        "false" | "False" | "FALSE" => Some(JsonTemplate::Bool(false)),
        // What JSON reads as a number is one; `1_000`, `0x10` and `.5` are texts.
        text => serde_json::from_str::<serde_json::Number>(text).ok().map(JsonTemplate::Number),
    }
}
