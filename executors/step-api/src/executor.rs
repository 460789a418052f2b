//! The seam between the engine and a step kind: one attempt for one group of items.

use std::any::Any;
use std::sync::Arc;

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{Cardinality, Failure, FailureCode, ItemKeys, Redactor, StepContext, StepDescription};

/// A configured step. It is cheap to keep; what is warm (connections, processes) belongs to its sessions and to the
/// clients that sessions share.
#[async_trait]
pub trait StepExecutor: std::fmt::Debug + Send + Sync + 'static {
    /// What the step says about itself.
    fn describe(&self) -> &StepDescription;

    /// The columns that the step adds, given the columns it reads (in the order of [`StepDescription::reads`]). Called
    /// while compiling; it may ask the other side (a database describes its query). The plan carries the result, so
    /// that an executor elsewhere need not ask again.
    ///
    /// # Errors
    /// [`FailureCode::Setup`] for what the workflow or the configuration must change.
    async fn output_schema(&self, input: &SchemaRef, context: &StepContext) -> Result<SchemaRef, Failure>;

    /// Opens one session, which is one slot of the `in_flight` concurrency. The engine opens them as they are needed
    /// and keeps them until the stage ends.
    ///
    /// # Errors
    /// [`FailureCode::Setup`] if no session can ever be opened, anything retryable if one may be later.
    async fn open(&self, context: &StepContext, shape: &StepShape) -> Result<Box<dyn StepSession>, Failure>;

    /// Waits until an attempt for this group may begin, and reserves its place: for executors whose attempts are made
    /// in another process. Neither the attempt's clock nor its limits run meanwhile. What it gives is handed to the
    /// session in [`ItemBatch::place`] and given back by dropping it.
    ///
    /// # Errors
    /// [`FailureCode::Setup`] if there will be no place for any group.
    async fn place(&self, _batch: &ItemBatch, _context: &StepContext) -> Result<Option<Place>, Failure> {
        Ok(None)
    }

    /// Why attempts can be made in this process alone, if that is so: the step holds what only this process has.
    fn stays_here(&self) -> Option<&'static str> {
        None
    }

    /// What a group will cost, so that limits can be asked before it is sent.
    fn cost(&self, _batch: &ItemBatch) -> CallCost {
        CallCost { requests: 1, tokens: 0 }
    }

    /// Whether `timeout` is held for each item by the step kind itself, which hears of it in its options: a group then
    /// gets that time once for each of its items, and a slow one takes none from its neighbours.
    fn times_items(&self) -> bool {
        false
    }
}

/// The warm state of one slot.
#[async_trait]
pub trait StepSession: Send {
    /// Makes one attempt for one group of items: no retry, no wait for limits; those are the engine's.
    ///
    /// It heeds `deadline` and `cancel` and says in [`Failure::how_far`] how far the call came. The future may also be
    /// dropped at any await; the session is then closed and not used again.
    ///
    /// # Errors
    /// A failure of the whole group. What concerns single items goes into [`BatchReply::failures`].
    async fn execute(&mut self, batch: ItemBatch) -> Result<BatchReply, Failure>;

    /// Ends the session in good order. Dropping it must end it too, only less politely.
    ///
    /// # Errors
    /// What went wrong while ending; the items' outcomes do not change by it.
    async fn close(self: Box<Self>) -> Result<(), Failure> {
        Ok(())
    }
}

/// The schemas that were agreed while compiling.
#[derive(Debug, Clone)]
pub struct StepShape {
    /// The columns that the step reads.
    pub input: SchemaRef,
    /// The columns that it adds.
    pub output: SchemaRef,
}

/// A process that makes attempts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whereabouts {
    /// Its name, unique among those of a cluster.
    pub process: String,
    /// The machine that it runs on, as others reach it.
    pub host: String,
}

/// Where an attempt is made, reserved by [`StepExecutor::place`].
#[derive(Debug, Clone)]
pub struct Place {
    at: Arc<Whereabouts>,
    /// Only the executor that made it knows what it is.
    held: Arc<dyn Any + Send + Sync>,
}

impl Place {
    /// A place in a process; `held` is dropped with it.
    pub fn new(at: Arc<Whereabouts>, held: Arc<dyn Any + Send + Sync>) -> Self {
        Self { at, held }
    }

    /// The process.
    pub fn at(&self) -> &Arc<Whereabouts> {
        &self.at
    }

    /// What is held; `None` where it is of another type.
    pub fn held<T: Any + Send + Sync>(self) -> Option<Arc<T>> {
        self.held.downcast().ok()
    }
}

/// A group of items for one attempt.
#[derive(Debug, Clone)]
pub struct ItemBatch {
    /// The columns that the step reads, and no others; one row per item.
    pub columns: RecordBatch,
    /// The items' identities, and keys when asked for.
    pub keys: ItemKeys,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// When this attempt must be over.
    pub deadline: Option<Instant>,
    /// Cancelled when no further item of the group is to be begun; what is under way goes on.
    pub stop: CancellationToken,
    /// Cancelled when nobody wants the result any more.
    pub cancel: CancellationToken,
    /// Where it is made, if the executor reserves places.
    pub place: Option<Place>,
}

impl ItemBatch {
    /// How many items.
    pub fn rows(&self) -> usize {
        self.columns.num_rows()
    }

    /// `length` items from `offset` on, without copying.
    pub fn slice(&self, offset: usize, length: usize) -> Self {
        Self {
            columns: self.columns.slice(offset, length),
            keys: self.keys.slice(offset, length),
            attempt: self.attempt,
            deadline: self.deadline,
            stop: self.stop.clone(),
            cancel: self.cancel.clone(),
            place: self.place.clone(),
        }
    }
}

/// What came back for a group. If `skipped` and `failures` are empty, every item is ok: nothing is kept per item.
#[derive(Debug, Clone)]
pub struct BatchReply {
    /// The step's columns for the items that are ok, in the order of the input.
    pub output: RecordBatch,
    /// With [`Cardinality::FanOut`]: for each row of `output`, the index of its item in the group, never descending.
    /// An item that is ok may have no row. `None` with [`Cardinality::OneToOne`].
    pub source_rows: Option<Vec<u32>>,
    /// Items that the step was told to drop, by index, ascending.
    pub skipped: Vec<u32>,
    /// Items that failed, by index, ascending.
    pub failures: Vec<(u32, Failure)>,
    /// What the attempt used.
    pub usage: Usage,
}

impl BatchReply {
    /// A reply in which every item is ok.
    pub fn all_ok(output: RecordBatch) -> Self {
        Self { output, source_rows: None, skipped: Vec::new(), failures: Vec::new(), usage: Usage::default() }
    }

    /// Whether every item is ok.
    pub fn is_all_ok(&self) -> bool {
        self.failures.is_empty() && self.skipped.is_empty()
    }

    /// Checks what the engine relies on: schema, number of rows, order of the sparse lists. Constant time for a group
    /// that is all ok and one-to-one.
    ///
    /// # Errors
    /// [`FailureCode::Internal`]: the step kind broke its contract.
    pub fn check(
        &self,
        items: usize,
        shape: &StepShape,
        cardinality: Cardinality,
        redactor: &Redactor,
    ) -> Result<(), Failure> {
        let broken = |what: String| {
            Err(Failure::new(FailureCode::Internal, format!("the step kind broke its contract: {what}"), redactor)
                .sent(crate::Sent::Answered))
        };
        let schema = self.output.schema();
        if !std::sync::Arc::ptr_eq(&schema, &shape.output) && schema != shape.output {
            return broken(format!("it answered with columns {:?}", schema.fields()));
        }
        let mut settled = vec![];
        if !self.is_all_ok() {
            settled.extend_from_slice(&self.skipped);
            settled.extend(self.failures.iter().map(|(row, _)| *row));
            settled.sort_unstable();
            let ascending = self.skipped.windows(2).all(|w| w[0] < w[1])
                && self.failures.windows(2).all(|w| w[0].0 < w[1].0)
                && settled.windows(2).all(|w| w[0] < w[1]);
            if !ascending || settled.last().is_some_and(|row| *row as usize >= items) {
                return broken("its lists of items are not ascending, or name items that do not exist".to_owned());
            }
        }
        match (cardinality, &self.source_rows) {
            (Cardinality::OneToOne, None) if self.output.num_rows() == items - settled.len() => Ok(()),
            (Cardinality::OneToOne, None) => {
                broken(format!("{} rows for {} items", self.output.num_rows(), items - settled.len()))
            }
            (Cardinality::OneToOne, Some(_)) => broken("source rows for a one-to-one step".to_owned()),
            (Cardinality::FanOut, None) => broken("no source rows".to_owned()),
            (Cardinality::FanOut, Some(sources)) => {
                let ordered = sources.windows(2).all(|w| w[0] <= w[1]);
                let known = sources.last().is_none_or(|last| (*last as usize) < items);
                let clean = settled.is_empty() || sources.iter().all(|row| settled.binary_search(row).is_err());
                if sources.len() == self.output.num_rows() && ordered && known && clean {
                    Ok(())
                } else {
                    broken("its source rows do not fit its rows".to_owned())
                }
            }
        }
    }

    /// Bytes of the output as Arrow counts them.
    pub fn output_bytes(&self) -> usize {
        self.output.columns().iter().map(|column| column.get_array_memory_size()).sum()
    }
}

/// What an attempt used, for metrics and for tests that count calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Requests, queries or messages that left.
    pub calls: u64,
    /// Bytes sent, as far as the step kind knows.
    pub sent_bytes: u64,
    /// Bytes received, decoded.
    pub received_bytes: u64,
    /// Tokens that a model used, if the service said so.
    pub tokens: u64,
}

/// What a group will cost against its connection's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallCost {
    /// Requests.
    pub requests: u32,
    /// Tokens, estimated.
    pub tokens: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, Int64Array};
    use arrow::datatypes::{DataType, Field, Schema};

    fn shape() -> StepShape {
        let schema = Arc::new(Schema::new(vec![Field::new("x", DataType::Int64, true)]));
        StepShape { input: schema.clone(), output: schema }
    }

    fn reply(rows: usize) -> BatchReply {
        let column: ArrayRef = Arc::new(Int64Array::from(vec![1; rows]));
        BatchReply::all_ok(RecordBatch::try_new(shape().output, vec![column]).unwrap())
    }

    #[test]
    fn replies_that_break_the_contract_are_found() {
        let failed = |row| (row, Failure::fixed(FailureCode::Rejected, "x"));
        let check =
            |reply: &BatchReply, items, cardinality| reply.check(items, &shape(), cardinality, &Redactor::new());
        assert!(check(&reply(3), 3, Cardinality::OneToOne).is_ok());
        assert!(check(&reply(2), 3, Cardinality::OneToOne).is_err());
        assert!(check(&reply(3), 3, Cardinality::FanOut).is_err());
        let mixed = BatchReply { failures: vec![failed(1)], skipped: vec![0], ..reply(1) };
        assert!(check(&mixed, 3, Cardinality::OneToOne).is_ok());
        for bad in [
            BatchReply { failures: vec![failed(1)], skipped: vec![1], ..reply(1) },
            BatchReply { failures: vec![failed(2), failed(1)], ..reply(1) },
            BatchReply { failures: vec![failed(3)], ..reply(2) },
            BatchReply { source_rows: Some(vec![0, 1, 2]), ..reply(3) },
        ] {
            assert!(check(&bad, 3, Cardinality::OneToOne).is_err(), "{bad:?}");
        }
        let fan = |sources: Vec<u32>| BatchReply { source_rows: Some(sources), ..reply(3) };
        assert!(check(&fan(vec![0, 0, 2]), 3, Cardinality::FanOut).is_ok());
        assert!(check(&fan(vec![0, 2, 1]), 3, Cardinality::FanOut).is_err());
        assert!(check(&fan(vec![0, 1]), 3, Cardinality::FanOut).is_err());
        assert!(check(&fan(vec![0, 0, 3]), 3, Cardinality::FanOut).is_err());
        let both = BatchReply { failures: vec![failed(2)], ..fan(vec![0, 0, 2]) };
        assert!(check(&both, 3, Cardinality::FanOut).is_err());
    }
}
