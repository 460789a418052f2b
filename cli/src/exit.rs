//! Exit codes, and who is to blame.

use std::io::IsTerminal as _;

use rowmill::{Diagnostics, Fault};

/// Everything went well.
pub(crate) const SUCCESS: u8 = 0;
/// The workflow or its data are wrong.
pub(crate) const FAILED: u8 = 1;
/// The command line is wrong: a missing file, an unknown parameter, a value of the wrong type.
pub(crate) const USAGE: u8 = 2;
/// The run published its results, but some items failed on the way.
pub(crate) const WITH_FAILURES: u8 = 3;
/// A bug of Rowmill.
pub(crate) const INTERNAL: u8 = 70;
/// The environment stopped the run; it can be started again.
pub(crate) const ENVIRONMENT: u8 = 75;
/// Ctrl-C.
pub(crate) const CANCELLED: u8 = 130;

/// Reports that are about what was typed, not about the workflow.
const USAGE_CODES: &[&str] =
    &["RM0116", "RM0121", "RM0401", "RM0402", "RM0403", "RM0404", "RM0405", "RM0406", "RM0420"];

/// The exit code that reports ask for.
pub(crate) fn code(reports: &Diagnostics) -> u8 {
    if !reports.reports.is_empty() && reports.reports.iter().all(|report| USAGE_CODES.contains(&report.code)) {
        return USAGE;
    }
    match reports.fault() {
        Fault::Workflow | Fault::Data => FAILED,
        Fault::Environment => ENVIRONMENT,
        Fault::Internal => INTERNAL,
    }
}

/// Whether standard error takes colours: as configured, or as the terminal says.
pub(crate) fn is_colored(configured: Option<bool>) -> bool {
    configured.unwrap_or_else(|| std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
}
