//! Keeps a run ours while we work on it, and hears when somebody wants it cancelled.

use std::sync::Arc;
use std::time::Duration;

use datafusion::common::runtime::SpawnedTask;
use parking_lot::Mutex;
use rowmill_store::{Error, Fence, RunStore};
use tokio_util::sync::CancellationToken;

/// How long a request to cancel may go unheard.
const HEARD_WITHIN: Duration = Duration::from_secs(2);

/// How a lease stood when the work ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// It was ours.
    Held,
    /// Somebody asked for the run to be cancelled.
    CancelAsked,
    /// Somebody took the run.
    Lost,
    /// It could not be renewed before it expired.
    Expired,
}

/// A lease that is renewed until it is dropped.
pub(super) struct Lease {
    /// Cancelled when the caller's token is, when the run is to be cancelled, or when the lease is lost.
    pub(super) cancel: CancellationToken,
    ended: Arc<Mutex<Ended>>,
    _task: SpawnedTask<()>,
}

impl Lease {
    pub(super) fn keep(store: Arc<dyn RunStore>, fence: Fence, ttl: Duration, cancel: &CancellationToken) -> Self {
        let cancel = cancel.child_token();
        let ended = Arc::new(Mutex::new(Ended::Held));
        let task = SpawnedTask::spawn(renew(store, fence, ttl, cancel.clone(), Arc::clone(&ended)));
        Lease { cancel, ended, _task: task }
    }

    pub(super) fn end(self) -> Ended {
        *self.ended.lock()
    }
}

async fn renew(
    store: Arc<dyn RunStore>,
    fence: Fence,
    ttl: Duration,
    cancel: CancellationToken,
    ended: Arc<Mutex<Ended>>,
) {
    let end = |how: Ended| {
        *ended.lock() = how;
        cancel.cancel();
    };
    let mut renewed_at = tokio::time::Instant::now();
    loop {
        // Often enough for `rowmill cancel` to be heard soon, too.
        tokio::time::sleep((ttl / 4).min(HEARD_WITHIN)).await;
        match store.renew(&fence, ttl).await {
            Ok(renewed) => {
                renewed_at = tokio::time::Instant::now();
                if renewed.cancel.is_some() {
                    end(Ended::CancelAsked);
                    return;
                }
            }
            Err(Error::Fenced { .. }) => {
                end(Ended::Lost);
                return;
            }
            Err(error) if renewed_at.elapsed() < ttl => {
                tracing::warn!("the lease of run {} could not be renewed and is tried again: {error}", fence.run);
            }
            Err(error) => {
                // Nobody may have taken it, but we can no longer know; every later write is fenced in any case.
                tracing::warn!("the lease of run {} expired: {error}", fence.run);
                end(Ended::Expired);
                return;
            }
        }
    }
}
