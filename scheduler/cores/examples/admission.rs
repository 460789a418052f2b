//! Question: how long does admission take for one decision with 1,000 executors and 100,000 queued stages?
//!
//! Three states are timed, each decision by itself: an idle cluster that fills up, a full one in which one task ends and
//! the next is chosen, and a full one in which most tenants are at their quota. Prints median, 99th percentile and
//! largest in microseconds; exits with 1 when a 99.9th percentile is above 1 ms.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Instant;

use rowmill_cores::admission::{Admission, Decision, ExecutorSpec, Options, QueueOptions, TenantOptions, Ticket};
use rowmill_cores::ids::{ChunkKey, ClassId, ExecutorId, QueueId, ReservationId, RunId, Tenant};
use rowmill_cores::resources::{Quota, Resources};
use rowmill_cores::routing::{Route, Strategy, TagSet};
use rowmill_cores::seed::mix;

const EXECUTORS: u64 = 1_000;
const STAGES: u64 = 100_000;
const RUNS: u64 = 5_000;
const CLASSES: u16 = 4;
const QUEUES: u16 = 3;

fn build(quota: Quota) -> Admission {
    let queue =
        |priority| QueueOptions { priority, max_running: u32::MAX, max_queued: u32::MAX, timeout_ms: 3_600_000 };
    let mut options = Options::single_queue(QueueId(0), queue(0));
    for number in 1..QUEUES {
        options.queues.insert(QueueId(number), queue(u32::from(number) * 10));
    }
    options.default_team = TenantOptions { weight: 1, quota };
    let mut admission = Admission::new(options);
    for id in 0..EXECUTORS {
        let spec = ExecutorSpec {
            id: ExecutorId(id),
            classes: vec![ClassId((id % u64::from(CLASSES)) as u16)],
            capacity: Resources { slots: 4, cpu_milli: 4_000, memory_bytes: 16 << 30, gpu_milli: 1_000 },
            weight: 1 + (id % 3) as u32,
            tags: TagSet(u128::from(mix(id) & 0xff)),
        };
        assert!(admission.join(spec).is_ok(), "executor {id}");
    }
    for run in 0..RUNS {
        let tenant = Tenant { organisation: (run % 40) as u32, team: (run % 200) as u32 };
        let ticket = Ticket {
            run: RunId(run.into()),
            queue: QueueId((run % u64::from(QUEUES)) as u16),
            class: ClassId(0),
            tenant,
        };
        assert!(admission.enqueue(ticket, 0).is_ok(), "run {run}");
    }
    while admission.decide(0).is_some() {}
    admission
}

fn ask(admission: &mut Admission, stage: u64) {
    let draw = mix(stage);
    let strategies = [
        Strategy::LeastConnections,
        Strategy::RoundRobin,
        Strategy::Weighted,
        Strategy::ConsistentHash,
        Strategy::Locality,
    ];
    let route = Route {
        strategy: strategies[(draw % 5) as usize],
        key: draw,
        required: TagSet(0),
        preferred: TagSet(u128::from(draw & 0xf)),
    };
    let slots = if draw.is_multiple_of(10) { 4 } else { 1 };
    let needs = Resources { slots, cpu_milli: 1_000, memory_bytes: 1 << 28, gpu_milli: 0 };
    let key = ChunkKey { run: RunId((stage % RUNS).into()), stage: (stage / RUNS) as u32, chunk: 0 };
    let class = ClassId((draw >> 32) as u16 % CLASSES);
    assert!(admission.request(key, class, needs, route, stage / 100).is_ok(), "stage {stage}");
}

fn report(name: &str, mut micros: Vec<f64>) -> bool {
    micros.sort_by(f64::total_cmp);
    let at = |share: f64| micros[((micros.len() - 1) as f64 * share) as usize];
    println!(
        "{name:<34} {:>7} decisions: median {:>7.1} µs, 99% {:>7.1} µs, 99.9% {:>7.1} µs, largest {:>7.1} µs",
        micros.len(),
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0)
    );
    at(0.999) <= 1_000.0
}

fn main() -> ExitCode {
    let mut good = true;
    let quotas = [("", Quota::default()), (", tenants at quota", Quota { tasks: Some(15), ..Quota::default() })];
    for (suffix, quota) in quotas {
        let mut admission = build(quota);
        for stage in 0..STAGES {
            ask(&mut admission, stage);
        }
        let mut now_ms = 1_000;
        let mut held: BTreeMap<u64, ReservationId> = BTreeMap::new();
        let mut times = Vec::new();
        loop {
            let began = Instant::now();
            let decision = admission.decide(now_ms);
            times.push(began.elapsed().as_secs_f64() * 1e6);
            match decision {
                Some(Decision::Grant { reservation, .. }) => {
                    held.insert(mix(reservation.0), reservation);
                }
                Some(_) => {}
                None => break,
            }
        }
        good &= report(&format!("filling an idle cluster{suffix}"), times);
        let mut times = Vec::new();
        for next_stage in STAGES..STAGES + 20_000 {
            now_ms += 1;
            let Some((_, reservation)) = held.pop_first() else { break };
            let began = Instant::now();
            admission.release(reservation);
            let mut waiting = times.len();
            while let Some(decision) = admission.decide(now_ms) {
                if let Decision::Grant { reservation, .. } = decision {
                    held.insert(mix(reservation.0), reservation);
                }
                waiting += 1;
            }
            let decisions = (waiting - times.len() + 1) as f64;
            times.push(began.elapsed().as_secs_f64() * 1e6 / decisions);
            ask(&mut admission, next_stage);
        }
        good &= report(&format!("one ends, the next is chosen{suffix}"), times);
        let (_, waiting, reserved) = admission.counts();
        println!("{:<34} {waiting} stages wait, {reserved} run on {EXECUTORS} executors", "");
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
