//! Files of values (`--vars`): a flat mapping from names to single values or lists of them.

use std::sync::Arc;

use indexmap::IndexMap;

use super::Reading;
use crate::codes;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::names::normalize;
use crate::report::Reporter;
use crate::span::{Span, Spanned, Texts};
use crate::types::{LogicalType, Value};
use crate::yaml::{self, Kind, Node, Scalar, Style, quote};

/// Values as written, not yet read as any type: the workflow that they are for declares the types.
#[derive(Debug, Clone, Default)]
pub struct Values {
    /// By name, in the order of the text.
    pub entries: IndexMap<String, RawValue>,
    /// What the spans point into.
    pub texts: Arc<Texts>,
}

/// A value as written, to be read as its declared type.
#[derive(Debug, Clone)]
pub struct RawValue {
    /// The name, and where it stands.
    pub name: Spanned<String>,
    /// Where the value stands.
    pub span: Span,
    node: Node,
}

impl RawValue {
    /// A value or a list of values, as it is written; `None` for anything else.
    pub(crate) fn from_node(name: Spanned<String>, node: &Node) -> Option<Self> {
        let flat = match &node.kind {
            Kind::Scalar(_) => true,
            Kind::Sequence(items) => items.iter().all(|item| matches!(item.kind, Kind::Scalar(_))),
            Kind::Mapping(_) => false,
        };
        flat.then(|| RawValue { span: node.span, node: node.clone(), name })
    }

    /// A value that a program gives.
    pub fn new(name: impl Into<String>, value: &Value) -> Self {
        let node = value_node(value);
        RawValue { name: Spanned::bare(normalize(&name.into())), span: Span::NONE, node }
    }

    /// The value as it is written; `None` for null and for a list.
    pub fn text(&self) -> Option<&str> {
        match &self.node.kind {
            Kind::Scalar(scalar) if !scalar.is_null() => Some(&scalar.value),
            _ => None,
        }
    }

    /// The value as YAML on one line.
    pub(crate) fn to_yaml(&self) -> String {
        flow(&self.node)
    }

    /// Reads the value as the type.
    ///
    /// # Errors
    /// A report that points at the value.
    pub fn read(&self, kind: &LogicalType) -> Result<Spanned<Value>, Diagnostic> {
        match Value::from_node(kind, &self.node) {
            Ok(value) => Ok(Spanned::new(value, self.span)),
            Err(message) => Err(Diagnostic::error(
                codes::BAD_LITERAL,
                format!("the value of `{}` does not fit its type {kind}", self.name.value),
            )
            .at(self.span, message)
            .help(format!("give a value of type {kind}"))),
        }
    }
}

/// Reads a file of values: YAML, one mapping from names to values.
///
/// # Errors
/// All errors of the text at once.
pub fn parse_values(name: &str, text: &str) -> Result<Values, Diagnostics> {
    if let Err(report) = yaml::check_size(text.len()) {
        return Err(Diagnostics { reports: vec![report], texts: Arc::default() });
    }
    let mut texts = Texts::new();
    let id = texts.add(name, text);
    let texts = Arc::new(texts);
    let mut reporter = Reporter::default();
    let root = yaml::parse(id, text, &mut reporter);
    let mut entries = IndexMap::new();
    if let Some(root) = root {
        let mut reading = Reading { id, text, reporter: &mut reporter };
        for (key, node) in reading.mapping(&root, "a file of values").unwrap_or(&[]) {
            let name = Spanned::new(normalize(&key.value), key.span);
            let Some(value) = RawValue::from_node(name.clone(), node) else {
                reading.wrong_type(
                    node,
                    &format!("the value of `{}` must be a single value or a list of them", name.value),
                    "",
                );
                continue;
            };
            if entries.insert(name.value.clone(), value).is_some() {
                let report = Diagnostic::error(codes::DUPLICATE_KEY, format!("`{}` stands twice", name.value));
                reading.report(report.at(name.span, "the second time").help("remove one of the two"));
            }
        }
    }
    if reporter.errors() > 0 {
        return Err(Diagnostics { reports: reporter.finish(), texts });
    }
    Ok(Values { entries, texts })
}

fn value_node(value: &Value) -> Node {
    let scalar = |text: String, style| Kind::Scalar(Scalar { value: text.into(), style });
    let kind = match value {
        Value::String(text) => scalar(text.clone(), Style::Double),
        Value::List(_, values) => Kind::Sequence(values.iter().map(value_node).collect()),
        other => scalar(other.to_string(), Style::Plain),
    };
    Node { span: Span::NONE, kind }
}

/// What was plain stays plain where that reads back as the same: words, numbers, dates.
fn flow(node: &Node) -> String {
    match &node.kind {
        Kind::Scalar(scalar) if scalar.is_null() => "null".to_owned(),
        Kind::Scalar(scalar) => {
            let simple = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '+' | '-');
            let plain = scalar.style == Style::Plain
                && scalar.value.chars().all(simple)
                && !scalar.value.starts_with("---")
                && &*scalar.value != "-";
            if plain { scalar.value.to_string() } else { quote(&scalar.value) }
        }
        Kind::Sequence(items) => format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", ")),
        // Never made: a mapping is no value.
        Kind::Mapping(_) => "null".to_owned(),
    }
}
