//! When another attempt is made: pure arithmetic, no clock and no randomness of its own.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Effects, Failure, FailureCode, Verdict};

/// How a backoff is spread, so that items that failed together do not come back together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Jitter {
    /// Anything between nothing and the whole backoff.
    Full,
    /// The backoff exactly.
    None,
}

/// How often and when an item is tried again.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// Attempts in all, the first included; 1 means no retry.
    pub attempts: u32,
    /// Backoff after the first attempt.
    pub initial_backoff: Duration,
    /// What the backoff is multiplied by after each attempt.
    pub factor: f64,
    /// The longest backoff.
    pub max_backoff: Duration,
    /// How the backoff is spread.
    pub jitter: Jitter,
    /// Whether a wait that the other side asks for is kept.
    pub honour_retry_after: bool,
    /// The longest such wait; a longer one is cut to this.
    pub max_retry_after: Duration,
    /// Codes that are tried again whatever the step kind says; empty leaves it to the step kind.
    pub retry_codes: Vec<FailureCode>,
    /// Statuses that are tried again whatever the step kind says.
    pub retry_statuses: Vec<u16>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 4,
            initial_backoff: Duration::from_millis(200),
            factor: 2.0,
            max_backoff: Duration::from_secs(30),
            jitter: Jitter::Full,
            honour_retry_after: true,
            max_retry_after: Duration::from_secs(300),
            retry_codes: Vec::new(),
            retry_statuses: Vec::new(),
        }
    }
}

impl RetryPolicy {
    /// One attempt and no more.
    pub fn none() -> Self {
        Self { attempts: 1, ..Self::default() }
    }

    /// Checks the numbers: at least one attempt, a factor that is finite and not below 1.
    ///
    /// # Errors
    /// A sentence that names the setting.
    pub fn check(&self) -> Result<(), String> {
        if self.attempts == 0 {
            return Err("`attempts` counts the first attempt too, so it is at least 1".to_owned());
        }
        if !self.factor.is_finite() || self.factor < 1.0 {
            return Err("`factor` is a number of 1 or more".to_owned());
        }
        if self.max_backoff < self.initial_backoff {
            return Err("`max_backoff` is not below `initial_backoff`".to_owned());
        }
        Ok(())
    }

    /// The wait before the next attempt, or `None` if there is none.
    ///
    /// `attempt` is the attempt that just failed, from 1. `random` is a number in `[0, 1)` from the caller's generator.
    /// A wait that the other side asked for is a floor: the item never comes back sooner, and the jitter goes on top,
    /// up to one backoff, so that all those who were told "in 60 seconds" do not come at once.
    pub fn next_delay(&self, attempt: u32, failure: &Failure, effects: Effects, random: f64) -> Option<Duration> {
        if attempt >= self.attempts || !self.allows(failure, effects) {
            return None;
        }
        let exponent = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX);
        let backoff = self.initial_backoff.as_secs_f64() * self.factor.powi(exponent);
        let backoff = backoff.min(self.max_backoff.as_secs_f64());
        let spread = match self.jitter {
            Jitter::Full => backoff * random.clamp(0.0, 1.0),
            Jitter::None => backoff,
        };
        let asked = failure.wait().filter(|_| self.honour_retry_after).map(|wait| wait.min(self.max_retry_after));
        let seconds = match (asked, self.jitter) {
            (Some(asked), Jitter::Full) => asked.as_secs_f64() + spread,
            (Some(asked), Jitter::None) => asked.as_secs_f64().max(spread),
            (None, _) => spread,
        };
        Some(Duration::try_from_secs_f64(seconds).unwrap_or(self.max_backoff))
    }

    fn allows(&self, failure: &Failure, effects: Effects) -> bool {
        let listed = self.retry_codes.contains(&failure.code())
            || failure.status_code().is_some_and(|status| self.retry_statuses.contains(&status));
        // A list can widen what is retryable, but never what may be repeated.
        let failure = if listed { &failure.clone().retryable(true) } else { failure };
        failure.code() != FailureCode::Cancelled && failure.verdict(effects) == Verdict::Retry
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Sent;
    use proptest::prelude::*;

    fn exact() -> RetryPolicy {
        RetryPolicy {
            attempts: 5,
            initial_backoff: Duration::from_millis(100),
            factor: 2.0,
            max_backoff: Duration::from_millis(350),
            jitter: Jitter::None,
            ..RetryPolicy::default()
        }
    }

    fn timeout() -> Failure {
        Failure::fixed(FailureCode::Timeout, "late")
    }

    #[test]
    fn backoff_grows_to_its_cap_and_ends() {
        let delays: Vec<_> = (1..=5).map(|n| exact().next_delay(n, &timeout(), Effects::Pure, 0.5)).collect();
        let ms = |n| Some(Duration::from_millis(n));
        assert_eq!(delays, [ms(100), ms(200), ms(350), ms(350), None]);
    }

    #[test]
    fn retry_after_is_a_floor_up_to_its_cap() {
        let policy = RetryPolicy { max_retry_after: Duration::from_secs(10), ..exact() };
        let limited = |s| {
            Failure::fixed(FailureCode::RateLimited, "x").retry_after(Some(Duration::from_secs(s))).sent(Sent::Refused)
        };
        assert_eq!(policy.next_delay(1, &limited(3), Effects::Once, 0.0), Some(Duration::from_secs(3)));
        assert_eq!(policy.next_delay(1, &limited(99), Effects::Once, 0.0), Some(Duration::from_secs(10)));
        let deaf = RetryPolicy { honour_retry_after: false, ..policy };
        assert_eq!(deaf.next_delay(1, &limited(3), Effects::Once, 0.0), Some(Duration::from_millis(100)));
    }

    #[test]
    fn lists_widen_but_never_repeat_a_once_call() {
        let policy = RetryPolicy { retry_statuses: vec![418], retry_codes: vec![FailureCode::Decode], ..exact() };
        let teapot = Failure::fixed(FailureCode::Status, "x").status(418).retryable(false);
        assert!(policy.next_delay(1, &teapot, Effects::Idempotent, 0.0).is_some());
        assert!(policy.next_delay(1, &teapot, Effects::Once, 0.0).is_none());
        let decode = Failure::fixed(FailureCode::Decode, "x").sent(Sent::Answered);
        assert!(policy.next_delay(1, &decode, Effects::Pure, 0.0).is_some());
        assert!(policy.next_delay(1, &decode, Effects::Once, 0.0).is_none());
        let cancelled = Failure::fixed(FailureCode::Cancelled, "x").retryable(true);
        assert!(policy.next_delay(1, &cancelled, Effects::Pure, 0.0).is_none());
    }

    #[test]
    fn numbers_that_make_no_sense_are_named() {
        assert!(RetryPolicy { attempts: 0, ..exact() }.check().unwrap_err().contains("attempts"));
        assert!(RetryPolicy { factor: f64::NAN, ..exact() }.check().unwrap_err().contains("factor"));
        assert!(RetryPolicy { max_backoff: Duration::ZERO, ..exact() }.check().unwrap_err().contains("max_backoff"));
        assert!(RetryPolicy::default().check().is_ok());
    }

    proptest! {
        #[test]
        fn full_jitter_stays_between_floor_and_floor_plus_backoff(
            attempt in 1u32..10_000, random in 0.0f64..1.0, asked in proptest::option::of(0u64..100_000),
        ) {
            let policy = RetryPolicy { attempts: u32::MAX, jitter: Jitter::Full, ..exact() };
            let failure = timeout().retry_after(asked.map(Duration::from_millis));
            let delay = policy.next_delay(attempt, &failure, Effects::Pure, random).unwrap();
            let floor = Duration::from_millis(asked.unwrap_or(0)).min(policy.max_retry_after);
            prop_assert!(delay >= floor && delay <= floor + policy.max_backoff + Duration::from_nanos(1));
        }
    }
}
