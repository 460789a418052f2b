//! Pass: one physical plan for each sink, out of segments that DataFusion plans one at a time.
//!
//! ```text
//!  consumers first:   optimize ─▶ which columns and filters does its scan of each edge ask for?
//!                                 └─▶ the producer makes only those
//!  producers first:   physical plan ─▶ connected to the edge ─▶ the consumer's physical plan
//! ```

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DataFusionError, Result, internal_err};
use datafusion::datasource::{provider_as_source, source_as_provider};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, TableScan};
use datafusion::physical_plan::ExecutionPlan;
use futures::FutureExt as _;
use futures::future::BoxFuture;

use rowmill_items::Ledger;
use rowmill_step::Effects;

use super::check_types::{Body, EdgeKind};
use super::cut_segments::Root;
use super::{Compiled, Inputs, Segment};
use crate::calls::caches::RESULTS;
use crate::calls::{Call, CallExec, RunScope, RunningStep};
use crate::elsewhere::{Part, Sent};
use crate::error::StepFailure;
use crate::plan::dead_letters::{DeadLettersExec, Letters};
use crate::plan::edge::{EdgeTable, Producer};
use crate::plan::guarded::{Guard, GuardedNode};
use crate::plan::kept::KeptResults;
use crate::plan::meter::{Meter, MeterExec, MeterNode};
use crate::plan::placement::{Placed, place};
use crate::plan::spool::{Spool, SpoolExec};
use crate::sinks::StagedSink;

/// The plan of one root that is executed.
#[derive(Debug)]
pub struct PlannedSink {
    /// The root; never a step.
    pub root: Root,
    /// The optimized logical plan, for `explain`.
    pub logical: LogicalPlan,
    /// The physical plan.
    pub plan: Arc<dyn ExecutionPlan>,
    /// What the planner of its class says about it.
    pub notes: Vec<String>,
}

/// All plans of a run.
#[derive(Debug, Default)]
pub struct Planned {
    /// Plans to execute, side by side.
    pub roots: Vec<PlannedSink>,
    /// Steps whose plans are leaves of their readers' plans, streamed or spooled.
    pub apart: Vec<(String, Arc<dyn ExecutionPlan>)>,
    /// What the planners of their classes say about those.
    pub notes: HashMap<String, Vec<String>>,
    /// Steps that run to their end whoever reads them.
    pub to_completion: Vec<Arc<dyn ExecutionPlan>>,
}

/// What the consumers of an edge ask for.
#[derive(Debug, Default)]
struct Demand {
    columns: BTreeSet<usize>,
    filters: Vec<Expr>,
    recursive: bool,
}

impl Demand {
    fn everything(compiled: &Compiled, step: &str) -> Self {
        let columns = compiled.steps.get(step).map_or(0, |step| step.schema.fields().len());
        Demand { columns: (0..columns).collect(), ..Demand::default() }
    }
}

/// Plans every segment. `staged` are the sinks' places to write, in the order of [`Compiled::sinks`].
///
/// A compiled workflow is planned once: its edges are connected here.
///
/// # Errors
/// What DataFusion says; type errors were found before, so this is a plan that cannot be made physical.
pub fn plan<'a>(
    compiled: &'a Compiled,
    inputs: &'a Inputs,
    staged: &'a [StagedSink],
    scope: &'a RunScope,
) -> BoxFuture<'a, Result<Planned>> {
    plan_all(compiled, inputs, staged, scope).boxed()
}

/// Every segment's optimized query, in the order of [`crate::compile::Cut::segments`]; for a step that is not SQL the
/// query of its input.
#[derive(Debug)]
pub(crate) struct Optimized {
    /// The queries.
    pub(crate) plans: Vec<LogicalPlan>,
    /// Steps that a recursive query reads again and again.
    recursive: HashSet<String>,
}

/// Optimizes every segment, consumers first.
pub(crate) fn optimize_segments(compiled: &Compiled, inputs: &Inputs, staged: &[StagedSink]) -> Result<Optimized> {
    let state = &compiled.state;
    let mut demands: HashMap<String, Demand> = HashMap::new();
    let mut plans: Vec<LogicalPlan> = Vec::new();
    for segment in compiled.cut.segments.iter().rev() {
        let plan = match &segment.root {
            Root::Step(name) => {
                let demand = demands.remove(name).unwrap_or_default();
                let produced = match compiled.steps.get(name).map(|step| &step.body) {
                    Some(Body::Call(call)) => call_input(compiled, inputs, call, &demand)?,
                    // All of its columns are made, whoever reads it: what fails does not hang on that.
                    Some(Body::Guarded(guard)) => guarded(compiled, inputs, guard)?,
                    // All of the item's columns are kept, whatever the letters' readers ask for.
                    Some(Body::DeadLetters(of)) => rows_of(compiled, inputs, of)?,
                    _ if compiled.steps.get(name).is_some_and(|step| step.kept.is_some()) => {
                        narrowed(compiled, name, &Demand::everything(compiled, name))?
                    }
                    _ => narrowed(compiled, name, &demand)?,
                };
                demands.insert(name.clone(), demand);
                produced
            }
            Root::Collect(name) => rows_of(compiled, inputs, name)?,
            Root::Sink(at) => {
                let (Some(sink), Some(staged)) = (compiled.sinks.get(*at), staged.get(*at)) else {
                    return internal_err!("sink {at} was not staged");
                };
                let rows = rows_of(compiled, inputs, &sink.from)?;
                sink.copy(rows, staged)?
            }
        };
        let plan = state.optimize(&plan)?;
        ask(&plan, &mut demands)?;
        plans.push(plan);
    }
    plans.reverse();
    let recursive = demands.into_iter().filter(|(_, demand)| demand.recursive).map(|(name, _)| name).collect();
    Ok(Optimized { plans, recursive })
}

async fn plan_all(compiled: &Compiled, inputs: &Inputs, staged: &[StagedSink], scope: &RunScope) -> Result<Planned> {
    let state = &compiled.state;
    let Optimized { plans, recursive } = optimize_segments(compiled, inputs, staged)?;
    let mut planned = Planned::default();
    for (segment, logical) in compiled.cut.segments.iter().zip(plans) {
        if let Root::Step(name) = &segment.root
            && let Some(guard) = compiled.steps.get(name).and_then(|step| step.guard())
        {
            guard.begin(scope.folder.join(format!("{name}.ledger.arrow")), &scope.host.redactor)?;
        }
        let plan = state.query_planner().create_physical_plan(&logical, state).await?;
        let queried = is_queried(compiled, segment);
        let Sent { plan, notes: told, .. } = send(compiled, segment, plan, scope)?;
        // What stays here is then for the class's planner on this machine.
        let Placed { mut plan, notes } = match queried && !scope.in_order {
            true => place(state, &segment.class, plan).map_err(|error| match segment.steps.last() {
                Some(step) => StepFailure::wrap(&Arc::from(step.as_str()), error),
                None => error,
            })?,
            false => Placed { plan, notes: Vec::new() },
        };
        let notes: Vec<String> = told.into_iter().chain(notes).collect();
        let Root::Step(name) = &segment.root else {
            planned.roots.push(PlannedSink { root: segment.root.clone(), logical, plan, notes });
            continue;
        };
        if !notes.is_empty() {
            planned.notes.insert(name.clone(), notes);
        }
        let Some(step) = compiled.steps.get(name) else { return internal_err!("step {name} is not checked") };
        let mut to_completion = false;
        if let Body::Call(call) = &step.body {
            plan = call_over(compiled, name, call, plan, scope)?;
            to_completion = call.policy.effects == Effects::Once;
        }
        plan = keep(compiled, name, plan, scope);
        if let Body::DeadLetters(of) = &step.body {
            let letters = Letters::Live(ledger_of(compiled, of, scope)?);
            let exec = DeadLettersExec::new(Arc::clone(of), Some(plan), letters, Arc::clone(&step.schema));
            let meter = compiled.meters.get(name).map_or_else(|| Arc::new(Meter::default()), Arc::clone);
            plan = Arc::new(MeterExec::new(Arc::from(name.as_str()), meter, Arc::new(exec)));
        }
        match &step.edge {
            EdgeKind::Streamed(edge) => {
                planned.apart.push((name.clone(), Arc::clone(&plan)));
                edge.connect(Producer::Plan(plan))?;
            }
            EdgeKind::Spooled(edge) => {
                let recursive = recursive.contains(name);
                planned.apart.push((name.clone(), Arc::clone(&plan)));
                let spool = Arc::new(Spool::new(Arc::from(name.as_str()), plan, recursive));
                if to_completion {
                    planned.to_completion.push(Arc::new(SpoolExec::new(Arc::clone(&spool))));
                }
                edge.connect(Producer::Spool(spool))?;
            }
            EdgeKind::Fused => return internal_err!("step {name} is a segment of its own and fused into another"),
        }
    }
    Ok(planned)
}

/// Whether a segment is SQL of its own class: the class of a step that is not SQL is where its calls run, and its input
/// is no work of that class.
fn is_queried(compiled: &Compiled, segment: &Segment) -> bool {
    match &segment.root {
        Root::Step(name) => compiled.steps.get(name).is_some_and(|step| step.query().is_some()),
        _ => true,
    }
}

/// A segment's plan with what runs elsewhere replaced.
pub(crate) fn send(
    compiled: &Compiled,
    segment: &Segment,
    plan: Arc<dyn ExecutionPlan>,
    scope: &RunScope,
) -> Result<Sent> {
    let Some(elsewhere) = &scope.host.elsewhere else { return Ok(Sent { plan, whole: false, notes: Vec::new() }) };
    let workflow = &compiled.workflow.name.value;
    let queried = is_queried(compiled, segment);
    let step = segment.steps.last().or(segment.inputs.last()).map_or("", String::as_str);
    let class = if queried { segment.class.as_str() } else { rowmill_spec::ResourceClass::Cpu.as_str() };
    let (in_order, places) = (scope.in_order, &scope.places);
    let name = format!("{workflow}: {step}");
    // As the stages of durable runs are called.
    let stage = if queried { step.to_owned() } else { format!("{step}.input") };
    let memory = |name: &String| compiled.workflow.steps.get(name)?.resources.memory.as_ref();
    let memory_bytes = segment.steps.iter().filter_map(memory).map(|bytes| bytes.value).max().unwrap_or(0);
    let part = Part { name: &name, class, memory_bytes, stage: &stage, read_here: !queried, in_order, places };
    elsewhere.place(part, plan)
}

/// The plan of a step whose result is kept: one that reads it, or one that makes it. Others stay as they are.
pub(crate) fn keep(
    compiled: &Compiled,
    name: &str,
    plan: Arc<dyn ExecutionPlan>,
    scope: &RunScope,
) -> Arc<dyn ExecutionPlan> {
    let Some(key) = compiled.steps.get(name).and_then(|step| step.kept.as_ref()) else { return plan };
    let caches = &scope.host.caches;
    let results = KeptResults {
        folder: caches.options().folder.join(RESULTS),
        max_bytes: caches.disk_limit(),
        started: scope.started,
    };
    let kept = results.plan(name, key, plan);
    if kept.children().is_empty() {
        // Nothing below runs, its meters included.
        let meter = compiled.meters.get(name).map_or_else(|| Arc::new(Meter::default()), Arc::clone);
        return Arc::new(MeterExec::new(Arc::from(name), meter, kept));
    }
    kept
}

/// The ledger of a step that was planned already.
fn ledger_of(compiled: &Compiled, step: &str, scope: &RunScope) -> Result<Arc<Ledger>> {
    let found = match compiled.steps.get(step).map(|step| &step.body) {
        Some(Body::Guarded(guard)) => guard.ledger().cloned(),
        Some(Body::Call(call)) => {
            let steps = scope.steps.lock();
            let own = steps.iter().find(|step| Arc::ptr_eq(step.operator.tally(), &call.tally));
            own.map(|step| Arc::clone(&step.ledger))
        }
        _ => None,
    };
    found.map_or_else(|| internal_err!("step {step} has no ledger"), Ok)
}

/// The operator of a step over the plan of its input, with its meter.
fn call_over(
    compiled: &Compiled,
    name: &str,
    call: &Call,
    input: Arc<dyn ExecutionPlan>,
    scope: &RunScope,
) -> Result<Arc<dyn ExecutionPlan>> {
    let schema = input.schema();
    let operator = scope.operator(call, &schema).map_err(DataFusionError::Configuration)?;
    let ledger = Arc::new(Ledger::new(&schema, scope.folder.join(format!("{name}.ledger.arrow"))));
    scope.steps.lock().push(RunningStep { operator: Arc::clone(&operator), ledger: Arc::clone(&ledger) });
    // Who does not ask for an order keeps the partitions, and their rows in order.
    let order = compiled.workflow.steps.get(name).and_then(|step| step.items.order.as_ref());
    let in_order = order.is_some_and(|order| order.value == rowmill_spec::RowOrder::Input);
    let plan = Arc::new(CallExec::new(input, in_order, operator, ledger));
    let meter = compiled.meters.get(name).map_or_else(|| Arc::new(Meter::default()), Arc::clone);
    Ok(Arc::new(MeterExec::new(Arc::from(name), meter, plan)))
}

/// The input of a step that is not SQL: the columns that it reads, and those that its consumers ask for.
fn call_input(compiled: &Compiled, inputs: &Inputs, call: &Call, demand: &Demand) -> Result<LogicalPlan> {
    let rows = rows_of(compiled, inputs, &call.from)?;
    let mut kept: BTreeSet<usize> =
        demand.columns.iter().copied().filter(|column| *column < call.input.fields().len()).collect();
    for field in call.shape.input.fields() {
        kept.insert(call.input.index_of(field.name())?);
    }
    for name in call.cache.iter().flat_map(|(cache, _)| &cache.key) {
        kept.insert(call.input.index_of(name)?);
    }
    // Rows of no columns would have to be counted some other way.
    if kept.is_empty() && !call.input.fields().is_empty() {
        kept.insert(0);
    }
    if kept.len() == call.input.fields().len() {
        return Ok(rows);
    }
    let columns = rows.schema().columns();
    let kept = kept.into_iter().filter_map(|at| columns.get(at).cloned()).map(Expr::Column);
    LogicalPlanBuilder::from(rows).project(kept.collect::<Vec<_>>())?.build()
}

/// A SQL step with an error policy over the columns that it takes.
fn guarded(compiled: &Compiled, inputs: &Inputs, guard: &Arc<Guard>) -> Result<LogicalPlan> {
    let rows = rows_of(compiled, inputs, &guard.from)?;
    let columns = rows.schema().columns();
    let kept = guard.columns.iter().filter_map(|at| columns.get(*at).cloned()).map(Expr::Column);
    let input = LogicalPlanBuilder::from(rows).project(kept.collect::<Vec<_>>())?.build()?;
    let meter = compiled.meters.get(guard.step.as_ref()).map_or_else(|| Arc::new(Meter::default()), Arc::clone);
    Ok(MeterNode::wrap(Arc::clone(&guard.step), meter, GuardedNode::wrap(guard, input)?))
}

/// The rows of a step or source, as a plan for a sink.
fn rows_of(compiled: &Compiled, inputs: &Inputs, name: &str) -> Result<LogicalPlan> {
    if let Some(step) = compiled.steps.get(name) {
        return match step.edge.table() {
            None => match step.query() {
                Some(plan) => Ok(plan.clone()),
                None => internal_err!("step {name} is not SQL and has no edge"),
            },
            Some(table) => LogicalPlanBuilder::scan(name, provider_as_source(Arc::clone(table) as _), None)?.build(),
        };
    }
    let table = match compiled.source_tables.get(name).or_else(|| inputs.tables.get(name)) {
        Some(table) => Arc::clone(table),
        None => return internal_err!("{name} is neither a step nor a source"),
    };
    let rows = LogicalPlanBuilder::scan(name, provider_as_source(table), None)?.build()?;
    let meter = compiled.meters.get(name).map_or_else(|| Arc::new(Meter::default()), Arc::clone);
    Ok(MeterNode::wrap(Arc::from(name), meter, rows))
}

/// The plan of a step, without the columns and rows that nobody asks for.
fn narrowed(compiled: &Compiled, name: &str, demand: &Demand) -> Result<LogicalPlan> {
    let Some(step) = compiled.steps.get(name) else { return internal_err!("step {name} is not checked") };
    let Some(query) = step.query() else { return internal_err!("step {name} is not SQL") };
    let mut builder = LogicalPlanBuilder::from(query.clone());
    let filters = demand.filters.iter().cloned().reduce(Expr::and);
    if let Some(filter) = filters {
        let columns = builder.schema().columns();
        builder = builder.filter(qualify(filter, &columns)?)?;
    }
    let all = step.schema.fields().len();
    if demand.columns.len() < all {
        let columns = builder.schema().columns();
        // A plan of no columns would do for `count(*)`, but one column survives every spill format.
        let kept: Vec<usize> = match demand.columns.is_empty() {
            true => vec![0],
            false => demand.columns.iter().copied().collect(),
        };
        let kept = kept.into_iter().filter_map(|at| columns.get(at).cloned()).map(Expr::Column);
        builder = builder.project(kept.collect::<Vec<_>>())?;
    }
    builder.build()
}

/// Gives the columns of a pushed filter the qualifiers that they have in the producer.
fn qualify(filter: Expr, columns: &[Column]) -> Result<Expr> {
    filter
        .transform(|expression| {
            Ok(match expression {
                Expr::Column(column) => match columns.iter().find(|other| other.name == column.name) {
                    Some(own) => Transformed::yes(Expr::Column(own.clone())),
                    None => {
                        return Err(DataFusionError::Internal(format!("no column {} in the producer", column.name)));
                    }
                },
                other => Transformed::no(other),
            })
        })
        .map(|transformed| transformed.data)
}

/// Adds what the scans of edges in an optimized plan ask for.
fn ask(plan: &LogicalPlan, demands: &mut HashMap<String, Demand>) -> Result<()> {
    let mut recursive_depth = HashSet::new();
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::RecursiveQuery(query) = node {
            query.recursive_term.apply_with_subqueries(|node| {
                if let LogicalPlan::TableScan(scan) = node {
                    recursive_depth.insert(scan.table_name.table().to_owned());
                }
                Ok(TreeNodeRecursion::Continue)
            })?;
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    plan.apply_with_subqueries(|node| {
        let LogicalPlan::TableScan(scan) = node else { return Ok(TreeNodeRecursion::Continue) };
        let Some(edge) = edge_of(scan)? else { return Ok(TreeNodeRecursion::Continue) };
        let demand = demands.entry(edge.0).or_default();
        match &scan.projection {
            Some(columns) => demand.columns.extend(columns),
            None => demand.columns.extend(0..edge.1),
        }
        demand.filters.extend(scan.filters.iter().cloned());
        demand.recursive |= !recursive_depth.is_empty();
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(())
}

/// The step behind a scan and its number of columns, where the scan is one of an edge.
fn edge_of(scan: &TableScan) -> Result<Option<(String, usize)>> {
    let Ok(provider) = source_as_provider(&scan.source) else { return Ok(None) };
    use datafusion::catalog::TableProvider;
    Ok(provider.downcast_ref::<EdgeTable>().map(|edge| (edge.step().to_owned(), edge.schema().fields().len())))
}
