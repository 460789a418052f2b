//! Runs that end early: consumers that leave, cancellation, panics, sessions that cannot be opened, broken inputs.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use futures::StreamExt as _;
use rowmill_step::{Effects, Failure, FailureCode, OnError, Outcome, Sent, StepContext};
use std::time::Instant;

use super::support::*;
use crate::*;

fn heeds_cancel(target: (usize, usize)) -> Scripted {
    Scripted::new(target, |call| async move {
        let first = call.items[0].unwrap();
        tokio::select! {
            () = call.batch.cancel.cancelled() => Err(Failure::fixed(FailureCode::Cancelled, "stopped").sent(Sent::Never)),
            () = sleep(if first < 100 { 1 } else { 1_000_000 }) => Ok(plus_one(&call.items)),
        }
    })
}

#[tokio::test]
async fn a_consumer_that_leaves_ends_what_is_in_flight() {
    let step = Arc::new(heeds_cancel((10, 4)));
    let pool = Arc::new(Pool::default());
    let mut context = StepContext::new("run", "step", "");
    context.memory = pool.clone();
    let operator = operator_in(&step, policy(&step), context);
    let batches = (0..100).map(|at| numbers(at * 100..at * 100 + 100)).collect();
    let mut stream = operator.run(scope(&operator, 0, None), stream(batches));
    assert_eq!(stream.next().await.unwrap().unwrap().num_rows(), 100);
    drop(stream);
    tokio::time::timeout(Duration::from_secs(10), operator.ended()).await.unwrap();
    let tally = operator.tally().snapshot();
    assert!(tally.is_conserved(), "{tally:?}");
    assert_eq!(tally.outcomes.get(Outcome::Ok), 100);
    assert!(tally.outcomes.get(Outcome::NotRun) >= 100);
    assert_eq!((tally.in_flight, step.flying.load(SeqCst), pool.held.load(SeqCst)), (0, 0, 0));
    operator.close().await;
    assert_eq!(step.closed.load(SeqCst), step.opened.load(SeqCst), "every session ended in good order");
    assert!(operator.stopped().is_none());
}

#[tokio::test]
async fn a_step_that_ignores_cancellation_is_dropped_after_its_grace() {
    for (effects, outcome) in [(Effects::Pure, Outcome::NotRun), (Effects::Once, Outcome::Unknown)] {
        let step = Arc::new(
            Scripted::new((10, 4), |call| async move {
                sleep(1_000_000).await;
                Ok(plus_one(&call.items))
            })
            .effects(effects),
        );
        let operator = operator(&step, StepPolicy { on_error: OnError::Fail, ..policy(&step) });
        let stream = operator.run(scope(&operator, 0, None), stream(vec![numbers(0..100)]));
        sleep(100).await;
        let start = Instant::now();
        drop(stream);
        operator.close().await;
        assert!(start.elapsed() < Duration::from_secs(5));
        let tally = operator.tally().snapshot();
        assert!(tally.is_conserved());
        assert!(tally.outcomes.get(outcome) >= 40, "{tally:?}");
        assert!(operator.stopped().is_none(), "a consumer that leaves is no failure");
    }
}

#[tokio::test]
async fn a_cancelled_run_says_so() {
    let step = Arc::new(heeds_cancel((10, 4)));
    let context = StepContext::new("run", "step", "");
    let cancel = context.cancel.clone();
    let operator = operator_in(&step, policy(&step), context);
    let parts: Vec<_> =
        (0..3).map(|part| drain(&operator, scope(&operator, part, None), vec![numbers(50..300)])).collect();
    let (ran, ()) = tokio::join!(futures::future::join_all(parts), async {
        sleep(200).await;
        cancel.cancel();
    });
    for ran in ran {
        assert!(ran.error.clone().unwrap().contains("step `step`: cancelled"));
        assert_eq!(ran.tally.items, ran.count(Outcome::Ok) + ran.count(Outcome::NotRun));
    }
    operator.close().await;
    assert_eq!(step.flying.load(SeqCst), 0);
}

#[tokio::test]
async fn a_failure_stops_every_partition_with_one_reason() {
    let step = Arc::new(Scripted::new((1, 4), |call| async move {
        sleep(10).await;
        Ok(partly(&call.items, |x| (x == 1050).then(rejected)))
    }));
    let operator = operator(&step, StepPolicy { on_error: OnError::Fail, ..policy(&step) });
    let parts: Vec<_> = (0..3)
        .map(|part| {
            let start = i64::from(part) * 1000;
            drain(&operator, scope(&operator, part, None), vec![numbers(start..start + 1000)])
        })
        .collect();
    for ran in futures::future::join_all(parts).await {
        let error = ran.error.clone().unwrap();
        assert!(error.contains("item 1:50 failed"), "{error}");
        assert!(ran.count(Outcome::NotRun) > 0);
    }
}

#[tokio::test]
async fn a_panic_is_the_failure_of_its_items() {
    let step = Arc::new(Scripted::new((8, 2), |call| async move {
        assert!(!call.items.contains(&Some(13)), "item thirteen");
        Ok(plus_one(&call.items))
    }));
    let ran = run(&step, policy(&step), vec![numbers(0..64)]).await;
    assert_eq!((ran.rows.len(), ran.count(Outcome::DeadLettered), ran.error), (63, 1, None));
    let reason = ran.ledger.samples()[0].reason.clone();
    assert!(reason.contains("panicked") && reason.contains("item thirteen"), "{reason}");
}

#[tokio::test]
async fn an_input_that_panics_or_fails_does_not_look_complete() {
    let step = Arc::new(Scripted::new((1, 2), |call| async move { Ok(plus_one(&call.items)) }));
    let op = operator(&step, policy(&step));
    let broken = futures::stream::iter([Ok(numbers(0..10)), Err(BoxError::from("the disk is gone"))]).boxed();
    let mut out = op.run(scope(&op, 0, None), broken);
    let mut last = None;
    while let Some(next) = out.next().await {
        last = Some(next);
    }
    assert_eq!(last.unwrap().unwrap_err().to_string(), "the disk is gone");
    assert!(op.tally().snapshot().is_conserved());

    let panics = futures::stream::iter(0..2).map(|at| {
        assert!(at == 0, "the source has a bug");
        Ok(numbers(0..10))
    });
    let mut out = op.run(scope(&op, 0, None), panics.boxed());
    let mut last = None;
    while let Some(next) = out.next().await {
        last = Some(next);
    }
    assert!(last.unwrap().unwrap_err().to_string().contains("panicked"));
    op.ended().await;
    assert!(op.tally().snapshot().is_conserved());
}

#[tokio::test]
async fn a_session_that_opens_later_is_waited_for_and_one_that_never_can_stops_the_run() {
    let ok = |call: Call| async move { Ok(plus_one(&call.items)) };
    let later = |number| match number {
        0 | 1 => Err(Failure::fixed(FailureCode::Connect, "not up yet")),
        _ => Ok(()),
    };
    let step = Arc::new(Scripted::new((10, 1), ok).opens(later).effects(Effects::Once));
    let ran = run(&step, policy(&step), vec![numbers(0..10)]).await;
    assert_eq!((ran.rows.len(), ran.tally.attempts, step.opened.load(SeqCst)), (10, 1, 3));

    let never = |_| Err(Failure::fixed(FailureCode::Timeout, "nobody there"));
    let step = Arc::new(Scripted::new((10, 1), ok).opens(never));
    let ran = run(&step, policy(&step), vec![numbers(0..10)]).await;
    assert_eq!((ran.count(Outcome::DeadLettered), ran.tally.attempts), (10, 0));
    assert_eq!(step.opened.load(SeqCst), 4, "the items are not to blame, so the group is not cut");

    let setup = |_| Err(Failure::fixed(FailureCode::Setup, "no such connection"));
    let step = Arc::new(Scripted::new((10, 3), ok).opens(setup));
    let ran = run(&step, policy(&step), vec![numbers(0..100)]).await;
    assert!(ran.error.clone().unwrap().contains("setup: no such connection"));
    assert_eq!(ran.count(Outcome::NotRun), 100);

    let step = Arc::new(Scripted::new((10, 1), ok).opens(|_| panic!("open has a bug")));
    let ran = run(&step, policy(&step), vec![numbers(0..10)]).await;
    assert_eq!(ran.count(Outcome::DeadLettered), 10);
}

#[tokio::test]
async fn a_setup_failure_of_a_once_call_that_left_keeps_its_items_unknown() {
    for (sent, outcome) in [(Sent::Never, Outcome::NotRun), (Sent::Maybe, Outcome::Unknown)] {
        let fails = move |_| async move { Err(Failure::fixed(FailureCode::Setup, "gone").sent(sent)) };
        let step = Arc::new(Scripted::new((10, 1), fails).effects(Effects::Once));
        let ran = run(&step, policy(&step), vec![numbers(0..10)]).await;
        assert!(ran.error.clone().unwrap().contains("setup: gone"));
        assert_eq!(ran.count(outcome), 10);
    }
}
