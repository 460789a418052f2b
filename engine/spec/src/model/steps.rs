//! The kinds of steps beside `sql`: calls over HTTP, lookups in databases, programs, and Python functions.
//!
//! Each takes the rows of one step or source, adds columns to them, and says nothing about joins: those are for SQL
//! steps. Options that are absent are as the step's kind has them by default.

use std::time::Duration;

use indexmap::IndexMap;

use crate::config::Secret;
use crate::span::{MappedText, Span, Spanned};
use crate::template::Template;
use crate::types::LogicalType;

/// `http:` a request for each item, or for many.
///
/// Texts may hold `${params.NAME}` and `${vars.NAME}`, and `{column}` for a column's value; `{{` and `}}` are braces.
#[derive(Debug, Clone)]
pub struct HttpStep {
    /// The step or source whose rows it takes.
    pub from: Spanned<String>,
    /// Name of the connection.
    pub connection: Spanned<String>,
    /// The method, in capitals; GET where absent.
    pub method: Option<Spanned<String>>,
    /// Path after the connection's base.
    pub path: Template,
    /// Parameters of the query, in order; a name may stand several times.
    pub query: Vec<(Spanned<String>, Template)>,
    /// Headers, in order; a name may stand several times.
    pub headers: Vec<(Spanned<String>, Template)>,
    /// The body.
    pub body: Option<Spanned<HttpBody>>,
    /// The columns that it adds.
    pub response: Spanned<IndexMap<String, ResponseColumn>>,
    /// Statuses that mean success, as ranges with both ends; 200 to 299 where absent.
    pub ok: Option<Spanned<Vec<(u16, u16)>>>,
    /// What to do when there is nothing for an item; `fail` where absent.
    pub not_found: Option<Spanned<OnMissing>>,
    /// Statuses that mean that; 404 where absent.
    pub not_found_statuses: Option<Spanned<Vec<u16>>>,
    /// Statuses worth another attempt.
    pub retry_statuses: Option<Spanned<Vec<u16>>>,
    /// Sends many items in one request.
    pub many: Option<Spanned<HttpMany>>,
    /// The header that carries the idempotency key; `Some` of `None` sends none.
    pub idempotency_header: Option<Spanned<Option<String>>>,
}

/// The body of a request.
#[derive(Debug, Clone)]
pub enum HttpBody {
    /// JSON; a string that is one `{column}` becomes the value with its type.
    Json(JsonTemplate),
    /// Text as it is.
    Text {
        /// The text.
        text: Template,
        /// Its content type; plain text in UTF-8 where absent.
        content_type: Option<Spanned<String>>,
    },
    /// A form; a name may stand several times.
    Form(Vec<(Spanned<String>, Template)>),
    /// The bytes of one column.
    Column {
        /// The column.
        name: Spanned<String>,
        /// Its content type; `application/octet-stream` where absent.
        content_type: Option<Spanned<String>>,
    },
}

/// JSON whose strings are templates.
#[derive(Debug, Clone, PartialEq)]
pub enum JsonTemplate {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number.
    Number(serde_json::Number),
    /// A string.
    Text(Template),
    /// An array.
    List(Vec<JsonTemplate>),
    /// An object; names are texts as they are.
    Object(Vec<(String, JsonTemplate)>),
}

impl JsonTemplate {
    /// Every template in it.
    pub fn templates(&self) -> Vec<&Template> {
        match self {
            JsonTemplate::Text(template) => vec![template],
            JsonTemplate::List(items) => items.iter().flat_map(JsonTemplate::templates).collect(),
            JsonTemplate::Object(fields) => fields.iter().flat_map(|(_, value)| value.templates()).collect(),
            JsonTemplate::Null | JsonTemplate::Bool(_) | JsonTemplate::Number(_) => Vec::new(),
        }
    }
}

/// A column that an http step adds.
#[derive(Debug, Clone)]
pub struct ResponseColumn {
    /// Its type.
    pub kind: Spanned<LogicalType>,
    /// Whether it may be null (where it is not said, it may); if not, a missing value fails the item.
    pub nullable: Option<Spanned<bool>>,
    /// Where it comes from.
    pub source: Spanned<ResponseSource>,
}

/// Where a column of an answer comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResponseSource {
    /// A JSON pointer into the answer, or into the item's part of it.
    Json(String),
    /// The whole body.
    Body,
    /// The status.
    Status,
    /// A header.
    Header(String),
}

/// Many items in one request; the body is the template of one item.
#[derive(Debug, Clone)]
pub struct HttpMany {
    /// Items of a request at most.
    pub max_items: Spanned<u64>,
    /// Bytes of the items' columns at most; 1 MiB where absent.
    pub max_bytes: Option<Spanned<u64>>,
    /// What stands around the array of items, with `"{items}"` in its place; nothing where absent.
    pub envelope: Option<JsonTemplate>,
    /// JSON pointer to the array of results; the whole answer where absent.
    pub results: Option<Spanned<String>>,
    /// Which result is whose; by order where absent.
    pub matching: Option<Spanned<ResultMatch>>,
    /// JSON pointer within a result to its error.
    pub error: Option<Spanned<String>>,
}

/// Which result of an answer for many items is whose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResultMatch {
    /// Results come in the order of the items.
    Order,
    /// A result names its item.
    Key {
        /// The item's column.
        column: String,
        /// JSON pointer to the same value within the result.
        pointer: String,
    },
}

/// What to do with an item for which there is nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OnMissing {
    /// The step's columns are null.
    Null,
    /// The row is dropped.
    Skip,
    /// The item fails.
    Fail,
}

/// `lookup:` a query against a database for each item.
#[derive(Debug, Clone)]
pub struct LookupStep {
    /// The step or source whose rows it takes.
    pub from: Spanned<String>,
    /// Name of the connection.
    pub connection: Spanned<String>,
    /// The query for one item; `{column}` outside of quotes and comments is that column's value, bound. It takes no
    /// parameters of the workflow: no text is ever pasted into it.
    pub query: MappedText,
    /// Types of columns for which the database's own are not wanted or not known.
    pub types: IndexMap<String, Spanned<LogicalType>>,
    /// No row for an item; `null` where absent.
    pub on_missing: Option<Spanned<OnMissing>>,
    /// Several rows for an item; `all` where absent.
    pub matches: Option<Spanned<Matches>>,
}

/// What to do with an item for which there are several rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Matches {
    /// A row for each.
    All,
    /// The first.
    First,
    /// The item fails.
    One,
}

/// `command:` a program that is kept running and fed items.
#[derive(Debug, Clone)]
pub struct CommandStep {
    /// The step or source whose rows it takes.
    pub from: Spanned<String>,
    /// The program and its arguments; no shell looks at them.
    pub argv: Spanned<Vec<Template>>,
    /// How items and answers are written; JSON lines where absent.
    pub format: Option<Spanned<CommandFormat>>,
    /// The columns that the program gets.
    pub reads: Spanned<Vec<Spanned<String>>>,
    /// The columns that it adds.
    pub output: Spanned<IndexMap<String, OutputColumn>>,
    /// Whether it gives any number of rows for an item.
    pub fan_out: Option<Spanned<bool>>,
    /// Environment variables with these values.
    pub env: IndexMap<String, Template>,
    /// Environment variables that are handed on from ours.
    pub pass_env: Vec<Spanned<String>>,
    /// Environment variables whose values are secrets.
    pub secret_env: IndexMap<String, Spanned<Secret>>,
    /// Where it runs.
    pub working_directory: Option<Template>,
    /// Bytes of address space.
    pub memory: Option<Spanned<Limit>>,
    /// Seconds of CPU time over the life of a process.
    pub cpu_seconds: Option<Spanned<Limit>>,
    /// Open files.
    pub open_files: Option<Spanned<Limit>>,
    /// Bytes of the largest file that it may write.
    pub file_bytes: Option<Spanned<Limit>>,
    /// Bytes of the largest answer.
    pub max_answer_bytes: Option<Spanned<u64>>,
    /// Tells one version of the program from another, for caches.
    pub version: Option<Spanned<String>>,
}

/// `python:` a function of a module, called in processes of its own.
#[derive(Debug, Clone)]
pub struct PythonStep {
    /// The step or source whose rows it takes.
    pub from: Spanned<String>,
    /// `package.module:function`; a class with `__call__` is made once in each process.
    pub function: Spanned<String>,
    /// The columns that are its arguments, in order.
    pub reads: Spanned<Vec<Spanned<String>>>,
    /// The columns that it adds.
    pub output: Spanned<IndexMap<String, OutputColumn>>,
    /// What it is given: the values of one item, or columns of many; by its annotations where absent.
    pub given: Option<Spanned<PythonGiven>>,
    /// Whether it gives any number of rows for an item, as a generator does.
    pub fan_out: Option<Spanned<bool>>,
    /// Calls of an async function at a time, in each process.
    pub calls: Option<Spanned<u64>>,
    /// Calls in a time, of all processes together.
    pub rate_limit: Option<Spanned<Rate>>,
    /// Tells one version of the function from another, for caches.
    pub version: Option<Spanned<String>>,
    /// How long the function may take to load.
    pub start_timeout: Option<Spanned<Duration>>,
    /// Bytes of data of a process.
    pub memory: Option<Spanned<Limit>>,
    /// Seconds of CPU time over the life of a process.
    pub cpu_seconds: Option<Spanned<Limit>>,
    /// Open files.
    pub open_files: Option<Spanned<Limit>>,
    /// Bytes of the largest answer.
    pub max_answer_bytes: Option<Spanned<u64>>,
}

/// So many calls in a second, a minute or an hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Calls.
    pub calls: u64,
    /// Seconds of the time in which they may be made: 1, 60 or 3600.
    pub seconds: u32,
}

impl Rate {
    /// The words of times, with their seconds.
    pub const UNITS: [(&'static str, u32); 3] = [("s", 1), ("min", 60), ("h", 3600)];

    /// Calls in a second.
    pub fn per_second(self) -> f64 {
        self.calls as f64 / f64::from(self.seconds.max(1))
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let unit = Self::UNITS.into_iter().find(|(_, seconds)| *seconds == self.seconds).map_or("s", |(name, _)| name);
        write!(f, "{}/{unit}", self.calls)
    }
}

/// What a Python function is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PythonGiven {
    /// The values of one item.
    Values,
    /// Columns, as `pyarrow.Array`.
    Arrow,
    /// Columns, as `numpy.ndarray`.
    Numpy,
    /// Columns, as `pandas.Series`.
    Pandas,
    /// Columns, as `polars.Series`.
    Polars,
}

/// A limit on a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Whatever the machine allows.
    None,
    /// This much.
    Most(u64),
}

/// How a program is fed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CommandFormat {
    /// One JSON object a line.
    JsonLines,
    /// An Arrow IPC stream.
    Arrow,
}

/// A column that a program adds.
#[derive(Debug, Clone)]
pub struct OutputColumn {
    /// Its type.
    pub kind: Spanned<LogicalType>,
    /// Whether it may be null; where it is not said, it may.
    pub nullable: Option<Spanned<bool>>,
}

words!(OnMissing { Null = "null", Skip = "skip", Fail = "fail" });
words!(Matches { All = "all", First = "first", One = "one" });
words!(PythonGiven {
    Values = "values",
    Arrow = "arrow",
    Numpy = "numpy",
    Pandas = "pandas",
    Polars = "polars",
});
words!(CommandFormat { JsonLines = "json_lines", Arrow = "arrow" });

impl HttpStep {
    /// A GET request to the path after the connection's base, everything else as by default.
    pub fn new(from: impl Into<String>, connection: impl Into<String>, path: Template) -> Self {
        HttpStep {
            from: Spanned::bare(from.into()),
            connection: Spanned::bare(connection.into()),
            method: None,
            path,
            query: Vec::new(),
            headers: Vec::new(),
            body: None,
            response: Spanned::bare(IndexMap::new()),
            ok: None,
            not_found: None,
            not_found_statuses: None,
            retry_statuses: None,
            many: None,
            idempotency_header: None,
        }
    }

    /// Every template in it.
    pub fn templates(&self) -> Vec<&Template> {
        let mut all = vec![&self.path];
        all.extend(self.query.iter().chain(&self.headers).map(|(_, template)| template));
        match self.body.as_ref().map(|body| &body.value) {
            Some(HttpBody::Json(json)) => all.extend(json.templates()),
            Some(HttpBody::Text { text, .. }) => all.push(text),
            Some(HttpBody::Form(fields)) => all.extend(fields.iter().map(|(_, template)| template)),
            Some(HttpBody::Column { .. }) | None => {}
        }
        all.extend(self.many.iter().flat_map(|many| many.envelope.iter()).flat_map(JsonTemplate::templates));
        all
    }

    /// Where an option stands; nowhere if it is not set.
    pub fn place(&self, option: &str) -> Span {
        fn of<T>(value: &Option<Spanned<T>>) -> Span {
            value.as_ref().map_or(Span::NONE, |value| value.span)
        }
        let first = |pairs: &[(Spanned<String>, Template)]| pairs.first().map_or(Span::NONE, |(name, _)| name.span);
        match option {
            "from" => self.from.span,
            "connection" => self.connection.span,
            "method" => of(&self.method),
            "path" => self.path.span,
            "query" => first(&self.query),
            "headers" => first(&self.headers),
            "body" => of(&self.body),
            "response" => self.response.span,
            "ok" => of(&self.ok),
            "not_found" => of(&self.not_found),
            "not_found_statuses" => of(&self.not_found_statuses),
            "retry_statuses" => of(&self.retry_statuses),
            "many" => of(&self.many),
            "idempotency_header" => of(&self.idempotency_header),
            _ => Span::NONE,
        }
    }
}

impl LookupStep {
    /// A query for each item, everything else as by default.
    pub fn new(from: impl Into<String>, connection: impl Into<String>, query: impl Into<String>) -> Self {
        LookupStep {
            from: Spanned::bare(from.into()),
            connection: Spanned::bare(connection.into()),
            query: MappedText::bare(query),
            types: IndexMap::new(),
            on_missing: None,
            matches: None,
        }
    }
}

impl CommandStep {
    /// A program, the columns that it gets and those that it adds, everything else as by default.
    pub fn new(from: impl Into<String>, argv: Vec<Template>) -> Self {
        CommandStep {
            from: Spanned::bare(from.into()),
            argv: Spanned::bare(argv),
            format: None,
            reads: Spanned::bare(Vec::new()),
            output: Spanned::bare(IndexMap::new()),
            fan_out: None,
            env: IndexMap::new(),
            pass_env: Vec::new(),
            secret_env: IndexMap::new(),
            working_directory: None,
            memory: None,
            cpu_seconds: None,
            open_files: None,
            file_bytes: None,
            max_answer_bytes: None,
            version: None,
        }
    }

    /// Every template in it.
    pub fn templates(&self) -> Vec<&Template> {
        self.argv.iter().chain(self.env.values()).chain(&self.working_directory).collect()
    }

    /// Where an option stands; nowhere if it is not set.
    pub fn place(&self, option: &str) -> Span {
        match option {
            "from" => self.from.span,
            "argv" => self.argv.span,
            "reads" => self.reads.span,
            "output" => self.output.span,
            "env" => self.env.values().next().map_or_else(
                || {
                    let secret = self.secret_env.values().next().map(|secret| secret.span);
                    secret.or_else(|| self.pass_env.first().map(|name| name.span)).unwrap_or(Span::NONE)
                },
                |value| value.span,
            ),
            "max_answer_bytes" => self.max_answer_bytes.as_ref().map_or(Span::NONE, |bytes| bytes.span),
            _ => Span::NONE,
        }
    }
}

impl PythonStep {
    /// A function, everything else as by default.
    pub fn new(from: impl Into<String>, function: impl Into<String>) -> Self {
        PythonStep {
            from: Spanned::bare(from.into()),
            function: Spanned::bare(function.into()),
            reads: Spanned::bare(Vec::new()),
            output: Spanned::bare(IndexMap::new()),
            given: None,
            fan_out: None,
            calls: None,
            rate_limit: None,
            version: None,
            start_timeout: None,
            memory: None,
            cpu_seconds: None,
            open_files: None,
            max_answer_bytes: None,
        }
    }

    /// Where an option stands; nowhere if it is not set.
    pub fn place(&self, option: &str) -> Span {
        fn of<T>(value: &Option<Spanned<T>>) -> Span {
            value.as_ref().map_or(Span::NONE, |value| value.span)
        }
        match option {
            "from" => self.from.span,
            "function" => self.function.span,
            "reads" => self.reads.span,
            "output" => self.output.span,
            "given" => of(&self.given),
            "fan_out" => of(&self.fan_out),
            "calls" => of(&self.calls),
            "start_timeout" => of(&self.start_timeout),
            "max_answer_bytes" => of(&self.max_answer_bytes),
            _ => Span::NONE,
        }
    }
}
