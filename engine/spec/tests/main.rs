//! The crate through its public API: reports of wrong texts, generated pages, round trips, hostile input.
#![allow(clippy::allow_attributes)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod builder;
mod corpus;
mod generated;
mod hostile;
mod memory;
mod roundtrip;
