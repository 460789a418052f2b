//! Frames, and the Arrow IPC streams in them. The other side is a process that may die, so every length is checked
//! before anything is allocated, and decoding runs with panics caught.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::buffer::Buffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamDecoder;
use arrow::ipc::writer::StreamWriter;
use serde_json::Value as Json;
use tokio::io::{AsyncRead, AsyncReadExt as _};

const MAGIC: &[u8; 4] = b"RMW1";
const PREFIX: usize = 16;
/// A head holds failures with their tracebacks.
const MAX_HEAD_BYTES: usize = 64 << 20;

/// How a conversation ended before it was over.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The output ended: the process died.
    Ended,
    /// It took too long.
    Silent,
    /// The group's deadline passed.
    Deadline,
    /// The run was cancelled.
    Cancelled,
    /// What came is no answer.
    Nonsense(String),
    /// What came is larger than allowed.
    TooLarge(usize),
}

/// A frame that is sent: its head with what stands before it, and its body, which may be large and is not copied.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) head: Vec<u8>,
    pub(crate) body: Vec<u8>,
}

impl Frame {
    pub(crate) fn new(head: &Json, body: Vec<u8>) -> Self {
        let text = head.to_string();
        let mut head = Vec::with_capacity(PREFIX + text.len());
        head.extend_from_slice(MAGIC);
        head.extend_from_slice(&(text.len() as u32).to_le_bytes());
        head.extend_from_slice(&(body.len() as u64).to_le_bytes());
        head.extend_from_slice(text.as_bytes());
        Self { head, body }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.head.len() + self.body.len()
    }
}

/// Reads one frame: its head and its body.
pub(crate) async fn read_frame(from: &mut (impl AsyncRead + Unpin), cap: usize) -> Result<(Json, Vec<u8>), Broken> {
    let mut prefix = [0u8; PREFIX];
    from.read_exact(&mut prefix).await.map_err(|_| Broken::Ended)?;
    let (magic, lengths) = prefix.split_at(4);
    if magic != MAGIC {
        return Err(Broken::Nonsense(format!("its answer begins with {:?}", String::from_utf8_lossy(&prefix))));
    }
    let (head, body) = lengths.split_at(4);
    let head = u32::from_le_bytes(head.try_into().unwrap_or_default()) as usize;
    let body = u64::from_le_bytes(body.try_into().unwrap_or_default());
    let body = usize::try_from(body).ok().filter(|body| *body <= cap).ok_or(Broken::TooLarge(cap))?;
    if head > MAX_HEAD_BYTES {
        return Err(Broken::TooLarge(MAX_HEAD_BYTES));
    }
    let mut text = vec![0u8; head];
    from.read_exact(&mut text).await.map_err(|_| Broken::Ended)?;
    let mut bytes = vec![0u8; body];
    from.read_exact(&mut bytes).await.map_err(|_| Broken::Ended)?;
    let head = serde_json::from_slice(&text).map_err(|error| Broken::Nonsense(format!("its answer: {error}")))?;
    Ok((head, bytes))
}

/// The type that goes over the wire: encodings that not every version of pyarrow knows become plain ones.
fn plain(kind: &DataType) -> DataType {
    match kind {
        DataType::Utf8View => DataType::Utf8,
        DataType::BinaryView => DataType::Binary,
        DataType::Dictionary(_, value) => plain(value),
        other => other.clone(),
    }
}

/// The schema as it is sent.
pub(crate) fn plain_schema(schema: &Schema) -> SchemaRef {
    let fields: Vec<Field> = schema
        .fields()
        .iter()
        .map(|field| Field::new(field.name(), plain(field.data_type()), field.is_nullable()))
        .collect();
    Arc::new(Schema::new(fields))
}

/// Bytes of a batch, without those of the arrays that it is a part of.
pub(crate) fn slice_bytes(batch: &RecordBatch) -> usize {
    batch.columns().iter().map(|column| column.to_data().get_slice_memory_size().unwrap_or(0)).sum()
}

/// A batch as an IPC stream.
pub(crate) fn encode(batch: &RecordBatch, schema: &SchemaRef) -> Result<Vec<u8>, ArrowError> {
    let mut bytes = Vec::with_capacity(slice_bytes(batch) + 1024);
    write_batch(&mut bytes, batch, schema)?;
    Ok(bytes)
}

/// Writes a batch as an IPC stream.
pub(crate) fn write_batch(
    sink: &mut impl std::io::Write,
    batch: &RecordBatch,
    schema: &SchemaRef,
) -> Result<(), ArrowError> {
    let columns = batch.columns().iter().zip(schema.fields()).map(|(column, field)| {
        if column.data_type() == field.data_type() { Ok(column.clone()) } else { cast(column, field.data_type()) }
    });
    let columns: Vec<ArrayRef> = columns.collect::<Result<_, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    let batch = RecordBatch::try_new_with_options(schema.clone(), columns, &options)?;
    let mut writer = StreamWriter::try_new(sink, schema)?;
    writer.write(&batch)?;
    writer.finish()
}

/// A schema as an IPC stream without batches.
pub(crate) fn encode_schema(schema: &SchemaRef) -> Result<Vec<u8>, ArrowError> {
    let mut writer = StreamWriter::try_new(Vec::new(), schema)?;
    writer.finish()?;
    writer.into_inner()
}

/// The one batch of an IPC stream; its columns are parts of `bytes`, not copies.
pub(crate) fn decode(bytes: Buffer) -> Result<RecordBatch, Broken> {
    let decoded = std::panic::catch_unwind(AssertUnwindSafe(|| -> Result<Option<RecordBatch>, ArrowError> {
        let (mut left, mut decoder) = (bytes, StreamDecoder::new());
        while !left.is_empty() {
            if let Some(batch) = decoder.decode(&mut left)? {
                return Ok(Some(batch));
            }
        }
        Ok(None)
    }));
    match decoded {
        Ok(Ok(Some(batch))) => Ok(batch),
        Ok(Ok(None)) => Err(Broken::Nonsense("its answer holds no batch".to_owned())),
        Ok(Err(error)) => Err(Broken::Nonsense(format!("its answer: {error}"))),
        Err(_) => Err(Broken::Nonsense("its answer is a broken Arrow stream".to_owned())),
    }
}
