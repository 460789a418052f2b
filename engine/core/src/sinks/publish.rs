//! Staging and publishing: from a hidden place to the one that readers look at.
//!
//! ```text
//!  stage ──▶ rows are written to StagedSink::url ──▶ seal (sync) ──▶ publish (rename, exchange or swap)
//!                     └── anything goes wrong ──▶ discard
//! ```

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt};
use url::Url;
use uuid::Uuid;

use super::manifest::{self, Manifest};
use super::target::SinkTarget;

/// Why a sink could not be staged or published.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The local file system refused.
    #[error("sink `{sink}`: cannot {action} {path}: {source}")]
    Local {
        /// The sink.
        sink: String,
        /// A verb: "create", "sync", "rename".
        action: &'static str,
        /// The place.
        path: String,
        /// What the system says.
        source: io::Error,
    },
    /// The object store refused.
    #[error("sink `{sink}`: cannot {action} `{path}`: {source}")]
    Store {
        /// The sink.
        sink: String,
        /// A verb.
        action: &'static str,
        /// The place.
        path: String,
        /// What the store says.
        source: Box<object_store::Error>,
    },
    /// Another run published in between.
    #[error("sink `{sink}`: another run published `{path}` in the meantime; this run's result was discarded")]
    Overtaken {
        /// The sink.
        sink: String,
        /// The place.
        path: String,
    },
    /// The manifest that is there cannot be understood.
    #[error("sink `{sink}`: the manifest of `{path}` is broken: {reason}")]
    Manifest {
        /// The sink.
        sink: String,
        /// The place.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

/// A sink's place while its rows are being written.
#[derive(Debug)]
pub struct StagedSink {
    /// Where the plan writes: a file, or a directory ending in `/`.
    pub url: String,
    sink: String,
    run: String,
    place: Place,
    /// Files of the version that [`StagedSink::seal`] found, relative to the staged place.
    files: Vec<manifest::File>,
}

#[derive(Debug)]
enum Place {
    /// Nowhere.
    Imagined,
    Local {
        /// The hidden folder; removed in the end.
        folder: PathBuf,
        /// Held while the run lives, so that others do not take the folder for an orphan.
        _lock: File,
        staged: PathBuf,
        target: PathBuf,
        directory: bool,
    },
    Object {
        store: Arc<dyn ObjectStore>,
        staged: ObjectPath,
        target: ObjectPath,
        directory: bool,
    },
}

impl StagedSink {
    /// A hidden place beside the target, and none of the orphans of dead runs.
    ///
    /// # Errors
    /// When the place cannot be made: no permission, no space, a file in the way.
    pub fn stage(target: &SinkTarget, run: Uuid, store: &Arc<dyn ObjectStore>) -> Result<StagedSink, Error> {
        let directory = target.is_directory();
        let sink = target.name.clone();
        if let Some(path) = target.location.is_local().then(|| target.location.local_path()).flatten() {
            return Self::stage_local(sink, run, &path, directory, &target.extension());
        }
        // Objects of one run stand under one prefix; the name begins with `_`, which readers pass over.
        let prefix = &target.location.prefix;
        let staged = match directory {
            true => prefix.clone().join(run.to_string()),
            false => {
                let name = prefix.filename().unwrap_or("data").to_owned();
                parent(prefix).join("_rowmill").join(run.to_string()).join(name)
            }
        };
        let mut url = format!("{}{staged}", target.location.store.as_str());
        if directory {
            url.push('/');
        }
        let place = Place::Object { store: Arc::clone(store), staged, target: prefix.clone(), directory };
        Ok(StagedSink { url, sink, run: run.to_string(), place, files: Vec::new() })
    }

    fn stage_local(
        sink: String,
        run: Uuid,
        path: &Path,
        directory: bool,
        extension: &str,
    ) -> Result<StagedSink, Error> {
        let failed = |action, path: &Path, source| Error::Local {
            sink: sink.clone(),
            action,
            path: path.display().to_string(),
            source,
        };
        let parent = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(parent).map_err(|error| failed("create the folder", parent, error))?;
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("data");
        remove_orphans(parent, name);
        let folder = parent.join(format!(".{name}.rowmill-{run}"));
        let lock = locked_folder(&folder).map_err(|error| failed("create", &folder, error))?;
        let staged = match directory {
            true => folder.join("data"),
            false => folder.join(format!("data.{extension}")),
        };
        let url = match directory {
            true => {
                fs::create_dir(&staged).map_err(|error| failed("create", &staged, error))?;
                Url::from_directory_path(&staged)
            }
            false => Url::from_file_path(&staged),
        };
        let url = url.map_err(|()| failed("name", &staged, io::Error::other("the path is not absolute")))?.to_string();
        let place = Place::Local { folder, _lock: lock, staged, target: path.to_owned(), directory };
        Ok(StagedSink { url, sink, run: run.to_string(), place, files: Vec::new() })
    }

    /// A place that only `explain` writes to: the target itself, in a plan that is never executed.
    pub fn imagined(target: &SinkTarget) -> StagedSink {
        let url = format!("{}{}", target.location.store.as_str(), target.location.prefix);
        StagedSink { url, sink: target.name.clone(), run: String::new(), place: Place::Imagined, files: Vec::new() }
    }

    /// Makes what was written durable, and gives files of a directory their final names.
    ///
    /// # Errors
    /// When it cannot be synced or looked at. Nothing is visible to readers yet.
    pub async fn seal(&mut self) -> Result<(), Error> {
        match &self.place {
            Place::Local { staged, directory: false, .. } => {
                sync(staged).map_err(|source| self.local("sync", staged, source))
            }
            Place::Local { staged, directory: true, .. } => {
                let staged = staged.clone();
                let files = seal_directory(&staged, &self.run).map_err(|source| self.local("sync", &staged, source))?;
                self.files = files;
                Ok(())
            }
            Place::Object { store, staged, directory: true, target } => {
                let store = Arc::clone(store);
                let found: Vec<_> = store
                    .list(Some(staged))
                    .try_collect()
                    .await
                    .map_err(|source| self.store("list", staged, source))?;
                let mut files: Vec<manifest::File> = found
                    .into_iter()
                    .map(|meta| manifest::File {
                        path: meta
                            .location
                            .as_ref()
                            .strip_prefix(target.as_ref())
                            .unwrap_or("")
                            .trim_start_matches('/')
                            .to_owned(),
                        size: meta.size,
                    })
                    .collect();
                files.sort_by(|one, two| one.path.cmp(&two.path));
                self.files = files;
                Ok(())
            }
            Place::Object { .. } | Place::Imagined => Ok(()),
        }
    }

    /// Puts the sealed result where readers look.
    ///
    /// # Errors
    /// When the place refuses; the old version is then still there, whole.
    pub async fn publish(self) -> Result<(), Error> {
        match &self.place {
            Place::Local { folder, staged, target, directory, .. } => {
                let parent = target.parent().unwrap_or(Path::new("/"));
                match *directory && target.exists() {
                    // One step: readers see the old directory or the new one.
                    true => exchange(staged, target).map_err(|source| self.local("exchange", target, source))?,
                    false => fs::rename(staged, target).map_err(|source| self.local("rename to", target, source))?,
                }
                sync(parent).map_err(|source| self.local("sync", parent, source))?;
                if let Err(error) = fs::remove_dir_all(folder) {
                    tracing::warn!(folder = %folder.display(), %error, "cannot remove the staging folder; the next run will");
                }
                Ok(())
            }
            Place::Object { store, staged, target, directory: false } => {
                store.copy(staged, target).await.map_err(|source| self.store("copy to", target, source))?;
                if let Err(error) = store.delete(staged).await {
                    tracing::warn!(path = %staged, %error, "cannot remove the staged object");
                }
                Ok(())
            }
            Place::Object { store, target, directory: true, .. } => self.publish_prefix(store, target).await,
            Place::Imagined => Ok(()),
        }
    }

    async fn publish_prefix(&self, store: &Arc<dyn ObjectStore>, target: &ObjectPath) -> Result<(), Error> {
        let broken = |reason| Error::Manifest { sink: self.sink.clone(), path: target.to_string(), reason };
        let seen = manifest::load(store, target).await.map_err(broken)?;
        let (old, version) = match seen {
            Some((old, version)) => (Some(old), Some(version)),
            None => (None, None),
        };
        let new = Manifest::new(&self.run, self.files.clone(), old.as_ref().map(|old| old.run.clone()));
        match manifest::swap(store, target, &new, version).await {
            Ok(()) => {}
            Err(object_store::Error::Precondition { .. } | object_store::Error::AlreadyExists { .. }) => {
                return Err(Error::Overtaken { sink: self.sink.clone(), path: target.to_string() });
            }
            Err(source) => return Err(self.store("write the manifest of", target, source)),
        }
        let success = target.clone().join(manifest::SUCCESS);
        store.put(&success, Vec::new().into()).await.map_err(|source| self.store("write", &success, source))?;
        // The version before stays for readers that are still at it; the one before that goes.
        if let Some(stale) = old.and_then(|old| old.previous) {
            let stale = target.clone().join(stale);
            let objects = store.list(Some(&stale)).map_ok(|meta| meta.location).boxed();
            if let Err(error) = store.delete_stream(objects).try_collect::<Vec<_>>().await {
                tracing::warn!(prefix = %stale, %error, "cannot remove an old version");
            }
        }
        Ok(())
    }

    /// The sink.
    pub fn sink(&self) -> &str {
        &self.sink
    }

    /// Whether `path` is the staged file or lies in the staged directory.
    pub fn holds(&self, path: &ObjectPath) -> bool {
        let staged = Url::parse(&self.url).ok().and_then(|url| ObjectPath::from_url_path(url.path()).ok());
        staged.is_some_and(|staged| path.prefix_matches(&staged))
    }

    /// Removes what was staged. Never fails: the next run of the sink sweeps what is left.
    pub async fn discard(self) {
        match &self.place {
            Place::Imagined => {}
            Place::Local { folder, .. } => {
                // On a thread that sleeps for itself: the runtime's clock stands still while operators that compute for
                // long hold all of its threads.
                let folder = folder.clone();
                let removing = tokio::task::spawn_blocking(move || remove_staging(&folder));
                if let Err(error) = removing.await {
                    tracing::warn!("removing what was staged: {error}");
                }
            }
            Place::Object { store, staged, directory, .. } => {
                let objects = match directory {
                    true => store.list(Some(staged)).map_ok(|meta| meta.location).boxed(),
                    false => futures::stream::once(futures::future::ready(Ok(staged.clone()))).boxed(),
                };
                if let Err(error) = store.delete_stream(objects).try_collect::<Vec<_>>().await
                    && !matches!(error, object_store::Error::NotFound { .. })
                {
                    tracing::warn!(path = %staged, %error, "cannot remove what was staged");
                }
            }
        }
    }

    fn local(&self, action: &'static str, path: &Path, source: io::Error) -> Error {
        Error::Local { sink: self.sink.clone(), action, path: path.display().to_string(), source }
    }

    fn store(&self, action: &'static str, path: &ObjectPath, source: object_store::Error) -> Error {
        Error::Store { sink: self.sink.clone(), action, path: path.to_string(), source: Box::new(source) }
    }
}

fn parent(path: &ObjectPath) -> ObjectPath {
    let parts: Vec<_> = path.parts().collect();
    parts.iter().take(parts.len().saturating_sub(1)).cloned().collect()
}

/// Writes a file or a folder through to the device.
fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Gives the files of a directory stable names (`part-00000`), syncs them and every folder, and adds the markers.
fn seal_directory(root: &Path, run: &str) -> io::Result<Vec<manifest::File>> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    let mut at = 0;
    while let Some(folder) = folders.get(at).cloned() {
        at += 1;
        let mut entries: Vec<PathBuf> =
            fs::read_dir(&folder)?.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<_>>()?;
        entries.sort_by_key(|path| file_order(path));
        let mut part = 0;
        for path in entries {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let (_, _, ending) = name_parts(&path);
            let named = folder.join(format!("part-{part:05}.{ending}"));
            part += 1;
            fs::rename(&path, &named)?;
            sync(&named)?;
            let relative = named.strip_prefix(root).unwrap_or(&named).to_string_lossy().into_owned();
            files.push(manifest::File { path: relative, size: named.metadata()?.len() });
        }
    }
    fs::write(root.join(manifest::FILE), Manifest::new(run, files.clone(), None).to_bytes())?;
    sync(&root.join(manifest::FILE))?;
    fs::write(root.join(manifest::SUCCESS), b"")?;
    sync(&root.join(manifest::SUCCESS))?;
    for folder in folders.iter().rev() {
        sync(folder)?;
    }
    Ok(files)
}

/// Writers number their files `ID_7.parquet`, and rounds of writers `ID.000003.parquet`: by round, by number, then by
/// name.
fn file_order(path: &Path) -> (u64, u64, String) {
    let (stem, round, ending) = name_parts(path);
    let number = stem.rsplit('_').next().and_then(|number| number.parse().ok()).unwrap_or(u64::MAX);
    (round, number, format!("{stem}.{ending}"))
}

/// The stem, the round and the ending of a file that a writer named.
fn name_parts(path: &Path) -> (&str, u64, &str) {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
    let (stem, ending) = name.split_once('.').unwrap_or((name, ""));
    match ending.split_once('.').and_then(|(round, ending)| Some((round.parse().ok()?, ending))) {
        Some((round, ending)) => (stem, round, ending),
        None => (stem, 0, ending),
    }
}

/// Removes a staging folder. Writers that were aborted may be in the middle of a write and put a file back, folder and
/// all; they end soon. The folder is gone when it stays so for a while.
fn remove_staging(folder: &Path) {
    let mut gone = 0;
    for _ in 0..100 {
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::debug!(folder = %folder.display(), %error, "the staging folder is still in use");
            }
            _ => {}
        }
        gone = if folder.exists() { 0 } else { gone + 1 };
        if gone == 5 {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    tracing::warn!(folder = %folder.display(), "cannot remove the staging folder; the next run will");
}

/// Exchanges two directories in one step where the system can; elsewhere in two, with a moment between.
fn exchange(staged: &Path, target: &Path) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, staged, CWD, target, RenameFlags::EXCHANGE) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let aside = staged.with_file_name("old");
    fs::rename(target, &aside)?;
    fs::rename(staged, target).inspect_err(|_| {
        let _ = fs::rename(&aside, target);
    })
}

/// Makes a folder and locks it. Another run may take a folder without a lock for a dead one's: then it is made again.
fn locked_folder(folder: &Path) -> io::Result<File> {
    use std::os::unix::fs::MetadataExt as _;
    let mut patience = 100;
    loop {
        let locked = fs::create_dir(folder).and_then(|()| File::create(folder.join("lock"))).and_then(|lock| {
            rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
            Ok(lock)
        });
        match locked {
            // Still there: whoever removes it holds the lock.
            Ok(lock) if lock.metadata()?.nlink() > 0 => return Ok(lock),
            Err(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound | io::ErrorKind::WouldBlock
                ) =>
            {
                return Err(error);
            }
            Err(error) if patience == 0 => return Err(error),
            _ => {}
        }
        patience -= 1;
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// Removes the hidden folders of runs that died: those whose lock nobody holds.
fn remove_orphans(parent: &Path, name: &str) {
    let prefix = format!(".{name}.rowmill-");
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        if !entry.file_name().to_str().is_some_and(|other| other.starts_with(&prefix)) {
            continue;
        }
        let folder = entry.path();
        // Held while the folder goes: whoever has just made it finds it locked, or gone, and makes another.
        let lock = File::open(folder.join("lock"));
        let free = match &lock {
            Ok(lock) => rustix::fs::flock(lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok(),
            // Killed between making the folder and its lock, or just being made: old ones only.
            Err(_) => entry
                .metadata()
                .and_then(|meta| meta.modified())
                .ok()
                .and_then(|at| at.elapsed().ok())
                .is_some_and(|age| age.as_secs() > 60),
        };
        if free && let Err(error) = fs::remove_dir_all(&folder) {
            tracing::warn!(folder = %folder.display(), %error, "cannot remove what a dead run left behind");
        }
    }
}
