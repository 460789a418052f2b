//! The version of a run's result before the one that is made: what of it is used again.
//!
//! A retry makes every stage anew under the next version. A stage whose input is what it was takes over chunks and
//! commits as they are; of a stage of calls, chunks with items that failed go through the step operator again, which is
//! told what became of all the others ([`rowmill_items::Earlier`]). Below such a step the input is another one, and
//! cut elsewhere; there, items are found again by the values that their step reads: equal items are equal calls, and
//! each earlier result is used once, in the order of the rows. So no call is repeated that was answered, a `once` call
//! among them, and an item that failed goes out under the key that it had.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, UInt32Array, UInt64Array};
use arrow::compute::interleave_record_batch;
use arrow::datatypes::{SchemaRef, UInt16Type, UInt32Type, UInt64Type};
use arrow::error::ArrowError;
use arrow::row::{RowConverter, SortField};
use datafusion::common::{DataFusionError, Result, internal_err};
use rowmill_cache::{CacheKey, keys};
use rowmill_items::{Earlier, Fate, read_ledger};
use rowmill_spec::{Diagnostic, Fault};
use rowmill_step::{Cardinality, Failure, FailureCode, Fingerprint, ItemIds, Outcome, Redactor, Sent};
use rowmill_store::{ChunkSpec, CommittedChunk, Stage};
use serde::{Deserialize, Serialize};

use super::chunks::read_whole;
use crate::elsewhere::Reported;

/// Chunks of one stage that item identities can tell apart, and versions that they leave room for.
const CHUNK_BITS: u32 = 24;

/// What is tried again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryChoice {
    /// Also `once` calls of which nobody knows whether they happened.
    pub unknown: bool,
}

impl RetryChoice {
    /// Whether an item of this outcome is tried again. Rows that the step itself was told to drop have no failure.
    pub(super) fn takes(self, outcome: Outcome, failed: bool) -> bool {
        match outcome {
            Outcome::Unknown => self.unknown,
            Outcome::Failed | Outcome::DeadLettered | Outcome::Defaulted => true,
            Outcome::Skipped => failed,
            _ => false,
        }
    }
}

/// The version before, by the names of its stages.
#[derive(Debug, Default)]
pub(super) struct Before {
    pub(super) stages: HashMap<String, StageBefore>,
    pub(super) choice: RetryChoice,
}

/// A stage of the version before.
#[derive(Debug)]
pub(super) struct StageBefore {
    pub(super) stage: Stage,
    pub(super) manifest: Vec<ChunkSpec>,
    pub(super) committed: Vec<CommittedChunk>,
}

/// Where an item was in the version before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    chunk: u32,
    row: u32,
}

/// What the calls of one step need to know of a chunk in order to use it again.
#[derive(Debug, Clone)]
pub(super) struct CallShape {
    /// The run's folder.
    pub(super) folder: PathBuf,
    /// Columns of the input that the step reads.
    pub(super) reads: Vec<String>,
    /// Rows for an item.
    pub(super) cardinality: Cardinality,
    /// Whether a call may be made again.
    pub(super) repeatable: bool,
    /// Makes the texts of old failures clean again.
    pub(super) redactor: Redactor,
    /// What is tried again.
    pub(super) choice: RetryChoice,
}

/// A chunk of the version before, taken apart.
struct ChunkBefore {
    /// The step's columns of all its rows.
    rows: RecordBatch,
    fates: Vec<Fate>,
    /// Identities of the items that its ledger lists, by row.
    ids: BTreeMap<u32, (u32, u64)>,
}

/// An entry of a ledger.
struct Entry {
    outcome: Outcome,
    failure: Option<Failure>,
    attempts: u32,
    /// Its chunk and row.
    place: (u32, u64),
    /// The identity that it was sent under.
    sent_as: (u32, u64),
}

impl CallShape {
    /// Whether a committed chunk holds items that are tried again.
    pub(super) fn has_open(&self, chunk: &CommittedChunk) -> Result<bool> {
        let Some(ledger) = &chunk.commit.ledger else { return Ok(false) };
        let (_, batches) = read_ledger(&self.folder.join(ledger)).map_err(unreadable)?;
        for batch in batches {
            let entries = self.entries(&batch)?;
            if entries.iter().any(|entry| self.takes(entry)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether an item is tried again. A call that may be made only once is not, where it may have had its effect: it was
    /// answered, and the answer could not be used.
    fn takes(&self, entry: &Entry) -> bool {
        let happened = || entry.failure.as_ref().is_some_and(Failure::may_have_happened);
        self.choice.takes(entry.outcome, entry.failure.is_some())
            && (self.repeatable || self.choice.unknown || !happened())
    }

    /// Looks through a stage of calls that are made once, of any number of rows each, for items whose rows cannot be told
    /// from those of equal items; with `changed`, in all of its chunks, otherwise in those with items that are tried
    /// again. Tells whether there are such items.
    pub(super) fn refuse_unclear(&self, stage: &StageBefore, changed: bool) -> Result<bool> {
        let mut open = false;
        for chunk in &stage.committed {
            let has_open = self.has_open(chunk)?;
            open |= has_open;
            if self.repeatable || self.cardinality == Cardinality::OneToOne || !(has_open || changed) {
                continue;
            }
            if let Some(spec) = stage.manifest.iter().find(|spec| spec.chunk == chunk.commit.chunk.chunk) {
                self.chunk(spec, chunk)?;
            }
        }
        Ok(open)
    }

    /// What is known of a chunk whose input is what it was.
    pub(super) fn of_same(&self, spec: &ChunkSpec, chunk: &CommittedChunk) -> Result<Earlier> {
        let before = self.chunk(spec, chunk)?;
        let number = u32::try_from(spec.chunk).unwrap_or(u32::MAX);
        let id = |row: usize| before.ids.get(&(row as u32)).copied().unwrap_or((number, row as u64));
        let ids: Vec<(u32, u64)> = (0..before.fates.len()).map(id).collect();
        Ok(Earlier { rows: before.rows, fates: before.fates, ids: columns_of(&ids) })
    }

    /// Takes a chunk of the version before apart.
    fn chunk(&self, spec: &ChunkSpec, chunk: &CommittedChunk) -> Result<ChunkBefore> {
        let input = read_whole(&self.folder.join(&spec.path))?;
        let output = read_whole(&self.folder.join(&chunk.commit.output))?;
        let lost = self.lost(input.num_rows(), spec, chunk)?;
        let width = input.num_columns().min(output.num_columns());
        let added: Vec<usize> = (width..output.num_columns()).collect();
        let rows = output.project(&added)?;
        let mut fates: Vec<Fate> = Vec::with_capacity(input.num_rows());
        let mut ids = BTreeMap::new();
        // How many rows each item gave.
        let counts = match self.cardinality {
            Cardinality::OneToOne => None,
            Cardinality::FanOut => Some(fan_out(&input, &output, &lost)?),
        };
        let mut next = 0u32;
        for row in 0..input.num_rows() as u32 {
            let entry = lost.get(&row);
            let given = match (&counts, entry) {
                (Some(counts), _) => counts.get(row as usize).cloned().unwrap_or(Given::Rows(0..0)),
                (None, None) => Given::Rows(next..next + 1),
                (None, Some(entry)) => Given::Rows(next..next + u32::from(entry.outcome == Outcome::Defaulted)),
            };
            let range = match given {
                Given::Rows(range) => range,
                // Whatever they gave, the call gives it again.
                Given::Unclear if self.repeatable => {
                    fates.push(Fate::Open);
                    if let Some(entry) = entry {
                        ids.insert(row, entry.sent_as);
                    }
                    continue;
                }
                Given::Unclear => {
                    return Err(Reported { report: unclear(&chunk.commit.output), out_of_memory: false }.into_error());
                }
            };
            next = next.max(range.end);
            fates.push(match entry {
                None => Fate::Rows(range),
                Some(entry) if self.takes(entry) => Fate::Open,
                Some(entry) => {
                    Fate::Lost { outcome: entry.outcome, failure: entry.failure.clone(), attempts: entry.attempts }
                }
            });
            if let Some(entry) = entry {
                ids.insert(row, entry.sent_as);
            }
        }
        if counts.is_none() && next as usize != rows.num_rows() {
            let message = format!(
                "{}: its {} rows are not those of the {} items that it was made of",
                chunk.commit.output,
                rows.num_rows(),
                input.num_rows()
            );
            return Err(damaged(message));
        }
        Ok(ChunkBefore { rows, fates, ids })
    }

    /// The items of a chunk's ledger by row.
    fn lost(&self, rows: usize, spec: &ChunkSpec, chunk: &CommittedChunk) -> Result<BTreeMap<u32, Entry>> {
        let mut lost = BTreeMap::new();
        let Some(ledger) = &chunk.commit.ledger else { return Ok(lost) };
        let (_, batches) = read_ledger(&self.folder.join(ledger)).map_err(unreadable)?;
        for batch in batches {
            for entry in self.entries(&batch)? {
                let (file, row) = entry.place;
                match u32::try_from(row) {
                    Ok(row) if u64::from(file) == spec.chunk && (row as usize) < rows => lost.insert(row, entry),
                    _ => {
                        return Err(damaged(format!(
                            "{ledger}: it lists item {file}:{row}, which is not in {}",
                            spec.path
                        )));
                    }
                };
            }
        }
        Ok(lost)
    }

    fn entries(&self, batch: &RecordBatch) -> Result<Vec<Entry>> {
        let column =
            |name: &str| batch.column_by_name(name).ok_or_else(|| damaged(format!("a ledger has no column `{name}`")));
        let file = column("file")?.as_primitive::<UInt32Type>();
        let row = column("row")?.as_primitive::<UInt64Type>();
        let attempts = column("attempts")?.as_primitive::<UInt32Type>();
        let status = column("status")?.as_primitive::<UInt16Type>();
        let (outcomes, codes) = (column("outcome")?.as_string::<i32>(), column("code")?.as_string::<i32>());
        let messages = column("message")?.as_string::<i32>();
        let sent_as = column("sent_as")?.as_string::<i32>();
        (0..batch.num_rows())
            .map(|at| {
                let word = outcomes.value(at);
                let outcome = Outcome::ALL.into_iter().find(|outcome| outcome.as_str() == word);
                let outcome = outcome.ok_or_else(|| damaged(format!("a ledger has the outcome `{word}`")))?;
                let failure = codes.is_valid(at).then(|| {
                    let code = FailureCode::from_name(codes.value(at)).unwrap_or(FailureCode::Internal);
                    let message = if messages.is_valid(at) { messages.value(at) } else { "" };
                    let failure = Failure::new(code, message, &self.redactor).retryable(false).sent(Sent::Maybe);
                    if status.is_valid(at) { failure.status(status.value(at)) } else { failure }
                });
                let place = (file.value(at), row.value(at));
                let sent_as = match sent_as.is_valid(at) {
                    false => place,
                    true => {
                        identity(sent_as.value(at)).ok_or_else(|| damaged("a ledger has no identity".to_owned()))?
                    }
                };
                Ok(Entry { outcome, failure, attempts: attempts.value(at), place, sent_as })
            })
            .collect()
    }

    /// What items are known by: the values that their step reads.
    fn keys(&self, batch: &RecordBatch, rows: usize) -> Result<Vec<CacheKey>> {
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.reads.len());
        for name in &self.reads {
            match batch.column_by_name(name) {
                Some(column) => columns.push(Arc::clone(column)),
                None => return internal_err!("a chunk has no column `{name}`"),
            }
        }
        let none = Fingerprint(Default::default());
        keys("", &none, &columns, rows).map_err(|error| DataFusionError::External(Box::new(error)))
    }
}

/// The items of a stage of the version before, found by what their step reads.
pub(super) struct Index {
    shape: CallShape,
    specs: HashMap<u32, ChunkSpec>,
    chunks: HashMap<u32, CommittedChunk>,
    /// For each chunk of the new version, where each of its items was.
    places: HashMap<u64, Vec<Option<Place>>>,
    version: u32,
}

impl Index {
    /// Pairs the items of the new chunks, in their order, with those of the version before.
    pub(super) fn build(shape: CallShape, before: &StageBefore, new: &[ChunkSpec], version: u32) -> Result<Self> {
        let number = |chunk: u64| u32::try_from(chunk).unwrap_or(u32::MAX);
        let specs: HashMap<u32, ChunkSpec> =
            before.manifest.iter().map(|spec| (number(spec.chunk), spec.clone())).collect();
        let chunks: HashMap<u32, CommittedChunk> =
            before.committed.iter().map(|chunk| (number(chunk.commit.chunk.chunk), chunk.clone())).collect();
        let mut known: Vec<(CacheKey, Place)> = Vec::new();
        for spec in &before.manifest {
            let chunk = number(spec.chunk);
            if !chunks.contains_key(&chunk) {
                continue;
            }
            let input = read_whole(&shape.folder.join(&spec.path))?;
            let keys = shape.keys(&input, input.num_rows())?;
            known.extend(keys.into_iter().zip(0..).map(|(key, row)| (key, Place { chunk, row })));
        }
        known.sort_unstable_by_key(|(key, place)| (*key, place.chunk, place.row));
        // How many of the equal items that begin at a place are taken.
        let mut taken = vec![0usize; known.len()];
        let mut places = HashMap::new();
        for spec in new {
            let input = read_whole(&shape.folder.join(&spec.path))?;
            let mut found = Vec::with_capacity(input.num_rows());
            for key in shape.keys(&input, input.num_rows())? {
                let from = known.partition_point(|(other, _)| *other < key);
                let place = taken.get_mut(from).and_then(|taken| {
                    let (_, place) = known.get(from + *taken).filter(|(other, _)| *other == key)?;
                    *taken += 1;
                    Some(*place)
                });
                found.push(place);
            }
            places.insert(spec.chunk, found);
        }
        Ok(Index { shape, specs, chunks, places, version })
    }

    /// What is known of a new chunk.
    pub(super) fn earlier(&self, new: u64, step_columns: &SchemaRef) -> Result<Earlier> {
        let Some(places) = self.places.get(&new) else { return internal_err!("chunk {new} was not paired") };
        let Some(place) = u32::try_from(new).ok().filter(|new| *new < 1 << CHUNK_BITS) else {
            return Err(damaged(format!("a stage that is retried has at most {} chunks", 1u32 << CHUNK_BITS)));
        };
        if self.version >= 1 << (32 - CHUNK_BITS) {
            return Err(damaged("a run can be retried 254 times".to_owned()));
        }
        let place = place | ((self.version - 1) << CHUNK_BITS);
        let mut opened: BTreeMap<u32, (usize, ChunkBefore)> = BTreeMap::new();
        for Place { chunk, .. } in places.iter().flatten() {
            if opened.contains_key(chunk) {
                continue;
            }
            if let (Some(spec), Some(committed)) = (self.specs.get(chunk), self.chunks.get(chunk)) {
                let at = opened.len();
                opened.insert(*chunk, (at, self.shape.chunk(spec, committed)?));
            }
        }
        let mut fates = Vec::with_capacity(places.len());
        let mut ids = Vec::with_capacity(places.len());
        let mut picks: Vec<(usize, usize)> = Vec::new();
        for (row, found) in places.iter().enumerate() {
            let before = found.and_then(|found| Some((found, opened.get(&found.chunk)?)));
            let Some((found, (at, chunk))) = before else {
                fates.push(Fate::Open);
                ids.push((place, row as u64));
                continue;
            };
            ids.push(chunk.ids.get(&found.row).copied().unwrap_or((place, row as u64)));
            fates.push(match chunk.fates.get(found.row as usize) {
                Some(Fate::Rows(range)) => {
                    let from = picks.len() as u32;
                    picks.extend(range.clone().map(|row| (*at, row as usize)));
                    Fate::Rows(from..picks.len() as u32)
                }
                Some(other) => other.clone(),
                None => Fate::Open,
            });
        }
        let mut sources: Vec<(usize, &RecordBatch)> = opened.values().map(|(at, chunk)| (*at, &chunk.rows)).collect();
        sources.sort_by_key(|(at, _)| *at);
        let sources: Vec<&RecordBatch> = sources.into_iter().map(|(_, rows)| rows).collect();
        let rows = match sources.is_empty() || step_columns.fields().is_empty() {
            true => {
                let options = RecordBatchOptions::new().with_row_count(Some(picks.len()));
                let empty = RecordBatch::new_empty(Arc::clone(step_columns));
                match step_columns.fields().is_empty() {
                    true => RecordBatch::try_new_with_options(Arc::clone(step_columns), Vec::new(), &options)?,
                    false => empty,
                }
            }
            false => interleave_record_batch(&sources, &picks)?,
        };
        Ok(Earlier { rows, fates, ids: columns_of(&ids) })
    }
}

/// What an item of a step with any number of rows gave.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Given {
    /// These rows.
    Rows(Range<u32>),
    /// Rows that stand among those of equal items, and nobody can tell which.
    Unclear,
}

/// Which rows each item of a step with any number of rows gave. Rows begin with the columns of their item and come in the
/// order of the items. Items that are equal in all columns are equal calls: their rows are shared out evenly, in order.
/// Where they cannot be, because the calls did not give equally many or some of the rows are defaults, it is not clear.
fn fan_out(input: &RecordBatch, output: &RecordBatch, lost: &BTreeMap<u32, Entry>) -> Result<Vec<Given>> {
    let fields = input.schema().fields().iter().map(|field| SortField::new(field.data_type().clone())).collect();
    let converter = RowConverter::new(fields)?;
    let width = input.num_columns().min(output.num_columns());
    let came = converter.convert_columns(input.columns())?;
    let left = converter.convert_columns(output.columns().get(..width).unwrap_or(&[]))?;
    // By value: the items that may have rows, and the rows.
    let mut groups: HashMap<&[u8], (Vec<u32>, Vec<u32>)> = HashMap::new();
    for (row, value) in (0..).zip(came.iter()) {
        let group = groups.entry(value.data()).or_default();
        if lost.get(&row).is_none_or(|entry| entry.outcome == Outcome::Defaulted) {
            group.0.push(row);
        }
    }
    for (row, value) in (0..).zip(left.iter()) {
        match groups.get_mut(value.data()) {
            Some(group) if !group.0.is_empty() => group.1.push(row),
            _ => return Err(damaged(format!("row {row} of a chunk is of none of the items that it was made of"))),
        }
    }
    let mut given = vec![Given::Rows(0..0); input.num_rows()];
    for (items, rows) in groups.into_values().filter(|(items, _)| !items.is_empty()) {
        let each = rows.len() / items.len();
        let even = rows.len() == each * items.len();
        let shares: Vec<&[u32]> = if each == 0 { Vec::new() } else { rows.chunks(each).collect() };
        let together = shares.iter().all(|share| share.windows(2).all(|pair| matches!(pair, [a, b] if a + 1 == *b)));
        let defaults = items.iter().any(|item| lost.contains_key(item));
        let clear = items.len() == 1 || (even && together && !defaults);
        for (at, item) in items.iter().enumerate() {
            let share = match shares.get(at) {
                _ if !clear => Given::Unclear,
                Some([first, .., last]) => Given::Rows(*first..*last + 1),
                Some([only]) => Given::Rows(*only..*only + 1),
                _ => Given::Rows(0..0),
            };
            if let Some(place) = given.get_mut(*item as usize) {
                *place = share;
            }
        }
    }
    Ok(given)
}

/// Calls that are made once would have to be made again.
fn unclear(chunk: &str) -> Diagnostic {
    let message =
        format!("{chunk}: which rows each of several equal items gave cannot be told, and calls are made once");
    Diagnostic::error("RM0809", message)
        .fault(Fault::Data)
        .help("start the workflow anew with the rows that failed, or give equal items a column that tells them apart")
}

/// `file:row`, read back.
fn identity(text: &str) -> Option<(u32, u64)> {
    let (file, row) = text.split_once(':')?;
    Some((file.parse().ok()?, row.parse().ok()?))
}

fn columns_of(ids: &[(u32, u64)]) -> ItemIds {
    ItemIds::Columns {
        file: UInt32Array::from_iter_values(ids.iter().map(|(file, _)| *file)),
        row: UInt64Array::from_iter_values(ids.iter().map(|(_, row)| *row)),
    }
}

fn unreadable(error: rowmill_items::LedgerError) -> DataFusionError {
    damaged(error.to_string())
}

fn damaged(message: String) -> DataFusionError {
    let io = std::io::Error::new(std::io::ErrorKind::InvalidData, message.clone());
    ArrowError::IoError(message, io).into()
}
