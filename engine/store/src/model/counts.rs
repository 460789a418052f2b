//! Outcome counts: what became of the items of a step, in numbers.

use serde::{Deserialize, Serialize};

/// What became of an item at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(usize)]
pub enum Outcome {
    /// The step produced a result for it.
    Ok,
    /// The result came from the cache.
    Cached,
    /// The step failed and the declared default flowed on.
    Defaulted,
    /// The step failed and the row was dropped as declared.
    Skipped,
    /// The step failed.
    Failed,
    /// The step failed and the item was put aside.
    DeadLettered,
    /// The step never saw it (a LIMIT was met, the run was cancelled).
    NotRun,
    /// A `once` call was sent and its end is not known.
    Unknown,
}

impl Outcome {
    /// Every outcome, in the order of [`OutcomeCounts::to_array`].
    pub const ALL: [Outcome; 8] = [
        Outcome::Ok,
        Outcome::Cached,
        Outcome::Defaulted,
        Outcome::Skipped,
        Outcome::Failed,
        Outcome::DeadLettered,
        Outcome::NotRun,
        Outcome::Unknown,
    ];
}

/// Items by outcome. Their sum is the number of items that went into the step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OutcomeCounts {
    /// Items with [`Outcome::Ok`].
    pub ok: u64,
    /// Items with [`Outcome::Cached`].
    pub cached: u64,
    /// Items with [`Outcome::Defaulted`].
    pub defaulted: u64,
    /// Items with [`Outcome::Skipped`].
    pub skipped: u64,
    /// Items with [`Outcome::Failed`].
    pub failed: u64,
    /// Items with [`Outcome::DeadLettered`].
    pub dead_lettered: u64,
    /// Items with [`Outcome::NotRun`].
    pub not_run: u64,
    /// Items with [`Outcome::Unknown`].
    pub unknown: u64,
}

impl OutcomeCounts {
    /// The counts in the order of [`Outcome::ALL`].
    pub fn to_array(self) -> [u64; 8] {
        [
            self.ok,
            self.cached,
            self.defaulted,
            self.skipped,
            self.failed,
            self.dead_lettered,
            self.not_run,
            self.unknown,
        ]
    }

    /// The inverse of [`OutcomeCounts::to_array`].
    pub fn from_array(counts: [u64; 8]) -> Self {
        let [ok, cached, defaulted, skipped, failed, dead_lettered, not_run, unknown] = counts;
        OutcomeCounts { ok, cached, defaulted, skipped, failed, dead_lettered, not_run, unknown }
    }

    /// The count of one outcome.
    pub fn get(self, outcome: Outcome) -> u64 {
        self.to_array()[outcome as usize]
    }

    /// All items, saturating.
    pub fn total(self) -> u64 {
        self.to_array().into_iter().fold(0, u64::saturating_add)
    }

    /// Adds another's counts to these, saturating.
    pub fn add(&mut self, other: OutcomeCounts) {
        let mut sums = self.to_array();
        for (sum, count) in sums.iter_mut().zip(other.to_array()) {
            *sum = sum.saturating_add(count);
        }
        *self = OutcomeCounts::from_array(sums);
    }
}

/// The counts of one step; a stage has as many as it has steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepCounts {
    /// The step's name.
    pub step: String,
    /// What became of its items.
    pub counts: OutcomeCounts,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_and_fields_agree() {
        let counts = OutcomeCounts::from_array([1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(counts.to_array(), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(counts.total(), 36);
        assert_eq!(counts.get(Outcome::DeadLettered), counts.dead_lettered);
        let by_outcome: Vec<u64> = Outcome::ALL.into_iter().map(|outcome| counts.get(outcome)).collect();
        assert_eq!(by_outcome, counts.to_array());
        let mut sum = counts;
        sum.add(OutcomeCounts { ok: u64::MAX, ..Default::default() });
        assert_eq!(sum.ok, u64::MAX);
    }
}
