//! The decisions: whether a call may leave now, and if not, when to ask again. No clock, no runtime, no lock.

use std::time::Duration;

use rowmill_step::{CallCost, Failure, FailureCode, Sent};
use tokio::time::Instant;

use crate::breaker::{Breaker, Pass, Report};
use crate::bucket::Bucket;
use crate::{BreakerState, LimitSettings};

/// The longest pause that an answer can impose on a connection; a longer one is cut to this.
pub const MAX_PAUSE: Duration = Duration::from_secs(300);

/// Besides the burst, a bucket holds what comes in 5 ms: timers are a little late, and what they miss is made up. A
/// second then sees 0.5% more at most; the other half of the 1% that settings promise is for the way to the server.
const LATENESS_SECONDS: f64 = 0.005;

/// By default the burst is what comes in 10 ms.
const BURST_SECONDS: f64 = 0.01;

/// Tokens per minute are kept for 1% of a minute.
const TOKENS_DEPTH_SECONDS: f64 = 0.6;

/// Whether a call may leave.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Now: its slot and its tokens are taken.
    Go(Pass),
    /// Not before then.
    At(Instant),
    /// Not before another call ends.
    WhenOneEnds,
}

/// One connection's limits as they stand.
#[derive(Debug)]
pub(crate) struct Core {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    max_in_flight: usize,
    breaker: Option<Breaker>,
    pause_on_retry_after: bool,
    in_flight: usize,
    paused_until: Option<Instant>,
}

impl Core {
    /// Limits by settings that were checked.
    pub(crate) fn new(settings: &LimitSettings, now: Instant) -> Self {
        let requests = settings.requests_per_second.map(|rate| {
            let burst = settings.burst.map_or((rate * BURST_SECONDS).ceil().max(1.0), f64::from);
            Bucket::new(rate, burst + rate * LATENESS_SECONDS, now)
        });
        let tokens = settings.tokens_per_minute.map(|rate| {
            let rate = rate / 60.0;
            Bucket::new(rate, (rate * TOKENS_DEPTH_SECONDS).max(1.0), now)
        });
        Self {
            requests,
            tokens,
            max_in_flight: settings.max_in_flight.unwrap_or(usize::MAX),
            breaker: settings.breaker.map(Breaker::new),
            pause_on_retry_after: settings.pause_on_retry_after,
            in_flight: 0,
            paused_until: None,
        }
    }

    /// Decides about one call; takes everything or nothing.
    pub(crate) fn try_admit(&mut self, now: Instant, cost: CallCost) -> Decision {
        if let Some(until) = self.paused_until {
            if now < until {
                return Decision::At(until);
            }
            self.paused_until = None;
        }
        if let Some(Err(until)) = self.breaker.as_ref().map(|breaker| breaker.check(now)) {
            return Decision::At(until);
        }
        if self.in_flight >= self.max_in_flight {
            return Decision::WhenOneEnds;
        }
        let wait = self.buckets(cost).fold(Duration::ZERO, |wait, (bucket, cost)| {
            bucket.refill(now);
            wait.max(bucket.ready_in(cost))
        });
        if !wait.is_zero() {
            return Decision::At(now + wait);
        }
        self.buckets(cost).for_each(|(bucket, cost)| bucket.take(cost));
        self.in_flight += 1;
        Decision::Go(self.breaker.as_mut().map(|breaker| breaker.pass(now)).unwrap_or_default())
    }

    /// A call ended, with a failure or without one.
    pub(crate) fn end(&mut self, pass: Pass, failure: Option<&Failure>, now: Instant) {
        let report = match failure {
            None => Report::Well,
            Some(failure) if failure.blames_connection() => Report::Unwell(failure),
            Some(failure) if failure.how_far() == Sent::Never || failure.code() == FailureCode::Cancelled => {
                Report::Nothing
            }
            Some(_) => Report::Well,
        };
        self.leave(pass, report, now);
        let asked = failure.filter(|failure| failure.how_far() == Sent::Refused).and_then(Failure::wait);
        if let (Some(wait), true) = (asked, self.pause_on_retry_after) {
            self.paused_until = self.paused_until.max(Some(now + wait.min(MAX_PAUSE)));
        }
    }

    /// A call was given up without a word about how it went.
    pub(crate) fn abandon(&mut self, pass: Pass, now: Instant) {
        self.leave(pass, Report::Nothing, now);
    }

    /// A call that was let through never left: its tokens come back too.
    pub(crate) fn undo(&mut self, pass: Pass, cost: CallCost, now: Instant) {
        self.leave(pass, Report::Nothing, now);
        self.buckets(cost).for_each(|(bucket, cost)| {
            bucket.refill(now);
            bucket.give_back(cost);
        });
    }

    fn leave(&mut self, pass: Pass, report: Report<'_>, now: Instant) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Some(breaker) = &mut self.breaker {
            breaker.report(pass, report, now);
        }
    }

    fn buckets(&mut self, cost: CallCost) -> impl Iterator<Item = (&mut Bucket, f64)> {
        let requests = self.requests.as_mut().map(|bucket| (bucket, f64::from(cost.requests)));
        requests.into_iter().chain(self.tokens.as_mut().map(|bucket| (bucket, f64::from(cost.tokens))))
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// How much longer the connection is paused.
    pub(crate) fn paused_for(&self, now: Instant) -> Option<Duration> {
        self.paused_until.map(|until| until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }

    pub(crate) fn breaker(&self, now: Instant) -> BreakerState {
        self.breaker.as_ref().map(|breaker| breaker.state(now)).unwrap_or_default()
    }
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;
