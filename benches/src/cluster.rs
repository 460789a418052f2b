//! A cluster on this machine, started by the command.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rowmill::SessionOptions;
use rowmill_cluster::{Cluster, Options, Routing};
use rowmill_wire::handshake::{Handshake, TenantName, Token};

use crate::Error;

/// Processes that end with this value.
pub struct Up {
    rowmill: PathBuf,
    folder: tempfile::TempDir,
}

impl Up {
    /// Starts a scheduler and executors, `cpu=2`, in a folder of their own.
    ///
    /// # Errors
    /// The command cannot be started, or what it says.
    pub fn try_new(rowmill: &Path, executors: &str, slots: u32) -> Result<Self, Error> {
        let folder = tempfile::tempdir()?;
        // A flood of jobs waits in the queue; how long it may be is the bench's matter.
        let settings = "cluster: {queues: {default: {max_queued: 100000, timeout: 1h}}}\n";
        fs::write(folder.path().join("rowmill.yaml"), settings)?;
        let up = Self { rowmill: std::path::absolute(rowmill)?, folder };
        let slots = slots.to_string();
        up.command(&["cluster", "up", "--executors", executors, "--slots", &slots, "--port", "0", "--dir", "c"])?;
        Ok(up)
    }

    /// The folder in which the processes were started; removed at the end.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn command(&self, words: &[&str]) -> Result<(), Error> {
        // The processes outlive the command and must not hold its pipes.
        let log = self.folder().join("log");
        let out = fs::File::create(&log)?;
        let status = Command::new(&self.rowmill)
            .args(words)
            .current_dir(self.folder())
            .stdout(out.try_clone()?)
            .stderr(out)
            .status()
            .map_err(|error| format!("{}: {error}", self.rowmill.display()))?;
        match status.success() {
            true => Ok(()),
            false => Err(fs::read_to_string(log)?.into()),
        }
    }

    fn record(&self) -> Result<serde_json::Value, Error> {
        Ok(serde_json::from_str(&fs::read_to_string(self.folder().join("c/cluster.json"))?)?)
    }

    /// A connection for plans of so many partitions.
    ///
    /// # Errors
    /// The folder is not as `cluster up` leaves it.
    pub fn connect(&self, partitions: usize) -> Result<Cluster, Error> {
        let address = self.record()?["address"].as_str().unwrap_or_default().to_owned();
        let token = Token::try_new(fs::read_to_string(self.folder().join("c/token"))?.trim())?;
        let options = Options {
            schedulers: vec![address],
            handshake: Handshake::new(token),
            queue: String::new(),
            tenant: TenantName::default(),
            partitions,
            stores: SessionOptions::default().stores,
            patience: Duration::from_secs(60),
            routing: Routing::RoundRobin,
        };
        Ok(Cluster::try_new(options)?)
    }

    /// Resident memory of the scheduler and its highest mark, in MB.
    ///
    /// # Errors
    /// There is no such process any more.
    pub fn scheduler_memory(&self) -> Result<(f64, f64), Error> {
        let record = self.record()?;
        let processes = record["processes"].as_array().ok_or("no processes")?;
        let own = processes.iter().find(|own| own["name"] == "scheduler").ok_or("no scheduler")?;
        let status = fs::read_to_string(format!("/proc/{}/status", own["pid"]))?;
        let of = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
            line.split_whitespace().next().and_then(|kb| kb.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1024.0
        };
        Ok((of("VmRSS:"), of("VmHWM:")))
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if let Err(error) = self.command(&["cluster", "down", "--grace-s", "1", "--dir", "c"]) {
            eprintln!("the cluster was not stopped: {error}");
        }
    }
}
