//! Which term of the schedulers' leadership this executor follows.
//!
//! Of several schedulers one leads at a time, and each time that leadership changes hands its term has a higher number.
//! One that was stopped and goes on may believe for a moment that it still leads; what it says bears the number of its
//! term, and is refused here once this executor has heard of a later one.

use tokio::sync::{Mutex, MutexGuard};

use crate::tasks::Tasks;

/// The term that is followed: zero where the scheduler is the only one.
#[derive(Debug, Default)]
pub(crate) struct Followed(Mutex<u64>);

impl Followed {
    /// Follows a scheduler that says something in this term. Where the term is new, what runs for an earlier one is
    /// stopped: its jobs ended with it. As long as the answer is held, no other term begins.
    ///
    /// # Errors
    /// The term is over.
    pub(crate) async fn follow(&self, term: u64, tasks: &Tasks) -> Result<MutexGuard<'_, u64>, String> {
        let mut followed = self.0.lock().await;
        if term < *followed {
            return Err(format!(
                "this executor follows the scheduler of term {}, and the one that speaks is of term {term}: another has \
                 taken over. If the schedulers' store was replaced, start the executors anew",
                *followed
            ));
        }
        if term > *followed {
            let stale = tasks.open();
            if !stale.is_empty() {
                tracing::warn!(term, "another scheduler leads; {} tasks of the one before are stopped", stale.len());
            }
            tasks.stop(stale).await;
            *followed = term;
        }
        Ok(followed)
    }
}
