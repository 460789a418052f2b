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
mod values;
mod words;

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Decimal128Array, Float64Array, Int64Array, UInt64Array};
use arrow::buffer::{BooleanBuffer, NullBuffer};
use arrow::datatypes::{DataType, Field, Schema};

use crate::error::{DataFault, Error, Result};
use crate::expr::cuda::Value;
use crate::expr::{GpuExpr, Physical};

use values::{from_ordered, has_unordered, take_values};
use words::{Take, join, push, read, write};
pub(crate) use words::{Word, WordOp};

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
