//! One pass of placement: what the graphs say runs and waits, and binding tasks where admission says
//! ([`crate::admission`]).
//!
//! Every visited stage is put on the graph's black list, or one that cannot be placed would be handed out for ever; it stays
//! there with its pending partitions until an executor comes or a task ends, which is another pass.

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
use rowmill_cores::ids::ReservationId;
use rowmill_wire::class::{DEFAULT_CLASS, Demand, class_of_stage};

use crate::admission::{Admitted, Desk, Grants, RunningTask, Stage};
use crate::inputs::cleared;

/// An executor with its slots.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) id: String,
    pub(crate) total: u32,
    pub(crate) free: u32,
    /// Memory that its tasks share; zero where it has not said.
    pub(crate) memory_bytes: u64,
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

/// What a job has running and waiting.
pub(crate) fn survey(job: &JobId, graph: &ExecutionGraphBox, running: &mut Vec<RunningTask>, waiting: &mut Vec<Stage>) {
    for (id, stage) in graph.stages() {
        let ExecutionStage::Running(stage) = stage else { continue };
        let Some(admitted) = stage.session_config.get_extension::<Admitted>() else {
            tracing::error!(%job, "the job was not admitted and is not placed");
            continue;
        };
        let run = admitted.0;
        let demand = demand_of(stage);
        // A task that takes a whole input is one, however many partitions that has: to count them all is on the safe side.
        let memory_bytes = demand.as_ref().map_or(0, |demand| demand.memory_bytes);
        running.extend(stage.task_infos.iter().filter_map(|task| match &task.task_status {
            TaskState::Running(state) => Some(RunningTask {
                name: (job.clone(), *id, stage.stage_attempt_num, task.task_id),
                run,
                executor: state.executor_id.clone(),
                slots: task.vcores_consumed,
                memory_bytes: memory_bytes.saturating_mul(task.global_input_partition_ids.len() as u64),
            }),
            _ => None,
        }));
        // A stage whose markers disagree is placed nowhere; the watch fails its job with the reason.
        let Ok(demand) = demand else { continue };
        let units = match stage.pending.remaining() {
            0 => continue,
            // What is downstream of a collapse wants its whole input: it is one task, driven by one thread.
            _ if has_input_collapse(&stage.plan) => 1,
            many => many,
        };
        waiting.push(Stage { job: job.clone(), run, stage: *id, units, demand });
    }
}

/// Slots that one partition takes on this executor: as many as it asks for, or more where their share of the executor's
/// memory is less than it asks for; at least one free slot of a whole device is the whole device.
fn slots_on(demand: &Demand, place: &Place) -> u32 {
    let total = place.total.max(1);
    demand.slots.max(slots_for(demand.memory_bytes, place.memory_bytes, total)).clamp(1, total)
}

/// How many of an executor's slots have so much of its memory; one where nothing is asked for or known.
pub(crate) fn slots_for(asked_bytes: u64, memory_bytes: u64, slots: u32) -> u32 {
    if asked_bytes == 0 || memory_bytes == 0 {
        return 1;
    }
    let slots = u128::from(asked_bytes) * u128::from(slots.max(1));
    u32::try_from(slots.div_ceil(u128::from(memory_bytes))).unwrap_or(u32::MAX).max(1)
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

/// Binds what was granted to one job. What cannot be used is given back.
pub(crate) fn bind_job(
    job: &JobId,
    graph: &mut ExecutionGraphBox,
    places: &mut [Place],
    grants: &mut Grants,
    desk: &Desk,
) -> Vec<BoundTask> {
    let session = graph.session_id().to_owned();
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
        let Ok(demand) = demand_of(stage) else { continue };
        if let Some(cleared) = cleared.remove(&stage.stage_id) {
            cleared.give(stage);
        }
        let Some(granted) = grants.remove(&(job.clone(), stage.stage_id)) else { continue };
        // One task for what an executor was given of a stage.
        let mut shares: BTreeMap<String, Vec<ReservationId>> = BTreeMap::new();
        for (executor, reservation) in granted {
            shares.entry(executor).or_default().push(reservation);
        }
        for (executor, mut share) in shares {
            if let Ok(at) = places.binary_search_by(|place| place.id.cmp(&executor)) {
                while !share.is_empty() {
                    let Some(task) = bind_task(job, &session, stage, &demand, share.len(), &mut places[at]) else {
                        break;
                    };
                    let (_, description) = &task;
                    let name = (job.clone(), stage.stage_id, stage.stage_attempt_num, description.key.task_id);
                    let used = description.global_input_partition_ids.len().min(share.len());
                    desk.bound(name, share.drain(..used).collect());
                    bound.push(task);
                }
            }
            desk.unused(share);
        }
    }
    bound
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
    if place.free < each {
        return None;
    }
    let configured = stage.session_config.options().extensions.get::<BallistaConfig>();
    let cap = configured.map(BallistaConfig::max_partitions_per_task).filter(|&cap| cap > 0).unwrap_or(usize::MAX);
    let collapses = has_input_collapse(&stage.plan);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_have_shares_of_an_executors_memory() {
        let place = |memory_bytes| Place { id: "cpu.1".to_owned(), total: 4, free: 4, memory_bytes };
        let heavy = |memory_bytes| Demand::plain("cpu").with_memory(memory_bytes);
        for (asked, has, slots) in [
            (0, 4_000, 1),
            (1, 4_000, 1),
            (1_000, 4_000, 1),
            (1_001, 4_000, 2),
            (4_000, 4_000, 4),
            (9_000, 4_000, 4),
            (9_000, 0, 1),
            (u64::MAX, 1, 4),
        ] {
            assert_eq!(slots_on(&heavy(asked), &place(has)), slots, "{asked} of {has}");
        }
        let gpu = Demand { slots: u32::MAX, ..heavy(10) };
        assert_eq!(slots_on(&gpu, &place(4_000)), 4, "a whole device is a whole device");
    }
}
