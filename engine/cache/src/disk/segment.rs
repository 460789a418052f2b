//! Segment files: their bytes, how a block is written, and how blocks are found again.
//!
//! ```text
//! file   = "RMCACHE\n" version:u32 0:u32, then blocks
//! block  = "RMBLOCK\n" body_len:u64 scope:u128 entries:u32 0:u32 body_sum:[16] list_sum:[16], list, body
//! list   = for each entry: key:u128 stored_at_ms:i64 rows:u32
//! body   = an Arrow IPC stream of one batch: the rows of all entries in order
//! ```
//!
//! Numbers are little-endian; sums are the first half of a BLAKE3 hash, `list_sum` over the block's head before it and
//! the list, `body_sum` over the body. A block is written by one call and never changed. What does not add up is where
//! a segment ends for now: a block that is still being written, or was when its process died.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;

use crate::{CacheKey, Entries};

/// The version of the format.
pub(super) const VERSION: u32 = 1;

/// Bytes of a file's head.
pub(super) const FILE_HEAD: u64 = 16;

const FILE_MAGIC: &[u8; 8] = b"RMCACHE\n";
const BLOCK_MAGIC: &[u8; 8] = b"RMBLOCK\n";
const BLOCK_HEAD: usize = 72;
const ENTRY: usize = 28;

/// The most entries a block is believed to have, so that a corrupt number asks for no memory.
const MAX_ENTRIES: u32 = 1 << 26;

/// A file's head.
pub(super) fn file_head(version: u32) -> Vec<u8> {
    let mut head = FILE_MAGIC.to_vec();
    head.extend(version.to_le_bytes());
    head.extend([0; 4]);
    head
}

/// What a file's head says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// It is ours.
    Known,
    /// It is ours, of another version.
    Version(u32),
    /// It is not there yet, or not ours.
    None,
}

pub(super) fn read_head(file: &File) -> Head {
    let mut head = [0u8; FILE_HEAD as usize];
    if file.read_exact_at(&mut head, 0).is_err() || &head[..8] != FILE_MAGIC {
        return Head::None;
    }
    match u32_at(&head, 8) {
        VERSION => Head::Known,
        other => Head::Version(other),
    }
}

/// One block as it was found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) scope: u128,
    /// Where the body begins, in bytes from the file's start.
    pub(super) body_at: u64,
    pub(super) body_len: u64,
    pub(super) body_sum: [u8; 16],
    /// Key, first row, rows, time.
    pub(super) entries: Vec<(CacheKey, u32, u32, i64)>,
}

fn sum(parts: &[&[u8]]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    let mut half = [0u8; 16];
    half.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    half
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0u8; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

/// The bytes of one block.
pub(super) fn block(scope: u128, entries: &Entries<'_>, body: &[u8]) -> Vec<u8> {
    let count = entries.keys.len();
    let mut bytes = Vec::with_capacity(BLOCK_HEAD + count * ENTRY + body.len());
    bytes.extend(BLOCK_MAGIC);
    bytes.extend((body.len() as u64).to_le_bytes());
    bytes.extend(scope.to_le_bytes());
    bytes.extend(u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(sum(&[body]));
    let list_sum_at = bytes.len();
    bytes.extend([0; 16]);
    for (key, _, rows, stored_at_ms) in entries.iter() {
        bytes.extend(key.0.to_le_bytes());
        bytes.extend(stored_at_ms.to_le_bytes());
        bytes.extend(rows.to_le_bytes());
    }
    let list_sum = sum(&[&bytes[..list_sum_at], &bytes[BLOCK_HEAD..]]);
    bytes[list_sum_at..BLOCK_HEAD].copy_from_slice(&list_sum);
    bytes.extend_from_slice(body);
    bytes
}

/// Finds the whole blocks from `at` on; returns them with where the next one will begin.
pub(super) fn scan(mut file: &File, mut at: u64) -> std::io::Result<(Vec<Found>, u64)> {
    let end = file.metadata()?.len();
    let mut found = Vec::new();
    while at + BLOCK_HEAD as u64 <= end {
        let mut head = [0u8; BLOCK_HEAD];
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut head)?;
        let body_len = u64::from_le_bytes(array_at(&head, 8));
        let count = u32_at(&head, 32);
        let list_len = u64::from(count) * ENTRY as u64;
        let body_at = at + BLOCK_HEAD as u64 + list_len;
        let whole = body_at.checked_add(body_len).is_some_and(|block_end| block_end <= end);
        if &head[..8] != BLOCK_MAGIC || count > MAX_ENTRIES || !whole {
            break;
        }
        let mut list = vec![0u8; usize::try_from(list_len).unwrap_or(0)];
        file.read_exact(&mut list)?;
        if sum(&[&head[..BLOCK_HEAD - 16], &list]) != head[BLOCK_HEAD - 16..] {
            break;
        }
        let mut row = 0u32;
        let mut entries = Vec::with_capacity(count as usize);
        for entry in list.chunks_exact(ENTRY) {
            let key = CacheKey(u128::from_le_bytes(array_at(entry, 0)));
            let rows = u32_at(entry, 24);
            entries.push((key, row, rows, i64::from_le_bytes(array_at(entry, 16))));
            row = row.saturating_add(rows);
        }
        let scope = u128::from_le_bytes(array_at(&head, 16));
        found.push(Found { scope, body_at, body_len, body_sum: array_at(&head, 40), entries });
        at = body_at + body_len;
    }
    Ok((found, at))
}

/// Reads a body; `None` if it is not what was written.
pub(super) fn read_body(file: &File, at: u64, len: u64, expected: [u8; 16]) -> Option<Vec<u8>> {
    let mut body = vec![0u8; usize::try_from(len).ok()?];
    file.read_exact_at(&mut body, at).ok()?;
    (sum(&[&body]) == expected).then_some(body)
}

/// A block that says that a scope was cleared.
pub(super) fn tombstone(scope: u128) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK_HEAD);
    bytes.extend(BLOCK_MAGIC);
    bytes.extend(0u64.to_le_bytes());
    bytes.extend(scope.to_le_bytes());
    bytes.extend([0; 8]);
    bytes.extend(sum(&[&[]]));
    bytes.extend(sum(&[&bytes]));
    bytes
}
