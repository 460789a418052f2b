//! The catalogue of diagnostic codes: each has a constant, a title, an explanation and a next move.
//!
//! `docs/errors/` is generated from it (a test compares; `UPDATE_DOCS=1` writes). To add a code, add one entry to the
//! table below: the constant, the page and the index follow. A code is never given a second meaning.
//!
//! | range  | about |
//! |--------|-------|
//! | RM01xx | the text and its shape |
//! | RM02xx | names and the graph |
//! | RM03xx | SQL and types |
//! | RM04xx | parameters, variables and configuration |
//! | RM05xx | sources and sinks |
//! | RM06xx | run time: the data |
//! | RM07xx | run time: the environment |
//! | RM08xx | durable runs |
//! | RM09xx | internal |

use std::fmt::Write as _;

/// One entry of the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code {
    /// `RM0103`.
    pub code: &'static str,
    /// A few words: "unknown key".
    pub title: &'static str,
    /// What went wrong and why it is refused.
    pub explanation: &'static str,
    /// What to do.
    pub action: &'static str,
}

impl Code {
    /// The page of this code, as Markdown.
    pub fn page(&self) -> String {
        format!("# {}: {}\n\n{}\n\n## What to do\n\n{}\n", self.code, self.title, self.explanation, self.action)
    }
}

/// The entry of a code.
pub fn lookup(code: &str) -> Option<&'static Code> {
    CODES.iter().find(|entry| entry.code == code)
}

/// The index of all pages, as Markdown.
pub fn index_page() -> String {
    let mut page = String::from(
        "# Error codes\n\nEvery error and warning of Rowmill has a code, and every code has a page here.\n\
         These pages are generated from `engine/spec/src/codes.rs`.\n",
    );
    for (prefix, about) in RANGES {
        let entries: Vec<&Code> = CODES.iter().filter(|entry| entry.code.starts_with(prefix)).collect();
        if entries.is_empty() {
            continue;
        }
        let _ = writeln!(page, "\n## {prefix}xx: {about}\n");
        for entry in entries {
            let _ = writeln!(page, "- [{0}]({0}.md): {1}", entry.code, entry.title);
        }
    }
    page
}

const RANGES: &[(&str, &str)] = &[
    ("RM01", "the text and its shape"),
    ("RM02", "names and the graph"),
    ("RM03", "SQL and types"),
    ("RM04", "parameters, variables and configuration"),
    ("RM05", "sources and sinks"),
    ("RM06", "run time: the data"),
    ("RM07", "run time: the environment"),
    ("RM08", "durable runs"),
    ("RM09", "internal"),
];

macro_rules! codes {
    ($($name:ident = $code:literal { $title:literal, $explanation:literal, $action:literal $(,)? })*) => {
        $(#[doc = $title] pub const $name: &str = $code;)*
        /// Every code, in ascending order.
        pub const CODES: &[Code] = &[
            $(Code { code: $code, title: $title, explanation: $explanation, action: $action },)*
        ];
    };
}

codes! {
    // RM01xx: the text and its shape.
    YAML_SYNTAX = "RM0101" {
        "the text is not valid YAML",
        "The text could not be read as YAML, so nothing in it could be checked. The place is where the reader gave up; the cause is often a line or two above it: a missing colon, an unclosed quote or bracket, or lines that are not indented alike.",
        "Correct the text at the place shown. Quote values that hold `: `, ` #`, or begin with one of `{}[]&*!|>'\"%@`. Write long SQL as a block: `sql: |` and the query indented below it.",
    }
    TEXT_LIMIT = "RM0102" {
        "the text goes beyond a limit",
        "A workflow's text may have 16 MiB, 64 levels of nesting and a million values. The limits keep a hostile or broken file from taking the machine's memory.",
        "Split the workflow in several, or generate less of it. Data belongs in files that a source reads, not in the workflow's text.",
    }
    UNKNOWN_KEY = "RM0103" {
        "unknown key",
        "The text holds a key that has no meaning at this place. Unknown keys are refused rather than ignored, because a misspelt setting that is silently dropped is worse than an error.",
        "Correct the key as suggested, move it to where it belongs, or remove it. The report lists the keys that are known at this place.",
    }
    DUPLICATE_KEY = "RM0104" {
        "a key stands twice",
        "One mapping has the same key twice, so one of the two values would be lost.",
        "Remove or rename one of the two places shown.",
    }
    WRONG_TYPE = "RM0105" {
        "a value has the wrong type",
        "The value at the place shown is not of the type that the key takes: a list where a text was wanted, a text where a number was wanted, and so on.",
        "Write the value as the report says. A number or a word such as `true` that is meant as text needs quotes.",
    }
    MISSING_KEY = "RM0106" {
        "a required key is missing",
        "A mapping lacks a key that it must have.",
        "Add the key that the report names.",
    }
    FORMAT_VERSION = "RM0107" {
        "the version of the workflow format is missing or not known",
        "A workflow's text says the version of its format, `rowmill: 1`, so that a later version may change the meaning of keys without breaking older texts. A text of a newer version is refused, since it may hold settings that this program would not obey.",
        "Begin the text with `rowmill: 1`. If the text says a newer version, use a newer Rowmill.",
    }
    UNSUPPORTED_YAML = "RM0108" {
        "a feature of YAML that workflows do not use",
        "Anchors (`&x`), aliases (`*x`), merge keys (`<<`), tags (`!x`), keys that are not texts, and several documents in one file are refused: they make texts that look small and grow large, and places in the text ambiguous.",
        "Write the value out at each place. What is to be shared between places belongs in `vars` or in a step.",
    }
    EMPTY_TEXT = "RM0109" {
        "the text is empty",
        "The file holds nothing, or only comments, where a workflow (or a mapping of values) was wanted.",
        "Write at least `rowmill: 1`, a `name`, a source and a step.",
    }
    BAD_NAME = "RM0110" {
        "a name cannot be used",
        "Names of sources, steps, sinks, parameters and variables begin with a letter or `_` and go on with letters, digits and `_`, so that SQL can use them without quotes. A workflow's name may also hold `-`. Names have at most 128 characters.",
        "Rename it; the report suggests a spelling where there is an obvious one.",
    }
    BAD_VALUE = "RM0111" {
        "a value is not one of those allowed",
        "The value has the right type, but is not one that the key takes: an unknown word, a number out of range, or a text of the wrong form.",
        "Use one of the values that the report names.",
    }
    BAD_TYPE = "RM0112" {
        "a type is not known",
        "The text of a type could not be read. The types are bool, int8 to int64, uint8 to uint64, float32, float64, decimal(precision, scale), string, binary, date, time(unit), timestamp(unit) or timestamp(unit, zone), list<T> and struct<name: T, ...>.",
        "Use one of these types. `int` is int64, `float` and `double` are float64, `text` is string.",
    }
    NOT_APPLICABLE = "RM0113" {
        "a setting does not apply here",
        "The setting is known, but has no effect together with the others, such as `csv` options of a Parquet file. It is refused because someone expected an effect.",
        "Remove the setting, or change the format it was written for.",
    }
    BAD_COMBINATION = "RM0114" {
        "settings that cannot work together",
        "Each setting alone is fine, but not both: such as bzip2 compression, which Parquet does not have.",
        "Change one of the places shown; the report names what fits.",
    }
    BAD_TEMPLATE = "RM0115" {
        "a `${...}` reference cannot be read",
        "In paths, `${params.NAME}` stands for a parameter and `${vars.NAME}` for a variable. Anything else between `${` and `}` is refused.",
        "Correct the reference. For a literal `${` write `$${`.",
    }
    UNKNOWN_FORM = "RM0116" {
        "the file is not known to be a workflow",
        "A workflow's form is told by its file name: `.yaml` and `.yml` are YAML, `.sql` is SQL.",
        "Rename the file.",
    }
    SQL_FILE_SYNTAX = "RM0117" {
        "a statement of a SQL workflow cannot be read",
        "A workflow as a `.sql` file consists of `CREATE EXTERNAL TABLE` (a source), `CREATE VIEW ... AS` (a step) and `COPY ... TO` (a sink) statements, separated by semicolons, and of comment lines such as `-- param month int64 = 1`.",
        "Correct the statement at the place shown.",
    }
    SQL_FILE_STATEMENT = "RM0118" {
        "a statement that a SQL workflow does not take",
        "Only `CREATE EXTERNAL TABLE`, `CREATE VIEW` and `COPY` are statements of a workflow. Others, such as `INSERT`, `SET` or a bare `SELECT`, have no place in one.",
        "Make the query a step (`CREATE VIEW name AS SELECT ...`) and write its rows with `COPY name TO 'path'`.",
    }
    NOTHING_TO_DO = "RM0119" {
        "the workflow has no steps",
        "A workflow without steps does nothing.",
        "Add at least one step: `steps: {name: {sql: SELECT ...}}`.",
    }
    NOT_IN_YAML = "RM0120" {
        "the workflow cannot be written as text",
        "A source that the embedding program provides has no form in a workflow's text.",
        "Use files or a range as the source before writing the workflow out.",
    }

    UNREADABLE_TEXT = "RM0121" {
        "a text cannot be read",
        "The workflow, the configuration file or the file of variables does not exist, may not be read, or is not UTF-8.",
        "Check the path and the permissions.",
    }
    // RM02xx: names and the graph.
    UNKNOWN_RELATION = "RM0201" {
        "unknown source or step",
        "A step's SQL reads from a name that is neither a source nor another step of the workflow.",
        "Correct the name as suggested, or add the source or the step.",
    }
    CYCLE = "RM0202" {
        "steps depend on each other in a circle",
        "A step needs, through other steps, its own result. Steps form a graph without circles.",
        "Break the circle at one of the places shown, for instance by reading the source instead of the later step.",
    }
    DUPLICATE_NAME = "RM0203" {
        "two things have one name",
        "Sources and steps share one space of names, because SQL selects from both. SQL does not tell capitals from small letters, so names that differ only in case are the same name.",
        "Rename one of the two places shown.",
    }
    UNKNOWN_FROM = "RM0204" {
        "a sink reads from an unknown step",
        "The `from` of a sink names neither a step nor a source of the workflow.",
        "Correct the name as suggested, or add the step.",
    }
    UNNEEDED_STEP = "RM0205" {
        "a step that nothing needs",
        "No sink and no other step reads from this step, so it does not run.",
        "Give it a sink, or remove it. It can still be run on its own by naming it as the target.",
    }
    UNUSED_SOURCE = "RM0206" {
        "a source that nothing reads",
        "No step and no sink reads from this source.",
        "Remove the source, or use it.",
    }
    SAME_TARGET = "RM0207" {
        "two sinks write to one place",
        "Two sinks have the same path, so one would overwrite the other.",
        "Give each sink a path of its own.",
    }
TOO_MANY_STEPS = "RM0208" {
        "too many steps",
        "A workflow has at most 10,000 steps; beyond that it no longer compiles within seconds.",
        "Write many steps of one shape as one step over more rows.",
    }
    UNKNOWN_KIND = "RM0209" {
        "a step kind that the program does not have",
        "The workflow has a step of a kind that the program that runs it was built without.",
        "Run it with the `rowmill` command, which has all kinds.",
    }

    // RM03xx: SQL and types.
    SQL_SYNTAX = "RM0301" {
        "SQL that cannot be parsed",
        "The text of a step is not a query, at the place that the report shows.",
        "Correct the query. The dialect is DataFusion's.",
    }
    NOT_A_QUERY = "RM0302" {
        "a step that is no query",
        "A step is one SELECT (or VALUES, or WITH). Statements that define, change or write anything are not steps: sources say what is read, sinks what is written.",
        "Write a SELECT, and declare files under `sources` and `sinks`.",
    }
    SEVERAL_STATEMENTS = "RM0303" {
        "several statements in one step",
        "A step is one query.",
        "Make a step of each statement.",
    }
    UNKNOWN_COLUMN = "RM0304" {
        "unknown column",
        "The query reads a column that none of its inputs has. Unquoted names match whatever their case, quoted ones exactly.",
        "Correct the name as suggested. `rowmill explain` lists the columns of every step.",
    }
    AMBIGUOUS_COLUMN = "RM0305" {
        "ambiguous column",
        "More than one input has a column of this name.",
        "Put the table's name or alias before it.",
    }
    UNKNOWN_FUNCTION = "RM0306" {
        "unknown function",
        "No scalar, aggregate, window or table function has this name.",
        "Correct the name as suggested.",
    }
    TYPE_MISMATCH = "RM0307" {
        "types that do not fit",
        "An operator or a function was given types that it does not take, and no safe conversion exists.",
        "Convert one side: `CAST(column AS type)`, or `TRY_CAST`, which makes what cannot be converted null.",
    }
    UNPLANNABLE_QUERY = "RM0308" {
        "a query that cannot be planned",
        "The query is well-formed, but cannot be carried out as it stands.",
        "Read the message; it says what the planner missed.",
    }
    UNDECLARED_PLACEHOLDER = "RM0309" {
        "a placeholder without a parameter",
        "The query holds `$name`, and the workflow declares no parameter of that name. Placeholders are bound as typed values and never pasted into the text.",
        "Declare the parameter under `params`, or correct the name.",
    }
    NOT_GROUPED = "RM0310" {
        "a column that is neither grouped nor aggregated",
        "In a query with GROUP BY or aggregates every selected column must be one of the groups or inside an aggregate.",
        "Add the column to GROUP BY, or aggregate it.",
    }
    DUPLICATE_COLUMN = "RM0311" {
        "two output columns of one name",
        "Whoever reads the step could not tell the columns apart.",
        "Give each a name of its own: `... AS name`.",
    }
    NOT_ROW_WISE = "RM0312" {
        "an error policy on a query that is not row-wise",
        "`on_error` and `max_errors` speak of single rows, so on a `sql` step they need a query that makes each of its rows from one row of one input: columns, expressions and WHERE. A join, an aggregate, DISTINCT, ORDER BY, LIMIT, a window, UNION, unnest or a subquery leaves no row to blame.",
        "Put the conversions that may fail into a SQL step of their own with the error policy, and let the wide query read that step.",
    }
    UNKEEPABLE = "RM0313" {
        "a result that cannot be kept",
        "The whole result of a SQL step is kept by what it hangs on: text, parameters and files. This one hangs on more: on rows of a step that is not simply SQL, or on a function whose value changes.",
        "Remove `cache`, or put what changes into a step that reads this one.",
    }

    // RM04xx: parameters, variables and configuration.
    UNKNOWN_PARAM = "RM0401" {
        "unknown parameter",
        "A parameter was used or set that the workflow does not declare.",
        "Correct the name as suggested, or declare it under `params`.",
    }
    UNKNOWN_VAR = "RM0402" {
        "unknown variable",
        "A variable was used or set that the workflow does not declare.",
        "Correct the name as suggested, or declare it under `vars`.",
    }
    BAD_LITERAL = "RM0403" {
        "a value does not fit its declared type",
        "A default, or a value given for a run, cannot be read as the type that the parameter or variable declares, or lies outside its range.",
        "Give a value of the declared type, or change the declaration.",
    }
    MISSING_VALUE = "RM0404" {
        "a parameter or variable has no value",
        "The parameter or variable has no default, and none was given for this run.",
        "Set a parameter with `--set NAME=VALUE` and a variable in the file of `--vars`, or declare a default.",
    }
    UNKNOWN_SETTING = "RM0405" {
        "unknown configuration setting",
        "A configuration file, a flag or an environment variable that begins with `ROWMILL_` names a setting that does not exist. It is refused because someone expected an effect.",
        "Correct the name as suggested. All settings are listed in docs/reference/configuration.md.",
    }
    BAD_SETTING = "RM0406" {
        "a configuration value cannot be used",
        "The value of a setting cannot be read as its type, or lies outside its range.",
        "Give a value as the report describes. Sizes are written `512MB` or `2GiB`; secrets as `env:NAME` or `file:/path`.",
    }
    PLAIN_SECRET = "RM0407" {
        "a secret stands in plain text",
        "A configuration file holds a secret itself. Files are copied, committed and shown; a secret in one of them is soon everywhere.",
        "Write a reference instead: `env:NAME` reads an environment variable, `file:/path` a file that only you can read.",
    }
    UNUSABLE_TYPE = "RM0408" {
        "a type that parameters and variables cannot have",
        "Parameters and variables hold single values (numbers, texts, dates, timestamps) and lists of them, but neither structs, bytes nor times of day.",
        "Declare it as one of the types that the report names.",
    }
    PATH_VALUE = "RM0409" {
        "a value that leads out of a path",
        "A parameter or variable inside a path may not be absolute, hold `..` or a backslash, or be empty: it could lead a sink out of its folder. A value that stands alone or at the front may be any path.",
        "Give a name or a relative path.",
    }
    MISSING_SECRET = "RM0410" {
        "a secret that is not there",
        "The configuration refers to an environment variable or a file that does not exist or is empty.",
        "Set the variable or write the file.",
    }

    UNKNOWN_CONNECTION = "RM0411" {
        "a connection that is not declared",
        "A step names a connection that the configuration does not have.",
        "Declare it under `connections:` in the configuration, or correct the name.",
    }
    UNDESCRIBED_STEP = "RM0412" {
        "a step whose columns cannot be known",
        "The columns that a step adds are asked of its connection or follow from its options, and could not be made out.",
        "Do what the report says; a database must be reachable while its workflow is checked.",
    }
    COMMAND_LINE = "RM0420" {
        "a command line that cannot be understood",
        "A flag or an argument of the command does not exist, is missing, or has a value that it cannot have.",
        "Look at `rowmill help COMMAND`.",
    }

    // RM05xx: sources and sinks.
    BAD_PATH = "RM0501" {
        "a path that cannot be understood",
        "The path is empty, holds a NUL, has an unknown scheme, or its wildcards make no pattern.",
        "Correct the path. Local paths start at the workflow's folder; URLs begin with s3, gs, az, abfss, http or https.",
    }
    NO_FILES = "RM0502" {
        "no file at the path",
        "Nothing is there, nothing matches the pattern, or the program did not provide the source.",
        "Correct the path; the report names what is near.",
    }
    STORE_FAILED = "RM0503" {
        "a store that cannot be reached",
        "The object store refused or did not answer.",
        "Check the `object_store` section of the configuration and the credentials in the environment.",
    }
    UNKNOWN_FORMAT = "RM0504" {
        "a format that is not known",
        "The name of the file does not tell its format, or the files of one source are of several.",
        "Say `format`: parquet, csv, json or arrow.",
    }
    UNREADABLE_FILE = "RM0505" {
        "a file that cannot be read",
        "The file is empty, torn, or not of the format that its name or the workflow says.",
        "Write the file again, or correct `format` and `csv`.",
    }
    SCHEMA_DISAGREEMENT = "RM0506" {
        "files that disagree about the schema",
        "Under `schema_policy: strict` all files of a source have the same columns and types; under `union` columns are united by name and numbers widen, but text and numbers never unite.",
        "Choose `schema_policy: union`, or declare the schema.",
    }
    DECLARED_SCHEMA = "RM0507" {
        "a declared schema that the files do not have",
        "A declared column is missing from a file, or a typed file holds it as a type that does not widen to the declared one.",
        "Correct the declaration, or convert the column in a step.",
    }
    PARTITION_FOLDERS = "RM0508" {
        "partition folders that do not fit",
        "`partitions` names a folder such as `year=2013/` that a path does not have, whose value is not of the declared type, or whose name is also a column.",
        "Correct the declaration or the path.",
    }
    SINK_COMPRESSION = "RM0509" {
        "a compression that the sink cannot write",
        "The writer of this format does not offer the compression.",
        "Leave `compression` out, or choose one that the report names.",
    }
    SINK_PLACE = "RM0510" {
        "a place that a sink may not replace",
        "A sink replaces what it published before and nothing else: not a file by a directory, not a directory by a file, and no directory with files of others.",
        "Choose another path, or empty the directory.",
    }
    SINKS_OVERLAP = "RM0511" {
        "sinks that write to the same place",
        "Two sinks have the same path, or one lies inside the other.",
        "Give each sink a path of its own.",
    }
    PARTITION_COLUMNS = "RM0512" {
        "partition columns that do not fit",
        "`partition_by` names a column that the step does not make, or all of them.",
        "Correct the list.",
    }
    UNWRITABLE_TYPE = "RM0513" {
        "a type that the format cannot hold",
        "CSV holds neither lists, structs nor bytes.",
        "Convert the column in a step, or choose Parquet.",
    }

    // RM06xx: run time: the data.
    DATA_ERROR = "RM0600" {
        "the data made a step fail",
        "A row could not be computed.",
        "Look at the rows that the step reads.",
    }
    BAD_CAST = "RM0601" {
        "a value that cannot be converted",
        "A cast or a parse met a value that is not of the type.",
        "`TRY_CAST` makes such values null; or filter the rows out before.",
    }
    ARITHMETIC = "RM0602" {
        "arithmetic that has no result",
        "A division by zero, or a result that its type cannot hold.",
        "`NULLIF(divisor, 0)` makes the quotient null; a wider type does not overflow.",
    }
    RAGGED_ROW = "RM0603" {
        "a row with too many or too few fields",
        "A line of a CSV file does not have as many fields as its header.",
        "Correct the line, or check the `csv` options.",
    }
    SOURCE_CHANGED = "RM0604" {
        "a source changed while it was read",
        "A file was replaced or appended to between the start and the end of the run. The result would mix two versions and was not published.",
        "Run again when nobody writes to the sources.",
    }

    ITEM_FAILED = "RM0610" {
        "an item failed",
        "A step's item failed for good, and the step's `on_error` is `fail`. Nothing was published.",
        "Correct the item or the other side; or let the step go on without such items: `on_error: skip`, `dead_letter` or `{default: {...}}`.",
    }
    TOO_MANY_ERRORS = "RM0611" {
        "too many items failed",
        "More of a step's items failed than its `max_errors` allows. Nothing was published.",
        "Look at the reasons that the report gives; raise `max_errors` if so many are to be expected.",
    }

    // RM07xx: run time: the environment.
    OUT_OF_MEMORY = "RM0701" {
        "out of memory",
        "The operators needed more than the limit and could not spill. Joins had been tried as sort-merge joins, which spill.",
        "Give more with `--memory`, or let the step see fewer rows at once.",
    }
    DISK_FULL = "RM0702" {
        "no space left",
        "The disk of the spill folder or of a sink is full, or the limit of spilled bytes was reached. Nothing was published.",
        "Free some space, or point `execution.temp_dir` or the sink at a larger disk.",
    }
    NO_PERMISSION = "RM0703" {
        "permission denied",
        "The system refused to read or write a place.",
        "Check who owns the files and the folder they are in.",
    }
    IO_FAILED = "RM0704" {
        "reading or writing failed",
        "The file system or the object store failed. Nothing was published, unless the report names sinks that were.",
        "Start the run again.",
    }

    STEP_UNAVAILABLE = "RM0705" {
        "a step cannot work",
        "A step could not begin or go on, and no item is to blame: its connection, its program or its credentials are not as it needs them.",
        "Do what the report says, and start the run again.",
    }
    NO_CACHE = "RM0706" {
        "no such cache",
        "The workflow has no step with a cache, or none whose results outlive the process.",
        "Give the step a `cache`, with `tier: disk` or `tier: redis` if it is to be filled ahead of a run.",
    }

    NO_EXECUTOR = "RM0707" {
        "nobody serves a class",
        "A stage needs an executor of a class that no executor of the cluster serves, and none came in time. Nothing was published.",
        "Start one: `rowmill executor --class CLASS`; or give the step another class.",
    }
    CLUSTER_REFUSED = "RM0708" {
        "the cluster refuses",
        "The token is not the cluster's, or the cluster runs another build of Rowmill.",
        "Set `ROWMILL_CLUSTER_TOKEN` to the cluster's token, and use one build everywhere.",
    }
    CLUSTER_SILENT = "RM0709" {
        "the cluster does not answer",
        "No scheduler could be reached, or the cluster took work and lost it again and again. Nothing was published.",
        "Look at `rowmill cluster status`, and start the run again.",
    }
    CLASS_UNSERVED = "RM0710" {
        "a resource class cannot be served here",
        "A step asks for a class, such as `gpu`, and the configuration says that nothing else will do; this machine has no such device, or it cannot be used.",
        "Run it where the device is, or set `gpu.use` to `auto`: the CPU then does the work, with equal results. `rowmill gpu info` says what is here.",
    }
    STEP_REFUSED = "RM0711" {
        "an executor cannot run a step",
        "Calls of a step go to executors of a cluster, and the one that was asked lacks what the step needs: its connection, a secret, a file, or the class. Executors have their own configuration; plans carry names of connections and no secrets. Nothing was published.",
        "Configure the executor as the client is configured (`connections:`), set its environment variables, and start it again.",
    }

    CLUSTER_INSECURE = "RM0720" {
        "nothing travels in plain text",
        "A process of a cluster was to speak with another machine without TLS, so that whoever sees the network would see the token and the rows; or certificates are not as TLS needs them. Nothing was sent.",
        "Set `cluster.tls.ca`, `cluster.tls.certificate` and `cluster.tls.key` (docs/cluster.md shows how they are made); or set `cluster.insecure: true` where the network is yours alone.",
    }
    QUEUE_FULL = "RM0721" {
        "the queue is full",
        "As much waits in the queue of the cluster as its configuration allows. What waits is kept; this was not taken. Nothing was published.",
        "Start it again later, or put it into another queue with `--queue`; `rowmill cluster status` shows queues.",
    }
    QUEUE_TIMEOUT = "RM0722" {
        "it waited too long",
        "It stood in the queue of the cluster for as long as the queue's `timeout` allows and did not begin. Nothing was published.",
        "`rowmill cluster status` shows what the cluster does instead; start it again, or raise `timeout`, `max_running` or the quota in the scheduler's configuration.",
    }
    NOT_ADMITTED = "RM0723" {
        "the cluster does not take it",
        "The scheduler has no such queue, one task alone needs more than the quota of its organisation or team allows, or the token does not submit for that organisation. Nothing was published.",
        "Name a queue that `rowmill cluster status` shows, or have the scheduler's configuration changed.",
    }

    // RM08xx: durable runs.
    RUN_RECORD = "RM0801" {
        "the record of a run cannot be read",
        "What the run store holds of a run is damaged, or was written by another version.",
        "Use the version of Rowmill that wrote it, or start the workflow anew.",
    }
    RUN_CHANGED = "RM0802" {
        "a run cannot go on with what changed",
        "The workflow, its configuration or its source files are not what they were when the run began. Going on would mix two versions.",
        "Start over: `rowmill resume RUN --restart`.",
    }
    RUN_HELD = "RM0803" {
        "another process holds the run",
        "A run is worked on by one process at a time, which renews its lease while it lives.",
        "Wait until the lease ends, or take the run from a process that is surely dead: `rowmill resume RUN --steal`.",
    }
    RUN_ENDED = "RM0804" {
        "the run has ended",
        "A run that succeeded, failed or was cancelled does not go on.",
        "Start the workflow again.",
    }
    RUN_LOST = "RM0805" {
        "the run was taken over",
        "Another process took the run while this one worked on it. What was committed counts.",
        "Look at the run with `rowmill show RUN`.",
    }
    NOT_DURABLE = "RM0806" {
        "a workflow that cannot run durably",
        "It takes rows from the program that runs it, or hands rows to it; another process could not go on with it.",
        "Read from files and write to sinks.",
    }
    RUN_UNKNOWN = "RM0807" {
        "the run store refused",
        "There is no such run, or its state does not permit what was asked.",
        "`rowmill runs` lists the runs.",
    }
    RUN_STORE_FAILED = "RM0808" {
        "the run store cannot be used",
        "Its database cannot be reached, is locked, is full, is damaged, or was written by a newer version.",
        "Do what the report says, and start again.",
    }
    NOTHING_TO_RETRY = "RM0809" {
        "the run has nothing to retry",
        "A retry makes another version of a finished run's result, in which the items that failed are tried again. This run has none, did not finish, or its failures are of SQL, which fails again for the same values.",
        "`rowmill items RUN` lists what failed, `rowmill resume RUN` goes on with a run that was interrupted.",
    }

    // RM09xx: internal.
    INTERNAL = "RM0900" {
        "a bug of Rowmill",
        "Something that cannot happen did. It is not your workflow's fault.",
        "Please report it with the workflow.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_ascend_and_are_complete() {
        for pair in CODES.windows(2) {
            assert!(pair[0].code < pair[1].code, "{} and {} are out of order", pair[0].code, pair[1].code);
        }
        for entry in CODES {
            assert!(entry.code.len() == 6 && entry.code.starts_with("RM"), "{}", entry.code);
            assert!(RANGES.iter().any(|(prefix, _)| entry.code.starts_with(prefix)), "{}", entry.code);
            assert!(!entry.title.is_empty() && !entry.title.ends_with('.'), "{}", entry.code);
            assert!(entry.explanation.ends_with('.') && entry.action.ends_with(['.', ')', '`']), "{}", entry.code);
        }
    }

    #[test]
    fn lookup_finds_by_code() {
        assert_eq!(lookup(UNKNOWN_KEY).map(|code| code.title), Some("unknown key"));
        assert_eq!(lookup("RM9999"), None);
    }
}
