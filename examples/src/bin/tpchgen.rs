//! `rowmill-tpchgen`: the TPC-H tables as Parquet files, for the examples and the benches.
//!
//! The rows come from the `tpchgen` crates, whose output is that of TPC's own `dbgen`. This binary adds the files:
//! tables and parts are made in parallel, everything is written aside first, and each table is moved into place
//! whole, so that a reader never finds half a table.
//!
//! ```text
//!  tables × parts ──▶ workers ──▶ DIR/.rowmill-tpchgen-XXXXXX/  ──rename──▶ DIR/lineitem.parquet        (one part)
//!                                                                           DIR/lineitem.parquet/part-*  (several)
//! ```

use std::fs::{self, File};
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use clap::{Parser, ValueEnum};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression as Codec, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator, PartSuppGenerator,
    RegionGenerator, SupplierGenerator,
};
use tpchgen_arrow::{
    CustomerArrow, LineItemArrow, NationArrow, OrderArrow, PartArrow, PartSuppArrow, RecordBatchIterator, RegionArrow,
    SupplierArrow,
};

/// Rows that the generators hand over at once.
const BATCH_ROWS: usize = 8_192;
/// Below it the specification's proportions (a third of the customers without orders) no longer hold.
const SCALE_MIN: f64 = 0.001;
/// The largest scale that the specification knows.
const SCALE_MAX: f64 = 100_000.0;

/// Write the TPC-H tables as Parquet files.
#[derive(Debug, Parser)]
#[command(name = "rowmill-tpchgen", version)]
struct Options {
    /// Scale factor: 1 is six million lines of orders, about 1 GB as text.
    #[arg(long, default_value = "1", value_parser = parse_scale)]
    scale: f64,
    /// Directory to write to; made if it is missing. Tables that are there already are replaced.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Tables to write, separated by commas.
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Table::value_variants().to_vec())]
    tables: Vec<Table>,
    /// Files a table. With more than one, a table is a directory `TABLE.parquet/` of `part-*.parquet` files;
    /// nation and region are always one file.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=10_000))]
    parts: i32,
    /// Rows in a row group: what one reader takes at a time.
    #[arg(long, value_name = "ROWS", default_value = "983040")]
    row_group_rows: NonZeroUsize,
    /// Compression of the pages.
    #[arg(long, value_enum, default_value_t = Compression::Zstd)]
    compression: Compression,
    /// Declare texts as plain Arrow strings, for readers that do not know string views.
    #[arg(long)]
    plain_strings: bool,
    /// Worker threads; as many as there are cores where absent.
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

/// A table, largest first: the workers take them in this order, so that the longest job starts at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Table {
    Lineitem,
    Orders,
    Partsupp,
    Customer,
    Part,
    Supplier,
    Nation,
    Region,
}

/// Compression of Parquet pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Compression {
    Zstd,
    Snappy,
    None,
}

/// What went wrong; each names the path and what to do.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot {doing} `{path}`: {source}")]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot write Parquet to `{path}`: {source}")]
    Parquet { path: PathBuf, source: ParquetError },
    #[error("cannot turn the texts of `{path}` into plain strings: {source}")]
    Cast { path: PathBuf, source: ArrowError },
    #[error(
        "`{path}` is a directory that holds `{found}`, which this program did not write; \
             move it away or choose another --out"
    )]
    Foreign { path: PathBuf, found: String },
}

impl Error {
    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { doing, path, source }
    }
}

/// One file to write.
struct Job {
    table: Table,
    /// From 1.
    part: i32,
    parts: i32,
    path: PathBuf,
}

/// What was written for one table.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Written {
    files: usize,
    rows: usize,
    bytes: u64,
    /// Worker time, summed over the files.
    busy: Duration,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let start = Instant::now();
    match generate(&options) {
        Ok(tables) => {
            for (table, written) in &tables {
                let Written { files, rows, bytes, busy } = *written;
                println!(
                    "{:<9} {rows:>13} rows  {files:>5} files  {:>9.1} MB  {:>7.2} s",
                    table.name(),
                    bytes as f64 / 1e6,
                    busy.as_secs_f64()
                );
            }
            println!("scale {} in `{}`, {:.2} s", options.scale, options.out.display(), start.elapsed().as_secs_f64());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Writes the tables that `options` asks for and moves them into place; on an error nothing in `out` has changed,
/// unless it is the last move itself that failed.
fn generate(options: &Options) -> Result<Vec<(Table, Written)>, Error> {
    let mut tables = options.tables.clone();
    tables.sort();
    tables.dedup();

    fs::create_dir_all(&options.out).map_err(Error::io("make directory", &options.out))?;
    for table in &tables {
        check_replaceable(&options.out.join(table.file_name()))?;
    }
    // Beside the targets, so that the move is a rename within one file system; removed when dropped.
    let staging = tempfile::Builder::new()
        .prefix(".rowmill-tpchgen-")
        .tempdir_in(&options.out)
        .map_err(Error::io("write in directory", &options.out))?;
    let jobs = plan(&tables, options.parts, staging.path())?;
    let threads = options.threads.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    let done = work(&jobs, threads.min(jobs.len()), options)?;

    let mut written = Vec::with_capacity(tables.len());
    for table in tables {
        let target = options.out.join(table.file_name());
        install(&staging.path().join(table.file_name()), &target, &staging.path().join("replaced"))?;
        let mut sum = Written::default();
        for (_, one) in jobs.iter().zip(&done).filter(|(job, _)| job.table == table) {
            sum.files += one.files;
            sum.rows += one.rows;
            sum.bytes += one.bytes;
            sum.busy += one.busy;
        }
        written.push((table, sum));
    }
    Ok(written)
}

/// Lists the files to write under `staging`, and makes the directories of tables with several.
fn plan(tables: &[Table], parts: i32, staging: &Path) -> Result<Vec<Job>, Error> {
    let mut jobs = Vec::new();
    for &table in tables {
        let path = staging.join(table.file_name());
        let parts = if table.is_fixed() { 1 } else { parts };
        if parts == 1 {
            jobs.push(Job { table, part: 1, parts, path });
            continue;
        }
        fs::create_dir(&path).map_err(Error::io("make directory", &path))?;
        for part in 1..=parts {
            jobs.push(Job { table, part, parts, path: path.join(format!("part-{part:05}.parquet")) });
        }
    }
    Ok(jobs)
}

/// Does all jobs on `threads` threads; the first error stops the rest. The results are in the order of the jobs.
fn work(jobs: &[Job], threads: usize, options: &Options) -> Result<Vec<Written>, Error> {
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let worker = || {
        let mut mine = Vec::new();
        while !failed.load(Ordering::Relaxed) {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(job) = jobs.get(at) else { break };
            let result = write(job, options, &failed);
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            mine.push((at, result));
        }
        mine
    };
    let mut results = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        let mut results = Vec::with_capacity(jobs.len());
        for worker in workers {
            match worker.join() {
                Ok(mine) => results.extend(mine),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        results
    });
    results.sort_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Writes one file, and gives up early once another worker has failed.
fn write(job: &Job, options: &Options, failed: &AtomicBool) -> Result<Written, Error> {
    let start = Instant::now();
    let parquet_error = |source| Error::Parquet { path: job.path.clone(), source };
    let batches = job.table.batches(options.scale, job.part, job.parts);
    let schema = if options.plain_strings { plain_schema(batches.schema()) } else { Arc::clone(batches.schema()) };
    let properties = WriterProperties::builder()
        .set_compression(match options.compression {
            Compression::Zstd => Codec::ZSTD(ZstdLevel::default()),
            Compression::Snappy => Codec::SNAPPY,
            Compression::None => Codec::UNCOMPRESSED,
        })
        .set_max_row_group_row_count(Some(options.row_group_rows.get()))
        .build();
    let file = File::create_new(&job.path).map_err(Error::io("create", &job.path))?;
    let mut writer = ArrowWriter::try_new(&file, Arc::clone(&schema), Some(properties)).map_err(parquet_error)?;
    let mut rows = 0;
    for batch in batches {
        if failed.load(Ordering::Relaxed) {
            break;
        }
        let batch = if options.plain_strings {
            plain_batch(&batch, &schema).map_err(|source| Error::Cast { path: job.path.clone(), source })?
        } else {
            batch
        };
        rows += batch.num_rows();
        writer.write(&batch).map_err(parquet_error)?;
    }
    writer.close().map_err(parquet_error)?;
    // Before the rename, so that a crash cannot leave a table in place whose bytes are not.
    file.sync_all().map_err(Error::io("write", &job.path))?;
    let bytes = file.metadata().map_err(Error::io("read the size of", &job.path))?.len();
    Ok(Written { files: 1, rows, bytes, busy: start.elapsed() })
}

impl Table {
    /// Its name in the specification.
    fn name(self) -> &'static str {
        match self {
            Table::Lineitem => "lineitem",
            Table::Orders => "orders",
            Table::Partsupp => "partsupp",
            Table::Customer => "customer",
            Table::Part => "part",
            Table::Supplier => "supplier",
            Table::Nation => "nation",
            Table::Region => "region",
        }
    }

    fn file_name(self) -> String {
        format!("{}.parquet", self.name())
    }

    /// Whether it has the same few rows at every scale. The generators of such tables ignore the part.
    fn is_fixed(self) -> bool {
        matches!(self, Table::Nation | Table::Region)
    }

    /// The rows of one part.
    fn batches(self, scale: f64, part: i32, parts: i32) -> Box<dyn RecordBatchIterator> {
        macro_rules! batches {
            ($arrow:ident, $generator:ident) => {
                Box::new($arrow::new($generator::new(scale, part, parts)).with_batch_size(BATCH_ROWS))
            };
        }
        match self {
            Table::Lineitem => batches!(LineItemArrow, LineItemGenerator),
            Table::Orders => batches!(OrderArrow, OrderGenerator),
            Table::Partsupp => batches!(PartSuppArrow, PartSuppGenerator),
            Table::Customer => batches!(CustomerArrow, CustomerGenerator),
            Table::Part => batches!(PartArrow, PartGenerator),
            Table::Supplier => batches!(SupplierArrow, SupplierGenerator),
            Table::Nation => batches!(NationArrow, NationGenerator),
            Table::Region => batches!(RegionArrow, RegionGenerator),
        }
    }
}

/// The same columns with string views as plain strings.
fn plain_schema(schema: &SchemaRef) -> SchemaRef {
    let plain = |field: &Arc<Field>| match field.data_type() {
        DataType::Utf8View => Arc::new(field.as_ref().clone().with_data_type(DataType::Utf8)),
        _ => Arc::clone(field),
    };
    Arc::new(Schema::new(schema.fields().iter().map(plain).collect::<Vec<_>>()))
}

fn plain_batch(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let columns = batch.columns().iter().zip(schema.fields()).map(|(column, field)| cast(column, field.data_type()));
    RecordBatch::try_new(Arc::clone(schema), columns.collect::<Result<_, _>>()?)
}

/// Refuses to replace a directory unless it holds nothing but the parts of an earlier run.
fn check_replaceable(target: &Path) -> Result<(), Error> {
    if !target.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(target).map_err(Error::io("list", target))? {
        let found = entry.map_err(Error::io("list", target))?.file_name().to_string_lossy().into_owned();
        if !(found.starts_with("part-") && found.ends_with(".parquet")) {
            return Err(Error::Foreign { path: target.to_owned(), found });
        }
    }
    Ok(())
}

/// Moves `staged` to `target`; what was there goes to `replaced`, or is gone where one file replaces another.
fn install(staged: &Path, target: &Path, replaced: &Path) -> Result<(), Error> {
    let moved = if !target.is_dir() && (staged.is_file() || !target.exists()) {
        fs::rename(staged, target)
    } else {
        exchange(staged, target).or_else(|_| {
            // No atomic exchange on this system: for a moment there is no table, but never half a one.
            fs::rename(target, replaced)?;
            fs::rename(staged, target)
        })
    };
    moved.map_err(Error::io("move the new table to", target))?;
    if replaced.is_dir() {
        fs::remove_dir_all(replaced).map_err(Error::io("remove", replaced))?;
    } else if replaced.exists() {
        fs::remove_file(replaced).map_err(Error::io("remove", replaced))?;
    }
    Ok(())
}

#[cfg(any(target_os = "linux", target_vendor = "apple"))]
fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?)
}

#[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
fn exchange(_one: &Path, _other: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

fn parse_scale(text: &str) -> Result<f64, String> {
    let scale: f64 = text.parse().map_err(|_| "expected a number such as 0.01, 1 or 10".to_owned())?;
    if !(SCALE_MIN..=SCALE_MAX).contains(&scale) {
        return Err(format!("expected a scale factor from {SCALE_MIN} to {SCALE_MAX}"));
    }
    Ok(scale)
}

#[cfg(test)]
mod tests {
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    use super::*;

    /// All rows of a table, whether it is a file or a directory, as one batch.
    fn read(path: &Path) -> RecordBatch {
        let mut files = vec![path.to_owned()];
        if path.is_dir() {
            files = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
            files.sort();
        }
        let mut batches = Vec::new();
        for file in files {
            let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(file).unwrap()).unwrap().build().unwrap();
            batches.extend(reader.map(Result::unwrap));
        }
        arrow::compute::concat_batches(&batches[0].schema(), &batches).unwrap()
    }

    fn options(arguments: &[&str]) -> Options {
        Options::try_parse_from(["rowmill-tpchgen"].iter().chain(arguments)).unwrap()
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn every_table_has_the_rows_of_the_specification() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().to_str().unwrap();
        let written = generate(&options(&["--scale", "0.001", "--out", out])).unwrap();
        let rows: Vec<_> = written.iter().map(|(table, written)| (table.name(), written.rows)).collect();
        let expected = [
            ("lineitem", 6005),
            ("orders", 1500),
            ("partsupp", 800),
            ("customer", 150),
            ("part", 200),
            ("supplier", 10),
            ("nation", 25),
            ("region", 5),
        ];
        assert_eq!(rows, expected);
        for (table, written) in &written {
            let path = folder.path().join(table.file_name());
            assert_eq!(read(&path).num_rows(), written.rows);
            assert_eq!(fs::metadata(&path).unwrap().len(), written.bytes);
        }
        assert_eq!(names(folder.path()).len(), 8, "the staging directory is gone");
    }

    #[test]
    fn parts_and_row_groups_do_not_change_the_rows() {
        let folder = tempfile::tempdir().unwrap();
        let (one, many) = (folder.path().join("one"), folder.path().join("many"));
        let common = ["--scale", "0.002", "--tables", "orders,nation,orders"];
        generate(&options(&[&common[..], &["--out", one.to_str().unwrap()]].concat())).unwrap();
        let split = ["--parts", "3", "--row-group-rows", "100", "--compression", "snappy", "--threads", "2"];
        let written = generate(&options(&[&common[..], &split, &["--out", many.to_str().unwrap()]].concat())).unwrap();
        assert_eq!(written.iter().map(|(_, written)| written.files).collect::<Vec<_>>(), [3, 1]);
        assert_eq!(names(&many), ["nation.parquet", "orders.parquet"]);
        assert_eq!(read(&one.join("orders.parquet")), read(&many.join("orders.parquet")));
        let part = File::open(many.join("orders.parquet/part-00002.parquet")).unwrap();
        let metadata = ParquetRecordBatchReaderBuilder::try_new(part).unwrap().metadata().clone();
        assert_eq!(metadata.num_row_groups(), 10);
        assert!(matches!(metadata.row_group(0).column(0).compression(), Codec::SNAPPY));
    }

    #[test]
    fn plain_strings_change_the_type_and_not_the_texts() {
        let folder = tempfile::tempdir().unwrap();
        let (views, plain) = (folder.path().join("views"), folder.path().join("plain"));
        let common = ["--scale", "0.001", "--tables", "supplier"];
        generate(&options(&[&common[..], &["--out", views.to_str().unwrap()]].concat())).unwrap();
        generate(&options(&[&common[..], &["--plain-strings", "--out", plain.to_str().unwrap()]].concat())).unwrap();
        let (views, plain) = (read(&views.join("supplier.parquet")), read(&plain.join("supplier.parquet")));
        let name = |batch: &RecordBatch| batch.schema().field_with_name("s_name").unwrap().data_type().clone();
        assert_eq!(name(&views), DataType::Utf8View);
        assert_eq!(name(&plain), DataType::Utf8);
        assert_eq!(plain_batch(&views, &plain.schema()).unwrap(), plain);
    }

    #[test]
    fn files_and_directories_replace_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().to_str().unwrap();
        let target = folder.path().join("supplier.parquet");
        for (parts, scale, rows) in [("1", "0.001", 10), ("2", "0.002", 20), ("3", "0.003", 30), ("1", "0.001", 10)] {
            let arguments = ["--scale", scale, "--out", out, "--tables", "supplier", "--parts", parts];
            generate(&options(&arguments)).unwrap();
            assert_eq!(read(&target).num_rows(), rows);
            assert_eq!(target.is_dir(), parts != "1");
            assert_eq!(names(folder.path()), ["supplier.parquet"]);
        }
    }

    #[test]
    fn a_directory_of_someone_else_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let theirs = folder.path().join("region.parquet");
        fs::create_dir(&theirs).unwrap();
        fs::write(theirs.join("thesis.txt"), "years of work").unwrap();
        let error = generate(&options(&["--scale", "0.001", "--out", folder.path().to_str().unwrap()])).unwrap_err();
        assert!(matches!(&error, Error::Foreign { found, .. } if found == "thesis.txt"), "{error}");
        assert_eq!(names(folder.path()), ["region.parquet"], "nothing else was written");
    }

    #[test]
    fn bad_options_are_refused() {
        for bad in [
            &["--scale", "0"][..],
            &["--scale", "-1"],
            &["--scale", "NaN"],
            &["--scale", "inf"],
            &["--scale", "much"],
            &["--parts", "0"],
            &["--row-group-rows", "0"],
            &["--tables", "lineitems"],
            &["--threads", "0"],
        ] {
            let arguments = [&["rowmill-tpchgen", "--out", "x"], bad].concat();
            assert!(Options::try_parse_from(arguments).is_err(), "{bad:?}");
        }
        assert!(Options::try_parse_from(["rowmill-tpchgen"]).is_err(), "--out is required");
    }

    #[test]
    fn an_out_that_is_a_file_is_named_in_the_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("taken");
        fs::write(&file, "").unwrap();
        let error = generate(&options(&["--scale", "0.001", "--out", file.to_str().unwrap()])).unwrap_err();
        assert!(error.to_string().contains("taken"), "{error}");
    }
}
