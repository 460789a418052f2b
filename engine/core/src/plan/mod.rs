//! Plan nodes of our own: step boundaries, edges between segments, spools, guarded steps, generated rows.

pub mod dead_letters;
pub mod edge;
pub(crate) mod extremes;
pub(crate) mod float_bounds;
pub mod guarded;
pub mod kept;
pub mod meter;
pub mod placement;
pub mod planner;
pub mod range;
pub mod spool;
pub mod streamed;
pub(crate) mod wide_rows;
