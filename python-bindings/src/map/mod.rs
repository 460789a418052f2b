//! Python functions inside a query, in this process: over batches as an operator, over columns as an expression.
//!
//! The function that is called here is always an adapter of `rowmill._functions`: it takes a batch with the columns
//! that the user's function reads and answers with a batch of declared columns. Columns cross without a copy, and the
//! thread holds the GIL only while the function runs.

mod allocator;
mod call;
mod exec;
mod expression;
mod shape;

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result;
use datafusion::logical_expr::{Expr, LogicalPlan, TableType};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::projection::ProjectionExec;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::cdata;
use crate::errors::from_engine;
use crate::frame::PyFrame;
use crate::items::Items;
use crate::letters::Aside;
use allocator::keep_freed_memory;
use call::Call;
use exec::PythonExec;
pub(crate) use expression::call_function;
use shape::{Keep, Place, Shape};

/// A function over the rows of a plan, as a table: DataFusion plans below it and above it, never across it.
#[derive(Debug)]
struct MapTable {
    input: LogicalPlan,
    shape: Arc<Shape>,
}

#[async_trait]
impl TableProvider for MapTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.shape.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let input = state.create_physical_plan(&self.input).await?;
        let shape = &self.shape;
        let plan: Arc<dyn ExecutionPlan> = match &shape.items {
            None => Arc::new(PythonExec::new(Arc::clone(shape), input)),
            Some(items) => {
                let places = shape.output.iter().map(|place| match place {
                    Place::Input(at) => (*at, false),
                    Place::Answer(at) => (*at, true),
                });
                let places: Vec<_> = places.collect();
                let aside = state.config().get_extension::<Aside>();
                items.plan(input, &shape.reads, &shape.call.schema, &places, &shape.schema, aside).await?
            }
        };
        let Some(columns) = projection else { return Ok(plan) };
        let schema = plan.schema();
        let columns = columns.iter().map(|at| {
            let name = schema.field(*at).name();
            (Arc::new(Column::new(name, *at)) as Arc<dyn PhysicalExpr>, name.clone())
        });
        Ok(Arc::new(ProjectionExec::try_new(columns.collect::<Vec<_>>(), plan)?))
    }
}

/// A frame of what a function makes of another: `reads` are the columns that it is given, `schema` (an object with
/// `__arrow_c_schema__`) those that it answers with, which come beside the others if `keep`.
#[pyfunction]
#[pyo3(signature = (frame, name, function, reads, schema, keep, batch_rows, items = None, class_ = None))]
#[expect(clippy::too_many_arguments, reason = "they are keywords in Python, where this is called once")]
pub(crate) fn map_frame(
    py: Python<'_>,
    frame: &PyFrame,
    name: String,
    function: Py<PyAny>,
    reads: Vec<String>,
    schema: &Bound<'_, PyAny>,
    keep: bool,
    batch_rows: Option<usize>,
    items: Option<&Bound<'_, PyDict>>,
    class_: Option<String>,
) -> PyResult<PyFrame> {
    keep_freed_memory();
    if batch_rows == Some(0) {
        return Err(PyValueError::new_err("a batch has at least one row"));
    }
    let call = Call { name, function, schema: cdata::schema_from_python(schema)? };
    let input = frame.arrow_schema();
    for column in &reads {
        if input.index_of(column).is_err() {
            let known: Vec<&str> = input.fields().iter().map(|field| field.name().as_str()).collect();
            return Err(PyValueError::new_err(format!(
                "`{}` reads column `{column}`, which the frame does not have; it has {}",
                call.name,
                known.join(", ")
            )));
        }
    }
    let keep = if keep { Keep::All } else { Keep::Nothing };
    let shared = Arc::clone(&frame.shared);
    let items = items
        .map(|said| Items::from_python(said, &call.function, &reads, &call.schema, shared))
        .transpose()?
        .map(Arc::new);
    let shape = Shape::try_new(call, &input, &reads, keep, batch_rows).map_err(|error| from_engine(py, &error))?;
    let shape = Shape { items, class: class_, ..shape };
    let table = MapTable { input: frame.plan.clone(), shape: Arc::new(shape) };
    PyFrame::of_table(Arc::clone(&frame.shared), Arc::new(table)).map_err(|error| from_engine(py, &error))
}
