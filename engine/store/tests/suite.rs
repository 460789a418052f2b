//! The suite that every backend passes, plain and under faults. Each scenario gets a store of its own.

use std::sync::Arc;
use std::time::Duration;

use rowmill_store::fault::{FaultStore, Kind, Mode};
use rowmill_store::*;

use crate::support::*;

/// Runs a scenario with a caller who repeats each call until it sees a reply: nothing may be different.
macro_rules! faulty {
    ($scenario:path, $harness:expr) => {{
        let mut fired = 0;
        for seed in 0..4 {
            let mut harness = $harness;
            let faults = std::sync::Arc::new(rowmill_store::fault::FaultStore::new(
                harness.store.clone(),
                seed,
                500,
                rowmill_store::fault::Mode::Repeat,
            ));
            harness.store = faults.clone();
            $scenario(&harness).await;
            fired += [rowmill_store::fault::Kind::LoseReply, rowmill_store::fault::Kind::Double]
                .into_iter()
                .map(|kind| faults.count(kind))
                .sum::<u64>();
        }
        assert!(fired > 0, "no call was repeated");
    }};
}

macro_rules! scenarios {
    ($($name:ident),+ $(,)?) => {
        mod memory {
            $(#[tokio::test] async fn $name() { super::$name(&crate::support::Harness::memory().await).await; })+
        }
        mod sqlite {
            $(#[tokio::test] async fn $name() { super::$name(&crate::support::Harness::sqlite().await).await; })+
        }
        mod sqlite_faulty {
            $(#[tokio::test] async fn $name() { faulty!(super::$name, crate::support::Harness::sqlite().await); })+
        }
        /// One test, so that one server serves it.
        #[tokio::test]
        async fn postgres() {
            let Some(server) = crate::server::shared() else { return };
            $(
                eprintln!(stringify!($name));
                $name(&Harness::postgres(&server.url()).await).await;
                faulty!($name, Harness::postgres(&server.url()).await);
            )+
        }
    };
}

scenarios!(
    submission_is_idempotent,
    submission_refuses_what_it_cannot_keep,
    strangers_see_nothing,
    listing_pages_by_key,
    a_lease_is_held_renewed_and_taken_over,
    the_same_owner_keeps_its_token,
    a_zombie_writes_nothing,
    release_lets_go,
    a_chunk_commits_once,
    commits_are_bounded_by_the_plan,
    manifests_are_read_verbatim,
    effects_live_until_the_commit,
    stages_only_move_forward,
    the_end_is_final,
    a_retry_is_a_new_version,
    cancellation_reaches_the_owner,
    cancellation_without_an_owner_is_immediate,
    retention_takes_ended_runs_only,
    events_are_kept_in_order,
    names_are_leased_like_runs,
);

async fn submission_is_idempotent(h: &Harness) {
    let s = &*h.store;
    let mut new = new_run("flow");
    new.submit_key = Some("key-1".into());
    let first = s.submit(&new).await.unwrap();
    assert!(first.created);
    assert_eq!(first.run.status, RunStatus::Queued);
    assert_eq!(
        (first.run.parameters.clone(), first.run.payload.clone()),
        (new.parameters.clone(), new.payload.clone())
    );
    assert_eq!(s.workflow_text(&Scope::all(), new.id).await.unwrap(), new.workflow_text);
    assert_eq!(s.submit(&new).await.unwrap(), first);

    // Another submission with the key gets the first run.
    let again = NewRun { id: RunId::new(), ..new.clone() };
    let second = s.submit(&again).await.unwrap();
    assert!(!second.created);
    assert_eq!(second.run.id, new.id);

    // The key belongs to the organisation.
    let other = NewRun { id: RunId::new(), organisation: "other".into(), ..new.clone() };
    assert!(s.submit(&other).await.unwrap().created);

    let changed = NewRun { id: RunId::new(), parameters: Default::default(), ..new.clone() };
    assert!(matches!(s.submit(&changed).await, Err(Error::Conflict { .. })));
    let changed = NewRun { workflow_fingerprint: "x".into(), ..new.clone() };
    assert!(matches!(s.submit(&changed).await, Err(Error::Conflict { .. })));
    assert_eq!(s.count_runs(&RunFilter::default()).await.unwrap().get(&RunStatus::Queued), Some(&2));
    assert_eq!(s.events(new.id, &all()).await.unwrap().items.len(), 1);
}

async fn submission_refuses_what_it_cannot_keep(h: &Harness) {
    let s = &*h.store;
    let bad = [
        NewRun { workflow_name: "a\0b".into(), ..new_run("x") },
        NewRun { submit_key: Some("k".repeat(5000)), ..new_run("x") },
        NewRun { labels: [("k".to_owned(), "v".repeat(5000))].into(), ..new_run("x") },
        NewRun { actor: "\0".into(), ..new_run("x") },
    ];
    for new in &bad {
        assert!(matches!(s.submit(new).await, Err(Error::Invalid { .. })), "{new:?}");
    }
    assert!(s.count_runs(&RunFilter::default()).await.unwrap().is_empty());
    let mut odd = new_run("'; DROP TABLE runs; --");
    odd.labels.insert("ключ \"'".into(), "значение \\ %_".into());
    odd.parameters.insert("nul".into(), "a\0b".into());
    odd.workflow_text = "x".repeat(1 << 20);
    let run = s.submit(&odd).await.unwrap().run;
    assert_eq!((run.labels, run.parameters), (odd.labels, odd.parameters));
    assert_eq!(s.workflow_text(&Scope::all(), odd.id).await.unwrap().len(), 1 << 20);
}

async fn strangers_see_nothing(h: &Harness) {
    let s = &*h.store;
    let run = s.submit(&new_run("flow")).await.unwrap().run.id;
    let (ours, theirs) = (Scope::organisation("acme"), Scope::organisation("evil"));
    let team = Scope { organisation: Some("acme".into()), team: Some("other".into()) };
    assert!(s.run(&ours, run).await.is_ok());
    for scope in [&theirs, &team] {
        assert!(matches!(s.run(scope, run).await, Err(Error::NotFound { .. })));
        assert!(matches!(s.workflow_text(scope, run).await, Err(Error::NotFound { .. })));
        assert!(matches!(s.request_cancel(scope, run, "eve", None).await, Err(Error::NotFound { .. })));
        let filter = RunFilter { scope: scope.clone(), ..Default::default() };
        assert!(s.runs(&filter, &all()).await.unwrap().items.is_empty());
        assert!(s.count_runs(&filter).await.unwrap().is_empty());
    }
    assert_eq!(s.run(&ours, run).await.unwrap().status, RunStatus::Queued);
    let missing = RunId::new();
    assert!(matches!(s.run(&Scope::all(), missing).await, Err(Error::NotFound { .. })));
    assert!(matches!(s.events(missing, &all()).await, Err(Error::NotFound { .. })));
    let nobody = Owner::new("x");
    assert!(matches!(s.acquire(missing, &nobody, TTL, AcquireMode::Free).await, Err(Error::NotFound { .. })));
    let fence = Fence { run: missing, token: 1 };
    assert!(matches!(s.renew(&fence, TTL).await, Err(Error::NotFound { .. })));
    assert!(matches!(s.commit_chunk(&fence, &commit(S0.chunk(0), 1)).await, Err(Error::NotFound { .. })));
}

async fn listing_pages_by_key(h: &Harness) {
    let s = &*h.store;
    let mut ids = Vec::new();
    for n in 0..25 {
        let mut new = new_run(if n % 2 == 0 { "even" } else { "odd" });
        new.labels.insert("n".into(), (n % 5).to_string());
        ids.push(s.submit(&new).await.unwrap().run.id);
        // Several runs share a millisecond.
        if n % 4 == 0 {
            h.advance(1000).await;
        }
    }
    let mut seen = Vec::new();
    let mut page = PageRequest::first(7);
    loop {
        let found = s.runs(&RunFilter::default(), &page).await.unwrap();
        seen.extend(found.items.iter().map(|run| run.id));
        // A run that arrives in between is newer and disturbs nothing.
        h.advance(1000).await;
        s.submit(&new_run("late")).await.unwrap();
        match found.next {
            Some(cursor) => page = PageRequest::after(cursor.to_string().parse().unwrap(), 7),
            None => break,
        }
    }
    let mut sorted = seen.clone();
    sorted.sort();
    sorted.dedup();
    ids.sort();
    assert_eq!((sorted, seen.len()), (ids, 25), "each run once");

    let filter = RunFilter { workflow_name: Some("odd".into()), ..Default::default() };
    assert_eq!(s.runs(&filter, &all()).await.unwrap().items.len(), 12);
    let labels = [("n".to_owned(), "3".to_owned()), ("env".to_owned(), "test".to_owned())];
    let filter = RunFilter { labels: labels.into(), statuses: vec![RunStatus::Queued], ..Default::default() };
    assert_eq!(s.runs(&filter, &all()).await.unwrap().items.len(), 5);
    let filter = RunFilter { labels: [("n".into(), "\0".into())].into(), ..Default::default() };
    assert!(s.runs(&filter, &all()).await.unwrap().items.is_empty());
    let filter = RunFilter { statuses: vec![RunStatus::Failed, RunStatus::Running], ..Default::default() };
    assert!(s.count_runs(&filter).await.unwrap().is_empty());
    let filter = RunFilter { younger_than: Some(Duration::from_millis(3500)), ..Default::default() };
    assert_eq!(s.runs(&filter, &all()).await.unwrap().items.len(), 4, "the late ones only");
    for limit in [0, MAX_PAGE + 1] {
        assert!(matches!(s.runs(&RunFilter::default(), &PageRequest::first(limit)).await, Err(Error::Invalid { .. })));
    }
    assert_eq!(s.claimable(3).await.unwrap().len(), 3);
}

async fn a_lease_is_held_renewed_and_taken_over(h: &Harness) {
    let s = &*h.store;
    let (a, b) = (Owner::new("host-a 1"), Owner::new("host-b 2"));
    let (run, fence_a) = begun(s, &a).await;
    match s.acquire(run, &b, TTL, AcquireMode::Free).await.unwrap() {
        Acquired::Held { owner, expires_in } => {
            assert_eq!(owner, "host-a 1");
            assert!(expires_in <= TTL && expires_in > Duration::from_secs(9), "{expires_in:?}");
        }
        other => panic!("{other:?}"),
    }
    assert!(s.claimable(10).await.unwrap().is_empty());
    h.advance(9_000).await;
    s.renew(&fence_a, TTL).await.unwrap();
    h.advance(9_000).await;
    assert!(matches!(s.acquire(run, &b, TTL, AcquireMode::Free).await.unwrap(), Acquired::Held { .. }));
    h.advance(1_500).await;
    // Expired, and nobody has taken over: it still writes, and can still be renewed.
    assert_eq!(s.claimable(10).await.unwrap(), [run]);
    assert_eq!(s.commit_chunk(&fence_a, &commit(S0.chunk(5), 1)).await.unwrap(), CommitResult::Committed);
    s.renew(&fence_a, TTL).await.unwrap();
    assert!(matches!(s.acquire(run, &b, TTL, AcquireMode::Free).await.unwrap(), Acquired::Held { .. }));
    h.advance(10_500).await;
    let fence_b = take(s, run, &b, AcquireMode::Free).await;
    assert!(fence_b.token > fence_a.token);
    assert!(matches!(s.renew(&fence_a, TTL).await, Err(Error::Fenced { .. })));
    s.renew(&fence_b, TTL).await.unwrap();
    // Taken by force, too.
    let fence_a2 = take(s, run, &a, AcquireMode::Steal).await;
    assert!(fence_a2.token > fence_b.token);
    let error = s.renew(&fence_b, TTL).await.unwrap_err();
    assert!(error.to_string().contains("host-a 1"), "{error}");
    assert_eq!(error.fault(), Fault::Conflict);
    assert!(matches!(s.renew(&fence_a2, Duration::MAX).await, Err(Error::Invalid { .. })));
}

async fn the_same_owner_keeps_its_token(h: &Harness) {
    let s = &*h.store;
    let a = Owner::new("a");
    let (run, fence) = begun(s, &a).await;
    h.advance(5_000).await;
    assert_eq!(take(s, run, &a, AcquireMode::Free).await, fence);
    h.advance(9_000).await;
    assert!(matches!(s.acquire(run, &Owner::new("b"), TTL, AcquireMode::Free).await.unwrap(), Acquired::Held { .. }));
    // The same description is not the same incarnation.
    let reborn = Owner::new("a");
    assert!(matches!(s.acquire(run, &reborn, TTL, AcquireMode::Free).await.unwrap(), Acquired::Held { .. }));
}

async fn a_zombie_writes_nothing(h: &Harness) {
    let s = &*h.store;
    let (run, zombie) = begun(s, &Owner::new("zombie")).await;
    h.advance(11_000).await;
    let fence = take(s, run, &Owner::new("new"), AcquireMode::Free).await;
    assert_eq!(zombie_writes(s, &zombie).await, Vec::<&str>::new());
    // A token from the future is no better.
    let forged = Fence { run, token: fence.token + 1 };
    assert_eq!(zombie_writes(s, &forged).await, Vec::<&str>::new());
    s.renew(&fence, TTL).await.unwrap();
    assert!(s.committed(run, S0, &all()).await.unwrap().items.is_empty());
    assert!(s.effects(run, S0.chunk(0)).await.unwrap().by_key.is_empty());
    assert!(s.chunks(run, S0, &all()).await.unwrap().items.is_empty());
    assert_eq!(s.stages(run, 1).await.unwrap().len(), 1);
    assert!(!s.events(run, &all()).await.unwrap().items.iter().any(|event| event.kind == "zombie"));
    assert_eq!(s.run(&Scope::all(), run).await.unwrap().status, RunStatus::Running);
    assert_eq!(s.versions(run).await.unwrap()[0].output, None);
}

async fn release_lets_go(h: &Harness) {
    let s = &*h.store;
    let (run, fence) = begun(s, &Owner::new("a")).await;
    s.release(&fence).await.unwrap();
    s.release(&fence).await.unwrap();
    assert_eq!(zombie_writes(s, &fence).await, Vec::<&str>::new());
    assert_eq!(s.claimable(10).await.unwrap(), [run]);
    let next = take(s, run, &Owner::new("b"), AcquireMode::Free).await;
    s.release(&fence).await.unwrap();
    s.renew(&next, TTL).await.unwrap();
}

async fn a_chunk_commits_once(h: &Harness) {
    let s = &*h.store;
    let a = Owner::new("a");
    let (run, fence) = begun(s, &a).await;
    let one = commit(S0.chunk(1), 1);
    assert_eq!(s.commit_chunk(&fence, &one).await.unwrap(), CommitResult::Committed);
    assert_eq!(s.commit_chunk(&fence, &one).await.unwrap(), CommitResult::Committed, "the reply was lost");
    let winner = Winner { token: fence.token, attempt: 1, output: one.output.clone() };
    let lost = CommitResult::AlreadyCommitted { winner: winner.clone() };
    assert_eq!(s.commit_chunk(&fence, &commit(S0.chunk(1), 2)).await.unwrap(), lost);
    // The same attempt number under another token is another attempt.
    h.advance(11_000).await;
    let fence2 = take(s, run, &Owner::new("b"), AcquireMode::Free).await;
    assert_eq!(s.commit_chunk(&fence2, &one).await.unwrap(), lost);
    assert_eq!(s.commit_chunk(&fence, &one).await.unwrap(), CommitResult::Fenced);

    let batch: Vec<ChunkCommit> = [9, 1, 3, 0].map(|chunk| commit(S0.chunk(chunk), 4)).into();
    let results = s.commit_chunks(&fence2, &batch).await.unwrap();
    let done = CommitResult::Committed;
    assert_eq!(results, [done.clone(), lost, done.clone(), done]);
    assert_eq!(s.commit_chunks(&fence, &batch).await.unwrap(), vec![CommitResult::Fenced; 4]);
    assert_eq!(s.commit_chunks(&fence2, &[]).await.unwrap(), []);

    let page = s.committed(run, S0, &PageRequest::first(3)).await.unwrap();
    let chunks: Vec<u64> = page.items.iter().map(|chunk| chunk.commit.chunk.chunk).collect();
    assert_eq!((chunks, page.next), (vec![0, 1, 3], Some(3)));
    assert_eq!(page.items[1].commit, one);
    assert_eq!(page.items[1].token, fence.token);
    let rest = s.committed(run, S0, &PageRequest::after(3, 3)).await.unwrap();
    assert_eq!((rest.items.len(), rest.next), (1, None));

    // The sums are those of the journal: each commit counted once, whatever was repeated.
    let stage = &s.stages(run, 1).await.unwrap()[0];
    assert_eq!(stage.committed_chunks, 4);
    let sums: Vec<(String, u64)> = stage.counts.iter().map(|step| (step.step.clone(), step.counts.total())).collect();
    assert_eq!(sums, [("a".to_owned(), 400), ("b".to_owned(), 392)]);
    assert_eq!(stage.counts[1].counts.cached, 32);
}

async fn commits_are_bounded_by_the_plan(h: &Harness) {
    let s = &*h.store;
    let (run, fence) = begun(s, &Owner::new("a")).await;
    let elsewhere = StageId { version: 1, stage: 7 };
    assert!(matches!(s.commit_chunk(&fence, &commit(elsewhere.chunk(0), 1)).await, Err(Error::NotFound { .. })));
    s.put_chunks(&fence, S0, &[spec(0), spec(1)], true).await.unwrap();
    assert!(matches!(s.commit_chunk(&fence, &commit(S0.chunk(2), 1)).await, Err(Error::NotFound { .. })));
    // Whole or not at all.
    let batch = [commit(S0.chunk(0), 1), commit(S0.chunk(2), 1)];
    assert!(s.commit_chunks(&fence, &batch).await.is_err());
    assert!(s.committed(run, S0, &all()).await.unwrap().items.is_empty());
    let huge = ChunkCommit { rows_out: u64::MAX, ..commit(S0.chunk(0), 1) };
    assert!(matches!(s.commit_chunk(&fence, &huge).await, Err(Error::Invalid { .. })));
    s.commit_chunk(&fence, &batch[0]).await.unwrap();
}

async fn manifests_are_read_verbatim(h: &Harness) {
    let s = &*h.store;
    let (run, fence) = begun(s, &Owner::new("a")).await;
    let specs: Vec<ChunkSpec> = (0..1000).map(spec).collect();
    s.put_chunks(&fence, S0, &specs[..600], false).await.unwrap();
    s.put_chunks(&fence, S0, &specs[500..700], false).await.unwrap();
    // A gap cannot be sealed, and a failed call changes nothing.
    assert!(matches!(s.put_chunks(&fence, S0, &specs[800..], true).await, Err(Error::Conflict { .. })));
    assert_eq!(s.chunks(run, S0, &all()).await.unwrap().items.len(), 700);
    let changed = ChunkSpec { etag: Some("changed".into()), ..spec(3) };
    assert!(matches!(
        s.put_chunks(&fence, S0, std::slice::from_ref(&changed), false).await,
        Err(Error::Conflict { .. })
    ));
    // An unsealed manifest can be made again; what is committed stays.
    s.commit_chunk(&fence, &commit(S0.chunk(2), 1)).await.unwrap();
    s.drop_unsealed_chunks(&fence, S0).await.unwrap();
    assert_eq!(s.chunks(run, S0, &all()).await.unwrap().items, [spec(2)]);
    s.put_chunks(&fence, S0, &specs, true).await.unwrap();
    s.put_chunks(&fence, S0, &specs, true).await.unwrap();
    assert!(matches!(s.drop_unsealed_chunks(&fence, S0).await, Err(Error::Conflict { .. })));
    assert!(matches!(s.put_chunks(&fence, S0, &[spec(1000)], true).await, Err(Error::Conflict { .. })));
    assert!(matches!(s.put_chunks(&fence, S0, &[changed], true).await, Err(Error::Conflict { .. })));
    let mut read = Vec::new();
    let mut page = PageRequest::first(333);
    loop {
        let found = s.chunks(run, S0, &page).await.unwrap();
        read.extend(found.items);
        match found.next {
            Some(next) => page = PageRequest::after(next, 333),
            None => break,
        }
    }
    assert_eq!(read, specs);
    assert_eq!(s.stages(run, 1).await.unwrap()[0].chunk_count, Some(1000));
    // An empty input is a manifest, too.
    s.put_stages(&fence, &[stage(1, 1)]).await.unwrap();
    s.put_chunks(&fence, StageId { version: 1, stage: 1 }, &[], true).await.unwrap();
    assert_eq!(s.stages(run, 1).await.unwrap()[1].chunk_count, Some(0));
}

async fn effects_live_until_the_commit(h: &Harness) {
    let s = &*h.store;
    let (run, fence) = begun(s, &Owner::new("a")).await;
    let (c0, c1) = (S0.chunk(0), S0.chunk(1));
    let first = EffectBatch::new(vec![
        record(c0, 1, EffectKind::Result, b"one"),
        record(c1, 1, EffectKind::Result, b"other chunk"),
        record(c0, 2, EffectKind::Intent, b""),
        record(c0, 3, EffectKind::Intent, b""),
    ]);
    assert_eq!(s.append_effects(&fence, &first).await.unwrap(), Appended::default());
    assert_eq!(s.append_effects(&fence, &first).await.unwrap(), Appended::default());
    let second = EffectBatch::new(vec![
        record(c0, 3, EffectKind::Withdrawn, b""),
        record(c0, 4, EffectKind::Result, &[9; 100_000]),
        record(c0, 5, EffectKind::Result, b""),
    ]);
    s.append_effects(&fence, &second).await.unwrap();
    s.append_effects(&fence, &EffectBatch::new(vec![])).await.unwrap();
    let effects = s.effects(run, c0).await.unwrap();
    assert_eq!(effects.by_key.len(), 4);
    assert_eq!(effects.by_key[&[1; 16]], Effect::Completed(bytes::Bytes::from_static(b"one")));
    assert_eq!(effects.by_key[&[2; 16]], Effect::Intended);
    assert!(!effects.by_key.contains_key(&[3; 16]), "withdrawn");
    assert_eq!(effects.by_key[&[4; 16]], Effect::Completed(vec![9; 100_000].into()));
    assert_eq!(effects.by_key[&[5; 16]], Effect::Completed(bytes::Bytes::new()));
    // The next owner reads them, and the commit deletes those of its chunk only.
    h.advance(11_000).await;
    let next = take(s, run, &Owner::new("b"), AcquireMode::Free).await;
    assert_eq!(s.effects(run, c0).await.unwrap(), effects);
    s.commit_chunk(&next, &commit(c0, 1)).await.unwrap();
    assert!(s.effects(run, c0).await.unwrap().by_key.is_empty());
    assert_eq!(s.effects(run, c1).await.unwrap().by_key.len(), 1);
    // A late attempt is told to stop; the rest of its flush is kept.
    let late = EffectBatch::new(vec![record(c0, 8, EffectKind::Intent, b""), record(c1, 8, EffectKind::Intent, b"")]);
    assert_eq!(s.append_effects(&next, &late).await.unwrap().already_committed, [c0]);
    assert!(s.effects(run, c0).await.unwrap().by_key.is_empty());
    assert_eq!(s.effects(run, c1).await.unwrap().by_key.len(), 2);
}

async fn stages_only_move_forward(h: &Harness) {
    let s = &*h.store;
    let (run, fence) = begun(s, &Owner::new("a")).await;
    s.put_stages(&fence, &[stage(1, 0), stage(1, 1)]).await.unwrap();
    let changed = NewStage { fingerprint: "changed".into(), ..stage(1, 0) };
    let error = s.put_stages(&fence, &[changed]).await.unwrap_err();
    assert!(matches!(error, Error::Conflict { .. }), "{error}");
    for version in [0, 2] {
        assert!(matches!(s.put_stages(&fence, &[stage(version, 0)]).await, Err(Error::Invalid { .. })));
    }
    use StageStatus::*;
    s.set_stage_status(&fence, S0, Running, None).await.unwrap();
    s.set_stage_status(&fence, S0, Running, None).await.unwrap();
    s.set_stage_status(&fence, S0, Failed, Some("why")).await.unwrap();
    assert_eq!(s.stages(run, 1).await.unwrap()[0].error.as_deref(), Some("why"));
    s.set_stage_status(&fence, S0, Running, None).await.unwrap();
    h.advance(5).await;
    s.set_stage_status(&fence, S0, Done, None).await.unwrap();
    assert!(matches!(s.set_stage_status(&fence, S0, Running, None).await, Err(Error::Conflict { .. })));
    assert!(matches!(s.set_stage_status(&fence, S0, Failed, None).await, Err(Error::Conflict { .. })));
    let elsewhere = StageId { version: 1, stage: 5 };
    assert!(matches!(s.set_stage_status(&fence, elsewhere, Running, None).await, Err(Error::NotFound { .. })));
    let stages = s.stages(run, 1).await.unwrap();
    assert_eq!((stages[0].status, stages[1].status), (Done, Pending));
    assert_eq!(stages[0].ended_ms.unwrap() - stages[0].started_ms.unwrap(), 5);
    assert_eq!(stages[0].payload, [0]);
}

async fn the_end_is_final(h: &Harness) {
    let s = &*h.store;
    let a = Owner::new("a");
    let (run, fence) = begun(s, &a).await;
    assert!(matches!(s.finish(&fence, &finish(RunStatus::Running)).await, Err(Error::Invalid { .. })));
    // Stopped is not an end.
    s.finish(&fence, &finish(RunStatus::Stopped)).await.unwrap();
    s.finish(&fence, &finish(RunStatus::Stopped)).await.unwrap();
    assert_eq!(zombie_writes(s, &fence).await, Vec::<&str>::new());
    assert_eq!(s.run(&Scope::all(), run).await.unwrap().ended_ms, None);
    let fence = take(s, run, &a, AcquireMode::Free).await;
    s.start(&fence).await.unwrap();
    h.advance(1_000).await;
    s.finish(&fence, &finish(RunStatus::Failed)).await.unwrap();
    s.finish(&fence, &finish(RunStatus::Failed)).await.unwrap();
    assert!(matches!(s.finish(&fence, &finish(RunStatus::Succeeded)).await, Err(Error::Ended { .. })));
    let read = s.run(&Scope::all(), run).await.unwrap();
    assert_eq!((read.status, read.counts.ok), (RunStatus::Failed, 5));
    assert_eq!(read.error.as_deref(), Some("step `a` failed"));
    assert_eq!(read.ended_ms.unwrap() - read.started_ms.unwrap(), 1_000);
    for mode in [AcquireMode::Free, AcquireMode::Steal] {
        assert_eq!(s.acquire(run, &a, TTL, mode).await.unwrap(), Acquired::Ended(RunStatus::Failed));
    }
    assert!(matches!(s.commit_chunk(&fence, &commit(S0.chunk(0), 1)).await.unwrap(), CommitResult::Fenced));
    assert!(s.claimable(10).await.unwrap().is_empty());
}

async fn a_retry_is_a_new_version(h: &Harness) {
    let s = &*h.store;
    let a = Owner::new("a");
    let (run, fence) = begun(s, &a).await;
    let counts = OutcomeCounts { ok: 9, failed: 1, ..Default::default() };
    s.commit_chunk(&fence, &commit(S0.chunk(0), 1)).await.unwrap();
    s.publish_version(&fence, 1, "out/v1", &counts, b"p").await.unwrap();
    s.publish_version(&fence, 1, "out/v1", &counts, b"p").await.unwrap();
    assert!(matches!(s.publish_version(&fence, 1, "other", &counts, b"").await, Err(Error::Conflict { .. })));
    assert!(matches!(s.publish_version(&fence, 2, "other", &counts, b"").await, Err(Error::NotFound { .. })));
    s.finish(&fence, &finish(RunStatus::SucceededWithFailures)).await.unwrap();

    let lease = match s.acquire(run, &a, TTL, AcquireMode::Reopen).await.unwrap() {
        Acquired::Lease(lease) => lease,
        other => panic!("{other:?}"),
    };
    assert_eq!(lease.version, 2);
    assert_eq!(s.run(&Scope::all(), run).await.unwrap().status, RunStatus::Running);
    assert_eq!(zombie_writes(s, &fence).await, Vec::<&str>::new());
    let v2 = StageId { version: 2, stage: 0 };
    s.put_stages(&lease.fence, &[stage(2, 0)]).await.unwrap();
    assert!(s.committed(run, v2, &all()).await.unwrap().items.is_empty(), "its journal is its own");
    assert_eq!(s.commit_chunk(&lease.fence, &commit(v2.chunk(0), 1)).await.unwrap(), CommitResult::Committed);
    assert_eq!(s.committed(run, S0, &all()).await.unwrap().items.len(), 1);
    s.publish_version(&lease.fence, 2, "out/v2", &counts, b"").await.unwrap();
    s.finish(&lease.fence, &finish(RunStatus::Succeeded)).await.unwrap();
    let versions = s.versions(run).await.unwrap();
    let outputs: Vec<_> = versions.iter().map(|version| (version.version, version.output.as_deref())).collect();
    assert_eq!(outputs, [(1, Some("out/v1")), (2, Some("out/v2"))]);
    assert_eq!((versions[0].payload.as_slice(), versions[0].counts), (&b"p"[..], Some(counts)));
}

async fn cancellation_reaches_the_owner(h: &Harness) {
    let s = &*h.store;
    let (run, fence) = begun(s, &Owner::new("a")).await;
    assert_eq!(s.renew(&fence, TTL).await.unwrap().cancel, None);
    let scope = Scope::organisation("acme");
    assert_eq!(s.request_cancel(&scope, run, "bob", Some("too slow")).await.unwrap(), CancelResult::Requested);
    h.advance(5).await;
    assert_eq!(s.request_cancel(&scope, run, "eve", None).await.unwrap(), CancelResult::Requested);
    let cancel = s.renew(&fence, TTL).await.unwrap().cancel.unwrap();
    assert_eq!((cancel.actor.as_str(), cancel.reason.as_deref()), ("bob", Some("too slow")), "the first is kept");
    s.finish(&fence, &finish(RunStatus::Cancelled)).await.unwrap();
    assert_eq!(s.request_cancel(&scope, run, "bob", None).await.unwrap(), CancelResult::Cancelled);
    let (run, fence) = begun(s, &Owner::new("a")).await;
    s.finish(&fence, &finish(RunStatus::Succeeded)).await.unwrap();
    let late = s.request_cancel(&scope, run, "bob", None).await.unwrap();
    assert_eq!(late, CancelResult::AlreadyEnded(RunStatus::Succeeded));
    let kinds: Vec<String> = s.events(run, &all()).await.unwrap().items.into_iter().map(|event| event.kind).collect();
    assert_eq!(kinds, ["submitted", "owner", "ended"]);
}

async fn cancellation_without_an_owner_is_immediate(h: &Harness) {
    let s = &*h.store;
    let queued = s.submit(&new_run("flow")).await.unwrap().run.id;
    assert_eq!(s.request_cancel(&Scope::all(), queued, "bob", None).await.unwrap(), CancelResult::Cancelled);
    let read = s.run(&Scope::all(), queued).await.unwrap();
    assert_eq!((read.status, read.cancel.unwrap().actor.as_str()), (RunStatus::Cancelled, "bob"));
    assert!(read.ended_ms.is_some());
    let (run, dead) = begun(s, &Owner::new("dead")).await;
    h.advance(11_000).await;
    assert_eq!(s.request_cancel(&Scope::all(), run, "bob", None).await.unwrap(), CancelResult::Cancelled);
    assert_eq!(zombie_writes(s, &dead).await, Vec::<&str>::new());
    assert_eq!(s.run(&Scope::all(), run).await.unwrap().status, RunStatus::Cancelled);
}

async fn retention_takes_ended_runs_only(h: &Harness) {
    let s = &*h.store;
    let day = Duration::from_secs(86_400);
    let (running, fence) = begun(s, &Owner::new("a")).await;
    let (run, ended) = begun(s, &Owner::new("b")).await;
    s.put_chunks(&ended, S0, &[spec(0), spec(1)], true).await.unwrap();
    let batch = EffectBatch::new(vec![record(S0.chunk(1), 1, EffectKind::Result, b"r")]);
    s.append_effects(&ended, &batch).await.unwrap();
    s.commit_chunk(&ended, &commit(S0.chunk(0), 1)).await.unwrap();
    s.finish(&ended, &finish(RunStatus::Failed)).await.unwrap();
    let temporary = Retention::Temporary;
    assert!(s.collectable(temporary, day, 10).await.unwrap().is_empty(), "too young");
    assert_eq!(s.collectable(temporary, Duration::ZERO, 10).await.unwrap(), [run]);
    assert!(!s.begin_collection(run, temporary, day).await.unwrap());
    assert!(matches!(s.end_collection(run, temporary).await, Err(Error::Conflict { .. })), "never begun");
    h.advance(86_400_000).await;
    // The lease of the running one has long expired, and still it is not ended.
    assert_eq!(s.collectable(temporary, day, 10).await.unwrap(), [run]);
    assert!(!s.begin_collection(running, temporary, day).await.unwrap());
    assert!(s.begin_collection(run, temporary, day).await.unwrap());
    assert!(s.begin_collection(run, temporary, day).await.unwrap());
    // Begun and not finished: it is found again, and cannot be opened again.
    assert_eq!(s.collectable(temporary, day, 10).await.unwrap(), [run]);
    let reopen = s.acquire(run, &Owner::new("c"), TTL, AcquireMode::Reopen).await;
    assert!(matches!(reopen, Err(Error::Conflict { .. })), "{reopen:?}");
    s.end_collection(run, temporary).await.unwrap();
    s.end_collection(run, temporary).await.unwrap();
    assert!(s.collectable(temporary, day, 10).await.unwrap().is_empty());
    assert!(s.effects(run, S0.chunk(1)).await.unwrap().by_key.is_empty());
    assert!(s.chunks(run, S0, &all()).await.unwrap().items.is_empty());
    assert_eq!(s.committed(run, S0, &all()).await.unwrap().items.len(), 1);
    assert_eq!(s.collectable(Retention::Results, day, 10).await.unwrap(), [run]);
    assert!(s.begin_collection(run, Retention::Results, day).await.unwrap());
    s.end_collection(run, Retention::Results).await.unwrap();
    assert!(s.committed(run, S0, &all()).await.unwrap().items.is_empty());
    let read = s.run(&Scope::all(), run).await.unwrap();
    assert_eq!(read.collected, [Retention::Temporary, Retention::Results]);
    assert_eq!(s.stages(run, 1).await.unwrap()[0].counts[0].counts.total(), 100, "the sums remain");
    assert!(s.begin_collection(run, Retention::Audit, day).await.unwrap());
    s.end_collection(run, Retention::Audit).await.unwrap();
    s.end_collection(run, Retention::Audit).await.unwrap();
    assert!(matches!(s.run(&Scope::all(), run).await, Err(Error::NotFound { .. })));
    assert!(!s.begin_collection(run, Retention::Audit, day).await.unwrap());
    s.renew(&fence, TTL).await.unwrap();
    assert_eq!(s.count_runs(&RunFilter::default()).await.unwrap().len(), 1);
    s.optimize().await.unwrap();
    s.check().await.unwrap();
}

async fn events_are_kept_in_order(h: &Harness) {
    let s = &*h.store;
    let (run, fence) = begun(s, &Owner::new("a")).await;
    let events: Vec<NewEvent> =
        (0..20).map(|n| NewEvent::new("note", "me", serde_json::json!({ "n": n, "text": "a\u{1b}[31m<b>" }))).collect();
    s.append_events(&fence, &events[..12]).await.unwrap();
    s.append_events(&fence, &events[6..]).await.unwrap();
    let mut read = Vec::new();
    let mut page = PageRequest::first(6);
    loop {
        let found = s.events(run, &page).await.unwrap();
        read.extend(found.items);
        match found.next {
            Some(next) => page = PageRequest::after(next, 6),
            None => break,
        }
    }
    assert_eq!(read.len(), 22);
    assert_eq!((read[0].kind.as_str(), read[1].kind.as_str()), ("submitted", "owner"));
    assert!(read[2..].iter().zip(&events).all(|(read, event)| read.detail == event.detail));
    assert!(read.is_sorted_by_key(|event| event.seq));
}

async fn names_are_leased_like_runs(h: &Harness) {
    let s = &*h.store;
    let (a, b) = (Owner::new("a"), Owner::new("b"));
    let granted = |lease| match lease {
        NamedLease::Granted(fence) => fence,
        held => panic!("{held:?}"),
    };
    let first = granted(s.acquire_named("scheduler", &a, TTL).await.unwrap());
    assert_eq!(granted(s.acquire_named("scheduler", &a, TTL).await.unwrap()), first);
    // Who asks in vain is told who holds it, and for how long.
    let held = s.acquire_named("scheduler", &b, TTL).await.unwrap();
    assert!(
        matches!(&held, NamedLease::Held { owner, expires_in } if owner == "a" && !expires_in.is_zero() && *expires_in <= TTL),
        "{held:?}"
    );
    granted(s.acquire_named("other", &b, TTL).await.unwrap());
    h.advance(9_000).await;
    s.renew_named(&first, TTL).await.unwrap();
    h.advance(9_000).await;
    assert!(matches!(s.acquire_named("scheduler", &b, TTL).await.unwrap(), NamedLease::Held { .. }));
    h.advance(2_000).await;
    let second = granted(s.acquire_named("scheduler", &b, TTL).await.unwrap());
    assert!(second.token > first.token);
    assert!(matches!(s.renew_named(&first, TTL).await, Err(Error::Fenced { .. })));
    s.release_named(&first).await.unwrap();
    s.renew_named(&second, TTL).await.unwrap();
    s.release_named(&second).await.unwrap();
    s.release_named(&second).await.unwrap();
    let third = granted(s.acquire_named("scheduler", &a, TTL).await.unwrap());
    assert!(third.token > second.token);
    for bad in ["", "a\0b", &"x".repeat(5000)] {
        assert!(matches!(s.acquire_named(bad, &a, TTL).await, Err(Error::Invalid { .. })));
    }
}

/// With the failures surfacing, a caller sees an error, and the store shows what was executed.
#[tokio::test]
async fn faults_surface_and_are_counted() {
    let harness = Harness::memory().await;
    let faults = FaultStore::new(harness.store.clone(), 7, 600, Mode::Surface);
    let (run, fence) = begun(&*harness.store, &Owner::new("a")).await;
    let mut failed = 0;
    for chunk in 0..200 {
        match faults.commit_chunk(&fence, &commit(S0.chunk(chunk), 1)).await {
            Ok(result) => assert_eq!(result, CommitResult::Committed),
            Err(error) => {
                assert!(error.is_retryable(), "{error}");
                failed += 1;
            }
        }
    }
    let [before, lost, double] = [Kind::FailBefore, Kind::LoseReply, Kind::Double].map(|kind| faults.count(kind));
    assert!(before > 0 && lost > 0 && double > 0, "{:?}", faults.fired());
    assert_eq!(failed, before + lost);
    let committed = harness.store.committed(run, S0, &all()).await.unwrap().items.len() as u64;
    assert_eq!(committed, 200 - before, "a lost reply was executed");
    let _: Arc<dyn RunStore> = Arc::new(faults);
}
