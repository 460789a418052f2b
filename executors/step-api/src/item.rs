//! Who an item is, and under which key its calls are made.
//!
//! The hash is BLAKE3 in keyed mode, cut to 128 bits. It is part of the format of the effect log and of what services
//! see in their `Idempotency-Key` header, so it never changes within one version of either:
//!
//! ```text
//! secret = BLAKE3.derive_key("rowmill 2026 item key v1", len64(run) run len64(step) step)
//! key of an item    = first 16 bytes of BLAKE3.keyed(secret, 0x00 file:u32le row:u64le)
//! key of a request  = first 16 bytes of BLAKE3.keyed(secret, 0x01 key key key ...), the items' keys in order
//! ```
//!
//! `len64` is the length in bytes as a little-endian u64, so that no two pairs of names run together. The first byte
//! keeps the key of a request for one item apart from the key of that item.

use std::ops::Range;

use arrow::array::{UInt32Array, UInt64Array};

/// An item's identity: which source file (its ordinal in the chunk manifest) and which row of it. Barriers and
/// fan-out mint new ones, with a file ordinal that stands for the step that minted them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ItemId {
    /// Ordinal of the source file in the run's manifest.
    pub file: u32,
    /// Row within that file, from 0.
    pub row: u64,
}

impl std::fmt::Display for ItemId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file, self.row)
    }
}

/// The idempotency key of a call: 128 bits, written as 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ItemKey(pub [u8; 16]);

impl ItemKey {
    /// The key as text for a header, without allocating.
    pub fn to_text(self) -> [u8; 32] {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0u8; 32];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.0) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        text
    }
}

impl std::fmt::Display for ItemKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for ItemKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ItemKey({self})")
    }
}

/// Makes the keys of one step of one run.
#[derive(Clone)]
pub struct KeyDeriver {
    secret: [u8; 32],
}

impl std::fmt::Debug for KeyDeriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyDeriver")
    }
}

impl KeyDeriver {
    /// Keys of `step` in the run `run` (its id as text).
    pub fn new(run: &str, step: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("rowmill 2026 item key v1");
        for part in [run, step] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        Self { secret: *hasher.finalize().as_bytes() }
    }

    /// The key of one item.
    pub fn item(&self, id: ItemId) -> ItemKey {
        let mut message = [0u8; 13];
        message[1..5].copy_from_slice(&id.file.to_le_bytes());
        message[5..].copy_from_slice(&id.row.to_le_bytes());
        first_half(blake3::keyed_hash(&self.secret, &message))
    }

    /// The key of a request that carries many items, from their keys in the order they are sent.
    pub fn request(&self, keys: impl IntoIterator<Item = ItemKey>) -> ItemKey {
        let mut hasher = blake3::Hasher::new_keyed(&self.secret);
        hasher.update(&[1]);
        for key in keys {
            hasher.update(&key.0);
        }
        first_half(hasher.finalize())
    }
}

fn first_half(hash: blake3::Hash) -> ItemKey {
    let mut key = [0u8; 16];
    key.copy_from_slice(&hash.as_bytes()[..16]);
    ItemKey(key)
}

/// The identities of a batch's items. A slice of a file costs nothing per item.
#[derive(Debug, Clone)]
pub enum ItemIds {
    /// Consecutive rows of one file.
    Range {
        /// Ordinal of the file.
        file: u32,
        /// The rows.
        rows: Range<u64>,
    },
    /// Any items, as two columns without nulls and of one length.
    Columns {
        /// Ordinals of the files.
        file: UInt32Array,
        /// Rows within the files.
        row: UInt64Array,
    },
}

impl ItemIds {
    /// How many items.
    pub fn len(&self) -> usize {
        match self {
            Self::Range { rows, .. } => usize::try_from(rows.end.saturating_sub(rows.start)).unwrap_or(usize::MAX),
            Self::Columns { row, .. } => row.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The identity of the item at `index`, which must be less than [`ItemIds::len`].
    pub fn get(&self, index: usize) -> ItemId {
        match self {
            Self::Range { file, rows } => ItemId { file: *file, row: rows.start + index as u64 },
            Self::Columns { file, row } => ItemId { file: file.value(index), row: row.value(index) },
        }
    }

    /// `length` of them from `offset` on, without copying.
    pub fn slice(&self, offset: usize, length: usize) -> Self {
        match self {
            Self::Range { file, rows } => {
                let start = rows.start + offset as u64;
                Self::Range { file: *file, rows: start..start + length as u64 }
            }
            Self::Columns { file, row } => {
                Self::Columns { file: file.slice(offset, length), row: row.slice(offset, length) }
            }
        }
    }
}

/// The keys of a batch's items, derived when asked for: a step that sends no key pays nothing for them.
#[derive(Debug, Clone)]
pub struct ItemKeys {
    ids: ItemIds,
    deriver: std::sync::Arc<KeyDeriver>,
}

impl ItemKeys {
    /// Keys of `ids` by `deriver`.
    pub fn new(ids: ItemIds, deriver: std::sync::Arc<KeyDeriver>) -> Self {
        Self { ids, deriver }
    }

    /// How many items.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The identities.
    pub fn ids(&self) -> &ItemIds {
        &self.ids
    }

    /// The key of the item at `index`.
    pub fn key(&self, index: usize) -> ItemKey {
        self.deriver.item(self.ids.get(index))
    }

    /// The key of one request for all of them, in order.
    pub fn request_key(&self) -> ItemKey {
        self.deriver.request((0..self.len()).map(|index| self.key(index)))
    }

    /// The keys of `length` items from `offset` on.
    pub fn slice(&self, offset: usize, length: usize) -> Self {
        Self { ids: self.ids.slice(offset, length), deriver: self.deriver.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn range(rows: Range<u64>) -> ItemKeys {
        ItemKeys::new(ItemIds::Range { file: 3, rows }, Arc::new(KeyDeriver::new("run-1", "weather")))
    }

    #[test]
    fn keys_never_change() {
        // Written down once: a change here breaks effect logs and what services saw.
        let keys = range(7..9);
        assert_eq!(keys.key(0).to_string(), "62a8b502bfae3c37df6fef4bceee2274");
        assert_eq!(keys.request_key().to_string(), "05d70ecaaefa6b678654a5a9140372f8");
        assert_eq!(keys.key(1).to_text().as_slice(), keys.key(1).to_string().as_bytes());
    }

    #[test]
    fn keys_differ_by_run_step_item_and_order() {
        let id = ItemId { file: 0, row: 1 };
        let base = KeyDeriver::new("run", "step").item(id);
        assert_ne!(base, KeyDeriver::new("runs", "tep").item(id));
        assert_ne!(base, KeyDeriver::new("run", "step").item(ItemId { file: 1, row: 0 }));
        let deriver = KeyDeriver::new("run", "step");
        let other = deriver.item(ItemId { file: 0, row: 2 });
        assert_ne!(deriver.request([base, other]), deriver.request([other, base]));
        assert_ne!(deriver.request([base]), base);
    }

    #[test]
    fn slices_and_columns_name_the_same_items() {
        let keys = range(100..200);
        let columns = ItemIds::Columns {
            file: UInt32Array::from_iter_values((100..200).map(|_| 3)),
            row: UInt64Array::from_iter_values(100..200),
        };
        let columns = ItemKeys::new(columns, Arc::new(KeyDeriver::new("run-1", "weather")));
        for index in 0..10 {
            assert_eq!(keys.slice(40, 10).key(index), columns.slice(40, 10).key(index));
            assert_eq!(keys.slice(40, 10).key(index), keys.key(40 + index));
        }
        assert_eq!((keys.slice(40, 10).len(), columns.slice(40, 10).len()), (10, 10));
        assert!(keys.slice(5, 0).is_empty());
    }
}
