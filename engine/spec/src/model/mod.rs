//! The typed workflow: what every form (YAML, SQL file, builder) compiles to.
//!
//! The model says what was written, with spans, and nothing more: names are not resolved, SQL is not parsed, paths
//! are not looked at. Only settings that the engine obeys are here; a reader refuses every other key.

use std::sync::Arc;

use indexmap::IndexMap;

use crate::diagnostic::Diagnostic;
use crate::span::{MappedText, Spanned, Texts};
use crate::template::Template;
use crate::types::{LogicalType, Value};

/// Implements the words by which an enumeration stands in a workflow's text.
macro_rules! words {
    ($kind:ident { $($variant:ident = $word:literal),* $(,)? }) => {
        impl $kind {
            /// Every word, in the order of the variants.
            pub const WORDS: &'static [&'static str] = &[$($word),*];

            /// The word in a workflow's text.
            pub fn as_str(self) -> &'static str {
                match self {
                    $($kind::$variant => $word,)*
                }
            }

            /// The variant of a word; `None` where there is none.
            pub fn from_word(word: &str) -> Option<Self> {
                match word {
                    $($word => Some($kind::$variant),)*
                    _ => None,
                }
            }
        }

        impl std::fmt::Display for $kind {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

mod computed;
mod items;
mod steps;

pub use computed::{GpuStep, Metric, ModelDevice, ModelStep, TopK};
pub use items::{
    BatchSize, CachePolicy, CacheTier, Effects, FAILURE_CODES, ItemPolicy, Jitter, MaxErrors, OnError, Retry, RowOrder,
};
pub use steps::{
    CommandFormat, CommandStep, HttpBody, HttpMany, HttpStep, JsonTemplate, Limit, LookupStep, Matches, OnMissing,
    OutputColumn, PythonGiven, PythonStep, Rate, ResponseColumn, ResponseSource, ResultMatch,
};

/// A workflow: a named DAG of steps between sources and sinks.
#[derive(Debug, Clone)]
pub struct Workflow {
    /// Its name: letters, digits, `-` and `_`.
    pub name: Spanned<String>,
    /// A sentence about it.
    pub description: Option<String>,
    /// What differs between runs.
    pub params: IndexMap<String, Param>,
    /// What differs between environments.
    pub vars: IndexMap<String, Variable>,
    /// Where rows come from.
    pub sources: IndexMap<String, Source>,
    /// What is done with them.
    pub steps: IndexMap<String, Step>,
    /// Where results go.
    pub sinks: IndexMap<String, Sink>,
    /// Whether runs of it are durable: what was done is kept, and a run that was cut off can go on.
    pub durable: bool,
    /// The texts that the spans point into.
    pub texts: Arc<Texts>,
    /// What a person should look at, though the workflow can run.
    pub warnings: Vec<Diagnostic>,
}

/// A parameter of a run, given by `--set name=value`.
#[derive(Debug, Clone)]
pub struct Param {
    /// Its name.
    pub name: Spanned<String>,
    /// Its type; a value that does not parse as it is an error.
    pub kind: Spanned<LogicalType>,
    /// The value when none is given; a parameter without one must be set.
    pub default: Option<Spanned<Value>>,
    /// A sentence for people.
    pub description: Option<String>,
}

/// A variable of an environment, given by `--vars file`.
#[derive(Debug, Clone)]
pub struct Variable {
    /// Its name.
    pub name: Spanned<String>,
    /// Its type.
    pub kind: Spanned<LogicalType>,
    /// The value when none is given.
    pub default: Option<Spanned<Value>>,
    /// A sentence for people.
    pub description: Option<String>,
}

/// A source: rows from files, from a generator, or from the program that runs the workflow.
#[derive(Debug, Clone)]
pub struct Source {
    /// Its name, which SQL steps select from.
    pub name: Spanned<String>,
    /// Where its rows come from.
    pub kind: SourceKind,
    /// A sentence for people.
    pub description: Option<String>,
}

/// Where the rows of a source come from.
#[derive(Debug, Clone)]
pub enum SourceKind {
    /// Files: `path: data/*.parquet`.
    Files(Box<FileSource>),
    /// `range: {start: 0, end: 1000000}`: one `int64` column `value`, generated in parallel.
    Range {
        /// First value.
        start: Spanned<i64>,
        /// One past the last value.
        end: Spanned<i64>,
    },
    /// Batches that the embedding program provides under the source's name (builder only).
    Provided,
}

/// Files of one format.
#[derive(Debug, Clone)]
pub struct FileSource {
    /// Paths or URLs: a file, a directory (ending in `/` or found to be one), or a glob.
    pub paths: Vec<Template>,
    /// The format; told by the file name where absent.
    pub format: Option<Spanned<Format>>,
    /// Compression of text formats; told by the file name where absent.
    pub compression: Option<Spanned<Compression>>,
    /// Columns and types, where they are declared rather than inferred.
    pub schema: Option<IndexMap<String, Spanned<LogicalType>>>,
    /// What to do when files disagree about the schema.
    pub schema_policy: Spanned<SchemaPolicy>,
    /// Hive partition columns found in directory names (`year=2013/`), with their types.
    pub partitions: IndexMap<String, Spanned<LogicalType>>,
    /// How CSV is written.
    pub csv: CsvOptions,
}

/// A file format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// Apache Parquet.
    Parquet,
    /// Comma-separated values.
    Csv,
    /// One JSON object a line.
    Json,
    /// Arrow IPC file.
    Arrow,
}

/// Compression: of the whole file for CSV and JSON, of pages for Parquet, of buffers for Arrow IPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// None.
    None,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
    /// bzip2 (text formats only).
    Bzip2,
    /// xz (text formats only).
    Xz,
    /// Snappy (Parquet only).
    Snappy,
    /// LZ4 (Parquet and Arrow IPC only).
    Lz4,
}

/// What to do when the files of a source disagree about its schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SchemaPolicy {
    /// Every file has the same columns and logical types, else the workflow does not compile.
    Strict,
    /// Columns are united by name; missing ones are null; numbers widen (int32 and int64 → int64, any with float → float64).
    Union,
}

/// How CSV is written.
#[derive(Debug, Clone, PartialEq)]
pub struct CsvOptions {
    /// Whether the first line names the columns.
    pub header: bool,
    /// Between fields; one ASCII character.
    pub delimiter: u8,
    /// Around fields; one ASCII character.
    pub quote: u8,
    /// Before a quote inside a quoted field, where quotes are not doubled.
    pub escape: Option<u8>,
    /// Lines that begin with it are passed over.
    pub comment: Option<u8>,
    /// Field texts that mean null, beside the empty field.
    pub null: Option<String>,
    /// Whether a quoted field may hold a line break (such a file is read by one task).
    pub newlines_in_values: bool,
    /// Rows looked at to infer types, where no schema is declared.
    pub infer_rows: usize,
}

impl Default for CsvOptions {
    fn default() -> Self {
        CsvOptions {
            header: true,
            delimiter: b',',
            quote: b'"',
            escape: None,
            comment: None,
            null: None,
            newlines_in_values: false,
            infer_rows: 10_000,
        }
    }
}

/// A step.
#[derive(Debug, Clone)]
pub struct Step {
    /// Its name, which later steps and sinks read from.
    pub name: Spanned<String>,
    /// What it does.
    pub kind: StepKind,
    /// What it does about its items.
    pub items: ItemPolicy,
    /// What it needs.
    pub resources: Resources,
    /// A sentence for people.
    pub description: Option<String>,
}

/// What a step does. Each kind has its own section in the text.
#[derive(Debug, Clone)]
pub enum StepKind {
    /// `sql:` one query over sources and other steps.
    Sql(SqlStep),
    /// `http:` a request for each item, or for many.
    Http(Box<HttpStep>),
    /// `lookup:` a query against a database for each item.
    Lookup(Box<LookupStep>),
    /// `command:` a program that is kept running and fed items.
    Command(Box<CommandStep>),
    /// `python:` a function of a module, called in processes of its own.
    Python(Box<PythonStep>),
    /// `gpu:` a computation with kernels, such as a similarity search.
    Gpu(Box<GpuStep>),
    /// `model:` a model in ONNX.
    Model(Box<ModelStep>),
}

impl StepKind {
    /// The keys of all kinds.
    pub const KEYS: &'static [&'static str] = &["sql", "http", "lookup", "command", "python", "gpu", "model"];

    /// The key that names this kind in a workflow's text.
    pub fn key(&self) -> &'static str {
        match self {
            StepKind::Sql(_) => "sql",
            StepKind::Http(_) => "http",
            StepKind::Lookup(_) => "lookup",
            StepKind::Command(_) => "command",
            StepKind::Python(_) => "python",
            StepKind::Gpu(_) => "gpu",
            StepKind::Model(_) => "model",
        }
    }

    /// The one step or source whose rows it takes; `None` for a query, which names its own.
    pub fn from(&self) -> Option<&Spanned<String>> {
        match self {
            StepKind::Sql(_) => None,
            StepKind::Http(http) => Some(&http.from),
            StepKind::Lookup(lookup) => Some(&lookup.from),
            StepKind::Command(command) => Some(&command.from),
            StepKind::Python(python) => Some(&python.from),
            StepKind::Gpu(gpu) => Some(&gpu.from),
            StepKind::Model(model) => Some(&model.from),
        }
    }

    /// Calls in a second that its own text allows; none where it says nothing.
    pub fn calls_per_second(&self) -> Option<f64> {
        match self {
            StepKind::Python(python) => python.rate_limit.as_ref().map(|rate| rate.value.per_second()),
            _ => None,
        }
    }

    /// The class that it runs in where its step names none.
    pub fn class(&self) -> ResourceClass {
        match self {
            StepKind::Sql(_) => ResourceClass::Cpu,
            StepKind::Http(_) | StepKind::Lookup(_) | StepKind::Command(_) | StepKind::Python(_) => ResourceClass::Io,
            StepKind::Gpu(_) => ResourceClass::Gpu,
            StepKind::Model(model) => match model.device.as_ref().map(|device| device.value) {
                Some(ModelDevice::Cuda) => ResourceClass::Gpu,
                _ => ResourceClass::Cpu,
            },
        }
    }

    /// The connection that it names, and where.
    pub fn connection(&self) -> Option<&Spanned<String>> {
        match self {
            StepKind::Http(http) => Some(&http.connection),
            StepKind::Lookup(lookup) => Some(&lookup.connection),
            StepKind::Sql(_) | StepKind::Command(_) | StepKind::Python(_) | StepKind::Gpu(_) | StepKind::Model(_) => {
                None
            }
        }
    }
}

/// A query.
#[derive(Debug, Clone)]
pub struct SqlStep {
    /// Its text, with `$name` for parameters.
    pub text: MappedText,
}

/// What a step needs.
#[derive(Debug, Clone, Default)]
pub struct Resources {
    /// The class of executor; by the step's kind where absent.
    pub class: Option<Spanned<ResourceClass>>,
    /// Bytes that an executor keeps free for each partition of a `sql` step that it works on; its share where absent.
    pub memory: Option<Spanned<u64>>,
}

/// A resource class: `cpu`, `memory`, `io`, `gpu`, or a name of the user's.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceClass {
    /// Row-wise computation.
    Cpu,
    /// Computation that holds much: aggregates, joins, sorts.
    Memory,
    /// Waiting for others.
    Io,
    /// Work for a GPU.
    Gpu,
    /// A class that a pool of the configuration defines.
    Named(String),
}

impl ResourceClass {
    /// The word in a workflow's text.
    pub fn as_str(&self) -> &str {
        match self {
            ResourceClass::Cpu => "cpu",
            ResourceClass::Memory => "memory",
            ResourceClass::Io => "io",
            ResourceClass::Gpu => "gpu",
            ResourceClass::Named(name) => name,
        }
    }
}

/// A sink: rows of one step, written to files.
#[derive(Debug, Clone)]
pub struct Sink {
    /// Its name.
    pub name: Spanned<String>,
    /// The step or source whose rows it takes.
    pub from: Spanned<String>,
    /// A file, or a directory (ending in `/`, or with `partition_by`); local or a URL.
    pub path: Template,
    /// The format; told by the file name where absent (a directory defaults to Parquet).
    pub format: Option<Spanned<Format>>,
    /// Compression; told by the file name where absent (Parquet defaults to zstd).
    pub compression: Option<Spanned<Compression>>,
    /// Columns that become directories (`year=2013/`), in order.
    pub partition_by: Vec<Spanned<String>>,
    /// How CSV is written.
    pub csv: CsvOptions,
}

words!(Format { Parquet = "parquet", Csv = "csv", Json = "json", Arrow = "arrow" });
words!(Compression {
    None = "none",
    Gzip = "gzip",
    Zstd = "zstd",
    Bzip2 = "bzip2",
    Xz = "xz",
    Snappy = "snappy",
    Lz4 = "lz4",
});
words!(SchemaPolicy { Strict = "strict", Union = "union" });

impl Format {
    /// The format that a file's name tells, with the compression of a text file: `x.csv.gz` is CSV in gzip. A glob
    /// or the end of a name will do; `None` where the name tells nothing.
    pub fn from_path(path: &str) -> Option<(Format, Option<Compression>)> {
        let name = path.rsplit(['/', '\\']).next()?.to_ascii_lowercase();
        let (stem, compression) = [
            (".gz", Compression::Gzip),
            (".zst", Compression::Zstd),
            (".bz2", Compression::Bzip2),
            (".xz", Compression::Xz),
        ]
        .into_iter()
        .find_map(|(suffix, compression)| name.strip_suffix(suffix).map(|stem| (stem, Some(compression))))
        .unwrap_or((name.as_str(), None));
        let format = match stem.rsplit_once('.')?.1 {
            // A compressed file around these would not be one of them.
            "parquet" if compression.is_none() => Format::Parquet,
            "arrow" | "ipc" | "feather" if compression.is_none() => Format::Arrow,
            "csv" => Format::Csv,
            "json" | "jsonl" | "ndjson" => Format::Json,
            _ => return None,
        };
        Some((format, compression))
    }

    /// The compressions that the format knows.
    pub fn compressions(self) -> &'static [Compression] {
        match self {
            Format::Parquet => {
                &[Compression::None, Compression::Snappy, Compression::Gzip, Compression::Zstd, Compression::Lz4]
            }
            Format::Arrow => &[Compression::None, Compression::Lz4, Compression::Zstd],
            Format::Csv | Format::Json => {
                &[Compression::None, Compression::Gzip, Compression::Zstd, Compression::Bzip2, Compression::Xz]
            }
        }
    }
}

impl FileSource {
    /// The format, as declared or as the first path tells it; `None` where only the files can tell.
    pub fn known_format(&self) -> Option<Format> {
        self.format.as_ref().map(|format| format.value).or_else(|| {
            self.paths.iter().find_map(|path| Format::from_path(path.literal_tail())).map(|(format, _)| format)
        })
    }
}

impl Sink {
    /// Whether the path is a directory of files rather than one file.
    pub fn is_directory(&self) -> bool {
        !self.partition_by.is_empty() || self.path.literal_tail().ends_with('/')
    }

    /// The format: as declared, as the path tells it, or Parquet for a directory; `None` where nothing tells it.
    pub fn known_format(&self) -> Option<Format> {
        self.format
            .as_ref()
            .map(|format| format.value)
            .or_else(|| Format::from_path(self.path.literal_tail()).map(|(format, _)| format))
            .or_else(|| self.is_directory().then_some(Format::Parquet))
    }
}

impl ResourceClass {
    /// The class of a word; any word that is not built in names a class of the user's.
    pub fn from_word(word: &str) -> Self {
        match word {
            "cpu" => ResourceClass::Cpu,
            "memory" => ResourceClass::Memory,
            "io" => ResourceClass::Io,
            "gpu" => ResourceClass::Gpu,
            name => ResourceClass::Named(name.to_owned()),
        }
    }
}
