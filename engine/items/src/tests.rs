//! The step operator against a scripted step kind. Counts are conserved after every run: `support::run` checks it.

mod durable;
mod ends;
mod errors;
mod flow;
mod ledger;
mod model;
mod support;
