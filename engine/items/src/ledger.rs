//! The ledger of one step: a row for each item that is not simply ok, with the item itself.
//!
//! ```text
//!  file u32 | row u64 | outcome | code | message | attempts u32 | status u16? | details (JSON)? | item struct<input>
//! ```
//!
//! Rows gather in memory and go to an Arrow IPC file when they are many, or when the ledger is finished with one. An
//! item that is ok or cached has no row: counts say how many there are.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray as _, RecordBatch, StringArray, StringBuilder, StructArray, UInt16Array, UInt32Array, UInt64Array,
};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::reader::FileReader;
use arrow::ipc::writer::FileWriter;
use parking_lot::Mutex;
use rowmill_step::{Failure, ItemIds};

use crate::unit::Loss;
use crate::unit::take_rows;

/// Bytes that gather before they are written.
const GATHER_BYTES: usize = 8 << 20;
/// Samples that are kept for the report of a run.
const SAMPLES: usize = 10;

/// Why the ledger cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error("the ledger {path}: {message}", path = path.display())]
pub struct LedgerError {
    /// Its file.
    pub path: PathBuf,
    /// Why.
    pub message: String,
}

/// An item that is shown to a person.
#[derive(Debug, Clone)]
pub struct LedgerSample {
    /// `file:row`.
    pub item: String,
    /// Its outcome.
    pub outcome: &'static str,
    /// The failure's code and message.
    pub reason: String,
    /// Attempts that were made.
    pub attempts: u32,
}

/// The ledger of one step, or of one chunk of it.
#[derive(Debug)]
pub struct Ledger {
    schema: SchemaRef,
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    gathered: Vec<RecordBatch>,
    bytes: usize,
    rows: u64,
    samples: Vec<LedgerSample>,
    file: Option<FileWriter<BufWriter<File>>>,
    finished: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "State({} rows)", self.rows)
    }
}

/// The columns of a ledger for items with these columns.
pub fn ledger_schema(item: &Schema) -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("file", DataType::UInt32, false),
        Field::new("row", DataType::UInt64, false),
        Field::new("outcome", DataType::Utf8, false),
        Field::new("code", DataType::Utf8, true),
        Field::new("message", DataType::Utf8, true),
        Field::new("attempts", DataType::UInt32, false),
        Field::new("status", DataType::UInt16, true),
        Field::new("details", DataType::Utf8, true),
        Field::new("item", DataType::Struct(item.fields().clone()), false),
        Field::new("sent_as", DataType::Utf8, true),
    ]))
}

/// The columns of the items in a ledger.
pub fn item_fields(ledger: &Schema) -> Option<Fields> {
    match ledger.field_with_name("item").ok()?.data_type() {
        DataType::Struct(fields) => Some(fields.clone()),
        _ => None,
    }
}

/// A failure's further fields as JSON; `None` if it has none.
pub fn details_of(failure: &Failure) -> Option<String> {
    if failure.fields().is_empty() {
        return None;
    }
    let fields: serde_json::Map<String, serde_json::Value> =
        failure.fields().iter().map(|(name, value)| (name.to_string(), value.as_str().into())).collect();
    serde_json::to_string(&fields).ok()
}

impl Ledger {
    /// A ledger for items with these columns, which goes to `path` when there is much of it.
    pub fn new(item: &Schema, path: PathBuf) -> Self {
        Self { schema: ledger_schema(item), path, state: Mutex::default() }
    }

    /// Its columns.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Rows so far.
    pub fn rows(&self) -> u64 {
        self.state.lock().rows
    }

    /// The first few, for people.
    pub fn samples(&self) -> Vec<LedgerSample> {
        self.state.lock().samples.clone()
    }

    /// Adds items of one unit, or batch, of the input; `places` are those of all its rows, and `sent_as` the identities
    /// under which they were sent, where those are others: in a retry they are what they were before.
    ///
    /// # Errors
    /// When its file cannot be written, or it was finished before.
    pub fn record(
        &self,
        input: &RecordBatch,
        places: &ItemIds,
        sent_as: Option<&ItemIds>,
        losses: &[Loss],
    ) -> Result<(), LedgerError> {
        let batch = self.batch(input, places, sent_as, losses).map_err(|error| self.error(&error))?;
        let mut state = self.state.lock();
        if state.finished {
            return Err(LedgerError { path: self.path.clone(), message: "it was finished before".to_owned() });
        }
        for loss in losses.iter().take(SAMPLES.saturating_sub(state.samples.len())) {
            state.samples.push(LedgerSample {
                item: places.get(loss.row as usize).to_string(),
                outcome: loss.outcome.as_str(),
                reason: match &loss.failure {
                    Some(failure) => format!("{}: {}", failure.code(), failure.message()),
                    None => "the step was told to drop it".to_owned(),
                },
                attempts: loss.attempts,
            });
        }
        state.rows += batch.num_rows() as u64;
        state.bytes += batch.get_array_memory_size();
        state.gathered.push(batch);
        match state.bytes > GATHER_BYTES {
            true => self.spill(&mut state).map_err(|error| self.error(&error)),
            false => Ok(()),
        }
    }

    fn batch(
        &self,
        input: &RecordBatch,
        places: &ItemIds,
        sent_as: Option<&ItemIds>,
        losses: &[Loss],
    ) -> Result<RecordBatch, ArrowError> {
        let rows = UInt32Array::from_iter_values(losses.iter().map(|loss| loss.row));
        let picked: Vec<ArrayRef> = take_rows(input, &rows)?.columns().iter().map(|column| compact(column)).collect();
        let item = match self.schema.field(8).data_type() {
            DataType::Struct(fields) if !fields.is_empty() => StructArray::try_new(fields.clone(), picked, None)?,
            _ => StructArray::new_empty_fields(losses.len(), None),
        };
        let of = |ids: &ItemIds| losses.iter().map(|loss| ids.get(loss.row as usize)).collect::<Vec<_>>();
        let places = of(places);
        let sent_as: StringArray = match sent_as.map(of) {
            None => losses.iter().map(|_| None::<String>).collect(),
            Some(sent) => sent.iter().zip(&places).map(|(sent, at)| (sent != at).then(|| sent.to_string())).collect(),
        };
        let failures = || losses.iter().map(|loss| loss.failure.as_ref());
        let mut details = StringBuilder::new();
        failures().for_each(|failure| details.append_option(failure.and_then(details_of)));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt32Array::from_iter_values(places.iter().map(|id| id.file))),
            Arc::new(UInt64Array::from_iter_values(places.iter().map(|id| id.row))),
            Arc::new(StringArray::from_iter_values(losses.iter().map(|loss| loss.outcome.as_str()))),
            Arc::new(StringArray::from_iter(failures().map(|failure| failure.map(|failure| failure.code().as_str())))),
            Arc::new(StringArray::from_iter(failures().map(|failure| failure.map(Failure::message)))),
            Arc::new(UInt32Array::from_iter_values(losses.iter().map(|loss| loss.attempts))),
            Arc::new(UInt16Array::from_iter(failures().map(|failure| failure.and_then(Failure::status_code)))),
            Arc::new(details.finish()),
            Arc::new(item),
            Arc::new(sent_as),
        ];
        RecordBatch::try_new(Arc::clone(&self.schema), columns)
    }

    fn spill(&self, state: &mut State) -> Result<(), ArrowError> {
        if state.file.is_none() {
            if let Some(folder) = self.path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            state.file = Some(FileWriter::try_new_buffered(File::create(&self.path)?, &self.schema)?);
        }
        if let Some(file) = &mut state.file {
            for batch in state.gathered.drain(..) {
                file.write(&batch)?;
            }
        }
        state.bytes = 0;
        Ok(())
    }

    /// Writes everything to the file, synced; `None` if there is nothing to write. The ledger is over then.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn finish(&self) -> Result<Option<PathBuf>, LedgerError> {
        let mut state = self.state.lock();
        if state.rows == 0 {
            state.finished = true;
            return Ok(None);
        }
        if state.finished {
            return Ok(Some(self.path.clone()));
        }
        let mut write = || -> Result<(), ArrowError> {
            self.spill(&mut state)?;
            if let Some(mut file) = state.file.take() {
                file.finish()?;
                let buffered = file.into_inner()?;
                let file = buffered.into_inner().map_err(|error| ArrowError::from(error.into_error()))?;
                file.sync_all()?;
                // The name is not durable before its folder is.
                if let Some(folder) = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
                    File::open(folder)?.sync_all()?;
                }
            }
            Ok(())
        };
        write().map_err(|error| self.error(&error))?;
        state.finished = true;
        Ok(Some(self.path.clone()))
    }

    fn error(&self, error: &ArrowError) -> LedgerError {
        LedgerError { path: self.path.clone(), message: error.to_string() }
    }
}

/// Rows of view columns without the buffers of all the rows that they were taken from.
fn compact(column: &ArrayRef) -> ArrayRef {
    match column.data_type() {
        DataType::Utf8View => Arc::new(column.as_string_view().gc()),
        DataType::BinaryView => Arc::new(column.as_binary_view().gc()),
        _ => Arc::clone(column),
    }
}

/// Reads a ledger file.
///
/// # Errors
/// When it cannot be read, or is none.
pub fn read_ledger(path: &Path) -> Result<(SchemaRef, Vec<RecordBatch>), LedgerError> {
    let wrong = |message: String| LedgerError { path: path.to_owned(), message };
    let file = File::open(path).map_err(|error| wrong(error.to_string()))?;
    let reader = FileReader::try_new_buffered(file, None).map_err(|error| wrong(error.to_string()))?;
    let schema = reader.schema();
    let batches = reader.collect::<Result<Vec<_>, _>>().map_err(|error| wrong(error.to_string()))?;
    Ok((schema, batches))
}
