//! Finds the rows of one batch that fail, and what the others make.
//!
//! ```text
//!  batch ─▶ plain chain ── ok ──────────────────────────────▶ rows
//!              │ error
//!              ▼
//!           lenient chain ─▶ rows that failed for certain ──▶ losses
//!              │          └─▶ rows that may fail ─▶ plain chain, by halves ─▶ rows, losses
//!              │ nothing found, or it fails itself
//!              ▼
//!           plain chain, by halves ─▶ rows, losses
//! ```
//!
//! A batch that follows one with failures begins with the lenient chain, whose rows are as good as the plain one's.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions};
use arrow::buffer::BooleanBuffer;
use arrow::compute::{filter_record_batch, interleave};
use arrow::datatypes::{SchemaRef, UInt32Type};
use datafusion::common::{DataFusionError, Result, internal_err};

use super::chain::{Chain, tracked, untracked};
use super::probe::{Finds, blames_row, in_words};

/// Rows that came out, with the rows that they were made of, ascending.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) rows: RecordBatch,
    pub(super) sources: Vec<u32>,
}

/// What became of a batch.
#[derive(Debug)]
pub(super) enum Sorted {
    /// Nothing failed.
    Clean(RecordBatch),
    /// What was made, and why the other rows were not, by their places.
    Mixed(Vec<Piece>, BTreeMap<u32, Arc<str>>),
}

/// Runs a chain over the batches of one partition.
#[derive(Debug)]
pub(super) struct Sorter {
    plain: Arc<Chain>,
    lenient: Chain,
    finds: Finds,
    /// The last batch had failures, so the next one may.
    wary: bool,
}

impl Sorter {
    pub(super) fn try_new(plain: &Arc<Chain>) -> Result<Self> {
        let finds = Finds::default();
        let lenient = plain.lenient(&finds)?;
        Ok(Sorter { plain: Arc::clone(plain), lenient, finds, wary: false })
    }

    /// Sorts the rows of a batch.
    ///
    /// # Errors
    /// Those that no row is to blame for.
    pub(super) fn sort(&mut self, batch: &RecordBatch) -> Result<Sorted> {
        if !self.wary {
            match self.plain.run(batch, false) {
                Ok(rows) => return Ok(Sorted::Clean(rows)),
                Err(error) if !blames_row(&error) => return Err(error),
                Err(_) => {}
            }
        }
        let all = tracked(batch, None)?;
        self.finds.lock().clear();
        let made = match self.lenient.run(&all, true) {
            Ok(made) => Some(made),
            Err(error) if !blames_row(&error) => return Err(error),
            Err(_) => None,
        };
        let finds = std::mem::take(&mut *self.finds.lock());
        let was_wary = std::mem::replace(&mut self.wary, true);
        let mut pieces = Vec::new();
        let mut losses = BTreeMap::new();
        match made {
            Some(made) if finds.is_empty() && was_wary => {
                self.wary = false;
                return Ok(Sorted::Clean(untracked(&made)?.0));
            }
            Some(made) if !finds.is_empty() => {
                // A row that may fail on account of one operation is looked at whole.
                let mut doubtful: Vec<u32> =
                    finds.iter().filter(|found| found.message.is_none()).map(|found| found.row).collect();
                doubtful.sort_unstable();
                doubtful.dedup();
                let mut out = vec![false; batch.num_rows()];
                for row in &doubtful {
                    mark(&mut out, *row);
                }
                for found in finds {
                    let is_doubtful = doubtful.binary_search(&found.row).is_ok();
                    if let (Some(message), false) = (found.message, is_doubtful) {
                        mark(&mut out, found.row);
                        losses.entry(found.row).or_insert(message);
                    }
                }
                let (rows, sources) = untracked(&without(&made, &out)?)?;
                pieces.push(Piece { rows, sources });
                self.halve(batch, &doubtful, &mut pieces, &mut losses)?;
            }
            _ => {
                let every: Vec<u32> = (0..u32::try_from(batch.num_rows()).unwrap_or(u32::MAX)).collect();
                self.halve(batch, &every, &mut pieces, &mut losses)?;
            }
        }
        Ok(Sorted::Mixed(pieces, losses))
    }

    /// Runs the plain chain over rows of a batch, by halves until those that fail stand alone.
    fn halve(
        &self,
        batch: &RecordBatch,
        rows: &[u32],
        pieces: &mut Vec<Piece>,
        losses: &mut BTreeMap<u32, Arc<str>>,
    ) -> Result<()> {
        let mut open = vec![rows];
        while let Some(rows) = open.pop() {
            if rows.is_empty() {
                continue;
            }
            match self.plain.run(&tracked(batch, Some(rows))?, true) {
                Ok(made) => {
                    let (rows, sources) = untracked(&made)?;
                    pieces.push(Piece { rows, sources });
                }
                Err(error) if !blames_row(&error) => return Err(error),
                Err(error) => match rows {
                    [row] => {
                        losses.insert(*row, in_words(&error).into());
                    }
                    rows => {
                        let (left, right) = rows.split_at(rows.len() / 2);
                        open.push(right);
                        open.push(left);
                    }
                },
            }
        }
        Ok(())
    }
}

/// The rows of a tracked batch that were made of other rows than those.
fn without(made: &RecordBatch, out: &[bool]) -> Result<RecordBatch> {
    let Some(sources) = made.columns().last().and_then(|rows| rows.as_primitive_opt::<UInt32Type>()) else {
        return internal_err!("the places of rows were lost");
    };
    let sources = sources.values();
    let kept = BooleanBuffer::collect_bool(sources.len(), |at| {
        !sources.get(at).and_then(|source| out.get(*source as usize)).copied().unwrap_or(false)
    });
    Ok(filter_record_batch(made, &BooleanArray::new(kept, None))?)
}

fn mark(rows: &mut [bool], row: u32) {
    if let Some(row) = rows.get_mut(row as usize) {
        *row = true;
    }
}

/// The rows of all pieces in the order of the rows that they were made of.
pub(super) fn assemble(mut pieces: Vec<Piece>, schema: &SchemaRef) -> Result<RecordBatch, DataFusionError> {
    pieces.retain(|piece| !piece.sources.is_empty());
    let one = match pieces.as_slice() {
        [] => return Ok(RecordBatch::new_empty(Arc::clone(schema))),
        [one] => Some(one.rows.columns().to_vec()),
        _ => None,
    };
    let count = pieces.iter().map(|piece| piece.sources.len()).sum();
    let columns: Vec<ArrayRef> = match one {
        Some(columns) => columns,
        None => {
            // (row of the batch, piece, row of the piece)
            let mut places: Vec<(u32, usize, usize)> = Vec::with_capacity(count);
            for (piece, part) in pieces.iter().enumerate() {
                places.extend(part.sources.iter().enumerate().map(|(at, source)| (*source, piece, at)));
            }
            places.sort_by_key(|(source, _, _)| *source);
            let picks: Vec<(usize, usize)> = places.into_iter().map(|(_, piece, at)| (piece, at)).collect();
            let column = |column: usize| {
                let parts: Vec<_> = pieces.iter().map(|piece| piece.rows.column(column).as_ref()).collect();
                interleave(&parts, &picks)
            };
            (0..schema.fields().len()).map(column).collect::<Result<_, _>>()?
        }
    };
    let options = RecordBatchOptions::new().with_row_count(Some(count));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?)
}
