//! The effect log's records, and how the records of one flush are packed into one value of the database.
//!
//! A million effects as a million rows would cost more than the items themselves. The log is only ever read whole, per
//! chunk, after a crash, so one row holds all that one flush wrote for one chunk:
//!
//! ```text
//! version u8 = 1 | records u32 | { key [u8; 16] | kind u8 | length u32 | bytes }* | checksum u64     (little endian)
//! ```
//!
//! The checksum (FNV-1a, 64 bits) is there because a database page that goes bad inside a long value is read back
//! silently.

use std::collections::HashMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::model::ChunkId;

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 5;
const RECORD_BYTES: usize = 21;
const CHECKSUM_BYTES: usize = 8;
/// A packed value is closed when it reaches this size, so that neither side needs a large contiguous buffer.
pub(crate) const PART_BYTES: usize = 4 << 20;

/// The 128-bit key of a request: H(run, step, item), or H(run, step, items in order) for a request for many.
pub type RequestKey = [u8; 16];

/// What a record of the effect log says about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum EffectKind {
    /// A `once` call is about to be sent. If nothing follows, its item becomes `unknown`.
    Intent = 0,
    /// The call has completed: the bytes are its result, and it is never made again.
    Result = 1,
    /// The call announced by the intent never left, or was refused in words: it may be sent again.
    Withdrawn = 2,
}

impl EffectKind {
    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(EffectKind::Intent),
            1 => Some(EffectKind::Result),
            2 => Some(EffectKind::Withdrawn),
            _ => None,
        }
    }
}

/// One record to append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectRecord {
    /// The chunk whose attempt makes the call.
    pub chunk: ChunkId,
    /// The request.
    pub key: RequestKey,
    /// What happened.
    pub kind: EffectKind,
    /// The result; empty for the other kinds.
    pub bytes: Bytes,
}

/// The records of one flush, in the order in which they happened.
///
/// The batch carries an identity, so that appending the same batch twice (because the first reply was lost) stores it
/// once. Build a new batch for every flush.
#[derive(Debug, Clone)]
pub struct EffectBatch {
    pub(crate) id: Uuid,
    /// The records, for any number of chunks.
    pub records: Vec<EffectRecord>,
}

impl EffectBatch {
    /// A batch with a new identity.
    pub fn new(records: Vec<EffectRecord>) -> Self {
        EffectBatch { id: Uuid::new_v4(), records }
    }

    /// The packed values of this batch, sorted by chunk, each with its part number.
    pub(crate) fn pack(&self) -> Vec<(ChunkId, u32, Vec<u8>)> {
        // Records mostly come in runs of one chunk, so an index by chunk that keeps the order within it is enough.
        let mut order: Vec<ChunkId> = Vec::new();
        let mut open: HashMap<ChunkId, Packer> = HashMap::new();
        let mut packed = Vec::new();
        for record in &self.records {
            let packer = open.entry(record.chunk).or_insert_with(|| {
                order.push(record.chunk);
                Packer::new(0)
            });
            packer.push(record);
            if packer.bytes.len() >= PART_BYTES {
                let full = std::mem::replace(packer, Packer::new(packer.part + 1));
                packed.push((record.chunk, full.part, full.finish()));
            }
        }
        for chunk in order {
            if let Some(packer) = open.remove(&chunk)
                && packer.records > 0
            {
                packed.push((chunk, packer.part, packer.finish()));
            }
        }
        packed.sort_by_key(|(chunk, part, _)| (*chunk, *part));
        packed
    }
}

/// What an append did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Appended {
    /// Chunks that were committed already: their records were not stored, and an attempt that still works on one must
    /// stop (and must not send what it announced).
    pub already_committed: Vec<ChunkId>,
}

/// What the effect log knows about one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Announced, and nothing known after that: a `once` item becomes `unknown`.
    Intended,
    /// Completed with this result.
    Completed(Bytes),
}

/// The effect log of one chunk, replayed: a result stands until the call is announced again, and a withdrawn intent
/// leaves what was there before it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChunkEffects {
    /// What is known, by request.
    pub by_key: HashMap<RequestKey, Effect>,
    /// What was known before announcements that are not settled, the oldest first.
    before: HashMap<RequestKey, Vec<Effect>>,
}

impl ChunkEffects {
    /// Replays one packed value; call it in the order of the log. The error says what is damaged.
    pub(crate) fn replay(&mut self, packed: Vec<u8>) -> Result<(), String> {
        let packed = Bytes::from(packed);
        if packed.len() < HEADER_BYTES + CHECKSUM_BYTES {
            return Err("an effect log value is too short".to_owned());
        }
        let body_bytes = packed.len() - CHECKSUM_BYTES;
        if checksum(&packed[..body_bytes]) != read_u64(&packed[body_bytes..]) {
            return Err("an effect log value does not match its checksum".to_owned());
        }
        if packed[0] != VERSION {
            return Err(format!("an effect log value has version {}, known is {VERSION}", packed[0]));
        }
        let records = read_u32(&packed[1..]);
        let mut at = HEADER_BYTES;
        for _ in 0..records {
            if at + RECORD_BYTES > body_bytes {
                return Err("an effect log value ends inside a record".to_owned());
            }
            let mut key = RequestKey::default();
            key.copy_from_slice(&packed[at..at + 16]);
            let kind = EffectKind::from_byte(packed[at + 16]).ok_or("an effect log record has an unknown kind")?;
            let length = read_u32(&packed[at + 17..]) as usize;
            at += RECORD_BYTES;
            if length > body_bytes - at {
                return Err("an effect log value ends inside a result".to_owned());
            }
            self.apply(key, kind, packed.slice(at..at + length));
            at += length;
        }
        if at != body_bytes {
            return Err("an effect log value has bytes after its last record".to_owned());
        }
        Ok(())
    }

    fn apply(&mut self, key: RequestKey, kind: EffectKind, bytes: Bytes) {
        match kind {
            EffectKind::Result => {
                self.by_key.insert(key, Effect::Completed(bytes));
                self.before.remove(&key);
            }
            // Over a result too: a call that was refused and is made again has not ended yet.
            EffectKind::Intent => {
                if let Some(before) = self.by_key.insert(key, Effect::Intended) {
                    self.before.entry(key).or_default().push(before);
                }
            }
            // Only the newest announcement is taken back, not that of an earlier attempt.
            EffectKind::Withdrawn => {
                if self.by_key.get(&key) != Some(&Effect::Intended) {
                    return;
                }
                match self.before.get_mut(&key).and_then(Vec::pop) {
                    Some(before) => self.by_key.insert(key, before),
                    None => self.by_key.remove(&key),
                };
            }
        }
    }
}

struct Packer {
    part: u32,
    records: u32,
    bytes: Vec<u8>,
}

impl Packer {
    fn new(part: u32) -> Self {
        Packer { part, records: 0, bytes: vec![VERSION, 0, 0, 0, 0] }
    }

    fn push(&mut self, record: &EffectRecord) {
        self.records += 1;
        self.bytes.extend_from_slice(&record.key);
        self.bytes.push(record.kind as u8);
        self.bytes.extend_from_slice(&(record.bytes.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(&record.bytes);
    }

    fn finish(mut self) -> Vec<u8> {
        self.bytes[1..HEADER_BYTES].copy_from_slice(&self.records.to_le_bytes());
        let sum = checksum(&self.bytes);
        self.bytes.extend_from_slice(&sum.to_le_bytes());
        self.bytes
    }
}

fn read_u32(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |word| u32::from_le_bytes(*word))
}

fn read_u64(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |word| u64::from_le_bytes(*word))
}

/// FNV-1a over 8-byte words and then over the rest (the byte-wise form costs as much as writing the bytes).
fn checksum(bytes: &[u8]) -> u64 {
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let mut sum: u64 = 0xcbf2_9ce4_8422_2325;
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        sum = (sum ^ u64::from_le_bytes(*word)).wrapping_mul(PRIME);
        // The product moves information upwards only; folding lets the low half see it too.
        sum ^= sum >> 32;
    }
    for byte in rest {
        sum = (sum ^ u64::from(*byte)).wrapping_mul(PRIME);
    }
    sum
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(chunk: u64, key: u8, kind: EffectKind, bytes: &'static [u8]) -> EffectRecord {
        let chunk = ChunkId { version: 1, stage: 0, chunk };
        EffectRecord { chunk, key: [key; 16], kind, bytes: Bytes::from_static(bytes) }
    }

    #[test]
    fn a_result_stands_until_an_intent_and_a_withdrawn_intent_is_gone() {
        let batch = EffectBatch::new(vec![
            record(0, 1, EffectKind::Intent, b""),
            record(0, 1, EffectKind::Result, b"r"),
            record(0, 1, EffectKind::Withdrawn, b""),
            record(0, 4, EffectKind::Result, b"refused"),
            record(0, 4, EffectKind::Intent, b""),
            record(0, 5, EffectKind::Result, b"refused"),
            record(0, 5, EffectKind::Intent, b""),
            record(0, 5, EffectKind::Withdrawn, b""),
            record(0, 6, EffectKind::Intent, b""),
            record(0, 6, EffectKind::Intent, b""),
            record(0, 6, EffectKind::Withdrawn, b""),
            record(0, 2, EffectKind::Intent, b""),
            record(0, 3, EffectKind::Intent, b""),
            record(0, 3, EffectKind::Withdrawn, b""),
        ]);
        let mut effects = ChunkEffects::default();
        for (_, _, packed) in batch.pack() {
            effects.replay(packed).unwrap();
        }
        assert_eq!(effects.by_key.get(&[1; 16]), Some(&Effect::Completed(Bytes::from_static(b"r"))));
        assert_eq!(effects.by_key.get(&[2; 16]), Some(&Effect::Intended));
        assert_eq!(effects.by_key.get(&[4; 16]), Some(&Effect::Intended));
        assert_eq!(effects.by_key.get(&[5; 16]), Some(&Effect::Completed(Bytes::from_static(b"refused"))));
        assert_eq!(effects.by_key.get(&[6; 16]), Some(&Effect::Intended), "an earlier attempt's");
        assert_eq!(effects.by_key.len(), 5);
    }

    #[test]
    fn large_batches_are_cut_into_parts() {
        let big: &'static [u8] = Box::leak(vec![7u8; PART_BYTES / 2].into_boxed_slice());
        let batch =
            EffectBatch::new((0..5).map(|key| record(u64::from(key) % 2, key, EffectKind::Result, big)).collect());
        let packed = batch.pack();
        assert!(packed.len() >= 3, "{}", packed.len());
        let mut keys = 0;
        for chunk in 0..2 {
            let mut effects = ChunkEffects::default();
            for (_, _, bytes) in packed.iter().filter(|(id, _, _)| id.chunk == chunk) {
                effects.replay(bytes.clone()).unwrap();
            }
            keys += effects.by_key.len();
        }
        assert_eq!(keys, 5);
    }

    proptest! {
        #[test]
        fn damage_is_found_and_never_panics(keys in prop::collection::vec(any::<u8>(), 0..20), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let batch = EffectBatch::new(keys.iter().map(|key| record(0, *key, EffectKind::Result, b"some bytes")).collect());
            for (_, _, packed) in batch.pack() {
                prop_assert!(ChunkEffects::default().replay(packed.clone()).is_ok());
                let mut damaged = packed.clone();
                damaged[at.index(packed.len())] ^= 1 << bit;
                prop_assert!(ChunkEffects::default().replay(damaged).is_err());
                let cut = at.index(packed.len());
                prop_assert!(ChunkEffects::default().replay(packed[..cut].to_vec()).is_err());
            }
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = ChunkEffects::default().replay(bytes);
        }
    }
}
