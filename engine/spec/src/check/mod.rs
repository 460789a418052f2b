//! What must hold for every workflow, whichever form it came in: names, references, and settings that fit together.
//!
//! Names of relations inside SQL are left to the engine, which alone parses it.

mod steps;

use std::collections::HashMap;

use crate::codes;
use crate::diagnostic::Diagnostic;
use crate::model::{Compression, CsvOptions, FileSource, Format, Sink, SourceKind, Workflow};
use crate::names::{bad_name, fold, is_identifier, is_workflow_name};
use crate::report::Reporter;
use crate::span::{MappedText, Span, Spanned};
use crate::suggest::{did_you_mean, listed};
use crate::template::{Piece, Template};
use crate::types::{LogicalType, Value, check_usable};

/// Reports everything that is wrong with a workflow.
pub(crate) fn check(workflow: &Workflow, reporter: &mut Reporter) {
    Checker { workflow, reporter }.run();
}

struct Checker<'a> {
    workflow: &'a Workflow,
    reporter: &'a mut Reporter,
}

impl Checker<'_> {
    fn run(&mut self) {
        let workflow = self.workflow;
        if !is_workflow_name(&workflow.name) {
            self.report(bad_name("workflow", &workflow.name, workflow.name.span));
        }
        let names = |kind| move |name: &Spanned<String>| (kind, name.clone());
        self.names(workflow.params.values().map(|param| &param.name).map(names("parameter")).collect());
        self.names(workflow.vars.values().map(|variable| &variable.name).map(names("variable")).collect());
        self.names(
            workflow
                .sources
                .values()
                .map(|source| &source.name)
                .map(names("source"))
                .chain(workflow.steps.values().map(|step| &step.name).map(names("step")))
                .collect(),
        );
        self.names(workflow.sinks.values().map(|sink| &sink.name).map(names("sink")).collect());
        for param in workflow.params.values() {
            self.declaration("parameter", &param.name, &param.kind, param.default.as_ref());
        }
        for variable in workflow.vars.values() {
            self.declaration("variable", &variable.name, &variable.kind, variable.default.as_ref());
        }
        for source in workflow.sources.values() {
            match &source.kind {
                SourceKind::Files(files) => self.files(&source.name, files),
                SourceKind::Range { start, end } if start.value > end.value => {
                    let report = Diagnostic::error(
                        codes::BAD_VALUE,
                        format!("the range of source `{}` ends before it begins", source.name.value),
                    )
                    .at(end.span, "the end, one past the last value")
                    .at(start.span, "the start");
                    self.report(report.help(format!("let `end` be at least {}", start.value)));
                }
                SourceKind::Range { .. } | SourceKind::Provided => {}
            }
        }
        for step in workflow.steps.values() {
            self.step(step);
        }
        for sink in workflow.sinks.values() {
            self.sink(sink);
        }
        self.targets();
    }

    fn report(&mut self, report: Diagnostic) {
        self.reporter.push(report);
    }

    /// Every name can be used, and no two are the same to SQL.
    fn names(&mut self, names: Vec<(&'static str, Spanned<String>)>) {
        let mut seen: HashMap<String, (&'static str, Spanned<String>)> = HashMap::with_capacity(names.len());
        for (what, name) in names {
            if !is_identifier(&name) {
                self.report(bad_name(what, &name, name.span));
                continue;
            }
            let Some((earlier_what, earlier)) = seen.get(&fold(&name)) else {
                seen.insert(fold(&name), (what, name));
                continue;
            };
            let message = if earlier.value == name.value {
                format!("`{}` is the name of a {earlier_what} and of a {what}", name.value)
            } else {
                format!("{what} `{}` and {earlier_what} `{}` differ only in case", name.value, earlier.value)
            };
            let report = Diagnostic::error(codes::DUPLICATE_NAME, message)
                .at(name.span, "the second one")
                .at(earlier.span, "the first one");
            let help = match (*earlier_what, what) {
                ("source", "step") => "sources and steps share one space of names; rename one of the two",
                _ => "SQL does not tell capitals from small letters; rename one of the two",
            };
            self.report(report.help(help));
        }
    }

    fn declaration(
        &mut self,
        what: &str,
        name: &Spanned<String>,
        kind: &Spanned<LogicalType>,
        default: Option<&Spanned<Value>>,
    ) {
        if let Err(message) = check_usable(kind) {
            let report = Diagnostic::error(
                codes::UNUSABLE_TYPE,
                format!("{what} `{}` has a type that {what}s cannot have", name.value),
            )
            .at(kind.span, message);
            self.report(report.help("use a number, `string`, `bool`, `date`, `timestamp`, or a list of these"));
            return;
        }
        if let Some(default) = default
            && default.logical_type() != kind.value
        {
            let report = Diagnostic::error(
                codes::BAD_LITERAL,
                format!("the default of {what} `{}` does not fit its type", name.value),
            )
            .at(default.span, "")
            .help(format!(
                "the type is {}, and the default is of type {}",
                kind.value,
                default.logical_type()
            ));
            self.report(report);
        }
    }

    fn files(&mut self, name: &Spanned<String>, files: &FileSource) {
        let who = format!("source `{}`", name.value);
        if files.paths.is_empty() && name.span.is_none() {
            let report = Diagnostic::error(codes::BAD_VALUE, format!("{who} has no paths"));
            self.report(report.help("give at least one path"));
        }
        for path in &files.paths {
            self.template(path);
        }
        let format = files.known_format();
        let place = files.format.as_ref().map_or(Span::NONE, |format| format.span);
        self.compression(&who, format, place, files.compression.as_ref());
        self.csv(&who, name.span, format, &files.csv);
        if let Some(schema) = &files.schema {
            for (column, kind) in &files.partitions {
                if let Some(declared) = schema.get(column) {
                    let report = Diagnostic::error(
                        codes::DUPLICATE_NAME,
                        format!("column `{column}` of {who} is both in the files and in their directories"),
                    )
                    .at(kind.span, "a partition column")
                    .at(declared.span, "a column of the files");
                    self.report(report.help("remove it from `schema` or from `partitions`"));
                }
            }
        }
        for (column, kind) in &files.partitions {
            if matches!(kind.value, LogicalType::List(_) | LogicalType::Struct(_) | LogicalType::Binary) {
                let report = Diagnostic::error(
                    codes::BAD_VALUE,
                    format!("partition column `{column}` of {who} cannot be of type {}", kind.value),
                );
                self.report(report.at(kind.span, "").help("directory names hold numbers, texts and dates"));
            }
        }
        if format == Some(Format::Parquet)
            && let Some(compression) = &files.compression
            && Format::Parquet.compressions().contains(&compression.value)
        {
            let report = Diagnostic::error(
                codes::NOT_APPLICABLE,
                format!("`compression` does not apply to the Parquet files of {who}"),
            )
            .at(compression.span, "a Parquet file says itself how it is compressed");
            self.report(report.help("remove it"));
        }
    }

    fn sink(&mut self, sink: &Sink) {
        let who = format!("sink `{}`", sink.name.value);
        self.template(&sink.path);
        let format = sink.known_format();
        let place = sink.format.as_ref().map_or(Span::NONE, |format| format.span);
        self.compression(&who, format, place, sink.compression.as_ref());
        self.csv(&who, sink.name.span, format, &sink.csv);
        if sink.path.pieces.iter().any(|piece| matches!(piece, Piece::Literal(text) if text.contains('*'))) {
            let report = Diagnostic::error(codes::BAD_VALUE, format!("the path of {who} is a glob"));
            self.report(
                report.at(sink.path.span, "").help("a sink writes to one file, or to a directory ending in `/`"),
            );
        }
        let mut seen: HashMap<&str, Span> = HashMap::new();
        for column in &sink.partition_by {
            if let Some(earlier) = seen.insert(&column.value, column.span) {
                let report =
                    Diagnostic::error(codes::BAD_VALUE, format!("{who} partitions by column `{}` twice", column.value))
                        .at(column.span, "the second time")
                        .at(earlier, "the first time");
                self.report(report.help("remove one of the two"));
            }
        }
    }

    /// A compression that the format knows.
    fn compression(
        &mut self,
        who: &str,
        format: Option<Format>,
        place: Span,
        compression: Option<&Spanned<Compression>>,
    ) {
        let (Some(format), Some(compression)) = (format, compression) else { return };
        let known = format.compressions();
        if !known.contains(&compression.value) {
            let report = Diagnostic::error(
                codes::BAD_COMBINATION,
                format!("{format} files cannot be compressed with {}", compression.value),
            )
            .at(compression.span, format!("the format of {who} is {format}"))
            .at(place, "declared here");
            self.report(report.help(format!("{format} takes {}", listed(known.iter().map(|known| known.as_str())))));
        }
    }

    fn csv(&mut self, who: &str, place: Span, format: Option<Format>, csv: &CsvOptions) {
        if *csv == CsvOptions::default() {
            return;
        }
        if let Some(format) = format.filter(|format| *format != Format::Csv) {
            let report =
                Diagnostic::error(codes::NOT_APPLICABLE, format!("CSV options do not apply to {format} files"))
                    .at(place, format!("the format of {who} is {format}"));
            self.report(report.help("remove them, or declare the format as csv"));
        }
        let roles = [
            ("delimiter", Some(csv.delimiter)),
            ("quote", Some(csv.quote)),
            ("escape", csv.escape),
            ("comment", csv.comment),
        ];
        for (at, (role, byte)) in roles.iter().enumerate() {
            // A quote that escapes itself is how quotes are doubled.
            let clash = roles[..at]
                .iter()
                .find(|(other, used)| byte.is_some() && used == byte && (*other, *role) != ("quote", "escape"));
            if let Some((other, _)) = clash {
                let report = Diagnostic::error(
                    codes::BAD_COMBINATION,
                    format!("`{other}` and `{role}` of the CSV files of {who} are the same character"),
                );
                self.report(report.at(place, "").help("choose another character for one of the two"));
            }
            if let Some(byte) = byte
                && (!byte.is_ascii() || matches!(byte, b'\n' | b'\r' | 0))
            {
                let report =
                    Diagnostic::error(codes::BAD_VALUE, format!("`{role}` of {who} must be one ASCII character"));
                self.report(report.at(place, "").help("line breaks and characters beyond ASCII do not work"));
            }
        }
    }

    /// Every reference names something that is declared.
    fn template(&mut self, template: &Template) {
        // Text without pieces is what a program gave and could not be read.
        if template.pieces.is_empty()
            && let Err(error) = Template::parse(&MappedText::bare(template.text.clone()))
        {
            let shown: String = template.text.chars().take(60).collect();
            let report = Diagnostic::error(codes::BAD_TEMPLATE, format!("in `{shown}`, {}", error.message))
                .at(template.span, "");
            self.report(report.help("write `${params.NAME}` or `${vars.NAME}`; for a literal `${` write `$${`"));
        }
        for piece in &template.pieces {
            let (code, what, section, name, kind) = match piece {
                Piece::Literal(_) => continue,
                Piece::Param(name) => {
                    let kind = self.workflow.params.get(&name.value).map(|param| &param.kind.value);
                    (codes::UNKNOWN_PARAM, "parameter", "params", name, kind)
                }
                Piece::Var(name) => {
                    let kind = self.workflow.vars.get(&name.value).map(|variable| &variable.kind.value);
                    (codes::UNKNOWN_VAR, "variable", "vars", name, kind)
                }
            };
            match kind {
                Some(LogicalType::List(_)) => {
                    let report = Diagnostic::error(
                        codes::UNUSABLE_TYPE,
                        format!("{what} `{}` is a list, which has no place in a text", name.value),
                    );
                    self.report(report.at(name.span, "").help("use a parameter that holds a single value"));
                }
                Some(_) => {}
                None => self.undeclared(code, what, section, name),
            }
        }
    }

    fn undeclared(&mut self, code: &'static str, what: &str, section: &str, name: &Spanned<String>) {
        let (declared, others): (Vec<&str>, Vec<&str>) = {
            let params = self.workflow.params.keys().map(String::as_str).collect();
            let vars = self.workflow.vars.keys().map(String::as_str).collect();
            if section == "params" { (params, vars) } else { (vars, params) }
        };
        let report = Diagnostic::error(code, format!("{what} `{}` is not declared", name.value)).at(name.span, "");
        let report = if others.contains(&name.value.as_str()) {
            let other = if section == "params" { "vars" } else { "params" };
            report.help(format!("it is declared under `{other}`: write `${{{other}.{}}}`", name.value))
        } else {
            match did_you_mean(&name.value, declared.iter().copied()) {
                Some(help) => report.help(help),
                None => report.help(format!("declare it: `{section}: {{{}: string}}`", name.value)),
            }
        };
        self.report(report);
    }

    /// No two sinks write to one place.
    fn targets(&mut self) {
        let mut seen: HashMap<&str, &Sink> = HashMap::new();
        for sink in self.workflow.sinks.values() {
            let path = sink.path.text.trim_end_matches('/');
            if let Some(earlier) = seen.insert(path, sink) {
                let report = Diagnostic::error(
                    codes::SAME_TARGET,
                    format!("sinks `{}` and `{}` write to one place", earlier.name.value, sink.name.value),
                )
                .at(sink.path.span, "")
                .at(earlier.path.span, "the same path");
                self.report(report.help("give each sink a path of its own"));
            }
        }
    }
}
