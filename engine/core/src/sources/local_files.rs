//! The files of this machine as an object store that keeps two promises object_store's own does not.
//!
//! A ranged read of a file that was cut off while it is read ends with [`Truncated`]; the store underneath yields
//! empty pieces for ever, and its readers wait for ever. And a write that fails is remembered under its path: writers
//! of DataFusion report that something failed and drop what.

use std::collections::VecDeque;
use std::error::Error as StdError;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _};
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result, UploadPart,
};
use parking_lot::Mutex;
use rowmill_spec::Format;

use super::format::from_name;

/// Bytes of one read.
const CHUNK_BYTES: u64 = 128 << 10;
/// Failures remembered; runs take theirs away, so only those of programs that never ask stay.
const FAILURES: usize = 1_024;

/// A file ended before the place that a reader was promised.
#[derive(Debug, Clone, thiserror::Error)]
#[error("`{path}` was cut off while it was read: {missing} bytes are missing")]
pub struct Truncated {
    /// The file.
    pub path: String,
    /// Bytes that should have followed.
    pub missing: u64,
}

/// A write that failed.
#[derive(Debug, Clone)]
pub struct WriteFailure {
    /// What was written.
    pub path: ObjectPath,
    /// What the system said, in kind; `None` where it was no I/O error.
    pub kind: Option<io::ErrorKind>,
    /// What the system said.
    pub message: String,
}

#[derive(Debug, Clone, Default)]
struct Failures(Arc<Mutex<VecDeque<WriteFailure>>>);

impl Failures {
    fn note(&self, path: &ObjectPath, error: &Error) {
        let io = io_error(error);
        let failure = WriteFailure {
            path: path.clone(),
            kind: io.map(io::Error::kind),
            message: io.map_or_else(|| error.to_string(), ToString::to_string),
        };
        let mut failures = self.0.lock();
        if failures.len() == FAILURES {
            failures.pop_front();
        }
        failures.push_back(failure);
    }
}

/// The I/O error at the bottom of a store's error.
fn io_error(error: &Error) -> Option<&io::Error> {
    let mut source: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io);
        }
        source = error.source();
    }
    None
}

/// The store of `file://`.
#[derive(Debug, Default)]
pub struct LocalFiles {
    inner: LocalFileSystem,
    failures: Failures,
}

impl LocalFiles {
    /// Takes away the failures of writes to paths that hold `part` (the id of a run), and gives the one to tell: a
    /// full disk before others, because it makes writers fail in their several ways.
    pub fn take_write_failure(&self, part: &str) -> Option<WriteFailure> {
        let mut failures = self.failures.0.lock();
        let (of_run, others): (VecDeque<_>, VecDeque<_>) =
            failures.drain(..).partition(|failure| failure.path.as_ref().contains(part));
        *failures = others;
        drop(failures);
        let is_full = |failure: &&WriteFailure| {
            matches!(failure.kind, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
        };
        of_run.iter().find(is_full).or(of_run.front()).cloned()
    }
}

impl fmt::Display for LocalFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

/// What some editors put before a text. Readers of CSV know it, readers of JSON do not.
const MARK: [u8; 3] = *b"\xef\xbb\xbf";

/// Whether a file is JSON by its name, and begins with a mark.
fn is_marked_json(file: &File, location: &ObjectPath) -> bool {
    let mut begin = [0; MARK.len()];
    from_name(location.as_ref()) == (Some(Format::Json), None)
        && file.read_exact_at(&mut begin, 0).is_ok()
        && begin == MARK
}

/// The pieces of a file from `start` with blanks, which JSON passes over, where its mark is.
fn without_mark(pieces: BoxStream<'static, Result<Bytes>>, start: u64) -> BoxStream<'static, Result<Bytes>> {
    let mut at = start;
    pieces
        .map(move |piece| {
            let piece = piece?;
            let marked = MARK.len().saturating_sub(at as usize).min(piece.len());
            at = at.saturating_add(piece.len() as u64);
            if marked == 0 {
                return Ok(piece);
            }
            let mut blank = piece.to_vec();
            blank.iter_mut().take(marked).for_each(|byte| *byte = b' ');
            Ok(Bytes::from(blank))
        })
        .boxed()
}

/// Reads `range` of `file` piece by piece.
fn read_range(file: File, path: PathBuf, range: Range<u64>) -> BoxStream<'static, Result<Bytes>> {
    let failed = |source: Box<dyn StdError + Send + Sync>| Error::Generic { store: "LocalFiles", source };
    let read = move |file: &mut File, at: u64| -> Result<Option<Bytes>> {
        if at >= range.end {
            return Ok(None);
        }
        let wanted = (range.end - at).min(CHUNK_BYTES);
        let mut piece = Vec::with_capacity(wanted as usize);
        let read = file
            .seek(SeekFrom::Start(at))
            .and_then(|_| file.take(wanted).read_to_end(&mut piece))
            .map_err(|error| failed(Box::new(error)))?;
        match read {
            0 => Err(failed(Box::new(Truncated { path: path.display().to_string(), missing: range.end - at }))),
            _ => Ok(Some(Bytes::from(piece))),
        }
    };
    let start = range.start;
    futures::stream::try_unfold((file, start, read), |(mut file, at, read)| async move {
        // Read in place, as DataFusion reads local files: a piece is in the page cache or worth the wait.
        Ok(read(&mut file, at)?.map(|piece| {
            let next = at + piece.len() as u64;
            (piece, (file, next, read))
        }))
    })
    .boxed()
}

#[async_trait]
impl ObjectStore for LocalFiles {
    async fn put_opts(&self, location: &ObjectPath, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let result = self.inner.put_opts(location, payload, options).await;
        // A condition that does not hold is an answer.
        if let Err(error) = &result
            && !matches!(error, Error::AlreadyExists { .. } | Error::Precondition { .. } | Error::NotImplemented { .. })
        {
            self.failures.note(location, error);
        }
        result
    }

    async fn put_multipart_opts(
        &self,
        location: &ObjectPath,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        match self.inner.put_multipart_opts(location, options).await {
            Ok(inner) => Ok(Box::new(WatchedUpload { inner, path: location.clone(), failures: self.failures.clone() })),
            Err(error) => {
                self.failures.note(location, &error);
                Err(error)
            }
        }
    }

    async fn get_opts(&self, location: &ObjectPath, options: GetOptions) -> Result<GetResult> {
        let (ranged, is_head) = (options.range.is_some(), options.head);
        let result = self.inner.get_opts(location, options).await?;
        Ok(match result.payload {
            GetResultPayload::File(file, path)
                if !is_head && result.range.start < 3 && is_marked_json(&file, location) =>
            {
                let pieces = read_range(file, path, result.range.clone());
                let payload = GetResultPayload::Stream(without_mark(pieces, result.range.start));
                GetResult { payload, meta: result.meta, range: result.range, attributes: result.attributes }
            }
            // Who reads a whole file as a file meets its end; who reads a range of it counts on its length.
            GetResultPayload::File(file, path) if ranged => {
                let payload = GetResultPayload::Stream(read_range(file, path, result.range.clone()));
                GetResult { payload, meta: result.meta, range: result.range, attributes: result.attributes }
            }
            payload => GetResult { payload, meta: result.meta, range: result.range, attributes: result.attributes },
        })
    }

    async fn get_ranges(&self, location: &ObjectPath, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<ObjectPath>>,
    ) -> BoxStream<'static, Result<ObjectPath>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&ObjectPath>,
        offset: &ObjectPath,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &ObjectPath, to: &ObjectPath, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &ObjectPath, to: &ObjectPath, options: RenameOptions) -> Result<()> {
        self.inner.rename_opts(from, to, options).await
    }
}

/// An upload whose failures are remembered.
#[derive(Debug)]
struct WatchedUpload {
    inner: Box<dyn MultipartUpload>,
    path: ObjectPath,
    failures: Failures,
}

#[async_trait]
impl MultipartUpload for WatchedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let part = self.inner.put_part(data);
        let (path, failures) = (self.path.clone(), self.failures.clone());
        async move { part.await.inspect_err(|error| failures.note(&path, error)) }.boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.inner.complete().await.inspect_err(|error| self.failures.note(&self.path, error))
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::TryStreamExt as _;
    use object_store::ObjectStoreExt as _;

    async fn read(store: &LocalFiles, path: &ObjectPath, range: Range<u64>) -> Result<Vec<Bytes>> {
        let options = GetOptions { range: Some(range.into()), ..GetOptions::default() };
        store.get_opts(path, options).await?.into_stream().try_collect().await
    }

    #[tokio::test]
    async fn a_range_is_read_whole_or_fails() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("data");
        let bytes: Vec<u8> = (0..1_000_000_u32).map(|at| at as u8).collect();
        std::fs::write(&file, &bytes).unwrap();
        let path = ObjectPath::from_absolute_path(&file).unwrap();
        let store = LocalFiles::default();
        let pieces = read(&store, &path, 7..900_001).await.unwrap();
        assert!(pieces.len() > 1);
        assert_eq!(pieces.concat(), bytes[7..900_001]);
        assert_eq!(read(&store, &path, 0..10).await.unwrap().concat(), bytes[..10]);
        // As object stores do: what lies behind the end is not there to be read.
        assert_eq!(read(&store, &path, 999_990..2_000_000).await.unwrap().concat(), bytes[999_990..]);

        let options = GetOptions { range: Some((0..1_000_000).into()), ..GetOptions::default() };
        let opened = store.get_opts(&path, options).await.unwrap();
        std::fs::File::options().write(true).open(&file).unwrap().set_len(200_000).unwrap();
        let error = opened.into_stream().try_collect::<Vec<_>>().await.unwrap_err();
        assert!(error.to_string().contains("cut off while it was read: 800000 bytes"), "{error}");
    }

    #[tokio::test]
    async fn json_begins_with_blanks_instead_of_a_mark() {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalFiles::default();
        for (name, expected) in [("a.json", b"   {}\n".as_slice()), ("a.csv", b"\xef\xbb\xbf{}\n")] {
            let file = folder.path().join(name);
            std::fs::write(&file, b"\xef\xbb\xbf{}\n").unwrap();
            let path = ObjectPath::from_absolute_path(&file).unwrap();
            assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), expected, "{name}");
            assert_eq!(read(&store, &path, 1..5).await.unwrap().concat(), expected[1..5], "{name}");
            assert_eq!(read(&store, &path, 3..5).await.unwrap().concat(), b"{}", "{name}");
        }
    }

    #[tokio::test]
    async fn failures_are_kept_by_run() {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalFiles::default();
        // A file stands where a folder is needed.
        std::fs::write(folder.path().join("run-1"), "x").unwrap();
        let path = ObjectPath::from_absolute_path(folder.path().join("run-1")).unwrap().join("out.csv");
        store.put(&path, "x".into()).await.unwrap_err();
        assert!(store.take_write_failure("run-2").is_none());
        let failure = store.take_write_failure("run-1").unwrap();
        assert_eq!(failure.kind, Some(io::ErrorKind::NotADirectory), "{failure:?}");
        assert!(store.take_write_failure("run-1").is_none());
    }
}
