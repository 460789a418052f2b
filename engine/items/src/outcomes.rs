//! What became of items, written down: counts, the stop of a run gone wrong, the ledger, defaults.

use arrow::array::UInt32Array;
use rowmill_step::{Failure, FailureCode, OnError, Outcome, Redactor, Sent};
use tokio_util::sync::CancellationToken;

use crate::cached::ok_outcome;
use crate::operator::{Scope, StepOperator, StopReason};
use crate::settle::Settled;
use crate::unit::{Piece, Rows, Unit, take_rows};

/// Notes what became of some items of a unit; returns the bytes of their output.
pub(crate) fn note(
    operator: &StepOperator,
    scope: &Scope,
    cancel: &CancellationToken,
    unit: &mut Unit,
    settled: Settled,
) -> usize {
    unit.unsettled -= settled.ok + settled.losses.len();
    scope.tally.settled(ok_outcome(&settled), settled.ok as u64);
    let bytes = unit.add(settled.pieces);
    if settled.losses.is_empty() {
        return bytes;
    }
    let mut last = None;
    for loss in &settled.losses {
        let Some(failure) = &loss.failure else {
            scope.tally.dropped();
            continue;
        };
        scope.tally.settled(loss.outcome, 1);
        last = Some(failure);
        // What was cancelled did not stop the run; whoever cancelled it did.
        let stops = failure.code() != FailureCode::Cancelled || !cancel.is_cancelled();
        if stops && matches!(operator.policy.on_error, OnError::Fail) {
            let once = !operator.policy.effects.repeatable();
            operator.stop(StopReason::Item {
                item: unit.places.get(loss.row as usize).to_string(),
                failure: failure.clone(),
                attempts: loss.attempts,
                held: loss.outcome == Outcome::Unknown || (once && failure.may_have_happened()),
            });
        }
    }
    if let Some(last) = last {
        operator.judge_errors(Some(last), false);
    }
    unit.losses.extend(settled.losses);
    bytes
}

/// Writes the unit's losses into the ledger; those with a default get their row.
pub(crate) fn write_losses(operator: &StepOperator, scope: &Scope, unit: &mut Unit) {
    if unit.losses.is_empty() {
        return;
    }
    unit.losses.sort_by_key(|loss| loss.row);
    if let OnError::Default(default) = &operator.policy.on_error {
        let rows: Vec<u32> =
            unit.losses.iter().filter(|loss| loss.outcome == Outcome::Defaulted).map(|loss| loss.row).collect();
        match take_rows(default, &UInt32Array::from(vec![0; rows.len()])) {
            Ok(output) => unit.pieces.push(Piece { sources: Rows::List(rows), output, fresh: false }),
            Err(error) => stop_for(operator, &error.to_string()),
        }
    }
    let sent_as = scope.earlier.is_some().then_some(&unit.ids);
    if let Err(error) = scope.ledger.record(&unit.input, &unit.places, sent_as, &unit.losses) {
        stop_for(operator, &error.to_string());
    }
    unit.losses.clear();
}

fn stop_for(operator: &StepOperator, message: &str) {
    let failure = Failure::new(FailureCode::Setup, message, &Redactor::new()).sent(Sent::Never);
    operator.stop(StopReason::Fatal { failure });
}
