//! The queue in front of a connection's limits.
//!
//! Whoever cannot leave at once takes a number. One task per queue, the pacer, sleeps until the first in line may leave
//! and lets as many go as may; it lives as long as somebody waits. Waiters are not trusted to be polled: none of them
//! has to do anything for those behind it.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use rowmill_step::{CallCost, Failure};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::breaker::Pass;
use crate::core::{Core, Decision};
use crate::{BreakerState, LimitError, LimitSettings};

/// What holds for one named connection. Clones share it.
#[derive(Clone)]
pub struct ConnectionLimits(Arc<Shared>);

/// Where a connection's limits stand, for people.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LimitState {
    /// Calls under way; 0 where nothing is limited, since nobody counts then.
    pub in_flight: usize,
    /// Calls that wait.
    pub waiting: usize,
    /// The breaker.
    pub breaker: BreakerState,
    /// How much longer the connection is paused, because the other side asked for it.
    pub paused_for: Option<Duration>,
}

struct Shared {
    name: Arc<str>,
    settings: LimitSettings,
    /// Nothing is limited: nobody asks the core.
    unlimited: bool,
    state: Mutex<State>,
    /// Tells the pacer to look again.
    changed: Notify,
}

struct State {
    core: Core,
    /// Who waits, by number: first come, first served.
    waiting: BTreeMap<u64, Waiter>,
    /// Who was let through and has not noticed yet.
    granted: HashMap<u64, Pass>,
    next_number: u64,
    pacer: Pacer,
}

struct Waiter {
    cost: CallCost,
    waker: Option<Waker>,
}

/// The task that lets waiters go when their time comes.
#[derive(Clone, Copy, PartialEq)]
enum Pacer {
    /// There is none.
    Gone,
    /// It sleeps until then, or until it is told.
    Sleeps(Option<Instant>),
}

impl std::fmt::Debug for ConnectionLimits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ConnectionLimits({})", self.0.name)
    }
}

impl ConnectionLimits {
    /// Limits of the connection `name`.
    ///
    /// # Errors
    /// Settings that make no sense.
    pub fn new(name: &str, settings: LimitSettings) -> Result<Self, LimitError> {
        settings.check().map_err(|what| LimitError { connection: name.to_owned(), what })?;
        let state = State {
            core: Core::new(&settings, Instant::now()),
            waiting: BTreeMap::new(),
            granted: HashMap::new(),
            next_number: 0,
            pacer: Pacer::Gone,
        };
        let unlimited = settings.is_unlimited();
        let (state, changed) = (Mutex::new(state), Notify::new());
        Ok(Self(Arc::new(Shared { name: Arc::from(name), settings, unlimited, state, changed })))
    }

    /// The connection's name.
    pub fn name(&self) -> &Arc<str> {
        &self.0.name
    }

    /// The settings.
    pub fn settings(&self) -> &LimitSettings {
        &self.0.settings
    }

    /// Waits until a call of this cost may be made, and takes its slot and its tokens. Make the call at once, and hand
    /// its end to [`Admission::finish`]. First come, first served; dropping the future gives the place back.
    ///
    /// Must be awaited on a tokio runtime with timers, unless nothing is limited.
    pub async fn admit(&self, cost: CallCost) -> Admission {
        if self.0.unlimited {
            return Admission { of: None, pass: Pass::default() };
        }
        let number = {
            let mut state = self.0.state.lock();
            if state.waiting.is_empty()
                && let Decision::Go(pass) = state.core.try_admit(Instant::now(), cost)
            {
                return Admission { of: Some(self.0.clone()), pass };
            }
            let number = state.next_number;
            state.next_number += 1;
            state.waiting.insert(number, Waiter { cost, waker: None });
            number
        };
        Waiting { shared: self.0.clone(), number, cost, done: false }.await
    }

    /// Takes a slot and tokens if a call of this cost may be made now and nobody waits.
    pub fn try_admit(&self, cost: CallCost) -> Option<Admission> {
        if self.0.unlimited {
            return Some(Admission { of: None, pass: Pass::default() });
        }
        let mut state = self.0.state.lock();
        if !state.waiting.is_empty() {
            return None;
        }
        match state.core.try_admit(Instant::now(), cost) {
            Decision::Go(pass) => Some(Admission { of: Some(self.0.clone()), pass }),
            Decision::At(_) | Decision::WhenOneEnds => None,
        }
    }

    /// Where the limits stand.
    pub fn state(&self) -> LimitState {
        let now = Instant::now();
        let state = self.0.state.lock();
        LimitState {
            in_flight: state.core.in_flight(),
            waiting: state.waiting.len(),
            breaker: state.core.breaker(now),
            paused_for: state.core.paused_for(now),
        }
    }
}

/// A call that may be made now. Dropped without [`Admission::finish`], it frees its slot and says nothing about the
/// connection.
#[must_use = "the call's slot is freed when this is dropped"]
pub struct Admission {
    of: Option<Arc<Shared>>,
    pass: Pass,
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Admission")
    }
}

impl Admission {
    /// The call ended: frees its slot, and feeds the breaker by [`Failure::blames_connection`].
    pub fn finish(mut self, failure: Option<&Failure>) {
        if let Some(shared) = self.of.take() {
            let pass = self.pass;
            shared.update(|core, now| core.end(pass, failure, now));
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        if let Some(shared) = self.of.take() {
            let pass = self.pass;
            shared.update(|core, now| core.abandon(pass, now));
        }
    }
}

impl Shared {
    /// Changes the core and lets go whoever may go then.
    fn update(&self, change: impl FnOnce(&mut Core, Instant)) {
        let now = Instant::now();
        let mut woken = Vec::new();
        {
            let mut state = self.state.lock();
            change(&mut state.core, now);
            self.release(&mut state, now, &mut woken);
        }
        // Outside the lock: what is woken may run at once on another thread and wants it.
        woken.into_iter().for_each(Waker::wake);
    }

    /// Lets go whoever may go, and tells the pacer if it would sleep too long.
    fn release(&self, state: &mut State, now: Instant, woken: &mut Vec<Waker>) {
        if let (Some(at), Pacer::Sleeps(until)) = (state.release(now, woken), state.pacer)
            && until.is_none_or(|until| at < until)
        {
            self.changed.notify_one();
        }
    }
}

impl State {
    /// Lets go whoever may go, first come first served, and returns when the next one may by the clock alone.
    fn release(&mut self, now: Instant, woken: &mut Vec<Waker>) -> Option<Instant> {
        while let Some((&number, waiter)) = self.waiting.first_key_value() {
            match self.core.try_admit(now, waiter.cost) {
                Decision::Go(pass) => {
                    self.granted.insert(number, pass);
                    woken.extend(self.waiting.pop_first().and_then(|(_, waiter)| waiter.waker));
                }
                Decision::At(at) => return Some(at),
                Decision::WhenOneEnds => return None,
            }
        }
        None
    }
}

/// A place in the queue.
struct Waiting {
    shared: Arc<Shared>,
    number: u64,
    cost: CallCost,
    done: bool,
}

impl Future for Waiting {
    type Output = Admission;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Admission> {
        let missing = {
            let mut guard = self.shared.state.lock();
            let state = &mut *guard;
            if let Some(pass) = state.granted.remove(&self.number) {
                drop(guard);
                self.done = true;
                return Poll::Ready(Admission { of: Some(self.shared.clone()), pass });
            }
            if let Some(waiter) = state.waiting.get_mut(&self.number)
                && waiter.waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker()))
            {
                waiter.waker = Some(cx.waker().clone());
            }
            let missing = state.pacer == Pacer::Gone;
            if missing {
                state.pacer = Pacer::Sleeps(None);
            }
            missing
        };
        if missing {
            // It ends with the queue and holds nothing of a run's, so no run has to wait for it.
            let pacer = pace(PacerGuard { shared: self.shared.clone(), armed: true });
            tokio::runtime::Handle::current().spawn(pacer);
        }
        Poll::Pending
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let now = Instant::now();
        let mut woken = Vec::new();
        {
            let mut guard = self.shared.state.lock();
            let state = &mut *guard;
            if let Some(pass) = state.granted.remove(&self.number) {
                state.core.undo(pass, self.cost, now);
            }
            state.waiting.remove(&self.number);
            // Who was behind may cost less than who was first.
            self.shared.release(state, now, &mut woken);
            if state.waiting.is_empty() && state.pacer != Pacer::Gone {
                self.shared.changed.notify_one();
            }
        }
        woken.into_iter().for_each(Waker::wake);
    }
}

/// Says that there is no pacer any more, also when its runtime ends before the queue does.
struct PacerGuard {
    shared: Arc<Shared>,
    armed: bool,
}

impl Drop for PacerGuard {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let woken: Vec<Waker> = {
            let mut state = self.shared.state.lock();
            state.pacer = Pacer::Gone;
            state.waiting.values().filter_map(|waiter| waiter.waker.clone()).collect()
        };
        // Whoever still waits does so on another runtime, and starts a pacer there.
        woken.into_iter().for_each(Waker::wake);
    }
}

/// Sleeps until the first in line may leave, lets go whoever may, and ends when nobody waits.
async fn pace(mut guard: PacerGuard) {
    let shared = guard.shared.clone();
    loop {
        let mut woken = Vec::new();
        let until = {
            let mut state = shared.state.lock();
            let until = state.release(Instant::now(), &mut woken);
            let empty = state.waiting.is_empty();
            state.pacer = if empty { Pacer::Gone } else { Pacer::Sleeps(until) };
            (!empty).then_some(until)
        };
        woken.into_iter().for_each(Waker::wake);
        match until {
            None => break,
            Some(None) => shared.changed.notified().await,
            Some(Some(at)) => {
                tokio::select! {
                    () = tokio::time::sleep_until(at) => {}
                    () = shared.changed.notified() => {}
                }
            }
        }
    }
    // The pacer was struck off under the lock; another may be there by now, which the guard must leave alone.
    guard.armed = false;
}
