//! What is believed of what executors say, before Ballista hears it: it takes every word for true. A report of a task that
//! nobody gave out ends its event loop, and with that the work of everybody; one of somebody else's task makes wrong
//! results; and a second executor under one id gets the first one's tasks.

use ballista_core::serde::protobuf::failed_task::FailedReason;
use ballista_core::serde::protobuf::task_status::Status as TaskState;
use ballista_core::serde::protobuf::{ExecutorRegistration, FailedTask, IoError, TaskStatus};
use ballista_core::serde::scheduler::ExecutorMetadata;
use ballista_scheduler::state::execution_graph::ExecutionGraphBox;
use ballista_scheduler::state::execution_stage::ExecutionStage;

/// What becomes of a report.
#[derive(Debug, PartialEq)]
pub(crate) enum Verdict {
    /// Ballista may have it.
    Take(TaskStatus),
    /// Nobody waits for it: its stage has gone on without it.
    Late,
    /// Nobody gave this task to this executor; why it is not believed.
    Stranger(&'static str),
}

/// Judges a report of `executor` by what the graph of its job says.
pub(crate) fn judge(graph: &ExecutionGraphBox, executor: &str, report: TaskStatus) -> Verdict {
    let Some(stage) = graph.stages().get(&(report.stage_id as usize)) else {
        return Verdict::Stranger("its job has no such stage");
    };
    let attempt = report.stage_attempt_num as usize;
    match stage {
        ExecutionStage::Running(stage) if attempt == stage.stage_attempt_num => {
            let Some(task) = stage.task_infos.get(report.task_id as usize) else {
                return Verdict::Stranger("its stage has no such task");
            };
            match &task.task_status {
                TaskState::Running(running) if running.executor_id == executor => {
                    let inputs: Vec<usize> = stage.inputs.keys().copied().collect();
                    Verdict::Take(sound(executor, &inputs, report))
                }
                TaskState::Running(_) => Verdict::Stranger("another executor has the task"),
                TaskState::Successful(_) | TaskState::Failed(_) => Verdict::Late,
            }
        }
        ExecutionStage::Running(stage) if attempt > stage.stage_attempt_num => {
            Verdict::Stranger("its stage was not attempted so often")
        }
        // A stage that was rolled back just now hears from its last attempt what else is missing.
        ExecutionStage::UnResolved(stage) if attempt + 1 == stage.stage_attempt_num => {
            let inputs: Vec<usize> = stage.inputs.keys().copied().collect();
            Verdict::Take(sound(executor, &inputs, report))
        }
        _ => Verdict::Late,
    }
}

/// The report as it can be entered; one that makes no sense is a failure that is tried again.
fn sound(executor: &str, inputs: &[usize], mut report: TaskStatus) -> TaskStatus {
    let wrong = match &report.status {
        Some(TaskState::Successful(done)) if done.executor_id != executor => Some("it names another executor's files"),
        Some(TaskState::Failed(failed)) => match &failed.failed_reason {
            Some(FailedReason::FetchPartitionError(missing)) if !inputs.contains(&(missing.map_stage_id as usize)) => {
                Some("it misses the files of a stage that it does not read")
            }
            Some(_) => None,
            None => Some("it does not say why the task failed"),
        },
        Some(TaskState::Successful(_)) => None,
        Some(TaskState::Running(_)) | None => Some("it says neither that the task succeeded nor that it failed"),
    };
    // Ballista stops in the middle of entering a report whose metrics it cannot read.
    if report.metrics.iter().flat_map(|set| &set.metrics).any(|metric| metric.metric.is_none()) {
        report.metrics.clear();
    }
    if let Some(wrong) = wrong {
        tracing::warn!(executor, job = report.job_id, stage = report.stage_id, "a report makes no sense: {wrong}");
        report.status = Some(TaskState::Failed(FailedTask {
            error: format!("the report of executor {executor} makes no sense: {wrong}"),
            retryable: true,
            count_to_failures: true,
            failed_reason: Some(FailedReason::IoError(IoError {})),
        }));
    }
    report
}

/// Judges what an executor says of itself against what is known under its id.
///
/// # Errors
/// Something is missing, or somebody else has the id; the text says so.
pub(crate) fn judge_registration(said: &ExecutorRegistration, known: Option<&ExecutorMetadata>) -> Result<(), String> {
    let id = &said.id;
    let Some(host) = said.host.as_deref().filter(|host| !host.is_empty()) else {
        return Err(format!("executor {id} does not say where it listens"));
    };
    if said.specification.is_none() || said.os_info.is_none() {
        return Err(format!("executor {id} does not say what it has"));
    }
    let ports = [said.port, said.grpc_port];
    if ports.iter().any(|port| *port == 0 || *port > u32::from(u16::MAX)) {
        return Err(format!("executor {id} names {ports:?} as its ports"));
    }
    match known {
        Some(known)
            if known.host != host
                || u32::from(known.port) != said.port
                || u32::from(known.grpc_port) != said.grpc_port =>
        {
            Err(format!(
                "another executor, at {}:{}, has joined as {id}; ids are given out by `rowmill executor`, each once",
                known.host, known.grpc_port
            ))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use ballista_core::serde::protobuf::{
        ExecutorOperatingSystemSpecification, ExecutorSpecification, FetchPartitionError, OperatorMetric,
        OperatorMetricsSet, SuccessfulTask,
    };

    use super::*;

    fn report(status: Option<TaskState>) -> TaskStatus {
        TaskStatus {
            task_id: 0,
            job_id: "job".to_owned(),
            stage_id: 1,
            stage_attempt_num: 0,
            launch_time: 0,
            start_exec_time: 0,
            end_exec_time: 0,
            metrics: Vec::new(),
            status,
        }
    }

    fn failed(reason: Option<FailedReason>) -> Option<TaskState> {
        Some(TaskState::Failed(FailedTask { failed_reason: reason, ..FailedTask::default() }))
    }

    #[test]
    fn reports_that_make_no_sense_are_failures_that_are_tried_again() {
        let done = |executor: &str| {
            let done = SuccessfulTask { executor_id: executor.to_owned(), ..SuccessfulTask::default() };
            Some(TaskState::Successful(done))
        };
        let missing = |stage| {
            FailedReason::FetchPartitionError(FetchPartitionError {
                map_stage_id: stage,
                ..FetchPartitionError::default()
            })
        };
        for good in [done("a"), failed(Some(missing(7))), failed(Some(FailedReason::IoError(IoError {})))] {
            assert_eq!(sound("a", &[7], report(good.clone())).status, good);
        }
        for bad in [done("b"), failed(Some(missing(8))), failed(None), None] {
            let Some(TaskState::Failed(failed)) = sound("a", &[7], report(bad)).status else { panic!("a failure") };
            assert!(failed.retryable && failed.count_to_failures && failed.error.contains("makes no sense"));
        }
        let mut empty = report(done("a"));
        let metric = OperatorMetric { partition: None, metric: None };
        empty.metrics = vec![OperatorMetricsSet { metrics: vec![metric] }];
        assert!(sound("a", &[], empty).metrics.is_empty());
    }

    #[test]
    fn an_id_has_one_address() {
        let said = ExecutorRegistration {
            id: "cpu.1".to_owned(),
            host: Some("10.0.0.1".to_owned()),
            port: 5,
            grpc_port: 6,
            specification: Some(ExecutorSpecification::default()),
            os_info: Some(ExecutorOperatingSystemSpecification::default()),
            ..ExecutorRegistration::default()
        };
        let known = ExecutorMetadata {
            id: said.id.clone(),
            host: "10.0.0.1".to_owned(),
            port: 5,
            grpc_port: 6,
            specification: Default::default(),
            os_info: Default::default(),
        };
        assert_eq!(judge_registration(&said, None), Ok(()));
        assert_eq!(judge_registration(&said, Some(&known)), Ok(()), "it says so again");
        let other = ExecutorRegistration { grpc_port: 7, ..said.clone() };
        let refused = judge_registration(&other, Some(&known)).unwrap_err();
        assert!(refused.contains("10.0.0.1:6") && refused.contains("cpu.1"), "{refused}");
        for broken in [
            ExecutorRegistration { host: None, ..said.clone() },
            ExecutorRegistration { port: 70_000, ..said.clone() },
            ExecutorRegistration { specification: None, ..said.clone() },
            ExecutorRegistration { os_info: None, ..said },
        ] {
            assert!(judge_registration(&broken, None).is_err(), "{broken:?}");
        }
    }
}
