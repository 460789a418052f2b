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
use rowmill_wire::jobs::{
    BEAT, Counted, Event, ExecutorState, Failed, Finished, JobState, Progress, ProgressStream, StatusResponse,
    SubmitRequest, TakesJobs,
};
use rowmill_wire::name::check_class;
use tokio::sync::mpsc;
use tonic::Status;

use crate::error::Error;
use crate::job::Job;
use crate::placement::demand_of;
use crate::serve::{Core, check_size, session_config};

/// Answers that wait until the client reads them.
const AHEAD: usize = 4;

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
    fn submit(&self, request: SubmitRequest) -> BoxFuture<'static, Result<ProgressStream, Status>> {
        let core = self.core.clone();
        Box::pin(async move {
            let job = begin(&core, request).await?;
            let (sender, receiver) = mpsc::channel(AHEAD);
            // It ends with the stream, that is when the client goes.
            let following = SpawnedTask::spawn(follow(job, sender));
            let progress = futures::stream::unfold((receiver, following), |(mut receiver, following)| async move {
                let event = receiver.recv().await?;
                Some((Ok::<_, Status>(Progress { event: Some(event) }), (receiver, following)))
            });
            Ok(progress.boxed() as ProgressStream)
        })
    }

    fn status(&self) -> BoxFuture<'static, Result<StatusResponse, Status>> {
        let core = self.core.clone();
        Box::pin(async move { Ok(StatusResponse { executors: executors(&core).await, jobs: jobs(&core).await }) })
    }
}

async fn begin(core: &Core, request: SubmitRequest) -> Result<Job, Status> {
    let refuse = |error: String| Status::invalid_argument(error);
    check_size(request.plan.len()).map_err(|error| refuse(error.to_string()))?;
    check_class(&request.class).map_err(|error| refuse(error.to_string()))?;
    let settings: Vec<KeyValuePair> = request
        .settings
        .into_iter()
        .map(|setting| KeyValuePair { key: setting.key, value: Some(setting.value) })
        .collect();
    let demand = Demand { class: request.class.as_str().into(), slots: request.slots.max(1) };
    let config = session_config().update_from_key_value_pair(&settings).with_extension(Arc::new(demand));
    let context = Arc::new(SessionContext::new_with_config_rt(config, Arc::clone(&core.runtime)));
    let plan = PhysicalPlanNode::try_decode(&request.plan)
        .and_then(|plan| plan.try_into_physical_plan(&context.task_ctx(), RowmillCodec::shared().as_ref()))
        .map_err(|error| refuse(format!("the plan cannot be read: {error}")))?;
    core.submit(&request.name, context, plan).await.map_err(|error| Status::unavailable(error.to_string()))
}

/// Tells the client what becomes of its job. Until the client goes: dropping the job releases what it made.
async fn follow(mut job: Job, client: mpsc::Sender<Event>) {
    if client.send(Event::Accepted(job.id().to_string())).await.is_err() {
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
                    let _ = client.try_send(Event::Beat(true));
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
        }),
        Err(error) => Event::Failed(Failed {
            unplaced: matches!(error, Error::Unplaced { .. }),
            reason: match error {
                Error::Failed { reason, .. } | Error::Unplaced { reason, .. } => reason,
                other => other.to_string(),
            },
        }),
    };
    if client.send(event).await.is_err() {
        return;
    }
    loop {
        tokio::select! {
            () = client.closed() => return,
            _ = beats.tick() => {
                let _ = client.try_send(Event::Beat(true));
            }
        }
    }
}

async fn executors(core: &Core) -> Vec<ExecutorState> {
    let state = |executor: crate::serve::ExecutorInfo| ExecutorState {
        name: executor.name.to_string(),
        slots: executor.slots,
        busy: executor.busy,
        address: executor.address,
        draining: executor.draining,
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
