//! A store that fails on purpose: calls are refused before they run, or run and then report failure, or run twice.
//!
//! It stands between a caller and any store, and decides by a seed, so a failing test can be run again. Every fault that
//! fires is counted: a test that relies on one asserts that it happened.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::effect::{Appended, ChunkEffects, EffectBatch};
use crate::error::{Error, Result};
use crate::model::*;
use crate::store::RunStore;

/// What can happen to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// It fails and was not executed.
    FailBefore,
    /// It was executed and its reply is lost.
    LoseReply,
    /// It is executed twice, as by a caller that saw no reply; the second answer is given.
    Double,
}

/// Who sees the failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The caller, as [`Error::Unavailable`].
    Surface,
    /// Nobody: the wrapper plays a caller that repeats its call until a reply arrives. The answers must then be those
    /// of a store without faults.
    Repeat,
}

/// A store with faults.
#[derive(Debug)]
pub struct FaultStore {
    inner: Arc<dyn RunStore>,
    seed: u64,
    mode: Mode,
    /// Faults in a thousand calls.
    per_mille: u64,
    calls: AtomicU64,
    fired: Mutex<BTreeMap<(&'static str, Kind), u64>>,
}

impl FaultStore {
    /// Wraps a store. `per_mille` of a thousand calls meet a fault; at most 900.
    pub fn new(inner: Arc<dyn RunStore>, seed: u64, per_mille: u64, mode: Mode) -> Self {
        FaultStore {
            inner,
            seed,
            mode,
            per_mille: per_mille.min(900),
            calls: AtomicU64::new(0),
            fired: Mutex::new(BTreeMap::new()),
        }
    }

    /// The faults that have happened, by method and kind.
    pub fn fired(&self) -> BTreeMap<(&'static str, Kind), u64> {
        self.fired.lock().clone()
    }

    /// How many faults of a kind have happened.
    pub fn count(&self, kind: Kind) -> u64 {
        self.fired.lock().iter().filter(|((_, fired), _)| *fired == kind).map(|(_, count)| count).sum()
    }

    fn decide(&self, method: &'static str) -> Option<Kind> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        let random = mix(self.seed ^ mix(call));
        if random % 1000 >= self.per_mille {
            return None;
        }
        let kind = match (random >> 32) % 3 {
            0 => Kind::FailBefore,
            1 => Kind::LoseReply,
            _ => Kind::Double,
        };
        *self.fired.lock().entry((method, kind)).or_default() += 1;
        Some(kind)
    }

    fn failure(&self, method: &'static str) -> Error {
        Error::Unavailable {
            store: self.inner.describe().to_owned(),
            message: format!("a fault was injected into `{method}`"),
        }
    }
}

/// SplitMix64: one well-mixed number from another.
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

macro_rules! faulty {
    ($(fn $method:ident(&self $(, $arg:ident: $type:ty)* $(,)?) -> $result:ty;)+) => {
        #[async_trait]
        impl RunStore for FaultStore {
            fn describe(&self) -> &str {
                self.inner.describe()
            }

            async fn close(&self) {
                self.inner.close().await;
            }

            $(async fn $method(&self $(, $arg: $type)*) -> $result {
                let method = stringify!($method);
                loop {
                    match self.decide(method) {
                        None => return self.inner.$method($($arg),*).await,
                        Some(Kind::FailBefore) => {}
                        Some(Kind::LoseReply) => {
                            let _lost = self.inner.$method($($arg),*).await;
                        }
                        Some(Kind::Double) => {
                            let _first = self.inner.$method($($arg),*).await;
                            return self.inner.$method($($arg),*).await;
                        }
                    }
                    if self.mode == Mode::Surface {
                        return Err(self.failure(method));
                    }
                }
            })+
        }
    };
}

faulty! {
    fn submit(&self, new: &NewRun) -> Result<Submitted>;
    fn run(&self, scope: &Scope, run: RunId) -> Result<Run>;
    fn workflow_text(&self, scope: &Scope, run: RunId) -> Result<String>;
    fn runs(&self, filter: &RunFilter, page: &PageRequest<RunCursor>) -> Result<Page<Run, RunCursor>>;
    fn count_runs(&self, filter: &RunFilter) -> Result<BTreeMap<RunStatus, u64>>;
    fn claimable(&self, limit: u32) -> Result<Vec<RunId>>;
    fn request_cancel(&self, scope: &Scope, run: RunId, actor: &str, reason: Option<&str>) -> Result<CancelResult>;
    fn acquire(&self, run: RunId, owner: &Owner, ttl: Duration, mode: AcquireMode) -> Result<Acquired>;
    fn renew(&self, fence: &Fence, ttl: Duration) -> Result<Renewed>;
    fn release(&self, fence: &Fence) -> Result<()>;
    fn acquire_named(&self, name: &str, owner: &Owner, ttl: Duration) -> Result<NamedLease>;
    fn renew_named(&self, fence: &NamedFence, ttl: Duration) -> Result<()>;
    fn release_named(&self, fence: &NamedFence) -> Result<()>;
    fn start(&self, fence: &Fence) -> Result<()>;
    fn finish(&self, fence: &Fence, finish: &Finish) -> Result<()>;
    fn put_stages(&self, fence: &Fence, stages: &[NewStage]) -> Result<()>;
    fn set_stage_status(&self, fence: &Fence, stage: StageId, status: StageStatus, error: Option<&str>) -> Result<()>;
    fn stages(&self, run: RunId, version: u32) -> Result<Vec<Stage>>;
    fn put_chunks(&self, fence: &Fence, stage: StageId, chunks: &[ChunkSpec], seal: bool) -> Result<()>;
    fn drop_unsealed_chunks(&self, fence: &Fence, stage: StageId) -> Result<()>;
    fn chunks(&self, run: RunId, stage: StageId, page: &PageRequest<u64>) -> Result<Page<ChunkSpec, u64>>;
    fn commit_chunks(&self, fence: &Fence, commits: &[ChunkCommit]) -> Result<Vec<CommitResult>>;
    fn committed(&self, run: RunId, stage: StageId, page: &PageRequest<u64>) -> Result<Page<CommittedChunk, u64>>;
    fn append_effects(&self, fence: &Fence, batch: &EffectBatch) -> Result<Appended>;
    fn effects(&self, run: RunId, chunk: ChunkId) -> Result<ChunkEffects>;
    fn append_events(&self, fence: &Fence, events: &[NewEvent]) -> Result<()>;
    fn events(&self, run: RunId, page: &PageRequest<i64>) -> Result<Page<RunEvent, i64>>;
    fn publish_version(&self, fence: &Fence, version: u32, output: &str, counts: &OutcomeCounts, payload: &[u8]) -> Result<()>;
    fn versions(&self, run: RunId) -> Result<Vec<RunVersion>>;
    fn collectable(&self, class: Retention, age: Duration, limit: u32) -> Result<Vec<RunId>>;
    fn begin_collection(&self, run: RunId, class: Retention, age: Duration) -> Result<bool>;
    fn end_collection(&self, run: RunId, class: Retention) -> Result<()>;
    fn check(&self) -> Result<()>;
    fn optimize(&self) -> Result<()>;
}
