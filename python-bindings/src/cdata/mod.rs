//! The Arrow C data and stream interfaces, and the PyCapsules that carry them: columns cross without a copy.
//!
//! The `arrow` crate has the same behind its `ffi` feature. That feature reaches down to `arrow-schema`, so turning it
//! on would compile DataFusion a second time for everybody; these few structures are the price of one build.
//!
//! Layouts: <https://arrow.apache.org/docs/format/CDataInterface.html>,
//! <https://arrow.apache.org/docs/format/CStreamInterface.html>,
//! <https://arrow.apache.org/docs/format/CDataInterface/PyCapsuleInterface.html>.

mod array;
mod capsule;
mod schema;
mod stream;

pub(crate) use capsule::{
    batch_from_python, batch_to_capsules, reader_from_python, schema_from_python, schema_to_capsule, stream_to_capsule,
};

use arrow::error::ArrowError;

fn broken(what: impl Into<String>) -> ArrowError {
    ArrowError::CDataInterface(what.into())
}
