//! Answers: how many requests a second does the http step make, and what does one cost in CPU time?
//!
//! A small server in this process answers after a pause; the step's sessions are driven with 256 in flight, one item
//! per request. The baseline, in the same run and against the same server, is the cheapest client that there is: raw
//! sockets that send fixed bytes and wait for the answer, which is what wrk does.
//!
//! `cargo run --release -p rowmill-step-http --example bench [requests] [in_flight] [latency_ms]`
#![allow(clippy::allow_attributes)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::datatypes::DataType;
use rowmill_step::{
    Cardinality, ItemBatch, ItemIds, ItemKeys, StaticConnections, StepContext, StepExecutor, StepShape, attempt,
};
use rowmill_step_http::{HttpOptions, HttpStep, ResponseColumn};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 41\r\n\r\n{\"temp\":21.5,\"wind\":7,\"name\":\"somewhere\"}";

async fn serve(listener: TcpListener, latency: Duration) {
    let mut open = JoinSet::new();
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        open.spawn(async move {
            let mut buffer = vec![0u8; 4096];
            let mut length = 0;
            loop {
                let Ok(read) = stream.read(&mut buffer[length..]).await else { return };
                if read == 0 {
                    return;
                }
                length += read;
                if buffer[..length].ends_with(b"\r\n\r\n") {
                    length = 0;
                    if !latency.is_zero() {
                        tokio::time::sleep(latency).await;
                    }
                    if stream.write_all(ANSWER).await.is_err() {
                        return;
                    }
                }
            }
        });
    }
}

async fn raw(port: u16, requests: u64, in_flight: usize) {
    let next = Arc::new(AtomicU64::new(0));
    let mut slots = JoinSet::new();
    for _ in 0..in_flight {
        let next = next.clone();
        slots.spawn(async move {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let mut buffer = vec![0u8; 4096];
            while next.fetch_add(1, Ordering::Relaxed) < requests {
                stream.write_all(b"GET /weather/1 HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
                let mut length = 0;
                while length < ANSWER.len() {
                    length += stream.read(&mut buffer).await.unwrap();
                }
            }
        });
    }
    while let Some(done) = slots.join_next().await {
        done.unwrap();
    }
}

async fn step(context: &StepContext, requests: u64, in_flight: usize) {
    let options = HttpOptions {
        response: vec![
            ResponseColumn::json("temp", "/temp", DataType::Float64),
            ResponseColumn::json("wind", "/wind", DataType::Int64),
            ResponseColumn::json("name", "/name", DataType::Utf8),
        ],
        in_flight,
        ..HttpOptions::new("api", "GET", "/weather/{id}")
    };
    let step = Arc::new(HttpStep::try_new(options).unwrap());
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..requests as i64));
    let items = RecordBatch::try_from_iter([("id", ids)]).unwrap();
    let output = step.output_schema(&items.schema(), context).await.unwrap();
    let shape = StepShape { input: items.schema(), output };
    let keys = Arc::new(context.keys());
    let next = Arc::new(AtomicU64::new(0));
    let mut slots = JoinSet::new();
    for _ in 0..in_flight {
        let (step, context, shape, keys, next, items) =
            (step.clone(), context.clone(), shape.clone(), keys.clone(), next.clone(), items.clone());
        slots.spawn(async move {
            let mut session = step.open(&context, &shape).await.unwrap();
            loop {
                let row = next.fetch_add(1, Ordering::Relaxed);
                if row >= requests {
                    return;
                }
                let batch = ItemBatch {
                    columns: items.slice(row as usize, 1),
                    keys: ItemKeys::new(ItemIds::Range { file: 0, rows: row..row + 1 }, keys.clone()),
                    attempt: 1,
                    deadline: None,
                    stop: context.cancel.clone(),
                    cancel: context.cancel.clone(),
                    place: None,
                };
                let ended = attempt(session.as_mut(), batch, &context, &shape, Cardinality::OneToOne).await;
                assert_eq!(ended.result.unwrap().output.num_rows(), 1);
            }
        });
    }
    while let Some(done) = slots.join_next().await {
        done.unwrap();
    }
}

/// CPU seconds of this process so far, by the kernel's clock.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u64>().unwrap());
    let requests = arguments.next().unwrap_or(100_000);
    let in_flight = arguments.next().unwrap_or(256) as usize;
    let latency = Duration::from_millis(arguments.next().unwrap_or(10));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut server = JoinSet::new();
        server.spawn(serve(listener, latency));
        let mut context = StepContext::new("run", "weather", "tenant");
        let settings = serde_json::json!({"base_url": format!("http://127.0.0.1:{port}")});
        context.connections = Arc::new(StaticConnections::default().with("api", settings));
        println!("{requests} requests, {in_flight} in flight, {latency:?} at the server (in this process)");
        let mut ratios = Vec::new();
        for _ in 0..5 {
            let (start, cpu) = (Instant::now(), cpu_seconds());
            raw(port, requests, in_flight).await;
            let raw_rate = requests as f64 / start.elapsed().as_secs_f64();
            let raw_cpu = (cpu_seconds() - cpu) / requests as f64 * 1e6;
            let (start, cpu) = (Instant::now(), cpu_seconds());
            step(&context, requests, in_flight).await;
            let rate = requests as f64 / start.elapsed().as_secs_f64();
            let step_cpu = (cpu_seconds() - cpu) / requests as f64 * 1e6;
            println!(
                "raw sockets {raw_rate:7.0}/s {raw_cpu:5.1} µs CPU | step {rate:7.0}/s {step_cpu:5.1} µs CPU | {:4.0}% (CPU includes the server)",
                rate / raw_rate * 100.0
            );
            ratios.push(rate / raw_rate);
        }
        ratios.sort_by(f64::total_cmp);
        println!("median: {:.0}% of raw sockets", ratios[ratios.len() / 2] * 100.0);
    });
}
