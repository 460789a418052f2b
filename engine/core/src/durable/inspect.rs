//! Looking into durable runs: what became of their items.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, StructArray, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt16Type, UInt32Type, UInt64Type};
use arrow::error::ArrowError;
use arrow::json::LineDelimitedWriter;
use rowmill_items::read_ledger;
use rowmill_spec::{Diagnostic, Fault, StepKind, Workflow};
use rowmill_step::Outcome;
use rowmill_store::{PageRequest, RunId, Scope};

use super::{Durable, RetryChoice, store_report};
use crate::places::{MadeBy, SINKS, StagePlace, of_stage};

/// The columns of [`items`].
pub fn items_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("step", DataType::Utf8, false),
        Field::new("chunk", DataType::UInt32, false),
        Field::new("row", DataType::UInt64, false),
        Field::new("outcome", DataType::Utf8, false),
        Field::new("code", DataType::Utf8, true),
        Field::new("message", DataType::Utf8, true),
        Field::new("attempts", DataType::UInt32, false),
        Field::new("status", DataType::UInt16, true),
        Field::new("details", DataType::Utf8, true),
        Field::new("item", DataType::Utf8, false),
    ]))
}

/// The items of a run's newest version that are not simply ok, from the ledgers of its committed chunks; the item's
/// columns as JSON.
///
/// # Errors
/// When there is no such run, or a ledger cannot be read.
pub async fn items(durable: &Durable, run: RunId) -> Result<Vec<RecordBatch>, Diagnostic> {
    let store = &durable.store;
    let refuse = |error: rowmill_store::Error| store_report(&error);
    let known = store.run(&Scope::all(), run).await.map_err(refuse)?;
    let folder = durable.folder_of(run);
    let mut batches = Vec::new();
    for stage in store.stages(run, known.version).await.map_err(refuse)? {
        let mut page = PageRequest::first(10_000);
        loop {
            let found = store.committed(run, stage.id, &page).await.map_err(refuse)?;
            for ledger in found.items.iter().filter_map(|chunk| chunk.commit.ledger.as_ref()) {
                let (_, rows) = read_ledger(&folder.join(ledger)).map_err(|error| {
                    Diagnostic::error("RM0801", error.to_string())
                        .fault(Fault::Environment)
                        .help("was the run's folder removed by hand?")
                })?;
                for rows in rows {
                    batches.push(flat(&stage.name, &rows).map_err(|error| {
                        Diagnostic::error("RM0801", format!("{ledger}: {error}")).fault(Fault::Environment)
                    })?);
                }
            }
            match found.next {
                Some(next) => page = PageRequest::after(next, 10_000),
                None => break,
            }
        }
    }
    Ok(batches)
}

/// Which process did what for the stages of a run's newest version, as the records of its commits say. Runs of earlier
/// versions of Rowmill have none.
///
/// # Errors
/// When there is no such run, or the store cannot be read.
pub async fn places(durable: &Durable, run: RunId) -> Result<Vec<StagePlace>, Diagnostic> {
    let store = &durable.store;
    let refuse = |error: rowmill_store::Error| store_report(&error);
    let known = store.run(&Scope::all(), run).await.map_err(refuse)?;
    let mut all = Vec::new();
    for stage in store.stages(run, known.version).await.map_err(refuse)? {
        let chunks = durable.committed(run, stage.id).await.map_err(refuse)?;
        let made = chunks.iter().flat_map(|chunk| MadeBy::read(&chunk.commit.payload).made);
        all.extend(of_stage(&stage.name, made));
    }
    let versions = store.versions(run).await.map_err(refuse)?;
    if let Some(newest) = versions.iter().find(|version| version.version == known.version) {
        all.extend(of_stage(SINKS, MadeBy::read(&newest.payload).made));
    }
    Ok(all)
}

/// Whether a finished run has items that a retry would send again: failed ones of steps that are not SQL.
///
/// # Errors
/// As [`items`].
pub async fn has_retryable(
    durable: &Durable,
    workflow: &Workflow,
    run: RunId,
    choice: RetryChoice,
) -> Result<bool, Diagnostic> {
    let called = |step: &str| {
        let found = workflow.steps.values().find(|known| known.name.value.eq_ignore_ascii_case(step));
        found.is_some_and(|step| !matches!(step.kind, StepKind::Sql(_)))
    };
    for batch in items(durable, run).await? {
        let text = |name: &str| batch.column_by_name(name).map(|column| column.as_string::<i32>().clone());
        let (Some(steps), Some(outcomes), Some(codes)) = (text("step"), text("outcome"), text("code")) else {
            continue;
        };
        let open = |at: usize| {
            let outcome = Outcome::ALL.into_iter().find(|outcome| outcome.as_str() == outcomes.value(at));
            called(steps.value(at)) && outcome.is_some_and(|outcome| choice.takes(outcome, codes.is_valid(at)))
        };
        if (0..batch.num_rows()).any(open) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn flat(step: &str, rows: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let column = |name: &str| {
        rows.column_by_name(name).ok_or_else(|| ArrowError::SchemaError(format!("the ledger has no column `{name}`")))
    };
    let chunk: UInt32Array = column("file")?.as_primitive::<UInt32Type>().clone();
    let row: UInt64Array = column("row")?.as_primitive::<UInt64Type>().clone();
    let item = json_lines(column("item")?.as_struct())?;
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(vec![step; rows.num_rows()])),
        Arc::new(chunk),
        Arc::new(row),
        Arc::clone(column("outcome")?),
        Arc::clone(column("code")?),
        Arc::clone(column("message")?),
        Arc::new(column("attempts")?.as_primitive::<UInt32Type>().clone()),
        Arc::new(column("status")?.as_primitive::<UInt16Type>().clone()),
        Arc::clone(column("details")?),
        Arc::new(item),
    ];
    RecordBatch::try_new(items_schema(), columns)
}

fn json_lines(items: &StructArray) -> Result<StringArray, ArrowError> {
    let mut text = Vec::new();
    let mut writer = LineDelimitedWriter::new(&mut text);
    writer.write(&RecordBatch::from(items.clone()))?;
    writer.finish()?;
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    // Items without columns have no lines.
    match lines.len() == items.len() {
        true => Ok(StringArray::from(lines)),
        false => Ok(StringArray::from(vec!["{}"; items.len()])),
    }
}
