//! Attempts of steps that are not SQL, for clients that hand them in ([`rowmill_wire::calls`]).
//!
//! ```text
//!   stream.rs   one client, one step, one run: groups in, answers out, beats
//!      │ at most `most` groups at a time: the step's in_flight for class io, this executor's slots otherwise
//!      ▼
//!   warm.rs     the step, built by whoever knows step kinds, with its sessions; kept for a while after its last user
//! ```
//! What runs at once is bounded by the executor's slots, all streams together, except for class `io`, whose calls wait
//! for others. Who retries, limits and records is the client; here one attempt is made for one group, and every group
//! that was taken is answered.

mod answers;
mod stream;
#[cfg(test)]
mod tests;
mod warm;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use datafusion::common::runtime::SpawnedTask;
use futures::StreamExt as _;
use rowmill_step::{Failure, StepContext, StepExecutor};
use rowmill_wire::calls::{ClientMessage, ExecutorStream, OpenStep, TakesCalls};
use rowmill_wire::name::ExecutorName;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use warm::Warm;

/// Answers that wait until the client reads them.
const AHEAD: usize = 4;
/// How long a client may take to end its stream after the last answer, when this executor leaves.
const GOODBYE: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(20);

/// A step that was built.
#[derive(Debug, Clone)]
pub struct BuiltStep {
    /// What makes its attempts.
    pub executor: Arc<dyn StepExecutor>,
    /// What it gets from this process: connections, clients, memory.
    pub context: StepContext,
}

/// Builds steps from their text: whoever knows step kinds and this process's configuration.
pub trait BuildsSteps: std::fmt::Debug + Send + Sync + 'static {
    /// Builds a step; `cancel` is cancelled when it is not kept any more.
    ///
    /// # Errors
    /// [`rowmill_step::FailureCode::Setup`]: the kind, the connection or something else that the step needs is not here.
    fn build(&self, step: &OpenStep, cancel: &CancellationToken) -> Result<BuiltStep, Failure>;
}

/// The calls of this process.
pub(crate) struct Calls {
    name: ExecutorName,
    slots: u32,
    builder: Option<Arc<dyn BuildsSteps>>,
    /// What computes at once; calls of class `io` do not ask.
    compute: Arc<Semaphore>,
    warm: Arc<Warm>,
    /// Nothing new is taken.
    draining: CancellationToken,
    /// The grace period is over.
    over: CancellationToken,
    streams: AtomicUsize,
    groups: AtomicUsize,
}

impl Calls {
    pub(crate) fn new(name: ExecutorName, slots: u32, builder: Option<Arc<dyn BuildsSteps>>) -> Arc<Self> {
        Arc::new(Self {
            name,
            slots: slots.max(1),
            builder,
            compute: Arc::new(Semaphore::new(slots.max(1) as usize)),
            warm: Arc::default(),
            draining: CancellationToken::new(),
            over: CancellationToken::new(),
            streams: AtomicUsize::new(0),
            groups: AtomicUsize::new(0),
        })
    }

    /// Groups that are under way.
    pub(crate) fn running(&self) -> usize {
        self.groups.load(Ordering::Relaxed)
    }

    /// Takes nothing new from now on, and says so to everybody.
    pub(crate) fn drain(&self) {
        self.draining.cancel();
    }

    /// Whether nobody is served: every client has its answers and has gone.
    pub(crate) fn is_idle(&self) -> bool {
        self.streams.load(Ordering::Relaxed) == 0
    }

    /// Stops what is under way, and waits for clients to hear of it.
    pub(crate) async fn stop(&self) {
        self.draining.cancel();
        self.over.cancel();
        let told = async {
            while !self.is_idle() {
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(GOODBYE, told).await.is_err() {
            tracing::warn!("a client did not take its last answers");
        }
        self.warm.close().await;
    }

    /// Ends steps that nobody has used for a while. Never ends.
    pub(crate) async fn sweep(&self) {
        self.warm.sweep().await;
    }

    /// The semaphore that an attempt of `class` asks, and how many groups of a step may be here at a time.
    fn room(&self, class: &str, in_flight: u32) -> (Option<Arc<Semaphore>>, u32) {
        match class {
            "io" => (None, in_flight.max(1)),
            _ => (Some(Arc::clone(&self.compute)), self.slots),
        }
    }
}

/// The calls of this process, as its server takes them.
pub(crate) struct Taker(pub(crate) Arc<Calls>);

impl TakesCalls for Taker {
    fn attempts(&self, asks: Streaming<ClientMessage>) -> ExecutorStream {
        let (sender, receiver) = mpsc::channel(AHEAD);
        let counted = Counted::new(&self.0, |calls| &calls.streams);
        let calls = Arc::clone(&self.0);
        // It ends with the stream, that is when the client goes.
        let serving = SpawnedTask::spawn(async move {
            stream::serve(&calls, asks, sender).await;
            drop(counted);
        });
        let tells = futures::stream::unfold((receiver, serving), |(mut receiver, serving)| async move {
            let tell = receiver.recv().await?;
            Some((tell, (receiver, serving)))
        });
        tells.boxed()
    }
}

/// One more in a count of [`Calls`], as long as it lives.
struct Counted {
    calls: Arc<Calls>,
    which: fn(&Calls) -> &AtomicUsize,
}

impl Counted {
    fn new(calls: &Arc<Calls>, which: fn(&Calls) -> &AtomicUsize) -> Self {
        which(calls).fetch_add(1, Ordering::Relaxed);
        Self { calls: Arc::clone(calls), which }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.which)(&self.calls).fetch_sub(1, Ordering::Relaxed);
    }
}
