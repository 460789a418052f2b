//! The configuration: a catalogue of settings, and what the layers make of them.
//!
//! Owns which settings there are, their types and their defaults ([`SETTINGS`]), how layers override each other
//! ([`Config::load`]), and where each value came from ([`Config::origin`]). Finding and reading files, and asking the
//! machine what `auto` means, is for others: everything here works on texts.
//!
//! ```text
//!  defaults < user file < project file < environment ROWMILL_SECTION__KEY < flags
//! ```

mod catalogue;
mod cluster;
#[cfg(test)]
mod connection_tests;
mod connections;
mod layers;
mod layers_connections;
mod reference;
mod secret;
#[cfg(test)]
mod tests;
mod value;

use std::path::PathBuf;
use std::time::Duration;

use indexmap::IndexMap;

pub use catalogue::{Kind, SETTINGS, Setting};
pub(crate) use cluster::{ClusterKey, QUEUE, QUOTA};
pub use cluster::{OTHERS, Queue, Quota};
pub use connections::{Breaker, Connection, ConnectionKind, ConnectionLimits};
pub(crate) use connections::{KINDS, LIMITS, keys_of};
pub use layers::{Inputs, Layer, Origin};
pub use reference::reference_page;
pub use secret::{Secret, SecretError};
use value::Setting as Value;
pub(crate) use value::format_bytes;
pub use value::parse_bytes;

/// The configuration, all layers applied.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `execution.*`
    pub execution: Execution,
    /// `output.*`
    pub output: Output,
    /// `log.*`
    pub log: Log,
    /// `object_store.*`
    pub object_store: ObjectStore,
    /// `state.*`
    pub state: State,
    /// `cache.*`
    pub cache: Cache,
    /// `cluster.*`
    pub cluster: Cluster,
    /// `python.*`
    pub python: Python,
    /// `gpu.*`
    pub gpu: Gpu,
    /// `model.*`
    pub model: Model,
    /// `connections.*`, by name.
    pub connections: IndexMap<String, Connection>,
    entries: IndexMap<&'static str, Entry>,
    connection_entries: IndexMap<String, Entry>,
}

/// Where durable runs live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The directory.
    pub dir: PathBuf,
    /// Where the journal is kept.
    pub store: StateStore,
    /// Rows of a chunk; `None` lets the engine choose.
    pub chunk_rows: Option<usize>,
}

/// Where the journal of durable runs is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StateStore {
    /// In a file of the state's directory.
    Sqlite,
    /// In the PostgreSQL database of this URL.
    Postgres(Secret),
}

/// How Python functions are called. `None` means that the program decides (`auto`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Python {
    /// The interpreter.
    pub interpreter: Option<PathBuf>,
}

/// Where answers are kept. `None` means that the engine decides (`auto`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cache {
    /// The directory.
    pub dir: Option<PathBuf>,
    /// The most in memory, in bytes.
    pub memory_bytes: Option<u64>,
    /// The most on disk, in bytes.
    pub disk_bytes: Option<u64>,
}

/// How processes of a cluster speak, and what a scheduler does for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Whether they speak without TLS on networks.
    pub insecure: bool,
    /// Who signed certificates; TLS where it is set.
    pub tls_ca: Option<PathBuf>,
    /// This process' certificate.
    pub tls_certificate: Option<PathBuf>,
    /// Its key.
    pub tls_key: Option<PathBuf>,
    /// Whether whoever connects must show a certificate.
    pub tls_mutual: bool,
    /// Tokens that submit.
    pub submitters: Option<Secret>,
    /// The queue that work is put into.
    pub queue: String,
    /// Whom work is done for.
    pub organisation: Option<String>,
    /// The team in it.
    pub team: Option<String>,
    /// How long something waits to rise by one priority.
    pub ageing: Duration,
    /// Which executor makes the next call: `round_robin`, `least_connections`, `weighted` or `consistent_hash`.
    pub routing: &'static str,
    /// Where schedulers keep which of them leads: a path, a URL, or where a URL is found.
    pub store: Option<String>,
    /// Tells clusters of one store apart.
    pub name: String,
    /// How long a scheduler leads without renewing its lease.
    pub lease: Duration,
    /// Queues of a scheduler, by name.
    pub queues: IndexMap<String, Queue>,
    /// Quotas of a scheduler, by organisation or `organisation/team`.
    pub quotas: IndexMap<String, Quota>,
}

/// How the GPU is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// What steps of class `gpu` do: `auto`, `always`, `never` or `required`.
    pub usage: &'static str,
    /// The driver's number of the GPU.
    pub device: usize,
    /// The most of its memory, in bytes; `None` lets the engine choose.
    pub memory_bytes: Option<u64>,
    /// Input for one launch, in bytes.
    pub launch_bytes: u64,
    /// Where kernels and measurements are kept; `None` is in `state.dir`.
    pub dir: Option<PathBuf>,
}

/// What `model` steps need.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Model {
    /// The file of ONNX Runtime; `None` looks for it.
    pub library: Option<PathBuf>,
}

/// One value and where it came from.
#[derive(Debug, Clone, PartialEq)]
struct Entry {
    value: Option<Value>,
    origin: Origin,
}

/// How work is done on this machine. `None` means that the machine decides (`auto`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Execution {
    /// Memory for running queries, in bytes.
    pub memory_bytes: Option<u64>,
    /// Worker threads.
    pub threads: Option<usize>,
    /// Rows of a batch.
    pub batch_rows: Option<usize>,
    /// Where spilled data goes.
    pub temp_dir: Option<PathBuf>,
    /// The most that spilled data may take, in bytes.
    pub max_temp_bytes: Option<u64>,
    /// Partitions of a stage.
    pub partitions: Option<usize>,
}

/// What is shown, and how.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Output {
    /// How progress is shown.
    pub progress: Progress,
    /// How results are printed.
    pub format: OutputFormat,
    /// Whether to use colours.
    pub color: Color,
}

/// What is logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// The least severe level that is logged: `off`, `error`, `warn`, `info`, `debug` or `trace`.
    pub level: String,
}

/// How object stores are reached. What is `None` is left to the store's own environment (`AWS_REGION` and so on).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObjectStore {
    /// Amazon S3 and compatible stores.
    pub s3: S3,
    /// Google Cloud Storage.
    pub gcs: Gcs,
    /// Azure Blob Storage.
    pub azure: Azure,
    /// Plain web servers.
    pub http: Http,
}

/// `object_store.s3.*`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct S3 {
    /// The URL of a compatible store.
    pub endpoint: Option<String>,
    /// The region.
    pub region: Option<String>,
    /// The access key's id.
    pub access_key_id: Option<Secret>,
    /// The access key.
    pub secret_access_key: Option<Secret>,
    /// The token of temporary credentials.
    pub session_token: Option<Secret>,
    /// Whether an endpoint may be reached without TLS.
    pub allow_http: bool,
    /// Whether the bucket is part of the host's name.
    pub virtual_hosted: bool,
}

/// `object_store.gcs.*`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Gcs {
    /// The URL of a compatible store.
    pub endpoint: Option<String>,
    /// The service account's key, as JSON.
    pub service_account_key: Option<Secret>,
    /// Whether an endpoint may be reached without TLS.
    pub allow_http: bool,
}

/// `object_store.azure.*`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Azure {
    /// The storage account.
    pub account: Option<String>,
    /// The URL of a compatible store.
    pub endpoint: Option<String>,
    /// The account's key.
    pub access_key: Option<Secret>,
    /// Whether an endpoint may be reached without TLS.
    pub allow_http: bool,
}

/// `object_store.http.*`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Http {
    /// Whether `http://` URLs may be read, without TLS.
    pub allow_http: bool,
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Progress {
    /// A line for each step on a terminal, plain lines otherwise.
    #[default]
    Auto,
    /// A line from time to time.
    Plain,
    /// A bar.
    Bar,
    /// Nothing.
    None,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OutputFormat {
    /// A table.
    #[default]
    Auto,
    /// A table.
    Table,
    /// JSON.
    Json,
}

/// Whether to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Color {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// One line of `config show`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown<'a> {
    /// `execution.memory`
    pub key: &'a str,
    /// The value as text, secrets redacted; `None` where it is not set.
    pub value: Option<String>,
    /// Where it came from.
    pub origin: &'a Origin,
}

impl Config {
    /// Where the value of a setting came from; `None` where there is no such setting.
    pub fn origin(&self, key: &str) -> Option<&Origin> {
        self.entries.get(key).or_else(|| self.connection_entries.get(key)).map(|entry| &entry.origin)
    }

    /// Every setting with its value and origin, in the order of the catalogue, and then what connections have.
    pub fn show(&self) -> impl Iterator<Item = Shown<'_>> {
        let settings = self.entries.iter().map(|(key, entry)| (*key, entry));
        let connections = self.connection_entries.iter().map(|(key, entry)| (key.as_str(), entry));
        settings.chain(connections).map(|(key, entry)| Shown {
            key,
            value: entry.value.as_ref().map(ToString::to_string),
            origin: &entry.origin,
        })
    }

    /// Gives every value its place; the catalogue says which kind each key has.
    fn from_entries(entries: IndexMap<&'static str, Entry>) -> Self {
        let values = Values(&entries);
        let count = |key| values.count(key).map(|count| usize::try_from(count).unwrap_or(usize::MAX));
        let execution = Execution {
            memory_bytes: values.count("execution.memory"),
            threads: count("execution.threads"),
            batch_rows: count("execution.batch_rows"),
            temp_dir: values.text("execution.temp_dir").map(PathBuf::from),
            max_temp_bytes: values.count("execution.max_temp_bytes"),
            partitions: count("execution.partitions"),
        };
        let output = Output {
            progress: match values.word("output.progress") {
                "plain" => Progress::Plain,
                "bar" => Progress::Bar,
                "none" => Progress::None,
                _ => Progress::Auto,
            },
            format: match values.word("output.format") {
                "table" => OutputFormat::Table,
                "json" => OutputFormat::Json,
                _ => OutputFormat::Auto,
            },
            color: match values.word("output.color") {
                "always" => Color::Always,
                "never" => Color::Never,
                _ => Color::Auto,
            },
        };
        let object_store = ObjectStore {
            s3: S3 {
                endpoint: values.text("object_store.s3.endpoint"),
                region: values.text("object_store.s3.region"),
                access_key_id: values.secret("object_store.s3.access_key_id"),
                secret_access_key: values.secret("object_store.s3.secret_access_key"),
                session_token: values.secret("object_store.s3.session_token"),
                allow_http: values.bool("object_store.s3.allow_http"),
                virtual_hosted: values.bool("object_store.s3.virtual_hosted"),
            },
            gcs: Gcs {
                endpoint: values.text("object_store.gcs.endpoint"),
                service_account_key: values.secret("object_store.gcs.service_account_key"),
                allow_http: values.bool("object_store.gcs.allow_http"),
            },
            azure: Azure {
                account: values.text("object_store.azure.account"),
                endpoint: values.text("object_store.azure.endpoint"),
                access_key: values.secret("object_store.azure.access_key"),
                allow_http: values.bool("object_store.azure.allow_http"),
            },
            http: Http { allow_http: values.bool("object_store.http.allow_http") },
        };
        let log = Log { level: values.word("log.level").to_owned() };
        let state = State {
            dir: values.text("state.dir").map_or_else(PathBuf::new, PathBuf::from),
            store: values.secret("state.store").map_or(StateStore::Sqlite, StateStore::Postgres),
            chunk_rows: values.count("state.chunk_rows").and_then(|rows| usize::try_from(rows).ok()),
        };
        let cache = Cache {
            dir: values.text("cache.dir").map(PathBuf::from),
            memory_bytes: values.count("cache.memory"),
            disk_bytes: values.count("cache.disk"),
        };
        let python = Python { interpreter: values.text("python.interpreter").map(PathBuf::from) };
        let path = |key| values.text(key).map(PathBuf::from);
        let cluster = Cluster {
            routing: values.word("cluster.routing"),
            insecure: values.bool("cluster.insecure"),
            tls_ca: path("cluster.tls.ca"),
            tls_certificate: path("cluster.tls.certificate"),
            tls_key: path("cluster.tls.key"),
            tls_mutual: values.word("cluster.tls.clients") != "any",
            submitters: values.secret("cluster.submitters"),
            queue: values.text("cluster.queue").unwrap_or_else(|| "default".to_owned()),
            organisation: values.text("cluster.organisation"),
            team: values.text("cluster.team"),
            ageing: values.duration("cluster.ageing").unwrap_or(Duration::from_secs(10)),
            store: values.text("cluster.store"),
            name: values.text("cluster.name").unwrap_or_else(|| "default".to_owned()),
            lease: values.duration("cluster.lease").unwrap_or(Duration::from_secs(4)),
            queues: IndexMap::new(),
            quotas: IndexMap::new(),
        };
        let gpu = Gpu {
            usage: values.word("gpu.use"),
            device: count("gpu.device").unwrap_or(0),
            memory_bytes: values.count("gpu.memory"),
            launch_bytes: values.count("gpu.launch").unwrap_or(128 << 20),
            dir: values.text("gpu.dir").map(PathBuf::from),
        };
        let model = Model { library: values.text("model.library").map(PathBuf::from) };
        let (connections, connection_entries) = (IndexMap::new(), IndexMap::new());
        Config {
            execution,
            output,
            log,
            object_store,
            state,
            cache,
            cluster,
            python,
            gpu,
            model,
            connections,
            entries,
            connection_entries,
        }
    }
}

impl Default for Config {
    /// The defaults of the catalogue.
    fn default() -> Self {
        Config::from_entries(layers::defaults())
    }
}

/// Reads entries as what the catalogue says they are; another kind is the same as none, and a test walks the
/// catalogue so that none is.
struct Values<'a>(&'a IndexMap<&'static str, Entry>);

impl Values<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        debug_assert!(self.0.contains_key(key), "`{key}` is not in the catalogue");
        self.0.get(key)?.value.as_ref()
    }

    fn count(&self, key: &str) -> Option<u64> {
        match self.get(key) {
            Some(Value::Bytes(count) | Value::Count(count)) => Some(*count),
            _ => None,
        }
    }

    fn text(&self, key: &str) -> Option<String> {
        match self.get(key) {
            Some(Value::Text(text)) => Some(text.clone()),
            _ => None,
        }
    }

    fn word(&self, key: &str) -> &'static str {
        match self.get(key) {
            Some(Value::Word(word)) => word,
            _ => "",
        }
    }

    fn bool(&self, key: &str) -> bool {
        matches!(self.get(key), Some(Value::Bool(true)))
    }

    fn duration(&self, key: &str) -> Option<Duration> {
        match self.get(key) {
            Some(Value::Duration(time)) => *time,
            _ => None,
        }
    }

    fn secret(&self, key: &str) -> Option<Secret> {
        match self.get(key) {
            Some(Value::Secret(secret)) => Some(secret.clone()),
            _ => None,
        }
    }
}
