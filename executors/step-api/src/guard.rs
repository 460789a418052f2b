//! Runs one attempt so that nothing a step kind does can hurt the engine: panics are caught, deadlines and
//! cancellation hold even if the step ignores them, and replies are checked.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt as _;

use crate::{BatchReply, Cardinality, Failure, FailureCode, ItemBatch, Sent, StepContext, StepSession, StepShape};

/// How long after its deadline, or after cancellation, a step may take to say how far it came. Then it is dropped and
/// the call counts as sent.
const GRACE: Duration = Duration::from_millis(500);

/// One attempt, over.
#[derive(Debug)]
pub struct Attempt {
    /// What came of it.
    pub result: Result<BatchReply, Failure>,
    /// Whether the session may be used again; if not, drop it and open another.
    pub usable: bool,
}

/// Makes one attempt in a session.
pub async fn attempt(
    session: &mut dyn StepSession,
    batch: ItemBatch,
    context: &StepContext,
    shape: &StepShape,
    cardinality: Cardinality,
) -> Attempt {
    let (rows, deadline, cancel) = (batch.rows(), batch.deadline, batch.cancel.clone());
    let work = AssertUnwindSafe(session.execute(batch)).catch_unwind();
    let end = async {
        // Whatever comes first sets the end.
        let code = match deadline {
            Some(deadline) => tokio::select! {
                () = cancel.cancelled() => FailureCode::Cancelled,
                () = tokio::time::sleep_until(deadline) => FailureCode::Timeout,
            },
            None => {
                cancel.cancelled().await;
                FailureCode::Cancelled
            }
        };
        tokio::time::sleep(GRACE).await;
        code
    };
    let ended = tokio::select! {
        biased;
        ended = work => Ok(ended),
        code = end => Err(code),
    };
    let (mut result, usable) = match ended {
        Ok(Ok(result)) => (result, true),
        Ok(Err(panic)) => (Err(panicked(panic.as_ref(), context)), false),
        Err(FailureCode::Timeout) => {
            (Err(Failure::fixed(FailureCode::Timeout, "the attempt went past its deadline and was dropped")), false)
        }
        Err(_) => (Err(Failure::fixed(FailureCode::Cancelled, "the attempt was cancelled and dropped")), false),
    };
    if let Ok(reply) = &result
        && let Err(broken) = reply.check(rows, shape, cardinality, &context.redactor)
    {
        return Attempt { result: Err(broken), usable: false };
    }
    match &mut result {
        Ok(reply) => reply.failures.iter_mut().for_each(|(_, failure)| failure.redact_again(&context.redactor)),
        Err(failure) => failure.redact_again(&context.redactor),
    }
    Attempt { result, usable }
}

/// Runs anything else of a step kind (describe, open, close) with panics caught. No item is sent by these, so whatever
/// goes wrong is [`Sent::Never`].
///
/// # Errors
/// Those of `work`, or [`FailureCode::Panicked`].
pub async fn caught<T>(work: impl Future<Output = Result<T, Failure>>, context: &StepContext) -> Result<T, Failure> {
    match AssertUnwindSafe(work).catch_unwind().await {
        Ok(result) => result.map_err(|mut failure| {
            failure.redact_again(&context.redactor);
            failure.sent(Sent::Never)
        }),
        Err(panic) => Err(panicked(panic.as_ref(), context).sent(Sent::Never)),
    }
}

fn panicked(panic: &(dyn Any + Send), context: &StepContext) -> Failure {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned());
    context.failure(FailureCode::Panicked, format!("the step panicked: {text}"))
}
