//! TPC-H: the 22 workflows beside the same queries on plain DataFusion, in one process, turn by turn.
//!
//! Question: what do steps, staging and publishing cost, and would other settings of DataFusion be faster? The ratio
//! is to plain DataFusion in the same run: its tables are registered once, its result is collected and not written.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use datafusion::prelude::{ParquetReadOptions, SessionConfig, SessionContext};
use rowmill::{Inputs, Session, SessionOptions, Workflow};
use rowmill_benches::{Error, cores};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const TABLES: [&str; 8] = ["customer", "lineitem", "nation", "orders", "part", "partsupp", "region", "supplier"];

/// Measures the 22 queries.
#[derive(Debug, Parser)]
struct Arguments {
    /// Folder made by rowmill-tpchgen.
    #[arg(long)]
    data: PathBuf,
    /// The folder examples/tpch.
    #[arg(long, default_value = "examples/tpch")]
    examples: PathBuf,
    /// Runs of each query by each contender; the median counts.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Scale of the data, which query 11 depends on.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Queries, such as 9,17,18,21.
    #[arg(long, value_delimiter = ',')]
    queries: Vec<usize>,
    /// Another plain DataFusion: NAME:setting=value,setting=value. `batch_size` and `target_partitions` are short for
    /// datafusion.execution.*.
    #[arg(long)]
    variant: Vec<String>,
    /// Another Rowmill, with batches of so many rows.
    #[arg(long)]
    batch_rows: Vec<usize>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

enum Contender {
    Rowmill(Session),
    Plain(Box<SessionContext>),
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let arguments = Arguments::parse();
    let mut contenders = vec![
        ("rowmill".to_owned(), Contender::Rowmill(Session::try_new(SessionOptions::default())?)),
        ("plain".to_owned(), Contender::Plain(Box::new(plain(&arguments.data, "").await?))),
    ];
    for rows in &arguments.batch_rows {
        let options = SessionOptions { batch_rows: Some(*rows), ..SessionOptions::default() };
        contenders.push((format!("rowmill {rows}"), Contender::Rowmill(Session::try_new(options)?)));
    }
    for variant in &arguments.variant {
        let (name, settings) = variant.split_once(':').unwrap_or((variant, ""));
        contenders.push((name.to_owned(), Contender::Plain(Box::new(plain(&arguments.data, settings).await?))));
    }
    let queries: BTreeSet<usize> = match arguments.queries.is_empty() {
        true => (1..=22).collect(),
        false => arguments.queries.iter().copied().collect(),
    };
    let mut medians: Vec<Vec<f64>> = vec![Vec::new(); contenders.len()];
    for query in &queries {
        let (workflow, mut inputs) = rowmill::load(&arguments.examples.join(format!("q{query:02}.yaml")))?;
        let out = std::env::temp_dir().join("rowmill-bench-tpch");
        inputs.params = vec![
            ("data".to_owned(), std::path::absolute(&arguments.data)?.display().to_string()),
            ("out".to_owned(), out.display().to_string()),
        ];
        let fraction = format!("{:.10}", 0.0001 / arguments.scale);
        if workflow.params.contains_key("fraction") {
            inputs.params.push(("fraction".to_owned(), fraction.clone()));
        }
        let text = std::fs::read_to_string(arguments.examples.join(format!("reference/q{query:02}.sql")))?;
        let text = text.replace("$fraction", &format!("'{fraction}'"));
        let mut seconds: Vec<Vec<f64>> = vec![Vec::new(); contenders.len()];
        for run in 0..=arguments.runs.max(1) {
            for (at, (_, contender)) in contenders.iter().enumerate() {
                let started = Instant::now();
                match contender {
                    Contender::Rowmill(session) => run_workflow(session, &workflow, &inputs).await?,
                    Contender::Plain(context) => run_plain(context, &text).await?,
                }
                // The first round warms caches.
                if run > 0 {
                    seconds[at].push(started.elapsed().as_secs_f64());
                }
            }
        }
        for (at, seconds) in seconds.iter_mut().enumerate() {
            seconds.sort_by(f64::total_cmp);
            medians[at].push(seconds[seconds.len() / 2]);
        }
        eprint!(".");
    }
    eprintln!();
    if arguments.json {
        let seconds: serde_json::Map<String, serde_json::Value> = contenders
            .iter()
            .zip(&medians)
            .map(|((name, _), seconds)| (name.clone(), serde_json::json!(seconds)))
            .collect();
        println!("{}", serde_json::json!({"queries": queries, "median_seconds": seconds}));
        return Ok(());
    }
    print_table(&contenders, &queries, &medians);
    Ok(())
}

fn print_table(contenders: &[(String, Contender)], queries: &BTreeSet<usize>, medians: &[Vec<f64>]) {
    let header: Vec<String> = contenders.iter().map(|(name, _)| format!("{name:>16}")).collect();
    println!("{:8}{}   rowmill/plain   (ms, medians)", "query", header.concat());
    let line = |name: String, seconds: Vec<f64>| {
        let cells: Vec<String> = seconds.iter().map(|seconds| format!("{:16.1}", seconds * 1e3)).collect();
        println!("{name:8}{}   {:.3}", cells.concat(), seconds[0] / seconds[1]);
    };
    for (at, query) in queries.iter().enumerate() {
        line(format!("q{query:02}"), medians.iter().map(|seconds| seconds[at]).collect());
    }
    line("all".to_owned(), medians.iter().map(|seconds| seconds.iter().sum()).collect());
}

/// Plain DataFusion over the tables of `data`.
async fn plain(data: &Path, settings: &str) -> Result<SessionContext, Error> {
    let mut config = SessionConfig::new().with_target_partitions(cores()).with_collect_statistics(true);
    for setting in settings.split(',').filter(|setting| !setting.is_empty()) {
        let (key, value) = setting.split_once('=').ok_or_else(|| format!("{setting}: write setting=value"))?;
        let key = match key {
            "batch_size" | "target_partitions" => format!("datafusion.execution.{key}"),
            key => key.to_owned(),
        };
        config = config.set_str(&key, value);
    }
    let context = SessionContext::new_with_config(config);
    for table in TABLES {
        let path = data.join(format!("{table}.parquet")).display().to_string();
        context.register_parquet(table, path, ParquetReadOptions::default()).await?;
    }
    Ok(context)
}

async fn run_plain(context: &SessionContext, text: &str) -> Result<(), Error> {
    for statement in text.split(';').filter(|statement| !statement.trim().is_empty()) {
        context.sql(statement).await?.collect().await?;
    }
    Ok(())
}

async fn run_workflow(session: &Session, workflow: &Arc<Workflow>, inputs: &Inputs) -> Result<(), Error> {
    session.run(Arc::clone(workflow), inputs).await?;
    Ok(())
}
