//! What became of a group, as it travels. A failure keeps its verdict: how far the call came, and whether it may be made
//! again.

use std::time::Duration;

use datafusion::arrow::array::RecordBatch;
use prost::Message;
use rowmill_step::{BatchReply, Failure, FailureCode, Redactor, Sent, Usage};

/// Codes under which an executor may have a failure reported.
const REPORTS: [&str; 2] = ["RM0707", "RM0711"];

/// A failure.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct FailureMessage {
    /// Its code's word.
    #[prost(string, tag = "1")]
    pub code: String,
    /// Its message, clean.
    #[prost(string, tag = "2")]
    pub message: String,
    /// Whether another attempt can help.
    #[prost(bool, tag = "3")]
    pub retryable: bool,
    /// The wait that the other side asked for, in microseconds.
    #[prost(uint64, optional, tag = "4")]
    pub wait_us: Option<u64>,
    /// How far it came: 0 never, 1 refused, 2 maybe, 3 answered.
    #[prost(uint32, tag = "5")]
    pub sent: u32,
    /// The status of the answer.
    #[prost(uint32, optional, tag = "6")]
    pub status: Option<u32>,
    /// Whether whoever made the attempt is gone.
    #[prost(bool, tag = "7")]
    pub lost: bool,
    /// The code under which it is reported, if it has one of its own.
    #[prost(string, tag = "8")]
    pub report: String,
    /// Names of further fields.
    #[prost(string, repeated, tag = "9")]
    pub names: Vec<String>,
    /// Their values, clean.
    #[prost(string, repeated, tag = "10")]
    pub values: Vec<String>,
}

impl From<&Failure> for FailureMessage {
    fn from(failure: &Failure) -> Self {
        Self {
            code: failure.code().as_str().to_owned(),
            message: failure.message().to_owned(),
            retryable: failure.is_retryable(),
            wait_us: failure.wait().map(|wait| u64::try_from(wait.as_micros()).unwrap_or(u64::MAX)),
            sent: match failure.how_far() {
                Sent::Never => 0,
                Sent::Refused => 1,
                Sent::Maybe => 2,
                Sent::Answered => 3,
            },
            status: failure.status_code().map(u32::from),
            lost: failure.is_lost(),
            report: failure.report_code().unwrap_or_default().to_owned(),
            names: failure.fields().iter().map(|(name, _)| name.to_string()).collect(),
            values: failure.fields().iter().map(|(_, value)| value.clone()).collect(),
        }
    }
}

impl FailureMessage {
    /// The failure. A word that is not known is taken for the worst: a bug, and a call that may have been made.
    pub fn into_failure(self, redactor: &Redactor) -> Failure {
        let code = FailureCode::from_name(&self.code).unwrap_or(FailureCode::Internal);
        let sent = match self.sent {
            0 => Sent::Never,
            1 => Sent::Refused,
            3 => Sent::Answered,
            _ => Sent::Maybe,
        };
        let mut failure = Failure::received(code, &redactor.redact(&self.message))
            .retryable(self.retryable)
            .retry_after(self.wait_us.map(Duration::from_micros))
            .sent(sent);
        if let Some(status) = self.status.and_then(|status| u16::try_from(status).ok()) {
            failure = failure.status(status);
        }
        if self.lost {
            failure = failure.lost();
        }
        if let Some(report) = REPORTS.into_iter().find(|report| *report == self.report) {
            failure = failure.reported_as(report);
        }
        for (name, value) in self.names.into_iter().zip(self.values) {
            failure = failure.field(name, value, redactor);
        }
        failure
    }
}

/// An item that failed.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ItemFailure {
    /// Its index in the group.
    #[prost(uint32, tag = "1")]
    pub item: u32,
    /// Why.
    #[prost(message, optional, tag = "2")]
    pub failure: Option<FailureMessage>,
}

/// What became of a group, its rows apart.
#[derive(Clone, PartialEq, Message)]
pub struct OutcomeMessage {
    /// The group's number.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Why all of it failed, if it did; the rest is empty then.
    #[prost(message, optional, tag = "2")]
    pub failure: Option<FailureMessage>,
    /// Its rows, which follow those of the group before it.
    #[prost(uint32, tag = "3")]
    pub rows: u32,
    /// Whether the next list is said.
    #[prost(bool, tag = "4")]
    pub has_sources: bool,
    /// For each row its item.
    #[prost(uint32, repeated, tag = "5")]
    pub sources: Vec<u32>,
    /// Items that were dropped.
    #[prost(uint32, repeated, tag = "6")]
    pub skipped: Vec<u32>,
    /// Items that failed.
    #[prost(message, repeated, tag = "7")]
    pub failures: Vec<ItemFailure>,
    /// Requests, bytes sent, bytes received, tokens.
    #[prost(uint64, repeated, tag = "8")]
    pub usage: Vec<u64>,
}

impl OutcomeMessage {
    /// What became of group `id`, and its rows.
    pub fn new(id: u64, result: Result<BatchReply, Failure>) -> (Self, Option<RecordBatch>) {
        match result {
            Err(failure) => {
                let failure = Some(FailureMessage::from(&failure));
                (Self { id, failure, ..Self::default() }, None)
            }
            Ok(reply) => {
                let Usage { calls, sent_bytes, received_bytes, tokens } = reply.usage;
                let outcome = Self {
                    id,
                    failure: None,
                    rows: u32::try_from(reply.output.num_rows()).unwrap_or(u32::MAX),
                    has_sources: reply.source_rows.is_some(),
                    sources: reply.source_rows.unwrap_or_default(),
                    skipped: reply.skipped,
                    failures: reply
                        .failures
                        .iter()
                        .map(|(item, failure)| ItemFailure { item: *item, failure: Some(failure.into()) })
                        .collect(),
                    usage: vec![calls, sent_bytes, received_bytes, tokens],
                };
                (outcome, Some(reply.output))
            }
        }
    }

    /// What became of the group, with its rows.
    pub fn into_result(self, output: RecordBatch, redactor: &Redactor) -> Result<BatchReply, Failure> {
        if let Some(failure) = self.failure {
            return Err(failure.into_failure(redactor));
        }
        let used = |at: usize| self.usage.get(at).copied().unwrap_or(0);
        let usage = Usage { calls: used(0), sent_bytes: used(1), received_bytes: used(2), tokens: used(3) };
        Ok(BatchReply {
            output,
            source_rows: self.has_sources.then_some(self.sources),
            skipped: self.skipped,
            failures: self
                .failures
                .into_iter()
                .map(|one| (one.item, one.failure.unwrap_or_default().into_failure(redactor)))
                .collect(),
            usage,
        })
    }
}

#[cfg(test)]
mod tests {
    use rowmill_step::Effects;

    use super::*;

    #[test]
    fn failures_keep_their_verdict() {
        let redactor = Redactor::new();
        for code in FailureCode::ALL {
            for sent in [Sent::Never, Sent::Refused, Sent::Maybe, Sent::Answered] {
                for retryable in [true, false] {
                    let failure = Failure::new(code, "what \u{1b} was said", &redactor)
                        .sent(sent)
                        .retryable(retryable)
                        .status(503)
                        .retry_after(Some(Duration::from_millis(1500)))
                        .lost()
                        .reported_as("RM0711")
                        .field("traceback", "line 1\nline 2", &redactor);
                    let back = FailureMessage::from(&failure).into_failure(&redactor);
                    assert_eq!(back, failure);
                    for effects in [Effects::Pure, Effects::Idempotent, Effects::Once] {
                        assert_eq!(back.verdict(effects), failure.verdict(effects));
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_not_understood_is_not_sent_again() {
        let failure = FailureMessage { code: "new".to_owned(), sent: 9, ..FailureMessage::default() };
        let failure = failure.into_failure(&Redactor::new());
        assert_eq!((failure.code(), failure.how_far()), (FailureCode::Internal, Sent::Maybe));
    }
}
