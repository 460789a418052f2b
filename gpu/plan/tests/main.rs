//! The crate through its public API: plans with and without the rule, on the emulated device, give equal results.
#![allow(clippy::allow_attributes)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../tests/main/data.rs"]
#[expect(dead_code, reason = "shared with the crate below, which uses more of it")]
mod data;
#[path = "../../tests/main/emulator.rs"]
mod emulator;
#[path = "main/faults.rs"]
mod faults;
#[path = "main/lowering.rs"]
mod lowering;
#[path = "main/plans.rs"]
mod plans;
#[path = "main/random.rs"]
mod random;
#[path = "main/resident.rs"]
mod resident;
#[path = "main/support.rs"]
mod support;
#[path = "main/vectors.rs"]
mod vectors;
