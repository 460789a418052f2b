//! Aggregates: the partial aggregate goes to the device, with the filters and projections below it, and DataFusion's final
//! one merges.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::Result;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode, PhysicalGroupBy};
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::{ExecutionPlan as _, InputOrderMode};
use rowmill_gpu::expr::GpuExpr;
use rowmill_gpu::ops::aggregate::{Aggregate, AggregateFunction};
use rowmill_gpu::ops::filter_aggregate::FilterAggregate;
use rowmill_gpu::ops::group_by::GroupBy;

use super::{GpuRule, Taken};
use crate::decide::Operator;
use crate::exec::ReplayExec;
use crate::exec::aggregate::{GpuAggregateExec, Kernels, Query, StateColumn};
use crate::lower::{Reason, is_constant, lower, one, substitute};
use crate::pipeline::{Pipeline, one_partition};

impl GpuRule {
    pub(super) fn aggregate(&self, aggregate: &AggregateExec) -> Result<Result<Taken, Reason>> {
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
            Ok((kernels, states)) => Query { kernels, states, text: text_of(&twin, &pipeline), twin: Arc::new(twin) },
            Err(reason) => return Ok(Err(reason)),
        };
        let operator = if keys.is_empty() { Operator::FilterAggregate } else { Operator::GroupBy };
        let resident = self.is_join_on_device(&pipeline.base)?;
        let why = match self.decide(operator, &pipeline.base, resident) {
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
    schema: &SchemaRef,
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
