//! Drives one partition of a step: pulls input, starts groups as slots get free, settles them, hands units on.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered};
use futures::{FutureExt as _, StreamExt as _};
use rowmill_step::{Failure, FailureCode, ItemIds, Outcome, Redactor, Reservation, Sent};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::cached::{StepCache, settle_followers};
use crate::intake::Intake;
use crate::operator::{BoxError, Scope, StepOperator, StepStopped, StopReason};
use crate::outcomes::{note, write_losses};
use crate::policy::Order;
use crate::replay::replay;
use crate::sessions::Slot;
use crate::settle::{Ends, Group, Left, Settled, settle};
use crate::size::{batch_bytes, group_ends};
use crate::unit::{Rows, Unit};

/// Groups of one partition that wait for their next attempt, at most; then no new ones are begun.
const MAX_OPEN: usize = 65_536;

pub(crate) struct Driver {
    operator: Arc<StepOperator>,
    scope: Arc<Scope>,
    input: BoxStream<'static, Result<RecordBatch, BoxError>>,
    out: mpsc::Sender<Result<RecordBatch, BoxError>>,
    cancel: Arc<CancellationToken>,
    /// Ends attempts under way: the same, except where they are given time.
    flight: Arc<CancellationToken>,
    /// Input for which there is no room yet, or too little for a group.
    intake: Intake,
    input_done: bool,
    next_row: u64,
    next_unit: u64,
    /// Units under way, by ascending number.
    window: VecDeque<Unit>,
    /// Bytes of the units under way, and of those that wait for the consumer.
    held_bytes: usize,
    /// No unit before this one has rows that are not started.
    starting: u64,
    /// Rows that are not started.
    todo: usize,
    running: FuturesUnordered<BoxFuture<'static, Settled>>,
    next_slot: Option<BoxFuture<'static, Slot>>,
    /// Units that wait for the consumer.
    ready: VecDeque<Done>,
}

/// A unit that is settled, with the memory that it still holds.
struct Done {
    output: RecordBatch,
    bytes: usize,
    _memory: Option<Reservation>,
}

/// What a driver waits for.
enum Event {
    Cancelled,
    Settled(Settled),
    Slot(Slot),
    Input(Option<Result<RecordBatch, BoxError>>),
}

impl Driver {
    pub(crate) fn new(
        operator: Arc<StepOperator>,
        scope: Arc<Scope>,
        input: BoxStream<'static, Result<RecordBatch, BoxError>>,
        out: mpsc::Sender<Result<RecordBatch, BoxError>>,
        cancel: CancellationToken,
    ) -> Self {
        // A durable run hands on whole chunks.
        let large = scope.log.is_some() || operator.cache.is_some();
        let intake = Intake::new(operator.policy.target, operator.policy.reorder_bytes, large);
        let cancel = Arc::new(cancel);
        let drains = scope.log.is_some() && operator.policy.effects.intent_first();
        let flight = if drains { Arc::default() } else { Arc::clone(&cancel) };
        Self {
            operator,
            scope,
            input,
            out,
            cancel,
            flight,
            intake,
            input_done: false,
            next_row: 0,
            next_unit: 0,
            window: VecDeque::new(),
            held_bytes: 0,
            starting: 0,
            todo: 0,
            running: FuturesUnordered::new(),
            next_slot: None,
            ready: VecDeque::new(),
        }
    }

    /// Drives the partition to its end. The token is held until counts and ledger are complete.
    pub(crate) async fn run(mut self, live: TaskTrackerToken) {
        let ended = match AssertUnwindSafe(self.drive()).catch_unwind().await {
            Ok(ended) => ended,
            Err(_panic) => {
                // Whatever it was, a stream that ends early must not look like one that is complete.
                let failure = Failure::fixed(FailureCode::Panicked, "the step, or what feeds it, panicked");
                self.operator.stop(StopReason::Fatal { failure });
                Ok(())
            }
        };
        self.end_attempts().await;
        for mut unit in std::mem::take(&mut self.window) {
            self.scope.tally.settled(Outcome::NotRun, unit.unsettled as u64);
            write_losses(&self.operator, &self.scope, &mut unit);
        }
        self.scope.tally.settled(Outcome::NotRun, self.intake.rows() as u64);
        let error = match (self.operator.stopped(), ended) {
            (Some(stopped), _) => Some(Box::new(stopped.clone()) as BoxError),
            (None, Err(error)) => Some(error),
            (None, Ok(())) => None,
        };
        let out = self.out.clone();
        // Memory goes back, and the input ends, before the consumer hears of the error.
        drop(self);
        drop(live);
        if let Some(error) = error {
            let _ = out.send(Err(error)).await;
        }
    }

    /// Ends what is under way. Attempts heed the cancellation, and say how far they came.
    async fn end_attempts(&mut self) {
        self.cancel.cancel();
        self.next_slot = None;
        let flight = Arc::clone(&self.flight);
        let drain = self.operator.policy.drain;
        let patience = async {
            tokio::time::sleep(drain).await;
            flight.cancel();
            std::future::pending::<()>().await;
        };
        tokio::pin!(patience);
        loop {
            let settled = tokio::select! {
                settled = self.running.next() => settled,
                () = &mut patience => None,
            };
            match settled {
                Some(settled) => self.apply(settled),
                None => break,
            }
        }
        self.flight.cancel();
    }

    async fn drive(&mut self) -> Result<(), BoxError> {
        let cancel = Arc::clone(&self.cancel);
        let cancelled = cancel.cancelled();
        tokio::pin!(cancelled);
        if self.scope.log.is_some()
            && self.operator.policy.effects.logged()
            && let Err(failure) = self.operator.codec()
        {
            // Found before the first call is made, not when its result cannot be kept.
            self.operator.stop(StopReason::Fatal { failure });
        }
        loop {
            self.admit_units();
            self.start_groups();
            if self.is_done() {
                return Ok(());
            }
            let pull = !self.input_done && self.intake.is_empty() && !self.has_todo();
            let wait_for_slot = self.has_todo() && self.running.len() < MAX_OPEN;
            if wait_for_slot && self.next_slot.is_none() {
                let operator = Arc::clone(&self.operator);
                self.next_slot = Some(async move { operator.slots.take().await }.boxed());
            }
            let Self { out, ready, held_bytes, running, next_slot, input, .. } = self;
            let slot = async {
                match next_slot {
                    Some(next) => next.await,
                    None => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                biased;
                () = &mut cancelled => Event::Cancelled,
                permit = out.reserve(), if !ready.is_empty() => match (permit, ready.pop_front()) {
                    (Ok(permit), Some(done)) => {
                        *held_bytes -= done.bytes;
                        permit.send(Ok(done.output));
                        continue;
                    }
                    // Nobody wants more.
                    _ => return Ok(()),
                },
                Some(settled) = running.next(), if !running.is_empty() => Event::Settled(settled),
                slot = slot, if wait_for_slot => Event::Slot(slot),
                next = input.next(), if pull => Event::Input(next),
            };
            match event {
                Event::Cancelled if self.operator.context.cancel.is_cancelled() => return Err(self.cancelled()),
                Event::Cancelled => return Ok(()),
                Event::Settled(settled) => {
                    self.apply(settled);
                    // Groups of one item end in swarms.
                    while let Some(Some(settled)) = self.running.next().now_or_never() {
                        self.apply(settled);
                    }
                }
                Event::Slot(slot) => {
                    self.next_slot = None;
                    self.start(slot);
                }
                Event::Input(Some(batch)) => {
                    let batch = batch?;
                    self.scope.tally.came(batch.num_rows() as u64);
                    self.intake.take(batch)?;
                }
                Event::Input(None) => {
                    self.input_done = true;
                    self.intake.flush()?;
                }
            }
        }
    }

    fn cancelled(&self) -> BoxError {
        Box::new(StepStopped { step: Arc::clone(&self.operator.context.step), reason: StopReason::Cancelled })
    }

    fn is_done(&self) -> bool {
        self.input_done && self.intake.is_empty() && self.window.is_empty() && self.ready.is_empty()
    }

    /// Makes units while there is room.
    fn admit_units(&mut self) {
        while let Some(bytes) = self.intake.next_bytes() {
            let empty = self.window.is_empty() && self.ready.is_empty();
            if !empty && self.held_bytes + bytes > self.operator.policy.reorder_bytes {
                return;
            }
            let mut memory = Reservation::new(Arc::clone(&self.operator.context.memory));
            let reserved = memory.grow(bytes).is_ok();
            // One unit goes on even where there is no memory to be had: it is held by the stream anyway.
            if !reserved && !empty {
                return;
            }
            if let Some(batch) = self.intake.pop() {
                self.admit(batch, bytes, reserved.then_some(memory));
            }
        }
    }

    fn admit(&mut self, input: RecordBatch, bytes: usize, memory: Option<Reservation>) {
        let rows = input.num_rows();
        let operator = Arc::clone(&self.operator);
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let read = input.project(&operator.reads).and_then(|read| {
            RecordBatch::try_new_with_options(Arc::clone(&operator.shape.input), read.columns().to_vec(), &options)
        });
        let read = match read {
            Ok(read) => read,
            Err(error) => return self.broken(rows, &error.to_string()),
        };
        let target = operator.policy.target;
        let small = batch_bytes(&read) <= target.bytes;
        let first = self.next_row;
        let places = ItemIds::Range { file: self.scope.place, rows: first..first + rows as u64 };
        let ids = match &self.scope.earlier {
            Some(earlier) if earlier.ids.len() as u64 >= first + rows as u64 => earlier.ids.slice(first as usize, rows),
            _ => places.clone(),
        };
        let mut unit = Unit {
            number: self.next_unit,
            ids,
            places,
            input,
            bytes,
            unsettled: rows,
            todo: Rows::Range(0..rows as u32),
            started: 0,
            group_rows: target.rows.max(1),
            group_ends: (!small).then(|| group_ends(&read, target.rows, target.bytes)),
            read,
            pieces: Vec::new(),
            losses: Vec::new(),
            keys: None,
            followers: Vec::new(),
            memory,
        };
        self.next_unit += 1;
        self.next_row += rows as u64;
        self.held_bytes += bytes;
        if let Some(earlier) = &self.scope.earlier {
            match earlier.settle(first as usize, &mut unit, &operator.shape.output) {
                Ok(settled) => {
                    self.scope.tally.replayed((settled.ok + settled.losses.len()) as u64);
                    self.held_bytes += note(&operator, &self.scope, &self.cancel, &mut unit, settled);
                }
                Err(error) => return self.broken(rows, &error.to_string()),
            }
        }
        if let Some(log) = self.scope.log.as_ref().filter(|log| !log.is_fresh() && operator.policy.effects.logged()) {
            let settled = replay(&operator, &mut unit, log);
            self.scope.tally.replayed((settled.ok + settled.losses.len()) as u64);
            self.held_bytes += note(&operator, &self.scope, &self.cancel, &mut unit, settled);
        }
        if let Some(cache) = &operator.cache {
            self.probe(cache, &mut unit);
        }
        self.todo += unit.todo.len();
        self.window.push_back(unit);
        self.hand_on();
    }

    /// Begins to look a unit's rows up; nothing of it is sent before that is over.
    fn probe(&mut self, cache: &StepCache, unit: &mut Unit) {
        let keys = match cache.keys(&unit.input) {
            Ok(keys) => Arc::new(keys),
            Err(error) => {
                let failure = Failure::new(FailureCode::Setup, error.to_string(), &Redactor::new());
                return self.operator.stop(StopReason::Fatal { failure: failure.sent(Sent::Never) });
            }
        };
        let todo: Vec<u32> = unit.todo.iter().collect();
        unit.todo = Rows::List(Vec::new());
        unit.keys = Some(Arc::clone(&keys));
        let probe = cache.clone().probe(unit.number, todo, keys, Arc::clone(&self.operator.shape.output));
        let probed = async move {
            let probed = probe.await;
            Settled { left: Some(probed.left), ..probed.settled }
        };
        self.running.push(probed.boxed());
    }

    fn broken(&mut self, rows: usize, message: &str) {
        self.scope.tally.settled(Outcome::NotRun, rows as u64);
        let failure = Failure::new(FailureCode::Internal, message, &Redactor::new()).sent(Sent::Never);
        self.operator.stop(StopReason::Fatal { failure });
    }

    fn has_todo(&self) -> bool {
        self.todo > 0
    }

    /// Starts groups on slots that are free right now.
    fn start_groups(&mut self) {
        while self.next_slot.is_none() && self.running.len() < MAX_OPEN && self.has_todo() {
            match self.operator.slots.try_take() {
                Some(slot) => self.start(slot),
                None => return,
            }
        }
    }

    /// Starts the next group.
    fn start(&mut self, slot: Slot) {
        let from = self.window.partition_point(|unit| unit.number < self.starting);
        for at in from..self.window.len() {
            let Some(unit) = self.window.get_mut(at) else { return };
            let Some(rows) = unit.next_group() else { continue };
            self.starting = unit.number;
            self.todo -= rows.len();
            let group = match unit.columns(&rows) {
                Ok(columns) => Group { unit: unit.number, ids: unit.ids(&rows), columns, rows },
                Err(error) => {
                    let failure = Failure::new(FailureCode::Internal, error.to_string(), &Redactor::new());
                    self.operator.stop(StopReason::Fatal { failure: failure.sent(Sent::Never) });
                    return;
                }
            };
            let work = settle(Arc::clone(&self.operator), group, slot, Arc::clone(&self.scope), self.ends());
            self.running.push(work.boxed());
            return;
        }
    }

    fn ends(&self) -> Ends {
        Ends { cancel: Arc::clone(&self.cancel), flight: Arc::clone(&self.flight) }
    }

    /// Notes what became of a group, and hands on what is complete.
    fn apply(&mut self, mut settled: Settled) {
        let at = self.window.partition_point(|unit| unit.number < settled.unit);
        let Some(unit) = self.window.get_mut(at).filter(|unit| unit.number == settled.unit) else { return };
        if let Some(Left { todo, followers }) = settled.left.take() {
            self.todo += todo.len();
            self.starting = self.starting.min(unit.number);
            unit.todo = Rows::List(todo);
            unit.followers = followers;
        }
        self.held_bytes += note(&self.operator, &self.scope, &self.cancel, unit, settled);
        match settle_followers(unit) {
            Ok(Some(settled)) => {
                self.held_bytes += note(&self.operator, &self.scope, &self.cancel, unit, settled);
            }
            Ok(None) => {}
            Err(error) => {
                let failure = Failure::new(FailureCode::Internal, error.to_string(), &Redactor::new());
                self.operator.stop(StopReason::Fatal { failure: failure.sent(Sent::Answered) });
            }
        }
        if unit.is_settled() {
            self.hand_on();
        }
    }

    /// Begins to store a complete unit's results.
    fn store(&mut self, unit: &Unit) {
        let Some(cache) = &self.operator.cache else { return };
        match cache.to_store(unit, self.operator.cardinality()) {
            Ok(Some(store)) => self.running.push(
                async move {
                    store.store().await;
                    // No unit has this number.
                    Settled { unit: u64::MAX, ..Settled::default() }
                }
                .boxed(),
            ),
            Ok(None) => {}
            Err(error) => tracing::warn!("results cannot be put into the cache: {error}"),
        }
    }

    /// Hands on the units that are settled: from the front, or all of them where the order does not matter.
    fn hand_on(&mut self) {
        let mut at = 0;
        while let Some(unit) = self.window.get(at) {
            if !unit.is_settled() {
                match self.operator.policy.order {
                    Order::Input => return,
                    Order::Any => {
                        at += 1;
                        continue;
                    }
                }
            }
            let Some(mut unit) = self.window.remove(at) else { return };
            self.store(&unit);
            write_losses(&self.operator, &self.scope, &mut unit);
            match unit.assemble(&self.operator.output) {
                Ok(output) if output.num_rows() > 0 => {
                    self.ready.push_back(Done { output, bytes: unit.bytes, _memory: unit.memory });
                }
                Ok(_empty) => self.held_bytes -= unit.bytes,
                Err(error) => {
                    self.held_bytes -= unit.bytes;
                    let failure = Failure::new(FailureCode::Internal, error.to_string(), &Redactor::new());
                    self.operator.stop(StopReason::Fatal { failure: failure.sent(Sent::Answered) });
                }
            }
        }
    }
}
