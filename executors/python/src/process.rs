//! One worker process: started under limits, what it prints handed on, its whole group killed at the end.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rowmill_step::{Failure, FailureCode, Sent, StepContext};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt as _, BufReader, Interest};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::task::JoinSet;

use crate::options::{Output, PythonOptions, Worker};
use crate::shared::{self, Shared};
use crate::spawner;

/// The variable of a cluster's token.
const CLUSTER_TOKEN: &str = "ROWMILL_CLUSTER_TOKEN";
/// How much of standard error is kept: its end, where the reason stands.
const STDERR_BYTES: usize = 4 << 10;
/// How long a program may take to end once its input has ended.
const CLOSE_GRACE: Duration = Duration::from_secs(5);
/// How long to wait for the last words of a program that is dead.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// A running program. Dropping it kills its process group.
pub(crate) struct Process {
    child: Child,
    group: Option<Pid>,
    pub(crate) watch: Watch,
    pub(crate) stdin: Option<ChildStdin>,
    pub(crate) stdout: BufReader<ChildStdout>,
    /// The memory that it shares with this process; `None` where everything goes through the pipes.
    pub(crate) shared: Option<Shared>,
    stderr: Arc<Mutex<Vec<u8>>>,
    reader: JoinSet<()>,
}

/// Sees the program die, without reaping it: its group's number must stay ours until the group is killed.
pub(crate) struct Watch {
    exit: AsyncFd<OwnedFd>,
    group: Pid,
}

impl Watch {
    fn try_new(group: Pid) -> io::Result<Self> {
        let fd = rustix::process::pidfd_open(group, PidfdFlags::empty())?;
        // SAFETY: the descriptor is owned, and moves into the `AsyncFd`, which closes it when it is dropped and not before.
        let exit = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        Ok(Self { exit, group })
    }

    async fn dead(&self) {
        // An error here means that there is nothing left to wait for.
        let _ = self.exit.readable().await;
    }

    /// When the program dies, kills what is left of its group, so that its output ends even if a child of its own still
    /// holds it. Never returns; what was written before can still be read.
    pub(crate) async fn kill_group_when_dead<T>(&self) -> T {
        self.dead().await;
        let _ = rustix::process::kill_process_group(self.group, Signal::KILL);
        std::future::pending().await
    }
}

impl Process {
    /// Starts the interpreter; with `shares`, a process that shares memory with this one.
    pub(crate) async fn start(options: &PythonOptions, context: &StepContext, shares: bool) -> Result<Self, Failure> {
        let setup = |message: String| context.failure(FailureCode::Setup, message).sent(Sent::Never);
        let program = find(&options.python)
            .ok_or_else(|| setup(format!("there is no interpreter `{}` that can be run", options.python)))?;
        let mut command = Command::new(&program);
        match &options.worker {
            Worker::Installed => command.args(["-m", "rowmill._worker"]),
            Worker::File(path) => command.arg(path),
        };
        command
            // What opens a cluster is no business of the functions that run on it.
            .env_remove(CLUSTER_TOKEN)
            .envs(options.env.iter().cloned())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        let shared = if shares { memory(options) } else { None };
        restrict(&mut command, options, shared.as_ref());
        let mut child = spawner::spawn(command)
            .await
            .map_err(|error| setup(format!("`{}` cannot be started: {error}", program.display())))?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let (Some(stdin), Some(stdout), Some(errors), Some(pid)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take(), group)
        else {
            return Err(Failure::fixed(FailureCode::Internal, "a process without pipes").sent(Sent::Never));
        };
        let watch = Watch::try_new(pid).map_err(|error| setup(format!("its process cannot be watched: {error}")))?;
        let stderr = Arc::new(Mutex::new(Vec::new()));
        let mut reader = JoinSet::new();
        reader.spawn(hand_on(errors, stderr.clone(), options.printed.clone()));
        let stdout = BufReader::with_capacity(64 << 10, stdout);
        Ok(Self { child, group, watch, stdin: Some(stdin), stdout, shared, stderr, reader })
    }

    fn kill(&mut self) {
        // The group's number is ours until the child is waited for, so no stranger can be hit.
        if let Some(group) = self.group.take() {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
    }

    /// Kills what is left of it and says how it ended, with the end of its standard error.
    pub(crate) async fn post_mortem(mut self) -> (String, String) {
        // A program that is about to die of its own accord should be seen to do so.
        let own = tokio::time::timeout(LAST_WORDS, self.watch.dead()).await.is_ok();
        self.kill();
        let status = self.child.wait().await;
        // The pipe ends when the last of the group is gone.
        let _ = tokio::time::timeout(LAST_WORDS, self.reader.join_next()).await;
        let stderr = String::from_utf8_lossy(&self.stderr.lock()).trim().to_owned();
        let how = match status {
            Ok(status) if own => describe(status),
            Ok(_) => "it closed its output and was killed".to_owned(),
            Err(error) => format!("its end is not known: {error}"),
        };
        (how, stderr)
    }

    /// Ends its input and waits for it to end.
    pub(crate) async fn close(mut self, context: &StepContext) -> Result<(), Failure> {
        drop(self.stdin.take());
        // A last word on its output must not keep it waiting.
        let mut rest = tokio::io::sink();
        let ended = tokio::time::timeout(CLOSE_GRACE, async {
            tokio::select! {
                _ = tokio::io::copy_buf(&mut self.stdout, &mut rest) => {}
                () = self.watch.dead() => {}
            }
            self.watch.dead().await;
        })
        .await;
        let in_time = ended.is_ok();
        let (how, stderr) = self.post_mortem().await;
        if in_time && how == describe(ExitStatus::from_raw(0)) {
            return Ok(());
        }
        let message = if in_time { format!("at the end {how}") } else { "it did not end with its input".to_owned() };
        Err(context.failure(FailureCode::Crashed, message).field("stderr", stderr, &context.redactor))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it exited with status {code}"),
        (None, Some(signal)) => format!("it was killed by signal {signal}"),
        (None, None) => "it ended".to_owned(),
    }
}

/// Hands on what is printed, keeps its end, and reads on so that nobody blocks on a full pipe.
async fn hand_on(mut errors: ChildStderr, kept: Arc<Mutex<Vec<u8>>>, printed: Output) {
    let mut buffer = vec![0u8; 4096];
    while let Ok(read) = errors.read(&mut buffer).await {
        if read == 0 {
            return;
        }
        (printed.0)(&buffer[..read]);
        let mut kept = kept.lock();
        kept.extend_from_slice(&buffer[..read]);
        let surplus = kept.len().saturating_sub(STDERR_BYTES);
        kept.drain(..surplus);
    }
}

/// The program's path: as given if it holds a `/`, otherwise the first of that name in our `PATH` that can be run.
fn find(program: &str) -> Option<PathBuf> {
    let runnable = |path: &Path| {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(|path| runnable(path));
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|path| runnable(path))
}

/// Memory to share with a worker; where the system has none, that is told once and pipes are the way.
fn memory(options: &PythonOptions) -> Option<Shared> {
    match Shared::try_new() {
        Ok(shared) => Some(shared),
        Err(error) => {
            no_shared_memory(options, &error.to_string());
            None
        }
    }
}

/// Tells, once, that columns go through pipes.
pub(crate) fn no_shared_memory(options: &PythonOptions, why: &str) {
    static TOLD: std::sync::Once = std::sync::Once::new();
    TOLD.call_once(|| {
        let text = format!("rowmill: no memory is shared with worker processes ({why}); columns go through pipes\n");
        (options.printed.0)(text.as_bytes());
    });
}

/// Sets limits and the death signal in the child, and leaves it the memory that it shares, before the program starts.
fn restrict(command: &mut Command, options: &PythonOptions, shared: Option<&Shared>) {
    // Kept open by the closure for as long as the command may be started.
    let files: Vec<_> = shared.map(|shared| shared.files().to_vec()).unwrap_or_default();
    let limits = options.limits;
    let parent = rustix::process::getpid();
    let all = [
        // Libraries reserve address space by the terabyte; what is counted is what can be written.
        (Resource::Data, limits.memory_bytes),
        (Resource::Cpu, limits.cpu_seconds),
        (Resource::Nofile, limits.open_files),
        (Resource::Core, Some(0)),
    ];
    let setup = move || -> io::Result<()> {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have died before the line above.
        if rustix::process::getppid() != Some(parent) {
            return Err(io::Error::from(rustix::io::Errno::SRCH));
        }
        shared::inherit(&files)?;
        for (resource, limit) in all {
            if let Some(limit) = limit {
                // A limit of ours that is already lower stays.
                let ours = rustix::process::getrlimit(resource);
                let limit = ours.maximum.map_or(limit, |most| most.min(limit));
                rustix::process::setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) })?;
            }
        }
        Ok(())
    };
    // SAFETY: the closure runs in the child between fork and exec. It makes system calls on copied integers and
    // descriptors only: no allocation, no locks, nothing of the parent's that another thread could have left half done.
    unsafe {
        command.pre_exec(setup);
    }
}
