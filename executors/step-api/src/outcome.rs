//! What became of an item at a step, with codes that never change.

use serde::{Deserialize, Serialize};

/// What became of an item at a step. The number is the ledger's stored code: numbers are added, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Outcome {
    /// The step did its work; in a committed chunk this is every item that the ledger does not list.
    Ok = 0,
    /// The result came from the cache.
    Cached = 1,
    /// The step failed and `on_error: default` put the default in its place; the row flows on.
    Defaulted = 2,
    /// The row was dropped: `on_error: skip`, or a step that was told to drop rows without an answer.
    Skipped = 3,
    /// The step failed for good.
    Failed = 4,
    /// The step failed for good and the item, with its payload, was put aside.
    DeadLettered = 5,
    /// Nobody wanted the result (LIMIT), or the run ended first.
    NotRun = 6,
    /// A `once` call may have happened; it is never sent again on its own.
    Unknown = 7,
}

impl Outcome {
    /// Every outcome, in the order of its code.
    pub const ALL: [Self; 8] = [
        Self::Ok,
        Self::Cached,
        Self::Defaulted,
        Self::Skipped,
        Self::Failed,
        Self::DeadLettered,
        Self::NotRun,
        Self::Unknown,
    ];

    /// The stored code.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The outcome of a stored code; `None` for a code of a newer version.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// The word used in the ledger and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Cached => "cached",
            Self::Defaulted => "defaulted",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
            Self::DeadLettered => "dead_lettered",
            Self::NotRun => "not_run",
            Self::Unknown => "unknown",
        }
    }

    /// The outcome of a word; `None` if there is none.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == name)
    }

    /// Whether the row goes on to the next step.
    pub const fn flows_on(self) -> bool {
        matches!(self, Self::Ok | Self::Cached | Self::Defaulted)
    }

    /// Whether the item counts against `max_errors`: something went wrong with it, whatever was done about that.
    pub const fn is_error(self) -> bool {
        matches!(self, Self::Defaulted | Self::Failed | Self::DeadLettered | Self::Unknown)
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How many items had which outcome. Conservation: a step's input items equal [`OutcomeCounts::total`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OutcomeCounts([u64; 8]);

impl OutcomeCounts {
    /// Adds `items` of one outcome.
    pub fn add(&mut self, outcome: Outcome, items: u64) {
        self.0[usize::from(outcome.code())] += items;
    }

    /// Adds another count, of another partition or chunk.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }

    /// Items of one outcome.
    pub fn get(&self, outcome: Outcome) -> u64 {
        self.0[usize::from(outcome.code())]
    }

    /// All items.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Outcomes that happened, in the order of their codes.
    pub fn iter(&self) -> impl Iterator<Item = (Outcome, u64)> + '_ {
        Outcome::ALL.into_iter().map(|outcome| (outcome, self.get(outcome))).filter(|(_, items)| *items > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_words_are_fixed_and_lead_back() {
        let words: Vec<_> = Outcome::ALL.iter().map(|o| (o.code(), o.as_str())).collect();
        assert_eq!(
            words,
            [
                (0, "ok"),
                (1, "cached"),
                (2, "defaulted"),
                (3, "skipped"),
                (4, "failed"),
                (5, "dead_lettered"),
                (6, "not_run"),
                (7, "unknown"),
            ]
        );
        for outcome in Outcome::ALL {
            assert_eq!(Outcome::from_code(outcome.code()), Some(outcome));
            assert_eq!(Outcome::from_name(outcome.as_str()), Some(outcome));
        }
        assert_eq!(Outcome::from_code(8), None);
    }

    #[test]
    fn counts_conserve_items() {
        let mut a = OutcomeCounts::default();
        a.add(Outcome::Ok, 5);
        a.add(Outcome::Unknown, 2);
        let mut b = a;
        b.merge(&a);
        assert_eq!((b.total(), b.get(Outcome::Ok), b.get(Outcome::Failed)), (14, 10, 0));
        assert_eq!(b.iter().collect::<Vec<_>>(), [(Outcome::Ok, 10), (Outcome::Unknown, 4)]);
    }
}
