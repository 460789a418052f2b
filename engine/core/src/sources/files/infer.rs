//! The columns of files: as they say, as their first rows look, or as they are declared.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::common::{DataFusionError, Statistics};
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::execution::object_store::ObjectStoreUrl;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::ObjectStoreExt as _;
use rowmill_spec::{Compression, Diagnostic, Fault, Format, SchemaPolicy};

use super::open::Opener;
use super::{CONCURRENCY, Found};
use crate::sources::format::{self, file_compression, word};
use crate::sources::schema::{Disagreement, unite};
use crate::types::{declared_schema, logical_name, widen};

impl Opener<'_> {
    /// The schema of each file, as it says or as its first rows look.
    pub(super) async fn schemas(
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
            if format == Format::Parquet {
                self.check_footer(file).await?;
            }
            let inferred = match format == Format::Csv && file.location.is_local() {
                true => self.infer_csv(file, compression).await,
                false => reader.infer_schema(self.state, &file.store, std::slice::from_ref(&file.meta)).await,
            };
            let schema = inferred.map_err(|error| self.cannot_infer(file, format, &error))?;
            self.check_names(file, &schema)?;
            Ok(schema)
        }
        .boxed()
    }

    /// Sees that the end of a Parquet file says where its metadata is, and that it is in the file: DataFusion takes it
    /// at its word, and panics.
    async fn check_footer(&self, file: &Found) -> Result<(), Diagnostic> {
        const TAIL: u64 = 8;
        let broken = |reason: &str| {
            self.unreadable(file, reason).help("it was probably cut off or written over; write it again")
        };
        let size = file.meta.size;
        if size < 4 + TAIL {
            return Err(broken(&format!("a parquet file has 12 bytes at least, and it has {size}")));
        }
        let tail = file
            .store
            .get_range(&file.meta.location, size - TAIL..size)
            .await
            .map_err(|error| self.unreadable(file, &error.to_string()).fault(Fault::Environment))?;
        let (length, magic) = tail.split_at(tail.len().min(4));
        if magic != b"PAR1" && magic != b"PARE" {
            return Err(self
                .unreadable(file, "it does not end as a parquet file does")
                .help("is it really a parquet file? `format:` says what it is where its name does not"));
        }
        let length = length.iter().rev().fold(0_u64, |length, byte| length << 8 | u64::from(*byte));
        match length + TAIL + 4 <= size {
            true => Ok(()),
            false => Err(broken(&format!("its metadata would be {length} bytes long, and it has {size}"))),
        }
    }

    /// Types from the first rows of a CSV file. DataFusion cuts the file at line breaks first, and so stumbles over
    /// those inside quotes; a file of this machine is read as a stream instead.
    async fn infer_csv(&self, file: &Found, compression: Option<Compression>) -> Result<SchemaRef, DataFusionError> {
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
            let compression = FileCompressionType::from(file_compression(compression));
            let plain = compression.convert_read(std::io::BufReader::new(std::fs::File::open(path)?))?;
            let plain = std::io::BufReader::with_capacity(1 << 20, plain);
            let schema = format.infer_schema(plain, Some(csv.infer_rows))?.0;
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

    pub(super) fn cannot_infer(&self, file: &Found, format: Format, error: &DataFusionError) -> Diagnostic {
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
    pub(super) fn table_schema(
        &self,
        found: &[Found],
        schemas: &[SchemaRef],
        format: Format,
    ) -> Result<SchemaRef, Diagnostic> {
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
    pub(super) fn read_schema(&self, file: &SchemaRef, table: &SchemaRef, format: Format) -> SchemaRef {
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

    /// Row counts and bounds from Parquet footers, which the planner orders joins by.
    pub(super) async fn with_statistics(
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
