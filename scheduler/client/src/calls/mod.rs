//! Steps that are not SQL, their attempts made on a cluster's executors.
//!
//! ```text
//!   engine/items: groups, retries, limits, order, outcomes, ledger, effect log, cache    all of it in this process
//!      │ place: waits for a place at an executor        execute: one attempt for one group
//!      ▼
//!   RemoteStep ─ crew.rs   who serves the class (the scheduler says it, and says it anew when it changes)
//!      │           members.rs   which of them is next (`cluster.routing`); a core without network and clock
//!      ▼
//!   link.rs    a stream to each executor: rowmill_wire::calls
//! ```
//! Where an executor goes, each group that it had is lost: one that was not sent yet goes elsewhere whatever its step's
//! effects, one that was sent may have been made. [`rowmill_step::Failure::verdict`] judges both, as it does any failure.

mod crew;
mod link;
mod members;
mod section;

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::row::{RowConverter, SortField};
use parking_lot::Mutex;
use rowmill_cores::routing::Strategy;
use rowmill_cores::seed::mix;
use rowmill_engine::elsewhere::Attempts;
use rowmill_spec::Diagnostic;
use rowmill_step::{
    BatchReply, CallCost, Failure, FailureCode, ItemBatch, Place, Sent, StepContext, StepDescription, StepExecutor,
    StepSession, StepShape,
};
use rowmill_wire::calls::OpenStep;

use crate::submit::Cluster;
use crew::{Crew, Ticket};
use link::Link;

/// What makes the attempts of a step on a cluster; the step's own executor where they can only be made here.
pub(crate) fn attempts(cluster: &Cluster, step: &Attempts<'_>) -> Result<Arc<dyn StepExecutor>, Diagnostic> {
    if let Some(why) = step.executor.stays_here() {
        tracing::debug!(step = step.step.name.value, "its calls are made in this process: {why}");
        return Ok(Arc::clone(step.executor));
    }
    let own = step.executor.describe();
    let description = StepDescription {
        summary: format!("{}, calls on the cluster: class={}", own.summary, step.class),
        effects: step.effects,
        ..own.clone()
    };
    Ok(Arc::new(RemoteStep {
        cluster: cluster.clone(),
        own: Arc::clone(step.executor),
        description,
        section: section::section(step)?,
        shape: step.shape.clone(),
        crew: Mutex::default(),
    }))
}

/// A step whose attempts are made on a cluster.
struct RemoteStep {
    cluster: Cluster,
    /// Knows the step; makes no attempt.
    own: Arc<dyn StepExecutor>,
    description: StepDescription,
    section: OpenStep,
    shape: StepShape,
    /// The executors of a run, from its first group on.
    crew: Mutex<Option<(Arc<str>, Arc<Crew>)>>,
}

impl std::fmt::Debug for RemoteStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteStep").field("own", &self.own).field("class", &self.section.class).finish_non_exhaustive()
    }
}

impl RemoteStep {
    fn crew(&self, context: &StepContext) -> Arc<Crew> {
        let mut crew = self.crew.lock();
        match crew.as_ref() {
            // Keys of items hang on the run.
            Some((run, crew)) if *run == context.run => Arc::clone(crew),
            _ => {
                let open = OpenStep {
                    run: context.run.to_string(),
                    tenant: context.tenant.to_string(),
                    ..self.section.clone()
                };
                let new = Crew::start(&self.cluster, open, self.shape.clone(), context.redactor.clone());
                let new = Arc::new(new);
                *crew = Some((Arc::clone(&context.run), Arc::clone(&new)));
                new
            }
        }
    }
}

#[async_trait]
impl StepExecutor for RemoteStep {
    fn describe(&self) -> &StepDescription {
        &self.description
    }

    async fn output_schema(&self, input: &SchemaRef, context: &StepContext) -> Result<SchemaRef, Failure> {
        self.own.output_schema(input, context).await
    }

    async fn place(&self, batch: &ItemBatch, context: &StepContext) -> Result<Option<Place>, Failure> {
        let key = match self.cluster.options().routing {
            Strategy::ConsistentHash => key_of(&batch.columns),
            _ => 0,
        };
        let ticket = self.crew(context).place(key).await?;
        Ok(Some(Place::new(Arc::clone(ticket.link.at()), ticket)))
    }

    async fn open(&self, _context: &StepContext, _shape: &StepShape) -> Result<Box<dyn StepSession>, Failure> {
        Ok(Box::new(RemoteSession))
    }

    fn times_items(&self) -> bool {
        self.own.times_items()
    }

    fn cost(&self, batch: &ItemBatch) -> CallCost {
        self.own.cost(batch)
    }
}

/// What a group is routed by: the values of its first item, so that equal items go to one executor.
fn key_of(columns: &RecordBatch) -> u64 {
    let fields = columns.columns().iter().map(|column| SortField::new(column.data_type().clone()));
    let first = columns.slice(0, columns.num_rows().min(1));
    let rows = RowConverter::new(fields.collect()).and_then(|converter| converter.convert_columns(first.columns()));
    match rows {
        Ok(rows) if rows.num_rows() > 0 => rows.row(0).data().iter().fold(0, |hash, byte| mix(hash ^ u64::from(*byte))),
        _ => 0,
    }
}

/// A slot of the step in this process; what is warm is on the executors.
struct RemoteSession;

#[async_trait]
impl StepSession for RemoteSession {
    async fn execute(&mut self, batch: ItemBatch) -> Result<BatchReply, Failure> {
        let place = batch.place.clone().and_then(Place::held::<Ticket>);
        let Some(ticket) = place else {
            let failure = Failure::fixed(FailureCode::Internal, "an attempt has no place on the cluster");
            return Err(failure.sent(Sent::Never));
        };
        let link = Arc::clone(&ticket.link);
        let (id, mut answer) = link.submit(&batch, ticket)?;
        // Whoever drops this future does not wait any more, and the executor need not go on.
        let mut waiting = Waiting { link: &link, id: Some(id) };
        let mut stopped = false;
        let answered = loop {
            tokio::select! {
                biased;
                answered = &mut answer => break answered,
                () = batch.cancel.cancelled() => {
                    link.cancel(id);
                    break answer.await;
                }
                () = batch.stop.cancelled(), if !stopped => {
                    stopped = true;
                    link.stop(id);
                }
            }
        };
        waiting.id = None;
        answered.unwrap_or_else(|_| Err(link.lost("its stream is gone", Sent::Maybe)))
    }
}

struct Waiting<'a> {
    link: &'a Link,
    id: Option<u64>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.link.cancel(id);
        }
    }
}
