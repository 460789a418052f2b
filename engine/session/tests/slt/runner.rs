//! Runs files of testdata/slt through workflows, on whatever session it is given: this process alone, or a cluster.
//!
//! `CREATE EXTERNAL TABLE` and `CREATE VIEW` add to the text of a workflow, and each query runs as that workflow with one
//! more step, whose rows are collected: what SQL says here is said through segments, edges and spools.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use async_trait::async_trait;
use rowmill::spec::parse_sql;
use rowmill::{Inputs, Session};
use sqllogictest::{AsyncDB, DBOutput, DefaultColumnType, Runner, strict_column_validator};

/// A workflow that grows statement by statement.
struct Workflows {
    session: Session,
    declared: String,
    base: PathBuf,
}

#[derive(Debug)]
struct Refused(String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

fn refused(why: impl ToString) -> Refused {
    Refused(why.to_string())
}

#[async_trait]
impl AsyncDB for Workflows {
    type Error = Refused;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, Refused> {
        let sql = sql.trim().trim_end_matches(';');
        if sql.starts_with("CREATE ") {
            self.declared += &format!("{sql};\n");
            return Ok(DBOutput::StatementComplete(0));
        }
        let text = format!("{}CREATE VIEW answer AS {sql};", self.declared);
        let workflow = parse_sql("slt.sql", &text).map_err(refused)?;
        let inputs = Inputs { collect: vec!["answer".to_owned()], base: self.base.clone(), ..Inputs::default() };
        let report = self.session.run(Arc::new(workflow), &inputs).await.map_err(refused)?;
        let batches = &report.collected["answer"];
        let columns = batches.first().map(RecordBatch::schema);
        let types = columns.iter().flat_map(|schema| schema.fields()).map(|field| letter(field.data_type())).collect();
        Ok(DBOutput::Rows { types, rows: rows(batches).map_err(refused)? })
    }

    async fn shutdown(&mut self) {}
}

fn letter(kind: &DataType) -> DefaultColumnType {
    match kind {
        kind if kind.is_integer() => DefaultColumnType::Integer,
        kind if kind.is_floating() || kind.is_decimal() => DefaultColumnType::FloatingPoint,
        _ => DefaultColumnType::Text,
    }
}

fn rows(batches: &[RecordBatch]) -> Result<Vec<Vec<String>>, ArrowError> {
    let options = FormatOptions::default().with_null("NULL");
    let mut rows = Vec::new();
    for batch in batches {
        let columns = batch.columns().iter().map(|column| ArrayFormatter::try_new(column.as_ref(), &options));
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        for row in 0..batch.num_rows() {
            let cells = columns.iter().map(|column| match column.value(row).try_to_string() {
                Ok(text) if text.is_empty() => Ok("(empty)".to_owned()),
                text => text,
            });
            rows.push(cells.collect::<Result<_, _>>()?);
        }
    }
    Ok(rows)
}

fn folder() -> PathBuf {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().find(|up| up.join("testdata/slt").is_dir());
    checkout.expect("testdata/slt lies in the checkout").join("testdata/slt")
}

/// The files, by name.
pub(crate) fn files() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.filter(|path| path.extension().is_some_and(|ending| ending == "slt")).collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

/// Runs one file; panics with what differs. `place` is a label: `skipif cluster` leaves a record out there.
pub(crate) async fn run(session: &Session, file: &Path, place: &str) {
    let mut runner =
        Runner::new(|| async { Ok(Workflows { session: session.clone(), declared: String::new(), base: folder() }) });
    runner.add_label(place);
    // Where no batch came nothing tells the types.
    runner.with_column_validator(|actual, expected| actual.is_empty() || strict_column_validator(actual, expected));
    runner.run_file_async(file).await.unwrap_or_else(|error| panic!("{error}"));
}
