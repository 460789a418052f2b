//! How a sink writes: rows become a plan that writes files of its format to its staged place.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::common::config::{CsvOptions as WriterCsvOptions, JsonOptions};
use datafusion::common::parsers::CsvQuoteStyle;
use datafusion::datasource::file_format::FileFormatFactory;
use datafusion::datasource::file_format::csv::CsvFormatFactory;
use datafusion::datasource::file_format::format_as_file_type;
use datafusion::datasource::file_format::json::JsonFormatFactory;
use datafusion::datasource::file_format::parquet::ParquetFormatFactory;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, cast, lit, when};
use rowmill_spec::{Compression, Format};

use super::arrow_format::IpcFormatFactory;
use super::csv_text::as_fields;
use super::folders::FoldersFactory;
use super::printable::printable;
use super::publish::StagedSink;
use super::target::SinkTarget;
use crate::sources::files::HIVE_NULL;
use crate::sources::format::file_compression;

impl SinkTarget {
    /// `rows` written to the staged place.
    ///
    /// # Errors
    /// When the plan cannot be built.
    pub fn copy(&self, rows: LogicalPlan, staged: &StagedSink) -> Result<LogicalPlan> {
        let mut options = HashMap::new();
        let single = if self.is_directory() { "false" } else { "true" };
        options.insert("single_file_output".to_owned(), single.to_owned());
        let rows = self.as_written(self.with_folder_names(rows)?)?;
        let file_type = match self.partition_by.is_empty() {
            true => format_as_file_type(self.format_factory()),
            false => format_as_file_type(Arc::new(FoldersFactory::new(self.format_factory()))),
        };
        LogicalPlanBuilder::copy_to(rows, staged.url.clone(), file_type, options, self.partition_by.clone())?.build()
    }

    /// Partition columns as the texts that name folders: null becomes what Hive writes for it, where the writer would
    /// take whatever lies under the null.
    fn with_folder_names(&self, rows: LogicalPlan) -> Result<LogicalPlan> {
        if self.partition_by.is_empty() {
            return Ok(rows);
        }
        let columns: Vec<Expr> = rows
            .schema()
            .columns()
            .into_iter()
            .map(|column| {
                let name = column.name.clone();
                let value = Expr::Column(column);
                if !self.partition_by.contains(&name) {
                    return Ok(value);
                }
                let text = cast(value.clone(), DataType::Utf8);
                Ok(when(value.is_null(), lit(HIVE_NULL)).otherwise(text)?.alias(name))
            })
            .collect::<Result<_>>()?;
        LogicalPlanBuilder::from(rows).project(columns)?.build()
    }

    fn as_written(&self, rows: LogicalPlan) -> Result<LogicalPlan> {
        match self.format {
            Format::Csv => as_fields(rows, &self.csv, &self.partition_by),
            Format::Json => printable(rows),
            Format::Parquet | Format::Arrow => Ok(rows),
        }
    }

    /// `rows`, of which there are none, as the one file of a staged directory.
    ///
    /// # Errors
    /// When the plan cannot be built.
    pub fn copy_empty(&self, rows: LogicalPlan, staged: &StagedSink) -> Result<LogicalPlan> {
        let mut url = staged.url.clone();
        for column in &self.partition_by {
            url.push_str(&format!("{column}={HIVE_NULL}/"));
        }
        url.push_str(&format!("part_0.{}", self.extension()));
        let rows = self.as_written(rows)?;
        let options = HashMap::from([("single_file_output".to_owned(), "true".to_owned())]);
        LogicalPlanBuilder::copy_to(rows, url, format_as_file_type(self.format_factory()), options, Vec::new())?.build()
    }

    fn format_factory(&self) -> Arc<dyn FileFormatFactory> {
        let compression = file_compression(Some(self.compression));
        match self.format {
            Format::Parquet => {
                let mut options = datafusion::common::config::TableParquetOptions::default();
                options.global.compression = Some(
                    match self.compression {
                        Compression::None => "uncompressed",
                        Compression::Gzip => "gzip(6)",
                        Compression::Snappy => "snappy",
                        Compression::Lz4 => "lz4_raw",
                        _ => "zstd(3)",
                    }
                    .to_owned(),
                );
                Arc::new(ParquetFormatFactory::new_with_options(options))
            }
            Format::Arrow => Arc::new(IpcFormatFactory::new(self.compression)),
            Format::Json => {
                Arc::new(JsonFormatFactory::new_with_options(JsonOptions { compression, ..JsonOptions::default() }))
            }
            Format::Csv => Arc::new(CsvFormatFactory::new_with_options(WriterCsvOptions {
                has_header: Some(self.csv.header),
                delimiter: self.csv.delimiter,
                quote: self.csv.quote,
                // Text comes quoted where it must be.
                quote_style: CsvQuoteStyle::Never,
                null_value: self.csv.null.clone(),
                compression,
                ..WriterCsvOptions::default()
            })),
        }
    }
}
