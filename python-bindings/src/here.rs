//! A Python function as a step kind, called in this process.

use std::fmt;
use std::sync::Arc;

use arrow::array::{AsArray as _, RecordBatch};
use arrow::datatypes::{SchemaRef, UInt32Type};
use async_trait::async_trait;
use datafusion::common::DataFusionError;
use parking_lot::Mutex;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use rowmill_step::{
    BatchReply, BatchTarget, CallCost, Cardinality, Effects, Failure, FailureCode, FingerprintBuilder, ItemBatch, Sent,
    StepContext, StepDescription, StepExecutor, StepSession, StepShape, Usage,
};

use crate::batches::Batch;
use crate::cdata;
use crate::errors::Raised;
use crate::workers::{BATCH_ROWS, word};

/// A function that is called in this process.
pub(crate) struct InProcess {
    function: Arc<Py<PyAny>>,
    description: StepDescription,
    per_item: bool,
    raised_passes: bool,
    /// The exception of the last failure, with the failure's message: it is the one that ends a query.
    last: Arc<Mutex<Option<(String, PyErr)>>>,
}

impl fmt::Debug for InProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InProcess").field("description", &self.description).finish_non_exhaustive()
    }
}

impl InProcess {
    pub(crate) fn from_python(said: &Bound<'_, PyDict>, function: Py<PyAny>, reads: &[String]) -> PyResult<InProcess> {
        let get = |key: &str| {
            said.get_item(key)?.ok_or_else(|| PyTypeError::new_err(format!("a step in this process says its `{key}`")))
        };
        let name: String = get("name")?.extract()?;
        let kind: String = get("kind")?.extract()?;
        let effects: String = get("effects")?.extract()?;
        let known = [Effects::Pure, Effects::Idempotent, Effects::Once];
        let effects = word("kind of effects", &effects, known.into_iter().find(|of| of.as_str() == effects))?;
        let pickle: Vec<u8> = get("pickle")?.extract()?;
        let source: String = get("source")?.extract()?;
        let retries: u32 = get("retries")?.extract()?;
        let rows: Option<usize> = get("group_rows")?.extract()?;
        let mut fingerprint = FingerprintBuilder::new("python here", 1)
            .field("kind", &kind)
            .field("source", source)
            .field("pickle", pickle);
        for read in reads {
            fingerprint = fingerprint.field("reads", read);
        }
        let description = StepDescription {
            kind: "python",
            summary: name,
            reads: reads.to_vec(),
            effects,
            cardinality: if kind.ends_with("generator") { Cardinality::FanOut } else { Cardinality::OneToOne },
            // Calls hold the GIL, so more of them at once would only wait for it.
            target: BatchTarget { rows: rows.unwrap_or(BATCH_ROWS), bytes: 64 << 20, in_flight: 1 },
            connections: Vec::new(),
            fingerprint: fingerprint.finish(),
        };
        Ok(InProcess {
            function: Arc::new(function),
            description,
            per_item: kind != "batch",
            raised_passes: retries > 0,
            last: Arc::default(),
        })
    }

    /// The exception behind a failure, if it was the last one.
    pub(crate) fn raised(&self, failure: &Failure) -> Option<DataFusionError> {
        let (message, exception) = self.last.lock().take()?;
        let same = message == failure.message();
        same.then(|| Python::attach(|py| Raised::wrap(py, &self.description.summary, exception)))
    }
}

#[async_trait]
impl StepExecutor for InProcess {
    fn describe(&self) -> &StepDescription {
        &self.description
    }

    async fn output_schema(&self, _input: &SchemaRef, context: &StepContext) -> Result<SchemaRef, Failure> {
        // Frames know their columns; nobody asks.
        Err(context.failure(FailureCode::Internal, "a function in this process is asked for its columns"))
    }

    async fn open(&self, context: &StepContext, shape: &StepShape) -> Result<Box<dyn StepSession>, Failure> {
        Ok(Box::new(Session {
            function: Arc::clone(&self.function),
            context: context.clone(),
            shape: shape.clone(),
            cardinality: self.description.cardinality,
            raised_passes: self.raised_passes,
            last: Arc::clone(&self.last),
        }))
    }

    fn cost(&self, batch: &ItemBatch) -> CallCost {
        let calls = if self.per_item { u32::try_from(batch.rows()).unwrap_or(u32::MAX) } else { 1 };
        CallCost { requests: calls, tokens: 0 }
    }
}

struct Session {
    function: Arc<Py<PyAny>>,
    context: StepContext,
    shape: StepShape,
    cardinality: Cardinality,
    raised_passes: bool,
    last: Arc<Mutex<Option<(String, PyErr)>>>,
}

/// A failure as `rowmill._functions.raised` tells it.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Told {
    r#type: String,
    message: String,
    traceback: String,
    retryable: Option<bool>,
}

impl Session {
    fn failure(&self, told: Told, exception: &Bound<'_, PyAny>) -> Failure {
        let message = match (told.r#type.as_str(), told.message.as_str()) {
            (kind, "") => kind.to_owned(),
            (kind, message) => format!("{kind}: {message}"),
        };
        let redactor = &self.context.redactor;
        let failure = Failure::new(FailureCode::Rejected, message, redactor)
            .field("traceback", told.traceback, redactor)
            .retryable(told.retryable.unwrap_or(self.raised_passes));
        *self.last.lock() = Some((failure.message().to_owned(), PyErr::from_value(exception.clone())));
        failure
    }

    /// Calls the function for a group.
    fn call(&self, batch: &ItemBatch) -> Result<BatchReply, Failure> {
        Python::attach(|py| {
            let internal = |error: PyErr| self.context.failure(FailureCode::Internal, error.to_string());
            let columns = Py::new(py, Batch { batch: batch.columns.clone() }).map_err(internal)?;
            let answer = self.function.bind(py).call_method1("reply", (columns,)).map_err(internal)?;
            let (made, lost, whole): (Bound<'_, PyAny>, Vec<(u32, Told, Bound<'_, PyAny>)>, bool) =
                answer.extract().map_err(internal)?;
            let mut lost: Vec<(u32, Failure)> =
                lost.into_iter().map(|(row, told, error)| (row, self.failure(told, &error))).collect();
            if whole && let Some((_, failure)) = lost.pop() {
                // Raised for the group as a whole: which of its items had their effects is not known.
                return Err(failure.sent(Sent::Maybe));
            }
            lost.iter_mut().for_each(|(_, failure)| *failure = failure.clone().sent(Sent::Answered));
            lost.sort_by_key(|(row, _)| *row);
            let made = cdata::batch_from_python(&made).map_err(internal)?;
            self.reply(&made, lost).map_err(|text| self.context.failure(FailureCode::Decode, text).sent(Sent::Answered))
        })
    }

    fn reply(&self, made: &RecordBatch, failures: Vec<(u32, Failure)>) -> Result<BatchReply, String> {
        let rows = made.column_by_name("__row").map(|rows| {
            let rows = rows.as_primitive_opt::<UInt32Type>().ok_or("`__row` is no uint32")?;
            Ok::<_, String>(rows.values().to_vec())
        });
        let offset = usize::from(rows.is_some());
        let columns = made.columns().get(offset..).unwrap_or_default().to_vec();
        let output =
            RecordBatch::try_new(Arc::clone(&self.shape.output), columns).map_err(|error| error.to_string())?;
        let source_rows = match (self.cardinality, rows) {
            (Cardinality::OneToOne, _) => None,
            (Cardinality::FanOut, Some(rows)) => Some(rows?),
            (Cardinality::FanOut, None) => return Err("the answer does not say whose its rows are".to_owned()),
        };
        let usage = Usage { calls: 1, ..Usage::default() };
        Ok(BatchReply { output, source_rows, skipped: Vec::new(), failures, usage })
    }
}

#[async_trait]
impl StepSession for Session {
    async fn execute(&mut self, batch: ItemBatch) -> Result<BatchReply, Failure> {
        match tokio::runtime::Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
            Ok(tokio::runtime::RuntimeFlavor::MultiThread) => tokio::task::block_in_place(|| self.call(&batch)),
            _ => self.call(&batch),
        }
    }
}
