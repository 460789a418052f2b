//! Several schedulers of one cluster: one leads, the others stand by.
//!
//! ```text
//!   rowmill_cores::election   decides: asks for the lease, renews it, leads, steps down
//!      │ actions    ▲ answers, the time
//!   candidate.rs    drives it: requests to the store, and the seat
//!      │                          ballot.rs   the lease in the store: who holds it, since which fence, where it is reached
//!      ▼
//!   seat.rs         what serves the port: a whole scheduler (serve.rs), or one that stands by (standby.rs)
//! ```
//! Each term of leadership has a Ballista of its own, in a runtime of its own: stepping down ends the runtime and with it
//! every task, connection and job of the term, wherever Ballista started them. A process that leads again begins with
//! nothing, as a scheduler that was started anew does: executors join, clients submit again.
//!
//! No clocks need agree. The store's clock says when a lease may go to another; the leader's own clock says when it must
//! have stopped, counted from before it asked. Should its clock have stood still (the machine slept), what it tells
//! executors to do bears the number of its term, and executors that follow a later one refuse it.

mod ballot;
mod candidate;
mod seat;
mod standby;

pub use ballot::{Election, StoreAt, StoreError};
pub use candidate::Candidate;
