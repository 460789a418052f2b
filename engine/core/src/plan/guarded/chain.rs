//! A row-wise query as a chain of filters and projections over batches of its input, plain and lenient.
//!
//! Both kinds run over batches that may carry a hidden last column: the place of each row in the batch that came in.
//! Filters take it with the rows, projections hand it on, so that every row that comes out is known by the row it was
//! made of.

use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::{filter_record_batch, take_record_batch};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, UInt32Type};
use datafusion::common::{DFSchema, Result, internal_err};
use datafusion::execution::SessionState;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{Expr, LogicalPlan, Operator};
use datafusion::physical_expr::expressions::{
    BinaryExpr, CaseExpr, CastExpr, Column, InListExpr, IsNotNullExpr, IsNullExpr, LikeExpr, Literal, NegativeExpr,
    NotExpr, TryCastExpr,
};
use datafusion::physical_expr::{PhysicalExprRef, ScalarFunctionExpr, create_physical_expr};

use super::probe::{Finds, Probe};

/// The name of the hidden column.
pub(super) const ROW: &str = "__row";

/// One operation over a whole batch.
#[derive(Debug, Clone)]
enum Operation {
    /// Rows for which it is true go on.
    Filter(PhysicalExprRef),
    /// New columns, with their fields.
    Project(Vec<PhysicalExprRef>, Vec<FieldRef>),
}

/// A chain.
#[derive(Debug, Clone)]
pub struct Chain {
    operations: Vec<Operation>,
    /// Columns that come in, without the hidden one.
    input: SchemaRef,
}

impl Chain {
    /// The chain of an optimized row-wise query over one scan, whose columns come in.
    ///
    /// # Errors
    /// When the query holds anything but projections and filters; that is refused before.
    pub fn try_new(plan: &LogicalPlan, state: &SessionState) -> Result<(Self, Vec<usize>)> {
        let mut steps = Vec::new();
        let mut at = plan;
        let scan = loop {
            match at {
                LogicalPlan::Projection(projection) => {
                    steps.push(at);
                    at = &projection.input;
                }
                LogicalPlan::Filter(filter) => {
                    steps.push(at);
                    at = &filter.input;
                }
                LogicalPlan::SubqueryAlias(alias) => at = &alias.input,
                LogicalPlan::TableScan(scan) => break scan,
                other => return internal_err!("a row-wise query holds {}", other.display()),
            }
        };
        let all = scan.source.schema();
        let mut columns = scan.projection.clone().unwrap_or_else(|| (0..all.fields().len()).collect());
        if columns.is_empty() && !all.fields().is_empty() {
            // Rows of no columns would have to be counted some other way.
            columns.push(0);
        }
        let input: SchemaRef = Arc::new(all.project(&columns)?);
        let mut operations = Vec::new();
        for step in steps.into_iter().rev() {
            let physical = |expression: &Expr, schema: &DFSchema| {
                create_physical_expr(expression, schema, state.execution_props(), &PhysicalPlanningContext::default())
            };
            operations.push(match step {
                LogicalPlan::Filter(filter) => Operation::Filter(physical(&filter.predicate, filter.input.schema())?),
                LogicalPlan::Projection(projection) => {
                    let below = projection.input.schema();
                    let mut made = Vec::new();
                    let mut fields = Vec::new();
                    for (expression, field) in projection.expr.iter().zip(projection.schema.fields()) {
                        let expression = physical(expression, below)?;
                        let kind = expression.data_type(below.as_arrow())?;
                        fields.push(Arc::new(field.as_ref().clone().with_data_type(kind).with_nullable(true)));
                        made.push(expression);
                    }
                    Operation::Project(made, fields)
                }
                other => return internal_err!("a row-wise query holds {}", other.display()),
            });
        }
        Ok((Chain { operations, input }, columns))
    }

    /// The columns that come in.
    pub fn input(&self) -> &SchemaRef {
        &self.input
    }

    /// Whether rows can be dropped on the way.
    pub fn filters(&self) -> bool {
        self.operations.iter().any(|operation| matches!(operation, Operation::Filter(_)))
    }

    /// The chain in words, for `explain`.
    pub fn describe(&self) -> String {
        let words = |operation: &Operation| match operation {
            Operation::Filter(predicate) => format!("where {predicate}"),
            Operation::Project(made, fields) => {
                let named = |(made, field): (&PhysicalExprRef, &FieldRef)| match made.downcast_ref::<Column>() {
                    Some(column) if column.name() == field.name() => field.name().clone(),
                    _ => format!("{made} as {}", field.name()),
                };
                format!("[{}]", made.iter().zip(fields).map(named).collect::<Vec<_>>().join(", "))
            }
        };
        self.operations.iter().map(words).collect::<Vec<_>>().join(" → ")
    }

    /// Runs the chain over a batch; where `tracked`, its last column is the hidden one.
    pub(super) fn run(&self, batch: &RecordBatch, tracked: bool) -> Result<RecordBatch> {
        let mut batch = batch.clone();
        for operation in &self.operations {
            batch = match operation {
                Operation::Filter(predicate) => {
                    let kept = predicate.evaluate(&batch)?.into_array(batch.num_rows())?;
                    match kept.as_boolean_opt() {
                        Some(kept) => filter_record_batch(&batch, kept)?,
                        None => return internal_err!("a filter gave {}", kept.data_type()),
                    }
                }
                Operation::Project(made, fields) => {
                    let rows = batch.num_rows();
                    let mut columns = Vec::with_capacity(made.len() + 1);
                    for expression in made {
                        let column = expression.evaluate(&batch)?.into_array(rows)?;
                        // Some functions (`to_timestamp` with a format) leave out the zone that they announce.
                        let kind = fields.get(columns.len()).map_or(column.data_type(), |field| field.data_type());
                        let fits = column.data_type() == kind;
                        columns.push(if fits { column } else { arrow::compute::cast(&column, kind)? });
                    }
                    let mut fields = fields.clone();
                    if let Some(row) = batch.columns().last().filter(|_| tracked) {
                        columns.push(Arc::clone(row));
                        fields.push(row_field());
                    }
                    let options = RecordBatchOptions::new().with_row_count(Some(rows));
                    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)?
                }
            };
        }
        Ok(batch)
    }

    /// The chain with a probe around everything that can fail; `finds` gets the rows.
    pub(super) fn lenient(&self, finds: &Finds) -> Result<Chain> {
        let mut operations = Vec::new();
        let mut width = self.input.fields().len();
        for operation in &self.operations {
            operations.push(match operation {
                Operation::Filter(predicate) => {
                    Operation::Filter(probed(predicate, width, true, &Arc::from("WHERE"), finds)?)
                }
                Operation::Project(made, fields) => {
                    let purpose = |field: &FieldRef| match field.name().starts_with("__common_expr") {
                        true => Arc::from("an expression"),
                        false => Arc::from(format!("column `{}`", field.name())),
                    };
                    let probes = made
                        .iter()
                        .zip(fields)
                        .map(|(expression, field)| probed(expression, width, true, &purpose(field), finds));
                    let probes = probes.collect::<Result<Vec<_>>>()?;
                    width = made.len();
                    Operation::Project(probes, fields.clone())
                }
            });
        }
        Ok(Chain { operations, input: Arc::clone(&self.input) })
    }
}

fn row_field() -> FieldRef {
    Arc::new(Field::new(ROW, DataType::UInt32, false))
}

/// The rows of a batch with the hidden column; all of them, or those in `rows`.
pub(super) fn tracked(batch: &RecordBatch, rows: Option<&[u32]>) -> Result<RecordBatch> {
    let places = match rows {
        Some(rows) => UInt32Array::from(rows.to_vec()),
        None => UInt32Array::from_iter_values(0..u32::try_from(batch.num_rows()).unwrap_or(u32::MAX)),
    };
    let batch = match rows {
        Some(_) => take_record_batch(batch, &places)?,
        None => batch.clone(),
    };
    let mut fields: Vec<FieldRef> = batch.schema().fields().iter().cloned().collect();
    fields.push(row_field());
    let mut columns = batch.columns().to_vec();
    columns.push(Arc::new(places));
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

/// Takes the hidden column off.
pub(super) fn untracked(batch: &RecordBatch) -> Result<(RecordBatch, Vec<u32>)> {
    let rows = match batch.columns().last().and_then(|rows| rows.as_primitive_opt::<UInt32Type>()) {
        Some(rows) => rows.values().to_vec(),
        None => return internal_err!("the places of rows were lost"),
    };
    let kept: Vec<usize> = (0..batch.num_columns() - 1).collect();
    Ok((batch.project(&kept)?, rows))
}

/// An expression with probes. Only what is known to evaluate its children over the batch it is given, or over some of
/// its rows, is looked into.
fn probed(
    expression: &PhysicalExprRef,
    row: usize,
    exact: bool,
    purpose: &Arc<str>,
    finds: &Finds,
) -> Result<PhysicalExprRef> {
    let node = expression.as_ref();
    if node.is::<Column>() || node.is::<Literal>() {
        return Ok(Arc::clone(expression));
    }
    let function = node.downcast_ref::<ScalarFunctionExpr>();
    let lazy = match (node.downcast_ref::<BinaryExpr>(), function) {
        (Some(binary), _) => matches!(binary.op(), Operator::And | Operator::Or),
        (_, Some(function)) => function.fun().short_circuits(),
        _ => false,
    };
    let fallible = node.is::<CastExpr>()
        || node.is::<NegativeExpr>()
        || (function.is_some() && !lazy)
        || (node.is::<BinaryExpr>() && !lazy);
    let known = fallible
        || lazy
        || node.is::<CaseExpr>()
        || node.is::<TryCastExpr>()
        || node.is::<NotExpr>()
        || node.is::<IsNullExpr>()
        || node.is::<IsNotNullExpr>()
        || node.is::<InListExpr>()
        || node.is::<LikeExpr>();
    if !known {
        return Ok(Arc::clone(expression));
    }
    let children = expression
        .children()
        .into_iter()
        .map(|child| probed(child, row, exact && !lazy, purpose, finds))
        .collect::<Result<Vec<_>>>()?;
    let lenient = match children.is_empty() {
        true => Arc::clone(expression),
        false => Arc::clone(expression).with_new_children(children)?,
    };
    if fallible && let Some(probe) = Probe::over(&lenient, row, exact, purpose, finds)? {
        return Ok(probe);
    }
    Ok(lenient)
}
