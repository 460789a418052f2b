//! What the fused aggregate and the group-by share: aggregate functions cut into 64-bit accumulator words, the CUDA C
//! that updates them, the same update on the CPU, and the arithmetic that turns finished words into Arrow columns.
//!
//! ```text
//! avg(x), sum(x), count(x)  ──plan──▶  words: [sum of x as f64][rows with an x]     (shared, three outputs)
//! ```
//! Types, wrapping and precision are DataFusion's: integer sums wrap in 64 bits, float sums are doubles, decimal sums
//! wrap in 128 bits, averages of integers are averages of doubles, min and max follow IEEE totalOrder. By group they
//! follow the order of the rows where there is a NaN or a -0.0; no kernel does, so those fail with
//! [`DataFault::Unordered`].
use std::sync::Arc;

use arrow::array::{
    Array, ArrayData, ArrayRef, AsArray, Decimal128Array, Float64Array, Int64Array, UInt64Array, make_array,
};
use arrow::buffer::{BooleanBuffer, Buffer, NullBuffer};
use arrow::datatypes::{DataType, Decimal128Type, Field, Float32Type, Float64Type, Int64Type, Schema, UInt64Type};

use crate::error::{DataFault, Error, Result};
use crate::expr::cuda::Value;
use crate::expr::{GpuExpr, Physical};

/// An aggregate function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AggregateFunction {
    /// Rows, or rows whose argument is not null.
    Count,
    /// The sum; null without rows.
    Sum,
    /// The smallest value; null without rows.
    Min,
    /// The largest value; null without rows.
    Max,
    /// The average; null without rows.
    Avg,
}

/// One aggregate of a query.
#[derive(Debug, Clone)]
pub struct Aggregate {
    /// The function.
    pub function: AggregateFunction,
    /// Its argument; `None` only for `count(*)`.
    pub argument: Option<GpuExpr>,
    /// The name of the output column.
    pub name: String,
}

impl Aggregate {
    /// `function(argument) AS name`.
    pub fn new(function: AggregateFunction, argument: GpuExpr, name: impl Into<String>) -> Self {
        Self { function, argument: Some(argument), name: name.into() }
    }

    /// `count(*) AS name`.
    pub fn count_rows(name: impl Into<String>) -> Self {
        Self { function: AggregateFunction::Count, argument: None, name: name.into() }
    }
}

/// How an accumulator takes a value in; the kernels have a struct of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WordOp {
    AddU64,
    AddF64,
    MinU64,
    MaxU64,
    AddI128,
    MinI128,
    MaxI128,
}

/// What is taken from an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Take {
    One,
    Integer,
    Double,
    Ordered,
    Wide,
}

/// One accumulator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) op: WordOp,
    argument: Option<usize>,
    take: Take,
    /// Its first 64-bit word in a state.
    pub(crate) offset: usize,
}

impl WordOp {
    pub(crate) fn is_wide(self) -> bool {
        matches!(self, Self::AddI128 | Self::MinI128 | Self::MaxI128)
    }

    /// 64-bit words.
    fn width(self) -> usize {
        if self.is_wide() { 2 } else { 1 }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::AddU64 => "AddU64",
            Self::AddF64 => "AddF64",
            Self::MinU64 => "MinU64",
            Self::MaxU64 => "MaxU64",
            Self::AddI128 => "AddI128",
            Self::MinI128 => "MinI128",
            Self::MaxI128 => "MaxI128",
        }
    }

    fn identity(self) -> i128 {
        match self {
            Self::AddU64 | Self::AddF64 | Self::MaxU64 | Self::AddI128 => 0,
            Self::MinU64 => i128::from(u64::MAX),
            Self::MinI128 => i128::MAX,
            Self::MaxI128 => i128::MIN,
        }
    }

    fn combine(self, a: i128, b: i128) -> i128 {
        let (x, y) = (a as u64, b as u64);
        match self {
            Self::AddU64 => i128::from(x.wrapping_add(y)),
            Self::AddF64 => i128::from((f64::from_bits(x) + f64::from_bits(y)).to_bits()),
            Self::MinU64 => i128::from(x.min(y)),
            Self::MaxU64 => i128::from(x.max(y)),
            Self::AddI128 => a.wrapping_add(b),
            Self::MinI128 => a.min(b),
            Self::MaxI128 => a.max(b),
        }
    }
}

#[derive(Debug, Clone)]
struct Output {
    function: AggregateFunction,
    data_type: DataType,
    value: Option<usize>,
    count: usize,
    /// The factor between the sum's scale and the average's.
    average_factor: i128,
}

/// The accumulators of a query's aggregates and how its outputs are made of them.
#[derive(Debug, Clone)]
pub(crate) struct AggregatePlan {
    pub(crate) arguments: Vec<GpuExpr>,
    pub(crate) words: Vec<Word>,
    pub(crate) state_words: usize,
    outputs: Vec<Output>,
    grouped: bool,
    pub(crate) fields: Vec<Field>,
}

impl AggregatePlan {
    /// Plans `aggregates`; `grouped` leaves out what has no atomic update.
    pub(crate) fn try_new(schema: &Schema, aggregates: &[Aggregate], grouped: bool) -> Result<Self> {
        let mut plan =
            Self { arguments: vec![], words: vec![], state_words: 0, outputs: vec![], grouped, fields: vec![] };
        for aggregate in aggregates {
            plan.add(schema, aggregate, grouped)?;
        }
        Ok(plan)
    }

    fn add(&mut self, schema: &Schema, aggregate: &Aggregate, grouped: bool) -> Result<()> {
        let function = aggregate.function;
        let Some(expr) = &aggregate.argument else {
            if function != AggregateFunction::Count {
                return Err(Error::Invalid(format!("{function:?} needs an argument")));
            }
            let count = self.word(WordOp::AddU64, None, Take::One);
            self.output(aggregate, DataType::Int64, None, count, 1);
            return Ok(());
        };
        let input = expr.data_type(schema)?;
        let physical = Physical::try_from(&input)?;
        let argument = Some(self.argument(expr));
        let count = self.word(WordOp::AddU64, argument, Take::One);
        let unsupported = || Err(Error::Unsupported(format!("{function:?} of {input}")));
        let mut factor = 1;
        let (data_type, value) = match (function, &input) {
            (AggregateFunction::Count, _) => (DataType::Int64, None),
            (AggregateFunction::Sum, DataType::Decimal128(precision, scale)) => {
                let data_type = DataType::Decimal128((precision + 10).min(38), *scale);
                (data_type, Some((WordOp::AddI128, Take::Wide)))
            }
            (AggregateFunction::Avg, DataType::Decimal128(precision, scale)) => {
                // A wider precision is summed in 256 bits by DataFusion.
                if *precision > 29 || *scale < 0 {
                    return unsupported();
                }
                let target = (*scale + 4).min(38);
                factor = 10_i128.pow(u32::from((target - scale).unsigned_abs()));
                let data_type = DataType::Decimal128((precision + 4).min(38), target);
                (data_type, Some((WordOp::AddI128, Take::Wide)))
            }
            (AggregateFunction::Sum | AggregateFunction::Avg, _) if !input.is_numeric() => return unsupported(),
            (AggregateFunction::Avg, _) => (DataType::Float64, Some((WordOp::AddF64, Take::Double))),
            (AggregateFunction::Sum, _) => match physical {
                Physical::F32 | Physical::F64 => (DataType::Float64, Some((WordOp::AddF64, Take::Double))),
                Physical::U8 | Physical::U16 | Physical::U32 | Physical::U64 => {
                    (DataType::UInt64, Some((WordOp::AddU64, Take::Integer)))
                }
                _ => (DataType::Int64, Some((WordOp::AddU64, Take::Integer))),
            },
            (AggregateFunction::Min | AggregateFunction::Max, DataType::Decimal128(precision, _))
                if *precision > 18 =>
            {
                if grouped {
                    return Err(Error::Unsupported(format!(
                        "{function:?} of {input} per group: 128 bits are not atomic"
                    )));
                }
                let op = if function == AggregateFunction::Min { WordOp::MinI128 } else { WordOp::MaxI128 };
                (input.clone(), Some((op, Take::Wide)))
            }
            (AggregateFunction::Min, _) => (input.clone(), Some((WordOp::MinU64, Take::Ordered))),
            (AggregateFunction::Max, _) => (input.clone(), Some((WordOp::MaxU64, Take::Ordered))),
        };
        let value = value.map(|(op, take)| self.word(op, argument, take));
        self.output(aggregate, data_type, value, count, factor);
        Ok(())
    }

    fn output(
        &mut self,
        aggregate: &Aggregate,
        data_type: DataType,
        value: Option<usize>,
        count: usize,
        average_factor: i128,
    ) {
        let nullable = aggregate.function != AggregateFunction::Count;
        self.fields.push(Field::new(&aggregate.name, data_type.clone(), nullable));
        self.outputs.push(Output { function: aggregate.function, data_type, value, count, average_factor });
    }

    fn argument(&mut self, expr: &GpuExpr) -> usize {
        let text = format!("{expr:?}");
        if let Some(at) = self.arguments.iter().position(|known| format!("{known:?}") == text) {
            return at;
        }
        self.arguments.push(expr.clone());
        self.arguments.len() - 1
    }

    fn word(&mut self, op: WordOp, argument: Option<usize>, take: Take) -> usize {
        let same = |word: &Word| word.op == op && word.argument == argument && word.take == take;
        if let Some(at) = self.words.iter().position(same) {
            return at;
        }
        self.words.push(Word { op, argument, take, offset: self.state_words });
        self.state_words += op.width();
        self.words.len() - 1
    }

    /// What a row adds to `word`, as an expression of CUDA C, and the condition under which it does.
    pub(crate) fn taken(&self, word: &Word, arguments: &[Value]) -> (String, String) {
        let Some(argument) = word.argument.and_then(|at| arguments.get(at)) else {
            return ("1ull".into(), "true".into());
        };
        let value = &argument.value;
        let text = match word.take {
            Take::One => "1ull".into(),
            Take::Integer if argument.physical == Physical::U64 => value.clone(),
            Take::Integer => format!("(u64)(i64){value}"),
            Take::Double => format!("as_u64((f64){value})"),
            Take::Ordered => format!("ordered({value})"),
            Take::Wide => value.clone(),
        };
        (text, argument.valid_text().to_owned())
    }

    /// The fault of a row whose value has no place in the order of `word`, as a statement of CUDA C.
    pub(crate) fn fault(&self, word: &Word, arguments: &[Value]) -> Option<String> {
        let argument = arguments.get(word.argument?)?;
        (self.grouped && word.take == Take::Ordered && argument.physical.is_float())
            .then(|| format!("if ({}) fault |= unordered({});", argument.valid_text(), argument.value))
    }

    /// The state of no rows.
    pub(crate) fn identity(&self) -> Vec<u64> {
        let mut state = Vec::with_capacity(self.state_words);
        for word in &self.words {
            push(&mut state, word.op, word.op.identity());
        }
        state
    }

    /// Adds state `from` to state `to`.
    pub(crate) fn merge(&self, to: &mut [u64], from: &[u64]) {
        for word in &self.words {
            let merged = word.op.combine(read(to, word), read(from, word));
            write(to, word, merged);
        }
    }

    /// Takes rows in on the CPU: row `i` of the arguments into the state of group `groups[i]`.
    pub(crate) fn accumulate(&self, states: &mut [Vec<u64>], groups: &[u32], arguments: &[ArrayRef]) -> Result<()> {
        for word in &self.words {
            let (values, nulls) = match word.argument.and_then(|at| arguments.get(at)) {
                Some(array) => {
                    if self.grouped && word.take == Take::Ordered && has_unordered(array.as_ref()) {
                        return Err(DataFault::Unordered.into());
                    }
                    (take_values(array.as_ref(), word.take)?, array.nulls())
                }
                None => (vec![1; groups.len()], None),
            };
            for (row, (&group, &value)) in groups.iter().zip(&values).enumerate() {
                if nulls.is_none_or(|nulls| nulls.is_valid(row)) {
                    let state = &mut states[group as usize];
                    let merged = word.op.combine(read(state, word), value);
                    write(state, word, merged);
                }
            }
        }
        Ok(())
    }

    /// Finished states as columns; `column(word)` yields that 64-bit word of every group.
    pub(crate) fn finish(&self, groups: usize, column: impl Fn(usize) -> Vec<u64>) -> Result<Vec<ArrayRef>> {
        self.outputs.iter().map(|output| self.finish_one(output, groups, &column)).collect()
    }

    fn finish_one(&self, output: &Output, groups: usize, column: &impl Fn(usize) -> Vec<u64>) -> Result<ArrayRef> {
        let counts = column(self.words[output.count].offset);
        let Some(value) = output.value.map(|at| &self.words[at]) else {
            return Ok(Arc::new(Int64Array::from_iter_values(counts.iter().map(|&count| count as i64))));
        };
        let nulls = NullBuffer::new(BooleanBuffer::collect_bool(groups, |group| counts[group] != 0));
        let nulls = (nulls.null_count() > 0).then_some(nulls);
        let low = column(value.offset);
        if value.op.is_wide() {
            let high = column(value.offset + 1);
            let wide = low.iter().zip(&high).map(|(&low, &high)| join(low, high));
            let values = match output.function {
                AggregateFunction::Avg => average_decimals(wide, &counts, output)?,
                _ => wide.collect(),
            };
            let array = Decimal128Array::new(values.into(), nulls);
            return Ok(Arc::new(array.with_data_type(output.data_type.clone())));
        }
        let array: ArrayRef = match (output.function, value.op) {
            (AggregateFunction::Avg, _) => {
                let averages = low.iter().zip(&counts).map(|(&sum, &count)| f64::from_bits(sum) / count as f64);
                Arc::new(Float64Array::new(averages.collect::<Vec<_>>().into(), nulls))
            }
            (_, WordOp::AddF64) => Arc::new(Float64Array::new(
                low.iter().map(|&bits| f64::from_bits(bits)).collect::<Vec<_>>().into(),
                nulls,
            )),
            (AggregateFunction::Sum, _) if output.data_type == DataType::UInt64 => {
                Arc::new(UInt64Array::new(low.into(), nulls))
            }
            (AggregateFunction::Sum, _) => {
                Arc::new(Int64Array::new(low.iter().map(|&sum| sum as i64).collect::<Vec<_>>().into(), nulls))
            }
            _ => from_ordered(&output.data_type, &low, nulls)?,
        };
        Ok(array)
    }
}

fn average_decimals(sums: impl Iterator<Item = i128>, counts: &[u64], output: &Output) -> Result<Vec<i128>> {
    let DataType::Decimal128(precision, _) = output.data_type else {
        return Err(Error::Invalid("an average of decimals is a decimal".into()));
    };
    let bound = 10_i128.pow(u32::from(precision));
    sums.zip(counts)
        .map(|(sum, &count)| {
            if count == 0 {
                return Ok(0);
            }
            let average = sum.checked_mul(output.average_factor).map(|scaled| scaled / i128::from(count));
            Ok(average.filter(|average| average.abs() < bound).ok_or(DataFault::Overflow)?)
        })
        .collect()
}

fn join(low: u64, high: u64) -> i128 {
    i128::from(high as i64) << 64 | i128::from(low)
}

fn push(state: &mut Vec<u64>, op: WordOp, value: i128) {
    state.push(value as u64);
    if op.is_wide() {
        state.push((value >> 64) as u64);
    }
}

fn read(state: &[u64], word: &Word) -> i128 {
    match word.op.is_wide() {
        true => join(state[word.offset], state[word.offset + 1]),
        false => i128::from(state[word.offset]),
    }
}

fn write(state: &mut [u64], word: &Word, value: i128) {
    state[word.offset] = value as u64;
    if word.op.is_wide() {
        state[word.offset + 1] = (value >> 64) as u64;
    }
}

/// An array's values as accumulators take them.
fn take_values(array: &dyn Array, take: Take) -> Result<Vec<i128>> {
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
fn has_unordered(array: &dyn Array) -> bool {
    let unordered = |value: f64| value.is_nan() || value == 0.0 && value.is_sign_negative();
    match array.data_type() {
        DataType::Float32 => array.as_primitive::<Float32Type>().iter().flatten().any(|v| unordered(f64::from(v))),
        DataType::Float64 => array.as_primitive::<Float64Type>().iter().flatten().any(unordered),
        _ => false,
    }
}

/// Maps values to unsigned words of the same order (floats: IEEE totalOrder). Nulls map to anything.
pub(crate) fn to_ordered(array: &dyn Array) -> Result<Vec<u64>> {
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
fn from_ordered(data_type: &DataType, words: &[u64], nulls: Option<NullBuffer>) -> Result<ArrayRef> {
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
