//! What item semantics cost where nothing fails: `x + 1` over float64.
//!
//! Two questions, each in pairs of one process, medians and CPU time per million items:
//! - in memory: how many nanoseconds an item costs more in a step with `on_error: dead_letter` than in a plain step;
//! - from file to file, durable, fsynced: how fast beside plain DataFusion that writes and fsyncs the same file.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use datafusion::prelude::{SessionConfig, SessionContext};
use rowmill::spec::{ItemPolicy, MappedText, Resources, SqlStep, StepKind};
use rowmill::{Inputs, RunsOptions, Session, Workflow};
use rowmill_benches::{Error, cores, numbers, session};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures item semantics on x + 1.
#[derive(Debug, Parser)]
struct Arguments {
    /// Items.
    #[arg(long, default_value_t = 10_000_000)]
    rows: usize,
    /// Pairs.
    #[arg(long, default_value_t = 11)]
    pairs: usize,
    /// Where files go; a disk, not a tmpfs.
    #[arg(long, default_value = ".")]
    folder: std::path::PathBuf,
}

/// CPU seconds of this process so far.
fn cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|ticks| ticks.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

/// Wall and CPU seconds of one contender.
#[derive(Debug, Default)]
struct Times {
    wall: Vec<f64>,
    cpu: f64,
}

impl Times {
    async fn time<T>(&mut self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let (started, before) = (Instant::now(), cpu());
        let done = work.await?;
        self.wall.push(started.elapsed().as_secs_f64());
        self.cpu += cpu() - before;
        Ok(done)
    }

    fn median(&self) -> f64 {
        let mut wall = self.wall.clone();
        wall.sort_by(f64::total_cmp);
        wall.get(wall.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn tell(&self, name: &str, rows: usize) {
        let per_million = self.cpu / self.wall.len() as f64 / (rows as f64 / 1e6);
        let rate = rows as f64 / self.median() / 1e6;
        println!("  {name:<34} {rate:8.1} M items/s   {:.5} CPU s per million", per_million);
    }
}

/// The median of the pairs' ratios.
fn ratio(over: &Times, under: &Times) -> f64 {
    let mut ratios: Vec<f64> = over.wall.iter().zip(&under.wall).map(|(over, under)| over / under).collect();
    ratios.sort_by(f64::total_cmp);
    ratios.get(ratios.len() / 2).copied().unwrap_or(f64::NAN)
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let arguments = Arguments::parse();
    in_memory(&arguments).await?;
    durable(&arguments).await
}

async fn in_memory(arguments: &Arguments) -> Result<(), Error> {
    let table = numbers(arguments.rows, 65_536)?;
    let session = session(None)?;
    let (mut plain, mut guarded) = (Times::default(), Times::default());
    for pair in 0..arguments.pairs.max(1) {
        // Each contender goes first every second time.
        for turn in 0..2 {
            let with_items = (pair + turn) % 2 == 1;
            let items = if with_items { ItemPolicy::default().dead_letters() } else { ItemPolicy::default() };
            let step = StepKind::Sql(SqlStep { text: MappedText::bare("SELECT x + 1 AS y FROM numbers") });
            let workflow = Workflow::builder("item")
                .source_provided("numbers")
                .step("plus", step, items, Resources::default())
                .sql("sum", "SELECT sum(y) AS total, count(*) AS n FROM plus")
                .build()?;
            let inputs = Inputs {
                tables: [("numbers".to_owned(), Arc::clone(&table))].into(),
                collect: vec!["sum".to_owned()],
                ..Inputs::default()
            };
            let times = if with_items { &mut guarded } else { &mut plain };
            let work = async { Ok(session.run(Arc::new(workflow), &inputs).await?) };
            let report = times.time(work).await?;
            if with_items {
                let counted: u64 = report.items.iter().map(|items| items.counts.items).sum();
                if counted != arguments.rows as u64 {
                    return Err(format!("{counted} of {} items were counted", arguments.rows).into());
                }
            }
        }
    }
    println!("x + 1 in memory, summed, {} items, {} pairs", arguments.rows, plain.wall.len());
    plain.tell("plain step", arguments.rows);
    guarded.tell("step with on_error: dead_letter", arguments.rows);
    let more = (guarded.median() - plain.median()) * 1e9 / arguments.rows as f64;
    println!("  {more:.3} ns more per item (time with items / plain {:.3})", ratio(&guarded, &plain));
    Ok(())
}

async fn durable(arguments: &Arguments) -> Result<(), Error> {
    let place = tempfile::Builder::new().prefix("rowmill-bench-").tempdir_in(&arguments.folder)?;
    let place = place.path().canonicalize()?;
    let source = place.join("x.arrow");
    let context = SessionContext::new();
    context.register_table("numbers", numbers(arguments.rows, 65_536)?)?;
    write_arrow(&context, "SELECT x FROM numbers", &source).await?;
    let flow = place.join("flow.yaml");
    let text = "rowmill: 1\nname: durable-item\nsources: {numbers: {path: x.arrow}}\nsteps:\n  plus:\n    sql: SELECT x + 1 AS y FROM numbers\nPOLICYsinks: {out: {from: plus, path: out.arrow}}\n";
    let session = session(None)?;
    let (mut plain, mut bare, mut items) = (Times::default(), Times::default(), Times::default());
    for pair in 0..arguments.pairs.max(1) {
        for turn in 0..3 {
            match (pair + turn) % 3 {
                0 => plain.time(plain_file(&source, &place.join("plain.arrow"))).await?,
                1 => {
                    std::fs::write(&flow, text.replace("POLICY", ""))?;
                    bare.time(run_durably(&session, &flow, &place)).await?;
                }
                _ => {
                    std::fs::write(&flow, text.replace("POLICY", "    on_error: dead_letter\n"))?;
                    items.time(run_durably(&session, &flow, &place)).await?;
                }
            }
        }
    }
    println!("x + 1 from file to file, fsynced, {} items, {} pairs", arguments.rows, plain.wall.len());
    plain.tell("plain DataFusion", arguments.rows);
    bare.tell("durable run, plain step", arguments.rows);
    items.tell("durable run, on_error: dead_letter", arguments.rows);
    println!(
        "  rate / plain DataFusion: {:.3} plain step, {:.3} with items",
        ratio(&plain, &bare),
        ratio(&plain, &items)
    );
    Ok(())
}

/// Writes a query's rows into one Arrow file that is on disk when this returns.
async fn write_arrow(context: &SessionContext, query: &str, path: &Path) -> Result<(), Error> {
    let statement = format!("COPY ({query}) TO '{}' STORED AS ARROW", path.display());
    context.sql(&statement).await?.collect().await?;
    std::fs::File::open(path)?.sync_all()?;
    if let Some(folder) = path.parent() {
        std::fs::File::open(folder)?.sync_all()?;
    }
    Ok(())
}

async fn plain_file(source: &Path, target: &Path) -> Result<(), Error> {
    let config = SessionConfig::new().with_target_partitions(cores()).with_batch_size(65_536);
    let context = SessionContext::new_with_config(config);
    context.register_arrow("numbers", &source.display().to_string(), Default::default()).await?;
    if target.exists() {
        std::fs::remove_file(target)?;
    }
    write_arrow(&context, "SELECT x + 1 AS y FROM numbers", target).await
}

async fn run_durably(session: &Session, flow: &Path, place: &Path) -> Result<(), Error> {
    let (workflow, inputs) = rowmill::load(flow)?;
    let runs = session.runs(RunsOptions::folder(place.join("state"))).await?;
    let report = runs.run(flow, workflow, &inputs, &CancellationToken::new(), &(), |_| {}).await?;
    match report.sinks.iter().map(|sink| sink.rows).sum::<u64>() {
        0 => Err("the run wrote nothing".into()),
        _ => Ok(()),
    }
}
