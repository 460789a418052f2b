//! The http step against real servers in this process.
#![allow(clippy::allow_attributes)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod conforms;
mod faults;
mod requests;
mod security;
mod server;
mod support;
mod transport;
