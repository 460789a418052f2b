//! Clusters of real processes: a scheduler in the test's process, executors as processes of their own.
#![allow(clippy::allow_attributes)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod admission;
mod deaths;
mod disks;
mod joining;
mod leases;
mod lies;
mod placing;
mod security;
mod strangers;
mod support;
mod terms;
