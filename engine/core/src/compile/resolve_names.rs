//! Pass: parses the SQL of every step and finds out who reads whom.
//!
//! Knows names only: a step that reads a column that is not there passes here. Names of sources and steps match
//! regardless of case, as unquoted SQL identifiers do; a common table expression hides a step of the same name.

use std::collections::{HashMap, HashSet};

use datafusion::common::TableReference;
use datafusion::sql::parser::{DFParserBuilder, Statement};
use datafusion::sql::resolve::resolve_table_references;
use datafusion::sql::sqlparser::ast::{
    Expr, ObjectName, Query, SetExpr, Spanned as _, Statement as SqlStatement, Value as SqlValue, ValueWithSpan,
    visit_expressions, visit_relations,
};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use indexmap::IndexMap;
use rowmill_spec::{Diagnostic, MappedText, Span, StepKind, Workflow};
use std::ops::ControlFlow;

use super::sql_errors::{nearest, place, syntax_error};
use super::{Inputs, Reports};
use crate::plan::dead_letters::{DEAD_LETTERS, letters_of};
use crate::sql::too_many;

/// A step's parsed query and what it reads.
#[derive(Debug, Clone)]
pub struct ParsedStep {
    /// The query; `None` for a step that is not SQL.
    pub statement: Option<Statement>,
    /// Sources and steps it reads, by their declared names; once for each mention.
    pub reads: Vec<String>,
}

/// The graph by names.
#[derive(Debug, Default)]
pub struct Names {
    /// Steps to look at, in the order of their dependencies.
    pub order: Vec<String>,
    /// Every step that parsed.
    pub steps: IndexMap<String, ParsedStep>,
    /// Steps that no sink needs.
    pub unneeded: Vec<String>,
    /// Sources that a needed step or a sink reads.
    pub sources: HashSet<String>,
    /// How often each source or step is read by needed steps and by sinks.
    pub consumers: HashMap<String, usize>,
}

/// Resolves all names of `workflow`.
pub fn resolve(workflow: &Workflow, inputs: &Inputs, reports: &mut Reports) -> Names {
    let mut names = Names::default();
    let letters = dead_letters(workflow, inputs);
    let declared = workflow.sources.keys().chain(workflow.steps.keys()).chain(letters.keys());
    let known: HashMap<String, &str> = declared.map(|name| (name.to_lowercase(), name.as_str())).collect();
    let mut broken: HashSet<&str> = HashSet::new();
    for (name, step) in &workflow.steps {
        let parsed = match &step.kind {
            StepKind::Sql(sql) => parse(name, &sql.text, workflow, &known),
            kind => taken(name, kind, &known),
        };
        match parsed {
            Ok(parsed) => {
                names.steps.insert(name.clone(), parsed);
            }
            Err(errors) => {
                broken.insert(name);
                errors.into_iter().for_each(|error| reports.push(error));
            }
        }
    }
    for (name, step) in &letters {
        names.steps.insert(name.clone(), ParsedStep { statement: None, reads: vec![step.clone()] });
    }
    for sink in workflow.sinks.values() {
        if !known.contains_key(&sink.from.to_lowercase()) {
            let report = Diagnostic::error(
                "RM0204",
                format!("sink `{}` takes from `{}`, which is no step or source", sink.name.value, sink.from.value),
            )
            .at(sink.from.span, "");
            reports.push(match nearest(&sink.from, known.values().copied()) {
                Some(other) => report.help(format!("did you mean `{other}`?")),
                None => report,
            });
        }
    }
    find_cycles(workflow, &names, reports);
    for name in &inputs.collect {
        if !known.contains_key(&name.to_lowercase()) {
            reports.push(Diagnostic::error("RM0204", format!("`{name}` is to be collected, but is no step or source")));
        }
    }
    find_needed(workflow, inputs, &known, &broken, &mut names);
    names
}

/// The dead letters that sinks, or the program, ask for, by name, and whose they are: steps that nobody wrote down.
fn dead_letters(workflow: &Workflow, inputs: &Inputs) -> IndexMap<String, String> {
    let asked = workflow.sinks.values().map(|sink| sink.from.value.as_str());
    let asked = asked.chain(inputs.collect.iter().map(String::as_str));
    let named = asked.filter_map(|name| letters_name(workflow, name));
    named.map(|(step, name)| (name, step.to_owned())).collect()
}

/// The step, and its dead letters' name as it is used everywhere, if that is what `name` means.
pub fn letters_name<'a>(workflow: &'a Workflow, name: &str) -> Option<(&'a str, String)> {
    let of = letters_of(name)?;
    let step = workflow.steps.keys().find(|step| step.eq_ignore_ascii_case(of))?;
    Some((step, format!("{step}{DEAD_LETTERS}")))
}

fn parse(
    step: &str,
    text: &MappedText,
    workflow: &Workflow,
    known: &HashMap<String, &str>,
) -> Result<ParsedStep, Vec<Diagnostic>> {
    if let Some(what) = too_many(&text.text) {
        let report = Diagnostic::error("RM0301", format!("step `{step}` is a query of {what}")).at(text.span, "");
        return Err(vec![report.help("split it into steps; an IN list or a join with a table has no operators")]);
    }
    let statements = DFParserBuilder::new(text.text.as_str())
        .with_dialect(&GenericDialect {})
        .with_recursion_limit(128)
        .build()
        .and_then(|mut parser| parser.parse_statements())
        .map_err(|error| vec![syntax_error(step, text, &error)])?;
    let mut statements = statements.into_iter();
    let (statement, rest) = (statements.next(), statements.next());
    let statement = match (statement, rest) {
        (Some(statement), None) => statement,
        (None, _) => {
            return Err(vec![
                Diagnostic::error("RM0301", format!("step `{step}` has no SQL"))
                    .at(text.span, "")
                    .help("write one SELECT"),
            ]);
        }
        (Some(_), Some(_)) => {
            return Err(vec![
                Diagnostic::error("RM0303", format!("step `{step}` has more than one SQL statement"))
                    .at(text.span, "")
                    .help("a step is one query; make a step of each"),
            ]);
        }
    };
    let query = match &statement {
        Statement::Statement(inner) => match inner.as_ref() {
            SqlStatement::Query(query) if is_read_only(query) => query,
            other => return Err(vec![not_a_query(step, text, &other.to_string())]),
        },
        other => return Err(vec![not_a_query(step, text, &other.to_string())]),
    };
    let mut errors = Vec::new();
    errors.extend(undeclared_parameters(step, text, query, workflow));
    let (tables, _) = resolve_table_references(&statement, true).map_err(|error| {
        vec![Diagnostic::error("RM0302", format!("step `{step}`: {}", error.strip_backtrace())).at(text.span, "")]
    })?;
    let mentions = mentions(query);
    let mut reads = Vec::new();
    for table in tables {
        let TableReference::Bare { table: name } = &table else {
            let at = mentions.iter().find(|(mention, _)| mention == &table.to_string().to_lowercase());
            errors.push(
                Diagnostic::error(
                    "RM0201",
                    format!("step `{step}` reads `{table}`; names here have no schema before them"),
                )
                .at(at.map_or(text.span, |(_, at)| place(text, *at)), "")
                .help("a step reads sources and other steps by their bare names"),
            );
            continue;
        };
        let folded = name.to_lowercase();
        let count = mentions.iter().filter(|(mention, _)| *mention == folded).count().max(1);
        match known.get(folded.as_str()) {
            Some(declared) => reads.extend(std::iter::repeat_n((*declared).to_owned(), count)),
            None => {
                let span = mentions
                    .iter()
                    .find(|(mention, _)| *mention == folded)
                    .map_or(text.span, |(_, span)| place(text, *span));
                let report =
                    Diagnostic::error("RM0201", format!("step `{step}` reads `{name}`, which is no step or source"))
                        .at(span, "");
                errors.push(match nearest(name, known.values().copied()) {
                    Some(other) => report.help(format!("did you mean `{other}`?")),
                    None if name.contains(['/', '.']) => {
                        report.help("files are declared under `sources:` and read by name")
                    }
                    None => report.help(format!("declared are {}", list(known.values().copied()))),
                });
            }
        }
    }
    match errors.is_empty() {
        true => Ok(ParsedStep { statement: Some(statement), reads }),
        false => Err(errors),
    }
}

/// What a step that is not SQL takes its rows from.
fn taken(step: &str, kind: &StepKind, known: &HashMap<String, &str>) -> Result<ParsedStep, Vec<Diagnostic>> {
    let Some(from) = kind.from() else { return Ok(ParsedStep { statement: None, reads: Vec::new() }) };
    if let Some(declared) = known.get(&from.value.to_lowercase()) {
        return Ok(ParsedStep { statement: None, reads: vec![(*declared).to_owned()] });
    }
    let report = Diagnostic::error(
        "RM0204",
        format!("step `{step}` takes rows from `{}`, which is no step or source", from.value),
    )
    .at(from.span, "");
    Err(vec![match nearest(from, known.values().copied()) {
        Some(other) => report.help(format!("did you mean `{other}`?")),
        None => report.help(format!("declared are {}", list(known.values().copied()))),
    }])
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    let more = names.len().saturating_sub(12);
    names.truncate(12);
    match more {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}

fn not_a_query(step: &str, text: &MappedText, statement: &str) -> Diagnostic {
    let verb = statement.split_whitespace().next().unwrap_or("this").to_uppercase();
    Diagnostic::error("RM0302", format!("step `{step}` is a {verb} statement; a step is one SELECT"))
        .at(text.span, "")
        .help("sources say what is read and sinks what is written; a step only computes")
}

/// `INSERT ... RETURNING` and the like may hide inside a query.
fn is_read_only(query: &Query) -> bool {
    fn body(set: &SetExpr) -> bool {
        match set {
            SetExpr::Select(select) => select.into.is_none(),
            SetExpr::Query(query) => is_read_only(query),
            SetExpr::SetOperation { left, right, .. } => body(left) && body(right),
            SetExpr::Values(_) | SetExpr::Table(_) => true,
            _ => false,
        }
    }
    body(&query.body)
        && query.with.as_ref().is_none_or(|with| with.cte_tables.iter().all(|table| is_read_only(&table.query)))
}

/// Each mention of a relation, in lower case, with its place in the SQL text.
fn mentions(query: &Query) -> Vec<(String, datafusion::sql::sqlparser::tokenizer::Span)> {
    let mut found = Vec::new();
    let _: ControlFlow<()> = visit_relations(query, |name: &ObjectName| {
        let text: Vec<String> =
            name.0.iter().filter_map(|part| part.as_ident()).map(|ident| ident.value.to_lowercase()).collect();
        found.push((text.join("."), name.span()));
        ControlFlow::Continue(())
    });
    found
}

fn undeclared_parameters(step: &str, text: &MappedText, query: &Query, workflow: &Workflow) -> Vec<Diagnostic> {
    let mut errors = Vec::new();
    let mut visit = |value: &ValueWithSpan| {
        let SqlValue::Placeholder(placeholder) = &value.value else { return };
        let name = placeholder.trim_start_matches('$');
        if workflow.params.contains_key(name) {
            return;
        }
        let span = place(text, value.span);
        errors.push(
            match placeholder.starts_with('$') && !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) {
                false => Diagnostic::error(
                    "RM0309",
                    format!("step `{step}` has the placeholder `{placeholder}`, which names no parameter"),
                )
                .at(span, "")
                .help("write `$name`, with the parameter declared under `params:`"),
                true => {
                    let report =
                        Diagnostic::error("RM0309", format!("step `{step}` uses `${name}`, which is not declared"))
                            .at(span, "");
                    match nearest(name, workflow.params.keys().map(String::as_str)) {
                        Some(other) => report.help(format!("did you mean `${other}`?")),
                        None => report.help(format!("declare it: `params: {{{name}: {{type: ...}}}}`")),
                    }
                }
            },
        );
    };
    let _: ControlFlow<()> = visit_expressions(query, |expression: &Expr| {
        if let Expr::Value(value) = expression {
            visit(value);
        }
        ControlFlow::Continue(())
    });
    errors
}

/// Reports each cycle once, with every step on it.
fn find_cycles(workflow: &Workflow, names: &Names, reports: &mut Reports) {
    // Iterative depth-first search: a workflow may be ten thousand steps deep.
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        Open,
        Done,
    }
    let mut marks: HashMap<&str, Mark> = HashMap::new();
    for start in names.steps.keys() {
        if marks.contains_key(start.as_str()) {
            continue;
        }
        let mut path: Vec<(&str, usize)> = vec![(start, 0)];
        marks.insert(start, Mark::Open);
        while let Some((step, next)) = path.last_mut() {
            let reads = names.steps.get(*step).map_or(&[][..], |parsed| &parsed.reads);
            let Some(read) = reads.get(*next) else {
                marks.insert(step, Mark::Done);
                path.pop();
                continue;
            };
            *next += 1;
            if !names.steps.contains_key(read) {
                continue;
            }
            match marks.get(read.as_str()) {
                None => {
                    marks.insert(read, Mark::Open);
                    path.push((read, 0));
                }
                Some(Mark::Open) => {
                    let from = path.iter().position(|(step, _)| step == read).unwrap_or(0);
                    let mut circle: Vec<&str> = path[from..].iter().map(|(step, _)| *step).collect();
                    let mut report = Diagnostic::error(
                        "RM0202",
                        match circle.as_slice() {
                            [one] => format!("step `{one}` reads itself"),
                            many => format!("steps read each other in a circle: {} → {}", many.join(" → "), many[0]),
                        },
                    );
                    circle.truncate(8);
                    for step in circle {
                        let span = workflow.steps.get(step).map_or(Span::NONE, |step| step.name.span);
                        report = report.at(span, "");
                    }
                    reports.push(report.help("one of them must read something else"));
                }
                Some(Mark::Done) => {}
            }
        }
    }
}

fn find_needed(
    workflow: &Workflow,
    inputs: &Inputs,
    known: &HashMap<String, &str>,
    broken: &HashSet<&str>,
    names: &mut Names,
) {
    let mut needed: HashSet<String> = HashSet::new();
    let mut open: Vec<String> = Vec::new();
    let roots = workflow.sinks.values().map(|sink| &sink.from.value).chain(&inputs.collect);
    for root in roots {
        if let Some(from) = known.get(&root.to_lowercase()) {
            *names.consumers.entry((*from).to_owned()).or_default() += 1;
            open.push((*from).to_owned());
        }
    }
    while let Some(name) = open.pop() {
        if !needed.insert(name.clone()) {
            continue;
        }
        match names.steps.get(&name) {
            Some(step) => {
                for read in &step.reads {
                    *names.consumers.entry(read.clone()).or_default() += 1;
                    open.push(read.clone());
                }
            }
            None if workflow.sources.contains_key(&name) => {
                names.sources.insert(name);
            }
            None => {}
        }
    }
    names.unneeded = workflow
        .steps
        .keys()
        .filter(|step| !needed.contains(*step) && !broken.contains(step.as_str()))
        .cloned()
        .collect();
    if inputs.everything {
        names.sources.extend(workflow.sources.keys().cloned());
    }
    // Kahn's order, in the order of the text where that is free.
    let mut waiting: HashMap<&str, usize> = HashMap::new();
    let mut readers: HashMap<&str, Vec<&str>> = HashMap::new();
    for (name, step) in &names.steps {
        let reads: HashSet<&str> =
            step.reads.iter().map(String::as_str).filter(|read| names.steps.contains_key(*read)).collect();
        waiting.insert(name, reads.len());
        for read in reads {
            readers.entry(read).or_default().push(name);
        }
    }
    let mut ready: std::collections::VecDeque<&str> =
        names.steps.keys().map(String::as_str).filter(|name| waiting.get(name) == Some(&0)).collect();
    let mut order = Vec::new();
    while let Some(name) = ready.pop_front() {
        if inputs.everything || needed.contains(name) {
            order.push(name.to_owned());
        }
        for reader in readers.get(name).into_iter().flatten() {
            if let Some(count) = waiting.get_mut(reader) {
                *count -= 1;
                if *count == 0 {
                    ready.push_back(reader);
                }
            }
        }
    }
    names.order = order;
}
