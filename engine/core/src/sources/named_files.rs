//! Files as tables by their quoted paths: what `rowmill sql` reads, opened as the sources of workflows are.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::{TableProvider, UrlTableFactory};
use datafusion::common::Result;
use datafusion::execution::SessionState;
use indexmap::IndexMap;
use rowmill_spec::model::FileSource;
use rowmill_spec::{CsvOptions, LogicalType, SchemaPolicy, Span, Spanned};

use super::files;
use super::format::from_name;
use super::list::{self, below};
use super::locate::{Location, locate};
use super::stores::{StoreOptions, store_for};
use crate::elsewhere::Reported;

/// Opens files by path.
#[derive(Debug)]
pub(crate) struct NamedFiles {
    state: SessionState,
    stores: StoreOptions,
    base: PathBuf,
}

impl NamedFiles {
    /// Opens with `state`; relative paths start at the process's folder.
    pub(crate) fn new(state: SessionState, stores: StoreOptions) -> NamedFiles {
        let base = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
        NamedFiles { state, stores, base }
    }

    /// Whether a table's name is a path at all: it has a scheme, or something is there, or it could be a path only.
    fn is_path(name: &str, location: &Location) -> bool {
        !location.is_local()
            || location.pattern.is_some()
            || location.directory
            || (from_name(name).0.is_some() && name.contains('/'))
            || location.local_path().is_some_and(|path| path.exists())
    }

    /// The folders `name=value` of a path, as columns of text.
    async fn partitions(&self, location: &Location) -> IndexMap<String, Spanned<LogicalType>> {
        let Ok(store) = store_for(self.state.runtime_env(), &self.stores, location) else { return IndexMap::new() };
        // What cannot be listed is told when it is opened.
        let found = list::list(&store, location).await.unwrap_or_default();
        let first = found.first().and_then(|file| below(&location.prefix, &file.location)).unwrap_or("");
        let folders = first.rsplit_once('/').map_or("", |(folders, _)| folders);
        let names = folders.split('/').filter_map(|folder| folder.split_once('='));
        names.map(|(name, _)| (name.to_owned(), Spanned::new(LogicalType::String, Span::NONE))).collect()
    }
}

#[async_trait]
impl UrlTableFactory for NamedFiles {
    async fn try_new(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let Ok(location) = locate(name, &self.base) else { return Ok(None) };
        if !Self::is_path(name, &location) {
            return Ok(None);
        }
        let source = FileSource {
            paths: Vec::new(),
            format: None,
            compression: None,
            schema: None,
            schema_policy: Spanned::new(SchemaPolicy::Union, Span::NONE),
            partitions: self.partitions(&location).await,
            csv: CsvOptions::default(),
        };
        let paths = [(name.to_owned(), Span::NONE)];
        match files::open(name, &source, &paths, &self.base, &self.state, &self.stores).await {
            Ok(opened) => Ok(Some(opened.table)),
            Err(mut reports) => Err(match reports.is_empty() {
                true => return Ok(None),
                false => Reported { report: reports.swap_remove(0), out_of_memory: false }.into_error(),
            }),
        }
    }
}
