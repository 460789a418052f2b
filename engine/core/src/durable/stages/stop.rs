//! Why an attempt ends before its run does.

use datafusion::common::DataFusionError;
use rowmill_items::StepStopped;
use rowmill_spec::Diagnostic;

use crate::durable::store_report;
use crate::local;

/// Why the work ended early.
#[derive(Debug)]
pub(in crate::durable) enum Stop {
    Report(Box<Diagnostic>),
    Error(DataFusionError),
    Stopped(StepStopped),
    Cancelled,
    /// Another process has the run.
    Lost,
}

impl From<rowmill_store::Error> for Stop {
    fn from(error: rowmill_store::Error) -> Self {
        match error {
            rowmill_store::Error::Fenced { .. } => Stop::Lost,
            error => Stop::Report(Box::new(store_report(&error))),
        }
    }
}

impl From<DataFusionError> for Stop {
    fn from(error: DataFusionError) -> Self {
        Stop::Error(error)
    }
}

impl From<local::Stop> for Stop {
    fn from(stop: local::Stop) -> Self {
        match stop {
            local::Stop::Error(error, _) => Stop::Error(error),
            local::Stop::Report(report) => Stop::Report(report),
            local::Stop::Cancelled => Stop::Cancelled,
        }
    }
}
