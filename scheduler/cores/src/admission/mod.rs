//! Admission: which run starts, which chunk gets a place, and on which executor.
//!
//! Runs wait in bounded queues. A started run's chunks ask for places; each place is a reservation under a lease, so a
//! crash of whoever held it frees it. [`Admission::decide`] takes one decision at a time and is called until it has none.
//!
//! Order: queues by the time of their oldest request, moved forward by `ageing_ms` for each step of priority (a high
//! queue goes first, and a low one is overtaken only by what came at most that much later: nobody starves). Within a queue
//! and class, organisations, then teams, then runs share by weight, chunk by chunk (start-time fair queueing). Whoever is next but fits
//! nowhere is overtaken by smaller ones for `hold_after_ms`; then an executor is kept free for it.

mod decide;
mod executors;
mod fair;
mod types;
mod waiting;
mod watch;

use std::collections::{BTreeMap, BTreeSet};

pub use types::{
    Decision, ExecutorSpec, JoinError, Options, QueueOptions, QueueState, Refusal, Request, TenantOptions, Ticket,
};

use self::executors::Executors;
use self::waiting::Waiting;
use crate::ids::{ChunkKey, ClassId, ExecutorId, QueueId, ReservationId, RunId, Tenant};
use crate::resources::{Resources, Usage};
use crate::routing::Route;
use crate::sabotage::{Mutant, Sabotage};

/// How many requests that fit nowhere one decision looks at before it leaves a class alone.
const LOOKS: u32 = 64;

#[derive(Debug, Clone, Copy)]
struct Reservation {
    key: ChunkKey,
    tenant: Tenant,
    executor: ExecutorId,
    needs: Resources,
    until_ms: u64,
}

#[derive(Debug, Default)]
struct Queue {
    /// By class, so that runs of a class that has no room do not stand before others.
    waiting: BTreeMap<ClassId, Waiting>,
    queued: u32,
    running: u32,
}

impl Queue {
    /// When the oldest run came.
    fn oldest_ms(&self) -> Option<u64> {
        self.waiting.values().filter_map(Waiting::oldest_ms).min()
    }
}

/// Runs of one class that are under way, and how many may be.
#[derive(Debug, Default, Clone, Copy)]
struct Started {
    runs: u32,
    most: Option<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Unserved {
    since_ms: u64,
    warned: bool,
}

/// Queues, quotas, executors and reservations of one scheduler.
#[derive(Debug)]
pub struct Admission {
    options: Options,
    queues: BTreeMap<QueueId, Queue>,
    tickets: BTreeMap<RunId, (Ticket, bool)>,
    chunks: BTreeMap<(QueueId, ClassId), Waiting>,
    requests: BTreeMap<ChunkKey, (QueueId, ClassId)>,
    started: BTreeMap<ClassId, Started>,
    organisations: BTreeMap<u32, Usage>,
    teams: BTreeMap<Tenant, Usage>,
    executors: Executors,
    reservations: BTreeMap<ReservationId, Reservation>,
    ends: BTreeSet<(u64, ReservationId)>,
    next_reservation: u64,
    unserved: BTreeMap<ClassId, Unserved>,
    /// Requests that were next and that no executor is large enough for, and since when.
    misfits: BTreeMap<ChunkKey, u64>,
    /// When the watch over unserved classes looks again.
    next_watch_ms: u64,
    sabotage: Sabotage,
}

impl Admission {
    /// Admission without runs and executors.
    pub fn new(options: Options) -> Self {
        let queues = options.queues.keys().map(|queue| (*queue, Queue::default())).collect();
        Self {
            options,
            queues,
            tickets: BTreeMap::new(),
            chunks: BTreeMap::new(),
            requests: BTreeMap::new(),
            started: BTreeMap::new(),
            organisations: BTreeMap::new(),
            teams: BTreeMap::new(),
            executors: Executors::default(),
            reservations: BTreeMap::new(),
            ends: BTreeSet::new(),
            next_reservation: 0,
            unserved: BTreeMap::new(),
            misfits: BTreeMap::new(),
            next_watch_ms: 0,
            sabotage: Sabotage::default(),
        }
    }

    #[cfg(test)]
    pub(crate) fn sabotaged(mut self, sabotage: Sabotage) -> Self {
        self.sabotage = sabotage;
        self.executors.sabotage = sabotage;
        self
    }

    /// Puts a run into its queue.
    ///
    /// # Errors
    /// There is no such queue, it is full, or the run is known.
    pub fn enqueue(&mut self, ticket: Ticket, now_ms: u64) -> Result<(), Refusal> {
        let options = self.options.queues.get(&ticket.queue).ok_or(Refusal::UnknownQueue)?;
        let queue = self.queues.get_mut(&ticket.queue).ok_or(Refusal::UnknownQueue)?;
        if self.tickets.contains_key(&ticket.run) {
            return Err(Refusal::Duplicate);
        }
        if queue.queued >= options.max_queued {
            return Err(Refusal::QueueFull { waiting: queue.queued });
        }
        queue.queued += 1;
        queue.waiting.entry(ticket.class).or_default().push(run_request(ticket, now_ms));
        self.tickets.insert(ticket.run, (ticket, false));
        Ok(())
    }

    /// Takes up a run that was under way when its scheduler went: it does not queue again.
    ///
    /// # Errors
    /// There is no such queue any more, or the run is known.
    pub fn resume(&mut self, ticket: Ticket) -> Result<(), Refusal> {
        if self.tickets.contains_key(&ticket.run) {
            return Err(Refusal::Duplicate);
        }
        let queue = self.queues.get_mut(&ticket.queue).ok_or(Refusal::UnknownQueue)?;
        queue.running += 1;
        self.started.entry(ticket.class).or_default().runs += 1;
        self.tickets.insert(ticket.run, (ticket, true));
        self.usage(ticket.tenant, |usage| usage.runs += 1);
        Ok(())
    }

    /// A run is over, started or not: its requests are withdrawn. Its reservations stay until they are released.
    pub fn end_run(&mut self, run: RunId) {
        let Some((ticket, started)) = self.tickets.remove(&run) else { return };
        let Some(queue) = self.queues.get_mut(&ticket.queue) else { return };
        if started {
            queue.running -= 1;
            if let Some(started) = self.started.get_mut(&ticket.class) {
                started.runs = started.runs.saturating_sub(1);
            }
            self.usage(ticket.tenant, |usage| usage.runs -= 1);
            self.unpark(ticket.tenant);
        } else {
            queue.queued -= 1;
            if let Some(waiting) = queue.waiting.get_mut(&ticket.class) {
                waiting.remove(ticket.tenant, run_key(run));
            }
        }
        let first = ChunkKey { run, stage: 0, chunk: 0 };
        let last = ChunkKey { run, stage: u32::MAX, chunk: u32::MAX };
        let keys: Vec<ChunkKey> = self.requests.range(first..=last).map(|(key, _)| *key).collect();
        for key in keys {
            self.drop_request(ticket.tenant, key);
        }
    }

    /// No more than this many runs of a class are under way from now on; those that are stay.
    pub fn limit_class(&mut self, class: ClassId, runs: u32) {
        self.started.entry(class).or_default().most = Some(runs);
    }

    /// What a tenant may have, and its share. What holds for its neighbours does not change.
    pub fn know(&mut self, tenant: Tenant, organisation: TenantOptions, team: TenantOptions) {
        self.options.organisations.insert(tenant.organisation, organisation);
        self.options.teams.insert(tenant, team);
    }

    /// An executor joins.
    ///
    /// # Errors
    /// Its id is taken, it offers nothing, or more than is believed.
    pub fn join(&mut self, spec: ExecutorSpec) -> Result<(), JoinError> {
        self.executors.join(spec, &self.options.largest_executor)?;
        self.misfits.clear();
        self.next_watch_ms = 0;
        Ok(())
    }

    /// An executor gets nothing more; what runs there goes on.
    pub fn drain(&mut self, executor: ExecutorId) {
        self.executors.drain(executor);
        self.next_watch_ms = 0;
    }

    /// An executor is gone, and with it what was reserved on it.
    pub fn leave(&mut self, executor: ExecutorId) {
        let lost = self.executors.leave(executor);
        self.next_watch_ms = 0;
        for reservation in lost {
            self.release(reservation);
        }
    }

    /// A chunk of a started run asks for a place.
    ///
    /// # Errors
    /// The run was not started, the chunk has asked already, or it needs more than its tenant may ever hold.
    pub fn request(
        &mut self,
        key: ChunkKey,
        class: ClassId,
        needs: Resources,
        route: Route,
        now_ms: u64,
    ) -> Result<(), Refusal> {
        let Some((ticket, true)) = self.tickets.get(&key.run) else { return Err(Refusal::UnknownRun) };
        let Ticket { queue, tenant, .. } = *ticket;
        if self.requests.contains_key(&key) {
            return Err(Refusal::Duplicate);
        }
        let quotas = [&self.options.organisation(tenant.organisation).quota, &self.options.team(tenant).quota];
        if let Some(limit) = quotas.into_iter().find_map(|quota| quota.never_allows(&needs)) {
            return Err(Refusal::OverQuota { limit });
        }
        self.requests.insert(key, (queue, class));
        let request = Request { key, class, needs, route, tenant, since_ms: now_ms };
        self.chunks.entry((queue, class)).or_default().push(request);
        self.next_watch_ms = self.next_watch_ms.min(now_ms);
        Ok(())
    }

    /// A chunk does not want its place any more.
    pub fn withdraw(&mut self, key: ChunkKey) {
        if let Some((ticket, _)) = self.tickets.get(&key.run) {
            self.drop_request(ticket.tenant, key);
        }
    }

    /// Takes up a task that runs on an executor and of which nothing is known here: what it takes is reserved, whatever
    /// quotas say. `None` where there is no such executor or run.
    pub fn adopt(
        &mut self,
        key: ChunkKey,
        executor: ExecutorId,
        needs: Resources,
        now_ms: u64,
    ) -> Option<ReservationId> {
        let tenant = self.tickets.get(&key.run)?.0.tenant;
        self.executors.all.contains_key(&executor).then(|| self.reserve(key, tenant, executor, needs, now_ms))
    }

    fn reserve(
        &mut self,
        key: ChunkKey,
        tenant: Tenant,
        executor: ExecutorId,
        needs: Resources,
        now_ms: u64,
    ) -> ReservationId {
        self.next_reservation += 1;
        let id = ReservationId(self.next_reservation);
        let until_ms = now_ms.saturating_add(self.options.reservation_ms);
        self.reservations.insert(id, Reservation { key, tenant, executor, needs, until_ms });
        self.ends.insert((until_ms, id));
        self.executors.reserve(executor, id, &needs);
        self.usage(tenant, |usage| {
            usage.tasks += 1;
            usage.held = usage.held.plus(&needs);
        });
        id
    }

    /// Prolongs a reservation. False when it ran out.
    pub fn renew(&mut self, id: ReservationId, now_ms: u64) -> bool {
        let Some(reservation) = self.reservations.get_mut(&id) else { return false };
        self.ends.remove(&(reservation.until_ms, id));
        reservation.until_ms = now_ms.saturating_add(self.options.reservation_ms);
        self.ends.insert((reservation.until_ms, id));
        true
    }

    /// Gives a reservation back. Giving it back twice changes nothing.
    pub fn release(&mut self, id: ReservationId) {
        let Some(reservation) = self.reservations.get(&id).copied() else { return };
        if self.sabotage.is(Mutant::LeakReservation) && !self.executors.all.contains_key(&reservation.executor) {
            self.ends.remove(&(reservation.until_ms, id));
            return;
        }
        if !self.sabotage.is(Mutant::ReleaseTwice) {
            self.reservations.remove(&id);
        }
        self.ends.remove(&(reservation.until_ms, id));
        self.executors.free(reservation.executor, id, &reservation.needs);
        self.usage(reservation.tenant, |usage| {
            usage.tasks = usage.tasks.saturating_sub(1);
            usage.held = usage.held.minus(&reservation.needs);
        });
        self.unpark(reservation.tenant);
    }

    /// When, after `now_ms`, [`Self::decide`] may have something to say although nothing has happened.
    pub fn next_deadline_ms(&self, now_ms: u64) -> Option<u64> {
        let reservation = self.ends.first().map(|(until_ms, _)| *until_ms);
        let runs = self
            .queues
            .iter()
            .filter_map(|(id, queue)| Some(queue.oldest_ms()?.saturating_add(self.options.queues.get(id)?.timeout_ms)));
        let watch = (!self.requests.is_empty() && self.next_watch_ms < u64::MAX).then_some(self.next_watch_ms);
        let overtaken = self.chunks.values().filter_map(|waiting| {
            let oldest_ms = waiting.oldest_ms()?.saturating_add(self.options.hold_after_ms);
            (oldest_ms > now_ms).then_some(oldest_ms)
        });
        let ends = [reservation, watch, self.executors.next_hold_end_ms()];
        runs.chain(overtaken).chain(ends.into_iter().flatten()).map(|due_ms| due_ms.max(now_ms + 1)).min()
    }

    /// Takes the next decision; `None` when there is none now.
    pub fn decide(&mut self, now_ms: u64) -> Option<Decision> {
        if let Some(&(until_ms, reservation)) = self.ends.first()
            && until_ms <= now_ms
        {
            let key = self.reservations.get(&reservation)?.key;
            self.release(reservation);
            return Some(Decision::Expired { key, reservation });
        }
        self.executors.expire_holds(now_ms);
        self.admit(now_ms).or_else(|| self.watch(now_ms)).or_else(|| self.grant(now_ms))
    }

    /// Takes the next decision about runs alone: for those who have no place to give at the moment.
    pub fn admit(&mut self, now_ms: u64) -> Option<Decision> {
        self.time_out_run(now_ms).or_else(|| self.start_run())
    }

    /// What waits in a queue, what is under way, and since when the oldest waits; `None` where there is no such queue.
    pub fn queue(&self, id: QueueId) -> Option<QueueState> {
        let queue = self.queues.get(&id)?;
        Some(QueueState { waiting: queue.queued, running: queue.running, oldest_ms: queue.oldest_ms() })
    }

    /// What a team holds.
    pub fn team(&self, tenant: Tenant) -> Usage {
        self.teams.get(&tenant).copied().unwrap_or_default()
    }

    /// What an organisation holds, all teams together.
    pub fn organisation(&self, organisation: u32) -> Usage {
        self.organisations.get(&organisation).copied().unwrap_or_default()
    }

    /// Runs and chunks that wait, reservations that are held.
    pub fn counts(&self) -> (usize, usize, usize) {
        let queued = self.queues.values().map(|queue| queue.queued as usize).sum();
        (queued, self.requests.len(), self.reservations.len())
    }
}

fn run_key(run: RunId) -> ChunkKey {
    ChunkKey { run, stage: 0, chunk: 0 }
}

fn run_request(ticket: Ticket, since_ms: u64) -> Request {
    Request {
        key: run_key(ticket.run),
        class: ticket.class,
        needs: Resources::PLAIN,
        route: Route::default(),
        tenant: ticket.tenant,
        since_ms,
    }
}

#[cfg(test)]
mod tests;
