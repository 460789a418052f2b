//! Keeps bounds of floating-point columns out of plans: smallest and largest values of files say nothing about NaN.
//!
//! Writers leave NaN out of the bounds of a column, as Parquet's format asks. DataFusion takes a column whose bounds
//! are one value for a constant, answers `max` by them, and passes over files, row groups and pages whose bounds lie
//! outside of a filter; but NaN is the largest value here, and may lie anywhere. The rule stands at both ends of the
//! optimizer: at its beginning it takes the bounds of such columns away, at its end it takes what filters say about such
//! columns out of what scans pass over by. The filters themselves stay where they are, above the scans.

use std::sync::Arc;

use arrow::datatypes::{DataType, Schema};
use datafusion::common::config::ConfigOptions;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::{Transformed, TreeNode as _, TreeNodeRecursion};
use datafusion::common::{Result, Statistics};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{
    FileGroup, FileScanConfig, FileScanConfigBuilder, FileSource as _, ParquetSource,
};
use datafusion::datasource::source::DataSourceExec;
use datafusion::physical_expr::expressions::{Column, lit};
use datafusion::physical_expr::{PhysicalExpr, conjunction, split_conjunction};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;

/// The rule; see the module.
#[derive(Debug, Clone, Copy)]
pub(crate) enum FloatBounds {
    /// Takes the bounds away, before anything looks at them.
    Forget,
    /// Takes filters on such columns away from scans, after they were handed down.
    Unprune,
}

impl PhysicalOptimizerRule for FloatBounds {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let changed = plan.transform_up(|node| {
            let Some(scan) = node.downcast_ref::<DataSourceExec>() else { return Ok(Transformed::no(node)) };
            let Some(files) = scan.data_source().downcast_ref::<FileScanConfig>() else {
                return Ok(Transformed::no(node));
            };
            let schema = Arc::clone(files.file_source().table_schema().table_schema());
            if !schema.fields().iter().any(|field| holds_floats(field.data_type())) {
                return Ok(Transformed::no(node));
            }
            let changed = match self {
                FloatBounds::Forget => forgotten(files, &schema),
                FloatBounds::Unprune => unpruned(files, &schema),
            };
            Ok(match changed {
                Some(files) => {
                    let scan: Arc<dyn ExecutionPlan> = Arc::new(scan.clone().with_data_source(Arc::new(files)));
                    Transformed::yes(scan)
                }
                None => Transformed::no(node),
            })
        })?;
        Ok(changed.data)
    }

    fn name(&self) -> &str {
        match self {
            FloatBounds::Forget => "forget_float_bounds",
            FloatBounds::Unprune => "unprune_floats",
        }
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// The scan without bounds of columns that hold floats; `None` where there are none.
fn forgotten(files: &FileScanConfig, schema: &Schema) -> Option<FileScanConfig> {
    let bounded = |statistics: &Statistics| has_bounds(statistics, schema);
    let known = files.file_groups.iter().flat_map(FileGroup::iter).filter_map(|file| file.statistics.as_deref());
    if !bounded(&files.statistics()) && !known.into_iter().any(bounded) {
        return None;
    }
    let groups = files.file_groups.iter().map(|group| {
        let own = group.file_statistics(None).cloned();
        let files: Vec<PartitionedFile> = group
            .iter()
            .cloned()
            .map(|mut file| {
                file.statistics = file.statistics.map(|statistics| Arc::new(without_bounds(&statistics, schema)));
                file
            })
            .collect();
        let group = FileGroup::new(files);
        match own {
            Some(own) => group.with_statistics(Arc::new(without_bounds(&own, schema))),
            None => group,
        }
    });
    let statistics = without_bounds(&files.statistics(), schema);
    let builder = FileScanConfigBuilder::from(files.clone());
    Some(builder.with_file_groups(groups.collect()).with_statistics(statistics).build())
}

fn has_bounds(statistics: &Statistics, schema: &Schema) -> bool {
    schema.fields().iter().zip(&statistics.column_statistics).any(|(field, column)| {
        holds_floats(field.data_type())
            && (column.min_value != Precision::Absent
                || column.max_value != Precision::Absent
                || column.sum_value != Precision::Absent)
    })
}

fn without_bounds(statistics: &Statistics, schema: &Schema) -> Statistics {
    let mut statistics = statistics.clone();
    for (field, column) in schema.fields().iter().zip(&mut statistics.column_statistics) {
        if holds_floats(field.data_type()) {
            column.min_value = Precision::Absent;
            column.max_value = Precision::Absent;
            column.sum_value = Precision::Absent;
        }
    }
    statistics
}

/// The scan with only those parts of its filter that touch no column of floats; `None` where it has no others.
fn unpruned(files: &FileScanConfig, schema: &Schema) -> Option<FileScanConfig> {
    let source = files.file_source().downcast_ref::<ParquetSource>()?;
    // A scan that filters rows itself is asked for nowhere: there the filter could not be taken away.
    if source.table_parquet_options().global.pushdown_filters {
        return None;
    }
    let predicate = source.filter()?;
    let parts = split_conjunction(&predicate);
    let kept: Vec<Arc<dyn PhysicalExpr>> =
        parts.iter().filter(|part| !touches_floats(part, schema)).map(|part| Arc::clone(part)).collect();
    if kept.len() == parts.len() {
        return None;
    }
    let source = match kept.is_empty() {
        true => source.with_predicate(lit(true)),
        false => source.with_predicate(conjunction(kept)),
    };
    Some(FileScanConfigBuilder::from(files.clone()).with_source(Arc::new(source)).build())
}

fn touches_floats(part: &Arc<dyn PhysicalExpr>, schema: &Schema) -> bool {
    let mut touches = false;
    let walked = part.apply(|inner| {
        if let Some(column) = inner.downcast_ref::<Column>() {
            let field = schema.field_with_name(column.name());
            touches |= field.is_ok_and(|field| holds_floats(field.data_type()));
        }
        Ok(if touches { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    walked.is_err() || touches
}

/// Whether a value of a type is a float, or has one in it.
fn holds_floats(kind: &DataType) -> bool {
    match kind {
        DataType::Float16 | DataType::Float32 | DataType::Float64 => true,
        DataType::Dictionary(_, values) => holds_floats(values),
        DataType::RunEndEncoded(_, values) => holds_floats(values.data_type()),
        DataType::Struct(fields) => fields.iter().any(|field| holds_floats(field.data_type())),
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item)
        | DataType::FixedSizeList(item, _)
        | DataType::Map(item, _) => holds_floats(item.data_type()),
        _ => false,
    }
}
