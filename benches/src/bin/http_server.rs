//! The server that the HTTP benches call: each answer takes a given time and costs next to nothing.
//!
//! ```text
//! rowmill-bench-server PORT [LATENCY_MS] [FAIL_EVERY]
//! ```
//! `GET /item/N` is answered with `{"value": N}` after the latency; one request in `FAIL_EVERY` with 503 instead.
//! `GET /poison/N` is the same, but for each hundredth item it says 422. `GET /slow/N` is the same, but item 5 is told once
//! to come again in 60 s. `GET /seconds` answers with the fullest one-second window of requests so far, over all starting
//! points, and with the seconds from the first request to the last that was no second try of the slow item.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use parking_lot::Mutex;

struct Server {
    latency: Duration,
    fail_every: u64,
    requests: AtomicU64,
    window: Mutex<(VecDeque<Instant>, usize)>,
    /// The first request and the last, without second tries of the slow item.
    span: Mutex<Option<(Instant, Instant)>>,
    slowed: AtomicBool,
}

impl Server {
    /// Notes a request, and the fullest second that has been.
    fn note(&self) {
        let now = Instant::now();
        let mut window = self.window.lock();
        window.0.push_back(now);
        while window.0.front().is_some_and(|first| now - *first >= Duration::from_secs(1)) {
            window.0.pop_front();
        }
        window.1 = window.1.max(window.0.len());
    }
}

async fn item(Path(item): Path<String>, State(server): State<Arc<Server>>) -> impl IntoResponse {
    server.note();
    let number = server.requests.fetch_add(1, Ordering::Relaxed);
    if !server.latency.is_zero() {
        tokio::time::sleep(server.latency).await;
    }
    if server.fail_every > 0 && number % server.fail_every == server.fail_every - 1 {
        return (StatusCode::SERVICE_UNAVAILABLE, String::new());
    }
    (StatusCode::OK, format!("{{\"value\": {item}}}"))
}

async fn poison(path: Path<String>, state: State<Arc<Server>>) -> impl IntoResponse {
    let bad = path.0.parse::<u64>().is_ok_and(|item| item % 100 == 7);
    let answer = item(path, state).await.into_response();
    if bad { (StatusCode::UNPROCESSABLE_ENTITY, "no".to_owned()).into_response() } else { answer }
}

async fn slow(path: Path<String>, state: State<Arc<Server>>) -> impl IntoResponse {
    let is_slow = path.0 == "5";
    if is_slow && !state.slowed.swap(true, Ordering::Relaxed) {
        return (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "60")]).into_response();
    }
    if !is_slow {
        let now = Instant::now();
        state.span.lock().get_or_insert((now, now)).1 = now;
    }
    item(path, state).await.into_response()
}

async fn seconds(State(server): State<Arc<Server>>) -> String {
    let window = server.window.lock();
    let span = server.span.lock().map_or(0.0, |(first, last)| (last - first).as_secs_f64());
    let requests = server.requests.load(Ordering::Relaxed);
    format!("{{\"requests\": {requests}, \"fullest_second\": {}, \"span_s\": {span}}}", window.1)
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u64>().unwrap_or(0));
    let port = u16::try_from(arguments.next().unwrap_or(8070)).unwrap_or(8070);
    let server = Arc::new(Server {
        latency: Duration::from_millis(arguments.next().unwrap_or(10)),
        fail_every: arguments.next().unwrap_or(0),
        requests: AtomicU64::new(0),
        window: Mutex::default(),
        span: Mutex::default(),
        slowed: AtomicBool::new(false),
    });
    let routes = Router::new()
        .route("/item/{item}", get(item))
        .route("/poison/{item}", get(poison))
        .route("/slow/{item}", get(slow))
        .route("/seconds", get(seconds))
        .with_state(server);
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    axum::serve(listener, routes).await
}
