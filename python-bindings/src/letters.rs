//! Rows that the Python steps of a frame put aside (`on_error="dead_letter"`): they come back beside the frame's own, or
//! a warning says how many were lost.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::{DataFusionError, Result, plan_datafusion_err};
use parking_lot::Mutex;
use pyo3::prelude::*;
use rowmill_engine::plan::dead_letters::{Letters, letters_schema, read_letters};
use rowmill_items::Ledger;

use crate::batches::Batches;
use crate::errors::{Raised, from_engine};
use crate::frame::{PyFrame, collect_in};
use crate::items::Scratch;
use crate::runtime::wait;

/// What one step of a query puts aside.
pub(crate) struct PutAside {
    step: String,
    ledger: Arc<Ledger>,
    /// The ledger's columns, as the step's input has them where the query runs.
    inner: SchemaRef,
    /// The same under the names that the frame has.
    schema: SchemaRef,
    /// Where the ledger's file is.
    _scratch: Arc<Scratch>,
}

impl PutAside {
    /// For items with the columns `inner`, which a person knows by the names of `named`.
    pub(crate) fn try_new(
        step: &str,
        ledger: &Arc<Ledger>,
        inner: &Schema,
        named: &Schema,
        scratch: &Arc<Scratch>,
    ) -> Result<PutAside> {
        let twice = |name: String| {
            plan_datafusion_err!(
                "`{step}`: rows that it puts aside get a column `{name}`, and have one already; rename it"
            )
        };
        Ok(PutAside {
            step: step.to_owned(),
            ledger: Arc::clone(ledger),
            inner: letters_schema(inner).map_err(twice)?,
            schema: letters_schema(named).map_err(twice)?,
            _scratch: Arc::clone(scratch),
        })
    }

    fn read(&self) -> Result<Vec<RecordBatch>> {
        let batches = read_letters(&Letters::Live(Arc::clone(&self.ledger)), &self.inner)?;
        let named = |batch: RecordBatch| Ok(RecordBatch::try_new(Arc::clone(&self.schema), batch.columns().to_vec())?);
        batches.into_iter().map(named).collect()
    }
}

/// What all steps of a query put aside, where somebody wants to know; the state of the query carries it.
#[derive(Default)]
pub(crate) struct Aside(Mutex<Vec<PutAside>>);

impl Aside {
    /// Adds a step, after those that it takes rows from.
    pub(crate) fn add(&self, step: PutAside) {
        self.0.lock().push(step);
    }

    fn read(&self) -> Result<Vec<(String, Batches)>> {
        let steps = std::mem::take(&mut *self.0.lock());
        let read = steps.into_iter().map(|step| {
            let batches = step.read()?;
            Ok((step.step, Batches { schema: step.schema, batches }))
        });
        read.collect()
    }
}

/// All rows, and for each step that puts rows aside its name and these.
#[pyfunction]
pub(crate) fn collect_with_failures(py: Python<'_>, frame: &PyFrame) -> PyResult<(Batches, Vec<(String, Batches)>)> {
    let (shared, plan, schema) = (Arc::clone(&frame.shared), frame.plan.clone(), frame.arrow_schema());
    let done = wait(py, async move {
        let mut aside = Arc::new(Aside::default());
        let batches = collect_in(shared, plan, |state| {
            // An attempt that started over begins with nothing put aside.
            aside = Arc::default();
            state.config_mut().set_extension(Arc::clone(&aside));
        })
        .await?;
        let read = tokio::task::spawn_blocking(move || aside.read()).await;
        let letters = read.map_err(|error| DataFusionError::ExecutionJoin(Box::new(error)))??;
        Ok::<_, DataFusionError>((Batches { schema, batches }, letters))
    })?;
    done.map_err(|error| from_engine(py, &error))
}

/// Warns that rows were put aside where nobody asked for them; an error where warnings are errors.
pub(crate) fn warn(step: &str, rows: u64) -> Option<DataFusionError> {
    let told = || {
        Python::attach(|py| {
            let told = py.import("rowmill._errors").and_then(|errors| errors.call_method1("put_aside", (step, rows)));
            told.err().map(|error| Raised::wrap(py, step, error))
        })
    };
    match tokio::runtime::Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(tokio::runtime::RuntimeFlavor::MultiThread) => tokio::task::block_in_place(told),
        _ => told(),
    }
}
