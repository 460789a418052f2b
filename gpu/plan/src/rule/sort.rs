//! Sorts: the keys and row numbers travel.

use std::collections::BTreeSet;
use std::sync::Arc;

use datafusion::common::Result;
use datafusion::physical_plan::ExecutionPlanProperties as _;
use datafusion::physical_plan::sorts::sort::SortExec;
use rowmill_gpu::ops::sort::SortKey;

use super::{GpuRule, Taken, below_moves, lower_over};
use crate::decide::Operator;
use crate::exec::ReplayExec;
use crate::exec::sort::{GpuSortExec, Query};
use crate::lower::{Reason, columns_of};
use crate::pipeline::one_partition;

impl GpuRule {
    pub(super) fn sort(&self, sort: &SortExec, merged: bool) -> Result<Result<Taken, Reason>> {
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
        let query = match Query::try_new(&schema, columns, keys, sort.expr().clone(), twin) {
            Ok(query) => query,
            Err(reason) => return Ok(Err(reason)),
        };
        let why = match self.decide(Operator::Sort, sort.input(), false) {
            Ok(why) => why,
            Err(reason) => return Ok(Err(reason)),
        };
        let input = one_partition(below_moves(sort.input()));
        Ok(Ok(Taken { plan: Arc::new(GpuSortExec::new(Arc::clone(&self.gpu), Arc::new(query), input)), why }))
    }
}
