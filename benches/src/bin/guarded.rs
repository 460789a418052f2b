//! SQL steps with an error policy: what rows that fail cost.
//!
//! Question: how much slower than a plain step is one with `on_error: skip` over the same generated rows, when nothing
//! fails, when 3 rows in all do, and when one in a hundred does? Ratios are to the guarded step over clean rows, the
//! first line's to the plain step, all in turns of one process. The rows make a text, the step casts it.

use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use rowmill::spec::{ItemPolicy, MappedText, Resources, SqlStep, StepKind};
use rowmill::{Inputs, Session, Workflow};
use rowmill_benches::{Error, session};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures SQL steps with an error policy.
#[derive(Debug, Parser)]
struct Arguments {
    /// Items.
    #[arg(long, default_value_t = 1_000_000)]
    rows: i64,
    /// Runs of each; the median counts.
    #[arg(long, default_value_t = 11)]
    runs: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What the step does with the text.
const STEPS: [(&str, &str); 4] = [
    ("cast to bigint", "SELECT CAST(word AS BIGINT) AS y FROM words"),
    ("cast under CASE", "SELECT CASE WHEN value >= 0 THEN CAST(word AS BIGINT) END AS y FROM words"),
    ("division", "SELECT 1000000 / divisor AS y FROM words"),
    ("to_timestamp", "SELECT to_timestamp(day) AS y FROM words"),
];

/// A workflow in which one row in `every` is bad; none where it is 0, and then the rows are made by the same work.
fn workflow(rows: i64, every: i64, text: &str, guarded: bool) -> Result<Workflow, Error> {
    let bad = match every {
        0 => format!("value % {} = {}", 2 * rows, 2 * rows - 1),
        every => format!("value % {every} = {}", every / 2),
    };
    let words = format!(
        "SELECT value, CASE WHEN {bad} THEN 'x' || value ELSE CAST(value AS VARCHAR) END AS word, \
         CASE WHEN {bad} THEN 0 ELSE value + 1 END AS divisor, \
         CASE WHEN {bad} THEN '2013-02-31' ELSE '2013-02-11' END AS day FROM n"
    );
    let items = match guarded {
        true => ItemPolicy::default().skip_errors(),
        false => ItemPolicy::default(),
    };
    let step = StepKind::Sql(SqlStep { text: MappedText::bare(text) });
    Ok(Workflow::builder("guarded")
        .range("n", 0, rows)
        .sql("words", words)
        .step("made", step, items, Resources::default())
        .sql("sum", "SELECT count(y) AS n FROM made")
        .build()?)
}

/// Seconds, and the items that failed.
async fn run(session: &Session, workflow: Workflow) -> Result<(f64, u64), Error> {
    let inputs = Inputs { collect: vec!["sum".to_owned()], ..Inputs::default() };
    let started = Instant::now();
    let report = session.run(Arc::new(workflow), &inputs).await?;
    let seconds = started.elapsed().as_secs_f64();
    Ok((seconds, report.items.iter().map(|items| items.counts.errors()).sum()))
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let arguments = Arguments::parse();
    let session = session(None)?;
    let cases = [("plain", 0, false), ("clean", 0, true), ("3 bad", arguments.rows / 3, true), ("1% bad", 100, true)];
    let mut all = Vec::new();
    for (name, text) in STEPS {
        let mut seconds: Vec<Vec<f64>> = vec![Vec::new(); cases.len()];
        let mut failed = vec![0; cases.len()];
        for _ in 0..arguments.runs.max(1) {
            for (at, (_, every, guarded)) in cases.iter().enumerate() {
                let (took, errors) = run(&session, workflow(arguments.rows, *every, text, *guarded)?).await?;
                seconds[at].push(took);
                failed[at] = errors;
            }
        }
        let medians: Vec<f64> = seconds
            .iter_mut()
            .map(|seconds| {
                seconds.sort_by(f64::total_cmp);
                seconds[seconds.len() / 2]
            })
            .collect();
        for (at, (case, _, guarded)) in cases.iter().enumerate() {
            let (base, of) = if *guarded && at > 1 { (medians[1], "clean") } else { (medians[0], "plain") };
            let ratio = medians[at] / base;
            if arguments.json {
                all.push(serde_json::json!({
                    "step": name, "case": case, "seconds": medians[at], "failed": failed[at], "ratio": ratio, "to": of,
                }));
            } else {
                let rate = arguments.rows as f64 / medians[at] / 1e6;
                println!(
                    "{name:<16} {case:<7} {rate:7.1} M items/s  {:>6} failed   time / {of} {ratio:.3}",
                    failed[at]
                );
            }
        }
    }
    if arguments.json {
        println!("{}", serde_json::Value::from(all));
    }
    Ok(())
}
