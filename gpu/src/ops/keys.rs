//! Keys of groups and joins as 64-bit words, in the kernels and on the CPU alike.
//!
//! A single key of up to 64 bits is one word, its null a case of its own. Several keys that fit 64 bits together, a bit
//! for each that can be null included, are packed into one word. Anything wider is one word per key (two for decimals)
//! and a last one with the null bits.
use std::fmt::Write as _;

use arrow::array::{Array, ArrayData, ArrayRef, AsArray, make_array};
use arrow::buffer::{BooleanBuffer, Buffer, NullBuffer};
use arrow::datatypes::{Decimal128Type, Schema, SchemaRef};

use crate::error::{Error, Result};
use crate::expr::cuda::Value;
use crate::expr::{GpuExpr, Physical};

/// How the keys of one query are laid out.
#[derive(Debug, Clone)]
pub(crate) struct KeyPlan {
    pub(crate) expressions: Vec<GpuExpr>,
    parts: Vec<Part>,
    /// 64-bit words of a key as it leaves the device.
    pub(crate) words: usize,
    /// Whether a key is compared by its one word.
    pub(crate) packed: bool,
    /// Whether null is a slot of its own: the only key can be null and takes all 64 bits.
    pub(crate) has_null_slot: bool,
}

#[derive(Debug, Clone, Copy)]
struct Part {
    physical: Physical,
    word: usize,
    shift: u32,
    /// Word and bit that say "null".
    null: Option<(usize, u32)>,
}

fn bits(physical: Physical) -> u32 {
    match physical {
        Physical::Bool => 1,
        other => u32::try_from(other.bytes() * 8).unwrap_or(128),
    }
}

impl KeyPlan {
    pub(crate) fn try_new(schema: &Schema, expressions: Vec<GpuExpr>) -> Result<Self> {
        if expressions.is_empty() {
            return Err(Error::Unsupported("grouping and joining without keys".into()));
        }
        let mut physicals = Vec::with_capacity(expressions.len());
        for expr in &expressions {
            let nullable = match expr {
                GpuExpr::Column(at) => schema.fields().get(*at).is_none_or(|field| field.is_nullable()),
                _ => true,
            };
            physicals.push((Physical::try_from(&expr.data_type(schema)?)?, nullable));
        }
        if let [(physical, nullable)] = physicals[..]
            && bits(physical) <= 64
        {
            // The second word of what leaves the device says whether the key is null.
            let part = Part { physical, word: 0, shift: 0, null: nullable.then_some((1, 0)) };
            let words = if nullable { 2 } else { 1 };
            return Ok(Self { expressions, parts: vec![part], words, packed: true, has_null_slot: nullable });
        }
        let total: u32 = physicals.iter().map(|(physical, nullable)| bits(*physical) + u32::from(*nullable)).sum();
        let mut parts = Vec::with_capacity(physicals.len());
        if total <= 64 {
            let mut shift = 0;
            for (physical, nullable) in physicals {
                let null = nullable.then_some((0, shift + bits(physical)));
                parts.push(Part { physical, word: 0, shift, null });
                shift += bits(physical) + u32::from(nullable);
            }
            return Ok(Self { expressions, parts, words: 1, packed: true, has_null_slot: false });
        }
        if physicals.len() > 64 {
            return Err(Error::Unsupported("more than 64 keys".into()));
        }
        let null_word: usize = physicals.iter().map(|(physical, _)| if bits(*physical) > 64 { 2 } else { 1 }).sum();
        let mut word = 0;
        for (index, (physical, nullable)) in physicals.into_iter().enumerate() {
            let null = nullable.then_some((null_word, index as u32));
            parts.push(Part { physical, word, shift: 0, null });
            word += if bits(physical) > 64 { 2 } else { 1 };
        }
        Ok(Self { expressions, parts, words: null_word + 1, packed: false, has_null_slot: false })
    }

    /// The layout of a join's keys: words only, the same on both sides. Nulls match nothing and need no bits.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for floats, whose zeros and NaNs every join treats in its own way.
    pub(crate) fn for_join(schema: &Schema, expressions: Vec<GpuExpr>) -> Result<Self> {
        let mut parts = Vec::with_capacity(expressions.len());
        let mut word = 0;
        for expr in &expressions {
            let physical = Physical::try_from(&expr.data_type(schema)?)?;
            if physical.is_float() {
                return Err(Error::Unsupported("a join on floats".into()));
            }
            parts.push(Part { physical, word, shift: 0, null: None });
            word += if bits(physical) > 64 { 2 } else { 1 };
        }
        if parts.is_empty() {
            return Err(Error::Unsupported("grouping and joining without keys".into()));
        }
        Ok(Self { expressions, parts, words: word, packed: false, has_null_slot: false })
    }

    /// CUDA C that fills `key[]` and, for a single key, `is_null`.
    pub(crate) fn write(&self, values: &[Value]) -> String {
        let mut text = String::new();
        for word in 0..self.words {
            let _ = writeln!(text, "        key[{word}] = 0;");
        }
        for (part, value) in self.parts.iter().zip(values) {
            let valid = value.valid_text();
            let _ = writeln!(text, "        if ({valid}) {{");
            if part.physical == Physical::I128 {
                let _ = writeln!(
                    text,
                    "            key[{}] = (u64){v}; key[{}] = (u64)((u128){v} >> 64);",
                    part.word,
                    part.word + 1,
                    v = value.value
                );
            } else {
                let _ =
                    writeln!(text, "            key[{}] |= key_bits({}) << {};", part.word, value.value, part.shift);
            }
            text.push_str("        }");
            if let Some((word, bit)) = part.null {
                let single = if self.has_null_slot { " is_null = true;" } else { "" };
                let _ = write!(text, " else {{ key[{word}] |= 1ull << {bit};{single} }}");
            }
            text.push('\n');
        }
        text
    }

    /// The same words on the CPU, one vector per row.
    pub(crate) fn encode(&self, arrays: &[ArrayRef], rows: usize) -> Result<Vec<Vec<u64>>> {
        let mut keys = vec![vec![0; self.words]; rows];
        for (part, array) in self.parts.iter().zip(arrays) {
            let raw = raw_words(array.as_ref(), part.physical);
            for (row, key) in keys.iter_mut().enumerate() {
                if array.is_valid(row) {
                    key[part.word] |= (raw[row] as u64) << part.shift;
                    if part.physical == Physical::I128 {
                        key[part.word + 1] = (raw[row] >> 64) as u64;
                    }
                } else if let Some((word, bit)) = part.null {
                    key[word] |= 1 << bit;
                }
            }
        }
        Ok(keys)
    }

    /// Key words back to columns; the first fields of `schema` are the keys'.
    pub(crate) fn decode(
        &self,
        schema: &SchemaRef,
        groups: usize,
        column: impl Fn(usize) -> Vec<u64>,
    ) -> Result<Vec<ArrayRef>> {
        let mut arrays = Vec::with_capacity(self.parts.len());
        for (part, field) in self.parts.iter().zip(schema.fields()) {
            let words = column(part.word);
            let nulls = part.null.map(|(word, bit)| {
                let flags = column(word);
                NullBuffer::new(BooleanBuffer::collect_bool(groups, |group| flags[group] >> bit & 1 == 0))
            });
            let buffer = match part.physical {
                Physical::Bool => {
                    BooleanBuffer::collect_bool(groups, |group| words[group] >> part.shift & 1 == 1).into_inner()
                }
                Physical::I128 => {
                    let high = column(part.word + 1);
                    let join = |(&low, &high): (&u64, &u64)| i128::from(high as i64) << 64 | i128::from(low);
                    Buffer::from_vec(words.iter().zip(&high).map(join).collect::<Vec<i128>>())
                }
                other => {
                    let width = other.bytes();
                    let mut bytes = Vec::with_capacity(groups * width);
                    for word in &words {
                        bytes.extend_from_slice(&(word >> part.shift).to_le_bytes()[..width]);
                    }
                    Buffer::from_slice_ref(bytes)
                }
            };
            let builder = ArrayData::builder(field.data_type().clone()).len(groups);
            let nulls = nulls.filter(|nulls| nulls.null_count() > 0);
            arrays.push(make_array(builder.nulls(nulls).add_buffer(buffer).build()?));
        }
        Ok(arrays)
    }
}

/// The bits that are compared: -0.0 becomes 0.0.
fn raw_words(array: &dyn Array, physical: Physical) -> Vec<u128> {
    match physical {
        Physical::Bool => array.as_boolean().values().iter().map(u128::from).collect(),
        Physical::I128 => array.as_primitive::<Decimal128Type>().values().iter().map(|&v| v as u128).collect(),
        _ => {
            let data = array.to_data();
            let width = physical.bytes();
            let bytes = &data.buffers()[0].as_slice()[data.offset() * width..];
            let negative_zero = if physical.is_float() { 1_u128 << (width * 8 - 1) } else { u128::MAX };
            (0..array.len())
                .map(|row| {
                    let mut word = [0_u8; 16];
                    word[..width].copy_from_slice(&bytes[row * width..(row + 1) * width]);
                    let word = u128::from_le_bytes(word);
                    if word == negative_zero { 0 } else { word }
                })
                .collect()
        }
    }
}
