//! What the benches share: inputs, baselines, workflows.

pub mod cluster;
pub mod thinking;

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Float64Type, Schema};
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;
use datafusion::prelude::{SessionConfig, SessionContext};
use rowmill::{Inputs, Session, SessionOptions, Workflow};

/// Any error, for benches that stop at the first.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Partitions that inputs are split into and plans aim at.
pub fn cores() -> usize {
    rowmill::options::cores()
}

/// `rows` float64 values 0, 1, 2 ..., split into one partition for each core, in batches of `batch_rows`.
///
/// # Errors
/// When the batches do not make a table.
pub fn numbers(rows: usize, batch_rows: usize) -> Result<Arc<dyn TableProvider>, Error> {
    let schema = Arc::new(Schema::new(vec![Field::new("x", DataType::Float64, false)]));
    let share = rows.div_ceil(cores()).max(1);
    let mut partitions = Vec::new();
    for start in (0..rows.max(1)).step_by(share) {
        let end = (start + share).min(rows);
        let mut batches = Vec::new();
        for low in (start..end).step_by(batch_rows) {
            let values = Float64Array::from_iter_values((low..(low + batch_rows).min(end)).map(|value| value as f64));
            batches.push(RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(values) as ArrayRef])?);
        }
        partitions.push(batches);
    }
    Ok(Arc::new(MemTable::try_new(schema, partitions)?))
}

/// The sum of a float64 column over batches, on every core: a checksum that costs more than what it checks would be
/// the thing measured.
pub fn checksum(batches: &[RecordBatch]) -> f64 {
    let share = batches.len().div_ceil(cores()).max(1);
    std::thread::scope(|scope| {
        let parts: Vec<_> = batches.chunks(share).map(|part| scope.spawn(|| sum_of(part))).collect();
        parts.into_iter().map(|part| part.join().unwrap_or(f64::NAN)).sum()
    })
}

fn sum_of(batches: &[RecordBatch]) -> f64 {
    batches
        .iter()
        .filter_map(|batch| batch.column(0).as_primitive_opt::<Float64Type>())
        .filter_map(arrow::compute::sum)
        .sum()
}

/// A session with the default batch size, or another.
///
/// # Errors
/// When the session cannot be made.
pub fn session(batch_rows: Option<usize>) -> Result<Session, Error> {
    Ok(Session::try_new(SessionOptions { batch_rows, ..SessionOptions::default() })?)
}

/// Arrow in → one SQL step → Arrow out: `x + 1`. Gives the rows and their sum.
///
/// # Errors
/// When the workflow does not compile or run.
pub async fn plus_one(session: &Session, table: Arc<dyn TableProvider>) -> Result<(usize, f64), Error> {
    let workflow =
        Workflow::builder("item").source_provided("numbers").sql("plus", "SELECT x + 1 AS y FROM numbers").build()?;
    let inputs = Inputs {
        tables: [("numbers".to_owned(), table)].into(),
        collect: vec!["plus".to_owned()],
        ..Inputs::default()
    };
    let report = session.run(Arc::new(workflow), &inputs).await?;
    let batches = report.collected.values().flatten().cloned().collect::<Vec<_>>();
    Ok((batches.iter().map(RecordBatch::num_rows).sum(), checksum(&batches)))
}

/// The same on plain DataFusion with batches of `batch_rows`.
///
/// # Errors
/// When the query fails.
pub async fn plus_one_plain(batch_rows: usize, table: Arc<dyn TableProvider>) -> Result<(usize, f64), Error> {
    let config = SessionConfig::new().with_target_partitions(cores()).with_batch_size(batch_rows);
    let context = SessionContext::new_with_config(config);
    context.register_table("numbers", table)?;
    let batches = context.sql("SELECT x + 1 AS y FROM numbers").await?.collect().await?;
    Ok((batches.iter().map(RecordBatch::num_rows).sum(), checksum(&batches)))
}
