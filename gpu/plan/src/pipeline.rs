//! What stands below an operator: filters and projections are taken into its kernel as far as they can be, and the
//! columns that the kernel does not read are left out of its input.
//!
//! ```text
//! AggregateExec ◀─ ProjectionExec ◀─ RepartitionExec ◀─ FilterExec ◀─ DataSourceExec
//!                  taken: columns     passed through     taken: filter    the base
//! ```
use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::Result;
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{BinaryExpr, Column};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::{ProjectionExec, ProjectionExpr};
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties as _};
use rowmill_gpu::expr::Physical;

use crate::lower::{columns_of, lower, substitute};

/// A chain of filters and projections as expressions over its base.
pub(crate) struct Pipeline {
    /// What is read.
    pub(crate) base: Arc<dyn ExecutionPlan>,
    /// The columns of the chain's top over the base.
    pub(crate) columns: Vec<Arc<dyn PhysicalExpr>>,
    /// Which rows pass.
    pub(crate) filter: Option<Arc<dyn PhysicalExpr>>,
}

impl Pipeline {
    /// Follows the chain below `plan` as far as its expressions have kernels.
    pub(crate) fn trace(plan: &Arc<dyn ExecutionPlan>) -> Result<Self> {
        if let Some(filter) = plan.downcast_ref::<FilterExec>()
            && filter.fetch().is_none()
        {
            let below = Self::trace(filter.input())?;
            let schema = below.base.schema();
            let predicate = substitute(filter.predicate(), &below.columns)?;
            // A projection below the filter that can fail would be evaluated for fewer rows.
            let projected_safely = below.columns.iter().all(|column| !can_fail(column, &schema));
            if projected_safely && lower(&predicate, &schema).is_ok() {
                let filter_below = below.filter.clone();
                let filtered: Arc<dyn PhysicalExpr> = match filter_below {
                    Some(first) => Arc::new(BinaryExpr::new(first, Operator::And, predicate)),
                    None => predicate,
                };
                let columns = match filter.projection() {
                    Some(kept) => kept.iter().map(|at| Arc::clone(&below.columns[*at])).collect(),
                    None => below.columns,
                };
                return Ok(Self { base: below.base, columns, filter: Some(filtered) });
            }
        }
        if let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
            let below = Self::trace(projection.input())?;
            let schema = below.base.schema();
            let columns = projection
                .expr()
                .iter()
                .map(|projected| substitute(&projected.expr, &below.columns))
                .collect::<Result<Vec<_>>>()?;
            let fits = |expr: &Arc<dyn PhysicalExpr>| expr.is::<Column>() || lower(expr, &schema).is_ok();
            if columns.iter().all(fits) {
                return Ok(Self { columns, ..below });
            }
        }
        if let Some(input) = passed_through(plan) {
            return Self::trace(input);
        }
        Ok(Self { base: Arc::clone(plan), columns: all_columns(&plan.schema()), filter: None })
    }

    /// Leaves the columns that neither the filter nor `exprs` (over the base) read out of the base; `exprs` and the
    /// filter then name the columns that are left. At least one column stays.
    pub(crate) fn narrow(self, exprs: &mut [Arc<dyn PhysicalExpr>]) -> Result<Self> {
        let mut used = BTreeSet::new();
        exprs.iter().chain(&self.filter).for_each(|expr| columns_of(expr, &mut used));
        let schema = self.base.schema();
        if used.is_empty() && !schema.fields().is_empty() {
            // One that can be on the device, where there is one: `count(*)` over a join reads none.
            let fixed = schema.fields().iter().position(|field| Physical::try_from(field.data_type()).is_ok());
            used.insert(fixed.unwrap_or(0));
        }
        if used.len() == schema.fields().len() {
            return Ok(self);
        }
        let kept: Vec<usize> = used.into_iter().collect();
        let mut moved: Vec<Arc<dyn PhysicalExpr>> = all_columns(&schema);
        for (to, from) in kept.iter().enumerate() {
            moved[*from] = Arc::new(Column::new(schema.field(*from).name(), to));
        }
        for expr in exprs.iter_mut() {
            *expr = substitute(expr, &moved)?;
        }
        let filter = self.filter.map(|filter| substitute(&filter, &moved)).transpose()?;
        let base = project(self.base, &kept)?;
        Ok(Self { columns: all_columns(&base.schema()), base, filter })
    }
}

/// One partition of everything that `plan` gives.
pub(crate) fn one_partition(plan: Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    match plan.output_partitioning().partition_count() {
        1 => plan,
        _ => Arc::new(CoalescePartitionsExec::new(plan)),
    }
}

/// The node below one that only moves rows between partitions. Whoever reads all partitions does not need it.
pub(crate) fn passed_through(plan: &Arc<dyn ExecutionPlan>) -> Option<&Arc<dyn ExecutionPlan>> {
    if let Some(repartition) = plan.downcast_ref::<RepartitionExec>() {
        return Some(repartition.input());
    }
    let coalesce = plan.downcast_ref::<CoalescePartitionsExec>()?;
    coalesce.fetch().is_none().then(|| coalesce.input())
}

/// Some columns of a plan.
pub(crate) fn project(plan: Arc<dyn ExecutionPlan>, kept: &[usize]) -> Result<Arc<dyn ExecutionPlan>> {
    let schema = plan.schema();
    let exprs = kept.iter().map(|at| {
        let name = schema.field(*at).name();
        ProjectionExpr { expr: Arc::new(Column::new(name, *at)), alias: name.clone() }
    });
    Ok(Arc::new(ProjectionExec::try_new(exprs.collect::<Vec<_>>(), plan)?))
}

pub(crate) fn all_columns(schema: &SchemaRef) -> Vec<Arc<dyn PhysicalExpr>> {
    let column = |at: usize| Arc::new(Column::new(schema.field(at).name(), at)) as Arc<dyn PhysicalExpr>;
    (0..schema.fields().len()).map(column).collect()
}

fn can_fail(expr: &Arc<dyn PhysicalExpr>, schema: &Schema) -> bool {
    match lower(expr, schema) {
        Ok(lowered) => lowered.can_fail(schema).unwrap_or(true),
        Err(_) => !expr.is::<Column>(),
    }
}
