//! The `connections` section of each layer: entries by connection and key, united key by key.

use indexmap::IndexMap;

use super::Entry;
use super::catalogue::Kind;
use super::connections::{Connection, Gathered, children, refusal, takes};
use super::layers::{Layer, Origin};
use super::value::{Refusal, Setting as Value, read};
use crate::codes;
use crate::diagnostic::Diagnostic;
use crate::report::Reporter;
use crate::span::{Span, Texts};
use crate::suggest::{did_you_mean, listed};
use crate::yaml::{Kind as NodeKind, Node};

/// What layers said about connections so far.
#[derive(Default)]
pub(super) struct Connections {
    by_name: IndexMap<String, Named>,
    /// Keys that were refused: what is missing because of them is not reported again.
    refused: Vec<String>,
}

#[derive(Default)]
struct Named {
    place: Option<Span>,
    entries: IndexMap<String, (Entry, Span)>,
}

/// The beginning of the environment variables of connections.
const ENV: &str = "ROWMILL_CONNECTIONS__";

/// Small letters, digits and `_`, so that an environment variable can name it.
fn is_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        && !name.contains("__")
        && !name.ends_with('_')
        && name.len() <= 64
}

fn bad_name(name: &str, span: Span) -> Diagnostic {
    let shown: String = name.chars().take(60).collect();
    Diagnostic::error(codes::BAD_NAME, format!("`{shown}` cannot be the name of a connection"))
        .at(span, "")
        .help("names hold small letters, digits and single `_`, and begin with a letter, such as `weather`")
}

impl Connections {
    /// Reads the section of a file.
    pub(super) fn file(
        &mut self,
        layer: Layer,
        node: &Node,
        texts: &Texts,
        masks: &mut Vec<Span>,
        reporter: &mut Reporter,
    ) {
        for (name, node) in mapping(node, "`connections`", reporter) {
            if !is_name(&name.value) {
                masks.push(node.span);
                reporter.push(bad_name(&name.value, name.span));
                continue;
            }
            let named = self.by_name.entry(name.value.clone()).or_default();
            named.place = Some(name.span);
            self.keys(layer, &name.value, "", node, texts, masks, reporter);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "where it is in the walk")]
    fn keys(
        &mut self,
        layer: Layer,
        name: &str,
        prefix: &str,
        node: &Node,
        texts: &Texts,
        masks: &mut Vec<Span>,
        reporter: &mut Reporter,
    ) {
        for (word, node) in mapping(node, &format!("connection `{name}`"), reporter) {
            let key = format!("{prefix}{}", word.value);
            if let Some(kind) = takes(&key) {
                let value = match self.node_value(kind, &key, node) {
                    Ok(value) => value,
                    Err(refusal) => {
                        self.refused.push(format!("{name}.{key}"));
                        masks.extend(refusal.mask.then_some(node.span));
                        reporter.push(refusal.report(name, &key, kind).at(node.span, refusal.remark()));
                        continue;
                    }
                };
                let place = match (texts.get(node.span.text), texts.line_column(node.span)) {
                    (Some((file, _)), Some((line, column))) => format!("{file}:{line}:{column}"),
                    _ => String::new(),
                };
                self.set(name, key, value, Origin { layer, place }, node.span);
            } else if !children(&format!("{key}.")).is_empty() {
                self.keys(layer, name, &format!("{key}."), node, texts, masks, reporter);
            } else {
                // What is set may be a secret under a misspelt name.
                masks.push(node.span);
                let known = children(prefix);
                let report = unknown(name, &key, &word.value, &known).at(word.span, "");
                self.refused.extend(known.iter().map(|known| format!("{name}.{prefix}{known}")));
                reporter.push(report);
            }
        }
    }

    fn node_value(&self, kind: Kind, key: &str, node: &Node) -> Result<Value, Refused> {
        let value = match (&node.kind, kind) {
            (NodeKind::Mapping(pairs), Kind::TextMap) => {
                let mut texts = Vec::with_capacity(pairs.len());
                for (name, node) in pairs {
                    match &node.kind {
                        NodeKind::Scalar(scalar) if !scalar.is_null() => {
                            texts.push((name.value.clone(), scalar.value.to_string()));
                        }
                        _ => return Err(Refused::shape(node.noun(), kind)),
                    }
                }
                Value::Texts(texts)
            }
            (NodeKind::Sequence(items), Kind::TextList) => {
                let mut texts = Vec::with_capacity(items.len());
                for item in items {
                    match &item.kind {
                        NodeKind::Scalar(scalar) if !scalar.is_null() => texts.push(scalar.value.to_string()),
                        _ => return Err(Refused::shape(item.noun(), kind)),
                    }
                }
                Value::List(texts)
            }
            // Blanks at its ends are part of a text: `prefix: 'Key '`.
            (NodeKind::Scalar(scalar), Kind::Text) if !scalar.value.trim().is_empty() && !scalar.is_null() => {
                Value::Text(scalar.value.to_string())
            }
            (NodeKind::Scalar(scalar), _) if !scalar.is_null() => {
                read(kind, &scalar.value, false).map_err(Refused::from)?
            }
            _ => return Err(Refused::shape(node.noun(), kind)),
        };
        match refusal(key, &value) {
            Some((message, help)) => Err(Refused { message, help: Some(help), mask: true, secret: true }),
            None => Ok(value),
        }
    }

    fn set(&mut self, name: &str, key: String, value: Value, origin: Origin, span: Span) {
        let named = self.by_name.entry(name.to_owned()).or_default();
        named.entries.insert(key, (Entry { value: Some(value), origin }, span));
    }

    /// Takes an environment variable, if it is one of a connection; `ROWMILL_CONNECTIONS__WEATHER__BASE_URL`. A secret
    /// itself in it becomes a reference to the variable.
    pub(super) fn environment(&mut self, variable: &str, text: &str, reporter: &mut Reporter) -> bool {
        let Some(rest) = variable.strip_prefix(ENV) else { return false };
        let path = rest.to_ascii_lowercase().replace("__", ".");
        let who = format!("the environment variable `{variable}`");
        let Some((name, key)) = path.split_once('.').filter(|_| rest == rest.to_ascii_uppercase()) else {
            let report = Diagnostic::error(codes::UNKNOWN_SETTING, format!("{who} names no key of a connection"));
            reporter.push(report.help("such variables are named `ROWMILL_CONNECTIONS__NAME__KEY`, in capitals"));
            return true;
        };
        let secret = takes(key) == Some(Kind::Secret) && super::Secret::reference(text.trim()).is_none();
        let text = if secret && !text.is_empty() { format!("env:{variable}") } else { text.to_owned() };
        self.single(name, key, &text, Origin { layer: Layer::Environment, place: variable.to_owned() }, &who, reporter);
        true
    }

    /// Takes a flag, if it is one of a connection: `connections.weather.base_url`.
    pub(super) fn flag(&mut self, flag: &str, text: &str, reporter: &mut Reporter) -> bool {
        let Some(rest) = flag.strip_prefix("connections.") else { return false };
        let who = format!("the flag `{flag}`");
        match rest.split_once('.') {
            Some((name, key)) => {
                let origin = Origin { layer: Layer::Flag, place: flag.to_owned() };
                self.single(name, key, text, origin, &who, reporter);
            }
            None => {
                let report = Diagnostic::error(codes::UNKNOWN_SETTING, format!("{who} names no key of a connection"));
                reporter.push(report.help("write `connections.NAME.KEY=VALUE`"));
            }
        }
        true
    }

    fn single(&mut self, name: &str, key: &str, text: &str, origin: Origin, who: &str, reporter: &mut Reporter) {
        if !is_name(name) {
            reporter.push(bad_name(name, Span::NONE));
            return;
        }
        let Some(kind) = takes(key) else {
            let (prefix, word) = key.rsplit_once('.').map_or(("", key), |(prefix, word)| (prefix, word));
            let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}.") };
            reporter.push(unknown(name, key, word, &children(&prefix)));
            return;
        };
        if kind == Kind::TextMap {
            let report = Diagnostic::error(codes::BAD_SETTING, format!("{who} sets `{key}`, which is a mapping"));
            reporter.push(report.help(format!("set `connections.{name}.{key}` in a configuration file")));
            return;
        }
        let value = read(kind, text, false).map_err(Refused::from).and_then(|value| match refusal(key, &value) {
            Some((message, help)) => Err(Refused { message, help: Some(help), mask: true, secret: true }),
            None => Ok(value),
        });
        match value {
            Ok(value) => self.set(name, key.to_owned(), value, origin, Span::NONE),
            Err(refused) => {
                self.refused.push(format!("{name}.{key}"));
                reporter.push(refused.report(name, key, kind));
            }
        }
    }

    /// The connections, once every layer was read, and their entries by full keys.
    pub(super) fn finish(self, reporter: &mut Reporter) -> (IndexMap<String, Connection>, IndexMap<String, Entry>) {
        let mut connections = IndexMap::with_capacity(self.by_name.len());
        let mut shown = IndexMap::new();
        for (name, named) in self.by_name {
            let place = named.place.unwrap_or(Span::NONE);
            match (Gathered { name: &name, entries: &named.entries, place }).finish() {
                Ok(connection) => {
                    connections.insert(name.clone(), connection);
                }
                // What is missing may be among what was refused.
                Err(_) if self.refused.iter().any(|key| key.starts_with(&format!("{name}."))) => {}
                Err(reports) => reports.into_iter().for_each(|report| reporter.push(report)),
            }
            for (key, (entry, _)) in named.entries {
                shown.insert(format!("connections.{name}.{key}"), entry);
            }
        }
        (connections, shown)
    }
}

/// Why a value is not taken.
struct Refused {
    message: String,
    help: Option<&'static str>,
    /// Whether no report may show it.
    mask: bool,
    secret: bool,
}

impl Refused {
    fn shape(noun: &str, kind: Kind) -> Self {
        let mask = matches!(kind, Kind::Secret | Kind::TextMap);
        Refused { message: format!("must be {}, not {noun}", kind.describe()), help: None, mask, secret: false }
    }

    fn remark(&self) -> &'static str {
        if self.mask { "not shown here" } else { "" }
    }

    fn report(&self, name: &str, key: &str, kind: Kind) -> Diagnostic {
        let code = if self.secret { codes::PLAIN_SECRET } else { codes::BAD_SETTING };
        let report = Diagnostic::error(code, format!("`{key}` of connection `{name}` {}", self.message));
        match self.help {
            Some(help) => report.help(format!("{help}, as `env:NAME` or `file:/path`")),
            None if self.secret => report.help("write `env:NAME` or `file:/path`"),
            None => report.help(format!("`{key}` takes {}", kind.describe())),
        }
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::PlainSecret => {
                Refused { message: "stands in plain text".to_owned(), help: None, mask: true, secret: true }
            }
            Refusal::Bad(reason) => {
                Refused { message: format!("cannot be used: {reason}"), help: None, mask: false, secret: false }
            }
        }
    }
}

fn unknown(name: &str, key: &str, word: &str, known: &[&'static str]) -> Diagnostic {
    let shown: String = key.chars().take(60).collect();
    let report = Diagnostic::error(codes::UNKNOWN_SETTING, format!("connection `{name}` has an unknown key `{shown}`"));
    let report = match did_you_mean(word, known.iter().copied()) {
        Some(help) => report.help(help),
        None => report,
    };
    report.help(format!("known here: {}", listed(known.iter().copied())))
}

fn mapping<'n>(node: &'n Node, who: &str, reporter: &mut Reporter) -> &'n [(crate::span::Spanned<String>, Node)] {
    match &node.kind {
        NodeKind::Mapping(entries) => entries,
        NodeKind::Scalar(scalar) if scalar.is_null() => &[],
        _ => {
            let report = Diagnostic::error(codes::WRONG_TYPE, format!("{who} must be a mapping, not {}", node.noun()));
            reporter.push(report.at(node.span, "").help("write `key: value` lines, indented"));
            &[]
        }
    }
}
