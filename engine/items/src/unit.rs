//! Units: slices of a step's input that are handed on whole, and what has become of their items so far.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::{concat, interleave, take_record_batch};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use rowmill_step::{Failure, ItemIds, Outcome, Reservation};

use crate::size::batch_bytes;

/// Rows of a unit, ascending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Rows {
    Range(Range<u32>),
    List(Vec<u32>),
}

impl Rows {
    pub(crate) fn len(&self) -> usize {
        match self {
            Rows::Range(range) => range.len(),
            Rows::List(list) => list.len(),
        }
    }

    pub(crate) fn at(&self, index: usize) -> u32 {
        match self {
            Rows::Range(range) => range.start + index as u32,
            Rows::List(list) => list[index],
        }
    }

    pub(crate) fn slice(&self, offset: usize, length: usize) -> Rows {
        match self {
            Rows::Range(range) => {
                let start = range.start + offset as u32;
                Rows::Range(start..start + length as u32)
            }
            Rows::List(list) => Rows::List(list[offset..offset + length].to_vec()),
        }
    }

    pub(crate) fn select(&self, indexes: &[u32]) -> Rows {
        Rows::List(indexes.iter().map(|index| self.at(*index as usize)).collect())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.len()).map(|index| self.at(index))
    }
}

/// Output for some rows of a unit.
#[derive(Debug)]
pub(crate) struct Piece {
    /// The unit's row that each row of `output` belongs to, never descending.
    pub(crate) sources: Rows,
    /// The step's columns.
    pub(crate) output: RecordBatch,
    /// Whether a call was made for it just now.
    pub(crate) fresh: bool,
}

/// An item that gives no row by itself.
#[derive(Debug, Clone)]
pub struct Loss {
    /// Its row in the unit, or batch, that it came in.
    pub row: u32,
    /// Why; `None` for items that the step was told to drop.
    pub failure: Option<Failure>,
    /// Attempts that were made.
    pub attempts: u32,
    /// As the error policy decided.
    pub outcome: Outcome,
}

/// A slice of the input on its way.
#[derive(Debug)]
pub(crate) struct Unit {
    pub(crate) number: u64,
    pub(crate) input: RecordBatch,
    /// The columns that the step reads.
    pub(crate) read: RecordBatch,
    /// Under which identities its items are sent.
    pub(crate) ids: ItemIds,
    /// Where its rows stand in the partition, or chunk: what the ledger and messages call them by.
    pub(crate) places: ItemIds,
    /// Bytes of the input, and of the step's columns as they come in.
    pub(crate) bytes: usize,
    pub(crate) unsettled: usize,
    /// Rows that are to be sent, and how many of them are on their way.
    pub(crate) todo: Rows,
    pub(crate) started: usize,
    /// Rows of a group.
    pub(crate) group_rows: usize,
    /// Where groups end, where their bytes decide it.
    pub(crate) group_ends: Option<Vec<u32>>,
    pub(crate) pieces: Vec<Piece>,
    pub(crate) losses: Vec<Loss>,
    /// The items' keys, where results are cached.
    pub(crate) keys: Option<Arc<Vec<rowmill_cache::CacheKey>>>,
    /// Rows that get what another row gets.
    pub(crate) followers: Vec<(u32, u32)>,
    pub(crate) memory: Option<Reservation>,
}

/// What a piece costs beside its rows.
const PIECE_OVERHEAD: usize = 256;
/// Bytes of output that gather before they are reserved.
const RESERVE_STEP: usize = 64 << 10;

impl Unit {
    pub(crate) fn is_settled(&self) -> bool {
        self.unsettled == 0
    }

    /// The next rows to send.
    pub(crate) fn next_group(&mut self) -> Option<Rows> {
        let left = self.todo.len() - self.started;
        if left == 0 {
            return None;
        }
        // Groups end at the same rows whatever is left to do, so that a request repeated after a crash is the same one.
        let first = self.todo.at(self.started) as usize;
        let end = match &self.group_ends {
            None => (first / self.group_rows + 1).saturating_mul(self.group_rows),
            Some(ends) => {
                let next = ends.partition_point(|end| *end as usize <= first);
                ends.get(next).map_or(self.input.num_rows(), |end| *end as usize)
            }
        };
        let length = match &self.todo {
            Rows::Range(range) => range.len().min(end - range.start as usize) - self.started,
            Rows::List(list) => list[self.started..].partition_point(|row| (*row as usize) < end),
        };
        let length = length.min(left);
        let rows = self.todo.slice(self.started, length);
        self.started += length;
        Some(rows)
    }

    /// Adds output to the unit; returns its bytes.
    pub(crate) fn add(&mut self, pieces: Vec<Piece>) -> usize {
        let bytes = pieces.iter().map(|piece| batch_bytes(&piece.output) + PIECE_OVERHEAD).sum();
        self.bytes += bytes;
        if let Some(memory) = &mut self.memory
            && self.bytes >= memory.bytes() + RESERVE_STEP
        {
            // What has come is held whether there is room or not; then no new units begin.
            let _full = memory.grow(self.bytes - memory.bytes());
        }
        self.pieces.extend(pieces);
        bytes
    }

    /// The columns that the step reads, of some rows.
    pub(crate) fn columns(&self, rows: &Rows) -> Result<RecordBatch, ArrowError> {
        match rows {
            Rows::Range(range) => Ok(self.read.slice(range.start as usize, range.len())),
            Rows::List(list) => take_rows(&self.read, &UInt32Array::from(list.clone())),
        }
    }

    /// The identities of some rows.
    pub(crate) fn ids(&self, rows: &Rows) -> ItemIds {
        match rows {
            Rows::Range(range) => self.ids.slice(range.start as usize, range.len()),
            Rows::List(list) => select_ids(&self.ids, list),
        }
    }

    /// The rows that flow on: the input's columns, then the step's, in the order of the input.
    pub(crate) fn assemble(&mut self, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
        let mut pieces = std::mem::take(&mut self.pieces);
        pieces.retain(|piece| piece.sources.len() > 0);
        pieces.sort_by_key(|piece| piece.sources.at(0));
        let rows = self.input.num_rows();
        let inputs = self.input.num_columns();
        if pieces.is_empty() {
            return Ok(RecordBatch::new_empty(Arc::clone(schema)));
        }
        let options = RecordBatchOptions::new();
        if covers(&pieces, rows) {
            let mut columns: Vec<ArrayRef> = self.input.columns().to_vec();
            match pieces.as_slice() {
                [one] => columns.extend(one.output.columns().iter().cloned()),
                _ => {
                    for column in 0..schema.fields().len() - inputs {
                        let parts: Vec<_> = pieces.iter().map(|piece| piece.output.column(column).as_ref()).collect();
                        columns.push(concat(&parts)?);
                    }
                }
            }
            return RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options.with_row_count(Some(rows)));
        }
        // (row of the unit, piece, row of the piece)
        let mut places: Vec<(u32, usize, usize)> = Vec::with_capacity(rows);
        for (piece, part) in pieces.iter().enumerate() {
            places.extend(part.sources.iter().enumerate().map(|(row, source)| (source, piece, row)));
        }
        places.sort_by_key(|(source, _, _)| *source);
        let sources = UInt32Array::from_iter_values(places.iter().map(|(source, _, _)| *source));
        let picks: Vec<(usize, usize)> = places.iter().map(|(_, piece, row)| (*piece, *row)).collect();
        let mut columns: Vec<ArrayRef> = take_rows(&self.input, &sources)?.columns().to_vec();
        for column in 0..schema.fields().len() - inputs {
            let parts: Vec<_> = pieces.iter().map(|piece| piece.output.column(column).as_ref()).collect();
            columns.push(interleave(&parts, &picks)?);
        }
        RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options.with_row_count(Some(places.len())))
    }
}

/// Whether the pieces, sorted, are one row for each of `rows`, in order.
fn covers(pieces: &[Piece], rows: usize) -> bool {
    let mut next = 0;
    for piece in pieces {
        match &piece.sources {
            Rows::Range(range) if range.start == next => next = range.end,
            Rows::List(list) if list.len() == 1 && list[0] == next => next += 1,
            _ => return false,
        }
    }
    next as usize == rows
}

/// Rows by index. A batch of no columns has rows too.
pub(crate) fn take_rows(batch: &RecordBatch, indexes: &UInt32Array) -> Result<RecordBatch, ArrowError> {
    if batch.num_columns() > 0 {
        return take_record_batch(batch, indexes);
    }
    let options = RecordBatchOptions::new().with_row_count(Some(indexes.len()));
    RecordBatch::try_new_with_options(batch.schema(), Vec::new(), &options)
}

/// Identities by index.
pub(crate) fn select_ids(ids: &ItemIds, indexes: &[u32]) -> ItemIds {
    let picked = || indexes.iter().map(|index| ids.get(*index as usize));
    ItemIds::Columns {
        file: picked().map(|id| id.file).collect::<Vec<_>>().into(),
        row: picked().map(|id| id.row).collect::<Vec<_>>().into(),
    }
}
