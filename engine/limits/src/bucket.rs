//! A token bucket that starts empty: pure arithmetic on instants that the caller hands in.

use std::time::Duration;

use tokio::time::Instant;

/// Levels this close to what is needed count as enough, so that rounding never adds a wait of nothing.
const ENOUGH: f64 = 1e-6;

/// The longest wait that is computed; settings are checked so that real ones are far below.
const FAR: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Tokens that come at a steady rate and are kept up to a depth.
#[derive(Debug)]
pub(crate) struct Bucket {
    per_second: f64,
    depth: f64,
    level: f64,
    at: Instant,
}

impl Bucket {
    /// An empty bucket: after a crash a cap holds across it, since nobody knows what left just before.
    pub(crate) fn new(per_second: f64, depth: f64, now: Instant) -> Self {
        Self { per_second, depth, level: 0.0, at: now }
    }

    /// Adds what came since the last time.
    pub(crate) fn refill(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.at);
        if !since.is_zero() {
            self.level = (self.level + self.per_second * since.as_secs_f64()).min(self.depth);
            self.at = now;
        }
    }

    /// How long until `cost` may be taken, as of the last refill. What costs more than the bucket holds may be taken
    /// when it is full, and the bucket goes into debt: the rate holds on average.
    pub(crate) fn ready_in(&self, cost: f64) -> Duration {
        let missing = cost.min(self.depth) - self.level;
        if missing <= ENOUGH {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(missing / self.per_second).unwrap_or(FAR).min(FAR)
    }

    /// Takes `cost`.
    pub(crate) fn take(&mut self, cost: f64) {
        self.level -= cost;
    }

    /// Gives back what was taken for a call that never left.
    pub(crate) fn give_back(&mut self, cost: f64) {
        self.level = (self.level + cost).min(self.depth);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_starts_empty_keeps_its_depth_and_goes_into_debt_for_large_costs() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10.0, 2.0, start);
        assert_eq!(bucket.ready_in(1.0), Duration::from_millis(100));
        bucket.refill(start + Duration::from_secs(60));
        assert_eq!(bucket.ready_in(2.0), Duration::ZERO);
        assert_eq!(bucket.ready_in(50.0), Duration::ZERO);
        bucket.take(50.0);
        assert_eq!(bucket.ready_in(1.0), Duration::from_millis(4900));
        bucket.give_back(100.0);
        assert_eq!(bucket.ready_in(2.0), Duration::ZERO);
        bucket.take(2.0);
        assert!(bucket.ready_in(1.0) > Duration::ZERO);
    }
}
