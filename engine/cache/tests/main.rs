//! The cache through its public face: every tier passes one suite, and each its own trials.
#![allow(clippy::allow_attributes)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod disk;
mod memory;
mod redis;
mod suite;
mod support;
