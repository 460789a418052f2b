//! Batches as bytes and back: an Arrow IPC stream of one batch.

use std::io::Cursor;

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use arrow::ipc::CompressionType;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};

use crate::CacheError;

/// Bytes of one batch, compressed where it pays.
pub(crate) fn encode(batch: &RecordBatch, compress: bool) -> Result<Vec<u8>, CacheError> {
    let compression = compress.then_some(CompressionType::LZ4_FRAME);
    let options = IpcWriteOptions::default().try_with_compression(compression)?;
    let mut writer = StreamWriter::try_new_with_options(Vec::new(), &batch.schema(), options)?;
    writer.write(batch)?;
    writer.finish()?;
    Ok(writer.into_inner()?)
}

/// The batch of such bytes; `None` if they are not what [`encode`] makes.
pub(crate) fn decode(bytes: &[u8]) -> Option<RecordBatch> {
    StreamReader::try_new(Cursor::new(bytes), None).ok()?.next()?.ok()
}

/// Whether rows of one schema can stand for rows of another: fields count, metadata does not.
pub(crate) fn same(a: &Schema, b: &Schema) -> bool {
    a.fields().len() == b.fields().len()
        && a.fields()
            .iter()
            .zip(b.fields())
            .all(|(a, b)| a.name() == b.name() && a.data_type() == b.data_type() && a.is_nullable() == b.is_nullable())
}
