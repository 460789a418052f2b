//! SQL over frames and files.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::common::{DataFusionError, Result, TableReference};
use datafusion::execution::context::{SQLOptions, SessionContext};
use datafusion::logical_expr::Expr;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use rowmill_engine::sql::plan_statement;

use crate::errors::from_engine;
use crate::expr::PyExpr;
use crate::frame::PyFrame;
use crate::runtime::wait;
use crate::session::shared;

/// Names of tables that a query reads, as written; paths of files among them.
#[pyfunction]
pub(crate) fn sql_tables(py: Python<'_>, text: &str) -> PyResult<Vec<String>> {
    let shared = shared(py)?;
    let names = || -> Result<Vec<String>> {
        let dialect = shared.state.config().options().sql_parser.dialect;
        let statement = shared.state.sql_to_statement(text, &dialect)?;
        let tables = shared.state.resolve_table_references(&statement)?;
        Ok(tables.into_iter().filter(|table| table.schema().is_none()).map(|of| of.table().to_owned()).collect())
    };
    names().map_err(|error| from_engine(py, &error))
}

/// One query over these frames, and over files by their quoted paths.
#[pyfunction]
pub(crate) fn sql(
    py: Python<'_>,
    text: String,
    frames: HashMap<String, PyFrame>,
    parameters: HashMap<String, PyExpr>,
) -> PyResult<PyFrame> {
    let shared = shared(py)?;
    let mut values = Vec::new();
    for (name, value) in parameters {
        match value.expr {
            Expr::Literal(scalar, _) => values.push((name, scalar)),
            _ => return Err(PyTypeError::new_err(format!("parameter `{name}` is no plain value"))),
        }
    }
    let state = shared.own_state();
    let planned = wait(py, async move {
        let context = SessionContext::new_with_state(state).enable_url_table();
        for (name, frame) in frames {
            context.register_table(TableReference::bare(name), frame.table())?;
        }
        let options = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        let state = context.state();
        let statement = state.sql_to_statement(&text, &state.config().options().sql_parser.dialect)?;
        let plan = plan_statement(&state, statement).await?;
        options.verify_plan(&plan)?;
        let frame = context.execute_logical_plan(plan).await?;
        let frame = if values.is_empty() { frame } else { frame.with_param_values(values)? };
        Ok::<_, DataFusionError>(frame.into_unoptimized_plan())
    })?;
    let plan = planned.map_err(|error| from_engine(py, &error))?;
    Ok(PyFrame { shared: Arc::clone(&shared), plan })
}
