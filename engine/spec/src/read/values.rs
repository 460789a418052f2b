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
use crate::yaml::{self, Kind, Node};

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
            let flat = match &node.kind {
                Kind::Scalar(_) => true,
                Kind::Sequence(items) => items.iter().all(|item| matches!(item.kind, Kind::Scalar(_))),
                Kind::Mapping(_) => false,
            };
            if !flat {
                reading.wrong_type(
                    node,
                    &format!("the value of `{}` must be a single value or a list of them", name.value),
                    "",
                );
                continue;
            }
            let value = RawValue { span: node.span, node: node.clone(), name: name.clone() };
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
