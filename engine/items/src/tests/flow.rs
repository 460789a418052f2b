//! Rows through a step that works: sizes, order, slots, slow consumers, memory.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use futures::StreamExt as _;
use rowmill_step::{BatchReply, Outcome, StepContext};

use super::support::*;
use crate::*;

fn simple(rows: usize, in_flight: usize) -> Arc<Scripted> {
    Arc::new(Scripted::new((rows, in_flight), |call| async move { Ok(plus_one(&call.items)) }))
}

fn expect(rows: std::ops::Range<i64>) -> Vec<(Value, Value)> {
    rows.map(|x| (Some(x), Some(x + 1))).collect()
}

#[tokio::test]
async fn nothing_one_row_and_nulls() {
    let step = simple(10, 2);
    let ran = run(&step, policy(&step), vec![]).await;
    assert_eq!((ran.rows.len(), ran.tally.items, ran.error), (0, 0, None));
    let ran = run(&step, policy(&step), vec![batch([]), batch([])]).await;
    assert_eq!((ran.rows.len(), step.calls.lock().len(), ran.error), (0, 0, None));
    let ran = run(&step, policy(&step), vec![numbers(7..8)]).await;
    assert_eq!(ran.rows, expect(7..8));
    let ran = run(&step, policy(&step), vec![batch([None, Some(1), None])]).await;
    assert_eq!(ran.rows, [(None, None), (Some(1), Some(2)), (None, None)]);
    assert_eq!(ran.count(Outcome::Ok), 3);
}

#[tokio::test]
async fn small_batches_become_full_groups() {
    let step = simple(100, 3);
    let ran = run(&step, policy(&step), (0..150).map(|at| numbers(at * 7..at * 7 + 7)).collect()).await;
    assert_eq!(ran.rows, expect(0..1050));
    let mut sizes: Vec<usize> = step.calls.lock().iter().map(Vec::len).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [vec![50], vec![100; 10]].concat(), "every group but the last is full");
}

#[tokio::test]
async fn one_huge_batch_is_cut_into_groups_without_a_copy() {
    let step = simple(1000, 4);
    let ran = run(&step, policy(&step), vec![numbers(0..100_000)]).await;
    assert_eq!(ran.rows, expect(0..100_000));
    assert_eq!(step.calls.lock().len(), 100);
    assert_eq!(step.peak.load(SeqCst), 1, "a step that never waits needs one slot at a time");
}

#[tokio::test]
async fn groups_end_where_their_bytes_say_so() {
    let step = simple(1000, 1);
    let mut policy = policy(&step);
    // 8 bytes a row, and a bit for each that may be null.
    policy.target.bytes = 100;
    let ran = run(&step, policy, vec![numbers(0..1000)]).await;
    assert_eq!(ran.rows, expect(0..1000));
    assert!(step.calls.lock().iter().all(|group| (1..=12).contains(&group.len())));
    assert!(step.calls.lock().len() <= 1000 / 12 + 2, "groups are filled");
}

#[tokio::test]
async fn in_flight_is_reached_and_never_exceeded_by_partitions_that_share_it() {
    let step = Arc::new(Scripted::new((10, 8), |call| async move {
        sleep(1 + (call.items[0].unwrap() as u64 * 7919) % 9).await;
        Ok(plus_one(&call.items))
    }));
    let operator = operator(&step, policy(&step));
    let parts = (0..4i64).map(|part| {
        let operator = Arc::clone(&operator);
        async move {
            let batches = (0..20).map(|at| numbers(part * 10_000 + at * 35..part * 10_000 + at * 35 + 35)).collect();
            drain(&operator, scope(&operator, part as u32, None), batches).await
        }
    });
    let ran = futures::future::join_all(parts).await;
    operator.close().await;
    for (part, ran) in ran.iter().enumerate() {
        assert_eq!(ran.rows, expect(part as i64 * 10_000..part as i64 * 10_000 + 700));
    }
    assert_eq!(step.peak.load(SeqCst), 8);
    let mut sum = TallySnapshot::default();
    ran.iter().for_each(|ran| sum.merge(&ran.tally));
    assert_eq!(sum, operator.tally().snapshot(), "the parts add up to the whole");
    assert!(step.opened.load(SeqCst) <= 8, "sessions are kept");
    assert_eq!(step.closed.load(SeqCst), step.opened.load(SeqCst));
}

#[tokio::test]
async fn any_order_hands_on_what_is_ready() {
    let slow_first = |order| async move {
        let step = Arc::new(Scripted::new((8192, 4), |call| async move {
            sleep(if call.items[0] == Some(0) { 500 } else { 1 }).await;
            Ok(plus_one(&call.items))
        }));
        let policy = StepPolicy { order, ..policy(&step) };
        run(&step, policy, (0..4).map(|at| numbers(at * 8192..at * 8192 + 8192)).collect()).await.rows
    };
    assert_eq!(slow_first(Order::Input).await, expect(0..32_768));
    let any = slow_first(Order::Any).await;
    assert_eq!(any[0], (Some(8192), Some(8193)));
    assert_eq!(any[24_576..], expect(0..8192), "the slow one is last, and whole");
}

#[tokio::test]
async fn an_item_has_any_number_of_rows_and_some_are_dropped() {
    // x rows for x in 0..4; the step drops what divides by 5.
    let fan = |call: Call| async move {
        let mut reply = BatchReply { source_rows: Some(vec![]), ..plus_one(&[]) };
        let mut rows = Vec::new();
        for (index, item) in call.items.iter().enumerate() {
            let x = item.unwrap();
            if x % 5 == 0 {
                reply.skipped.push(index as u32);
                continue;
            }
            for copy in 0..x % 4 {
                rows.push(Some(x * 10 + copy));
                reply.source_rows.as_mut().unwrap().push(index as u32);
            }
        }
        sleep((call.items[0].unwrap() as u64 * 31) % 17).await;
        Ok(BatchReply { output: output(rows), ..reply })
    };
    for group in [1, 3, 100] {
        let step = Arc::new(Scripted::new((group, 5), fan).fan_out());
        let ran = run(&step, policy(&step), vec![numbers(0..60), numbers(60..101)]).await;
        let model: Vec<_> = (0..101i64)
            .filter(|x| x % 5 != 0)
            .flat_map(|x| (0..x % 4).map(move |copy| (Some(x), Some(x * 10 + copy))))
            .collect();
        assert_eq!(ran.rows, model, "groups of {group}");
        assert_eq!((ran.count(Outcome::Skipped), ran.count(Outcome::Ok), ran.tally.dropped), (21, 80, 21));
        assert_eq!(ran.ledger.rows(), 21);
    }
}

/// A step behind begins when some calls were answered, not when a large part of the input was.
#[tokio::test]
async fn slow_calls_hand_their_rows_on_soon() {
    let step = simple(1, 2);
    let operator = operator_in(&step, policy(&step), StepContext::new("run", "step", ""));
    let mut stream = operator.run(scope(&operator, 0, None), stream(vec![numbers(0..5_000)]));
    let first = stream.next().await.unwrap().unwrap().num_rows();
    assert!(first <= 64, "{first} rows were waited for");
    let mut rows = first;
    while let Some(batch) = stream.next().await {
        rows += batch.unwrap().num_rows();
    }
    assert_eq!(rows, 5_000);
    operator.close().await;
}

#[tokio::test]
async fn a_slow_consumer_bounds_memory_while_calls_go_on() {
    let step = simple(100, 4);
    let pool = Arc::new(Pool::default());
    let mut context = StepContext::new("run", "step", "");
    context.memory = pool.clone();
    let reorder_bytes = 1 << 20;
    let operator = operator_in(&step, StepPolicy { reorder_bytes, ..policy(&step) }, context);
    let batches = (0..400).map(|at| numbers(at * 8192..at * 8192 + 8192)).collect();
    let mut stream = operator.run(scope(&operator, 0, None), stream(batches));
    assert!(stream.next().await.is_some());
    sleep(500).await;
    let begun = step.calls.lock().len() * 100;
    assert!(begun > 8192, "calls go on while nobody reads");
    assert!(begun < 400 * 8192 / 4, "and stop when the room is used up: {begun}");
    assert!(pool.held.load(SeqCst) > 0);
    let mut rows = 0;
    while let Some(batch) = stream.next().await {
        rows += batch.unwrap().num_rows();
    }
    assert!(rows > 399 * 8192 - 8192);
    operator.close().await;
    assert_eq!(pool.held.load(SeqCst), 0, "what was reserved is given back");
    assert!(pool.most.load(SeqCst) < 2 * reorder_bytes, "{}", pool.most.load(SeqCst));
    assert!(operator.tally().snapshot().is_conserved());
}

#[tokio::test]
async fn no_memory_at_all_means_one_unit_at_a_time() {
    let step = simple(100, 4);
    let mut context = StepContext::new("run", "step", "");
    context.memory = Arc::new(Pool { limit: Some(10), ..Pool::default() });
    let operator = operator_in(&step, policy(&step), context);
    let ran = drain(&operator, scope(&operator, 0, None), vec![numbers(0..50_000)]).await;
    assert_eq!(ran.rows, expect(0..50_000));
    assert!(ran.batches >= 6);
}

#[tokio::test]
async fn parts_that_do_not_fit_are_refused_in_words() {
    let step = simple(1, 1);
    let build = |input: arrow::datatypes::SchemaRef, change: fn(&mut StepPolicy)| {
        let mut policy = policy(&step);
        change(&mut policy);
        let (executor, shape) = (Arc::new(Shared(Arc::clone(&step))), shape());
        let context = StepContext::new("run", "step", "");
        StepOperator::try_new(OperatorParts {
            executor,
            context,
            shape,
            input,
            policy,
            limits: vec![],
            cache: None,
            tally: Arc::default(),
        })
        .unwrap_err()
    };
    assert!(build(shape().output, |_| {}).contains("`x`"));
    let text =
        arrow::datatypes::Schema::new(vec![arrow::datatypes::Field::new("x", arrow::datatypes::DataType::Utf8, true)]);
    assert!(build(Arc::new(text), |_| {}).contains("Int64"));
    assert!(build(input_schema(), |policy| policy.retry.attempts = 0).contains("attempts"));
    let two = |policy: &mut StepPolicy| {
        policy.on_error = rowmill_step::OnError::Default(output(vec![Some(1), Some(2)]));
    };
    assert!(build(input_schema(), two).contains("one row"));
}
