//! Lazy frames: a logical plan, what can be added to it, and how it runs.

use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchReader};
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::common::tree_node::{Transformed, TreeNode as _};
use datafusion::common::{Column, DataFusionError, Result};
use datafusion::datasource::{MemTable, ViewTable, provider_as_source};
use datafusion::execution::{SessionState, TaskContext};
use datafusion::logical_expr::utils::find_aggregate_exprs;
use datafusion::logical_expr::{Expr, JoinType, LogicalPlan, LogicalPlanBuilder, SortExpr};
use datafusion::physical_plan::{collect_partitioned, displayable};
use datafusion::prelude::DataFrame;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use rowmill_engine::error::is_out_of_memory;
use rowmill_engine::types::logical_name;

use crate::batches::{BatchIterator, Batches, StreamingReader};
use crate::cdata;
use crate::errors::from_engine;
use crate::expr::{PyExpr, PySort, plain_name};
use crate::runtime::wait;
use crate::session::{Shared, shared};

/// A lazy frame.
#[pyclass(frozen, from_py_object, module = "rowmill._native", name = "Frame")]
#[derive(Clone)]
pub(crate) struct PyFrame {
    pub(crate) shared: Arc<Shared>,
    pub(crate) plan: LogicalPlan,
}

/// Rows of a table that one partition should have at least, so that small frames stay in one piece.
const PARTITION_ROWS: usize = 1 << 16;

impl PyFrame {
    /// A frame over rows of a table.
    pub(crate) fn of_table(shared: Arc<Shared>, table: Arc<dyn TableProvider>) -> Result<PyFrame> {
        let plan = LogicalPlanBuilder::scan("frame", provider_as_source(table), None)?.build()?;
        Ok(PyFrame { shared, plan })
    }

    /// The frame as a table that queries can read; its plan becomes part of theirs.
    pub(crate) fn table(&self) -> Arc<dyn TableProvider> {
        Arc::new(ViewTable::new(self.plan.clone(), None))
    }

    fn frame(&self) -> DataFrame {
        DataFrame::new(self.shared.state.clone(), self.plan.clone())
    }

    fn with(&self, plan: LogicalPlan) -> PyFrame {
        PyFrame { shared: Arc::clone(&self.shared), plan }
    }

    fn then(&self, py: Python<'_>, build: impl FnOnce(DataFrame) -> Result<DataFrame>) -> PyResult<PyFrame> {
        match build(self.frame()) {
            Ok(frame) => Ok(self.with(frame.into_unoptimized_plan())),
            Err(error) => Err(from_engine(py, &error)),
        }
    }

    /// The columns.
    pub(crate) fn arrow_schema(&self) -> SchemaRef {
        Arc::clone(self.plan.schema().inner())
    }

    /// Aggregates with expressions around them: `sum(x) / count(y)`.
    fn aggregated(&self, keys: Vec<Expr>, values: Vec<Expr>) -> Result<LogicalPlan> {
        let values: Vec<Expr> = values.into_iter().map(named).collect();
        let aggregates = find_aggregate_exprs(&values);
        let names: Vec<String> = aggregates.iter().map(|of| of.schema_name().to_string()).collect();
        let keys: Vec<Expr> = keys.into_iter().map(named).collect();
        let key_columns: Vec<Expr> =
            keys.iter().map(|key| Expr::Column(Column::from_name(key.qualified_name().1))).collect();
        // Aliases keep the names apart from the qualified ones that planning would give.
        let aliased = aggregates.iter().zip(&names).map(|(of, name)| of.clone().alias(name));
        let plan = LogicalPlanBuilder::from(self.plan.clone()).aggregate(keys, aliased.collect::<Vec<_>>())?;
        let around = values.into_iter().map(|value| {
            let replaced = value.transform_down(|part| {
                Ok(match aggregates.iter().position(|of| *of == part) {
                    Some(at) => match names.get(at) {
                        Some(name) => Transformed::yes(Expr::Column(Column::from_name(name))),
                        None => Transformed::no(part),
                    },
                    None => Transformed::no(part),
                })
            })?;
            Ok(replaced.data)
        });
        let columns = key_columns.into_iter().map(Ok).chain(around).collect::<Result<Vec<_>>>()?;
        plan.project(columns)?.build()
    }
}

/// An expression with a name that a person would give it.
fn named(expr: Expr) -> Expr {
    match &expr {
        Expr::Column(_) | Expr::Alias(_) => expr,
        _ => {
            let name = plain_name(&expr);
            expr.alias(name)
        }
    }
}

/// Runs a plan to its end. Hash joins that do not fit into memory are done again with sort-merge joins.
pub(crate) async fn collect(shared: Arc<Shared>, plan: LogicalPlan) -> Result<Vec<RecordBatch>> {
    collect_in(shared, plan, |_| ()).await
}

/// The same in states of its own, which are `prepare`d for each attempt.
pub(crate) async fn collect_in(
    shared: Arc<Shared>,
    plan: LogicalPlan,
    mut prepare: impl FnMut(&mut SessionState) + Send,
) -> Result<Vec<RecordBatch>> {
    let mut spilling = false;
    loop {
        let mut state = shared.query_state(spilling);
        prepare(&mut state);
        let physical = state.create_physical_plan(&plan).await?;
        match collect_partitioned(physical, Arc::new(TaskContext::from(&state))).await {
            Ok(partitions) => return Ok(partitions.into_iter().flatten().filter(|of| of.num_rows() > 0).collect()),
            Err(error) if !spilling && is_out_of_memory(&error) => spilling = true,
            Err(error) => return Err(error),
        }
    }
}

/// Batches as a table of contiguous partitions, so that cores share the work and rows keep their order.
pub(crate) fn memory_table(schema: SchemaRef, batches: Vec<RecordBatch>, most: usize) -> Result<MemTable> {
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let parts = (rows / PARTITION_ROWS).clamp(1, most.max(1));
    let target = rows.div_ceil(parts).max(1);
    let mut partitions: Vec<Vec<RecordBatch>> = vec![Vec::new()];
    let mut room = target;
    for batch in batches {
        let mut at = 0;
        while at < batch.num_rows() {
            if room == 0 {
                partitions.push(Vec::new());
                room = target;
            }
            let length = room.min(batch.num_rows() - at);
            if let Some(last) = partitions.last_mut() {
                last.push(batch.slice(at, length));
            }
            at += length;
            room -= length;
        }
    }
    MemTable::try_new(schema, partitions)
}

fn names(py: Python<'_>, schema: &Schema) -> PyResult<Vec<Py<PyTuple>>> {
    let one = |name: &str, kind: String| PyTuple::new(py, [name, kind.as_str()]).map(Bound::unbind);
    schema.fields().iter().map(|field| one(field.name(), logical_name(field.data_type()))).collect()
}

fn exprs(list: Vec<PyExpr>) -> Vec<Expr> {
    list.into_iter().map(|one| one.expr).collect()
}

/// A frame over the batches of an object with `__arrow_c_stream__` or `__arrow_c_array__`; they are shared, not copied.
#[pyfunction]
pub(crate) fn from_arrow(py: Python<'_>, object: &Bound<'_, PyAny>) -> PyResult<Option<PyFrame>> {
    let shared = shared(py)?;
    let Some(reader) = cdata::reader_from_python(object)? else { return Ok(None) };
    let schema = reader.schema();
    // The producer may be Python itself, or wait for it.
    let batches = py.detach(|| reader.collect::<std::result::Result<Vec<_>, _>>());
    let batches = batches.map_err(|error| PyValueError::new_err(error.to_string()))?;
    let most = shared.session.engine().options().partitions;
    let table = memory_table(schema, batches, most).map_err(|error| from_engine(py, &error))?;
    PyFrame::of_table(shared, Arc::new(table)).map(Some).map_err(|error| from_engine(py, &error))
}

#[pymethods]
impl PyFrame {
    /// Pairs of name and logical type.
    fn columns(&self, py: Python<'_>) -> PyResult<Vec<Py<PyTuple>>> {
        names(py, &self.arrow_schema())
    }

    fn __arrow_c_schema__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        cdata::schema_to_capsule(py, &self.arrow_schema())
    }

    #[pyo3(signature = (requested_schema = None))]
    fn __arrow_c_stream__(&self, py: Python<'_>, requested_schema: Option<Py<PyAny>>) -> PyResult<Py<PyAny>> {
        // The protocol lets a producer ignore what it cannot give.
        drop(requested_schema);
        let reader: Box<dyn RecordBatchReader + Send> = Box::new(StreamingReader::start(self)?);
        cdata::stream_to_capsule(py, reader)
    }

    /// Batches as they come.
    fn stream(&self) -> PyResult<BatchIterator> {
        Ok(BatchIterator::new(StreamingReader::start(self)?))
    }

    /// All rows, in memory.
    fn collect(&self, py: Python<'_>) -> PyResult<Batches> {
        let batches = wait(py, collect(Arc::clone(&self.shared), self.plan.clone()))?;
        let batches = batches.map_err(|error| from_engine(py, &error))?;
        Ok(Batches { schema: self.arrow_schema(), batches })
    }

    /// Number of rows.
    fn count(&self, py: Python<'_>) -> PyResult<u64> {
        let frame = self.then(py, |frame| {
            let count = datafusion::functions_aggregate::expr_fn::count(datafusion::prelude::lit(1_i64));
            frame.aggregate(vec![], vec![count.alias("rows")])
        })?;
        let batches = wait(py, collect(frame.shared, frame.plan))?.map_err(|error| from_engine(py, &error))?;
        let column = batches.first().map(|batch| Arc::clone(batch.column(0)));
        let counts = column.as_ref().and_then(|column| {
            use arrow::array::AsArray as _;
            column.as_primitive_opt::<arrow::datatypes::Int64Type>()
        });
        Ok(counts.map_or(0, |counts| counts.values().first().copied().unwrap_or(0).unsigned_abs()))
    }

    /// The plan as text: `logical`, `optimized` or `physical`.
    fn explain(&self, py: Python<'_>, kind: &str) -> PyResult<String> {
        if kind == "logical" {
            return Ok(self.plan.display_indent().to_string());
        }
        let (shared, plan, optimized) = (Arc::clone(&self.shared), self.plan.clone(), kind == "optimized");
        let text = wait(py, async move {
            let state = shared.query_state(false);
            if optimized {
                return Ok(state.optimize(&plan)?.display_indent().to_string());
            }
            let plan = state.create_physical_plan(&plan).await?;
            Ok(displayable(plan.as_ref()).indent(false).to_string())
        })?;
        text.map_err(|error: DataFusionError| from_engine(py, &error))
    }

    fn select(&self, py: Python<'_>, columns: Vec<PyExpr>) -> PyResult<PyFrame> {
        let columns: Vec<Expr> = exprs(columns).into_iter().map(named).collect();
        if !find_aggregate_exprs(&columns).is_empty() {
            let plan = self.aggregated(vec![], columns).map_err(|error| from_engine(py, &error))?;
            return Ok(self.with(plan));
        }
        self.then(py, |frame| frame.select(columns))
    }

    fn filter(&self, py: Python<'_>, predicate: PyExpr) -> PyResult<PyFrame> {
        self.then(py, |frame| frame.filter(predicate.expr))
    }

    /// Adds columns, or replaces those of the same name; all of them see the columns as they were before.
    fn with_columns(&self, py: Python<'_>, columns: Vec<(String, PyExpr)>) -> PyResult<PyFrame> {
        let mut kept: Vec<Expr> = Vec::new();
        for column in self.plan.schema().columns() {
            match columns.iter().find(|(name, _)| *name == column.name) {
                Some((name, expr)) => kept.push(expr.expr.clone().alias(name)),
                None => kept.push(Expr::Column(column)),
            }
        }
        for (name, expr) in &columns {
            if self.plan.schema().index_of_column_by_name(None, name).is_none() {
                kept.push(expr.expr.clone().alias(name));
            }
        }
        self.then(py, |frame| frame.select(kept))
    }

    fn rename(&self, py: Python<'_>, pairs: Vec<(String, String)>) -> PyResult<PyFrame> {
        let columns = self.plan.schema().columns().into_iter().map(|column| {
            let new = pairs.iter().find(|(old, _)| *old == column.name).map(|(_, new)| new.clone());
            let old = Expr::Column(column);
            match new {
                Some(new) => old.alias(new),
                None => old,
            }
        });
        let columns: Vec<Expr> = columns.collect();
        self.then(py, |frame| frame.select(columns))
    }

    fn aggregate(&self, py: Python<'_>, keys: Vec<PyExpr>, values: Vec<PyExpr>) -> PyResult<PyFrame> {
        let plan = self.aggregated(exprs(keys), exprs(values)).map_err(|error| from_engine(py, &error))?;
        Ok(self.with(plan))
    }

    fn sort(&self, py: Python<'_>, by: Vec<PySort>) -> PyResult<PyFrame> {
        let by: Vec<SortExpr> = by.into_iter().map(|one| one.sort).collect();
        self.then(py, |frame| frame.sort(by))
    }

    #[pyo3(signature = (offset, count))]
    fn limit(&self, py: Python<'_>, offset: usize, count: Option<usize>) -> PyResult<PyFrame> {
        self.then(py, |frame| frame.limit(offset, count))
    }

    /// `position`, `name`; with `distinct`, rows that are there twice come once.
    fn union(&self, py: Python<'_>, other: &PyFrame, by_name: bool, distinct: bool) -> PyResult<PyFrame> {
        let other = other.frame();
        self.then(py, |frame| match (by_name, distinct) {
            (false, false) => frame.union(other),
            (false, true) => frame.union_distinct(other),
            (true, false) => frame.union_by_name(other),
            (true, true) => frame.union_by_name_distinct(other),
        })
    }

    fn intersect(&self, py: Python<'_>, other: &PyFrame) -> PyResult<PyFrame> {
        let other = other.frame();
        self.then(py, |frame| frame.intersect_distinct(other))
    }

    fn except_(&self, py: Python<'_>, other: &PyFrame) -> PyResult<PyFrame> {
        let other = other.frame();
        self.then(py, |frame| frame.except_distinct(other))
    }

    fn distinct(&self, py: Python<'_>) -> PyResult<PyFrame> {
        self.then(py, DataFrame::distinct)
    }

    /// The first row, in the order of `by`, of those that agree in `on`.
    fn distinct_on(&self, py: Python<'_>, on: Vec<PyExpr>, by: Vec<PySort>) -> PyResult<PyFrame> {
        let all: Vec<Expr> = self.plan.schema().columns().into_iter().map(Expr::Column).collect();
        let on = exprs(on);
        let mut order: Vec<SortExpr> = on.iter().map(|key| key.clone().sort(true, false)).collect();
        order.extend(by.into_iter().map(|one| one.sort));
        self.then(py, |frame| frame.distinct_on(on, all, Some(order)))
    }

    /// One row for each element of the lists in `columns`; a null list gives one row with null.
    fn explode(&self, py: Python<'_>, columns: Vec<String>) -> PyResult<PyFrame> {
        let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
        self.then(py, |frame| frame.unnest_columns(&columns))
    }

    /// Joins; columns of `on` come once, other columns of the right side whose name is taken get `suffix`.
    #[pyo3(signature = (other, left_on, right_on, how, suffix))]
    fn join(
        &self,
        py: Python<'_>,
        other: &PyFrame,
        left_on: Vec<PyExpr>,
        right_on: Vec<PyExpr>,
        how: &str,
        suffix: &str,
    ) -> PyResult<PyFrame> {
        let plan = crate::join::join(&self.plan, &other.plan, exprs(left_on), exprs(right_on), how, suffix);
        plan.map(|plan| self.with(plan)).map_err(|error| from_engine(py, &error))
    }

    /// Reads all rows into memory: a frame over what came.
    fn cache(&self, py: Python<'_>) -> PyResult<PyFrame> {
        let held = self.collect(py)?;
        let most = self.shared.session.engine().options().partitions;
        let table = memory_table(held.schema, held.batches, most).map_err(|error| from_engine(py, &error))?;
        PyFrame::of_table(Arc::clone(&self.shared), Arc::new(table)).map_err(|error| from_engine(py, &error))
    }
}

/// How a join is called in Python.
pub(crate) fn join_type(how: &str) -> Result<JoinType> {
    Ok(match how {
        "inner" => JoinType::Inner,
        "left" => JoinType::Left,
        "right" => JoinType::Right,
        "full" | "outer" => JoinType::Full,
        "semi" | "left_semi" => JoinType::LeftSemi,
        "anti" | "left_anti" => JoinType::LeftAnti,
        other => {
            let message = format!("there is no join `{other}`; it is inner, left, right, full, semi, anti or cross");
            return Err(DataFusionError::Plan(message));
        }
    })
}
