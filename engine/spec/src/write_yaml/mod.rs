//! A workflow back to YAML, so that what a program built can be kept, shown and sent.

mod steps;

use std::fmt::Write as _;

use indexmap::IndexMap;

use crate::codes;
use crate::config::format_bytes;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::keys::FORMAT_VERSION;
use crate::model::{
    CsvOptions, FileSource, Resources, SchemaPolicy, Sink, Source, SourceKind, Step, StepKind, Workflow,
};
use crate::span::Spanned;
use crate::template::Template;
use crate::types::{LogicalType, Value};
use crate::yaml::quote;

impl Workflow {
    /// The workflow as YAML; reading it gives an equal workflow, places aside.
    ///
    /// # Errors
    /// Sources that the embedding program provides have no form in a text.
    pub fn to_yaml(&self) -> Result<String, Diagnostics> {
        let reports: Vec<Diagnostic> = self
            .sources
            .values()
            .filter(|source| matches!(source.kind, SourceKind::Provided))
            .map(|source| {
                Diagnostic::error(
                    codes::NOT_IN_YAML,
                    format!("source `{}` is provided by a program and cannot be written as text", source.name.value),
                )
                .at(source.name.span, "")
                .help("read its rows from files instead")
            })
            .collect();
        if !reports.is_empty() {
            return Err(Diagnostics { reports, texts: self.texts.clone() });
        }
        let mut writer = Writer::default();
        writer.workflow(self);
        Ok(writer.text)
    }
}

/// Writes lines of block mappings.
#[derive(Default)]
struct Writer {
    text: String,
    depth: usize,
}

impl Writer {
    fn line(&mut self, key: &str, value: &str) {
        let blank = if value.is_empty() { "" } else { " " };
        let _ = writeln!(self.text, "{:indent$}{}:{blank}{value}", "", word(key), indent = self.depth * 2);
    }

    /// A key and, below it, what `inside` writes.
    fn nested(&mut self, key: &str, inside: impl FnOnce(&mut Self)) {
        self.line(key, "");
        self.depth += 1;
        inside(self);
        self.depth -= 1;
    }

    fn section<T>(&mut self, key: &str, entries: &IndexMap<String, T>, write: impl Fn(&mut Self, &T)) {
        if entries.is_empty() {
            return;
        }
        self.nested(key, |writer| {
            for (name, entry) in entries {
                writer.nested(name, |writer| write(writer, entry));
            }
        });
    }

    fn text(&mut self, key: &str, text: &str) {
        if !fits_block(text) {
            self.line(key, &quote(text));
            return;
        }
        self.line(key, if text.ends_with('\n') { "|" } else { "|-" });
        for line in text.lines() {
            // Blank lines need no indentation, and keep none.
            if line.is_empty() {
                self.text.push('\n');
            } else {
                let _ = writeln!(self.text, "{:indent$}{line}", "", indent = (self.depth + 1) * 2);
            }
        }
    }

    fn description(&mut self, description: Option<&String>) {
        if let Some(text) = description {
            self.text("description", text);
        }
    }

    fn workflow(&mut self, workflow: &Workflow) {
        self.line("rowmill", &FORMAT_VERSION.to_string());
        self.line("name", &word(&workflow.name));
        self.description(workflow.description.as_ref());
        if workflow.durable {
            self.line("durable", "true");
        }
        self.section("params", &workflow.params, |writer, param| {
            writer.declaration(&param.kind, param.default.as_ref());
            writer.description(param.description.as_ref());
        });
        self.section("vars", &workflow.vars, |writer, variable| {
            writer.declaration(&variable.kind, variable.default.as_ref());
            writer.description(variable.description.as_ref());
        });
        self.section("sources", &workflow.sources, Self::source);
        self.section("steps", &workflow.steps, Self::step);
        self.section("sinks", &workflow.sinks, Self::sink);
    }

    fn declaration(&mut self, kind: &LogicalType, default: Option<&Spanned<Value>>) {
        self.line("type", &type_text(kind));
        if let Some(default) = default {
            self.line("default", &literal(default));
        }
    }

    fn source(&mut self, source: &Source) {
        match &source.kind {
            SourceKind::Files(files) => self.files(files),
            SourceKind::Range { start, end } => self.nested("range", |writer| {
                writer.line("start", &start.value.to_string());
                writer.line("end", &end.value.to_string());
            }),
            // Refused before writing.
            SourceKind::Provided => {}
        }
        self.description(source.description.as_ref());
    }

    fn files(&mut self, files: &FileSource) {
        match files.paths.as_slice() {
            [one] => self.line("path", &path(one)),
            many => self.line("path", &list(many.iter().map(path))),
        }
        if let Some(format) = &files.format {
            self.line("format", format.as_str());
        }
        if let Some(compression) = &files.compression {
            self.line("compression", compression.as_str());
        }
        if let Some(schema) = &files.schema {
            self.columns("schema", schema);
        }
        if files.schema_policy.value != SchemaPolicy::Strict {
            self.line("schema_policy", files.schema_policy.as_str());
        }
        if !files.partitions.is_empty() {
            self.columns("partitions", &files.partitions);
        }
        self.csv(&files.csv);
    }

    fn columns(&mut self, key: &str, columns: &IndexMap<String, Spanned<LogicalType>>) {
        self.nested(key, |writer| {
            for (name, kind) in columns {
                writer.line(name, &type_text(kind));
            }
        });
    }

    /// The options that differ from the defaults.
    fn csv(&mut self, csv: &CsvOptions) {
        let defaults = CsvOptions::default();
        if *csv == defaults {
            return;
        }
        self.nested("csv", |writer| {
            let character = |byte: u8| quote(&char::from(byte).to_string());
            if csv.header != defaults.header {
                writer.line("header", &csv.header.to_string());
            }
            if csv.delimiter != defaults.delimiter {
                writer.line("delimiter", &character(csv.delimiter));
            }
            if csv.quote != defaults.quote {
                writer.line("quote", &character(csv.quote));
            }
            if let Some(escape) = csv.escape {
                writer.line("escape", &character(escape));
            }
            if let Some(comment) = csv.comment {
                writer.line("comment", &character(comment));
            }
            if let Some(null) = &csv.null {
                writer.line("null", &quote(null));
            }
            if csv.newlines_in_values != defaults.newlines_in_values {
                writer.line("newlines_in_values", &csv.newlines_in_values.to_string());
            }
            if csv.infer_rows != defaults.infer_rows {
                writer.line("infer_rows", &csv.infer_rows.to_string());
            }
        });
    }

    fn step(&mut self, step: &Step) {
        match &step.kind {
            StepKind::Sql(sql) => self.text("sql", &sql.text.text),
            StepKind::Http(http) => self.nested("http", |writer| writer.http(http)),
            StepKind::Lookup(lookup) => self.nested("lookup", |writer| writer.lookup(lookup)),
            StepKind::Command(command) => self.nested("command", |writer| writer.command(command)),
            StepKind::Python(python) => self.nested("python", |writer| writer.python(python)),
            StepKind::Gpu(gpu) => self.nested("gpu", |writer| writer.gpu(gpu)),
            StepKind::Model(model) => self.nested("model", |writer| writer.model(model)),
        }
        self.items(&step.items);
        let Resources { class, memory } = &step.resources;
        if class.is_some() || memory.is_some() {
            self.nested("resources", |writer| {
                writer.maybe("class", class, |class| word(class.as_str()));
                writer.maybe("memory", memory, |bytes| format_bytes(bytes.value));
            });
        }
        self.description(step.description.as_ref());
    }

    fn sink(&mut self, sink: &Sink) {
        self.line("from", &word(&sink.from));
        self.line("path", &path(&sink.path));
        if let Some(format) = &sink.format {
            self.line("format", format.as_str());
        }
        if let Some(compression) = &sink.compression {
            self.line("compression", compression.as_str());
        }
        if !sink.partition_by.is_empty() {
            self.line("partition_by", &list(sink.partition_by.iter().map(|column| quote(column))));
        }
        self.csv(&sink.csv);
    }
}

/// A name as it is, where YAML reads it as that very text; quoted otherwise.
fn word(text: &str) -> String {
    let mut chars = text.chars();
    let plain = chars.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
        && !matches!(
            text.to_ascii_lowercase().as_str(),
            "null" | "true" | "false" | "yes" | "no" | "on" | "off" | "y" | "n" | "inf" | "nan"
        );
    if plain { text.to_owned() } else { quote(text) }
}

fn type_text(kind: &LogicalType) -> String {
    word(&kind.to_string())
}

fn path(template: &Template) -> String {
    quote(&template.text)
}

fn list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}

fn literal(value: &Value) -> String {
    match value {
        Value::String(text) => quote(text),
        value => value.to_string(),
    }
}

/// Whether a text of several lines reads back the same from a `|` block.
fn fits_block(text: &str) -> bool {
    let body = text.strip_suffix('\n').unwrap_or(text);
    body.contains('\n')
        && !body.ends_with('\n')
        && !body.starts_with([' ', '\t', '\n'])
        && body.lines().all(|line| line.is_empty() || !line.trim().is_empty())
        && !body.chars().any(|c| {
            (c.is_control() && c != '\n' && c != '\t')
                || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
        })
}
