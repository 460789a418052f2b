//! What a scheduler does: elections, messages and ticks go to the decision cores, and what they decide goes out.

use std::collections::{BTreeMap, BTreeSet};

use super::{Checked, Message, Node, SimRun, World};
use crate::admission::{Admission, Decision};
use crate::coordinator::{self, Action, Coordinator, RunEnd};
use crate::election::ElectionAction;
use crate::ids::{AttemptId, ExecutorId, Fence, ReservationId, RunId, Tenant};
use crate::resources::Resources;
use crate::routing::{Route, Strategy};

const SILENT_MS: u64 = 1_200;

pub(super) struct Leader {
    pub(super) fence: Fence,
    coordinator: Coordinator,
    pub(super) admission: Admission,
    seen: BTreeMap<ExecutorId, u64>,
    taken_up: BTreeSet<RunId>,
    pub(super) ended: BTreeSet<RunId>,
    given_up: BTreeSet<AttemptId>,
    /// The simulation's own book of what is reserved.
    pub(super) reserved: BTreeMap<ReservationId, (Tenant, ExecutorId, Resources)>,
    pub(super) capacity: BTreeMap<ExecutorId, Resources>,
}

impl World {
    fn clock(&mut self, number: usize) -> u64 {
        let ahead = self.ahead_ms.get(&Node::Scheduler(number)).copied().unwrap_or_default();
        let reading = (self.now as i64 + 20_000 + ahead).max(0) as u64;
        self.schedulers[number].steady.read(reading)
    }

    pub(super) fn at_scheduler(&mut self, number: usize, message: Message) -> Checked {
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

    pub(super) fn tick_scheduler(&mut self, number: usize) -> Checked {
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
}

fn run_tenant(runs: &[SimRun], id: RunId) -> Tenant {
    runs.iter().find(|run| run.id == id).map_or(Tenant { organisation: 0, team: 0 }, |run| run.ticket.tenant)
}
