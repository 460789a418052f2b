//! Runs every file of testdata/slt through workflows.
//!
//! `CREATE VIEW name AS query` adds a step, and each query runs as a workflow of all steps so far, whose last one is
//! collected: what SQL says here is said through segments, edges and spools.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use async_trait::async_trait;
use rowmill::{Inputs, Session, SessionOptions, Workflow};
use sqllogictest::{AsyncDB, DBOutput, DefaultColumnType, Runner};

struct Workflows {
    session: Session,
    steps: Vec<(String, String)>,
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

#[async_trait]
impl AsyncDB for Workflows {
    type Error = Refused;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, Refused> {
        if let Some(view) = sql.trim().strip_prefix("CREATE VIEW ") {
            let (name, query) = view.split_once(" AS ").ok_or_else(|| Refused("no AS".to_owned()))?;
            self.steps.push((name.trim().to_owned(), query.trim().trim_end_matches(';').to_owned()));
            return Ok(DBOutput::StatementComplete(0));
        }
        let mut builder = Workflow::builder("slt").range("numbers", 0, 1_000);
        for (name, query) in &self.steps {
            builder = builder.sql(name, query);
        }
        let workflow = builder
            .sql("answer", sql.trim().trim_end_matches(';'))
            .build()
            .map_err(|reports| Refused(reports.to_string()))?;
        let inputs = Inputs { collect: vec!["answer".to_owned()], base: self.base.clone(), ..Inputs::default() };
        let report = self.session.run(Arc::new(workflow), &inputs).await.map_err(|error| Refused(error.to_string()))?;
        let batches = &report.collected["answer"];
        let columns = batches.first().map_or(0, RecordBatch::num_columns);
        Ok(DBOutput::Rows { types: vec![DefaultColumnType::Any; columns], rows: rows(batches)? })
    }

    async fn shutdown(&mut self) {}
}

fn rows(batches: &[RecordBatch]) -> Result<Vec<Vec<String>>, Refused> {
    let options = FormatOptions::default().with_null("NULL");
    let mut rows = Vec::new();
    for batch in batches {
        let columns: Vec<ArrayFormatter<'_>> = batch
            .columns()
            .iter()
            .map(|column| ArrayFormatter::try_new(column.as_ref(), &options))
            .collect::<Result<_, _>>()
            .map_err(|error| Refused(error.to_string()))?;
        for row in 0..batch.num_rows() {
            rows.push(columns.iter().map(|column| column.value(row).to_string()).collect());
        }
    }
    Ok(rows)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_file() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/slt");
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let base = folder.clone();
        let mut runner = Runner::new(|| {
            let base = base.clone();
            async move {
                Ok(Workflows { session: Session::try_new(SessionOptions::default()).unwrap(), steps: Vec::new(), base })
            }
        });
        runner.run_file_async(&file).await.unwrap_or_else(|error| panic!("{error}"));
    }
}
