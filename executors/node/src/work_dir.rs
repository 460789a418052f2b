//! The directory of intermediate results: one executor's at a time, swept at the start, never anything else's.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::error::Error;

/// Says that a directory is an executor's, and is locked while one uses it.
const LOCK: &str = ".rowmill-executor";
/// What tasks wrote for others, a folder for each job.
const SHUFFLE: &str = "shuffle";
/// What operators spill.
const SPILL: &str = "spill";

/// A work directory that this process holds.
#[derive(Debug)]
pub(crate) struct WorkDir {
    shuffle: PathBuf,
    spill: PathBuf,
    // The lock goes with the file.
    _lock: File,
}

impl WorkDir {
    /// Takes a directory: makes it, locks it, sweeps what an earlier executor left, and sees that it can be written.
    pub(crate) fn take(path: &Path) -> Result<Self, Error> {
        let refuse = |reason: String| Error::WorkDir { path: path.to_owned(), reason };
        let io = |error: std::io::Error| refuse(format!("{error}; give another with --work-dir"));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io)?;
        let lock_path = path.join(LOCK);
        if !lock_path.exists() && fs::read_dir(path).map_err(io)?.next().is_some() {
            return Err(refuse("it holds other files; give an empty directory with --work-dir".to_owned()));
        }
        let mut lock = File::options().create(true).truncate(false).write(true).open(&lock_path).map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(refuse("another executor uses it; give each its own with --work-dir".to_owned()));
            }
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        // Rows lie here, which are the business of nobody else on this machine.
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(io)?;
        let (shuffle, spill) = (path.join(SHUFFLE), path.join(SPILL));
        for folder in [&shuffle, &spill] {
            if folder.exists() {
                fs::remove_dir_all(folder).map_err(io)?;
            }
            fs::create_dir(folder).map_err(io)?;
        }
        // A disk that is full shows here and not in the middle of a task.
        lock.set_len(0).and_then(|()| lock.write_all(b"rowmill executor work directory\n")).map_err(io)?;
        lock.sync_all().map_err(io)?;
        Ok(Self { shuffle, spill, _lock: lock })
    }

    /// Where Ballista writes: job, stage, partition.
    pub(crate) fn shuffle(&self) -> &Path {
        &self.shuffle
    }

    /// Where operators spill.
    pub(crate) fn spill(&self) -> &Path {
        &self.spill
    }

    /// The jobs of which something is held.
    pub(crate) fn jobs(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.shuffle).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| is_plain(name)).collect()
    }

    /// Removes what a job wrote, all of it or some stages. A job's name that is no plain name is refused.
    pub(crate) fn remove_job(shuffle: &Path, job: &str, stages: &[u32]) -> std::io::Result<()> {
        if !is_plain(job) {
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "a job's name is letters and digits"));
        }
        let directory = shuffle.join(job);
        let paths = if stages.is_empty() {
            vec![directory]
        } else {
            stages.iter().map(|stage| directory.join(stage.to_string())).collect()
        };
        for path in paths {
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Whether a name from outside may become a directory's name.
pub(crate) fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.len() <= 100 && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_taken_once_and_swept() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("work");
        let first = WorkDir::take(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700, "rows are their owner's");
        fs::create_dir_all(first.shuffle().join("job/1")).unwrap();
        assert!(WorkDir::take(&path).unwrap_err().to_string().contains("another executor"));
        drop(first);
        let second = WorkDir::take(&path).unwrap();
        assert_eq!(fs::read_dir(second.shuffle()).unwrap().count(), 0);
    }

    #[test]
    fn other_peoples_directories_are_left_alone() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("thesis.txt"), "years of work").unwrap();
        assert!(WorkDir::take(root.path()).unwrap_err().to_string().contains("other files"));
        assert!(root.path().join("thesis.txt").exists());
    }

    #[test]
    fn jobs_are_removed_by_plain_names_only() {
        let root = tempfile::tempdir().unwrap();
        let work = WorkDir::take(&root.path().join("work")).unwrap();
        fs::create_dir_all(work.shuffle().join("job/1")).unwrap();
        fs::create_dir_all(work.shuffle().join("job/2")).unwrap();
        WorkDir::remove_job(work.shuffle(), "job", &[1]).unwrap();
        assert!(!work.shuffle().join("job/1").exists() && work.shuffle().join("job/2").exists());
        for wrong in ["..", "", "a/b", "../../etc"] {
            assert!(WorkDir::remove_job(work.shuffle(), wrong, &[]).is_err(), "{wrong}");
        }
        WorkDir::remove_job(work.shuffle(), "job", &[]).unwrap();
        WorkDir::remove_job(work.shuffle(), "job", &[]).unwrap();
    }
}
