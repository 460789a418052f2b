//! The suite of all step kinds, and what only Python can do wrong. Needs `python3` with pyarrow; `PYTHON_WITH_PYARROW` names
//! another interpreter.
#![allow(clippy::allow_attributes)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod conforms;
mod functions;
mod shared_memory;
mod support;
