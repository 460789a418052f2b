//! One call of an adapter: a batch goes to Python under the GIL, and its answer is held against what was declared.

use std::fmt;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::common::{Result, internal_err};
use pyo3::prelude::*;

use crate::batches::Batch;
use crate::cdata;
use crate::errors::Raised;

/// An adapter, and what it answers with.
pub(super) struct Call {
    pub(super) name: String,
    pub(super) function: Py<PyAny>,
    pub(super) schema: SchemaRef,
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Call {
    /// Calls the function for one batch. It may take long, so the runtime is told.
    pub(super) fn call(&self, batch: RecordBatch) -> Result<RecordBatch> {
        let call = || {
            Python::attach(|py| {
                let answer = Py::new(py, Batch { batch }).and_then(|batch| {
                    let answer = self.function.call1(py, (batch,))?;
                    cdata::batch_from_python(answer.bind(py))
                });
                answer.map_err(|error| Raised::wrap(py, &self.name, error))
            })
        };
        match tokio::runtime::Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
            Ok(tokio::runtime::RuntimeFlavor::MultiThread) => tokio::task::block_in_place(call),
            _ => call(),
        }
    }

    /// Whether the answer has the columns that were declared; with `__row` before them in addition.
    pub(super) fn check(&self, answer: &RecordBatch, offset: usize) -> Result<()> {
        let came = answer.schema();
        let fits = came.fields().len() == self.schema.fields().len() + offset
            && came
                .fields()
                .iter()
                .skip(offset)
                .zip(self.schema.fields())
                .all(|(came, said)| came.name() == said.name() && came.data_type() == said.data_type());
        match fits {
            true => Ok(()),
            false => internal_err!("`{}` answered with columns {:?}", self.name, came.fields()),
        }
    }
}
