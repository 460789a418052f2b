//! TPC-H on a cluster of this machine, beside plain Ballista in the same set-up and beside one process, turn by turn.
//!
//! Question: what does our scheduler, our placement and our way of fetching results cost or gain? Both clusters are a
//! scheduler and two executors of one slot, each a process; this program is Ballista's three. Rows are collected by the
//! client and not written, and must be equally many.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use ballista_core::config::TaskSchedulingPolicy;
use ballista_core::extension::SessionStateExt as _;
use ballista_executor::executor_process::{ExecutorProcessConfig, start_executor_process};
use ballista_scheduler::cluster::BallistaCluster;
use ballista_scheduler::config::SchedulerConfig;
use ballista_scheduler::scheduler_process::start_server;
use clap::Parser;
use datafusion::execution::SessionStateBuilder;
use datafusion::prelude::{ParquetReadOptions, SessionContext};
use rowmill::{Inputs, Session, SessionOptions, Workflow};
use rowmill_benches::Error;
use rowmill_benches::cluster::Up;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const TABLES: [&str; 8] = ["customer", "lineitem", "nation", "orders", "part", "partsupp", "region", "supplier"];
const EXECUTORS: usize = 2;

/// Measures the 22 queries on clusters.
#[derive(Debug, Clone, Parser)]
struct Arguments {
    /// Folder made by rowmill-tpchgen.
    #[arg(long, default_value = ".")]
    data: PathBuf,
    /// The rowmill binary.
    #[arg(long, default_value = "target/release/rowmill")]
    rowmill: PathBuf,
    /// The folder with the queries.
    #[arg(long, default_value = "examples/tpch/reference")]
    queries_in: PathBuf,
    /// Scale of the data, which query 11 depends on.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Runs of each query by each contender; the median counts.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Queries, such as 9,17,18,21.
    #[arg(long, value_delimiter = ',')]
    queries: Vec<usize>,
    /// Not for people: this process is Ballista's scheduler, listening on this port.
    #[arg(long, hide = true)]
    ballista_scheduler: Option<u16>,
    /// Not for people: this process is an executor for the scheduler on this port.
    #[arg(long, hide = true)]
    ballista_executor: Option<u16>,
}

/// Processes of plain Ballista, which end with this value.
struct Plain {
    children: Vec<Child>,
    port: u16,
    _work: tempfile::TempDir,
}

impl Drop for Plain {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn free_port() -> Result<u16, Error> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Plain {
    async fn try_new() -> Result<Self, Error> {
        let port = free_port()?;
        let work = tempfile::tempdir()?;
        let mut plain = Self { children: Vec::new(), port, _work: work };
        plain.start("--ballista-scheduler")?;
        for _ in 0..200 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for _ in 0..EXECUTORS {
            plain.start("--ballista-executor")?;
        }
        // Nobody says when they have joined.
        tokio::time::sleep(Duration::from_secs(2)).await;
        Ok(plain)
    }

    fn start(&mut self, role: &str) -> Result<(), Error> {
        let child = Command::new(std::env::current_exe()?)
            .args([role, &self.port.to_string()])
            .current_dir(self._work.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        self.children.push(child);
        Ok(())
    }

    async fn context(&self, data: &Path) -> Result<SessionContext, Error> {
        let state = datafusion::execution::SessionState::new_ballista_state(format!("http://127.0.0.1:{}", self.port))?;
        let mut config = state.config().clone();
        config.options_mut().execution.target_partitions = EXECUTORS;
        let state = SessionStateBuilder::new_from_existing(state).with_config(config).build();
        let context = SessionContext::new_with_state(state);
        for table in TABLES {
            let path = data.join(format!("{table}.parquet")).display().to_string();
            context.register_parquet(table, path, ParquetReadOptions::default()).await?;
        }
        Ok(context)
    }
}

async fn scheduler(port: u16) -> Result<(), Error> {
    let config = SchedulerConfig::default()
        .with_hostname("127.0.0.1")
        .with_port(port)
        .with_scheduler_policy(TaskSchedulingPolicy::PushStaged);
    let cluster = BallistaCluster::new_from_config(&config).await?;
    Ok(start_server(cluster, ([127, 0, 0, 1], port).into(), Arc::new(config)).await?)
}

async fn executor(scheduler_port: u16) -> Result<(), Error> {
    let config = ExecutorProcessConfig {
        port: free_port()?,
        grpc_port: free_port()?,
        scheduler_host: "127.0.0.1".to_owned(),
        scheduler_port,
        vcores: 1,
        task_scheduling_policy: TaskSchedulingPolicy::PushStaged,
        ..ExecutorProcessConfig::default()
    };
    Ok(start_executor_process(Arc::new(config)).await?)
}

/// The query's last statement that gives rows; others, such as those that make a view, go before it.
fn statements(text: &str) -> Vec<&str> {
    text.split(';').map(str::trim).filter(|statement| !statement.is_empty()).collect()
}

async fn run_plain(context: &SessionContext, text: &str) -> Result<usize, Error> {
    let mut rows = 0;
    for statement in statements(text) {
        let made = context.sql(statement).await?.collect().await?;
        rows = rows.max(made.iter().map(RecordBatch::num_rows).sum());
    }
    Ok(rows)
}

/// The query over the tables as a workflow, which is collected.
fn workflow(data: &Path, text: &str) -> Result<Workflow, Error> {
    let statement = statements(text).into_iter().next_back().ok_or("an empty query")?;
    let mut builder = Workflow::builder("tpch");
    for table in TABLES {
        builder = builder.source_files(table, [data.join(format!("{table}.parquet")).display().to_string()]);
    }
    Ok(builder.sql("result", statement).build()?)
}

async fn run_workflow(session: &Session, workflow: &Arc<Workflow>) -> Result<usize, Error> {
    let inputs = Inputs { collect: vec!["result".to_owned()], ..Inputs::default() };
    let report = session.run(Arc::clone(workflow), &inputs).await?;
    Ok(report.collected.values().flatten().map(RecordBatch::num_rows).sum())
}

fn main() -> Result<(), Error> {
    // Plans nest deeply, and Ballista's own programs have stacks of this size.
    tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(32 << 20).build()?.block_on(begin())
}

async fn begin() -> Result<(), Error> {
    let arguments = Arguments::parse();
    if let Some(port) = arguments.ballista_scheduler {
        return scheduler(port).await;
    }
    if let Some(port) = arguments.ballista_executor {
        return executor(port).await;
    }
    measure(&arguments).await
}

async fn measure(arguments: &Arguments) -> Result<(), Error> {
    let data = std::path::absolute(&arguments.data)?;
    let plain = Plain::try_new().await?;
    let ballista = plain.context(&data).await?;
    let up = Up::try_new(&arguments.rowmill, &format!("cpu={EXECUTORS}"), 1)?;
    let cluster = up.connect(EXECUTORS)?;
    let there = SessionOptions { elsewhere: Some(Arc::new(cluster.clone())), ..SessionOptions::default() };
    let (there, here) = (Session::try_new(there)?, Session::try_new(SessionOptions::default())?);
    let queries = match arguments.queries.is_empty() {
        true => (1..=22).collect(),
        false => arguments.queries.clone(),
    };
    let mut sums = [0.0; 3];
    println!("query       cluster   ballista       here   cluster/ballista   cluster/here   (ms, medians)");
    for query in queries {
        let text = std::fs::read_to_string(arguments.queries_in.join(format!("q{query:02}.sql")))?;
        let text = text.replace("$fraction", &format!("'{:.10}'", 0.0001 / arguments.scale));
        let workflow = Arc::new(workflow(&data, &text)?);
        let mut seconds = [const { Vec::new() }; 3];
        let mut rows = [0; 3];
        let mut failed: Option<String> = None;
        for run in 0..=arguments.runs.max(1) {
            for (at, seconds) in seconds.iter_mut().enumerate() {
                let started = Instant::now();
                rows[at] = match at {
                    0 => run_workflow(&there, &workflow).await?,
                    1 => match run_plain(&ballista, &text).await {
                        Ok(rows) => rows,
                        Err(error) => {
                            failed = Some(error.to_string());
                            0
                        }
                    },
                    _ => run_workflow(&here, &workflow).await?,
                };
                // The first round warms caches.
                if run > 0 {
                    seconds.push(started.elapsed().as_secs_f64());
                }
            }
        }
        if rows[0] != rows[2] {
            return Err(format!("query {query}: {} rows on the cluster, {} here", rows[0], rows[2]).into());
        }
        let medians = seconds.map(|mut seconds| {
            seconds.sort_by(f64::total_cmp);
            seconds[seconds.len() / 2]
        });
        let [ours, theirs, local] = medians.map(|seconds| seconds * 1e3);
        let name = format!("q{query:02}");
        match failed {
            Some(why) => {
                let why: String = why.chars().take(90).collect();
                println!(
                    "{name:8}{ours:11.1}          -{local:11.1}                  -{:15.2}   Ballista: {why}",
                    ours / local
                );
            }
            None => {
                for (sum, milliseconds) in sums.iter_mut().zip([ours, theirs, local]) {
                    *sum += milliseconds;
                }
                let note = if rows[1] == rows[0] { "" } else { "   Ballista gives another number of rows" };
                println!(
                    "{name:8}{ours:11.1}{theirs:11.1}{local:11.1}{:19.2}{:15.2}{note}",
                    ours / theirs,
                    ours / local
                );
            }
        }
    }
    let [ours, theirs, local] = sums;
    println!("{:8}{ours:11.1}{theirs:11.1}{local:11.1}{:19.2}{:15.2}", "all", ours / theirs, ours / local);
    println!("{} jobs ran on the cluster", cluster.finished_jobs());
    Ok(())
}
