//! Random sequences of calls by several owners, with time passing and replies lost, against a model that a reader can
//! hold in their head.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use rowmill_store::fault::{FaultStore, Mode};
use rowmill_store::*;

use crate::support::*;

#[derive(Debug, Clone)]
enum Op {
    Advance(i64),
    Acquire(usize, u8),
    Renew(usize),
    Release(usize),
    Start(usize),
    Commit(usize, u64, u32),
    Effect(usize, u64, u8, u8),
    Finish(usize, u8),
    Cancel,
}

fn op() -> impl Strategy<Value = Op> {
    let owner = 0..3usize;
    prop_oneof![
        3 => (0..12_000i64).prop_map(Op::Advance),
        4 => (owner.clone(), 0..8u8).prop_map(|(owner, mode)| Op::Acquire(owner, mode)),
        2 => owner.clone().prop_map(Op::Renew),
        1 => owner.clone().prop_map(Op::Release),
        1 => owner.clone().prop_map(Op::Start),
        6 => (owner.clone(), 0..4u64, 1..3u32).prop_map(|(owner, chunk, attempt)| Op::Commit(owner, chunk, attempt)),
        6 => (owner.clone(), 0..4u64, 0..3u8, 0..3u8).prop_map(|(owner, chunk, key, kind)| Op::Effect(owner, chunk, key, kind)),
        1 => (owner, 0..3u8).prop_map(|(owner, how)| Op::Finish(owner, how)),
        1 => Just(Op::Cancel),
    ]
}

/// What the store should hold.
struct Model {
    now: i64,
    token: u64,
    holder: Option<usize>,
    until: i64,
    status: RunStatus,
    version: u32,
    journal: BTreeMap<ChunkId, (u64, u32)>,
    effects: BTreeMap<ChunkId, HashMap<RequestKey, Effect>>,
    /// What was known before announcements that are not settled.
    before: BTreeMap<(ChunkId, u8), Vec<Option<Effect>>>,
    cancel: bool,
    /// The token and version that each owner last got; it may be a zombie's.
    known: [(u64, u32); 3],
}

impl Model {
    fn live(&self) -> bool {
        self.holder.is_some() && self.now < self.until
    }

    fn may_write(&self, owner: usize) -> bool {
        self.holder.is_some() && self.known[owner].0 == self.token
    }
}

const LONG: i64 = TTL.as_millis() as i64;

fn fenced<T: std::fmt::Debug>(result: &Result<T>) -> bool {
    matches!(result, Err(Error::Fenced { .. }))
}

async fn step(s: &dyn RunStore, h: &Harness, m: &mut Model, run: RunId, owners: &[Owner; 3], op: &Op) {
    let fence = |owner: usize, m: &Model| Fence { run, token: m.known[owner].0 };
    match *op {
        Op::Advance(ms) => {
            h.advance(ms).await;
            m.now += ms;
        }
        Op::Acquire(owner, mode) => {
            let mode = match mode {
                0 => AcquireMode::Steal,
                1 => AcquireMode::Reopen,
                _ => AcquireMode::Free,
            };
            let got = s.acquire(run, &owners[owner], TTL, mode).await.unwrap();
            if m.live() && m.holder == Some(owner) {
                m.until = m.now + LONG;
            } else if m.status.is_ended() && mode != AcquireMode::Reopen {
                assert_eq!(got, Acquired::Ended(m.status));
                return;
            } else if m.live() && mode != AcquireMode::Steal {
                assert!(matches!(got, Acquired::Held { .. }), "{got:?}");
                return;
            } else {
                m.token += 1;
                m.holder = Some(owner);
                m.until = m.now + LONG;
                if m.status.is_ended() {
                    m.status = RunStatus::Running;
                    m.version += 1;
                    m.cancel = false;
                }
            }
            let Acquired::Lease(lease) = got else { panic!("{got:?}") };
            assert_eq!((lease.fence.token, lease.version, lease.status), (m.token, m.version, m.status));
            m.known[owner] = (m.token, m.version);
            s.put_stages(&lease.fence, &[stage(m.version, 0)]).await.unwrap();
        }
        Op::Renew(owner) => {
            let got = s.renew(&fence(owner, m), TTL).await;
            if m.may_write(owner) {
                m.until = m.now + LONG;
                assert_eq!(got.unwrap().cancel.is_some(), m.cancel);
            } else {
                assert!(fenced(&got), "{got:?}");
            }
        }
        Op::Release(owner) => {
            s.release(&fence(owner, m)).await.unwrap();
            if m.may_write(owner) {
                m.holder = None;
            }
        }
        Op::Start(owner) => {
            let got = s.start(&fence(owner, m)).await;
            assert_eq!(fenced(&got), !m.may_write(owner), "{got:?}");
            if got.is_ok() {
                m.status = RunStatus::Running;
            }
        }
        Op::Commit(owner, chunk, attempt) => {
            let chunk = ChunkId { version: m.known[owner].1, stage: 0, chunk };
            let got = s.commit_chunk(&fence(owner, m), &commit(chunk, attempt)).await.unwrap();
            if !m.may_write(owner) {
                assert_eq!(got, CommitResult::Fenced);
                return;
            }
            m.effects.remove(&chunk);
            let winner = *m.journal.entry(chunk).or_insert((m.token, attempt));
            match got {
                CommitResult::Committed => assert_eq!(winner, (m.token, attempt)),
                CommitResult::AlreadyCommitted { winner: told } => {
                    assert_eq!(winner, (told.token, told.attempt));
                    assert_ne!(winner, (m.token, attempt));
                }
                CommitResult::Fenced => panic!("the owner holds the run"),
            }
        }
        Op::Effect(owner, chunk, key, kind) => {
            let chunk = ChunkId { version: m.known[owner].1, stage: 0, chunk };
            let kind = [EffectKind::Intent, EffectKind::Result, EffectKind::Withdrawn][kind as usize];
            let bytes = m.now.to_le_bytes();
            let batch = EffectBatch::new(vec![record(chunk, key, kind, &bytes)]);
            let got = s.append_effects(&fence(owner, m), &batch).await;
            if !m.may_write(owner) {
                assert!(fenced(&got), "{got:?}");
                return;
            }
            let refused = got.unwrap().already_committed;
            assert_eq!(!refused.is_empty(), m.journal.contains_key(&chunk));
            if refused.is_empty() {
                let log = m.effects.entry(chunk).or_default();
                let known = log.get(&[key; 16]).cloned();
                match (kind, known) {
                    (EffectKind::Result, _) => {
                        log.insert([key; 16], Effect::Completed(bytes.to_vec().into()));
                        m.before.remove(&(chunk, key));
                    }
                    (EffectKind::Intent, known) => {
                        log.insert([key; 16], Effect::Intended);
                        m.before.entry((chunk, key)).or_default().push(known);
                    }
                    (EffectKind::Withdrawn, Some(Effect::Intended)) => {
                        match m.before.get_mut(&(chunk, key)).and_then(Vec::pop).flatten() {
                            Some(before) => log.insert([key; 16], before),
                            None => log.remove(&[key; 16]),
                        };
                    }
                    _ => {}
                }
            }
        }
        Op::Finish(owner, how) => {
            let how = [RunStatus::Stopped, RunStatus::Failed, RunStatus::Succeeded][how as usize];
            let got = s.finish(&fence(owner, m), &finish(how)).await;
            if m.may_write(owner) {
                got.unwrap();
                m.status = how;
                m.holder = None;
            } else if m.holder.is_none() && m.known[owner].0 == m.token && m.status == how {
                // The repetition of a call that was executed.
                got.unwrap();
            } else {
                assert_eq!(got.unwrap_err().fault(), Fault::Conflict);
            }
        }
        Op::Cancel => {
            let got = s.request_cancel(&Scope::all(), run, "bob", None).await.unwrap();
            if m.status.is_ended() {
                let cancelled = m.status == RunStatus::Cancelled;
                let wanted = if cancelled { CancelResult::Cancelled } else { CancelResult::AlreadyEnded(m.status) };
                assert_eq!(got, wanted);
                return;
            }
            m.cancel = true;
            if m.live() {
                assert_eq!(got, CancelResult::Requested);
            } else {
                assert_eq!(got, CancelResult::Cancelled);
                m.status = RunStatus::Cancelled;
                m.token += 1;
                m.holder = None;
            }
        }
    }
}

async fn compare(s: &dyn RunStore, m: &Model, run: RunId) {
    let read = s.run(&Scope::all(), run).await.unwrap();
    assert_eq!((read.status, read.version, read.cancel.is_some()), (m.status, m.version, m.cancel));
    assert_eq!(read.ended_ms.is_some(), m.status.is_ended());
    for version in 1..=m.version {
        let stage = StageId { version, stage: 0 };
        let stored = s.committed(run, stage, &all()).await.unwrap().items;
        let stored: Vec<_> =
            stored.iter().map(|chunk| (chunk.commit.chunk, (chunk.token, chunk.commit.attempt))).collect();
        let wanted: Vec<_> =
            m.journal.iter().filter(|(chunk, _)| chunk.version == version).map(|(chunk, by)| (*chunk, *by)).collect();
        assert_eq!(stored, wanted);
        // Conservation: the sums are the journal's.
        let sums: u64 =
            s.stages(run, version).await.unwrap().iter().flat_map(|s| s.counts.first()).map(|c| c.counts.total()).sum();
        assert_eq!(sums, 100 * stored.len() as u64);
        for chunk in (0..4).map(|chunk| stage.chunk(chunk)) {
            let wanted = m.effects.get(&chunk).cloned().unwrap_or_default();
            assert_eq!(s.effects(run, chunk).await.unwrap().by_key, wanted);
        }
    }
    let claimable = matches!(m.status, RunStatus::Queued | RunStatus::Running) && !m.live();
    assert_eq!(!s.claimable(10).await.unwrap().is_empty(), claimable);
}

async fn run_sequence(mut harness: Harness, ops: &[Op], faults: Option<u64>) {
    if let Some(seed) = faults {
        harness.store = Arc::new(FaultStore::new(harness.store.clone(), seed, 400, Mode::Repeat));
    }
    let s = harness.store.clone();
    let owners = ["a", "b", "c"].map(Owner::new);
    let run = s.submit(&new_run("flow")).await.unwrap().run.id;
    let mut model = Model {
        now: 0,
        token: 0,
        holder: None,
        until: 0,
        status: RunStatus::Queued,
        version: 1,
        journal: BTreeMap::new(),
        effects: BTreeMap::new(),
        before: BTreeMap::new(),
        cancel: false,
        known: [(0, 1); 3],
    };
    step(&*s, &harness, &mut model, run, &owners, &Op::Acquire(0, 7)).await;
    for op in ops {
        step(&*s, &harness, &mut model, run, &owners, op).await;
    }
    compare(&*s, &model, run).await;
    s.close().await;
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, max_shrink_time: 30_000, ..ProptestConfig::default() })]

    #[test]
    fn sqlite_follows_the_model(ops in prop::collection::vec(op(), 1..60), seed in any::<Option<u64>>()) {
        runtime().block_on(async { run_sequence(Harness::memory().await, &ops, seed).await });
    }
}

#[test]
fn postgres_follows_the_model() {
    let Some(server) = crate::server::shared() else { return };
    let config = ProptestConfig { cases: 20, max_shrink_iters: 20, ..ProptestConfig::default() };
    let strategy = (prop::collection::vec(op(), 1..40), any::<Option<u64>>());
    proptest::test_runner::TestRunner::new(config)
        .run(&strategy, |(ops, seed)| {
            let harness = async { run_sequence(Harness::postgres(&server.url()).await, &ops, seed).await };
            runtime().block_on(async { tokio::time::timeout(Duration::from_secs(120), harness).await.unwrap() });
            Ok(())
        })
        .unwrap();
}
