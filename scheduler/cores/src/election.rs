//! Which of several schedulers leads: whoever holds the fenced lease in the store.
//!
//! A candidate asks; a leader renews three times within a lease, and stops deciding when its own clock says that the
//! lease may have run out, counted from the moment it *sent* its last successful request, so that no clocks need agree.
//! Even a leader whose clock stood still does no harm: the store refuses what is written under an old fence.

use crate::ids::Fence;
use crate::journal::Acquired;

/// Times of the election, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct ElectionOptions {
    /// How long a lease lasts without renewal.
    pub ttl_ms: u64,
    /// How long an unanswered request is waited for before it is sent again.
    pub answer_ms: u64,
}

impl Default for ElectionOptions {
    fn default() -> Self {
        Self { ttl_ms: 5_000, answer_ms: 1_000 }
    }
}

/// What the elector asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElectionAction {
    /// Ask the store for the lease and hand the answer to [`Elector::acquired`] with this number.
    Acquire {
        /// Tells answers to old requests apart.
        request: u64,
    },
    /// Ask the store to renew and hand the answer to [`Elector::renewed`] with this number.
    Renew {
        /// Tells answers to old requests apart.
        request: u64,
        /// The fence to renew.
        fence: Fence,
    },
    /// Begin to lead under this fence: read the journal, let the executors register.
    Lead(Fence),
    /// Stop at once: place nothing, commit nothing.
    StepDown(Fence),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Standby { next_try_ms: u64 },
    Leading { fence: Fence, valid_until_ms: u64, next_renewal_ms: u64 },
}

/// One scheduler's part in the election.
#[derive(Debug)]
pub struct Elector {
    options: ElectionOptions,
    state: State,
    /// The request that is under way: its number and when it was sent.
    pending: Option<(u64, u64)>,
    requests: u64,
}

impl Elector {
    /// A scheduler that stands by and asks at its first tick.
    pub fn new(options: ElectionOptions) -> Self {
        Self { options, state: State::Standby { next_try_ms: 0 }, pending: None, requests: 0 }
    }

    /// The fence under which this scheduler leads, if it may decide at `now_ms`.
    pub fn leads(&self, now_ms: u64) -> Option<Fence> {
        match self.state {
            State::Leading { fence, valid_until_ms, .. } if now_ms < valid_until_ms => Some(fence),
            _ => None,
        }
    }

    /// When [`Self::tick`] wants to be called next.
    pub fn next_deadline_ms(&self) -> u64 {
        let answer = self.pending.map_or(u64::MAX, |(_, sent_ms)| sent_ms.saturating_add(self.options.answer_ms));
        match self.state {
            State::Standby { next_try_ms } if self.pending.is_none() => next_try_ms,
            State::Standby { .. } => answer,
            State::Leading { valid_until_ms, next_renewal_ms, .. } if self.pending.is_none() => {
                next_renewal_ms.min(valid_until_ms)
            }
            State::Leading { valid_until_ms, .. } => answer.min(valid_until_ms),
        }
    }

    /// Time passes.
    pub fn tick(&mut self, now_ms: u64) -> Vec<ElectionAction> {
        let mut actions = Vec::new();
        if let State::Leading { fence, valid_until_ms, .. } = self.state
            && now_ms >= valid_until_ms
        {
            actions.push(self.stand_by(fence, now_ms));
        }
        if let Some((_, sent_ms)) = self.pending {
            if now_ms < sent_ms.saturating_add(self.options.answer_ms) {
                return actions;
            }
            self.pending = None;
        }
        match self.state {
            State::Standby { next_try_ms } if now_ms >= next_try_ms => {
                let request = self.send(now_ms);
                actions.push(ElectionAction::Acquire { request });
            }
            State::Leading { fence, next_renewal_ms, .. } if now_ms >= next_renewal_ms => {
                let request = self.send(now_ms);
                actions.push(ElectionAction::Renew { request, fence });
            }
            _ => {}
        }
        actions
    }

    /// The store's answer to [`ElectionAction::Acquire`].
    pub fn acquired(&mut self, request: u64, answer: Acquired, now_ms: u64) -> Vec<ElectionAction> {
        let Some(sent_ms) = self.answered(request) else { return Vec::new() };
        if let State::Leading { .. } = self.state {
            return Vec::new();
        }
        match answer {
            Acquired::Granted(fence) => {
                let valid_until_ms = sent_ms.saturating_add(self.options.ttl_ms);
                if now_ms >= valid_until_ms {
                    self.state = State::Standby { next_try_ms: now_ms };
                    return Vec::new();
                }
                self.state = self.leading(fence, sent_ms);
                vec![ElectionAction::Lead(fence)]
            }
            Acquired::Held { remaining_ms } => {
                // The holder may let go early, so ask at least three times per lease.
                let wait_ms = remaining_ms.min(self.options.ttl_ms / 3).max(1);
                self.state = State::Standby { next_try_ms: now_ms.saturating_add(wait_ms) };
                Vec::new()
            }
        }
    }

    /// The store's answer to [`ElectionAction::Renew`].
    pub fn renewed(&mut self, request: u64, prolonged: bool, now_ms: u64) -> Vec<ElectionAction> {
        let Some(sent_ms) = self.answered(request) else { return Vec::new() };
        let State::Leading { fence, .. } = self.state else { return Vec::new() };
        if prolonged {
            self.state = self.leading(fence, sent_ms);
            Vec::new()
        } else {
            vec![self.stand_by(fence, now_ms)]
        }
    }

    /// The store refused a write under this fence: somebody else leads.
    pub fn fenced_off(&mut self, refused: Fence, now_ms: u64) -> Vec<ElectionAction> {
        match self.state {
            State::Leading { fence, .. } if fence == refused => vec![self.stand_by(fence, now_ms)],
            _ => Vec::new(),
        }
    }

    fn leading(&self, fence: Fence, sent_ms: u64) -> State {
        State::Leading {
            fence,
            valid_until_ms: sent_ms.saturating_add(self.options.ttl_ms),
            next_renewal_ms: sent_ms.saturating_add(self.options.ttl_ms / 3),
        }
    }

    fn stand_by(&mut self, fence: Fence, now_ms: u64) -> ElectionAction {
        self.pending = None;
        self.state = State::Standby { next_try_ms: now_ms };
        ElectionAction::StepDown(fence)
    }

    fn send(&mut self, now_ms: u64) -> u64 {
        self.requests += 1;
        self.pending = Some((self.requests, now_ms));
        self.requests
    }

    fn answered(&mut self, request: u64) -> Option<u64> {
        let (number, sent_ms) = self.pending?;
        if number != request {
            return None;
        }
        self.pending = None;
        Some(sent_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elector() -> Elector {
        Elector::new(ElectionOptions { ttl_ms: 300, answer_ms: 50 })
    }

    #[test]
    fn leads_from_the_moment_it_asked() {
        let mut elector = elector();
        assert_eq!(elector.tick(10), [ElectionAction::Acquire { request: 1 }]);
        assert_eq!(elector.acquired(1, Acquired::Granted(Fence(7)), 40), [ElectionAction::Lead(Fence(7))]);
        assert_eq!(elector.leads(309), Some(Fence(7)));
        assert_eq!(elector.leads(310), None);
        assert_eq!(elector.next_deadline_ms(), 110);
    }

    #[test]
    fn an_answer_to_an_old_request_counts_for_nothing() {
        let mut elector = elector();
        elector.tick(0);
        assert_eq!(elector.tick(60), [ElectionAction::Acquire { request: 2 }]);
        assert_eq!(elector.acquired(1, Acquired::Granted(Fence(1)), 61), []);
        assert_eq!(elector.leads(61), None);
    }

    #[test]
    fn steps_down_when_the_lease_runs_out_or_is_refused() {
        let mut elector = elector();
        elector.tick(0);
        elector.acquired(1, Acquired::Granted(Fence(1)), 1);
        assert_eq!(elector.tick(300)[0], ElectionAction::StepDown(Fence(1)));
        elector.acquired(2, Acquired::Granted(Fence(2)), 301);
        assert_eq!(elector.fenced_off(Fence(1), 302), []);
        assert_eq!(elector.fenced_off(Fence(2), 302), [ElectionAction::StepDown(Fence(2))]);
    }
}
