//! `cluster.queues` and `cluster.quotas`: what a scheduler makes wait, and for whom it does how much. They are named by
//! the user, so they stand in files alone; a file's entry replaces that of a weaker one as a whole.

use std::time::Duration;

use indexmap::IndexMap;

use super::Entry;
use super::catalogue::Kind;
use super::layers::{Layer, Origin};
use super::value::{Refusal, Setting as Value, read};
use crate::codes;
use crate::diagnostic::Diagnostic;
use crate::report::Reporter;
use crate::span::{Span, Texts};
use crate::suggest::{did_you_mean, listed};
use crate::yaml::{Kind as NodeKind, Node};

/// A key of a queue or of a quota.
#[derive(Debug)]
pub(crate) struct ClusterKey {
    /// `max_running`
    pub(crate) key: &'static str,
    /// What it takes.
    pub(crate) takes: Kind,
    /// The default as text.
    pub(crate) default: &'static str,
    /// One sentence.
    pub(crate) about: &'static str,
}

const fn key(key: &'static str, takes: Kind, default: &'static str, about: &'static str) -> ClusterKey {
    ClusterKey { key, takes, default, about }
}

/// What a queue has.
pub(crate) const QUEUE: &[ClusterKey] = &[
    key("priority", Kind::Number(1_000), "0", "Higher goes first; `cluster.ageing` says how far ahead."),
    key("max_running", Kind::Count(1_000_000), "no limit", "Jobs of the queue that run at a time."),
    key("max_queued", Kind::Count(1_000_000), "20000", "Jobs that wait; one more is refused at once (RM0721)."),
    key("timeout", Kind::Duration, "1h", "How long a job waits before it is refused (RM0722)."),
];

/// What a quota has.
pub(crate) const QUOTA: &[ClusterKey] = &[
    key(
        "weight",
        Kind::Count(1_000_000),
        "1",
        "Its share against its neighbours, where not all can have what they ask for.",
    ),
    key("jobs", Kind::Count(1_000_000), "no limit", "Jobs that run at a time."),
    key("tasks", Kind::Count(1_000_000), "no limit", "Partitions that are worked on at a time."),
    key("cpu", Kind::Rate, "no limit", "Cores at a time; a partition takes one for each of its slots."),
    key("memory", Kind::Bytes, "no limit", "Memory at a time; a partition takes its share of its executor's."),
    key("gpu", Kind::Rate, "no limit", "Executors of class `gpu` at a time; a partition takes its share of one."),
];

/// The name of every organisation, or of every team, that has no entry of its own.
pub const OTHERS: &str = "*";

/// One queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// Higher goes first.
    pub priority: u32,
    /// Jobs that run at a time; `None` is no limit.
    pub max_running: Option<u32>,
    /// Jobs that wait.
    pub max_queued: u32,
    /// How long a job waits.
    pub timeout: Duration,
}

impl Default for Queue {
    fn default() -> Self {
        Self { priority: 0, max_running: None, max_queued: 20_000, timeout: Duration::from_secs(3_600) }
    }
}

/// What an organisation or a team may have at a time; `None` is no limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quota {
    /// Its share against its neighbours.
    pub weight: u32,
    /// Jobs.
    pub jobs: Option<u64>,
    /// Partitions.
    pub tasks: Option<u64>,
    /// Thousandths of a core.
    pub cpu_milli: Option<u64>,
    /// Bytes.
    pub memory_bytes: Option<u64>,
    /// Thousandths of an executor of class `gpu`.
    pub gpu_milli: Option<u64>,
}

impl Default for Quota {
    fn default() -> Self {
        Self { weight: 1, jobs: None, tasks: None, cpu_milli: None, memory_bytes: None, gpu_milli: None }
    }
}

/// What files said about queues and quotas so far: by section, name and key.
#[derive(Default)]
pub(super) struct Gathered {
    queues: IndexMap<String, IndexMap<&'static str, Entry>>,
    quotas: IndexMap<String, IndexMap<&'static str, Entry>>,
}

/// Letters, digits and `-_.`: what `rowmill_wire` takes, too.
fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    !name.is_empty() && name.len() <= 128 && name.chars().all(plain)
}

fn is_quota(name: &str) -> bool {
    let part = |part: &str| part == OTHERS || is_name(part);
    match name.split_once('/') {
        Some((organisation, team)) => part(organisation) && part(team) && (organisation != OTHERS || team == OTHERS),
        None => part(name),
    }
}

impl Gathered {
    /// Reads `cluster.queues` of a file, or `cluster.quotas`.
    pub(super) fn file(&mut self, queues: bool, layer: Layer, node: &Node, texts: &Texts, reporter: &mut Reporter) {
        let section = if queues { "cluster.queues" } else { "cluster.quotas" };
        for (name, node) in mapping(node, &format!("`{section}`"), reporter) {
            let (fits, help) = match queues {
                true => (is_name(&name.value), "names hold letters, digits and -_. , such as `batch`"),
                false => (
                    is_quota(&name.value),
                    "write ORGANISATION, ORGANISATION/TEAM, `*` for each other organisation, `*/*` for each other team",
                ),
            };
            if !fits {
                let shown: String = name.value.chars().take(60).collect();
                let report = Diagnostic::error(codes::BAD_NAME, format!("`{shown}` cannot be a name in `{section}`"));
                reporter.push(report.at(name.span, "").help(help));
                continue;
            }
            let known = if queues { QUEUE } else { QUOTA };
            let mut entries = IndexMap::new();
            for (word, node) in mapping(node, &format!("`{section}.{}`", name.value), reporter) {
                let Some(key) = known.iter().find(|known| known.key == word.value) else {
                    reporter.push(unknown(section, &name.value, &word.value, known, word.span));
                    continue;
                };
                match value(key, node) {
                    Ok(value) => {
                        let place = match (texts.get(node.span.text), texts.line_column(node.span)) {
                            (Some((file, _)), Some((line, column))) => format!("{file}:{line}:{column}"),
                            _ => String::new(),
                        };
                        entries.insert(key.key, Entry { value: Some(value), origin: Origin { layer, place } });
                    }
                    Err(reason) => {
                        let message = format!("`{}` of `{section}.{}` {reason}", key.key, name.value);
                        let help = format!("`{}` takes {}", key.key, key.takes.describe());
                        reporter.push(Diagnostic::error(codes::BAD_SETTING, message).at(node.span, "").help(help));
                    }
                }
            }
            let all = if queues { &mut self.queues } else { &mut self.quotas };
            all.insert(name.value.clone(), entries);
        }
    }

    /// The queues and quotas, and what is shown of them.
    #[expect(clippy::type_complexity, reason = "three results of one walk")]
    pub(super) fn finish(self) -> (IndexMap<String, Queue>, IndexMap<String, Quota>, Vec<(String, Entry)>) {
        let mut shown = Vec::new();
        let mut queues = IndexMap::new();
        let mut quotas = IndexMap::new();
        for (name, entries) in self.queues {
            let plain = Queue::default();
            let small = |key: &str| count(&entries, key).and_then(|count| u32::try_from(count).ok());
            let queue = Queue {
                priority: small("priority").unwrap_or(plain.priority),
                max_running: small("max_running"),
                max_queued: small("max_queued").unwrap_or(plain.max_queued),
                timeout: match entries.get("timeout").and_then(|entry| entry.value.as_ref()) {
                    Some(Value::Duration(Some(time))) => *time,
                    _ => plain.timeout,
                },
            };
            shown.extend(entries.into_iter().map(|(key, entry)| (format!("cluster.queues.{name}.{key}"), entry)));
            queues.insert(name, queue);
        }
        for (name, entries) in self.quotas {
            let quota = Quota {
                weight: count(&entries, "weight").and_then(|weight| u32::try_from(weight).ok()).unwrap_or(1),
                jobs: count(&entries, "jobs"),
                tasks: count(&entries, "tasks"),
                cpu_milli: milli(&entries, "cpu"),
                memory_bytes: count(&entries, "memory"),
                gpu_milli: milli(&entries, "gpu"),
            };
            shown.extend(entries.into_iter().map(|(key, entry)| (format!("cluster.quotas.{name}.{key}"), entry)));
            quotas.insert(name, quota);
        }
        (queues, quotas, shown)
    }
}

fn count(entries: &IndexMap<&'static str, Entry>, key: &str) -> Option<u64> {
    match entries.get(key)?.value.as_ref()? {
        Value::Bytes(count) | Value::Count(count) => Some(*count),
        _ => None,
    }
}

fn milli(entries: &IndexMap<&'static str, Entry>, key: &str) -> Option<u64> {
    match entries.get(key)?.value.as_ref()? {
        // A rate is above zero, and so small a one as to be nothing would be a limit that nothing fits in.
        Value::Rate(text) => text.parse::<f64>().ok().map(|rate| ((rate * 1_000.0).round() as u64).max(1)),
        _ => None,
    }
}

fn value(key: &ClusterKey, node: &Node) -> Result<Value, String> {
    let NodeKind::Scalar(scalar) = &node.kind else { return Err(format!("cannot be {}", node.noun())) };
    if scalar.is_null() {
        return Err("has no value".to_owned());
    }
    read(key.takes, &scalar.value, false).map_err(|refusal| match refusal {
        Refusal::Bad(reason) => format!("cannot be used: {reason}"),
        Refusal::PlainSecret => "cannot be used".to_owned(),
    })
}

fn unknown(section: &str, name: &str, word: &str, known: &[ClusterKey], span: Span) -> Diagnostic {
    let shown: String = word.chars().take(60).collect();
    let report = Diagnostic::error(codes::UNKNOWN_SETTING, format!("`{section}.{name}` has an unknown key `{shown}`"))
        .at(span, "");
    let words = || known.iter().map(|known| known.key);
    let report = match did_you_mean(word, words()) {
        Some(help) => report.help(help),
        None => report,
    };
    report.help(format!("known here: {}", listed(words())))
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

#[cfg(test)]
mod tests {
    use super::super::{Config, Inputs};
    use super::*;

    fn load(text: &str) -> Result<Config, Vec<String>> {
        let inputs = Inputs { project: Some(("rowmill.yaml".to_owned(), text.to_owned())), ..Inputs::default() };
        Config::load(&inputs).map_err(|reports| reports.reports.iter().map(|report| report.message.clone()).collect())
    }

    #[test]
    fn queues_and_quotas_are_read() {
        let config = load(
            "cluster:\n  queues:\n    batch: {priority: 3, max_running: 2, max_queued: 10, timeout: 5s}\n    plain:\n  \
             quotas:\n    acme: {jobs: 4, cpu: 1.5}\n    acme/data: {memory: 2GB, weight: 3}\n    '*': {tasks: 8}\n    '*/*': {gpu: 0.5}\n",
        )
        .unwrap();
        let batch = Queue { priority: 3, max_running: Some(2), max_queued: 10, timeout: Duration::from_secs(5) };
        assert_eq!(config.cluster.queues["batch"], batch);
        assert_eq!(config.cluster.queues["plain"], Queue::default());
        assert_eq!(config.cluster.quotas["acme"], Quota { jobs: Some(4), cpu_milli: Some(1_500), ..Quota::default() });
        let data = Quota { memory_bytes: Some(2_000_000_000), weight: 3, ..Quota::default() };
        assert_eq!(config.cluster.quotas["acme/data"], data);
        assert_eq!(config.cluster.quotas["*/*"].gpu_milli, Some(500));
        let shown: Vec<&str> =
            config.show().map(|shown| shown.key).filter(|key| key.contains("queues.batch")).collect();
        assert_eq!(shown.len(), 4, "{shown:?}");
    }

    #[test]
    fn wrong_ones_are_refused() {
        for (text, says) in [
            ("queues: {batch: {priorty: 1}}", "unknown key `priorty`"),
            ("queues: {batch: {max_running: 0}}", "cannot be used"),
            ("queues: {'a b': {}}", "cannot be a name"),
            ("queues: [a]", "must be a mapping"),
            ("quotas: {'*/a': {jobs: 1}}", "cannot be a name"),
            ("quotas: {'a/b/c': {jobs: 1}}", "cannot be a name"),
            ("quotas: {acme: {memory: lots}}", "cannot be used"),
            ("quotas: {acme: 3}", "must be a mapping"),
        ] {
            let errors = load(&format!("cluster:\n  {text}\n")).unwrap_err();
            assert!(errors.iter().any(|error| error.contains(says)), "{text}: {errors:?}");
        }
    }
}
