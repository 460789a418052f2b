//! Single decisions of the coordinator, and how well it fills a pipeline.

use std::collections::BTreeMap;

use super::*;
use crate::admission::{self, Admission, Decision, ExecutorSpec, QueueOptions, Ticket};
use crate::ids::{ClassId, QueueId, Tenant};
use crate::resources::Resources;
use crate::routing::{Route, TagSet};

const RUN: RunId = RunId(7);
const EXECUTOR: ExecutorId = ExecutorId(1);

fn stage(class: u16, chunks: u32, inputs: &[(u32, Reads)]) -> StagePlan {
    StagePlan {
        class: ClassId(class),
        chunks,
        inputs: inputs.iter().map(|&(stage, reads)| Input { stage, reads }).collect(),
        needs: Resources::PLAIN,
        max_attempts: 2,
        max_in_flight: 8,
    }
}

fn key(stage: u32, chunk: u32) -> ChunkKey {
    ChunkKey { run: RUN, stage, chunk }
}

fn requests(actions: &[Action]) -> Vec<(u32, u32)> {
    let request = |action: &Action| match action {
        Action::Request { key, .. } => Some((key.stage, key.chunk)),
        _ => None,
    };
    actions.iter().filter_map(request).collect()
}

fn launched(actions: &[Action]) -> AttemptId {
    let launch = |action: &Action| match action {
        Action::Launch { attempt, .. } => Some(*attempt),
        _ => None,
    };
    actions.iter().find_map(launch).expect("a launch")
}

fn started(stages: Vec<StagePlan>, committed: &[(u32, u32)]) -> (Coordinator, Vec<Action>) {
    let mut coordinator = Coordinator::new(Options::default(), Fence(1), 0);
    let plan = RunPlan { stages, window: 2 };
    let actions = coordinator.submit(RUN, plan, committed.iter().copied(), 0).unwrap();
    (coordinator, actions)
}

#[test]
fn chunks_flow_from_stage_to_stage_within_the_window() {
    let (mut coordinator, actions) = started(vec![stage(0, 5, &[]), stage(1, 5, &[(0, Reads::ChunkByChunk)])], &[]);
    assert_eq!(requests(&actions), [(0, 0), (0, 1)], "two ahead of the reader and no more");
    let attempt = launched(&coordinator.placed(key(0, 0), EXECUTOR, ReservationId(1), 0));
    let actions = coordinator.finished(attempt, TaskResult::Succeeded, 1);
    assert_eq!(actions, [Action::Release(ReservationId(1)), Action::Commit(attempt)]);
    let actions = coordinator.commit_answered(attempt, CommitAnswer::Committed, 2);
    assert_eq!(requests(&actions), [(1, 0)], "the reader's turn; the producer waits for it");
}

#[test]
fn a_resumed_run_asks_for_what_is_missing() {
    let stages = vec![stage(0, 3, &[]), stage(0, 1, &[(0, Reads::All)])];
    let (_, actions) = started(stages.clone(), &[(0, 0), (0, 2)]);
    assert_eq!(requests(&actions), [(0, 1)]);
    let (_, actions) = started(stages.clone(), &[(0, 0), (0, 1), (0, 2), (1, 0)]);
    assert_eq!(actions, [Action::End { run: RUN, end: RunEnd::Succeeded }]);
    let mut coordinator = Coordinator::new(Options::default(), Fence(1), 0);
    let wrong = coordinator.submit(RUN, RunPlan { stages, window: 1 }, [(1, 4)], 0);
    assert_eq!(wrong, Err(PlanError::Journal { stage: 1, chunk: 4 }));
}

#[test]
fn a_failed_chunk_waits_goes_again_and_at_last_fails_its_run() {
    let (mut coordinator, _) = started(vec![stage(0, 1, &[])], &[]);
    let first = launched(&coordinator.placed(key(0, 0), EXECUTOR, ReservationId(1), 0));
    let actions = coordinator.finished(first, TaskResult::Failed { retryable: true }, 10);
    assert_eq!(actions, [Action::Release(ReservationId(1))], "it holds nothing while it waits");
    let due_ms = coordinator.next_deadline_ms().unwrap();
    assert!((260..=510).contains(&due_ms), "{due_ms}");
    assert_eq!(requests(&coordinator.tick(due_ms)), [(0, 0)]);
    let second = launched(&coordinator.placed(key(0, 0), EXECUTOR, ReservationId(2), due_ms));
    assert_eq!((first.number, second.number), (1, 2));
    assert_eq!(coordinator.finished(first, TaskResult::Succeeded, due_ms), [], "a late report changes nothing");
    let actions = coordinator.finished(second, TaskResult::Failed { retryable: true }, due_ms);
    let end = RunEnd::Failed(Failure::Chunk(key(0, 0)));
    assert_eq!(actions, [Action::Release(ReservationId(2)), Action::End { run: RUN, end }]);
}

#[test]
fn a_chunk_that_kills_its_executors_fails_its_run() {
    let (mut coordinator, _) = started(vec![stage(0, 1, &[])], &[]);
    let (mut now_ms, mut losses) = (0, 0);
    let end = loop {
        let actions = coordinator.placed(key(0, 0), EXECUTOR, ReservationId(losses), now_ms);
        let attempt = launched(&actions);
        let actions = coordinator.executor_lost(EXECUTOR, now_ms);
        assert!(actions.contains(&Action::Cancel { attempt, executor: EXECUTOR }));
        losses += 1;
        if let Some(Action::End { end, .. }) = actions.last() {
            break *end;
        }
        while requests(&actions).is_empty() {
            now_ms = coordinator.next_deadline_ms().unwrap();
            if !requests(&coordinator.tick(now_ms)).is_empty() {
                break;
            }
        }
    };
    assert_eq!(end, RunEnd::Failed(Failure::Lost(key(0, 0))));
    assert_eq!(losses, u64::from(Options::default().max_lost) + 1);
}

#[test]
fn cancelling_stops_withdraws_and_ends() {
    let (mut coordinator, _) = started(vec![stage(0, 2, &[])], &[]);
    let attempt = launched(&coordinator.placed(key(0, 0), EXECUTOR, ReservationId(1), 0));
    let actions = coordinator.cancel(RUN, 1);
    assert_eq!(
        actions,
        [
            Action::Cancel { attempt, executor: EXECUTOR },
            Action::Release(ReservationId(1)),
            Action::Withdraw(key(0, 1)),
            Action::End { run: RUN, end: RunEnd::Cancelled },
        ]
    );
    assert_eq!(
        coordinator.placed(key(0, 1), EXECUTOR, ReservationId(2), 2),
        [Action::Release(ReservationId(2))],
        "a grant that crossed the cancel"
    );
    coordinator.end_answered(RUN);
    assert_eq!(coordinator.next_deadline_ms(), None);
}

#[test]
fn an_attempt_without_a_sign_of_life_is_given_up() {
    let (mut coordinator, _) = started(vec![stage(0, 1, &[])], &[]);
    let attempt = launched(&coordinator.placed(key(0, 0), EXECUTOR, ReservationId(1), 0));
    assert_eq!(coordinator.alive(attempt, EXECUTOR, 9_000), [Action::Renew(ReservationId(1))]);
    assert_eq!(coordinator.tick(10_001), []);
    let actions = coordinator.tick(19_000);
    assert_eq!(actions[0], Action::Cancel { attempt, executor: EXECUTOR });
    assert_eq!(requests(&actions), [(0, 0)], "the first loss goes again at once");
    assert_eq!(coordinator.alive(attempt, EXECUTOR, 19_001), [Action::Cancel { attempt, executor: EXECUTOR }]);
}

/// Chunks of 5 ms on one `cpu` slot, then of 20 ms on one `io` slot: at least 95% of the best possible schedule, which
/// is the first chunk's 5 ms and then `io` without a pause.
#[test]
fn a_pipeline_of_two_classes_is_full() {
    const CHUNKS: u32 = 200;
    let took_ms = [5, 20];
    let queue = QueueOptions { priority: 0, max_running: 1, max_queued: 1, timeout_ms: 1_000 };
    let mut admission = Admission::new(admission::Options::single_queue(QueueId(0), queue));
    for class in 0..2 {
        let spec = ExecutorSpec {
            id: ExecutorId(class),
            classes: vec![ClassId(class as u16)],
            capacity: Resources::PLAIN,
            weight: 1,
            tags: TagSet(0),
        };
        admission.join(spec).unwrap();
    }
    let tenant = Tenant { organisation: 0, team: 0 };
    admission.enqueue(Ticket { run: RUN, queue: QueueId(0), class: ClassId(0), tenant }, 0).unwrap();
    let mut coordinator = Coordinator::new(Options::default(), Fence(1), 0);
    let stages = vec![stage(0, CHUNKS, &[]), stage(1, CHUNKS, &[(0, Reads::ChunkByChunk)])];
    let mut running: BTreeMap<(u64, AttemptId), ()> = BTreeMap::new();
    let mut now_ms = 0;
    let mut todo: Vec<Action> = Vec::new();
    loop {
        while let Some(decision) = admission.decide(now_ms) {
            match decision {
                Decision::StartRun(run) => {
                    let plan = RunPlan { stages: stages.clone(), window: 2 };
                    todo.extend(coordinator.submit(run, plan, [], now_ms).unwrap());
                }
                Decision::Grant { key, executor, reservation } => {
                    todo.extend(coordinator.placed(key, executor, reservation, now_ms));
                }
                other => panic!("{other:?}"),
            }
        }
        if todo.is_empty() {
            let Some(((at_ms, attempt), ())) = running.pop_first() else { break };
            now_ms = at_ms;
            todo.extend(coordinator.finished(attempt, TaskResult::Succeeded, now_ms));
        }
        for action in std::mem::take(&mut todo) {
            match action {
                Action::Request { key, class, needs } => {
                    admission.request(key, class, needs, Route::default(), now_ms).unwrap();
                }
                Action::Launch { attempt, .. } => {
                    running.insert((now_ms + took_ms[attempt.key.stage as usize], attempt), ());
                }
                Action::Release(reservation) => admission.release(reservation),
                Action::Commit(attempt) => {
                    todo.extend(coordinator.commit_answered(attempt, CommitAnswer::Committed, now_ms));
                }
                Action::End { end, .. } => assert_eq!(end, RunEnd::Succeeded),
                other => panic!("{other:?}"),
            }
        }
    }
    let best_ms = took_ms[0] + u64::from(CHUNKS) * took_ms[1];
    assert!(now_ms * 95 <= best_ms * 100, "{now_ms} ms, and {best_ms} ms would be best");
}
