//! Formats: told from a file name, and as DataFusion's readers.

use std::sync::Arc;

use datafusion::common::config::{CsvOptions as ReaderCsvOptions, JsonOptions, TableParquetOptions};
use datafusion::common::parsers::CompressionTypeVariant;
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::file_format::arrow::ArrowFormat;
use datafusion::datasource::file_format::csv::CsvFormat;
use datafusion::datasource::file_format::json::JsonFormat;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use rowmill_json::ExactJsonFormat;
use rowmill_spec::{Compression, CsvOptions, Format};

/// The format and compression that a file name tells: `x.parquet`, `x.csv.gz`, `x.jsonl.zst`. Either may be absent.
pub fn from_name(name: &str) -> (Option<Format>, Option<Compression>) {
    let name = name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase();
    let mut endings = name.rsplit('.');
    let Some(mut ending) = endings.next().filter(|ending| ending.len() < name.len()) else { return (None, None) };
    let compression = match ending {
        "gz" | "gzip" => Some(Compression::Gzip),
        "zst" | "zstd" => Some(Compression::Zstd),
        "bz2" => Some(Compression::Bzip2),
        "xz" => Some(Compression::Xz),
        _ => None,
    };
    if compression.is_some() {
        ending = endings.next().unwrap_or("");
    }
    let format = match ending {
        "parquet" | "parq" | "pq" => Some(Format::Parquet),
        "csv" | "tsv" => Some(Format::Csv),
        "json" | "jsonl" | "ndjson" => Some(Format::Json),
        "arrow" | "ipc" | "feather" => Some(Format::Arrow),
        _ => None,
    };
    (format, compression)
}

/// The word for a format in a workflow's text.
pub fn word(format: Format) -> &'static str {
    match format {
        Format::Parquet => "parquet",
        Format::Csv => "csv",
        Format::Json => "json",
        Format::Arrow => "arrow",
    }
}

/// The whole-file compression, where the format has one.
pub fn file_compression(compression: Option<Compression>) -> CompressionTypeVariant {
    match compression {
        Some(Compression::Gzip) => CompressionTypeVariant::GZIP,
        Some(Compression::Zstd) => CompressionTypeVariant::ZSTD,
        Some(Compression::Bzip2) => CompressionTypeVariant::BZIP2,
        Some(Compression::Xz) => CompressionTypeVariant::XZ,
        _ => CompressionTypeVariant::UNCOMPRESSED,
    }
}

/// The reader of a format. `split` says whether a CSV file may be read by several tasks.
pub fn reader(
    format: Format,
    compression: Option<Compression>,
    csv: &CsvOptions,
    parquet: &TableParquetOptions,
    split: bool,
) -> Arc<dyn FileFormat> {
    match format {
        Format::Parquet => Arc::new(ParquetFormat::default().with_options(parquet.clone())),
        Format::Arrow => Arc::new(ArrowFormat),
        Format::Json => Arc::new(ExactJsonFormat::new(JsonFormat::default().with_options(JsonOptions {
            compression: file_compression(compression),
            schema_infer_max_rec: Some(csv.infer_rows),
            ..JsonOptions::default()
        }))),
        Format::Csv => Arc::new(CsvFormat::default().with_options(ReaderCsvOptions {
            has_header: Some(csv.header),
            delimiter: csv.delimiter,
            quote: csv.quote,
            escape: csv.escape,
            comment: csv.comment,
            newlines_in_values: Some(!split),
            compression: file_compression(compression),
            schema_infer_max_rec: Some(csv.infer_rows),
            null_regex: csv.null.as_ref().map(|null| null_expression(null)),
            ..ReaderCsvOptions::default()
        })),
    }
}

/// What matches a field that is null: the text, or nothing.
fn null_expression(null: &str) -> String {
    format!("^({}|)$", regex_escape(null))
}

/// The same, compiled.
///
/// # Errors
/// When the text makes no expression, which escaping rules out.
pub fn null_pattern(null: &str) -> datafusion::common::Result<regex::Regex> {
    regex::Regex::new(&null_expression(null))
        .map_err(|error| datafusion::common::DataFusionError::External(Box::new(error)))
}

fn regex_escape(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_alphanumeric() { vec![c] } else { vec!['\\', c] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_format_and_compression() {
        assert_eq!(from_name("a/b.c/x.csv.gz"), (Some(Format::Csv), Some(Compression::Gzip)));
        assert_eq!(from_name("x.PARQUET"), (Some(Format::Parquet), None));
        assert_eq!(from_name("x.jsonl.zst"), (Some(Format::Json), Some(Compression::Zstd)));
        assert_eq!(from_name("x"), (None, None));
        assert_eq!(from_name("csv"), (None, None));
        assert_eq!(from_name("x.gz"), (None, Some(Compression::Gzip)));
    }
}
