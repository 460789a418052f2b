//! What a compiled workflow will do, for people and for machines: the DAG, the stages, the plans.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::sync::Arc;

use chrono::Utc;
use datafusion::physical_plan::displayable;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use rowmill_spec::{Diagnostics, Workflow};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::cut_segments::Root;
use super::plan_segments::Planned;
use super::{Compiled, Inputs, compile, plan};
use crate::error::report;
use crate::runtime::Engine;
use crate::sinks::StagedSink;
use crate::types::logical_name;

/// The whole explanation; serializes to the JSON form.
#[derive(Debug, Serialize)]
pub struct Explanation {
    /// The workflow's name.
    pub workflow: String,
    /// Sources, steps and sinks.
    pub nodes: Vec<Node>,
    /// Who reads whom: (from, to).
    pub edges: Vec<(String, String)>,
    /// What runs together.
    pub stages: Vec<StageView>,
    /// Steps that nobody needs.
    pub unneeded: Vec<String>,
    /// What holds for the whole of it and is not seen from the stages.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A node of the DAG.
#[derive(Debug, Serialize)]
pub struct Node {
    /// Unique: the name, for a sink `sink:NAME`.
    pub id: String,
    /// The name.
    pub name: String,
    /// `source`, the step's kind, or `sink`.
    pub kind: &'static str,
    /// The class, for a step.
    pub class: Option<String>,
    /// What running it again means, for a step.
    pub effects: Option<&'static str>,
    /// Columns with their logical types; for a sink, none.
    pub columns: Vec<(String, String)>,
    /// Where a sink writes.
    pub path: Option<String>,
}

/// A stage.
#[derive(Debug, Serialize)]
pub struct StageView {
    /// From 1.
    pub id: usize,
    /// Its steps, fused into one query.
    pub steps: Vec<String>,
    /// What it reads.
    pub inputs: Vec<String>,
    /// Its class.
    pub class: String,
    /// Whether it needs all its input before it can answer.
    pub wide: bool,
    /// How its rows leave.
    pub output: String,
    /// The physical plan, where it was made.
    pub plan: Option<String>,
    /// What the planner of its class says about the plan's nodes; absent where it says nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Checks a workflow, unneeded steps included, and gives its warnings.
///
/// # Errors
/// Everything that is wrong with it, at once.
pub fn check_workflow<'a>(
    engine: &'a Engine,
    workflow: Arc<Workflow>,
    inputs: &'a Inputs,
) -> BoxFuture<'a, Result<Diagnostics, Diagnostics>> {
    async move {
        let inputs = Inputs { everything: true, ..inputs.clone() };
        Ok(compile(workflow, &inputs, engine.session(false), &engine.options().stores, engine.host()).await?.warnings)
    }
    .boxed()
}

/// Explains what a workflow will do; with `plans`, down to the physical plans.
///
/// # Errors
/// Everything that is wrong with it, at once.
pub fn explain_workflow<'a>(
    engine: &'a Engine,
    workflow: Arc<Workflow>,
    inputs: &'a Inputs,
    plans: bool,
) -> BoxFuture<'a, Result<Explanation, Diagnostics>> {
    async move {
        let texts = Arc::clone(&workflow.texts);
        // A durable run on a cluster is planned otherwise than others: its rows must come in the same order when it is
        // resumed.
        let durable = workflow.durable && engine.host().elsewhere.is_some();
        let state = if durable { engine.durable_session(Utc::now()) } else { engine.session(false) };
        let compiled = compile(workflow, inputs, state, &engine.options().stores, engine.host()).await?;
        let explained = |planned: Option<&Planned>| {
            let mut explanation = explain(&compiled, planned);
            if durable {
                explanation.notes.push(
                    "durable: rows are written down by the client before a call is made with them; rows that were written \
                     down are read by the client"
                        .to_owned(),
                );
            }
            explanation
        };
        if !plans {
            return Ok(explained(None));
        }
        let places: Vec<StagedSink> = compiled.sinks.iter().map(StagedSink::imagined).collect();
        let scope = engine.scope("explain", &CancellationToken::new(), std::env::temp_dir());
        let scope = if durable { scope.in_order() } else { scope };
        match plan(&compiled, inputs, &places, &scope).await {
            Ok(planned) => Ok(explained(Some(&planned))),
            Err(error) => Err(Diagnostics { reports: vec![report(&error)], texts }),
        }
    }
    .boxed()
}

/// Explains `compiled`; with `planned`, the plans too.
pub fn explain(compiled: &Compiled, planned: Option<&Planned>) -> Explanation {
    let workflow = &compiled.workflow;
    let mut nodes = Vec::new();
    let mut edges = Vec::new();
    let columns = |schema: &arrow::datatypes::Schema| {
        schema.fields().iter().map(|field| (field.name().clone(), logical_name(field.data_type()))).collect()
    };
    for name in workflow.sources.keys() {
        if let Some(table) = compiled.source_tables.get(name) {
            nodes.push(Node {
                id: name.clone(),
                name: name.clone(),
                kind: "source",
                class: None,
                effects: None,
                columns: columns(&table.schema()),
                path: None,
            });
        }
    }
    for (name, step) in &compiled.steps {
        nodes.push(Node {
            id: name.clone(),
            name: name.clone(),
            kind: workflow.steps.get(name).map_or("items", |step| step.kind.key()),
            class: Some(step.class.as_str().to_owned()),
            effects: Some(step.call().map_or("pure", |call| call.policy.effects.as_str())),
            columns: columns(&step.schema),
            path: None,
        });
        let mut reads = step.reads.clone();
        reads.dedup();
        edges.extend(reads.into_iter().map(|read| (read, name.clone())));
    }
    for sink in &compiled.sinks {
        let id = format!("sink:{}", sink.name);
        edges.push((sink.from.clone(), id.clone()));
        nodes.push(Node {
            id,
            name: sink.name.clone(),
            kind: "sink",
            class: None,
            effects: None,
            columns: Vec::new(),
            path: Some(sink.path.clone()),
        });
    }
    let stages = compiled
        .cut
        .stages
        .iter()
        .filter_map(|stage| {
            let segment = compiled.cut.segments.get(stage.segment)?;
            Some(StageView {
                id: stage.id,
                steps: segment.steps.clone(),
                inputs: segment.inputs.clone(),
                class: segment.class.as_str().to_owned(),
                wide: segment.wide,
                output: stage.output.clone(),
                plan: planned.and_then(|planned| plan_text(planned, &segment.root)),
                notes: planned.map_or_else(Vec::new, |planned| notes(planned, &segment.root)),
            })
        })
        .collect();
    let (workflow, unneeded) = (workflow.name.value.clone(), compiled.unneeded.clone());
    Explanation { workflow, nodes, edges, stages, unneeded, notes: Vec::new() }
}

fn plan_text(planned: &Planned, root: &Root) -> Option<String> {
    let plan = match root {
        Root::Step(name) => &planned.apart.iter().find(|(step, _)| step == name)?.1,
        root => &planned.roots.iter().find(|planned| planned.root == *root)?.plan,
    };
    Some(displayable(plan.as_ref()).indent(false).to_string())
}

fn notes(planned: &Planned, root: &Root) -> Vec<String> {
    let notes = match root {
        Root::Step(name) => planned.notes.get(name),
        root => planned.roots.iter().find(|planned| planned.root == *root).map(|planned| &planned.notes),
    };
    notes.cloned().unwrap_or_default()
}

impl Explanation {
    /// For a terminal.
    pub fn to_text(&self) -> String {
        let mut text = format!("workflow {}\n", self.workflow);
        for note in &self.notes {
            let _ = writeln!(text, "  {note}");
        }
        for node in &self.nodes {
            let columns: Vec<String> = node.columns.iter().map(|(name, kind)| format!("{name} {kind}")).collect();
            let _ = match node.kind {
                "source" => writeln!(text, "  source {:<20} ({})", node.name, columns.join(", ")),
                "sink" => writeln!(text, "  sink   {:<20} → {}", node.name, node.path.as_deref().unwrap_or("")),
                kind => writeln!(
                    text,
                    "  {kind:<6} {:<20} class {}, {}, ({})",
                    node.name,
                    node.class.as_deref().unwrap_or("cpu"),
                    node.effects.unwrap_or("pure"),
                    columns.join(", ")
                ),
            };
        }
        for name in &self.unneeded {
            let _ = writeln!(text, "  step   {name:<20} is not needed by any sink and does not run");
        }
        for stage in &self.stages {
            let shape = if stage.wide { "wide" } else { "row-wise" };
            let steps = if stage.steps.is_empty() { "copy".to_owned() } else { stage.steps.join(" → ") };
            let _ = write!(
                text,
                "\nstage {}: {steps}\n  class {}, {shape}, reads {}, {}\n",
                stage.id,
                stage.class,
                stage.inputs.join(", "),
                stage.output
            );
            for line in stage.plan.iter().flat_map(|plan| plan.lines()) {
                let _ = writeln!(text, "    {line}");
            }
            for note in &stage.notes {
                let _ = writeln!(text, "    {}: {note}", stage.class);
            }
        }
        text
    }

    /// A Mermaid flowchart.
    pub fn to_mermaid(&self) -> String {
        let mut text = String::from("flowchart LR\n");
        let ids = identifiers(&self.nodes);
        for node in &self.nodes {
            let Some(id) = ids.get(node.id.as_str()) else { continue };
            let label = node.name.replace('"', "#quot;");
            let _ = match node.kind {
                "source" => writeln!(text, "  {id}[(\"{label}\")]"),
                "sink" => writeln!(text, "  {id}[/\"{label}\"/]"),
                kind => writeln!(
                    text,
                    "  {id}[\"{label}<br/><small>{kind}, {}</small>\"]",
                    node.class.as_deref().unwrap_or("cpu")
                ),
            };
        }
        for (from, to) in &self.edges {
            if let (Some(from), Some(to)) = (ids.get(from.as_str()), ids.get(to.as_str())) {
                let _ = writeln!(text, "  {from} --> {to}");
            }
        }
        text
    }

    /// A Graphviz graph.
    pub fn to_dot(&self) -> String {
        let quote = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
        let mut text = format!("digraph {} {{\n  rankdir=LR;\n", quote(&self.workflow));
        for node in &self.nodes {
            let shape = match node.kind {
                "source" => "cylinder",
                "sink" => "note",
                _ => "box",
            };
            let _ = writeln!(text, "  {} [label={}, shape={shape}];", quote(&node.id), quote(&node.name));
        }
        for (from, to) in &self.edges {
            let _ = writeln!(text, "  {} -> {};", quote(from), quote(to));
        }
        text.push_str("}\n");
        text
    }
}

/// A Mermaid identifier for each node: its name where that is one, is not taken, and is no word of the language.
fn identifiers(nodes: &[Node]) -> HashMap<&str, String> {
    const WORDS: &[&str] =
        &["end", "graph", "flowchart", "subgraph", "style", "class", "classdef", "click", "linkstyle"];
    let mut taken: HashSet<String> = WORDS.iter().map(|word| (*word).to_owned()).collect();
    let mut ids = HashMap::new();
    for node in nodes {
        let plain: String = node.id.chars().map(|c| if c.is_alphanumeric() { c } else { '_' }).collect();
        let mut id = plain.clone();
        let mut number = 2;
        while !taken.insert(id.to_lowercase()) {
            id = format!("{plain}_{number}");
            number += 1;
        }
        ids.insert(node.id.as_str(), id);
    }
    ids
}
