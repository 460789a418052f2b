//! The `rowmill` command, as `python -m rowmill` and the console script call it.

use pyo3::prelude::*;

/// Runs the command with these arguments (the program's name first) and gives the exit code.
#[pyfunction]
pub(crate) fn main(py: Python<'_>, arguments: Vec<std::ffi::OsString>) -> u8 {
    let own = py.import("sys").and_then(|sys| sys.getattr("executable")?.extract::<std::path::PathBuf>());
    // An interpreter that does not know where it lies leaves the choice to `PATH`.
    if let Ok(interpreter) = own {
        rowmill_cli::runs_in_python(interpreter);
    }
    py.detach(|| rowmill_cli::main_from(arguments))
}
