//! Nodes of the tree, and scalars as they are written.

use super::scalar;
use crate::span::{MappedText, Span, Spanned};

/// A node of the tree.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) span: Span,
    pub(crate) kind: Kind,
}

/// What a node is.
#[derive(Debug, Clone)]
pub(crate) enum Kind {
    Scalar(Scalar),
    Sequence(Vec<Node>),
    Mapping(Vec<(Spanned<String>, Node)>),
}

/// A scalar as written.
#[derive(Debug, Clone)]
pub(crate) struct Scalar {
    pub(crate) value: Box<str>,
    pub(crate) style: Style,
}

/// How a scalar is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    Plain,
    Single,
    Double,
    /// `|` or `>`.
    Block,
}

impl Scalar {
    /// Whether it stands for null: `null`, `~` or nothing at all.
    pub(crate) fn is_null(&self) -> bool {
        self.style == Style::Plain && matches!(&*self.value, "" | "~" | "null" | "Null" | "NULL")
    }
}

impl Node {
    /// What it is, in a word for a sentence: "a list".
    pub(crate) fn noun(&self) -> &'static str {
        match &self.kind {
            Kind::Sequence(_) => "a list",
            Kind::Mapping(_) => "a mapping",
            Kind::Scalar(scalar) if scalar.is_null() => "nothing",
            Kind::Scalar(scalar) if scalar.style == Style::Plain => match &*scalar.value {
                "true" | "false" => "a truth value",
                text if text.parse::<i64>().is_ok() => "a number",
                text if text.parse::<f64>().is_ok() => "a number with a fraction",
                _ => "a text",
            },
            Kind::Scalar(_) => "a text",
        }
    }

    /// The scalar's value with a map into the file; `text` is the whole file.
    pub(crate) fn mapped(&self, text: &str) -> Option<MappedText> {
        let Kind::Scalar(scalar) = &self.kind else { return None };
        let (start, end) = (self.span.start as usize, self.span.end as usize);
        let source = text.get(start..end).unwrap_or("");
        let pieces = match scalar.style {
            Style::Block => {
                let line = text.get(..start).unwrap_or("").rsplit(['\n', '\r']).next().unwrap_or("");
                scalar::block_pieces(text, start, end, line.len(), &scalar.value)
            }
            style => scalar::read_flow(source, start, style)
                .filter(|flow| *flow.value == *scalar.value)
                .map(|flow| flow.pieces),
        };
        Some(MappedText { text: scalar.value.to_string(), span: self.span, pieces: pieces.unwrap_or_default() })
    }
}

/// A text as a YAML scalar in double quotes, with everything escaped that is not plainly printable.
pub(crate) fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}') => {
                quoted.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
