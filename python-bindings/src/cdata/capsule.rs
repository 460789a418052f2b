//! PyCapsules: `__arrow_c_schema__`, `__arrow_c_array__` and `__arrow_c_stream__`.

use std::ffi::CStr;
use std::sync::Arc;

use arrow::array::{Array as _, RecordBatch, RecordBatchReader, StructArray};
use arrow::datatypes::{DataType, Schema, SchemaRef};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::array::CArray;
use super::schema::CSchema;
use super::stream::{CStream, StreamReader, to_batch};

const SCHEMA: &CStr = c"arrow_schema";
const ARRAY: &CStr = c"arrow_array";
const STREAM: &CStr = c"arrow_array_stream";

/// A structure with a name that Python knows it by.
trait Carried: Sized {
    const NAME: &'static CStr;
    fn vacant() -> Self;
    fn released(&self) -> bool;
}

impl Carried for CSchema {
    const NAME: &'static CStr = SCHEMA;
    fn vacant() -> Self {
        CSchema::empty()
    }
    fn released(&self) -> bool {
        self.is_released()
    }
}

impl Carried for CArray {
    const NAME: &'static CStr = ARRAY;
    fn vacant() -> Self {
        CArray::empty()
    }
    fn released(&self) -> bool {
        self.is_released()
    }
}

impl Carried for CStream {
    const NAME: &'static CStr = STREAM;
    fn vacant() -> Self {
        CStream::empty()
    }
    fn released(&self) -> bool {
        self.is_released()
    }
}

unsafe extern "C" fn free<T: Carried>(capsule: *mut ffi::PyObject) {
    // SAFETY: Python calls this once, with a capsule that `put` made; a consumer that took the structure out left its
    // release callback empty, so dropping it does nothing more.
    unsafe {
        let pointer = ffi::PyCapsule_GetPointer(capsule, T::NAME.as_ptr()).cast::<T>();
        if pointer.is_null() {
            ffi::PyErr_Clear();
        } else {
            drop(Box::from_raw(pointer));
        }
    }
}

fn put<T: Carried>(py: Python<'_>, value: T) -> PyResult<Py<PyAny>> {
    let pointer = Box::into_raw(Box::new(value));
    // SAFETY: the pointer is ours until the capsule's destructor takes it back; the name lives as long as the program.
    unsafe {
        let capsule = ffi::PyCapsule_New(pointer.cast(), T::NAME.as_ptr(), Some(free::<T>));
        if capsule.is_null() {
            drop(Box::from_raw(pointer));
        }
        Bound::from_owned_ptr_or_err(py, capsule).map(Bound::unbind)
    }
}

/// Moves the structure out of a capsule, which is left empty.
fn take<T: Carried>(capsule: &Bound<'_, PyAny>) -> PyResult<T> {
    // SAFETY: the name says what the pointer points to, and Python refuses a capsule of another name. What is moved out
    // is replaced by an empty structure, which the capsule's destructor passes over.
    unsafe {
        let pointer = ffi::PyCapsule_GetPointer(capsule.as_ptr(), T::NAME.as_ptr()).cast::<T>();
        if pointer.is_null() {
            return Err(PyErr::fetch(capsule.py()));
        }
        let value = std::ptr::replace(pointer, T::vacant());
        match value.released() {
            true => Err(PyValueError::new_err("these Arrow data were taken before; a capsule can be used once")),
            false => Ok(value),
        }
    }
}

fn wrong(error: arrow::error::ArrowError) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// The schema that an object with `__arrow_c_schema__` tells.
pub(crate) fn schema_from_python(object: &Bound<'_, PyAny>) -> PyResult<SchemaRef> {
    let capsule = object.call_method0("__arrow_c_schema__")?;
    Ok(Arc::new(take::<CSchema>(&capsule)?.to_schema().map_err(wrong)?))
}

/// A schema for Python.
pub(crate) fn schema_to_capsule(py: Python<'_>, schema: &Schema) -> PyResult<Py<PyAny>> {
    put(py, CSchema::from_schema(schema).map_err(wrong)?)
}

/// A stream of batches for Python.
pub(crate) fn stream_to_capsule(py: Python<'_>, reader: Box<dyn RecordBatchReader + Send>) -> PyResult<Py<PyAny>> {
    put(py, CStream::export(reader))
}

/// One batch for Python: the pair that `__arrow_c_array__` answers.
pub(crate) fn batch_to_capsules<'py>(py: Python<'py>, batch: &RecordBatch) -> PyResult<Bound<'py, PyTuple>> {
    let schema = schema_to_capsule(py, &batch.schema())?;
    let array = put(py, CArray::export(&StructArray::from(batch.clone()).to_data()))?;
    PyTuple::new(py, [schema, array])
}

/// One batch of an object with `__arrow_c_array__`.
pub(crate) fn batch_from_python(object: &Bound<'_, PyAny>) -> PyResult<RecordBatch> {
    let pair = object.call_method0("__arrow_c_array__")?;
    let pair = pair.cast::<PyTuple>().map_err(|_| PyTypeError::new_err("__arrow_c_array__ answers two capsules"))?;
    let schema = take::<CSchema>(&pair.get_item(0)?)?;
    let array = take::<CArray>(&pair.get_item(1)?)?;
    let kind = schema.to_data_type().map_err(wrong)?;
    let DataType::Struct(fields) = &kind else {
        return Err(PyTypeError::new_err("a record batch is needed, this is a single array"));
    };
    let schema = Arc::new(Schema::new(fields.clone()));
    to_batch(array, kind, &schema).map_err(wrong)
}

/// The batches of an object with `__arrow_c_stream__` or `__arrow_c_array__`; `None` where it has neither.
pub(crate) fn reader_from_python(object: &Bound<'_, PyAny>) -> PyResult<Option<Box<dyn RecordBatchReader + Send>>> {
    if object.hasattr("__arrow_c_stream__")? {
        let capsule = object.call_method0("__arrow_c_stream__")?;
        let reader = StreamReader::try_new(take::<CStream>(&capsule)?).map_err(wrong)?;
        return Ok(Some(Box::new(reader)));
    }
    if object.hasattr("__arrow_c_array__")? {
        let batch = batch_from_python(object)?;
        let schema = batch.schema();
        let reader = arrow::array::RecordBatchIterator::new([Ok(batch)], schema);
        return Ok(Some(Box::new(reader)));
    }
    Ok(None)
}
