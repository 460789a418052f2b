//! What a step does about its items: effects, errors, retries, time limits, groups, cache.
//!
//! Everything is optional: what is absent is left to the step's kind and to the engine.

use std::time::Duration;

use indexmap::IndexMap;

use crate::read::RawValue;
use crate::span::{Span, Spanned};

/// What a step does about its items.
#[derive(Debug, Clone, Default)]
pub struct ItemPolicy {
    /// What running it again means.
    pub effects: Option<Spanned<Effects>>,
    /// What becomes of an item that failed for good.
    pub on_error: Option<Spanned<OnError>>,
    /// How much may go wrong before the run stops.
    pub max_errors: Option<Spanned<MaxErrors>>,
    /// When an item is tried again.
    pub retry: Option<Spanned<Retry>>,
    /// The longest that one attempt may take.
    pub timeout: Option<Spanned<Duration>>,
    /// The longest that an item may take, all its attempts and waits together.
    pub deadline: Option<Spanned<Duration>>,
    /// How many items are handed on together.
    pub batch: BatchSize,
    /// Groups (of one item where a kind takes them singly) that are worked on at once.
    pub in_flight: Option<Spanned<u64>>,
    /// Whether and where answers are kept.
    pub cache: Option<Spanned<CachePolicy>>,
    /// In which order the rows come out.
    pub order: Option<Spanned<RowOrder>>,
}

impl ItemPolicy {
    /// The keys that are set, and where their values stand, in the order of the text's reference.
    pub fn present(&self) -> Vec<(&'static str, Span)> {
        fn place<T>(value: &Option<Spanned<T>>) -> Option<Span> {
            value.as_ref().map(|value| value.span)
        }
        let batch = place(&self.batch.rows).or_else(|| place(&self.batch.bytes));
        [
            ("effects", place(&self.effects)),
            ("on_error", place(&self.on_error)),
            ("max_errors", place(&self.max_errors)),
            ("retry", place(&self.retry)),
            ("timeout", place(&self.timeout)),
            ("deadline", place(&self.deadline)),
            ("batch", batch),
            ("in_flight", place(&self.in_flight)),
            ("cache", place(&self.cache)),
            ("order", place(&self.order)),
        ]
        .into_iter()
        .filter_map(|(key, place)| place.map(|place| (key, place)))
        .collect()
    }

    /// Where the value of a key stands; nowhere if it is not set.
    pub fn place(&self, key: &str) -> Span {
        self.present().into_iter().find(|(present, _)| *present == key).map_or(Span::NONE, |(_, place)| place)
    }
}

/// What running a step again means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effects {
    /// The same input gives the same output, and nothing outside changes.
    Pure,
    /// Something outside is read or written, and doing it twice is as good as doing it once.
    Idempotent,
    /// Something outside happens each time.
    Once,
}

/// What becomes of an item that failed for good.
#[derive(Debug, Clone)]
pub enum OnError {
    /// The run fails.
    Fail,
    /// The row is dropped.
    Skip,
    /// The row is dropped and kept, payload and all, for a later look.
    DeadLetter,
    /// The row flows on with these values in the step's columns; they are read as the columns' types by whoever knows
    /// those.
    Default(IndexMap<String, RawValue>),
}

impl OnError {
    /// The word in a workflow's text.
    pub fn as_str(&self) -> &'static str {
        match self {
            OnError::Fail => "fail",
            OnError::Skip => "skip",
            OnError::DeadLetter => "dead_letter",
            OnError::Default(_) => "default",
        }
    }
}

/// How much may go wrong at a step before the run stops.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MaxErrors {
    /// At most this many items.
    Count(u64),
    /// At most this share of the items.
    Share {
        /// From 0 to 1.
        share: f64,
        /// Items that must have been seen before the share is judged; the engine's default where absent.
        after: Option<u64>,
    },
}

/// When an item is tried again. What is absent is as by default.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Retry {
    /// Attempts in all, the first included; 1 means none but that.
    pub attempts: Option<Spanned<u32>>,
    /// The wait after the first attempt.
    pub initial_backoff: Option<Spanned<Duration>>,
    /// What the wait is multiplied by after each attempt; at least 1.
    pub factor: Option<Spanned<f64>>,
    /// The longest wait.
    pub max_backoff: Option<Spanned<Duration>>,
    /// How waits are spread.
    pub jitter: Option<Spanned<Jitter>>,
    /// Whether a wait that the other side asks for is kept.
    pub honour_retry_after: Option<Spanned<bool>>,
    /// The longest such wait.
    pub max_retry_after: Option<Spanned<Duration>>,
    /// Codes of failures that are tried again whatever the step's kind says; known ones, see [`FAILURE_CODES`].
    pub codes: Vec<Spanned<String>>,
    /// Statuses that are tried again whatever the step's kind says.
    pub statuses: Vec<Spanned<u16>>,
}

impl Retry {
    /// So many attempts in all, everything else as by default; 1 means no retry.
    pub fn attempts(attempts: u32) -> Self {
        Retry { attempts: Some(Spanned::bare(attempts)), ..Retry::default() }
    }
}

/// The codes of failures that `retry.codes` may list. A test of `rowmill-step` holds them against its own.
pub const FAILURE_CODES: &[&str] = &[
    "connect",
    "transport",
    "timeout",
    "rate_limited",
    "status",
    "not_found",
    "rejected",
    "decode",
    "too_large",
    "bad_input",
    "forbidden",
    "crashed",
    "exhausted",
    "panicked",
    "internal",
];

/// How waits are spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Jitter {
    /// Anything between nothing and the whole wait.
    Full,
    /// The wait exactly.
    None,
}

/// How many items are handed on together; the step kind's own where absent.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct BatchSize {
    /// Items at most.
    pub rows: Option<Spanned<u64>>,
    /// Bytes of their columns at most.
    pub bytes: Option<Spanned<u64>>,
}

/// Whether and where answers are kept. What is absent is as by default.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CachePolicy {
    /// The columns that make two items the same; those that the step reads where absent.
    pub key: Option<Vec<Spanned<String>>>,
    /// How long an answer is good for; for ever where absent.
    pub ttl: Option<Spanned<Duration>>,
    /// Where answers are kept.
    pub tier: Option<Spanned<CacheTier>>,
    /// Bytes that the answers of this step may take.
    pub max_size: Option<Spanned<u64>>,
    /// The redis connection, for that tier.
    pub connection: Option<Spanned<String>>,
}

/// Where answers are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CacheTier {
    /// In memory, as long as the process lives.
    Memory,
    /// In the cache's directory, shared by processes.
    Disk,
    /// In a redis server, shared by machines.
    Redis,
}

/// In which order rows come out of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RowOrder {
    /// In that of the input.
    Input,
    /// In any: a slow item holds nobody up.
    Any,
}

words!(Effects { Pure = "pure", Idempotent = "idempotent", Once = "once" });
words!(Jitter { Full = "full", None = "none" });
words!(CacheTier { Memory = "memory", Disk = "disk", Redis = "redis" });
words!(RowOrder { Input = "input", Any = "any" });
