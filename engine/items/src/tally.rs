//! Counts of one step: items by outcome, attempts, calls.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use rowmill_step::{Outcome, OutcomeCounts, Usage, Whereabouts};
use serde::{Deserialize, Serialize};

/// Counts that all partitions of a step share.
#[derive(Debug, Default)]
pub struct Tally {
    /// Counts what this one counts, too: the step's, for one of a chunk.
    whole: Option<Arc<Tally>>,
    items: AtomicU64,
    outcomes: [AtomicU64; 8],
    dropped: AtomicU64,
    attempts: AtomicU64,
    retries: AtomicU64,
    calls: AtomicU64,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
    tokens: AtomicU64,
    in_flight: AtomicU64,
    waiting: AtomicU64,
    replayed: AtomicU64,
    /// By process; attempts that are made in this one are not among them.
    elsewhere: Mutex<BTreeMap<String, MadeThere>>,
}

/// Attempts that another process made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MadeThere {
    /// The machine of that process.
    pub host: String,
    /// Attempts.
    pub attempts: u64,
    /// Items in them.
    pub items: u64,
    /// Their times together, from handing a group in to its answer.
    pub time: Duration,
}

/// The counts at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TallySnapshot {
    /// Items that came in.
    pub items: u64,
    /// What became of them.
    pub outcomes: OutcomeCounts,
    /// Items among the skipped that the step was told to drop: nothing went wrong with them.
    #[serde(default)]
    pub dropped: u64,
    /// Attempts, of groups.
    pub attempts: u64,
    /// Attempts after the first.
    pub retries: u64,
    /// Requests, queries or messages that left.
    pub calls: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Tokens that a model used.
    pub tokens: u64,
    /// Groups in flight now.
    pub in_flight: u64,
    /// Groups that wait for their next attempt now.
    pub waiting: u64,
    /// Items whose result came out of the effect log instead of a call.
    pub replayed: u64,
}

impl TallySnapshot {
    /// Whether every item that came in has an outcome.
    pub fn is_conserved(&self) -> bool {
        self.items == self.outcomes.total()
    }

    /// Items that failed in one way or another, those included that were skipped because they failed.
    pub fn errors(&self) -> u64 {
        let named: u64 = self.outcomes.iter().filter(|(outcome, _)| outcome.is_error()).map(|(_, items)| items).sum();
        named + self.outcomes.get(Outcome::Skipped).saturating_sub(self.dropped)
    }

    /// Items that have come to an end at the step: all that came in but those that were not run.
    pub fn seen(&self) -> u64 {
        self.outcomes.total() - self.outcomes.get(Outcome::NotRun)
    }

    /// Adds another step's, or another chunk's, counts.
    pub fn merge(&mut self, other: &Self) {
        self.items += other.items;
        self.outcomes.merge(&other.outcomes);
        self.dropped += other.dropped;
        self.attempts += other.attempts;
        self.retries += other.retries;
        self.calls += other.calls;
        self.sent_bytes += other.sent_bytes;
        self.received_bytes += other.received_bytes;
        self.tokens += other.tokens;
        self.in_flight += other.in_flight;
        self.waiting += other.waiting;
        self.replayed += other.replayed;
    }
}

impl Tally {
    /// A tally of a part, which counts into the whole as well.
    pub fn part_of(whole: &Arc<Tally>) -> Self {
        Self { whole: Some(Arc::clone(whole)), ..Self::default() }
    }

    fn add(&self, items: u64, count: impl Fn(&Self) -> &AtomicU64) {
        if items == 0 {
            return;
        }
        count(self).fetch_add(items, Relaxed);
        let mut part = self;
        while let Some(whole) = &part.whole {
            count(whole).fetch_add(items, Relaxed);
            part = whole;
        }
    }

    /// Attempts that other processes made, by their names; those of an earlier attempt of the run are not among them.
    pub fn made_elsewhere(&self) -> BTreeMap<String, MadeThere> {
        self.elsewhere.lock().clone()
    }

    /// Counts an attempt that another process made.
    pub(crate) fn made_at(&self, at: &Whereabouts, items: u64, time: Duration) {
        let mut part = Some(self);
        while let Some(tally) = part {
            let mut elsewhere = tally.elsewhere.lock();
            let made = match elsewhere.get_mut(&at.process) {
                Some(made) => made,
                None => elsewhere
                    .entry(at.process.clone())
                    .or_insert_with(|| MadeThere { host: at.host.clone(), ..MadeThere::default() }),
            };
            made.attempts += 1;
            made.items += items;
            made.time += time;
            part = tally.whole.as_deref();
        }
    }

    /// Adds what was counted elsewhere: by an earlier attempt of the run.
    pub fn merge(&self, other: &TallySnapshot) {
        self.came(other.items);
        for (outcome, items) in other.outcomes.iter() {
            self.settled(outcome, items);
        }
        self.add(other.dropped, |tally| &tally.dropped);
        self.add(other.attempts, |tally| &tally.attempts);
        self.add(other.retries, |tally| &tally.retries);
        self.add(other.calls, |tally| &tally.calls);
        self.add(other.sent_bytes, |tally| &tally.sent_bytes);
        self.add(other.received_bytes, |tally| &tally.received_bytes);
        self.add(other.tokens, |tally| &tally.tokens);
        self.add(other.replayed, |tally| &tally.replayed);
    }

    /// The counts now.
    pub fn snapshot(&self) -> TallySnapshot {
        let mut outcomes = OutcomeCounts::default();
        for outcome in Outcome::ALL {
            outcomes.add(outcome, self.outcomes[usize::from(outcome.code())].load(Relaxed));
        }
        TallySnapshot {
            items: self.items.load(Relaxed),
            outcomes,
            dropped: self.dropped.load(Relaxed),
            attempts: self.attempts.load(Relaxed),
            retries: self.retries.load(Relaxed),
            calls: self.calls.load(Relaxed),
            sent_bytes: self.sent_bytes.load(Relaxed),
            received_bytes: self.received_bytes.load(Relaxed),
            tokens: self.tokens.load(Relaxed),
            in_flight: self.in_flight.load(Relaxed),
            waiting: self.waiting.load(Relaxed),
            replayed: self.replayed.load(Relaxed),
        }
    }

    /// Counts items that came in.
    pub fn came(&self, items: u64) {
        self.add(items, |tally| &tally.items);
    }

    /// Counts what became of items.
    pub fn settled(&self, outcome: Outcome, items: u64) {
        self.add(items, |tally| &tally.outcomes[usize::from(outcome.code())]);
    }

    /// Counts an item that the step was told to drop.
    pub(crate) fn dropped(&self) {
        self.settled(Outcome::Skipped, 1);
        self.add(1, |tally| &tally.dropped);
    }

    /// Counts items whose result was found in the effect log.
    pub(crate) fn replayed(&self, items: u64) {
        self.add(items, |tally| &tally.replayed);
    }

    pub(crate) fn attempted(&self, attempt: u32) {
        self.add(1, |tally| &tally.attempts);
        if attempt > 1 {
            self.add(1, |tally| &tally.retries);
        }
    }

    pub(crate) fn used(&self, usage: &Usage) {
        self.add(usage.calls, |tally| &tally.calls);
        self.add(usage.sent_bytes, |tally| &tally.sent_bytes);
        self.add(usage.received_bytes, |tally| &tally.received_bytes);
        self.add(usage.tokens, |tally| &tally.tokens);
    }

    fn live(&self) -> &Self {
        let mut part = self;
        while let Some(whole) = &part.whole {
            part = whole;
        }
        part
    }

    pub(crate) fn flying(&self) -> Gauge<'_> {
        Gauge::new(&self.live().in_flight)
    }

    pub(crate) fn waiting(&self) -> Gauge<'_> {
        Gauge::new(&self.live().waiting)
    }
}

/// One more while it lives.
pub(crate) struct Gauge<'a>(&'a AtomicU64);

impl<'a> Gauge<'a> {
    fn new(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Relaxed);
        Gauge(count)
    }
}

impl Drop for Gauge<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
