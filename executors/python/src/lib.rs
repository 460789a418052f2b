//! The `python` step in worker processes: functions of the user's, called by `rowmill/_worker.py`, fed over shared
//! memory and pipes.
//!
//! Each slot of the step owns one process. Both directions carry frames:
//! ```text
//!  "RMW1" │ length of the head, u32 │ length of the body, u64 │ head: JSON │ body
//! ```
//! | direction | head | body |
//! |---|---|---|
//! | → first | `{"function", "check", "kind", "what", "flavors", "given", "fan_out", "arguments", "many", "in_flight", "sys_path", "pickle_bytes", "shared", "logging"}` | the schema of the answer as an Arrow IPC stream, then the pickle |
//! | ← | `{"ready": true, "kind", "unshared"}`, or `{"failed": {...}}` where the function cannot be loaded | |
//! | → group | `{"rows", "at", "held"}` | an Arrow IPC stream of one batch |
//! | ← | `{"failures": [[row, {"type", "message", "traceback", "retryable"}]], "at", "held"}`, or `{"failed": {...}}` | an Arrow IPC stream of one batch, with a first column `__row` where not every item has exactly one row |
//!
//! `shared` are the descriptors of two files in memory ([`shared`]); where a stream lies in one of them, the body is empty
//! and `at` says where: `[offset, capacity, length]`. `held` are the offsets of what the sender of the frame still looks
//! at. `unshared` says why a worker cannot use such a file. Numbers are little-endian. Frames go over the process's standard input and output, which the worker takes away from
//! the user's code: what that prints goes to standard error, and from there to the user.
//!
//! A function that is called row by row and has effects `once` is sent one item at a time, so that when the process
//! dies it is known which item it was about, and that the ones after it never left. Otherwise a group goes whole, and
//! the engine bisects.

mod factory;
mod options;
mod process;
mod session;
mod shared;
mod spawner;
mod step;
mod wire;

pub use factory::{BROUGHT, Program, PythonFactory};
pub use options::{Function, Kind, Limits, Logging, OptionsError, Output, PythonOptions, Worker};
pub use step::PythonStep;
