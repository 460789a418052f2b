//! Python functions in worker processes, inside a query: groups of rows go to whichever process is free, a row that
//! kills its process is found by halving where the function may be called again, and the step's policy says what
//! becomes of rows that failed.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::Result;
use parking_lot::Mutex;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use rowmill_step::{
    Effects, Failure, FailureCode, ItemBatch, ItemIds, ItemKeys, KeyDeriver, Sent, StepContext, StepExecutor as _,
    StepSession, StepShape, attempt,
};
use rowmill_step_python::{Function, Kind, Output, PythonOptions, PythonStep, Worker};
use tokio::sync::Semaphore;

use crate::batches::engine_error;
use crate::cdata;
use crate::errors::Failed;

/// What becomes of rows that fail for good.
#[derive(Debug, Clone)]
enum OnError {
    Fail,
    Skip,
    /// This row stands in for each of them.
    Default(RecordBatch),
}

/// How a function is called in worker processes.
#[derive(Debug)]
pub(crate) struct Workers {
    step: PythonStep,
    on_error: OnError,
    retries: u32,
    /// Processes at most.
    pub(crate) count: usize,
}

fn word<T>(what: &str, word: &str, found: Option<T>) -> PyResult<T> {
    found.ok_or_else(|| PyValueError::new_err(format!("there is no {what} `{word}`")))
}

/// What workers print goes to Python's standard error, which a notebook shows.
fn printed(text: &[u8]) {
    let text = String::from_utf8_lossy(text).into_owned();
    let told = Python::try_attach(|py| {
        let stderr = py.import("sys").and_then(|sys| sys.getattr("stderr"))?;
        stderr.call_method1("write", (&text,))?;
        stderr.call_method0("flush").map(drop)
    });
    if !matches!(told, Some(Ok(()))) {
        eprint!("{text}");
    }
}

impl Workers {
    /// From what `rowmill._step` says.
    pub(crate) fn from_python(said: &Bound<'_, PyDict>, reads: &[String], output: &SchemaRef) -> PyResult<Workers> {
        let get = |key: &str| {
            said.get_item(key)?.ok_or_else(|| PyTypeError::new_err(format!("a step in workers says its `{key}`")))
        };
        let function = get("function")?;
        let function = match function.cast::<PyBytes>() {
            Ok(bytes) => Function::Pickled(bytes.as_bytes().to_vec()),
            Err(_) => Function::Named(function.extract()?),
        };
        let name: String = get("name")?.extract()?;
        let names: Vec<&str> = reads.iter().map(String::as_str).collect();
        let mut options = PythonOptions::new(function, &name, &names, SchemaRef::clone(output));
        options.python = get("python")?.extract()?;
        options.worker = Worker::File(get("worker")?.extract::<PathBuf>()?);
        options.sys_path = get("sys_path")?.extract()?;
        options.flavors = get("flavors")?.extract()?;
        options.many = get("many")?.extract()?;
        options.in_flight = get("in_flight")?.extract()?;
        options.limits.memory_bytes = get("memory_bytes")?.extract()?;
        options.group_timeout = get("timeout_s")?.extract::<Option<f64>>()?.map(Duration::from_secs_f64);
        options.printed = Output(Arc::new(printed));
        let kind: String = get("kind")?.extract()?;
        options.kind = word("kind of function", &kind, Kind::from_word(&kind))?;
        let effects: String = get("effects")?.extract()?;
        let known = [Effects::Pure, Effects::Idempotent, Effects::Once];
        options.effects = word("kind of effects", &effects, known.into_iter().find(|of| of.as_str() == effects))?;
        let count: usize = get("workers")?.extract()?;
        options.target.in_flight = count;
        let on_error: String = get("on_error")?.extract()?;
        let on_error = match on_error.as_str() {
            "fail" => OnError::Fail,
            "skip" => OnError::Skip,
            _ => OnError::Default(cdata::batch_from_python(&get("default")?)?),
        };
        let retries: u32 = get("retries")?.extract()?;
        let step = PythonStep::try_new(options).map_err(|error| PyValueError::new_err(error.to_string()))?;
        Ok(Workers { step, on_error, retries, count })
    }
}

/// The processes of one operator; they end with it.
pub(crate) struct Pool {
    workers: Arc<Workers>,
    context: StepContext,
    shape: StepShape,
    keys: Arc<KeyDeriver>,
    idle: Mutex<Vec<Box<dyn StepSession>>>,
    slots: Semaphore,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("workers", &self.workers).finish_non_exhaustive()
    }
}

/// Rows of a group that still have to be worked on.
struct Open {
    start: usize,
    length: usize,
    attempt: u32,
}

impl Pool {
    /// No process is started before the first rows come.
    pub(crate) fn new(workers: Arc<Workers>, name: &str, input: SchemaRef, output: SchemaRef) -> Pool {
        let context = StepContext::new(&run_id(), name, "local");
        let keys = Arc::new(context.keys());
        let (shape, slots) = (StepShape { input, output }, Semaphore::new(workers.count));
        Pool { workers, context, shape, keys, idle: Mutex::new(Vec::new()), slots }
    }

    /// Works on one group until every row of it is settled. The answer has a first column `__row` where not every row
    /// has exactly one.
    pub(crate) async fn apply(&self, columns: RecordBatch) -> Result<RecordBatch> {
        let rows = columns.num_rows();
        let description = self.workers.step.describe();
        let mut open = vec![Open { start: 0, length: rows, attempt: 1 }];
        let mut pieces: Vec<(usize, RecordBatch, Vec<u32>)> = Vec::new();
        let mut failed: Vec<(usize, Failure)> = Vec::new();
        while let Some(next) = open.pop() {
            let Open { start, length, attempt: number } = next;
            match self.once(columns.slice(start, length), number).await {
                Ok(reply) => {
                    let lost: BTreeSet<u32> = reply.failures.iter().map(|(row, _)| *row).collect();
                    let owners = reply
                        .source_rows
                        .unwrap_or_else(|| (0..length as u32).filter(|row| !lost.contains(row)).collect());
                    let owners = owners.into_iter().map(|row| row + start as u32).collect();
                    pieces.push((start, reply.output, owners));
                    for (row, failure) in reply.failures {
                        self.again_or_over(start + row as usize, number, failure, &mut open, &mut failed).await;
                    }
                }
                Err(failure) if length > 1 && failure.bisectable(description.effects) => {
                    let half = length / 2;
                    open.push(Open { start: start + half, length: length - half, attempt: number });
                    open.push(Open { start, length: half, attempt: number });
                }
                Err(failure) if length == 1 => {
                    self.again_or_over(start, number, failure, &mut open, &mut failed).await;
                }
                Err(failure) => failed.extend((start..start + length).map(|row| (row, failure.clone()))),
            }
            if matches!(self.workers.on_error, OnError::Fail)
                && let Some((_, failure)) = failed.first()
            {
                return Err(Failed::wrap(&self.context.step, failure));
            }
        }
        self.assemble(rows, pieces, failed)
    }

    /// Another attempt at a row, after a pause, or the end of it.
    async fn again_or_over(
        &self,
        row: usize,
        attempt: u32,
        failure: Failure,
        open: &mut Vec<Open>,
        failed: &mut Vec<(usize, Failure)>,
    ) {
        let repeatable = self.workers.step.describe().effects.repeatable();
        let stuck = matches!(failure.code(), FailureCode::Setup | FailureCode::Cancelled | FailureCode::Internal);
        if attempt <= self.workers.retries && repeatable && !stuck {
            let pause = Duration::from_millis(100) * 2_u32.saturating_pow(attempt - 1);
            tokio::time::sleep(pause.min(Duration::from_secs(10))).await;
            open.push(Open { start: row, length: 1, attempt: attempt + 1 });
        } else {
            failed.push((row, failure));
        }
    }

    async fn once(&self, columns: RecordBatch, number: u32) -> std::result::Result<rowmill_step::BatchReply, Failure> {
        let permit = self.slots.acquire().await;
        let idle = self.idle.lock().pop();
        let mut session = match idle {
            Some(session) => session,
            None => self.workers.step.open(&self.context, &self.shape).await?,
        };
        let ids = ItemIds::Range { file: 0, rows: 0..columns.num_rows() as u64 };
        let batch = ItemBatch {
            columns,
            keys: ItemKeys::new(ids, Arc::clone(&self.keys)),
            attempt: number,
            deadline: None,
            cancel: self.context.cancel.clone(),
        };
        let cardinality = self.workers.step.describe().cardinality;
        let ended = attempt(session.as_mut(), batch, &self.context, &self.shape, cardinality).await;
        if ended.usable {
            self.idle.lock().push(session);
        }
        drop(permit);
        ended.result
    }

    /// All pieces in the order of the rows, with rows of the default where the policy wants them.
    fn assemble(
        &self,
        rows: usize,
        mut pieces: Vec<(usize, RecordBatch, Vec<u32>)>,
        failed: Vec<(usize, Failure)>,
    ) -> Result<RecordBatch> {
        if let OnError::Default(row) = &self.workers.on_error {
            pieces.extend(failed.iter().map(|(at, _)| (*at, row.clone(), vec![*at as u32])));
        }
        let all = concat_batches(&self.shape.output, pieces.iter().map(|(_, batch, _)| batch)).map_err(engine_error)?;
        let owners: Vec<u32> = pieces.into_iter().flat_map(|(_, _, owners)| owners).collect();
        let whole = owners.len() == rows && owners.iter().enumerate().all(|(at, owner)| at == *owner as usize);
        if whole {
            return Ok(all);
        }
        // Pieces come in the order in which they were settled; rows of one owner keep theirs.
        let mut order: Vec<u32> = (0..owners.len() as u32).collect();
        order.sort_by_key(|at| owners.get(*at as usize).copied());
        let sorted: UInt32Array = order.iter().filter_map(|at| owners.get(*at as usize).copied()).collect();
        let all = arrow::compute::take_record_batch(&all, &UInt32Array::from(order)).map_err(engine_error)?;
        let mut fields = vec![Field::new("__row", DataType::UInt32, false)];
        fields.extend(self.shape.output.fields().iter().map(|field| field.as_ref().clone()));
        let columns: Vec<ArrayRef> =
            std::iter::once(Arc::new(sorted) as ArrayRef).chain(all.columns().iter().cloned()).collect();
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(engine_error)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.context.cancel.cancel();
    }
}

fn run_id() -> String {
    uuid::Uuid::now_v7().to_string()
}

/// What a failure may still be told of.
pub(crate) fn advice(failure: &Failure) -> &'static str {
    match (failure.code(), failure.how_far()) {
        (FailureCode::Setup, _) => "the function could not be loaded in a worker process",
        (FailureCode::Crashed, Sent::Maybe) => {
            "on_error=\"skip\" lets the other rows go on; effects=\"pure\" or \"idempotent\" lets the row be found"
        }
        _ => "on_error=\"skip\" or \"default\" lets the other rows go on",
    }
}
