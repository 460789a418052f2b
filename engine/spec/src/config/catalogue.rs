//! Every setting: key, kind, default, one sentence. The reference page, the JSON schema and all readers go by it.

/// A setting.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// `execution.memory`
    pub key: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// The default as text; `None` where it is not set by default.
    pub default: Option<&'static str>,
    /// One sentence.
    pub about: &'static str,
}

/// What a setting takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A size in bytes with a unit (`2GB`, `512MiB`), or `auto`.
    BytesOrAuto,
    /// A whole number from 1 to this, or `auto`.
    CountOrAuto(u64),
    /// A path, or `auto`.
    PathOrAuto,
    /// One of these words.
    Word(&'static [&'static str]),
    /// `true` or `false`.
    Bool,
    /// Any text.
    Text,
    /// A URL that begins with `http://` or `https://`.
    Url,
    /// A reference to a secret: `env:NAME` or `file:/path`.
    Secret,
    /// This word, or a reference to a secret.
    WordOrSecret(&'static str),
    /// A size in bytes with a unit.
    Bytes,
    /// A whole number from 1 to this.
    Count(u64),
    /// A whole number from 0 to this.
    Number(u64),
    /// A number above zero, with or without a fraction.
    Rate,
    /// A time with a unit.
    Duration,
    /// A time with a unit, or `none`.
    DurationOrNone,
    /// A mapping from names to texts; in connections only.
    TextMap,
    /// A list of texts, or one; in connections only.
    TextList,
}

impl Kind {
    /// For the reference page and for errors.
    pub fn describe(&self) -> String {
        match self {
            Kind::BytesOrAuto => "a size such as `512MB` or `2GiB`, or `auto`".to_owned(),
            Kind::CountOrAuto(most) => format!("a whole number from 1 to {most}, or `auto`"),
            Kind::PathOrAuto => "a path, or `auto`".to_owned(),
            Kind::Word(words) => format!("one of {}", crate::suggest::listed(words.iter().copied())),
            Kind::Bool => "`true` or `false`".to_owned(),
            Kind::Text => "a text".to_owned(),
            Kind::Url => "a URL that begins with `http://` or `https://`".to_owned(),
            Kind::Secret => "a secret: `env:NAME` or `file:/path`".to_owned(),
            Kind::WordOrSecret(word) => format!("`{word}`, or a secret: `env:NAME` or `file:/path`"),
            Kind::Bytes => "a size such as `512MB` or `2GiB`".to_owned(),
            Kind::Count(most) => format!("a whole number from 1 to {most}"),
            Kind::Number(most) => format!("a whole number from 0 to {most}"),
            Kind::Rate => "a number above zero".to_owned(),
            Kind::Duration => "a time such as `250ms` or `5s`".to_owned(),
            Kind::DurationOrNone => "a time such as `250ms` or `5s`, or `none`".to_owned(),
            Kind::TextMap => "a mapping from names to texts".to_owned(),
            Kind::TextList => "a text, or a list of them".to_owned(),
        }
    }
}

const fn setting(key: &'static str, kind: Kind, default: Option<&'static str>, about: &'static str) -> Setting {
    Setting { key, kind, default, about }
}

/// Every setting, by section.
pub const SETTINGS: &[Setting] = &[
    setting(
        "execution.memory",
        Kind::BytesOrAuto,
        Some("auto"),
        "Memory for running queries; beyond it they spill to disk. `auto` is 70% of the machine's memory, or of its control group's limit.",
    ),
    setting("execution.threads", Kind::CountOrAuto(1024), Some("auto"), "Worker threads. `auto` is one per core."),
    setting(
        "execution.batch_rows",
        Kind::CountOrAuto(1_048_576),
        Some("auto"),
        "Rows of a batch. `auto` lets the engine choose.",
    ),
    setting(
        "execution.temp_dir",
        Kind::PathOrAuto,
        Some("auto"),
        "Where spilled data goes. `auto` is the system's directory for temporary files.",
    ),
    setting(
        "execution.max_temp_bytes",
        Kind::BytesOrAuto,
        Some("auto"),
        "The most that spilled data may take. `auto` lets the engine choose.",
    ),
    setting(
        "execution.partitions",
        Kind::CountOrAuto(4096),
        Some("auto"),
        "Partitions that are worked on at the same time. `auto` is one per thread.",
    ),
    setting(
        "output.progress",
        Kind::Word(&["auto", "plain", "bar", "none"]),
        Some("auto"),
        "How progress is shown. `auto` is a line for each step on a terminal and plain lines otherwise.",
    ),
    setting(
        "output.format",
        Kind::Word(&["auto", "table", "json"]),
        Some("auto"),
        "How results and errors are printed. `auto` is for people. `json` is one document on standard output; `sql` prints an object for each row.",
    ),
    setting(
        "output.color",
        Kind::Word(&["auto", "always", "never"]),
        Some("auto"),
        "Whether to use colours. `auto` uses them on a terminal, unless `NO_COLOR` is set.",
    ),
    setting(
        "log.level",
        Kind::Word(&["off", "error", "warn", "info", "debug", "trace"]),
        Some("warn"),
        "The least severe level that is logged.",
    ),
    setting("object_store.s3.endpoint", Kind::Url, None, "The URL of a store that is compatible with S3."),
    setting("object_store.s3.region", Kind::Text, None, "The region; from `AWS_REGION` where it is not set."),
    setting("object_store.s3.access_key_id", Kind::Secret, None, "The id of the access key."),
    setting("object_store.s3.secret_access_key", Kind::Secret, None, "The access key."),
    setting("object_store.s3.session_token", Kind::Secret, None, "The token of temporary credentials."),
    setting(
        "object_store.s3.allow_http",
        Kind::Bool,
        Some("false"),
        "Whether the endpoint may be reached without TLS.",
    ),
    setting(
        "object_store.s3.virtual_hosted",
        Kind::Bool,
        Some("false"),
        "Whether the bucket is part of the host's name rather than of the path.",
    ),
    setting("object_store.gcs.endpoint", Kind::Url, None, "The URL of a store that is compatible with GCS."),
    setting("object_store.gcs.service_account_key", Kind::Secret, None, "The key of a service account, as JSON."),
    setting(
        "object_store.gcs.allow_http",
        Kind::Bool,
        Some("false"),
        "Whether the endpoint may be reached without TLS.",
    ),
    setting("object_store.azure.account", Kind::Text, None, "The storage account."),
    setting(
        "object_store.azure.endpoint",
        Kind::Url,
        None,
        "The URL of a store that is compatible with Azure Blob Storage.",
    ),
    setting("object_store.azure.access_key", Kind::Secret, None, "The key of the storage account."),
    setting(
        "object_store.azure.allow_http",
        Kind::Bool,
        Some("false"),
        "Whether the endpoint may be reached without TLS.",
    ),
    setting(
        "object_store.http.allow_http",
        Kind::Bool,
        Some("false"),
        "Whether `http://` URLs may be read, without TLS.",
    ),
    setting("state.dir", Kind::Text, Some(".rowmill"), "Where durable runs live, relative to the working directory."),
    setting(
        "state.store",
        Kind::WordOrSecret("sqlite"),
        Some("sqlite"),
        "Where the journal of durable runs is kept: `sqlite` is a file in `state.dir`; a secret is the URL of a PostgreSQL database.",
    ),
    setting(
        "state.chunk_rows",
        Kind::CountOrAuto(10_000_000),
        Some("auto"),
        "Rows of a chunk of a durable run: what is committed together, and done again after a crash. `auto` is 32,768.",
    ),
    setting(
        "python.interpreter",
        Kind::PathOrAuto,
        Some("auto"),
        "The interpreter of `python` steps. `auto` is the one that runs `rowmill` where that came from pip, and `python3` of `PATH` otherwise.",
    ),
    setting(
        "cache.dir",
        Kind::PathOrAuto,
        Some("auto"),
        "Where answers are kept on disk. `auto` is `cache` in `state.dir`.",
    ),
    setting(
        "cache.memory",
        Kind::BytesOrAuto,
        Some("auto"),
        "The most that answers may take in memory, all steps together. `auto` lets the engine choose.",
    ),
    setting(
        "cache.disk",
        Kind::BytesOrAuto,
        Some("auto"),
        "The most that answers may take on disk. `auto` lets the engine choose.",
    ),
    setting(
        "cluster.insecure",
        Kind::Bool,
        Some("false"),
        "Whether processes of a cluster on different machines speak without TLS. Whoever sees the network then sees the token and the rows.",
    ),
    setting(
        "cluster.tls.ca",
        Kind::Text,
        None,
        "The file (PEM) of the authority that signed the certificates of the cluster. Where it is set, processes speak TLS and nothing else.",
    ),
    setting(
        "cluster.tls.certificate",
        Kind::Text,
        None,
        "The file (PEM) of this process' certificate; a scheduler and an executor need one for the name under which others reach them.",
    ),
    setting("cluster.tls.key", Kind::Text, None, "The file (PEM) of the certificate's key."),
    setting(
        "cluster.tls.clients",
        Kind::Word(&["certificate", "any"]),
        Some("certificate"),
        "Whom a scheduler and an executor serve: those who show a `certificate` of the authority, or `any` who have the token.",
    ),
    setting(
        "cluster.submitters",
        Kind::Secret,
        None,
        "Tokens that submit and do not join: one on a line, alone or followed by the ORGANISATION or ORGANISATION/TEAM that it submits for. A scheduler and its executors need the same.",
    ),
    setting(
        "cluster.routing",
        Kind::Word(&["round_robin", "least_connections", "weighted", "consistent_hash"]),
        Some("round_robin"),
        "Which executor of a cluster makes the next call of a step that is not SQL: one after the other, the one with the fewest calls, in proportion to their slots, or always the same one for equal items, whose caches are then warm.",
    ),
    setting("cluster.queue", Kind::Text, Some("default"), "The queue of a cluster that work is put into."),
    setting("cluster.organisation", Kind::Text, None, "The organisation that work is done for, as quotas name it."),
    setting("cluster.team", Kind::Text, None, "The team in the organisation that work is done for."),
    setting(
        "cluster.ageing",
        Kind::Duration,
        Some("10s"),
        "How long something waits in a scheduler's queue to rise by one priority: what keeps low queues from waiting for ever.",
    ),
    setting(
        "cluster.store",
        Kind::Text,
        None,
        "Where schedulers of one cluster keep which of them leads: a SQLite file for schedulers of one machine, or `postgres://USER@HOST/DATABASE`; `env:NAME` or `file:/path` says where such a URL with a password is. A scheduler without it is the only one.",
    ),
    setting("cluster.name", Kind::Text, Some("default"), "Tells clusters apart whose schedulers share a store."),
    setting(
        "cluster.lease",
        Kind::Duration,
        Some("4s"),
        "How long a scheduler leads without renewing its lease in `cluster.store`: what another one waits for before it takes over, at least 1 s.",
    ),
    setting(
        "gpu.use",
        Kind::Word(&["auto", "always", "never", "required"]),
        Some("auto"),
        "What steps of class `gpu` do: `auto` takes the GPU where `rowmill gpu bench --save` measured it to be faster, `always` for whatever has a kernel, `never` not at all; `required` is `always`, and an error where there is no GPU.",
    ),
    setting("gpu.device", Kind::Number(63), Some("0"), "The driver's number of the GPU."),
    setting(
        "gpu.memory",
        Kind::BytesOrAuto,
        Some("auto"),
        "The most of the GPU's memory that is taken. `auto` is 85% of what is free at the start.",
    ),
    setting(
        "gpu.launch",
        Kind::Bytes,
        Some("128MiB"),
        "Input that is gathered for one launch; 64 to 256 MiB keep the link busy.",
    ),
    setting(
        "gpu.dir",
        Kind::PathOrAuto,
        Some("auto"),
        "Where compiled kernels and the table of `rowmill gpu bench --save` are kept. `auto` is `gpu` in `state.dir`.",
    ),
    setting(
        "model.library",
        Kind::PathOrAuto,
        Some("auto"),
        "The file of ONNX Runtime (`libonnxruntime.so`), which `model` steps load. `auto` asks `ORT_DYLIB_PATH`, then the system's folders.",
    ),
];

/// The setting of a key.
pub(crate) fn find(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

/// The next words of all keys that begin with `prefix` (empty, or ending in a dot), each once.
pub(crate) fn children(prefix: &str) -> Vec<&'static str> {
    let mut children: Vec<&'static str> = Vec::new();
    for rest in SETTINGS.iter().filter_map(|setting| setting.key.strip_prefix(prefix)) {
        let word = rest.split('.').next().unwrap_or(rest);
        if !children.contains(&word) {
            children.push(word);
        }
    }
    children
}

/// The environment variable that sets a key: `ROWMILL_EXECUTION__MEMORY`.
pub(crate) fn env_name(key: &str) -> String {
    format!("ROWMILL_{}", key.to_uppercase().replace('.', "__"))
}
