//! Takes nodes of DataFusion's physical plans to a GPU: lowers their expressions to the kernels of `rowmill-gpu`, decides
//! by a measured table whether that pays, and finishes on the CPU whatever the device cannot.
//!
//! ```text
//! plan of a segment of class gpu ─ rule ─▶ the same plan with Gpu*Exec nodes, and a sentence for each node
//!                                   │
//!            lower (expressions), pipeline (filters and projections below), decide (table)
//!
//! Gpu*Exec: input ─▶ chunks of 64 to 256 MB ─▶ device ─▶ output
//!                        └─▶ the CPU twin: DataFusion's own node over the same chunk, where the chunk is too small to
//!                            pay, or the device is lost, full, or has no kernel; its results are the same
//! ```
//! [`vector_top_k`] is the similarity search as a SQL function. Start at [`rule::GpuRule`].
pub mod bench;
pub mod context;
pub mod decide;
mod exec;
pub mod lower;
mod pipeline;
pub mod rule;
pub mod vector_top_k;

pub use context::{GpuContext, GpuOptions, GpuUse};
pub use decide::{Measurement, OffloadTable, Operator};
pub use lower::Reason;
pub use rule::{GpuRule, Rewritten};
