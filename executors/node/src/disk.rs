//! Whether the work directory takes what tasks write. When a disk is full the executor says so and gets no tasks until it
//! can write again: one that only failed would have a free slot at once, be given each repetition, and fail the job.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ballista_core::error::BallistaError;
use datafusion::arrow::error::ArrowError;
use datafusion::common::DataFusionError;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// What must fit on the disk before tasks are taken again, in bytes.
const PROBE_BYTES: usize = 4 << 20;
/// The file that is written for it.
const PROBE: &str = ".probe";
/// How long nothing is taken after a failure, at first and at most: what fits once need not fit for a task.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long a failed task waits until the scheduler knows that it must go elsewhere.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Debug)]
struct Closed {
    reason: String,
    until: Instant,
    /// Whether the scheduler has heard of it.
    is_told: bool,
}

#[derive(Debug)]
struct State {
    closed: Option<Closed>,
    pause: Duration,
}

/// The disk of a work directory.
#[derive(Debug)]
pub(crate) struct Disk {
    folder: PathBuf,
    state: Mutex<State>,
    changed: Notify,
    told: Notify,
}

impl Disk {
    /// A disk that is believed to be well.
    pub(crate) fn new(folder: &Path) -> Self {
        let state = State { closed: None, pause: FIRST_PAUSE };
        Self { folder: folder.to_owned(), state: Mutex::new(state), changed: Notify::new(), told: Notify::new() }
    }

    /// A task could not write.
    fn refused(&self, error: &std::io::Error) {
        let mut state = self.state.lock();
        let until = Instant::now() + state.pause;
        match &mut state.closed {
            // Several tasks fail of one reason.
            Some(closed) => closed.until = until,
            None => {
                let reason = format!("its work directory, {}, cannot be written: {error}", self.folder.display());
                tracing::warn!("no tasks are taken for now: {reason}");
                state.closed = Some(Closed { reason, until, is_told: false });
                state.pause = (state.pause * 2).min(LONGEST_PAUSE);
                drop(state);
                self.changed.notify_one();
            }
        }
    }

    /// Why no tasks are taken; `None` when they are.
    pub(crate) fn closed(&self) -> Option<String> {
        self.state.lock().closed.as_ref().map(|closed| closed.reason.clone())
    }

    /// Waits until the scheduler should be told at once.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The scheduler has heard what [`Self::closed`] said before.
    pub(crate) fn heard(&self) {
        if let Some(closed) = &mut self.state.lock().closed {
            closed.is_told = true;
        }
        self.told.notify_waiters();
    }

    /// Waits until the scheduler knows, and not for long: it may be gone.
    pub(crate) async fn until_heard(&self) {
        let waiting = async {
            loop {
                let told = self.told.notified();
                tokio::pin!(told);
                told.as_mut().enable();
                if self.state.lock().closed.as_ref().is_none_or(|closed| closed.is_told) {
                    return;
                }
                told.await;
            }
        };
        if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
            tracing::warn!("the scheduler was not told that no tasks are taken");
        }
    }

    /// Tries to write where that failed a while ago, and takes tasks again if it works. Blocks for as long as a few
    /// megabytes take.
    pub(crate) fn look(&self) {
        let due = {
            let state = self.state.lock();
            state.closed.as_ref().is_some_and(|closed| Instant::now() >= closed.until)
        };
        if !due {
            return;
        }
        let path = self.folder.join(PROBE);
        let written = probe(&path);
        // It may not have been made at all.
        let _ = fs::remove_file(&path);
        let mut state = self.state.lock();
        match written {
            Ok(()) => {
                tracing::warn!("the work directory can be written again; tasks are taken");
                state.closed = None;
            }
            Err(_) => {
                if let Some(closed) = &mut state.closed {
                    closed.until = Instant::now() + FIRST_PAUSE;
                }
            }
        }
    }

    /// Judges why a task failed: true if it was the disk, which is closed then.
    pub(crate) fn judge(&self, error: &BallistaError) -> bool {
        match io_error(error).filter(|error| is_disk(error.kind())) {
            Some(error) => {
                self.refused(error);
                true
            }
            None => false,
        }
    }
}

fn probe(path: &Path) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(&vec![0xa5; PROBE_BYTES])?;
    file.sync_data()
}

/// What a disk says that takes nothing. Reading says none of it.
fn is_disk(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::ReadOnlyFilesystem)
}

/// The failure of the operating system at the root of an error.
fn io_error(error: &BallistaError) -> Option<&std::io::Error> {
    match error {
        BallistaError::IoError(error) => Some(error),
        BallistaError::ArrowError(error) => of_arrow(error),
        BallistaError::DataFusionError(error) => of_datafusion(error),
        _ => None,
    }
}

fn of_arrow(error: &ArrowError) -> Option<&std::io::Error> {
    match error {
        ArrowError::IoError(_, error) => Some(error),
        ArrowError::ExternalError(error) => of_any(error.as_ref()),
        _ => None,
    }
}

fn of_datafusion(error: &DataFusionError) -> Option<&std::io::Error> {
    match error.find_root() {
        DataFusionError::IoError(error) => Some(error),
        DataFusionError::ArrowError(error, _) => of_arrow(error),
        DataFusionError::External(error) => of_any(error.as_ref()),
        _ => None,
    }
}

fn of_any<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a std::io::Error> {
    if let Some(error) = error.downcast_ref::<BallistaError>() {
        return io_error(error);
    }
    if let Some(error) = error.downcast_ref::<DataFusionError>() {
        return of_datafusion(error);
    }
    error.downcast_ref::<std::io::Error>().or_else(|| error.source().and_then(of_any))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> std::io::Error {
        // ENOSPC
        std::io::Error::from_raw_os_error(28)
    }

    #[test]
    fn a_full_disk_is_seen_through_what_wraps_it() {
        let arrow = || ArrowError::IoError("no space".to_owned(), full());
        for error in [
            BallistaError::IoError(full()),
            BallistaError::ArrowError(Box::new(arrow())),
            BallistaError::DataFusionError(Box::new(DataFusionError::IoError(full()))),
            // As the writer of shuffle files has it.
            BallistaError::DataFusionError(Box::new(DataFusionError::Context(
                "writing".to_owned(),
                Box::new(BallistaError::ArrowError(Box::new(arrow())).into_datafusion()),
            ))),
        ] {
            let root = tempfile::tempdir().unwrap();
            let disk = Disk::new(root.path());
            assert!(disk.judge(&error), "{error:?}");
            assert!(disk.closed().unwrap().contains("cannot be written"));
        }
        let disk = Disk::new(Path::new("/nowhere"));
        assert!(!disk.judge(&BallistaError::General("No space left on device (os error 28)".to_owned())));
        assert!(!disk.judge(&BallistaError::IoError(ErrorKind::NotFound.into())));
        assert_eq!(disk.closed(), None);
    }

    #[test]
    fn it_opens_when_it_can_be_written_again() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("work");
        let disk = Disk::new(&folder);
        disk.refused(&full());
        let due = || disk.state.lock().closed.as_mut().unwrap().until = Instant::now();
        disk.look();
        assert!(disk.closed().is_some(), "not at once");
        due();
        disk.look();
        assert!(disk.closed().is_some(), "there is no such folder yet");
        fs::create_dir(&folder).unwrap();
        due();
        disk.look();
        assert_eq!(disk.closed(), None);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "nothing stays");
    }

    #[tokio::test]
    async fn a_report_waits_until_the_scheduler_knows() {
        let disk = Disk::new(Path::new("/nowhere"));
        disk.until_heard().await;
        disk.refused(&full());
        disk.changed().await;
        let waiting = disk.until_heard();
        tokio::pin!(waiting);
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        disk.heard();
        assert!(futures::poll!(waiting.as_mut()).is_ready());
    }
}
