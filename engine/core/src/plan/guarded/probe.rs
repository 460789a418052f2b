//! An expression that can fail, made lenient: rows in which it does are noted, and get null.
//!
//! A [`Probe`] stands in the place of one operation (a cast, a division, a function). It evaluates its arguments, which
//! hold further probes, and then the operation: a cast as TRY_CAST, a division with null for zero, anything else as it
//! is, and by halves where that fails. Which row of the batch a value belongs to is read from a hidden column, since
//! CASE and AND evaluate their branches over fewer rows than came in.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, UInt32Array, new_null_array};
use arrow::buffer::NullBuffer;
use arrow::compute::{CastOptions, cast_with_options, concat, nullif, take_record_batch};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, UInt32Type};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::common::{DataFusionError, Result, ScalarValue, internal_err};
use datafusion::logical_expr::{ColumnarValue, Operator};
use datafusion::physical_expr::expressions::{BinaryExpr, CastExpr, Column, Literal, TryCastExpr};
use datafusion::physical_expr::{PhysicalExpr, PhysicalExprRef, ScalarFunctionExpr};
use parking_lot::Mutex;

use crate::types::logical_name;

/// Characters of a value that a message quotes.
const QUOTED_CHARS: usize = 80;

/// A row that failed, or may have.
#[derive(Debug)]
pub(super) struct Found {
    /// Its place in the batch that came in.
    pub(super) row: u32,
    /// What happened; `None` where the row fails only if the plain expression, which may never evaluate the operation
    /// for it, says so too.
    pub(super) message: Option<Arc<str>>,
}

/// Where probes note what they find.
pub(super) type Finds = Arc<Mutex<Vec<Found>>>;

/// What a probe does where the plain operation would fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// TRY_CAST.
    Cast,
    /// The divisor at this place among the columns of the arguments is null where it is zero.
    Divide(usize),
    /// `to_timestamp` of a text, which reads what a cast reads: TRY_CAST.
    Instant,
    /// Halves.
    Halve,
}

/// One operation that can fail.
#[derive(Debug, Clone)]
pub(super) struct Probe {
    /// The operation over its lenient arguments; never evaluated, it knows types.
    typed: PhysicalExprRef,
    /// The operation over a batch of its arguments' values.
    operation: PhysicalExprRef,
    /// The arguments that are values of that batch; literals stay where they are.
    arguments: Vec<PhysicalExprRef>,
    /// Where `arguments` stand among the children of `typed`.
    places: Vec<usize>,
    /// The hidden column.
    row: PhysicalExprRef,
    kind: Kind,
    /// Whether the plain expression evaluates the operation for every row that the probe sees.
    exact: bool,
    /// What the value is for: "column `x`".
    purpose: Arc<str>,
    finds: Finds,
}

impl Probe {
    /// The probe for an operation whose children are lenient already; `None` if it cannot fail. `row` is the place of
    /// the hidden column.
    pub(super) fn over(
        typed: &PhysicalExprRef,
        row: usize,
        exact: bool,
        purpose: &Arc<str>,
        finds: &Finds,
    ) -> Result<Option<PhysicalExprRef>> {
        let mut arguments = Vec::new();
        let mut places = Vec::new();
        let mut children: Vec<PhysicalExprRef> = Vec::new();
        for (place, child) in typed.children().into_iter().enumerate() {
            // Functions look at literals when they are built; those stay.
            if child.is::<Literal>() {
                children.push(Arc::clone(child));
                continue;
            }
            children.push(Arc::new(Column::new("", arguments.len())));
            arguments.push(Arc::clone(child));
            places.push(place);
        }
        let mut operation = Arc::clone(typed).with_new_children(children)?;
        let kind = if let Some(cast) = typed.downcast_ref::<CastExpr>() {
            if cast.cast_options().safe {
                return Ok(None);
            }
            match !cast.cast_type().is_nested() && arguments.len() == 1 {
                true => {
                    operation = Arc::new(TryCastExpr::new(Arc::new(Column::new("", 0)), cast.cast_type().clone()));
                    Kind::Cast
                }
                false => Kind::Halve,
            }
        } else if let Some(binary) = typed.downcast_ref::<BinaryExpr>() {
            match binary.op() {
                Operator::Divide | Operator::Modulo => match places.iter().position(|place| *place == 1) {
                    Some(divisor) => Kind::Divide(divisor),
                    None => Kind::Halve,
                },
                Operator::Plus | Operator::Minus | Operator::Multiply | Operator::StringConcat => Kind::Halve,
                _ => return Ok(None),
            }
        } else if is_to_timestamp(typed) && arguments.len() == 1 && places.len() == typed.children().len() {
            Kind::Instant
        } else {
            Kind::Halve
        };
        let row: PhysicalExprRef = Arc::new(Column::new(super::chain::ROW, row));
        Ok(Some(Arc::new(Probe {
            typed: Arc::clone(typed),
            operation,
            arguments,
            places,
            row,
            kind,
            exact,
            purpose: Arc::clone(purpose),
            finds: Arc::clone(finds),
        })))
    }

    fn note(&self, rows: &[u32], at: usize, message: impl FnOnce() -> String) {
        let Some(row) = rows.get(at) else { return };
        let message = self.exact.then(|| format!("{}: {}", self.purpose, message()).into());
        self.finds.lock().push(Found { row: *row, message });
    }

    /// Notes rows that all fail for one reason.
    fn note_all(&self, rows: &[u32], places: impl Iterator<Item = usize>, reason: &str) {
        let message: Option<Arc<str>> = self.exact.then(|| format!("{}: {reason}", self.purpose).into());
        let found = places.filter_map(|at| rows.get(at)).map(|row| Found { row: *row, message: message.clone() });
        self.finds.lock().extend(found);
    }

    /// The values of the arguments as a batch.
    fn values(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.arguments.len());
        let mut fields: Vec<FieldRef> = Vec::with_capacity(self.arguments.len());
        for argument in &self.arguments {
            let field = argument.return_field(batch.schema_ref())?;
            let values = argument.evaluate(batch)?.into_array(batch.num_rows())?;
            let field = Field::new("", values.data_type().clone(), true).with_metadata(field.metadata().clone());
            fields.push(Arc::new(field));
            columns.push(values);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        Ok(RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)?)
    }

    /// TRY_CAST.
    fn cast(&self, values: &RecordBatch, rows: &[u32]) -> Result<ArrayRef> {
        let made = self.operation.evaluate(values)?.into_array(values.num_rows())?;
        self.note_lost(values.column(0), &made, rows)?;
        Ok(made)
    }

    /// The instants of texts as a cast reads them; of anything else the operation as it is.
    fn instant(&self, values: &RecordBatch, rows: &[u32]) -> Result<ArrayRef> {
        let input = values.column(0);
        if !input.data_type().is_string() {
            return self.halve(values, rows);
        }
        let kind = self.operation.data_type(values.schema_ref())?;
        let made = cast_with_options(input, &kind, &CastOptions { safe: true, ..CastOptions::default() })?;
        self.note_lost(input, &made, rows)?;
        Ok(made)
    }

    /// Notes the rows that are null now, and were not.
    fn note_lost(&self, input: &ArrayRef, made: &ArrayRef, rows: &[u32]) -> Result<()> {
        let (was, is) = (input.logical_nulls(), made.logical_nulls());
        if count(is.as_ref()) > count(was.as_ref()) {
            let formatter = ArrayFormatter::try_new(input.as_ref(), &FormatOptions::new())?;
            let to = logical_name(made.data_type());
            let null = |nulls: &NullBuffer| !nulls.inner();
            let lost = match (is.as_ref().map(null), was.as_ref()) {
                (None, _) => return Ok(()),
                (Some(is), None) => is,
                (Some(is), Some(was)) => &is & was.inner(),
            };
            for at in lost.set_indices() {
                self.note(rows, at, || format!("cannot convert {} to {to}", quoted(&formatter.value(at).to_string())));
            }
        }
        Ok(())
    }

    /// The operation with null for divisors that are zero.
    fn divide(&self, values: &RecordBatch, divisor: usize, rows: &[u32]) -> Result<ArrayRef> {
        let divisors = values.column(divisor);
        let kind = divisors.data_type();
        if !(kind.is_integer() || kind.is_decimal()) {
            return self.halve(values, rows);
        }
        let zero = ScalarValue::new_zero(kind)?.to_scalar()?;
        let zeros = arrow::compute::kernels::cmp::eq(divisors, &zero)?;
        if zeros.true_count() == 0 {
            return self.halve(values, rows);
        }
        // Nothing divided by zero is null, not an error.
        let others: Option<NullBuffer> = (0..values.num_columns())
            .filter(|column| *column != divisor)
            .find_map(|column| values.column(column).logical_nulls());
        let mut failed = zeros.values().clone();
        for nulls in zeros.nulls().into_iter().chain(others.as_ref()) {
            failed = &failed & nulls.inner();
        }
        self.note_all(rows, failed.set_indices(), "division by zero");
        let mut columns = values.columns().to_vec();
        if let Some(column) = columns.get_mut(divisor) {
            *column = nullif(divisors, &zeros)?;
        }
        self.halve(&RecordBatch::try_new(values.schema(), columns)?, rows)
    }

    /// The operation as it is; where that fails, over halves.
    fn halve(&self, values: &RecordBatch, rows: &[u32]) -> Result<ArrayRef> {
        match self.evaluate_whole(values) {
            Ok(made) => return Ok(made),
            Err(error) if !blames_row(&error) => return Err(error),
            Err(_) if values.num_rows() > 1 => {}
            Err(error) => return self.one(values, rows, &error),
        }
        let mut made: Vec<ArrayRef> = Vec::new();
        let mut open = vec![(0, values.num_rows())];
        while let Some((from, length)) = open.pop() {
            let part = part(values, from, length)?;
            match self.evaluate_whole(&part) {
                Ok(values) => made.push(values),
                Err(error) if !blames_row(&error) => return Err(error),
                Err(error) if length == 1 => made.push(self.one(&part, rows.get(from..).unwrap_or(&[]), &error)?),
                Err(_) => {
                    open.push((from + length / 2, length - length / 2));
                    open.push((from, length / 2));
                }
            }
        }
        let made: Vec<&dyn Array> = made.iter().map(AsRef::as_ref).collect();
        Ok(concat(&made)?)
    }

    fn one(&self, values: &RecordBatch, rows: &[u32], error: &DataFusionError) -> Result<ArrayRef> {
        self.note(rows, 0, || in_words(error));
        Ok(new_null_array(&self.operation.data_type(values.schema_ref())?, values.num_rows()))
    }

    fn evaluate_whole(&self, values: &RecordBatch) -> Result<ArrayRef> {
        self.operation.evaluate(values)?.into_array(values.num_rows())
    }
}

impl PhysicalExpr for Probe {
    fn data_type(&self, input_schema: &Schema) -> Result<DataType> {
        self.typed.data_type(input_schema)
    }

    fn nullable(&self, _input_schema: &Schema) -> Result<bool> {
        Ok(true)
    }

    fn return_field(&self, input_schema: &Schema) -> Result<FieldRef> {
        let field = self.typed.return_field(input_schema)?;
        Ok(Arc::new(field.as_ref().clone().with_nullable(true)))
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        let values = self.values(batch)?;
        let places = self.row.evaluate(batch)?.into_array(batch.num_rows())?;
        let Some(places) = places.as_primitive_opt::<UInt32Type>() else {
            return internal_err!("the places of rows are not numbers");
        };
        let rows: &[u32] = places.values();
        let made = match self.kind {
            Kind::Cast => match self.cast(&values, rows) {
                Err(error) if blames_row(&error) => self.halve(&values, rows)?,
                other => other?,
            },
            Kind::Instant => self.instant(&values, rows)?,
            Kind::Divide(divisor) => self.divide(&values, divisor, rows)?,
            Kind::Halve => self.halve(&values, rows)?,
        };
        Ok(ColumnarValue::Array(made))
    }

    fn children(&self) -> Vec<&PhysicalExprRef> {
        self.arguments.iter().chain([&self.row]).collect()
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<PhysicalExprRef>) -> Result<PhysicalExprRef> {
        let Some(row) = children.pop() else { return internal_err!("a probe has a hidden column") };
        let mut typed: Vec<PhysicalExprRef> = self.typed.children().into_iter().map(Arc::clone).collect();
        for (place, child) in self.places.iter().zip(&children) {
            if let Some(old) = typed.get_mut(*place) {
                *old = Arc::clone(child);
            }
        }
        let typed = Arc::clone(&self.typed).with_new_children(typed)?;
        Ok(Arc::new(Probe { typed, arguments: children, row, ..Probe::clone(&self) }))
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.typed.fmt_sql(f)
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "probe({})", self.typed)
    }
}

impl PartialEq for Probe {
    fn eq(&self, other: &Self) -> bool {
        self.typed.eq(&other.typed) && self.exact == other.exact && Arc::ptr_eq(&self.finds, &other.finds)
    }
}
impl Eq for Probe {}
impl Hash for Probe {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.typed.hash(state);
    }
}

/// Some rows of a batch. A slice of lists keeps the values of all of them, which casts would go over; so those are copied.
fn part(values: &RecordBatch, from: usize, length: usize) -> Result<RecordBatch> {
    let part = values.slice(from, length);
    match values.columns().iter().any(|column| column.data_type().is_nested()) {
        true => Ok(take_record_batch(&part, &UInt32Array::from_iter_values(0..u32::try_from(length).unwrap_or(0)))?),
        false => Ok(part),
    }
}

fn is_to_timestamp(typed: &PhysicalExprRef) -> bool {
    typed.downcast_ref::<ScalarFunctionExpr>().is_some_and(|function| function.fun().name() == "to_timestamp")
}

fn count(nulls: Option<&NullBuffer>) -> usize {
    nulls.map_or(0, NullBuffer::null_count)
}

/// A value as messages quote it.
fn quoted(value: &str) -> String {
    let mut text: String = value.chars().take(QUOTED_CHARS).collect();
    if value.chars().count() > QUOTED_CHARS {
        text.push('…');
    }
    format!("'{text}'")
}

/// Whether an error can be the fault of one row. Anything else (memory, a bug, what is not implemented) fails the run.
pub(super) fn blames_row(error: &DataFusionError) -> bool {
    match error.find_root() {
        DataFusionError::Execution(_) => true,
        DataFusionError::ArrowError(error, _) => matches!(
            error.as_ref(),
            ArrowError::CastError(_)
                | ArrowError::ParseError(_)
                | ArrowError::ComputeError(_)
                | ArrowError::DivideByZero
                | ArrowError::ArithmeticOverflow(_)
                | ArrowError::InvalidArgumentError(_)
        ),
        _ => false,
    }
}

/// An error without the words that libraries put around it.
pub(super) fn in_words(error: &DataFusionError) -> String {
    match error.find_root() {
        DataFusionError::ArrowError(error, _) => match error.as_ref() {
            ArrowError::CastError(text)
            | ArrowError::ParseError(text)
            | ArrowError::ComputeError(text)
            | ArrowError::ArithmeticOverflow(text)
            | ArrowError::InvalidArgumentError(text) => text.clone(),
            ArrowError::DivideByZero => "division by zero".to_owned(),
            other => other.to_string(),
        },
        DataFusionError::Execution(text) => text.clone(),
        other => other.strip_backtrace(),
    }
}
