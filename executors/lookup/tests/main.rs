//! The lookup step against SQLite, and against real PostgreSQL and MariaDB servers where their binaries are.
#![allow(clippy::allow_attributes)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod conforms;
mod databases;
mod meaning;
mod servers;
mod sqlite;
mod support;
