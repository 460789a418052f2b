//! What an earlier version of a run's result says of a chunk's items, so that only those that failed are tried again.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use rowmill_step::{Failure, ItemIds, Outcome};

use crate::settle::Settled;
use crate::unit::{Loss, Piece, Rows, Unit, take_rows};

/// What became of one item.
#[derive(Debug, Clone)]
pub enum Fate {
    /// It is to be done.
    Open,
    /// It gave these rows of [`Earlier::rows`].
    Rows(Range<u32>),
    /// It gave none, and that stays so.
    Lost {
        /// Its outcome.
        outcome: Outcome,
        /// Why; `None` if the step was told to drop it.
        failure: Option<Failure>,
        /// Attempts that were made.
        attempts: u32,
    },
}

/// What is known of a chunk's items before its step runs.
#[derive(Debug)]
pub struct Earlier {
    /// The step's columns, of all rows that are used again.
    pub rows: RecordBatch,
    /// One for each row of the chunk.
    pub fates: Vec<Fate>,
    /// The identities under which the items are, or were, sent; as long as `fates`.
    pub ids: ItemIds,
}

impl Earlier {
    /// Settles what is known of a unit whose first row is row `first` of the chunk; the rest is left to do.
    pub(crate) fn settle(&self, first: usize, unit: &mut Unit, schema: &SchemaRef) -> Result<Settled, ArrowError> {
        let mut settled = Settled { unit: unit.number, ..Settled::default() };
        let (mut picks, mut sources, mut todo) = (Vec::new(), Vec::new(), Vec::new());
        for row in 0..unit.input.num_rows() as u32 {
            match self.fates.get(first + row as usize) {
                None | Some(Fate::Open) => todo.push(row),
                Some(Fate::Rows(range)) => {
                    settled.ok += 1;
                    sources.extend(std::iter::repeat_n(row, range.len()));
                    picks.extend(range.clone());
                }
                Some(Fate::Lost { outcome, failure, attempts }) => {
                    settled.losses.push(Loss { row, failure: failure.clone(), attempts: *attempts, outcome: *outcome })
                }
            }
        }
        if !sources.is_empty() {
            let rows = take_rows(&self.rows, &UInt32Array::from(picks))?;
            let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
            // Under the step's own schema, whatever metadata a file kept of it.
            let output = RecordBatch::try_new_with_options(Arc::clone(schema), rows.columns().to_vec(), &options)?;
            settled.pieces.push(Piece { sources: Rows::List(sources), output, fresh: false });
        }
        unit.todo = Rows::List(todo);
        Ok(settled)
    }
}
