//! The crate through its public API: every operator on the emulated device against its CPU reference.
#![allow(clippy::allow_attributes)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod check_binary;
mod data;
mod emulation;
mod emulator;
mod expressions;
mod faults;
mod filter_aggregate;
mod group_by;
mod nvrtc;
mod sanitizer;
mod sort_join;
mod top_k;
