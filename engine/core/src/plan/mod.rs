//! Plan nodes of our own: step boundaries, edges between segments, spools, generated rows.

pub mod edge;
pub mod meter;
pub mod planner;
pub mod range;
pub mod spool;
pub mod streamed;
