//! Pass: cuts the DAG into segments, which are planned together, and names the stages, which run together.
//!
//! A segment is a query: a root (a sink, a collected step, or a step whose rows leave by an edge) with the steps fused
//! into it. Pure bookkeeping: no plan is changed here.

use std::collections::HashMap;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::LogicalPlan;
use rowmill_spec::{ResourceClass, Workflow};

use super::Inputs;
use super::check_types::{Checked, EdgeKind, class_of};
use super::resolve_names::Names;
use crate::plan::meter::MeterNode;
use crate::sinks::SinkTarget;

/// What a segment ends in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    /// A step whose rows leave by an edge.
    Step(String),
    /// A sink, by its place in the list of sinks.
    Sink(usize),
    /// Rows that the program collects from a step or source.
    Collect(String),
}

/// A query.
#[derive(Debug, Clone)]
pub struct Segment {
    /// What it ends in.
    pub root: Root,
    /// Steps fused into it, in order.
    pub steps: Vec<String>,
    /// Where its rows come from: sources, and steps behind edges.
    pub inputs: Vec<String>,
    /// Its class.
    pub class: ResourceClass,
    /// Whether it holds an operator that needs all its input before it can answer.
    pub wide: bool,
}

/// A segment as it is shown and placed: what runs as one physical plan in one class.
#[derive(Debug, Clone)]
pub struct Stage {
    /// From 1, in the order of dependencies.
    pub id: usize,
    /// The segment.
    pub segment: usize,
    /// What the stage is called: its last step or its sink.
    pub name: String,
    /// How its rows leave: "sink report", "streamed", "kept for 2 readers".
    pub output: String,
}

/// The cut.
#[derive(Debug, Default)]
pub struct Cut {
    /// Segments, producers before consumers.
    pub segments: Vec<Segment>,
    /// One stage for each segment.
    pub stages: Vec<Stage>,
}

/// Cuts the checked DAG.
pub fn cut(workflow: &Workflow, inputs: &Inputs, names: &Names, checked: &Checked, sinks: &[SinkTarget]) -> Cut {
    let mut cut = Cut::default();
    let needed: std::collections::HashSet<&str> = names.consumers.keys().map(String::as_str).collect();
    for (name, step) in &checked.steps {
        if !needed.contains(name.as_str()) {
            continue; // looked at only because everything was to be checked
        }
        let output = match &step.edge {
            EdgeKind::Fused => continue,
            EdgeKind::Streamed(_) => "streamed to one reader".to_owned(),
            EdgeKind::Spooled(_) => {
                format!("kept for {} readers", names.consumers.get(name).copied().unwrap_or(0))
            }
        };
        cut.add(Root::Step(name.clone()), name, checked, output);
    }
    for (at, sink) in sinks.iter().enumerate() {
        cut.add(Root::Sink(at), &sink.from, checked, format!("written to {}", sink.path));
    }
    for name in &inputs.collect {
        let name = workflow
            .steps
            .keys()
            .chain(workflow.sources.keys())
            .find(|declared| declared.eq_ignore_ascii_case(name))
            .unwrap_or(name);
        cut.add(Root::Collect(name.clone()), name, checked, "collected".to_owned());
    }
    cut
}

impl Cut {
    fn add(&mut self, root: Root, from: &str, checked: &Checked, output: String) {
        let own = matches!(root, Root::Step(_));
        let mut steps = Vec::new();
        let mut inputs = Vec::new();
        collect(from, own, checked, &mut steps, &mut inputs);
        steps.reverse();
        let class = match checked.steps.get(from) {
            Some(step) => step.class.clone(),
            None => class_of(None),
        };
        let wide =
            steps.last().and_then(|name| checked.steps.get(name)).and_then(|step| step.query()).is_some_and(is_wide);
        let id = self.segments.len() + 1;
        self.segments.push(Segment { root, steps, inputs, class, wide });
        self.stages.push(Stage { id, segment: id - 1, name: from.to_owned(), output });
    }
}

/// The steps fused into `name`'s query, and what that query reads. Iterative, as workflows may be deep.
fn collect(name: &str, own: bool, checked: &Checked, steps: &mut Vec<String>, inputs: &mut Vec<String>) {
    let mut open = vec![(name.to_owned(), own)];
    let mut seen: HashMap<String, ()> = HashMap::new();
    while let Some((name, own)) = open.pop() {
        if seen.insert(name.clone(), ()).is_some() {
            continue;
        }
        match checked.steps.get(&name) {
            Some(step) if own || matches!(step.edge, EdgeKind::Fused) => {
                open.extend(step.reads.iter().map(|read| (read.clone(), false)));
                steps.push(name);
            }
            _ => inputs.push(name),
        }
    }
}

fn is_wide(plan: &LogicalPlan) -> bool {
    let mut wide = false;
    let _ = plan.apply(|node| {
        wide |= match node {
            LogicalPlan::Aggregate(_)
            | LogicalPlan::Sort(_)
            | LogicalPlan::Join(_)
            | LogicalPlan::Window(_)
            | LogicalPlan::Distinct(_)
            | LogicalPlan::Limit(_)
            | LogicalPlan::RecursiveQuery(_) => true,
            LogicalPlan::Extension(extension) => !extension.node.as_any().is::<MeterNode>(),
            _ => false,
        };
        Ok(if wide { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    wide
}
