//! Drives one partition of a step: pulls input, starts groups as slots get free, settles them, hands units on.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered};
use futures::{FutureExt as _, StreamExt as _};
use rowmill_step::{
    Failure, FailureCode, ItemIds, OnError, Outcome, Redactor, Reservation, Sent, Verdict, error_decision,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::effects::{self, ChunkLog, Replay, Stored};
use crate::operator::{BoxError, Scope, StepOperator, StepStopped, StopReason};
use crate::sessions::Slot;
use crate::settle::{Group, Settled, settle};
use crate::unit::{Loss, Piece, Rows, Unit};

/// Rows of a unit where groups are smaller.
const UNIT_ROWS: usize = 8192;
/// Groups of one partition that wait for their next attempt, at most; then no new ones are begun.
const MAX_OPEN: usize = 65_536;

pub(crate) struct Driver {
    operator: Arc<StepOperator>,
    scope: Arc<Scope>,
    input: BoxStream<'static, Result<RecordBatch, BoxError>>,
    out: mpsc::Sender<Result<RecordBatch, BoxError>>,
    cancel: CancellationToken,
    /// Input that is too little for a group yet.
    pending: Vec<RecordBatch>,
    pending_rows: usize,
    /// Input cut into units, for which there is no room yet.
    incoming: VecDeque<RecordBatch>,
    input_done: bool,
    next_row: u64,
    next_unit: u64,
    /// Units under way, by ascending number.
    window: VecDeque<Unit>,
    window_bytes: usize,
    /// No unit before this one has rows that are not started.
    starting: u64,
    /// Rows that are not started.
    todo: usize,
    running: FuturesUnordered<BoxFuture<'static, Settled>>,
    next_slot: Option<BoxFuture<'static, Slot>>,
    ready: VecDeque<RecordBatch>,
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
        Self {
            operator,
            scope,
            input,
            out,
            cancel,
            pending: Vec::new(),
            pending_rows: 0,
            incoming: VecDeque::new(),
            input_done: false,
            next_row: 0,
            next_unit: 0,
            window: VecDeque::new(),
            window_bytes: 0,
            starting: 0,
            todo: 0,
            running: FuturesUnordered::new(),
            next_slot: None,
            ready: VecDeque::new(),
        }
    }

    pub(crate) async fn run(mut self) {
        let ended = self.drive().await;
        // Attempts heed the cancellation, and say how far they came.
        self.cancel.cancel();
        self.next_slot = None;
        while let Some(settled) = self.running.next().await {
            self.apply(settled);
        }
        for mut unit in std::mem::take(&mut self.window) {
            self.scope.tally.settled(Outcome::NotRun, unit.unsettled as u64);
            self.write_losses(&mut unit);
        }
        let error = match (self.operator.stopped(), ended) {
            (Some(stopped), _) => Some(Box::new(stopped.clone()) as BoxError),
            (None, Err(error)) => Some(error),
            (None, Ok(())) => None,
        };
        if let Some(error) = error {
            let _ = self.out.send(Err(error)).await;
        }
    }

    async fn drive(&mut self) -> Result<(), BoxError> {
        let cancel = self.cancel.clone();
        let cancelled = cancel.cancelled();
        tokio::pin!(cancelled);
        loop {
            self.admit_units();
            self.start_groups();
            if self.is_done() {
                return Ok(());
            }
            let pull = !self.input_done && self.incoming.is_empty() && !self.has_todo();
            let wait_for_slot = self.has_todo() && self.running.len() < MAX_OPEN;
            if wait_for_slot && self.next_slot.is_none() {
                let operator = Arc::clone(&self.operator);
                self.next_slot = Some(async move { operator.slots.take().await }.boxed());
            }
            let Self { out, ready, running, next_slot, input, .. } = self;
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
                    (Ok(permit), Some(batch)) => {
                        permit.send(Ok(batch));
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
                Event::Input(Some(batch)) => self.take(batch?)?,
                Event::Input(None) => {
                    self.input_done = true;
                    self.cut()?;
                }
            }
        }
    }

    fn cancelled(&self) -> BoxError {
        Box::new(StepStopped { step: Arc::clone(&self.operator.context.step), reason: StopReason::Cancelled })
    }

    fn is_done(&self) -> bool {
        self.input_done && self.incoming.is_empty() && self.window.is_empty() && self.ready.is_empty()
    }

    /// Takes a batch of the input.
    fn take(&mut self, batch: RecordBatch) -> Result<(), BoxError> {
        self.pending_rows += batch.num_rows();
        if batch.num_rows() > 0 {
            self.pending.push(batch);
        }
        if self.pending_rows >= self.operator.policy.target.rows.min(UNIT_ROWS) {
            self.cut()?;
        }
        Ok(())
    }

    /// Cuts what has gathered into units.
    fn cut(&mut self) -> Result<(), BoxError> {
        let pending = std::mem::take(&mut self.pending);
        self.pending_rows = 0;
        let batch = match pending.as_slice() {
            [] => return Ok(()),
            [one] => one.clone(),
            [first, ..] => concat_batches(&first.schema(), &pending)?,
        };
        let rows = self.operator.policy.target.rows.max(UNIT_ROWS);
        for offset in (0..batch.num_rows()).step_by(rows) {
            self.incoming.push_back(batch.slice(offset, rows.min(batch.num_rows() - offset)));
        }
        Ok(())
    }

    /// Makes units while there is room.
    fn admit_units(&mut self) {
        while let Some(batch) = self.incoming.front() {
            let bytes = sliced_bytes(batch);
            let empty = self.window.is_empty();
            if !empty && self.window_bytes + bytes > self.operator.policy.reorder_bytes {
                return;
            }
            let mut memory = Reservation::new(Arc::clone(&self.operator.context.memory));
            let reserved = memory.grow(bytes).is_ok();
            // One unit goes on even where there is no memory to be had: it is held by the stream anyway.
            if !reserved && !empty {
                return;
            }
            if let Some(batch) = self.incoming.pop_front() {
                self.admit(batch, bytes, reserved.then_some(memory));
            }
        }
    }

    fn admit(&mut self, input: RecordBatch, bytes: usize, memory: Option<Reservation>) {
        let rows = input.num_rows();
        let operator = Arc::clone(&self.operator);
        self.scope.tally.came(rows as u64);
        let read = match input.project(&operator.reads) {
            Ok(read) => match RecordBatch::try_new_with_options(
                Arc::clone(&operator.shape.input),
                read.columns().to_vec(),
                &arrow::array::RecordBatchOptions::new().with_row_count(Some(rows)),
            ) {
                Ok(read) => read,
                Err(error) => return self.broken(rows, &error.to_string()),
            },
            Err(error) => return self.broken(rows, &error.to_string()),
        };
        let target = operator.policy.target;
        let by_bytes = target.bytes.checked_div(bytes / rows.max(1)).unwrap_or(usize::MAX);
        let mut unit = Unit {
            number: self.next_unit,
            ids: ItemIds::Range { file: self.scope.place, rows: self.next_row..self.next_row + rows as u64 },
            input,
            read,
            bytes,
            unsettled: rows,
            todo: Rows::Range(0..rows as u32),
            started: 0,
            group_rows: target.rows.min(by_bytes).max(1),
            pieces: Vec::new(),
            losses: Vec::new(),
            _memory: memory,
        };
        self.next_unit += 1;
        self.next_row += rows as u64;
        self.window_bytes += bytes;
        if let Some(log) = self.scope.log.as_ref().filter(|log| !log.is_fresh() && operator.policy.effects.logged()) {
            self.replay(&mut unit, log);
        }
        self.todo += unit.todo.len();
        self.window.push_back(unit);
        self.hand_on();
    }

    fn broken(&mut self, rows: usize, message: &str) {
        self.scope.tally.settled(Outcome::NotRun, rows as u64);
        let failure = Failure::new(FailureCode::Internal, message, &Redactor::new()).sent(Sent::Never);
        self.operator.stop(StopReason::Fatal { failure });
    }

    /// Settles the items that earlier attempts of this chunk brought to an end.
    fn replay(&self, unit: &mut Unit, log: &ChunkLog) {
        let operator = Arc::clone(&self.operator);
        let mut rows = Vec::new();
        let mut sources = Vec::new();
        let mut todo = Vec::new();
        let mut settled = Settled { unit: unit.number, ..Settled::default() };
        for row in 0..unit.input.num_rows() as u32 {
            let loss = |failure: Option<Failure>, attempts, outcome| Loss { row, failure, attempts, outcome };
            let key = operator.keys.item(unit.ids.get(row as usize));
            let unknown = |message| {
                let failure = Failure::fixed(FailureCode::Crashed, message);
                let decision = error_decision(&operator.policy.on_error, Verdict::Unknown);
                loss(Some(failure), 1, decision.outcome)
            };
            match log.earlier(&key.0) {
                None => todo.push(row),
                Some(Replay::Intent) => settled.losses.push(unknown(
                    "the call was announced before the run was interrupted, and what became of it is not known; it is not sent again",
                )),
                Some(Replay::Result(bytes)) => match effects::stored(bytes) {
                    Some(Stored::Rows(found)) => {
                        settled.ok += 1;
                        sources.extend(std::iter::repeat_n(row, found.len()));
                        rows.extend(found);
                    }
                    Some(Stored::Failed(failure, attempts)) => {
                        let decision = error_decision(&operator.policy.on_error, Verdict::Final);
                        settled.losses.push(loss(Some(failure), attempts, decision.outcome));
                    }
                    Some(Stored::Skipped) => settled.losses.push(loss(None, 1, Outcome::Skipped)),
                    None => settled.losses.push(unknown("the effect log holds a result that cannot be read")),
                },
            }
        }
        if !rows.is_empty() {
            match operator.codec().and_then(|codec| codec.decode(&rows)) {
                Ok(output) => settled.pieces.push(Piece { sources: Rows::List(sources), output }),
                Err(failure) => operator.stop(StopReason::Fatal { failure }),
            }
        }
        unit.todo = Rows::List(todo);
        self.scope.tally.replayed((settled.ok + settled.losses.len()) as u64);
        self.settle_into(unit, settled);
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
            let work = settle(Arc::clone(&self.operator), group, slot, Arc::clone(&self.scope), self.cancel.clone());
            self.running.push(work.boxed());
            return;
        }
    }

    /// Notes what became of a group, and hands on what is complete.
    fn apply(&mut self, settled: Settled) {
        let at = self.window.partition_point(|unit| unit.number < settled.unit);
        let Some(mut unit) = self.window.remove(at) else { return };
        self.settle_into(&mut unit, settled);
        self.window.insert(at, unit);
        self.hand_on();
    }

    fn settle_into(&self, unit: &mut Unit, settled: Settled) {
        let operator = &self.operator;
        unit.unsettled -= settled.ok + settled.losses.len();
        self.scope.tally.settled(Outcome::Ok, settled.ok as u64);
        unit.pieces.extend(settled.pieces);
        if settled.losses.is_empty() {
            return;
        }
        let mut last = String::new();
        for loss in &settled.losses {
            self.scope.tally.settled(loss.outcome, 1);
            let Some(failure) = &loss.failure else { continue };
            last = format!("{}: {}", failure.code(), failure.message());
            if matches!(operator.policy.on_error, OnError::Fail) {
                operator.stop(StopReason::Item {
                    item: unit.ids.get(loss.row as usize).to_string(),
                    failure: failure.clone(),
                    attempts: loss.attempts,
                });
            }
        }
        unit.losses.extend(settled.losses);
        operator.judge_errors(&last, false);
    }

    /// Hands on the units that are settled: from the front, or all of them where the order does not matter.
    fn hand_on(&mut self) {
        let mut at = 0;
        while let Some(unit) = self.window.get(at) {
            if !unit.is_settled() {
                match self.operator.policy.order {
                    crate::Order::Input => return,
                    crate::Order::Any => {
                        at += 1;
                        continue;
                    }
                }
            }
            let Some(mut unit) = self.window.remove(at) else { return };
            self.window_bytes -= unit.bytes;
            self.write_losses(&mut unit);
            match unit.assemble(&self.operator.output) {
                Ok(batch) if batch.num_rows() > 0 => self.ready.push_back(batch),
                Ok(_empty) => {}
                Err(error) => {
                    let failure = Failure::new(FailureCode::Internal, error.to_string(), &Redactor::new());
                    self.operator.stop(StopReason::Fatal { failure: failure.sent(Sent::Answered) });
                }
            }
        }
    }

    /// Writes the unit's losses into the ledger; those with a default get their row.
    fn write_losses(&self, unit: &mut Unit) {
        if unit.losses.is_empty() {
            return;
        }
        unit.losses.sort_by_key(|loss| loss.row);
        if let OnError::Default(default) = &self.operator.policy.on_error {
            let rows: Vec<u32> =
                unit.losses.iter().filter(|loss| loss.outcome == Outcome::Defaulted).map(|loss| loss.row).collect();
            match take_record_batch(default, &UInt32Array::from(vec![0; rows.len()])) {
                Ok(output) => unit.pieces.push(Piece { sources: Rows::List(rows), output }),
                Err(error) => self.stop_for(error.to_string()),
            }
        }
        if let Err(error) = self.scope.ledger.record(&unit.input, &unit.ids, &unit.losses) {
            self.stop_for(error.to_string());
        }
        unit.losses.clear();
    }

    fn stop_for(&self, message: String) {
        let failure = Failure::new(FailureCode::Setup, message, &Redactor::new()).sent(Sent::Never);
        self.operator.stop(StopReason::Fatal { failure });
    }
}

/// Bytes of a slice's own rows; shared buffers count by the share of rows.
fn sliced_bytes(batch: &RecordBatch) -> usize {
    batch
        .columns()
        .iter()
        .map(|column| column.to_data().get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size()))
        .sum()
}
