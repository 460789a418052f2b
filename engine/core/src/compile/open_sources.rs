//! Pass: opens the sources that are read, and keeps the list of their files.
//!
//! Sources that only unneeded steps read are left closed, unless everything is to be checked.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::catalog::TableProvider;
use datafusion::execution::SessionState;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use rowmill_spec::{Diagnostic, Source, SourceKind, Workflow};

use super::bind_values::Bound;
use super::resolve_names::Names;
use super::{Inputs, Reports};
use crate::plan::range::RangeTable;
use crate::sources::files::{self, SourceFile};
use crate::sources::stores::StoreOptions;

/// Sources opened side by side.
const CONCURRENCY: usize = 8;

/// Tables of sources, by declared name; a source that could not be opened is not in it.
#[derive(Debug, Default)]
pub struct OpenedSources {
    /// The tables.
    pub tables: HashMap<String, Arc<dyn TableProvider>>,
    /// Every file of them.
    pub files: Vec<SourceFile>,
    /// The files of each.
    pub files_of: HashMap<String, Vec<SourceFile>>,
}

/// Opens what is needed.
pub async fn open(
    workflow: &Workflow,
    inputs: &Inputs,
    bound: &Bound,
    names: &Names,
    state: &SessionState,
    stores: &StoreOptions,
    reports: &mut Reports,
) -> OpenedSources {
    let mut opened = OpenedSources::default();
    let needed: Vec<&Source> =
        workflow.sources.values().filter(|source| names.sources.contains(&source.name.value)).collect();
    let opening: Vec<BoxFuture<'_, _>> =
        needed.iter().map(|source| open_one(source, inputs, bound, state, stores)).collect();
    let results: Vec<_> = futures::stream::iter(opening).buffered(CONCURRENCY).collect().await;
    for (source, result) in needed.into_iter().zip(results) {
        match result {
            Ok(one) => {
                opened.tables.insert(source.name.value.clone(), one.table);
                opened.files.extend(one.files.iter().cloned());
                opened.files_of.insert(source.name.value.clone(), one.files);
            }
            Err(errors) => errors.into_iter().for_each(|error| reports.push(error)),
        }
    }
    opened
}

fn open_one<'a>(
    source: &'a Source,
    inputs: &'a Inputs,
    bound: &'a Bound,
    state: &'a SessionState,
    stores: &'a StoreOptions,
) -> BoxFuture<'a, Result<files::Opened, Vec<Diagnostic>>> {
    open_source(source, inputs, bound, state, stores).boxed()
}

async fn open_source(
    source: &Source,
    inputs: &Inputs,
    bound: &Bound,
    state: &SessionState,
    stores: &StoreOptions,
) -> Result<files::Opened, Vec<Diagnostic>> {
    let name = &source.name.value;
    match &source.kind {
        SourceKind::Range { start, end } => {
            Ok(files::Opened { table: Arc::new(RangeTable::new(start.value, end.value)), files: Vec::new() })
        }
        SourceKind::Provided => match inputs.tables.get(name) {
            Some(table) => Ok(files::Opened { table: Arc::clone(table), files: Vec::new() }),
            None => Err(vec![
                Diagnostic::error(
                    "RM0502",
                    format!("source `{name}` is to be provided by the program, which gave none"),
                )
                .at(source.name.span, "")
                .help("pass a table of this name with the run's inputs"),
            ]),
        },
        SourceKind::Files(source_files) => {
            let mut paths = Vec::new();
            let mut errors = Vec::new();
            for template in &source_files.paths {
                match bound.path(template) {
                    Ok(path) => paths.push(path),
                    Err(error) => errors.push(*error),
                }
            }
            match errors.is_empty() {
                true => files::open(name, source_files, &paths, &inputs.base, state, stores).await,
                false => Err(errors),
            }
        }
    }
}
