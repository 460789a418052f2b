//! A function over columns, as an expression.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array as _, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::{Result, exec_err, internal_err};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use pyo3::prelude::*;

use super::allocator::keep_freed_memory;
use super::call::Call;
use crate::batches::engine_error;
use crate::cdata;
use crate::expr::{PyExpr, user_call};

/// A function of the user's over columns, as an expression.
#[derive(Debug)]
struct PythonFunction {
    call: Call,
    signature: Signature,
}

// Two functions are the same only if they are one: what a Python function does cannot be compared.
impl PartialEq for PythonFunction {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for PythonFunction {}

impl Hash for PythonFunction {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.call.name.hash(state);
    }
}

impl ScalarUDFImpl for PythonFunction {
    fn name(&self) -> &str {
        &self.call.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        match self.call.schema.fields().first() {
            Some(field) => Ok(field.data_type().clone()),
            None => internal_err!("a function without an answer"),
        }
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = arguments.number_rows;
        let columns = ColumnarValue::values_to_arrays(&arguments.args)?;
        let columns = columns.into_iter().map(|column| match column.len() == rows {
            true => Ok(column),
            // Constants alone come as one row.
            false => arrow::compute::take(&column, &UInt32Array::from(vec![0; rows]), None).map_err(engine_error),
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let fields: Vec<Field> = columns
            .iter()
            .enumerate()
            .map(|(at, column)| Field::new(format!("_{at}"), column.data_type().clone(), true))
            .collect();
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)?;
        let answer = self.call.call(batch)?;
        self.call.check(&answer, 0)?;
        if answer.num_rows() != rows {
            return exec_err!("`{}` answered with {} rows for {rows}", self.call.name, answer.num_rows());
        }
        Ok(ColumnarValue::Array(Arc::clone(answer.column(0))))
    }
}

/// A call of a function of the user's. With `pure` the engine may call it once for equal arguments and move it around.
#[pyfunction]
pub(crate) fn call_function(
    name: String,
    function: Py<PyAny>,
    arguments: Vec<PyExpr>,
    schema: &Bound<'_, PyAny>,
    pure: bool,
) -> PyResult<PyExpr> {
    let call = Call { name, function, schema: cdata::schema_from_python(schema)? };
    keep_freed_memory();
    let volatility = if pure { Volatility::Immutable } else { Volatility::Volatile };
    let signature = Signature::any(arguments.len(), volatility);
    Ok(user_call(ScalarUDF::new_from_impl(PythonFunction { call, signature }), arguments))
}
