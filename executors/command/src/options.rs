//! What a workflow says about a command step.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use rowmill_step::{BatchTarget, Cardinality, Effects, SecretRef};

/// What is wrong with a step's options; the text names the option.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{option}`: {message}")]
pub struct OptionsError {
    /// The option.
    pub option: &'static str,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// How items and answers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object per line.
    JsonLines,
    /// An Arrow IPC stream.
    Arrow,
}

impl Format {
    /// The word in workflow text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::JsonLines => "json_lines",
            Self::Arrow => "arrow",
        }
    }
}

/// What a process may use. `None` leaves what the parent has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Address space in bytes.
    pub memory_bytes: Option<u64>,
    /// Seconds of CPU time over the life of the process.
    pub cpu_seconds: Option<u64>,
    /// Open files.
    pub open_files: Option<u64>,
    /// The largest file that it may write, in bytes.
    pub file_bytes: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory_bytes: Some(8 << 30), cpu_seconds: None, open_files: Some(1024), file_bytes: Some(1 << 30) }
    }
}

/// What a workflow says about a command step.
#[derive(Debug, Clone)]
pub struct CommandOptions {
    /// The program and its arguments; no shell looks at them. A program without `/` is looked for in our `PATH`.
    pub argv: Vec<String>,
    /// How items and answers are written.
    pub format: Format,
    /// The columns that the program gets.
    pub reads: Vec<String>,
    /// The columns that it adds.
    pub output: SchemaRef,
    /// One row per item, or any number.
    pub cardinality: Cardinality,
    /// What running it again means; `once` unless declared.
    pub effects: Effects,
    /// Environment variables with these values.
    pub env: BTreeMap<String, String>,
    /// Environment variables that are handed on from ours.
    pub pass_env: Vec<String>,
    /// Environment variables whose values are secrets.
    pub secret_env: BTreeMap<String, SecretRef>,
    /// Where it runs.
    pub working_directory: Option<PathBuf>,
    /// What it may use.
    pub limits: Limits,
    /// The largest answer: a line, or a record batch.
    pub max_answer_bytes: usize,
    /// How long one item may take (JSON lines), or one group (Arrow). The process is killed when it takes longer.
    pub item_timeout: Option<Duration>,
    /// What tells one version of the program from another, for caches.
    pub version: String,
    /// The size of groups, and how many processes.
    pub target: BatchTarget,
}

impl CommandOptions {
    /// Options with the defaults: JSON lines, one to one, `once`, groups of 1024 items, two processes.
    pub fn new(argv: &[&str], reads: &[&str], output: SchemaRef) -> Self {
        Self {
            argv: argv.iter().map(|arg| (*arg).to_owned()).collect(),
            format: Format::JsonLines,
            reads: reads.iter().map(|name| (*name).to_owned()).collect(),
            output,
            cardinality: Cardinality::OneToOne,
            effects: Effects::Once,
            env: BTreeMap::new(),
            pass_env: Vec::new(),
            secret_env: BTreeMap::new(),
            working_directory: None,
            limits: Limits::default(),
            max_answer_bytes: 16 << 20,
            item_timeout: None,
            version: String::new(),
            target: BatchTarget { rows: 1024, bytes: 4 << 20, in_flight: 2 },
        }
    }

    /// Checks the options.
    pub(crate) fn check(&self) -> Result<(), OptionsError> {
        let wrong = |option, message: String| Err(OptionsError { option, message });
        if self.argv.first().is_none_or(String::is_empty) {
            return wrong("argv", "it begins with a program".to_owned());
        }
        if let Some(bad) = self.argv.iter().find(|arg| arg.contains('\0')) {
            return wrong("argv", format!("`{}` holds a NUL", bad.escape_debug()));
        }
        let names = self.env.keys().chain(&self.pass_env).chain(self.secret_env.keys());
        for name in names.clone() {
            if name.is_empty() || name.contains(['=', '\0']) {
                return wrong("env", format!("`{}` is not a variable's name", name.escape_debug()));
            }
        }
        if let Some((name, _)) = self.env.iter().find(|(_, value)| value.contains('\0')) {
            return wrong("env", format!("the value of `{name}` holds a NUL"));
        }
        let mut seen = std::collections::HashSet::new();
        if let Some(twice) = names.into_iter().find(|name| !seen.insert(name.as_str())) {
            return wrong("env", format!("`{twice}` is given twice"));
        }
        if self.output.fields().is_empty() {
            return wrong("output", "a step adds at least one column".to_owned());
        }
        for field in self.output.fields() {
            if field.name().starts_with("__") {
                return wrong("output", format!("column `{}`: names with `__` are reserved", field.name()));
            }
            if self.output.fields().iter().filter(|other| other.name() == field.name()).count() > 1 {
                return wrong("output", format!("column `{}` is named twice", field.name()));
            }
        }
        if self.target.rows == 0 || self.target.in_flight == 0 {
            return wrong("target", "groups of at least one item, and at least one process".to_owned());
        }
        if self.max_answer_bytes == 0 {
            return wrong("max_answer_bytes", "more than nothing".to_owned());
        }
        if self.item_timeout == Some(Duration::ZERO) {
            return wrong("item_timeout", "longer than nothing".to_owned());
        }
        Ok(())
    }
}
