//! Workflow text to typed workflow.
//!
//! This crate owns the words of a workflow: the typed model ([`Workflow`]), the readers that make one from YAML,
//! from SQL or from Rust ([`parse`], [`WorkflowBuilder`]), the diagnostics that point back into the text
//! ([`Diagnostic`]), and the catalogue of configuration settings ([`config`]). It performs no I/O and does not know
//! DataFusion: what a name means to the SQL planner, and what a path holds, is for `rowmill-engine` to find out.
//!
//! ```text
//!  text ──yaml──▶ nodes with spans ──read──▶ Workflow ◀── sql file
//!                                              ▲
//!                                 WorkflowBuilder (no text)
//! ```

pub mod builder;
mod check;
pub mod codes;
pub mod config;
pub mod diagnostic;
pub mod json_schema;
mod keys;
pub mod model;
pub mod names;
mod read;
pub mod reference;
mod render;
mod report;
pub mod span;
mod sql_file;
pub mod suggest;
pub mod template;
pub mod types;
pub mod units;
mod write_yaml;
mod yaml;

pub use builder::{FileOptions, SinkOptions, WorkflowBuilder};
pub use diagnostic::{Diagnostic, Diagnostics, Fault, Severity};
pub use keys::FORMAT_VERSION;
pub use model::{
    BatchSize, CachePolicy, CacheTier, CommandFormat, CommandStep, Compression, CsvOptions, Effects, FAILURE_CODES,
    FileSource, Format, GpuStep, HttpBody, HttpMany, HttpStep, ItemPolicy, Jitter, JsonTemplate, Limit, LookupStep,
    Matches, MaxErrors, Metric, ModelDevice, ModelStep, OnError, OnMissing, OutputColumn, Param, PythonGiven,
    PythonStep, Rate, ResourceClass, Resources, ResponseColumn, ResponseSource, ResultMatch, Retry, RowOrder,
    SchemaPolicy, Sink, Source, SourceKind, SqlStep, Step, StepKind, TopK, Variable, Workflow,
};
pub use read::{RawValue, Values, parse_values, parse_yaml};
pub use span::{MappedText, Span, Spanned, TextId, Texts};
pub use sql_file::parse_sql;
pub use template::{Piece, Template};
pub use types::{LogicalType, TimeUnit, TypeError, Value};
pub use yaml::{MAX_DEPTH, MAX_NODES, MAX_TEXT_BYTES};

/// Reads a workflow; its form is told by the name: `.yaml` and `.yml` are YAML, `.sql` is SQL.
///
/// # Errors
/// All errors of the text at once.
pub fn parse(name: &str, text: &str) -> Result<Workflow, Diagnostics> {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    match extension.as_deref() {
        Some("yaml" | "yml") => parse_yaml(name, text),
        Some("sql") => parse_sql(name, text),
        _ => {
            let report = Diagnostic::error(codes::UNKNOWN_FORM, format!("`{name}` is not known to be a workflow"))
                .help("name it `.yaml` or `.yml` for YAML, `.sql` for SQL");
            Err(Diagnostics { reports: vec![report], ..Diagnostics::default() })
        }
    }
}
