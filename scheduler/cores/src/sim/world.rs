//! The simulated cluster: processes, network, store, faults, and the invariants that hold after every step.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use super::Dice;
use crate::admission::{self, Admission, Decision, ExecutorSpec, QueueOptions, TenantOptions, Ticket};
use crate::clock::Steady;
use crate::coordinator::{self, Action, Coordinator, Input, Reads, RunEnd, RunPlan, StagePlan, TaskResult};
use crate::election::{ElectionAction, ElectionOptions, Elector};
use crate::ids::{AttemptId, ChunkKey, ClassId, ExecutorId, Fence, QueueId, ReservationId, RunId, Tenant};
use crate::journal::{Acquired, CommitAnswer, CommitTable, LeaseTable};
use crate::resources::{Quota, Resources, Usage};
use crate::routing::{Route, Strategy, TagSet};
use crate::sabotage::{Mutant, Sabotage};

const FAULTS_UNTIL_MS: u64 = 12_000;
const FINISHED_BY_MS: u64 = 60_000;
const HEARTBEAT_MS: u64 = 300;
const SILENT_MS: u64 = 1_200;
/// A class that no executor ever serves.
const NOBODY: ClassId = ClassId(9);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Node {
    Store,
    Scheduler(usize),
    Executor(usize),
}

#[derive(Debug, Clone)]
enum Message {
    Acquire { scheduler: usize, life: u32, request: u64 },
    Acquired { life: u32, request: u64, answer: Acquired },
    Renew { scheduler: usize, life: u32, request: u64, fence: Fence },
    Renewed { life: u32, request: u64, prolonged: bool },
    Commit { scheduler: usize, attempt: AttemptId },
    Answer { attempt: AttemptId, answer: CommitAnswer },
    End { scheduler: usize, fence: Fence, run: RunId, end: RunEnd },
    Ended { run: RunId },
    Launch { attempt: AttemptId, needs: Resources },
    Cancel { attempt: AttemptId },
    Heartbeat { spec: ExecutorSpec, running: Vec<AttemptId> },
    Finished { attempt: AttemptId, result: TaskResult },
}

#[derive(Debug, Clone)]
enum Event {
    Deliver(Node, Node, Message),
    SchedulerTick(usize, u32),
    ExecutorBeat(usize, u32),
    TaskOver(usize, u32, AttemptId),
    Submit(usize),
    CancelRun(usize),
    Fault,
    Restart(Node),
}

struct SimRun {
    id: RunId,
    ticket: Ticket,
    plan: RunPlan,
    submitted: bool,
    cancelled: bool,
    unserved: bool,
}

struct Leader {
    fence: Fence,
    coordinator: Coordinator,
    admission: Admission,
    seen: BTreeMap<ExecutorId, u64>,
    taken_up: BTreeSet<RunId>,
    ended: BTreeSet<RunId>,
    given_up: BTreeSet<AttemptId>,
    /// The simulation's own book of what is reserved.
    reserved: BTreeMap<ReservationId, (Tenant, ExecutorId, Resources)>,
    capacity: BTreeMap<ExecutorId, Resources>,
}

struct Scheduler {
    life: u32,
    alive: bool,
    elector: Elector,
    steady: Steady,
    leader: Option<Leader>,
}

struct Executor {
    life: u32,
    alive: bool,
    spec: ExecutorSpec,
    running: BTreeMap<AttemptId, Resources>,
    seen: BTreeSet<AttemptId>,
    fence: Fence,
}

/// What a simulation saw: how much happened, so that a silent simulation does not pass for a good one.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) steps: u64,
    pub(crate) commits: u64,
    pub(crate) refused_commits: u64,
    pub(crate) takeovers: u64,
    pub(crate) attempts: u64,
}

struct World {
    dice: Dice,
    now: u64,
    order: u64,
    events: BinaryHeap<Reverse<(u64, u64, usize)>>,
    slots: Vec<Option<Event>>,
    free_slots: Vec<usize>,
    lease: LeaseTable,
    commits: CommitTable,
    store_down_until: u64,
    store_ahead_ms: u64,
    schedulers: Vec<Scheduler>,
    executors: Vec<Executor>,
    next_executor: u64,
    paused_until: BTreeMap<Node, u64>,
    ahead_ms: BTreeMap<Node, i64>,
    cut: BTreeMap<(Node, Node), u64>,
    runs: Vec<SimRun>,
    own_failures: BTreeMap<ChunkKey, u32>,
    options: admission::Options,
    sabotage: Sabotage,
    seen: Seen,
}

type Checked = Result<(), String>;

/// Runs one schedule. The error says which promise was broken.
pub(crate) fn simulate(seed: u64, mutant: Option<Mutant>) -> Result<Seen, String> {
    let mut world = World::new(seed, Sabotage::plant(mutant));
    world.run()?;
    Ok(world.seen)
}

impl World {
    fn new(seed: u64, sabotage: Sabotage) -> Self {
        let mut dice = Dice::new(seed);
        let executors = (0..dice.between(2, 5))
            .map(|number| {
                let classes =
                    if number == 0 { vec![ClassId(0), ClassId(1)] } else { vec![ClassId((number % 2) as u16)] };
                let slots = dice.between(1, 4) as u32;
                let capacity =
                    Resources { slots, cpu_milli: 1_000 * u64::from(slots), memory_bytes: 1 << 30, gpu_milli: 0 };
                let spec = ExecutorSpec {
                    id: ExecutorId(number),
                    classes,
                    capacity,
                    weight: dice.between(1, 3) as u32,
                    tags: TagSet(dice.next().into()),
                };
                Executor {
                    life: 0,
                    alive: true,
                    spec,
                    running: BTreeMap::new(),
                    seen: BTreeSet::new(),
                    fence: Fence(0),
                }
            })
            .collect();
        let schedulers = (0..2)
            .map(|_| Scheduler {
                life: 0,
                alive: true,
                elector: Elector::new(ElectionOptions { ttl_ms: 1_500, answer_ms: 300 }),
                steady: Steady::default(),
                leader: None,
            })
            .collect();
        let options = options(&mut dice);
        let runs = (0..dice.between(2, 4)).map(|number| sim_run(number, &mut dice)).collect();
        let mut world = Self {
            dice,
            now: 0,
            order: 0,
            events: BinaryHeap::new(),
            slots: Vec::new(),
            free_slots: Vec::new(),
            lease: LeaseTable::sabotaged(sabotage),
            commits: CommitTable::sabotaged(sabotage),
            store_down_until: 0,
            store_ahead_ms: 0,
            schedulers,
            executors,
            next_executor: 100,
            paused_until: BTreeMap::new(),
            ahead_ms: BTreeMap::new(),
            cut: BTreeMap::new(),
            runs,
            own_failures: BTreeMap::new(),
            options,
            sabotage,
            seen: Seen::default(),
        };
        for number in 0..world.runs.len() {
            let at = world.dice.between(0, 6_000);
            world.at(at, Event::Submit(number));
            if world.dice.percent(15) {
                let later = at + world.dice.between(100, 8_000);
                world.at(later, Event::CancelRun(number));
            }
        }
        for number in 0..2 {
            world.at(number as u64, Event::SchedulerTick(number, 0));
        }
        for number in 0..world.executors.len() {
            world.at(1 + number as u64, Event::ExecutorBeat(number, 0));
        }
        world.at(500, Event::Fault);
        world
    }

    fn at(&mut self, time: u64, event: Event) {
        self.order += 1;
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(event);
        self.events.push(Reverse((time.max(self.now), self.order, slot)));
    }

    fn faulty(&self) -> bool {
        self.now < FAULTS_UNTIL_MS
    }

    fn run(&mut self) -> Checked {
        let mut last_run: Option<u64> = None;
        while let Some(Reverse((time, _, slot))) = self.events.pop() {
            self.now = time;
            let Some(event) = self.slots[slot].take() else { continue };
            self.free_slots.push(slot);
            self.seen.steps += 1;
            self.step(event)?;
            self.check_owners()?;
            if self.now > FAULTS_UNTIL_MS && self.everything_ended() {
                match last_run {
                    None => {
                        self.check_ends()?;
                        self.submit_tiny_run();
                        last_run = Some(self.now);
                    }
                    Some(_) => {
                        self.check_ends()?;
                        return self.check_nothing_left();
                    }
                }
            }
            let limit = last_run.map_or(FINISHED_BY_MS, |at| at + 8_000);
            if self.now > limit {
                let open: Vec<usize> = (0..self.runs.len()).filter(|&run| !self.over(run)).collect();
                return Err(format!(
                    "no progress: at {} ms runs {open:?} have not ended (last: {last_run:?})",
                    self.now
                ));
            }
        }
        Err("the simulation ran dry".to_owned())
    }

    fn over(&self, run: usize) -> bool {
        self.commits.ended(self.runs[run].id).is_some()
    }

    fn everything_ended(&self) -> bool {
        (0..self.runs.len()).all(|run| self.over(run))
    }

    fn submit_tiny_run(&mut self) {
        let number = self.runs.len() as u64;
        let mut run = sim_run(number, &mut Dice::new(1));
        run.plan.stages.truncate(1);
        run.plan.stages[0].chunks = 1;
        run.plan.stages[0].class = ClassId(0);
        run.unserved = false;
        run.submitted = true;
        self.runs.push(run);
    }

    fn step(&mut self, event: Event) -> Checked {
        match event {
            Event::Deliver(from, to, message) => {
                if let Some(&until) = self.paused_until.get(&to)
                    && self.now < until
                {
                    self.at(until, Event::Deliver(from, to, message));
                    return Ok(());
                }
                if self.cut_off(from, to) {
                    return Ok(());
                }
                self.deliver(to, message)
            }
            Event::SchedulerTick(number, life) => {
                let node = Node::Scheduler(number);
                if !self.schedulers[number].alive || self.schedulers[number].life != life {
                    return Ok(());
                }
                if let Some(&until) = self.paused_until.get(&node)
                    && self.now < until
                {
                    self.at(until, event);
                    return Ok(());
                }
                self.tick_scheduler(number)?;
                self.at(self.now + 100, Event::SchedulerTick(number, life));
                Ok(())
            }
            Event::ExecutorBeat(number, life) => {
                let node = Node::Executor(number);
                if !self.executors[number].alive || self.executors[number].life != life {
                    return Ok(());
                }
                if let Some(&until) = self.paused_until.get(&node)
                    && self.now < until
                {
                    self.at(until, event);
                    return Ok(());
                }
                let executor = &self.executors[number];
                let running: Vec<AttemptId> = executor.running.keys().copied().collect();
                let spec = executor.spec.clone();
                for scheduler in 0..2 {
                    let beat = Message::Heartbeat { spec: spec.clone(), running: running.clone() };
                    self.send(node, Node::Scheduler(scheduler), beat);
                }
                self.at(self.now + HEARTBEAT_MS, Event::ExecutorBeat(number, life));
                Ok(())
            }
            Event::TaskOver(number, life, attempt) => {
                let node = Node::Executor(number);
                if !self.executors[number].alive || self.executors[number].life != life {
                    return Ok(());
                }
                if let Some(&until) = self.paused_until.get(&node)
                    && self.now < until
                {
                    self.at(until, event);
                    return Ok(());
                }
                if self.executors[number].running.remove(&attempt).is_some() {
                    let fails = self.own_failures.entry(attempt.key).or_default();
                    let result = if *fails < 2 && self.dice.percent(12) {
                        *fails += 1;
                        TaskResult::Failed { retryable: true }
                    } else {
                        TaskResult::Succeeded
                    };
                    self.report(number, attempt, result);
                }
                Ok(())
            }
            Event::Submit(run) => {
                self.runs[run].submitted = true;
                Ok(())
            }
            Event::CancelRun(run) => {
                self.runs[run].cancelled = true;
                Ok(())
            }
            Event::Fault => {
                if self.faulty() {
                    self.fault();
                    let next = self.now + self.dice.between(100, 1_500);
                    self.at(next, Event::Fault);
                }
                Ok(())
            }
            Event::Restart(node) => {
                self.restart(node);
                Ok(())
            }
        }
    }

    // ---- The network.

    fn cut_off(&self, a: Node, b: Node) -> bool {
        let store_down = self.now < self.store_down_until && (a == Node::Store || b == Node::Store);
        store_down || [(a, b), (b, a)].iter().any(|pair| self.cut.get(pair).is_some_and(|until| self.now < *until))
    }

    fn send(&mut self, from: Node, to: Node, message: Message) {
        if self.faulty() {
            if self.dice.percent(5) {
                return;
            }
            if self.dice.percent(5) {
                let delay = self.dice.between(1, 2_000);
                self.at(self.now + delay, Event::Deliver(from, to, message.clone()));
            }
            let delay = if self.dice.percent(5) { self.dice.between(100, 3_000) } else { self.dice.between(1, 40) };
            self.at(self.now + delay, Event::Deliver(from, to, message));
        } else {
            let delay = self.dice.between(1, 15);
            self.at(self.now + delay, Event::Deliver(from, to, message));
        }
    }

    fn report(&mut self, number: usize, attempt: AttemptId, result: TaskResult) {
        for scheduler in 0..2 {
            let message = Message::Finished { attempt, result };
            self.send(Node::Executor(number), Node::Scheduler(scheduler), message);
        }
    }

    fn fault(&mut self) {
        let executors = self.executors.len() as u64;
        let any = |dice: &mut Dice| match dice.between(0, 2 + executors) {
            0 => Node::Store,
            number @ 1..=2 => Node::Scheduler(number as usize - 1),
            number => Node::Executor((number - 3) as usize % executors as usize),
        };
        match self.dice.between(0, 9) {
            0..=2 => {
                let number = self.dice.between(0, executors - 1) as usize;
                self.kill(Node::Executor(number));
            }
            3 => {
                let number = self.dice.between(0, 1) as usize;
                self.kill(Node::Scheduler(number));
            }
            4 => {
                self.kill(Node::Scheduler(self.leading().unwrap_or(0)));
                let number = self.dice.between(0, executors - 1) as usize;
                self.kill(Node::Executor(number));
            }
            5 => {
                let node = any(&mut self.dice);
                if node != Node::Store {
                    let until = self.now + self.dice.between(200, 4_000);
                    self.paused_until.insert(node, until);
                }
            }
            6..=7 => {
                let (a, b) = (any(&mut self.dice), any(&mut self.dice));
                let until = self.now + self.dice.between(200, 4_000);
                self.cut.insert((a, b), until);
            }
            8 => {
                let node = any(&mut self.dice);
                if node == Node::Store {
                    self.store_ahead_ms += self.dice.between(0, 3_000);
                } else {
                    let jump = self.dice.between(0, 8_000) as i64 - 4_000;
                    *self.ahead_ms.entry(node).or_default() += jump;
                }
            }
            _ => self.store_down_until = self.now + self.dice.between(100, 2_000),
        }
    }

    fn leading(&self) -> Option<usize> {
        self.schedulers.iter().position(|scheduler| scheduler.alive && scheduler.leader.is_some())
    }

    fn kill(&mut self, node: Node) {
        match node {
            Node::Scheduler(number) => {
                let scheduler = &mut self.schedulers[number];
                if !scheduler.alive {
                    return;
                }
                scheduler.alive = false;
                scheduler.leader = None;
            }
            Node::Executor(number) => {
                let executor = &mut self.executors[number];
                if !executor.alive {
                    return;
                }
                executor.alive = false;
                executor.running.clear();
                executor.seen.clear();
            }
            Node::Store => return,
        }
        let back = self.now + self.dice.between(100, 3_000);
        self.at(back, Event::Restart(node));
    }

    fn restart(&mut self, node: Node) {
        self.paused_until.remove(&node);
        match node {
            Node::Scheduler(number) => {
                let scheduler = &mut self.schedulers[number];
                scheduler.alive = true;
                scheduler.life += 1;
                scheduler.elector = Elector::new(ElectionOptions { ttl_ms: 1_500, answer_ms: 300 });
                scheduler.steady = Steady::default();
                let life = scheduler.life;
                self.at(self.now, Event::SchedulerTick(number, life));
            }
            Node::Executor(number) => {
                let executor = &mut self.executors[number];
                executor.alive = true;
                executor.life += 1;
                executor.fence = Fence(0);
                executor.spec.id = ExecutorId(self.next_executor);
                self.next_executor += 1;
                let life = executor.life;
                self.at(self.now, Event::ExecutorBeat(number, life));
            }
            Node::Store => {}
        }
    }

    // ---- What processes do.

    fn deliver(&mut self, to: Node, message: Message) -> Checked {
        match to {
            Node::Store => self.at_store(message),
            Node::Scheduler(number) if self.schedulers[number].alive => self.at_scheduler(number, message),
            Node::Executor(number) if self.executors[number].alive => {
                self.at_executor(number, message);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn at_store(&mut self, message: Message) -> Checked {
        let store_ms = self.now + self.store_ahead_ms;
        match message {
            Message::Acquire { scheduler, life, request } => {
                let owner = scheduler as u64;
                let answer = self.lease.acquire(owner, 1_500, store_ms);
                self.send(Node::Store, Node::Scheduler(scheduler), Message::Acquired { life, request, answer });
            }
            Message::Renew { scheduler, life, request, fence } => {
                let prolonged = self.lease.renew(fence, 1_500, store_ms);
                self.send(Node::Store, Node::Scheduler(scheduler), Message::Renewed { life, request, prolonged });
            }
            Message::Commit { scheduler, attempt } => {
                let answer = self.commits.commit(&self.lease, attempt);
                match answer {
                    CommitAnswer::Committed => self.seen.commits += 1,
                    _ => self.seen.refused_commits += 1,
                }
                if self.commits.taken.get(&attempt.key).is_some_and(|times| *times > 1) {
                    return Err(format!("{} was committed twice", attempt.key));
                }
                self.send(Node::Store, Node::Scheduler(scheduler), Message::Answer { attempt, answer });
            }
            Message::End { scheduler, fence, run, end }
                if self.commits.end(&self.lease, fence, run, end == RunEnd::Succeeded) =>
            {
                self.send(Node::Store, Node::Scheduler(scheduler), Message::Ended { run });
            }
            _ => {}
        }
        Ok(())
    }

    fn at_executor(&mut self, number: usize, message: Message) {
        match message {
            Message::Launch { attempt, needs } => {
                let executor = &mut self.executors[number];
                if attempt.fence < executor.fence || !executor.seen.insert(attempt) {
                    return;
                }
                executor.fence = attempt.fence;
                let used = executor.running.values().fold(Resources::default(), |sum, held| sum.plus(held));
                if !used.plus(&needs).fits_in(&executor.spec.capacity) {
                    self.report(number, attempt, TaskResult::HandedBack);
                    return;
                }
                executor.running.insert(attempt, needs);
                let life = executor.life;
                let over = self.now + self.dice.between(20, 900);
                self.at(over, Event::TaskOver(number, life, attempt));
            }
            Message::Cancel { attempt } => {
                self.executors[number].seen.insert(attempt);
                self.executors[number].running.remove(&attempt);
            }
            _ => {}
        }
    }

    fn clock(&mut self, number: usize) -> u64 {
        let ahead = self.ahead_ms.get(&Node::Scheduler(number)).copied().unwrap_or_default();
        let reading = (self.now as i64 + 20_000 + ahead).max(0) as u64;
        self.schedulers[number].steady.read(reading)
    }

    fn at_scheduler(&mut self, number: usize, message: Message) -> Checked {
        let now = self.clock(number);
        let scheduler = &mut self.schedulers[number];
        let elected = match &message {
            Message::Acquired { life, request, answer } if *life == scheduler.life => {
                scheduler.elector.acquired(*request, *answer, now)
            }
            Message::Renewed { life, request, prolonged } if *life == scheduler.life => {
                scheduler.elector.renewed(*request, *prolonged, now)
            }
            _ => Vec::new(),
        };
        self.elected(number, elected, now)?;
        let scheduler = &mut self.schedulers[number];
        if scheduler.elector.leads(now).is_none() {
            return Ok(());
        }
        let Some(leader) = &mut scheduler.leader else { return Ok(()) };
        let actions = match message {
            Message::Answer { attempt, answer } if attempt.fence == leader.fence => {
                leader.coordinator.commit_answered(attempt, answer, now)
            }
            Message::Ended { run } => {
                leader.coordinator.end_answered(run);
                leader.admission.end_run(run);
                Vec::new()
            }
            Message::Heartbeat { spec, running } => {
                leader.seen.insert(spec.id, now);
                leader.capacity.insert(spec.id, spec.capacity);
                let id = spec.id;
                // A second join of the same process is refused and changes nothing.
                let _ = leader.admission.join(spec);
                running.into_iter().flat_map(|attempt| leader.coordinator.alive(attempt, id, now)).collect()
            }
            Message::Finished { attempt, result } => leader.coordinator.finished(attempt, result, now),
            _ => Vec::new(),
        };
        self.act(number, actions, now)?;
        self.decide(number, now)
    }

    fn tick_scheduler(&mut self, number: usize) -> Checked {
        let now = self.clock(number);
        let elected = self.schedulers[number].elector.tick(now);
        self.elected(number, elected, now)?;
        if self.schedulers[number].elector.leads(now).is_none() || self.schedulers[number].leader.is_none() {
            return Ok(());
        }
        // New runs, cancelled ones, silent executors.
        for run in 0..self.runs.len() {
            if self.runs[run].submitted && !self.over(run) {
                self.take_up(number, run, now)?;
            }
        }
        let Some(leader) = &mut self.schedulers[number].leader else { return Ok(()) };
        let silent: Vec<ExecutorId> =
            leader.seen.iter().filter(|(_, seen)| now - **seen > SILENT_MS).map(|(id, _)| *id).collect();
        let mut actions = Vec::new();
        for id in silent {
            leader.seen.remove(&id);
            leader.admission.leave(id);
            leader.reserved.retain(|_, (_, executor, _)| *executor != id);
            actions.extend(leader.coordinator.executor_lost(id, now));
        }
        actions.extend(leader.coordinator.tick(now));
        self.act(number, actions, now)?;
        self.decide(number, now)
    }

    fn take_up(&mut self, number: usize, run: usize, now: u64) -> Checked {
        let Some(leader) = &mut self.schedulers[number].leader else { return Ok(()) };
        let run = &self.runs[run];
        if leader.taken_up.insert(run.id) && leader.admission.enqueue(run.ticket, now).is_err() {
            // The queue is full: the run stays in the store and is offered again.
            leader.taken_up.remove(&run.id);
        }
        if run.cancelled {
            let actions = leader.coordinator.cancel(run.id, now);
            if leader.coordinator.open_chunks(run.id).is_none() {
                // It waits still: it leaves the queue, and its end is written without its ever having started.
                leader.admission.end_run(run.id);
                let message =
                    Message::End { scheduler: number, fence: leader.fence, run: run.id, end: RunEnd::Cancelled };
                self.send(Node::Scheduler(number), Node::Store, message);
            }
            return self.act(number, actions, now);
        }
        Ok(())
    }

    fn elected(&mut self, number: usize, actions: Vec<ElectionAction>, _now: u64) -> Checked {
        for action in actions {
            let node = Node::Scheduler(number);
            let life = self.schedulers[number].life;
            match action {
                ElectionAction::Acquire { request } => {
                    self.send(node, Node::Store, Message::Acquire { scheduler: number, life, request });
                }
                ElectionAction::Renew { request, fence } => {
                    self.send(node, Node::Store, Message::Renew { scheduler: number, life, request, fence });
                }
                ElectionAction::StepDown(_) => self.schedulers[number].leader = None,
                ElectionAction::Lead(fence) => {
                    self.seen.takeovers += 1;
                    let options = coordinator::Options {
                        lease_ms: 1_500,
                        retry_base_ms: 50,
                        retry_cap_ms: 800,
                        journal_ms: 300,
                        max_lost: 10_000,
                        max_in_flight_per_stage: 8,
                    };
                    self.schedulers[number].leader = Some(Leader {
                        fence,
                        coordinator: Coordinator::new(options, fence, self.dice.next()).sabotaged(self.sabotage),
                        admission: Admission::new(self.options.clone()).sabotaged(self.sabotage),
                        seen: BTreeMap::new(),
                        taken_up: BTreeSet::new(),
                        ended: BTreeSet::new(),
                        given_up: BTreeSet::new(),
                        reserved: BTreeMap::new(),
                        capacity: BTreeMap::new(),
                    });
                }
            }
        }
        Ok(())
    }

    fn decide(&mut self, number: usize, now: u64) -> Checked {
        loop {
            let Some(leader) = &mut self.schedulers[number].leader else { return Ok(()) };
            let Some(decision) = leader.admission.decide(now) else { break };
            let actions = match decision {
                Decision::StartRun(run) => {
                    let Some(run) = self.runs.iter().find(|candidate| candidate.id == run) else { continue };
                    let committed: Vec<(u32, u32)> = self.commits.committed(run.id).collect();
                    leader
                        .coordinator
                        .submit(run.id, run.plan.clone(), committed, now)
                        .map_err(|error| format!("a valid plan was refused: {error}"))?
                }
                Decision::RefuseRun { run, .. } => {
                    vec![Action::End { run, end: RunEnd::Cancelled }]
                }
                Decision::RefuseChunk { key, .. } => leader.coordinator.refused(key, now),
                Decision::Expired { key, reservation } => {
                    leader.reserved.remove(&reservation);
                    leader.coordinator.reservation_lost(key, reservation, now)
                }
                Decision::Unserved { .. } => Vec::new(),
                Decision::Grant { key, executor, reservation } => {
                    let run = self.runs.iter().find(|run| run.id == key.run).ok_or("granted an unknown run")?;
                    let needs = run.plan.stages[key.stage as usize].needs;
                    leader.reserved.insert(reservation, (run.ticket.tenant, executor, needs));
                    self.check_reserved(number, executor, run_tenant(&self.runs, key.run))?;
                    let Some(leader) = &mut self.schedulers[number].leader else { return Ok(()) };
                    leader.coordinator.placed(key, executor, reservation, now)
                }
            };
            self.act(number, actions, now)?;
        }
        if let Some(leader) = &self.schedulers[number].leader
            && leader.coordinator.largest_backlog_over_window().is_some_and(|over| over > 0)
        {
            return Err("a producer ran further ahead than its window".to_owned());
        }
        Ok(())
    }

    fn act(&mut self, number: usize, actions: Vec<Action>, now: u64) -> Checked {
        let node = Node::Scheduler(number);
        for action in actions {
            let Some(leader) = &mut self.schedulers[number].leader else { return Ok(()) };
            match action {
                Action::Request { key, class, needs } => {
                    let strategy = match key.chunk % 4 {
                        0 => Strategy::RoundRobin,
                        1 => Strategy::LeastConnections,
                        2 => Strategy::ConsistentHash,
                        _ => Strategy::Weighted,
                    };
                    let route = Route { strategy, key: u64::from(key.chunk), ..Route::default() };
                    if let Err(error) = leader.admission.request(key, class, needs, route, now)
                        && !leader.ended.contains(&key.run)
                    {
                        return Err(format!("a request was refused: {error}"));
                    }
                }
                Action::Withdraw(key) => leader.admission.withdraw(key),
                Action::Launch { attempt, executor } => {
                    self.check_launch(number, attempt)?;
                    self.seen.attempts += 1;
                    let index = self.executors.iter().position(|candidate| candidate.spec.id == executor);
                    let run = self.runs.iter().find(|run| run.id == attempt.key.run);
                    if let (Some(index), Some(run)) = (index, run) {
                        let needs = run.plan.stages[attempt.key.stage as usize].needs;
                        self.send(node, Node::Executor(index), Message::Launch { attempt, needs });
                    }
                }
                Action::Cancel { attempt, executor } => {
                    leader.given_up.insert(attempt);
                    if let Some(index) = self.executors.iter().position(|candidate| candidate.spec.id == executor) {
                        self.send(node, Node::Executor(index), Message::Cancel { attempt });
                    }
                }
                Action::Renew(reservation) => {
                    leader.admission.renew(reservation, now);
                }
                Action::Release(reservation) => {
                    leader.reserved.remove(&reservation);
                    leader.admission.release(reservation);
                }
                Action::Commit(attempt) => {
                    if leader.given_up.contains(&attempt) {
                        return Err(format!("{}: an attempt that was given up is committed", attempt.key));
                    }
                    self.send(node, Node::Store, Message::Commit { scheduler: number, attempt });
                }
                Action::End { run, end } => {
                    leader.ended.insert(run);
                    let fence = leader.fence;
                    self.send(node, Node::Store, Message::End { scheduler: number, fence, run, end });
                }
                Action::StepDown => {
                    let fence = leader.fence;
                    let elected = self.schedulers[number].elector.fenced_off(fence, now);
                    self.elected(number, elected, now)?;
                    self.schedulers[number].leader = None;
                }
            }
        }
        Ok(())
    }

    // ---- Promises.

    /// No two schedulers both believe that they lead and would both be believed by the store.
    fn check_owners(&self) -> Checked {
        let owners = self
            .schedulers
            .iter()
            .filter(|scheduler| scheduler.leader.as_ref().is_some_and(|leader| self.lease.holds(leader.fence)))
            .count();
        if owners > 1 { Err("two schedulers could both commit".to_owned()) } else { Ok(()) }
    }

    /// What is launched is wanted, its inputs are committed, and nobody has committed it.
    fn check_launch(&self, number: usize, attempt: AttemptId) -> Checked {
        let key = attempt.key;
        let Some(leader) = &self.schedulers[number].leader else { return Ok(()) };
        if leader.ended.contains(&key.run) {
            return Err(format!("{key} was launched after its run had ended"));
        }
        let run = self.runs.iter().find(|run| run.id == key.run).ok_or("launched an unknown run")?;
        for input in &run.plan.stages[key.stage as usize].inputs {
            let chunks = match input.reads {
                Reads::ChunkByChunk => key.chunk..key.chunk + 1,
                Reads::All => 0..run.plan.stages[input.stage as usize].chunks,
            };
            for chunk in chunks {
                if self.commits.winner(ChunkKey { run: key.run, stage: input.stage, chunk }).is_none() {
                    return Err(format!("{key} was launched before its input, stage {} chunk {chunk}", input.stage));
                }
            }
        }
        if self.lease.holds(leader.fence) && self.commits.winner(key).is_some() {
            return Err(format!("{key} was launched although it is committed"));
        }
        Ok(())
    }

    /// No quota is exceeded, no executor is given more than it has.
    fn check_reserved(&self, number: usize, executor: ExecutorId, tenant: Tenant) -> Checked {
        let Some(leader) = &self.schedulers[number].leader else { return Ok(()) };
        let mut team = Usage::default();
        let mut organisation = Usage::default();
        let mut on_executor = Resources::default();
        for (owner, place, needs) in leader.reserved.values() {
            if *place == executor {
                on_executor = on_executor.plus(needs);
            }
            for (usage, same) in
                [(&mut organisation, owner.organisation == tenant.organisation), (&mut team, *owner == tenant)]
            {
                if same {
                    usage.tasks += 1;
                    usage.held = usage.held.plus(needs);
                }
            }
        }
        if !self.options.organisation(tenant.organisation).quota.allows(&organisation) {
            return Err(format!("organisation {} holds {organisation:?}", tenant.organisation));
        }
        if !self.options.team(tenant).quota.allows(&team) {
            return Err(format!("team {tenant:?} holds {team:?}"));
        }
        match leader.capacity.get(&executor) {
            Some(capacity) if on_executor.fits_in(capacity) => Ok(()),
            Some(capacity) => Err(format!("{executor:?} has {capacity:?} and was given {on_executor:?}")),
            None => Err(format!("{executor:?} was given work and is not known")),
        }
    }

    /// Every run ended as it should.
    fn check_ends(&self) -> Checked {
        for run in &self.runs {
            let succeeded = self.commits.ended(run.id) == Some(true);
            if run.unserved && succeeded {
                return Err(format!("{:?} succeeded on a class that nobody serves", run.id));
            }
            if !run.unserved && !run.cancelled && !succeeded {
                return Err(format!("{:?} failed although every fault had healed", run.id));
            }
            if succeeded {
                for (stage, plan) in (0..).zip(&run.plan.stages) {
                    for chunk in 0..plan.chunks {
                        if self.commits.winner(ChunkKey { run: run.id, stage, chunk }).is_none() {
                            return Err(format!("{:?} succeeded without stage {stage} chunk {chunk}", run.id));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Nothing is reserved once all runs are over.
    fn check_nothing_left(&self) -> Checked {
        for scheduler in &self.schedulers {
            if let Some(leader) = &scheduler.leader
                && self.lease.holds(leader.fence)
            {
                let (_, waiting, reserved) = leader.admission.counts();
                if waiting + reserved > 0 || !leader.reserved.is_empty() {
                    return Err(format!("{waiting} requests and {reserved} reservations are left over"));
                }
            }
        }
        Ok(())
    }
}

fn run_tenant(runs: &[SimRun], id: RunId) -> Tenant {
    runs.iter().find(|run| run.id == id).map_or(Tenant { organisation: 0, team: 0 }, |run| run.ticket.tenant)
}

fn options(dice: &mut Dice) -> admission::Options {
    let queue = |priority| QueueOptions { priority, max_running: 6, max_queued: 2, timeout_ms: 30_000 };
    let mut options = admission::Options::single_queue(QueueId(0), queue(0));
    options.queues.insert(QueueId(1), queue(5));
    options.ageing_ms = 500;
    options.hold_after_ms = 300;
    options.reservation_ms = 3_000;
    options.warn_after_ms = 500;
    if dice.percent(60) {
        options.default_organisation.quota =
            Quota { tasks: Some(dice.between(2, 5)), cpu_milli: Some(dice.between(4, 8) * 1_000), ..Quota::default() };
    }
    if dice.percent(40) {
        options.default_team =
            TenantOptions { weight: 1, quota: Quota { runs: Some(1), tasks: Some(2), ..Quota::default() } };
    }
    options
}

fn sim_run(number: u64, dice: &mut Dice) -> SimRun {
    let id = RunId(u128::from(number + 1));
    let tenant = Tenant { organisation: dice.between(0, 1) as u32, team: dice.between(0, 1) as u32 };
    let chunks = dice.between(1, 5) as u32;
    let unserved = dice.percent(6);
    let mut stages: Vec<StagePlan> = Vec::new();
    for stage in 0..dice.between(1, 4) as u32 {
        let mut inputs = Vec::new();
        for input in 0..stage {
            if input + 1 == stage || dice.percent(30) {
                let same = stages[input as usize].chunks == chunks;
                let reads = if same && dice.percent(65) { Reads::ChunkByChunk } else { Reads::All };
                inputs.push(Input { stage: input, reads });
            }
        }
        let by_chunk = inputs.iter().any(|input| input.reads == Reads::ChunkByChunk);
        let own = if by_chunk || dice.percent(50) { chunks } else { dice.between(0, 2) as u32 };
        stages.push(StagePlan {
            class: ClassId(dice.between(0, 1) as u16),
            chunks: own,
            inputs,
            needs: Resources { slots: 1, cpu_milli: dice.between(1, 2) * 500, memory_bytes: 0, gpu_milli: 0 },
            max_attempts: 6,
            max_in_flight: dice.between(1, 4) as u32,
        });
    }
    if unserved {
        stages[0].class = NOBODY;
        stages[0].chunks = stages[0].chunks.max(1);
    }
    let mut tenant = tenant;
    if unserved {
        // Readers chunk by chunk need as many chunks; a plan of one stage is enough here. It waits for long, and its
        // tenant's quota is its own, so that nobody fails on its account.
        stages.truncate(1);
        tenant = Tenant { organisation: 100 + number as u32, team: 0 };
    }
    SimRun {
        id,
        ticket: Ticket { run: id, queue: QueueId(dice.between(0, 1) as u16), tenant },
        plan: RunPlan { stages, window: dice.between(1, 3) as u32 },
        submitted: false,
        cancelled: false,
        unserved,
    }
}
