//! The façade through its public API: workflows built in Rust, and SQL by `.slt` files.

#![allow(clippy::allow_attributes, reason = "the next line")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed expectation is a failed test")]

mod builder;
mod guarded;
mod slt;
