//! Results that earlier attempts of a chunk left in the effect log, put in the place of calls.

use rowmill_step::{Failure, FailureCode, OnError, Outcome, Verdict, error_decision};

use crate::effects::{self, ChunkLog, Replay, Stored};
use crate::operator::{StepOperator, StopReason};
use crate::settle::Settled;
use crate::unit::{Loss, Piece, Rows, Unit};

/// What earlier attempts of this chunk brought to an end of a unit; the rest is left to do.
pub(crate) fn replay(operator: &StepOperator, unit: &mut Unit, log: &ChunkLog) -> Settled {
    let policy = &operator.policy;
    let mut rows = Vec::new();
    let mut sources = Vec::new();
    let mut todo = Vec::new();
    let mut settled = Settled { unit: unit.number, ..Settled::default() };
    for row in unit.todo.iter() {
        let loss = |failure: Option<Failure>, attempts, outcome| Loss { row, failure, attempts, outcome };
        let key = operator.keys.item(unit.ids.get(row as usize));
        let unknown = |message| {
            let failure = Failure::fixed(FailureCode::Crashed, message);
            let decision = error_decision(&operator.policy.on_error, Verdict::Unknown);
            loss(Some(failure), 1, decision.outcome)
        };
        match log.earlier(&key.0) {
            None => todo.push(row),
            Some(Replay::Intent) if log.sends_unknown() => todo.push(row),
            Some(Replay::Intent) => settled.losses.push(unknown(
                "the call was announced before the run was interrupted, and what became of it is not known; it is not sent again by itself",
            )),
            Some(Replay::Result(bytes)) => match effects::stored(bytes) {
                Some(Stored::Rows(found)) => {
                    settled.ok += 1;
                    sources.extend(std::iter::repeat_n(row, found.len()));
                    rows.extend(found);
                }
                // Such failures stop runs, and whoever goes on with one wants them tried again: but nothing that may have
                // happened, unless that is asked for.
                Some(Stored::Failed(failure, _))
                    if (matches!(policy.on_error, OnError::Fail) || policy.max_errors.is_some())
                        && (log.sends_unknown() || policy.effects.repeatable() || !failure.may_have_happened()) =>
                {
                    todo.push(row);
                }
                Some(Stored::Failed(failure, attempts)) => {
                    let decision = error_decision(&operator.policy.on_error, Verdict::Final);
                    settled.losses.push(loss(Some(failure), attempts, decision.outcome));
                }
                Some(Stored::Skipped) => settled.losses.push(loss(None, 1, Outcome::Skipped)),
                None if log.sends_unknown() => todo.push(row),
                None => settled.losses.push(unknown("the effect log holds a result that cannot be read")),
            },
        }
    }
    if !rows.is_empty() {
        match operator.codec().and_then(|codec| codec.decode(&rows)) {
            Ok(output) => settled.pieces.push(Piece { sources: Rows::List(sources), output, fresh: false }),
            Err(failure) => operator.stop(StopReason::Fatal { failure }),
        }
    }
    unit.todo = Rows::List(todo);
    settled
}
