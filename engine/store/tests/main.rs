//! The store's tests through its public API: one suite over every backend, with and without faults; real processes that
//! are killed or race; damaged, locked and full files; random sequences against a model; stores of earlier versions.
#![allow(clippy::allow_attributes)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod damage;
mod migrations;
mod postgres;
mod process;
mod sequences;
mod server;
mod speed;
mod suite;
mod support;
