//! The keys of a workflow's text: one table for each kind of mapping.
//!
//! The reader, its suggestions and the JSON schema all go by these tables, so that none of them can know a key that
//! the others do not. A new key is one line here and one in the reader of its mapping.

mod steps;

use crate::model::{Compression, Format, SchemaPolicy};
pub(crate) use steps::*;

/// The version of the workflow format that this program reads and writes.
pub const FORMAT_VERSION: i64 = 1;

/// A mapping of the text.
#[derive(Debug)]
pub(crate) struct Table {
    /// For sentences: "a source".
    pub(crate) what: &'static str,
    pub(crate) keys: &'static [Key],
}

/// A key of a mapping.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) shape: Shape,
    /// Whether the mapping must have it.
    pub(crate) required: bool,
    /// One sentence, for the JSON schema.
    pub(crate) about: &'static str,
}

/// What a key takes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shape {
    /// [`FORMAT_VERSION`].
    Version,
    /// A text for people.
    Text,
    /// A name: see `names`.
    Name,
    /// The name of a workflow.
    WorkflowName,
    /// A query.
    Sql,
    /// A path with `${...}`.
    Path,
    /// A path or a list of them.
    Paths,
    /// `true` or `false`.
    Bool,
    /// One ASCII character.
    Character,
    /// A whole number, at least this.
    Count(i64),
    /// Any `int64`.
    Integer,
    /// The text of a type.
    Type,
    /// A value of a declared type.
    Literal,
    /// One of these words.
    Word(&'static [&'static str]),
    /// One of these words, or a name of the user's.
    OpenWord(&'static [&'static str]),
    /// A name of a column, or a list of them.
    Columns,
    /// A mapping with these keys.
    Object(&'static Table),
    /// A mapping from names to such values.
    Named(&'static Shape),
    /// The text of a type, or a mapping with these keys.
    TypeOr(&'static Table),
    /// A mapping from names of any kind (columns, headers, variables of the environment) to such values.
    Map(&'static Shape),
    /// One of several.
    Either(&'static [Shape]),
    /// A text with `${...}`.
    Template,
    /// A text with `${...}`, or a list of them.
    Templates,
    /// A list of texts with `${...}`.
    TemplateList,
    /// A time such as `250ms` or `5s`.
    Duration,
    /// A size such as `4MB`.
    Size,
    /// Calls in a time, such as `50/s`.
    Rate,
    /// A share such as `1%`.
    Share,
    /// A number, at least 1.
    Factor,
    /// A status, or a list of them.
    Statuses,
    /// A status, a range such as `200-204`, or a list of them.
    StatusRanges,
    /// One of these words, of which `null` may stand without quotes.
    WordOrNull(&'static [&'static str]),
    /// JSON, written as YAML or as a JSON text is.
    Json,
    /// Where a secret is: `env:NAME` or `file:/path`.
    Secret,
}

const fn key(name: &'static str, shape: Shape, about: &'static str) -> Key {
    Key { name, shape, required: false, about }
}

const fn required(name: &'static str, shape: Shape, about: &'static str) -> Key {
    Key { name, shape, required: true, about }
}

/// The words of resource classes that are built in.
pub(crate) const CLASSES: &[&str] = &["cpu", "memory", "io", "gpu"];

pub(crate) const WORKFLOW: Table = Table {
    what: "a workflow",
    keys: &[
        required("rowmill", Shape::Version, "The version of the workflow format: 1."),
        required("name", Shape::WorkflowName, "The workflow's name: letters, digits, `-` and `_`."),
        key("description", Shape::Text, "A sentence for people."),
        key("durable", Shape::Bool, "Whether what a run did is kept, so that one that was cut off can go on (false)."),
        key("params", Shape::Named(&Shape::TypeOr(&PARAM)), "What differs between runs, given by `--set name=value`."),
        key(
            "vars",
            Shape::Named(&Shape::TypeOr(&VARIABLE)),
            "What differs between environments, given by `--vars file`.",
        ),
        key("sources", Shape::Named(&Shape::Object(&SOURCE)), "Where rows come from."),
        key("steps", Shape::Named(&Shape::Object(&STEP)), "What is done with them."),
        key("sinks", Shape::Named(&Shape::Object(&SINK)), "Where results go."),
    ],
};

pub(crate) const PARAM: Table = Table {
    what: "a parameter",
    keys: &[
        required("type", Shape::Type, "The type of its value, such as `int64`, `date` or `list<string>`."),
        key("default", Shape::Literal, "The value when a run gives none; a parameter without one must be set."),
        key("description", Shape::Text, "A sentence for people."),
    ],
};

pub(crate) const VARIABLE: Table = Table {
    what: "a variable",
    keys: &[
        required("type", Shape::Type, "The type of its value, such as `int64`, `date` or `list<string>`."),
        key(
            "default",
            Shape::Literal,
            "The value when the environment gives none; a variable without one must be set.",
        ),
        key("description", Shape::Text, "A sentence for people."),
    ],
};

pub(crate) const SOURCE: Table = Table {
    what: "a source",
    keys: &[
        key(
            "path",
            Shape::Paths,
            "A file, a directory ending in `/`, or a glob; local or a URL; one or a list. Directories and wildcards pass over names that begin with `_` or `.`.",
        ),
        key("range", Shape::Object(&RANGE), "Generated rows: one `int64` column `value`."),
        key("format", Shape::Word(Format::WORDS), "The format of the files; told by their names where absent."),
        key(
            "compression",
            Shape::Word(Compression::WORDS),
            "Compression of text files; told by their names where absent.",
        ),
        key("schema", Shape::Named(&Shape::Type), "Columns and their types; inferred from the files where absent."),
        key("schema_policy", Shape::Word(SchemaPolicy::WORDS), "What to do when files disagree about the schema."),
        key(
            "partitions",
            Shape::Named(&Shape::Type),
            "Columns found in directory names such as `year=2013/`, with types.",
        ),
        key("csv", Shape::Object(&CSV), "How CSV is written."),
        key("description", Shape::Text, "A sentence for people."),
    ],
};

pub(crate) const RANGE: Table = Table {
    what: "a range",
    keys: &[
        key("start", Shape::Integer, "The first value; 0 where absent."),
        required("end", Shape::Integer, "One past the last value."),
    ],
};

pub(crate) const CSV: Table = Table {
    what: "the CSV options of a source",
    keys: &[
        key("header", Shape::Bool, "Whether the first line names the columns (true)."),
        key("delimiter", Shape::Character, "Between fields (`,`)."),
        key("quote", Shape::Character, "Around fields (`\"`)."),
        key("escape", Shape::Character, "Before a quote inside a quoted field, where quotes are not doubled."),
        key("comment", Shape::Character, "Lines that begin with it are passed over."),
        key("null", Shape::Text, "A field text that means null, beside the empty field, quoted or not."),
        key("newlines_in_values", Shape::Bool, "Whether a quoted field may hold a line break (false)."),
        key("infer_rows", Shape::Count(1), "Rows looked at to infer types, where no schema is declared (10000)."),
    ],
};

pub(crate) const SINK: Table = Table {
    what: "a sink",
    keys: &[
        required("from", Shape::Name, "The step or source whose rows it takes."),
        required("path", Shape::Path, "A file, or a directory ending in `/`; local or a URL."),
        key(
            "format",
            Shape::Word(Format::WORDS),
            "The format; told by the path where absent, Parquet for a directory.",
        ),
        key(
            "compression",
            Shape::Word(Compression::WORDS),
            "Compression; told by the path where absent, zstd for Parquet, lz4 for Arrow (which also takes zstd).",
        ),
        key("partition_by", Shape::Columns, "Columns that become directories (`year=2013/`), in order."),
        key("csv", Shape::Object(&SINK_CSV), "How CSV is written."),
    ],
};

pub(crate) const SINK_CSV: Table = Table {
    what: "the CSV options of a sink",
    keys: &[
        key("header", Shape::Bool, "Whether the first line names the columns (true)."),
        key("delimiter", Shape::Character, "Between fields (`,`)."),
        key("quote", Shape::Character, "Around fields (`\"`)."),
        key("escape", Shape::Character, "Before a quote inside a quoted field; quotes are doubled where absent."),
        key(
            "null",
            Shape::Text,
            "The text that is written for null. Where absent, null is nothing and an empty text is `\"\"`.",
        ),
    ],
};
