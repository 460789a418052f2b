//! The threads that queries run on, and how Python waits for them: without the GIL, and with an ear for Ctrl-C.

use std::future::Future;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use parking_lot::Mutex;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use tokio::runtime::Runtime;

/// Python runs signal handlers only on its main thread and only when asked, so a waiting thread has to ask.
const LISTEN: Duration = Duration::from_millis(50);
/// Plans are trees, and DataFusion walks them by recursion.
const STACK_BYTES: usize = 16 << 20;

struct Started {
    process: u32,
    threads: usize,
    runtime: Arc<Runtime>,
}

static RUNTIME: Mutex<Option<Started>> = Mutex::new(None);

/// The runtime of this process, started on first use. A process that was forked gets one of its own: threads do not
/// survive a fork.
pub(crate) fn runtime() -> PyResult<Arc<Runtime>> {
    let process = std::process::id();
    let mut slot = RUNTIME.lock();
    let threads = slot.as_ref().map_or_else(rowmill::options::cores, |started| started.threads);
    match slot.take() {
        Some(started) if started.process == process => {
            let runtime = Arc::clone(&started.runtime);
            *slot = Some(started);
            return Ok(runtime);
        }
        // Its threads are those of the parent; waiting for them to end would wait forever.
        Some(inherited) => std::mem::forget(inherited),
        None => {}
    }
    let runtime = Arc::new(start(threads)?);
    *slot = Some(Started { process, threads, runtime: Arc::clone(&runtime) });
    Ok(runtime)
}

/// Replaces the runtime by one of this many threads; what runs on the old one goes on until it ends.
pub(crate) fn set_threads(threads: usize) -> PyResult<()> {
    let runtime = Arc::new(start(threads)?);
    let old = RUNTIME.lock().replace(Started { process: std::process::id(), threads, runtime });
    if let Some(old) = old {
        match Arc::try_unwrap(old.runtime) {
            Ok(runtime) if old.process == std::process::id() => runtime.shutdown_background(),
            Ok(runtime) => std::mem::forget(runtime),
            Err(shared) => drop(shared),
        }
    }
    Ok(())
}

fn start(threads: usize) -> PyResult<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads.max(1))
        .thread_name("rowmill")
        .thread_stack_size(STACK_BYTES)
        .enable_all()
        .build()
        .map_err(|error| PyRuntimeError::new_err(format!("cannot start threads: {error}")))
}

/// Waits for a message without the GIL, until it is time to look at signals again.
pub(crate) fn listen<T: Send>(py: Python<'_>, receiver: &mut Receiver<T>) -> Result<T, RecvTimeoutError> {
    py.detach(move || receiver.recv_timeout(LISTEN))
}

/// Runs `future` to its end while this thread waits without the GIL. A signal (Ctrl-C) drops the future, which ends
/// the query, and comes out as the exception that its handler raises.
pub(crate) fn wait<T: Send + 'static>(py: Python<'_>, future: impl Future<Output = T> + Send + 'static) -> PyResult<T> {
    let (sender, mut receiver) = sync_channel(1);
    let runtime = runtime()?;
    let task = runtime.spawn(async move {
        // The receiver is gone if nobody waits any more.
        let _ = sender.send(future.await);
    });
    loop {
        match listen(py, &mut receiver) {
            Ok(value) => return Ok(value),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(PyRuntimeError::new_err("the query ended without an answer: an operator panicked"));
            }
            Err(RecvTimeoutError::Timeout) => {
                if let Err(signal) = py.check_signals() {
                    task.abort();
                    return Err(signal);
                }
            }
        }
    }
}
