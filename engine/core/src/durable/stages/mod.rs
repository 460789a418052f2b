//! The stages of a durable run, one after the other: chunks in, chunks through a step, sinks at the end.

mod calls;
mod chain;
mod files;
mod journal;
mod rows;
mod stop;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use datafusion::common::Result;
use datafusion::physical_plan::ExecutionPlan;
use indexmap::IndexMap;
use parking_lot::Mutex;
use rowmill_items::{EffectWriter, LedgerSample};
use rowmill_spec::Diagnostic;
use rowmill_store::{Fence, RunId, StageId};
use tokio_util::sync::CancellationToken;

use super::chunks::{ChunkScanExec, LateFiles, create_folder};
use super::{Durable, attempt_id, fingerprint};
use crate::calls::RunScope;
use crate::compile::check_types::{Body, EdgeKind};
use crate::compile::cut_segments::Root;
use crate::compile::plan_segments::{keep, optimize_segments, send};
use crate::compile::{Compiled, Inputs, Planned, PlannedSink};
use crate::elsewhere::Sent;
use crate::local::{self, ItemsReport, Observer, RunReport};
use crate::places::{MadeBy, Place};
use crate::plan::dead_letters::{DeadLettersExec, Letters};
use crate::plan::edge::Producer;
use crate::plan::guarded::Guard;
use crate::plan::meter::MeterExec;
use crate::runtime::Engine;
use calls::{CallInput, CallStage};
use chain::{Chain, Ended};
pub(super) use journal::store_counts;
pub(super) use stop::Stop;

/// One attempt to bring a run to its end.
pub(super) struct Work<'a> {
    pub(super) engine: &'a Engine,
    pub(super) durable: &'a Durable,
    pub(super) compiled: &'a Compiled,
    pub(super) inputs: &'a Inputs,
    pub(super) run: RunId,
    pub(super) version: u32,
    pub(super) fence: Fence,
    pub(super) began: Instant,
    /// Whether `once` calls are made again of which nobody knows whether they happened.
    pub(super) unknown: bool,
    /// The version of the result before this one.
    pub(super) before: Option<super::retry::Before>,
}

/// What the stages of one attempt share.
struct Attempt<'a> {
    scope: RunScope,
    effects: Arc<EffectWriter>,
    cancel: &'a CancellationToken,
    samples: Mutex<IndexMap<String, Vec<LedgerSample>>>,
    /// Who made what the sinks hold.
    sinks: Mutex<MadeBy>,
}

impl Work<'_> {
    pub(super) async fn run(&self, cancel: &CancellationToken, observer: &dyn Observer) -> Result<RunReport, Stop> {
        let folder = self.durable.folder_of(self.run);
        create_folder(&folder).map_err(|error| self.cannot_write(&folder, &error.to_string()))?;
        let mut staged = local::stage(self.engine, self.compiled, attempt_id()).await?;
        let attempt = Attempt {
            scope: self.engine.scope(&self.run.to_string(), cancel, folder).in_order(),
            effects: EffectWriter::start(Arc::clone(&self.durable.store), self.fence),
            cancel,
            samples: Mutex::default(),
            sinks: Mutex::default(),
        };
        observer.started(*self.run.as_uuid(), &self.compiled.meters, &local::tallies(self.compiled));
        let outcome = self.stages(&attempt, &mut staged).await;
        // What was called and answered is kept, however the attempt ended.
        if let Err(failure) = attempt.effects.close().await {
            tracing::warn!("the last results of calls may be lost: {}", failure.message());
        }
        let done = match outcome {
            Ok(done) => done,
            Err(stop) => {
                local::discard(staged).await;
                return Err(if cancel.is_cancelled() { Stop::Cancelled } else { stop });
            }
        };
        // A process that slept past its lease must not publish over the one that took the run. A rename cannot be
        // fenced; this makes sure that the lease lasts for much longer than it takes.
        let ours = match cancel.is_cancelled() {
            true => Err(Stop::Cancelled),
            false => patiently!(self.durable.store.renew(&self.fence, self.durable.lease)).map_err(Stop::from),
        };
        if let Err(stop) = ours {
            local::discard(staged).await;
            return Err(stop);
        }
        let sinks = local::publish(self.compiled, staged, &done.written).await;
        let sinks = sinks.map_err(|report| Stop::Report(Box::new(report)))?;
        let (samples, made) = (attempt.samples.into_inner(), attempt.sinks.into_inner());
        let made = serde_json::to_vec(&made).unwrap_or_default();
        let steps = self.compiled.steps.iter();
        let items: Vec<ItemsReport> = steps
            .filter_map(|(name, step)| {
                Some(ItemsReport {
                    step: name.clone(),
                    counts: step.tally()?.snapshot(),
                    samples: samples.get(name).cloned().unwrap_or_default(),
                })
            })
            .collect();
        let mut counts = rowmill_store::OutcomeCounts::default();
        items.iter().for_each(|items| counts.add(store_counts(&items.counts.outcomes)));
        let output: Vec<&str> = sinks.iter().map(|sink| sink.path.as_str()).collect();
        let output = output.join(", ");
        patiently!(self.durable.store.publish_version(&self.fence, self.version, &output, &counts, &made))?;
        self.sweep(false).await?;
        let places = match self.engine.host().elsewhere {
            Some(_) => super::inspect::places(self.durable, self.run).await.unwrap_or_else(|report| {
                tracing::warn!("where the run's stages ran is not known: {}", report.message);
                Vec::new()
            }),
            None => Vec::new(),
        };
        Ok(RunReport {
            id: *self.run.as_uuid(),
            workflow: self.compiled.workflow.name.value.clone(),
            steps: local::step_reports(self.compiled),
            unneeded: self.compiled.unneeded.clone(),
            sinks,
            collected: IndexMap::new(),
            elapsed: self.began.elapsed(),
            items,
            replanned: false,
            places,
            warnings: self.compiled.warnings.clone(),
        })
    }

    async fn stages(
        &self,
        attempt: &Attempt<'_>,
        staged: &mut [crate::sinks::StagedSink],
    ) -> Result<local::Done, Stop> {
        let state = &self.compiled.state;
        let optimized = optimize_segments(self.compiled, self.inputs, staged)?;
        let mut planned = Planned::default();
        let mut next_stage = 0;
        let mut chain = Chain::default();
        let mut known = KnownSteps::default();
        // Steps whose outcomes are known when the sinks are sealed.
        let mut late: Vec<(StageId, Arc<Guard>)> = Vec::new();
        for (segment, logical) in self.compiled.cut.segments.iter().zip(optimized.plans) {
            // Not placed by the planner of its class: planned again, a durable run must give the same rows in the same
            // order.
            let plan = state.query_planner().create_physical_plan(&logical, state).await?;
            let sent = send(self.compiled, segment, plan, &attempt.scope)?;
            let Root::Step(name) = &segment.root else {
                let (root, plan) = (segment.root.clone(), sent.plan);
                planned.roots.push(PlannedSink { root, logical, plan, notes: Vec::new() });
                continue;
            };
            let Some(step) = self.compiled.steps.get(name) else { continue };
            let class = step.class.as_str();
            let sent = Sent { plan: keep(self.compiled, name, sent.plan, &attempt.scope), ..sent };
            let producer: Arc<dyn ExecutionPlan> = match (&step.body, &step.edge) {
                // Pure, with one reader: computed where it is read.
                (Body::Query(_), EdgeKind::Streamed(_)) => {
                    known.is_changed(name, &segment.inputs);
                    sent.plan
                }
                (Body::Query(_), _) => {
                    known.ended(self.end_chain(attempt, &mut chain).await?);
                    let other_input = known.is_changed(name, &segment.inputs);
                    let print = fingerprint(&format!("{name} {}", logical.display_indent()));
                    let stage = self.stage(&mut next_stage, name, class, print.clone()).await?;
                    let schema = sent.plan.schema();
                    self.take_rows(stage, name, &print, other_input).await?;
                    let chunks = self.rows(attempt, stage, name, class, sent, None).await?;
                    self.scan(name, &chunks, schema)
                }
                // Its outcomes are kept with its rows, so it is a stage whoever reads it.
                (Body::Guarded(guard), edge) => {
                    known.ended(self.end_chain(attempt, &mut chain).await?);
                    let other_input = known.is_changed(name, &segment.inputs);
                    let print = fingerprint(&format!("{name} {}", logical.display_indent()));
                    let stage = self.stage(&mut next_stage, name, class, print.clone()).await?;
                    let ledger = self.stage_folder(stage, name).join(format!("{}.ledger.arrow", self.fence.token));
                    guard.begin(ledger, &attempt.scope.host.redactor)?;
                    if matches!(edge, EdgeKind::Streamed(_))
                        && self.compiled.sinks.iter().any(|sink| sink.from == *name)
                    {
                        // Its one reader is a sink, which is written anew by each attempt: its rows are not kept in
                        // chunks as well, and its outcomes are written down when the sink is sealed.
                        late.push((stage, Arc::clone(guard)));
                        if let Some(table) = step.edge.table() {
                            table.connect(Producer::Plan(sent.plan))?;
                        }
                        continue;
                    }
                    self.take_rows(stage, name, &print, other_input).await?;
                    let schema = sent.plan.schema();
                    let chunks = self.rows(attempt, stage, name, class, sent, Some(guard.as_ref())).await?;
                    known.ledgers.insert(name.clone(), self.ledgers(&chunks));
                    self.scan(name, &chunks, schema)
                }
                (Body::Call(call), _) => {
                    let print = fingerprint(&format!("{name} input {}", logical.display_indent()));
                    let from = format!("{name}.input");
                    let stage = self.stage(&mut next_stage, &from, "cpu", print.clone()).await?;
                    let schema = sent.plan.schema();
                    // An input that is sealed is there as a whole, and a retry looks at whole stages.
                    let feed = match self.before.is_none() && !self.is_sealed(stage).await? {
                        true => chain.feed(stage, &from, &sent.plan),
                        false => None,
                    };
                    let input = match feed {
                        Some(feed) => CallInput::Fed(feed),
                        None => {
                            known.ended(self.end_chain(attempt, &mut chain).await?);
                            let other_input = known.is_changed(name, &segment.inputs);
                            let same = self.take_rows(stage, &from, &print, other_input).await?;
                            CallInput::Whole(self.rows(attempt, stage, &from, "cpu", sent, None).await?, !same)
                        }
                    };
                    let kind = call.executor.describe().fingerprint.0;
                    let print = fingerprint(&format!("{name} {print} {kind:?}"));
                    let stage = self.stage(&mut next_stage, name, class, print).await?;
                    let wrong = |message: String| Stop::Report(Box::new(Diagnostic::error("RM0705", message)));
                    let operator = attempt.scope.operator(call, &schema).map_err(wrong)?;
                    let files = LateFiles::default();
                    let scan = ChunkScanExec::late(Arc::from(name.as_str()), &files, Arc::clone(operator.schema()));
                    let (call, class) = (Arc::clone(call), class.to_owned());
                    chain.push(CallStage { stage, call, class, operator, input, files });
                    if self.before.is_some() {
                        // Whoever reads it asks whether its rows are other ones than before.
                        known.ended(self.end_chain(attempt, &mut chain).await?);
                    }
                    Arc::new(scan)
                }
                (Body::DeadLetters(of), _) => {
                    known.ended(self.end_chain(attempt, &mut chain).await?);
                    known.is_changed(name, &segment.inputs);
                    let letters = Letters::Files(known.ledgers.get(of.as_ref()).cloned().unwrap_or_default());
                    let exec = DeadLettersExec::new(Arc::clone(of), None, letters, Arc::clone(&step.schema));
                    let meter = self.compiled.meters.get(name).map_or_else(Arc::default, Arc::clone);
                    Arc::new(MeterExec::new(Arc::from(name.as_str()), meter, Arc::new(exec)))
                }
            };
            if let Some(edge) = step.edge.table() {
                edge.connect(Producer::Plan(producer))?;
            }
        }
        self.end_chain(attempt, &mut chain).await?;
        let began = Instant::now();
        let done = local::run_roots(self.engine, self.compiled, &planned, staged, attempt.cancel).await?;
        let mut made = attempt.scope.places.take_all();
        made.insert(0, Place::client("cpu", planned.roots.len() as u64, 0, began.elapsed()));
        attempt.sinks.lock().made = made;
        for (stage, guard) in late {
            self.commit_outcomes(attempt, stage, &guard).await?;
        }
        Ok(done)
    }
}

/// What is known of the steps that were done until now.
#[derive(Default)]
struct KnownSteps {
    /// Steps whose rows are not those of the version before.
    changed: HashSet<String>,
    ledgers: HashMap<String, Vec<PathBuf>>,
}

impl KnownSteps {
    fn ended(&mut self, ended: Vec<Ended>) {
        for Ended { step, ledgers, changed } in ended {
            if changed {
                self.changed.insert(step.clone());
            }
            self.ledgers.insert(step, ledgers);
        }
    }

    /// Whether a step's input is another one than in the version before; then its rows are, too.
    fn is_changed(&mut self, step: &str, inputs: &[String]) -> bool {
        let changed = inputs.iter().any(|input| self.changed.contains(input));
        if changed {
            self.changed.insert(step.to_owned());
        }
        changed
    }
}
