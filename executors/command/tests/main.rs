//! The command step with real programs.
#![allow(clippy::allow_attributes)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod arrow_children;
mod conforms;
mod programs;
mod safety;
mod support;
