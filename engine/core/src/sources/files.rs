//! Opens the files of a source: lists them, finds or checks their schema, and makes the table.

use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::common::{DataFusionError, ScalarValue, Statistics};
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::execution::SessionState;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::RuntimeEnv;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use rowmill_spec::model::FileSource;
use rowmill_spec::{Compression, Diagnostic, Fault, Format, SchemaPolicy, Span};

use super::format::{self, from_name, word};
use super::list::{self, below};
use super::locate::{Location, locate};
use super::quotes::has_quoted_line_break;
use super::schema::{Disagreement, unite};
use super::stores::{StoreOptions, store_for};
use super::table::{FileSet, FileTable, group_by_schema};
use crate::types::{arrow_type, declared_schema, logical_name, widen};

/// Files looked at side by side.
const CONCURRENCY: usize = 16;
/// Text files smaller than this are read by one task anyway, so nobody asks where their line breaks are.
const SPLIT_BYTES: u64 = 8 << 20;
/// What Hive writes for a null partition value.
pub const HIVE_NULL: &str = "__HIVE_DEFAULT_PARTITION__";

/// A source that has been opened.
#[derive(Debug)]
pub struct Opened {
    /// The table that SQL reads.
    pub table: Arc<dyn TableProvider>,
    /// Every file of it, as it was when the workflow was compiled.
    pub files: Vec<SourceFile>,
}

/// One file, to be compared later.
#[derive(Debug, Clone)]
pub struct SourceFile {
    /// The store.
    pub store: ObjectStoreUrl,
    /// Path, size, time and tag when it was listed.
    pub meta: ObjectMeta,
}

struct Found {
    location: Arc<Location>,
    store: Arc<dyn ObjectStore>,
    meta: ObjectMeta,
}

impl Found {
    fn name(&self) -> String {
        match self.location.is_local() {
            true => format!("/{}", self.meta.location),
            false => format!("{}{}", self.location.store.as_str(), self.meta.location),
        }
    }
}

/// Opens `source`, whose path templates were filled in to `paths`.
///
/// # Errors
/// Diagnostics that name the source, the file and the next move.
pub fn open<'a>(
    name: &'a str,
    source: &'a FileSource,
    paths: &'a [(String, Span)],
    base: &'a Path,
    state: &'a SessionState,
    stores: &'a StoreOptions,
) -> BoxFuture<'a, Result<Opened, Vec<Diagnostic>>> {
    let span = paths.first().map_or(Span::NONE, |(_, span)| *span);
    async move { Opener { name, source, base, state, stores, span }.open(paths).await }.boxed()
}

struct Opener<'a> {
    name: &'a str,
    source: &'a FileSource,
    base: &'a Path,
    state: &'a SessionState,
    stores: &'a StoreOptions,
    span: Span,
}

impl Opener<'_> {
    async fn open(&self, paths: &[(String, Span)]) -> Result<Opened, Vec<Diagnostic>> {
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

    fn error(&self, code: &'static str, message: impl Into<String>) -> Diagnostic {
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
                sets.push(FileSet { store: store.clone(), format: Arc::clone(&reader), schema, files });
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

    fn unreadable(&self, file: &Found, reason: &str) -> Diagnostic {
        self.error("RM0505", format!("cannot read `{}`: {reason}", file.name())).fault(Fault::Data)
    }

    /// The schema of each file, as it says or as its first rows look.
    async fn schemas(
        &self,
        found: &[Found],
        format: Format,
        compression: Option<Compression>,
        reader: &Arc<dyn FileFormat>,
    ) -> Result<Vec<SchemaRef>, Diagnostic> {
        let declared = self.declared();
        // JSON knows columns by name, CSV without a header only by place: what is declared is all there is to know.
        let trusted = match format {
            Format::Json => true,
            Format::Csv => !self.source.csv.header,
            Format::Parquet | Format::Arrow => false,
        };
        if let (Some(declared), true) = (&declared, trusted) {
            return Ok(found.iter().map(|_| Arc::clone(declared)).collect());
        }
        let looks: Vec<BoxFuture<'_, Result<SchemaRef, Diagnostic>>> =
            found.iter().map(|file| self.schema_of(file, format, compression, reader)).collect();
        futures::stream::iter(looks).buffered(CONCURRENCY).try_collect().await
    }

    /// The schema of one file.
    fn schema_of<'s>(
        &'s self,
        file: &'s Found,
        format: Format,
        compression: Option<Compression>,
        reader: &'s Arc<dyn FileFormat>,
    ) -> BoxFuture<'s, Result<SchemaRef, Diagnostic>> {
        async move {
            let plain = compression.is_none_or(|compression| compression == Compression::None);
            let inferred = match format == Format::Csv && plain && file.location.is_local() {
                true => self.infer_csv(file).await,
                false => reader.infer_schema(self.state, &file.store, std::slice::from_ref(&file.meta)).await,
            };
            let schema = inferred.map_err(|error| self.cannot_infer(file, format, &error))?;
            self.check_names(file, &schema)?;
            Ok(schema)
        }
        .boxed()
    }

    /// Types from the first rows of a CSV file. DataFusion cuts the file at line breaks first, and so stumbles over
    /// those inside quotes; a file of this machine is read as a stream instead.
    async fn infer_csv(&self, file: &Found) -> Result<SchemaRef, DataFusionError> {
        let path = std::path::PathBuf::from(file.name());
        let csv = self.source.csv.clone();
        let looked = tokio::task::spawn_blocking(move || -> Result<Schema, DataFusionError> {
            let mut format = arrow::csv::reader::Format::default()
                .with_header(csv.header)
                .with_delimiter(csv.delimiter)
                .with_quote(csv.quote);
            if let Some(escape) = csv.escape {
                format = format.with_escape(escape);
            }
            if let Some(comment) = csv.comment {
                format = format.with_comment(comment);
            }
            if let Some(null) = &csv.null {
                format = format.with_null_regex(format::null_pattern(null)?);
            }
            let file = std::io::BufReader::with_capacity(1 << 20, std::fs::File::open(path)?);
            let schema = format.infer_schema(file, Some(csv.infer_rows))?.0;
            // A column without a value so far may hold anything later: text does.
            let fields: Vec<Field> = schema
                .fields()
                .iter()
                .map(|field| match field.data_type() {
                    DataType::Null => field.as_ref().clone().with_data_type(DataType::Utf8View),
                    _ => field.as_ref().clone(),
                })
                .collect();
            Ok(Schema::new(fields))
        });
        let schema = looked.await.map_err(|error| DataFusionError::ExecutionJoin(Box::new(error)))??;
        Ok(Arc::new(schema))
    }

    fn cannot_infer(&self, file: &Found, format: Format, error: &DataFusionError) -> Diagnostic {
        let root = error.find_root();
        let environment = matches!(root, DataFusionError::ObjectStore(_) | DataFusionError::IoError(_));
        let reason = root.strip_backtrace();
        let mut report = self.unreadable(file, &reason);
        if reason.contains("unequal lengths") {
            report.code = "RM0603";
            return report.help("correct the row, or check `csv:` (delimiter, quote, newlines_in_values)");
        }
        match environment {
            true => report.fault(Fault::Environment),
            false => report.help(format!(
                "is it really a {} file? `format:` says what it is where its name does not",
                word(format)
            )),
        }
    }

    fn check_names(&self, file: &Found, schema: &Schema) -> Result<(), Diagnostic> {
        let mut seen = std::collections::HashSet::new();
        match schema.fields().iter().find(|field| !seen.insert(field.name().as_str())) {
            Some(twice) => Err(self
                .error("RM0505", format!("`{}` has two columns named `{}`", file.name(), twice.name()))
                .fault(Fault::Data)),
            None => Ok(()),
        }
    }

    fn declared(&self) -> Option<SchemaRef> {
        let schema = self.source.schema.as_ref()?;
        Some(declared_schema(schema.iter().map(|(name, kind)| (name.as_str(), &kind.value))))
    }

    /// The columns of the table: what is declared, or all files together.
    fn table_schema(&self, found: &[Found], schemas: &[SchemaRef], format: Format) -> Result<SchemaRef, Diagnostic> {
        let named: Vec<(String, SchemaRef)> =
            found.iter().map(Found::name).zip(schemas.iter().map(Arc::clone)).collect();
        let Some(declared) = self.declared() else {
            return unite(&named, self.source.schema_policy.value).map_err(|disagreement| {
                let report = self.error("RM0506", disagreement.to_string()).fault(Fault::Data);
                match (&disagreement, self.source.schema_policy.value) {
                    (_, SchemaPolicy::Strict) => {
                        report.help("`schema_policy: union` unites columns by name and widens numbers")
                    }
                    (Disagreement::Types { .. }, _) => {
                        report.help("declare the column's type: `schema: {name: type, ...}`")
                    }
                    _ => report,
                }
            });
        };
        for (name, schema) in &named {
            for column in declared.fields() {
                let Ok(index) = schema.index_of(column.name()) else {
                    if self.source.schema_policy.value == SchemaPolicy::Union {
                        continue;
                    }
                    let nearest = nearest(column.name(), schema);
                    let report = self
                        .error("RM0507", format!("declares column `{}`, which `{name}` does not have", column.name()))
                        .fault(Fault::Data);
                    return Err(match nearest {
                        Some(other) => report.help(format!("did you mean `{other}`?")),
                        None => report.help("`schema_policy: union` makes a missing column null"),
                    });
                };
                // CSV and JSON are text: any type may be tried. Typed files only widen.
                let stored = schema.field(index).data_type();
                if matches!(format, Format::Parquet | Format::Arrow)
                    && widen(stored, column.data_type()).as_ref() != Some(column.data_type())
                {
                    return Err(self
                        .error(
                            "RM0507",
                            format!(
                                "declares column `{}` as {}, but it is {} in `{name}`",
                                column.name(),
                                logical_name(column.data_type()),
                                logical_name(stored)
                            ),
                        )
                        .fault(Fault::Data)
                        .help("a typed file is only widened; convert it in a step: `CAST(column AS type)`"));
                }
            }
        }
        Ok(declared)
    }

    /// How one CSV or Arrow file is read: its own columns in its own order, declared or united types where CSV text
    /// can be parsed as them at once.
    fn read_schema(&self, file: &SchemaRef, table: &SchemaRef, format: Format) -> SchemaRef {
        if format != Format::Csv {
            return Arc::clone(file);
        }
        let fields: Vec<FieldRef> = file
            .fields()
            .iter()
            .map(|field| match table.field_with_name(field.name()) {
                Ok(column) => Arc::new(column.clone()),
                // Not part of the table, but it has a place in the row.
                Err(_) => Arc::new(Field::new(field.name(), DataType::Utf8View, true)),
            })
            .collect();
        Arc::new(Schema::new(fields))
    }

    fn partition_values(&self, file: &Found) -> Result<Vec<ScalarValue>, Diagnostic> {
        if self.source.partitions.is_empty() {
            return Ok(Vec::new());
        }
        let path = below(&file.location.prefix, &file.meta.location).unwrap_or("");
        let mut values = Vec::new();
        for (name, kind) in &self.source.partitions {
            let text = path
                .split('/')
                .filter_map(|segment| segment.split_once('='))
                .find(|(key, _)| key == name)
                .map(|(_, value)| value)
                .or_else(|| {
                    // The wildcard may begin below the partition folders.
                    file.meta
                        .location
                        .as_ref()
                        .split('/')
                        .filter_map(|segment| segment.split_once('='))
                        .find(|(key, _)| key == name)
                        .map(|(_, value)| value)
                });
            let Some(text) = text else {
                return Err(self
                    .error("RM0508", format!("the path of `{}` has no folder `{name}=...`", file.name()))
                    .fault(Fault::Data)
                    .help("`partitions` names the folders of a path such as year=2013/month=1/"));
            };
            let text = percent_encoding::percent_decode_str(text).decode_utf8_lossy();
            let kind = arrow_type(kind);
            let value = match text.as_ref() {
                HIVE_NULL => ScalarValue::try_from(&kind),
                text => ScalarValue::try_from_string(text.to_owned(), &kind),
            };
            values.push(value.map_err(|_| {
                self.error(
                    "RM0508",
                    format!("`{name}={text}` in the path of `{}` is not {}", file.name(), logical_name(&kind)),
                )
                .fault(Fault::Data)
            })?);
        }
        Ok(values)
    }

    /// Row counts and bounds from Parquet footers, which the planner orders joins by.
    async fn with_statistics(
        &self,
        files: Vec<(ObjectStoreUrl, SchemaRef, PartitionedFile)>,
        found: &[Found],
        format: Format,
        reader: &Arc<dyn FileFormat>,
        table_schema: &SchemaRef,
    ) -> Result<Vec<(ObjectStoreUrl, SchemaRef, PartitionedFile)>, Diagnostic> {
        if format != Format::Parquet {
            return Ok(files);
        }
        let looks: Vec<BoxFuture<'_, Result<Statistics, Diagnostic>>> =
            found.iter().map(|file| self.statistics_of(file, format, reader, table_schema)).collect();
        let statistics: Vec<Statistics> = futures::stream::iter(looks).buffered(CONCURRENCY).try_collect().await?;
        Ok(files
            .into_iter()
            .zip(statistics)
            .map(|((store, schema, file), statistics)| (store, schema, file.with_statistics(Arc::new(statistics))))
            .collect())
    }

    fn statistics_of<'s>(
        &'s self,
        file: &'s Found,
        format: Format,
        reader: &'s Arc<dyn FileFormat>,
        table_schema: &'s SchemaRef,
    ) -> BoxFuture<'s, Result<Statistics, Diagnostic>> {
        async move {
            let meta = reader
                .infer_stats_and_ordering(self.state, &file.store, Arc::clone(table_schema), &file.meta)
                .await
                .map_err(|error| self.cannot_infer(file, format, &error))?;
            Ok(meta.statistics)
        }
        .boxed()
    }
}

fn nearest<'a>(name: &str, schema: &'a Schema) -> Option<&'a str> {
    schema
        .fields()
        .iter()
        .map(|field| (strsim::damerau_levenshtein(name, field.name()), field.name().as_str()))
        .filter(|(distance, _)| *distance <= name.len().max(3) / 3)
        .min()
        .map(|(_, name)| name)
}

/// Looks at every file again and says of the first that is not what it was.
pub async fn changed(files: &[SourceFile], runtime: &RuntimeEnv) -> Option<String> {
    let looks: Vec<BoxFuture<'_, Option<String>>> = files.iter().map(|file| change_of(file, runtime)).collect();
    let mut checks = futures::stream::iter(looks).buffered(CONCURRENCY);
    while let Some(check) = checks.next().await {
        if check.is_some() {
            return check;
        }
    }
    None
}

fn change_of<'a>(file: &'a SourceFile, runtime: &'a RuntimeEnv) -> BoxFuture<'a, Option<String>> {
    async move {
        let store = runtime.object_store(&file.store).ok()?;
        match store.head(&file.meta.location).await {
            Ok(now) => {
                let same = now.size == file.meta.size
                    && now.last_modified == file.meta.last_modified
                    && now.e_tag == file.meta.e_tag;
                (!same).then(|| format!("`/{}` was changed while it was read", file.meta.location))
            }
            Err(error) => Some(format!("`/{}` cannot be looked at again: {error}", file.meta.location)),
        }
    }
    .boxed()
}
