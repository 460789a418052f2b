//! The fenced tables that a store must offer: a lease that one owner holds at a time, and commits that one attempt wins.
//!
//! The run store does the same in SQL. These are the rules in their shortest form: a scheduler without a store uses
//! them as they are, and the simulation runs against them. Time is the store's own; nobody else's clock counts.

use std::collections::BTreeMap;

use crate::ids::{AttemptId, ChunkKey, Fence, RunId};
use crate::sabotage::{Mutant, Sabotage};

/// Answer to somebody who wants the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acquired {
    /// It is theirs, under this fence.
    Granted(Fence),
    /// Another one holds it, for this long at most.
    Held {
        /// Milliseconds until the lease can be had, unless it is renewed.
        remaining_ms: u64,
    },
}

/// A lease with a fence: one owner at a time, and every change of hands raises the fence.
#[derive(Debug, Default)]
pub struct LeaseTable {
    fence: Fence,
    owner: Option<u64>,
    until_ms: u64,
    sabotage: Sabotage,
}

impl LeaseTable {
    #[cfg(test)]
    pub(crate) fn sabotaged(sabotage: Sabotage) -> Self {
        Self { sabotage, ..Self::default() }
    }

    /// Asks for the lease for `ttl_ms`. The holder who asks again gets a new fence: it may be another process of the
    /// same name.
    pub fn acquire(&mut self, owner: u64, ttl_ms: u64, now_ms: u64) -> Acquired {
        if self.owner.is_some_and(|holder| holder != owner) && now_ms < self.until_ms {
            return Acquired::Held { remaining_ms: self.until_ms - now_ms };
        }
        if !self.sabotage.is(Mutant::KeepFence) || self.fence == Fence(0) {
            self.fence = Fence(self.fence.0 + 1);
        }
        self.owner = Some(owner);
        self.until_ms = now_ms.saturating_add(ttl_ms);
        Acquired::Granted(self.fence)
    }

    /// Prolongs the lease. False when the fence is void; a lease that ran out and that nobody took is prolonged.
    pub fn renew(&mut self, fence: Fence, ttl_ms: u64, now_ms: u64) -> bool {
        if !self.holds(fence) {
            return false;
        }
        self.until_ms = self.until_ms.max(now_ms.saturating_add(ttl_ms));
        true
    }

    /// Gives the lease back, so that the next owner need not wait. False when the fence is void.
    pub fn release(&mut self, fence: Fence) -> bool {
        if !self.holds(fence) {
            return false;
        }
        self.owner = None;
        true
    }

    /// Whether what is written under this fence counts.
    pub fn holds(&self, fence: Fence) -> bool {
        self.sabotage.is(Mutant::IgnoreFence) || (self.owner.is_some() && fence == self.fence)
    }
}

/// Answer to a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitAnswer {
    /// The attempt won, now or when it asked before.
    Committed,
    /// Another attempt had won: its output stands, this one's is waste.
    Lost,
    /// The scheduler is not the owner any more and must step down.
    FencedOff,
    /// The run has ended: nothing is committed to it.
    RunEnded,
}

/// Which chunk was committed by which attempt. The table knows the fence that counts from its lease.
#[derive(Debug, Default)]
pub struct CommitTable {
    winners: BTreeMap<ChunkKey, AttemptId>,
    ended: BTreeMap<RunId, bool>,
    sabotage: Sabotage,
    /// How many commits were taken, by chunk; more than one is the fault that the tests look for.
    #[cfg(test)]
    pub(crate) taken: BTreeMap<ChunkKey, u32>,
}

impl CommitTable {
    #[cfg(test)]
    pub(crate) fn sabotaged(sabotage: Sabotage) -> Self {
        Self { sabotage, ..Self::default() }
    }

    /// Commits a chunk for an attempt, if the fence counts and nobody did before. Asking twice for the same attempt is
    /// answered the same.
    pub fn commit(&mut self, lease: &LeaseTable, attempt: AttemptId) -> CommitAnswer {
        if !lease.holds(attempt.fence) {
            return CommitAnswer::FencedOff;
        }
        if self.ended.contains_key(&attempt.key.run) {
            return CommitAnswer::RunEnded;
        }
        if let Some(winner) = self.winners.get(&attempt.key).filter(|_| !self.sabotage.is(Mutant::CommitTwice)) {
            return if *winner == attempt { CommitAnswer::Committed } else { CommitAnswer::Lost };
        }
        self.winners.insert(attempt.key, attempt);
        #[cfg(test)]
        {
            *self.taken.entry(attempt.key).or_default() += 1;
        }
        CommitAnswer::Committed
    }

    /// Ends a run: `succeeded` or not. The first end stands. False when the fence is void.
    pub fn end(&mut self, lease: &LeaseTable, fence: Fence, run: RunId, succeeded: bool) -> bool {
        if !lease.holds(fence) {
            return false;
        }
        self.ended.entry(run).or_insert(succeeded);
        true
    }

    /// How a run ended, if it did.
    pub fn ended(&self, run: RunId) -> Option<bool> {
        self.ended.get(&run).copied()
    }

    /// The attempt whose output stands for a chunk.
    pub fn winner(&self, key: ChunkKey) -> Option<AttemptId> {
        self.winners.get(&key).copied()
    }

    /// What a run has committed, by stage and chunk: what a scheduler that takes over resumes from.
    pub fn committed(&self, run: RunId) -> impl Iterator<Item = (u32, u32)> + '_ {
        let first = ChunkKey { run, stage: 0, chunk: 0 };
        let last = ChunkKey { run, stage: u32::MAX, chunk: u32::MAX };
        self.winners.range(first..=last).map(|(key, _)| (key.stage, key.chunk))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(fence: Fence, number: u32) -> AttemptId {
        AttemptId { key: ChunkKey { run: RunId(1), stage: 0, chunk: 0 }, fence, number }
    }

    #[test]
    fn a_lease_has_one_owner_and_its_fence_rises() {
        let mut lease = LeaseTable::default();
        assert_eq!(lease.acquire(1, 100, 0), Acquired::Granted(Fence(1)));
        assert_eq!(lease.acquire(2, 100, 60), Acquired::Held { remaining_ms: 40 });
        assert!(lease.renew(Fence(1), 100, 60));
        assert_eq!(lease.acquire(2, 100, 110), Acquired::Held { remaining_ms: 50 });
        assert_eq!(lease.acquire(2, 100, 160), Acquired::Granted(Fence(2)));
        assert!(!lease.renew(Fence(1), 100, 161));
        assert!(!lease.release(Fence(1)));
        assert!(lease.release(Fence(2)));
        assert_eq!(lease.acquire(1, 100, 162), Acquired::Granted(Fence(3)));
    }

    #[test]
    fn one_attempt_wins_and_old_fences_lose() {
        let mut lease = LeaseTable::default();
        let mut commits = CommitTable::default();
        lease.acquire(1, 10, 0);
        let first = attempt(Fence(1), 1);
        assert_eq!(commits.commit(&lease, first), CommitAnswer::Committed);
        assert_eq!(commits.commit(&lease, first), CommitAnswer::Committed);
        assert_eq!(commits.commit(&lease, attempt(Fence(1), 2)), CommitAnswer::Lost);
        lease.acquire(2, 10, 20);
        assert_eq!(commits.commit(&lease, first), CommitAnswer::FencedOff);
        assert_eq!(commits.winner(first.key), Some(first));
        assert!(commits.end(&lease, Fence(2), RunId(1), true));
        assert_eq!(commits.commit(&lease, attempt(Fence(2), 1)), CommitAnswer::RunEnded);
    }
}
