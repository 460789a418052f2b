//! Rows on their way to Python: all of them, or one batch after the other.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};

use arrow::array::{RecordBatch, RecordBatchIterator, RecordBatchReader};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::physical_plan::execute_stream;
use futures::StreamExt as _;
use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use tokio::task::AbortHandle;

use crate::cdata;
use crate::errors::from_engine;
use crate::frame::PyFrame;
use crate::runtime::{Threads, leave, listen};

/// Batches that wait for Python at most.
const AHEAD: usize = 4;

/// Rows in memory.
#[pyclass(frozen, module = "rowmill._native")]
pub(crate) struct Batches {
    pub(crate) schema: SchemaRef,
    pub(crate) batches: Vec<RecordBatch>,
}

#[pymethods]
impl Batches {
    #[pyo3(signature = (requested_schema = None))]
    fn __arrow_c_stream__(&self, py: Python<'_>, requested_schema: Option<Py<PyAny>>) -> PyResult<Py<PyAny>> {
        drop(requested_schema);
        let batches: Vec<_> = self.batches.iter().cloned().map(Ok::<_, ArrowError>).collect();
        cdata::stream_to_capsule(py, Box::new(RecordBatchIterator::new(batches, SchemaRef::clone(&self.schema))))
    }

    fn __arrow_c_schema__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        cdata::schema_to_capsule(py, &self.schema)
    }

    fn __len__(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }

    /// The first rows as texts, for tables on a screen; `None` is null.
    fn cells(&self, rows: usize) -> PyResult<Vec<Vec<Option<String>>>> {
        let wrong = |error: ArrowError| pyo3::exceptions::PyValueError::new_err(error.to_string());
        let options = FormatOptions::default().with_null("");
        let mut cells = Vec::new();
        for batch in &self.batches {
            let columns = batch.columns().iter().map(|column| ArrayFormatter::try_new(column.as_ref(), &options));
            let columns = columns.collect::<Result<Vec<_>, _>>().map_err(wrong)?;
            for row in 0..batch.num_rows().min(rows - cells.len()) {
                let line = columns.iter().zip(batch.columns()).map(|(texts, column)| {
                    use arrow::array::Array as _;
                    if column.is_null(row) { Ok(None) } else { texts.value(row).try_to_string().map(Some) }
                });
                cells.push(line.collect::<Result<Vec<_>, _>>().map_err(wrong)?);
            }
            if cells.len() >= rows {
                break;
            }
        }
        Ok(cells)
    }
}

/// One batch.
#[pyclass(frozen, module = "rowmill._native")]
pub(crate) struct Batch {
    pub(crate) batch: RecordBatch,
}

#[pymethods]
impl Batch {
    #[pyo3(signature = (requested_schema = None))]
    fn __arrow_c_array__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyTuple>> {
        drop(requested_schema);
        cdata::batch_to_capsules(py, &self.batch)
    }

    fn __arrow_c_schema__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        cdata::schema_to_capsule(py, &self.batch.schema())
    }

    fn __len__(&self) -> usize {
        self.batch.num_rows()
    }
}

/// Batches of a query that runs as they are read; dropping it ends the query.
pub(crate) struct StreamingReader {
    schema: SchemaRef,
    receiver: Receiver<Result<RecordBatch>>,
    task: AbortHandle,
    threads: Arc<Threads>,
}

impl Drop for StreamingReader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn send_all(frame: PyFrame, sender: &SyncSender<Result<RecordBatch>>) -> Result<()> {
    let state = frame.shared.query_state(false);
    let plan = state.create_physical_plan(&frame.plan).await?;
    let mut stream = execute_stream(plan, Arc::new(TaskContext::from(&state)))?;
    while let Some(batch) = stream.next().await {
        // Waiting for Python is waiting for a thread: the runtime is told, so that others run meanwhile.
        let sent = tokio::task::block_in_place(|| sender.send(batch));
        if sent.is_err() {
            break;
        }
    }
    Ok(())
}

impl StreamingReader {
    /// Starts the query.
    pub(crate) fn start(frame: &PyFrame) -> PyResult<StreamingReader> {
        let (sender, receiver) = sync_channel(AHEAD);
        let (frame, schema) = (frame.clone(), frame.arrow_schema());
        let threads = crate::runtime::threads()?;
        let task = threads.spawn(async move {
            if let Err(error) = send_all(frame, &sender).await {
                // The reader is gone if nobody wants to know.
                let _ = tokio::task::block_in_place(|| sender.send(Err(error)));
            }
        })?;
        Ok(StreamingReader { schema, receiver, task: task.abort_handle(), threads })
    }

    /// The next batch; Python is let go while it is waited for, and its signals are heard.
    fn next_batch(&mut self, py: Python<'_>) -> PyResult<Option<Result<RecordBatch>>> {
        loop {
            match listen(py, &mut self.receiver) {
                Ok(batch) => return Ok(Some(batch)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {
                    if let Err(signal) = py.check_signals() {
                        self.task.abort();
                        leave(&self.threads);
                        return Err(signal);
                    }
                }
            }
        }
    }
}

impl Iterator for StreamingReader {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        // Whoever reads the C stream may hold the GIL or not; a query with Python functions in it needs it meanwhile.
        Python::attach(|py| match self.next_batch(py) {
            Ok(batch) => batch.map(|batch| batch.map_err(|error| ArrowError::ExternalError(Box::new(error)))),
            Err(signal) => {
                // The consumer will raise an error of its own; the interrupt comes again right after it.
                if signal.is_instance_of::<pyo3::exceptions::PyKeyboardInterrupt>(py) {
                    // SAFETY: the thread is attached to Python, which is all that the call asks for.
                    unsafe { pyo3::ffi::PyErr_SetInterrupt() };
                }
                Some(Err(ArrowError::ExternalError(format!("interrupted: {signal}").into())))
            }
        })
    }
}

impl RecordBatchReader for StreamingReader {
    fn schema(&self) -> SchemaRef {
        SchemaRef::clone(&self.schema)
    }
}

/// Batches as a Python iterator.
#[pyclass(module = "rowmill._native")]
pub(crate) struct BatchIterator {
    reader: Mutex<Option<StreamingReader>>,
}

impl BatchIterator {
    pub(crate) fn new(reader: StreamingReader) -> BatchIterator {
        BatchIterator { reader: Mutex::new(Some(reader)) }
    }
}

#[pymethods]
impl BatchIterator {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Batch>> {
        let Some(mut reader) = self.reader.lock().take() else { return Ok(None) };
        match reader.next_batch(py)? {
            Some(Ok(batch)) => {
                *self.reader.lock() = Some(reader);
                Ok(Some(Batch { batch }))
            }
            Some(Err(error)) => Err(from_engine(py, &error)),
            None => Ok(None),
        }
    }

    /// Ends the query.
    fn close(&self) {
        drop(self.reader.lock().take());
    }
}

/// What a conversion to Arrow found wrong.
pub(crate) fn engine_error(error: ArrowError) -> DataFusionError {
    DataFusionError::ArrowError(Box::new(error), None)
}
