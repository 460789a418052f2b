//! A submitted job: waiting for its end and reading its result.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use ballista_core::JobId;
use ballista_core::serde::protobuf::job_status::Status;
use ballista_core::serde::protobuf::task_status::Status as TaskState;
use ballista_core::serde::protobuf::{JobStatus as Update, PartitionLocation};
use ballista_scheduler::cluster::JobState;
use ballista_scheduler::state::execution_graph::ExecutionGraphBox;
use ballista_scheduler::state::execution_stage::ExecutionStage;
use datafusion::arrow::array::RecordBatch;
use futures::TryStreamExt;
use futures::future::BoxFuture;
use rowmill_wire::class::class_of_stage;
use rowmill_wire::files::ResultFile;
use rowmill_wire::handshake::Handshake;
use rowmill_wire::jobs::Ran;
use rowmill_wire::step::StepCount;
use tokio::sync::mpsc;

use crate::admission::Place;
use crate::error::Error;
use crate::mend::clean;
use crate::placement::job_demand;
use crate::watch::{Reason, Server, Watch};

/// How long the state of a job that has ended may take to appear, and how often it is looked for.
const STATE_WAIT: Duration = Duration::from_secs(5);
const STATE_LOOK: Duration = Duration::from_millis(2);
/// How long a job that nobody waits for may take to be planned, and how often it is looked for.
const PLANNING: Duration = Duration::from_secs(120);
const PLANNING_LOOK: Duration = Duration::from_millis(50);

/// What a job has made.
#[derive(Debug)]
pub struct Finished {
    /// The files of its result, by partition.
    pub files: Vec<ResultFile>,
    /// What left its steps, by step.
    pub counted: BTreeMap<String, StepCount>,
    /// Who ran it, by executor and class.
    pub ran: Vec<Ran>,
}

/// A job that was submitted. Its result is kept, and its executors stay, until this is dropped; dropping it before the
/// job's end cancels the job.
pub struct Job {
    pub(crate) id: JobId,
    pub(crate) updates: mpsc::Receiver<Update>,
    pub(crate) watch: Arc<Watch>,
    pub(crate) jobs: Arc<dyn JobState>,
    pub(crate) server: Server,
    pub(crate) handshake: Handshake,
    pub(crate) ended: bool,
    /// Its place among what runs; given back at the end.
    pub(crate) place: Option<Place>,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("id", &self.id).field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl Job {
    /// Ballista's name of the job.
    pub fn id(&self) -> &JobId {
        &self.id
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// The job failed, was cancelled, or was lost with its scheduler.
    pub fn wait(&mut self) -> BoxFuture<'_, Result<Finished, Error>> {
        Box::pin(self.wait_now())
    }

    async fn wait_now(&mut self) -> Result<Finished, Error> {
        while let Some(update) = self.updates.recv().await {
            match update.status {
                Some(Status::Successful(done)) => {
                    self.ended = true;
                    self.place.take();
                    return self.finished(done.partition_location).await;
                }
                Some(Status::Failed(failed)) => {
                    self.ended = true;
                    self.place.take();
                    let job = self.id.to_string();
                    return Err(match self.watch.take_reason(&self.id) {
                        Some(Reason::Unplaced(reason)) => Error::Unplaced { job, reason },
                        Some(Reason::OverQuota(reason)) => Error::NotAdmitted(reason),
                        None => Error::Failed { job, reason: failed.error },
                    });
                }
                _ => {}
            }
        }
        Err(Error::Lost { job: self.id.to_string() })
    }

    /// Of the files that Ballista lists, those that the standing attempts of the last stage have made. Ballista goes on
    /// listing what a lost executor held after its partitions were made again elsewhere.
    async fn finished(&self, listed: Vec<PartitionLocation>) -> Result<Finished, Error> {
        let incomplete = |reason: &str| Error::ResultLost { job: self.id.to_string(), reason: reason.to_owned() };
        let graph = self.graph().await?.ok_or_else(|| incomplete("its state was not kept"))?;
        let mut standing = HashSet::new();
        let mut made = HashSet::new();
        let mut holders = HashSet::new();
        let mut ran: BTreeMap<(String, String), (u64, u128)> = BTreeMap::new();
        for (id, stage) in graph.stages() {
            let ExecutionStage::Successful(stage) = stage else {
                return Err(incomplete("a stage of it has not ended"));
            };
            let demand = class_of_stage(&stage.plan).ok().flatten();
            let class = demand.unwrap_or_else(|| job_demand(&stage.session_config)).class;
            let mut covered = vec![0_u32; stage.partitions];
            for task in &stage.task_infos {
                let TaskState::Successful(done) = &task.task_status else { continue };
                standing.insert((*id as u32, task.task_id as u32));
                let (tasks, busy_ms) = ran.entry((done.executor_id.clone(), class.to_string())).or_default();
                *tasks += 1;
                *busy_ms += task.end_exec_time.saturating_sub(task.start_exec_time);
                for partition in &task.global_input_partition_ids {
                    if let Some(times) = covered.get_mut(*partition) {
                        *times += 1;
                    }
                }
                if stage.output_links.is_empty() {
                    holders.insert(done.executor_id.clone());
                    made.extend(
                        done.partitions.iter().map(|file| (done.executor_id.clone(), file.partition_id, file.file_id)),
                    );
                }
            }
            if covered.iter().any(|times| *times != 1) {
                return Err(incomplete("a partition of it was not made exactly once"));
            }
        }
        let mut files: Vec<ResultFile> = listed
            .into_iter()
            .map(ResultFile::from)
            .filter(|file| {
                let id = (file.executor().to_owned(), file.partition() as u64, file.location().file_id);
                made.remove(&id)
            })
            .collect();
        if !made.is_empty() {
            return Err(incomplete("a file of it is not listed"));
        }
        files.sort_by_key(ResultFile::partition);
        self.watch.hold(&self.id, holders);
        drop(graph);
        let mut all = Vec::with_capacity(ran.len());
        for ((executor, class), (tasks, busy_ms)) in ran {
            let known = self.server.state.executor_manager.get_executor_metadata(&executor).await;
            let host = known.map_or_else(|_left| String::new(), |known| known.host);
            all.push(Ran { executor, host, class, tasks, busy_ms: u64::try_from(busy_ms).unwrap_or(u64::MAX) });
        }
        Ok(Finished { files, counted: self.watch.sum(&self.id, &standing), ran: all })
    }

    /// The job's graph as it ended; its subscribers hear of the end a moment before it is stored.
    async fn graph(&self) -> Result<Option<ExecutionGraphBox>, Error> {
        let deadline = tokio::time::Instant::now() + STATE_WAIT;
        loop {
            let graph = self.jobs.get_execution_graph(&self.id).await?;
            let ended = graph
                .as_ref()
                .is_some_and(|graph| matches!(graph.status().status, Some(Status::Successful(_) | Status::Failed(_))));
            if ended || tokio::time::Instant::now() > deadline {
                return Ok(graph);
            }
            tokio::time::sleep(STATE_LOOK).await;
        }
    }

    /// Waits for the end and reads the whole result, partition by partition.
    ///
    /// # Errors
    /// As [`Self::wait`]; [`Error::ResultLost`] when an executor that holds part of the result is gone.
    pub fn collect(self) -> BoxFuture<'static, Result<Vec<RecordBatch>, Error>> {
        Box::pin(self.collect_now())
    }

    async fn collect_now(mut self) -> Result<Vec<RecordBatch>, Error> {
        let mut batches = Vec::new();
        for file in self.wait().await?.files {
            let lost = |error: String| Error::ResultLost {
                job: self.id.to_string(),
                reason: format!("executor {} does not give it: {error}", file.executor()),
            };
            let rows = file.read(&self.handshake).await.map_err(|error| lost(error.to_string()))?;
            let rows: Vec<RecordBatch> = rows.try_collect().await.map_err(|error| lost(error.to_string()))?;
            batches.extend(rows);
        }
        Ok(batches)
    }
}

/// Cancels a job. One that is being planned has nothing to cancel yet, and would run on for nobody: it is waited for.
async fn cancel(server: &Server, jobs: &dyn JobState, id: &JobId) {
    let deadline = tokio::time::Instant::now() + PLANNING;
    loop {
        if server.state.task_manager.get_running_job_cache().contains_key(id) {
            if let Err(error) = server.cancel_job(id.clone()).await {
                tracing::warn!(job = %id, "the job could not be cancelled: {error}");
            }
            return;
        }
        let ended = matches!(jobs.get_execution_graph(id).await, Ok(Some(_)));
        if ended || tokio::time::Instant::now() > deadline {
            return;
        }
        tokio::time::sleep(PLANNING_LOOK).await;
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.watch.release(&self.id);
        let (server, jobs) = (self.server.clone(), Arc::clone(&self.jobs));
        let (id, ended) = (self.id.clone(), self.ended);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // Nobody waits for it: it ends when it has told everybody, or with the scheduler.
            drop(runtime.spawn(async move {
                if !ended {
                    cancel(&server, &*jobs, &id).await;
                }
                clean(&server, &id).await;
            }));
        }
    }
}
