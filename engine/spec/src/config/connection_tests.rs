//! Connections: kinds, layers, secrets, limits.

use std::time::Duration;

use serde_json::json;

use super::*;
use crate::codes;

fn project(text: &str) -> Inputs {
    Inputs { project: Some(("rowmill.yaml".to_owned(), text.to_owned())), ..Inputs::default() }
}

fn load(text: &str) -> Config {
    Config::load(&project(text)).unwrap_or_else(|reports| panic!("{reports}"))
}

fn codes_of(inputs: &Inputs) -> Vec<&'static str> {
    Config::load(inputs).unwrap_err().reports.iter().map(|report| report.code).collect()
}

#[test]
fn options_come_out_as_step_kinds_read_them() {
    let config = load(
        "connections:\n  weather:\n    kind: http\n    base_url: https://api.example.com/v1\n    headers: {Accept: application/json}\n    auth: {header: {name: X-Key, prefix: 'k ', value: env:KEY}}\n    private_networks: [10.0.0.0/8, 127.0.0.1]\n    connect_timeout: 1s\n    request_timeout: 1.5s\n    pool_max_idle: 5\n    pool_idle_timeout: 2m\n    http_version: http2\n    max_response: 1MiB\n    max_redirects: 0\n    proxy: http://proxy:3128\n    proxy_auth: file:/p\n    tls: {ca_file: /ca.pem, client_certificate: file:/c, danger_accept_any_certificate: true}\n",
    );
    let weather = &config.connections["weather"];
    assert_eq!((weather.kind, weather.name.as_str()), (ConnectionKind::Http, "weather"));
    assert_eq!(
        weather.options,
        json!({
            "base_url": "https://api.example.com/v1",
            "headers": {"Accept": "application/json"},
            "auth": {"header": {"name": "X-Key", "prefix": "k ", "value": "env:KEY"}},
            "private_networks": ["10.0.0.0/8", "127.0.0.1"],
            "connect_timeout_ms": 1000,
            "request_timeout_ms": 1500,
            "pool_max_idle": 5,
            "pool_idle_timeout_ms": 120_000,
            "http_version": "http2",
            "max_response_bytes": 1_048_576,
            "max_redirects": 0,
            "proxy": "http://proxy:3128",
            "proxy_auth": "file:/p",
            "tls": {"ca_file": "/ca.pem", "client_certificate": "file:/c", "danger_accept_any_certificate": true},
        })
    );
    assert_eq!(weather.limits, ConnectionLimits::default());
    let config = load(
        "connections:\n  a: {kind: postgres, url: 'postgres://u@h/d', password: env:P, pool_size: 2, max_overflow: 0, pool_timeout: 1s, pool_recycle: none, statement_timeout: none, tls: {danger_plain_text: true}}\n  b: {kind: sqlite, url: 'sqlite:///x.db', statement_timeout: 5s}\n  c: {kind: redis, url: 'redis://h:6379/0', password: env:P}\n  d: {kind: mysql, url: 'mysql://u@h/d', pool_recycle: 1h}\n",
    );
    assert_eq!(
        config.connections["a"].options,
        json!({
            "url": "postgres://u@h/d", "password": "env:P", "pool_size": 2, "max_overflow": 0, "pool_timeout_ms": 1000,
            "pool_recycle_ms": null, "statement_timeout_ms": null, "tls": {"danger_plain_text": true},
        })
    );
    assert_eq!(config.connections["b"].options, json!({"url": "sqlite:///x.db", "statement_timeout_ms": 5000}));
    assert_eq!(config.connections["c"].options, json!({"url": "redis://h:6379/0", "password": "env:P"}));
    assert_eq!(config.connections["d"].options, json!({"url": "mysql://u@h/d", "pool_recycle_ms": 3_600_000}));
}

#[test]
fn limits_are_typed() {
    let config = load(
        "connections:\n  a:\n    kind: http\n    base_url: http://h\n    limits: {requests_per_second: 0.5, burst: 3, tokens_per_minute: 90000, max_in_flight: 8, breaker: {failures: 4, cool_down: 1m}}\n  b: {kind: redis, url: 'redis://h'}\n",
    );
    assert_eq!(
        config.connections["a"].limits,
        ConnectionLimits {
            requests_per_second: Some(0.5),
            burst: Some(3),
            tokens_per_minute: Some(90_000),
            max_in_flight: Some(8),
            breaker: Some(Breaker { failures: 4, window: Duration::from_secs(30), cool_down: Duration::from_secs(60) }),
        }
    );
    assert_eq!(config.connections["a"].options, json!({"base_url": "http://h"}));
    assert_eq!(config.connections["b"].limits.breaker, None);
}

#[test]
fn layers_are_united_key_by_key() {
    let mut inputs = project("connections:\n  weather: {kind: http, base_url: http://project, connect_timeout: 1s}\n");
    inputs.user = Some((
        "user.yaml".to_owned(),
        "connections: {weather: {base_url: http://user, max_redirects: 2}}\n".to_owned(),
    ));
    inputs.env = vec![
        ("ROWMILL_CONNECTIONS__WEATHER__CONNECT_TIMEOUT".to_owned(), "2s".to_owned()),
        ("ROWMILL_CONNECTIONS__WEATHER__AUTH__BEARER__TOKEN".to_owned(), "canary-1".to_owned()),
        ("ROWMILL_CONNECTIONS__WEATHER__PROXY_AUTH".to_owned(), "env:OTHER".to_owned()),
        ("ROWMILL_CONNECTIONS__WEATHER__LIMITS__MAX_IN_FLIGHT".to_owned(), "9".to_owned()),
    ];
    inputs.flags = vec![("connections.weather.base_url".to_owned(), "http://flag".to_owned())];
    let config = Config::load(&inputs).unwrap_or_else(|reports| panic!("{reports}"));
    assert_eq!(
        config.connections["weather"].options,
        json!({
            "base_url": "http://flag", "connect_timeout_ms": 2000, "max_redirects": 2, "proxy_auth": "env:OTHER",
            "auth": {"bearer": {"token": "env:ROWMILL_CONNECTIONS__WEATHER__AUTH__BEARER__TOKEN"}},
        })
    );
    assert_eq!(config.connections["weather"].limits.max_in_flight, Some(9));
    assert_eq!(config.origin("connections.weather.base_url").unwrap().layer, Layer::Flag);
    assert_eq!(config.origin("connections.weather.kind").unwrap().to_string(), "project file rowmill.yaml:2:19");
    let shown: Vec<String> =
        config.show().filter(|shown| shown.key.starts_with("connections.")).map(|shown| format!("{shown:?}")).collect();
    assert_eq!(shown.len(), 7, "{shown:?}");
    assert!(!format!("{config:?} {shown:?}").contains("canary"));
}

#[test]
fn wrong_connections_are_refused() {
    let one = |text: &str| codes_of(&project(&format!("connections:\n  a: {{{text}}}\n")));
    let http = "kind: http, base_url: http://h";
    assert_eq!(one("base_url: http://h"), [codes::MISSING_KEY], "no kind");
    assert_eq!(one("kind: http"), [codes::MISSING_KEY], "no base_url");
    assert_eq!(one("kind: htpp, base_url: http://h"), [codes::BAD_SETTING]);
    assert_eq!(one(&format!("{http}, url: x")), [codes::NOT_APPLICABLE]);
    assert_eq!(one(&format!("{http}, base_ulr: x")), [codes::UNKNOWN_SETTING]);
    assert_eq!(one(&format!("{http}, connect_timeout: 10")), [codes::BAD_SETTING]);
    assert_eq!(one(&format!("{http}, max_response: [1]")), [codes::BAD_SETTING]);
    assert_eq!(
        one(&format!("{http}, auth: {{bearer: {{token: env:A}}, basic: {{user: u, password: env:P}}}}")),
        [codes::BAD_COMBINATION]
    );
    assert_eq!(one(&format!("{http}, auth: {{basic: {{user: u}}}}")), [codes::MISSING_KEY]);
    assert_eq!(one(&format!("{http}, limits: {{burst: 3}}")), [codes::BAD_COMBINATION]);
    assert_eq!(one(&format!("{http}, limits: {{requests_per_second: 0}}")), [codes::BAD_SETTING]);
    assert_eq!(one("kind: postgres, url: 'mysql://u@h/d'"), [codes::BAD_SETTING]);
    assert_eq!(one("kind: sqlite, url: 'sqlite:///x', password: env:P"), [codes::NOT_APPLICABLE]);
    assert_eq!(codes_of(&project("connections:\n  A-b: {kind: http}\n")), [codes::BAD_NAME]);
    assert_eq!(codes_of(&project("connections: [a]\n")), [codes::WRONG_TYPE]);
    let env = |name: &str, value: &str| Inputs { env: vec![(name.to_owned(), value.to_owned())], ..Inputs::default() };
    assert_eq!(codes_of(&env("ROWMILL_CONNECTIONS__A", "x")), [codes::UNKNOWN_SETTING]);
    assert_eq!(codes_of(&env("ROWMILL_CONNECTIONS__A__NOPE", "x")), [codes::UNKNOWN_SETTING]);
    assert_eq!(codes_of(&env("ROWMILL_CONNECTIONS__a__KIND", "http")), [codes::UNKNOWN_SETTING]);
    assert_eq!(codes_of(&env("ROWMILL_CONNECTIONS__A__HEADERS", "x")), [codes::BAD_SETTING]);
    assert_eq!(codes_of(&env("ROWMILL_CONNECTIONS__A__KIND", "redis")), [codes::MISSING_KEY]);
    let flag = Inputs { flags: vec![("connections.a".to_owned(), "x".to_owned())], ..Inputs::default() };
    assert_eq!(codes_of(&flag), [codes::UNKNOWN_SETTING]);
}

#[test]
fn secrets_of_connections_are_never_shown() {
    for text in [
        "{kind: http, base_url: http://h, auth: {bearer: {token: canary-1}}}",
        "{kind: http, base_url: http://h, auth: {bearer: {tokn: canary-1}}}",
        "{kind: http, base_url: 'http://u:canary-1@h'}",
        "{kind: http, base_url: http://h, headers: {Authorization: canary-1}, x: 1}",
        "{kind: postgres, url: 'postgres://u:canary-1@h/d'}",
        "{kind: postgres, url: 'postgres://u@h/d', password: [canary-1]}",
        "{kind: http, base_url: http://h, proxy: 'http://u:canary-1@h'}",
        "{kind: redis, url: 'redis://:canary-1@h'}",
        "{kind: http, password: canary-1, base_url: http://h",
    ] {
        let reports = Config::load(&project(&format!("connections:\n  a: {text}\n"))).unwrap_err();
        let rendered = format!("{} {}", reports.render(false), reports.to_json());
        assert!(!rendered.contains("canary"), "{rendered}");
    }
    let flag = ("connections.a.password".to_owned(), "canary-1".to_owned());
    let rendered = Config::load(&Inputs { flags: vec![flag], ..Inputs::default() }).unwrap_err().render(false);
    assert!(!rendered.contains("canary"), "{rendered}");
}

#[test]
fn every_key_has_a_place_in_the_options_of_its_kind() {
    for kind in KINDS {
        for key in keys_of(kind).iter().chain(LIMITS) {
            let value = match key.takes {
                Kind::Secret => "env:X".to_owned(),
                Kind::Bytes => "3MB".to_owned(),
                Kind::Count(_) | Kind::Number(_) | Kind::Rate => "3".to_owned(),
                Kind::Duration | Kind::DurationOrNone => "3s".to_owned(),
                Kind::Bool => "true".to_owned(),
                Kind::Word(words) => words[1].to_owned(),
                Kind::TextMap => "{a: b}".to_owned(),
                Kind::TextList => "[a, b]".to_owned(),
                Kind::Url => "http://other".to_owned(),
                _ => format!("{}://other", kind.schemes()[0]),
            };
            let url = if kind == ConnectionKind::Http { "base_url" } else { "url" };
            let mut text = format!("connections:\n  a:\n    kind: {}\n", kind.as_str());
            if key.key != url {
                text.push_str(&format!("    {url}: '{}://h'\n", kind.schemes()[0]));
            }
            let parts: Vec<&str> = key.key.split('.').collect();
            let mut nested = value;
            for part in parts[1..].iter().rev() {
                nested = format!("{{{part}: {nested}}}");
            }
            text.push_str(&format!("    {}: {nested}\n", parts[0]));
            let plain =
                format!("connections:\n  a:\n    kind: {}\n    {url}: '{}://h'\n", kind.as_str(), kind.schemes()[0]);
            match Config::load(&project(&text)) {
                Ok(config) => assert_ne!(config.connections, load(&plain).connections, "{} changes nothing", key.key),
                // Those that need company.
                Err(reports) => assert!(
                    ["auth.basic", "auth.header", "limits.burst"].iter().any(|needs| key.key.starts_with(needs)),
                    "{}: {reports}",
                    key.key
                ),
            }
        }
    }
}

#[test]
fn state_and_cache() {
    let config = load("state: {dir: /var/rowmill, store: env:STORE_URL}\ncache: {dir: /c, memory: 1GB, disk: 2GB}\n");
    assert_eq!(config.state.dir, PathBuf::from("/var/rowmill"));
    assert!(matches!(config.state.store, StateStore::Postgres(_)));
    assert_eq!((config.cache.memory_bytes, config.cache.disk_bytes), (Some(1_000_000_000), Some(2_000_000_000)));
    let defaults = Config::default();
    assert_eq!((defaults.state.dir, defaults.state.store), (PathBuf::from(".rowmill"), StateStore::Sqlite));
    assert_eq!(codes_of(&project("state: {store: 'postgres://u:canary@h/d'}\n")), [codes::PLAIN_SECRET]);
}
