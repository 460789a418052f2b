//! Functions in a folder, and a way to run a step over them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use rowmill_step::conformance::{Driven, Options, drive};
use rowmill_step::{Effects, StepContext};
use rowmill_step_python::{Function, PythonOptions, PythonStep, Worker};

/// The interpreter, if it can import pyarrow. Without one the tests here say so and pass, unless `PYTHON_WITH_PYARROW`
/// promised one.
pub(crate) fn interpreter() -> Option<String> {
    let promised = std::env::var("PYTHON_WITH_PYARROW").ok();
    let python = promised.clone().unwrap_or_else(|| "python3".to_owned());
    let works = Command::new(&python).args(["-c", "import pyarrow"]).output().is_ok_and(|done| done.status.success());
    if !works {
        assert!(promised.is_none(), "PYTHON_WITH_PYARROW={python} cannot import pyarrow");
        eprintln!("ignored: {python} has no pyarrow; set PYTHON_WITH_PYARROW");
    }
    works.then_some(python)
}

/// A folder with a module `functions`.
pub(crate) fn module(text: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("functions.py"), text).unwrap();
    folder
}

pub(crate) fn output() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("doubled", DataType::Int64, true)]))
}

/// Options that call `function` of the folder's module.
pub(crate) fn options(python: &str, folder: &Path, function: &str) -> PythonOptions {
    let worker = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../python-bindings/python/rowmill/_worker.py");
    let mut options = PythonOptions::new(Function::Named(format!("functions:{function}")), function, &["n"], output());
    options.python = python.to_owned();
    options.worker = Worker::File(worker);
    options.sys_path = vec![folder.display().to_string()];
    options.effects = Effects::Idempotent;
    options.target.in_flight = 1;
    options
}

pub(crate) fn numbers(values: impl IntoIterator<Item = i64>) -> RecordBatch {
    let column: ArrayRef = Arc::new(Int64Array::from_iter_values(values));
    RecordBatch::try_from_iter_with_nullable([("n", column, true)]).unwrap()
}

pub(crate) fn context() -> StepContext {
    StepContext::new("run-1", "score", "tenant")
}

pub(crate) async fn run(options: PythonOptions, input: RecordBatch) -> Driven {
    let step = PythonStep::try_new(options).unwrap();
    let (context, schema) = (context(), input.schema());
    let how = Options::default();
    let work = drive(&step, &context, &schema, vec![input], &how);
    tokio::time::timeout(std::time::Duration::from_secs(90), work).await.expect("it ends").unwrap()
}

pub(crate) fn doubled(driven: &Driven) -> Vec<Option<i64>> {
    driven.output.column(0).as_primitive::<Int64Type>().iter().collect()
}
