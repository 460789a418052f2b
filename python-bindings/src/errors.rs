//! Failures as Python exceptions. The classes are Python's (`rowmill._errors`); here they are filled.

use std::error::Error;
use std::fmt;

use datafusion::common::DataFusionError;
use pyo3::prelude::*;
use rowmill::{Diagnostics, Session};
use rowmill_step::Failure;

/// An exception of a user's function, on its way through the engine.
#[derive(Debug)]
pub(crate) struct Raised {
    text: String,
    exception: PyErr,
}

impl Raised {
    /// An exception that `what` raised.
    pub(crate) fn wrap(py: Python<'_>, what: &str, exception: PyErr) -> DataFusionError {
        let kind = exception.get_type(py);
        let name = kind.name().map_or_else(|_| "exception".to_owned(), |name| name.to_string());
        let text = match exception.value(py).to_string().as_str() {
            // The adapter's own: it was not the function that raised it.
            message if name == "RowFailure" => format!("`{what}` {message}"),
            "" => format!("`{what}` raised {name}"),
            message => format!("`{what}` raised {name}: {message}"),
        };
        DataFusionError::External(Box::new(Raised { text, exception }))
    }
}

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Raised {}

/// A row that failed for good in a worker process, on its way through the engine.
#[derive(Debug)]
pub(crate) struct Failed {
    text: String,
    code: &'static str,
    help: &'static str,
    fields: Vec<(std::borrow::Cow<'static, str>, String)>,
}

impl Failed {
    /// The failure of a row of `what`.
    pub(crate) fn wrap(what: &str, failure: &Failure) -> DataFusionError {
        DataFusionError::External(Box::new(Failed {
            text: format!("`{what}`: {}", failure.message()),
            code: failure.code().as_str(),
            help: crate::workers::advice(failure),
            fields: failure.fields().to_vec(),
        }))
    }
}

impl Failed {
    /// More rows of `what` failed than may.
    pub(crate) fn too_many(what: &str, reason: &str) -> DataFusionError {
        DataFusionError::External(Box::new(Failed {
            text: format!("`{what}`: {reason}"),
            code: "too_many",
            help: "max_errors= says how many rows, or what share of them, may fail",
            fields: Vec::new(),
        }))
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Failed {}

/// What one of ours said inside an error.
fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        // Shared errors hide what they share from `source`.
        if let Some(DataFusionError::Shared(inner)) = error.downcast_ref::<DataFusionError>() {
            return find(inner.as_ref());
        }
        next = error.source();
    }
    None
}

/// An engine's error as an exception.
pub(crate) fn from_engine(py: Python<'_>, error: &DataFusionError) -> PyErr {
    if let Some(raised) = find::<Raised>(error) {
        let exception = raised.exception.clone_ref(py);
        return build(py, "from_raised", (raised.text.clone(), exception.value(py)));
    }
    if let Some(failed) = find::<Failed>(error) {
        let fields: Vec<(&str, &str)> =
            failed.fields.iter().map(|(name, value)| (name.as_ref(), value.as_str())).collect();
        return build(py, "from_failure", (failed.text.as_str(), failed.code, failed.help, fields));
    }
    from_reports(py, &Session::report(error))
}

/// Reports as an exception.
pub(crate) fn from_reports(py: Python<'_>, reports: &Diagnostics) -> PyErr {
    let fault = match reports.fault() {
        rowmill::Fault::Workflow => "workflow",
        rowmill::Fault::Data => "data",
        rowmill::Fault::Environment => "environment",
        rowmill::Fault::Internal => "internal",
    };
    build(py, "from_reports", (reports.render(false), reports.to_json().to_string(), fault))
}

/// A run that was cancelled.
pub(crate) fn cancelled(py: Python<'_>) -> PyErr {
    build(py, "cancelled", ())
}

fn build<'py>(py: Python<'py>, function: &str, arguments: impl pyo3::call::PyCallArgs<'py>) -> PyErr {
    let made = py.import("rowmill._errors").and_then(|module| module.getattr(function)?.call1(arguments));
    match made {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    }
}
