//! What a sink is: where it writes, in which format, as a file or a directory.

use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::{DataType, Schema};
use datafusion::common::Result;
use datafusion::execution::SessionState;
use rowmill_spec::{Compression, CsvOptions, Diagnostic, Fault, Format, Sink, Span, Workflow};

use crate::compile::Reports;
use crate::compile::bind_values::Bound;
use crate::compile::check_types::Checked;
use crate::compile::open_sources::OpenedSources;
use crate::compile::resolve_names::letters_name;
use crate::sources::format::{from_name, word};
use crate::sources::locate::{Location, locate};
use crate::sources::stores::{StoreOptions, store_for};
use crate::types::logical_name;

/// A sink with everything filled in.
#[derive(Debug, Clone)]
pub struct SinkTarget {
    /// Its name.
    pub name: String,
    /// The step or source whose rows it takes, as declared.
    pub from: String,
    /// The path as the workflow says it, parameters filled in.
    pub path: String,
    /// Where the path stands.
    pub span: Span,
    /// Where it points.
    pub location: Location,
    /// The format.
    pub format: Format,
    /// The compression.
    pub compression: Compression,
    /// Columns that become folders.
    pub partition_by: Vec<String>,
    /// How CSV is written.
    pub csv: CsvOptions,
}

impl SinkTarget {
    /// Whether it writes many files into a directory.
    pub fn is_directory(&self) -> bool {
        self.location.directory || !self.partition_by.is_empty()
    }

    /// The ending of its files, compression included.
    pub fn extension(&self) -> String {
        let format = word(self.format);
        match (self.format, self.compression) {
            (Format::Csv | Format::Json, Compression::Gzip) => format!("{format}.gz"),
            (Format::Csv | Format::Json, Compression::Zstd) => format!("{format}.zst"),
            (Format::Csv | Format::Json, Compression::Bzip2) => format!("{format}.bz2"),
            (Format::Csv | Format::Json, Compression::Xz) => format!("{format}.xz"),
            _ => format.to_owned(),
        }
    }
}

/// Fills in every sink of a workflow.
pub fn targets(
    workflow: &Workflow,
    bound: &Bound,
    base: &Path,
    state: &SessionState,
    stores: &StoreOptions,
    reports: &mut Reports,
) -> Vec<SinkTarget> {
    let mut targets: Vec<SinkTarget> = Vec::new();
    for sink in workflow.sinks.values() {
        match target(workflow, sink, bound, base, state, stores) {
            Ok(target) => {
                if let Some(other) = targets.iter().find(|other| overlap(&other.location, &target.location)) {
                    reports.push(
                        Diagnostic::error(
                            "RM0511",
                            format!(
                                "sinks `{}` and `{}` write to the same place, {}",
                                other.name, target.name, target.path
                            ),
                        )
                        .at(target.span, "")
                        .at(other.span, "")
                        .help("each sink needs a path of its own, none inside another's"),
                    );
                }
                targets.push(target);
            }
            Err(report) => reports.push(*report),
        }
    }
    targets
}

fn overlap(one: &Location, two: &Location) -> bool {
    one.store == two.store
        && (one.prefix == two.prefix
            || one.prefix.prefix_matches(&two.prefix)
            || two.prefix.prefix_matches(&one.prefix))
}

fn target(
    workflow: &Workflow,
    sink: &Sink,
    bound: &Bound,
    base: &Path,
    state: &SessionState,
    stores: &StoreOptions,
) -> Result<SinkTarget, Box<Diagnostic>> {
    let name = sink.name.value.clone();
    let (path, span) = bound.path(&sink.path)?;
    let error =
        |code, message: String| Box::new(Diagnostic::error(code, format!("sink `{name}`: {message}")).at(span, ""));
    let mut location = locate(&path, base).map_err(|problem| error("RM0501", problem.to_string()))?;
    if location.pattern.is_some() {
        return Err(error("RM0501", format!("`{path}` holds a wildcard; a sink writes to one place")));
    }
    if location.prefix.as_ref().is_empty() {
        return Err(error("RM0510", format!("`{path}` is the root of its store; a sink needs a place below it")));
    }
    let (told_format, told_compression) = from_name(&path);
    // A name that ends in a format is a file's, even where a directory of that name exists.
    location.directory = path.ends_with('/') || (location.directory && told_format.is_none());
    let directory = location.directory || !sink.partition_by.is_empty();
    let format = match (sink.format.as_ref().map(|format| format.value), told_format) {
        (Some(format), _) | (None, Some(format)) => format,
        (None, None) if directory => Format::Parquet,
        (None, None) => {
            let report = *error("RM0504", format!("`{path}` does not tell its format"));
            return Err(Box::new(
                report.help("say it: `format: parquet`, csv, json or arrow; a directory ends in `/`"),
            ));
        }
    };
    let compression = match (sink.compression.as_ref().map(|compression| compression.value), told_compression) {
        (Some(compression), _) | (None, Some(compression)) => compression,
        (None, None) => match format {
            Format::Parquet => Compression::Zstd,
            Format::Arrow => Compression::Lz4,
            Format::Csv | Format::Json => Compression::None,
        },
    };
    if format == Format::Arrow && !matches!(compression, Compression::Lz4 | Compression::Zstd | Compression::None) {
        let report = *error("RM0509", "arrow files are compressed with lz4 or zstd, or not at all".to_owned());
        return Err(Box::new(report.help("leave `compression` out for lz4, or say `compression: zstd` or `none`")));
    }
    if let (Some(told), Format::Csv | Format::Json) = (told_compression, format)
        && told != compression
    {
        let message = format!("the name of `{path}` says that it is compressed, and `compression` says otherwise");
        let report = *error("RM0509", message);
        return Err(Box::new(report.help("its readers go by the name: change the name, or leave `compression` out")));
    }
    if format == Format::Csv && sink.csv.escape.is_some() {
        let report = *error("RM0509", "csv is written with doubled quotes; `escape` is for reading".to_owned());
        return Err(Box::new(report.help("leave `escape` out of the sink's `csv`")));
    }
    let declared = workflow.steps.keys().chain(workflow.sources.keys());
    let declared = declared.filter(|declared| declared.to_lowercase() == sink.from.to_lowercase()).cloned();
    let letters = letters_name(workflow, &sink.from).map(|(_, name)| name);
    let from = declared.chain(letters).next().unwrap_or_else(|| sink.from.value.clone());
    if let Some(local) = location.is_local().then(|| location.local_path()).flatten() {
        check_local(&local, directory).map_err(|problem| error("RM0510", problem))?;
    }
    if location.url.scheme().starts_with("http") {
        return Err(error("RM0510", "HTTP servers are read, not written".to_owned()));
    }
    if let Err(problem) = store_for(state.runtime_env(), stores, &location) {
        let report = *error("RM0503", format!("cannot open its store: {problem}"));
        return Err(Box::new(
            report
                .fault(Fault::Environment)
                .help("check the object_store section of the configuration and the credentials in the environment"),
        ));
    }
    Ok(SinkTarget {
        name,
        from,
        path,
        span,
        location,
        format,
        compression,
        partition_by: sink.partition_by.iter().map(|column| column.value.clone()).collect(),
        csv: sink.csv.clone(),
    })
}

/// What stands at the path must be something that this sink may replace.
fn check_local(path: &Path, directory: bool) -> Result<(), String> {
    for folder in path.ancestors().skip(1) {
        match folder.metadata() {
            Ok(meta) if meta.is_dir() => break,
            Ok(_) => return Err(format!("{} is a file, so nothing can be written below it", folder.display())),
            Err(_) => {}
        }
    }
    let Ok(meta) = path.symlink_metadata() else { return Ok(()) };
    if !meta.is_file() && !meta.is_dir() {
        let what = if meta.is_symlink() { "a symbolic link" } else { "neither a file nor a directory" };
        return Err(format!("{} is {what}, and publishing would replace it; name the place itself", path.display()));
    }
    match (directory, meta.is_dir()) {
        (true, false) => Err(format!("{} is a file; this sink writes a directory", path.display())),
        (false, true) => Err(format!("{} is a directory; this sink writes a file", path.display())),
        (true, true) if !is_ours(path) => Err(format!(
            "{} holds files that Rowmill did not write, and publishing would remove them; choose another directory or empty it",
            path.display()
        )),
        _ => Ok(()),
    }
}

/// An empty directory, or one that a sink published.
fn is_ours(path: &Path) -> bool {
    if path.join(super::manifest::FILE).is_file() {
        return true;
    }
    std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

/// Checks the columns that sinks take.
pub fn check_columns(sinks: &[SinkTarget], checked: &Checked, opened: &OpenedSources, reports: &mut Reports) {
    for sink in sinks {
        let schema = match (checked.steps.get(&sink.from), opened.tables.get(&sink.from)) {
            (Some(step), _) => Arc::clone(&step.schema),
            (None, Some(table)) => table.schema(),
            (None, None) => continue,
        };
        for column in &sink.partition_by {
            if let Ok(field) = schema.field_with_name(column)
                && (field.data_type().is_nested() || field.data_type().is_binary())
            {
                reports.push(
                    Diagnostic::error(
                        "RM0512",
                        format!(
                            "sink `{}` partitions by `{column}`, whose values make no folder names: {}",
                            sink.name,
                            logical_name(field.data_type())
                        ),
                    )
                    .at(sink.span, "")
                    .help("partition by a number, a text, a date or a bool"),
                );
            }
            if schema.index_of(column).is_err() {
                let report = Diagnostic::error(
                    "RM0512",
                    format!("sink `{}` partitions by `{column}`, which `{}` does not make", sink.name, sink.from),
                )
                .at(sink.span, "");
                let names = schema.fields().iter().map(|field| field.name().as_str());
                reports.push(match crate::compile::sql_errors::nearest(column, names) {
                    Some(other) => report.help(format!("did you mean `{other}`?")),
                    None => report,
                });
            }
        }
        if !sink.partition_by.is_empty() && sink.partition_by.len() >= schema.fields().len() {
            reports.push(
                Diagnostic::error(
                    "RM0512",
                    format!("sink `{}` partitions by every column, so its files would have none", sink.name),
                )
                .at(sink.span, ""),
            );
        }
        if let Some((column, kind)) = unwritable(sink.format, &schema) {
            reports.push(
                Diagnostic::error(
                    "RM0513",
                    format!(
                        "sink `{}`: {} files cannot hold column `{column}` of type {kind}",
                        sink.name,
                        word(sink.format)
                    ),
                )
                .at(sink.span, "")
                .help("convert it in a step (for instance with array_to_string), or write parquet"),
            );
        }
    }
}

fn unwritable(format: Format, schema: &Schema) -> Option<(String, String)> {
    let refused = |kind: &DataType| match format {
        Format::Csv => {
            kind.is_nested()
                || matches!(
                    kind,
                    DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_)
                )
        }
        Format::Parquet => {
            matches!(kind, DataType::Union(..) | DataType::Interval(arrow::datatypes::IntervalUnit::MonthDayNano))
        }
        Format::Json => matches!(kind, DataType::Union(..)),
        Format::Arrow => false,
    };
    schema
        .fields()
        .iter()
        .find(|field| refused(field.data_type()))
        .map(|field| (field.name().clone(), logical_name(field.data_type())))
}
