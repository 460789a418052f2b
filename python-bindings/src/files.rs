//! Options of files, as Python gives them, and frames over files.

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use rowmill::spec::{Compression, CsvOptions, FileOptions, Format, LogicalType, SchemaPolicy, SinkOptions, Workflow};
use rowmill::{Inputs, Session};
use rowmill_engine::compile::compile;

use crate::errors::{from_engine, from_reports};
use crate::frame::PyFrame;
use crate::runtime::wait;
use crate::session::shared;

/// Options of a source or a sink, read and checked.
#[derive(Default, Clone)]
pub(crate) struct Options {
    format: Option<Format>,
    compression: Option<Compression>,
    columns: Vec<(String, LogicalType)>,
    policy: Option<SchemaPolicy>,
    partitions: Vec<(String, LogicalType)>,
    partition_by: Vec<String>,
    csv: Option<CsvOptions>,
}

fn word<T>(kind: &str, word: &str, found: Option<T>, words: &[&str]) -> PyResult<T> {
    found.ok_or_else(|| PyValueError::new_err(format!("there is no {kind} `{word}`; it is {}", words.join(", "))))
}

fn types(pairs: &Bound<'_, PyAny>) -> PyResult<Vec<(String, LogicalType)>> {
    let pairs: Vec<(String, String)> = pairs.extract()?;
    let read = pairs.into_iter().map(|(name, kind)| match LogicalType::parse(&kind) {
        Ok(read) => Ok((name, read)),
        Err(error) => Err(PyValueError::new_err(format!("column `{name}`: type `{kind}`: {error}"))),
    });
    read.collect()
}

fn byte(name: &str, text: &str) -> PyResult<u8> {
    match text.as_bytes() {
        [one] if one.is_ascii() => Ok(*one),
        _ => Err(PyValueError::new_err(format!("{name} is one ASCII character, not {text:?}"))),
    }
}

fn csv(options: &Bound<'_, PyDict>) -> PyResult<CsvOptions> {
    let mut csv = CsvOptions::default();
    for (key, value) in options.iter() {
        let key: String = key.extract()?;
        match key.as_str() {
            "header" => csv.header = value.extract()?,
            "delimiter" => csv.delimiter = byte("delimiter", &value.extract::<String>()?)?,
            "quote" => csv.quote = byte("quote", &value.extract::<String>()?)?,
            "escape" => csv.escape = Some(byte("escape", &value.extract::<String>()?)?),
            "comment" => csv.comment = Some(byte("comment", &value.extract::<String>()?)?),
            "null" => csv.null = Some(value.extract()?),
            "newlines_in_values" => csv.newlines_in_values = value.extract()?,
            "infer_rows" => csv.infer_rows = value.extract()?,
            other => return Err(PyTypeError::new_err(format!("CSV has no option `{other}`"))),
        }
    }
    Ok(csv)
}

impl Options {
    /// Options by their names.
    pub(crate) fn from_python(options: &Bound<'_, PyDict>) -> PyResult<Options> {
        let mut read = Options::default();
        for (key, value) in options.iter() {
            let key: String = key.extract()?;
            match key.as_str() {
                "format" => {
                    let text: String = value.extract()?;
                    read.format = Some(word("format", &text, Format::from_word(&text), Format::WORDS)?);
                }
                "compression" => {
                    let text: String = value.extract()?;
                    read.compression =
                        Some(word("compression", &text, Compression::from_word(&text), Compression::WORDS)?);
                }
                "schema_policy" => {
                    let text: String = value.extract()?;
                    read.policy =
                        Some(word("schema policy", &text, SchemaPolicy::from_word(&text), SchemaPolicy::WORDS)?);
                }
                "schema" => read.columns = types(&value)?,
                "partitions" => read.partitions = types(&value)?,
                "partition_by" => read.partition_by = value.extract()?,
                "csv" => read.csv = Some(csv(value.cast::<PyDict>()?)?),
                other => return Err(PyTypeError::new_err(format!("files have no option `{other}`"))),
            }
        }
        Ok(read)
    }

    /// For a source.
    pub(crate) fn for_source(self, mut files: FileOptions) -> FileOptions {
        if let Some(format) = self.format {
            files = files.format(format);
        }
        if let Some(compression) = self.compression {
            files = files.compression(compression);
        }
        if let Some(policy) = self.policy {
            files = files.schema_policy(policy);
        }
        for (name, kind) in self.columns {
            files = files.column(name, kind);
        }
        for (name, kind) in self.partitions {
            files = files.partition(name, kind);
        }
        match self.csv {
            Some(csv) => files.csv(csv),
            None => files,
        }
    }

    /// For a sink.
    pub(crate) fn for_sink(self, mut sink: SinkOptions) -> SinkOptions {
        if let Some(format) = self.format {
            sink = sink.format(format);
        }
        if let Some(compression) = self.compression {
            sink = sink.compression(compression);
        }
        if let Some(csv) = self.csv {
            sink = sink.csv(csv);
        }
        sink.partition_by(self.partition_by)
    }
}

/// The folder that relative paths start from.
pub(crate) fn here() -> PathBuf {
    std::env::current_dir().unwrap_or_else(|_| PathBuf::from("."))
}

/// A path in which nothing is a template.
fn plain(path: String) -> String {
    path.replace("${", "$${")
}

/// A frame over files.
#[pyfunction]
pub(crate) fn read_files(py: Python<'_>, paths: Vec<String>, options: &Bound<'_, PyDict>) -> PyResult<PyFrame> {
    let shared = shared(py)?;
    let options = Options::from_python(options)?;
    // A source of a workflow and a frame over files are one thing: the same lists, schemas and reports.
    let workflow = Workflow::builder("frame")
        .source_files_with("files", paths.into_iter().map(plain), |files| options.for_source(files))
        .sql("rows", "SELECT * FROM files")
        .build()
        .map_err(|reports| from_reports(py, &reports))?;
    let inputs = Inputs { everything: true, base: here(), ..Inputs::default() };
    let session: Session = shared.session.clone();
    let compiled = wait(py, async move {
        let engine = session.engine();
        compile(Arc::new(workflow), &inputs, engine.session(false), &engine.options().stores, engine.host()).await
    })?;
    let compiled = compiled.map_err(|reports| from_reports(py, &reports))?;
    match compiled.source_tables.get("files") {
        Some(table) => PyFrame::of_table(shared, Arc::clone(table)).map_err(|error| from_engine(py, &error)),
        None => Err(PyValueError::new_err("the files have no table")),
    }
}

/// Writes a frame to a file or a directory, all of it or nothing. Gives the number of rows.
#[pyfunction]
pub(crate) fn write_files(py: Python<'_>, frame: &PyFrame, path: String, options: &Bound<'_, PyDict>) -> PyResult<u64> {
    let options = Options::from_python(options)?;
    let workflow = Workflow::builder("write")
        .source_provided("frame")
        .sink_with("result", "frame", plain(path), |sink| options.for_sink(sink))
        .build()
        .map_err(|reports| from_reports(py, &reports))?;
    let mut inputs = Inputs { base: here(), ..Inputs::default() };
    inputs.tables.insert("frame".to_owned(), frame.table());
    let session = frame.shared.session.clone();
    let report = crate::workflow::run_to_end(py, None, move |cancel, watch| async move {
        session.run_observed(Arc::new(workflow), &inputs, &cancel, watch.as_ref()).await
    })?;
    Ok(report.sinks.iter().map(|sink| sink.rows).sum())
}
