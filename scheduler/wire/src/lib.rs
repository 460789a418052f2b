//! What the processes of a cluster agree on, in one place, so that scheduler, executors and clients cannot differ:
//!
//! - [`handshake`]: the tokens that let a process join or submit, and the build that it was made from;
//! - [`transport`]: listening and connecting, with TLS where it is configured;
//! - [`name`]: an executor's name, which carries its classes;
//! - [`class`]: the marker that says which class a stage runs on;
//! - [`codec`]: how plans travel, with our operators in them;
//! - [`step`]: the boundary of a step in a plan, which counts what leaves it;
//! - [`alive`]: the message by which an executor says which attempts it runs;
//! - [`calls`]: having attempts of steps that are not SQL made on an executor, and who serves a class;
//! - [`jobs`]: submitting a plan, and hearing what becomes of it;
//! - [`single_value`]: the function that counts the rows of a subquery;
//! - [`leader`]: which of several schedulers leads, and finding it;
//! - [`files`]: reading a result from the executors that hold it.

pub mod alive;
pub mod calls;
pub mod class;
pub mod codec;
pub mod files;
pub mod handshake;
pub mod jobs;
pub mod leader;
pub mod name;
pub mod single_value;
pub mod step;
pub mod token;
pub mod transport;

/// The largest message between processes, in bytes. A plan above it is refused with an error that says so; tables in
/// memory travel inside plans and are what makes plans large.
pub const MESSAGE_BYTES: usize = 64 << 20;
