//! DataFusion sessions with our settings: memory, threads, spill space, batch size.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::execution::{FunctionRegistry as _, SessionState, SessionStateDefaults};
use datafusion::functions::datetime::to_timestamp::{
    ToTimestampFunc, ToTimestampMicrosFunc, ToTimestampMillisFunc, ToTimestampNanosFunc, ToTimestampSecondsFunc,
};
use datafusion::logical_expr::ScalarUDF;
use datafusion::optimizer::Optimizer;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::prelude::SessionConfig;

use tokio::runtime::{EnterGuard, Handle};
use tokio_util::sync::CancellationToken;

use crate::calls::{Host, RunScope};
use crate::elsewhere::Elsewhere;
use crate::plan::extremes::extremes;
use crate::plan::float_bounds::FloatBounds;
use crate::plan::placement::ClassPlanners;
use crate::plan::planner::StepPlanner;
use crate::plan::wide_rows::WideRows;
use crate::sources::local_files::LocalFiles;
use crate::sources::stores::StoreOptions;

/// Share of the memory limit that operators may reserve. The rest is for what they do not account for: batches in
/// flight, decoders, the allocator's slack, the program itself.
const POOL_SHARE: f64 = 0.7;
/// Rows of a batch where nothing else is said: large enough that the cost of a batch vanishes, small enough that the
/// columns of a batch stay in the cache between operators.
pub const BATCH_ROWS: usize = 16_384;

/// How an engine uses its machine.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Bytes that the process may use.
    pub memory_bytes: u64,
    /// Partitions that plans aim at: usually the number of threads.
    pub partitions: usize,
    /// Rows of a batch.
    pub batch_rows: usize,
    /// Where operators spill to; the system's temporary folder where absent.
    pub temp_dir: Option<PathBuf>,
    /// Bytes that may be spilled.
    pub max_temp_bytes: u64,
    /// Settings of object stores.
    pub stores: StoreOptions,
    /// Step kinds and connections.
    pub host: Host,
    /// Who rewrites the plans of a resource class.
    pub class_planners: ClassPlanners,
    /// Functions that queries may call beside DataFusion's.
    pub functions: Vec<Arc<ScalarUDF>>,
    /// Threads that compute, if not those that call: some operators compute for a minute without a pause, and whoever
    /// renews leases, writes effects and hears signals must not wait for them.
    pub compute: Option<Handle>,
}

/// What all runs of a process share: memory, spill space, object stores, caches of file footers.
#[derive(Debug)]
pub struct Engine {
    options: EngineOptions,
    runtime: Arc<RuntimeEnv>,
    local_files: Arc<LocalFiles>,
}

impl Engine {
    /// An engine.
    ///
    /// # Errors
    /// When the spill folder cannot be used.
    pub fn try_new(options: EngineOptions) -> Result<Engine> {
        let pool = (options.memory_bytes as f64 * POOL_SHARE) as usize;
        let top = NonZeroUsize::new(3).unwrap_or(NonZeroUsize::MIN);
        let mode = match &options.temp_dir {
            Some(folder) => DiskManagerMode::Directories(vec![folder.clone()]),
            None => DiskManagerMode::OsTmpDirectory,
        };
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(TrackConsumersPool::new(FairSpillPool::new(pool), top)))
            .with_disk_manager_builder(
                DiskManagerBuilder::default().with_mode(mode).with_max_temp_directory_size(options.max_temp_bytes),
            )
            .build_arc()?;
        let local_files = Arc::new(LocalFiles::default());
        let url = ObjectStoreUrl::local_filesystem();
        runtime.register_object_store(url.as_ref(), Arc::clone(&local_files) as _);
        Ok(Engine { options, runtime, local_files })
    }

    /// Its options.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// Step kinds and connections.
    pub fn host(&self) -> &Host {
        &self.options.host
    }

    /// What a run gives to its steps; ledgers that do not fit into memory go to `folder`.
    pub fn scope(&self, run: &str, cancel: &CancellationToken, folder: PathBuf) -> RunScope {
        RunScope::new(run, cancel, folder, &self.runtime.memory_pool, &self.options.host)
    }

    /// Makes the threads that compute those on which tasks are spawned, as long as the guard is held.
    pub(crate) fn enter_compute(&self) -> Option<EnterGuard<'_>> {
        self.options.compute.as_ref().map(Handle::enter)
    }

    /// The shared runtime.
    pub fn runtime(&self) -> &Arc<RuntimeEnv> {
        &self.runtime
    }

    /// The store of this machine's files.
    pub fn local_files(&self) -> &LocalFiles {
        &self.local_files
    }

    /// A session of its own for one compilation: its catalog holds the workflow's names, and its clock stands still.
    /// With `spilling_joins`, joins sort and merge, which can spill, instead of hashing, which cannot.
    pub fn session(&self, spilling_joins: bool) -> SessionState {
        self.session_with(spilling_joins, true, None, self.options.host.elsewhere.as_ref())
    }

    /// A session for a durable run that began at `started`: planned again, with a cluster or without, it makes the same
    /// stages, and gives the same rows in the same order as far as they are made row by row.
    pub fn durable_session(&self, started: DateTime<Utc>) -> SessionState {
        // Batches that are dealt out to whoever is free come back in another order each time.
        self.session_with(false, false, Some(started), self.options.host.elsewhere.as_ref())
    }

    fn session_with(
        &self,
        spilling_joins: bool,
        round_robin: bool,
        started: Option<DateTime<Utc>>,
        elsewhere: Option<&Arc<dyn Elsewhere>>,
    ) -> SessionState {
        let mut config = SessionConfig::new()
            .with_target_partitions(self.options.partitions.max(1))
            .with_batch_size(self.options.batch_rows.max(1))
            .with_collect_statistics(true)
            .with_information_schema(false)
            .with_extension(Arc::new(self.options.class_planners.clone()));
        let options = config.options_mut();
        options.sql_parser.collect_spans = true;
        options.execution.time_zone = Some("+00:00".into());
        options.optimizer.prefer_hash_join = !spilling_joins;
        options.optimizer.enable_round_robin_repartition = round_robin;
        // Partitions that take files from each other read them in an order that hangs on time.
        options.execution.enable_file_stream_work_stealing = round_robin;
        let mut rules = Vec::new();
        if let Some(elsewhere) = elsewhere {
            let optimizer = config.options().optimizer.clone();
            elsewhere.configure(&mut config);
            match started {
                None => rules = elsewhere.rules(),
                // A run that began with a cluster goes on without one, and the other way round: logical plans, which
                // stages are known by, must not hang on it. What a cluster cannot run of them stays here.
                Some(_) => {
                    config.options_mut().optimizer.enable_physical_uncorrelated_scalar_subquery =
                        optimizer.enable_physical_uncorrelated_scalar_subquery;
                }
            }
        }
        let mut builder = SessionStateBuilder::new()
            .with_config(config)
            .with_runtime_env(Arc::clone(&self.runtime))
            .with_default_features()
            .with_table_functions(
                SessionStateDefaults::default_table_functions()
                    .into_iter()
                    .map(|function| (function.name().to_owned(), function))
                    .collect(),
            )
            .with_query_planner(Arc::new(StepPlanner));
        let mut physical: Vec<Arc<dyn PhysicalOptimizerRule + Send + Sync>> = vec![Arc::new(FloatBounds::Forget)];
        physical.extend(PhysicalOptimizer::default().rules);
        physical.push(Arc::new(FloatBounds::Unprune));
        // What a cluster takes is known by its operators.
        if elsewhere.is_none() {
            physical.push(Arc::new(WideRows));
        }
        builder = builder.with_physical_optimizer_rules(physical);
        if !rules.is_empty() {
            rules.extend(Optimizer::default().rules);
            builder = builder.with_optimizer_rules(rules);
        }
        let mut state = builder.build();
        // With a zone in the session they announce it for texts, and leave it out of what they give.
        let no_zone = ConfigOptions::default();
        let instants: [ScalarUDF; 5] = [
            ToTimestampFunc::new_with_config(&no_zone).into(),
            ToTimestampSecondsFunc::new_with_config(&no_zone).into(),
            ToTimestampMillisFunc::new_with_config(&no_zone).into(),
            ToTimestampMicrosFunc::new_with_config(&no_zone).into(),
            ToTimestampNanosFunc::new_with_config(&no_zone).into(),
        ];
        for function in instants {
            if let Err(error) = state.register_udf(Arc::new(function)) {
                tracing::error!("a function of time is not as it should be: {}", error.strip_backtrace());
            }
        }
        for function in extremes() {
            if let Err(error) = state.register_udaf(function) {
                tracing::error!("an aggregate is not as it should be: {}", error.strip_backtrace());
            }
        }
        for function in &self.options.functions {
            if let Err(error) = state.register_udf(Arc::clone(function)) {
                tracing::error!("function {} is not there: {}", function.name(), error.strip_backtrace());
            }
        }
        let options = Arc::clone(state.config().options());
        let properties = state.execution_props_mut();
        properties.mark_start_execution(options);
        if let Some(started) = started {
            properties.query_execution_start_time = Some(started);
        }
        state
    }
}
