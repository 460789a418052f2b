//! Which attempts have had their say, and what their steps counted.
//!
//! The first report of an attempt counts, be it the executor's or the lease's; later ones are dropped. What an attempt
//! counted is kept until its job has ended, and only the attempts whose result stands are summed up.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Instant;

use ballista_core::serde::protobuf::TaskStatus;
use ballista_core::serde::protobuf::operator_metric::Metric;
use ballista_core::serde::protobuf::task_status::Status as TaskState;
use rowmill_wire::alive::RunningTask;
use rowmill_wire::step::{StepCount, read_count};

/// What steps counted in one attempt, by step.
type Counts = BTreeMap<String, StepCount>;

/// Reports that were taken.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    taken: HashMap<RunningTask, Instant>,
    /// By job, then by stage and task; a task of a later attempt at the stage takes the place of an earlier one.
    counts: HashMap<String, HashMap<(u32, u32), Counts>>,
    /// How many operators the first report of a stage had metrics of, by job and stage, and when it came.
    operators: HashMap<(String, u32), (usize, Instant)>,
    /// When an executor last had a report taken.
    last: HashMap<String, Instant>,
}

/// The attempt that a report speaks of.
pub(crate) fn name_of(status: &TaskStatus) -> RunningTask {
    RunningTask {
        job: status.job_id.clone(),
        stage: status.stage_id,
        stage_attempt: status.stage_attempt_num,
        task: status.task_id,
    }
}

impl Claims {
    /// The reports that are the first of their attempts.
    pub(crate) fn take(&mut self, executor: &str, reports: Vec<TaskStatus>) -> Vec<TaskStatus> {
        let now = Instant::now();
        self.last.insert(executor.to_owned(), now);
        let mut first = Vec::with_capacity(reports.len());
        for mut report in reports {
            let name = name_of(&report);
            if self.taken.contains_key(&name) {
                continue;
            }
            if matches!(report.status, Some(TaskState::Successful(_))) {
                let counts = counts_of(&report);
                let place = (name.stage, name.task);
                self.counts.entry(name.job.clone()).or_default().insert(place, counts);
            }
            // Ballista refuses the report of a task whose part of a union has other operators than the parts before it,
            // and the job never ends; one without metrics it takes.
            let operators = report.metrics.len();
            let stage = (name.job.clone(), name.stage);
            if self.operators.entry(stage).or_insert((operators, now)).0 != operators {
                report.metrics.clear();
            }
            self.taken.insert(name, now);
            first.push(report);
        }
        first
    }

    /// Whether an attempt has had its say.
    pub(crate) fn is_taken(&self, attempt: &RunningTask) -> bool {
        self.taken.contains_key(attempt)
    }

    /// Reports that were not passed on after all.
    pub(crate) fn give_back(&mut self, attempts: &[RunningTask]) {
        for attempt in attempts {
            self.taken.remove(attempt);
        }
    }

    /// When an executor last reported.
    pub(crate) fn last_report(&self, executor: &str) -> Option<Instant> {
        self.last.get(executor).copied()
    }

    /// What the steps of a job counted in the attempts that stand, each named by stage and task.
    pub(crate) fn sum(&mut self, job: &str, standing: &HashSet<(u32, u32)>) -> Counts {
        let mut sum = Counts::new();
        for (place, counts) in self.counts.remove(job).unwrap_or_default() {
            if standing.contains(&place) {
                for (step, count) in counts {
                    sum.entry(step).or_default().add(count);
                }
            }
        }
        sum
    }

    /// Forgets jobs that do not run any more; `seen` is when the list of them was made.
    pub(crate) fn forget(&mut self, running: &HashSet<String>, seen: Instant, executors: &HashSet<String>) {
        self.taken.retain(|attempt, at| *at >= seen || running.contains(&attempt.job));
        self.operators.retain(|(job, _), (_, at)| *at >= seen || running.contains(job));
        self.last.retain(|executor, at| *at >= seen || executors.contains(executor));
    }

    /// Forgets what a job's steps counted.
    pub(crate) fn forget_counts(&mut self, job: &str) {
        self.counts.remove(job);
    }
}

/// What steps counted, as it stands in the metrics of an attempt's report.
fn counts_of(report: &TaskStatus) -> Counts {
    let mut counts = Counts::new();
    for metric in report.metrics.iter().flat_map(|set| &set.metrics) {
        if let Some(Metric::Count(count)) = &metric.metric
            && let Some((step, part)) = read_count(&count.name, count.value)
        {
            counts.entry(step.to_owned()).or_default().add(part);
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use ballista_core::serde::protobuf::{NamedCount, OperatorMetric, OperatorMetricsSet, SuccessfulTask};

    fn report(attempt: u32, task: u32, rows: u64) -> TaskStatus {
        let count = NamedCount { name: rowmill_wire::step::rows_name("clean"), value: rows };
        let metric = OperatorMetric { partition: Some(0), metric: Some(Metric::Count(count)) };
        TaskStatus {
            task_id: task,
            job_id: "job".to_owned(),
            stage_id: 1,
            stage_attempt_num: attempt,
            launch_time: 0,
            start_exec_time: 0,
            end_exec_time: 0,
            metrics: vec![OperatorMetricsSet { metrics: vec![metric] }],
            status: Some(TaskState::Successful(SuccessfulTask::default())),
        }
    }

    #[test]
    fn a_report_counts_once() {
        let mut claims = Claims::default();
        assert_eq!(claims.take("cpu.1", vec![report(0, 0, 5), report(0, 0, 5)]).len(), 1);
        assert!(claims.take("cpu.1", vec![report(0, 0, 5)]).is_empty());
        assert_eq!(claims.take("cpu.2", vec![report(1, 0, 5)]).len(), 1, "another attempt at the stage");
        claims.give_back(&[name_of(&report(1, 0, 5))]);
        assert_eq!(claims.take("cpu.2", vec![report(1, 0, 5)]).len(), 1, "it was not passed on");
    }

    #[test]
    fn reports_of_one_stage_have_metrics_of_as_many_operators() {
        let mut claims = Claims::default();
        let mut other = report(0, 1, 7);
        other.metrics.push(OperatorMetricsSet::default());
        let passed = claims.take("cpu.1", vec![report(0, 0, 5), other, report(0, 2, 9)]);
        assert_eq!(passed.iter().map(|report| report.metrics.len()).collect::<Vec<_>>(), [1, 0, 1]);
        let sum = claims.sum("job", &HashSet::from([(1, 0), (1, 1), (1, 2)]));
        assert_eq!(sum.get("clean").map(|count| count.rows), Some(21), "what was counted is read before");
    }

    #[test]
    fn only_attempts_that_stand_are_summed() {
        let mut claims = Claims::default();
        claims.take("cpu.1", vec![report(0, 0, 5), report(0, 1, 7), report(1, 1, 11)]);
        let sum = claims.sum("job", &HashSet::from([(1, 1)]));
        assert_eq!(sum.get("clean").map(|count| count.rows), Some(11));
    }

    #[test]
    fn ended_jobs_are_forgotten_and_new_ones_are_not() {
        let mut claims = Claims::default();
        let before = Instant::now();
        claims.take("cpu.1", vec![report(0, 0, 5)]);
        claims.forget(&HashSet::new(), before, &HashSet::new());
        assert!(claims.is_taken(&name_of(&report(0, 0, 5))), "the list of jobs was older than the report");
        claims.forget(&HashSet::new(), Instant::now(), &HashSet::new());
        assert!(!claims.is_taken(&name_of(&report(0, 0, 5))));
    }
}
