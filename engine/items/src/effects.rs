//! The effect log as the step operator sees it: what earlier attempts of a chunk left, and what this one leaves.
//!
//! A result is stored item by item, so that an item is never asked for again whichever group it travels in:
//!
//! ```text
//!  0 | row                      one row, in Arrow's row format
//!  1 | JSON of the failure      it failed for good, and that is known
//!  2 | count | (length | row)*  any number of rows (fan-out)
//!  3 |                          the step was told to drop it
//! ```
//!
//! Records are gathered and written together, at most [`FLUSH`](crate::writer::FLUSH) apart: that is the window in which a crash loses
//! results of calls that were made. The intent of a `once` call is on disk before the call is sent.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::compute::cast;
use arrow::datatypes::SchemaRef;
use arrow::row::{RowConverter, Rows, SortField};
use bytes::Bytes;
use rowmill_step::{Failure, FailureCode, Redactor, Sent};
use rowmill_store::{ChunkId, Effect, EffectKind, EffectRecord};
use serde::{Deserialize, Serialize};

use crate::writer::EffectWriter;

/// What the log holds of one item.
#[derive(Debug, Clone)]
pub enum Replay {
    /// The call has completed.
    Result(Bytes),
    /// A `once` call was announced, and nobody knows what became of it.
    Intent,
}

/// The effect log of one chunk's attempt.
#[derive(Debug)]
pub struct ChunkLog {
    chunk: ChunkId,
    writer: Arc<EffectWriter>,
    earlier: HashMap<[u8; 16], Replay>,
    /// Whether calls are made again that may have happened.
    unknown: bool,
}

/// A failure as it is stored.
#[derive(Serialize, Deserialize)]
struct StoredFailure {
    code: FailureCode,
    message: String,
    status: Option<u16>,
    attempts: u32,
}

/// What a stored result says.
#[derive(Debug)]
pub(crate) enum Stored {
    Rows(Vec<Bytes>),
    Failed(Failure, u32),
    Skipped,
}

impl ChunkLog {
    /// The log of a chunk, with what earlier attempts left. With `unknown`, `once` calls are made again of which nobody
    /// knows whether they happened.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn open(writer: &Arc<EffectWriter>, chunk: ChunkId, unknown: bool) -> Result<Self, rowmill_store::Error> {
        let effects = writer.effects(chunk).await?;
        let mut earlier = HashMap::new();
        for (key, effect) in effects.by_key {
            let replay = match effect {
                Effect::Completed(bytes) => Replay::Result(bytes),
                Effect::Intended => Replay::Intent,
            };
            earlier.insert(key, replay);
        }
        Ok(Self { chunk, writer: Arc::clone(writer), earlier, unknown })
    }

    /// Whether earlier attempts left nothing.
    pub(crate) fn is_fresh(&self) -> bool {
        self.earlier.is_empty()
    }

    /// What an earlier attempt left of an item.
    pub(crate) fn earlier(&self, key: &[u8; 16]) -> Option<&Replay> {
        self.earlier.get(key)
    }

    /// Whether calls are made again that may have happened.
    pub(crate) fn sends_unknown(&self) -> bool {
        self.unknown
    }

    /// Waits while the store does not keep up.
    pub(crate) async fn room(&self) {
        self.writer.room().await;
    }

    fn records(&self, kind: EffectKind, items: impl IntoIterator<Item = ([u8; 16], Bytes)>) -> Vec<EffectRecord> {
        items.into_iter().map(|(key, bytes)| EffectRecord { chunk: self.chunk, key, kind, bytes }).collect()
    }

    /// Announces `once` calls; they are on disk when this returns.
    pub(crate) async fn intend(&self, keys: impl IntoIterator<Item = [u8; 16]>) -> Result<(), Failure> {
        self.writer.write(self.records(EffectKind::Intent, keys.into_iter().map(|key| (key, Bytes::new())))).await
    }

    /// Takes back what was announced and never left.
    pub(crate) fn withdraw(&self, keys: impl IntoIterator<Item = [u8; 16]>) -> Result<(), Failure> {
        self.writer.record(self.records(EffectKind::Withdrawn, keys.into_iter().map(|key| (key, Bytes::new()))))
    }

    /// Records results.
    pub(crate) fn results(&self, items: Vec<([u8; 16], Bytes)>) -> Result<(), Failure> {
        self.writer.record(self.records(EffectKind::Result, items))
    }
}

/// Turns a step's columns into stored rows and back.
#[derive(Debug)]
pub(crate) struct RowCodec {
    schema: SchemaRef,
    converter: RowConverter,
}

impl RowCodec {
    pub(crate) fn try_new(schema: &SchemaRef) -> Result<Self, Failure> {
        let fields = schema.fields().iter().map(|field| SortField::new(field.data_type().clone())).collect();
        let converter = RowConverter::new(fields).map_err(|error| {
            let message = format!("columns of these types cannot be kept in the effect log: {error}");
            Failure::new(FailureCode::Setup, message, &Redactor::new()).sent(Sent::Never)
        })?;
        Ok(Self { schema: Arc::clone(schema), converter })
    }

    /// Each row as bytes; `None` where there are no columns, and so nothing to keep of a row.
    pub(crate) fn encode(&self, batch: &RecordBatch) -> Result<Option<Rows>, Failure> {
        match batch.num_columns() {
            0 => Ok(None),
            _ => self.converter.convert_columns(batch.columns()).map(Some).map_err(internal),
        }
    }

    /// Rows out of bytes that [`RowCodec::encode`] made.
    pub(crate) fn decode(&self, rows: &[Bytes]) -> Result<RecordBatch, Failure> {
        let parser = self.converter.parser();
        let mut columns = match self.schema.fields().is_empty() {
            true => Vec::new(),
            false => {
                self.converter.convert_rows(rows.iter().map(|row| parser.parse(row.as_ref()))).map_err(internal)?
            }
        };
        // Dictionaries come back as their values.
        for (column, field) in columns.iter_mut().zip(self.schema.fields()) {
            if column.data_type() != field.data_type() {
                *column = cast(column, field.data_type()).map_err(internal)?;
            }
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options).map_err(internal)
    }
}

fn internal(error: arrow::error::ArrowError) -> Failure {
    Failure::new(FailureCode::Internal, format!("the effect log: {error}"), &Redactor::new()).sent(Sent::Answered)
}

/// One row, stored.
pub(crate) fn one_row(row: &[u8]) -> Bytes {
    let mut bytes = Vec::with_capacity(1 + row.len());
    bytes.push(0);
    bytes.extend_from_slice(row);
    bytes.into()
}

/// Any number of rows, stored.
pub(crate) fn many_rows<'a>(rows: impl Iterator<Item = &'a [u8]>) -> Bytes {
    let mut bytes = vec![2, 0, 0, 0, 0];
    let mut count = 0u32;
    for row in rows {
        count += 1;
        bytes.extend_from_slice(&(row.len() as u32).to_le_bytes());
        bytes.extend_from_slice(row);
    }
    bytes[1..5].copy_from_slice(&count.to_le_bytes());
    bytes.into()
}

/// A failure, stored.
pub(crate) fn failed(failure: &Failure, attempts: u32) -> Bytes {
    let stored = StoredFailure {
        code: failure.code(),
        message: failure.message().to_owned(),
        status: failure.status_code(),
        attempts,
    };
    let mut bytes = vec![1];
    bytes.extend(serde_json::to_vec(&stored).unwrap_or_default());
    bytes.into()
}

/// An item that was dropped, stored.
pub(crate) fn skipped() -> Bytes {
    Bytes::from_static(&[3])
}

/// Reads a stored result; `None` where it is of no form that is known, which makes it a call that is not known.
pub(crate) fn stored(bytes: &Bytes) -> Option<Stored> {
    match bytes.first()? {
        0 => Some(Stored::Rows(vec![bytes.slice(1..)])),
        1 => {
            let stored: StoredFailure = serde_json::from_slice(&bytes[1..]).ok()?;
            let mut failure =
                Failure::new(stored.code, &stored.message, &Redactor::new()).sent(Sent::Answered).retryable(false);
            if let Some(status) = stored.status {
                failure = failure.status(status);
            }
            Some(Stored::Failed(failure, stored.attempts))
        }
        2 => {
            let count = u32::from_le_bytes(bytes.get(1..5)?.try_into().ok()?);
            let mut rows = Vec::new();
            let mut at = 5;
            for _ in 0..count {
                let length = u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize;
                at += 4;
                bytes.get(at..at + length)?;
                rows.push(bytes.slice(at..at + length));
                at += length;
            }
            (at == bytes.len()).then_some(Stored::Rows(rows))
        }
        3 => Some(Stored::Skipped),
        _ => None,
    }
}
