//! The watch over requests that nobody can serve: a warning first, then, after the queue's timeout, a refusal that says why.

use std::collections::BTreeSet;

use super::{Admission, Decision, Refusal, Unserved};
use crate::ids::{ChunkKey, ClassId};
use crate::sabotage::Mutant;

impl Admission {
    /// Looks after requests that nobody can serve: their classes have no executors, or none large enough.
    pub(super) fn watch(&mut self, now_ms: u64) -> Option<Decision> {
        if now_ms < self.next_watch_ms || self.sabotage.is(Mutant::BlindWatchdog) {
            return None;
        }
        let waiting: BTreeSet<ClassId> =
            self.chunks.iter().filter(|(_, waiting)| !waiting.is_empty()).map(|((_, class), _)| *class).collect();
        let executors = &self.executors;
        self.unserved.retain(|class, _| waiting.contains(class) && !executors.serves(*class));
        let mut next_ms = u64::MAX;
        for class in waiting {
            if self.executors.serves(class) {
                continue;
            }
            let state = self.unserved.entry(class).or_insert(Unserved { since_ms: now_ms, warned: false });
            let warn_ms = state.since_ms.saturating_add(self.options.warn_after_ms);
            if !state.warned {
                if warn_ms <= now_ms {
                    state.warned = true;
                    return Some(Decision::Unserved { class, since_ms: state.since_ms });
                }
                next_ms = next_ms.min(warn_ms);
            }
            let unserved_ms = state.since_ms;
            for ((queue, _), waiting) in self.chunks.iter().filter(|((_, other), _)| *other == class) {
                let Some((since_ms, key)) = waiting.by_age().next() else { continue };
                let timeout_ms = self.options.queues.get(queue).map_or(0, |options| options.timeout_ms);
                let waited_from_ms = since_ms.max(unserved_ms);
                let due_ms = waited_from_ms.saturating_add(timeout_ms);
                if due_ms <= now_ms {
                    let why = Refusal::NoExecutor { class, waited_ms: now_ms - waited_from_ms };
                    return Some(self.refuse(key, why));
                }
                next_ms = next_ms.min(due_ms);
            }
        }
        let mut refused = None;
        for (key, since_ms) in &self.misfits {
            let Some((queue, class)) = self.requests.get(key) else { continue };
            let timeout_ms = self.options.queues.get(queue).map_or(0, |options| options.timeout_ms);
            let due_ms = since_ms.saturating_add(timeout_ms);
            if due_ms <= now_ms {
                refused = Some((*key, Refusal::NoFit { class: *class, waited_ms: now_ms - since_ms }));
                break;
            }
            next_ms = next_ms.min(due_ms);
        }
        if let Some((key, why)) = refused {
            return Some(self.refuse(key, why));
        }
        self.next_watch_ms = next_ms;
        None
    }

    fn refuse(&mut self, key: ChunkKey, why: Refusal) -> Decision {
        self.withdraw(key);
        Decision::RefuseChunk { key, why }
    }
}
