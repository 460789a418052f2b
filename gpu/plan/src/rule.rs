//! The rule that takes nodes of a plan to the device. It leaves alone what has no kernel, what the table says is faster
//! on the CPU, and whatever the plan above relies on: partitionings are restored, orders are never dropped.
use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::{DataType, Schema};
use datafusion::common::stats::Precision;
use datafusion::common::{DataFusionError, JoinType, NullEquality, Result};
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{Partitioning, PhysicalExpr};
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode, PhysicalGroupBy};
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::joins::{HashJoinExec, PartitionMode};
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::{
    ExecutionPlan, ExecutionPlanProperties as _, InputOrderMode, StatisticsArgs, StatisticsContext,
};
use rowmill_gpu::expr::GpuExpr;
use rowmill_gpu::ops::aggregate::{Aggregate, AggregateFunction};
use rowmill_gpu::ops::filter_aggregate::FilterAggregate;
use rowmill_gpu::ops::group_by::GroupBy;
use rowmill_gpu::ops::join::JoinKind;
use rowmill_gpu::ops::sort::SortKey;

use crate::context::{GpuContext, GpuUse};
use crate::decide::Operator;
use crate::exec::aggregate::{GpuAggregateExec, Kernels, Query as AggregateQuery, StateColumn};
use crate::exec::join::{GpuJoinExec, Parts, Query as JoinQuery, Side};
use crate::exec::sort::{GpuSortExec, Query as SortQuery};
use crate::exec::{ReplayExec, with_children};
use crate::lower::{Reason, columns_of, is_constant, lower, one, substitute};
use crate::pipeline::{Pipeline, one_partition, passed_through};

/// Nodes that move, count or write rows, beside those that read them: there is nothing to take.
const SILENT: &[&str] = &[
    "StepExec",
    "CoalescePartitionsExec",
    "CoalesceBatchesExec",
    "RepartitionExec",
    "SortPreservingMergeExec",
    "ProjectionExec",
    "DataSinkExec",
    "CooperativeExec",
    "UnionExec",
];

/// Nodes that do to each partition the same, whatever its number, and keep its order.
const ONE_BY_ONE: &[&str] =
    &["ProjectionExec", "FilterExec", "StepExec", "CooperativeExec", "CoalesceBatchesExec", "UnionExec"];

/// The rule for one device.
#[derive(Debug, Clone)]
pub struct GpuRule {
    gpu: Arc<GpuContext>,
}

/// A plan and what was said about its nodes.
#[derive(Debug, Clone)]
pub struct Rewritten {
    /// The plan; the same one where nothing was taken.
    pub plan: Arc<dyn ExecutionPlan>,
    /// A sentence for each node that could have been taken, from the root down.
    pub notes: Vec<String>,
}

impl GpuRule {
    /// A rule over `gpu`.
    pub fn new(gpu: Arc<GpuContext>) -> Self {
        Self { gpu }
    }

    /// The device.
    pub fn context(&self) -> &Arc<GpuContext> {
        &self.gpu
    }

    /// Takes what it can of `plan`.
    ///
    /// # Errors
    /// When the device is required and there is none; DataFusion's, when nodes cannot be put together again.
    pub fn rewrite(&self, plan: Arc<dyn ExecutionPlan>) -> Result<Rewritten> {
        if let Err(reason) = self.gpu.device() {
            if self.gpu.options().usage == GpuUse::Required {
                return Err(DataFusionError::Plan(format!(
                    "`gpu.use` is `required`, and {reason}; run this where an NVIDIA GPU is, or set `gpu.use` to `auto`"
                )));
            }
            return Ok(Rewritten { plan, notes: vec![format!("everything runs on the CPU: {reason}")] });
        }
        let mut notes = Vec::new();
        let plan = self.visit(plan, false, &mut notes)?;
        Ok(Rewritten { plan, notes })
    }

    /// `merged`: what is above takes any number of sorted partitions.
    fn visit(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        merged: bool,
        notes: &mut Vec<String>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let taken = if let Some(aggregate) = plan.downcast_ref::<AggregateExec>() {
            match aggregate.mode() {
                AggregateMode::Partial | AggregateMode::Single | AggregateMode::SinglePartitioned => {
                    Some(self.aggregate(aggregate))
                }
                _ => None,
            }
        } else if let Some(sort) = plan.downcast_ref::<SortExec>() {
            Some(self.sort(sort, merged))
        } else if let Some(join) = plan.downcast_ref::<HashJoinExec>() {
            Some(self.join(join))
        } else if plan.is::<FilterExec>() {
            notes.push(format!("{}: left, a filter by itself costs less than the way to the device", plan.name()));
            None
        } else {
            let name = plan.name();
            if !plan.children().is_empty()
                && !SILENT.contains(&name)
                && !name.starts_with("Gpu")
                && !plan.is::<AggregateExec>()
            {
                notes.push(format!("{name}: left, it has no kernel"));
            }
            None
        };
        let plan = match taken {
            None => plan,
            Some(Err(error)) => return Err(error),
            Some(Ok(Err(reason))) => {
                notes.push(format!("{}: left, {reason}", described(&plan)));
                plan
            }
            Some(Ok(Ok(taken))) => {
                notes.push(format!("{}: taken, {}", described(&plan), taken.why));
                restore(taken.plan, plan.output_partitioning())?
            }
        };
        let merging = match plan.name() {
            "SortPreservingMergeExec" => true,
            name => merged && ONE_BY_ONE.contains(&name),
        };
        let children = plan.children().into_iter().cloned().collect::<Vec<_>>();
        let mut changed = false;
        let mut new = Vec::with_capacity(children.len());
        for child in children {
            let visited = self.visit(Arc::clone(&child), merging, notes)?;
            changed |= !Arc::ptr_eq(&visited, &child);
            new.push(visited);
        }
        if changed { with_children(&plan, new) } else { Ok(plan) }
    }

    fn decide(&self, operator: Operator, input: &Arc<dyn ExecutionPlan>) -> Result<String, Reason> {
        let statistics = StatisticsContext::new().compute(input.as_ref(), &StatisticsArgs::new()).ok();
        let rows = statistics.and_then(|statistics| match statistics.num_rows {
            Precision::Exact(rows) => Some(rows as u64),
            // Estimates are off by orders of magnitude: the rows are counted when they are there.
            _ => None,
        });
        let width: u64 = input.schema().fields().iter().map(|field| width_of(field.data_type())).sum();
        let decision = self.gpu.decide(operator, rows, rows.unwrap_or(0).saturating_mul(width));
        if decision.offload { Ok(decision.why) } else { Err(decision.why) }
    }

    fn aggregate(&self, aggregate: &AggregateExec) -> Result<Result<Taken, Reason>> {
        let group_by = aggregate.group_expr();
        if !group_by.is_single() && !group_by.is_empty() || group_by.has_grouping_set() {
            return Ok(Err("it has grouping sets".into()));
        }
        if aggregate.limit_options().is_some() {
            return Ok(Err("it ends early at a limit".into()));
        }
        if *aggregate.input_order_mode() != InputOrderMode::Linear {
            return Ok(Err("its input is ordered by its keys".into()));
        }
        let pipeline = Pipeline::trace(aggregate.input())?;
        let columns = &pipeline.columns;
        let keys = group_by.expr();
        let mut exprs = Vec::new();
        for (key, _) in keys {
            exprs.push(substitute(key, columns)?);
        }
        for (function, filter) in aggregate.aggr_expr().iter().zip(aggregate.filter_expr()) {
            if let Err(reason) = supported(function) {
                return Ok(Err(reason));
            }
            for argument in function.expressions().iter().chain(filter) {
                exprs.push(substitute(argument, columns)?);
            }
        }
        let pipeline = pipeline.narrow(&mut exprs)?;
        let schema = pipeline.base.schema();
        let mut exprs = exprs.into_iter();
        let keys: Vec<(Arc<dyn PhysicalExpr>, String)> =
            exprs.by_ref().take(keys.len()).zip(keys).map(|(expr, (_, name))| (expr, name.clone())).collect();
        let mut functions = Vec::new();
        let mut filters = Vec::new();
        for (function, filter) in aggregate.aggr_expr().iter().zip(aggregate.filter_expr()) {
            let arguments: Vec<_> = exprs.by_ref().take(function.expressions().len()).collect();
            filters.push(if filter.is_some() { exprs.next() } else { None });
            match function.with_new_expressions(arguments, Vec::new()) {
                Some(function) => functions.push(Arc::new(function)),
                None => return Ok(Err(format!("{} cannot be moved", function.name()))),
            }
        }
        // The twin: what DataFusion would do over the same rows.
        let mut twin = ReplayExec::place(&schema);
        if let Some(filter) = &pipeline.filter {
            twin = Arc::new(FilterExec::try_new(Arc::clone(filter), twin)?);
        }
        let twin_groups = PhysicalGroupBy::new_single(keys.clone());
        let twin = AggregateExec::try_new(
            AggregateMode::Partial,
            twin_groups,
            functions.clone(),
            filters.clone(),
            twin,
            Arc::clone(&schema),
        )?;
        let states = twin.schema();
        let single = !matches!(aggregate.mode(), AggregateMode::Partial);
        let output = if single { Arc::clone(&states) } else { aggregate.schema() };
        if !same_types(&states, &output) {
            return Ok(Err("its states have other types here".into()));
        }
        let query = match kernels(&schema, pipeline.filter.as_ref(), &keys, &functions, &filters, &output) {
            Ok((kernels, states)) => {
                AggregateQuery { kernels, states, text: text_of(&twin, &pipeline), twin: Arc::new(twin) }
            }
            Err(reason) => return Ok(Err(reason)),
        };
        let operator = if keys.is_empty() { Operator::FilterAggregate } else { Operator::GroupBy };
        let why = match self.decide(operator, &pipeline.base) {
            Ok(why) => why,
            Err(reason) => return Ok(Err(reason)),
        };
        let input = one_partition(pipeline.base);
        let partial = Arc::new(GpuAggregateExec::new(Arc::clone(&self.gpu), Arc::new(query), input, output));
        if !single {
            return Ok(Ok(Taken { plan: partial, why }));
        }
        let all = AggregateExec::try_new(
            AggregateMode::Final,
            group_by.as_final(),
            aggregate.aggr_expr().to_vec(),
            vec![None; aggregate.aggr_expr().len()],
            partial,
            aggregate.input_schema(),
        )?;
        match same_types(&all.schema(), &aggregate.schema()) {
            true => Ok(Ok(Taken { plan: Arc::new(all), why })),
            false => Ok(Err("its result has other types here".into())),
        }
    }

    fn sort(&self, sort: &SortExec, merged: bool) -> Result<Result<Taken, Reason>> {
        if let Some(limit) = sort.fetch() {
            return Ok(Err(format!("the first {limit} rows are kept in a heap, which reads the input once")));
        }
        let partitions = sort.input().output_partitioning().partition_count();
        if sort.preserve_partitioning() && partitions > 1 && !merged {
            return Ok(Err("each of its partitions is sorted for itself".into()));
        }
        let schema = sort.input().schema();
        let mut columns = BTreeSet::new();
        sort.expr().iter().for_each(|key| columns_of(&key.expr, &mut columns));
        let columns: Vec<usize> = columns.into_iter().collect();
        let keys = sort.expr().iter().map(|key| {
            let expr = lower_over(&key.expr, &schema, &columns)?;
            Ok(SortKey { expr, descending: key.options.descending, nulls_first: key.options.nulls_first })
        });
        let keys = match keys.collect::<Result<Vec<_>, Reason>>() {
            Ok(keys) => keys,
            Err(reason) => return Ok(Err(reason)),
        };
        let twin = Arc::new(SortExec::new(sort.expr().clone(), ReplayExec::place(&schema)));
        let query = match SortQuery::try_new(&schema, columns, keys, sort.expr().clone(), twin) {
            Ok(query) => query,
            Err(reason) => return Ok(Err(reason)),
        };
        let why = match self.decide(Operator::Sort, sort.input()) {
            Ok(why) => why,
            Err(reason) => return Ok(Err(reason)),
        };
        let input = one_partition(below_moves(sort.input()));
        Ok(Ok(Taken { plan: Arc::new(GpuSortExec::new(Arc::clone(&self.gpu), Arc::new(query), input)), why }))
    }

    fn join(&self, join: &HashJoinExec) -> Result<Result<Taken, Reason>> {
        if join.filter().is_some() {
            return Ok(Err("it has a condition beside the equal keys".into()));
        }
        if join.null_equality() != NullEquality::NullEqualsNothing {
            return Ok(Err("its null keys are equal".into()));
        }
        if join.null_aware {
            return Ok(Err("`NOT IN` minds nulls".into()));
        }
        if join.fetch().is_some() {
            return Ok(Err("it ends early at a limit".into()));
        }
        if join.properties().output_ordering().is_some() {
            return Ok(Err("the order of its rows is relied on".into()));
        }
        let (kind, left_probes) = match join.join_type() {
            JoinType::Inner => (JoinKind::Inner, false),
            JoinType::Right => (JoinKind::Left, false),
            JoinType::RightSemi => (JoinKind::LeftSemi, false),
            JoinType::RightAnti => (JoinKind::LeftAnti, false),
            JoinType::Left => (JoinKind::Left, true),
            JoinType::LeftSemi => (JoinKind::LeftSemi, true),
            JoinType::LeftAnti => (JoinKind::LeftAnti, true),
            other => return Ok(Err(format!("a {other} join has no kernel"))),
        };
        let (left_schema, right_schema) = (join.left().schema(), join.right().schema());
        let (mut left_columns, mut right_columns) = (BTreeSet::new(), BTreeSet::new());
        for (left, right) in join.on() {
            columns_of(left, &mut left_columns);
            columns_of(right, &mut right_columns);
        }
        let left = Side { schema: left_schema, columns: left_columns.into_iter().collect() };
        let right = Side { schema: right_schema, columns: right_columns.into_iter().collect() };
        let on = join.on().iter().map(|(l, r)| {
            Ok((lower_over(l, &left.schema, &left.columns)?, lower_over(r, &right.schema, &right.columns)?))
        });
        let on = match on.collect::<Result<Vec<_>, Reason>>() {
            Ok(on) => on,
            Err(reason) => return Ok(Err(reason)),
        };
        let places = vec![ReplayExec::place(&left.schema), ReplayExec::place(&right.schema)];
        let twin = join
            .builder()
            .with_partition_mode(PartitionMode::CollectLeft)
            .with_new_children(places)?
            .reset_state()
            .recompute_properties()
            .build_exec()?;
        let projection = match &join.projection {
            Some(projection) => projection.to_vec(),
            None => (0..join.join_schema().fields().len()).collect(),
        };
        let keys: Vec<String> = join.on().iter().map(|(left, right)| format!("({left}, {right})")).collect();
        let text = format!("join_type={}, on=[{}]", join.join_type(), keys.join(", "));
        let query = JoinQuery::try_new(Parts { left, right, on, left_probes, kind, projection, twin, text });
        let query = match query {
            Ok(query) => query,
            Err(reason) => return Ok(Err(reason)),
        };
        let why = match self.decide(Operator::Join, if left_probes { join.left() } else { join.right() }) {
            Ok(why) => why,
            Err(reason) => return Ok(Err(reason)),
        };
        let side = |plan| one_partition(below_moves(plan));
        let (left, right) = (side(join.left()), side(join.right()));
        let plan = GpuJoinExec::new(Arc::clone(&self.gpu), Arc::new(query), left, right, join.schema());
        Ok(Ok(Taken { plan: Arc::new(plan), why }))
    }
}

/// A node that takes another's place, and why.
struct Taken {
    plan: Arc<dyn ExecutionPlan>,
    why: String,
}

/// A node without its long list of details.
fn described(plan: &Arc<dyn ExecutionPlan>) -> String {
    let name = plan.name();
    match plan.downcast_ref::<AggregateExec>() {
        Some(aggregate) => {
            let functions: Vec<&str> = aggregate.aggr_expr().iter().map(|function| function.name()).collect();
            format!("{name} [{}]", functions.join(", "))
        }
        None => name.to_owned(),
    }
}

/// The input below nodes that only move rows between partitions.
fn below_moves(plan: &Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    match passed_through(plan) {
        Some(input) => below_moves(input),
        None => Arc::clone(plan),
    }
}

/// `plan`, of one partition, in the partitions of what it replaces where others count on them.
fn restore(plan: Arc<dyn ExecutionPlan>, wanted: &Partitioning) -> Result<Arc<dyn ExecutionPlan>> {
    match wanted {
        Partitioning::Hash(_, partitions) if *partitions > 1 => {
            Ok(Arc::new(RepartitionExec::try_new(plan, wanted.clone())?))
        }
        _ => Ok(plan),
    }
}

/// Lowers `expr` over some columns of `schema`, in the order of `columns`.
fn lower_over(expr: &Arc<dyn PhysicalExpr>, schema: &Schema, columns: &[usize]) -> Result<GpuExpr, Reason> {
    let narrow = schema.project(columns).map_err(|error| error.to_string())?;
    let mut moved: Vec<Arc<dyn PhysicalExpr>> =
        (0..schema.fields().len()).map(|at| Arc::new(Column::new(schema.field(at).name(), at)) as _).collect();
    for (to, from) in columns.iter().enumerate() {
        moved[*from] = Arc::new(Column::new(schema.field(*from).name(), to));
    }
    let expr = substitute(expr, &moved).map_err(|error| error.strip_backtrace())?;
    lower(&expr, &narrow)
}

fn width_of(data_type: &DataType) -> u64 {
    match data_type {
        DataType::Boolean => 1,
        other => other.primitive_width().map_or(16, |width| width as u64),
    }
}

fn same_types(one: &Schema, other: &Schema) -> bool {
    one.fields().len() == other.fields().len()
        && one.fields().iter().zip(other.fields()).all(|(one, other)| one.data_type() == other.data_type())
}

fn text_of(twin: &AggregateExec, pipeline: &Pipeline) -> String {
    let keys: Vec<&str> = twin.group_expr().expr().iter().map(|(_, name)| name.as_str()).collect();
    let functions: Vec<&str> = twin.aggr_expr().iter().map(|function| function.name()).collect();
    let mut text = format!("gby=[{}], aggr=[{}]", keys.join(", "), functions.join(", "));
    if let Some(filter) = &pipeline.filter {
        text.push_str(&format!(", filter={filter}"));
    }
    text
}

fn supported(function: &AggregateFunctionExpr) -> Result<(), Reason> {
    let name = function.name();
    if function.is_distinct() {
        return Err(format!("{name} counts distinct values"));
    }
    if !function.order_bys().is_empty() {
        return Err(format!("{name} has an order"));
    }
    match function.fun().name() {
        "count" | "sum" | "avg" | "min" | "max" if function.expressions().len() == 1 => Ok(()),
        other => Err(format!("`{other}` has no kernel")),
    }
}

/// The kernels of a partial aggregate, and how its states are made of their columns.
fn kernels(
    schema: &arrow::datatypes::SchemaRef,
    filter: Option<&Arc<dyn PhysicalExpr>>,
    keys: &[(Arc<dyn PhysicalExpr>, String)],
    functions: &[Arc<AggregateFunctionExpr>],
    filters: &[Option<Arc<dyn PhysicalExpr>>],
    output: &Schema,
) -> Result<(Kernels, Vec<StateColumn>), Reason> {
    if functions.is_empty() {
        return Err("it computes nothing".into());
    }
    let filter = filter.map(|filter| lower(filter, schema)).transpose()?;
    let keys = keys.iter().map(|(key, name)| Ok((name.clone(), lower(key, schema)?)));
    let keys = keys.collect::<Result<Vec<_>, Reason>>()?;
    let (mut aggregates, mut counts_of_averages) = (Vec::new(), BTreeSet::new());
    for (function, only) in functions.iter().zip(filters) {
        let argument = &function.expressions()[0];
        let only = only.as_ref().map(|only| lower(only, schema)).transpose()?;
        // `count(1)` counts rows.
        let argument = match (function.fun().name(), is_constant(argument)) {
            ("count", true) if only.is_none() => None,
            ("count", true) => Some(one()?),
            _ => Some(lower(argument, schema)?),
        };
        let argument = match (argument, only) {
            (Some(argument), Some(only)) => Some(GpuExpr::Case { branches: vec![(only, argument)], otherwise: None }),
            (argument, _) => argument,
        };
        let parts: &[AggregateFunction] = match function.fun().name() {
            "count" => &[AggregateFunction::Count],
            "sum" => &[AggregateFunction::Sum],
            "min" => &[AggregateFunction::Min],
            "max" => &[AggregateFunction::Max],
            _ => &[AggregateFunction::Count, AggregateFunction::Sum],
        };
        for part in parts {
            let name = format!("{}_{}", function.name(), aggregates.len());
            if parts.len() > 1 && *part == AggregateFunction::Count && !keys.is_empty() {
                counts_of_averages.insert(keys.len() + aggregates.len());
            }
            aggregates.push(Aggregate { function: *part, argument: argument.clone(), name });
        }
    }
    let refused = |error: rowmill_gpu::Error| error.to_string();
    let (kernels, made) = match keys.is_empty() {
        true => {
            let query = FilterAggregate::try_new(Arc::clone(schema), filter, &aggregates).map_err(refused)?;
            let made = Arc::clone(query.output_schema());
            (Kernels::Fused(query), made)
        }
        false => {
            let query = GroupBy::try_new(Arc::clone(schema), filter, keys, &aggregates).map_err(refused)?;
            let made = Arc::clone(query.output_schema());
            (Kernels::Grouped(query), made)
        }
    };
    if made.fields().len() != output.fields().len() {
        return Err("its states have another number of columns here".into());
    }
    let states = made.fields().iter().zip(output.fields()).enumerate().map(|(from, (made, state))| {
        match StateColumn::fits(made.data_type(), state.data_type()) {
            true => {
                let null_for_zero = counts_of_averages.contains(&from);
                Ok(StateColumn { from, to: state.data_type().clone(), null_for_zero })
            }
            false => {
                Err(format!("state `{}` is {}, the kernel gives {}", state.name(), state.data_type(), made.data_type()))
            }
        }
    });
    Ok((kernels, states.collect::<Result<Vec<_>, Reason>>()?))
}
