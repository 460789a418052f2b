//! Criterion benches of the spine: compile, the plain item, TPC-H.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a bench that fails has nothing to measure")]

use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rowmill::{Inputs, Workflow};
use rowmill_benches::{numbers, plus_one, plus_one_plain, session};
use tokio::runtime::Runtime;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().thread_stack_size(16 << 20).enable_all().build().unwrap()
}

/// A workflow of `steps` steps in YAML: filters in a row, an aggregate every tenth.
fn chain(steps: usize) -> String {
    let mut text = String::from("rowmill: 1\nname: chain\nsources:\n  s0: {range: {start: 0, end: 1000}}\nsteps:\n");
    for step in 1..=steps {
        let before = step - 1;
        let sql = match step % 10 {
            0 => format!("SELECT value, count(*) AS n{step} FROM s{before} GROUP BY value"),
            _ => format!("SELECT *, value * {step} AS v{step} FROM s{before} WHERE value > {step}"),
        };
        text.push_str(&format!("  s{step}: {{sql: \"{sql}\"}}\n"));
    }
    text.push_str(&format!("sinks:\n  out: {{from: s{steps}, path: /tmp/rowmill-bench-chain.parquet}}\n"));
    text
}

/// How long from text to physical plans? Target: 50 steps in less than 100 ms.
fn compile(criterion: &mut Criterion) {
    let runtime = runtime();
    let session = session(None).unwrap();
    let mut group = criterion.benchmark_group("compile");
    for steps in [10, 50] {
        let text = chain(steps);
        group.bench_with_input(BenchmarkId::new("steps", steps), &text, |bencher, text| {
            bencher.to_async(&runtime).iter(|| async {
                let workflow = Arc::new(rowmill_spec::parse("chain.yaml", text).unwrap());
                black_box(session.explain(workflow, &Inputs::default(), true).await.unwrap())
            });
        });
    }
    group.finish();
}

/// What does an item cost, Arrow in, one SQL step, Arrow out? Baseline: DataFusion with the same batches.
fn item(criterion: &mut Criterion) {
    let runtime = runtime();
    let session = session(None).unwrap();
    let mut group = criterion.benchmark_group("item");
    group.measurement_time(Duration::from_secs(4)).sample_size(20);
    for rows in [1_000, 100_000, 10_000_000] {
        let table = numbers(rows, 65_536).unwrap();
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_with_input(BenchmarkId::new("rowmill", rows), &table, |bencher, table| {
            bencher.to_async(&runtime).iter(|| async { plus_one(&session, table.clone()).await.unwrap() });
        });
        group.bench_with_input(BenchmarkId::new("datafusion", rows), &table, |bencher, table| {
            bencher.to_async(&runtime).iter(|| async { plus_one_plain(65_536, table.clone()).await.unwrap() });
        });
    }
    group.finish();
}

/// What does running a query as a workflow, with staging and publishing, add? Needs the folder of TPC-H data that
/// `TPCH_DATA` names (see examples/tpch); passed over without it.
fn tpch(criterion: &mut Criterion) {
    let Some(data) = std::env::var_os("TPCH_DATA").map(PathBuf::from) else {
        eprintln!("tpch: passed over; set TPCH_DATA to a folder made by rowmill-tpchgen");
        return;
    };
    let runtime = runtime();
    let session = session(None).unwrap();
    let mut group = criterion.benchmark_group("tpch");
    group.measurement_time(Duration::from_secs(5)).sample_size(10);
    let examples = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples/tpch");
    let out = std::env::temp_dir().join("rowmill-bench-tpch");
    for query in 1..=22 {
        let (workflow, mut inputs): (Arc<Workflow>, Inputs) =
            rowmill::load(&examples.join(format!("q{query:02}.yaml"))).expect("the example compiles");
        inputs.params =
            vec![("data".to_owned(), data.display().to_string()), ("out".to_owned(), out.display().to_string())];
        group.bench_function(BenchmarkId::new("query", query), |bencher| {
            bencher.to_async(&runtime).iter(|| async { session.run(workflow.clone(), &inputs).await.unwrap() });
        });
    }
    group.finish();
}

criterion_group!(benches, compile, item, tpch);
criterion_main!(benches);
