//! The effect log against a real store: results, intents, what is left after an interruption, a store that fails.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use rowmill_step::{Effects, Failure, FailureCode, OnError, Outcome, Sent};
use rowmill_store::fault::{FaultStore, Kind, Mode};
use rowmill_store::{AcquireMode, Acquired, ChunkId, Fence, NewRun, Owner, RunId, RunStore, open_memory};

use super::support::*;
use crate::*;

const CHUNK: ChunkId = ChunkId { version: 1, stage: 0, chunk: 0 };

async fn store() -> (Arc<dyn RunStore>, Fence) {
    let store = open_memory().await.unwrap();
    let fence = owned(store.as_ref()).await;
    (store, fence)
}

async fn owned(store: &dyn RunStore) -> Fence {
    let new = NewRun {
        id: RunId::new(),
        workflow_name: "flow".to_owned(),
        workflow_text: "rowmill: 1".to_owned(),
        workflow_fingerprint: "f".to_owned(),
        parameters: serde_json::Map::new(),
        organisation: String::new(),
        team: String::new(),
        labels: Default::default(),
        actor: "ada".to_owned(),
        submit_key: None,
        payload: Vec::new(),
    };
    let run = store.submit(&new).await.unwrap().run.id;
    match store.acquire(run, &Owner::new("test"), Duration::from_secs(600), AcquireMode::Free).await.unwrap() {
        Acquired::Lease(lease) => lease.fence,
        other => panic!("{other:?}"),
    }
}

/// One attempt of the chunk; what it recorded is on disk afterwards.
async fn attempt(store: &Arc<dyn RunStore>, fence: &Fence, step: &Arc<Scripted>, policy: StepPolicy, rows: i64) -> Ran {
    let writer = EffectWriter::start(Arc::clone(store), *fence);
    let log = ChunkLog::open(&writer, CHUNK, false).await.unwrap();
    let operator = operator(step, policy);
    let ran = drain(&operator, scope(&operator, 0, Some(log)), vec![numbers(0..rows)]).await;
    operator.close().await;
    let _ = writer.close().await;
    assert!(operator.tally().snapshot().is_conserved());
    ran
}

#[tokio::test]
async fn what_was_answered_is_not_asked_again() {
    for effects in [Effects::Idempotent, Effects::Once] {
        let (store, fence) = store().await;
        let step = Arc::new(
            Scripted::new((10, 3), |call| async move {
                Ok(partly(&call.items, |x| (x % 7 == 0).then(|| rejected().status(422))))
            })
            .effects(effects),
        );
        let first = attempt(&store, &fence, &step, policy(&step), 95).await;
        assert_eq!((first.count(Outcome::DeadLettered), first.tally.replayed), (14, 0));
        let calls = step.calls.lock().len();
        let second = attempt(&store, &fence, &step, policy(&step), 95).await;
        assert_eq!(step.calls.lock().len(), calls, "no call is made");
        assert_eq!((second.rows, second.tally.outcomes, second.tally.replayed), (first.rows, first.tally.outcomes, 95));
        assert_eq!(second.ledger.rows(), 14);
        assert!(second.ledger.samples()[0].reason.contains("no such thing"));
    }
}

#[tokio::test]
async fn a_pure_step_leaves_nothing_in_the_log() {
    let (store, fence) = store().await;
    let step = Arc::new(Scripted::new((10, 3), |c| async move { Ok(plus_one(&c.items)) }).effects(Effects::Pure));
    attempt(&store, &fence, &step, policy(&step), 95).await;
    assert!(store.effects(fence.run, CHUNK).await.unwrap().by_key.is_empty());
}

#[tokio::test]
async fn an_interrupted_attempt_is_gone_on_with_and_groups_keep_their_ends() {
    let (store, fence) = store().await;
    // Of the groups, every third hangs until the run ends.
    let script = |hangs: bool| {
        Arc::new(
            Scripted::new((10, 100), move |call| async move {
                if hangs && (call.items[0].unwrap() / 10) % 3 == 1 {
                    call.batch.cancel.cancelled().await;
                    return Err(Failure::fixed(FailureCode::Cancelled, "stopped"));
                }
                Ok(plus_one(&call.items))
            })
            .effects(Effects::Idempotent),
        )
    };
    let step = script(true);
    let writer = EffectWriter::start(Arc::clone(&store), fence);
    let log = ChunkLog::open(&writer, CHUNK, false).await.unwrap();
    let operator = operator(&step, policy(&step));
    let stream = operator.run(scope(&operator, 0, Some(log)), stream(vec![numbers(0..95)]));
    while step.calls.lock().len() < 10 {
        sleep(5).await;
    }
    drop(stream);
    operator.close().await;
    writer.close().await.unwrap();
    assert_eq!(operator.tally().snapshot().outcomes.get(Outcome::NotRun), 30);

    let step = script(false);
    let ran = attempt(&store, &fence, &step, policy(&step), 95).await;
    assert_eq!(ran.rows, (0..95).map(|x| (Some(x), Some(x + 1))).collect::<Vec<_>>());
    assert_eq!(ran.tally.replayed, 65);
    let mut groups = step.calls.lock().clone();
    groups.sort();
    let expected: Vec<Vec<Value>> = [10, 40, 70].map(|at| (at..at + 10).map(Some).collect()).to_vec();
    assert_eq!(groups, expected, "the groups that were in flight, as they were");
}

#[tokio::test]
async fn an_announced_call_without_a_result_is_unknown_and_one_that_never_left_is_sent() {
    let (store, fence) = store().await;
    // The first half never left when the run was cancelled; of the second nobody knows.
    let step = Arc::new(
        Scripted::new((10, 100), |call| async move {
            call.batch.cancel.cancelled().await;
            let sent = if call.items[0].unwrap() < 50 { Sent::Never } else { Sent::Maybe };
            Err::<rowmill_step::BatchReply, _>(Failure::fixed(FailureCode::Cancelled, "stopped").sent(sent))
        })
        .effects(Effects::Once),
    );
    let writer = EffectWriter::start(Arc::clone(&store), fence);
    let log = ChunkLog::open(&writer, CHUNK, false).await.unwrap();
    let operator = operator(&step, policy(&step));
    let mut stream = operator.run(scope(&operator, 0, Some(log)), stream(vec![numbers(0..100)]));
    while step.calls.lock().len() < 10 {
        tokio::select! { _ = stream.next() => {} () = sleep(5) => {} }
    }
    let known = store.effects(fence.run, CHUNK).await.unwrap().by_key;
    assert_eq!(known.len(), 100, "every call is announced before it leaves");
    drop(stream);
    operator.close().await;
    writer.close().await.unwrap();
    let tally = operator.tally().snapshot();
    assert_eq!((tally.outcomes.get(Outcome::NotRun), tally.outcomes.get(Outcome::Unknown)), (50, 50));

    let step = Arc::new(Scripted::new((10, 3), |c| async move { Ok(plus_one(&c.items)) }).effects(Effects::Once));
    let ran = attempt(&store, &fence, &step, StepPolicy { on_error: OnError::Skip, ..policy(&step) }, 100).await;
    assert_eq!(ran.rows, (0..50).map(|x| (Some(x), Some(x + 1))).collect::<Vec<_>>());
    assert_eq!((ran.count(Outcome::Unknown), ran.tally.replayed), (50, 50));
    assert!(step.attempts().keys().all(|x| *x < 50), "what may have happened is not sent");
}

#[tokio::test]
async fn a_failure_that_stopped_the_run_may_be_tried_again_when_it_is_resumed() {
    for (effects, sent, again) in [
        (Effects::Idempotent, Sent::Answered, true),
        (Effects::Once, Sent::Refused, true),
        (Effects::Once, Sent::Answered, false),
    ] {
        let (store, fence) = store().await;
        let fails = move |_| async move { Err(Failure::fixed(FailureCode::Status, "no").sent(sent)) };
        let step = Arc::new(Scripted::new((1, 1), fails).effects(effects));
        let fail = StepPolicy { on_error: OnError::Fail, ..policy(&step) };
        assert!(attempt(&store, &fence, &step, fail.clone(), 1).await.error.is_some());
        let step = Arc::new(Scripted::new((1, 1), |c| async move { Ok(plus_one(&c.items)) }).effects(effects));
        let ran = attempt(&store, &fence, &step, fail, 1).await;
        assert_eq!(ran.rows.len() == 1, again, "{effects} {sent:?}: {:?}", ran.error);
        assert_eq!(step.calls.lock().len(), usize::from(again));
    }
}

#[tokio::test]
async fn a_store_that_comes_back_loses_nothing_and_one_that_does_not_stops_the_run() {
    let inner = open_memory().await.unwrap();
    let fence = owned(inner.as_ref()).await;
    let faulty = Arc::new(FaultStore::new(Arc::clone(&inner), 7, 400, Mode::Surface));
    let store: Arc<dyn RunStore> = faulty.clone();
    let step = Arc::new(Scripted::new((10, 4), |c| async move { Ok(plus_one(&c.items)) }).effects(Effects::Once));
    let writer = EffectWriter::start(Arc::clone(&store), fence);
    let log = loop {
        if let Ok(log) = ChunkLog::open(&writer, CHUNK, false).await {
            break log;
        }
    };
    let op = operator(&step, policy(&step));
    let ran = drain(&op, scope(&op, 0, Some(log)), vec![numbers(0..200)]).await;
    writer.close().await.unwrap();
    assert_eq!((ran.rows.len(), ran.error), (200, None));
    assert!(faulty.count(Kind::FailBefore) > 0 && faulty.count(Kind::LoseReply) > 0, "{:?}", faulty.fired());
    assert_eq!(inner.effects(fence.run, CHUNK).await.unwrap().by_key.len(), 200);

    // Somebody else owns the run now: no call may leave without its intent.
    let owner = Owner::new("thief");
    inner.acquire(fence.run, &owner, Duration::from_secs(600), AcquireMode::Steal).await.unwrap();
    let writer = EffectWriter::start(Arc::clone(&inner), fence);
    let chunk = ChunkId { chunk: 1, ..CHUNK };
    let log = ChunkLog::open(&writer, chunk, false).await.unwrap();
    let op = operator(&step, policy(&step));
    let calls = step.calls.lock().len();
    let ran = drain(&op, scope(&op, 0, Some(log)), vec![numbers(0..200)]).await;
    let error = ran.error.clone().unwrap();
    assert!(error.contains("step `step`: setup: the effect log cannot be written"), "{error}");
    assert_eq!((step.calls.lock().len(), ran.count(Outcome::NotRun)), (calls, 200));
    assert!(writer.close().await.is_err());
    assert!(writer.flush().await.is_err(), "a writer that was closed says so");
}

#[tokio::test]
async fn columns_of_any_type_come_back_out_of_the_log() {
    use arrow::array::*;
    use arrow::datatypes::*;
    let words: DictionaryArray<Int32Type> = vec![Some("a"), None, Some("a")].into_iter().collect();
    let list = ListArray::from_iter_primitive::<Int64Type, _, _>(vec![Some(vec![Some(1), None]), None, Some(vec![])]);
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("dictionary", Arc::new(words)),
        ("view", Arc::new(StringViewArray::from(vec![Some("a long text that is not inlined"), Some(""), None]))),
        ("list", Arc::new(list)),
        ("float", Arc::new(Float64Array::from(vec![f64::NAN, -0.0, 1.5]))),
        ("null", Arc::new(NullArray::new(3))),
        ("when", Arc::new(TimestampMicrosecondArray::from(vec![1, 2, 3]).with_timezone("UTC"))),
        (
            "price",
            Arc::new(Decimal128Array::from(vec![Some(1), None, Some(-3)]).with_precision_and_scale(10, 2).unwrap()),
        ),
    ];
    let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap();
    let codec = crate::effects::RowCodec::try_new(&batch.schema()).unwrap();
    let rows = codec.encode(&batch).unwrap().unwrap();
    let stored: Vec<bytes::Bytes> = (0..3).map(|row| rows.row(row).data().to_vec().into()).collect();
    assert_eq!(codec.decode(&stored).unwrap(), batch);
    let none = RecordBatch::try_new_with_options(
        Arc::new(Schema::empty()),
        vec![],
        &RecordBatchOptions::new().with_row_count(Some(2)),
    )
    .unwrap();
    let codec = crate::effects::RowCodec::try_new(&none.schema()).unwrap();
    assert!(codec.encode(&none).unwrap().is_none());
    assert_eq!(codec.decode(&stored[..2]).unwrap().num_rows(), 2);
}
