//! The command line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

/// Workflows over millions of items at columnar speed.
#[derive(Debug, Parser)]
#[command(name = "rowmill", version, about, propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) global: Global,
}

/// Flags that every command takes. Each is a setting of the configuration, which they win over.
#[derive(Debug, clap::Args)]
pub(crate) struct Global {
    /// Configuration file [default: rowmill.yaml here, if it exists]
    #[arg(long, global = true, value_name = "FILE", env = "ROWMILL_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Memory that the process may use, such as 2GB [setting: execution.memory]
    #[arg(long, global = true, value_name = "SIZE")]
    pub(crate) memory: Option<String>,
    /// Threads that compute [setting: execution.threads]
    #[arg(long, global = true, value_name = "N")]
    pub(crate) threads: Option<String>,
    /// Any other setting, such as --option execution.batch_rows=65536
    #[arg(long = "option", global = true, value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) options: Vec<(String, String)>,
    /// How results and errors are printed [setting: output.format]
    #[arg(long, global = true, value_name = "FORMAT", value_enum)]
    pub(crate) output: Option<OutputFormat>,
}

/// For people or for machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// Tables.
    Table,
    /// One JSON document; `sql` prints one for each row.
    Json,
}

/// Parameters and variables of a workflow.
#[derive(Debug, clap::Args)]
pub(crate) struct WorkflowArguments {
    /// The workflow: a .yaml or a .sql file
    #[arg(value_name = "WORKFLOW")]
    pub(crate) path: PathBuf,
    /// A parameter, such as --set month=2
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = key_value)]
    pub(crate) set: Vec<(String, String)>,
    /// A file of variables (YAML: name: value)
    #[arg(long, value_name = "FILE")]
    pub(crate) vars: Option<PathBuf>,
}

/// Which cluster, and what opens it.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct ClusterArguments {
    /// Run on this cluster: HOST:PORT of its scheduler, or of all of them, separated by commas; or `local` for the one
    /// that `rowmill cluster up` started
    #[arg(long, value_name = "ADDRESS", env = "ROWMILL_CLUSTER")]
    pub(crate) cluster: Option<String>,
    /// The file that holds the cluster's token [default: the variable ROWMILL_CLUSTER_TOKEN]
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

/// A scheduler.
#[derive(Debug, clap::Args)]
pub(crate) struct SchedulerArguments {
    /// Where it listens; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7780")]
    pub(crate) listen: SocketAddr,
    /// The name under which executors reach this machine [default: the address]
    #[arg(long, value_name = "NAME")]
    pub(crate) host: Option<String>,
    /// The file that holds the cluster's token [default: the variable ROWMILL_CLUSTER_TOKEN]
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Seconds that a stage waits for an executor of its class before its run fails
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub(crate) queue_timeout_s: u64,
    /// Be one of several, and lead or stand by as this store says: a file, or a PostgreSQL URL, env:NAME or file:PATH of
    /// one [setting: cluster.store]
    #[arg(long, value_name = "PATH|URL")]
    pub(crate) store: Option<String>,
}

/// An executor.
#[derive(Debug, clap::Args)]
pub(crate) struct ExecutorArguments {
    /// A class that it serves; may be given several times
    #[arg(long = "class", value_name = "CLASS", required = true)]
    pub(crate) classes: Vec<String>,
    /// Partitions that it works on at a time [default: one for each core]
    #[arg(long, value_name = "N")]
    pub(crate) slots: Option<u32>,
    /// A scheduler, or all of them, separated by commas: the one that leads is joined; may be given several times
    #[arg(long = "scheduler", value_name = "HOST:PORT,..", required = true, value_delimiter = ',')]
    pub(crate) schedulers: Vec<String>,
    /// The file that holds the cluster's token [default: the variable ROWMILL_CLUSTER_TOKEN]
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// The address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub(crate) listen: IpAddr,
    /// The name under which others reach this machine [default: the address]
    #[arg(long, value_name = "NAME")]
    pub(crate) host: Option<String>,
    /// The port on which it takes tasks; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub(crate) task_port: u16,
    /// The port on which it serves what it has made; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub(crate) result_port: u16,
    /// A folder of its own for what it makes; swept at the start
    #[arg(long, value_name = "FOLDER")]
    pub(crate) work_dir: PathBuf,
    /// Seconds that it goes on after SIGTERM, to finish tasks and to serve what others will read
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) drain_s: u64,
}

/// What is done with a cluster on this machine.
#[derive(Debug, Subcommand)]
pub(crate) enum ClusterAction {
    /// Start a scheduler and executors here; what has ended is started again
    Up {
        /// Executors by class, such as cpu=2,io=1; cpu+io=1 is one that serves both [default: those that were there, or
        /// cpu=1]
        #[arg(long, value_name = "CLASS=N,..")]
        executors: Option<String>,
        /// Slots of each executor [default: the cores, shared out]
        #[arg(long, value_name = "N")]
        slots: Option<u32>,
        /// The scheduler's port; 0 takes a free one
        #[arg(long, value_name = "PORT", default_value_t = 7780)]
        port: u16,
        /// Schedulers that stand by and take over when the first dies [default: those that were there, or none]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=8))]
        standby: Option<u32>,
        /// Its folder: logs, token, what executors make [default: `cluster` in the state folder]
        #[arg(long, value_name = "FOLDER")]
        dir: Option<PathBuf>,
    },
    /// Show executors and jobs
    Status {
        #[command(flatten)]
        cluster: ClusterArguments,
        /// The folder of a cluster on this machine
        #[arg(long, value_name = "FOLDER")]
        dir: Option<PathBuf>,
    },
    /// Stop the cluster that `up` started
    Down {
        /// Seconds that executors may take to finish
        #[arg(long, value_name = "SECONDS", default_value_t = 10)]
        grace_s: u64,
        /// Its folder
        #[arg(long, value_name = "FOLDER")]
        dir: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a workflow to its end
    Run {
        #[command(flatten)]
        workflow: WorkflowArguments,
        /// How progress is shown [setting: output.progress]
        #[arg(long, value_name = "MODE", value_parser = ["auto", "plain", "bar", "none"])]
        progress: Option<String>,
        /// Print the first rows of each result
        #[arg(long, value_name = "ROWS", num_args = 0..=1, default_missing_value = "10")]
        preview: Option<usize>,
        /// Keep a journal, so that the run can go on after a crash [workflow key: durable]
        #[arg(long)]
        durable: bool,
        #[command(flatten)]
        cluster: ClusterArguments,
        /// Put it into this queue of the cluster [setting: cluster.queue]
        #[arg(long, value_name = "NAME", requires = "cluster")]
        queue: Option<String>,
    },
    /// Go on with a durable run that was interrupted
    Resume {
        /// The run: its id, the beginning of it, or `last`
        run: String,
        /// Take it from a process whose lease has not ended: only if that process is surely dead
        #[arg(long)]
        steal: bool,
        /// Start over as a new run, with the workflow's file and its sources as they are now
        #[arg(long, conflicts_with = "unknown")]
        restart: bool,
        /// Also make `once` calls again of which nobody knows whether they happened
        #[arg(long)]
        unknown: bool,
        #[command(flatten)]
        cluster: ClusterArguments,
    },
    /// Try the items of a finished durable run again that failed, and publish another version of its result
    Retry {
        /// The run: its id, the beginning of it, or `last`
        run: String,
        /// Also send `once` calls again of which nobody knows whether they happened
        #[arg(long)]
        unknown: bool,
        #[command(flatten)]
        cluster: ClusterArguments,
    },
    /// List durable runs
    Runs {
        /// Only those in this state
        #[arg(long, value_name = "STATUS")]
        status: Option<String>,
        /// The newest so many
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// Show a durable run: its stages, how far they are, and where they ran
    Show {
        /// The run: its id, the beginning of it, or `last`
        run: String,
    },
    /// Show the items of a durable run that are not simply ok
    Items {
        /// The run: its id, the beginning of it, or `last`
        run: String,
        /// Only items with this outcome: failed, dead_lettered, unknown, skipped, defaulted
        #[arg(long, value_name = "OUTCOME", value_delimiter = ',')]
        status: Vec<String>,
        /// Your own query over the table `items`
        #[arg(long, value_name = "QUERY", conflicts_with = "status")]
        sql: Option<String>,
        /// At most so many
        #[arg(long, default_value_t = 100)]
        limit: usize,
        /// How rows are printed [default: table; json with --output json]
        #[arg(long, value_enum)]
        format: Option<RowFormat>,
    },
    /// Show what happened to a durable run
    Logs {
        /// The run: its id, the beginning of it, or `last`
        run: String,
    },
    /// Cancel a durable run, whichever process works on it
    Cancel {
        /// The run: its id, the beginning of it, or `last`
        run: String,
        /// Why
        #[arg(long)]
        reason: Option<String>,
    },
    /// Remove what ended durable runs left
    Gc {
        /// Only runs that ended at least this long ago, such as 12h or 30d
        #[arg(long, value_name = "AGE", default_value = "30d", value_parser = age)]
        older_than: std::time::Duration,
        /// Say what would be removed
        #[arg(long)]
        dry_run: bool,
    },
    /// Look at the caches of steps, clear them, or fill them ahead of a run
    Cache {
        #[command(subcommand)]
        command: CacheCommand,
    },
    /// Check a workflow to its last column, without running it
    Check {
        #[command(flatten)]
        workflow: WorkflowArguments,
    },
    /// Show what a workflow will do
    Explain {
        #[command(flatten)]
        workflow: WorkflowArguments,
        /// text shows stages and plans; the others draw the graph of steps
        #[arg(long, value_enum, default_value_t = ExplainFormat::Text)]
        format: ExplainFormat,
        #[command(flatten)]
        cluster: ClusterArguments,
    },
    /// Start, look at and stop a cluster on this machine
    Cluster {
        #[command(subcommand)]
        action: ClusterAction,
    },
    /// Watch a cluster: executors, their slots, jobs and what they wait for
    Top {
        #[command(flatten)]
        cluster: ClusterArguments,
        /// The folder of a cluster on this machine
        #[arg(long, value_name = "FOLDER")]
        dir: Option<PathBuf>,
        /// Seconds between looks
        #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
        interval_s: u64,
    },
    /// Be the scheduler of a cluster
    Scheduler(SchedulerArguments),
    /// Be an executor of a cluster
    Executor(ExecutorArguments),
    /// Write a small workflow that runs, to start from
    Init {
        /// Folder to write into
        #[arg(default_value = ".")]
        folder: PathBuf,
    },
    /// Run SQL over files: FROM 'data.parquet'
    Sql {
        /// The query; without it and without --file, an interactive prompt
        query: Option<String>,
        /// Read the SQL from a file
        #[arg(long, short, value_name = "FILE", conflicts_with = "query")]
        file: Option<PathBuf>,
        /// How rows are printed [default: table; json with --output json]
        #[arg(long, value_enum)]
        format: Option<RowFormat>,
    },
    /// Show the GPU of this machine, or measure it
    Gpu {
        #[command(subcommand)]
        action: GpuAction,
    },
    /// Show the configuration, or the schemas that editors complete by
    Config {
        #[command(subcommand)]
        action: ConfigAction,
    },
    /// Explain an error code, such as RM0304
    Error {
        /// The code
        code: String,
    },
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum ConfigAction {
    /// Every setting with its value and where it comes from
    Show,
    /// JSON schema of workflows
    WorkflowSchema,
    /// JSON schema of configuration files
    ConfigSchema,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum GpuAction {
    /// What GPU is here, or why none can be used
    Info,
    /// Measure each operator on the GPU and on the CPU, and how close the GPU comes to its memory and its link
    Bench {
        /// Rows of the inputs, separated by commas
        #[arg(long, value_name = "ROWS", value_delimiter = ',', default_values_t = [65_536_u64, 1_048_576, 16_777_216],
              value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
        rows: Vec<u64>,
        /// Keep the table: decisions go by it from then on [setting: gpu.dir]
        #[arg(long)]
        save: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExplainFormat {
    /// Stages and physical plans
    Text,
    /// A Mermaid flowchart
    Mermaid,
    /// A Graphviz graph
    Dot,
    /// Everything, for machines
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RowFormat {
    /// A table
    Table,
    /// Comma-separated values
    Csv,
    /// One JSON object a line
    Json,
}

/// A length of time such as `90s`, `12h` or `30d`.
fn age(text: &str) -> Result<std::time::Duration, String> {
    let wrong = || format!("`{text}` is no length of time such as 90s, 15m, 12h or 30d");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let many: u64 = text.trim_end_matches(unit).parse().map_err(|_| wrong())?;
    many.checked_mul(seconds).map(std::time::Duration::from_secs).ok_or_else(wrong)
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

/// What is done with caches.
#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// Show what the caches on disk and in Redis hold
    Stats,
    /// Forget results: of a workflow's steps, of one of them, or all
    Clear {
        /// The workflow whose steps' results are forgotten; all results where absent
        workflow: Option<std::path::PathBuf>,
        /// Only this step's
        #[arg(long, value_name = "STEP", requires = "workflow")]
        step: Option<String>,
        /// Needed where no workflow is named
        #[arg(long, conflicts_with = "workflow")]
        all: bool,
    },
    /// Run the steps that have a cache and nothing else, so that a later run finds their results
    Warm {
        #[command(flatten)]
        workflow: WorkflowArguments,
        /// Only this step
        #[arg(long, value_name = "STEP")]
        step: Option<String>,
    },
}
