//! The cluster as Ballista's scheduler sees it: its own state in memory for registration and heartbeats, ours for slots
//! and placement.
//!
//! Ballista counts free slots up and down and loses some when an executor dies while another one runs the consuming
//! stage. Here nothing is counted: what is free is what an executor has less what the graphs say runs on it, so nothing
//! can leak, and [`ClusterState::unbind_tasks`] has nothing to do.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};

use ballista_core::JobId;
use ballista_core::error::{BallistaError, Result};
use ballista_core::serde::protobuf::ExecutorHeartbeat;
use ballista_core::serde::scheduler::{ExecutorData, ExecutorMetadata};
use ballista_scheduler::cluster::memory::InMemoryClusterState;
use ballista_scheduler::cluster::{BoundTask, ClusterState, ClusterStateEventStream, ExecutorSlot};
use ballista_scheduler::config::TaskDistributionPolicy;
use ballista_scheduler::state::execution_graph::ExecutionGraphBox;
use ballista_scheduler::state::task_manager::JobInfoCache;
use parking_lot::Mutex;
use rowmill_cores::routing::Strategy;
use rowmill_wire::name::ExecutorName;

use crate::admission::{Desk, Executor};
use crate::placement::{Place, bind_job, survey};
use crate::term::Term;

/// The largest number of slots that an executor is believed to have.
const MOST_SLOTS: u32 = 4_096;

/// Characters of a reason that an executor gives.
const MOST_REASON: usize = 300;

/// More memory than executors are believed to have, in bytes.
const MOST_MEMORY: u64 = 64 << 40;

/// The graph of a job, while the job runs.
type Graph = tokio::sync::RwLock<ExecutionGraphBox>;

/// Ballista's cluster state with placement by class.
pub struct Cluster {
    stock: InMemoryClusterState,
    strategy: Strategy,
    desk: Arc<Desk>,
    term: Term,
    pass: tokio::sync::Mutex<()>,
    draining: Mutex<HashSet<String>>,
    /// Why executors take no tasks for now.
    closed: Mutex<HashMap<String, String>>,
    /// Memory of executors' tasks, as they say.
    memory: Mutex<HashMap<String, u64>>,
    /// The jobs of the last pass: of every task that runs, the job is one of them.
    graphs: Mutex<HashMap<JobId, Weak<Graph>>>,
}

impl Cluster {
    /// A cluster without executors.
    pub(crate) fn new(strategy: Strategy, desk: Arc<Desk>, term: Term) -> Self {
        Self {
            stock: InMemoryClusterState::default(),
            strategy,
            desk,
            term,
            pass: tokio::sync::Mutex::new(()),
            draining: Mutex::new(HashSet::new()),
            closed: Mutex::new(HashMap::new()),
            memory: Mutex::new(HashMap::new()),
            graphs: Mutex::new(HashMap::new()),
        }
    }

    /// An executor says that it takes nothing more, or that it does again.
    pub(crate) fn set_draining(&self, executor: &str, draining: bool) {
        let mut all = self.draining.lock();
        if draining {
            all.insert(executor.to_owned());
        } else {
            all.remove(executor);
        }
    }

    /// An executor says why it takes no tasks, or, with nothing, that it does.
    /// Whether it had not before.
    pub(crate) fn set_closed(&self, executor: &str, reason: &str) -> bool {
        let mut all = self.closed.lock();
        if reason.is_empty() {
            let opened = all.remove(executor).is_some();
            if opened {
                tracing::warn!(executor, "the executor takes tasks again");
            }
            return opened;
        }
        if !all.contains_key(executor) {
            // It is shown to people.
            let shown: String = reason.chars().filter(|c| !c.is_control()).take(MOST_REASON).collect();
            tracing::warn!(executor, "the executor takes no tasks: {shown}");
            all.insert(executor.to_owned(), shown);
        }
        false
    }

    /// Why an executor takes no tasks although it does not leave.
    pub(crate) fn closed(&self, executor: &str) -> Option<String> {
        self.closed.lock().get(executor).cloned()
    }

    /// The graph of a job of which tasks may run.
    pub(crate) fn graph(&self, job: &JobId) -> Option<Arc<Graph>> {
        self.graphs.lock().get(job).and_then(Weak::upgrade)
    }

    /// Memory that an executor's tasks share; zero where it has not said.
    pub(crate) fn memory(&self, executor: &str) -> u64 {
        self.memory.lock().get(executor).copied().unwrap_or(0)
    }

    /// An executor says how much memory its tasks share. Whether it is something new.
    pub(crate) fn set_memory(&self, executor: &str, bytes: u64) -> bool {
        let bytes = bytes.min(MOST_MEMORY);
        let mut all = self.memory.lock();
        if all.get(executor) == Some(&bytes) {
            return false;
        }
        all.insert(executor.to_owned(), bytes);
        true
    }

    fn executor(&self, metadata: ExecutorMetadata, alive: &Option<HashSet<String>>) -> Option<Executor> {
        let name: ExecutorName = metadata.id.parse().ok()?;
        let open = alive.as_ref().is_none_or(|alive| alive.contains(&metadata.id)) && self.takes_tasks(&metadata.id);
        Some(Executor {
            classes: name.classes().iter().map(|class| class.as_str().into()).collect(),
            slots: metadata.specification.vcores,
            memory_bytes: self.memory(&metadata.id),
            open,
            name: metadata.id,
        })
    }

    pub(crate) fn is_draining(&self, executor: &str) -> bool {
        self.draining.lock().contains(executor)
    }

    /// Whether an executor that has joined takes tasks.
    pub(crate) fn takes_tasks(&self, executor: &str) -> bool {
        !self.is_draining(executor) && !self.closed.lock().contains_key(executor)
    }
}

fn judge(metadata: &ExecutorMetadata) -> Result<()> {
    let refuse = |why: String| Err(BallistaError::Configuration(why));
    if let Err(error) = metadata.id.parse::<ExecutorName>() {
        return refuse(error.to_string());
    }
    match metadata.specification.vcores {
        0 => refuse(format!("executor {} offers no slots; start it with --slots 1 or more", metadata.id)),
        slots if slots > MOST_SLOTS => {
            refuse(format!("executor {} claims {slots} slots; no more than {MOST_SLOTS} are believed", metadata.id))
        }
        _ => Ok(()),
    }
}

#[async_trait::async_trait]
impl ClusterState for Cluster {
    async fn bind_schedulable_tasks(
        &self,
        _: TaskDistributionPolicy,
        jobs: Arc<HashMap<JobId, JobInfoCache>>,
        alive: Option<HashSet<String>>,
    ) -> Result<Vec<BoundTask>> {
        // Two passes at a time would give the same slots away.
        let _pass = self.pass.lock().await;
        if !self.term.holds() {
            // Another scheduler leads, or may.
            return Ok(Vec::new());
        }
        *self.graphs.lock() =
            jobs.iter().map(|(job, info)| (job.clone(), Arc::downgrade(&info.execution_graph))).collect();
        let registered = self.stock.registered_executor_metadata().await;
        let executors: Vec<Executor> = registered.into_iter().filter_map(|own| self.executor(own, &alive)).collect();
        let mut order: Vec<(&JobId, &JobInfoCache)> = jobs.iter().collect();
        order.sort_by_key(|(job, _)| *job);
        let (mut running, mut waiting) = (Vec::new(), Vec::new());
        for (job, info) in &order {
            let mut graph = info.execution_graph.write().await;
            // What is ready runs from here on, so that what it will read can be looked through.
            graph.revive();
            survey(job, &graph, &mut running, &mut waiting);
        }
        let mut taken: HashMap<&str, u32> = HashMap::new();
        for task in &running {
            *taken.entry(&task.executor).or_default() += task.slots;
        }
        let mut places: Vec<Place> = executors
            .iter()
            .map(|own| {
                let free = own.slots.saturating_sub(taken.get(own.name.as_str()).copied().unwrap_or(0));
                Place { id: own.name.clone(), total: own.slots, free, memory_bytes: own.memory_bytes }
            })
            .collect();
        places.sort_by(|a, b| a.id.cmp(&b.id));
        let mut grants = self.desk.place(&executors, &running, &waiting, self.strategy);
        let mut bound = Vec::new();
        for (job, info) in order {
            if grants.keys().any(|(granted, _)| granted == job) {
                let mut graph = info.execution_graph.write().await;
                bound.extend(bind_job(job, &mut graph, &mut places, &mut grants, &self.desk));
            }
        }
        self.desk.unused(grants.into_values().flatten().map(|(_, reservation)| reservation));
        Ok(bound)
    }

    async fn unbind_tasks(&self, _: Vec<ExecutorSlot>) -> Result<()> {
        Ok(())
    }

    async fn register_executor(&self, metadata: ExecutorMetadata, spec: ExecutorData) -> Result<()> {
        judge(&metadata)?;
        self.set_draining(&metadata.id, false);
        self.stock.register_executor(metadata, spec).await
    }

    async fn save_executor_metadata(&self, metadata: ExecutorMetadata) -> Result<()> {
        judge(&metadata)?;
        self.stock.save_executor_metadata(metadata).await
    }

    async fn get_executor_metadata(&self, executor_id: &str) -> Result<ExecutorMetadata> {
        self.stock.get_executor_metadata(executor_id).await
    }

    async fn registered_executor_metadata(&self) -> Vec<ExecutorMetadata> {
        self.stock.registered_executor_metadata().await
    }

    async fn save_executor_heartbeat(&self, heartbeat: ExecutorHeartbeat) -> Result<()> {
        self.stock.save_executor_heartbeat(heartbeat).await
    }

    async fn remove_executor(&self, executor_id: &str) -> Result<()> {
        self.set_draining(executor_id, false);
        self.closed.lock().remove(executor_id);
        self.memory.lock().remove(executor_id);
        self.stock.remove_executor(executor_id).await
    }

    fn executor_heartbeats(&self) -> HashMap<String, ExecutorHeartbeat> {
        self.stock.executor_heartbeats()
    }

    fn get_executor_heartbeat(&self, executor_id: &str) -> Option<ExecutorHeartbeat> {
        self.stock.get_executor_heartbeat(executor_id)
    }

    async fn cluster_state_events(&self) -> Result<ClusterStateEventStream> {
        self.stock.cluster_state_events().await
    }
}
