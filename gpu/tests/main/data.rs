//! Batches for the tests: every type, with nulls, edge values, NaN, both zeros, and slices that begin inside a byte.
use std::sync::Arc;

use arrow::array::*;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

/// A small generator of numbers (xorshift64*): tests name a seed and get the same rows everywhere.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// The columns of [`batch`]: one of each kind, then a second of the common ones.
pub(crate) fn schema() -> SchemaRef {
    let field = |name: &str, data_type| Field::new(name, data_type, true);
    Arc::new(Schema::new(vec![
        field("i8", DataType::Int8),
        field("i16", DataType::Int16),
        field("i32", DataType::Int32),
        field("i64", DataType::Int64),
        field("u8", DataType::UInt8),
        field("u16", DataType::UInt16),
        field("u32", DataType::UInt32),
        field("u64", DataType::UInt64),
        field("f32", DataType::Float32),
        field("f64", DataType::Float64),
        field("bool", DataType::Boolean),
        field("date", DataType::Date32),
        field("time", DataType::Timestamp(TimeUnit::Microsecond, None)),
        field("money", DataType::Decimal128(12, 2)),
        field("rate", DataType::Decimal128(7, 4)),
        field("huge", DataType::Decimal128(38, 0)),
        field("i64b", DataType::Int64),
        field("f64b", DataType::Float64),
        field("boolb", DataType::Boolean),
        Field::new("id", DataType::Int64, false),
        field("i32b", DataType::Int32),
    ]))
}

/// The position of a column of [`schema`].
pub(crate) fn at(name: &str) -> usize {
    schema().index_of(name).unwrap()
}

/// `rows` random rows. A quarter of the values are null, except in a column in five, which has none.
pub(crate) fn batch(rows: usize, seed: u64) -> RecordBatch {
    let random = &mut Random::new(seed);
    // Rows before and after are cut off, so that values and bitmaps begin inside a byte.
    let (before, after) = (random.below(13), random.below(5));
    let all = before + rows + after;
    let schema = schema();
    let columns = schema.fields().iter().map(|field| column(field, all, random)).collect();
    RecordBatch::try_new(schema, columns).unwrap().slice(before, rows)
}

fn column(field: &Field, rows: usize, random: &mut Random) -> ArrayRef {
    let nulls = if !field.is_nullable() || random.chance(20) { 0 } else { 25 };
    macro_rules! integers {
        ($array:ty, $native:ty) => {{
            let edges = [0, 1, 2, 3, 7, <$native>::MAX, <$native>::MIN, <$native>::MAX / 2];
            let value = |r: &mut Random| if r.chance(60) { r.pick(&edges) } else { r.next() as $native };
            Arc::new((0..rows).map(|_| (!random.chance(nulls)).then(|| value(random))).collect::<$array>()) as ArrayRef
        }};
    }
    let floats = [0.0, -0.0, 1.0, -1.5, f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e-310, 3.25, 1e300];
    match field.data_type() {
        DataType::Int8 => integers!(Int8Array, i8),
        DataType::Int16 => integers!(Int16Array, i16),
        DataType::Int32 => integers!(Int32Array, i32),
        DataType::Int64 => integers!(Int64Array, i64),
        DataType::UInt8 => integers!(UInt8Array, u8),
        DataType::UInt16 => integers!(UInt16Array, u16),
        DataType::UInt32 => integers!(UInt32Array, u32),
        DataType::UInt64 => integers!(UInt64Array, u64),
        DataType::Date32 => integers!(Date32Array, i32),
        DataType::Timestamp(_, _) => integers!(TimestampMicrosecondArray, i64),
        DataType::Float32 => Arc::new(
            (0..rows).map(|_| (!random.chance(nulls)).then(|| random.pick(&floats) as f32)).collect::<Float32Array>(),
        ),
        DataType::Float64 => {
            Arc::new((0..rows).map(|_| (!random.chance(nulls)).then(|| random.pick(&floats))).collect::<Float64Array>())
        }
        DataType::Boolean => {
            Arc::new((0..rows).map(|_| (!random.chance(nulls)).then(|| random.chance(50))).collect::<BooleanArray>())
        }
        DataType::Decimal128(precision, scale) => {
            let bound = 10_i128.pow(u32::from(*precision));
            let wide = |r: &mut Random| ((i128::from(r.next()) << 64) | i128::from(r.next())) % bound;
            let value = |r: &mut Random| if r.chance(30) { r.pick(&[0, 1, -1, bound - 1, 1 - bound]) } else { wide(r) };
            let values: Decimal128Array = (0..rows).map(|_| (!random.chance(nulls)).then(|| value(random))).collect();
            Arc::new(values.with_precision_and_scale(*precision, *scale).unwrap())
        }
        other => panic!("no test data of type {other}"),
    }
}

/// Numbers of rows at which warps, blocks and launches end.
pub(crate) const ROWS: [usize; 9] = [0, 1, 31, 32, 33, 255, 257, 1025, 3000];

/// Compares two batches bit by bit, nulls by position; one NaN is as good as another, zeros differ by their sign.
pub(crate) fn assert_equal(expected: &RecordBatch, found: &RecordBatch, what: &str) {
    assert_eq!(expected.num_rows(), found.num_rows(), "{what}: rows");
    for (index, field) in expected.schema().fields().iter().enumerate() {
        let (left, right) = (expected.column(index), found.column(index));
        assert_eq!(left.data_type(), right.data_type(), "{what}: type of {}", field.name());
        let order = arrow::compute::SortOptions::default();
        let compare = arrow::array::make_comparator(left, right, order).unwrap();
        for row in 0..left.len() {
            assert!(
                compare(row, row).is_eq() || (is_nan(left, row) && is_nan(right, row)),
                "{what}: row {row} of {}: expected {:?}, found {:?}",
                field.name(),
                left.slice(row, 1),
                right.slice(row, 1)
            );
        }
    }
}

fn is_nan(array: &ArrayRef, row: usize) -> bool {
    use arrow::datatypes::{Float32Type, Float64Type};
    let single = array.as_primitive_opt::<Float32Type>().is_some_and(|array| array.value(row).is_nan());
    let double = array.as_primitive_opt::<Float64Type>().is_some_and(|array| array.value(row).is_nan());
    array.is_valid(row) && (single || double)
}
