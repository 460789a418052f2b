//! One group of items from its first attempt to its last: limits, deadline, retry with backoff, bisection.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use rowmill_step::{
    BatchReply, Failure, FailureCode, ItemBatch, ItemIds, ItemKeys, Outcome, Sent, Verdict, attempt, error_decision,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::effects::{self, ChunkLog};
use crate::operator::{Scope, StepOperator, StopReason};
use crate::sessions::Slot;
use crate::unit::{Loss, Piece, Rows, select_ids};

/// A group on its way.
pub(crate) struct Group {
    pub(crate) unit: u64,
    pub(crate) rows: Rows,
    pub(crate) columns: RecordBatch,
    pub(crate) ids: ItemIds,
}

/// What became of a group: every item is in exactly one of these.
#[derive(Default)]
pub(crate) struct Settled {
    pub(crate) unit: u64,
    /// Items that are ok, with or without rows.
    pub(crate) ok: usize,
    pub(crate) pieces: Vec<Piece>,
    pub(crate) losses: Vec<Loss>,
}

/// Items that go into one attempt.
struct Work {
    rows: Rows,
    columns: RecordBatch,
    ids: ItemIds,
    /// The next attempt, from 1.
    attempt: u32,
    /// Attempts that this work may have in all; a bisected half of a group that was retried gets no more.
    not_before: Option<Instant>,
    first: Option<Instant>,
    /// No attempt after the next: set for halves of a group that had all of its attempts.
    last: bool,
}

impl Work {
    fn select(&self, indexes: &[u32]) -> Result<Self, Failure> {
        let columns = take_record_batch(&self.columns, &UInt32Array::from(indexes.to_vec())).map_err(broken)?;
        Ok(Self { rows: self.rows.select(indexes), columns, ids: select_ids(&self.ids, indexes), ..*self })
    }

    fn slice(&self, offset: usize, length: usize) -> Self {
        Self {
            rows: self.rows.slice(offset, length),
            columns: self.columns.slice(offset, length),
            ids: self.ids.slice(offset, length),
            ..*self
        }
    }
}

/// Brings a group to its end. A group that was cancelled leaves its items out: they are not settled.
pub(crate) async fn settle(
    operator: Arc<StepOperator>,
    group: Group,
    slot: Slot,
    scope: Arc<Scope>,
    cancel: CancellationToken,
) -> Settled {
    let settler = Settler { operator: &operator, scope: &scope, cancel };
    let mut settled = Settled { unit: group.unit, ..Settled::default() };
    let mut slot = Some(slot);
    let mut open = vec![Work {
        rows: group.rows,
        columns: group.columns,
        ids: group.ids,
        attempt: 1,
        not_before: None,
        first: None,
        last: false,
    }];
    // What is due next comes first, so that halves go on while others wait.
    while let Some(next) = (0..open.len()).min_by_key(|at| open[*at].not_before) {
        let work = open.swap_remove(next);
        if let Some(due) = work.not_before
            && due > Instant::now()
        {
            drop(slot.take());
            let _waiting = scope.tally.waiting();
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                () = settler.cancel.cancelled() => return settled,
            }
        }
        let mut held = match slot.take() {
            Some(held) => held,
            None => tokio::select! {
                held = operator.slots.take() => held,
                () = settler.cancel.cancelled() => return settled,
            },
        };
        let result = settler.try_once(work, &mut held, &mut settled, &mut open).await;
        slot = Some(held);
        match result {
            Ok(true) => {}
            Ok(false) => return settled,
            Err(failure) => {
                operator.stop(StopReason::Fatal { failure });
                return settled;
            }
        }
    }
    settled
}

struct Settler<'a> {
    operator: &'a StepOperator,
    scope: &'a Scope,
    cancel: CancellationToken,
}

impl Settler<'_> {
    /// One attempt. False when the run was cancelled; an error when the step cannot go on at all.
    async fn try_once(
        &self,
        mut work: Work,
        slot: &mut Slot,
        settled: &mut Settled,
        open: &mut Vec<Work>,
    ) -> Result<bool, Failure> {
        let operator = self.operator;
        let keys = ItemKeys::new(work.ids.clone(), Arc::clone(&operator.keys));
        let mut batch = ItemBatch {
            columns: work.columns.clone(),
            keys: keys.clone(),
            attempt: work.attempt,
            deadline: None,
            cancel: self.cancel.clone(),
        };
        let cost = operator.executor.cost(&batch);
        let admission = tokio::select! {
            admission = operator.admit(cost) => admission,
            () = self.cancel.cancelled() => return Ok(false),
        };
        let session = tokio::select! {
            session = slot.session(operator.executor.as_ref(), &operator.context, &operator.shape) => session,
            () = self.cancel.cancelled() => return Ok(false),
        };
        let logged = self.scope.log.as_ref().filter(|_| operator.policy.effects.logged());
        let (result, usable) = match session {
            Err(failure) => (Err(failure.sent(Sent::Never)), true),
            Ok(session) => {
                if let Some(log) = logged
                    && operator.policy.effects.intent_first()
                {
                    log.intend((0..keys.len()).map(|index| keys.key(index).0)).await?;
                }
                let now = Instant::now();
                let first = *work.first.get_or_insert(now);
                let ends =
                    [operator.policy.timeout.map(|time| now + time), operator.policy.deadline.map(|time| first + time)];
                batch.deadline = ends.into_iter().flatten().min();
                self.scope.tally.attempted(work.attempt);
                let _flying = self.scope.tally.flying();
                let made = attempt(session, batch, &operator.context, &operator.shape, operator.cardinality()).await;
                (made.result, made.usable)
            }
        };
        if !usable {
            slot.discard();
        }
        if let Some(admission) = admission {
            admission.finish(result.as_ref().err());
        }
        match result {
            Ok(reply) => self.replied(work, &keys, reply, logged, settled, open)?,
            Err(failure) => {
                if failure.code() == FailureCode::Setup
                    || (failure.code() == FailureCode::Internal && failure.how_far() == Sent::Never)
                {
                    return Err(failure);
                }
                if failure.code() == FailureCode::Cancelled
                    && self.cancel.is_cancelled()
                    && failure.verdict(operator.policy.effects) != Verdict::Unknown
                {
                    return Ok(false);
                }
                self.failed_whole(work, &keys, failure, logged, settled, open)?;
            }
        }
        Ok(true)
    }

    /// A reply for a group: rows, items to drop, items that failed.
    fn replied(
        &self,
        work: Work,
        keys: &ItemKeys,
        reply: BatchReply,
        log: Option<&ChunkLog>,
        settled: &mut Settled,
        open: &mut Vec<Work>,
    ) -> Result<(), Failure> {
        self.scope.tally.used(&reply.usage);
        if let Some(log) = log {
            self.record(log, keys, &reply)?;
        }
        let items = work.rows.len();
        settled.ok += items - reply.skipped.len() - reply.failures.len();
        let sources = match &reply.source_rows {
            Some(sources) => Some(work.rows.select(sources)),
            None if reply.is_all_ok() => None,
            None => {
                let lost: Vec<u32> = merge(&reply.skipped, reply.failures.iter().map(|(index, _)| *index));
                let kept: Vec<u32> = (0..items as u32).filter(|index| lost.binary_search(index).is_err()).collect();
                Some(work.rows.select(&kept))
            }
        };
        for index in &reply.skipped {
            settled.losses.push(Loss {
                row: work.rows.at(*index as usize),
                failure: None,
                attempts: work.attempt,
                outcome: Outcome::Skipped,
            });
        }
        let mut again: Vec<u32> = Vec::new();
        let mut delay = Duration::ZERO;
        for (index, failure) in reply.failures {
            match self.delay(&work, &failure) {
                Some(wait) => {
                    again.push(index);
                    delay = delay.max(wait);
                    self.withdraw(log, &failure, [keys.key(index as usize).0])?;
                }
                None => self.lost(&work, index as usize, failure, keys, log, settled)?,
            }
        }
        if !again.is_empty() {
            let mut work = work.select(&again)?;
            work.attempt += 1;
            work.not_before = Some(Instant::now() + delay);
            open.push(work);
        } else if sources.is_none() {
            settled.pieces.push(Piece { sources: work.rows, output: reply.output });
            return Ok(());
        }
        if let Some(sources) = sources {
            settled.pieces.push(Piece { sources, output: reply.output });
        }
        Ok(())
    }

    /// A group that failed whole: again later, in two halves, or over.
    fn failed_whole(
        &self,
        mut work: Work,
        keys: &ItemKeys,
        failure: Failure,
        log: Option<&ChunkLog>,
        settled: &mut Settled,
        open: &mut Vec<Work>,
    ) -> Result<(), Failure> {
        self.withdraw(log, &failure, (0..keys.len()).map(|index| keys.key(index).0))?;
        let items = work.rows.len();
        if let Some(wait) = self.delay(&work, &failure) {
            work.attempt += 1;
            work.not_before = Some(Instant::now() + wait);
            open.push(work);
            return Ok(());
        }
        if items > 1 && failure.bisectable(self.operator.policy.effects) {
            // A failure that passes had its attempts; one that does not would waste them.
            work.last = failure.is_retryable();
            work.not_before = None;
            let half = items / 2;
            open.push(work.slice(half, items - half));
            open.push(work.slice(0, half));
            return Ok(());
        }
        for index in 0..items {
            self.lost(&work, index, failure.clone(), keys, log, settled)?;
        }
        Ok(())
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
    fn withdraw(
        &self,
        log: Option<&ChunkLog>,
        failure: &Failure,
        keys: impl IntoIterator<Item = [u8; 16]>,
    ) -> Result<(), Failure> {
        match log {
            Some(log)
                if self.operator.policy.effects.intent_first()
                    && matches!(failure.how_far(), Sent::Never | Sent::Refused) =>
            {
                log.withdraw(keys)
            }
            _ => Ok(()),
        }
    }

    /// An item that has had its last attempt.
    fn lost(
        &self,
        work: &Work,
        index: usize,
        failure: Failure,
        keys: &ItemKeys,
        log: Option<&ChunkLog>,
        settled: &mut Settled,
    ) -> Result<(), Failure> {
        let verdict = failure.verdict(self.operator.policy.effects);
        if let Some(log) = log
            && verdict != Verdict::Unknown
        {
            log.results(vec![(keys.key(index).0, effects::failed(&failure, work.attempt))])?;
        }
        let decision = error_decision(&self.operator.policy.on_error, verdict);
        let row = work.rows.at(index);
        settled.losses.push(Loss { row, failure: Some(failure), attempts: work.attempt, outcome: decision.outcome });
        Ok(())
    }

    /// Records the results of a reply, item by item.
    fn record(&self, log: &ChunkLog, keys: &ItemKeys, reply: &BatchReply) -> Result<(), Failure> {
        let rows = self.operator.codec()?.encode(&reply.output)?;
        let lost: Vec<u32> = merge(&reply.skipped, reply.failures.iter().map(|(index, _)| *index));
        let kept = (0..keys.len() as u32).filter(|index| lost.binary_search(index).is_err());
        let mut results = Vec::with_capacity(keys.len());
        match &reply.source_rows {
            None => {
                for (row, index) in kept.enumerate() {
                    results.push((keys.key(index as usize).0, effects::one_row(rows.row(row).as_ref())));
                }
            }
            Some(sources) => {
                for index in kept {
                    let range =
                        sources.partition_point(|row| *row < index)..sources.partition_point(|row| *row <= index);
                    let kept: Vec<_> = range.map(|row| rows.row(row)).collect();
                    let bytes = effects::many_rows(kept.iter().map(AsRef::as_ref));
                    results.push((keys.key(index as usize).0, bytes));
                }
            }
        }
        results.extend(reply.skipped.iter().map(|index| (keys.key(*index as usize).0, effects::skipped())));
        log.results(results)
    }
}

/// Two ascending lists as one.
fn merge(left: &[u32], right: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut merged: Vec<u32> = left.iter().copied().chain(right).collect();
    merged.sort_unstable();
    merged
}

fn broken(error: arrow::error::ArrowError) -> Failure {
    Failure::new(FailureCode::Internal, error.to_string(), &rowmill_step::Redactor::new()).sent(Sent::Never)
}
