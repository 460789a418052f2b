//! The circuit breaker: which calls may pass, and what their ends say about the connection.

use std::collections::VecDeque;
use std::time::SystemTime;

use tokio::time::Instant;

use crate::BreakerSettings;

/// Where a breaker stands, for people.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum BreakerState {
    /// Calls pass; also where there is no breaker.
    #[default]
    Closed,
    /// No call passes before its cool-down is over.
    Open {
        /// When the trouble began.
        since: SystemTime,
        /// The failure that opened it, or the last probe's.
        reason: String,
    },
    /// The cool-down is over; one call at a time finds out whether the connection is well.
    HalfOpen {
        /// When the trouble began.
        since: SystemTime,
        /// The failure that opened it, or the last probe's.
        reason: String,
    },
}

/// What the end of a call says about the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Report<'a> {
    /// It answered.
    Well,
    /// It failed in a way that blames the connection.
    Unwell(&'a rowmill_step::Failure),
    /// Nothing: the call was dropped, cancelled, or never left for reasons of our own.
    Nothing,
}

/// What a call that passed must show when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Pass {
    /// Calls of an earlier epoch say nothing about this one: they left before the breaker opened or closed.
    epoch: u64,
}

#[derive(Debug)]
enum Phase {
    Closed,
    /// Cooling down, until then.
    Open(Instant),
    /// The call under way that probes the connection, and when the next one may: a probe that never ends blocks nobody.
    HalfOpen(Option<Instant>),
}

/// One connection's breaker.
#[derive(Debug)]
pub(crate) struct Breaker {
    settings: BreakerSettings,
    phase: Phase,
    /// When the last failures were, oldest first, at most as many as open it.
    failures: VecDeque<Instant>,
    epoch: u64,
    trouble: Option<(SystemTime, String)>,
}

impl Breaker {
    pub(crate) fn new(settings: BreakerSettings) -> Self {
        Self { settings, phase: Phase::Closed, failures: VecDeque::new(), epoch: 0, trouble: None }
    }

    /// Whether a call may pass, or until when to wait.
    pub(crate) fn check(&self, now: Instant) -> Result<(), Instant> {
        match self.phase {
            Phase::Open(until) | Phase::HalfOpen(Some(until)) if now < until => Err(until),
            _ => Ok(()),
        }
    }

    /// A call passes; [`Breaker::check`] said that it may.
    pub(crate) fn pass(&mut self, now: Instant) -> Pass {
        if !matches!(self.phase, Phase::Closed) {
            self.epoch += 1;
            self.phase = Phase::HalfOpen(Some(now + self.settings.cool_down));
        }
        Pass { epoch: self.epoch }
    }

    /// A call ended.
    pub(crate) fn report(&mut self, pass: Pass, report: Report<'_>, now: Instant) {
        if pass.epoch != self.epoch {
            return;
        }
        match (&self.phase, report) {
            (Phase::Closed, Report::Unwell(failure)) => {
                let window = self.settings.window;
                self.failures.push_back(now);
                while self.failures.front().is_some_and(|at| now.saturating_duration_since(*at) > window) {
                    self.failures.pop_front();
                }
                if self.failures.len() >= self.settings.failures as usize {
                    self.open(failure, now);
                }
            }
            (Phase::HalfOpen(_), Report::Unwell(failure)) => self.open(failure, now),
            (Phase::HalfOpen(_), Report::Well) => {
                self.epoch += 1;
                self.phase = Phase::Closed;
                self.trouble = None;
            }
            (Phase::HalfOpen(_), Report::Nothing) => self.phase = Phase::HalfOpen(None),
            (Phase::Closed, Report::Well | Report::Nothing) | (Phase::Open(_), _) => {}
        }
    }

    fn open(&mut self, failure: &rowmill_step::Failure, now: Instant) {
        self.epoch += 1;
        self.failures.clear();
        self.phase = Phase::Open(now + self.settings.cool_down);
        let since = self.trouble.take().map_or_else(SystemTime::now, |(since, _)| since);
        self.trouble = Some((since, failure.to_string()));
    }

    /// Where it stands.
    pub(crate) fn state(&self, now: Instant) -> BreakerState {
        let Some((since, reason)) = self.trouble.clone() else { return BreakerState::Closed };
        match self.phase {
            Phase::Open(until) if now < until => BreakerState::Open { since, reason },
            _ => BreakerState::HalfOpen { since, reason },
        }
    }
}
