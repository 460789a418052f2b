//! Steps that were built, with their sessions: connections, worker processes and models stay between groups, between
//! streams, and for a while between runs.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prost::Message as _;
use rowmill_step::{
    Cardinality, Failure, FailureCode, Sent, StepContext, StepExecutor, StepSession, StepShape, caught,
};
use rowmill_wire::calls::{OpenStep, read_schema};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::BuildsSteps;

/// How long a step is kept after its last user.
const KEEP: Duration = Duration::from_secs(60);
/// How often steps are looked through.
const SWEEP: Duration = Duration::from_secs(5);
/// Steps that are kept without a user; beyond it the oldest go first.
const MOST_IDLE: usize = 32;
/// How long a session may take to end.
const CLOSE: Duration = Duration::from_secs(10);

/// A step that was built.
pub(super) struct WarmStep {
    pub(super) executor: Arc<dyn StepExecutor>,
    pub(super) context: StepContext,
    pub(super) shape: StepShape,
    pub(super) cardinality: Cardinality,
    idle: Mutex<Vec<Box<dyn StepSession>>>,
    ended: CancellationToken,
}

impl WarmStep {
    fn try_new(step: &OpenStep, builder: &dyn BuildsSteps) -> Result<Self, Failure> {
        let broken = |error: datafusion::arrow::error::ArrowError| {
            Failure::received(FailureCode::Setup, &format!("the step's columns cannot be read: {error}"))
        };
        let shape = StepShape {
            input: read_schema(&step.input).map_err(broken)?,
            output: read_schema(&step.output).map_err(broken)?,
        };
        let ended = CancellationToken::new();
        let built = builder.build(step, &ended)?;
        let description = built.executor.describe();
        if !description.reads.iter().eq(shape.input.fields().iter().map(|field| field.name())) {
            let message = "the step reads other columns here than in the client; is a file of it another one?";
            return Err(Failure::fixed(FailureCode::Setup, message));
        }
        for connection in &description.connections {
            built.context.connections.settings(connection)?;
        }
        let cardinality = description.cardinality;
        Ok(Self { executor: built.executor, context: built.context, shape, cardinality, idle: Mutex::default(), ended })
    }

    /// A session: one that is idle, or a new one. What goes wrong has happened before anything was sent.
    pub(super) async fn session(&self) -> Result<Box<dyn StepSession>, Failure> {
        let idle = self.idle.lock().pop();
        match idle {
            Some(session) => Ok(session),
            None => caught(self.executor.open(&self.context, &self.shape), &self.context)
                .await
                .map_err(|failure| failure.sent(Sent::Never)),
        }
    }

    /// Gives back a session that may be used again.
    pub(super) fn keep(&self, session: Box<dyn StepSession>) {
        self.idle.lock().push(session);
    }

    async fn close(&self) {
        let idle = std::mem::take(&mut *self.idle.lock());
        let closing = idle.into_iter().map(|session| async {
            match tokio::time::timeout(CLOSE, caught(session.close(), &self.context)).await {
                Ok(Ok(())) => {}
                Ok(Err(failure)) => tracing::warn!(step = %self.context.step, "a session did not end well: {failure}"),
                Err(_) => tracing::warn!(step = %self.context.step, "a session did not end in time and was dropped"),
            }
        });
        futures::future::join_all(closing).await;
        self.ended.cancel();
    }
}

struct Entry {
    step: Arc<WarmStep>,
    users: usize,
    /// When its last user went.
    since: Instant,
}

/// What is the same for two runs of one step.
type Key = Vec<u8>;

/// The steps of this process.
#[derive(Default)]
pub(super) struct Warm(Mutex<HashMap<Key, Entry>>);

/// A step in use.
pub(super) struct InUse {
    pub(super) step: Arc<WarmStep>,
    key: Key,
    warm: Arc<Warm>,
}

impl Drop for InUse {
    fn drop(&mut self) {
        if let Some(entry) = self.warm.0.lock().get_mut(&self.key) {
            entry.users -= 1;
            entry.since = Instant::now();
        }
    }
}

impl Warm {
    /// The step, warm if it was used a short while ago. May block: building reads files.
    pub(super) fn open(self: &Arc<Self>, step: &OpenStep, builder: &dyn BuildsSteps) -> Result<InUse, Failure> {
        // Neither the run nor how many go at once makes another step of it; the tenant does.
        let key = OpenStep { run: String::new(), in_flight: 0, ..step.clone() }.encode_to_vec();
        if let Some(found) = self.take(&key) {
            return Ok(found);
        }
        let built = Arc::new(WarmStep::try_new(step, builder)?);
        let mut steps = self.0.lock();
        // Somebody may have been quicker.
        let entry = steps.entry(key.clone()).or_insert_with(|| Entry { step: built, users: 0, since: Instant::now() });
        entry.users += 1;
        Ok(InUse { step: Arc::clone(&entry.step), key, warm: Arc::clone(self) })
    }

    fn take(self: &Arc<Self>, key: &Key) -> Option<InUse> {
        let mut steps = self.0.lock();
        let entry = steps.get_mut(key)?;
        entry.users += 1;
        Some(InUse { step: Arc::clone(&entry.step), key: key.clone(), warm: Arc::clone(self) })
    }

    pub(super) async fn sweep(&self) {
        loop {
            tokio::time::sleep(SWEEP).await;
            for step in self.old(Instant::now()) {
                step.close().await;
            }
        }
    }

    /// Takes out what is not kept any more.
    fn old(&self, now: Instant) -> Vec<Arc<WarmStep>> {
        let mut steps = self.0.lock();
        let mut idle: Vec<(Instant, Key)> =
            steps.iter().filter(|(_, entry)| entry.users == 0).map(|(key, entry)| (entry.since, key.clone())).collect();
        idle.sort();
        let beyond = idle.len().saturating_sub(MOST_IDLE);
        let old = idle.into_iter().enumerate().filter(|(at, (since, _))| *at < beyond || *since + KEEP <= now);
        old.filter_map(|(_, (_, key))| steps.remove(&key)).map(|entry| entry.step).collect()
    }

    /// Ends all steps.
    pub(super) async fn close(&self) {
        let steps: Vec<Arc<WarmStep>> = self.0.lock().drain().map(|(_, entry)| entry.step).collect();
        futures::future::join_all(steps.iter().map(|step| step.close())).await;
    }
}
