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
//! Records are gathered and written together, at most [`FLUSH`] apart: that is the window in which a crash loses
//! results of calls that were made. The intent of a `once` call is on disk before the call is sent.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::row::{RowConverter, SortField};
use bytes::Bytes;
use parking_lot::Mutex;
use rowmill_step::{Failure, FailureCode, Redactor, Sent};
use rowmill_store::{ChunkId, Effect, EffectBatch, EffectKind, EffectRecord, Fence, RunStore};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, oneshot};

/// How long results wait for company before they are written.
pub(crate) const FLUSH: Duration = Duration::from_millis(100);
/// Bytes that are written at once without waiting.
const FLUSH_BYTES: usize = 8 << 20;

/// What the log holds of one item.
#[derive(Debug, Clone)]
pub enum Replay {
    /// The call has completed.
    Result(Bytes),
    /// A `once` call was announced, and nobody knows what became of it.
    Intent,
}

/// Writes the records of all chunks of a run to its store, many at a time.
#[derive(Debug)]
pub struct EffectWriter {
    store: Arc<dyn RunStore>,
    fence: Fence,
    queue: Mutex<Queue>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    records: Vec<EffectRecord>,
    bytes: usize,
    /// Those who wait until everything up to here is on disk.
    waiters: Vec<oneshot::Sender<Result<(), Failure>>>,
    /// Why nothing is written any more.
    broken: Option<Failure>,
    closed: bool,
}

impl EffectWriter {
    /// A writer with its task. The task ends when the writer is closed or dropped.
    pub fn start(store: Arc<dyn RunStore>, fence: Fence) -> Arc<Self> {
        let writer = Arc::new(Self { store, fence, queue: Mutex::default(), wake: Notify::new() });
        tokio::spawn(Self::work(Arc::clone(&writer)));
        writer
    }

    /// Writes what is left and ends the task.
    ///
    /// # Errors
    /// When the store does not take it.
    pub async fn close(&self) -> Result<(), Failure> {
        let result = self.flush().await;
        self.queue.lock().closed = true;
        self.wake.notify_one();
        result
    }

    /// Waits until everything that was recorded is on disk.
    ///
    /// # Errors
    /// When the store does not take it.
    pub async fn flush(&self) -> Result<(), Failure> {
        self.write(Vec::new()).await
    }

    /// Adds records and waits until they are on disk.
    async fn write(&self, records: Vec<EffectRecord>) -> Result<(), Failure> {
        let done = {
            let mut queue = self.queue.lock();
            if let Some(broken) = &queue.broken {
                return Err(broken.clone());
            }
            let (sender, done) = oneshot::channel();
            queue.add(records);
            queue.waiters.push(sender);
            done
        };
        self.wake.notify_one();
        match done.await {
            Ok(result) => result,
            Err(_closed) => Err(Failure::fixed(FailureCode::Cancelled, "the effect log was closed").sent(Sent::Never)),
        }
    }

    /// Adds records that are written within [`FLUSH`].
    fn record(&self, records: Vec<EffectRecord>) -> Result<(), Failure> {
        let mut queue = self.queue.lock();
        if let Some(broken) = &queue.broken {
            return Err(broken.clone());
        }
        let first = queue.records.is_empty();
        queue.add(records);
        let full = queue.bytes >= FLUSH_BYTES;
        drop(queue);
        if first || full {
            self.wake.notify_one();
        }
        Ok(())
    }

    async fn work(self: Arc<Self>) {
        loop {
            self.wake.notified().await;
            // Results may wait for company; whoever waits for a record may not.
            let hurry = {
                let queue = self.queue.lock();
                !queue.waiters.is_empty() || queue.bytes >= FLUSH_BYTES || queue.closed
            };
            if !hurry {
                tokio::select! {
                    () = tokio::time::sleep(FLUSH) => {}
                    () = self.wake.notified() => {}
                }
            }
            let (records, waiters, closed) = {
                let mut queue = self.queue.lock();
                queue.bytes = 0;
                (std::mem::take(&mut queue.records), std::mem::take(&mut queue.waiters), queue.closed)
            };
            let result = self.append(records).await;
            if let Err(failure) = &result {
                self.queue.lock().broken = Some(failure.clone());
            }
            for waiter in waiters {
                let _ = waiter.send(result.clone());
            }
            if closed {
                return;
            }
        }
    }

    /// One flush, repeated with the same identity while the store says that another try can help.
    async fn append(&self, records: Vec<EffectRecord>) -> Result<(), Failure> {
        if records.is_empty() {
            return Ok(());
        }
        let batch = EffectBatch::new(records);
        let mut wait = Duration::from_millis(50);
        let started = tokio::time::Instant::now();
        loop {
            match self.store.append_effects(&self.fence, &batch).await {
                Ok(_appended) => return Ok(()),
                Err(error) if error.is_retryable() && started.elapsed() < Duration::from_secs(60) => {
                    tracing::warn!("the effect log could not be written and is tried again: {error}");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(Duration::from_secs(2));
                }
                Err(error) => {
                    let message = format!("the effect log cannot be written: {error}");
                    // The store's errors never hold secrets.
                    return Err(Failure::new(FailureCode::Setup, message, &Redactor::new()).sent(Sent::Never));
                }
            }
        }
    }
}

impl Queue {
    fn add(&mut self, records: Vec<EffectRecord>) {
        self.bytes += records.iter().map(|record| record.bytes.len() + 32).sum::<usize>();
        self.records.extend(records);
    }
}

/// The effect log of one chunk's attempt.
#[derive(Debug)]
pub struct ChunkLog {
    chunk: ChunkId,
    writer: Arc<EffectWriter>,
    earlier: HashMap<[u8; 16], Replay>,
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
    /// The log of a chunk, with what earlier attempts left.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn open(writer: &Arc<EffectWriter>, chunk: ChunkId) -> Result<Self, rowmill_store::Error> {
        let effects = writer.store.effects(writer.fence.run, chunk).await?;
        let mut earlier = HashMap::new();
        for (key, effect) in effects.by_key {
            let replay = match effect {
                Effect::Completed(bytes) => Replay::Result(bytes),
                Effect::Intended => Replay::Intent,
            };
            earlier.insert(key, replay);
        }
        Ok(Self { chunk, writer: Arc::clone(writer), earlier })
    }

    /// Whether earlier attempts left nothing.
    pub(crate) fn is_fresh(&self) -> bool {
        self.earlier.is_empty()
    }

    /// What an earlier attempt left of an item.
    pub(crate) fn earlier(&self, key: &[u8; 16]) -> Option<&Replay> {
        self.earlier.get(key)
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

    /// Each row as bytes.
    pub(crate) fn encode(&self, batch: &RecordBatch) -> Result<arrow::row::Rows, Failure> {
        self.converter.convert_columns(batch.columns()).map_err(internal)
    }

    /// Rows out of bytes that [`RowCodec::encode`] made.
    pub(crate) fn decode(&self, rows: &[Bytes]) -> Result<RecordBatch, Failure> {
        let parser = self.converter.parser();
        let columns =
            self.converter.convert_rows(rows.iter().map(|row| parser.parse(row.as_ref()))).map_err(internal)?;
        RecordBatch::try_new(Arc::clone(&self.schema), columns).map_err(internal)
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
