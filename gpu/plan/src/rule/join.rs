//! Hash joins: the keys and row numbers of both sides travel.

use std::collections::BTreeSet;
use std::sync::Arc;

use datafusion::common::{JoinType, NullEquality, Result};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::joins::{HashJoinExec, PartitionMode};
use datafusion::physical_plan::projection::ProjectionExec;
use rowmill_gpu::ops::join::JoinKind;

use super::{GpuRule, Taken, below_moves, lower_over};
use crate::decide::Operator;
use crate::exec::ReplayExec;
use crate::exec::join::{GpuJoinExec, Parts, Query, Side};
use crate::lower::{Reason, columns_of};
use crate::pipeline::{one_partition, passed_through};

impl GpuRule {
    /// Whether `plan` gives the rows of a join that is taken, so that they are on the device.
    pub(super) fn is_join_on_device(&self, plan: &Arc<dyn ExecutionPlan>) -> Result<bool> {
        if let Some(join) = plan.downcast_ref::<HashJoinExec>() {
            return Ok(self.join(join)?.is_ok());
        }
        if let Some(projection) = plan.downcast_ref::<ProjectionExec>()
            && projection.expr().iter().all(|projected| projected.expr.is::<Column>())
        {
            return self.is_join_on_device(projection.input());
        }
        passed_through(plan).map_or(Ok(false), |input| self.is_join_on_device(input))
    }

    pub(super) fn join(&self, join: &HashJoinExec) -> Result<Result<Taken, Reason>> {
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
        let query = Query::try_new(Parts { left, right, on, left_probes, kind, projection, twin, text });
        let query = match query {
            Ok(query) => query,
            Err(reason) => return Ok(Err(reason)),
        };
        let why = match self.decide(Operator::Join, if left_probes { join.left() } else { join.right() }, false) {
            Ok(why) => why,
            Err(reason) => return Ok(Err(reason)),
        };
        let side = |plan| one_partition(below_moves(plan));
        let (left, right) = (side(join.left()), side(join.right()));
        let plan = GpuJoinExec::new(Arc::clone(&self.gpu), Arc::new(query), left, right, join.schema());
        Ok(Ok(Taken { plan: Arc::new(plan), why }))
    }
}
