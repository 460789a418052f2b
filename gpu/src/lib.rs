//! CUDA kernels over Arrow record batches, each with a CPU reference of equal results. It builds and runs its tests on
//! machines without a GPU: the driver and NVRTC are loaded when a device is first asked for.
//!
//! Start at [`probe`] (is there a device?), [`device::Device`] (open it), then an operator in [`ops`]. Whether an
//! operator is worth offloading, and how SQL becomes [`expr::GpuExpr`], is for the crate above, `rowmill-gpu-plan`.
pub mod batch;
mod blas;
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
