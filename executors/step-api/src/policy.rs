//! What is done about items that failed for good, and when a run has gone wrong as a whole. Pure decisions.

use serde::{Deserialize, Serialize};

use crate::{Outcome, OutcomeCounts, Verdict};

/// `on_error`: what happens to an item that failed for good. `D` is what the engine keeps as the default's values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OnError<D> {
    /// The item fails, and the run fails with it.
    Fail,
    /// The row is dropped.
    Skip,
    /// The row flows on with these values in the step's columns.
    Default(D),
    /// The row is dropped and kept, payload and all, for a later look.
    DeadLetter,
}

/// What the engine does with one item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorDecision {
    /// What the ledger says.
    pub outcome: Outcome,
    /// Whether the run stops here.
    pub stops_run: bool,
    /// Whether the item's payload is kept.
    pub keeps_payload: bool,
}

/// What becomes of an item whose last attempt ended with `verdict`.
///
/// An unknown item stays unknown under every policy: a default or a skip would claim that it is settled. It keeps its
/// payload, so that a person can settle it; the run stops only where any error would stop it.
pub fn error_decision<D>(policy: &OnError<D>, verdict: Verdict) -> ErrorDecision {
    let stops_run = matches!(policy, OnError::Fail);
    if verdict == Verdict::Unknown {
        return ErrorDecision { outcome: Outcome::Unknown, stops_run, keeps_payload: true };
    }
    let (outcome, keeps_payload) = match policy {
        OnError::Fail => (Outcome::Failed, true),
        OnError::Skip => (Outcome::Skipped, false),
        OnError::Default(_) => (Outcome::Defaulted, false),
        OnError::DeadLetter => (Outcome::DeadLettered, true),
    };
    ErrorDecision { outcome, stops_run, keeps_payload }
}

/// `max_errors`: how much may go wrong at a step before the run stops. Items that were dropped because they failed
/// count as errors too; the caller counts them (`errors`), since a skip that the step was told to make is none.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaxErrors {
    /// At most this many items.
    Count(u64),
    /// At most this share of the items so far, from 0 to 1, judged once `after` items have been seen and at the end.
    Share {
        /// The share.
        share: f64,
        /// How many items must have been seen, so that one bad item among the first two is not half of everything.
        after: u64,
    },
}

impl MaxErrors {
    /// Items that a share waits for unless told otherwise.
    pub const DEFAULT_AFTER: u64 = 1000;

    /// Whether `errors` among `seen` items are too many. `at_end` says that no more items come.
    pub fn exceeded(&self, errors: u64, seen: u64, at_end: bool) -> bool {
        match *self {
            Self::Count(most) => errors > most,
            // Products, not quotients: no division by zero.
            Self::Share { share, after } => (seen >= after || at_end) && errors as f64 > share * seen as f64,
        }
    }

    /// [`MaxErrors::exceeded`] for counted outcomes, where skipped items were skipped on error (`skips_are_errors`) or
    /// because the step was told to.
    pub fn exceeded_by(&self, counts: &OutcomeCounts, skips_are_errors: bool, at_end: bool) -> bool {
        let errors = counts
            .iter()
            .filter(|(outcome, _)| outcome.is_error() || (skips_are_errors && *outcome == Outcome::Skipped))
            .map(|(_, items)| items)
            .sum();
        self.exceeded(errors, counts.total(), at_end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_item_stays_unknown_under_every_policy() {
        for policy in [OnError::Fail, OnError::Skip, OnError::Default(7), OnError::DeadLetter] {
            let decision = error_decision(&policy, Verdict::Unknown);
            assert_eq!(decision.outcome, Outcome::Unknown);
            assert!(decision.keeps_payload);
            assert_eq!(decision.stops_run, policy == OnError::Fail);
        }
    }

    #[test]
    fn policies_name_the_outcome() {
        let outcome = |policy| error_decision::<()>(&policy, Verdict::Final).outcome;
        assert_eq!(outcome(OnError::Fail), Outcome::Failed);
        assert_eq!(outcome(OnError::Skip), Outcome::Skipped);
        assert_eq!(outcome(OnError::Default(())), Outcome::Defaulted);
        assert_eq!(outcome(OnError::DeadLetter), Outcome::DeadLettered);
    }

    #[test]
    fn counts_and_shares_stop_a_run_gone_wrong() {
        assert!(!MaxErrors::Count(3).exceeded(3, 3, true));
        assert!(MaxErrors::Count(3).exceeded(4, 1_000_000, false));
        assert!(MaxErrors::Count(0).exceeded(1, 1, false));
        let share = MaxErrors::Share { share: 0.01, after: 1000 };
        assert!(!share.exceeded(500, 999, false), "too early to judge");
        assert!(share.exceeded(500, 999, true), "but not at the end");
        assert!(!share.exceeded(10, 1000, false));
        assert!(share.exceeded(11, 1000, false));
        assert!(!share.exceeded(0, 0, true));
        assert!(MaxErrors::Share { share: 0.0, after: 0 }.exceeded(1, 5, false));
    }

    #[test]
    fn skips_count_only_when_they_are_errors() {
        let mut counts = OutcomeCounts::default();
        counts.add(Outcome::Ok, 10);
        counts.add(Outcome::Skipped, 5);
        assert!(MaxErrors::Count(4).exceeded_by(&counts, true, true));
        assert!(!MaxErrors::Count(4).exceeded_by(&counts, false, true));
    }
}
