//! The processes of a cluster on this machine, and the record of them: who they are, where they log, whether they live.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rowmill::Diagnostics;
use serde::{Deserialize, Serialize};

use super::{TOKEN_VARIABLE, environment};

const RECORD: &str = "cluster.json";
const TOKEN: &str = "token";
const STORE: &str = "schedulers.db";
const SCHEDULER: &str = "scheduler";
const MEMORY_VARIABLE: &str = "ROWMILL_EXECUTION__MEMORY";
/// Says that a folder is a cluster's: what is in it may be removed.
const MARKER: &str = ".rowmill-cluster";

/// What a scheduler is called, counted from zero.
pub(crate) fn scheduler_name(number: usize) -> String {
    match number {
        0 => SCHEDULER.to_owned(),
        // No class has a dot in it, so that no executor is called so.
        _ => format!("{SCHEDULER}.{}", number + 1),
    }
}

/// A process that was started.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Started {
    /// What it is called: `scheduler`, `scheduler.2` for one that stands by at first, `cpu-1`.
    pub(crate) name: String,
    /// Its arguments.
    pub(crate) arguments: Vec<String>,
    /// Memory that its queries may take, in bytes; for executors.
    pub(crate) memory_bytes: Option<u64>,
    /// Its process.
    pub(crate) pid: i32,
    /// When the kernel says that it began: a number that a later process of the same id does not have.
    pub(crate) began: u64,
}

/// What is known of a cluster on this machine.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Where it lies.
    #[serde(skip)]
    pub(crate) folder: PathBuf,
    /// The scheduler's address.
    pub(crate) address: String,
    /// Addresses of the schedulers that stand by at first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) standbys: Vec<String>,
    /// The scheduler first.
    pub(crate) processes: Vec<Started>,
}

fn io(folder: &Path, error: &std::io::Error) -> Diagnostics {
    let message = format!("the folder of the cluster, {}: {error}", folder.display());
    environment("RM0703", message, "give another with --dir")
}

impl Record {
    /// The record in a folder, if there is one.
    pub(crate) fn read(folder: &Path) -> Result<Option<Record>, Diagnostics> {
        let text = match fs::read_to_string(folder.join(RECORD)) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(folder, &error)),
        };
        let record: Record = serde_json::from_str(&text).map_err(|error| {
            let message = format!("{} cannot be read: {error}", folder.join(RECORD).display());
            environment("RM0704", message, "stop the processes that it names, and remove the folder")
        })?;
        Ok(Some(Record { folder: folder.to_owned(), ..record }))
    }

    /// Writes the record; a reader sees the old one or the new one.
    pub(crate) fn write(&self) -> Result<(), Diagnostics> {
        let text = serde_json::to_string_pretty(self).unwrap_or_default();
        let new = self.folder.join(format!("{RECORD}.new"));
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, self.folder.join(RECORD)))
            .map_err(|error| io(&self.folder, &error))
    }

    /// Removes what the cluster left, but for its logs.
    pub(crate) fn remove(&self) -> Result<(), Diagnostics> {
        let gone = |result: std::io::Result<()>| match result {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io(&self.folder, &error)),
            _ => Ok(()),
        };
        gone(fs::remove_dir_all(self.folder.join("work")))?;
        for suffix in ["", "-wal", "-shm"] {
            gone(fs::remove_file(self.folder.join(format!("{STORE}{suffix}"))))?;
        }
        gone(fs::remove_file(self.token_file()))?;
        gone(fs::remove_file(self.folder.join(RECORD)))
    }

    /// Addresses of all schedulers.
    pub(crate) fn schedulers(&self) -> Vec<String> {
        std::iter::once(&self.address).chain(&self.standbys).cloned().collect()
    }

    /// The file in which the schedulers keep which of them leads.
    pub(crate) fn store_file(&self) -> PathBuf {
        self.folder.join(STORE)
    }

    /// The file that holds the token.
    pub(crate) fn token_file(&self) -> PathBuf {
        self.folder.join(TOKEN)
    }

    /// Where a process logs.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.folder.join("logs").join(format!("{name}.log"))
    }

    /// Starts a process of this program and adds it to the record, in the place of an earlier one of its name.
    pub(crate) fn start(
        &mut self,
        name: &str,
        arguments: Vec<String>,
        memory_bytes: Option<u64>,
    ) -> Result<(), Diagnostics> {
        let fail = |error: std::io::Error| io(&self.folder, &error);
        let (program, module) = program().map_err(fail)?;
        fs::create_dir_all(self.folder.join("logs")).map_err(fail)?;
        let log = OpenOptions::new().create(true).append(true).open(self.log(name)).map_err(fail)?;
        let child = Command::new(&program)
            .args(module)
            .args(&arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(fail)?)
            .stderr(log)
            // The token comes from its file; a session of its own outlives this terminal.
            .env_remove(TOKEN_VARIABLE)
            .envs(memory_bytes.map(|bytes| (MEMORY_VARIABLE, bytes.to_string())))
            .process_group(0)
            .spawn()
            .map_err(fail)?;
        let pid = i32::try_from(child.id()).unwrap_or_default();
        let began = began(pid).unwrap_or_default();
        let started = Started { name: name.to_owned(), arguments, memory_bytes, pid, began };
        match self.processes.iter_mut().find(|process| process.name == name) {
            Some(place) => *place = started,
            None => self.processes.push(started),
        }
        self.write()
    }
}

/// This program; where the Python package runs it, Python and the module.
fn program() -> std::io::Result<(PathBuf, &'static [&'static str])> {
    let program = std::env::current_exe()?;
    let name = program.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if !name.starts_with("python") {
        return Ok((program, &[]));
    }
    // A virtual environment's interpreter is a link to another one, which does not know its packages: what counts is the
    // name by which it was called.
    let line = fs::read("/proc/self/cmdline").unwrap_or_default();
    let called = line.split(|byte| *byte == 0).next().unwrap_or_default();
    let called = PathBuf::from(OsStr::from_bytes(called));
    let found = match called.components().count() {
        // As a shell found it.
        1 => std::env::var_os("PATH").and_then(|path| {
            std::env::split_paths(&path).map(|folder| folder.join(&called)).find(|file| file.is_file())
        }),
        _ => std::path::absolute(&called).ok().filter(|file| file.is_file()),
    };
    Ok((found.unwrap_or(program), &["-m", "rowmill"]))
}

/// Makes the folder, for its owner alone, and a token in it; an older token stays. A folder that holds other things is
/// not taken, since `down` clears it.
pub(crate) fn prepare(folder: &Path) -> Result<(), Diagnostics> {
    let fail = |error: std::io::Error| io(folder, &error);
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(fail)?;
    let marker = folder.join(MARKER);
    if !marker.exists() && !folder.join(RECORD).exists() {
        if fs::read_dir(folder).map_err(fail)?.next().is_some() {
            let message = format!("the folder {} holds other files", folder.display());
            return Err(environment("RM0703", message, "give an empty folder, or a new one, with --dir"));
        }
        File::create(&marker).map_err(fail)?;
    }
    // Logs and what executors make hold rows.
    fs::set_permissions(folder, Permissions::from_mode(0o700)).map_err(fail)?;
    let path = folder.join(TOKEN);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    match file {
        Ok(mut file) => file.write_all(random()?.as_bytes()).map_err(fail),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(fail(error)),
    }
}

/// 256 bits from the system, in letters and digits.
fn random() -> Result<String, Diagnostics> {
    use std::io::Read as _;
    let mut bytes = [0_u8; 32];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .map_err(|error| environment("RM0704", format!("no random numbers: {error}"), "is /dev/urandom there?"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

impl Started {
    /// Whether it is a scheduler.
    pub(crate) fn is_scheduler(&self) -> bool {
        self.name == SCHEDULER || self.name.starts_with("scheduler.")
    }

    /// Whether it lives; a zombie does not.
    pub(crate) fn lives(&self) -> bool {
        began(self.pid) == Some(self.began)
    }

    /// Sends it a signal, if it lives.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        if self.lives()
            && let Some(pid) = rustix::process::Pid::from_raw(self.pid)
            && let Err(error) = rustix::process::kill_process(pid, signal)
        {
            tracing::warn!(process = self.name, "cannot be told to stop: {error}");
        }
    }

    /// Waits until it is gone; false when it is not within `limit`.
    pub(crate) async fn gone(&self, limit: Duration) -> bool {
        let began = Instant::now();
        while self.lives() {
            if began.elapsed() > limit {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        true
    }
}

/// When a process began, in the kernel's ticks since boot; `None` where there is none, or only what is left of it.
fn began(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name stands in brackets and may hold anything.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_when_it_began() {
        let own = i32::try_from(std::process::id()).unwrap();
        let mut started = Started {
            name: "test".to_owned(),
            arguments: Vec::new(),
            memory_bytes: None,
            pid: own,
            began: began(own).unwrap(),
        };
        assert!(started.lives());
        started.began += 1;
        assert!(!started.lives(), "another process of the same id");
    }

    #[test]
    fn the_token_is_its_owners_alone_and_stays() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path()).unwrap();
        let path = folder.path().join(TOKEN);
        let first = fs::read_to_string(&path).unwrap();
        assert_eq!(first.len(), 64);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        prepare(folder.path()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), first);
    }
}
