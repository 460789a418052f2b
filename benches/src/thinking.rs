//! How long the scheduler's admission takes to decide, without a scheduler around it.

use std::time::Instant;

use rowmill_cores::admission::{Admission, Decision, ExecutorSpec, Options, QueueOptions, Ticket};
use rowmill_cores::ids::{ChunkKey, ClassId, ExecutorId, QueueId, ReservationId, RunId, Tenant};
use rowmill_cores::resources::Resources;
use rowmill_cores::routing::{Route, TagSet};

use crate::Error;

const CLASS: ClassId = ClassId(0);
const SLOTS: u32 = 8;
const RUNS: u32 = 100;
const DECISIONS: usize = 20_000;

/// Seconds of each decision, sorted: `executors` with eight slots each are full, `chunks` of 100 runs of 20 teams wait,
/// and each time one place becomes free and is given away.
///
/// # Errors
/// Admission refuses what it should take, or gives nothing where there is a place.
pub fn admission(executors: u64, chunks: u32) -> Result<Vec<f64>, Error> {
    let queue = QueueOptions { priority: 0, max_running: RUNS, max_queued: RUNS, timeout_ms: 3_600_000 };
    let mut options = Options::single_queue(QueueId(0), queue);
    options.reservation_ms = 3_600_000;
    let mut admission = Admission::new(options);
    for id in 0..executors {
        let capacity =
            Resources { slots: SLOTS, cpu_milli: 1_000 * u64::from(SLOTS), memory_bytes: 1 << 35, gpu_milli: 0 };
        let spec = ExecutorSpec { id: ExecutorId(id), classes: vec![CLASS], capacity, weight: 1, tags: TagSet(0) };
        admission.join(spec)?;
    }
    for run in 0..RUNS {
        let tenant = Tenant { organisation: run % 5, team: run % 20 };
        let ticket = Ticket { run: RunId(run.into()), queue: QueueId(0), class: CLASS, tenant };
        admission.enqueue(ticket, 0)?;
    }
    while admission.decide(0).is_some() {}
    let waiting = chunks + u32::try_from(executors)? * SLOTS + u32::try_from(DECISIONS)?;
    for chunk in 0..waiting {
        let key = ChunkKey { run: RunId((chunk % RUNS).into()), stage: 0, chunk: chunk / RUNS };
        admission.request(key, CLASS, Resources::PLAIN, Route::default(), 1)?;
    }
    let mut held: Vec<ReservationId> = Vec::new();
    while let Some(decision) = admission.decide(1) {
        if let Decision::Grant { reservation, .. } = decision {
            held.push(reservation);
        }
    }
    let mut seconds = Vec::with_capacity(DECISIONS);
    for turn in 0..DECISIONS {
        // Strides through what is held, so that places become free all over the cluster.
        let at = (turn * 7_919) % held.len();
        admission.release(held[at]);
        let started = Instant::now();
        let decision = admission.decide(2 + turn as u64);
        seconds.push(started.elapsed().as_secs_f64());
        match decision {
            Some(Decision::Grant { reservation, .. }) => held[at] = reservation,
            other => return Err(format!("a place is free and nothing is given: {other:?}").into()),
        }
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds)
}
