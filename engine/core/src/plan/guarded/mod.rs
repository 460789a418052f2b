//! SQL steps with an error policy: each row of the step's input is an item with an outcome.
//!
//! The step's query is planned alone and taken apart into a chain of filters and projections ([`chain`]). A batch that
//! makes no error costs what it costs in a plain plan. One that does is gone over again with casts and divisions that
//! give null where they fail ([`probe`]), which says which rows are to blame ([`rows`]); those go into the ledger, and
//! the policy says what flows on in their place. The chain is an operator of its own ([`exec`]): no filter of another
//! step goes past it in either direction.

mod chain;
mod exec;
mod node;
mod probe;
mod rows;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use arrow::array::{RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::SchemaRef;
use datafusion::common::{DataFusionError, Result, internal_err};
use rowmill_items::{Ledger, Loss, StepStopped, StopReason, Tally, too_many};
use rowmill_step::{Failure, FailureCode, ItemIds, MaxErrors, OnError, Outcome, Redactor, Sent};

pub use chain::Chain;
pub use exec::GuardedExec;
pub use node::GuardedNode;

use rows::{Piece, Sorted};

/// A SQL step with an error policy, checked.
#[derive(Debug)]
pub struct Guard {
    /// Its name.
    pub step: Arc<str>,
    /// The step or source whose rows it takes.
    pub from: String,
    /// Which columns of those rows it takes, by their places.
    pub columns: Vec<usize>,
    /// Its query.
    pub chain: Arc<Chain>,
    /// The columns that leave; each may be null.
    pub schema: SchemaRef,
    /// What becomes of rows that fail. The default is one row of `schema`.
    pub on_error: OnError<RecordBatch>,
    /// How many may fail before the run stops.
    pub max_errors: Option<MaxErrors>,
    /// Its counts.
    pub tally: Arc<Tally>,
    /// What the run gave to it.
    begun: OnceLock<Begun>,
    stopped: OnceLock<StepStopped>,
}

#[derive(Debug)]
struct Begun {
    ledger: Arc<Ledger>,
    redactor: Redactor,
}

/// What the text says of a guarded step.
#[derive(Debug)]
pub struct GuardParts {
    /// Its name.
    pub step: Arc<str>,
    /// The step or source whose rows it takes.
    pub from: String,
    /// Which columns of those rows it takes.
    pub columns: Vec<usize>,
    /// Its query.
    pub chain: Chain,
    /// The columns that leave.
    pub schema: SchemaRef,
    /// What becomes of rows that fail.
    pub on_error: OnError<RecordBatch>,
    /// How many may fail.
    pub max_errors: Option<MaxErrors>,
}

impl From<GuardParts> for Guard {
    fn from(parts: GuardParts) -> Self {
        let GuardParts { step, from, columns, chain, schema, on_error, max_errors } = parts;
        Guard {
            step,
            from,
            columns,
            chain: Arc::new(chain),
            schema,
            on_error,
            max_errors,
            tally: Arc::default(),
            begun: OnceLock::new(),
            stopped: OnceLock::new(),
        }
    }
}

impl Guard {
    /// Gives the step its ledger, which goes to `path` when there is much of it. Once, before its plan runs.
    ///
    /// # Errors
    /// When it has one.
    pub fn begin(&self, path: PathBuf, redactor: &Redactor) -> Result<()> {
        let ledger = Arc::new(Ledger::new(self.chain.input(), path));
        match self.begun.set(Begun { ledger, redactor: redactor.clone() }) {
            Ok(()) => Ok(()),
            Err(_) => internal_err!("step {} was planned twice", self.step),
        }
    }

    /// Where its losses go; nowhere before it was planned.
    pub fn ledger(&self) -> Option<&Arc<Ledger>> {
        self.begun.get().map(|begun| &begun.ledger)
    }

    /// Checks `max_errors` for the whole step, when all of its rows have come.
    ///
    /// # Errors
    /// When a share is exceeded that was not judged before the end.
    pub fn check_end(&self) -> Result<(), StepStopped> {
        if let Some(stopped) = self.stopped.get() {
            return Err(stopped.clone());
        }
        match self.max_errors.and_then(|limit| too_many(&limit, &self.tally.snapshot(), None, true)) {
            Some(reason) => Err(self.stop(reason)),
            None => Ok(()),
        }
    }

    /// The policy in words.
    pub fn describe(&self) -> String {
        let on_error = match &self.on_error {
            OnError::Fail => "fail",
            OnError::Skip => "skip",
            OnError::Default(_) => "default",
            OnError::DeadLetter => "dead_letter",
        };
        match self.max_errors {
            None => format!("on_error={on_error}"),
            Some(MaxErrors::Count(most)) => format!("on_error={on_error}, max_errors={most}"),
            Some(MaxErrors::Share { share, .. }) => format!("on_error={on_error}, max_errors={}%", share * 100.0),
        }
    }

    fn stop(&self, reason: StopReason) -> StepStopped {
        self.stopped.get_or_init(|| StepStopped { step: Arc::clone(&self.step), reason }).clone()
    }

    fn outcome(&self) -> Outcome {
        match &self.on_error {
            OnError::Fail => Outcome::Failed,
            OnError::Skip => Outcome::Skipped,
            OnError::Default(_) => Outcome::Defaulted,
            OnError::DeadLetter => Outcome::DeadLettered,
        }
    }

    /// Counts what became of a batch, writes its losses down, and gives the rows that flow on. `ids` are those of the
    /// rows of `input`.
    fn settle(&self, input: &RecordBatch, ids: &ItemIds, sorted: Sorted) -> Result<RecordBatch> {
        let items = input.num_rows() as u64;
        self.tally.came(items);
        let (mut pieces, losses) = match sorted {
            Sorted::Clean(rows) => {
                self.tally.settled(Outcome::Ok, items);
                return self.renamed(&rows);
            }
            Sorted::Mixed(pieces, losses) => (pieces, losses),
        };
        self.tally.settled(Outcome::Ok, items - losses.len() as u64);
        self.tally.settled(self.outcome(), losses.len() as u64);
        if !losses.is_empty() {
            if let OnError::Default(default) = &self.on_error {
                let sources: Vec<u32> = losses.keys().copied().collect();
                let rows = take_record_batch(default, &UInt32Array::from(vec![0; sources.len()]))?;
                pieces.push(Piece { rows, sources });
            }
            self.record(input, ids, losses)?;
        }
        rows::assemble(pieces, &self.schema)
    }

    fn record(&self, input: &RecordBatch, ids: &ItemIds, losses: BTreeMap<u32, Arc<str>>) -> Result<()> {
        let Some(begun) = self.begun.get() else {
            return internal_err!("step {} runs and was not begun", self.step);
        };
        let outcome = self.outcome();
        // Rows that fail for one reason share its text, and the failure that is made of it.
        let mut last: Option<(Arc<str>, Failure)> = None;
        let mut failed = |message: Arc<str>| match &last {
            Some((text, failure)) if Arc::ptr_eq(text, &message) => failure.clone(),
            _ => {
                let failure = Failure::new(FailureCode::BadInput, &message, &begun.redactor);
                let failure = failure.sent(Sent::Never).retryable(false);
                last = Some((message, failure.clone()));
                failure
            }
        };
        let losses: Vec<Loss> = losses
            .into_iter()
            .map(|(row, message)| Loss { row, failure: Some(failed(message)), attempts: 1, outcome })
            .collect();
        if let Err(error) = begun.ledger.record(input, ids, None, &losses) {
            let failure = Failure::new(FailureCode::Setup, error.to_string(), &begun.redactor).sent(Sent::Never);
            return Err(external(self.stop(StopReason::Fatal { failure })));
        }
        if let (OnError::Fail, Some(Loss { row, failure: Some(failure), .. })) = (&self.on_error, losses.first()) {
            let item = ids.get(*row as usize).to_string();
            let reason = StopReason::Item { item, failure: failure.clone(), attempts: 1, held: false };
            return Err(external(self.stop(reason)));
        }
        if let Some(limit) = &self.max_errors {
            let last = losses.last().and_then(|loss| loss.failure.as_ref());
            if let Some(reason) = too_many(limit, &self.tally.snapshot(), last, false) {
                return Err(external(self.stop(reason)));
            }
        }
        Ok(())
    }

    /// Rows under the step's own schema.
    fn renamed(&self, rows: &RecordBatch) -> Result<RecordBatch> {
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), rows.columns().to_vec(), &options)?)
    }
}

fn external(stopped: StepStopped) -> DataFusionError {
    DataFusionError::External(Box::new(stopped))
}
