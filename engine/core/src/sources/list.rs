//! The files of a location, in the order of their paths.

use std::sync::Arc;

use futures::TryStreamExt;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};

use super::locate::Location;
use crate::sinks::manifest;

/// Files found, or why none can be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing is there.
    #[error("no file is at `{text}`")]
    NotFound {
        /// The path.
        text: String,
    },
    /// The directory holds nothing to read.
    #[error("no file in `{text}`{detail}")]
    NoMatch {
        /// The path.
        text: String,
        /// What was passed over.
        detail: String,
    },
    /// The store cannot list.
    #[error("`{text}`: files behind HTTP cannot be listed; name each file")]
    CannotList {
        /// The path.
        text: String,
    },
    /// The store failed.
    #[error("cannot read `{text}`: {source}")]
    Store {
        /// The path.
        text: String,
        /// What the store says.
        source: object_store::Error,
    },
    /// What a manifest says is not true.
    #[error("`{text}` has a broken manifest: {reason}")]
    Manifest {
        /// The path.
        text: String,
        /// What is wrong.
        reason: String,
    },
}

/// The files at `location`: the file itself; every file of a directory, or every file that a pattern matches. Names
/// that begin with `_` or `.` (markers, half-written files), and folders of such names, are passed over in both: a
/// pattern reads them where it writes that first character out. `_year=2013` is a partition. A directory that Rowmill published on an object store is
/// read by its manifest, so that a half-written version is never seen.
pub async fn list(store: &Arc<dyn ObjectStore>, location: &Location) -> Result<Vec<ObjectMeta>, Error> {
    let failed = |source| Error::Store { text: location.text.clone(), source };
    if location.pattern.is_none() && !location.directory {
        match store.head(&location.prefix).await {
            Ok(meta) => return Ok(vec![meta]),
            Err(object_store::Error::NotFound { .. }) if location.is_local() => {
                return Err(Error::NotFound { text: location.text.clone() });
            }
            Err(object_store::Error::NotFound { .. }) => {}
            Err(source) => return Err(failed(source)),
        }
    }
    if location.url.scheme().starts_with("http") {
        return Err(match location.directory {
            true => Error::CannotList { text: location.text.clone() },
            false => Error::NotFound { text: location.text.clone() },
        });
    }
    if location.pattern.is_none()
        && !location.is_local()
        && let Some(files) = manifest::read(store, &location.prefix)
            .await
            .map_err(|reason| Error::Manifest { text: location.text.clone(), reason })?
    {
        return Ok(files);
    }
    let found: Vec<ObjectMeta> = store.list(Some(&location.prefix)).try_collect().await.map_err(failed)?;
    let total = found.len();
    let mut files: Vec<ObjectMeta> = found.into_iter().filter(|meta| is_wanted(location, &meta.location)).collect();
    if files.is_empty() {
        let detail = match (total, &location.pattern) {
            (0, _) if !location.directory => return Err(Error::NotFound { text: location.text.clone() }),
            (0, _) => " (it is empty or does not exist)".to_owned(),
            (_, Some(pattern)) => {
                format!(" matches the pattern `{pattern}` ({total} do not, or have names that begin with `_` or `.`)")
            }
            (_, None) => format!(" is to be read ({total} have names that begin with `_` or `.`)"),
        };
        return Err(Error::NoMatch { text: location.text.clone(), detail });
    }
    files.sort_by(|one, two| one.location.cmp(&two.location));
    Ok(files)
}

fn is_wanted(location: &Location, path: &ObjectPath) -> bool {
    let Some(below) = below(&location.prefix, path) else { return false };
    let pattern = location.pattern.as_ref();
    let options = glob::MatchOptions { require_literal_separator: true, ..Default::default() };
    pattern.is_none_or(|pattern| pattern.matches_with(below, options))
        && below
            .split('/')
            .filter(|name| is_hidden(name))
            .all(|name| pattern.is_some_and(|p| asks_for(p.as_str(), name)))
}

fn is_hidden(name: &str) -> bool {
    name.starts_with('.') || (name.starts_with('_') && !name.contains('='))
}

/// Whether a segment of `pattern` begins as the hidden `name` does and matches it.
fn asks_for(pattern: &str, name: &str) -> bool {
    pattern.split('/').any(|segment| {
        segment.chars().next() == name.chars().next()
            && glob::Pattern::new(segment).is_ok_and(|segment| segment.matches(name))
    })
}

/// The part of `path` below `prefix`.
pub fn below<'a>(prefix: &ObjectPath, path: &'a ObjectPath) -> Option<&'a str> {
    let rest = path.as_ref().strip_prefix(prefix.as_ref())?;
    match prefix.as_ref().is_empty() {
        true => Some(rest),
        false => rest.strip_prefix('/'),
    }
}
