//! What looks after work that nobody else looks after: attempts whose executor does not name them any more, stages whose
//! class has no executor, stages whose markers contradict each other, executors that want to leave and still hold what
//! others will read.
//!
//! Executors drop a task's status when reporting fails, and a task can be bound and never sent. So every attempt has a
//! lease, which its executor prolongs by naming it in its signs of life; when the lease has run out the attempt is
//! reported to Ballista as failed in a way that is tried again, and the executor is told to stop it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ballista_core::JobId;
use ballista_core::serde::protobuf::scheduler_grpc_server::SchedulerGrpc;
use ballista_core::serde::protobuf::task_status::Status as TaskState;
use ballista_core::serde::protobuf::{FailedTask, IoError, TaskStatus, UpdateTaskStatusParams, failed_task};
use ballista_scheduler::cluster::ClusterState;
use ballista_scheduler::scheduler_server::SchedulerServer;
use ballista_scheduler::state::execution_stage::ExecutionStage;
use datafusion_proto::protobuf::{LogicalPlanNode, PhysicalPlanNode};
use parking_lot::Mutex;
use rowmill_wire::alive::{AliveRequest, AliveResponse, RunningTask};
use rowmill_wire::class::Demand;
use rowmill_wire::name::ExecutorName;
use rowmill_wire::step::StepCount;

use crate::admission::Desk;
use crate::claims::Claims;
pub(crate) use crate::claims::name_of;
use crate::cluster_state::Cluster;
use crate::mend::{give_up, is_gone, offer_again};
use crate::options::Options;
use crate::placement::demand_of;
use crate::unserved::Crowd;

/// Ballista's server, as we use it.
pub(crate) type Server = SchedulerServer<LogicalPlanNode, PhysicalPlanNode>;

/// How often the watch looks.
const ROUND: Duration = Duration::from_millis(250);
/// Silence after which it is asked whether an executor's process is still there.
const SILENT: Duration = Duration::from_millis(1500);
/// How long an attempt may stand on an executor that is not there.
const ORPHAN: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Attempt {
    executor: String,
    /// When its executor last named it, or when it was first seen in a graph.
    sign: Instant,
}

#[derive(Debug)]
struct Unserved {
    since: Instant,
    warned: bool,
}

/// Why the watch ended a job.
#[derive(Debug)]
pub(crate) enum Reason {
    /// Nobody could run it.
    Unplaced(String),
    /// It may never have what it needs.
    OverQuota(String),
}

#[derive(Debug, Default)]
struct Book {
    attempts: HashMap<RunningTask, Attempt>,
    unserved: HashMap<(JobId, usize), Unserved>,
    /// What executors are told to stop with the next answer.
    stop: HashMap<String, HashSet<RunningTask>>,
    reasons: HashMap<JobId, Reason>,
    claims: Claims,
    /// When executors last gave a sign of life.
    signs: HashMap<String, Instant>,
    /// Attempts that executors name and no graph does, since when.
    strangers: HashMap<RunningTask, Instant>,
    /// Jobs that run.
    running: HashSet<String>,
    /// Jobs that executors hold something of and that neither run nor are read, since when.
    strange_jobs: HashMap<String, Instant>,
    /// Executors that hold what a running job has made.
    needed: HashSet<String>,
    /// Results that somebody may still read: the job and the executors that hold them.
    results: HashMap<String, HashSet<String>>,
    /// When executors began to drain.
    draining: HashMap<String, Instant>,
    /// When the last look began that has ended.
    looked: Option<Instant>,
    /// An executor that takes more than it did: what waits may have a place now.
    changed: Option<String>,
}

impl Book {
    /// Whether an executor holds what somebody will read. What was reported after the last look began is not in the
    /// graphs that were looked at.
    fn is_needed(&self, executor: &str) -> bool {
        let since = self.draining.get(executor).copied().max(self.claims.last_report(executor));
        let looked = self.looked.is_some_and(|looked| since.is_none_or(|since| looked > since));
        !looked || self.needed.contains(executor) || self.results.values().any(|holders| holders.contains(executor))
    }
}

/// The watch and what it remembers.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    book: Mutex<Book>,
}

impl Watch {
    /// An executor says what it runs; it is told what to stop.
    pub(crate) fn hear(&self, cluster: &Cluster, message: AliveRequest, lease: Duration) -> AliveResponse {
        cluster.set_draining(&message.executor, message.draining);
        let opened = cluster.set_closed(&message.executor, &message.closed);
        let grown = cluster.set_memory(&message.executor, message.memory_bytes);
        let now = Instant::now();
        let mut book = self.book.lock();
        if opened || grown {
            book.changed = Some(message.executor.clone());
        }
        book.signs.insert(message.executor.clone(), now);
        if message.draining {
            book.draining.entry(message.executor.clone()).or_insert(now);
        } else {
            book.draining.remove(&message.executor);
        }
        let stop = book.stop.remove(&message.executor).unwrap_or_default();
        let mut still = Vec::new();
        for task in message.running {
            if stop.contains(&task) {
                still.push(task);
            } else if let Some(attempt) = book.attempts.get_mut(&task)
                && attempt.executor == message.executor
            {
                attempt.sign = now;
            } else if now.duration_since(*book.strangers.entry(task.clone()).or_insert(now)) > lease {
                // Its stage was rolled back, or its job has ended, and it was not told.
                still.push(task);
            }
        }
        let mut forget = Vec::new();
        for job in message.held {
            // A scheduler that was started anew knows nothing of the jobs of the one before.
            if book.running.contains(&job) || book.results.contains_key(&job) {
                book.strange_jobs.remove(&job);
            } else if now.duration_since(*book.strange_jobs.entry(job.clone()).or_insert(now)) > lease {
                forget.push(job);
            }
        }
        AliveResponse { stop: still, needed: book.is_needed(&message.executor), forget, term: 0 }
    }

    /// Executors that have been silent for a while. Those that never spoke are young.
    fn silent(&self, now: Instant) -> HashSet<String> {
        let book = self.book.lock();
        let silent = book.signs.iter().filter(|(_, sign)| now.duration_since(**sign) > SILENT);
        silent.map(|(executor, _)| executor.clone()).collect()
    }

    /// The reports that are the first of their attempts.
    pub(crate) fn claim(&self, executor: &str, reports: Vec<TaskStatus>) -> Vec<TaskStatus> {
        self.book.lock().claims.take(executor, reports)
    }

    /// Reports that were not passed on after all.
    pub(crate) fn give_back(&self, attempts: &[RunningTask]) {
        self.book.lock().claims.give_back(attempts);
    }

    /// What the steps of a job counted in the attempts that stand, each named by stage and task.
    pub(crate) fn sum(&self, job: &JobId, standing: &HashSet<(u32, u32)>) -> BTreeMap<String, StepCount> {
        self.book.lock().claims.sum(job.as_str(), standing)
    }

    /// A result that somebody will read is held by these executors.
    pub(crate) fn hold(&self, job: &JobId, executors: HashSet<String>) {
        self.book.lock().results.insert(job.to_string(), executors);
    }

    /// Nobody reads the result any more.
    pub(crate) fn release(&self, job: &JobId) {
        let mut book = self.book.lock();
        book.results.remove(job.as_str());
        book.claims.forget_counts(job.as_str());
        book.reasons.remove(job);
    }

    /// Why a job was ended by the watch, once.
    pub(crate) fn take_reason(&self, job: &JobId) -> Option<Reason> {
        self.book.lock().reasons.remove(job)
    }

    /// Looks again and again until the scheduler stops.
    pub(crate) async fn run(&self, server: Server, cluster: Arc<Cluster>, desk: Arc<Desk>, options: Options) {
        let mut rounds = tokio::time::interval(ROUND);
        rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            rounds.tick().await;
            self.look(&server, &cluster, &desk, &options).await;
        }
    }

    async fn look(&self, server: &Server, cluster: &Cluster, desk: &Desk, options: &Options) {
        let now = Instant::now();
        let jobs = server.state.task_manager.get_running_job_cache();
        let registered = cluster.registered_executor_metadata().await;
        let known: HashSet<String> = registered.iter().map(|executor| executor.id.clone()).collect();
        let silent = self.silent(now);
        for executor in registered.iter().filter(|executor| silent.contains(&executor.id)) {
            if is_gone(&executor.host, executor.grpc_port).await {
                tracing::warn!(executor = executor.id, "the executor's process is gone");
                give_up(server, executor.id.clone(), "its process is gone").await;
            }
        }
        let mut crowd = Crowd::default();
        for executor in registered {
            let Ok(name) = executor.id.parse::<ExecutorName>() else { continue };
            match cluster.closed(&executor.id) {
                _ if cluster.is_draining(&executor.id) => {}
                Some(why) => crowd.closed.push((name, why)),
                None => crowd.serving.push((name, cluster.memory(&executor.id))),
            }
        }
        let mut running: HashMap<RunningTask, String> = HashMap::new();
        let mut waiting: HashMap<(JobId, usize), Demand> = HashMap::new();
        let mut failed: HashMap<JobId, String> = HashMap::new();
        let mut needed: HashSet<String> = HashSet::new();
        for (job, info) in jobs.iter() {
            let graph = info.execution_graph.read().await;
            for (id, stage) in graph.stages() {
                needed.extend(holders(stage));
                let ExecutionStage::Running(stage) = stage else { continue };
                for task in &stage.task_infos {
                    if let TaskState::Running(place) = &task.task_status {
                        let key = RunningTask {
                            job: job.to_string(),
                            stage: *id as u32,
                            stage_attempt: stage.stage_attempt_num as u32,
                            task: task.task_id as u32,
                        };
                        running.insert(key, place.executor_id.clone());
                    }
                }
                if stage.pending.is_empty() {
                    continue;
                }
                match demand_of(stage) {
                    Err(why) => {
                        failed.insert(job.clone(), format!("stage {id}: {why}"));
                    }
                    Ok(demand) if !crowd.serves(&demand) => {
                        waiting.insert((job.clone(), *id), demand);
                    }
                    Ok(_) => {}
                }
            }
        }
        let running_jobs: HashSet<String> = jobs.keys().map(ToString::to_string).collect();
        let over_quota: HashMap<JobId, String> = desk.look(&running_jobs).into_iter().collect();
        let lost = self.expire(running, now, options.lease, &known);
        {
            let mut book = self.book.lock();
            book.needed = needed;
            book.strange_jobs.retain(|_, since| since.elapsed() < options.lease * 4);
            book.looked = Some(now);
            book.claims.forget(&running_jobs, now, &known);
            book.running = running_jobs;
            book.draining.retain(|executor, _| known.contains(executor));
            book.signs.retain(|executor, _| known.contains(executor));
            book.stop.retain(|executor, _| known.contains(executor));
            let attempts = std::mem::take(&mut book.attempts);
            book.strangers.retain(|task, since| !attempts.contains_key(task) && since.elapsed() < options.lease * 4);
            book.attempts = attempts;
        }
        self.judge_waiting(&waiting, &crowd, &mut failed, now, options);
        let ended = failed.into_iter().map(|(job, why)| (job, Reason::Unplaced(why)));
        for (job, why) in ended.chain(over_quota.into_iter().map(|(job, why)| (job, Reason::OverQuota(why)))) {
            tracing::warn!(job = %job, "the job fails: {why:?}");
            self.book.lock().reasons.insert(job.clone(), why);
            if let Err(error) = server.cancel_job(job.clone()).await {
                tracing::error!(job = %job, "the job could not be ended: {error}");
            }
        }
        let changed = self.book.lock().changed.take();
        if let Some(executor) = changed.filter(|executor| known.contains(executor)) {
            offer_again(server, executor).await;
        }
        for (task, executor) in lost {
            tracing::warn!(
                job = task.job,
                stage = task.stage,
                task = task.task,
                executor,
                "an attempt's lease ran out"
            );
            self.report_lost(server, task, executor, &known).await;
        }
    }

    /// Takes up new attempts, forgets ended ones, and returns those whose lease has run out.
    fn expire(
        &self,
        running: HashMap<RunningTask, String>,
        now: Instant,
        lease: Duration,
        known: &HashSet<String>,
    ) -> Vec<(RunningTask, String)> {
        let mut book = self.book.lock();
        book.attempts.retain(|task, _| running.contains_key(task));
        let mut lost = Vec::new();
        for (task, executor) in running {
            let attempt =
                book.attempts.entry(task.clone()).or_insert_with(|| Attempt { executor: executor.clone(), sign: now });
            // It was bound to an executor that went at that moment: nobody will name it.
            let due = if known.contains(&executor) { lease } else { lease.min(ORPHAN) };
            if now.duration_since(attempt.sign) > due {
                // One more lease before it is reported again, should the report be lost.
                attempt.sign = now;
                book.stop.entry(executor.clone()).or_default().insert(task.clone());
                lost.push((task, executor));
            }
        }
        lost
    }

    fn judge_waiting(
        &self,
        waiting: &HashMap<(JobId, usize), Demand>,
        crowd: &Crowd,
        failed: &mut HashMap<JobId, String>,
        now: Instant,
        options: &Options,
    ) {
        let mut book = self.book.lock();
        book.unserved.retain(|stage, _| waiting.contains_key(stage));
        for ((job, stage), demand) in waiting {
            let state = book.unserved.entry((job.clone(), *stage)).or_insert(Unserved { since: now, warned: false });
            let waited = now.duration_since(state.since);
            if waited >= options.queue_timeout {
                failed.insert(job.clone(), crowd.reason(*stage, demand, waited));
            } else if waited >= options.warn_after && !state.warned {
                state.warned = true;
                let class = &*demand.class;
                tracing::warn!(job = %job, stage, class, "{}", crowd.reason(*stage, demand, waited));
            }
        }
    }
}

/// The executors that hold what a stage has made, or are about to.
fn holders(stage: &ExecutionStage) -> Vec<String> {
    let tasks = stage.task_infos().unwrap_or_default().iter();
    tasks
        .filter_map(|task| match &task.task_status {
            TaskState::Running(running) => Some(running.executor_id.clone()),
            TaskState::Successful(done) => Some(done.executor_id.clone()),
            TaskState::Failed(_) => None,
        })
        .collect()
}

impl Watch {
    /// Tells Ballista that an attempt failed in a way that is tried again, as its executor would have.
    async fn report_lost(&self, server: &Server, task: RunningTask, executor: String, known: &HashSet<String>) {
        let failure = FailedTask {
            error: format!("executor {executor} did not name the attempt for the length of its lease"),
            retryable: true,
            count_to_failures: true,
            failed_reason: Some(failed_task::FailedReason::IoError(IoError {})),
        };
        let status = TaskStatus {
            task_id: task.task,
            job_id: task.job.clone(),
            stage_id: task.stage,
            stage_attempt_num: task.stage_attempt,
            launch_time: 0,
            start_exec_time: 0,
            end_exec_time: 0,
            metrics: Vec::new(),
            status: Some(TaskState::Failed(failure)),
        };
        let reported = self.book.lock().claims.is_taken(&task);
        if reported || !known.contains(&executor) {
            // It was reported and nothing came of it, or its executor is gone and nothing came of that: everything that
            // the graphs say of this executor is taken back. One that lives joins again.
            give_up(server, executor, "what runs on it is not what the scheduler believes").await;
            return;
        }
        let status = self.claim(&executor, vec![status]);
        let message = UpdateTaskStatusParams { executor_id: executor, task_status: status };
        if let Err(error) = SchedulerGrpc::update_task_status(server, tonic::Request::new(message)).await {
            self.give_back(&[task]);
            tracing::error!("a lost attempt could not be reported: {error}");
        }
    }
}
