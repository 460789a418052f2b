//! What admission is told and what it answers.

use std::collections::BTreeMap;

use crate::ids::{ChunkKey, ClassId, ExecutorId, QueueId, ReservationId, RunId, Tenant};
use crate::resources::{Limit, Quota, Resources};
use crate::routing::{Route, TagSet};

/// One queue of the configuration.
#[derive(Debug, Clone, Copy)]
pub struct QueueOptions {
    /// Higher goes first.
    pub priority: u32,
    /// Runs of this queue that may be under way at a time.
    pub max_running: u32,
    /// Runs that may wait; one more is refused.
    pub max_queued: u32,
    /// How long a run, or a chunk that nobody can serve, waits before it is refused.
    pub timeout_ms: u64,
}

/// What a queue does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueState {
    /// Runs that wait.
    pub waiting: u32,
    /// Runs that are under way.
    pub running: u32,
    /// When the oldest of those that wait came.
    pub oldest_ms: Option<u64>,
}

/// A tenant's share and limits.
#[derive(Debug, Clone, Copy)]
pub struct TenantOptions {
    /// Its share against its neighbours; at least 1.
    pub weight: u32,
    /// What it may hold at a time.
    pub quota: Quota,
}

impl Default for TenantOptions {
    fn default() -> Self {
        Self { weight: 1, quota: Quota::default() }
    }
}

/// Configuration of admission.
#[derive(Debug, Clone)]
pub struct Options {
    /// The queues.
    pub queues: BTreeMap<QueueId, QueueOptions>,
    /// Organisations that differ from `default_organisation`.
    pub organisations: BTreeMap<u32, TenantOptions>,
    /// Teams that differ from `default_team`.
    pub teams: BTreeMap<Tenant, TenantOptions>,
    /// Every other organisation.
    pub default_organisation: TenantOptions,
    /// Every other team.
    pub default_team: TenantOptions,
    /// How long somebody waits to rise by one priority: what keeps low queues from starving.
    pub ageing_ms: u64,
    /// How long a reservation lives unless it is prolonged.
    pub reservation_ms: u64,
    /// How long the next in turn may be overtaken by smaller tasks before an executor is kept free for it, and how long
    /// that executor is kept at most.
    pub hold_after_ms: u64,
    /// How long a class may be without executors before a warning.
    pub warn_after_ms: u64,
    /// The largest executor that is believed. One that claims more is refused.
    pub largest_executor: Resources,
}

impl Options {
    /// One queue for everything, no quotas.
    pub fn single_queue(queue: QueueId, options: QueueOptions) -> Self {
        Self {
            queues: BTreeMap::from([(queue, options)]),
            organisations: BTreeMap::new(),
            teams: BTreeMap::new(),
            default_organisation: TenantOptions::default(),
            default_team: TenantOptions::default(),
            ageing_ms: 10_000,
            reservation_ms: 30_000,
            hold_after_ms: 2_000,
            warn_after_ms: 5_000,
            largest_executor: Resources {
                slots: 4_096,
                cpu_milli: 4_096_000,
                memory_bytes: 1 << 46,
                gpu_milli: 64_000,
            },
        }
    }

    /// The options of an organisation.
    pub fn organisation(&self, organisation: u32) -> &TenantOptions {
        self.organisations.get(&organisation).unwrap_or(&self.default_organisation)
    }

    /// The options of a team.
    pub fn team(&self, tenant: Tenant) -> &TenantOptions {
        self.teams.get(&tenant).unwrap_or(&self.default_team)
    }
}

/// A run that wants to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// The run.
    pub run: RunId,
    /// Where it waits.
    pub queue: QueueId,
    /// The class that it mostly runs on: what [`super::Admission::limit_class`] counts it for.
    pub class: ClassId,
    /// Whose it is.
    pub tenant: Tenant,
}

/// A chunk that wants a place, as admission keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The chunk.
    pub key: ChunkKey,
    /// The class that it runs on.
    pub class: ClassId,
    /// What it takes.
    pub needs: Resources,
    /// How its executor is chosen.
    pub route: Route,
    /// Whose run it belongs to.
    pub tenant: Tenant,
    /// When it was asked for.
    pub since_ms: u64,
}

/// An executor that joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecutorSpec {
    /// Its number; a process that starts again has another.
    pub id: ExecutorId,
    /// The classes that it serves.
    pub classes: Vec<ClassId>,
    /// What it has.
    pub capacity: Resources,
    /// Its share for weighted choices; at least 1.
    pub weight: u32,
    /// Its tags.
    pub tags: TagSet,
}

/// Why an executor may not join.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// There is one of that name.
    #[error("an executor of this id has joined already; give each process its own id")]
    Duplicate,
    /// It offers nothing.
    #[error("the executor serves no class; start it with --class")]
    NoClass,
    /// It can run nothing.
    #[error("the executor offers no slot, or no weight; start it with at least one")]
    NoSlot,
    /// It claims more than an executor may.
    #[error("the executor claims more resources than the configuration believes of any one; see largest_executor")]
    TooLarge,
}

/// Why something was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The queue has as many waiting runs as it may.
    #[error("the queue is full: {waiting} runs wait; submit again later")]
    QueueFull {
        /// How many wait.
        waiting: u32,
    },
    /// There is no such queue.
    #[error("there is no such queue")]
    UnknownQueue,
    /// The run is known already, or the chunk has asked already.
    #[error("it has been asked for already")]
    Duplicate,
    /// A chunk of a run that was not started.
    #[error("the run was not started")]
    UnknownRun,
    /// One task alone breaks a limit of its tenant.
    #[error("a single task needs more than the quota allows: {limit:?}")]
    OverQuota {
        /// Which limit.
        limit: Limit,
    },
    /// The run waited too long to start.
    #[error("the run waited {waited_ms} ms in its queue without starting")]
    QueueTimeout {
        /// How long.
        waited_ms: u64,
    },
    /// No executor of the class came in time.
    #[error("no executor serves the class: waited {waited_ms} ms for one")]
    NoExecutor {
        /// The class.
        class: ClassId,
        /// How long.
        waited_ms: u64,
    },
    /// Executors of the class came, but none is large enough or has the tags.
    #[error("no executor of the class is large enough or has the required tags: waited {waited_ms} ms for one")]
    NoFit {
        /// The class.
        class: ClassId,
        /// How long.
        waited_ms: u64,
    },
}

/// What admission decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// A run may start: begin to ask for its chunks.
    StartRun(RunId),
    /// A run may not start any more.
    RefuseRun {
        /// The run.
        run: RunId,
        /// Why.
        why: Refusal,
    },
    /// A chunk has a place.
    Grant {
        /// The chunk.
        key: ChunkKey,
        /// Where.
        executor: ExecutorId,
        /// What holds its resources until it is released or runs out.
        reservation: ReservationId,
    },
    /// A chunk will not get a place.
    RefuseChunk {
        /// The chunk.
        key: ChunkKey,
        /// Why.
        why: Refusal,
    },
    /// A reservation ran out and its resources are free.
    Expired {
        /// The chunk that held it.
        key: ChunkKey,
        /// The reservation.
        reservation: ReservationId,
    },
    /// Work waits for a class that nobody serves.
    Unserved {
        /// The class.
        class: ClassId,
        /// Since when.
        since_ms: u64,
    },
}
