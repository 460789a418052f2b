//! Connections by name: which kinds there are, the keys of each, and what the layers make of them.
//!
//! A connection's options come out in the shape that the step kind which uses it reads: times in milliseconds, sizes
//! in bytes, secrets as references. Limits are common to all kinds and come out typed.

use std::time::Duration;

use indexmap::IndexMap;
use serde_json::{Map, Value as Json, json};

use super::Entry;
use super::catalogue::Kind;
use super::value::Setting as Value;
use crate::codes;
use crate::diagnostic::Diagnostic;
use crate::span::Span;
use crate::suggest::listed;

/// What is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConnectionKind {
    /// A service over HTTP.
    Http,
    /// A PostgreSQL database.
    Postgres,
    /// A MySQL or MariaDB database.
    MySql,
    /// A SQLite database.
    Sqlite,
    /// A Redis server.
    Redis,
}

impl ConnectionKind {
    /// Every word, in the order of the variants.
    pub const WORDS: &'static [&'static str] = &["http", "postgres", "mysql", "sqlite", "redis"];

    /// The word in a configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            ConnectionKind::Http => "http",
            ConnectionKind::Postgres => "postgres",
            ConnectionKind::MySql => "mysql",
            ConnectionKind::Sqlite => "sqlite",
            ConnectionKind::Redis => "redis",
        }
    }

    /// The variant of a word; `None` where there is none.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Http, Self::Postgres, Self::MySql, Self::Sqlite, Self::Redis]
            .into_iter()
            .find(|kind| kind.as_str() == word)
    }

    /// What its URL begins with.
    pub(super) fn schemes(self) -> &'static [&'static str] {
        match self {
            ConnectionKind::Http => &["http", "https"],
            ConnectionKind::Postgres => &["postgres", "postgresql"],
            ConnectionKind::MySql => &["mysql", "mariadb"],
            ConnectionKind::Sqlite => &["sqlite"],
            ConnectionKind::Redis => &["redis", "rediss"],
        }
    }
}

/// A connection: what it is, its options and its limits.
#[derive(Debug, Clone, PartialEq)]
pub struct Connection {
    /// Its name.
    pub name: String,
    /// What is at the other end.
    pub kind: ConnectionKind,
    /// An object in the shape that the step kind reads; secrets are references.
    pub options: Json,
    /// How much it may be used.
    pub limits: ConnectionLimits,
}

/// How much a connection may be used. What is absent is not limited.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ConnectionLimits {
    /// Requests or queries in a second.
    pub requests_per_second: Option<f64>,
    /// How many may go at once after a pause; one second's worth where absent.
    pub burst: Option<u64>,
    /// Tokens in a minute, as the step kind counts them.
    pub tokens_per_minute: Option<u64>,
    /// Requests or queries at once, all steps of the process together.
    pub max_in_flight: Option<u64>,
    /// When it is left alone for a while.
    pub breaker: Option<Breaker>,
}

/// After so many failures of the connection within the window it is left alone until the cool-down is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Breaker {
    /// Failures.
    pub failures: u64,
    /// The window.
    pub window: Duration,
    /// The cool-down.
    pub cool_down: Duration,
}

/// A key of a connection.
#[derive(Debug)]
pub(crate) struct ConnectionKey {
    /// `tls.ca_file`
    pub(crate) key: &'static str,
    /// Where it goes in the options; like the key where empty.
    target: &'static str,
    pub(crate) takes: Kind,
    pub(crate) default: Option<&'static str>,
    pub(crate) about: &'static str,
}

const fn key(key: &'static str, takes: Kind, default: Option<&'static str>, about: &'static str) -> ConnectionKey {
    ConnectionKey { key, target: "", takes, default, about }
}

/// A time, which the step kind reads in milliseconds under another name.
const fn time(
    key: &'static str,
    target: &'static str,
    takes: Kind,
    default: &'static str,
    about: &'static str,
) -> ConnectionKey {
    ConnectionKey { key, target, takes, default: Some(default), about }
}

const HTTP: &[ConnectionKey] = &[
    key("base_url", Kind::Url, None, "Scheme, host, port and a path that every request begins with (required)."),
    key("headers", Kind::TextMap, None, "Headers of every request; secrets go into `auth`."),
    key("auth.bearer.token", Kind::Secret, None, "A token, sent as `Authorization: Bearer TOKEN`."),
    key("auth.basic.user", Kind::Text, None, "The user of basic authorization."),
    key("auth.basic.password", Kind::Secret, None, "The password of basic authorization."),
    key("auth.header.name", Kind::Text, None, "The header that carries a secret, such as `X-Api-Key`."),
    key("auth.header.prefix", Kind::Text, None, "What stands before the secret in that header."),
    key("auth.header.value", Kind::Secret, None, "The secret in that header."),
    key(
        "private_networks",
        Kind::TextList,
        None,
        "Private addresses and ranges that the host may have, such as `10.0.0.0/8`; one written in `base_url` counts as named.",
    ),
    time("connect_timeout", "connect_timeout_ms", Kind::Duration, "10s", "Time to connect, TLS included."),
    time("request_timeout", "request_timeout_ms", Kind::Duration, "30s", "Time for one request, the answer included."),
    key("pool_max_idle", Kind::Count(1_000_000), Some("1024"), "Connections that are kept open while idle."),
    time("pool_idle_timeout", "pool_idle_timeout_ms", Kind::Duration, "1m", "How long an idle one is kept."),
    key(
        "http_version",
        Kind::Word(&["auto", "http1", "http2"]),
        Some("auto"),
        "`auto` is what TLS negotiates, and HTTP/1.1 without TLS.",
    ),
    time("max_response", "max_response_bytes", Kind::Bytes, "16MiB", "The largest answer, after decompression."),
    key("max_redirects", Kind::Number(100), Some("0"), "Redirects within the same origin that a GET or HEAD follows."),
    key("proxy", Kind::Url, None, "A proxy, such as `http://proxy.example.com:3128`."),
    key("proxy_auth", Kind::Secret, None, "The proxy's credentials, `user:password`."),
    key("tls.ca_file", Kind::Text, None, "A PEM file with the certificates to trust, instead of the system's."),
    key("tls.client_certificate", Kind::Secret, None, "Our certificate and its key, as PEM."),
    key(
        "tls.danger_accept_any_certificate",
        Kind::Bool,
        Some("false"),
        "Turns the check of the other side's certificate off: whoever stands in between reads and changes everything.",
    ),
];

/// The keys of databases, those of a server last.
const DATABASE: &[ConnectionKey] = &[
    key("url", Kind::Text, None, "Where it is, without a password (required)."),
    key("pool_size", Kind::Count(10_000), Some("5"), "Connections that are kept."),
    key("max_overflow", Kind::Number(10_000), Some("10"), "Connections beyond those, opened under load."),
    time("pool_timeout", "pool_timeout_ms", Kind::Duration, "30s", "How long a query waits for a connection."),
    time("pool_recycle", "pool_recycle_ms", Kind::DurationOrNone, "30m", "How old a connection may become."),
    time(
        "statement_timeout",
        "statement_timeout_ms",
        Kind::DurationOrNone,
        "1m",
        "How long a query may take; `none` leaves it to the database.",
    ),
    key("password", Kind::Secret, None, "The password."),
    key("tls.ca_file", Kind::Text, None, "A PEM file with the certificates to trust."),
    key(
        "tls.danger_accept_any_certificate",
        Kind::Bool,
        Some("false"),
        "Turns the check of the other side's certificate off: whoever stands in between reads everything.",
    ),
    key(
        "tls.danger_plain_text",
        Kind::Bool,
        Some("false"),
        "Turns TLS off: everything goes over the network in the clear.",
    ),
];

const REDIS: &[ConnectionKey] = &[
    key("url", Kind::Text, None, "`redis://host:6379/0`, or `rediss:` for TLS, without a password (required)."),
    key("password", Kind::Secret, None, "The password."),
];

/// What every kind takes.
pub(crate) const LIMITS: &[ConnectionKey] = &[
    key("limits.requests_per_second", Kind::Rate, None, "Requests or queries in a second, such as `10` or `0.5`."),
    key(
        "limits.burst",
        Kind::Count(1_000_000),
        None,
        "How many may go at once after a pause; what comes in 10 ms, and at least 1, where it is not set.",
    ),
    key("limits.tokens_per_minute", Kind::Count(1_000_000_000_000), None, "Tokens in a minute."),
    key(
        "limits.max_in_flight",
        Kind::Count(1_000_000),
        None,
        "Requests or queries at once, all steps of the process together.",
    ),
    key(
        "limits.breaker.failures",
        Kind::Count(1_000_000),
        None,
        "Failures of the connection within the window after which it is left alone (10, with any other key of `breaker`).",
    ),
    key("limits.breaker.window", Kind::Duration, None, "That window (30s)."),
    key("limits.breaker.cool_down", Kind::Duration, None, "How long it is left alone (10s)."),
];

/// The keys of a kind beside `kind` itself and [`LIMITS`].
pub(crate) fn keys_of(kind: ConnectionKind) -> &'static [ConnectionKey] {
    match kind {
        ConnectionKind::Http => HTTP,
        ConnectionKind::Postgres | ConnectionKind::MySql => DATABASE,
        // A file has no server to log in to.
        ConnectionKind::Sqlite => DATABASE.split_at(6).0,
        ConnectionKind::Redis => REDIS,
    }
}

/// Every kind.
pub(crate) const KINDS: [ConnectionKind; 5] = [
    ConnectionKind::Http,
    ConnectionKind::Postgres,
    ConnectionKind::MySql,
    ConnectionKind::Sqlite,
    ConnectionKind::Redis,
];

/// What a key takes, whichever kind it belongs to; keys that kinds share take the same.
pub(super) fn takes(name: &str) -> Option<Kind> {
    if name == "kind" {
        return Some(Kind::Word(ConnectionKind::WORDS));
    }
    all_keys().find(|known| known.key == name).map(|known| known.takes)
}

/// Every key of every kind, `kind` aside.
pub(super) fn all_keys() -> impl Iterator<Item = &'static ConnectionKey> {
    KINDS.into_iter().flat_map(keys_of).chain(LIMITS)
}

/// The next words of all keys that begin with `prefix` (empty, or ending in a dot), each once.
pub(super) fn children(prefix: &str) -> Vec<&'static str> {
    let mut children = if prefix.is_empty() { vec!["kind"] } else { Vec::new() };
    for rest in all_keys().filter_map(|known| known.key.strip_prefix(prefix)) {
        let word = rest.split('.').next().unwrap_or(rest);
        if !children.contains(&word) {
            children.push(word);
        }
    }
    children
}

/// Headers that carry secrets.
const SECRET_HEADERS: &[&str] = &["authorization", "proxy-authorization", "cookie", "x-api-key", "api-key"];

/// One connection's entries, by their keys.
pub(super) struct Gathered<'a> {
    pub(super) name: &'a str,
    pub(super) entries: &'a IndexMap<String, (Entry, Span)>,
    /// Where its name stands.
    pub(super) place: Span,
}

impl Gathered<'_> {
    fn value(&self, key: &str) -> Option<&Value> {
        self.entries.get(key).and_then(|(entry, _)| entry.value.as_ref())
    }

    fn span(&self, key: &str) -> Span {
        self.entries.get(key).map_or(self.place, |(_, span)| *span)
    }

    fn origin(&self, key: &str) -> String {
        self.entries.get(key).map_or_else(String::new, |(entry, _)| format!(" (set by {})", entry.origin))
    }

    fn has(&self, prefix: &str) -> bool {
        self.entries
            .keys()
            .any(|key| key == prefix || key.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.')))
    }

    /// The connection, once all layers are applied.
    pub(super) fn finish(&self) -> Result<Connection, Vec<Diagnostic>> {
        let name = self.name;
        let Some(Value::Word(word)) = self.value("kind") else {
            let report = Diagnostic::error(codes::MISSING_KEY, format!("connection `{name}` does not say its kind"))
                .at(self.place, "`kind` is missing here");
            return Err(vec![
                report.help(format!("add `kind: ...`, one of {}", listed(ConnectionKind::WORDS.iter().copied()))),
            ]);
        };
        let Some(kind) = ConnectionKind::from_word(word) else { return Err(Vec::new()) };
        let mut reports = Vec::new();
        let mut options = Map::new();
        for (key, (entry, span)) in self.entries {
            if key == "kind" || key.starts_with("limits.") {
                continue;
            }
            let Some(known) = keys_of(kind).iter().find(|known| known.key == key) else {
                let message = format!(
                    "`{key}` does not apply to connection `{name}` of kind `{word}`{}",
                    if span.is_none() { self.origin(key) } else { String::new() }
                );
                let names = keys_of(kind).iter().map(|known| known.key);
                let report = Diagnostic::error(codes::NOT_APPLICABLE, message).at(*span, "");
                reports.push(report.help(format!("known here: {}", listed(names))));
                continue;
            };
            if let Some(value) = &entry.value {
                let target = if known.target.is_empty() { known.key } else { known.target };
                put(&mut options, target, to_json(value));
            }
        }
        self.check_url(kind, &mut reports);
        if kind == ConnectionKind::Http {
            self.check_http(&mut reports);
        }
        let limits = self.limits(&mut reports);
        if reports.is_empty() {
            Ok(Connection { name: name.to_owned(), kind, options: Json::Object(options), limits })
        } else {
            Err(reports)
        }
    }

    fn check_url(&self, kind: ConnectionKind, reports: &mut Vec<Diagnostic>) {
        let name = self.name;
        let key = if kind == ConnectionKind::Http { "base_url" } else { "url" };
        let Some(Value::Text(url)) = self.value(key) else {
            let report = Diagnostic::error(codes::MISSING_KEY, format!("connection `{name}` has no `{key}`"))
                .at(self.place, format!("`{key}` is missing here"));
            reports.push(report.help(format!("add `{key}: {}://...`", kind.schemes()[0])));
            return;
        };
        let scheme = url.split(':').next().unwrap_or("");
        if !kind.schemes().contains(&scheme) {
            let message = format!("the `{key}` of connection `{name}` is not that of a `{}` connection", kind.as_str());
            let report = Diagnostic::error(codes::BAD_SETTING, message).at(self.span(key), "");
            let schemes: Vec<String> = kind.schemes().iter().map(|scheme| format!("{scheme}:")).collect();
            reports.push(report.help(format!("it begins with {}", listed(schemes.iter().map(String::as_str)))));
        }
    }

    fn check_http(&self, reports: &mut Vec<Diagnostic>) {
        let name = self.name;
        let ways: Vec<&str> =
            ["bearer", "basic", "header"].into_iter().filter(|way| self.has(&format!("auth.{way}"))).collect();
        if let [first, second, ..] = ways.as_slice() {
            let message = format!("connection `{name}` has both `auth.{first}` and `auth.{second}`");
            let report = Diagnostic::error(codes::BAD_COMBINATION, message).at(self.place, "");
            reports.push(report.help("keep one of the two; layers are united key by key"));
        }
        for (way, needed) in [("basic", &["user", "password"][..]), ("header", &["name", "value"][..])] {
            for part in needed.iter().filter(|_| self.has(&format!("auth.{way}"))) {
                let key = format!("auth.{way}.{part}");
                if self.value(&key).is_none() {
                    let report = Diagnostic::error(codes::MISSING_KEY, format!("connection `{name}` has no `{key}`"))
                        .at(self.place, "");
                    reports.push(report.help(format!("add `{part}: ...` under `auth: {way}:`")));
                }
            }
        }
    }

    fn limits(&self, reports: &mut Vec<Diagnostic>) -> ConnectionLimits {
        let count = |key: &str| match self.value(&format!("limits.{key}")) {
            Some(Value::Count(count)) => Some(*count),
            _ => None,
        };
        let time = |key: &str| match self.value(&format!("limits.breaker.{key}")) {
            Some(Value::Duration(Some(time))) => Some(*time),
            _ => None,
        };
        let requests_per_second = match self.value("limits.requests_per_second") {
            Some(Value::Rate(text)) => text.parse::<f64>().ok(),
            _ => None,
        };
        if self.has("limits.burst") && requests_per_second.is_none() {
            let message = format!("connection `{}` has a burst without a rate", self.name);
            let report = Diagnostic::error(codes::BAD_COMBINATION, message).at(self.span("limits.burst"), "");
            reports.push(report.help("add `requests_per_second`, or remove `burst`"));
        }
        ConnectionLimits {
            requests_per_second,
            burst: count("burst"),
            tokens_per_minute: count("tokens_per_minute"),
            max_in_flight: count("max_in_flight"),
            breaker: self.has("limits.breaker").then(|| Breaker {
                failures: count("breaker.failures").unwrap_or(10),
                window: time("window").unwrap_or(Duration::from_secs(30)),
                cool_down: time("cool_down").unwrap_or(Duration::from_secs(10)),
            }),
        }
    }
}

/// What is wrong with a text of a connection that the catalogue's kinds cannot say, and whether it must not be shown.
pub(super) fn refusal(key: &str, value: &Value) -> Option<(String, &'static str)> {
    match value {
        Value::Text(url) if matches!(key, "url" | "base_url" | "proxy") => {
            let authority = url.split_once("://")?.1.split(['/', '?', '#']).next()?;
            let (user, _) = authority.rsplit_once('@')?;
            let help = if key == "proxy" {
                "give `user:password` in `proxy_auth`"
            } else if key == "base_url" {
                "give it in `auth`"
            } else {
                "give it in `password`"
            };
            (user.contains(':') || key != "url").then(|| ("holds a password in plain text".to_owned(), help))
        }
        Value::Texts(headers) if key == "headers" => headers
            .iter()
            .find(|(name, _)| SECRET_HEADERS.contains(&name.to_ascii_lowercase().as_str()))
            .map(|(name, _)| (format!("holds `{name}`, which carries a secret"), "give it in `auth`")),
        _ => None,
    }
}

fn to_json(value: &Value) -> Json {
    match value {
        Value::Auto => Json::Null,
        Value::Bytes(number) | Value::Count(number) => json!(number),
        Value::Bool(value) => json!(value),
        Value::Word(word) => json!(word),
        Value::Text(text) | Value::Rate(text) => json!(text),
        Value::Secret(secret) => json!(secret.to_string()),
        Value::Duration(None) => Json::Null,
        Value::Duration(Some(time)) => json!(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        Value::Texts(pairs) => {
            pairs.iter().map(|(name, text)| (name.clone(), json!(text))).collect::<Map<_, _>>().into()
        }
        Value::List(items) => json!(items),
    }
}

/// Puts a value at a dotted place.
fn put(options: &mut Map<String, Json>, target: &str, value: Json) {
    match target.split_once('.') {
        None => {
            options.insert(target.to_owned(), value);
        }
        Some((first, rest)) => {
            let inner = options.entry(first.to_owned()).or_insert_with(|| Json::Object(Map::new()));
            if let Json::Object(inner) = inner {
                put(inner, rest, value);
            }
        }
    }
}
