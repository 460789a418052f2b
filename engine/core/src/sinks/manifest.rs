//! The manifest of a published directory: which files are the current version.
//!
//! On an object store a directory cannot be exchanged at once. The files of each run lie under a prefix of their own,
//! and `_rowmill.json` says which prefix counts. It is replaced by a conditional put, so that of two runs that
//! publish at the same time one is told that the other was first. A local directory is exchanged as a whole; its
//! `_rowmill.json` only shows that Rowmill may replace it.

use std::sync::Arc;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::path::Path as ObjectPath;
use object_store::{Error, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, UpdateVersion};
use serde::{Deserialize, Serialize};

/// The file's name.
pub const FILE: &str = "_rowmill.json";
/// Comes last, for readers that wait for it.
pub const SUCCESS: &str = "_SUCCESS";
/// The format's version.
const VERSION: u32 = 1;

/// What the file holds.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`VERSION`].
    pub rowmill_manifest: u32,
    /// The run that published this version.
    pub run: String,
    /// Its files, relative to the directory, with their sizes.
    pub files: Vec<File>,
    /// Prefix of the version before, kept for readers that are still at it.
    pub previous: Option<String>,
}

/// A file of the current version.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Path below the directory.
    pub path: String,
    /// Bytes.
    pub size: u64,
}

impl Manifest {
    /// A first version.
    pub fn new(run: impl Into<String>, files: Vec<File>, previous: Option<String>) -> Self {
        Manifest { rowmill_manifest: VERSION, run: run.into(), files, previous }
    }

    /// As bytes of the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }
}

fn parse(bytes: &[u8]) -> Result<Manifest, String> {
    let manifest: Manifest = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if manifest.rowmill_manifest != VERSION {
        return Err(format!(
            "it is of version {}, and this Rowmill knows {VERSION}; use a newer one",
            manifest.rowmill_manifest
        ));
    }
    let leads_out = |path: &str| path.split('/').any(|part| part.is_empty() || part == "." || part == "..");
    match manifest.files.iter().find(|file| leads_out(&file.path)) {
        Some(file) => Err(format!("the path {:?} leads out of the directory", file.path)),
        None => Ok(manifest),
    }
}

/// The manifest at `prefix` with the version to swap it by, or `None` where there is none.
pub async fn load(
    store: &Arc<dyn ObjectStore>,
    prefix: &ObjectPath,
) -> Result<Option<(Manifest, UpdateVersion)>, String> {
    let path = prefix.clone().join(FILE);
    let found = match store.get(&path).await {
        Ok(found) => found,
        Err(Error::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let version = UpdateVersion { e_tag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
    let bytes = found.bytes().await.map_err(|error| error.to_string())?;
    Ok(Some((parse(&bytes)?, version)))
}

/// The files of the current version, where `prefix` is a directory that was published on an object store.
pub async fn read(store: &Arc<dyn ObjectStore>, prefix: &ObjectPath) -> Result<Option<Vec<ObjectMeta>>, String> {
    let Some((manifest, _)) = load(store, prefix).await? else { return Ok(None) };
    let looks: Vec<BoxFuture<'_, Result<ObjectMeta, String>>> =
        manifest.files.iter().map(|file| look(store, prefix, file)).collect();
    let metas: Vec<ObjectMeta> = futures::stream::iter(looks).buffered(16).try_collect().await?;
    Ok(Some(metas))
}

/// Looks at one file of a version: it is there, and as long as it was.
fn look<'a>(
    store: &'a Arc<dyn ObjectStore>,
    prefix: &'a ObjectPath,
    file: &'a File,
) -> BoxFuture<'a, Result<ObjectMeta, String>> {
    async move {
        let path = file.path.split('/').fold(prefix.clone(), |path, part| path.join(part));
        let meta = store.head(&path).await.map_err(|error| error.to_string())?;
        match meta.size == file.size {
            true => Ok(meta),
            false => Err(format!("{} has {} bytes instead of {}", path, meta.size, file.size)),
        }
    }
    .boxed()
}

/// Puts `manifest` in the place of `seen` (nothing, or what [`load`] gave).
///
/// # Errors
/// [`Error::Precondition`] or [`Error::AlreadyExists`] when another run was first. A store without conditional puts
/// is written without a condition: there the last of two runs wins.
pub async fn swap(
    store: &Arc<dyn ObjectStore>,
    prefix: &ObjectPath,
    manifest: &Manifest,
    seen: Option<UpdateVersion>,
) -> object_store::Result<()> {
    let path = prefix.clone().join(FILE);
    let payload = PutPayload::from(manifest.to_bytes());
    let mode = match seen {
        Some(version) => PutMode::Update(version),
        None => PutMode::Create,
    };
    match store.put_opts(&path, payload.clone(), PutOptions::from(mode)).await {
        Err(Error::NotImplemented { .. } | Error::NotSupported { .. }) => {
            tracing::warn!(
                "the store of {path} has no conditional put; the last of two runs that publish at once wins"
            );
            store.put(&path, payload).await.map(|_| ())
        }
        result => result.map(|_| ()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::memory::InMemory;

    #[tokio::test]
    async fn of_two_runs_one_is_told_that_the_other_was_first() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let prefix = ObjectPath::from("out/report");
        assert!(load(&store, &prefix).await.unwrap().is_none());
        let one = Manifest::new("one", vec![], None);
        let two = Manifest::new("two", vec![], None);
        swap(&store, &prefix, &one, None).await.unwrap();
        assert!(swap(&store, &prefix, &two, None).await.is_err());
        let (seen, version) = load(&store, &prefix).await.unwrap().unwrap();
        assert_eq!(seen, one);
        swap(&store, &prefix, &two, Some(version.clone())).await.unwrap();
        assert!(swap(&store, &prefix, &one, Some(version)).await.is_err());
    }

    #[test]
    fn a_manifest_that_leads_out_is_refused() {
        let bad = Manifest::new("x", vec![File { path: "../secret".into(), size: 1 }], None);
        assert!(parse(&bad.to_bytes()).unwrap_err().contains("leads out"));
        assert!(
            parse(br#"{"rowmill_manifest": 2, "run": "x", "files": [], "previous": null}"#)
                .unwrap_err()
                .contains("newer")
        );
    }
}
