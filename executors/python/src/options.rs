//! What a workflow says about a Python step.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use rowmill_step::{BatchTarget, Cardinality, Effects};

/// What is wrong with a step's options; the text names the option.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{option}`: {message}")]
pub struct OptionsError {
    /// The option.
    pub option: &'static str,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// Where the function is.
#[derive(Clone, PartialEq, Eq)]
pub enum Function {
    /// `package.module:function`, imported by the worker.
    Named(String),
    /// What cloudpickle made of it.
    Pickled(Vec<u8>),
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => f.debug_tuple("Named").field(name).finish(),
            Self::Pickled(bytes) => write!(f, "Pickled({} bytes)", bytes.len()),
        }
    }
}

/// How a function is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// With values, for each item.
    Row,
    /// With columns, for each group.
    Batch,
    /// With values, for each item, and gives any number of rows.
    Generator,
    /// As `Row`, awaited, many at once.
    Async,
    /// As `Generator`, awaited, many at once.
    AsyncGenerator,
}

impl Kind {
    /// The word of the protocol.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Row => "row",
            Self::Batch => "batch",
            Self::Generator => "generator",
            Self::Async => "async",
            Self::AsyncGenerator => "async_generator",
        }
    }

    /// The kind of a word; `None` where there is none.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Row, Self::Batch, Self::Generator, Self::Async, Self::AsyncGenerator]
            .into_iter()
            .find(|kind| kind.as_str() == word)
    }

    /// One row for each item, or any number.
    pub const fn cardinality(self) -> Cardinality {
        match self {
            Self::Generator | Self::AsyncGenerator => Cardinality::FanOut,
            _ => Cardinality::OneToOne,
        }
    }

    /// Whether items are worked on strictly one after the other, each by a call of its own.
    pub(crate) const fn one_by_one(self) -> bool {
        matches!(self, Self::Row | Self::Generator)
    }
}

/// What the worker is started from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Worker {
    /// `python -m rowmill._worker`, from the package that is installed.
    Installed,
    /// The worker's file.
    File(PathBuf),
}

/// What a process may use. `None` leaves what the parent has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Private memory in bytes; Python raises `MemoryError` at the limit, or dies.
    pub memory_bytes: Option<u64>,
    /// Seconds of CPU time over the life of the process.
    pub cpu_seconds: Option<u64>,
    /// Open files.
    pub open_files: Option<u64>,
}

/// Whether this is what Python takes for a name, or names with dots between them.
fn is_dotted(text: &str) -> bool {
    text.split('.').all(|part| {
        part.chars().next().is_some_and(|first| first == '_' || first.is_alphabetic())
            && part.chars().all(|letter| letter == '_' || letter.is_alphanumeric())
    })
}

/// How a Python program logs, so that its workers do the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logging {
    /// Of the root logger.
    pub level: i64,
    /// Of its handler.
    pub format: Option<String>,
}

/// A function that takes bytes as they come.
type Taker = dyn Fn(&[u8]) + Send + Sync;

/// Takes what workers print.
#[derive(Clone)]
pub struct Output(pub Arc<Taker>);

impl Output {
    /// To standard error of this process.
    pub fn stderr() -> Self {
        Self(Arc::new(|text| {
            use std::io::Write as _;
            // A closed standard error is nobody's failure.
            let _ = std::io::stderr().lock().write_all(text);
        }))
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Output")
    }
}

/// What a workflow says about a Python step.
#[derive(Debug, Clone)]
pub struct PythonOptions {
    /// The interpreter; one without `/` is looked for in `PATH`.
    pub python: String,
    /// What the worker is started from.
    pub worker: Worker,
    /// The function.
    pub function: Function,
    /// What it does, for caches: a hash of its source, where the caller knows one.
    pub source: Option<String>,
    /// How it is called; told by the function itself where absent.
    pub kind: Option<Kind>,
    /// Where the function tells: what it is given, if its annotations do not say (`values`, `arrow`, `numpy` ...).
    pub given: Option<&'static str>,
    /// Where the function tells: whether it is to give any number of rows for an item.
    pub fan_out: bool,
    /// Its name, for messages.
    pub what: String,
    /// The columns that it is given, in order.
    pub reads: Vec<String>,
    /// How each of them is given to a function over batches: `arrow`, `numpy`, `pandas` or `polars`. Used where `kind`
    /// is known.
    pub flavors: Vec<String>,
    /// The columns that it adds.
    pub output: SchemaRef,
    /// Whether its answer has fields (a dict, a tuple, an object) rather than being the one column itself.
    pub many: bool,
    /// Calls at a time, of an async function.
    pub in_flight: usize,
    /// Folders that modules are looked for in, before the interpreter's own.
    pub sys_path: Vec<String>,
    /// Environment variables in addition to ours.
    pub env: Vec<(String, String)>,
    /// What running it again means; `once` unless declared.
    pub effects: Effects,
    /// Whether an exception is worth another attempt where it does not say so itself, by an attribute `retryable`.
    pub raised_passes: bool,
    /// What a process may use.
    pub limits: Limits,
    /// How long a group may take. The process is killed when it takes longer.
    pub group_timeout: Option<Duration>,
    /// How long the function may take to load: imports, models.
    pub start_timeout: Duration,
    /// Whether columns travel through memory that the processes share; through pipes otherwise, and where the system has
    /// no such memory.
    pub shared_memory: bool,
    /// Whether the first item that fails ends the step, so that no other need be sent after it.
    pub stop_at_failure: bool,
    /// How the program that runs the step logs; the interpreter's own way where absent.
    pub logging: Option<Logging>,
    /// The largest answer.
    pub max_answer_bytes: usize,
    /// The size of groups, and how many processes.
    pub target: BatchTarget,
    /// Where what the workers print goes.
    pub printed: Output,
}

impl PythonOptions {
    /// Options with the defaults: called for each row, `once`, groups of 4096 items, one process per core.
    pub fn new(function: Function, what: &str, reads: &[&str], output: SchemaRef) -> Self {
        Self {
            python: "python3".to_owned(),
            worker: Worker::Installed,
            function,
            source: None,
            kind: Some(Kind::Row),
            given: None,
            fan_out: false,
            what: what.to_owned(),
            reads: reads.iter().map(|name| (*name).to_owned()).collect(),
            flavors: vec!["arrow".to_owned(); reads.len()],
            output,
            many: false,
            in_flight: 256,
            sys_path: Vec::new(),
            env: Vec::new(),
            effects: Effects::Once,
            raised_passes: false,
            limits: Limits::default(),
            group_timeout: None,
            start_timeout: Duration::from_secs(600),
            shared_memory: true,
            stop_at_failure: false,
            logging: None,
            max_answer_bytes: 1 << 30,
            target: BatchTarget {
                rows: 4096,
                bytes: 16 << 20,
                in_flight: std::thread::available_parallelism().map_or(1, usize::from),
            },
            printed: Output::stderr(),
        }
    }

    /// One row for each item, or any number.
    pub fn cardinality(&self) -> Cardinality {
        match self.kind {
            Some(kind) => kind.cardinality(),
            None if self.fan_out => Cardinality::FanOut,
            None => Cardinality::OneToOne,
        }
    }

    /// Checks the options.
    pub(crate) fn check(&self) -> Result<(), OptionsError> {
        let wrong = |option, message: String| Err(OptionsError { option, message });
        if self.python.is_empty() || self.python.contains('\0') {
            return wrong("python", "it names an interpreter".to_owned());
        }
        if let Function::Named(name) = &self.function
            && !name.split_once(':').is_some_and(|(module, function)| is_dotted(module) && is_dotted(function))
        {
            return wrong("function", format!("`{name}` is not `module:function`"));
        }
        if self.output.fields().is_empty() {
            return wrong("output", "a step adds at least one column".to_owned());
        }
        if !self.many && self.output.fields().len() != 1 {
            return wrong("many", "an answer without fields makes one column".to_owned());
        }
        if let Some(field) = self.output.fields().iter().find(|field| field.name().starts_with("__")) {
            return wrong("output", format!("column `{}`: names with `__` are reserved", field.name()));
        }
        let known = ["arrow", "numpy", "pandas", "polars"];
        if let Some(flavor) = self.flavors.iter().find(|flavor| !known.contains(&flavor.as_str())) {
            return wrong("flavors", format!("`{flavor}` is none of {}", known.join(", ")));
        }
        if self.flavors.len() != self.reads.len() {
            return wrong("flavors", "one for each column that is read".to_owned());
        }
        if let Some((name, _)) =
            self.env.iter().find(|(name, value)| name.is_empty() || name.contains(['=', '\0']) || value.contains('\0'))
        {
            return wrong("env", format!("`{}` is not a variable", name.escape_debug()));
        }
        if self.target.rows == 0 || self.target.in_flight == 0 {
            return wrong("target", "groups of at least one item, and at least one process".to_owned());
        }
        if self.in_flight == 0 {
            return wrong("in_flight", "at least one call at a time".to_owned());
        }
        if self.max_answer_bytes == 0 {
            return wrong("max_answer_bytes", "more than nothing".to_owned());
        }
        if self.group_timeout == Some(Duration::ZERO) || self.start_timeout == Duration::ZERO {
            return wrong("group_timeout", "longer than nothing".to_owned());
        }
        Ok(())
    }
}
