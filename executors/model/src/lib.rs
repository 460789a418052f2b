//! The `model` step: a model in ONNX, run by ONNX Runtime for a group of items at once.
//!
//! ```text
//! columns ─ tensors.rs ─▶ one tensor per input, a row per item ─▶ model, kept warm by its session ─▶ one column per output
//! ```
//! Preparing rows for a model, and making something of what it answers, is for SQL steps before and after. ONNX Runtime
//! itself (`libonnxruntime.so`) is loaded when the first step needs it; nothing links it.

mod factory;
mod runtime;
mod step;
mod tensors;

pub use factory::ModelFactory;
pub use rowmill_spec::ModelDevice;
pub use step::{ModelOptions, ModelStep};
