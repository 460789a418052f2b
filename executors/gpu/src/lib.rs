//! The `gpu` step: for each item the `k` rows of a corpus of embeddings that are most similar, on a GPU where there is one
//! and it pays, else on the CPU with equal results.
//!
//! ```text
//! corpus file ─ once, when the first session opens ─▶ embeddings (on the device, or in memory) and the rows' names
//! item ─▶ its embedding ─▶ search, all items of a group together ─▶ up to k rows: neighbour, score, rank
//! ```
//! A step fans out: an item whose embedding is null or holds a NaN has no rows; one whose embedding has another length
//! than the corpus's, or a null in it, fails by itself.

mod corpus;
mod factory;
mod step;

pub use factory::GpuFactory;
pub use step::{DeviceFor, TopKOptions, TopKStep};
