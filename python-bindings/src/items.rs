//! Python steps whose rows are items: called in worker processes, or here under a rate, with a cache, or with a bound
//! on errors. The engine's step operator does what it does for every other kind of step: groups, retries, halving,
//! `on_error`, the cache, limits.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use arrow::array::RecordBatch;
use arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result, internal_err, plan_datafusion_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, EmissionType, ReplaceChildrenOptions};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties as _, Partitioning, PlanProperties,
};
use futures::StreamExt as _;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use rowmill::spec::{CachePolicy, CacheTier, Spanned};
use rowmill_cache::Freshness;
use rowmill_items::{
    BoxError, Ledger, OperatorParts, Order, Scope, StepCache, StepOperator, StepPolicy, StepStopped, StopReason, Tally,
};
use rowmill_limits::{ConnectionLimits, LimitSettings};
use rowmill_step::{Effects, FailureCode, MaxErrors, OnError, RetryPolicy, StepExecutor, StepShape};
use tokio_util::sync::CancellationToken;

use crate::cdata;
use crate::errors::Failed;
use crate::here::InProcess;
use crate::letters::{self, Aside, PutAside};
use crate::session::Shared;
use crate::workers;

/// What holds for the items of a step, as Python said it.
pub(crate) struct Items {
    name: String,
    executor: Arc<dyn StepExecutor>,
    /// The executor, where it calls the function in this process.
    here: Option<Arc<InProcess>>,
    policy: StepPolicy,
    /// Calls per second.
    rate: Option<f64>,
    cache: Option<CachePolicy>,
    shared: Arc<Shared>,
    /// For people, and the class of machine that it was said to need.
    workers: Option<usize>,
    class: Option<String>,
}

impl fmt::Debug for Items {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Items").field("name", &self.name).finish_non_exhaustive()
    }
}

fn get<'py>(said: &Bound<'py, PyDict>, key: &str) -> PyResult<Bound<'py, PyAny>> {
    said.get_item(key)?.ok_or_else(|| PyTypeError::new_err(format!("a step says its `{key}`")))
}

impl Items {
    /// From what `rowmill._step` says; `function` is the adapter that is called in this process.
    pub(crate) fn from_python(
        said: &Bound<'_, PyDict>,
        function: &Py<PyAny>,
        reads: &[String],
        output: &SchemaRef,
        shared: Arc<Shared>,
    ) -> PyResult<Items> {
        let name: String = get(said, "name")?.extract()?;
        let workers: Option<usize> = get(said, "workers")?.extract()?;
        let here = match workers {
            Some(_) => None,
            None => Some(Arc::new(InProcess::from_python(said, function.clone_ref(said.py()), reads)?)),
        };
        let executor: Arc<dyn StepExecutor> = match &here {
            Some(here) => Arc::clone(here) as _,
            None => Arc::new(workers::step_from_python(said, reads, output)?),
        };
        let mut policy = StepPolicy::of(executor.describe());
        let on_error: String = get(said, "on_error")?.extract()?;
        policy.on_error = match on_error.as_str() {
            "fail" => OnError::Fail,
            "skip" => OnError::Skip,
            "dead_letter" => OnError::DeadLetter,
            _ => {
                let row = cdata::batch_from_python(&get(said, "default")?)?;
                // The same row under the schema that the operator compares it with.
                let row = RecordBatch::try_new(SchemaRef::clone(output), row.columns().to_vec());
                OnError::Default(row.map_err(|error| PyValueError::new_err(format!("default: {error}")))?)
            }
        };
        let retries: u32 = get(said, "retries")?.extract()?;
        policy.retry = match retries {
            0 => RetryPolicy::none(),
            _ => RetryPolicy {
                attempts: retries.saturating_add(1),
                initial_backoff: Duration::from_millis(100),
                max_backoff: Duration::from_secs(10),
                // Exceptions are told apart by themselves; what is left is what a process does.
                retry_codes: vec![FailureCode::Crashed, FailureCode::Timeout],
                ..RetryPolicy::default()
            },
        };
        policy.max_errors = match get(said, "max_errors")?.extract::<Option<(f64, bool)>>()? {
            None => None,
            Some((share, true)) => Some(MaxErrors::Share { share, after: MaxErrors::DEFAULT_AFTER }),
            Some((count, false)) => Some(MaxErrors::Count(count as u64)),
        };
        policy.order = Order::Input;
        let rate: Option<f64> = get(said, "rate")?.extract()?;
        let cache = get(said, "cache")?;
        let cache = if cache.is_none() { None } else { Some(cache_policy(cache.cast::<PyDict>()?)?) };
        if cache.is_some() && policy.effects == Effects::Once {
            return Err(PyValueError::new_err("a step with effects \"once\" cannot be cached"));
        }
        let class = get(said, "class")?.extract()?;
        Ok(Items { name, executor, here, policy, rate, cache, shared, workers, class })
    }

    /// The operator over `input` and what stands around it: columns that the step replaces get out of its way before,
    /// and all columns come in the order of `places` (of the input, of the answer) after. `aside` hears of rows that are put
    /// aside.
    pub(crate) async fn plan(
        self: &Arc<Self>,
        input: Arc<dyn ExecutionPlan>,
        reads: &[usize],
        answer: &SchemaRef,
        output: &[(usize, bool)],
        schema: &SchemaRef,
        aside: Option<Arc<Aside>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let named = input.schema();
        let input = renamed(input, answer)?;
        let columns = input.schema();
        let engine = self.shared.session.engine();
        let host = engine.host();
        let cancel = CancellationToken::new();
        let run = uuid::Uuid::now_v7().to_string();
        let scratch = Arc::new(Scratch::new(&run));
        let scope = engine.scope(&run, &cancel, scratch.0.clone());
        let read: Vec<Field> = reads.iter().map(|at| columns.field(*at).as_ref().clone().with_nullable(true)).collect();
        let shape = StepShape { input: Arc::new(Schema::new(read)), output: Arc::clone(answer) };
        let broken = |message: String| plan_datafusion_err!("`{}`: {message}", self.name);
        let mut limits = Vec::new();
        if let Some(rate) = self.rate {
            let settings = LimitSettings { requests_per_second: Some(rate), ..LimitSettings::default() };
            limits.push(ConnectionLimits::new(&self.name, settings).map_err(|error| broken(error.to_string()))?);
        }
        let cache = match &self.cache {
            None => None,
            Some(policy) => {
                let ttl = policy.ttl.as_ref().map(|ttl| ttl.value);
                let key = match &policy.key {
                    Some(key) => key.iter().map(|column| column.value.clone()).collect(),
                    None => shape.input.fields().iter().map(|field| field.name().clone()).collect(),
                };
                let described = self.executor.describe();
                Some(StepCache {
                    cache: host.caches.of_step(&self.name, policy).await.map_err(broken)?,
                    tenant: Arc::clone(&host.tenant),
                    fingerprint: described.fingerprint,
                    key,
                    fresh: Freshness::new(SystemTime::now(), ttl),
                    ttl,
                })
            }
        };
        let ledger = Arc::new(Ledger::new(&columns, scratch.0.join("ledger")));
        let puts_aside = matches!(self.policy.on_error, OnError::DeadLetter);
        if puts_aside {
            let step = PutAside::try_new(&self.name, &ledger, &columns, &named, &scratch)?;
            if let Some(aside) = &aside {
                aside.add(step);
            }
        }
        let operator = StepOperator::try_new(OperatorParts {
            executor: Arc::clone(&self.executor),
            context: host.context(&run, &self.name, &cancel, Arc::clone(&scope.memory)),
            shape,
            input: Arc::clone(&columns),
            policy: self.policy.clone(),
            limits,
            cache,
            tally: Arc::new(Tally::default()),
        });
        let running = Arc::new(Running {
            items: Arc::clone(self),
            operator: operator.map_err(broken)?,
            ledger,
            warns: puts_aside && aside.is_none(),
            cancel,
            left: AtomicUsize::new(input.output_partitioning().partition_count()),
            _scratch: scratch,
        });
        let plan: Arc<dyn ExecutionPlan> = Arc::new(ItemsExec::new(running, input));
        let width = columns.fields().len();
        let places = output.iter().zip(schema.fields()).map(|((at, made), field)| {
            let at = if *made { width + at } else { *at };
            (Arc::new(Column::new(plan.schema().field(at).name(), at)) as Arc<dyn PhysicalExpr>, field.name().clone())
        });
        Ok(Arc::new(ProjectionExec::try_new(places.collect::<Vec<_>>(), Arc::clone(&plan))?))
    }
}

/// The input, with other names for the columns whose names the answer has.
fn renamed(input: Arc<dyn ExecutionPlan>, answer: &Schema) -> Result<Arc<dyn ExecutionPlan>> {
    let columns = input.schema();
    if columns.fields().iter().all(|field| answer.index_of(field.name()).is_err()) {
        return Ok(input);
    }
    let places = columns.fields().iter().enumerate().map(|(at, field)| {
        let mut name = field.name().clone();
        while answer.index_of(&name).is_ok() || (name != *field.name() && columns.index_of(&name).is_ok()) {
            name.push_str(" before");
        }
        (Arc::new(Column::new(field.name(), at)) as Arc<dyn PhysicalExpr>, name)
    });
    Ok(Arc::new(ProjectionExec::try_new(places.collect::<Vec<_>>(), Arc::clone(&input))?))
}

pub(crate) fn cache_policy(said: &Bound<'_, PyDict>) -> PyResult<CachePolicy> {
    let tier: String = get(said, "tier")?.extract()?;
    let tier = CacheTier::from_word(&tier).ok_or_else(|| {
        PyValueError::new_err(format!("there is no cache `{tier}`; it is {}", CacheTier::WORDS.join(", ")))
    })?;
    let columns: Option<Vec<String>> = get(said, "key")?.extract()?;
    let connection: Option<String> = get(said, "connection")?.extract()?;
    let ttl = get(said, "ttl_s")?.extract::<Option<f64>>()?.map(Duration::try_from_secs_f64).transpose();
    let ttl = ttl.map_err(|error| PyValueError::new_err(format!("cache: the ttl is no length of time: {error}")))?;
    Ok(CachePolicy {
        key: columns.map(|columns| columns.into_iter().map(Spanned::bare).collect()),
        ttl: ttl.map(Spanned::bare),
        tier: Some(Spanned::bare(tier)),
        max_size: get(said, "max_size")?.extract::<Option<u64>>()?.map(Spanned::bare),
        connection: connection.map(Spanned::bare),
    })
}

/// A folder for what does not fit into memory; nobody made it yet, and what is made of it goes.
pub(crate) struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new(run: &str) -> Scratch {
        Scratch(std::env::temp_dir().join(format!("rowmill-query-{run}")))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It is there only where many rows failed.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A step of a query that runs, shared by its partitions.
struct Running {
    items: Arc<Items>,
    operator: Arc<StepOperator>,
    ledger: Arc<Ledger>,
    cancel: CancellationToken,
    /// Partitions that have not ended.
    left: AtomicUsize,
    /// Whether rows that are put aside are lost, because nobody asked for them.
    warns: bool,
    _scratch: Arc<Scratch>,
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("items", &self.items).finish_non_exhaustive()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl Running {
    /// An error of the operator as Python sees it; the input's own comes out as it went in.
    fn error(&self, error: BoxError) -> DataFusionError {
        let error = match error.downcast::<DataFusionError>() {
            Ok(error) => return *error,
            Err(error) => error,
        };
        match error.downcast::<StepStopped>() {
            Ok(stopped) => self.stopped(&stopped),
            Err(error) => DataFusionError::External(error),
        }
    }

    fn stopped(&self, stopped: &StepStopped) -> DataFusionError {
        match &stopped.reason {
            StopReason::Item { failure, .. } | StopReason::Fatal { failure } => {
                let raised = self.items.here.as_ref().and_then(|here| here.raised(failure));
                raised.unwrap_or_else(|| Failed::wrap(&self.items.name, failure))
            }
            StopReason::TooMany { .. } => Failed::too_many(&self.items.name, &stopped.reason.to_string()),
            StopReason::Cancelled => DataFusionError::External(Box::new(stopped.clone())),
        }
    }

    /// What is said once the last partition has ended: by a bound on errors, of rows that are lost.
    async fn end(&self) -> Option<DataFusionError> {
        if self.left.fetch_sub(1, Ordering::AcqRel) != 1 {
            return None;
        }
        if let Err(stopped) = self.operator.check_end() {
            return Some(self.stopped(&stopped));
        }
        let rows = if self.warns { self.ledger.rows() } else { 0 };
        if rows > 0 { letters::warn(&self.items.name, rows) } else { None }
    }
}

/// Runs the step operator over each partition.
#[derive(Debug)]
struct ItemsExec {
    running: Arc<Running>,
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl ItemsExec {
    fn new(running: Arc<Running>, input: Arc<dyn ExecutionPlan>) -> ItemsExec {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(running.operator.schema())),
            Partitioning::UnknownPartitioning(input.output_partitioning().partition_count()),
            EmissionType::Incremental,
            input.boundedness(),
        );
        ItemsExec { running, input, properties: Arc::new(properties) }
    }
}

impl DisplayAs for ItemsExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (items, policy) = (&self.running.items, self.running.operator.policy());
        write!(f, "PythonExec: {}, {}", items.name, policy.effects)?;
        if let Some(class) = &items.class {
            write!(f, ", class={class}")?;
        }
        if let Some(workers) = items.workers {
            write!(f, ", workers={workers}")?;
        }
        write!(f, ", batch={}", policy.target.rows)?;
        if let Some(rate) = items.rate {
            write!(f, ", rate_limit={rate}/s")?;
        }
        if items.cache.is_some() {
            write!(f, ", cached")?;
        }
        Ok(())
    }
}

impl ExecutionPlan for ItemsExec {
    fn name(&self) -> &str {
        "PythonExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn apply_expressions(
        &self,
        _visit: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.is_empty()) {
            (Some(input), true) => {
                // The plan is still being made, so nobody counts down yet.
                self.running.left.store(input.output_partitioning().partition_count(), Ordering::Release);
                Ok(Arc::new(ItemsExec::new(Arc::clone(&self.running), input)))
            }
            _ => internal_err!("a step has one input"),
        }
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input =
            self.input.execute(partition, context)?.map(|batch| batch.map_err(|error| Box::new(error) as BoxError));
        let running = Arc::clone(&self.running);
        let scope = Scope {
            place: u32::try_from(partition).unwrap_or(u32::MAX),
            ledger: Arc::clone(&running.ledger),
            tally: Arc::clone(running.operator.tally()),
            log: None,
            earlier: None,
        };
        let (schema, output) = (Arc::clone(running.operator.schema()), running.operator.run(scope, input.boxed()));
        let at_end = Arc::clone(&running);
        let output = output.map(move |batch| batch.map_err(|error| running.error(error)));
        let end = futures::stream::once(async move { at_end.end().await })
            .filter_map(|error| std::future::ready(error.map(Err::<RecordBatch, _>)));
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, output.chain(end))))
    }
}
