//! Single decisions of admission.

use super::*;
use crate::resources::{Limit, Quota};
use crate::routing::TagSet;

const CPU: ClassId = ClassId(0);
const GPU: ClassId = ClassId(1);

fn slots(slots: u32) -> Resources {
    // No test has an executor of so many.
    let cpu_milli = 1_000 * u64::from(slots.min(1_000));
    Resources { slots, cpu_milli, memory_bytes: 0, gpu_milli: 0 }
}

fn options() -> Options {
    let queue = QueueOptions { priority: 0, max_running: 10, max_queued: 2, timeout_ms: 1_000 };
    Options::single_queue(QueueId(0), queue)
}

fn executor(id: u64, class: ClassId, count: u32) -> ExecutorSpec {
    ExecutorSpec {
        id: ExecutorId(id),
        classes: vec![class],
        capacity: slots(count),
        weight: 1,
        tags: TagSet(id.into()),
    }
}

fn ticket(run: u128, organisation: u32) -> Ticket {
    Ticket { run: RunId(run), queue: QueueId(0), class: CPU, tenant: Tenant { organisation, team: 0 } }
}

fn key(run: u128, chunk: u32) -> ChunkKey {
    ChunkKey { run: RunId(run), stage: 0, chunk }
}

fn start(admission: &mut Admission, run: u128, organisation: u32) {
    admission.enqueue(ticket(run, organisation), 0).unwrap();
    assert_eq!(admission.decide(0), Some(Decision::StartRun(RunId(run))));
}

fn ask(admission: &mut Admission, run: u128, chunk: u32, count: u32, now_ms: u64) {
    admission.request(key(run, chunk), CPU, slots(count), Route::default(), now_ms).unwrap();
}

fn granted(decision: Option<Decision>) -> Option<(ChunkKey, ReservationId)> {
    match decision {
        Some(Decision::Grant { key, reservation, .. }) => Some((key, reservation)),
        _ => None,
    }
}

#[test]
fn a_full_queue_says_so_and_loses_nothing() {
    let mut options = options();
    options.default_organisation.quota.runs = Some(1);
    let mut admission = Admission::new(options);
    start(&mut admission, 1, 0);
    for run in 2..4 {
        admission.enqueue(ticket(run, 0), 0).unwrap();
    }
    assert_eq!(admission.enqueue(ticket(4, 0), 0), Err(Refusal::QueueFull { waiting: 2 }));
    assert_eq!(admission.enqueue(ticket(2, 0), 0), Err(Refusal::Duplicate));
    assert_eq!(admission.decide(1), None, "one run at a time");
    admission.end_run(RunId(1));
    assert_eq!(admission.decide(2), Some(Decision::StartRun(RunId(2))));
    let waited = Decision::RefuseRun { run: RunId(3), why: Refusal::QueueTimeout { waited_ms: 1_000 } };
    assert_eq!(admission.decide(1_000), Some(waited));
}

#[test]
fn an_unserved_class_warns_then_refuses() {
    let mut options = options();
    options.warn_after_ms = 100;
    let mut admission = Admission::new(options);
    admission.join(executor(1, CPU, 1)).unwrap();
    start(&mut admission, 1, 0);
    admission.request(key(1, 0), GPU, slots(1), Route::default(), 10).unwrap();
    assert_eq!(admission.decide(10), None);
    assert_eq!(admission.next_deadline_ms(10), Some(110));
    assert_eq!(admission.decide(110), Some(Decision::Unserved { class: GPU, since_ms: 10 }));
    assert_eq!(admission.decide(111), None, "one warning is enough");
    let why = Refusal::NoExecutor { class: GPU, waited_ms: 1_000 };
    assert_eq!(admission.decide(1_010), Some(Decision::RefuseChunk { key: key(1, 0), why }));
    assert_eq!(admission.counts(), (0, 0, 0));
}

#[test]
fn an_executor_in_time_ends_the_wait() {
    let mut admission = Admission::new(options());
    start(&mut admission, 1, 0);
    ask(&mut admission, 1, 0, 4, 0);
    admission.join(executor(1, CPU, 2)).unwrap();
    assert_eq!(admission.decide(500), None, "it is too small");
    admission.join(executor(2, CPU, 4)).unwrap();
    assert!(granted(admission.decide(900)).is_some());
}

#[test]
fn what_fits_nowhere_is_refused_with_the_reason() {
    let mut admission = Admission::new(options());
    admission.join(executor(1, CPU, 2)).unwrap();
    start(&mut admission, 1, 0);
    ask(&mut admission, 1, 0, 4, 0);
    assert_eq!(admission.decide(0), None);
    let why = Refusal::NoFit { class: CPU, waited_ms: 1_000 };
    assert_eq!(admission.decide(1_000), Some(Decision::RefuseChunk { key: key(1, 0), why }));
}

#[test]
fn a_large_task_gets_an_executor_kept_free() {
    let mut options = options();
    options.hold_after_ms = 100;
    let mut admission = Admission::new(options);
    admission.join(executor(1, CPU, 2)).unwrap();
    for run in 1..3 {
        start(&mut admission, run, run as u32);
    }
    let mut held = Vec::new();
    for chunk in 0..2 {
        ask(&mut admission, 1, chunk, 1, 0);
        held.push(granted(admission.decide(0)).unwrap().1);
    }
    ask(&mut admission, 2, 0, 2, 10);
    ask(&mut admission, 1, 2, 1, 20);
    // One slot becomes free: the small one overtakes at first.
    admission.release(held.remove(0));
    held.push(granted(admission.decide(50)).unwrap().1);
    ask(&mut admission, 1, 3, 1, 60);
    admission.release(held.remove(0));
    assert_eq!(admission.decide(120), None, "the free slot waits for its neighbour");
    admission.release(held.remove(0));
    assert_eq!(granted(admission.decide(130)).unwrap().0, key(2, 0));
}

#[test]
fn quotas_hold_and_say_what_can_never_be() {
    let mut options = options();
    options.default_organisation.quota = Quota { tasks: Some(2), cpu_milli: Some(3_000), ..Quota::default() };
    let mut admission = Admission::new(options);
    admission.join(executor(1, CPU, 8)).unwrap();
    start(&mut admission, 1, 0);
    let never = admission.request(key(1, 9), CPU, slots(4), Route::default(), 0);
    assert_eq!(never, Err(Refusal::OverQuota { limit: Limit::Cpu }));
    for chunk in 0..3 {
        ask(&mut admission, 1, chunk, 1, 0);
    }
    let first = granted(admission.decide(0)).unwrap().1;
    assert!(granted(admission.decide(0)).is_some());
    assert_eq!(admission.decide(0), None, "two tasks at a time");
    admission.release(first);
    admission.release(first);
    assert!(granted(admission.decide(0)).is_some());
    assert_eq!(admission.decide(0), None);
}

#[test]
fn weights_share_an_executor() {
    let mut options = options();
    let heavy = TenantOptions { weight: 3, quota: Quota::default() };
    options.organisations.insert(1, heavy);
    let mut admission = Admission::new(options);
    admission.join(executor(1, CPU, 1)).unwrap();
    for run in 1..3 {
        start(&mut admission, run, run as u32);
        for chunk in 0..40 {
            ask(&mut admission, run, chunk, 1, 0);
        }
    }
    let mut served = [0, 0];
    for _ in 0..40 {
        let (key, reservation) = granted(admission.decide(1)).unwrap();
        served[key.run.0 as usize - 1] += 1;
        admission.release(reservation);
    }
    assert_eq!(served, [30, 10]);
}

#[test]
fn a_reservation_that_nobody_prolongs_is_free_again() {
    let mut admission = Admission::new(options());
    admission.join(executor(1, CPU, 1)).unwrap();
    start(&mut admission, 1, 0);
    for chunk in 0..2 {
        ask(&mut admission, 1, chunk, 1, 0);
    }
    let (first, reservation) = granted(admission.decide(0)).unwrap();
    assert!(admission.renew(reservation, 20_000));
    assert_eq!(admission.decide(30_000), None);
    assert_eq!(admission.decide(50_000), Some(Decision::Expired { key: first, reservation }));
    assert!(granted(admission.decide(50_000)).is_some());
    assert!(!admission.renew(reservation, 50_000));
}

#[test]
fn executors_that_lie_or_come_twice_are_refused() {
    let mut admission = Admission::new(options());
    admission.join(executor(1, CPU, 1)).unwrap();
    assert_eq!(admission.join(executor(1, CPU, 1)), Err(JoinError::Duplicate));
    assert_eq!(admission.join(executor(2, CPU, 0)), Err(JoinError::NoSlot));
    assert_eq!(admission.join(executor(3, CPU, u32::MAX)), Err(JoinError::TooLarge));
    let nothing = ExecutorSpec { classes: Vec::new(), ..executor(4, CPU, 1) };
    assert_eq!(admission.join(nothing), Err(JoinError::NoClass));
}

#[test]
fn tags_are_required_or_the_executor_does_not_fit() {
    let mut admission = Admission::new(options());
    admission.join(executor(1, CPU, 1)).unwrap();
    admission.join(executor(2, CPU, 1)).unwrap();
    start(&mut admission, 1, 0);
    let route = Route { required: TagSet(2), ..Route::default() };
    admission.request(key(1, 0), CPU, slots(1), route, 0).unwrap();
    let decision = admission.decide(0);
    assert!(matches!(decision, Some(Decision::Grant { executor: ExecutorId(2), .. })), "{decision:?}");
}

#[test]
fn a_draining_executor_gets_nothing_and_a_lost_one_frees_its_tasks() {
    let mut admission = Admission::new(options());
    admission.join(executor(1, CPU, 4)).unwrap();
    start(&mut admission, 1, 0);
    ask(&mut admission, 1, 0, 1, 0);
    assert!(granted(admission.decide(0)).is_some());
    admission.drain(ExecutorId(1));
    ask(&mut admission, 1, 1, 1, 0);
    assert_eq!(admission.decide(1), None);
    admission.leave(ExecutorId(1));
    assert_eq!(admission.counts(), (0, 1, 0));
    admission.join(executor(2, CPU, 1)).unwrap();
    assert!(granted(admission.decide(2)).is_some());
}

#[test]
fn runs_of_a_class_without_room_do_not_stand_before_others() {
    let queue = QueueOptions { priority: 0, max_running: 10, max_queued: 10, timeout_ms: 1_000 };
    let mut admission = Admission::new(Options::single_queue(QueueId(0), queue));
    admission.limit_class(GPU, 1);
    for run in 1..4 {
        admission.enqueue(Ticket { class: GPU, ..ticket(run, 0) }, run as u64).unwrap();
    }
    admission.enqueue(ticket(9, 0), 9).unwrap();
    assert_eq!(admission.admit(10), Some(Decision::StartRun(RunId(1))));
    assert_eq!(admission.admit(10), Some(Decision::StartRun(RunId(9))));
    assert_eq!(admission.admit(10), None, "one of the class at a time");
    let state = QueueState { waiting: 2, running: 2, oldest_ms: Some(2) };
    assert_eq!(admission.queue(QueueId(0)), Some(state));
    admission.limit_class(GPU, 2);
    assert_eq!(admission.admit(10), Some(Decision::StartRun(RunId(2))));
    admission.end_run(RunId(1));
    assert_eq!(admission.admit(10), Some(Decision::StartRun(RunId(3))));
    assert_eq!(admission.queue(QueueId(0)).unwrap().running, 3);
}

#[test]
fn a_task_that_wants_an_executor_to_itself_waits_until_one_is_empty() {
    let mut admission = Admission::new(options());
    admission.join(executor(1, CPU, 3)).unwrap();
    start(&mut admission, 1, 0);
    ask(&mut admission, 1, 0, 1, 0);
    let small = granted(admission.decide(0)).unwrap().1;
    ask(&mut admission, 1, 1, Resources::WHOLE, 0);
    assert_eq!(admission.decide(0), None);
    admission.release(small);
    assert!(granted(admission.decide(1)).is_some());
    ask(&mut admission, 1, 2, 1, 1);
    assert_eq!(admission.decide(1), None, "all of its slots are taken");
    assert_eq!(admission.team(Tenant { organisation: 0, team: 0 }).held.slots, 3);
}
