//! Which segments there are, which blocks they hold, and where each key's rows are.
//!
//! A step's entries are cleared by a tombstone: a block without entries that names the scope; blocks of that scope
//! which lie in older segments, or before it in its own, count no longer. All are cleared by removing the files.

use std::collections::{BTreeMap, HashMap};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::DiskOptions;
use super::segment::{FILE_HEAD, Found, Head, VERSION, file_head, read_head, scan};
use crate::{CacheError, CacheKey, TierStats};

/// A block: its segment and its ordinal there.
pub(super) type BlockId = (u32, u32);

/// Where a key's rows are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) block: BlockId,
    pub(super) row: u32,
    pub(super) rows: u32,
    pub(super) stored_at_ms: i64,
}

/// Where a block's rows are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Body {
    pub(super) at: u64,
    pub(super) len: u64,
    pub(super) sum: [u8; 16],
}

#[derive(Debug)]
struct Segment {
    number: u32,
    file: Arc<File>,
    /// How far it was read.
    read_to: u64,
    /// Its length as the directory says.
    bytes: u64,
    /// Its blocks; the key lists are in the index.
    blocks: Vec<(u128, Option<Body>)>,
    /// Written by another version: counted, never read.
    foreign: bool,
}

#[derive(Debug)]
struct Writer {
    name: String,
    file: File,
    bytes: u64,
}

#[derive(Debug)]
pub(super) struct Index {
    options: DiskOptions,
    /// By file name, which is the order in which they were made.
    segments: BTreeMap<String, Segment>,
    by_number: HashMap<u32, String>,
    places: HashMap<CacheKey, Place>,
    next_number: u32,
    writer: Option<Writer>,
    looked: Option<Instant>,
    warned_version: bool,
    warned_unreadable: bool,
    stats: TierStats,
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> CacheError {
    let path = path.display().to_string();
    move |error| CacheError::Io { path, error }
}

impl Index {
    pub(super) fn open(options: DiskOptions) -> Result<Self, CacheError> {
        // What is cached may be anybody's data: for this user alone.
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&options.directory);
        made.map_err(failed(&options.directory))?;
        let mut index = Self {
            options,
            segments: BTreeMap::new(),
            by_number: HashMap::new(),
            places: HashMap::new(),
            next_number: 0,
            writer: None,
            looked: None,
            warned_version: false,
            warned_unreadable: false,
            stats: TierStats { tier: "disk", ..TierStats::default() },
        };
        index.look()?;
        Ok(index)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.options.directory.join(name)
    }

    /// Looks at the directory again if the last look is old.
    pub(super) fn look_again(&mut self) -> Result<(), CacheError> {
        if self.looked.is_some_and(|at| at.elapsed() < self.options.look_again) {
            return Ok(());
        }
        self.look()
    }

    /// Reads what was added to the directory since the last look, and forgets what was removed.
    fn look(&mut self) -> Result<(), CacheError> {
        let directory = self.options.directory.clone();
        let mut names = BTreeMap::new();
        for entry in std::fs::read_dir(&directory).map_err(failed(&directory))? {
            let entry = entry.map_err(failed(&directory))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name.ends_with(".seg")
                && let Ok(metadata) = entry.metadata()
                && metadata.is_file()
            {
                names.insert(name, metadata.len());
            }
        }
        let gone: Vec<String> = self.segments.keys().filter(|name| !names.contains_key(*name)).cloned().collect();
        self.forget(&gone);
        for (name, bytes) in names {
            self.read_segment(name, bytes);
        }
        self.looked = Some(Instant::now());
        Ok(())
    }

    fn forget(&mut self, names: &[String]) {
        if names.is_empty() {
            return;
        }
        for name in names {
            if let Some(segment) = self.segments.remove(name) {
                self.by_number.remove(&segment.number);
            }
        }
        let before = self.places.len();
        self.places.retain(|_, place| self.by_number.contains_key(&place.block.0));
        self.stats.evicted += (before - self.places.len()) as u64;
    }

    /// Reads the blocks that a segment has more than at the last look.
    fn read_segment(&mut self, name: String, bytes: u64) {
        let path = self.path(&name);
        if !self.segments.contains_key(&name) {
            let Ok(file) = File::open(&path) else { return };
            let foreign = match read_head(&file) {
                Head::Known => false,
                Head::Version(version) => {
                    if !std::mem::replace(&mut self.warned_version, true) {
                        tracing::warn!(
                            file = %path.display(), version, known = VERSION,
                            "the cache on disk holds files of another version; what is in them is a miss"
                        );
                    }
                    self.stats.unreadable += 1;
                    true
                }
                Head::None => return,
            };
            let number = self.next_number;
            self.next_number += 1;
            self.by_number.insert(number, name.clone());
            let file = Arc::new(file);
            let segment = Segment { number, file, read_to: FILE_HEAD, bytes, blocks: Vec::new(), foreign };
            self.segments.insert(name.clone(), segment);
        }
        let Some(segment) = self.segments.get_mut(&name) else { return };
        segment.bytes = bytes;
        if segment.foreign || bytes <= segment.read_to {
            return;
        }
        // A file that cannot be read now is looked at again next time.
        let Ok((found, read_to)) = scan(&segment.file, segment.read_to) else { return };
        segment.read_to = read_to;
        for block in found {
            self.add(&name, block);
        }
    }

    /// Takes a block into the index.
    fn add(&mut self, name: &str, found: Found) {
        let Some(segment) = self.segments.get_mut(name) else { return };
        let id = (segment.number, u32::try_from(segment.blocks.len()).unwrap_or(u32::MAX));
        if found.entries.is_empty() {
            segment.blocks.push((found.scope, None));
            self.bury(found.scope, name);
            return;
        }
        let body = Body { at: found.body_at, len: found.body_len, sum: found.body_sum };
        segment.blocks.push((found.scope, Some(body)));
        for (key, row, rows, stored_at_ms) in found.entries {
            let place = Place { block: id, row, rows, stored_at_ms };
            let newest = self.places.entry(key).or_insert(place);
            if newest.stored_at_ms <= stored_at_ms {
                *newest = place;
            }
        }
    }

    /// Forgets the blocks of a scope in segments up to this one.
    fn bury(&mut self, scope: u128, name: &str) {
        let mut buried = std::collections::HashSet::new();
        for segment in self.segments.range_mut(..=name.to_owned()).map(|(_, segment)| segment) {
            for (ordinal, (owner, body)) in (0u32..).zip(&mut segment.blocks) {
                if *owner == scope && body.take().is_some() {
                    buried.insert((segment.number, ordinal));
                }
            }
        }
        self.places.retain(|_, place| !buried.contains(&place.block));
    }

    pub(super) fn place(&self, key: CacheKey) -> Option<Place> {
        self.places.get(&key).copied()
    }

    /// The file and place of a block's rows.
    pub(super) fn body(&self, block: BlockId) -> Option<(Arc<File>, Body)> {
        let segment = self.segments.get(self.by_number.get(&block.0)?)?;
        let body = segment.blocks.get(block.1 as usize)?.1?;
        Some((segment.file.clone(), body))
    }

    /// A block's rows are not what was written: its entries are misses from now on.
    pub(super) fn unreadable(&mut self, block: BlockId) {
        self.stats.unreadable += 1;
        self.places.retain(|_, place| place.block != block);
        let Some(name) = self.by_number.get(&block.0).cloned() else { return };
        if let Some(slot) = self.segments.get_mut(&name).and_then(|segment| segment.blocks.get_mut(block.1 as usize)) {
            slot.1 = None;
        }
        if !std::mem::replace(&mut self.warned_unreadable, true) {
            let file = self.path(&name);
            tracing::warn!(file = %file.display(), "a block of the cache on disk is corrupt; what was in it is a miss");
        }
    }

    pub(super) fn count(&mut self, hits: u64, misses: u64) {
        self.stats.hits += hits;
        self.stats.misses += misses;
    }

    pub(super) fn stats(&self) -> TierStats {
        TierStats {
            entries: Some(self.places.len() as u64),
            bytes: Some(self.segments.values().map(|segment| segment.bytes).sum()),
            ..self.stats.clone()
        }
    }

    /// Writes one block.
    pub(super) fn append(&mut self, block: &[u8]) -> Result<(), CacheError> {
        let len = block.len() as u64;
        if len + FILE_HEAD > self.options.max_bytes {
            return Ok(());
        }
        self.look_again()?;
        let full = |writer: &Writer| writer.bytes > FILE_HEAD && writer.bytes + len > self.options.segment_bytes;
        // A segment that was removed to make room has no name any more.
        let removed = |writer: &Writer| writer.file.metadata().is_ok_and(|metadata| metadata.nlink() == 0);
        if self.writer.as_ref().is_some_and(|writer| full(writer) || removed(writer)) {
            self.writer = None;
        }
        let mut writer = match self.writer.take() {
            Some(writer) => writer,
            None => self.begin(len)?,
        };
        self.make_room(len, &writer.name)?;
        if let Err(error) = writer.file.write_all(block) {
            // Whatever part was written does not add up; a new segment begins after it. A full disk ends here too.
            let _ = writer.file.set_len(writer.bytes);
            return Err(failed(&self.path(&writer.name))(error));
        }
        writer.bytes += len;
        let (name, bytes) = (writer.name.clone(), writer.bytes);
        self.writer = Some(writer);
        let before = self.places.len();
        self.read_segment(name, bytes);
        self.stats.stored += (self.places.len().saturating_sub(before)) as u64;
        Ok(())
    }

    /// A segment to write to, locked: the newest that has room and that nobody writes, or a new one.
    fn begin(&mut self, len: u64) -> Result<Writer, CacheError> {
        for (name, segment) in self.segments.iter().rev() {
            if segment.foreign || segment.read_to + len > self.options.segment_bytes {
                continue;
            }
            let Ok(file) = OpenOptions::new().read(true).append(true).open(self.path(name)) else { continue };
            if file.try_lock().is_err() {
                continue;
            }
            // Only who holds the lock writes, so what does not add up now never will: it is cut off.
            let Ok((more, end)) = scan(&file, segment.read_to) else { continue };
            let cut = file.metadata().is_ok_and(|metadata| metadata.len() == end) || file.set_len(end).is_ok();
            if !cut || file.metadata().is_ok_and(|metadata| metadata.nlink() == 0) {
                continue;
            }
            let name = name.clone();
            if let Some(segment) = self.segments.get_mut(&name) {
                segment.read_to = end;
                segment.bytes = end;
            }
            more.into_iter().for_each(|block| self.add(&name, block));
            return Ok(Writer { name, file, bytes: end });
        }
        let name = format!("{}.seg", uuid::Uuid::now_v7().simple());
        let path = self.path(&name);
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed(&path))?;
        file.try_lock().map_err(|error| failed(&path)(error.into()))?;
        file.write_all(&file_head(VERSION)).map_err(failed(&path))?;
        self.read_segment(name.clone(), FILE_HEAD);
        Ok(Writer { name, file, bytes: FILE_HEAD })
    }

    /// Removes the oldest segments until `len` bytes fit; never the one that is written to.
    fn make_room(&mut self, len: u64, writing: &str) -> Result<(), CacheError> {
        let mut total: u64 = self.segments.values().map(|segment| segment.bytes).sum();
        let mut gone = Vec::new();
        for (name, segment) in &self.segments {
            if total + len <= self.options.max_bytes {
                break;
            }
            if name != writing {
                total -= segment.bytes;
                gone.push(name.clone());
            }
        }
        self.remove(&gone)
    }

    fn remove(&mut self, names: &[String]) -> Result<(), CacheError> {
        for name in names {
            let path = self.path(name);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(&path)(error)),
                _ => {}
            }
        }
        self.forget(names);
        Ok(())
    }

    /// Forgets a scope's entries, or everything.
    pub(super) fn clear(&mut self, scope: Option<u128>) -> Result<(), CacheError> {
        self.look()?;
        let Some(scope) = scope else {
            self.writer = None;
            let names: Vec<String> = self.segments.keys().cloned().collect();
            return self.remove(&names);
        };
        // Behind everything that is there now: a segment of its own, made last.
        self.writer = None;
        let name = format!("{}.seg", uuid::Uuid::now_v7().simple());
        let path = self.path(&name);
        let mut file =
            OpenOptions::new().append(true).create_new(true).mode(0o600).open(&path).map_err(failed(&path))?;
        let mut bytes = file_head(VERSION);
        bytes.extend(super::segment::tombstone(scope));
        file.write_all(&bytes).map_err(failed(&path))?;
        self.read_segment(name, bytes.len() as u64);
        Ok(())
    }
}
