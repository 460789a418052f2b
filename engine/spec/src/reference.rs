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

/// The page of all keys of a workflow's text, as Markdown.
pub fn workflow_page() -> String {
    let mut page = String::from(
        "# The text of a workflow\n\n\
         A workflow's text is YAML: one document, without anchors, aliases, merge keys and tags. Every key that is not\n\
         listed here is an error. This page is generated from `engine/spec/src/keys.rs`; editors complete and check\n\
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
    }
}
