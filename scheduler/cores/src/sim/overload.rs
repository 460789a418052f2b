//! Overload: several tenants ask for more than there is, for ever. Whoever else asks, for whatever size, from whatever
//! queue, must be served in bounded time; shares follow weights; nobody gets more than there is.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use super::Dice;
use crate::admission::{Admission, Decision, ExecutorSpec, Options, QueueOptions, TenantOptions, Ticket};
use crate::ids::{ChunkKey, ClassId, ExecutorId, QueueId, ReservationId, RunId, Tenant};
use crate::resources::{Quota, Resources};
use crate::routing::{Route, TagSet};
use crate::sabotage::{Mutant, Sabotage};

const CLASS: ClassId = ClassId(0);
const END_MS: u64 = 20_000;
const LONGEST_TASK_MS: u64 = 200;
/// Five priorities of 500 ms, an executor kept free for the largest task, and a turn for everybody else.
const PATIENCE_MS: u64 = 8_000;

pub(crate) fn simulate(seed: u64, mutant: Option<Mutant>) -> Result<(), String> {
    let mut dice = Dice::new(seed ^ 0x0ae5_10ad);
    let queue = |priority| QueueOptions { priority, max_running: 100, max_queued: 100, timeout_ms: 100_000 };
    let mut options = Options::single_queue(QueueId(0), queue(0));
    options.queues.insert(QueueId(1), queue(5));
    options.ageing_ms = 500;
    options.hold_after_ms = 400;
    options.reservation_ms = 5_000;
    let slots = dice.between(2, 4) as u32;
    let count = dice.between(1, 3);
    let flooders = dice.between(1, 4) as u32;
    // One flooder may be held to a quota; it must not hold others up.
    if dice.percent(50) {
        let quota = Quota { tasks: Some(dice.between(1, 3)), ..Quota::default() };
        options.organisations.insert(0, TenantOptions { weight: 1, quota });
    }
    let limit = options.organisation(0).quota.tasks;
    let mut admission = Admission::new(options).sabotaged(Sabotage::plant(mutant));
    let capacity = Resources { slots, cpu_milli: 1_000 * u64::from(slots), memory_bytes: 0, gpu_milli: 0 };
    for id in 0..count {
        let spec = ExecutorSpec { id: ExecutorId(id), classes: vec![CLASS], capacity, weight: 1, tags: TagSet(0) };
        admission.join(spec).map_err(|error| error.to_string())?;
    }
    // The flood comes through the high queue, the mouse through either.
    let mouse_queue = QueueId(dice.between(0, 1) as u16);
    let mouse = RunId(1_000);
    for flooder in 0..flooders {
        let ticket = Ticket {
            run: RunId(u128::from(flooder)),
            queue: QueueId(1),
            class: CLASS,
            tenant: Tenant { organisation: flooder % 3, team: flooder },
        };
        admission.enqueue(ticket, 0).map_err(|error| error.to_string())?;
    }
    let ticket = Ticket { run: mouse, queue: mouse_queue, class: CLASS, tenant: Tenant { organisation: 9, team: 0 } };
    admission.enqueue(ticket, 0).map_err(|error| error.to_string())?;

    let mut running: BinaryHeap<Reverse<(u64, ReservationId, ExecutorId, RunId)>> = BinaryHeap::new();
    let mut taken: BTreeMap<ExecutorId, u32> = BTreeMap::new();
    let mut needs: BTreeMap<ReservationId, u32> = BTreeMap::new();
    let mut next_chunk = vec![0u32; flooders as usize];
    let mut asked: BTreeMap<ChunkKey, u32> = BTreeMap::new();
    let mut mouse_since: Option<u64> = None;
    let mut mouse_next = dice.between(200, 2_000);
    let mut mouse_chunk = 0;
    let mut held_by_first = 0u64;
    let mut now = 0;
    while now < END_MS {
        while let Some(&Reverse((until, id, executor, run))) = running.peek() {
            if until > now {
                break;
            }
            running.pop();
            admission.release(id);
            let slots = needs.remove(&id).unwrap_or_default();
            *taken.entry(executor).or_default() -= slots;
            if run.0 < u128::from(flooders) && run.0 % 3 == 0 {
                held_by_first -= 1;
            }
        }
        // Every flooder keeps many small requests waiting.
        for flooder in 0..flooders {
            let run = RunId(u128::from(flooder));
            let waiting =
                asked.range(ChunkKey { run, stage: 0, chunk: 0 }..).take_while(|(key, _)| key.run == run).count();
            for _ in waiting..6 {
                let chunk = next_chunk[flooder as usize];
                let key = ChunkKey { run, stage: 0, chunk };
                let one = Resources { slots: 1, cpu_milli: 1_000, memory_bytes: 0, gpu_milli: 0 };
                if admission.request(key, CLASS, one, Route::default(), now).is_ok() {
                    next_chunk[flooder as usize] += 1;
                    asked.insert(key, 1);
                }
            }
        }
        if now >= mouse_next && mouse_since.is_none() {
            let key = ChunkKey { run: mouse, stage: 0, chunk: mouse_chunk };
            let wanted = dice.between(1, u64::from(slots)) as u32;
            let needs =
                Resources { slots: wanted, cpu_milli: 1_000 * u64::from(wanted), memory_bytes: 0, gpu_milli: 0 };
            if admission.request(key, CLASS, needs, Route::default(), now).is_ok() {
                asked.insert(key, wanted);
                mouse_since = Some(now);
            }
        }
        while let Some(decision) = admission.decide(now) {
            if let Decision::Grant { key, executor, reservation } = decision {
                let slots_taken = asked.remove(&key).ok_or_else(|| format!("{key} was granted twice"))?;
                let sum = taken.entry(executor).or_default();
                *sum += slots_taken;
                if *sum > slots {
                    return Err(format!("{executor:?} has {slots} slots and was given {sum}"));
                }
                needs.insert(reservation, slots_taken);
                if key.run.0 < u128::from(flooders) && key.run.0 % 3 == 0 {
                    held_by_first += 1;
                    if limit.is_some_and(|limit| held_by_first > limit) {
                        return Err(format!("organisation 0 holds {held_by_first} tasks, more than its quota"));
                    }
                }
                let until = now + dice.between(20, LONGEST_TASK_MS);
                running.push(Reverse((until, reservation, executor, key.run)));
                if key.run == mouse {
                    mouse_since = None;
                    mouse_chunk += 1;
                    mouse_next = now + dice.between(100, 2_000);
                }
            }
        }
        if let Some(since) = mouse_since
            && now - since > PATIENCE_MS
        {
            return Err(format!("a request waited for {} ms while others were served", now - since));
        }
        now += 10;
    }
    if mouse_chunk == 0 { Err("the small tenant was never served".to_owned()) } else { Ok(()) }
}
