//! Cuts a stream of batches into units: slices that hold whole groups, with little copied.

use std::collections::VecDeque;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::error::ArrowError;
use rowmill_step::BatchTarget;

use crate::size::batch_bytes;

/// Rows of a unit at most, where groups are smaller.
const UNIT_ROWS: usize = 8192;
/// Groups that a slot makes of a unit at least, where that is fewer rows: a unit is handed on when it is settled whole, and
/// a step behind should not wait long for slow calls.
const UNIT_TURNS: usize = 32;
/// What a unit costs beside its rows.
const UNIT_OVERHEAD: usize = 1024;

/// Input on its way to become units. Groups end at multiples of the target's rows, however the input is cut into
/// batches, unless the target's bytes are reached before.
pub(crate) struct Intake {
    group_rows: usize,
    group_bytes: usize,
    /// Rows of a unit at most, where it holds more than one group.
    unit_rows: usize,
    /// Its bytes.
    unit_bytes: usize,
    /// Input that is too little for a group yet.
    pending: Vec<RecordBatch>,
    pending_rows: usize,
    pending_bytes: usize,
    /// Units for which there is no room yet, with their bytes.
    units: VecDeque<(RecordBatch, usize)>,
}

impl Intake {
    /// With `large` units are as large as may be: where nobody waits for them, or each of them costs a look-up.
    pub(crate) fn new(target: BatchTarget, reorder_bytes: usize, large: bool) -> Self {
        let turns = target.rows.max(1).saturating_mul(target.in_flight.max(1)).saturating_mul(UNIT_TURNS);
        Self {
            group_rows: target.rows.max(1),
            unit_rows: if large { UNIT_ROWS } else { turns.min(UNIT_ROWS) },
            group_bytes: target.bytes.max(1),
            unit_bytes: reorder_bytes / 4,
            pending: Vec::new(),
            pending_rows: 0,
            pending_bytes: 0,
            units: VecDeque::new(),
        }
    }

    /// Whether no unit waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// Rows that have come in and are in no unit that was handed out.
    pub(crate) fn rows(&self) -> usize {
        self.pending_rows + self.units.iter().map(|(unit, _)| unit.num_rows()).sum::<usize>()
    }

    /// The bytes of the next unit.
    pub(crate) fn next_bytes(&self) -> Option<usize> {
        self.units.front().map(|(_, bytes)| *bytes)
    }

    /// The next unit.
    pub(crate) fn pop(&mut self) -> Option<RecordBatch> {
        self.units.pop_front().map(|(unit, _)| unit)
    }

    /// Takes a batch of the input.
    pub(crate) fn take(&mut self, mut batch: RecordBatch) -> Result<(), ArrowError> {
        if self.pending_rows > 0 {
            // Only the group that is under way is copied together; the rest of the batch is sliced.
            let missing = (self.group_rows - self.pending_rows).min(batch.num_rows());
            let rest = batch.slice(missing, batch.num_rows() - missing);
            self.gather(batch.slice(0, missing))?;
            batch = rest;
        }
        let whole = batch.num_rows() / self.group_rows * self.group_rows;
        if whole > 0 {
            self.cut(&batch.slice(0, whole));
        }
        self.gather(batch.slice(whole, batch.num_rows() - whole))
    }

    /// What has gathered becomes a unit, however little it is.
    pub(crate) fn flush(&mut self) -> Result<(), ArrowError> {
        let pending = std::mem::take(&mut self.pending);
        (self.pending_rows, self.pending_bytes) = (0, 0);
        match pending.as_slice() {
            [] => {}
            [one] => self.cut(one),
            [first, ..] => self.cut(&concat_batches(&first.schema(), &pending)?),
        }
        Ok(())
    }

    fn gather(&mut self, batch: RecordBatch) -> Result<(), ArrowError> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        self.pending_rows += batch.num_rows();
        self.pending_bytes += batch_bytes(&batch);
        self.pending.push(batch);
        match self.pending_rows >= self.group_rows || self.pending_bytes >= self.group_bytes {
            true => self.flush(),
            false => Ok(()),
        }
    }

    fn cut(&mut self, batch: &RecordBatch) {
        let rows = batch.num_rows();
        let bytes = batch_bytes(batch);
        let by_bytes = self.unit_bytes.checked_div(bytes / rows.max(1)).unwrap_or(usize::MAX);
        let groups = (self.unit_rows.min(by_bytes) / self.group_rows).max(1);
        let step = groups.saturating_mul(self.group_rows);
        if rows <= step {
            self.units.push_back((batch.clone(), bytes + UNIT_OVERHEAD));
            return;
        }
        for offset in (0..rows).step_by(step) {
            let unit = batch.slice(offset, step.min(rows - offset));
            let bytes = batch_bytes(&unit) + UNIT_OVERHEAD;
            self.units.push_back((unit, bytes));
        }
    }
}
