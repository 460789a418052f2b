//! Attacks: injection through columns, redirects, forbidden addresses, bombs, and the canary in every error text.

use arrow::datatypes::DataType;
use base64::Engine as _;
use rowmill_step::{FailureCode, Sent};
use rowmill_step_http::{BodyTemplate, HttpOptions, ResponseColumn};
use serde_json::{Value, json};

use crate::server::{Reply, Server, json as reply};
use crate::support::{CANARY, assert_no_canary, base, context, failure, run, texts, try_run};

fn get(path: &str) -> HttpOptions {
    HttpOptions {
        response: vec![ResponseColumn::json("v", "/v", DataType::Int64)],
        ..HttpOptions::new("api", "GET", path)
    }
}

const ATTACKS: [&str; 10] = [
    "/../../admin",
    "..",
    ".",
    "//evil.example/x",
    "@evil.example",
    "a\r\nX-Evil: 1\r\n\r\nGET /admin HTTP/1.1",
    "?admin=1#",
    "\\..\\admin",
    "a\0b",
    "%2e%2e/%2e%2e",
];

#[tokio::test]
async fn values_never_leave_their_place() {
    let server = Server::start(|_| reply(200, &json!({"v": 1}))).await;
    let context = context(base(&format!("{}/base", server.url())));
    let options = HttpOptions {
        query: vec![("q".to_owned(), "{x}".to_owned())],
        body: Some(BodyTemplate::Json(json!({"v": "{x}", "w": "w {x}"}))),
        ..HttpOptions { method: "POST".to_owned(), ..get("/seg/{x}/end") }
    };
    let values: Vec<_> = ATTACKS.iter().map(|text| Some(*text)).collect();
    let driven = run(options, &context, texts(&values)).await;
    let failed: Vec<_> = driven.failures.iter().map(|(row, f)| (*row, f.code(), f.how_far())).collect();
    let bad = |row| (row, FailureCode::BadInput, Sent::Never);
    assert_eq!(failed, [bad(1), bad(2)], "only `.` and `..` cannot stand in a path");
    let seen = server.requests();
    assert_eq!(seen.len(), ATTACKS.len() - 2);
    let mut values = seen
        .iter()
        .map(|s| serde_json::from_slice::<Value>(&s.body).unwrap()["v"].as_str().unwrap().to_owned())
        .collect::<Vec<_>>();
    values.sort();
    let mut sent: Vec<_> = ATTACKS.iter().filter(|a| !matches!(**a, "." | "..")).map(|a| (*a).to_owned()).collect();
    sent.sort();
    assert_eq!(values, sent, "bodies carry the values as they are");
    for request in seen {
        let (path, query) = request.target.split_once('?').unwrap();
        assert!(path.starts_with("/base/seg/") && path.ends_with("/end"), "{path}");
        assert_eq!(path.split('/').count(), 5, "{path}");
        assert!(!query[2..].contains(['&', '?', '#', '=']), "{query}");
        assert_eq!(request.header("x-evil"), None);
        assert_eq!(request.header("host"), Some(format!("127.0.0.1:{}", server.port).as_str()));
    }
}

#[tokio::test]
async fn header_values_cannot_start_a_new_header() {
    let server = Server::start(|_| reply(200, &json!({"v": 1}))).await;
    let options = HttpOptions { headers: vec![("X-Value".to_owned(), "{x}".to_owned())], ..get("/") };
    let input = texts(&[Some("fine"), Some("a\r\nX-Evil: 1"), Some("b\nX-Evil: 1"), Some("n\0")]);
    let driven = run(options, &context(base(&server.url())), input).await;
    assert_eq!(
        driven.failures.iter().map(|(row, f)| (*row, f.code())).collect::<Vec<_>>(),
        [(1, FailureCode::BadInput), (2, FailureCode::BadInput), (3, FailureCode::BadInput)]
    );
    assert_eq!(server.requests().len(), 1);
    let options = HttpOptions { headers: vec![("authorization".to_owned(), "{x}".to_owned())], ..get("/") };
    let failure = try_run(options, &context(base(&server.url())), texts(&[Some("mine")])).await.unwrap();
    assert!(failure.failures[0].1.message().contains("carries the credentials"), "{failure:?}");
}

#[tokio::test]
async fn redirects_are_off_and_never_leave_the_origin() {
    let other = Server::start(|_| reply(200, &json!({"v": 666}))).await;
    let other_url = other.url();
    let server = Server::start(move |seen| match seen.target.as_str() {
        "/same" => Reply::Full(302, vec![("location", "/there".to_owned())], vec![]),
        "/loop" => Reply::Full(302, vec![("location", "/loop".to_owned())], vec![]),
        "/cross" => Reply::Full(307, vec![("location", format!("{other_url}/steal"))], vec![]),
        "/metadata" => Reply::Full(302, vec![("location", "http://169.254.169.254/latest/".to_owned())], vec![]),
        "/slashes" => Reply::Full(302, vec![("location", "//169.254.169.254/latest/".to_owned())], vec![]),
        _ => reply(200, &json!({"v": 1})),
    })
    .await;
    let off = context(base(&server.url()));
    let refused = failure(get("/same"), &off).await;
    assert_eq!((refused.code(), refused.status_code()), (FailureCode::Status, Some(302)), "{refused}");
    let mut settings = base(&server.url());
    settings["max_redirects"] = json!(3);
    let on = context(settings);
    let driven = run(get("/same"), &on, texts(&[Some("1")])).await;
    assert!(driven.failures.is_empty(), "{:?}", driven.failures);
    assert_eq!(failure(get("/loop"), &on).await.status_code(), Some(302));
    assert_eq!(server.requests().iter().filter(|s| s.target == "/loop").count(), 4);
    for path in ["/cross", "/metadata", "/slashes"] {
        let failure = failure(get(path), &on).await;
        assert_eq!((failure.code(), failure.is_retryable()), (FailureCode::Forbidden, false), "{path}: {failure}");
    }
    assert_eq!(other.requests().len(), 0, "nothing, and so no credentials, reached the other origin");
    let post = HttpOptions { method: "POST".to_owned(), ..get("/same") };
    assert_eq!(failure(post, &on).await.status_code(), Some(302), "a POST is never redirected");
}

#[tokio::test]
async fn names_are_checked_when_they_are_resolved() {
    let server = Server::start(|_| reply(200, &json!({"v": 1}))).await;
    // The machine's own name, which the connection does not name as private, and which leads to this machine.
    let uname = rustix::system::uname();
    let host = uname.nodename().to_str().unwrap();
    let addresses: Vec<_> = match tokio::net::lookup_host((host, server.port)).await {
        Ok(addresses) => addresses.collect(),
        Err(error) => {
            eprintln!("skipped in part: this machine's name `{host}` does not resolve ({error})");
            return;
        }
    };
    let by_name = format!("http://{host}:{}", server.port);
    let refused = failure(get("/"), &context(base(&by_name))).await;
    assert_eq!((refused.code(), refused.how_far()), (FailureCode::Forbidden, Sent::Never), "{refused}");
    assert!(refused.message().contains("private_networks"), "{refused}");
    assert_eq!(server.requests().len(), 0);
    let mut named = base(&by_name);
    named["private_networks"] = json!(addresses.iter().map(|a| a.ip().to_string()).collect::<Vec<_>>());
    if addresses.iter().all(|a| a.ip().is_loopback()) {
        assert!(run(get("/"), &context(named), texts(&[Some("1")])).await.failures.is_empty());
    }
    let localhost = base(&format!("http://localhost:{}", server.port));
    assert!(run(get("/"), &context(localhost), texts(&[Some("1")])).await.failures.is_empty());
}

#[tokio::test]
async fn a_bomb_is_cut_off_and_memory_stays_flat() {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let zeros = vec![b' '; 1 << 20];
    for _ in 0..512 {
        std::io::Write::write_all(&mut encoder, &zeros).unwrap();
    }
    let bomb = encoder.finish().unwrap();
    assert!(bomb.len() < 1 << 20, "half a GiB in {} bytes", bomb.len());
    let server =
        Server::start(move |_| Reply::Full(200, vec![("content-encoding", "gzip".to_owned())], bomb.clone())).await;
    let mut settings = base(&server.url());
    settings["max_response_bytes"] = json!(4 << 20);
    let before = resident_bytes();
    let failure = failure(get("/"), &context(settings)).await;
    let grown = resident_bytes().saturating_sub(before);
    assert_eq!((failure.code(), failure.is_retryable()), (FailureCode::TooLarge, false), "{failure}");
    assert!(grown < 100 << 20, "memory grew by {grown} bytes");
    assert_eq!(server.requests().len(), 1);
}

fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[tokio::test]
async fn gzip_is_read() {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, b"{\"v\": 5}").unwrap();
    let body = encoder.finish().unwrap();
    let server =
        Server::start(move |_| Reply::Full(200, vec![("content-encoding", "gzip".to_owned())], body.clone())).await;
    let driven = run(get("/"), &context(base(&server.url())), texts(&[Some("1")])).await;
    assert!(driven.failures.is_empty(), "{:?}", driven.failures);
    assert!(server.requests()[0].header("accept-encoding").unwrap().contains("gzip"));
}

/// A service that throws everything it got back at us, in every form, must not get the credentials into any text.
#[tokio::test]
async fn the_canary_shows_in_no_error() {
    let encoded = base64::engine::general_purpose::STANDARD.encode(format!("x{CANARY}"));
    let echo = format!("you sent Bearer {CANARY} / {encoded} / c4nary%2Ft0ken%2Bfor%3Dtests \u{1b}[31m<b>");
    for status in [200, 302, 400, 404, 429, 500] {
        let body = echo.clone();
        let headers = echo.replace('\u{1b}', "");
        let server = Server::start(move |_| {
            Reply::Full(
                status,
                vec![("x-echo", headers.clone()), ("location", headers.clone())],
                body.clone().into_bytes(),
            )
        })
        .await;
        let mut settings = base(&server.url());
        settings["max_redirects"] = json!(2);
        let context = context(settings);
        let failure = failure(get("/"), &context).await;
        assert!(server.requests()[0].header("authorization").unwrap().contains(CANARY), "it was sent");
        let text = format!("{failure} {failure:?} {}", failure.message());
        assert_no_canary(&text);
        assert!(!text.contains('\u{1b}'), "{text}");
        if status == 200 || status == 400 {
            assert!(text.contains("you sent"), "the rest of the text stays: {text}");
        }
    }
}
