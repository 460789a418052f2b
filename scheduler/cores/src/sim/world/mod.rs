//! The simulated cluster: its processes and events, and the loop that takes one event after the other.

mod faults;
mod invariants;
mod network;
mod schedulers;
mod setup;
mod store_and_executors;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use super::Dice;
use crate::admission::{self, ExecutorSpec, Ticket};
use crate::clock::Steady;
use crate::coordinator::{RunEnd, RunPlan, TaskResult};
use crate::election::Elector;
use crate::ids::{AttemptId, ChunkKey, ClassId, Fence, RunId};
use crate::journal::{Acquired, CommitAnswer, CommitTable, LeaseTable};
use crate::resources::Resources;
use crate::sabotage::{Mutant, Sabotage};
use schedulers::Leader;
use setup::sim_run;

const FAULTS_UNTIL_MS: u64 = 12_000;
const FINISHED_BY_MS: u64 = 60_000;
const HEARTBEAT_MS: u64 = 300;

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
}
