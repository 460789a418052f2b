//! What an attempt's end means for its items: settled, again later, in two halves, or lost.

use std::time::Duration;

use rowmill_step::{
    BatchReply, Effects, Failure, FailureCode, ItemKeys, OnError, Outcome, Sent, Verdict, error_decision,
};
use tokio::time::Instant;

use crate::effects::{self, ChunkLog};
use crate::settle::{Settler, Work};
use crate::unit::{Loss, Piece};

/// Waits that are told apart among the failures of one reply.
const WAITS: usize = 16;

/// So often an attempt is made again that was lost with whoever made it. Then it counts: items may be why they die.
const MOST_LOSSES: u32 = 3;

/// Items of a reply that are tried again together.
struct Again {
    /// The wait that the other side asked for.
    asked: Option<Duration>,
    delay: Duration,
    items: Vec<u32>,
}

impl Settler<'_> {
    /// A reply for a group: rows, items to drop, items that failed.
    pub(crate) fn replied(&mut self, work: Work, reply: BatchReply, log: Option<&ChunkLog>) -> Result<(), Failure> {
        self.scope.tally.used(&reply.usage);
        if let Some(log) = log {
            self.record(log, &work.keys, &reply)?;
        }
        let items = work.rows.len();
        self.settled.ok += items - reply.skipped.len() - reply.failures.len();
        let sources = match &reply.source_rows {
            Some(sources) => work.rows.select(sources),
            None if reply.is_all_ok() => {
                self.settled.pieces.push(Piece { sources: work.rows, output: reply.output, fresh: true });
                return Ok(());
            }
            None => work.rows.select(&kept(&reply, items)),
        };
        self.settled.pieces.push(Piece { sources, output: reply.output, fresh: true });
        for index in &reply.skipped {
            self.settled.losses.push(Loss {
                row: work.rows.at(*index as usize),
                failure: None,
                attempts: work.attempt,
                outcome: Outcome::Skipped,
            });
        }
        let mut again: Vec<Again> = Vec::new();
        for (index, failure) in reply.failures {
            if self.was_cut_off(&failure) {
                self.left(&work, index as usize, failure, log)?;
                continue;
            }
            self.withdraw(log, &work, &failure, [work.keys.key(index as usize).0])?;
            match self.delay(&work, &failure) {
                Some(delay) => add(&mut again, failure.wait(), delay, index),
                None => self.lost(&work, index as usize, failure, log)?,
            }
        }
        for Again { delay, items, .. } in again {
            let mut work = work.select(&items, &self.operator.keys)?;
            work.announced = false;
            work.attempt += 1;
            work.not_before = Some(Instant::now() + delay);
            self.open.push(work);
        }
        Ok(())
    }

    /// A group that failed whole: again later, in two halves, or over.
    pub(crate) fn failed_whole(
        &mut self,
        mut work: Work,
        failure: Failure,
        log: Option<&ChunkLog>,
        may_bisect: bool,
    ) -> Result<(), Failure> {
        self.withdraw(log, &work, &failure, all(&work.keys))?;
        work.announced = false;
        let items = work.rows.len();
        if failure.is_lost()
            && work.losses < MOST_LOSSES
            && failure.verdict(self.operator.policy.effects) == Verdict::Retry
            && !self.is_late(&work)
        {
            // Nothing was learned of the items, and nobody asked for a wait: who is left makes the attempt. Items that
            // never left are not to blame.
            work.losses += u32::from(failure.how_far() != Sent::Never);
            work.not_before = None;
            self.open.push(work);
            return Ok(());
        }
        if let Some(wait) = self.delay(&work, &failure) {
            work.attempt += 1;
            work.not_before = Some(Instant::now() + wait);
            self.open.push(work);
            return Ok(());
        }
        if may_bisect && items > 1 && failure.bisectable(self.operator.policy.effects) && !self.is_late(&work) {
            // A failure that passes had its attempts; one that does not would waste them.
            work.last = failure.is_retryable();
            work.not_before = None;
            let half = items / 2;
            self.open.push(work.slice(half, items - half));
            self.open.push(work.slice(0, half));
            return Ok(());
        }
        self.all_lost(&work, &failure, log)
    }

    /// A group whose items have all had their last attempt.
    pub(crate) fn all_lost(&mut self, work: &Work, failure: &Failure, log: Option<&ChunkLog>) -> Result<(), Failure> {
        (0..work.rows.len()).try_for_each(|index| self.lost(work, index, failure.clone(), log))
    }

    /// Whether the time of the items is over.
    pub(crate) fn is_late(&self, work: &Work) -> bool {
        let end = work.first.zip(self.operator.policy.deadline).map(|(first, time)| first + time);
        end.is_some_and(|end| end <= Instant::now())
    }

    /// How long to wait before the next attempt; `None` if there is none.
    fn delay(&self, work: &Work, failure: &Failure) -> Option<Duration> {
        if work.last {
            return None;
        }
        let policy = &self.operator.policy;
        let random = self.operator.random();
        let wait = policy.retry.next_delay(work.attempt, failure, policy.effects, random)?;
        let ends = work.first.zip(policy.deadline).map(|(first, time)| first + time);
        match ends {
            Some(end) if Instant::now() + wait >= end => None,
            _ => Some(wait),
        }
    }

    /// Takes an intent back when the call surely had no effect.
    pub(crate) fn withdraw(
        &self,
        log: Option<&ChunkLog>,
        work: &Work,
        failure: &Failure,
        keys: impl IntoIterator<Item = [u8; 16]>,
    ) -> Result<(), Failure> {
        match log {
            Some(log) if work.announced && matches!(failure.how_far(), Sent::Never | Sent::Refused) => {
                log.withdraw(keys)
            }
            _ => Ok(()),
        }
    }

    /// Whether an item failed because the run was told to stop.
    pub(crate) fn was_cut_off(&self, failure: &Failure) -> bool {
        failure.code() == FailureCode::Cancelled && self.cancel.is_cancelled()
    }

    /// An item whose step stops: left as it is, unless its call may have had its effect.
    pub(crate) fn left(
        &mut self,
        work: &Work,
        index: usize,
        failure: Failure,
        log: Option<&ChunkLog>,
    ) -> Result<(), Failure> {
        let effects = self.operator.policy.effects;
        if failure.verdict(effects) == Verdict::Unknown || is_over(&failure, effects) {
            return self.lost(work, index, failure, log);
        }
        // What is not settled has not run.
        if matches!(failure.how_far(), Sent::Never | Sent::Refused) {
            self.withdraw(log, work, &failure, [work.keys.key(index).0])?;
        }
        Ok(())
    }

    /// An item that has had its last attempt.
    fn lost(&mut self, work: &Work, index: usize, failure: Failure, log: Option<&ChunkLog>) -> Result<(), Failure> {
        let policy = &self.operator.policy;
        let verdict = failure.verdict(policy.effects);
        // Where a failure stops the run, a resumed run is to try again what may be tried again.
        let final_here = !matches!(policy.on_error, OnError::Fail) || is_over(&failure, policy.effects);
        if let Some(log) = log
            && verdict != Verdict::Unknown
            && final_here
        {
            log.results(vec![(work.keys.key(index).0, effects::failed(&failure, work.attempt))])?;
        }
        let decision = error_decision(&policy.on_error, verdict);
        let row = work.rows.at(index);
        let attempts = work.attempt;
        self.settled.losses.push(Loss { row, failure: Some(failure), attempts, outcome: decision.outcome });
        Ok(())
    }

    /// Records the results of a reply, item by item.
    fn record(&self, log: &ChunkLog, keys: &ItemKeys, reply: &BatchReply) -> Result<(), Failure> {
        let rows = self.operator.codec()?.encode(&reply.output)?;
        let row_at = |row| rows.as_ref().map_or(&[][..], |rows| rows.row(row).data());
        let kept = kept(reply, keys.len());
        let mut results = Vec::with_capacity(keys.len());
        match &reply.source_rows {
            None => {
                for (row, index) in kept.into_iter().enumerate() {
                    results.push((keys.key(index as usize).0, effects::one_row(row_at(row))));
                }
            }
            Some(sources) => {
                let mut row = 0;
                for index in kept {
                    let start = row;
                    while sources.get(row) == Some(&index) {
                        row += 1;
                    }
                    results.push((keys.key(index as usize).0, effects::many_rows((start..row).map(row_at))));
                }
            }
        }
        results.extend(reply.skipped.iter().map(|index| (keys.key(*index as usize).0, effects::skipped())));
        log.results(results)
    }
}

/// Whether a call that failed must not be made again, and that is known.
pub(crate) fn is_over(failure: &Failure, effects: Effects) -> bool {
    !effects.repeatable() && failure.how_far() == Sent::Answered
}

/// The keys of a group's items.
pub(crate) fn all(keys: &ItemKeys) -> impl Iterator<Item = [u8; 16]> + '_ {
    (0..keys.len()).map(|index| keys.key(index).0)
}

fn add(again: &mut Vec<Again>, asked: Option<Duration>, delay: Duration, item: u32) {
    let known = again.iter().position(|other| other.asked == asked);
    match known.or_else(|| (again.len() >= WAITS).then_some(WAITS - 1)).and_then(|at| again.get_mut(at)) {
        Some(others) => {
            others.delay = others.delay.max(delay);
            others.items.push(item);
        }
        None => again.push(Again { asked, delay, items: vec![item] }),
    }
}

/// The items of a reply that are ok.
fn kept(reply: &BatchReply, items: usize) -> Vec<u32> {
    if reply.is_all_ok() {
        return (0..items as u32).collect();
    }
    let mut lost: Vec<u32> = reply.skipped.iter().copied().chain(reply.failures.iter().map(|(at, _)| *at)).collect();
    lost.sort_unstable();
    (0..items as u32).filter(|index| lost.binary_search(index).is_err()).collect()
}

pub(crate) fn broken(error: arrow::error::ArrowError) -> Failure {
    Failure::new(FailureCode::Internal, error.to_string(), &rowmill_step::Redactor::new()).sent(Sent::Never)
}
