//! Memory that a worker process and this one share: columns are written into it once and read where they lie.
//!
//! ```text
//!  this process                                          worker
//!  `to`    written by pwrite ──────▶ segments ──────▶ mapped read-only, given to the function as it is
//!  `from`  mapped read-only, becomes Arrow buffers ◀── segments ◀────── written by pwrite
//! ```
//! Both are files that lie in memory and have no name (`memfd_create`): the worker inherits their descriptors, and they
//! are gone when both processes are, however those ended. They cannot be made shorter (sealed), so that a mapping never
//! loses its pages. Whoever writes a file divides it into segments and chooses one for each group; whoever reads it
//! says with each frame which ones it still looks at, and those are not written again. A segment is named in a frame
//! (`at`), which is sent when it is written whole: what a process that died was writing is never looked at.
//!
//! Small groups, and groups for which no segment is free, go through the pipe; so does everything where the system has
//! no such files or no memory for them.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::ptr::NonNull;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::datatypes::SchemaRef;
use rustix::fs::{MemfdFlags, SealFlags};
use serde_json::{Value as Json, json};

use crate::wire::{Broken, slice_bytes, write_batch};

/// Groups of fewer bytes go through the pipe, where a frame costs less than finding a segment.
const LEAST_BYTES: usize = 256 << 10;
/// The smallest segment.
const SEGMENT_BYTES: u64 = 1 << 20;
/// Segments of one file.
const SEGMENTS: usize = 8;
/// Answers that stay where they are; further ones are copied, so that the worker always has a free segment.
const HELD: usize = 4;
/// What a group takes beside its columns: the schema, and the head of each buffer.
const OVERHEAD_BYTES: usize = 1 << 10;

/// A part of a file: where it starts, how long it is, and how much of it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    offset: u64,
    capacity: u64,
    length: u64,
}

impl Place {
    /// As a frame says it.
    pub(crate) fn to_json(self) -> Json {
        json!([self.offset, self.capacity, self.length])
    }

    /// Bytes that are used.
    pub(crate) fn length(self) -> u64 {
        self.length
    }

    /// From a frame; `None` where it says none.
    ///
    /// # Errors
    /// What stands there is no place.
    pub(crate) fn from_json(said: &Json) -> Result<Option<Self>, Broken> {
        if said.is_null() {
            return Ok(None);
        }
        let number = |at: usize| said[at].as_u64();
        match (number(0), number(1), number(2)) {
            (Some(offset), Some(capacity), Some(length)) if length <= capacity => {
                Ok(Some(Self { offset, capacity, length }))
            }
            _ => Err(Broken::Nonsense(format!("its answer lies at {said}"))),
        }
    }
}

/// The memory of one worker process.
#[derive(Debug)]
pub(crate) struct Shared {
    to: Arc<File>,
    from: Arc<File>,
    segments: Vec<Segment>,
    end: u64,
    /// Parts of `from`, by where they start.
    seen: BTreeMap<u64, Arc<Mapping>>,
}

/// A part of `to`.
#[derive(Debug)]
struct Segment {
    offset: u64,
    capacity: u64,
    free: bool,
}

fn memory(name: &str) -> io::Result<Arc<File>> {
    let file = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(Arc::new(File::from(file)))
}

impl Shared {
    /// Two empty files.
    ///
    /// # Errors
    /// When the system has none, or no descriptors are left.
    pub(crate) fn try_new() -> io::Result<Self> {
        let (to, from) = (memory("rowmill-to-worker")?, memory("rowmill-from-worker")?);
        Ok(Self { to, from, segments: Vec::new(), end: 0, seen: BTreeMap::new() })
    }

    /// The files, for a process that is to inherit them.
    pub(crate) fn files(&self) -> [Arc<File>; 2] {
        [Arc::clone(&self.to), Arc::clone(&self.from)]
    }

    /// The numbers of their descriptors, which are the same in the worker.
    pub(crate) fn to_json(&self) -> Json {
        json!([self.to.as_raw_fd(), self.from.as_raw_fd()])
    }

    /// Writes a group into a free segment; `None` where it is small or none is free, so that the pipe is the way.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub(crate) fn put(&mut self, batch: &RecordBatch, schema: &SchemaRef) -> io::Result<Option<Place>> {
        let bytes = slice_bytes(batch);
        if bytes < LEAST_BYTES {
            return Ok(None);
        }
        // Encodings that are made plain on the way may take twice as much; what is longer still goes through the pipe.
        let bytes = (2 * bytes + OVERHEAD_BYTES * (1 + batch.num_columns())) as u64;
        let at = self.free(bytes)?;
        let Some(segment) = at.and_then(|at| self.segments.get_mut(at)) else { return Ok(None) };
        let mut sink = Sink { file: &self.to, at: segment.offset, end: segment.offset + segment.capacity };
        match write_batch(&mut sink, batch, schema) {
            Ok(()) => {
                let length = sink.at - segment.offset;
                segment.free = false;
                Ok(Some(Place { offset: segment.offset, capacity: segment.capacity, length }))
            }
            Err(arrow::error::ArrowError::IoError(_, error)) if error.kind() != io::ErrorKind::WriteZero => Err(error),
            // It did not fit, or cannot be said at all, which the pipe's way finds too.
            Err(_) => Ok(None),
        }
    }

    /// The smallest free segment of so many bytes, by its number; a new one where there is room for one.
    fn free(&mut self, bytes: u64) -> io::Result<Option<usize>> {
        let fits = |at: &usize| self.segments.get(*at).is_some_and(|of| of.free && of.capacity >= bytes);
        let smallest =
            (0..self.segments.len()).filter(fits).min_by_key(|at| self.segments.get(*at).map(|of| of.capacity));
        if smallest.is_some() {
            return Ok(smallest);
        }
        if self.segments.len() >= SEGMENTS {
            // One that is too small makes room for a larger one. Its memory stays with the file: as sizes double, that
            // is less than the new one takes.
            let Some(small) = self.segments.iter().position(|segment| segment.free) else { return Ok(None) };
            self.segments.swap_remove(small);
        }
        let capacity = bytes.next_power_of_two().max(SEGMENT_BYTES);
        self.to.set_len(self.end + capacity)?;
        self.segments.push(Segment { offset: self.end, capacity, free: true });
        self.end += capacity;
        Ok(Some(self.segments.len() - 1))
    }

    /// What the worker still looks at, as its answer says; all other segments are free.
    pub(crate) fn settle(&mut self, held: &Json) {
        let held: Vec<u64> = held.as_array().into_iter().flatten().filter_map(Json::as_u64).collect();
        for segment in &mut self.segments {
            segment.free = !held.contains(&segment.offset);
        }
    }

    /// The answers that somebody here still looks at, for the next frame.
    pub(crate) fn held(&mut self) -> Json {
        let held = self.seen.iter_mut().filter_map(|(offset, mapping)| match Arc::get_mut(mapping) {
            // Nobody else has it, and nobody can get it from somebody else; what they read they have read.
            Some(_) => None,
            None => Some(json!(offset)),
        });
        Json::Array(held.collect())
    }

    /// An answer that the worker wrote; a part of the file, or a copy where much of it is looked at already.
    ///
    /// # Errors
    /// There is no such place.
    pub(crate) fn get(&mut self, place: Place, most: usize) -> Result<Buffer, Broken> {
        let nonsense = |why: String| Broken::Nonsense(format!("its answer lies at {place:?}: {why}"));
        let length = usize::try_from(place.length).ok().filter(|length| *length <= most);
        let length = length.ok_or(Broken::TooLarge(most))?;
        let known = self.seen.get(&place.offset).is_some_and(|mapping| mapping.length as u64 == place.capacity);
        if !known {
            let size = self.from.metadata().map_err(|error| nonsense(error.to_string()))?.len();
            let end = place.offset.checked_add(place.capacity).filter(|end| *end <= size);
            end.ok_or_else(|| nonsense(format!("the file has {size} bytes")))?;
            if self.seen.len() >= SEGMENTS {
                self.seen.retain(|_, mapping| Arc::get_mut(mapping).is_none());
            }
            let mapping = Mapping::of(&self.from, place.offset, place.capacity);
            let mapping = mapping.map_err(|error| nonsense(error.to_string()))?;
            self.seen.insert(place.offset, Arc::new(mapping));
        }
        let held = self.seen.values_mut().filter_map(|mapping| Arc::get_mut(mapping).is_none().then_some(())).count();
        let mapping = self.seen.get(&place.offset).ok_or_else(|| nonsense("it is gone".to_owned()))?;
        if Arc::strong_count(mapping) > 1 {
            return Err(nonsense("an earlier answer lies there".to_owned()));
        }
        if held >= HELD {
            return Ok(Buffer::from(mapping.bytes(length)));
        }
        // SAFETY: the mapping is as long as its segment, in which the length was held; the buffer keeps it, and the
        // worker is told that it may not write there for as long as somebody does.
        Ok(unsafe { Buffer::from_custom_allocation(mapping.start, length, Arc::clone(mapping) as _) })
    }
}

/// Lets a child inherit the files, for use between fork and exec: system calls alone.
pub(crate) fn inherit(files: &[Arc<File>]) -> io::Result<()> {
    for file in files {
        rustix::io::fcntl_setfd(file, rustix::io::FdFlags::empty())?;
    }
    Ok(())
}

/// Writes into a segment and not past its end.
struct Sink<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl io::Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let some = bytes.get(..bytes.len().min(room)).unwrap_or_default();
        let written = self.file.write_at(some, self.at)?;
        self.at += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A part of a file, mapped to be read.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: it is memory that nobody of this process writes, and it stays where it is until it is dropped.
unsafe impl Send for Mapping {}
// SAFETY: as above; there is no way to write through it.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn of(file: &File, offset: u64, length: u64) -> io::Result<Self> {
        let wrong = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let (length, offset) = (usize::try_from(length).map_err(wrong)?, libc::off_t::try_from(offset).map_err(wrong)?);
        // SAFETY: a new mapping where the system chooses touches no memory of ours. The file is sealed against becoming
        // shorter and was seen to reach to the end of this part, so that every page of it is there.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), offset)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { start, length })
    }

    fn bytes(&self, length: usize) -> &[u8] {
        // SAFETY: the mapping lives as long as the borrow and is at least this long; the worker was told to leave it.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), length.min(self.length)) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: these are the address and the length that the system gave, and nothing borrows from it any more.
        unsafe {
            libc::munmap(self.start.as_ptr().cast::<c_void>(), self.length);
        }
    }
}
