//! `ArrowArrayStream`: batches one after the other.

use std::ffi::{CStr, CString, c_char, c_int, c_void};

use arrow::array::{Array as _, RecordBatch, RecordBatchReader, StructArray};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::error::ArrowError;

use super::array::CArray;
use super::broken;
use super::schema::CSchema;

/// What the interface wants for an error: any code of the operating system; the text says more.
const EIO: c_int = 5;

/// The structure of the C stream interface.
#[repr(C)]
pub(super) struct CStream {
    get_schema: Option<unsafe extern "C" fn(*mut CStream, *mut CSchema) -> c_int>,
    get_next: Option<unsafe extern "C" fn(*mut CStream, *mut CArray) -> c_int>,
    get_last_error: Option<unsafe extern "C" fn(*mut CStream) -> *const c_char>,
    release: Option<unsafe extern "C" fn(*mut CStream)>,
    private: *mut c_void,
}

// SAFETY: a stream is used by one thread at a time, whichever that is; its callbacks are bound to none.
unsafe impl Send for CStream {}

struct Owned {
    reader: Box<dyn RecordBatchReader + Send>,
    last_error: Option<CString>,
}

impl Owned {
    fn fail(&mut self, error: &ArrowError) -> c_int {
        let text = error.to_string().replace('\0', " ");
        self.last_error = CString::new(text).ok();
        EIO
    }
}

/// What `stream` owns.
///
/// # Safety
/// `stream` must be a live stream of ours, in the hands of one caller.
unsafe fn owned<'a>(stream: *mut CStream) -> &'a mut Owned {
    // SAFETY: as promised by the caller; `private` is what `CStream::export` put there.
    unsafe { &mut *(*stream).private.cast::<Owned>() }
}

unsafe extern "C" fn get_schema(stream: *mut CStream, out: *mut CSchema) -> c_int {
    // SAFETY: the consumer calls with a live stream of ours and a place to write to.
    unsafe {
        let owned = owned(stream);
        match CSchema::from_schema(&owned.reader.schema()) {
            Ok(schema) => {
                out.write(schema);
                0
            }
            Err(error) => owned.fail(&error),
        }
    }
}

unsafe extern "C" fn get_next(stream: *mut CStream, out: *mut CArray) -> c_int {
    // SAFETY: the consumer calls with a live stream of ours and a place to write to.
    unsafe {
        let owned = owned(stream);
        match owned.reader.next() {
            None => {
                out.write(CArray::empty());
                0
            }
            Some(Ok(batch)) => {
                out.write(CArray::export(&StructArray::from(batch).to_data()));
                0
            }
            Some(Err(error)) => owned.fail(&error),
        }
    }
}

unsafe extern "C" fn get_last_error(stream: *mut CStream) -> *const c_char {
    // SAFETY: the consumer calls with a live stream of ours; the text lives until the next call.
    unsafe { owned(stream) }.last_error.as_ref().map_or(std::ptr::null(), |text| text.as_ptr())
}

unsafe extern "C" fn release(stream: *mut CStream) {
    // SAFETY: the consumer hands back what `CStream::export` made, once.
    unsafe {
        let Some(stream) = stream.as_mut() else { return };
        drop(Box::from_raw(stream.private.cast::<Owned>()));
        stream.release = None;
    }
}

impl Drop for CStream {
    fn drop(&mut self) {
        if let Some(release) = self.release {
            // SAFETY: a structure that still has its release callback is alive, and the callback is called once.
            unsafe { release(self) }
        }
    }
}

impl CStream {
    /// A structure for a producer to fill.
    pub(super) fn empty() -> CStream {
        CStream { get_schema: None, get_next: None, get_last_error: None, release: None, private: std::ptr::null_mut() }
    }

    /// Whether it holds nothing (any more).
    pub(super) fn is_released(&self) -> bool {
        self.release.is_none()
    }

    /// The reader for others to read.
    pub(super) fn export(reader: Box<dyn RecordBatchReader + Send>) -> CStream {
        let owned = Box::new(Owned { reader, last_error: None });
        CStream {
            get_schema: Some(get_schema),
            get_next: Some(get_next),
            get_last_error: Some(get_last_error),
            release: Some(release),
            private: Box::into_raw(owned).cast(),
        }
    }

    fn error(&mut self, code: c_int) -> ArrowError {
        let text = match self.get_last_error {
            // SAFETY: the producer promises a text or null, until its next call.
            Some(get) => unsafe {
                let text = get(self);
                if text.is_null() { None } else { Some(CStr::from_ptr(text).to_string_lossy().into_owned()) }
            },
            None => None,
        };
        broken(text.unwrap_or_else(|| format!("the stream failed with code {code}")))
    }
}

/// Reads a stream of somebody else's.
pub(super) struct StreamReader {
    stream: CStream,
    schema: SchemaRef,
    kind: DataType,
}

impl StreamReader {
    /// Asks the stream for its schema.
    pub(super) fn try_new(mut stream: CStream) -> Result<StreamReader, ArrowError> {
        let get = stream.get_schema.ok_or_else(|| broken("the stream was read before; it can be read once"))?;
        let mut schema = CSchema::empty();
        // SAFETY: a live stream and a place to write to.
        let code = unsafe { get(&mut stream, &mut schema) };
        if code != 0 {
            return Err(stream.error(code));
        }
        let schema = SchemaRef::new(schema.to_schema()?);
        Ok(StreamReader { stream, kind: DataType::Struct(schema.fields().clone()), schema })
    }
}

impl Iterator for StreamReader {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        let get = self.stream.get_next?;
        let mut array = CArray::empty();
        // SAFETY: a live stream and a place to write to.
        let code = unsafe { get(&mut self.stream, &mut array) };
        if code != 0 {
            return Some(Err(self.stream.error(code)));
        }
        if array.is_released() {
            return None;
        }
        Some(to_batch(array, self.kind.clone(), &self.schema))
    }
}

impl RecordBatchReader for StreamReader {
    fn schema(&self) -> SchemaRef {
        SchemaRef::clone(&self.schema)
    }
}

/// A struct array of somebody else's as a batch.
pub(super) fn to_batch(array: CArray, kind: DataType, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    // SAFETY: the array came through the C data interface together with its type.
    let data = unsafe { array.import(kind)? };
    if data.null_count() > 0 {
        return Err(broken("rows of a table cannot be null as a whole"));
    }
    let rows = data.len();
    let columns = StructArray::from(data).into_parts().1;
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(SchemaRef::clone(schema), columns, &options)
}
