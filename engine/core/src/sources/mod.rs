//! Sources: from a path in a workflow to a table with a fixed list of files and one schema.
//!
//! ```text
//!  path text ──locate──▶ store + pattern ──list──▶ files ──schema──▶ one schema ──table──▶ FileTable
//! ```
//!
//! The list of files is made once, when the workflow is compiled, and kept: a file that arrives later is not read, and
//! one that changed is noticed before anything is published.

pub mod files;
pub mod format;
pub mod list;
pub mod local_files;
pub mod locate;
pub(crate) mod named_files;
pub mod quotes;
pub mod schema;
pub mod stores;
pub mod table;
