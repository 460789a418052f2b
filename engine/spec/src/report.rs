//! Gathers reports while reading goes on, up to a number that a person can still read.

use crate::diagnostic::{Diagnostic, Severity};
use crate::span::Span;

/// How many errors are told at once; the rest is counted.
const MAX_ERRORS: usize = 100;

/// The longest sentence of a report.
const MAX_SENTENCE_BYTES: usize = 600;

/// Reports gathered so far.
#[derive(Debug, Default)]
pub(crate) struct Reporter {
    reports: Vec<Diagnostic>,
    errors: usize,
    stopped: bool,
    /// Places that no report may show: a report shows whole lines, and a secret may stand in one.
    pub(crate) masks: Vec<Span>,
}

impl Reporter {
    pub(crate) fn push(&mut self, mut report: Diagnostic) {
        // A name of a megabyte belongs in no sentence.
        let remarks = report.labels.iter_mut().map(|(_, remark)| remark);
        for text in remarks.chain(&mut report.help).chain([&mut report.message]) {
            if text.len() > MAX_SENTENCE_BYTES {
                text.truncate(text.floor_char_boundary(MAX_SENTENCE_BYTES));
                text.push('…');
            }
        }
        if report.severity == Severity::Error {
            self.errors += 1;
        }
        if self.reports.len() < MAX_ERRORS {
            self.reports.push(report);
        }
    }

    /// Errors so far, those that were only counted included.
    pub(crate) fn errors(&self) -> usize {
        self.errors
    }

    /// Whether no further report would be kept, so that a reader stops; the last report says that it did.
    pub(crate) fn full(&mut self) -> bool {
        self.stopped = self.reports.len() >= MAX_ERRORS;
        self.stopped
    }

    /// All reports by their places in the texts, the last one saying how many were left out.
    pub(crate) fn finish(mut self) -> Vec<Diagnostic> {
        self.reports.sort_by_key(|report| report.labels.first().map(|(span, _)| (span.text, span.start)));
        let kept = self.reports.iter().filter(|report| report.severity == Severity::Error).count();
        if self.errors > kept
            && let Some(last) = self.reports.last_mut()
        {
            last.help.push(format!("{} more errors are not shown; correct these first", self.errors - kept));
        } else if self.stopped
            && let Some(last) = self.reports.last_mut()
        {
            last.help.push("reading stopped here; there may be more errors".to_owned());
        }
        self.reports
    }
}
