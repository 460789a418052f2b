//! Starts processes from one thread that lives as long as this process does.
//!
//! A child asks to be killed when its parent dies (`PR_SET_PDEATHSIG`), and the kernel takes the *thread* that started
//! it for the parent. Threads of a runtime come and go; this one does not.

use std::io;
use std::sync::OnceLock;
use std::sync::mpsc;

use tokio::process::{Child, Command};
use tokio::sync::oneshot;

struct Job {
    command: Command,
    runtime: tokio::runtime::Handle,
    reply: oneshot::Sender<io::Result<Child>>,
}

/// Starts the process.
///
/// # Errors
/// What the operating system says.
pub(crate) async fn spawn(command: Command) -> io::Result<Child> {
    let (reply, child) = oneshot::channel();
    let job = Job { command, runtime: tokio::runtime::Handle::current(), reply };
    sender()?.send(job).map_err(|_| io::Error::other("the thread that starts processes has ended"))?;
    child.await.map_err(|_| io::Error::other("the thread that starts processes has ended"))?
}

fn sender() -> io::Result<&'static mpsc::Sender<Job>> {
    static SENDER: OnceLock<Result<mpsc::Sender<Job>, String>> = OnceLock::new();
    SENDER
        .get_or_init(|| {
            let (sender, jobs) = mpsc::channel::<Job>();
            std::thread::Builder::new()
                .name("rowmill-spawner".to_owned())
                .spawn(move || {
                    for mut job in jobs {
                        // The child's pipes belong to the runtime of whoever asked.
                        let _runtime = job.runtime.enter();
                        // A caller that has gone drops the child, which kills it.
                        let _ = job.reply.send(job.command.spawn());
                    }
                })
                .map_err(|error| error.to_string())?;
            Ok(sender)
        })
        .as_ref()
        .map_err(|text| io::Error::other(text.clone()))
}
