//! The command as a user runs it: real processes, real files, exit codes and what is printed.

#![allow(clippy::allow_attributes, reason = "the next line")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed expectation is a failed test")]

mod bad_input;
mod caches;
mod calls;
mod cluster;
mod corpus;
mod durable_cluster;
mod examples;
mod explain;
mod gpu;
mod machine;
mod remote;
mod resume;
mod retry;
mod running;
mod safety;
mod service;
mod sinks;
mod slt;
mod sources;
mod standby;
mod support;
mod wire;
