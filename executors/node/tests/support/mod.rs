//! What the tests share: the TPC-H tables, executor processes, plans, comparing results.

pub(crate) mod fake;

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use datafusion::execution::context::SessionContext;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::ParquetReadOptions;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use rowmill_scheduler::{Options, Scheduler, session_config};
use rowmill_wire::class::{Demand, mark};
use rowmill_wire::handshake::{Handshake, Token};
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator, PartSuppGenerator,
    RegionGenerator, SupplierGenerator,
};
use tpchgen_arrow::{
    CustomerArrow, LineItemArrow, NationArrow, OrderArrow, PartArrow, PartSuppArrow, RecordBatchIterator, RegionArrow,
    SupplierArrow,
};

pub(crate) const TOKEN: &str = "a-token-of-the-tests-0123456789";
const SCALE: f64 = 0.01;
const PARTS: i32 = 4;
const TABLES: [&str; 8] = ["lineitem", "orders", "partsupp", "customer", "part", "supplier", "nation", "region"];

pub(crate) fn handshake() -> Handshake {
    Handshake::new(Token::try_new(TOKEN).unwrap())
}

/// A scheduler whose times fit tests.
pub(crate) fn options() -> Options {
    Options {
        queue_timeout: Duration::from_secs(60),
        executor_timeout: Duration::from_secs(4),
        ..Options::local(handshake())
    }
}

/// The TPC-H tables as Parquet, made once for this process.
pub(crate) fn tables() -> &'static Path {
    static TABLES_DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    TABLES_DIR
        .get_or_init(|| {
            let directory = tempfile::tempdir().unwrap();
            for table in TABLES {
                std::fs::create_dir(directory.path().join(table)).unwrap();
                let parts = if matches!(table, "nation" | "region") { 1 } else { PARTS };
                for part in 1..=parts {
                    write_part(&directory.path().join(table).join(format!("{part}.parquet")), table, part, parts);
                }
            }
            directory
        })
        .path()
}

fn write_part(path: &Path, table: &str, part: i32, parts: i32) {
    macro_rules! rows {
        ($arrow:ident, $generator:ident) => {
            Box::new($arrow::new($generator::new(SCALE, part, parts)))
        };
    }
    let batches: Box<dyn RecordBatchIterator> = match table {
        "lineitem" => rows!(LineItemArrow, LineItemGenerator),
        "orders" => rows!(OrderArrow, OrderGenerator),
        "partsupp" => rows!(PartSuppArrow, PartSuppGenerator),
        "customer" => rows!(CustomerArrow, CustomerGenerator),
        "part" => rows!(PartArrow, PartGenerator),
        "supplier" => rows!(SupplierArrow, SupplierGenerator),
        "nation" => rows!(NationArrow, NationGenerator),
        _ => rows!(RegionArrow, RegionGenerator),
    };
    // Without Arrow's own schema in the file, texts are plain strings.
    let options = ArrowWriterOptions::new().with_skip_arrow_metadata(true);
    let schema = batches.schema().clone();
    let mut writer = ArrowWriter::try_new_with_options(File::create(path).unwrap(), schema, options).unwrap();
    for batch in batches {
        writer.write(&batch).unwrap();
    }
    writer.close().unwrap();
}

/// A query of the 22, from the files of the examples.
pub(crate) fn query(number: u32) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/tpch/reference");
    let text = std::fs::read_to_string(root.join(format!("q{number:02}.sql"))).unwrap();
    // The share of query 11 hangs on the scale: 0.0001 / 0.01.
    text.replace("$fraction", "'0.01'")
}

/// A session that plans for the cluster, with the tables in it.
pub(crate) async fn session() -> Arc<SessionContext> {
    let context = SessionContext::new_with_config(session_config().with_target_partitions(4));
    register(&context).await;
    Arc::new(context)
}

pub(crate) async fn register(context: &SessionContext) {
    for table in TABLES {
        let path = tables().join(table);
        context.register_parquet(table, path.to_str().unwrap(), ParquetReadOptions::default()).await.unwrap();
    }
}

/// The physical plan of a query whose scans run on `io` and everything else on `cpu`.
pub(crate) async fn plan(context: &SessionContext, sql: &str) -> Arc<dyn ExecutionPlan> {
    let plan = context.sql(sql).await.unwrap().create_physical_plan().await.unwrap();
    mark(plan, |node| (node.name() == "DataSourceExec").then(|| Demand::plain("io"))).unwrap()
}

/// Plain DataFusion's answer.
pub(crate) async fn local(sql: &str) -> Vec<String> {
    let context = SessionContext::new();
    register(&context).await;
    lines(&context.sql(sql).await.unwrap().collect().await.unwrap())
}

/// Rows as sorted lines.
pub(crate) fn lines(batches: &[RecordBatch]) -> Vec<String> {
    let text = arrow::util::pretty::pretty_format_batches(batches).unwrap().to_string();
    let cells = |line: &str| line.split('|').map(str::trim).collect::<Vec<_>>().join("|");
    let mut lines: Vec<String> = text.lines().filter(|line| line.starts_with('|')).skip(1).map(cells).collect();
    lines.sort();
    lines
}

/// An executor process; killed when dropped.
pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) work_dir: PathBuf,
    _root: tempfile::TempDir,
}

impl Process {
    pub(crate) fn command(root: &Path, scheduler: &Scheduler, classes: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rowmill-executor"));
        for class in classes {
            command.args(["--class", class]);
        }
        command
            .args(["--scheduler", &scheduler.address().to_string()])
            .args(["--slots", "2", "--heartbeat-ms", "300", "--memory-mib", "512"])
            .arg("--work-dir")
            .arg(root.join("work"))
            .env("ROWMILL_CLUSTER_TOKEN", TOKEN)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Starts an executor and waits until it has joined.
    pub(crate) fn start(scheduler: &Scheduler, classes: &[&str]) -> Self {
        let root = tempfile::tempdir().unwrap();
        let command = Self::command(root.path(), scheduler, classes);
        let mut own = Self::spawn(command);
        own.work_dir = root.path().join("work");
        own._root = root;
        own
    }

    /// Starts this command, an executor's, and waits until it has joined. Its folder is the caller's.
    pub(crate) fn spawn(mut command: Command) -> Self {
        command.stderr(Stdio::inherit());
        Self::spawn_as_is(command)
    }

    /// The same, and what it logs goes where the command says.
    pub(crate) fn spawn_as_is(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("joined"), "{line}");
        Self { child, work_dir: PathBuf::new(), _root: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub(crate) fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let began = Instant::now();
        while began.elapsed() < limit {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        None
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs an executor that is expected not to start: its exit code and what it says.
pub(crate) fn refused(mut command: Command) -> (Option<i32>, String) {
    let mut child = command.spawn().unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (child.wait().unwrap().code(), said)
}

/// Runs a query on the cluster, again where its result went with its executor.
pub(crate) async fn on_cluster(scheduler: &Scheduler, context: &Arc<SessionContext>, sql: &str) -> Vec<String> {
    for _ in 0..3 {
        let plan = plan(context, sql).await;
        let job = scheduler.submit("test", Arc::clone(context), plan).await.unwrap();
        let id = job.id().clone();
        let answer = tokio::time::timeout(Duration::from_secs(90), job.collect()).await;
        match answer.unwrap_or_else(|_| panic!("job {id} takes too long")) {
            Err(rowmill_scheduler::Error::ResultLost { reason, .. }) => println!("{id} again: {reason}"),
            other => return lines(&other.unwrap()),
        }
    }
    panic!("the result was lost three times");
}
