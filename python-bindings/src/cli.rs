//! The `rowmill` command, as `python -m rowmill` and the console script call it.

use pyo3::prelude::*;

/// Runs the command with these arguments (the program's name first) and gives the exit code.
#[pyfunction]
pub(crate) fn main(py: Python<'_>, arguments: Vec<std::ffi::OsString>) -> u8 {
    py.detach(|| rowmill_cli::main_from(arguments))
}
