//! `rowmill._native`: what the Python package `rowmill` is built on.
//!
//! This crate alone knows PyO3. It holds frames (logical plans of the engine), expressions, workflows, and the bridge
//! that lets Python functions work inside a query; how all that looks to a person is written in Python, in
//! `python/rowmill`.
//!
//! ```text
//!  rowmill (Python: DataFrame, Expr, Workflow, step) ──▶ rowmill._native ──▶ rowmill (façade) ──▶ engine
//! ```

mod batches;
mod cdata;
mod cli;
mod errors;
mod expr;
mod files;
mod frame;
mod here;
mod items;
mod join;
mod letters;
mod map;
mod runs;
mod runtime;
mod session;
mod sql;
mod steps;
mod workers;
mod workflow;

use pyo3::prelude::*;

// As in the binary: the system's allocator returns memory late and contends under many threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<frame::PyFrame>()?;
    module.add_class::<expr::PyExpr>()?;
    module.add_class::<expr::PySort>()?;
    module.add_class::<batches::Batches>()?;
    module.add_class::<batches::Batch>()?;
    module.add_class::<batches::BatchIterator>()?;
    module.add_class::<workflow::PyWorkflow>()?;
    module.add_class::<workflow::PyBuilder>()?;
    module.add_function(wrap_pyfunction!(session::configure, module)?)?;
    module.add_function(wrap_pyfunction!(frame::from_arrow, module)?)?;
    module.add_function(wrap_pyfunction!(letters::collect_with_failures, module)?)?;
    module.add_function(wrap_pyfunction!(files::read_files, module)?)?;
    module.add_function(wrap_pyfunction!(files::write_files, module)?)?;
    module.add_function(wrap_pyfunction!(expr::column, module)?)?;
    module.add_function(wrap_pyfunction!(expr::literal, module)?)?;
    module.add_function(wrap_pyfunction!(expr::case, module)?)?;
    module.add_function(wrap_pyfunction!(expr::call, module)?)?;
    module.add_function(wrap_pyfunction!(expr::function_names, module)?)?;
    module.add_function(wrap_pyfunction!(sql::sql, module)?)?;
    module.add_function(wrap_pyfunction!(sql::sql_tables, module)?)?;
    module.add_function(wrap_pyfunction!(map::map_frame, module)?)?;
    module.add_function(wrap_pyfunction!(map::call_function, module)?)?;
    module.add_function(wrap_pyfunction!(workflow::load_workflow, module)?)?;
    module.add_function(wrap_pyfunction!(workflow::parse_workflow, module)?)?;
    module.add_function(wrap_pyfunction!(runs::resume_run, module)?)?;
    module.add_function(wrap_pyfunction!(runs::retry_run, module)?)?;
    module.add_function(wrap_pyfunction!(runs::list_runs, module)?)?;
    module.add_function(wrap_pyfunction!(runs::find_run, module)?)?;
    module.add_function(wrap_pyfunction!(runs::run_items, module)?)?;
    module.add_function(wrap_pyfunction!(runs::outcome_names, module)?)?;
    module.add_function(wrap_pyfunction!(runs::cancel_run, module)?)?;
    module.add_function(wrap_pyfunction!(steps::bring, module)?)?;
    module.add_function(wrap_pyfunction!(cli::main, module)?)?;
    Ok(())
}
