//! Arrays as accumulators take their values, and back: integers and doubles by their bits, what is compared as unsigned words
//! of the same order.
use arrow::array::{Array, ArrayData, ArrayRef, AsArray, make_array};
use arrow::buffer::{BooleanBuffer, Buffer, NullBuffer};
use arrow::datatypes::{DataType, Decimal128Type, Float32Type, Float64Type, Int64Type, UInt64Type};

use super::words::Take;
use crate::error::Result;
use crate::expr::Physical;

/// An array's values as accumulators take them.
pub(super) fn take_values(array: &dyn Array, take: Take) -> Result<Vec<i128>> {
    Ok(match take {
        Take::One => vec![1; array.len()],
        Take::Integer if array.data_type().is_unsigned_integer() => {
            let wide = arrow::compute::cast(array, &DataType::UInt64)?;
            wide.as_primitive::<UInt64Type>().values().iter().map(|&v| i128::from(v)).collect()
        }
        Take::Integer => {
            let wide = arrow::compute::cast(array, &DataType::Int64)?;
            wide.as_primitive::<Int64Type>().values().iter().map(|&v| i128::from(v as u64)).collect()
        }
        Take::Double => {
            let wide = arrow::compute::cast(array, &DataType::Float64)?;
            wide.as_primitive::<Float64Type>().values().iter().map(|&v| i128::from(v.to_bits())).collect()
        }
        Take::Wide => array.as_primitive::<Decimal128Type>().values().to_vec(),
        Take::Ordered => to_ordered(array)?.into_iter().map(i128::from).collect(),
    })
}

/// Whether an array of floats holds a NaN or a -0.0.
pub(super) fn has_unordered(array: &dyn Array) -> bool {
    let unordered = |value: f64| value.is_nan() || value == 0.0 && value.is_sign_negative();
    match array.data_type() {
        DataType::Float32 => array.as_primitive::<Float32Type>().iter().flatten().any(|v| unordered(f64::from(v))),
        DataType::Float64 => array.as_primitive::<Float64Type>().iter().flatten().any(unordered),
        _ => false,
    }
}

/// Maps values to unsigned words of the same order (floats: IEEE totalOrder). Nulls map to anything.
fn to_ordered(array: &dyn Array) -> Result<Vec<u64>> {
    let physical = Physical::try_from(array.data_type())?;
    Ok(match physical {
        Physical::Bool => array.as_boolean().values().iter().map(u64::from).collect(),
        Physical::F32 => {
            let values = array.as_primitive::<Float32Type>().values();
            let order = |v: &f32| v.to_bits() ^ if v.to_bits() >> 31 == 1 { u32::MAX } else { 1 << 31 };
            values.iter().map(|v| u64::from(order(v))).collect()
        }
        Physical::F64 => {
            let values = array.as_primitive::<Float64Type>().values();
            values.iter().map(|v| v.to_bits() ^ if v.to_bits() >> 63 == 1 { u64::MAX } else { 1 << 63 }).collect()
        }
        _ => {
            let signed = !matches!(physical, Physical::U8 | Physical::U16 | Physical::U32 | Physical::U64);
            let flip = if signed { 1 << 63 } else { 0 };
            let data = array.to_data();
            let width = physical.bytes();
            let bytes = &data.buffers()[0].as_slice()[data.offset() * width..];
            (0..array.len()).map(|row| sign_extended(&bytes[row * width..(row + 1) * width], signed) ^ flip).collect()
        }
    })
}

/// The low 64 bits of a little-endian integer.
fn sign_extended(bytes: &[u8], signed: bool) -> u64 {
    let mut word = [if signed && bytes[bytes.len() - 1] >> 7 == 1 { 0xff } else { 0 }; 8];
    let length = bytes.len().min(8);
    word[..length].copy_from_slice(&bytes[..length]);
    u64::from_le_bytes(word)
}

/// The inverse of [`to_ordered`], as an array.
pub(super) fn from_ordered(data_type: &DataType, words: &[u64], nulls: Option<NullBuffer>) -> Result<ArrayRef> {
    let physical = Physical::try_from(data_type)?;
    let builder = ArrayData::builder(data_type.clone()).len(words.len()).nulls(nulls);
    let buffer: Buffer = match physical {
        Physical::Bool => BooleanBuffer::collect_bool(words.len(), |row| words[row] != 0).into_inner(),
        Physical::F32 => {
            let back = |word: u64| (word as u32) ^ if word >> 31 & 1 == 1 { 1 << 31 } else { u32::MAX };
            Buffer::from_vec(words.iter().map(|&word| back(word)).collect::<Vec<u32>>())
        }
        Physical::F64 => {
            let back = |word: u64| word ^ if word >> 63 == 1 { 1 << 63 } else { u64::MAX };
            Buffer::from_vec(words.iter().map(|&word| back(word)).collect::<Vec<u64>>())
        }
        Physical::I128 => {
            Buffer::from_vec(words.iter().map(|&word| i128::from((word ^ 1 << 63) as i64)).collect::<Vec<i128>>())
        }
        _ => {
            let signed = !matches!(physical, Physical::U8 | Physical::U16 | Physical::U32 | Physical::U64);
            let flip = if signed { 1 << 63 } else { 0 };
            let width = physical.bytes();
            let mut bytes = Vec::with_capacity(words.len() * width);
            for word in words {
                bytes.extend_from_slice(&(word ^ flip).to_le_bytes()[..width]);
            }
            Buffer::from_slice_ref(bytes)
        }
    };
    Ok(make_array(builder.add_buffer(buffer).build()?))
}
