//! One pass of placement: pending partitions of running stages onto free slots of executors of their classes.
//!
//! Jobs go in the order of their ids, which sort by time. Every visited stage is put on the graph's black list, or one that
//! cannot be placed would be handed out for ever; it stays there with its pending partitions until an executor comes,
//! which is another pass.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use ballista_core::JobId;
use ballista_core::config::BallistaConfig;
use ballista_core::execution_plans::{RangeShuffleReaderExec, ShuffleReaderExec};
use ballista_core::serde::protobuf::task_status::Status as TaskState;
use ballista_core::serde::scheduler::TaskKey;
use ballista_scheduler::cluster::BoundTask;
use ballista_scheduler::state::execution_graph::{ExecutionGraphBox, TaskDescription, create_task_info};
use ballista_scheduler::state::execution_stage::{ExecutionStage, RunningStage};
use ballista_scheduler::state::task_manager::JobInfoCache;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionConfig;
use rowmill_cores::ids::{ClassId, ExecutorId};
use rowmill_cores::routing::{Candidate, Route, Router, Strategy, TagSet};
use rowmill_wire::class::{DEFAULT_CLASS, Demand, class_of_stage};
use rowmill_wire::name::ExecutorName;

use crate::inputs::cleared;

/// An executor with its slots.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) id: String,
    pub(crate) name: ExecutorName,
    pub(crate) total: u32,
    pub(crate) free: u32,
}

/// Slots taken on each executor, read from the graphs: the tasks that run there in stages that run.
pub(crate) async fn taken_slots(jobs: &HashMap<JobId, JobInfoCache>) -> HashMap<String, u32> {
    let mut taken = HashMap::new();
    for job in jobs.values() {
        let graph = job.execution_graph.read().await;
        for stage in graph.stages().values() {
            let ExecutionStage::Running(stage) = stage else { continue };
            for task in &stage.task_infos {
                if let TaskState::Running(running) = &task.task_status {
                    *taken.entry(running.executor_id.clone()).or_default() += task.vcores_consumed;
                }
            }
        }
    }
    taken
}

/// Chooses among executors; lives as long as the scheduler, so that turns go on from pass to pass.
#[derive(Debug, Default)]
pub(crate) struct Chooser {
    router: Router,
    classes: BTreeMap<Arc<str>, ClassId>,
}

impl Chooser {
    fn class(&mut self, class: &Arc<str>) -> ClassId {
        let next = ClassId(u16::try_from(self.classes.len()).unwrap_or(u16::MAX));
        *self.classes.entry(class.clone()).or_insert(next)
    }

    /// The position in `places` of an executor with room for one partition of `demand`.
    fn choose(&mut self, strategy: Strategy, demand: &Demand, key: u64, places: &[Place]) -> Option<usize> {
        let candidates: Vec<Candidate> = (0u64..)
            .zip(places)
            .filter(|(_, place)| place.name.serves(&demand.class) && place.free >= slots_on(demand, place))
            .map(|(at, place)| Candidate {
                id: ExecutorId(at),
                weight: place.total.max(1),
                busy_slots: place.total - place.free,
                tags: TagSet::default(),
            })
            .collect();
        let route = Route { strategy, key, ..Route::default() };
        let class = self.class(&demand.class);
        self.router.pick(class, &route, &candidates).and_then(|id| usize::try_from(id.0).ok())
    }
}

/// Slots that one partition takes on this executor; at least one free slot of a whole device is the whole device.
fn slots_on(demand: &Demand, place: &Place) -> u32 {
    demand.slots.clamp(1, place.total.max(1))
}

/// What a stage asks of its executor: what its plan says, or else its job.
///
/// # Errors
/// The markers in its plan disagree.
pub(crate) fn demand_of(stage: &RunningStage) -> Result<Demand, String> {
    match class_of_stage(&stage.plan)? {
        Some(demand) => Ok(demand),
        None => Ok(job_demand(&stage.session_config)),
    }
}

/// What a job asks of executors for stages that do not say it themselves.
pub(crate) fn job_demand(config: &SessionConfig) -> Demand {
    let demand = config.get_extension::<Demand>();
    demand.map_or_else(|| Demand::plain(DEFAULT_CLASS), |demand| demand.as_ref().clone())
}

/// Places what can be placed of one job.
pub(crate) fn bind_job(
    job: &JobId,
    graph: &mut ExecutionGraphBox,
    places: &mut [Place],
    chooser: &mut Chooser,
    strategy: Strategy,
) -> Vec<BoundTask> {
    let session = graph.session_id().to_owned();
    // What is ready runs from here on, so that what it will read can be looked through.
    graph.revive();
    let mut cleared = match cleared(graph) {
        Ok(cleared) => cleared,
        Err(error) => {
            tracing::error!(%job, "its stages wait: what they read cannot be told: {error}");
            return Vec::new();
        }
    };
    let mut visited = Vec::new();
    let mut bound = Vec::new();
    while let Some(stage) = graph.fetch_running_stage(&visited) {
        visited.push(stage.stage_id);
        // A stage whose markers disagree is placed nowhere; the watch fails its job with the reason.
        let Ok(demand) = demand_of(stage) else { continue };
        if let Some(cleared) = cleared.remove(&stage.stage_id) {
            cleared.give(stage);
        }
        let key = rowmill_cores::seed::mix(stage.stage_id as u64);
        while !stage.pending.is_empty() {
            let Some(at) = chooser.choose(strategy, &demand, key, places) else { break };
            let share = fair_share(stage.pending.remaining(), &demand, places);
            let Some(task) = bind_task(job, &session, stage, &demand, share, &mut places[at]) else { break };
            bound.push(task);
        }
    }
    bound
}

/// Partitions that one task takes at most, so that all executors with room get some.
fn fair_share(pending: usize, demand: &Demand, places: &[Place]) -> usize {
    let open =
        places.iter().filter(|place| place.name.serves(&demand.class) && place.free >= slots_on(demand, place)).count();
    pending.div_ceil(open.max(1))
}

/// Binds one task: takes partitions off the stage and slots off the executor.
fn bind_task(
    job: &JobId,
    session: &str,
    stage: &mut RunningStage,
    demand: &Demand,
    share: usize,
    place: &mut Place,
) -> Option<BoundTask> {
    let each = slots_on(demand, place);
    let configured = stage.session_config.options().extensions.get::<BallistaConfig>();
    let cap = configured.map(BallistaConfig::max_partitions_per_task).filter(|&cap| cap > 0).unwrap_or(usize::MAX);
    let collapses = has_input_collapse(&stage.plan);
    // What is downstream of a collapse wants its whole input: it is one task, driven by one thread.
    let most = if collapses { usize::MAX } else { share.min(cap).min((place.free / each) as usize).max(1) };
    let partitions = stage.pending.next_slice(most);
    if partitions.is_empty() {
        return None;
    }
    let consumed = if collapses { each } else { each.saturating_mul(u32::try_from(partitions.len()).ok()?) };
    let task_id = stage.task_infos.len();
    let task_attempt = partitions.iter().map(|partition| stage.task_failure_numbers[*partition]).max().unwrap_or(0);
    let mut info = create_task_info(place.id.clone(), task_id);
    info.global_input_partition_ids.clone_from(&partitions);
    info.vcores_consumed = consumed;
    stage.task_infos.push(info);
    place.free = place.free.saturating_sub(consumed);
    let task = TaskDescription {
        session_id: session.to_owned(),
        key: TaskKey { job_id: job.clone(), stage_id: stage.stage_id, task_id },
        stage_attempt_num: stage.stage_attempt_num,
        task_attempt,
        global_input_partition_ids: partitions,
        vcores_consumed: consumed,
        plan: stage.plan.clone(),
        session_config: stage.session_config.clone(),
    };
    Some((place.id.clone(), task))
}

/// Whether some operator between the stage's root and its shuffle readers has one output partition: Ballista's own rule
/// (`stage_has_input_collapse`, private there).
fn has_input_collapse(root: &Arc<dyn ExecutionPlan>) -> bool {
    let mut node = match root.children().as_slice() {
        [child] => Arc::clone(child),
        _ => return false,
    };
    loop {
        if node.downcast_ref::<ShuffleReaderExec>().is_some() || node.downcast_ref::<RangeShuffleReaderExec>().is_some()
        {
            return false;
        }
        if node.properties().output_partitioning().partition_count() == 1 {
            return true;
        }
        let child = match node.children().as_slice() {
            [child] => Arc::clone(child),
            _ => return false,
        };
        node = child;
    }
}
