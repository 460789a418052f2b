//! A cluster on this machine: what handing small jobs to it costs, how many it takes, what a flood of them does to it, and
//! how long admission thinks.
//!
//! Question: what does a job pay for being run by executors? The baseline is the same workflow in this process, turn by
//! turn. The cluster is started by `rowmill cluster up` and stopped at the end; client, scheduler and executors share the
//! machine.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use arrow::array::RecordBatch;
use clap::Parser;
use rowmill::{Inputs, Session, SessionOptions, Workflow};
use rowmill_benches::cluster::Up;
use rowmill_benches::{Error, thinking};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures a cluster.
#[derive(Debug, Parser)]
struct Arguments {
    /// The rowmill binary.
    #[arg(long, default_value = "target/release/rowmill")]
    rowmill: PathBuf,
    /// Executors of the cluster.
    #[arg(long, default_value = "cpu=1")]
    executors: String,
    /// Slots of each executor.
    #[arg(long, default_value_t = 2)]
    slots: u32,
    /// Pairs of a small job: on the cluster, and here.
    #[arg(long, default_value_t = 200)]
    pairs: usize,
    /// Small jobs, some in flight.
    #[arg(long, default_value_t = 1_000)]
    jobs: usize,
    /// How many are in flight.
    #[arg(long, default_value_t = 16)]
    in_flight: usize,
    /// Small jobs that are submitted at once.
    #[arg(long, default_value_t = 10_000)]
    flood: usize,
    /// Executors and waiting chunks for the measurement of admission.
    #[arg(long, default_value_t = 1_000)]
    admission_executors: u64,
    /// Chunks that wait there.
    #[arg(long, default_value_t = 100_000)]
    admission_chunks: u32,
}

/// Rows of the table that small jobs read, and the groups in it.
const ROWS: i64 = 1_000;
const GROUPS: i64 = 10;

/// A small job and what must come out of it.
struct Job {
    name: &'static str,
    workflow: Arc<Workflow>,
    rows: usize,
}

/// One job of one stage, and one of two with an exchange between them.
async fn jobs(folder: &Path) -> Result<Vec<Job>, Error> {
    let path = folder.join("small.parquet");
    let make = Workflow::builder("make")
        .range("numbers", 0, ROWS)
        .sql("rows", format!("SELECT value AS id, value % {GROUPS} AS g, value * 0.5 AS v FROM numbers"))
        .sink("small", "rows", path.display().to_string())
        .build()?;
    Session::try_new(SessionOptions::default())?.run(Arc::new(make), &Inputs::default()).await?;
    let job = |name: &'static str, text: &str, rows: usize| -> Result<Job, Error> {
        let workflow =
            Workflow::builder("small").source_files("t", [path.display().to_string()]).sql("result", text).build()?;
        Ok(Job { name, workflow: Arc::new(workflow), rows })
    };
    Ok(vec![
        job("one stage", "SELECT sum(v) AS v FROM t WHERE id >= 10", 1)?,
        job("two stages", "SELECT g, sum(v) AS v FROM t GROUP BY g", GROUPS as usize)?,
    ])
}

async fn run(session: &Session, job: &Job) -> Result<f64, Error> {
    let inputs = Inputs { collect: vec!["result".to_owned()], ..Inputs::default() };
    let started = Instant::now();
    let report = session.run(Arc::clone(&job.workflow), &inputs).await?;
    let seconds = started.elapsed().as_secs_f64();
    let rows: usize = report.collected.values().flatten().map(RecordBatch::num_rows).sum();
    match rows == job.rows {
        true => Ok(seconds),
        false => Err(format!("`{}` gave {rows} rows and not {}", job.name, job.rows).into()),
    }
}

/// Runs `count` jobs, so many in flight, and gives the seconds that all took. The first job that fails ends it.
async fn many(session: &Arc<Session>, job: &Arc<Job>, count: usize, in_flight: usize) -> Result<f64, Error> {
    let room = Arc::new(Semaphore::new(in_flight));
    let mut tasks: JoinSet<Result<f64, Error>> = JoinSet::new();
    let started = Instant::now();
    for _ in 0..count {
        let permit = Arc::clone(&room).acquire_owned().await?;
        let (session, job) = (Arc::clone(session), Arc::clone(job));
        tasks.spawn(async move {
            let seconds = run(&session, &job).await;
            drop(permit);
            seconds
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(started.elapsed().as_secs_f64())
}

fn at(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let arguments = Arguments::parse();
    let thought = thinking::admission(arguments.admission_executors, arguments.admission_chunks)?;
    println!(
        "admission, {} executors, {} chunks waiting: a decision takes {:.4} ms at the median, {:.4} at 99%, {:.4} at most \
         ({} decisions)",
        arguments.admission_executors,
        arguments.admission_chunks,
        at(&thought, 0.5) * 1e3,
        at(&thought, 0.99) * 1e3,
        at(&thought, 1.0) * 1e3,
        thought.len()
    );

    let up = Up::try_new(&arguments.rowmill, &arguments.executors, arguments.slots)?;
    let cluster = up.connect(2)?;
    let there = SessionOptions { elsewhere: Some(Arc::new(cluster.clone())), ..SessionOptions::default() };
    let here = Arc::new(Session::try_new(SessionOptions::default())?);
    let there = Arc::new(Session::try_new(there)?);
    let jobs: Vec<Arc<Job>> = jobs(up.folder()).await?.into_iter().map(Arc::new).collect();
    for job in &jobs {
        let (mut ours, mut plain) = (Vec::new(), Vec::new());
        for pair in 0..arguments.pairs + 10 {
            let (one, other) = (run(&there, job).await?, run(&here, job).await?);
            // The first pairs warm both.
            if pair >= 10 {
                ours.push(one);
                plain.push(other);
            }
        }
        ours.sort_by(f64::total_cmp);
        plain.sort_by(f64::total_cmp);
        println!(
            "a small job of {}: on the cluster {:.2} ms at the median ({:.2} at 99%), here {:.2} ({:.2}): {:.2} ms more",
            job.name,
            at(&ours, 0.5) * 1e3,
            at(&ours, 0.99) * 1e3,
            at(&plain, 0.5) * 1e3,
            at(&plain, 0.99) * 1e3,
            (at(&ours, 0.5) - at(&plain, 0.5)) * 1e3
        );
    }
    for job in &jobs {
        let before = cluster.finished_jobs();
        let ours = many(&there, job, arguments.jobs, arguments.in_flight).await?;
        let went = cluster.finished_jobs() - before;
        let plain = many(&here, job, arguments.jobs, arguments.in_flight).await?;
        println!(
            "{went} small jobs of {}, {} in flight: {:.0}/s on the cluster, {:.0}/s here",
            job.name,
            arguments.in_flight,
            went as f64 / ours,
            arguments.jobs as f64 / plain
        );
    }
    if arguments.flood > 0 {
        let (before, _) = up.scheduler_memory()?;
        let done = cluster.finished_jobs();
        let seconds = many(&there, &jobs[1], arguments.flood, arguments.flood).await?;
        let (after, most) = up.scheduler_memory()?;
        println!(
            "{} submitted at once: {} done, none lost, in {seconds:.1} s ({:.0}/s); the scheduler's memory {before:.0} MB \
             before, {most:.0} at most, {after:.0} after",
            arguments.flood,
            cluster.finished_jobs() - done,
            arguments.flood as f64 / seconds
        );
    }
    Ok(())
}
