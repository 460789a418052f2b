//! The Arrow format: one IPC stream in, one out, a record batch per group.
//!
//! The other side is not trusted: message by message, lengths are checked against the cap before anything is allocated,
//! compressed bodies are refused (their declared lengths could be anything), and decoding runs with panics caught.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, StringArray, UInt32Array};
use arrow::buffer::Buffer;
use arrow::compute::{CastOptions, cast, cast_with_options, filter_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt32Type};
use arrow::error::ArrowError;
use arrow::ipc::convert::fb_to_schema;
use arrow::ipc::reader::StreamDecoder;
use arrow::ipc::root_as_message;
use arrow::ipc::writer::StreamWriter;
use rowmill_step::{BatchReply, Cardinality, Failure, FailureCode, ItemBatch, Sent, StepShape, Usage};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};

use crate::process::Process;
use crate::session::{Broken, CommandSession, Running};

/// The column with which a program says that an item failed.
const ERROR: &str = "__error";
/// The column with which a program that fans out says whose a row is.
const ROW: &str = "__row";
/// Metadata of a message is small; more is nonsense.
const MAX_METADATA_BYTES: usize = 1 << 20;

/// Both directions of the conversation with one process.
pub(crate) struct ArrowFrames {
    writer: StreamWriter<Vec<u8>>,
    sent_schema: SchemaRef,
    decoder: StreamDecoder,
    received_schema: Option<SchemaRef>,
}

/// The type that goes over the wire: encodings that not every reader knows become plain ones.
fn plain(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Utf8View => DataType::Utf8,
        DataType::BinaryView => DataType::Binary,
        DataType::Dictionary(_, value) => plain(value),
        other => other.clone(),
    }
}

impl ArrowFrames {
    pub(crate) fn try_new(shape: &StepShape) -> Result<Self, ArrowError> {
        let fields: Vec<_> = shape
            .input
            .fields()
            .iter()
            .map(|field| Field::new(field.name(), plain(field.data_type()), field.is_nullable()))
            .collect();
        let sent_schema = Arc::new(Schema::new(fields));
        let writer = StreamWriter::try_new(Vec::new(), &sent_schema)?;
        Ok(Self { writer, sent_schema, decoder: StreamDecoder::new(), received_schema: None })
    }

    /// The bytes of the next group.
    fn encode(&mut self, columns: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
        let plain: Result<Vec<ArrayRef>, _> = columns
            .columns()
            .iter()
            .zip(self.sent_schema.fields())
            .map(|(column, field)| {
                if column.data_type() == field.data_type() {
                    Ok(column.clone())
                } else {
                    cast(column, field.data_type())
                }
            })
            .collect();
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(columns.num_rows()));
        self.writer.write(&RecordBatch::try_new_with_options(self.sent_schema.clone(), plain?, &options)?)?;
        Ok(std::mem::take(self.writer.get_mut()))
    }

    /// Ends the stream that the process reads.
    pub(crate) async fn finish(&mut self, process: &mut Process) {
        if self.writer.finish().is_ok()
            && let Some(stdin) = process.stdin.as_mut()
        {
            // A program that has gone shows when it is waited for.
            let _ = stdin.write_all(&std::mem::take(self.writer.get_mut())).await;
            let _ = stdin.flush().await;
        }
    }

    /// Reads messages until a record batch is whole.
    async fn read(
        &mut self,
        stdout: &mut (impl AsyncRead + Unpin),
        cap: usize,
        received: &mut u64,
    ) -> Result<RecordBatch, Broken> {
        loop {
            let message = read_message(stdout, cap).await?;
            *received += message.bytes.len() as u64;
            if message.is_empty_batch {
                // The decoder would wait for a body, and there is none.
                let schema = self.received_schema.clone();
                let schema = schema.ok_or_else(|| Broken::Nonsense("a batch before its schema".to_owned()))?;
                return Ok(RecordBatch::new_empty(schema));
            }
            if message.schema.is_some() {
                self.received_schema = message.schema;
            }
            let message = message.bytes;
            let mut buffer = Buffer::from_vec(message);
            let decoder = &mut self.decoder;
            let decoded = std::panic::catch_unwind(AssertUnwindSafe(|| decoder.decode(&mut buffer)));
            match decoded {
                Ok(Ok(Some(batch))) => return Ok(batch),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => {
                    return Err(Broken::Nonsense(format!("the program's Arrow stream is broken: {error}")));
                }
                Err(_) => return Err(Broken::Nonsense("the program's Arrow stream is broken".to_owned())),
            }
        }
    }
}

/// A message of a stream.
struct Message {
    bytes: Vec<u8>,
    /// The schema, if that is what it is. The decoder has it only when it sees the message after.
    schema: Option<SchemaRef>,
    is_empty_batch: bool,
}

/// One whole message: prefix, metadata, body.
async fn read_message(stdout: &mut (impl AsyncRead + Unpin), cap: usize) -> Result<Message, Broken> {
    let nonsense = |text: &str| Broken::Nonsense(format!("the program's output is not an Arrow stream: {text}"));
    let mut message = vec![0u8; 8];
    stdout.read_exact(&mut message).await.map_err(|_| Broken::Ended)?;
    if message[..4] != [0xff; 4] {
        let shown = String::from_utf8_lossy(&message).into_owned();
        return Err(nonsense(&format!("it begins with {shown:?}")));
    }
    let length = i32::from_le_bytes([message[4], message[5], message[6], message[7]]);
    let length = usize::try_from(length).map_err(|_| nonsense("a negative length"))?;
    if length == 0 {
        return Err(Broken::Ended);
    }
    if length > MAX_METADATA_BYTES {
        return Err(nonsense("metadata of more than 1 MiB"));
    }
    message.resize(8 + length, 0);
    stdout.read_exact(&mut message[8..]).await.map_err(|_| Broken::Ended)?;
    let (body, schema, is_empty_batch) = {
        let header = root_as_message(&message[8..]).map_err(|error| nonsense(&error.to_string()))?;
        let compressed = header.header_as_record_batch().and_then(|batch| batch.compression()).is_some()
            || header.header_as_dictionary_batch().and_then(|d| d.data()).and_then(|b| b.compression()).is_some();
        if compressed {
            return Err(nonsense("its batches are compressed, which is not allowed here"));
        }
        let body = usize::try_from(header.bodyLength()).map_err(|_| nonsense("a negative length"))?;
        let rows = header.header_as_record_batch().map(|batch| batch.length());
        if body == 0 && rows.is_some_and(|rows| rows != 0) {
            return Err(nonsense("a batch with rows and without values"));
        }
        let schema = header.header_as_schema().map(|schema| Arc::new(fb_to_schema(schema)));
        (body, schema, rows == Some(0) && body == 0)
    };
    if body > cap {
        return Err(Broken::TooLarge);
    }
    let start = message.len();
    message.resize(start + body, 0);
    stdout.read_exact(&mut message[start..]).await.map_err(|_| Broken::Ended)?;
    Ok(Message { bytes: message, schema, is_empty_batch })
}

/// Works on a group.
pub(crate) async fn group(session: &mut CommandSession, batch: &ItemBatch) -> Result<BatchReply, Failure> {
    let mut running = session.running().await?;
    let mut usage = Usage { calls: 1, ..Usage::default() };
    match converse(session, &mut running, batch, &mut usage).await {
        Ok(answer) => {
            let reply = assemble(session, answer, batch.rows(), usage);
            match reply {
                Ok(reply) => {
                    session.keep(running);
                    Ok(reply)
                }
                // Who breaks the rules once is not trusted with the next group.
                Err(text) => Err(session.context.failure(FailureCode::Decode, text).sent(Sent::Answered)),
            }
        }
        Err(broken) => Err(session.failure(running, broken).await),
    }
}

async fn converse(
    session: &CommandSession,
    running: &mut Running,
    batch: &ItemBatch,
    usage: &mut Usage,
) -> Result<RecordBatch, Broken> {
    let Running { process, frames: Some(frames), .. } = running else {
        return Err(Broken::Nonsense("no Arrow conversation".to_owned()));
    };
    let bytes = frames
        .encode(&batch.columns)
        .map_err(|error| Broken::Nonsense(format!("the items cannot be sent: {error}")))?;
    usage.sent_bytes = bytes.len() as u64;
    let Process { stdin, stdout, watch, .. } = process;
    let write = async {
        if let Some(stdin) = stdin.as_mut() {
            // A program that stopped reading shows in its output, which is where it is looked at.
            let _ = stdin.write_all(&bytes).await;
            let _ = stdin.flush().await;
        }
        std::future::pending::<Broken>().await
    };
    let silent = session.options.item_timeout.map(|timeout| tokio::time::Instant::now() + timeout);
    let clock = async {
        match (silent, batch.deadline) {
            (Some(silent), Some(deadline)) if silent <= deadline => {
                tokio::time::sleep_until(silent).await;
                Broken::Silent
            }
            (_, Some(deadline)) => {
                tokio::time::sleep_until(deadline).await;
                Broken::Deadline
            }
            (Some(silent), None) => {
                tokio::time::sleep_until(silent).await;
                Broken::Silent
            }
            (None, None) => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        answer = frames.read(stdout, session.options.max_answer_bytes, &mut usage.received_bytes) => answer,
        broken = write => Err(broken),
        broken = watch.kill_group_when_dead() => Err(broken),
        () = batch.cancel.cancelled() => Err(Broken::Cancelled),
        broken = clock => Err(broken),
    }
}

/// Takes the declared columns, the errors and the owners out of an answer.
fn assemble(session: &CommandSession, answer: RecordBatch, items: usize, usage: Usage) -> Result<BatchReply, String> {
    let find = |name: &str| answer.column_by_name(name);
    let fans_out = session.options.cardinality == Cardinality::FanOut;
    let owners: Vec<u32> = if fans_out {
        let column = find(ROW).ok_or_else(|| format!("the answer has no column `{ROW}`"))?;
        let column = strict_cast(column, &DataType::UInt32, ROW)?;
        let rows: &UInt32Array = column.as_primitive::<UInt32Type>();
        if rows.null_count() > 0 {
            return Err(format!("`{ROW}` is NULL somewhere"));
        }
        rows.values().to_vec()
    } else {
        if answer.num_rows() != items {
            return Err(format!("the answer has {} rows for {items} items", answer.num_rows()));
        }
        (0..items as u32).collect()
    };
    if owners.windows(2).any(|pair| pair[0] > pair[1]) || owners.last().is_some_and(|last| *last as usize >= items) {
        return Err(format!("`{ROW}` descends, or names an item that is not in the group"));
    }
    let errors: Option<ArrayRef> = find(ERROR).map(|column| strict_cast(column, &DataType::Utf8, ERROR)).transpose()?;
    let errors: Option<&StringArray> = errors.as_ref().map(|column| column.as_string());
    let mut failures: Vec<(u32, Failure)> = Vec::new();
    if let Some(errors) = errors.filter(|errors| errors.null_count() < errors.len()) {
        for (row, owner) in owners.iter().enumerate().filter(|(row, _)| errors.is_valid(*row)) {
            if failures.last().is_none_or(|(last, _)| last != owner) {
                let failure = session.context.failure(FailureCode::Rejected, errors.value(row)).sent(Sent::Answered);
                failures.push((*owner, failure));
            }
        }
    }
    let failed = |owner: &u32| failures.binary_search_by_key(owner, |(index, _)| *index).is_ok();
    let schema = session.shape.output.clone();
    let mut columns = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        let column = find(field.name()).ok_or_else(|| format!("the answer has no column `{}`", field.name()))?;
        columns.push(strict_cast(column, field.data_type(), field.name())?);
    }
    let nullable: Vec<_> = schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true)).collect();
    let mut output =
        RecordBatch::try_new(Arc::new(Schema::new(nullable)), columns).map_err(|error| error.to_string())?;
    let mut sources = owners;
    if !failures.is_empty() {
        let keep: BooleanArray = sources.iter().map(|owner| Some(!failed(owner))).collect();
        output = filter_record_batch(&output, &keep).map_err(|error| error.to_string())?;
        sources.retain(|owner| !failed(owner));
    }
    let output = RecordBatch::try_new(schema, output.columns().to_vec()).map_err(|error| error.to_string())?;
    Ok(BatchReply { output, source_rows: fans_out.then_some(sources), skipped: Vec::new(), failures, usage })
}

fn strict_cast(column: &ArrayRef, data_type: &DataType, name: &str) -> Result<ArrayRef, String> {
    if column.data_type() == data_type {
        return Ok(column.clone());
    }
    let strict = CastOptions { safe: false, ..CastOptions::default() };
    cast_with_options(column, data_type, &strict)
        .map_err(|error| format!("column `{name}` is a {} and not a {data_type}: {error}", column.data_type()))
}
