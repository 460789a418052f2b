//! The keys of steps: their kinds and what they do about their items.

use super::{CLASSES, Key, Shape, Table, key, required};
use crate::model::{
    CacheTier, CommandFormat, Effects, FAILURE_CODES, Jitter, Matches, Metric, ModelDevice, OnMissing, PythonGiven,
    RowOrder, StepKind,
};

/// What a step takes beside its kind.
pub(crate) const STEP: Table = Table {
    what: "a step",
    keys: &[
        key("sql", Shape::Sql, "One query over sources and other steps, with `$name` for parameters."),
        key("http", Shape::Object(&HTTP), "A request for each item, or for many."),
        key("lookup", Shape::Object(&LOOKUP), "A query against a database for each item."),
        key("command", Shape::Object(&COMMAND), "A program of yours, kept running and fed items."),
        key("python", Shape::Object(&PYTHON), "A function of yours, called in processes of its own."),
        key("gpu", Shape::Object(&GPU), "A similarity search; on a GPU where there is one, else on the CPU."),
        key("model", Shape::Object(&MODEL), "A model in ONNX."),
        key(
            "effects",
            Shape::Word(Effects::WORDS),
            "What running it again means; by the step's kind where absent. Not for `sql`.",
        ),
        key(
            "on_error",
            Shape::Either(&[Shape::Word(ON_ERROR_WORDS), Shape::Object(&ON_ERROR)]),
            "What becomes of an item that failed for good (`fail`).",
        ),
        key(
            "max_errors",
            Shape::Either(&[Shape::Count(0), Shape::Share, Shape::Object(&MAX_ERRORS)]),
            "How many items, or what share of them, may fail before the run stops.",
        ),
        key(
            "retry",
            Shape::Either(&[Shape::Count(1), Shape::Word(&["none"]), Shape::Object(&RETRY)]),
            "When an item is tried again: attempts in all, `none`, or a mapping (4 attempts). Not for `sql`.",
        ),
        key(
            "timeout",
            Shape::Duration,
            "The longest that one attempt may take; of a `command` that is fed JSON lines, one item of it. Not for `sql`.",
        ),
        key(
            "deadline",
            Shape::Duration,
            "The longest that an item may take, all attempts and waits together. Not for `sql`.",
        ),
        key("batch", Shape::Object(&BATCH), "Items that are handed on together. Not for `sql` and `http`."),
        key(
            "in_flight",
            Shape::Count(1),
            "Requests, queries, programs or Python processes at once; by the step's kind where absent. Not for `sql`.",
        ),
        key(
            "cache",
            Shape::Object(&CACHE),
            "Keeps answers, so that equal items are not asked again; of a `sql` step the whole result (`ttl` only).",
        ),
        key(
            "order",
            Shape::Word(RowOrder::WORDS),
            "In which order rows come out: `input`, that of the whole input; `any`, as results come in. Where absent, that of the input within each part of it that is worked on at a time. Not for `sql`.",
        ),
        key("resources", Shape::Object(&RESOURCES), "What the step needs."),
        key("description", Shape::Text, "A sentence for people."),
    ],
};

/// The keys of [`STEP`] that are kinds.
pub(crate) const KINDS: &[&str] = StepKind::KEYS;

/// What `on_error` takes as a word.
pub(crate) const ON_ERROR_WORDS: &[&str] = &["fail", "skip", "dead_letter"];

pub(crate) const RESOURCES: Table = Table {
    what: "the resources of a step",
    keys: &[
        key("class", Shape::OpenWord(CLASSES), "The class of executor; by the step's kind where absent."),
        key(
            "memory",
            Shape::Size,
            "Memory that an executor of a cluster keeps for each partition that it works on: it works on fewer at a time. In one process `execution.memory` holds for everything. For `sql` alone.",
        ),
    ],
};

pub(crate) const ON_ERROR: Table = Table {
    what: "`on_error`",
    keys: &[required(
        "default",
        Shape::Map(&Shape::Literal),
        "The step's columns and the values that they get; columns that are not listed become null.",
    )],
};

pub(crate) const MAX_ERRORS: Table = Table {
    what: "`max_errors`",
    keys: &[
        required("share", Shape::Share, "The share of the items that may fail, such as `1%`."),
        key("after", Shape::Count(1), "Items that must have been seen before the share is judged (1000)."),
    ],
};

pub(crate) const RETRY: Table = Table {
    what: "`retry`",
    keys: &[
        key("attempts", Shape::Count(1), "Attempts in all, the first included (4)."),
        key("initial_backoff", Shape::Duration, "The wait after the first attempt (`200ms`)."),
        key("factor", Shape::Factor, "What the wait is multiplied by after each attempt (2)."),
        key("max_backoff", Shape::Duration, "The longest wait (`30s`)."),
        key("jitter", Shape::Word(Jitter::WORDS), "`full` waits anything from nothing to the whole wait (`full`)."),
        key("honour_retry_after", Shape::Bool, "Whether a wait that the other side asks for is kept (true)."),
        key("max_retry_after", Shape::Duration, "The longest such wait; a longer one is cut to this (`5m`)."),
        key(
            "codes",
            Shape::Either(&[Shape::Word(FAILURE_CODES), Shape::Columns]),
            "Kinds of failures that are tried again beside those that usually pass, one or a list.",
        ),
        key("statuses", Shape::Statuses, "HTTP statuses that are tried again beside the usual ones."),
    ],
};

pub(crate) const BATCH: Table = Table {
    what: "`batch`",
    keys: &[
        key("rows", Shape::Count(1), "Items at most."),
        key("bytes", Shape::Size, "Bytes of their columns at most; a single item may be larger."),
    ],
};

pub(crate) const CACHE: Table = Table {
    what: "`cache`",
    keys: &[
        key("key", Shape::Columns, "The columns that make two items the same; those that the step reads where absent."),
        key("ttl", Shape::Duration, "How long an answer is good for; without it, for ever."),
        key("tier", Shape::Word(CacheTier::WORDS), "Where answers are kept (`memory`)."),
        key("max_size", Shape::Size, "Bytes that the answers of this step may take."),
        key("connection", Shape::Name, "The redis connection, with `tier: redis`."),
    ],
};

const FROM: Key = required("from", Shape::Name, "The step or source whose rows it takes.");

const CONNECTION: Key = required("connection", Shape::Name, "The name of a connection of the configuration.");

const METHODS: &[&str] = &["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

pub(crate) const HTTP: Table = Table {
    what: "an `http` step",
    keys: &[
        FROM,
        CONNECTION,
        key("method", Shape::OpenWord(METHODS), "The method, in capitals (`GET`)."),
        required("path", Shape::Template, "The path after the connection's base, beginning with `/`."),
        key("query", Shape::Map(&Shape::Templates), "Parameters of the query; one with a null in it is left out."),
        key("headers", Shape::Map(&Shape::Templates), "Headers; one with a null in it is left out."),
        key("body", Shape::Object(&HTTP_BODY), "The body."),
        required("response", Shape::Map(&Shape::Object(&HTTP_RESPONSE)), "The columns that the step adds."),
        key("ok", Shape::StatusRanges, "Statuses that mean success (`200-299`)."),
        key(
            "not_found",
            Shape::WordOrNull(OnMissing::WORDS),
            "What to do when there is nothing for an item: null columns, no row, or an error (`fail`).",
        ),
        key("not_found_statuses", Shape::Statuses, "Statuses that mean that (`404`)."),
        key(
            "retry_statuses",
            Shape::Statuses,
            "Statuses worth another attempt, instead of 408, 425, 429, 500, 502, 503 and 504.",
        ),
        key("many", Shape::Object(&HTTP_MANY), "Sends many items in one request."),
        key(
            "idempotency_header",
            Shape::Text,
            "The header that carries the key of the item with every method but GET, HEAD and OPTIONS; `none` sends none (`Idempotency-Key`).",
        ),
    ],
};

pub(crate) const HTTP_BODY: Table = Table {
    what: "the body of an `http` step",
    keys: &[
        key("json", Shape::Json, "JSON; a string that is one `{column}` becomes the value with its type."),
        key("text", Shape::Template, "A text."),
        key("form", Shape::Map(&Shape::Templates), "The fields of a form."),
        key("column", Shape::Text, "The text or binary column that is the body."),
        key(
            "content_type",
            Shape::Text,
            "The content type of a text (`text/plain; charset=utf-8`) or a column (`application/octet-stream`).",
        ),
    ],
};

pub(crate) const HTTP_RESPONSE: Table = Table {
    what: "a column of the response",
    keys: &[
        key(
            "json",
            Shape::Text,
            "A JSON pointer such as `/main/temp`; an empty text is the whole answer. Needs `type`.",
        ),
        key("body", Shape::Word(&["string", "binary"]), "The whole body as this type."),
        key("status", Shape::Word(&["int32", "int64", "uint16"]), "The status as this type."),
        key("header", Shape::Text, "A header of this name, as text."),
        key("type", Shape::Type, "The type of a value found by `json`."),
        key("nullable", Shape::Bool, "Whether it may be null; if not, a missing value fails the item (true)."),
    ],
};

pub(crate) const HTTP_MANY: Table = Table {
    what: "`many` of an `http` step",
    keys: &[
        required("max_items", Shape::Count(1), "Items of a request at most."),
        key("max_bytes", Shape::Size, "Bytes of the items' columns at most (`1MiB`)."),
        key("envelope", Shape::Json, "What stands around the array of items, with `\"{items}\"` in its place."),
        key("results", Shape::Text, "JSON pointer to the array of results; the whole answer where absent."),
        key(
            "match",
            Shape::Either(&[Shape::Word(&["order"]), Shape::Object(&HTTP_MATCH)]),
            "Which result is whose: by order, or by a value that the result repeats (`order`).",
        ),
        key("error", Shape::Text, "JSON pointer within a result to its error."),
    ],
};

pub(crate) const HTTP_MATCH: Table = Table {
    what: "`match` of an `http` step",
    keys: &[
        required("column", Shape::Text, "The item's column."),
        required("pointer", Shape::Text, "JSON pointer to the same value within the result."),
    ],
};

pub(crate) const LOOKUP: Table = Table {
    what: "a `lookup` step",
    keys: &[
        FROM,
        CONNECTION,
        required(
            "query",
            Shape::Sql,
            "The query for one item; `{column}` is that column's value, bound. It takes no `${params.NAME}`.",
        ),
        key(
            "types",
            Shape::Map(&Shape::Type),
            "Types of columns for which the database's own are not wanted or not known.",
        ),
        key(
            "on_missing",
            Shape::WordOrNull(OnMissing::WORDS),
            "What to do with an item for which there is no row (`null`).",
        ),
        key(
            "matches",
            Shape::Word(Matches::WORDS),
            "What to do with an item for which there are several rows: a row for each, the first, or an error (`all`).",
        ),
    ],
};

pub(crate) const COMMAND: Table = Table {
    what: "a `command` step",
    keys: &[
        FROM,
        required("argv", Shape::TemplateList, "The program and its arguments; no shell looks at them."),
        key("format", Shape::Word(CommandFormat::WORDS), "How items and answers are written (`json_lines`)."),
        required("reads", Shape::Columns, "The columns that the program gets."),
        required("output", Shape::Map(&Shape::TypeOr(&OUTPUT)), "The columns that it adds, with their types."),
        key("fan_out", Shape::Bool, "Whether it gives any number of rows for an item (false)."),
        key("env", Shape::Map(&Shape::Template), "Environment variables with these values."),
        key("pass_env", Shape::Columns, "Environment variables that are handed on from ours, one or a list."),
        key("secret_env", Shape::Map(&Shape::Secret), "Environment variables whose values are secrets."),
        key("working_directory", Shape::Template, "Where it runs; where we run, if absent."),
        key(
            "memory",
            Shape::Either(&[Shape::Size, Shape::Word(&["none"])]),
            "Bytes of address space of a process (`8GiB`).",
        ),
        key(
            "cpu_seconds",
            Shape::Either(&[Shape::Count(1), Shape::Word(&["none"])]),
            "Seconds of CPU time over the life of a process (`none`).",
        ),
        key(
            "open_files",
            Shape::Either(&[Shape::Count(1), Shape::Word(&["none"])]),
            "Files that a process may have open (1024).",
        ),
        key(
            "file_bytes",
            Shape::Either(&[Shape::Size, Shape::Word(&["none"])]),
            "Bytes of the largest file that a process may write (`1GiB`).",
        ),
        key("max_answer_bytes", Shape::Size, "Bytes of the largest answer: a line, or a record batch (`16MiB`)."),
        key(
            "version",
            Shape::Text,
            "Tells one version of the program from another, for caches; beside it, the bytes of a program that is named by a path do, and those of scripts among its arguments.",
        ),
    ],
};

pub(crate) const PYTHON: Table = Table {
    what: "a `python` step",
    keys: &[
        FROM,
        required(
            "function",
            Shape::Text,
            "`module:function`, looked for beside the workflow and where Python looks; a class with `__call__` is made once in each process.",
        ),
        required("reads", Shape::Columns, "The columns that are its arguments, in order."),
        required("output", Shape::Map(&Shape::TypeOr(&OUTPUT)), "The columns that it adds, with their types."),
        key(
            "given",
            Shape::Word(PythonGiven::WORDS),
            "What it is given: the `values` of one item, or columns of many; by its annotations where absent.",
        ),
        key("fan_out", Shape::Bool, "Whether it gives any number of rows for an item, as a generator does (false)."),
        key("calls", Shape::Count(1), "Calls of an async function at a time, in each process (256)."),
        key(
            "rate_limit",
            Shape::Rate,
            "Calls in a time, of all processes together: `50/s`, `3000/min`, `10/h` (no limit). One that is given columns is called once for each group.",
        ),
        key(
            "version",
            Shape::Text,
            "Tells one version of the function from another, for caches; beside it, the text of a module in the workflow's folder does.",
        ),
        key("start_timeout", Shape::Duration, "How long the function may take to load: imports, models (`10m`)."),
        key(
            "memory",
            Shape::Either(&[Shape::Size, Shape::Word(&["none"])]),
            "Bytes of data of a process; beyond them Python raises `MemoryError` (`none`).",
        ),
        key(
            "cpu_seconds",
            Shape::Either(&[Shape::Count(1), Shape::Word(&["none"])]),
            "Seconds of CPU time over the life of a process (`none`).",
        ),
        key(
            "open_files",
            Shape::Either(&[Shape::Count(1), Shape::Word(&["none"])]),
            "Files that a process may have open (`none`).",
        ),
        key("max_answer_bytes", Shape::Size, "Bytes of the largest answer for a group of items (`1GiB`)."),
    ],
};

pub(crate) const GPU: Table = Table {
    what: "a `gpu` step",
    keys: &[FROM, required("top_k", Shape::Object(&TOP_K), "The rows of a corpus that are most similar to each item.")],
};

pub(crate) const TOP_K: Table = Table {
    what: "`top_k` of a `gpu` step",
    keys: &[
        required("column", Shape::Text, "The column of embeddings to search with: lists of floats, of one length."),
        required(
            "corpus",
            Shape::Template,
            "The file of the corpus, Parquet or Arrow IPC; a relative path begins at the workflow's folder.",
        ),
        key("corpus_column", Shape::Text, "The corpus's column of embeddings; named as `column` if absent."),
        key("id", Shape::Text, "The corpus's column that names a row; the row's number, from 0, if absent."),
        required("k", Shape::Count(1), "Rows for each item at most: `neighbour`, `score` and `rank`, best first."),
        key(
            "metric",
            Shape::Word(Metric::WORDS),
            "What similar means: the largest cosine or dot product, or the smallest Euclidean distance (`cosine`).",
        ),
    ],
};

pub(crate) const MODEL: Table = Table {
    what: "a `model` step",
    keys: &[
        FROM,
        required("file", Shape::Template, "The model's file; a relative path begins at the workflow's folder."),
        required(
            "inputs",
            Shape::Map(&Shape::Columns),
            "The columns of each input of the model: one, or several that stand beside each other in a row.",
        ),
        key(
            "output",
            Shape::Map(&Shape::Text),
            "The model's output of each column that the step adds; all outputs, by their own names, if absent.",
        ),
        key(
            "device",
            Shape::Word(ModelDevice::WORDS),
            "Where it runs; `cuda` is an error where no GPU is, `auto` takes the CPU there (`cpu`).",
        ),
    ],
};

pub(crate) const OUTPUT: Table = Table {
    what: "a column of the output",
    keys: &[required("type", Shape::Type, "Its type."), key("nullable", Shape::Bool, "Whether it may be null (true).")],
};
