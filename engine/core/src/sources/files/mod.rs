//! The files of a source: found, their schema known, made into a table; and looked at again when the run is over.
//!
//! | file | question |
//! |---|---|
//! | `open.rs` | which files, of which format, and what table they make |
//! | `infer.rs` | which columns they have, and how each file is read as them |
//! | `partitions.rs` | what their paths say |
//! | `width.rs` | how many bytes their rows have |
//! | `changed.rs` | are they still what they were |

mod changed;
mod infer;
mod open;
mod partitions;
mod width;

use std::path::Path;
use std::sync::Arc;

use datafusion::catalog::TableProvider;
use datafusion::execution::SessionState;
use datafusion::execution::object_store::ObjectStoreUrl;
use futures::FutureExt;
use futures::future::BoxFuture;
use object_store::{ObjectMeta, ObjectStore};
use rowmill_spec::model::FileSource;
use rowmill_spec::{Diagnostic, Span};

use self::open::Opener;
use super::locate::Location;
use super::stores::StoreOptions;

pub use changed::changed;
pub use partitions::HIVE_NULL;

/// Files looked at side by side.
const CONCURRENCY: usize = 16;

/// A source that has been opened.
#[derive(Debug)]
pub struct Opened {
    /// The table that SQL reads.
    pub table: Arc<dyn TableProvider>,
    /// Every file of it, as it was when the workflow was compiled.
    pub files: Vec<SourceFile>,
}

/// One file, to be compared later.
#[derive(Debug, Clone)]
pub struct SourceFile {
    /// The store.
    pub store: ObjectStoreUrl,
    /// Path, size, time and tag when it was listed.
    pub meta: ObjectMeta,
}

struct Found {
    location: Arc<Location>,
    store: Arc<dyn ObjectStore>,
    meta: ObjectMeta,
}

impl Found {
    fn name(&self) -> String {
        match self.location.is_local() {
            true => format!("/{}", self.meta.location),
            false => format!("{}{}", self.location.store.as_str(), self.meta.location),
        }
    }
}

/// Opens `source`, whose path templates were filled in to `paths`.
///
/// # Errors
/// Diagnostics that name the source, the file and the next move.
pub fn open<'a>(
    name: &'a str,
    source: &'a FileSource,
    paths: &'a [(String, Span)],
    base: &'a Path,
    state: &'a SessionState,
    stores: &'a StoreOptions,
) -> BoxFuture<'a, Result<Opened, Vec<Diagnostic>>> {
    let span = paths.first().map_or(Span::NONE, |(_, span)| *span);
    async move { Opener { name, source, base, state, stores, span }.open(paths).await }.boxed()
}
