//! Sinks: results are written aside and published at the end, all or nothing.
//!
//! | where | file | directory |
//! |---|---|---|
//! | this machine | written in a hidden folder beside, synced, renamed | the same, exchanged with the old one by one rename |
//! | object store | written under a hidden prefix, copied by the store | each run has a prefix of its own; a manifest is swapped by a conditional put, `_SUCCESS` comes last |
//!
//! A reader that polls sees the old version or the new one, never a mix and never a part. What a stopped or crashed
//! run left behind lies in hidden folders that the next run of the same sink removes.

mod arrow_format;
mod csv_text;
mod folders;
pub mod manifest;
mod printable;
pub mod publish;
pub mod target;
mod write;

pub use printable::check_printable;
pub use publish::StagedSink;
pub use target::{SinkTarget, check_columns, targets};
