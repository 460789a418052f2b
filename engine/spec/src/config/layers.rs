//! Layers of configuration, in rising strength, each read strictly.

use std::fmt;
use std::sync::Arc;

use indexmap::IndexMap;

use super::catalogue::{Kind, SETTINGS, Setting, children, env_name, find};
use super::cluster::Gathered;
use super::layers_connections::Connections;
use super::value::{Refusal, Setting as Value, read};
use super::{Config, Entry};
use crate::codes;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::report::Reporter;
use crate::span::{Span, TextId, Texts};
use crate::suggest::{did_you_mean, listed};
use crate::yaml::{self, Kind as NodeKind, Node};

/// What the layers are made of; texts, not files.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    /// The user's file: its name and its text.
    pub user: Option<(String, String)>,
    /// The project's file: its name and its text.
    pub project: Option<(String, String)>,
    /// The environment: all of it; only variables that begin with `ROWMILL_` are looked at.
    pub env: Vec<(String, String)>,
    /// Variables that begin with `ROWMILL_` but are no settings, such as the one that names the configuration file.
    pub reserved_env: Vec<String>,
    /// Flags: keys and values, such as (`execution.memory`, `2GB`).
    pub flags: Vec<(String, String)>,
}

/// A layer; later ones win.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layer {
    /// The catalogue.
    Default,
    /// The user's file.
    User,
    /// The project's file.
    Project,
    /// An environment variable.
    Environment,
    /// A flag.
    Flag,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The layer.
    pub layer: Layer,
    /// The place in it: `rowmill.yaml:3:11`, a variable's name, or nothing.
    pub place: String,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layer {
            Layer::Default => f.write_str("default"),
            Layer::User => write!(f, "user file {}", self.place),
            Layer::Project => write!(f, "project file {}", self.place),
            Layer::Environment => write!(f, "environment variable {}", self.place),
            Layer::Flag => write!(f, "flag {}", self.place),
        }
    }
}

/// The catalogue's defaults.
pub(super) fn defaults() -> IndexMap<&'static str, Entry> {
    SETTINGS
        .iter()
        .map(|setting| {
            // A test holds that every default can be read.
            let value = setting.default.and_then(|text| read(setting.kind, text, false).ok());
            (setting.key, Entry { value, origin: Origin { layer: Layer::Default, place: String::new() } })
        })
        .collect()
}

impl Config {
    /// Applies all layers.
    ///
    /// # Errors
    /// All errors of all layers at once: unknown settings, values that cannot be used, plain secrets in files.
    pub fn load(inputs: &Inputs) -> Result<Config, Diagnostics> {
        let mut texts = Texts::new();
        let mut loader = Loader {
            entries: defaults(),
            connections: Connections::default(),
            cluster: Gathered::default(),
            reporter: Reporter::default(),
            masks: Vec::new(),
        };
        let files = [(Layer::User, &inputs.user), (Layer::Project, &inputs.project)];
        let mut read_files = Vec::new();
        for (layer, file) in files {
            let Some((name, text)) = file else { continue };
            if let Err(report) = yaml::check_size(text.len()) {
                loader.reporter.push(report);
                continue;
            }
            read_files.push((layer, texts.add(name.as_str(), text.as_str())));
        }
        for (layer, id) in read_files {
            loader.file(layer, id, &texts);
        }
        loader.environment(inputs);
        for (key, value) in &inputs.flags {
            loader.flag(key, value);
        }
        let (connections, mut named) = std::mem::take(&mut loader.connections).finish(&mut loader.reporter);
        let (queues, quotas, shown) = std::mem::take(&mut loader.cluster).finish();
        named.extend(shown);
        if loader.reporter.errors() > 0 {
            let texts = Arc::new(texts.masked(&loader.masks));
            return Err(Diagnostics { reports: loader.reporter.finish(), texts });
        }
        let plain = Config::from_entries(loader.entries);
        let cluster = super::Cluster { queues, quotas, ..plain.cluster };
        Ok(Config { connections, cluster, connection_entries: named, ..plain })
    }
}

struct Loader {
    entries: IndexMap<&'static str, Entry>,
    connections: Connections,
    cluster: Gathered,
    reporter: Reporter,
    /// Places that no report may show: a report shows whole lines, and a secret may stand in one.
    masks: Vec<Span>,
}

/// What may be a secret that the tree does not show, because the text cannot be parsed or has a key twice: the rest of
/// each line that names one, unless it is plainly a reference.
fn likely_secrets(id: TextId, text: &str) -> Vec<Span> {
    let settings = SETTINGS.iter().map(|setting| (setting.key, setting.kind));
    let connections = super::connections::all_keys().map(|known| (known.key, known.takes));
    let words = settings
        .chain(connections)
        .filter(|(_, kind)| matches!(kind, Kind::Secret | Kind::WordOrSecret(_)))
        .filter_map(|(key, _)| key.rsplit('.').next());
    let mut spans = Vec::new();
    for word in words {
        for (at, _) in text.match_indices(word) {
            let start = at + word.len();
            let rest = text.get(start..).and_then(|rest| rest.lines().next()).unwrap_or("");
            // A word inside of another one is none: `tokens_per_minute`.
            let whole = rest.starts_with([' ', '"', '\'', ':'])
                && !text.get(..at).unwrap_or("").ends_with(|c: char| c.is_alphanumeric() || c == '_');
            let value = rest.trim_start_matches([' ', '"', '\'', ':']);
            if whole && !value.starts_with("env:") && !value.starts_with("file:") {
                let end = start + rest.len();
                spans.push(Span::new(id, end - value.len()..end));
            }
        }
    }
    spans
}

impl Loader {
    fn set(&mut self, setting: &'static Setting, value: Value, layer: Layer, place: String) {
        self.entries.insert(setting.key, Entry { value: Some(value), origin: Origin { layer, place } });
    }

    fn file(&mut self, layer: Layer, id: TextId, texts: &Texts) {
        let Some((_, text)) = texts.get(id) else { return };
        // A file with nothing but comments is a file that sets nothing.
        let says_something = text.lines().map(str::trim).any(|line| !line.is_empty() && !line.starts_with('#'));
        if !says_something && text.len() <= yaml::MAX_TEXT_BYTES {
            return;
        }
        if let Some(root) = yaml::parse(id, text, &mut self.reporter) {
            self.section(layer, "", &root, texts);
        }
        self.masks.extend(likely_secrets(id, text));
    }

    fn section(&mut self, layer: Layer, prefix: &str, node: &Node, texts: &Texts) {
        let entries = match &node.kind {
            NodeKind::Mapping(entries) => entries.as_slice(),
            NodeKind::Scalar(scalar) if scalar.is_null() => &[],
            _ => {
                let what = if prefix.is_empty() { "a configuration" } else { prefix.trim_end_matches('.') };
                let report =
                    Diagnostic::error(codes::WRONG_TYPE, format!("{what} must be a mapping, not {}", node.noun()));
                self.reporter.push(report.at(node.span, "").help("write `key: value` lines, indented"));
                return;
            }
        };
        for (name, value) in entries {
            let key = format!("{prefix}{}", name.value);
            if key == "connections" {
                self.connections.file(layer, value, texts, &mut self.masks, &mut self.reporter);
            } else if key == "cluster.queues" || key == "cluster.quotas" {
                self.cluster.file(key == "cluster.queues", layer, value, texts, &mut self.reporter);
            } else if let Some(setting) = find(&key) {
                self.setting(layer, setting, value, texts);
            } else if !children(&format!("{key}.")).is_empty() {
                self.section(layer, &format!("{key}."), value, texts);
            } else {
                // What is set may be a secret under a misspelt name.
                self.masks.push(value.span);
                let mut known = children(prefix);
                known.extend(prefix.is_empty().then_some("connections"));
                known.extend((prefix == "cluster.").then_some(["queues", "quotas"]).into_iter().flatten());
                self.unknown(&key, &name.value, &known, name.span);
            }
        }
    }

    fn setting(&mut self, layer: Layer, setting: &'static Setting, node: &Node, texts: &Texts) {
        let text = match &node.kind {
            NodeKind::Scalar(scalar) if !scalar.is_null() => &*scalar.value,
            _ => {
                if matches!(setting.kind, Kind::Secret | Kind::WordOrSecret(_)) {
                    self.masks.push(node.span);
                }
                let report = Diagnostic::error(
                    codes::WRONG_TYPE,
                    format!("`{}` must be {}, not {}", setting.key, setting.kind.describe(), node.noun()),
                );
                self.reporter.push(report.at(node.span, "").help("give a value, or remove the key"));
                return;
            }
        };
        match read(setting.kind, text, false) {
            Ok(value) => {
                let name = texts.get(node.span.text).map_or("", |(name, _)| name);
                let place = match texts.line_column(node.span) {
                    Some((line, column)) => format!("{name}:{line}:{column}"),
                    None => name.to_owned(),
                };
                self.set(setting, value, layer, place);
            }
            Err(Refusal::PlainSecret) => {
                self.masks.push(node.span);
                self.reporter.push(plain_secret(setting, "in a configuration file").at(node.span, "not shown here"));
            }
            Err(Refusal::Bad(reason)) => {
                self.reporter.push(bad_setting(setting, &format!("`{}`", setting.key), reason).at(node.span, ""));
            }
        }
    }

    fn unknown(&mut self, key: &str, word: &str, known: &[&'static str], span: Span) {
        let report = Diagnostic::error(codes::UNKNOWN_SETTING, format!("unknown setting `{key}`")).at(span, "");
        let elsewhere = SETTINGS.iter().map(|setting| setting.key).find(|other| other.rsplit('.').next() == Some(word));
        let help = did_you_mean(word, known.iter().copied())
            .or_else(|| elsewhere.map(|other| format!("did you mean `{other}`?")))
            .or_else(|| did_you_mean(key, SETTINGS.iter().map(|setting| setting.key)));
        let report = match help {
            Some(help) => report.help(help),
            None => report,
        };
        self.reporter.push(report.help(format!("known here: {}", listed(known.iter().copied()))));
    }

    fn environment(&mut self, inputs: &Inputs) {
        let names: Vec<(String, &'static Setting)> =
            SETTINGS.iter().map(|setting| (env_name(setting.key), setting)).collect();
        for (name, text) in inputs.env.iter().filter(|(name, _)| name.starts_with("ROWMILL_")) {
            if inputs.reserved_env.contains(name) {
                continue;
            }
            if self.connections.environment(name, text, &mut self.reporter) {
                continue;
            }
            let Some((_, setting)) = names.iter().find(|(known, _)| known == name) else {
                let report = Diagnostic::error(
                    codes::UNKNOWN_SETTING,
                    format!("the environment variable `{name}` is no setting"),
                );
                let known = names.iter().map(|(known, _)| known.as_str());
                let help = did_you_mean(name, known)
                    .unwrap_or_else(|| "settings are named `ROWMILL_SECTION__KEY`, with two underscores".to_owned());
                self.reporter.push(report.help(help));
                continue;
            };
            match read(setting.kind, text, true) {
                Ok(value) => self.set(setting, value, Layer::Environment, name.clone()),
                Err(refusal) => self.refused(setting, &format!("the environment variable `{name}`"), refusal),
            }
        }
    }

    fn flag(&mut self, key: &str, text: &str) {
        if self.connections.flag(key, text, &mut self.reporter) {
            return;
        }
        let Some(setting) = find(key) else {
            let report = Diagnostic::error(codes::UNKNOWN_SETTING, format!("unknown setting `{key}`"));
            let help = did_you_mean(key, SETTINGS.iter().map(|setting| setting.key)).or_else(|| {
                SETTINGS
                    .iter()
                    .find(|setting| setting.key.rsplit('.').next() == Some(key))
                    .map(|setting| format!("did you mean `{}`?", setting.key))
            });
            let help = help.unwrap_or_else(|| "settings are listed in docs/reference/configuration.md".to_owned());
            self.reporter.push(report.help(help));
            return;
        };
        match read(setting.kind, text, false) {
            Ok(value) => self.set(setting, value, Layer::Flag, key.to_owned()),
            Err(refusal) => self.refused(setting, &format!("the flag `{key}`"), refusal),
        }
    }

    fn refused(&mut self, setting: &'static Setting, who: &str, refusal: Refusal) {
        self.reporter.push(match refusal {
            Refusal::PlainSecret => plain_secret(setting, "on the command line, where every user can see it"),
            Refusal::Bad(reason) => bad_setting(setting, who, reason),
        });
    }
}

fn bad_setting(setting: &Setting, who: &str, reason: String) -> Diagnostic {
    Diagnostic::error(codes::BAD_SETTING, format!("{who} cannot be used: {reason}")).help(format!(
        "`{}` takes {}",
        setting.key,
        setting.kind.describe()
    ))
}

fn plain_secret(setting: &Setting, place: &str) -> Diagnostic {
    Diagnostic::error(codes::PLAIN_SECRET, format!("the secret `{}` stands in plain text {place}", setting.key))
        .help(format!("write `env:NAME` or `file:/path`, or set the environment variable {}", env_name(setting.key)))
}
