//! Slots: how many groups of a step are in flight, and the warm session that each slot holds.

use std::sync::Arc;

use parking_lot::Mutex;
use rowmill_step::{Failure, StepContext, StepExecutor, StepSession, StepShape, caught};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The slots of a step, shared by its partitions.
pub(crate) struct Slots {
    permits: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<Box<dyn StepSession>>>>,
}

/// The right to have one group in flight, and a session once it is needed.
pub(crate) struct Slot {
    session: Option<Box<dyn StepSession>>,
    idle: Arc<Mutex<Vec<Box<dyn StepSession>>>>,
    _permit: OwnedSemaphorePermit,
}

impl Slots {
    pub(crate) fn new(in_flight: usize) -> Self {
        // More permits than this would overflow the semaphore, and nobody has as many sockets.
        let permits = in_flight.clamp(1, Semaphore::MAX_PERMITS);
        Self { permits: Arc::new(Semaphore::new(permits)), idle: Arc::default() }
    }

    /// A free slot, if there is one right now.
    pub(crate) fn try_take(&self) -> Option<Slot> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok()?;
        Some(self.slot(permit))
    }

    /// The next free slot, in the order of asking. Never ends once the step is over; callers select on cancellation.
    pub(crate) async fn take(&self) -> Slot {
        match Arc::clone(&self.permits).acquire_owned().await {
            Ok(permit) => self.slot(permit),
            Err(_closed) => std::future::pending().await,
        }
    }

    fn slot(&self, permit: OwnedSemaphorePermit) -> Slot {
        Slot { session: None, idle: Arc::clone(&self.idle), _permit: permit }
    }

    /// Ends all idle sessions in good order.
    pub(crate) async fn close(&self) -> Vec<Failure> {
        let idle = std::mem::take(&mut *self.idle.lock());
        let mut failures = Vec::new();
        for session in idle {
            failures.extend(session.close().await.err());
        }
        failures
    }
}

impl std::fmt::Debug for Slots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Slots({} free)", self.permits.available_permits())
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Slot")
    }
}

impl Slot {
    /// The slot's session: an idle one, or a new one.
    pub(crate) async fn session(
        &mut self,
        executor: &dyn StepExecutor,
        context: &StepContext,
        shape: &StepShape,
    ) -> Result<&mut dyn StepSession, Failure> {
        if self.session.is_none() {
            let idle = self.idle.lock().pop();
            let session = match idle {
                Some(session) => session,
                None => caught(executor.open(context, shape), context).await?,
            };
            self.session = Some(session);
        }
        match &mut self.session {
            Some(session) => Ok(session.as_mut()),
            None => Err(Failure::fixed(rowmill_step::FailureCode::Internal, "a slot lost its session")),
        }
    }

    /// Drops a session that must not be used again.
    pub(crate) fn discard(&mut self) {
        self.session = None;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            self.idle.lock().push(session);
        }
    }
}
