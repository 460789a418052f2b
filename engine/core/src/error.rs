//! Errors of a run, sorted by whose fault they are.

use std::sync::Arc;

use arrow::error::ArrowError;
use datafusion::common::DataFusionError;
use rowmill_items::{StepStopped, StopReason};
use rowmill_spec::{Diagnostic, Fault};
use rowmill_step::FailureCode;

use crate::compile::sql_errors;
use crate::elsewhere::Reported;
use crate::plan::placement::Unserved;
use crate::sources::local_files::Truncated;

/// A failure with the step it happened in. Travels inside a [`DataFusionError`] from the operator to the run.
#[derive(Debug, Clone, thiserror::Error)]
#[error("step `{step}`: {source}")]
pub struct StepFailure {
    /// The step.
    pub step: Arc<str>,
    /// What happened.
    pub source: Arc<DataFusionError>,
}

impl StepFailure {
    /// Puts the step's name on an error, unless a step further down already did.
    pub fn wrap(step: &Arc<str>, error: DataFusionError) -> DataFusionError {
        match find(&error) {
            Some(_) => error,
            None => {
                DataFusionError::External(Box::new(StepFailure { step: Arc::clone(step), source: Arc::new(error) }))
            }
        }
    }
}

/// The step failure inside an error.
fn find(error: &DataFusionError) -> Option<&StepFailure> {
    match error {
        DataFusionError::External(inner) => inner.downcast_ref::<StepFailure>(),
        DataFusionError::Context(_, inner) => find(inner),
        DataFusionError::Shared(inner) => find(inner),
        DataFusionError::ArrowError(inner, _) => match inner.as_ref() {
            ArrowError::ExternalError(inner) => inner.downcast_ref::<DataFusionError>().and_then(find),
            _ => None,
        },
        _ => None,
    }
}

/// Down to what happened, out of every wrapping.
pub fn root(error: &DataFusionError) -> &DataFusionError {
    match find(error) {
        Some(failure) => root(&failure.source),
        None => error.find_root(),
    }
}

/// Whether the memory limit was reached by something that could not spill.
pub fn is_out_of_memory(error: &DataFusionError) -> bool {
    if let Some(reported) = find_source::<Reported>(error) {
        return reported.out_of_memory;
    }
    matches!(root(error), DataFusionError::ResourcesExhausted(message) if !message.contains("disk"))
}

/// Why a step stopped the run, where that is what the error says.
pub fn stopped(error: &DataFusionError) -> Option<&StepStopped> {
    match root(error) {
        DataFusionError::External(inner) => inner.downcast_ref::<StepStopped>(),
        _ => None,
    }
}

/// A step's own end as a report.
pub fn stopped_report(stopped: &StepStopped) -> Diagnostic {
    let message = first_line(&stopped.to_string());
    match &stopped.reason {
        StopReason::Item { .. } => Diagnostic::error("RM0610", message)
            .fault(Fault::Data)
            .help("`on_error: skip`, `dead_letter` or `{default: {...}}` lets the step go on without such items"),
        StopReason::TooMany { .. } => Diagnostic::error("RM0611", message)
            .fault(Fault::Data)
            .help("look at the reasons; raise `max_errors` if so many are to be expected"),
        StopReason::Fatal { failure } if failure.code() == FailureCode::Internal => {
            Diagnostic::error("RM0900", message)
                .fault(Fault::Internal)
                .help("this is a bug of Rowmill; please report it with the workflow")
        }
        StopReason::Fatal { failure } if failure.report_code().is_some() => {
            let code = failure.report_code().unwrap_or("RM0705");
            Diagnostic::error(code, message).fault(Fault::Environment).help(match code {
                "RM0707" => "`rowmill cluster status` shows the executors and what they serve",
                "RM0708" => "the token in ROWMILL_CLUSTER_TOKEN and the build of rowmill must be the cluster's",
                "RM0709" => "look at `rowmill cluster status`",
                _ => "configure the executor as this process is configured, and start it again; `rowmill error` says more",
            })
        }
        StopReason::Fatal { .. } | StopReason::Cancelled => Diagnostic::error("RM0705", message)
            .fault(Fault::Environment)
            .help("no item is to blame; nothing was published, and the run can be started again"),
    }
}

/// A run-time error as a report: code, step, what happened, the next move.
pub fn report(error: &DataFusionError) -> Diagnostic {
    report_in(find(error).map(|failure| failure.step.as_ref()), error)
}

/// The same for an error that is known to come from `step`.
pub fn report_in(step: Option<&str>, error: &DataFusionError) -> Diagnostic {
    if let Some(stopped) = stopped(error) {
        return stopped_report(stopped);
    }
    if let Some(reported) = find_source::<Reported>(error) {
        return reported.report.clone();
    }
    let place = match step {
        Some(step) => format!("step `{step}`: "),
        None => String::new(),
    };
    let cause = root(error);
    let text = cause.strip_backtrace();
    let lower = text.to_lowercase();
    let io = io_kind(cause);
    // Free SQL (`rowmill sql`) is planned as it is run: what is wrong with the query is not the data's fault.
    match cause {
        DataFusionError::SQL(..) | DataFusionError::Plan(_) | DataFusionError::SchemaError(..) => {
            return sql_errors::unplaced(&place, cause);
        }
        DataFusionError::NotImplemented(message) => {
            let report = Diagnostic::error("RM0308", format!("{place}{}", first_line(&unplanned(message))));
            return report.help("say it in another way: as a join, or as steps one after the other");
        }
        _ => {}
    }
    if let DataFusionError::External(inner) = cause
        && let Some(unserved) = inner.downcast_ref::<Unserved>()
    {
        return Diagnostic::error("RM0710", format!("{place}{unserved}"))
            .fault(Fault::Environment)
            .help("run it on a machine that serves the class, or configure the class so that others may do its work");
    }
    if let Some(truncated) = find_source::<Truncated>(cause) {
        return Diagnostic::error("RM0604", format!("{place}{truncated}"))
            .fault(Fault::Data)
            .help("run it again when nobody writes to its sources");
    }
    // DataFusion's writers say no more than this when a store fails at the end.
    let store_failed = lower.contains("error encountered while finalizing writes");
    let (code, fault, help) = if is_out_of_memory(error) {
        ("RM0701", Fault::Environment, "give more with --memory, or let the step see fewer rows at once")
    } else if io == Some(std::io::ErrorKind::StorageFull)
        || lower.contains("no space left")
        || lower.contains("used disk space during the spilling")
        || (matches!(cause, DataFusionError::ResourcesExhausted(_)) && lower.contains("disk"))
    {
        ("RM0702", Fault::Environment, "free some space, or point execution.temp_dir and the sinks at a larger disk")
    } else if io == Some(std::io::ErrorKind::PermissionDenied) || lower.contains("permission denied") {
        ("RM0703", Fault::Environment, "check who owns the files and the folder they are in")
    } else if store_failed {
        let message = "writing the result failed before its end, and its writer does not say why";
        return Diagnostic::error("RM0704", format!("{place}{message}")).fault(Fault::Environment).help(
            "is the disk of a sink full, or did its object store fail? nothing was published; the run can be started again",
        );
    } else if io.is_some() || matches!(cause, DataFusionError::ObjectStore(_) | DataFusionError::IoError(_)) {
        ("RM0704", Fault::Environment, "the run published nothing and can be started again")
    } else if matches!(cause, DataFusionError::Internal(_)) {
        ("RM0900", Fault::Internal, "this is a bug of Rowmill; please report it with the workflow")
    } else if lower.contains("incorrect number of fields") || lower.contains("unequal lengths") {
        (
            "RM0603",
            Fault::Data,
            "the row has more or fewer fields than the header; correct it, or check `csv:` (delimiter, quote, newlines_in_values)",
        )
    } else if lower.contains("was not provided a value for execution") {
        return Diagnostic::error("RM0301", format!("{place}{}", first_line(&text)))
            .help("parameters belong to workflows; in a query write the value itself, and a `$` of a text in quotes");
    } else if lower.contains("cast") || lower.contains("parse") || lower.contains("invalid") {
        ("RM0601", Fault::Data, "TRY_CAST makes what cannot be converted null; or filter such rows out before")
    } else if lower.contains("divide by zero") || lower.contains("division by zero") || lower.contains("overflow") {
        ("RM0602", Fault::Data, "NULLIF(divisor, 0) makes the quotient null; a wider type does not overflow")
    } else {
        ("RM0600", Fault::Data, "look at the rows that the step reads")
    };
    Diagnostic::error(code, format!("{place}{}", first_line(&text))).fault(fault).help(help)
}

/// What the planner has no operator for; expressions that it left over are told by what they are.
fn unplanned(message: &str) -> String {
    let left = message.strip_prefix("Physical plan does not support logical expression ");
    let kind = left.map(|rest| rest.split(|c: char| !c.is_alphanumeric()).next().unwrap_or(rest));
    let what = match kind {
        Some("InSubquery" | "Exists") => {
            "IN over a query, and EXISTS, choose rows in WHERE and HAVING; they are no columns"
        }
        Some("ScalarSubquery") => {
            "a query for each row is one total of rows that are equal to the outer one in something, without LIMIT"
        }
        Some("OuterReferenceColumn") => {
            "a query in FROM reads the rows beside it in a way that is no join, as UNNEST, ORDER BY and LIMIT do"
        }
        Some("WindowFunction") => "window functions have no place where rows are chosen; QUALIFY chooses by them",
        _ => message,
    };
    what.to_owned()
}

/// The kind of the I/O error at the bottom, if there is one.
fn io_kind(error: &DataFusionError) -> Option<std::io::ErrorKind> {
    find_source::<std::io::Error>(error).map(std::io::Error::kind)
}

/// The first error of a type among an error and its sources.
pub(crate) fn find_source<T: std::error::Error + 'static>(error: &DataFusionError) -> Option<&T> {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        source = error.source();
    }
    None
}

/// Errors quote what they met, and a row can be long; one line of a readable length is shown.
fn first_line(text: &str) -> String {
    const LIMIT: usize = 600;
    let text = text.split("This issue was likely caused by a bug in DataFusion").next().unwrap_or(text);
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LIMIT).collect();
    if text.chars().count() > LIMIT {
        line.push('…');
    }
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}
