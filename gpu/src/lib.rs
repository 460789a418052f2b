//! CUDA kernels over Arrow record batches, each with a CPU reference of equal results. Nothing else in the project needs
//! this crate to build or run, and it builds and runs its tests on machines without a GPU.
//!
//! Start at [`probe`] (is there a device?), [`device::Device`] (open it), then an operator in [`ops`]. Who decides
//! whether an operator is worth offloading, and who lowers SQL to [`expr::GpuExpr`], is not in here yet.
pub mod batch;
pub mod compile;
pub mod device;
pub mod error;
pub mod expr;
mod kernels;
pub mod measure;
pub mod memory;
pub mod ops;
pub mod probe;

pub use error::{DataFault, Error, Result};
