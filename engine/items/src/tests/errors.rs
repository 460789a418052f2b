//! Items that fail: retry, waits, bisection, error policies, `max_errors`.

use std::sync::Arc;
use std::time::Duration;

use rowmill_step::{Effects, Failure, FailureCode, MaxErrors, OnError, Outcome, Sent};
use std::time::Instant;

use super::support::*;
use crate::*;

/// Items for which `bad` says so fail with `failure` in their reply; the rest is ok.
fn bad_items(target: (usize, usize), bad: fn(i64) -> bool, failure: fn() -> Failure) -> Scripted {
    Scripted::new(target, move |call| async move { Ok(partly(&call.items, |x| bad(x).then(failure))) })
}

#[tokio::test]
async fn retry_keeps_its_waits_and_its_count() {
    let step = Arc::new(bad_items((1, 1), |_| true, transport));
    let start = Instant::now();
    let ran = run(&step, policy(&step), vec![numbers(0..1)]).await;
    assert!(start.elapsed() >= Duration::from_millis(10 + 20 + 40), "{:?}", start.elapsed());
    assert_eq!((ran.count(Outcome::DeadLettered), ran.tally.attempts, ran.tally.retries), (1, 4, 3));
    assert_eq!(ran.ledger.samples()[0].attempts, 4);
}

#[tokio::test]
async fn only_what_failed_is_tried_again_and_each_as_late_as_it_was_told() {
    let step = Arc::new(Scripted::new((100, 1), |call| async move {
        Ok(partly(&call.items, |x| match (x % 10, call.attempt) {
            (3, 1) => Some(transport()),
            (4, 1) => Some(
                Failure::fixed(FailureCode::RateLimited, "later")
                    .sent(Sent::Refused)
                    .retry_after(Some(Duration::from_secs(1))),
            ),
            (5, _) => Some(rejected()),
            _ => None,
        }))
    }));
    let start = Instant::now();
    let ran = run(&step, policy(&step), vec![numbers(0..100)]).await;
    assert_eq!(ran.rows.len(), 90);
    assert!(ran.rows.is_sorted(), "order is kept");
    let calls = step.calls.lock().clone();
    assert_eq!(calls.iter().map(Vec::len).collect::<Vec<_>>(), [100, 10, 10]);
    assert!(calls[1].iter().all(|x| x.unwrap() % 10 == 3), "the broken line is tried again first: {calls:?}");
    assert!(calls[2].iter().all(|x| x.unwrap() % 10 == 4));
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn an_item_that_waits_holds_no_slot() {
    let step = Arc::new(Scripted::new((1, 1), |call| async move {
        let waits = call.items[0] == Some(0) && call.attempt == 1;
        let later = || Failure::fixed(FailureCode::RateLimited, "later").sent(Sent::Refused);
        match waits {
            true => Err(later().retry_after(Some(Duration::from_secs(2)))),
            false => Ok(plus_one(&call.items)),
        }
    }));
    let order = Order::Any;
    let operator = operator(&step, StepPolicy { order, ..policy(&step) });
    let start = Instant::now();
    let batches = (0..2).map(|at| numbers(at * 8192..at * 8192 + 8192)).collect();
    let ran = drain(&operator, scope(&operator, 0, None), batches).await;
    assert_eq!(ran.rows.len(), 16_384);
    // There is one slot, and everything else goes through it before the wait is over.
    assert!(start.elapsed() >= Duration::from_secs(2));
    assert_eq!(step.calls.lock().last().unwrap(), &[Some(0)]);
}

#[tokio::test]
async fn a_poisoned_group_is_cut_until_the_bad_item_stands_alone() {
    let step = Arc::new(Scripted::new((64, 1), |call| async move {
        match call.items.contains(&Some(21)) {
            true => Err(rejected()),
            false => Ok(plus_one(&call.items)),
        }
    }));
    let ran = run(&step, policy(&step), vec![numbers(0..64)]).await;
    assert_eq!((ran.rows.len(), ran.count(Outcome::DeadLettered)), (63, 1));
    // The group, then two halves at each of six levels.
    assert_eq!(ran.tally.attempts, 13);
    assert_eq!(step.attempts()[&21], 7);
    assert_eq!(ran.ledger.samples()[0].item, "0:21");
}

#[tokio::test]
async fn a_group_that_had_its_attempts_gives_its_halves_one_each() {
    let step = Arc::new(Scripted::new((8, 1), |call| async move {
        match call.items.contains(&Some(3)) {
            true => Err(transport()),
            false => Ok(plus_one(&call.items)),
        }
    }));
    let ran = run(&step, policy(&step), vec![numbers(0..8)]).await;
    assert_eq!((ran.rows.len(), ran.count(Outcome::DeadLettered)), (7, 1));
    assert_eq!(ran.tally.attempts, 4 + 6);
}

#[tokio::test]
async fn once_is_never_repeated_unless_it_never_left() {
    // x % 4: 0 ok, 1 never left, 2 refused, 3 may have happened.
    for group in [1, 10] {
        let step = Arc::new(
            Scripted::new((group, 2), |call| async move {
                Ok(partly(&call.items, |x| match (x % 4, call.attempt) {
                    (1, 1) => Some(transport().sent(Sent::Never)),
                    (2, 1) => Some(Failure::fixed(FailureCode::RateLimited, "later").sent(Sent::Refused)),
                    (3, _) => Some(transport()),
                    _ => None,
                }))
            })
            .effects(Effects::Once),
        );
        let skip = StepPolicy { on_error: OnError::Skip, ..policy(&step) };
        let ran = run(&step, skip, vec![numbers(0..40)]).await;
        assert_eq!((ran.count(Outcome::Ok), ran.count(Outcome::Unknown), ran.count(Outcome::Skipped)), (30, 10, 0));
        for (item, attempts) in step.attempts() {
            assert_eq!(attempts, if matches!(item % 4, 1 | 2) { 2 } else { 1 }, "item {item}");
        }
        assert!(ran.ledger.samples().iter().all(|sample| sample.outcome == "unknown"));
    }
}

#[tokio::test]
async fn a_once_group_that_may_have_left_is_unknown_whole_under_every_policy() {
    let default = output(vec![Some(-1)]);
    for on_error in [OnError::Fail, OnError::Skip, OnError::Default(default), OnError::DeadLetter] {
        let step =
            Arc::new(Scripted::new((10, 1), |_| async { Err::<_, Failure>(transport()) }).effects(Effects::Once));
        let fails = matches!(on_error, OnError::Fail);
        let ran = run(&step, StepPolicy { on_error, ..policy(&step) }, vec![numbers(0..10)]).await;
        assert_eq!((ran.count(Outcome::Unknown), ran.rows.len(), ran.tally.attempts), (10, 0, 1));
        assert_eq!(ran.error.is_some(), fails);
    }
}

#[tokio::test]
async fn a_reply_that_breaks_the_contract_is_a_failure_of_its_items() {
    let step = Arc::new(Scripted::new((10, 1), |call| async move {
        let short = call.items.len() > 1;
        Ok(plus_one(if short { &call.items[1..] } else { &call.items }))
    }));
    let ran = run(&step, policy(&step), vec![numbers(0..10)]).await;
    assert_eq!(ran.rows.len(), 10, "single items are answered as they should be");
}

#[tokio::test]
async fn policies_decide_what_flows_on() {
    let bad = |x| x % 10 == 0;
    let with = |on_error| async move {
        let step = Arc::new(bad_items((7, 2), bad, rejected));
        run(&step, StepPolicy { on_error, ..policy(&step) }, vec![numbers(1..100)]).await
    };
    let ran = with(OnError::Skip).await;
    assert_eq!((ran.rows.len(), ran.count(Outcome::Skipped), ran.tally.errors(), ran.error), (90, 9, 9, None));
    let ran = with(OnError::DeadLetter).await;
    assert_eq!((ran.rows.len(), ran.count(Outcome::DeadLettered), ran.error), (90, 9, None));
    let ran = with(OnError::Default(output(vec![Some(-1)]))).await;
    let model: Vec<_> = (1..100).map(|x| (Some(x), Some(if bad(x) { -1 } else { x + 1 }))).collect();
    assert_eq!((&ran.rows, ran.count(Outcome::Defaulted), &ran.error), (&model, 9, &None));
    let ran = with(OnError::Fail).await;
    let error = ran.error.clone().unwrap();
    assert!(error.contains("step `step`: item 0:9 failed after 1 attempt(s): rejected"), "{error}");
    assert!(ran.tally.outcomes.get(Outcome::Failed) >= 1);
}

#[tokio::test]
async fn a_run_gone_wrong_stops() {
    let with = |on_error, max_errors, every: i64| async move {
        let step = Arc::new(Scripted::new((1, 1), move |call| async move {
            Ok(partly(&call.items, |x| (x % every == 0).then(rejected)))
        }));
        let policy = StepPolicy { on_error, max_errors: Some(max_errors), ..policy(&step) };
        let operator = operator(&step, policy);
        let ran = drain(&operator, scope(&operator, 0, None), vec![numbers(0..2000)]).await;
        operator.close().await;
        (ran, operator.check_end().err().map(|error| error.to_string()))
    };
    let (ran, _) = with(OnError::Skip, MaxErrors::Count(5), 10).await;
    assert!(ran.error.clone().unwrap().contains("6 of 51 items failed"), "skips on error count");
    let (ran, end) = with(OnError::DeadLetter, MaxErrors::Count(200), 10).await;
    assert_eq!((ran.error, end), (None, None), "exactly as many as may");
    let (ran, _) = with(OnError::DeadLetter, MaxErrors::Share { share: 0.05, after: 1000 }, 10).await;
    assert!(ran.error.clone().unwrap().contains("items failed, more than `max_errors` allows (5%)"));
    let (ran, end) = with(OnError::DeadLetter, MaxErrors::Share { share: 0.05, after: 5000 }, 10).await;
    assert_eq!(ran.error, None);
    assert!(end.unwrap().contains("200 of 2000"), "judged at the end");
}

#[tokio::test]
async fn items_that_the_step_drops_are_no_errors() {
    let step = Arc::new(Scripted::new((10, 1), |call| async move {
        Ok(rowmill_step::BatchReply { skipped: (0..call.items.len() as u32).collect(), ..plus_one(&[]) })
    }));
    let policy = StepPolicy { on_error: OnError::Skip, max_errors: Some(MaxErrors::Count(0)), ..policy(&step) };
    let ran = run(&step, policy, vec![numbers(0..100)]).await;
    assert_eq!((&ran.error, ran.count(Outcome::Skipped), ran.tally.errors()), (&None, 100, 0));
}

#[tokio::test]
async fn an_attempt_ends_at_its_timeout_and_an_item_at_its_deadline() {
    let hangs = || {
        Arc::new(Scripted::new((1, 1), |call| async move {
            call.batch.cancel.cancelled().await;
            sleep(3_600_000).await;
            Ok(plus_one(&call.items))
        }))
    };
    let step = hangs();
    let start = Instant::now();
    let timeout = Some(Duration::from_millis(100));
    let ran = run(&step, StepPolicy { timeout, ..policy(&step) }, vec![numbers(0..1)]).await;
    // Four attempts of 0.1 s and their grace of 0.5 s.
    assert_eq!((ran.count(Outcome::DeadLettered), ran.tally.attempts), (1, 4));
    assert!(start.elapsed() >= Duration::from_millis(2400), "{:?}", start.elapsed());
    assert_eq!(
        step.opened.load(std::sync::atomic::Ordering::SeqCst),
        4,
        "a session that was dropped is not used again"
    );

    let step = hangs();
    let start = Instant::now();
    let deadline = Some(Duration::from_secs(1));
    let ran = run(&step, StepPolicy { timeout, deadline, ..policy(&step) }, vec![numbers(0..1)]).await;
    assert_eq!((ran.count(Outcome::DeadLettered), ran.tally.attempts), (1, 2));
    assert!(start.elapsed() < Duration::from_millis(2300), "{:?}", start.elapsed());

    // A wait that would end after the deadline is not begun.
    let step = Arc::new(bad_items((1, 1), |_| true, || transport().retry_after(Some(Duration::from_secs(60)))));
    let start = Instant::now();
    let ran = run(&step, StepPolicy { deadline, ..policy(&step) }, vec![numbers(0..1)]).await;
    assert_eq!(ran.tally.attempts, 1);
    assert!(start.elapsed() < Duration::from_secs(30));
}

fn lost(sent: Sent) -> Failure {
    Failure::fixed(FailureCode::Crashed, "whoever made it is gone").retryable(true).sent(sent).lost()
}

#[tokio::test]
async fn attempts_that_were_lost_do_not_count_until_items_look_guilty() {
    // One attempt is all that the policy allows.
    let once = |step: &Scripted| {
        let mut policy = policy(step);
        policy.retry.attempts = 1;
        policy
    };
    let times = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = Arc::clone(&times);
    let step = Arc::new(Scripted::new((10, 1), move |call| {
        let before = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        assert_eq!(call.attempt, 1);
        async move { if before < 3 { Err(lost(Sent::Maybe)) } else { Ok(plus_one(&call.items)) } }
    }));
    let start = Instant::now();
    let ran = run(&step, once(&step), vec![numbers(0..10)]).await;
    assert_eq!((ran.rows.len(), times.load(std::sync::atomic::Ordering::SeqCst)), (10, 4));
    assert!(start.elapsed() < Duration::from_secs(5), "nobody waits");
    // An item that kills whoever touches it is found, and the others are not lost with it.
    let step = Arc::new(Scripted::new((8, 1), |call| async move {
        if call.items.contains(&Some(5)) { Err(lost(Sent::Maybe)) } else { Ok(plus_one(&call.items)) }
    }));
    let ran = run(&step, once(&step), vec![numbers(0..8)]).await;
    assert_eq!((ran.rows.len(), ran.count(Outcome::DeadLettered)), (7, 1));
    assert!(step.attempts()[&5] <= 10, "{:?}", step.attempts());
}

#[tokio::test]
async fn a_lost_call_that_happens_once_is_made_again_only_if_it_never_left() {
    let step = Scripted::new((1, 4), |call| async move {
        match (call.items[0], step_lost(&call)) {
            (Some(x), true) if x % 2 == 0 => Err(lost(Sent::Never)),
            (Some(_), true) => Err(lost(Sent::Maybe)),
            _ => Ok(plus_one(&call.items)),
        }
    });
    let step = Arc::new(step.effects(Effects::Once));
    FIRST.lock().clear();
    let ran = run(&step, policy(&step), vec![numbers(0..40)]).await;
    assert_eq!((ran.rows.len(), ran.count(Outcome::Unknown)), (20, 20));
    let attempts = step.attempts();
    assert!(attempts.iter().all(|(x, count)| *count == if x % 2 == 0 { 2 } else { 1 }), "{attempts:?}");
}

static FIRST: parking_lot::Mutex<Vec<Value>> = parking_lot::Mutex::new(Vec::new());

/// Whether an item is seen for the first time.
fn step_lost(call: &Call) -> bool {
    let mut seen = FIRST.lock();
    let new = !seen.contains(&call.items[0]);
    if new {
        seen.push(call.items[0]);
    }
    new
}
