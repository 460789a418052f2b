//! The rule that takes nodes of a plan to the device. It leaves alone what has no kernel, what the table says is faster
//! on the CPU, and whatever the plan above relies on: partitionings are restored, orders are never dropped.

mod aggregate;
mod join;
mod sort;

use std::sync::Arc;

use arrow::datatypes::{DataType, Schema};
use datafusion::common::stats::Precision;
use datafusion::common::{DataFusionError, Result};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{Partitioning, PhysicalExpr};
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::joins::HashJoinExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties as _, StatisticsArgs, StatisticsContext};
use rowmill_gpu::expr::GpuExpr;

use crate::context::{GpuContext, GpuUse};
use crate::decide::Operator;
use crate::exec::with_children;
use crate::lower::{Reason, lower, substitute};
use crate::pipeline::passed_through;

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

    fn decide(&self, operator: Operator, input: &Arc<dyn ExecutionPlan>, resident: bool) -> Result<String, Reason> {
        let statistics = StatisticsContext::new().compute(input.as_ref(), &StatisticsArgs::new()).ok();
        let rows = statistics.and_then(|statistics| match statistics.num_rows {
            Precision::Exact(rows) => Some(rows as u64),
            // Estimates are off by orders of magnitude: the rows are counted when they are there.
            _ => None,
        });
        let width: u64 = input.schema().fields().iter().map(|field| width_of(field.data_type())).sum();
        let decision = self.gpu.decide(operator, rows, rows.unwrap_or(0).saturating_mul(width), resident);
        if decision.offload { Ok(decision.why) } else { Err(decision.why) }
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

/// `plan`, of one partition, in the partitions of what it replaces where others count on them.
fn restore(plan: Arc<dyn ExecutionPlan>, wanted: &Partitioning) -> Result<Arc<dyn ExecutionPlan>> {
    match wanted {
        Partitioning::Hash(_, partitions) if *partitions > 1 => {
            Ok(Arc::new(RepartitionExec::try_new(plan, wanted.clone())?))
        }
        _ => Ok(plan),
    }
}

fn width_of(data_type: &DataType) -> u64 {
    match data_type {
        DataType::Boolean => 1,
        other => other.primitive_width().map_or(16, |width| width as u64),
    }
}

/// The input below nodes that only move rows between partitions.
fn below_moves(plan: &Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    match passed_through(plan) {
        Some(input) => below_moves(input),
        None => Arc::clone(plan),
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
