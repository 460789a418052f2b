//! Failures as Python exceptions. The classes are Python's (`rowmill._errors`); here they are filled.

use std::error::Error;
use std::fmt;

use datafusion::common::DataFusionError;
use pyo3::prelude::*;
use rowmill::{Diagnostics, Session};

/// An exception of a user's function, on its way through the engine.
#[derive(Debug)]
pub(crate) struct Raised {
    text: String,
    exception: PyErr,
}

impl Raised {
    /// An exception that `what` raised.
    pub(crate) fn new(py: Python<'_>, what: &str, exception: PyErr) -> DataFusionError {
        let kind = exception.get_type(py);
        let name = kind.name().map_or_else(|_| "exception".to_owned(), |name| name.to_string());
        let text = match exception.value(py).to_string().as_str() {
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

/// The exception inside an error, if a function of the user's raised one.
fn raised<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Raised> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(raised) = error.downcast_ref::<Raised>() {
            return Some(raised);
        }
        // Shared errors hide what they share from `source`.
        if let Some(DataFusionError::Shared(inner)) = error.downcast_ref::<DataFusionError>() {
            return self::raised(inner.as_ref());
        }
        next = error.source();
    }
    None
}

/// An engine's error as an exception.
pub(crate) fn from_engine(py: Python<'_>, error: &DataFusionError) -> PyErr {
    if let Some(raised) = raised(error) {
        let exception = raised.exception.clone_ref(py);
        return build(py, "from_raised", (raised.text.clone(), exception.value(py)));
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
