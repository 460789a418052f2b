//! The engine: compiles typed workflows to DataFusion plans and runs them.
//!
//! | module | holds |
//! |---|---|
//! | [`compile`] | passes from a typed workflow to checked, cut and planned segments |
//! | [`plan`] | our logical nodes and operators |
//! | [`sources`] | files, their schemas, and tables over them |
//! | [`sinks`] | staging and publishing |
//! | [`local`] | the runner in this process |
//! | [`runtime`] | DataFusion sessions with our settings |
//! | [`sql`] | free SQL over files |
//! | [`elsewhere`] | the seam for running parts of plans on a cluster |
//! | [`places`] | which process did what for a run |
//! | [`error`] | run-time errors as reports |
//! | `wrong_answers` | what DataFusion would answer wrongly, refused |
//! | [`types`] | logical types and Arrow's |

pub mod calls;
pub mod compile;
pub mod durable;
pub mod elsewhere;
pub mod error;
pub mod local;
pub mod places;
pub mod plan;
pub mod runtime;
pub mod sinks;
pub mod sources;
pub mod sql;
pub mod types;
mod wrong_answers;
