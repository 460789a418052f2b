//! One group of items from its first attempt to its last: slots, limits, deadline, waits.

use std::sync::Arc;

use arrow::array::{RecordBatch, UInt32Array};
use rowmill_step::{
    BatchReply, Failure, FailureCode, ItemBatch, ItemIds, ItemKeys, KeyDeriver, Sent, StepSession, attempt, caught,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::effects::ChunkLog;
use crate::operator::{Scope, StepOperator, StopReason};
use crate::replies::{all, broken};
use crate::sessions::Slot;
use crate::unit::{Loss, Piece, Rows, select_ids, take_rows};

/// A group on its way.
pub(crate) struct Group {
    pub(crate) unit: u64,
    pub(crate) rows: Rows,
    pub(crate) columns: RecordBatch,
    pub(crate) ids: ItemIds,
}

/// What ends a group before its time.
pub(crate) struct Ends {
    /// No attempt begins any more, and no wait goes on.
    pub(crate) cancel: Arc<CancellationToken>,
    /// Attempts under way end.
    pub(crate) flight: Arc<CancellationToken>,
}

/// What a probe of the cache leaves of a unit.
pub(crate) struct Left {
    /// Rows that are to be sent, ascending.
    pub(crate) todo: Vec<u32>,
    /// Rows that get what another row gets: (row, the row that is sent).
    pub(crate) followers: Vec<(u32, u32)>,
}

/// What became of a group: every item is in exactly one of these.
#[derive(Default)]
pub(crate) struct Settled {
    pub(crate) unit: u64,
    /// Items that are ok, with or without rows.
    pub(crate) ok: usize,
    /// Whether those are ok without a call of their own.
    pub(crate) cached: bool,
    /// What is left to do of a unit that was probed, and who gets what another row gets.
    pub(crate) left: Option<Left>,
    pub(crate) pieces: Vec<Piece>,
    pub(crate) losses: Vec<Loss>,
}

/// Items that go into one attempt.
pub(crate) struct Work {
    pub(crate) rows: Rows,
    pub(crate) columns: RecordBatch,
    pub(crate) keys: ItemKeys,
    /// The next attempt, from 1.
    pub(crate) attempt: u32,
    /// When it is due; at once where there is nothing to wait for.
    pub(crate) not_before: Option<Instant>,
    /// When the first attempt began.
    pub(crate) first: Option<Instant>,
    /// Whether the log says that its calls are about to be made.
    pub(crate) announced: bool,
    /// Attempts that do not count, since whoever made them was lost.
    pub(crate) losses: u32,
    /// No attempt after the next: set for halves of a group that had all of its attempts.
    pub(crate) last: bool,
}

impl Work {
    pub(crate) fn select(&self, indexes: &[u32], deriver: &Arc<KeyDeriver>) -> Result<Self, Failure> {
        let columns = take_rows(&self.columns, &UInt32Array::from(indexes.to_vec())).map_err(broken)?;
        let keys = ItemKeys::new(select_ids(self.keys.ids(), indexes), Arc::clone(deriver));
        Ok(Self { rows: self.rows.select(indexes), columns, keys, ..*self })
    }

    pub(crate) fn slice(&self, offset: usize, length: usize) -> Self {
        Self {
            rows: self.rows.slice(offset, length),
            columns: self.columns.slice(offset, length),
            keys: self.keys.slice(offset, length),
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
    ends: Ends,
) -> Settled {
    let keys = ItemKeys::new(group.ids, Arc::clone(&operator.keys));
    let settled = Settled { unit: group.unit, ..Settled::default() };
    let mut next = Some(Work {
        rows: group.rows,
        columns: group.columns,
        keys,
        attempt: 1,
        not_before: None,
        first: None,
        announced: false,
        losses: 0,
        last: false,
    });
    let mut slot = Some(slot);
    let Ends { cancel, flight } = ends;
    let mut settler = Settler { operator: &operator, scope: &scope, cancel, flight, settled, open: Vec::new() };
    while let Some(work) = next {
        if let Some(due) = work.not_before
            && due > Instant::now()
        {
            drop(slot.take());
            let _waiting = scope.tally.waiting();
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                () = settler.cancel.cancelled() => break,
            }
        }
        let mut held = match slot.take() {
            Some(held) => held,
            None => tokio::select! {
                held = operator.slots.take() => held,
                () = settler.cancel.cancelled() => break,
            },
        };
        match settler.try_once(work, &mut held).await {
            Ok(true) => {}
            Ok(false) => break,
            Err(failure) => {
                operator.stop(StopReason::Fatal { failure });
                break;
            }
        }
        slot = Some(held);
        next = settler.due();
        if next.is_some() && settler.cancel.is_cancelled() {
            break;
        }
    }
    settler.settled
}

pub(crate) struct Settler<'a> {
    pub(crate) operator: &'a StepOperator,
    pub(crate) scope: &'a Scope,
    pub(crate) cancel: Arc<CancellationToken>,
    pub(crate) flight: Arc<CancellationToken>,
    pub(crate) settled: Settled,
    /// What is not over yet.
    pub(crate) open: Vec<Work>,
}

impl Settler<'_> {
    /// What is due next, so that halves go on while others wait.
    fn due(&mut self) -> Option<Work> {
        let next = (0..self.open.len()).min_by_key(|at| self.open[*at].not_before)?;
        Some(self.open.swap_remove(next))
    }

    /// One attempt. False when the run was cancelled; an error when the step cannot go on at all.
    async fn try_once(&mut self, mut work: Work, slot: &mut Slot) -> Result<bool, Failure> {
        let operator = self.operator;
        let policy = &operator.policy;
        let scope = self.scope;
        let log = scope.log.as_ref().filter(|_| policy.effects.logged());
        let mut batch = ItemBatch {
            columns: work.columns.clone(),
            keys: work.keys.clone(),
            attempt: work.attempt,
            deadline: None,
            stop: CancellationToken::clone(&self.cancel),
            cancel: CancellationToken::clone(&self.flight),
            place: None,
        };
        // Before the limits are asked: a wait for somebody to do the work must not end in a burst of calls.
        let place = tokio::select! {
            place = caught(operator.executor.place(&batch, &operator.context), &operator.context) => place,
            () = self.cancel.cancelled() => return Ok(false),
        };
        match place {
            Ok(place) => batch.place = place,
            Err(failure) => return self.ended(work, Err(failure), log, false),
        }
        let mut admission = None;
        if operator.is_limited() {
            let cost = operator.executor.cost(&batch);
            admission = Some(tokio::select! {
                admission = operator.admit(cost) => admission,
                () = self.cancel.cancelled() => return Ok(false),
            });
        }
        if self.is_late(&work) {
            // A wait for a slot or a limit was longer than it looked when the attempt was planned.
            let failure = Failure::fixed(FailureCode::Timeout, "the deadline passed before the next attempt began");
            self.failed_whole(work, failure.retryable(false).sent(Sent::Never), log, false)?;
            return Ok(true);
        }
        let session = match slot.warm() {
            Some(session) => Ok(session),
            None => tokio::select! {
                session = caught(operator.executor.open(&operator.context, &operator.shape), &operator.context) => session,
                () = self.cancel.cancelled() => return Ok(false),
            },
        };
        let (result, opened) = match session {
            Err(failure) => (Err(failure.sent(Sent::Never)), false),
            Ok(mut session) => {
                if let Some(log) = log
                    && !self.announce(log, &mut work).await?
                {
                    slot.keep(session);
                    return Ok(false);
                }
                let now = Instant::now();
                let first = *work.first.get_or_insert(now);
                let items = if operator.executor.times_items() { batch.rows().max(1) } else { 1 };
                let timeout = policy.timeout.map(|time| time.saturating_mul(u32::try_from(items).unwrap_or(u32::MAX)));
                let ends = [timeout.and_then(|time| now.checked_add(time)), policy.deadline.map(|time| first + time)];
                batch.deadline = ends.into_iter().flatten().min();
                scope.tally.attempted(work.attempt);
                let _flying = scope.tally.flying();
                let open: &mut dyn StepSession = session.as_mut();
                let at = batch.place.as_ref().map(|place| Arc::clone(place.at()));
                let made = attempt(open, batch, &operator.context, &operator.shape, operator.cardinality()).await;
                if let Some(at) = at {
                    scope.tally.made_at(&at, work.rows.len() as u64, now.elapsed());
                }
                if made.usable {
                    slot.keep(session);
                }
                (made.result, true)
            }
        };
        if let Some(admission) = admission {
            admission.finish(result.as_ref().err());
        }
        self.ended(work, result, log, opened)
    }

    /// What the end of an attempt means. False when the run was cancelled; an error when the step cannot go on at all.
    fn ended(
        &mut self,
        work: Work,
        result: Result<BatchReply, Failure>,
        log: Option<&ChunkLog>,
        opened: bool,
    ) -> Result<bool, Failure> {
        match result {
            Ok(reply) => self.replied(work, reply, log)?,
            Err(failure) => {
                let stops = failure.code() == FailureCode::Setup
                    || (failure.code() == FailureCode::Internal && failure.how_far() == Sent::Never);
                if !stops && !self.was_cut_off(&failure) {
                    self.failed_whole(work, failure, log, opened)?;
                    return Ok(true);
                }
                (0..work.rows.len()).try_for_each(|index| self.left(&work, index, failure.clone(), log))?;
                return if stops { Err(failure) } else { Ok(false) };
            }
        }
        Ok(true)
    }

    /// Announces the calls of a `once` step, and waits for a log that cannot keep up. False when the run was cancelled.
    async fn announce(&self, log: &ChunkLog, work: &mut Work) -> Result<bool, Failure> {
        tokio::select! {
            biased;
            () = log.room() => {}
            () = self.cancel.cancelled() => return Ok(false),
        }
        if !self.operator.policy.effects.intent_first() {
            return Ok(true);
        }
        if self.cancel.is_cancelled() {
            return Ok(false);
        }
        // Polled first, so that what is taken back below was written.
        tokio::select! {
            biased;
            announced = log.intend(all(&work.keys)) => {
                announced?;
                if !self.cancel.is_cancelled() {
                    work.announced = true;
                    return Ok(true);
                }
            }
            () = self.cancel.cancelled() => {}
        }
        // It was not sent, and the log should not say that it may have been.
        log.withdraw(all(&work.keys))?;
        Ok(false)
    }
}
