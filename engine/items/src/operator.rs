//! The operator of one step: what its partitions share.

use std::hash::{BuildHasher as _, RandomState};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use futures::Stream;
use futures::stream::BoxStream;
use rowmill_limits::{Admission, ConnectionLimits};
use rowmill_step::{
    CallCost, Cardinality, Failure, KeyDeriver, MaxErrors, OnError, StepContext, StepExecutor, StepShape,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::cached::StepCache;
use crate::driver::Driver;
use crate::earlier::Earlier;
use crate::effects::{ChunkLog, RowCodec};
use crate::ledger::Ledger;
use crate::policy::StepPolicy;
use crate::sessions::Slots;
use crate::tally::{Tally, TallySnapshot};

/// Any error of the input, and [`StepStopped`] for the step's own end.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a step stopped the run.
#[derive(Debug, Clone, thiserror::Error)]
#[error("step `{step}`: {reason}")]
pub struct StepStopped {
    /// The step.
    pub step: Arc<str>,
    /// Why.
    pub reason: StopReason,
}

/// Why a step stopped the run.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StopReason {
    /// An item failed, and the step's `on_error` is `fail`.
    #[error("item {item} failed after {attempts} attempt(s): {code}: {message}", code = failure.code(), message = failure.message())]
    Item {
        /// `file:row`.
        item: String,
        /// The failure.
        failure: Failure,
        /// Attempts that were made.
        attempts: u32,
        /// Whether it is a call made once that may have happened, so that nobody tries it again unasked.
        held: bool,
    },
    /// More items failed than `max_errors` allows.
    #[error("{errors} of {items} items failed, more than `max_errors` allows ({limit}); the last: {last}")]
    TooMany {
        /// Items that failed.
        errors: u64,
        /// Items that were settled.
        items: u64,
        /// The setting.
        limit: String,
        /// The last failure.
        last: String,
    },
    /// The step cannot work at all; no item is to blame.
    #[error("{code}: {message}", code = failure.code(), message = failure.message())]
    Fatal {
        /// Why.
        failure: Failure,
    },
    /// The run was cancelled.
    #[error("cancelled")]
    Cancelled,
}

/// What a step operator is made of.
#[derive(Debug)]
pub struct OperatorParts {
    /// The step's executor.
    pub executor: Arc<dyn StepExecutor>,
    /// What it gets from the engine.
    pub context: StepContext,
    /// The columns that it reads and adds.
    pub shape: StepShape,
    /// All columns that come in.
    pub input: SchemaRef,
    /// What holds for its items.
    pub policy: StepPolicy,
    /// Limits of the connections that it uses.
    pub limits: Vec<ConnectionLimits>,
    /// Where its results are kept, if they are.
    pub cache: Option<StepCache>,
    /// The counts of the whole step.
    pub tally: Arc<Tally>,
}

/// What belongs to one partition, or to one chunk, of a step.
#[derive(Debug)]
pub struct Scope {
    /// The first half of its items' identities; their second half is their ordinal in its input.
    pub place: u32,
    /// Where items go that are not simply ok.
    pub ledger: Arc<Ledger>,
    /// Its counts: the step's own, or a part of them.
    pub tally: Arc<Tally>,
    /// Results come from it and go into it, where the run is durable.
    pub log: Option<ChunkLog>,
    /// What is known of its items from an earlier version of the run's result.
    pub earlier: Option<Earlier>,
}

/// The operator of one step, shared by its partitions.
#[derive(Debug)]
pub struct StepOperator {
    pub(crate) executor: Arc<dyn StepExecutor>,
    pub(crate) context: StepContext,
    pub(crate) shape: StepShape,
    pub(crate) policy: StepPolicy,
    limits: Vec<ConnectionLimits>,
    pub(crate) cache: Option<StepCache>,
    tally: Arc<Tally>,
    pub(crate) keys: Arc<KeyDeriver>,
    pub(crate) slots: Slots,
    /// Indexes of the columns that the step reads.
    pub(crate) reads: Vec<usize>,
    pub(crate) output: SchemaRef,
    pub(crate) cancel: CancellationToken,
    stopped: OnceLock<StepStopped>,
    codec: OnceLock<Result<RowCodec, Failure>>,
    random: AtomicU64,
    /// The partitions that are under way.
    live: TaskTracker,
}

impl StepOperator {
    /// An operator.
    ///
    /// # Errors
    /// A sentence, when the parts do not fit together.
    pub fn try_new(parts: OperatorParts) -> Result<Arc<Self>, String> {
        let OperatorParts { executor, context, shape, input, policy, mut limits, cache, tally } = parts;
        // Every step asks them in one order: two that hold one each and wait for the other's would wait for ever.
        limits.sort_by(|left, right| left.name().cmp(right.name()));
        let mut reads = Vec::new();
        for field in shape.input.fields() {
            let index = input.index_of(field.name()).map_err(|_| {
                format!("step `{}` reads column `{}`, which its input does not have", context.step, field.name())
            })?;
            let found = input.field(index).data_type();
            if found != field.data_type() {
                return Err(format!(
                    "step `{}` reads column `{}` as {}, and it comes in as {found}",
                    context.step,
                    field.name(),
                    field.data_type()
                ));
            }
            reads.push(index);
        }
        if let OnError::Default(row) = &policy.on_error
            && (row.num_rows() != 1 || row.schema() != shape.output)
        {
            return Err(format!("the default of step `{}` is not one row of its columns", context.step));
        }
        policy.retry.check()?;
        let output = output_schema(&input, &shape.output)?;
        // Of this process alone, so that those who failed together do not come back together.
        let seed = RandomState::new().hash_one(&*context.step);
        Ok(Arc::new(Self {
            keys: Arc::new(context.keys()),
            slots: Slots::new(policy.target.in_flight),
            cancel: context.cancel.child_token(),
            executor,
            context,
            shape,
            policy,
            limits,
            cache,
            tally,
            reads,
            output,
            stopped: OnceLock::new(),
            codec: OnceLock::new(),
            random: AtomicU64::new(seed),
            live: TaskTracker::new(),
        }))
    }

    /// The columns that leave: those that came in, then those that the step adds.
    pub fn schema(&self) -> &SchemaRef {
        &self.output
    }

    /// What the step's counts are.
    pub fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }

    /// Its step kind's description.
    pub fn executor(&self) -> &Arc<dyn StepExecutor> {
        &self.executor
    }

    /// Its policy.
    pub fn policy(&self) -> &StepPolicy {
        &self.policy
    }

    /// Why the step stopped the run, if it did.
    pub fn stopped(&self) -> Option<&StepStopped> {
        self.stopped.get()
    }

    /// Drives one partition, or one chunk, on a task of its own.
    #[expect(clippy::disallowed_methods, reason = "the task ends soon after its stream is dropped, and is waited for")]
    pub fn run(self: &Arc<Self>, scope: Scope, input: BoxStream<'static, Result<RecordBatch, BoxError>>) -> ItemStream {
        let (sender, receiver) = mpsc::channel(2);
        let cancel = self.cancel.child_token();
        let driver = Driver::new(Arc::clone(self), Arc::new(scope), input, sender, cancel.clone());
        tokio::spawn(driver.run(self.live.token()).instrument(self.context.span.clone()));
        ItemStream { receiver, cancel, done: false }
    }

    /// Waits until no partition is under way: counts and ledgers are complete then. A partition whose stream was
    /// dropped ends soon after that; one whose stream is neither dropped nor read may never end.
    pub async fn ended(&self) {
        self.live.close();
        self.live.wait().await;
    }

    /// Ends the step: cancels what is still under way, waits for it, and ends the sessions.
    pub async fn close(&self) {
        self.cancel.cancel();
        self.ended().await;
        for failure in self.slots.close(&self.context).await {
            tracing::warn!(step = %self.context.step, "a session did not end well: {}", failure.message());
        }
    }

    /// Stops what is under way; what was not sent is `not_run`.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Checks `max_errors` for the whole step. Called when all partitions have ended.
    ///
    /// # Errors
    /// When a share is exceeded that was not judged before the end.
    pub fn check_end(&self) -> Result<(), StepStopped> {
        if let Some(stopped) = self.stopped() {
            return Err(stopped.clone());
        }
        self.judge_errors(None, true);
        self.stopped().map_or(Ok(()), |stopped| Err(stopped.clone()))
    }

    pub(crate) fn cardinality(&self) -> Cardinality {
        self.executor.describe().cardinality
    }

    pub(crate) fn codec(&self) -> Result<&RowCodec, Failure> {
        self.codec.get_or_init(|| RowCodec::try_new(&self.shape.output)).as_ref().map_err(Clone::clone)
    }

    /// Stops all partitions; the first reason counts.
    pub(crate) fn stop(&self, reason: StopReason) {
        let _ = self.stopped.set(StepStopped { step: Arc::clone(&self.context.step), reason });
        self.cancel.cancel();
    }

    /// Whether calls have to ask before they leave.
    pub(crate) fn is_limited(&self) -> bool {
        !self.limits.is_empty()
    }

    /// Waits until the limits of the step's connections let a call go.
    pub(crate) async fn admit(&self, cost: CallCost) -> Admissions {
        let mut admissions = Vec::with_capacity(self.limits.len());
        for limits in &self.limits {
            admissions.push(limits.admit(cost).await);
        }
        Admissions(admissions)
    }

    /// Stops the run when more failed than may.
    pub(crate) fn judge_errors(&self, last: Option<&Failure>, at_end: bool) {
        if let Some(limit) = &self.policy.max_errors
            && let Some(reason) = too_many(limit, &self.tally.snapshot(), last, at_end)
        {
            self.stop(reason);
        }
    }

    /// A number in `[0, 1)`, for jitter.
    pub(crate) fn random(&self) -> f64 {
        // SplitMix64; the quality of jitter is all that hangs on it.
        let mut z = self.random.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Why the step has to stop, if more of its items failed than `limit` allows. `last` is the last failure, where it is
/// known; `at_end` says that no more items come.
pub fn too_many(limit: &MaxErrors, counts: &TallySnapshot, last: Option<&Failure>, at_end: bool) -> Option<StopReason> {
    let (errors, seen) = (counts.errors(), counts.seen());
    if !limit.exceeded(errors, seen, at_end) {
        return None;
    }
    let limit = match limit {
        MaxErrors::Count(most) => most.to_string(),
        MaxErrors::Share { share, .. } => format!("{}%", share * 100.0),
    };
    let last = match last {
        Some(failure) => format!("{}: {}", failure.code(), failure.message()),
        None => "see the ledger".to_owned(),
    };
    Some(StopReason::TooMany { errors, items: seen, limit, last })
}

/// Leave to make one call, from every limit that was asked.
#[derive(Debug)]
pub(crate) struct Admissions(Vec<Admission>);

impl Admissions {
    pub(crate) fn finish(self, failure: Option<&Failure>) {
        for admission in self.0 {
            admission.finish(failure);
        }
    }
}

fn output_schema(input: &SchemaRef, adds: &SchemaRef) -> Result<SchemaRef, String> {
    let mut fields: Vec<_> = input.fields().iter().cloned().collect();
    for field in adds.fields() {
        if input.index_of(field.name()).is_ok() {
            return Err(format!("column `{}` comes in already, and the step adds one of that name", field.name()));
        }
        fields.push(Arc::clone(field));
    }
    Ok(Arc::new(Schema::new(fields)))
}

/// What leaves one partition. Dropping it cancels what is in flight; what was not sent is `not_run`.
#[derive(Debug)]
pub struct ItemStream {
    receiver: mpsc::Receiver<Result<RecordBatch, BoxError>>,
    cancel: CancellationToken,
    done: bool,
}

impl Stream for ItemStream {
    type Item = Result<RecordBatch, BoxError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.done {
            return Poll::Ready(None);
        }
        let next = self.receiver.poll_recv(context);
        self.done = matches!(next, Poll::Ready(None | Some(Err(_))));
        next
    }
}

impl Drop for ItemStream {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}
