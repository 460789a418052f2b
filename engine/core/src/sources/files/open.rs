//! Finds the files of a source, tells their format, and makes the table.

use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::{Field, FieldRef};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::execution::SessionState;
use datafusion::execution::object_store::ObjectStoreUrl;
use rowmill_spec::model::FileSource;
use rowmill_spec::{Compression, Diagnostic, Fault, Format, Span};

use super::{Found, Opened, SourceFile};
use crate::sources::format::{self, from_name, word};
use crate::sources::list;
use crate::sources::locate::{Location, locate};
use crate::sources::quotes::has_quoted_line_break;
use crate::sources::stores::{StoreOptions, store_for};
use crate::sources::table::{FileSet, FileTable, RowWidth, group_by_schema};
use crate::types::arrow_type;

/// Text files smaller than this are read by one task anyway, so nobody asks where their line breaks are.
const SPLIT_BYTES: u64 = 8 << 20;

/// A source while it is opened.
pub(super) struct Opener<'a> {
    pub(super) name: &'a str,
    pub(super) source: &'a FileSource,
    pub(super) base: &'a Path,
    pub(super) state: &'a SessionState,
    pub(super) stores: &'a StoreOptions,
    pub(super) span: Span,
}

impl Opener<'_> {
    pub(super) async fn open(&self, paths: &[(String, Span)]) -> Result<Opened, Vec<Diagnostic>> {
        let mut found = Vec::new();
        let mut errors = Vec::new();
        for (path, span) in paths {
            match self.find(path, *span).await {
                Ok(files) => found.extend(files),
                Err(error) => errors.push(error),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let (format, compression) = self.format_of(&found).map_err(|error| vec![error])?;
        let found = self.without_empty_texts(found, format).map_err(|error| vec![error])?;
        self.table(found, format, compression).await.map_err(|error| vec![error])
    }

    pub(super) fn error(&self, code: &'static str, message: impl Into<String>) -> Diagnostic {
        Diagnostic::error(code, format!("source `{}`: {}", self.name, message.into())).at(self.span, "")
    }

    async fn find(&self, path: &str, span: Span) -> Result<Vec<Found>, Diagnostic> {
        let located = locate(path, self.base)
            .map_err(|error| Diagnostic::error("RM0501", format!("source `{}`: {error}", self.name)).at(span, ""))?;
        let failed = |error: object_store::Error| {
            Diagnostic::error("RM0503", format!("source `{}`: cannot open the store of `{path}`: {error}", self.name))
                .fault(Fault::Environment)
                .at(span, "")
                .help("check the object_store section of the configuration and the credentials in the environment")
        };
        let store = store_for(self.state.runtime_env(), self.stores, &located).map_err(failed)?;
        let files = list::list(&store, &located).await.map_err(|error| {
            let report = Diagnostic::error(
                match error {
                    list::Error::NotFound { .. } | list::Error::NoMatch { .. } | list::Error::CannotList { .. } => {
                        "RM0502"
                    }
                    list::Error::Store { .. } | list::Error::Manifest { .. } => "RM0503",
                },
                format!("source `{}`: {error}", self.name),
            )
            .fault(match error {
                list::Error::Store { .. } => Fault::Environment,
                list::Error::Manifest { .. } => Fault::Data,
                _ => Fault::Workflow,
            })
            .at(span, "");
            match (&error, located.is_local()) {
                (list::Error::NotFound { .. }, true) => self.nearby(report, &located),
                _ => report,
            }
        })?;
        let location = Arc::new(located);
        Ok(files
            .into_iter()
            .map(|meta| Found { location: Arc::clone(&location), store: Arc::clone(&store), meta })
            .collect())
    }

    /// Adds what is there instead of a missing file.
    fn nearby(&self, report: Diagnostic, location: &Location) -> Diagnostic {
        let Some(path) = location.local_path() else { return report };
        let report = match Path::new(&location.text).is_relative() {
            true => report.help(format!("relative paths start at the workflow's folder: this is {}", path.display())),
            false => report,
        };
        let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
            return report;
        };
        let nearest = std::fs::read_dir(folder).ok().and_then(|entries| {
            entries
                .flatten()
                .filter_map(|entry| entry.file_name().into_string().ok())
                .map(|other| (strsim::damerau_levenshtein(name, &other), other))
                .filter(|(distance, _)| *distance <= name.len().max(3) / 3)
                .min()
        });
        match nearest {
            Some((_, other)) => report.help(format!("did you mean `{other}`?")),
            None if !folder.exists() => report.help(format!("the folder {} does not exist either", folder.display())),
            None => report,
        }
    }

    fn format_of(&self, found: &[Found]) -> Result<(Format, Option<Compression>), Diagnostic> {
        let mut format = self.source.format.as_ref().map(|format| format.value);
        let mut compression = self.source.compression.as_ref().map(|compression| compression.value);
        if format.is_none() {
            for file in found {
                let told = from_name(file.meta.location.as_ref()).0;
                match (format, told) {
                    (_, None) => {
                        return Err(self
                            .error("RM0504", format!("the name of `{}` does not tell its format", file.name()))
                            .help("say it: `format: parquet`, csv, json or arrow"));
                    }
                    (None, Some(told)) => format = Some(told),
                    (Some(known), Some(told)) if known != told => {
                        return Err(self
                            .error(
                                "RM0504",
                                format!("its files are of two formats, {} and {}", word(known), word(told)),
                            )
                            .help("narrow the path, or make two sources"));
                    }
                    _ => {}
                }
            }
        }
        if compression.is_none() {
            let told: Vec<Option<Compression>> =
                found.iter().map(|file| from_name(file.meta.location.as_ref()).1).collect();
            compression = told.first().copied().flatten();
            if told.iter().any(|other| *other != compression) {
                return Err(self
                    .error("RM0504", "its files are compressed in different ways")
                    .help("narrow the path, or make two sources"));
            }
        }
        Ok((format.unwrap_or(Format::Parquet), compression))
    }

    /// Text files of no bytes hold no rows; an empty file of a binary format is a torn one.
    fn without_empty_texts(&self, found: Vec<Found>, format: Format) -> Result<Vec<Found>, Diagnostic> {
        if matches!(format, Format::Csv | Format::Json) {
            let all = found.len();
            let kept: Vec<Found> = found.into_iter().filter(|file| file.meta.size > 0).collect();
            if kept.is_empty() && self.source.schema.is_none() {
                return Err(self
                    .error(
                        "RM0505",
                        format!(
                            "{} empty, so its columns are not known",
                            if all == 1 { "its file is" } else { "its files are" }
                        ),
                    )
                    .fault(Fault::Data)
                    .help("declare the columns: `schema: {name: type, ...}`"));
            }
            return Ok(kept);
        }
        match found.iter().find(|file| file.meta.size == 0) {
            Some(file) => Err(self
                .error("RM0505", format!("`{}` is empty; a {} file never is", file.name(), word(format)))
                .fault(Fault::Data)
                .help("it was probably cut off while it was written; write it again")),
            None => Ok(found),
        }
    }

    async fn table(
        &self,
        found: Vec<Found>,
        format: Format,
        compression: Option<Compression>,
    ) -> Result<Opened, Diagnostic> {
        let parquet = &self.state.default_table_options().parquet;
        let split = format != Format::Csv
            || self.source.csv.newlines_in_values
            || !self.has_quoted_line_breaks(&found, compression).await?;
        let split = split && !self.source.csv.newlines_in_values;
        let reader = format::reader(format, compression, &self.source.csv, parquet, split);

        let schemas = self.schemas(&found, format, compression, &reader).await?;
        let table_schema = self.table_schema(&found, &schemas, format)?;
        if table_schema.fields().is_empty() && (format == Format::Json || self.source.partitions.is_empty()) {
            let first = found.first().map(Found::name).unwrap_or_default();
            return Err(self.error("RM0505", format!("`{first}` has no columns")).fault(Fault::Data).help(
                "rows without a column cannot be counted on the way; name its columns: `schema: {name: type, ...}`",
            ));
        }
        let partition_columns: Vec<FieldRef> = self
            .source
            .partitions
            .iter()
            .map(|(name, kind)| Arc::new(Field::new(name, arrow_type(kind), true)))
            .collect();
        if let Some(twice) = partition_columns.iter().find(|column| table_schema.index_of(column.name()).is_ok()) {
            return Err(self
                .error("RM0508", format!("column `{}` is both in the files and in their path", twice.name()))
                .help("take it out of `partitions`, or rename it where the files are written"));
        }
        let adapts = matches!(format, Format::Parquet | Format::Json);
        let mut files = Vec::with_capacity(found.len());
        for (file, schema) in found.iter().zip(&schemas) {
            let values = self.partition_values(file)?;
            let partitioned = PartitionedFile::new_from_meta(file.meta.clone()).with_partition_values(values);
            let read_with = match adapts {
                true => Arc::clone(&table_schema),
                false => self.read_schema(schema, &table_schema, format),
            };
            files.push((file.location.store.clone(), read_with, partitioned));
        }
        let width = Arc::new(match format {
            Format::Parquet => self.parquet_width(&found, &table_schema).await?,
            Format::Csv | Format::Json => self.text_width(&found, compression).await,
            Format::Arrow => RowWidth::default(),
        });
        let files = self.with_statistics(files, &found, format, &reader, &table_schema).await?;
        let mut stores: Vec<ObjectStoreUrl> = Vec::new();
        for (store, _, _) in &files {
            if !stores.contains(store) {
                stores.push(store.clone());
            }
        }
        let mut sets = Vec::new();
        for store in stores {
            let of_store =
                files.iter().filter(|file| file.0 == store).map(|file| (Arc::clone(&file.1), file.2.clone())).collect();
            for (schema, files) in group_by_schema(of_store) {
                sets.push(FileSet {
                    store: store.clone(),
                    format: Arc::clone(&reader),
                    schema,
                    files,
                    width: Arc::clone(&width),
                });
            }
        }
        let null_text = self.source.csv.null.clone().filter(|_| format == Format::Csv);
        let table = FileTable::new(&table_schema, partition_columns, null_text, sets);
        let files =
            found.into_iter().map(|file| SourceFile { store: file.location.store.clone(), meta: file.meta }).collect();
        Ok(Opened { table: Arc::new(table), files })
    }

    async fn has_quoted_line_breaks(
        &self,
        found: &[Found],
        compression: Option<Compression>,
    ) -> Result<bool, Diagnostic> {
        if compression.is_some_and(|compression| compression != Compression::None) {
            return Ok(false); // never split
        }
        let (quote, escape) = (self.source.csv.quote, self.source.csv.escape);
        for file in found.iter().filter(|file| file.meta.size >= SPLIT_BYTES) {
            if !file.location.is_local() {
                // Looking would mean fetching it twice; one task reads it.
                return Ok(true);
            }
            let path = std::path::PathBuf::from(file.name());
            let looked = tokio::task::spawn_blocking(move || has_quoted_line_break(&path, quote, escape)).await;
            match looked {
                Ok(Ok(true)) => return Ok(true),
                Ok(Ok(false)) => {}
                Ok(Err(error)) => return Err(self.unreadable(file, &error.to_string()).fault(Fault::Environment)),
                Err(_) => return Ok(true),
            }
        }
        Ok(false)
    }

    pub(super) fn unreadable(&self, file: &Found, reason: &str) -> Diagnostic {
        self.error("RM0505", format!("cannot read `{}`: {reason}", file.name())).fault(Fault::Data)
    }
}
