//! `single_value(x)`: the value of the one row there is, null where there is none, an error where there are more.
//!
//! In one process DataFusion counts the rows of a subquery that stands for a value. On a cluster such a subquery becomes a
//! join, which does not count and would give a row for each; so the subquery is made to give one row or an error.

use std::mem::size_of_val;
use std::sync::{Arc, LazyLock};

use datafusion::arrow::array::{Array as _, ArrayRef, AsArray as _, UInt64Array};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, UInt64Type};
use datafusion::common::{Result, ScalarValue, exec_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, Signature, Volatility};

/// What the function is called.
pub const NAME: &str = "single_value";

/// The function.
pub fn single_value() -> Arc<AggregateUDF> {
    static FUNCTION: LazyLock<Arc<AggregateUDF>> = LazyLock::new(|| {
        let signature = Signature::any(1, Volatility::Immutable);
        Arc::new(AggregateUDF::new_from_impl(SingleValue { signature }))
    });
    Arc::clone(&FUNCTION)
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct SingleValue {
    signature: Signature,
}

impl AggregateUDFImpl for SingleValue {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        match arguments {
            [kind] => Ok(kind.clone()),
            _ => exec_err!("{NAME} takes one argument"),
        }
    }

    fn accumulator(&self, arguments: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(One { rows: 0, value: ScalarValue::try_from(arguments.return_field.data_type())? }))
    }

    fn state_fields(&self, arguments: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        let value = Field::new("value", arguments.return_field.data_type().clone(), true);
        Ok(vec![Arc::new(value), Arc::new(Field::new("rows", DataType::UInt64, false))])
    }
}

/// The rows so far, and the value of the only one.
#[derive(Debug)]
struct One {
    rows: u64,
    value: ScalarValue,
}

impl One {
    fn take(&mut self, values: &ArrayRef, at: usize, rows: u64) -> Result<()> {
        self.rows = self.rows.saturating_add(rows);
        if self.rows > 1 {
            return exec_err!("Scalar subquery returned more than one row");
        }
        if rows == 1 {
            self.value = ScalarValue::try_from_array(values, at)?;
        }
        Ok(())
    }
}

impl Accumulator for One {
    fn update_batch(&mut self, columns: &[ArrayRef]) -> Result<()> {
        columns.first().map_or(Ok(()), |values| self.take(values, 0, values.len() as u64))
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let [values, rows] = states else { return exec_err!("{NAME} has a state of two columns") };
        let rows: &UInt64Array = rows.as_primitive::<UInt64Type>();
        (0..rows.len()).try_for_each(|at| self.take(values, at, rows.value(at)))
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.value.clone(), ScalarValue::UInt64(Some(self.rows))])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(self.value.clone())
    }

    fn size(&self) -> usize {
        size_of_val(self) - size_of_val(&self.value) + self.value.size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::Int64Array;

    fn values(values: &[Option<i64>]) -> Vec<ArrayRef> {
        vec![Arc::new(Int64Array::from(values.to_vec()))]
    }

    fn one() -> One {
        One { rows: 0, value: ScalarValue::Int64(None) }
    }

    #[test]
    fn one_row_or_none_or_an_error() {
        let mut none = one();
        none.update_batch(&values(&[])).unwrap();
        assert_eq!(none.evaluate().unwrap(), ScalarValue::Int64(None));
        let mut some = one();
        some.update_batch(&values(&[Some(7)])).unwrap();
        assert_eq!(some.evaluate().unwrap(), ScalarValue::Int64(Some(7)));
        assert!(some.update_batch(&values(&[None])).is_err(), "a null is a row");
        assert!(one().update_batch(&values(&[Some(7), Some(7)])).is_err());
    }

    #[test]
    fn parts_are_put_together() {
        let states = |parts: &[(Option<i64>, u64)]| -> Vec<ArrayRef> {
            let (values, rows): (Vec<_>, Vec<_>) = parts.iter().copied().unzip();
            vec![Arc::new(Int64Array::from(values)), Arc::new(UInt64Array::from(rows))]
        };
        let mut whole = one();
        whole.merge_batch(&states(&[(None, 0), (Some(3), 1), (None, 0)])).unwrap();
        assert_eq!(whole.evaluate().unwrap(), ScalarValue::Int64(Some(3)));
        assert!(one().merge_batch(&states(&[(Some(3), 1), (None, 1)])).is_err());
    }
}
