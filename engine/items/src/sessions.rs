//! Slots: how many groups of a step are in flight, and the warm session that each slot holds.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rowmill_step::{Failure, FailureCode, StepContext, StepSession, caught};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a session may take to end.
const CLOSE_TIME: Duration = Duration::from_secs(10);

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
    pub(crate) async fn close(&self, context: &StepContext) -> Vec<Failure> {
        let idle = std::mem::take(&mut *self.idle.lock());
        let closing = idle.into_iter().map(|session| async {
            let closed = tokio::time::timeout(CLOSE_TIME, caught(session.close(), context));
            match closed.await {
                Ok(result) => result.err(),
                Err(_late) => Some(Failure::fixed(FailureCode::Timeout, "it did not end in time and was dropped")),
            }
        });
        futures::future::join_all(closing).await.into_iter().flatten().collect()
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
    /// Takes a session that is open: the slot's own, or an idle one. It is given back with [`Slot::keep`]; one that is
    /// dropped in the middle of an attempt is not used again.
    pub(crate) fn warm(&mut self) -> Option<Box<dyn StepSession>> {
        self.session.take().or_else(|| self.idle.lock().pop())
    }

    /// Gives back a session that may be used again.
    pub(crate) fn keep(&mut self, session: Box<dyn StepSession>) {
        self.session = Some(session);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            self.idle.lock().push(session);
        }
    }
}
