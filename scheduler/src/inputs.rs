//! What a stage reads: the files that the standing attempts at its inputs have written, each once.
//!
//! Ballista hands the files of a task that has ended to the stages that will read them at once. When the task's stage is
//! rolled back afterwards, because an executor died that held what it read, its tasks all go again; but what the earlier
//! attempt had handed over stays in the lists, and their rows would be read twice.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ballista_core::execution_plans::{RangeShuffleReaderExec, ShuffleReaderExec};
use ballista_core::serde::protobuf::task_status::Status as TaskState;
use ballista_core::serde::scheduler::PartitionLocation;
use ballista_scheduler::state::execution_graph::ExecutionGraphBox;
use ballista_scheduler::state::execution_stage::{ExecutionStage, RunningStage, StageOutput, TaskInfo};
use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode as _};
use datafusion::physical_plan::ExecutionPlan;

/// A file of a stage: stage, executor, partition, number.
type File = (usize, String, usize, Option<u64>);

/// The plans of stages that are about to begin and of whose inputs some went again, with what does not stand taken out.
pub(crate) fn cleared(graph: &ExecutionGraphBox) -> Result<HashMap<usize, Cleared>> {
    let mut cleared = HashMap::new();
    for (id, stage) in graph.stages() {
        let ExecutionStage::Running(stage) = stage else { continue };
        let again = |input: &usize| graph.stages().get(input).is_some_and(|stage| attempts(stage) > 0);
        if !stage.task_infos.is_empty() || !stage.inputs.keys().any(again) {
            continue;
        }
        let mut standing = HashSet::new();
        for input in stage.inputs.keys() {
            if let Some(tasks) = graph.stages().get(input).and_then(tasks) {
                note_files(*input, tasks, &mut standing);
            }
        }
        cleared.insert(*id, Cleared::of(stage, &standing)?);
    }
    Ok(cleared)
}

/// What a stage is to read.
pub(crate) struct Cleared {
    plan: Arc<dyn ExecutionPlan>,
    inputs: HashMap<usize, StageOutput>,
}

impl Cleared {
    fn of(stage: &RunningStage, standing: &HashSet<File>) -> Result<Self> {
        let mut inputs = stage.inputs.clone();
        for output in inputs.values_mut() {
            for files in output.partition_locations.values_mut() {
                *files = only(files, standing);
            }
        }
        Ok(Self { plan: without_others(Arc::clone(&stage.plan), standing)?, inputs })
    }

    /// Puts it into the stage.
    pub(crate) fn give(self, stage: &mut RunningStage) {
        stage.plan = self.plan;
        stage.inputs = self.inputs;
    }
}

fn attempts(stage: &ExecutionStage) -> usize {
    match stage {
        ExecutionStage::UnResolved(stage) => stage.stage_attempt_num,
        ExecutionStage::Resolved(stage) => stage.stage_attempt_num,
        ExecutionStage::Running(stage) => stage.stage_attempt_num,
        ExecutionStage::Successful(stage) => stage.stage_attempt_num,
        ExecutionStage::Failed(stage) => stage.stage_attempt_num,
    }
}

fn tasks(stage: &ExecutionStage) -> Option<&Vec<TaskInfo>> {
    match stage {
        ExecutionStage::Running(stage) => Some(&stage.task_infos),
        ExecutionStage::Successful(stage) => Some(&stage.task_infos),
        _ => None,
    }
}

fn note_files(stage: usize, tasks: &[TaskInfo], standing: &mut HashSet<File>) {
    for task in tasks {
        let TaskState::Successful(done) = &task.task_status else { continue };
        standing.extend(
            done.partitions
                .iter()
                .map(|file| (stage, done.executor_id.clone(), file.partition_id as usize, file.file_id)),
        );
    }
}

/// Of files those that stand, each once.
fn only(files: &[PartitionLocation], standing: &HashSet<File>) -> Vec<PartitionLocation> {
    let mut seen = HashSet::new();
    let stands = |file: &&PartitionLocation| {
        let part = &file.partition_id;
        let name = (part.stage_id, file.executor_meta.id.clone(), part.partition_id, file.file_id);
        standing.contains(&name) && seen.insert(name)
    };
    files.iter().filter(stands).cloned().collect()
}

/// A plan whose readers read only what stands.
fn without_others(plan: Arc<dyn ExecutionPlan>, standing: &HashSet<File>) -> Result<Arc<dyn ExecutionPlan>> {
    let all = |partitions: &[Vec<PartitionLocation>]| partitions.iter().map(|files| only(files, standing)).collect();
    let cleared = plan.transform_up(|node| {
        if let Some(reader) = node.downcast_ref::<ShuffleReaderExec>() {
            let mut reader = reader.clone();
            reader.partition = all(&reader.partition);
            return Ok(Transformed::yes(Arc::new(reader) as Arc<dyn ExecutionPlan>));
        }
        if let Some(reader) = node.downcast_ref::<RangeShuffleReaderExec>() {
            let mut reader = reader.clone();
            reader.partition = all(&reader.partition);
            return Ok(Transformed::yes(Arc::new(reader) as Arc<dyn ExecutionPlan>));
        }
        Ok(Transformed::no(node))
    })?;
    Ok(cleared.data)
}

#[cfg(test)]
mod tests {
    use ballista_core::serde::protobuf::{ShuffleWritePartition, SuccessfulTask};
    use ballista_core::serde::scheduler::{ExecutorMetadata, PartitionId, PartitionStats};
    use ballista_scheduler::state::execution_graph::create_task_info;
    use datafusion::arrow::datatypes::{DataType, Field, Schema};
    use datafusion::physical_plan::Partitioning;

    use super::*;

    const STAGE: usize = 3;

    fn file(executor: &str, partition: usize, number: u64) -> PartitionLocation {
        PartitionLocation {
            map_partition_id: 0,
            partition_id: PartitionId { job_id: "job".into(), stage_id: STAGE, partition_id: partition },
            executor_meta: ExecutorMetadata {
                id: executor.to_owned(),
                host: "localhost".to_owned(),
                port: 1,
                grpc_port: 2,
                specification: Default::default(),
                os_info: Default::default(),
            },
            partition_stats: PartitionStats::default(),
            file_id: Some(number),
            is_sort_shuffle: false,
        }
    }

    /// A task that has written file `number` of both partitions.
    fn done(executor: &str, number: u64) -> TaskInfo {
        let partition = |partition_id| ShuffleWritePartition {
            partition_id,
            file_id: Some(number),
            ..ShuffleWritePartition::default()
        };
        let done = SuccessfulTask {
            executor_id: executor.to_owned(),
            partitions: vec![partition(0), partition(1)],
            ..SuccessfulTask::default()
        };
        TaskInfo { task_status: TaskState::Successful(done), ..create_task_info(executor.to_owned(), 0) }
    }

    #[test]
    fn what_an_earlier_attempt_left_is_not_read() {
        let mut standing = HashSet::new();
        // The second attempt: one task ended, one runs.
        note_files(STAGE, &[done("a", 1 << 20), create_task_info("b".to_owned(), 1)], &mut standing);
        let stale = file("a", 0, 0);
        let listed = vec![
            vec![stale, file("a", 0, 1 << 20), file("a", 0, 1 << 20)],
            vec![file("b", 1, 1 << 20), file("a", 1, 1 << 20)],
        ];
        let schema = Arc::new(Schema::new(vec![Field::new("x", DataType::Int64, false)]));
        let reader = ShuffleReaderExec::try_new(STAGE, listed, schema, Partitioning::UnknownPartitioning(2)).unwrap();
        let plan = without_others(Arc::new(reader), &standing).unwrap();
        let read = &plan.downcast_ref::<ShuffleReaderExec>().unwrap().partition;
        let names = |files: &[PartitionLocation]| -> Vec<(String, Option<u64>)> {
            files.iter().map(|file| (file.executor_meta.id.clone(), file.file_id)).collect()
        };
        assert_eq!(names(&read[0]), [("a".to_owned(), Some(1 << 20))], "the stale file and the doubled one are gone");
        assert_eq!(names(&read[1]), [("a".to_owned(), Some(1 << 20))], "nobody stands behind the file of b");
    }
}
