//! What goes wrong on the way, and how far the call is said to have come.

use std::time::{Duration, Instant};

use arrow::datatypes::DataType;
use rowmill_step::{Effects, Failure, FailureCode, Sent, Verdict};
use rowmill_step_http::{HttpOptions, ResponseColumn};
use serde_json::json;

use crate::server::{Reply, Server, json as reply};
use crate::support::{base, context, failure};

fn post() -> HttpOptions {
    HttpOptions {
        response: vec![ResponseColumn::json("v", "/v", DataType::Int64)],
        ..HttpOptions::new("api", "POST", "/x")
    }
}

async fn against(handler: impl Fn(&crate::server::Seen) -> Reply + Send + Sync + 'static) -> (Failure, usize) {
    let server = Server::start(handler).await;
    let mut settings = base(&server.url());
    settings["request_timeout_ms"] = json!(300);
    let failure = failure(post(), &context(settings)).await;
    (failure, server.requests().len())
}

#[tokio::test]
async fn a_refused_connection_never_left() {
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let failure = failure(post(), &context(base(&format!("http://127.0.0.1:{port}")))).await;
    assert_eq!((failure.code(), failure.how_far()), (FailureCode::Connect, Sent::Never), "{failure}");
    assert_eq!(failure.verdict(Effects::Once), Verdict::Retry);
    assert!(failure.blames_connection());
}

#[tokio::test]
async fn a_reset_after_the_request_may_have_happened() {
    let (failure, requests) = against(|_| Reply::Reset).await;
    assert_eq!(requests, 1, "the fault happened after the request was read");
    assert_eq!((failure.code(), failure.how_far()), (FailureCode::Transport, Sent::Maybe), "{failure}");
    assert_eq!(failure.verdict(Effects::Once), Verdict::Unknown);
    assert_eq!(failure.verdict(Effects::Idempotent), Verdict::Retry);
}

#[tokio::test]
async fn slow_truncated_and_broken_answers() {
    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n".to_vec();
    let started = Instant::now();
    let slow = head.clone();
    let (failure, _) = against(move |_| {
        let drip = (0..100).map(|_| (Duration::from_millis(100), b" ".to_vec()));
        Reply::Raw(std::iter::once((Duration::ZERO, slow.clone())).chain(drip).collect())
    })
    .await;
    assert_eq!((failure.code(), failure.how_far()), (FailureCode::Timeout, Sent::Maybe));
    assert!(started.elapsed() < Duration::from_secs(3), "a body that drips does not hold the slot");
    let (failure, _) = against(|_| Reply::Hang).await;
    assert_eq!(failure.code(), FailureCode::Timeout);
    let (failure, _) =
        against(move |_| Reply::Raw(vec![(Duration::ZERO, [head.as_slice(), b"{\"v\":"].concat())])).await;
    assert_eq!((failure.code(), failure.how_far()), (FailureCode::Transport, Sent::Maybe), "{failure}");
    let (failure, _) = against(|_| Reply::Raw(vec![(Duration::ZERO, b"HTTP/9 what\r\n\r\n".to_vec())])).await;
    assert_eq!((failure.code(), failure.how_far()), (FailureCode::Transport, Sent::Maybe), "{failure}");
    let (failure, _) = against(|_| {
        let lines: String = (0..2000).map(|n| format!("x-{n}: y\r\n")).collect();
        Reply::Raw(vec![(Duration::ZERO, format!("HTTP/1.1 200 OK\r\n{lines}\r\n").into_bytes())])
    })
    .await;
    assert_eq!(failure.code(), FailureCode::Transport, "too many headers: {failure}");
}

#[tokio::test]
async fn statuses_say_what_may_be_repeated() {
    let cases: [(u16, FailureCode, Sent, bool); 8] = [
        (429, FailureCode::RateLimited, Sent::Refused, true),
        (408, FailureCode::Status, Sent::Maybe, true),
        (500, FailureCode::Status, Sent::Maybe, true),
        (501, FailureCode::Status, Sent::Maybe, false),
        (503, FailureCode::Status, Sent::Maybe, true),
        (400, FailureCode::Status, Sent::Answered, false),
        (404, FailureCode::NotFound, Sent::Answered, false),
        (302, FailureCode::Status, Sent::Answered, false),
    ];
    for (status, code, sent, retryable) in cases {
        let (failure, requests) = against(move |_| {
            Reply::Full(
                status,
                vec![("retry-after", "7".to_owned()), ("location", "/other".to_owned())],
                b"why".to_vec(),
            )
        })
        .await;
        assert_eq!(requests, 1, "{status}: no attempt is made behind the engine's back");
        assert_eq!((failure.code(), failure.how_far(), failure.is_retryable()), (code, sent, retryable), "{status}");
        assert_eq!(failure.status_code(), Some(status));
        if status == 429 || status == 503 {
            assert_eq!(failure.wait(), Some(Duration::from_secs(7)));
        }
        if status == 400 {
            assert!(failure.message().contains("why"), "{failure}");
        }
    }
}

#[tokio::test]
async fn an_answer_without_the_declared_json_is_answered_for_good() {
    let (failure, _) = against(|_| reply(200, &json!({"v": "text"}))).await;
    assert_eq!((failure.code(), failure.how_far()), (FailureCode::Decode, Sent::Answered));
    assert_eq!(failure.verdict(Effects::Once), Verdict::Final);
    assert!(failure.message().contains("`v`") && failure.message().contains("\"text\""), "{failure}");
}
