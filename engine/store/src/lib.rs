//! The run store: what a durable run needs in order to survive the process, the host and its own zombies.
//!
//! [`RunStore`] is the trait, [`open_sqlite`], [`open_postgres`] and [`open_memory`] make one, [`fault::FaultStore`] is
//! one that fails on purpose. This crate knows nothing about plans, Arrow or DataFusion: paths, fingerprints, payloads
//! and results are text and bytes to it. It keeps references and counts, never items.
//!
//! # Tables
//!
//! ```text
//! leases        run/ID or named/NAME → token, owner, until        the row that every write of an owner locks first
//! runs          one row a run: what was submitted, status, times   run_labels: its labels, indexed for filters
//! run_versions  1 for the run, one more for each retry             published once
//! stages        (run, version, stage) → name, class, fingerprint   step_counts: sums of outcomes by step
//! chunks        (run, version, stage, chunk) → the manifest        read verbatim on resume
//! journal       (run, version, stage, chunk) → the winning attempt its primary key is what makes a commit happen once
//! effects       (run, version, stage, chunk, batch) → records      one row for each flush and chunk, many records in it
//! events        (run, seq) → the audit trail
//! ```
//!
//! The schema lies in `migrations/`, one file for each version and database. SQLite stores the version in
//! `user_version`, PostgreSQL in `rowmill_store_version`.
//!
//! # Why it holds
//!
//! *Fencing.* A lease is a token that only grows. A write of an owner reads the lease row inside its own transaction
//! (locked: on SQLite by the single writer, on PostgreSQL by `FOR SHARE` or `FOR UPDATE`) and is refused if the token is
//! not the current one. A take-over raises the token in a transaction that locks the same row. So a zombie's write either
//! commits before the take-over, where the new owner reads it, or never. Expiry permits a take-over; it does not forbid a
//! write.
//!
//! *Repetition.* A reply may be lost after the commit. Inserts name their key and do nothing where it is taken, and then
//! compare; updates set, they do not add; sums are added only by the transaction whose insert was new; the winner of a
//! commit is recognised by its token, attempt and output.
//!
//! *Time.* PostgreSQL stores use the server's clock. SQLite stores use the machine's time since start for leases, which
//! nobody can set, and the wall clock for what people read. See [`clock`].
//!
//! *Durability.* SQLite runs in WAL mode with `synchronous = FULL`: a call that returns has synced the log.
//! PostgreSQL runs with `synchronous_commit = on`.

pub mod clock;
pub mod effect;
pub mod error;
pub mod fault;
pub mod model;
mod postgres;
mod sql;
mod sqlite;
mod store;

pub use effect::{Appended, ChunkEffects, Effect, EffectBatch, EffectKind, EffectRecord, RequestKey};
pub use error::{Error, Fault, Result};
pub use model::*;
pub use postgres::{PostgresOptions, open_postgres};
pub use sql::migrate::SCHEMA_VERSION;
pub use sqlite::{SqliteOptions, open_memory, open_sqlite};
pub use store::RunStore;
