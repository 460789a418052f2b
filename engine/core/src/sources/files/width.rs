//! How wide rows are: by it a scan chooses how many of them make a batch.

use std::io::Read as _;

use arrow::datatypes::SchemaRef;
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use datafusion::datasource::physical_plan::parquet::metadata::DFParquetMetadata;
use rowmill_spec::{Compression, Diagnostic, Format};

use super::Found;
use super::open::Opener;
use crate::sources::format::file_compression;
use crate::sources::table::RowWidth;

/// Bytes at the beginning of a text file that are looked at.
const SAMPLE_BYTES: u64 = 256 << 10;
/// Text files that are looked at.
const SAMPLES: usize = 4;

impl Opener<'_> {
    /// Bytes of each column by the footers, of the file where it is widest. What a footer says of text before it was
    /// encoded counts for more than the size of its pages: a dictionary holds each text once.
    pub(super) async fn parquet_width(&self, found: &[Found], table: &SchemaRef) -> Result<RowWidth, Diagnostic> {
        let mut columns = vec![0; table.fields().len()];
        for file in found {
            let cache = self.state.runtime_env().cache_manager.get_file_metadata_cache();
            let metadata =
                DFParquetMetadata::new(file.store.as_ref(), &file.meta).with_file_metadata_cache(Some(cache));
            let metadata =
                metadata.fetch_metadata().await.map_err(|error| self.cannot_infer(file, Format::Parquet, &error))?;
            let mut bytes = vec![0; columns.len()];
            let mut rows = 0;
            for group in metadata.row_groups() {
                rows += group.num_rows().max(0) as usize;
                for column in group.columns() {
                    let name = column.column_path().parts().first().map_or("", String::as_str);
                    let Some(of_column) = table.index_of(name).ok().and_then(|at| bytes.get_mut(at)) else { continue };
                    let plain = column.unencoded_byte_array_data_bytes().unwrap_or(0);
                    *of_column += plain.max(column.uncompressed_size()).max(0) as usize;
                }
            }
            for (widest, bytes) in columns.iter_mut().zip(bytes) {
                *widest = (*widest).max(bytes / rows.max(1));
            }
        }
        Ok(RowWidth { columns, text: 0 })
    }

    /// Bytes of a line, by the first lines of the first files. Files of other machines are not looked at.
    pub(super) async fn text_width(&self, found: &[Found], compression: Option<Compression>) -> RowWidth {
        let paths: Vec<_> =
            found.iter().filter(|file| file.location.is_local()).map(Found::name).take(SAMPLES).collect();
        let compression = FileCompressionType::from(file_compression(compression));
        let looked = tokio::task::spawn_blocking(move || {
            let widths = paths.iter().map(|path| {
                let mut sample = Vec::new();
                // What cannot be read is told when it is read.
                let file = std::fs::File::open(path).ok()?;
                let plain = compression.convert_read(std::io::BufReader::new(file)).ok()?;
                plain.take(SAMPLE_BYTES).read_to_end(&mut sample).ok()?;
                Some(sample.len() / memchr::memchr_iter(b'\n', &sample).count().max(1))
            });
            widths.flatten().max().unwrap_or(0)
        });
        RowWidth { columns: Vec::new(), text: looked.await.unwrap_or(0) }
    }
}
