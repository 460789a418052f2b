//! The world that a seed makes: processes, quotas and runs.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use super::{Event, Executor, Scheduler, Seen, SimRun, World};
use crate::admission::{self, ExecutorSpec, QueueOptions, TenantOptions, Ticket};
use crate::clock::Steady;
use crate::coordinator::{Input, Reads, RunPlan, StagePlan};
use crate::election::{ElectionOptions, Elector};
use crate::ids::{ClassId, ExecutorId, Fence, QueueId, RunId, Tenant};
use crate::journal::{CommitTable, LeaseTable};
use crate::resources::{Quota, Resources};
use crate::routing::TagSet;
use crate::sabotage::Sabotage;
use crate::sim::Dice;

/// A class that no executor ever serves.
const NOBODY: ClassId = ClassId(9);

impl World {
    pub(super) fn new(seed: u64, sabotage: Sabotage) -> Self {
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

pub(super) fn sim_run(number: u64, dice: &mut Dice) -> SimRun {
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
        ticket: Ticket { run: id, queue: QueueId(dice.between(0, 1) as u16), class: ClassId(0), tenant },
        plan: RunPlan { stages, window: dice.between(1, 3) as u32 },
        submitted: false,
        cancelled: false,
        unserved,
    }
}
