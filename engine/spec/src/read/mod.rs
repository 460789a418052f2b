//! YAML nodes to a workflow, gathering every error on the way.
//!
//! Each section of the text has its reader here; what holds for all forms of a workflow (names, references, settings
//! that fit together) is left to [`crate::check`].

mod computed;
mod fields;
mod items;
mod scalars;
mod sections;
#[cfg(test)]
mod step_tests;
mod steps;
#[cfg(test)]
mod tests;
mod values;

use std::sync::Arc;

use indexmap::IndexMap;

use crate::check::check;
use crate::codes;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::keys::{self, FORMAT_VERSION};
use crate::model::Workflow;
use crate::names::{self, is_workflow_name, normalize};
use crate::report::Reporter;
use crate::span::{Span, Spanned, Texts};
use crate::yaml::{self, Kind, Node};

#[cfg(test)]
pub(crate) use fields::example;
pub(crate) use fields::{Fields, Reading, bad_type, bad_word};
pub use values::{RawValue, Values, parse_values};

/// Reads a workflow from YAML; `name` is what reports call the text.
///
/// # Errors
/// All errors of the text at once.
pub fn parse_yaml(name: &str, text: &str) -> Result<Workflow, Diagnostics> {
    if let Err(report) = yaml::check_size(text.len()) {
        return Err(Diagnostics { reports: vec![report], texts: Arc::default() });
    }
    let mut texts = Texts::new();
    let id = texts.add(name, text);
    let texts = Arc::new(texts);
    let mut reporter = Reporter::default();
    let workflow = yaml::parse(id, text, &mut reporter)
        .and_then(|root| read_workflow(&mut Reading { id, text, reporter: &mut reporter }, &root));
    finish(workflow, reporter, texts)
}

/// Checks what a reader made, and gives it out with its warnings, or its errors.
pub(crate) fn finish(
    workflow: Option<Workflow>,
    mut reporter: Reporter,
    texts: Arc<Texts>,
) -> Result<Workflow, Diagnostics> {
    if let Some(workflow) = &workflow {
        check(workflow, &mut reporter);
    }
    match workflow {
        Some(workflow) if reporter.errors() == 0 => Ok(Workflow { texts, warnings: reporter.finish(), ..workflow }),
        _ => {
            let texts = if reporter.masks.is_empty() { texts } else { Arc::new(texts.masked(&reporter.masks)) };
            Err(Diagnostics { reports: reporter.finish(), texts })
        }
    }
}

fn read_workflow(reading: &mut Reading<'_>, root: &Node) -> Option<Workflow> {
    let start = Span::new(reading.id, 0..0);
    if !matches!(root.kind, Kind::Mapping(_)) {
        reading.wrong_type(root, "a workflow must be a mapping", "begin with `rowmill: 1`");
        return None;
    }
    if !version_is_known(reading, root) {
        return None;
    }
    let fields = reading.fields(&keys::WORKFLOW, root, start, "the workflow")?;
    let name = fields.get("name").and_then(|node| workflow_name(reading, node));
    let description = fields.get("description").and_then(|node| reading.text(node, "`description`"));
    let mut workflow = Workflow {
        name: name.unwrap_or_else(|| Spanned::bare("unnamed".to_owned())),
        description: description.map(|text| text.value),
        params: IndexMap::new(),
        vars: IndexMap::new(),
        sources: IndexMap::new(),
        steps: IndexMap::new(),
        sinks: IndexMap::new(),
        durable: false,
        texts: Arc::default(),
        warnings: Vec::new(),
    };
    if let Some(node) = fields.get("durable") {
        workflow.durable = reading.boolean(node, "`durable`").unwrap_or(false);
    }
    if let Some(node) = fields.get("params") {
        workflow.params = reading.named(node, "`params`", "parameter", sections::param);
    }
    if let Some(node) = fields.get("vars") {
        workflow.vars = reading.named(node, "`vars`", "variable", sections::variable);
    }
    if let Some(node) = fields.get("sources") {
        workflow.sources = reading.named(node, "`sources`", "source", sections::source);
    }
    if let Some(node) = fields.get("steps") {
        workflow.steps = reading.named(node, "`steps`", "step", sections::step);
    }
    if let Some(node) = fields.get("sinks") {
        workflow.sinks = reading.named(node, "`sinks`", "sink", sections::sink);
    }
    if workflow.steps.is_empty() && workflow.sinks.is_empty() && reading.reporter.errors() == 0 {
        let place = fields.entry("steps").map_or(start, |(key, _)| key.span);
        let report = Diagnostic::error(codes::NOTHING_TO_DO, "the workflow has no steps").at(place, "");
        reading.report(report.help("add a step: `steps: {name: {sql: SELECT ...}}`"));
    }
    Some(workflow)
}

/// Looks at the version before anything else: the keys of a newer version are not unknown keys of ours.
fn version_is_known(reading: &mut Reading<'_>, root: &Node) -> bool {
    let Kind::Mapping(entries) = &root.kind else { return false };
    let Some((_, node)) = entries.iter().find(|(key, _)| key.value == "rowmill") else {
        let place = entries.first().map_or(Span::new(reading.id, 0..0), |(key, _)| key.span);
        let report = Diagnostic::error(codes::FORMAT_VERSION, "the text does not say its version")
            .at(place, "`rowmill: 1` must stand here, at the top");
        reading.report(report.help("begin the text with `rowmill: 1`"));
        // The rest can be read as the present version, so that all errors are told at once.
        return true;
    };
    match &node.kind {
        Kind::Scalar(scalar) => match scalar.value.parse::<i64>() {
            Ok(version) if version == FORMAT_VERSION => true,
            Ok(version) if version > FORMAT_VERSION => {
                let report = Diagnostic::error(
                    codes::FORMAT_VERSION,
                    format!("the text is of version {version}, and this program reads version {FORMAT_VERSION}"),
                )
                .at(node.span, "a newer version");
                reading.report(report.help("use a newer Rowmill"));
                false
            }
            _ => {
                let report = Diagnostic::error(codes::FORMAT_VERSION, "this is not a version of the format")
                    .at(node.span, "the version is a whole number");
                reading.report(report.help("write `rowmill: 1`"));
                false
            }
        },
        _ => {
            reading.wrong_type(node, "`rowmill` must be the version of the format", "write `rowmill: 1`");
            false
        }
    }
}

fn workflow_name(reading: &mut Reading<'_>, node: &Node) -> Option<Spanned<String>> {
    let name = reading.text(node, "`name`")?;
    let name = Spanned::new(normalize(&name.value), name.span);
    if !is_workflow_name(&name) {
        reading.report(names::bad_name("workflow", &name, name.span));
        return None;
    }
    Some(name)
}
