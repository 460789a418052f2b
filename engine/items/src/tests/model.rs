//! Random scripts against a model that knows nothing of groups, slots and time.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use rowmill_step::{BatchReply, Effects, Failure, FailureCode, OnError, Outcome, RetryPolicy, Sent};

use super::support::*;

/// What the script does to an item.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Ok,
    /// Fails this often, and may be tried again.
    Fails(u32),
    /// It never leaves this often.
    Stays(u32),
    /// It was answered, and the answer is no.
    Rejected,
    /// The step is told to drop it.
    Dropped,
    /// The whole group fails with it.
    Poison,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        20 => Just(Fate::Ok),
        2 => (1u32..6).prop_map(Fate::Fails),
        2 => (1u32..6).prop_map(Fate::Stays),
        1 => Just(Fate::Rejected),
        1 => Just(Fate::Dropped),
        1 => Just(Fate::Poison),
    ]
}

/// Attempts of the policy.
const ATTEMPTS: u32 = 4;

/// The outcome of an item, before the error policy; `Failed` stands for whatever that says.
fn outcome(fate: Fate, effects: Effects) -> Outcome {
    let once = effects == Effects::Once;
    match fate {
        Fate::Ok => Outcome::Ok,
        Fate::Fails(_) if once => Outcome::Unknown,
        Fate::Fails(times) | Fate::Stays(times) if times < ATTEMPTS => Outcome::Ok,
        // A once group is not cut, so the script lets such an item fail by itself.
        Fate::Fails(_) | Fate::Stays(_) | Fate::Rejected | Fate::Poison => Outcome::Failed,
        Fate::Dropped => Outcome::Skipped,
    }
}

fn reply(call: &Call, fates: &[Fate], effects: Effects, fan_out: bool) -> Result<BatchReply, Failure> {
    let fate_of = |item: &Value| fates[item.unwrap() as usize];
    if effects.repeatable() && call.items.iter().any(|item| fate_of(item) == Fate::Poison) {
        return Err(rejected());
    }
    let mut reply = plus_one(&[]);
    let mut rows = Vec::new();
    let mut sources = Vec::new();
    for (index, item) in call.items.iter().enumerate() {
        let index = index as u32;
        match fate_of(item) {
            Fate::Fails(times) if call.attempt <= times => reply.failures.push((index, transport())),
            Fate::Stays(times) if call.attempt <= times => {
                let failure = Failure::fixed(FailureCode::Connect, "nobody there").sent(Sent::Never);
                reply.failures.push((index, failure));
            }
            Fate::Rejected | Fate::Poison => reply.failures.push((index, rejected())),
            Fate::Dropped => reply.skipped.push(index),
            _ => {
                let x = item.unwrap();
                for _ in 0..if fan_out { x % 3 } else { 1 } {
                    rows.push(Some(x + 1));
                    sources.push(index);
                }
            }
        }
    }
    reply.output = output(rows);
    reply.source_rows = fan_out.then_some(sources);
    Ok(reply)
}

#[derive(Debug, Clone)]
struct Plan {
    fates: Vec<Vec<Fate>>,
    batch: usize,
    group: usize,
    group_bytes: usize,
    in_flight: usize,
    latency: u64,
    policy: usize,
    effects: Effects,
    fan_out: bool,
    tight: bool,
}

fn plan() -> impl Strategy<Value = Plan> {
    let fates = proptest::collection::vec(proptest::collection::vec(fate(), 0..150), 1..4);
    let effects = prop_oneof![Just(Effects::Pure), Just(Effects::Idempotent), Just(Effects::Once)];
    let sizes = (1usize..60, 1usize..40, prop_oneof![Just(1usize << 20), 1usize..300], 1usize..6);
    (fates, sizes, 0u64..4, 0usize..3, effects, any::<bool>(), any::<bool>()).prop_map(
        |(fates, (batch, group, group_bytes, in_flight), latency, policy, effects, fan_out, tight)| Plan {
            fates,
            batch,
            group,
            group_bytes,
            in_flight,
            latency,
            policy,
            effects,
            fan_out,
            tight,
        },
    )
}

/// Items of a partition have numbers of their own, so that one script serves all.
fn numbered(fates: &[Vec<Fate>]) -> (Vec<std::ops::Range<i64>>, Vec<Fate>) {
    let mut start = 0;
    let parts = fates.iter().map(|part| {
        let range = start..start + part.len() as i64;
        start = range.end;
        range
    });
    (parts.collect(), fates.concat())
}

async fn check(plan: Plan) -> Result<(), TestCaseError> {
    let (parts, fates) = numbered(&plan.fates);
    let (effects, fan_out, latency) = (plan.effects, plan.fan_out, plan.latency);
    let script = fates.clone();
    let step = Scripted::new((plan.group, plan.in_flight), move |call| {
        let answer = reply(&call, &script, effects, fan_out);
        let wait = (call.items[0].unwrap_or(0) as u64 * 31 + u64::from(call.attempt)) % 4;
        async move {
            if latency > 0 && wait > 0 {
                sleep(wait * latency / 3).await;
            }
            answer
        }
    });
    let step = Arc::new(if fan_out { step.fan_out() } else { step }.effects(effects));
    let (on_error, lost) = match plan.policy {
        0 => (OnError::Skip, Outcome::Skipped),
        1 => (OnError::DeadLetter, Outcome::DeadLettered),
        _ => (OnError::Default(output(vec![Some(-1)])), Outcome::Defaulted),
    };
    let mut policy = policy(&step);
    policy.on_error = on_error;
    policy.target.bytes = plan.group_bytes;
    policy.retry = RetryPolicy { attempts: ATTEMPTS, initial_backoff: Duration::from_millis(1), ..policy.retry };
    if plan.tight {
        policy.reorder_bytes = 4096;
    }
    let operator = operator(&step, policy);
    let runs = parts.iter().enumerate().map(|(place, range)| {
        let operator = Arc::clone(&operator);
        let batches = range.clone().step_by(plan.batch).map(|at| numbers(at..(at + plan.batch as i64).min(range.end)));
        let batches = batches.collect();
        async move { drain(&operator, scope(&operator, place as u32, None), batches).await }
    });
    let ran = futures::future::join_all(runs).await;
    operator.close().await;
    for (ran, range) in ran.iter().zip(&parts) {
        let mut rows = Vec::new();
        let mut counts = rowmill_step::OutcomeCounts::default();
        let mut ledger = 0;
        for x in range.clone() {
            let outcome = match outcome(fates[x as usize], effects) {
                Outcome::Failed => lost,
                other => other,
            };
            counts.add(outcome, 1);
            ledger += u64::from(outcome != Outcome::Ok);
            match outcome {
                Outcome::Ok => rows.extend((0..if fan_out { x % 3 } else { 1 }).map(|_| (Some(x), Some(x + 1)))),
                Outcome::Defaulted => rows.push((Some(x), Some(-1))),
                _ => {}
            }
        }
        prop_assert_eq!(&ran.error, &None);
        prop_assert_eq!(&ran.rows, &rows);
        prop_assert_eq!(ran.tally.outcomes, counts);
        prop_assert_eq!(ran.ledger.rows(), ledger);
    }
    prop_assert!(step.calls.lock().iter().all(|group| group.len() <= plan.group));
    prop_assert!(step.peak.load(std::sync::atomic::Ordering::SeqCst) <= plan.in_flight);
    if effects == Effects::Once {
        for (item, attempts) in step.attempts() {
            let most = match fates[item as usize] {
                Fate::Stays(times) => (times + 1).min(ATTEMPTS) as usize,
                _ => 1,
            };
            prop_assert!(attempts <= most, "item {} was sent {} times", item, attempts);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn a_run_gives_what_the_model_says(plan in plan()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(check(plan))?;
    }
}
