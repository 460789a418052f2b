//! Steps that are not SQL: how the engine knows their kinds, what it knows of one step, and how one runs in a plan.
//!
//! The engine names no step kind. A [`Host`] brings the factories, the connections and their limits; a [`Call`] is one
//! step, checked: its executor, the columns that it reads and adds, and what holds for its items. DataFusion sees a
//! [`CallExec`] whose input was planned apart and whose output is read across an edge, so that it never moves anything
//! past it.

pub mod caches;
pub mod describe;
pub(crate) mod exec;
mod policy;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arrow::datatypes::SchemaRef;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation};
use parking_lot::Mutex;
use rowmill_cache::Freshness;
use rowmill_items::{Ledger, OperatorParts, StepCache, StepOperator, StepPolicy, Tally};
use rowmill_limits::{ConnectionLimits, LimitRegistry, LimitSettings};
use rowmill_step::{
    Connections, Redactor, Reserve, SharedClients, StaticConnections, StepContext, StepExecutor, StepFactory, StepShape,
};
use tokio_util::sync::CancellationToken;

use crate::elsewhere::Elsewhere;
use crate::places::PlaceLog;
pub use caches::{CacheOptions, Caches, RedisUrl};
pub use describe::describe;
pub use exec::CallExec;
pub(crate) use policy::default_row;

/// What steps that are not SQL need of the process.
#[derive(Debug, Clone)]
pub struct Host {
    /// The step kinds by their key in the text.
    pub kinds: BTreeMap<&'static str, Arc<dyn StepFactory>>,
    /// Connections by name.
    pub connections: Arc<dyn Connections>,
    /// What holds for connections, by name; those that are not here have no limits.
    pub limit_settings: BTreeMap<String, LimitSettings>,
    /// The limits of the process.
    pub limits: LimitRegistry,
    /// Clients that all steps of the process share.
    pub clients: Arc<SharedClients>,
    /// Takes secrets out of text.
    pub redactor: Redactor,
    /// On whose behalf steps run.
    pub tenant: Arc<str>,
    /// Caches of results.
    pub caches: Caches,
    /// Where parts of plans may run, if not here.
    pub elsewhere: Option<Arc<dyn Elsewhere>>,
}

impl Default for Host {
    /// No step kinds and no connections.
    fn default() -> Self {
        Host {
            kinds: BTreeMap::new(),
            connections: Arc::new(StaticConnections::default()),
            limit_settings: BTreeMap::new(),
            limits: LimitRegistry::default(),
            clients: Arc::default(),
            redactor: Redactor::new(),
            tenant: Arc::from("default"),
            caches: Caches::default(),
            elsewhere: None,
        }
    }
}

impl Host {
    /// What a step gets from the engine.
    pub fn context(&self, run: &str, step: &str, cancel: &CancellationToken, memory: Arc<dyn Reserve>) -> StepContext {
        StepContext {
            connections: Arc::clone(&self.connections),
            clients: Arc::clone(&self.clients),
            redactor: self.redactor.clone(),
            cancel: cancel.clone(),
            memory,
            span: tracing::info_span!("step", name = step),
            ..StepContext::new(run, step, &self.tenant)
        }
    }
}

/// A step that is not SQL, checked.
#[derive(Debug)]
pub struct Call {
    /// Its name.
    pub step: Arc<str>,
    /// What makes its attempts.
    pub executor: Arc<dyn StepExecutor>,
    /// The columns that it reads and adds.
    pub shape: StepShape,
    /// The step or source whose rows it takes.
    pub from: String,
    /// All columns of those rows.
    pub input: SchemaRef,
    /// What holds for its items.
    pub policy: StepPolicy,
    /// Connections that it uses.
    pub connections: Vec<Arc<str>>,
    /// Calls in a second that the step's own text allows, of all its processes together.
    pub calls_per_second: Option<f64>,
    /// Its cache, and how long an entry lives.
    pub cache: Option<(StepCache, Option<Duration>)>,
    /// Its counts.
    pub tally: Arc<Tally>,
}

/// What one run gives to the steps in its plans.
#[derive(Debug, Clone)]
pub struct RunScope {
    /// The run's id.
    pub run: Arc<str>,
    /// Cancelled when the run is.
    pub cancel: CancellationToken,
    /// Where ledgers go that do not fit into memory.
    pub folder: PathBuf,
    /// Memory for steps' buffers.
    pub memory: Arc<dyn Reserve>,
    /// What the process offers.
    pub host: Host,
    /// When the run began: what was cached is judged by it.
    pub started: SystemTime,
    /// The steps that were planned.
    pub steps: Arc<Mutex<Vec<RunningStep>>>,
    /// Whether what is made row by row must come in the same order whenever it is made again.
    pub in_order: bool,
    /// Who runs what of it elsewhere.
    pub places: Arc<PlaceLog>,
}

/// A step of a run.
#[derive(Debug, Clone)]
pub struct RunningStep {
    /// Its operator.
    pub operator: Arc<StepOperator>,
    /// Where its losses go.
    pub ledger: Arc<Ledger>,
}

impl RunScope {
    /// A scope for a run in this process.
    pub fn new(
        run: &str,
        cancel: &CancellationToken,
        folder: PathBuf,
        pool: &Arc<dyn MemoryPool>,
        host: &Host,
    ) -> Self {
        RunScope {
            run: Arc::from(run),
            cancel: cancel.clone(),
            folder,
            memory: Arc::new(PoolReserve::new(pool)),
            host: host.clone(),
            started: SystemTime::now(),
            steps: Arc::default(),
            in_order: false,
            places: Arc::default(),
        }
    }

    /// The same for a run that may be made again, in parts.
    #[must_use]
    pub fn in_order(self) -> Self {
        RunScope { in_order: true, ..self }
    }

    /// The operator of a step over an input with these columns.
    ///
    /// # Errors
    /// A sentence, when its parts do not fit together.
    pub fn operator(&self, call: &Call, input: &SchemaRef) -> Result<Arc<StepOperator>, String> {
        let mut limits = Vec::new();
        for name in &call.connections {
            if let Some(settings) = self.host.limit_settings.get(name.as_ref()) {
                let limit = self.host.limits.get(&self.host.tenant, name, settings);
                limits.push(limit.map_err(|error| error.to_string())?);
            }
        }
        if let Some(rate) = call.calls_per_second {
            let settings = LimitSettings { requests_per_second: Some(rate), ..LimitSettings::default() };
            limits.push(ConnectionLimits::new(&call.step, settings).map_err(|error| error.to_string())?);
        }
        StepOperator::try_new(OperatorParts {
            executor: Arc::clone(&call.executor),
            context: self.host.context(&self.run, &call.step, &self.cancel, Arc::clone(&self.memory)),
            shape: call.shape.clone(),
            input: Arc::clone(input),
            policy: call.policy.clone(),
            limits,
            cache: call
                .cache
                .as_ref()
                .map(|(cache, ttl)| StepCache { fresh: Freshness::new(self.started, *ttl), ..cache.clone() }),
            tally: Arc::clone(&call.tally),
        })
    }
}

/// Memory of DataFusion's pool for steps' buffers.
struct PoolReserve(Mutex<MemoryReservation>);

impl PoolReserve {
    fn new(pool: &Arc<dyn MemoryPool>) -> Self {
        PoolReserve(Mutex::new(MemoryConsumer::new("items of steps").register(pool)))
    }
}

impl std::fmt::Debug for PoolReserve {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PoolReserve")
    }
}

impl Reserve for PoolReserve {
    fn try_grow(&self, bytes: usize) -> bool {
        self.0.lock().try_grow(bytes).is_ok()
    }

    fn shrink(&self, bytes: usize) {
        self.0.lock().shrink(bytes);
    }
}
