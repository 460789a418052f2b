//! `rowmill-executor`: one executor process.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use rowmill_executor::{Options, run};
use rowmill_wire::handshake::{Handshake, Submitter, Token};
use rowmill_wire::name::ExecutorName;
use rowmill_wire::transport::{TlsFiles, Transport};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Joins a cluster and runs tasks of the classes that it serves.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// A class that it serves; may be given several times.
    #[arg(long = "class", required = true)]
    classes: Vec<String>,
    /// Partitions that it works on at a time.
    #[arg(long, default_value_t = default_slots())]
    slots: u32,
    /// A scheduler, HOST:PORT, or several, separated by commas; the one that leads is joined.
    #[arg(long = "scheduler", required = true, value_delimiter = ',')]
    schedulers: Vec<String>,
    /// The file that holds the cluster's token. Otherwise the token is read from ROWMILL_CLUSTER_TOKEN.
    #[arg(long)]
    token_file: Option<PathBuf>,
    /// The file of tokens that submit and do not join, one on a line.
    #[arg(long)]
    submitters_file: Option<PathBuf>,
    /// The file of the authority that signed the cluster's certificates: TLS and nothing else is spoken.
    #[arg(long, requires = "tls_certificate", requires = "tls_key")]
    tls_ca: Option<PathBuf>,
    /// The file of this process' certificate.
    #[arg(long, requires = "tls_ca")]
    tls_certificate: Option<PathBuf>,
    /// The file of its key.
    #[arg(long, requires = "tls_ca")]
    tls_key: Option<PathBuf>,
    /// Serve others who show no certificate, too.
    #[arg(long, requires = "tls_ca")]
    tls_any_client: bool,
    /// Speak without TLS with other machines.
    #[arg(long, conflicts_with = "tls_ca")]
    insecure: bool,
    /// The address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    listen: IpAddr,
    /// The name under which other machines reach this one; the address to listen on, if it is not given.
    #[arg(long)]
    host: Option<String>,
    /// The port on which it takes tasks; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    task_port: u16,
    /// The port on which it serves intermediate results; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    flight_port: u16,
    /// Where intermediate results lie; swept at the start.
    #[arg(long)]
    work_dir: PathBuf,
    /// Memory of all tasks together, in MiB. Otherwise 60% of what the machine or its control group has.
    #[arg(long)]
    memory_mib: Option<u64>,
    /// Seconds that running tasks may take to finish after SIGTERM.
    #[arg(long, default_value_t = 30)]
    drain_s: u64,
    /// Milliseconds between signs of life.
    #[arg(long, default_value_t = 1000)]
    heartbeat_ms: u64,
}

fn default_slots() -> u32 {
    std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(1))
}

impl Arguments {
    fn options(self) -> Result<Options, String> {
        let name = ExecutorName::try_new(&self.classes).map_err(|error| error.to_string())?;
        let token = match &self.token_file {
            Some(path) => std::fs::read_to_string(path)
                .map_err(|error| format!("the token file {} cannot be read: {error}", path.display()))?,
            None => std::env::var("ROWMILL_CLUSTER_TOKEN")
                .map_err(|_| "give the cluster's token with --token-file or in ROWMILL_CLUSTER_TOKEN".to_owned())?,
        };
        let token = Token::try_new(&token).map_err(|error| error.to_string())?;
        let transport = match self.tls_ca {
            None if self.insecure => Transport::insecure(),
            None => Transport::default(),
            Some(ca) => {
                let mutual = !self.tls_any_client;
                let files = TlsFiles { ca, certificate: self.tls_certificate, key: self.tls_key, mutual };
                Transport::tls(&files).map_err(|error| error.to_string())?
            }
        };
        let submitters = match &self.submitters_file {
            None => Vec::new(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| format!("the file {} cannot be read: {error}", path.display()))?;
                Submitter::read(&text).map_err(|error| error.to_string())?
            }
        };
        if self.slots == 0 || self.heartbeat_ms == 0 {
            return Err("--slots and --heartbeat-ms must be at least 1".to_owned());
        }
        Ok(Options {
            name,
            slots: self.slots,
            listen: self.listen,
            host: self.host.unwrap_or_else(|| self.listen.to_string()),
            flight_port: self.flight_port,
            task_port: self.task_port,
            schedulers: self.schedulers,
            handshake: Handshake::new(token).with_submitters(submitters).with_transport(transport),
            work_dir: self.work_dir,
            memory_bytes: self.memory_mib.map(|mib| mib.saturating_mul(1 << 20)),
            drain: Duration::from_secs(self.drain_s),
            heartbeat: Duration::from_millis(self.heartbeat_ms),
            stores: None,
            describe: None,
            steps: None,
        })
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("ROWMILL_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let options = match arguments.options() {
        Ok(options) => options,
        Err(why) => {
            eprintln!("error: {why}");
            return ExitCode::from(2);
        }
    };
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(rowmill_executor::Error::from)
        .and_then(|runtime| runtime.block_on(run(options, Box::pin(asked_to_stop()))));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(75)
        }
    }
}

/// SIGTERM or Ctrl-C.
async fn asked_to_stop() {
    let mut terminate = match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        Ok(terminate) => terminate,
        Err(error) => {
            tracing::error!("SIGTERM cannot be heard: {error}");
            return std::future::pending().await;
        }
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
