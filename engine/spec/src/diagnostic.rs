//! What is told to a person about a workflow: a code, a sentence, places in the text, and the next move.

use std::fmt;
use std::sync::Arc;

use crate::span::{Span, Texts};

/// Whose fault it is; exit codes and retries follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The workflow's text, its parameters or the command line.
    Workflow,
    /// The rows.
    Data,
    /// The machine, the network, a service.
    Environment,
    /// Ours: cannot be reached by what a user writes.
    Internal,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Severity {
    /// Nothing runs.
    Error,
    /// It runs; a person should look.
    Warning,
}

/// One report.
#[derive(Debug, Clone)]
pub struct Diagnostic {
    /// `RM0107`: stable, each with a page in docs/errors/.
    pub code: &'static str,
    /// Error or warning.
    pub severity: Severity,
    /// Whose fault.
    pub fault: Fault,
    /// One sentence, lower case, without a full stop: "step `enrich` reads unknown column `custmer_id`".
    pub message: String,
    /// Places, the first being the main one, each with a short remark (may be empty).
    pub labels: Vec<(Span, String)>,
    /// The next move: "did you mean `customer_id`?"
    pub help: Vec<String>,
}

impl Diagnostic {
    /// An error in the workflow.
    pub fn error(code: &'static str, message: impl Into<String>) -> Self {
        Diagnostic {
            code,
            severity: Severity::Error,
            fault: Fault::Workflow,
            message: message.into(),
            labels: Vec::new(),
            help: Vec::new(),
        }
    }

    /// The same as a warning.
    pub fn warning(code: &'static str, message: impl Into<String>) -> Self {
        Diagnostic { severity: Severity::Warning, ..Self::error(code, message) }
    }

    /// With another fault.
    pub fn fault(mut self, fault: Fault) -> Self {
        self.fault = fault;
        self
    }

    /// With a place and a remark on it; a span that points nowhere is left out.
    pub fn at(mut self, span: Span, remark: impl Into<String>) -> Self {
        if !span.is_none() {
            self.labels.push((span, remark.into()));
        }
        self
    }

    /// With a next move.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help.push(help.into());
        self
    }
}

/// Reports gathered before stopping, with the texts they point into.
#[derive(Debug, Clone, Default)]
pub struct Diagnostics {
    /// In the order they were found.
    pub reports: Vec<Diagnostic>,
    /// What the spans point into.
    pub texts: Arc<Texts>,
}

impl Diagnostics {
    /// Whether any is an error.
    pub fn has_errors(&self) -> bool {
        self.reports.iter().any(|report| report.severity == Severity::Error)
    }

    /// Takes over the reports of another set and the texts that they point into.
    pub fn append(&mut self, other: Diagnostics) {
        let shift = Arc::make_mut(&mut self.texts).append(&other.texts);
        self.reports.extend(other.reports.into_iter().map(|mut report| {
            for (span, _) in &mut report.labels {
                span.text.0 += shift;
            }
            report
        }));
    }

    /// The gravest fault among the errors, environment before data before workflow; internal before all.
    pub fn fault(&self) -> Fault {
        let rank = |fault: &Fault| match fault {
            Fault::Internal => 3,
            Fault::Environment => 2,
            Fault::Data => 1,
            Fault::Workflow => 0,
        };
        self.reports
            .iter()
            .filter(|report| report.severity == Severity::Error)
            .map(|report| report.fault)
            .max_by_key(rank)
            .unwrap_or(Fault::Workflow)
    }
}

impl fmt::Display for Diagnostics {
    /// Rendered without colour, as for a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Diagnostics {}
