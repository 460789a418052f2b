//! The threads that queries run on, and how Python waits for them: without the GIL, and with an ear for Ctrl-C.

use std::future::Future;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use parking_lot::Mutex;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

/// Python runs signal handlers only on its main thread and only when asked, so a waiting thread has to ask.
pub(crate) const LISTEN: Duration = Duration::from_millis(50);
/// Plans are trees, and DataFusion walks them by recursion.
const STACK_BYTES: usize = 64 << 20;

/// Threads of a runtime. Whoever drops them last does not wait for them: an operator may be deep in a computation.
pub(crate) struct Threads {
    runtime: Option<Runtime>,
    process: u32,
}

impl Threads {
    /// Runs a future on these threads.
    pub(crate) fn spawn<F>(&self, future: F) -> PyResult<JoinHandle<F::Output>>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        match &self.runtime {
            Some(runtime) => Ok(runtime.spawn(future)),
            None => Err(PyRuntimeError::new_err("the threads have ended")),
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            match self.process == std::process::id() {
                true => runtime.shutdown_background(),
                // Its threads are those of the parent; waiting for them to end would wait forever.
                false => std::mem::forget(runtime),
            }
        }
    }
}

struct Started {
    count: usize,
    threads: Arc<Threads>,
}

static RUNTIME: Mutex<Option<Started>> = Mutex::new(None);

/// The runtime of this process, started on first use. A process that was forked gets one of its own: threads do not
/// survive a fork.
pub(crate) fn threads() -> PyResult<Arc<Threads>> {
    let mut slot = RUNTIME.lock();
    let count = match slot.as_ref() {
        Some(started) if started.threads.process == std::process::id() => return Ok(Arc::clone(&started.threads)),
        Some(inherited) => inherited.count,
        None => rowmill::options::cores(),
    };
    let threads = Arc::new(start(count)?);
    *slot = Some(Started { count, threads: Arc::clone(&threads) });
    Ok(threads)
}

/// Replaces the runtime by one of this many threads; what runs on the old one goes on until it ends.
pub(crate) fn set_threads(count: usize) -> PyResult<()> {
    let threads = Arc::new(start(count)?);
    *RUNTIME.lock() = Some(Started { count, threads });
    Ok(())
}

/// Leaves these threads to whoever still uses them: an operator that was interrupted may hold every one of them for as
/// long as it computes, and the next query must not wait for that.
pub(crate) fn leave(threads: &Arc<Threads>) {
    let mut slot = RUNTIME.lock();
    if let Some(started) = slot.take_if(|started| Arc::ptr_eq(&started.threads, threads))
        && let Ok(fresh) = start(started.count)
    {
        *slot = Some(Started { count: started.count, threads: Arc::new(fresh) });
    }
}

fn start(count: usize) -> PyResult<Threads> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(count.max(1))
        .thread_name("rowmill")
        .thread_stack_size(STACK_BYTES)
        .enable_all()
        .build()
        .map_err(|error| PyRuntimeError::new_err(format!("cannot start threads: {error}")))?;
    Ok(Threads { runtime: Some(runtime), process: std::process::id() })
}

/// Waits for a message without the GIL, until it is time to look at signals again.
pub(crate) fn listen<T: Send>(py: Python<'_>, receiver: &mut Receiver<T>) -> Result<T, RecvTimeoutError> {
    py.detach(move || receiver.recv_timeout(LISTEN))
}

/// Runs `future` to its end while this thread waits without the GIL. A signal (Ctrl-C) drops the future, which ends
/// the query, and comes out as the exception that its handler raises.
pub(crate) fn wait<T: Send + 'static>(py: Python<'_>, future: impl Future<Output = T> + Send + 'static) -> PyResult<T> {
    let (sender, mut receiver) = sync_channel(1);
    let threads = threads()?;
    let task = threads.spawn(async move {
        // The receiver is gone if nobody waits any more.
        let _ = sender.send(future.await);
    })?;
    loop {
        match listen(py, &mut receiver) {
            Ok(value) => return Ok(value),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(PyRuntimeError::new_err("the query ended without an answer: an operator panicked"));
            }
            Err(RecvTimeoutError::Timeout) => {
                if let Err(signal) = py.check_signals() {
                    task.abort();
                    leave(&threads);
                    return Err(signal);
                }
            }
        }
    }
}
