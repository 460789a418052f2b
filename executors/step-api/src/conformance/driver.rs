//! A small stand-in for the engine's operator: groups, sessions, retry, bisection, order. Simple rather than fast.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{RecordBatch, RecordBatchOptions, UInt32Array, UInt64Array};
use arrow::compute::{interleave_record_batch, take_record_batch};
use arrow::datatypes::SchemaRef;
use futures::StreamExt as _;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    Cardinality, Effects, Failure, FailureCode, ItemBatch, ItemIds, ItemKeys, KeyDeriver, Outcome, OutcomeCounts,
    RetryPolicy, StepContext, StepExecutor, StepSession, StepShape, Verdict, attempt, caught,
};

/// How to drive.
#[derive(Debug, Clone)]
pub struct Options {
    /// Items of a group; the executor's own target if `None`.
    pub group_rows: Option<usize>,
    /// When an item is tried again.
    pub retry: RetryPolicy,
    /// Time for one attempt.
    pub timeout: Option<Duration>,
    /// How long the consumer sleeps before it takes the next group.
    pub consumer_delay: Duration,
    /// Cancels the run.
    pub cancel: CancellationToken,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            group_rows: None,
            retry: RetryPolicy::none(),
            timeout: None,
            consumer_delay: Duration::ZERO,
            cancel: CancellationToken::new(),
        }
    }
}

/// What came of driving.
#[derive(Debug)]
pub struct Driven {
    /// The step's columns, in the order of the input.
    pub output: RecordBatch,
    /// For each output row, the number of its input row, counted over all input batches.
    pub sources: Vec<u64>,
    /// Failures by input row, ascending.
    pub failures: Vec<(u64, Failure)>,
    /// What became of the items.
    pub outcomes: OutcomeCounts,
    /// Attempts that were made, over all groups.
    pub attempts: u64,
    /// Calls as the step kind counts them.
    pub calls: u64,
    /// The most groups that were in flight at once.
    pub most_in_flight: usize,
}

/// Items of one input batch on their way: which rows, and what became of each.
struct Rows {
    columns: RecordBatch,
    first: u64,
}

#[derive(Default)]
struct Settled {
    pieces: Vec<RecordBatch>,
    /// (input row, piece, row of the piece)
    rows: Vec<(u64, usize, usize)>,
    failures: Vec<(u64, Failure)>,
    skipped: u64,
    unknown: u64,
    not_run: u64,
    attempts: u64,
    calls: u64,
}

/// What the groups of one run share.
struct Shared<'a> {
    executor: &'a dyn StepExecutor,
    context: &'a StepContext,
    shape: StepShape,
    options: &'a Options,
    deriver: Arc<KeyDeriver>,
    idle: Mutex<Vec<Box<dyn StepSession>>>,
}

/// Runs the executor over the batches as the engine would: groups of the target's size, `in_flight` sessions, retry by
/// the policy, bisection of groups that failed whole, output in order.
///
/// # Errors
/// Those of describing the output.
pub async fn drive(
    executor: &dyn StepExecutor,
    context: &StepContext,
    input: &SchemaRef,
    batches: Vec<RecordBatch>,
    options: &Options,
) -> Result<Driven, Failure> {
    let target = executor.describe().target;
    let output = caught(executor.output_schema(input, context), context).await?;
    let shared = Shared {
        executor,
        context,
        shape: StepShape { input: input.clone(), output: output.clone() },
        options,
        deriver: Arc::new(context.keys()),
        idle: Mutex::new(Vec::new()),
    };
    let group_rows = options.group_rows.unwrap_or(target.rows).max(1);
    let mut groups = Vec::new();
    let mut first = 0u64;
    for batch in batches {
        for offset in (0..batch.num_rows()).step_by(group_rows) {
            let columns = batch.slice(offset, group_rows.min(batch.num_rows() - offset));
            let rows = columns.num_rows() as u64;
            groups.push(Rows { columns, first });
            first += rows;
        }
    }
    let in_flight = Mutex::new((0usize, 0usize));
    let mut stream = futures::stream::iter(groups)
        .map(|group| async {
            {
                let mut counts = in_flight.lock();
                counts.0 += 1;
                counts.1 = counts.1.max(counts.0);
            }
            let settled = settle(group, &shared).await;
            in_flight.lock().0 -= 1;
            settled
        })
        .buffered(target.in_flight.max(1));
    let mut all = Settled::default();
    let mut driven_rows = Vec::new();
    while let Some(settled) = stream.next().await {
        let base = all.pieces.len();
        all.pieces.extend(settled.pieces);
        let mut rows = settled.rows;
        rows.sort_by_key(|(row, _, _)| *row);
        driven_rows.extend(rows.into_iter().map(|(row, piece, at)| (row, piece + base, at)));
        let mut failures = settled.failures;
        failures.sort_by_key(|(row, _)| *row);
        all.failures.extend(failures);
        all.skipped += settled.skipped;
        all.unknown += settled.unknown;
        all.not_run += settled.not_run;
        all.attempts += settled.attempts;
        all.calls += settled.calls;
        if options.consumer_delay > Duration::ZERO {
            tokio::time::sleep(options.consumer_delay).await;
        }
    }
    drop(stream);
    let idle = std::mem::take(&mut *shared.idle.lock());
    for session in idle {
        caught(session.close(), context).await?;
    }
    let failed = all.failures.len() as u64 - all.unknown;
    let mut outcomes = OutcomeCounts::default();
    outcomes.add(Outcome::Skipped, all.skipped);
    outcomes.add(Outcome::Unknown, all.unknown);
    outcomes.add(Outcome::Failed, failed);
    outcomes.add(Outcome::NotRun, all.not_run);
    outcomes.add(Outcome::Ok, first - outcomes.total());
    let pieces: Vec<&RecordBatch> = all.pieces.iter().collect();
    let indices: Vec<_> = driven_rows.iter().map(|(_, piece, at)| (*piece, *at)).collect();
    let output = if indices.is_empty() {
        RecordBatch::new_empty(output)
    } else {
        interleave_record_batch(&pieces, &indices).expect("pieces of one schema interleave")
    };
    Ok(Driven {
        output,
        sources: driven_rows.into_iter().map(|(row, _, _)| row).collect(),
        failures: all.failures,
        outcomes,
        attempts: all.attempts,
        calls: all.calls,
        most_in_flight: in_flight.into_inner().1,
    })
}

/// Works on one group until every item of it is settled.
async fn settle(group: Rows, shared: &Shared<'_>) -> Settled {
    let mut settled = Settled::default();
    let description = shared.executor.describe();
    // Groups that still have to be tried: indices into the group, and the attempt.
    let mut open: Vec<(Vec<u32>, u32)> = vec![((0..group.columns.num_rows() as u32).collect(), 1)];
    while let Some((indices, number)) = open.pop() {
        if shared.options.cancel.is_cancelled() {
            settled.not_run += indices.len() as u64;
            continue;
        }
        let row_of = |index: u32| group.first + u64::from(index);
        let ids = ItemIds::Columns {
            file: UInt32Array::from(vec![0; indices.len()]),
            row: UInt64Array::from_iter_values(indices.iter().map(|index| row_of(*index))),
        };
        let columns = take(&group.columns, &indices);
        let batch = ItemBatch {
            columns,
            keys: ItemKeys::new(ids, shared.deriver.clone()),
            attempt: number,
            deadline: shared.options.timeout.map(|timeout| Instant::now() + timeout),
            stop: shared.options.cancel.clone(),
            cancel: shared.options.cancel.clone(),
            place: None,
        };
        settled.attempts += 1;
        match try_once(batch, shared).await {
            Ok(reply) => {
                settled.calls += reply.usage.calls;
                let dropped = |index: u32| {
                    reply.skipped.binary_search(&index).is_ok()
                        || reply.failures.binary_search_by_key(&index, |(row, _)| *row).is_ok()
                };
                let sources = reply
                    .source_rows
                    .clone()
                    .unwrap_or_else(|| (0..indices.len() as u32).filter(|index| !dropped(*index)).collect());
                let piece = settled.pieces.len();
                for (at, source) in sources.iter().enumerate() {
                    settled.rows.push((row_of(indices[*source as usize]), piece, at));
                }
                settled.pieces.push(reply.output);
                settled.skipped += reply.skipped.len() as u64;
                let mut again: Vec<(u32, Failure)> = Vec::new();
                for (index, failure) in reply.failures {
                    again.push((indices[index as usize], failure));
                }
                fail_or_retry(again, number, description.effects, shared, &row_of, &mut settled, &mut open).await;
            }
            Err(failure) => {
                let may_cut = indices.len() > 1 && failure.bisectable(description.effects);
                let retried = shared.options.retry.next_delay(number, &failure, description.effects, 0.5).is_some();
                if may_cut && !retried {
                    let (left, right) = indices.split_at(indices.len() / 2);
                    open.push((right.to_vec(), 1));
                    open.push((left.to_vec(), 1));
                } else {
                    let all = indices.iter().map(|index| (*index, failure.clone())).collect();
                    fail_or_retry(all, number, description.effects, shared, &row_of, &mut settled, &mut open).await;
                }
            }
        }
    }
    settled
}

/// Some rows of a batch, which may have no columns: a step need not read any.
fn take(batch: &RecordBatch, indices: &[u32]) -> RecordBatch {
    if batch.num_columns() == 0 {
        let rows = RecordBatchOptions::new().with_row_count(Some(indices.len()));
        return RecordBatch::try_new_with_options(batch.schema(), vec![], &rows).expect("rows without columns");
    }
    take_record_batch(batch, &UInt32Array::from(indices.to_vec())).expect("indices are within the group")
}

async fn fail_or_retry(
    failures: Vec<(u32, Failure)>,
    number: u32,
    effects: Effects,
    shared: &Shared<'_>,
    row_of: &impl Fn(u32) -> u64,
    settled: &mut Settled,
    open: &mut Vec<(Vec<u32>, u32)>,
) {
    let mut again = Vec::new();
    let mut wait = Duration::ZERO;
    for (index, failure) in failures {
        match shared.options.retry.next_delay(number, &failure, effects, 0.5) {
            Some(delay) => {
                wait = wait.max(delay);
                again.push(index);
            }
            None => {
                settled.unknown += u64::from(failure.verdict(effects) == Verdict::Unknown);
                settled.failures.push((row_of(index), failure));
            }
        }
    }
    if !again.is_empty() {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shared.options.cancel.cancelled() => {}
        }
        open.push((again, number + 1));
    }
}

async fn try_once(batch: ItemBatch, shared: &Shared<'_>) -> Result<crate::BatchReply, Failure> {
    let idle = shared.idle.lock().pop();
    let mut session = match idle {
        Some(session) => session,
        None => caught(shared.executor.open(shared.context, &shared.shape), shared.context).await?,
    };
    let cardinality: Cardinality = shared.executor.describe().cardinality;
    let ended = attempt(session.as_mut(), batch, shared.context, &shared.shape, cardinality).await;
    if ended.usable {
        shared.idle.lock().push(session);
    }
    if let Err(failure) = &ended.result {
        assert!(failure.code() != FailureCode::Internal, "{failure}");
    }
    ended.result
}
