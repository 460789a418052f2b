//! Keys of cache entries: 128 bits of (tenant, step fingerprint, types and values of the key columns).
//!
//! ```text
//! scope = BLAKE3.derive_key("rowmill 2026 cache scope v1", len64(tenant) tenant fingerprint)
//! seed  = first 16 bytes of BLAKE3.keyed(scope, for each column: len64(type) type)
//! key   = SipHash-2-4-128.keyed(seed, the row in arrow's row format)
//! ```
//!
//! The row format is one byte string for one logical value, whatever its encoding; dictionaries are unpacked, all NaNs
//! become one, and -0.0 becomes 0.0 first. Types are part of the seed with their encodings taken away, so the integer 1
//! is not the text "1".

use std::fmt::Write as _;
use std::hash::Hasher as _;
use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _, PrimitiveArray};
use arrow::compute::cast;
use arrow::datatypes::{ArrowPrimitiveType, DataType, Float16Type, Float32Type, Float64Type};
use arrow::row::{RowConverter, SortField};
use rowmill_step::Fingerprint;
use siphasher::sip128::{Hasher128 as _, SipHasher24};

use crate::CacheError;

/// The key of one item's results: 128 bits, equal only for equal values of one step of one tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CacheKey(pub u128);

/// Whose entries, and of which step: what is cleared together.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Scope([u8; 32]);

impl std::fmt::Debug for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Scope({})", self.name())
    }
}

impl Scope {
    /// The scope of a tenant's step.
    pub fn new(tenant: &str, fingerprint: &Fingerprint) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("rowmill 2026 cache scope v1");
        hasher.update(&(tenant.len() as u64).to_le_bytes());
        hasher.update(tenant.as_bytes());
        hasher.update(&fingerprint.0);
        Self(*hasher.finalize().as_bytes())
    }

    /// Half of it, which is enough to tell scopes apart, and not enough to make keys.
    pub(crate) fn id(&self) -> u128 {
        let hash = blake3::keyed_hash(&self.0, b"id");
        let mut half = [0u8; 16];
        half.copy_from_slice(&hash.as_bytes()[..16]);
        u128::from_le_bytes(half)
    }

    /// The half as 32 hexadecimal digits.
    pub(crate) fn name(&self) -> String {
        format!("{:032x}", self.id())
    }
}

/// The keys of `rows` items by their key columns, whole columns at a time. Without columns all items have one key.
///
/// # Errors
/// [`CacheError::Shape`] if a column has another length, [`CacheError::Arrow`] for a type without a row format.
pub fn keys(
    tenant: &str,
    fingerprint: &Fingerprint,
    columns: &[ArrayRef],
    rows: usize,
) -> Result<Vec<CacheKey>, CacheError> {
    if let Some(column) = columns.iter().find(|column| column.len() != rows) {
        return Err(CacheError::Shape(format!("a key column has {} rows, not {rows}", column.len())));
    }
    let plain = columns.iter().map(plain).collect::<Result<Vec<_>, _>>()?;
    let mut hasher = blake3::Hasher::new_keyed(&Scope::new(tenant, fingerprint).0);
    for column in &plain {
        let mut name = String::new();
        logical(column.data_type(), &mut name);
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
    }
    let mut seed = [0u8; 16];
    seed.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    let empty = SipHasher24::new_with_key(&seed);
    if plain.is_empty() {
        return Ok(vec![CacheKey(empty.finish128().as_u128()); rows]);
    }
    let fields = plain.iter().map(|column| SortField::new(column.data_type().clone())).collect();
    let encoded = RowConverter::new(fields)?.convert_columns(&plain)?;
    let hash = |row: arrow::row::Row<'_>| {
        let mut hasher = empty;
        hasher.write(row.as_ref());
        CacheKey(hasher.finish128().as_u128())
    };
    Ok(encoded.iter().map(hash).collect())
}

/// The column with its dictionary unpacked and its floats normalised.
fn plain(column: &ArrayRef) -> Result<ArrayRef, CacheError> {
    Ok(match column.data_type() {
        DataType::Dictionary(_, value) => return plain(&cast(column, value)?),
        DataType::RunEndEncoded(_, value) => return plain(&cast(column, value.data_type())?),
        DataType::LargeUtf8 | DataType::Utf8View => cast(column, &DataType::Utf8).unwrap_or_else(|_| column.clone()),
        DataType::LargeBinary | DataType::BinaryView => {
            cast(column, &DataType::Binary).unwrap_or_else(|_| column.clone())
        }
        DataType::Float16 => floats::<Float16Type>(column, |x| match x {
            x if x.is_nan() => Half::NAN,
            x if f32::from(x) == 0.0 => Half::default(),
            x => x,
        }),
        DataType::Float32 => floats::<Float32Type>(column, |x| match x {
            x if x.is_nan() => f32::NAN,
            0.0 => 0.0,
            x => x,
        }),
        DataType::Float64 => floats::<Float64Type>(column, |x| match x {
            x if x.is_nan() => f64::NAN,
            0.0 => 0.0,
            x => x,
        }),
        _ => column.clone(),
    })
}

/// Arrow's half floats.
type Half = <Float16Type as ArrowPrimitiveType>::Native;

/// The column with each value put in its one form.
fn floats<T: ArrowPrimitiveType>(column: &ArrayRef, one: impl Fn(T::Native) -> T::Native) -> ArrayRef {
    let values: PrimitiveArray<T> = column.as_primitive::<T>().unary(one);
    Arc::new(values)
}

/// A type's name without its encoding: part of the format of keys.
fn logical(data_type: &DataType, name: &mut String) {
    let mut all = |word: &str, fields: &mut dyn Iterator<Item = (&str, &DataType)>| {
        name.push_str(word);
        name.push('<');
        for (field, data_type) in fields {
            let _ = write!(name, "{}:{field}=", field.len());
            logical(data_type, name);
        }
        name.push('>');
    };
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => name.push_str("text"),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => name.push_str("bytes"),
        DataType::Dictionary(_, value) => logical(value, name),
        DataType::RunEndEncoded(_, value) => logical(value.data_type(), name),
        DataType::List(item) | DataType::LargeList(item) | DataType::ListView(item) | DataType::LargeListView(item) => {
            all("list", &mut std::iter::once(("", item.data_type())))
        }
        DataType::Struct(fields) => {
            all("struct", &mut fields.iter().map(|field| (field.name().as_str(), field.data_type())));
        }
        other => {
            let _ = write!(name, "{other:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{
        DictionaryArray, Float64Array, Int32Array, Int64Array, LargeStringArray, StringArray, StringViewArray,
    };
    use arrow::datatypes::Int32Type;
    use proptest::prelude::*;
    use rowmill_step::FingerprintBuilder;
    use std::collections::HashSet;

    fn of(columns: &[ArrayRef]) -> Vec<CacheKey> {
        keys("t", &FingerprintBuilder::new("k", 1).finish(), columns, columns[0].len()).unwrap()
    }

    fn of_one(column: impl arrow::array::Array + 'static) -> Vec<CacheKey> {
        of(&[Arc::new(column)])
    }

    #[test]
    fn keys_never_change() {
        // Written down once: a change here makes every entry on disk and in Redis a miss.
        let found = of(&[Arc::new(Int64Array::from(vec![7])), Arc::new(StringArray::from(vec![Some("x")]))]);
        assert_eq!(format!("{:032x}", found[0].0), "9f10cb518f8ad96447a379d17455a646");
    }

    #[test]
    fn encodings_do_not_count() {
        let long = "a text that is too long to live inside of a view";
        let values = vec![Some("a"), None, Some(""), Some(long)];
        let plain = of_one(StringArray::from(values.clone()));
        assert_eq!(plain, of_one(LargeStringArray::from(values.clone())));
        assert_eq!(plain, of_one(StringViewArray::from(values.clone())));
        assert_eq!(plain, of_one(values.into_iter().collect::<DictionaryArray<Int32Type>>()));
        assert_eq!(plain.iter().collect::<HashSet<_>>().len(), 4);
        let sliced: ArrayRef = Arc::new(StringArray::from(vec!["z", "a"]));
        assert_eq!(of(&[sliced.slice(1, 1)])[0], plain[0]);
    }

    #[test]
    fn zeros_and_nans_are_one_each_and_types_count() {
        let other_nan = f64::from_bits(f64::NAN.to_bits() | 1 | (1 << 63));
        let floats = of_one(Float64Array::from(vec![0.0, -0.0, f64::NAN, other_nan, 1.0]));
        assert!(floats[0] == floats[1] && floats[2] == floats[3] && floats[0] != floats[2]);
        let different = [
            of_one(Int64Array::from(vec![1]))[0],
            of_one(Int32Array::from(vec![1]))[0],
            of_one(StringArray::from(vec!["1"]))[0],
            floats[4],
            of_one(Int64Array::from(vec![None]))[0],
            of_one(StringArray::from(vec![None::<&str>]))[0],
        ];
        assert_eq!(different.iter().collect::<HashSet<_>>().len(), different.len());
    }

    #[test]
    fn columns_do_not_run_together_and_tenants_and_steps_count() {
        let pair = |a: &str, b: &str| {
            let columns: [ArrayRef; 2] = [Arc::new(StringArray::from(vec![a])), Arc::new(StringArray::from(vec![b]))];
            of(&columns)[0]
        };
        assert_ne!(pair("ab", "c"), pair("a", "bc"));
        let column: ArrayRef = Arc::new(Int64Array::from(vec![1]));
        let with = |tenant, version| {
            keys(tenant, &FingerprintBuilder::new("k", version).finish(), std::slice::from_ref(&column), 1).unwrap()[0]
        };
        assert_eq!(with("a", 1), with("a", 1));
        assert!(with("a", 1) != with("b", 1) && with("a", 1) != with("a", 2));
        let none = keys("a", &FingerprintBuilder::new("k", 1).finish(), &[], 3).unwrap();
        assert!(none.len() == 3 && none[0] == none[2]);
        assert!(matches!(
            keys("a", &FingerprintBuilder::new("k", 1).finish(), &[column], 2),
            Err(CacheError::Shape(_))
        ));
    }

    proptest! {
        #[test]
        fn keys_are_equal_exactly_where_the_values_are(
            rows in proptest::collection::vec((proptest::option::of("[ab]{0,3}"), proptest::option::of(0i64..3)), 1..60),
        ) {
            let texts: Vec<_> = rows.iter().map(|(text, _)| text.as_deref()).collect();
            let numbers: ArrayRef = Arc::new(rows.iter().map(|(_, number)| *number).collect::<Int64Array>());
            let found = of(&[Arc::new(StringArray::from(texts.clone())), numbers.clone()]);
            let viewed = of(&[Arc::new(texts.into_iter().collect::<DictionaryArray<Int32Type>>()), numbers]);
            prop_assert_eq!(&found, &viewed);
            for (a, key_a) in rows.iter().zip(&found) {
                for (b, key_b) in rows.iter().zip(&found) {
                    prop_assert_eq!(a == b, key_a == key_b);
                }
            }
        }
    }
}
