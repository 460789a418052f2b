//! The reference page of a workflow's text, generated from the tables of keys.

use std::fmt::Write as _;

use crate::keys::{self, Shape, Table};
use crate::suggest::listed;

/// The example of the page; a test reads it.
const EXAMPLE: &str = "\
rowmill: 1
name: flight-delays
description: Which carriers are late
params:
  month: {type: int64, default: 1}
vars:
  data_dir: {type: string, default: data}
sources:
  flights: {path: '${vars.data_dir}/flights.parquet'}
  carriers:
    path: data/carriers.csv
    schema: {code: string, name: string}
    csv: {delimiter: ';'}
steps:
  clean:
    sql: SELECT * FROM flights WHERE month = $month
  worst:
    sql: |
      SELECT carriers.name, avg(arr_delay) AS delay, count(*) AS flights
      FROM clean JOIN carriers ON carriers.code = clean.carrier
      GROUP BY carriers.name
    resources: {class: memory}
sinks:
  report: {from: worst, path: 'out/worst-${params.month}.parquet'}
";

/// The example of steps of all kinds; a test reads it.
pub(crate) const STEPS_EXAMPLE: &str = r#"rowmill: 1
name: flight-weather
durable: true
params:
  day: date
sources:
  flights: {path: data/flights.parquet}
steps:
  weather:
    http:
      from: flights
      connection: weather
      path: /v1/{origin}/${params.day}
      query: {units: metric}
      response:
        temp: {json: /main/temp, type: float64}
        code: {status: int32}
      not_found: null
    effects: idempotent
    on_error: dead_letter
    max_errors: 1%
    retry: {attempts: 5, max_backoff: 10s}
    in_flight: 32
    cache: {key: [origin], ttl: 1h}
  planes:
    lookup:
      from: weather
      connection: fleet
      query: SELECT model, seats FROM planes WHERE tailnum = {tailnum}
      types: {seats: int64}
      matches: first
  scored:
    command:
      from: planes
      argv: [python3, score.py, '${params.day}']
      reads: [temp, seats]
      output: {score: float64}
      secret_env: {MODEL_TOKEN: env:MODEL_TOKEN}
      memory: 2GB
    on_error: {default: {score: 0.0}}
    timeout: 10s
  ranked:
    python:
      from: scored
      function: ranking:rank
      reads: [score, seats]
      output: {rank: int64}
    effects: pure
    in_flight: 4
  alike:
    gpu:
      from: ranked
      top_k: {column: embedding, corpus: models/planes.parquet, id: tailnum, k: 5}
  delays:
    model:
      from: alike
      file: models/delay.onnx
      inputs: {x: [temp, seats, score]}
      output: {delay: y}
    batch: {rows: 4096}
sinks:
  scores: {from: ranked, path: out/scores.parquet}
"#;

/// The page of all keys of a workflow's text, as Markdown.
pub fn workflow_page() -> String {
    let mut page = String::from(
        "# The text of a workflow\n\n\
         A workflow's text is YAML: one document, without anchors, aliases, merge keys and tags. Every key that is not\n\
         listed here is an error. This page is generated from `engine/spec/src/keys/`; editors complete and check\n\
         texts by [workflow.schema.json](workflow.schema.json).\n\n\
         Names begin with a letter or `_` and go on with letters, digits and `_`; a workflow's name may also hold `-`.\n\
         Sources and steps share one space of names, in which capitals and small letters are the same. In paths,\n\
         `${params.NAME}` and `${vars.NAME}` stand for values, and `$${` for a literal `${`.\n\n",
    );
    let _ = writeln!(page, "```yaml\n{EXAMPLE}```");
    section(&mut page, "A workflow", &keys::WORKFLOW);
    section(&mut page, "`params.NAME`: a parameter", &keys::PARAM);
    section(&mut page, "`vars.NAME`: a variable", &keys::VARIABLE);
    section(&mut page, "`sources.NAME`: a source", &keys::SOURCE);
    section(&mut page, "`sources.NAME.range`", &keys::RANGE);
    section(&mut page, "`sources.NAME.csv`", &keys::CSV);
    section(&mut page, "`steps.NAME`: a step", &keys::STEP);
    page.push_str(
        "\nA step is one of `sql`, `http`, `lookup`, `command`, `python`, `gpu` and `model`. All but `sql` take the rows of one step or source\n\
         (`from`) and add columns to them; joins and the choice of columns are for `sql` steps. Texts of `http` and\n\
         `command` steps may hold `${params.NAME}` and `${vars.NAME}`, whose values are text and nothing else, and those\n\
         of `http` steps `{column}`, with `{{` and `}}` for braces; in YAML a text that begins with `{` needs quotes.\n\
         The query of a `lookup` step binds its `{column}`s and takes no parameters: add a parameter as a column in a\n\
         SQL step before it. The connections that steps name stand in the [configuration](configuration.md).\n\
         `effects`, `on_error` and the keys after them say what a step does about its items; `sql` steps take only\n\
         `on_error` and `max_errors`.\n\n",
    );
    let _ = writeln!(page, "```yaml\n{STEPS_EXAMPLE}```");
    section(&mut page, "`steps.NAME.http`: requests", &keys::HTTP);
    section(&mut page, "`steps.NAME.http.body`", &keys::HTTP_BODY);
    section(&mut page, "`steps.NAME.http.response.COLUMN`", &keys::HTTP_RESPONSE);
    section(&mut page, "`steps.NAME.http.many`", &keys::HTTP_MANY);
    section(&mut page, "`steps.NAME.http.many.match`", &keys::HTTP_MATCH);
    section(&mut page, "`steps.NAME.lookup`: queries against a database", &keys::LOOKUP);
    section(&mut page, "`steps.NAME.command`: a program", &keys::COMMAND);
    section(&mut page, "`steps.NAME.command.output.COLUMN`", &keys::OUTPUT);
    section(&mut page, "`steps.NAME.python`: a function", &keys::PYTHON);
    section(&mut page, "`steps.NAME.python.output.COLUMN`", &keys::OUTPUT);
    section(&mut page, "`steps.NAME.gpu`: a similarity search", &keys::GPU);
    section(&mut page, "`steps.NAME.gpu.top_k`", &keys::TOP_K);
    section(&mut page, "`steps.NAME.model`: a model", &keys::MODEL);
    section(&mut page, "`steps.NAME.on_error`", &keys::ON_ERROR);
    section(&mut page, "`steps.NAME.max_errors`", &keys::MAX_ERRORS);
    section(&mut page, "`steps.NAME.retry`", &keys::RETRY);
    section(&mut page, "`steps.NAME.batch`", &keys::BATCH);
    section(&mut page, "`steps.NAME.cache`", &keys::CACHE);
    section(&mut page, "`steps.NAME.resources`", &keys::RESOURCES);
    section(&mut page, "`sinks.NAME`: a sink", &keys::SINK);
    section(&mut page, "`sinks.NAME.csv`", &keys::SINK_CSV);
    page.push_str(
        "\n## Types\n\n\
         `bool`, `int8` to `int64`, `uint8` to `uint64`, `float32`, `float64`, `decimal(precision, scale)`, `string`,\n\
         `binary`, `date`, `time(unit)`, `timestamp(unit)`, `timestamp(unit, zone)`, `list<T>` and\n\
         `struct<name: T, ...>`; units are `s`, `ms`, `us` and `ns`, zones `UTC`, names such as `Europe/Paris` or\n\
         offsets such as `+05:30`. `int` is `int64`, `float` and `double` are `float64`, `text` is `string`, plain\n\
         `timestamp` and `time` count microseconds. Parameters and variables hold single values and lists of them.\n",
    );
    page
}

fn section(page: &mut String, title: &str, table: &Table) {
    let _ = writeln!(page, "\n## {title}\n\n| key | takes | about |\n|---|---|---|");
    for key in table.keys {
        let required = if key.required { " (required)" } else { "" };
        let about = key.about.replace('|', "\\|");
        let _ = writeln!(page, "| `{}`{required} | {} | {about} |", key.name, takes(key.shape));
    }
}

fn takes(shape: Shape) -> String {
    match shape {
        Shape::Version => format!("`{}`", keys::FORMAT_VERSION),
        Shape::Text => "a text".to_owned(),
        Shape::Name | Shape::WorkflowName => "a name".to_owned(),
        Shape::Sql => "a query".to_owned(),
        Shape::Path => "a path".to_owned(),
        Shape::Paths => "a path, or a list of them".to_owned(),
        Shape::Bool => "`true` or `false`".to_owned(),
        Shape::Character => "one ASCII character".to_owned(),
        Shape::Count(least) => format!("a whole number, at least {least}"),
        Shape::Integer => "a whole number".to_owned(),
        Shape::Type => "a type".to_owned(),
        Shape::Literal => "a value of the type".to_owned(),
        Shape::Word(words) => format!("one of {}", listed(words.iter().copied())),
        Shape::OpenWord(words) => format!("{}, or a name of yours", listed(words.iter().copied())),
        Shape::Columns => "a column, or a list of them".to_owned(),
        Shape::Object(_) => "a mapping, see below".to_owned(),
        Shape::Named(Shape::Type) => "a mapping from columns to types".to_owned(),
        Shape::Named(_) => "a mapping from names, see below".to_owned(),
        Shape::TypeOr(_) => "a type, or a mapping".to_owned(),
        Shape::Map(Shape::Type) => "a mapping from columns to types".to_owned(),
        Shape::Map(Shape::Object(_) | Shape::TypeOr(_)) => "a mapping from columns, see below".to_owned(),
        Shape::Map(Shape::Literal) => "a mapping from columns to values".to_owned(),
        Shape::Map(Shape::Secret) => "a mapping from names to `env:NAME` or `file:/path`".to_owned(),
        Shape::Map(Shape::Templates) => "a mapping from names to texts, or to lists of them".to_owned(),
        Shape::Map(_) => "a mapping from names to texts".to_owned(),
        Shape::Either(shapes) => shapes.iter().map(|shape| takes(*shape)).collect::<Vec<_>>().join("; or "),
        Shape::Template => "a text".to_owned(),
        Shape::Templates => "a text, or a list of them".to_owned(),
        Shape::TemplateList => "a list of texts".to_owned(),
        Shape::Duration => "a time such as `250ms` or `5s`".to_owned(),
        Shape::Size => "a size such as `4MB`".to_owned(),
        Shape::Rate => "a rate such as `50/s`, `3000/min` or `10/h`".to_owned(),
        Shape::Share => "a share such as `1%`".to_owned(),
        Shape::Factor => "a number, at least 1".to_owned(),
        Shape::Statuses => "a status, or a list of them".to_owned(),
        Shape::StatusRanges => "a status, a range such as `200-204`, or a list of them".to_owned(),
        Shape::WordOrNull(words) => format!("one of {}", listed(words.iter().copied())),
        Shape::Json => "JSON".to_owned(),
        Shape::Secret => "`env:NAME` or `file:/path`".to_owned(),
    }
}
