//! What went wrong with an item or with a whole group of them, and what may be done about it.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::redact::{MAX_MESSAGE_BYTES, Redactor, neutralise};
use crate::{Effects, Outcome};

/// The kind of a failure; its word is stored in the ledger and written in `retry_on` lists, so words never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FailureCode {
    /// The step's options or its connection are wrong or not available: no item is to blame.
    Setup,
    /// The other side could not be reached.
    Connect,
    /// The connection broke, or what came over it was not what the protocol says.
    Transport,
    /// No answer within the deadline.
    Timeout,
    /// The other side said: not now, come again later.
    RateLimited,
    /// The other side answered with a status that means failure.
    Status,
    /// The other side has nothing for this item.
    NotFound,
    /// The other side refused this item in words.
    Rejected,
    /// The answer could not be read as the columns that were declared.
    Decode,
    /// The item or the answer is larger than allowed.
    TooLarge,
    /// The item's values cannot be sent.
    BadInput,
    /// A rule of ours forbids the call (an address, a redirect).
    Forbidden,
    /// The process that did the work died.
    Crashed,
    /// A limit of ours was reached: memory, file handles, a pool.
    Exhausted,
    /// The step's own code panicked.
    Panicked,
    /// The run was cancelled.
    Cancelled,
    /// A bug of the step kind.
    Internal,
}

impl FailureCode {
    /// Every code.
    pub const ALL: [Self; 17] = [
        Self::Setup,
        Self::Connect,
        Self::Transport,
        Self::Timeout,
        Self::RateLimited,
        Self::Status,
        Self::NotFound,
        Self::Rejected,
        Self::Decode,
        Self::TooLarge,
        Self::BadInput,
        Self::Forbidden,
        Self::Crashed,
        Self::Exhausted,
        Self::Panicked,
        Self::Cancelled,
        Self::Internal,
    ];

    /// The stored word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Setup => "setup",
            Self::Connect => "connect",
            Self::Transport => "transport",
            Self::Timeout => "timeout",
            Self::RateLimited => "rate_limited",
            Self::Status => "status",
            Self::NotFound => "not_found",
            Self::Rejected => "rejected",
            Self::Decode => "decode",
            Self::TooLarge => "too_large",
            Self::BadInput => "bad_input",
            Self::Forbidden => "forbidden",
            Self::Crashed => "crashed",
            Self::Exhausted => "exhausted",
            Self::Panicked => "panicked",
            Self::Cancelled => "cancelled",
            Self::Internal => "internal",
        }
    }

    /// The code of a word; `None` if there is none.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.as_str() == name)
    }

    /// Whether such a failure usually passes by itself.
    pub const fn usually_passes(self) -> bool {
        matches!(self, Self::Connect | Self::Transport | Self::Timeout | Self::RateLimited | Self::Exhausted)
    }

    /// Whether one item of a group may be to blame, so that cutting the group in two can find it.
    pub const fn bisectable(self) -> bool {
        !matches!(
            self,
            Self::Setup | Self::Connect | Self::RateLimited | Self::Forbidden | Self::Exhausted | Self::Cancelled
        )
    }

    /// Whether it says that the connection is unwell, which is what a circuit breaker counts.
    pub const fn blames_connection(self) -> bool {
        matches!(self, Self::Connect | Self::Transport | Self::Timeout)
    }
}

impl std::fmt::Display for FailureCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How far a call came before it failed. Only this decides whether a `once` call may be made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sent {
    /// Nothing left: no connection, or the item could not be encoded.
    Never,
    /// It was refused in words before it had an effect (429).
    Refused,
    /// It left, or may have left, and whether it had its effect is not known: a timeout, a broken connection, a 5xx.
    Maybe,
    /// It was answered for good: the item was rejected, or it had its effect and the answer could not be read.
    Answered,
}

/// What the engine does next with an item that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Another attempt may be made.
    Retry,
    /// It is over; the step's error policy applies.
    Final,
    /// It may have happened; the item becomes [`Outcome::Unknown`] whatever the error policy says.
    Unknown,
}

impl Verdict {
    /// The outcome of an item when no further attempt is made, before the error policy.
    pub const fn outcome(self) -> Outcome {
        match self {
            Self::Unknown => Outcome::Unknown,
            Self::Retry | Self::Final => Outcome::Failed,
        }
    }
}

/// One failure: small to move, since results carry it in their error half.
#[derive(Clone, PartialEq, Eq)]
pub struct Failure(Box<Inner>);

#[derive(Clone, PartialEq, Eq)]
struct Inner {
    code: FailureCode,
    message: String,
    retryable: bool,
    retry_after: Option<Duration>,
    sent: Sent,
    status: Option<u16>,
    lost: bool,
    report: Option<&'static str>,
    fields: Vec<(Cow<'static, str>, String)>,
}

impl Failure {
    /// A failure with a text that may hold anything: what a service said, what a library reports. Secrets are removed,
    /// control characters made visible, the length capped. Sent is [`Sent::Maybe`] and it is retryable if failures of
    /// its code usually pass; change either with the methods below.
    pub fn new(code: FailureCode, message: impl AsRef<str>, redactor: &Redactor) -> Self {
        Self::with_clean(code, redactor.clean(message.as_ref()))
    }

    /// A failure whose text is ours and holds nothing foreign.
    pub fn fixed(code: FailureCode, message: &'static str) -> Self {
        Self::with_clean(code, message.to_owned())
    }

    /// A failure that another process of ours made and cleaned; what is hidden in it is made visible again, in case.
    pub fn received(code: FailureCode, message: &str) -> Self {
        Self::with_clean(code, neutralise(message, MAX_MESSAGE_BYTES))
    }

    /// A failure whose text holds names from the workflow or the configuration and nothing that was received.
    pub(crate) fn named(code: FailureCode, message: String) -> Self {
        Self::with_clean(code, neutralise(&message, MAX_MESSAGE_BYTES))
    }

    fn with_clean(code: FailureCode, message: String) -> Self {
        Self(Box::new(Inner {
            code,
            message,
            retryable: code.usually_passes(),
            retry_after: None,
            sent: Sent::Maybe,
            status: None,
            lost: false,
            report: None,
            fields: Vec::new(),
        }))
    }

    /// Says how far the call came.
    #[must_use]
    pub fn sent(mut self, sent: Sent) -> Self {
        self.0.sent = sent;
        self
    }

    /// Says whether another attempt can help.
    #[must_use]
    pub fn retryable(mut self, retryable: bool) -> Self {
        self.0.retryable = retryable;
        self
    }

    /// The wait that the other side asked for.
    #[must_use]
    pub fn retry_after(mut self, wait: Option<Duration>) -> Self {
        self.0.retry_after = wait;
        self
    }

    /// The status that the other side answered with.
    #[must_use]
    pub fn status(mut self, status: u16) -> Self {
        self.0.status = Some(status);
        self
    }

    /// Adds a field for the ledger: a traceback, a database's own code, a process's standard error.
    #[must_use]
    pub fn field(mut self, name: impl Into<Cow<'static, str>>, value: impl AsRef<str>, redactor: &Redactor) -> Self {
        self.0.fields.push((name.into(), redactor.clean(value.as_ref())));
        self
    }

    /// Says that whoever made the attempt is gone, or never took it: its end tells nothing of the items, so a call that
    /// may be made again is made again, and the attempt does not count.
    #[must_use]
    pub fn lost(mut self) -> Self {
        self.0.lost = true;
        self
    }

    /// The code under which it is reported where it stops a run, if the usual one says too little.
    #[must_use]
    pub fn reported_as(mut self, code: &'static str) -> Self {
        self.0.report = Some(code);
        self
    }

    /// Puts words before the message: where it happened.
    #[must_use]
    pub fn at(mut self, place: &str) -> Self {
        self.0.message = neutralise(&format!("{place}: {}", self.0.message), MAX_MESSAGE_BYTES);
        self
    }

    /// Whether the call may have had its effect although it failed, judged by what a ledger keeps of it: code and status.
    /// What never left has not, and neither has what was refused: by a 4xx, an error of the database, a program's `error`,
    /// an exception.
    pub fn may_have_happened(&self) -> bool {
        match self.0.code {
            FailureCode::Status | FailureCode::NotFound => {
                self.0.status.is_none_or(|status| !(400..500).contains(&status))
            }
            FailureCode::Setup
            | FailureCode::Connect
            | FailureCode::RateLimited
            | FailureCode::Rejected
            | FailureCode::BadInput
            | FailureCode::Forbidden
            | FailureCode::Exhausted => false,
            _ => true,
        }
    }

    /// The code.
    pub fn code(&self) -> FailureCode {
        self.0.code
    }

    /// The message, already clean.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Whether another attempt can help, as far as the step kind knows.
    pub fn is_retryable(&self) -> bool {
        self.0.retryable
    }

    /// The wait that the other side asked for.
    pub fn wait(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// How far the call came.
    pub fn how_far(&self) -> Sent {
        self.0.sent
    }

    /// The status that the other side answered with, if it has such a thing.
    pub fn status_code(&self) -> Option<u16> {
        self.0.status
    }

    /// Whether whoever made the attempt is gone; see [`Failure::lost`].
    pub fn is_lost(&self) -> bool {
        self.0.lost
    }

    /// The code under which it is reported where it stops a run, if it has one of its own.
    pub fn report_code(&self) -> Option<&'static str> {
        self.0.report
    }

    /// Further fields, already clean.
    pub fn fields(&self) -> &[(Cow<'static, str>, String)] {
        &self.0.fields
    }

    /// What may be done next, given what running the step again means. The retry policy then says whether and when.
    ///
    /// A `once` call may be made again only if it never left or was refused in words. One that was answered for good
    /// has failed, and that is known; anything else is unknown.
    pub fn verdict(&self, effects: Effects) -> Verdict {
        match (effects, self.0.sent) {
            (Effects::Once, Sent::Maybe) => Verdict::Unknown,
            (Effects::Once, Sent::Answered) => Verdict::Final,
            _ if self.0.retryable => Verdict::Retry,
            _ => Verdict::Final,
        }
    }

    /// Whether a group that failed whole with this should be cut in two to find the item that is to blame.
    pub fn bisectable(&self, effects: Effects) -> bool {
        effects.repeatable() && self.0.code.bisectable()
    }

    /// Whether it counts against the connection in a circuit breaker: transport trouble, and statuses of 500 and up.
    pub fn blames_connection(&self) -> bool {
        self.0.code.blames_connection() || self.0.status.is_some_and(|status| status >= 500)
    }

    /// Takes secrets out again that were planted after the failure was made.
    pub(crate) fn redact_again(&mut self, redactor: &Redactor) {
        self.0.message = redactor.redact(&self.0.message);
        for (_, value) in &mut self.0.fields {
            *value = redactor.redact(value);
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.0.code, self.0.message)
    }
}

impl std::fmt::Debug for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Failure")
            .field("code", &self.0.code)
            .field("message", &self.0.message)
            .field("retryable", &self.0.retryable)
            .field("retry_after", &self.0.retry_after)
            .field("sent", &self.0.sent)
            .field("status", &self.0.status)
            .field("lost", &self.0.lost)
            .field("fields", &self.0.fields)
            .finish()
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Secret;

    #[test]
    fn codes_lead_back() {
        for code in FailureCode::ALL {
            assert_eq!(FailureCode::from_name(code.as_str()), Some(code));
        }
    }

    #[test]
    fn a_once_call_is_repeated_only_when_it_had_no_effect() {
        let table = [
            (Sent::Never, true, Verdict::Retry),
            (Sent::Never, false, Verdict::Final),
            (Sent::Refused, true, Verdict::Retry),
            (Sent::Refused, false, Verdict::Final),
            (Sent::Maybe, true, Verdict::Unknown),
            (Sent::Maybe, false, Verdict::Unknown),
            (Sent::Answered, true, Verdict::Final),
            (Sent::Answered, false, Verdict::Final),
        ];
        for (sent, retryable, expected) in table {
            let failure = Failure::fixed(FailureCode::Status, "x").sent(sent).retryable(retryable);
            assert_eq!(failure.verdict(Effects::Once), expected, "{failure:?}");
            let again = if retryable { Verdict::Retry } else { Verdict::Final };
            assert_eq!(failure.verdict(Effects::Idempotent), again);
            assert_eq!(failure.verdict(Effects::Pure), again);
        }
    }

    #[test]
    fn a_once_group_is_never_bisected_and_connection_trouble_is_not_an_items_fault() {
        let crash = Failure::fixed(FailureCode::Crashed, "x");
        assert!(crash.bisectable(Effects::Pure) && crash.bisectable(Effects::Idempotent));
        assert!(!crash.bisectable(Effects::Once));
        assert!(!Failure::fixed(FailureCode::Connect, "x").bisectable(Effects::Pure));
    }

    #[test]
    fn messages_are_clean_even_for_secrets_planted_later() {
        let redactor = Redactor::new();
        redactor.plant(&Secret::new("first-secret"));
        let mut failure = Failure::new(FailureCode::Status, "first-secret \u{1b}[2J second-secret", &redactor).field(
            "stderr",
            "first-secret",
            &redactor,
        );
        redactor.plant(&Secret::new("second-secret"));
        failure.redact_again(&redactor);
        let text = format!("{failure} {failure:?}");
        assert!(!text.contains("-secret") && !text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn a_result_stays_small() {
        assert_eq!(size_of::<Failure>(), size_of::<usize>());
    }
}
