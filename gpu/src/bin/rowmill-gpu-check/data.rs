//! Batches and embeddings for the checks and the measurements, from a fixed generator.
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Date32Array, Decimal128Array, FixedSizeListArray, Float32Array, Float64Array, Int64Array, RecordBatch,
    UInt16Array,
};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::error::ArrowError;
use half::bf16;

/// xorshift64*.
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

    fn present(&mut self) -> bool {
        !self.next().is_multiple_of(10)
    }
}

/// Columns: key (of `groups` values), i64, f64 (with NaN and both zeros), date, decimal(12, 2). A tenth is null.
pub(crate) fn batch(rows: usize, groups: u64, seed: u64) -> Result<RecordBatch, ArrowError> {
    let random = &mut Random::new(seed);
    let floats = [0.0, -0.0, f64::NAN, 1.5, -2.25, f64::INFINITY];
    let keys: Int64Array = (0..rows).map(|_| random.present().then(|| (random.next() % groups) as i64)).collect();
    let numbers: Int64Array = (0..rows).map(|_| random.present().then(|| random.next() as i64)).collect();
    let reals: Float64Array =
        (0..rows).map(|_| random.present().then(|| floats[(random.next() % 6) as usize])).collect();
    let dates: Date32Array = (0..rows).map(|_| random.present().then(|| (random.next() % 20_000) as i32)).collect();
    let money: Decimal128Array =
        (0..rows).map(|_| random.present().then(|| i128::from(random.next() % 1_000_000_000))).collect();
    let columns: [(&str, ArrayRef); 5] = [
        ("key", Arc::new(keys)),
        ("number", Arc::new(numbers)),
        ("real", Arc::new(reals)),
        ("date", Arc::new(dates)),
        ("money", Arc::new(money.with_precision_and_scale(12, 2)?)),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true)))
}

/// Three columns of 28 bytes a row without nulls: an i64, a date, a decimal. And key, value for the group-by.
pub(crate) fn plain(rows: usize, groups: u64, seed: u64) -> Result<RecordBatch, ArrowError> {
    let random = &mut Random::new(seed);
    let keys = Int64Array::from_iter_values((0..rows).map(|_| (random.next() % groups) as i64));
    let dates = Date32Array::from_iter_values((0..rows).map(|_| (random.next() % 20_000) as i32));
    let money = Decimal128Array::from_iter_values((0..rows).map(|_| i128::from(random.next() % 1_000_000_000)));
    let numbers = Int64Array::from_iter_values((0..rows).map(|_| random.next() as i64));
    let field = |name: &str, data_type| Field::new(name, data_type, false);
    let schema = Schema::new(vec![
        field("key", DataType::Int64),
        field("date", DataType::Date32),
        field("money", DataType::Decimal128(12, 2)),
        field("number", DataType::Int64),
    ]);
    let money = money.with_precision_and_scale(12, 2)?;
    RecordBatch::try_new(Arc::new(schema), vec![Arc::new(keys), Arc::new(dates), Arc::new(money), Arc::new(numbers)])
}

/// Embeddings as f32, or as bfloat16 in UInt16.
pub(crate) fn embeddings(rows: usize, dims: usize, brain: bool, seed: u64) -> FixedSizeListArray {
    let random = &mut Random::new(seed);
    let values = (0..rows * dims).map(|_| (random.next() >> 40) as f32 / (1 << 23) as f32 - 1.0);
    let (data_type, items): (_, ArrayRef) = if brain {
        (DataType::UInt16, Arc::new(UInt16Array::from_iter_values(values.map(|v| bf16::from_f32(v).to_bits()))))
    } else {
        (DataType::Float32, Arc::new(Float32Array::from_iter_values(values)))
    };
    let length = i32::try_from(dims).unwrap_or(i32::MAX);
    FixedSizeListArray::new(Arc::new(Field::new("item", data_type, true)), length, items, None)
}
