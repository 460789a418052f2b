//! The columns and rows of a function over rows: which go in, which of the input's stay, where the answer's go.

use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{Fields, Schema, SchemaRef, UInt32Type};
use datafusion::common::{Result, exec_err, internal_err};

use super::call::Call;
use crate::items::Items;

/// In an answer: the row of the input that each row belongs to.
const ROW: &str = "__row";

/// What becomes of the input's columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// The answer is all there is.
    Nothing,
    /// The answer's columns come beside them, or in place of those of the same name.
    All,
}

/// What the operator does to a batch.
#[derive(Debug)]
pub(super) struct Shape {
    pub(super) call: Call,
    /// Columns of the input that the function reads.
    pub(super) reads: Vec<usize>,
    pub(super) keep: Keep,
    /// Columns of the input that go on, and columns of the answer in their places.
    pub(super) output: Vec<Place>,
    pub(super) schema: SchemaRef,
    /// Rows of a call: exactly so many, or no more than a default.
    pub(super) batch_rows: Option<usize>,
    /// What holds for its items, where the engine's step operator calls the function.
    pub(super) items: Option<Arc<Items>>,
    /// The class of machine that it was said to need, which this process serves whatever it is.
    pub(super) class: Option<String>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    Input(usize),
    Answer(usize),
}

impl Shape {
    pub(super) fn try_new(
        call: Call,
        input: &Schema,
        reads: &[String],
        keep: Keep,
        batch_rows: Option<usize>,
    ) -> Result<Shape> {
        let reads = reads.iter().map(|name| Ok(input.index_of(name)?)).collect::<Result<Vec<_>>>()?;
        let answer = Arc::clone(&call.schema);
        let mut output = Vec::new();
        let mut fields = Vec::new();
        if keep == Keep::All {
            for (at, field) in input.fields().iter().enumerate() {
                match answer.index_of(field.name()) {
                    Ok(from) => {
                        output.push(Place::Answer(from));
                        fields.push(Arc::clone(&answer.fields()[from]));
                    }
                    Err(_) => {
                        output.push(Place::Input(at));
                        fields.push(Arc::clone(field));
                    }
                }
            }
        }
        for (at, field) in answer.fields().iter().enumerate() {
            if keep == Keep::Nothing || input.index_of(field.name()).is_err() {
                output.push(Place::Answer(at));
                fields.push(Arc::clone(field));
            }
        }
        let schema = Arc::new(Schema::new(Fields::from(fields)));
        Ok(Shape { call, reads, keep, output, schema, batch_rows, items: None, class: None })
    }

    /// The function over one batch.
    pub(super) fn apply(&self, input: &RecordBatch) -> Result<RecordBatch> {
        let answer = self.call.call(input.project(&self.reads)?)?;
        self.finish(input, answer)
    }

    /// The rows that come out, of those that went in and what the function made of them.
    fn finish(&self, input: &RecordBatch, answer: RecordBatch) -> Result<RecordBatch> {
        let counted = answer.schema().fields().first().is_some_and(|field| field.name() == ROW);
        self.call.check(&answer, usize::from(counted))?;
        let mut kept = input.clone();
        if counted {
            let rows = answer.column(0).as_primitive_opt::<UInt32Type>();
            let Some(rows) = rows else {
                return internal_err!("`{}` answered with rows that are no numbers", self.call.name);
            };
            check_rows(rows, input.num_rows(), &self.call.name)?;
            if self.keep == Keep::All {
                kept = take_record_batch(input, rows)?;
            }
        } else if self.keep == Keep::All && answer.num_rows() != input.num_rows() {
            return exec_err!(
                "`{}` answered with {} rows for {}; a step keeps one row for each, a generator or map_batches need not",
                self.call.name,
                answer.num_rows(),
                input.num_rows()
            );
        }
        let columns: Vec<ArrayRef> = self
            .output
            .iter()
            .map(|place| match place {
                Place::Input(at) => Arc::clone(kept.column(*at)),
                Place::Answer(at) => Arc::clone(answer.column(*at + usize::from(counted))),
            })
            .collect();
        let options = RecordBatchOptions::new().with_row_count(Some(answer.num_rows()));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?)
    }
}

fn check_rows(rows: &UInt32Array, most: usize, name: &str) -> Result<()> {
    let ordered = rows.values().windows(2).all(|pair| pair[0] <= pair[1]);
    let known = rows.values().last().is_none_or(|last| (*last as usize) < most);
    match ordered && known && rows.null_count() == 0 {
        true => Ok(()),
        false => internal_err!("`{name}` answered with rows that are not those of its input"),
    }
}
