//! What clients may ask of a scheduler: to run a plan, and what the cluster is doing.

use std::sync::Arc;

use ballista_core::extension::SessionConfigHelperExt;
use ballista_core::serde::protobuf::KeyValuePair;
use ballista_scheduler::state::execution_stage::ExecutionStage;
use datafusion::common::runtime::SpawnedTask;
use datafusion::execution::context::SessionContext;
use datafusion_proto::physical_plan::AsExecutionPlan;
use datafusion_proto::protobuf::PhysicalPlanNode;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use rowmill_wire::class::Demand;
use rowmill_wire::codec::RowmillCodec;
use rowmill_wire::handshake::{Caller, TenantName};
use rowmill_wire::jobs::{
    self, BEAT, Counted, Event, ExecutorState, Failed, Finished, JobState, Progress, ProgressStream, QueueState,
    RefusedFor, StatusResponse, SubmitRequest, TakesJobs, TenantState, Waiting,
};
use rowmill_wire::name::check_class;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use crate::admission::{Ask, DEFAULT_QUEUE, Place, QueueView, Refused, TenantView};
use crate::error::Error;
use crate::job::Job;
use crate::placement::demand_of;
use crate::serve::{Core, check_size, session_config};

/// Answers that wait until the client reads them.
const AHEAD: usize = 4;

/// Characters of a job's name.
const MOST_NAME: usize = 200;

/// Takes work from clients.
pub(crate) struct Taker {
    core: Core,
}

impl Taker {
    pub(crate) fn new(core: Core) -> Self {
        Self { core }
    }
}

impl TakesJobs for Taker {
    fn submit(&self, request: SubmitRequest, caller: Caller) -> BoxFuture<'static, Result<ProgressStream, Status>> {
        let (core, term) = (self.core.clone(), self.core.term.clone());
        Box::pin(async move {
            let tenant = match tenant(&request, &caller) {
                Ok(tenant) => tenant,
                Err(reason) => return Ok(refused(Refused::Never(reason))),
            };
            let invalid = |error: String| Status::invalid_argument(error);
            check_size(request.plan.len()).map_err(|error| invalid(error.to_string()))?;
            check_class(&request.class).map_err(|error| invalid(error.to_string()))?;
            let settings: usize = request.settings.iter().map(|own| own.key.len() + own.value.len()).sum();
            let ask = Ask {
                queue: request.queue.clone(),
                tenant,
                class: request.class.as_str().into(),
                bytes: (request.plan.len() + settings) as u64,
            };
            let (place, mut news) = match core.desk.enter(ask) {
                Ok(entered) => entered,
                Err(why) => return Ok(refused(why)),
            };
            let (sender, receiver) = mpsc::channel(AHEAD);
            // It ends with the stream, that is when the client goes, and gives back the place with it.
            let following = match news.try_recv() {
                Ok(Ok(())) => {
                    let job = begin(&core, request, place).await?;
                    SpawnedTask::spawn(follow(job, sender))
                }
                Ok(Err(why)) => return Ok(refused(why)),
                Err(_) => SpawnedTask::spawn(wait_and_follow(core, request, place, news, sender)),
            };
            let progress = futures::stream::unfold((receiver, following), move |(mut receiver, following)| {
                let term = term.clone();
                async move {
                    let event = receiver.recv().await?;
                    // Nothing is handed out by one that does not lead any more.
                    let event = term.check().and(event);
                    Some((event.map(|event| Progress { event: Some(event) }), (receiver, following)))
                }
            });
            Ok(progress.boxed() as ProgressStream)
        })
    }

    fn status(&self, caller: Caller) -> BoxFuture<'static, Result<StatusResponse, Status>> {
        let core = self.core.clone();
        Box::pin(async move {
            let (mut jobs, mut tenants) = (jobs(&core).await, core.desk.tenants());
            if let Some(own) = &caller.tenant {
                // Who knows a job's id reads its result.
                let seen = core.desk.jobs_of(own);
                jobs.retain(|job| seen.contains(job.id.as_str()));
                tenants.retain(|other| own.covers(&other.name));
            }
            Ok(StatusResponse {
                executors: executors(&core).await,
                jobs,
                queues: core.desk.queues().into_iter().map(queue_state).collect(),
                tenants: tenants.into_iter().map(tenant_state).collect(),
                leader: core.reached.to_string(),
                term: core.term.number(),
            })
        })
    }
}

/// Whom a job is for: whoever the caller's token names, or else what the request says.
fn tenant(request: &SubmitRequest, caller: &Caller) -> Result<TenantName, String> {
    let asked = match (request.organisation.as_str(), request.team.as_str()) {
        ("", "") => TenantName::default(),
        (organisation, "") => TenantName::parse(organisation)?,
        (organisation, team) => TenantName::parse(&format!("{organisation}/{team}"))?,
    };
    let Some(own) = &caller.tenant else { return Ok(asked) };
    match asked == TenantName::default() || own.covers(&asked) {
        true if asked == TenantName::default() => Ok(own.clone()),
        true => Ok(asked),
        false => Err(format!("the token submits for {own} and not for {asked}")),
    }
}

fn refusal(why: Refused) -> Event {
    let kind = match &why {
        Refused::Never(_) => RefusedFor::Never,
        Refused::Full(_) => RefusedFor::Full,
        Refused::Late(_) => RefusedFor::Late,
    };
    Event::Refused(jobs::Refused { reason: why.to_string(), kind: kind.into() })
}

/// The answer to a job that was not admitted.
fn refused(why: Refused) -> ProgressStream {
    futures::stream::iter([Ok(Progress { event: Some(refusal(why)) })]).boxed()
}

/// Waits for the job's turn, says so from time to time, and goes on.
async fn wait_and_follow(
    core: Core,
    request: SubmitRequest,
    place: Place,
    news: oneshot::Receiver<Result<(), Refused>>,
    client: mpsc::Sender<Result<Event, Status>>,
) {
    let mut beats = tokio::time::interval(BEAT);
    tokio::pin!(news);
    let news = loop {
        tokio::select! {
            news = &mut news => break news,
            () = client.closed() => return,
            _ = beats.tick() => {
                let queue = if request.queue.is_empty() { DEFAULT_QUEUE } else { &request.queue };
                let view = core.desk.queues().into_iter().find(|own| &*own.name == queue);
                let waiting = view.map(|own| Waiting { queue: own.name.to_string(), waiting: own.waiting, running: own.running });
                let _ = client.try_send(Ok(Event::Waiting(waiting.unwrap_or_default())));
            }
        }
    };
    match news {
        Ok(Ok(())) => match begin(&core, request, place).await {
            Ok(job) => follow(job, client).await,
            // Whoever asked has gone if this is not heard.
            Err(status) => drop(client.send(Err(status)).await),
        },
        Ok(Err(why)) => drop(client.send(Ok(refusal(why))).await),
        Err(_) => drop(client.send(Err(Status::unavailable("the scheduler stops"))).await),
    }
}

/// A name from outside as it is shown to others, whose terminals it must not steer.
fn shown(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(MOST_NAME).collect()
}

async fn begin(core: &Core, request: SubmitRequest, place: Place) -> Result<Job, Status> {
    let refuse = |error: String| Status::invalid_argument(error);
    let settings: Vec<KeyValuePair> = request
        .settings
        .into_iter()
        .map(|setting| KeyValuePair { key: setting.key, value: Some(setting.value) })
        .collect();
    let demand = Demand {
        class: request.class.as_str().into(),
        slots: request.slots.max(1),
        memory_bytes: request.memory_bytes,
    };
    let config = session_config()
        .update_from_key_value_pair(&settings)
        .with_extension(Arc::new(demand))
        .with_extension(Arc::new(place.mark()));
    let context = Arc::new(SessionContext::new_with_config_rt(config, Arc::clone(&core.runtime)));
    let plan = PhysicalPlanNode::try_decode(&request.plan)
        .and_then(|plan| plan.try_into_physical_plan(&context.task_ctx(), RowmillCodec::shared().as_ref()))
        .map_err(|error| refuse(format!("the plan cannot be read: {error}")))?;
    core.submit(&shown(&request.name), place, context, plan)
        .await
        .map_err(|error| Status::unavailable(error.to_string()))
}

/// Tells the client what becomes of its job. Until the client goes: dropping the job releases what it made.
async fn follow(mut job: Job, client: mpsc::Sender<Result<Event, Status>>) {
    if client.send(Ok(Event::Accepted(job.id().to_string()))).await.is_err() {
        return;
    }
    let mut beats = tokio::time::interval(BEAT);
    let outcome = {
        // One wait to the end: begun again it would miss the end that it has heard of.
        let waiting = job.wait();
        tokio::pin!(waiting);
        loop {
            tokio::select! {
                outcome = &mut waiting => break outcome,
                () = client.closed() => return,
                _ = beats.tick() => {
                    // A client that does not read still lives as long as its connection.
                    let _ = client.try_send(Ok(Event::Beat(true)));
                }
            }
        }
    };
    let event = match outcome {
        Ok(finished) => Event::Finished(Finished {
            files: finished.files.iter().map(|file| file.location().clone()).collect(),
            counted: finished
                .counted
                .into_iter()
                .map(|(step, count)| Counted { step, rows: count.rows, bytes: count.bytes, batches: count.batches })
                .collect(),
            ran: finished.ran,
        }),
        Err(Error::NotAdmitted(reason)) => refusal(Refused::Never(reason)),
        Err(error) => Event::Failed(Failed {
            unplaced: matches!(error, Error::Unplaced { .. }),
            reason: match error {
                Error::Failed { reason, .. } | Error::Unplaced { reason, .. } => reason,
                other => other.to_string(),
            },
        }),
    };
    if client.send(Ok(event)).await.is_err() {
        return;
    }
    loop {
        tokio::select! {
            () = client.closed() => return,
            _ = beats.tick() => {
                let _ = client.try_send(Ok(Event::Beat(true)));
            }
        }
    }
}

fn queue_state(own: QueueView) -> QueueState {
    QueueState {
        name: own.name.to_string(),
        priority: own.options.priority,
        waiting: own.waiting,
        max_queued: own.options.max_queued,
        running: own.running,
        max_running: own.options.max_running.unwrap_or(0),
        oldest_ms: own.oldest_ms,
    }
}

fn tenant_state(own: TenantView) -> TenantState {
    let name = if own.name == TenantName::default() { String::new() } else { own.name.to_string() };
    TenantState { name, jobs: own.jobs, tasks: own.tasks }
}

async fn executors(core: &Core) -> Vec<ExecutorState> {
    let state = |executor: crate::serve::ExecutorInfo| ExecutorState {
        name: executor.name.to_string(),
        slots: executor.slots,
        busy: executor.busy,
        address: executor.address,
        draining: executor.draining,
        closed: executor.closed.unwrap_or_default(),
    };
    core.executors().await.into_iter().map(state).collect()
}

async fn jobs(core: &Core) -> Vec<JobState> {
    let running = core.server.state.task_manager.get_running_job_cache();
    let mut jobs = Vec::with_capacity(running.len());
    for (id, info) in running.iter() {
        let graph = info.execution_graph.read().await;
        let mut waiting_for = Vec::new();
        let mut waiting = 0;
        for stage in graph.stages().values() {
            let ExecutionStage::Running(stage) = stage else { continue };
            if !stage.pending.is_empty() {
                waiting += stage.pending.remaining();
                waiting_for.extend(demand_of(stage).map(|demand| demand.class.to_string()));
            }
        }
        waiting_for.sort_unstable();
        waiting_for.dedup();
        jobs.push(JobState {
            id: id.to_string(),
            name: graph.job_name().to_owned(),
            stages: graph.stage_count() as u32,
            ended: graph.completed_stages() as u32,
            waiting: waiting as u32,
            waiting_for,
        });
    }
    jobs.sort_by(|a, b| a.id.cmp(&b.id));
    jobs
}
