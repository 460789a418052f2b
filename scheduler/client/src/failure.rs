//! What went wrong on an executor, as the engine would have reported it here.
//!
//! An executor makes the report where the error is whole, and sends it inside the text that Ballista carries.

use datafusion::common::DataFusionError;
use rowmill_engine::elsewhere::Reported;
use rowmill_engine::error::{is_out_of_memory, report_in};
use rowmill_spec::codes::lookup;
use rowmill_spec::{Diagnostic, Fault};
use rowmill_wire::step::find;
use serde::{Deserialize, Serialize};

/// What stands before and after a report in a text.
const BEGIN: &str = "\u{1}rowmill-report ";
const END: char = '\u{1}';

#[derive(Debug, Serialize, Deserialize)]
struct Sent {
    code: String,
    fault: String,
    message: String,
    help: Vec<String>,
    out_of_memory: bool,
}

/// The report of an error, as a text to send.
pub fn describe(error: &DataFusionError) -> String {
    let (report, out_of_memory) = match find(error) {
        Some(failure) => (report_in(Some(&failure.step), &failure.source), is_out_of_memory(&failure.source)),
        None => (report_in(None, error), is_out_of_memory(error)),
    };
    let fault = match report.fault {
        Fault::Workflow => "workflow",
        Fault::Data => "data",
        Fault::Environment => "environment",
        Fault::Internal => "internal",
    };
    let sent = Sent {
        code: report.code.to_owned(),
        fault: fault.to_owned(),
        message: report.message,
        help: report.help,
        out_of_memory,
    };
    match serde_json::to_string(&sent) {
        Ok(text) => format!("{BEGIN}{text}{END}"),
        Err(_) => sent.message,
    }
}

/// The report in a text, if there is one.
pub fn read(text: &str) -> Option<Reported> {
    let (_, rest) = text.split_once(BEGIN)?;
    let (json, _) = rest.split_once(END)?;
    let sent: Sent = serde_json::from_str(json).ok()?;
    let code = lookup(&sent.code).map_or("RM0600", |entry| entry.code);
    let fault = match sent.fault.as_str() {
        "workflow" => Fault::Workflow,
        "data" => Fault::Data,
        "environment" => Fault::Environment,
        _ => Fault::Internal,
    };
    let report = Diagnostic { help: sent.help, ..Diagnostic::error(code, sent.message).fault(fault) };
    Some(Reported { report, out_of_memory: sent.out_of_memory })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_arrive_as_they_were_made() {
        let error = DataFusionError::Execution("Arrow error: Divide by zero error \u{1}".to_owned());
        let text = format!("Job failed due to stage 3 failed: {}\n", describe(&error));
        let reported = read(&text).unwrap();
        assert_eq!(reported.report.code, "RM0602");
        assert_eq!(reported.report.fault, Fault::Data);
        assert!(!reported.out_of_memory && !reported.report.help.is_empty());
        assert!(read("executor lost").is_none());
        let memory = DataFusionError::ResourcesExhausted("Failed to allocate".to_owned());
        assert!(read(&describe(&memory)).unwrap().out_of_memory);
    }
}
