//! Python functions in worker processes: what `rowmill._step` says of them, as a step of `rowmill-step-python`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use rowmill_step::{Effects, Failure, FailureCode, Sent};
use rowmill_step_python::{Function, Kind, Logging, Output, PythonOptions, PythonStep, Worker};

/// Rows of a group where nothing else is said: small enough that every process has something to do.
pub(crate) const BATCH_ROWS: usize = 1 << 12;

/// What a word of the protocol between Python and Rust stands for.
pub(crate) fn word<T>(what: &str, word: &str, found: Option<T>) -> PyResult<T> {
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

/// Hands what workers print on to Python.
pub(crate) fn to_python() -> Output {
    Output(Arc::new(printed))
}

/// A step from what `rowmill._step` says.
pub(crate) fn step_from_python(said: &Bound<'_, PyDict>, reads: &[String], output: &SchemaRef) -> PyResult<PythonStep> {
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
    options.source = Some(get("source")?.extract()?);
    options.python = get("python")?.extract()?;
    options.worker = Worker::File(get("worker")?.extract::<PathBuf>()?);
    options.sys_path = get("sys_path")?.extract()?;
    options.flavors = get("flavors")?.extract()?;
    options.many = get("many")?.extract()?;
    options.in_flight = get("in_flight")?.extract()?;
    options.limits.memory_bytes = get("memory_bytes")?.extract()?;
    let timeout = get("timeout_s")?.extract::<Option<f64>>()?.map(Duration::try_from_secs_f64).transpose();
    options.group_timeout = timeout.map_err(|error| PyValueError::new_err(format!("timeout: {error}")))?;
    options.printed = to_python();
    let kind: String = get("kind")?.extract()?;
    options.kind = Some(word("kind of function", &kind, Kind::from_word(&kind))?);
    let effects: String = get("effects")?.extract()?;
    let known = [Effects::Pure, Effects::Idempotent, Effects::Once];
    options.effects = word("kind of effects", &effects, known.into_iter().find(|of| of.as_str() == effects))?;
    options.stop_at_failure = get("on_error")?.extract::<String>()? == "fail";
    options.logging = logging(&get("logging")?)?;
    options.raised_passes = get("retries")?.extract::<u32>()? > 0;
    options.target.in_flight = get("workers")?.extract()?;
    options.target.rows = get("group_rows")?.extract::<Option<usize>>()?.unwrap_or(BATCH_ROWS);
    // Rows decide how large a group is; what is larger than this is cut all the same.
    options.target.bytes = 256 << 20;
    PythonStep::try_new(options).map_err(|error| PyValueError::new_err(error.to_string()))
}

/// How this program logs, as `rowmill._step` says it.
pub(crate) fn logging(said: &Bound<'_, PyAny>) -> PyResult<Option<Logging>> {
    let said = said.extract::<Option<(i64, Option<String>)>>()?;
    Ok(said.map(|(level, format)| Logging { level, format }))
}

/// What a failure may still be told of.
pub(crate) fn advice(failure: &Failure) -> &'static str {
    match (failure.code(), failure.how_far()) {
        (FailureCode::Setup, _) => "the function could not be loaded in a worker process",
        (FailureCode::Crashed, Sent::Maybe) => {
            "on_error=\"skip\" lets the other rows go on; effects=\"pure\" or \"idempotent\" lets the row be found"
        }
        _ => "on_error=\"skip\" or \"default\" lets the other rows go on, \"dead_letter\" also keeps those that fail",
    }
}
