//! Expressions over the columns of a batch, as the GPU operators take them. [`GpuExpr`] is small and typed; DataFusion's
//! physical expressions are lowered to it elsewhere. `cuda` writes an expression as CUDA C, `reference` evaluates it
//! with Arrow's kernels; both follow the rules that DataFusion's `BinaryExpr`, `CastExpr` and `CaseExpr` follow:
//!
//! - integers wrap in `+ - *`; `/` and `%` fail on zero, and on the smallest integer divided by -1;
//! - decimals are 128 bits and checked, with Hive's rules for precision and scale; floats are IEEE;
//! - comparisons of floats are IEEE totalOrder, except that -0.0 equals 0.0: a positive NaN is larger than all numbers, a
//!   negative one smaller, and each equals itself;
//! - AND and OR are Kleene's; what cannot change their outcome any more does not fail (division behind a guard);
//! - casts fail when a value does not fit.
pub(crate) mod cuda;
pub mod reference;

use std::sync::Arc;

use arrow::array::{ArrayRef, Scalar, new_null_array};
use arrow::datatypes::{DataType, Schema};

use crate::error::{Error, Result};

/// How a value lies in the device's memory and registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Physical {
    /// A bit in memory, a `bool` in registers.
    Bool,
    /// Signed integers; also dates, times, timestamps and durations.
    I8,
    /// 16 bits.
    I16,
    /// 32 bits.
    I32,
    /// 64 bits.
    I64,
    /// Unsigned integers.
    U8,
    /// 16 bits.
    U16,
    /// 32 bits.
    U32,
    /// 64 bits.
    U64,
    /// IEEE single.
    F32,
    /// IEEE double.
    F64,
    /// A decimal of up to 38 digits.
    I128,
}

impl TryFrom<&DataType> for Physical {
    type Error = Error;

    fn try_from(data_type: &DataType) -> Result<Self> {
        Ok(match data_type {
            DataType::Boolean => Self::Bool,
            DataType::Int8 => Self::I8,
            DataType::Int16 => Self::I16,
            DataType::Int32 | DataType::Date32 | DataType::Time32(_) => Self::I32,
            DataType::Int64
            | DataType::Date64
            | DataType::Time64(_)
            | DataType::Timestamp(_, _)
            | DataType::Duration(_) => Self::I64,
            DataType::UInt8 => Self::U8,
            DataType::UInt16 => Self::U16,
            DataType::UInt32 => Self::U32,
            DataType::UInt64 => Self::U64,
            DataType::Float32 => Self::F32,
            DataType::Float64 => Self::F64,
            DataType::Decimal128(_, _) => Self::I128,
            other => return Err(Error::Unsupported(format!("type {other} has no kernels"))),
        })
    }
}

impl Physical {
    /// The type's name in the kernels.
    pub(crate) fn cuda(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::I8 => "i8",
            Self::I16 => "i16",
            Self::I32 => "i32",
            Self::I64 => "i64",
            Self::U8 => "u8",
            Self::U16 => "u16",
            Self::U32 => "u32",
            Self::U64 => "u64",
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::I128 => "i128",
        }
    }

    /// Bytes of a value in memory; a boolean counts as one.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::Bool | Self::I8 | Self::U8 => 1,
            Self::I16 | Self::U16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 | Self::U64 | Self::F64 => 8,
            Self::I128 => 16,
        }
    }

    pub(crate) fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64)
    }
}

/// An operator with two operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BinaryOp {
    /// `+`
    Add,
    /// `-`
    Subtract,
    /// `*`
    Multiply,
    /// `/`
    Divide,
    /// `%`
    Remainder,
    /// `=`
    Equal,
    /// `<>`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
    /// Kleene's AND.
    And,
    /// Kleene's OR.
    Or,
}

impl BinaryOp {
    pub(crate) fn is_arithmetic(self) -> bool {
        matches!(self, Self::Add | Self::Subtract | Self::Multiply | Self::Divide | Self::Remainder)
    }

    pub(crate) fn is_logical(self) -> bool {
        matches!(self, Self::And | Self::Or)
    }
}

/// A value that is the same for every row.
#[derive(Debug, Clone)]
pub struct Literal(ArrayRef);

impl Literal {
    /// The first value of an array of one row.
    ///
    /// # Errors
    /// [`Error::Invalid`] for another number of rows, [`Error::Unsupported`] for a type without kernels.
    pub fn try_new(value: ArrayRef) -> Result<Self> {
        Physical::try_from(value.data_type())?;
        if value.len() != 1 {
            return Err(Error::Invalid(format!("a literal has one row, not {}", value.len())));
        }
        Ok(Self(value))
    }

    pub(crate) fn array(&self) -> &ArrayRef {
        &self.0
    }
}

/// An expression.
#[derive(Debug, Clone)]
pub enum GpuExpr {
    /// The column with this position.
    Column(usize),
    /// A constant. Constants are arguments of the kernel: queries that differ in them share a compiled kernel.
    Literal(Literal),
    /// An operator over two operands of one type (decimals may differ in precision and scale).
    Binary {
        /// What is done.
        op: BinaryOp,
        /// The left operand.
        left: Box<GpuExpr>,
        /// The right operand.
        right: Box<GpuExpr>,
    },
    /// Boolean NOT.
    Not(Box<GpuExpr>),
    /// Minus; wraps for integers.
    Negate(Box<GpuExpr>),
    /// Whether the value is null.
    IsNull(Box<GpuExpr>),
    /// Whether the value is not null.
    IsNotNull(Box<GpuExpr>),
    /// A cast that fails on values that do not fit.
    Cast {
        /// What is cast.
        input: Box<GpuExpr>,
        /// The target.
        to: DataType,
    },
    /// CASE WHEN: the value behind the first condition that is true, else `otherwise`, else null.
    Case {
        /// Conditions and values, in order.
        branches: Vec<(GpuExpr, GpuExpr)>,
        /// The value when no condition is true.
        otherwise: Option<Box<GpuExpr>>,
    },
}

/// Column `at`.
pub fn column(at: usize) -> GpuExpr {
    GpuExpr::Column(at)
}

/// A constant from an Arrow scalar, for example `literal(Int64Array::new_scalar(3))`.
///
/// # Errors
/// [`Error::Unsupported`] for a type without kernels.
pub fn literal<T: arrow::array::Array + 'static>(scalar: Scalar<T>) -> Result<GpuExpr> {
    Ok(GpuExpr::Literal(Literal::try_new(Arc::new(scalar.into_inner()))?))
}

/// A null of a type.
///
/// # Errors
/// [`Error::Unsupported`] for a type without kernels.
pub fn null(data_type: &DataType) -> Result<GpuExpr> {
    Ok(GpuExpr::Literal(Literal::try_new(new_null_array(data_type, 1))?))
}

impl GpuExpr {
    /// `self op right`.
    pub fn binary(self, op: BinaryOp, right: GpuExpr) -> GpuExpr {
        GpuExpr::Binary { op, left: Box::new(self), right: Box::new(right) }
    }

    /// `CAST(self AS to)`.
    pub fn cast(self, to: DataType) -> GpuExpr {
        GpuExpr::Cast { input: Box::new(self), to }
    }

    /// The type of the result.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for what has no kernel, [`Error::Invalid`] for a column that is not there or operands
    /// that do not fit together.
    pub fn data_type(&self, schema: &Schema) -> Result<DataType> {
        match self {
            Self::Column(at) => {
                let field = schema.fields().get(*at).ok_or_else(|| {
                    Error::Invalid(format!("column {at} was asked for, the input has {}", schema.fields().len()))
                })?;
                Physical::try_from(field.data_type())?;
                Ok(field.data_type().clone())
            }
            Self::Literal(value) => Ok(value.array().data_type().clone()),
            Self::Binary { op, left, right } => binary_type(*op, &left.data_type(schema)?, &right.data_type(schema)?),
            Self::Not(input) => match input.data_type(schema)? {
                DataType::Boolean => Ok(DataType::Boolean),
                other => Err(Error::Invalid(format!("NOT takes a boolean, not {other}"))),
            },
            Self::Negate(input) => {
                let data_type = input.data_type(schema)?;
                match Physical::try_from(&data_type)? {
                    Physical::Bool | Physical::U8 | Physical::U16 | Physical::U32 | Physical::U64 => {
                        Err(Error::Invalid(format!("{data_type} has no negative")))
                    }
                    _ if data_type.is_numeric() => Ok(data_type),
                    _ => Err(Error::Unsupported(format!("the negative of {data_type}"))),
                }
            }
            Self::IsNull(input) | Self::IsNotNull(input) => input.data_type(schema).map(|_| DataType::Boolean),
            Self::Cast { input, to } => {
                let from = input.data_type(schema)?;
                if cast_is_supported(&from, to)? {
                    Ok(to.clone())
                } else {
                    Err(Error::Unsupported(format!("a cast from {from} to {to}")))
                }
            }
            Self::Case { branches, otherwise } => {
                let mut result: Option<DataType> = None;
                let values = branches.iter().map(|(_, value)| value).chain(otherwise.as_deref());
                for value in values {
                    let data_type = value.data_type(schema)?;
                    if result.get_or_insert_with(|| data_type.clone()) != &data_type {
                        return Err(Error::Invalid("the values of a CASE have different types".into()));
                    }
                }
                for (condition, _) in branches {
                    if condition.data_type(schema)? != DataType::Boolean {
                        return Err(Error::Invalid("a condition of a CASE is not boolean".into()));
                    }
                }
                result.ok_or_else(|| Error::Invalid("a CASE without branches".into()))
            }
        }
    }

    /// Whether evaluating it can fail on a row, so that it must not be evaluated where it is not asked for.
    ///
    /// # Errors
    /// As [`GpuExpr::data_type`].
    pub fn can_fail(&self, schema: &Schema) -> Result<bool> {
        let own = match self {
            Self::Binary { op, left, .. } if op.is_arithmetic() => {
                let physical = Physical::try_from(&left.data_type(schema)?)?;
                physical == Physical::I128
                    || (matches!(op, BinaryOp::Divide | BinaryOp::Remainder) && !physical.is_float())
            }
            Self::Negate(input) => Physical::try_from(&input.data_type(schema)?)? == Physical::I128,
            Self::Cast { .. } => true,
            _ => false,
        };
        if own {
            return Ok(true);
        }
        for child in self.children() {
            if child.can_fail(schema)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(crate) fn children(&self) -> Vec<&GpuExpr> {
        match self {
            Self::Column(_) | Self::Literal(_) => vec![],
            Self::Binary { left, right, .. } => vec![left, right],
            Self::Not(input)
            | Self::Negate(input)
            | Self::IsNull(input)
            | Self::IsNotNull(input)
            | Self::Cast { input, .. } => vec![input],
            Self::Case { branches, otherwise } => {
                branches.iter().flat_map(|(c, v)| [c, v]).chain(otherwise.as_deref()).collect()
            }
        }
    }

    /// The columns it reads, in order and once each.
    pub fn columns(&self) -> Vec<usize> {
        let mut found = std::collections::BTreeSet::new();
        let mut open = vec![self];
        while let Some(expr) = open.pop() {
            if let Self::Column(at) = expr {
                found.insert(*at);
            }
            open.extend(expr.children());
        }
        found.into_iter().collect()
    }
}

fn binary_type(op: BinaryOp, left: &DataType, right: &DataType) -> Result<DataType> {
    use DataType::Decimal128;
    if op.is_logical() {
        return match (left, right) {
            (DataType::Boolean, DataType::Boolean) => Ok(DataType::Boolean),
            _ => Err(Error::Invalid(format!("AND and OR take booleans, not {left} and {right}"))),
        };
    }
    if op.is_arithmetic() {
        return match (left, right) {
            (Decimal128(p1, s1), Decimal128(p2, s2)) => decimal_type(op, (*p1, *s1), (*p2, *s2)),
            _ if left == right && left.is_numeric() && *left != DataType::Float16 => Ok(left.clone()),
            _ => Err(Error::Unsupported(format!("arithmetic between {left} and {right}"))),
        };
    }
    match (left, right) {
        (Decimal128(_, s1), Decimal128(_, s2)) if s1 != s2 => {
            Err(Error::Unsupported(format!("a comparison between {left} and {right}; cast one of them first")))
        }
        (Decimal128(..), Decimal128(..)) => Ok(DataType::Boolean),
        _ if left == right => Ok(DataType::Boolean),
        _ => Err(Error::Unsupported(format!("a comparison between {left} and {right}"))),
    }
}

/// Hive's rules, as `arrow::compute::kernels::numeric` has them.
fn decimal_type(op: BinaryOp, (p1, s1): (u8, i8), (p2, s2): (u8, i8)) -> Result<DataType> {
    let (p1w, s1w, p2w, s2w) = (i32::from(p1), i32::from(s1), i32::from(p2), i32::from(s2));
    let (precision, scale) = match op {
        BinaryOp::Add | BinaryOp::Subtract => {
            let scale = s1w.max(s2w);
            (scale + (p1w - s1w).max(p2w - s2w) + 1, scale)
        }
        BinaryOp::Multiply => (p1w + p2w + 1, s1w + s2w),
        BinaryOp::Divide => {
            let scale = (s1w + 4).min(38);
            (scale - s1w + s2w + p1w, scale)
        }
        _ => {
            let scale = s1w.max(s2w);
            (scale + (p1w - s1w).min(p2w - s2w), scale)
        }
    };
    if !(0..=38).contains(&scale) || s1 < 0 || s2 < 0 {
        return Err(Error::Unsupported(format!("a decimal result of scale {scale}")));
    }
    let precision = u8::try_from(precision.clamp(1, 38)).unwrap_or(38);
    Ok(DataType::Decimal128(precision, i8::try_from(scale).unwrap_or(38)))
}

fn cast_is_supported(from: &DataType, to: &DataType) -> Result<bool> {
    let (source, target) = (Physical::try_from(from)?, Physical::try_from(to)?);
    Ok(from == to
        || match (from, to) {
            (DataType::Decimal128(_, s1), DataType::Decimal128(_, s2)) => 0 <= *s1 && s1 <= s2,
            (_, DataType::Decimal128(_, scale)) => from.is_integer() && source != Physical::U64 && *scale >= 0,
            (DataType::Decimal128(_, scale), DataType::Float64) => *scale >= 0,
            _ => from.is_numeric() && to.is_numeric() && source != Physical::I128 && target != Physical::I128,
        })
}
