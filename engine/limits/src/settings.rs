//! The settings of a connection's limits, and what is wrong with them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A year: no rate is so low and no breaker so slow that one wait takes longer.
const MAX_SECONDS: f64 = 365.0 * 24.0 * 3600.0;

/// The longest cool-down of a breaker, so that a wait for it has an end that somebody will see.
const MAX_COOL_DOWN: Duration = Duration::from_secs(3600);

/// What holds for one connection. What is not set does not limit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitSettings {
    /// Requests per second, on average and in every second: no second sees more than this, plus 1%, plus the burst.
    pub requests_per_second: Option<f64>,
    /// Requests that may leave at once after a quiet time; by default what comes in 10 ms, at least 1.
    pub burst: Option<u32>,
    /// Tokens of a model per minute, as the calls' costs estimate them.
    pub tokens_per_minute: Option<f64>,
    /// Calls under way at once.
    pub max_in_flight: Option<usize>,
    /// When to stop calling a connection that is unwell.
    pub breaker: Option<BreakerSettings>,
    /// Whether an answer that refuses a call and names a wait (429 with Retry-After) pauses the whole connection for
    /// that wait, or only the item that it answers.
    pub pause_on_retry_after: bool,
}

/// A circuit breaker: after `failures` failures within `window` no call is made for `cool_down`, then one is let
/// through; if it succeeds, all are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BreakerSettings {
    /// Failures within the window that open it: transport trouble and statuses of 500 and up.
    pub failures: u32,
    /// The window, in milliseconds.
    #[serde(rename = "window_ms", with = "millis")]
    pub window: Duration,
    /// How long no call is made, in milliseconds; one hour at most.
    #[serde(rename = "cool_down_ms", with = "millis")]
    pub cool_down: Duration,
}

mod millis {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(value.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

/// Settings that make no sense; the text names the connection, the setting and the next move.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("limits of connection `{connection}`: {what}")]
pub struct LimitError {
    /// The connection's name.
    pub connection: String,
    /// What is wrong with which setting.
    pub what: String,
}

impl LimitSettings {
    /// Whether nothing is limited.
    pub fn is_unlimited(&self) -> bool {
        self.requests_per_second.is_none()
            && self.tokens_per_minute.is_none()
            && self.max_in_flight.is_none()
            && self.breaker.is_none()
            && !self.pause_on_retry_after
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// A sentence that names the setting and says what it may be.
    pub fn check(&self) -> Result<(), String> {
        rate("requests_per_second", self.requests_per_second, 1.0)?;
        rate("tokens_per_minute", self.tokens_per_minute, 60.0)?;
        if self.burst == Some(0) {
            return Err("`burst` is at least 1: with 0 no call could ever leave".to_owned());
        }
        if self.burst.is_some() && self.requests_per_second.is_none() {
            return Err("`burst` says how many requests may leave at once under `requests_per_second`; \
                        set that too, or take `burst` out"
                .to_owned());
        }
        if self.max_in_flight == Some(0) {
            return Err("`max_in_flight` is at least 1: with 0 no call could ever leave".to_owned());
        }
        let Some(breaker) = &self.breaker else { return Ok(()) };
        if breaker.failures == 0 {
            return Err("`breaker.failures` is at least 1".to_owned());
        }
        if breaker.window.is_zero() {
            return Err("`breaker.window_ms` is at least 1".to_owned());
        }
        if breaker.cool_down.is_zero() || breaker.cool_down > MAX_COOL_DOWN {
            return Err("`breaker.cool_down_ms` is between 1 and 3600000 (one hour)".to_owned());
        }
        Ok(())
    }
}

/// Checks a rate of one per `period_s` seconds.
fn rate(name: &str, value: Option<f64>, period_s: f64) -> Result<(), String> {
    match value {
        Some(value) if !(value.is_finite() && value > 0.0) => {
            Err(format!("`{name}` is a number above 0; leave it out for no limit"))
        }
        Some(value) if period_s / value > MAX_SECONDS => Err(format!("`{name}` is so low that one call takes a year")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn settings_come_back_and_unknown_keys_are_refused() {
        let text = json!({
            "requests_per_second": 10.5, "burst": 2, "tokens_per_minute": 1000.0, "max_in_flight": 4,
            "breaker": {"failures": 3, "window_ms": 1000, "cool_down_ms": 500}, "pause_on_retry_after": true,
        });
        let settings: LimitSettings = serde_json::from_value(text.clone()).unwrap();
        assert_eq!(settings.breaker.unwrap().cool_down, Duration::from_millis(500));
        assert!(settings.check().is_ok() && !settings.is_unlimited());
        assert_eq!(serde_json::to_value(&settings).unwrap(), text);
        let wrong = serde_json::from_value::<LimitSettings>(json!({"requests_per_secund": 1})).unwrap_err();
        assert!(wrong.to_string().contains("requests_per_secund"));
        assert!(serde_json::from_value::<LimitSettings>(json!({"breaker": {"failures": 1, "window": 1}})).is_err());
        assert!(serde_json::from_value::<LimitSettings>(json!({})).unwrap().is_unlimited());
    }

    #[test]
    fn numbers_that_make_no_sense_are_named() {
        let breaker = |failures, window, cool_down| {
            let (window, cool_down) = (Duration::from_millis(window), Duration::from_millis(cool_down));
            LimitSettings { breaker: Some(BreakerSettings { failures, window, cool_down }), ..LimitSettings::default() }
        };
        let none = LimitSettings::default;
        for (settings, word) in [
            (LimitSettings { requests_per_second: Some(0.0), ..none() }, "requests_per_second"),
            (LimitSettings { requests_per_second: Some(f64::NAN), ..none() }, "requests_per_second"),
            (LimitSettings { requests_per_second: Some(f64::INFINITY), ..none() }, "requests_per_second"),
            (LimitSettings { requests_per_second: Some(1e-300), ..none() }, "requests_per_second"),
            (LimitSettings { tokens_per_minute: Some(-1.0), ..none() }, "tokens_per_minute"),
            (LimitSettings { burst: Some(3), ..none() }, "burst"),
            (LimitSettings { burst: Some(0), requests_per_second: Some(1.0), ..none() }, "burst"),
            (LimitSettings { max_in_flight: Some(0), ..none() }, "max_in_flight"),
            (breaker(0, 1, 1), "failures"),
            (breaker(1, 0, 1), "window_ms"),
            (breaker(1, 1, 0), "cool_down_ms"),
            (breaker(1, 1, 3_600_001), "cool_down_ms"),
        ] {
            assert!(settings.check().unwrap_err().contains(word), "{settings:?}");
        }
    }
}
