//! Pass (of `check_types`): what a SQL step's whole result hangs on, so that it can be kept from one run to the next.
//!
//! A result is known by the query's text, the values of parameters, and by what it reads: the files of sources (path,
//! size, time, etag) and, in turn, the queries between. What is not a function of these is refused: steps that are not
//! SQL, rows of the program, and functions whose value changes.

use std::collections::HashMap;
use std::time::Duration;

use datafusion::common::tree_node::{TreeNode as _, TreeNodeRecursion};
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility};
use rowmill_spec::{Diagnostic, SourceKind, Step, StepKind, Workflow};
use rowmill_step::FingerprintBuilder;

use super::bind_values::Bound;
use super::open_sources::OpenedSources;

/// Rises when results of the same text may be others.
const VERSION: u32 = 1;

/// The name under which a step's result is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptKey {
    /// A hash of all that the result hangs on.
    pub key: String,
    /// How long it is good for.
    pub ttl: Option<Duration>,
}

/// Identities of sources and steps, as far as they were asked for.
pub(super) struct Identities<'a> {
    /// Whether any step keeps its result; otherwise nobody needs to know.
    wanted: bool,
    known: HashMap<String, Result<String, String>>,
    workflow: &'a Workflow,
    bound: &'a Bound,
    opened: &'a OpenedSources,
    /// What of the session is part of what a result hangs on.
    engine: String,
}

impl<'a> Identities<'a> {
    pub(super) fn new(workflow: &'a Workflow, bound: &'a Bound, opened: &'a OpenedSources, engine: String) -> Self {
        let wanted = workflow.steps.values().any(keeps);
        Identities { wanted, known: HashMap::new(), workflow, bound, opened, engine }
    }

    /// Notes a step; `plan` is its query, if it is simply SQL. Gives its key if its result is kept.
    pub(super) fn note(
        &mut self,
        step: &Step,
        reads: &[String],
        plan: Option<&LogicalPlan>,
    ) -> Result<Option<KeptKey>, Diagnostic> {
        if !self.wanted {
            return Ok(None);
        }
        let name = &step.name.value;
        let identity = match (&step.kind, plan) {
            (StepKind::Sql(sql), Some(plan)) => match changing(plan) {
                Some(function) => Err(format!("`{name}` calls `{function}`, whose value changes")),
                None => self.identity(&sql.text.text, reads),
            },
            _ => Err(format!("`{name}` is not simply SQL")),
        };
        self.known.insert(name.to_lowercase(), identity.clone());
        let Some(policy) = step.items.cache.as_ref().filter(|_| keeps(step)) else { return Ok(None) };
        match identity {
            Ok(key) => Ok(Some(KeptKey { key, ttl: policy.value.ttl.as_ref().map(|ttl| ttl.value) })),
            Err(why) => Err(Diagnostic::error("RM0313", format!("the result of step `{name}` cannot be kept: {why}"))
                .at(policy.span, "")
                .help("remove `cache`, or move what changes into a step that reads this one")),
        }
    }

    fn identity(&mut self, text: &str, reads: &[String]) -> Result<String, String> {
        let mut print = FingerprintBuilder::new("result", VERSION).field("engine", &self.engine).field("text", text);
        for (name, value) in &self.bound.params {
            print = print.field("param", name).field("value", format!("{value:?}"));
        }
        for read in reads {
            let folded = read.to_lowercase();
            let known = match self.known.get(&folded) {
                Some(known) => known.clone(),
                None => {
                    let source = source(read, self.workflow, self.bound, self.opened);
                    self.known.insert(folded, source.clone());
                    source
                }
            };
            print = print.field("read", read).field("of", &known?);
        }
        Ok(print.finish().to_string())
    }
}

/// Whether a step's whole result is kept.
fn keeps(step: &Step) -> bool {
    matches!(step.kind, StepKind::Sql(_)) && step.items.cache.is_some()
}

fn source(name: &str, workflow: &Workflow, bound: &Bound, opened: &OpenedSources) -> Result<String, String> {
    let Some(source) = workflow.sources.get(name) else { return Err(format!("`{name}` is not known")) };
    let mut print = FingerprintBuilder::new("source", VERSION);
    match &source.kind {
        SourceKind::Provided => return Err(format!("source `{name}` is provided by the program")),
        SourceKind::Range { start, end } => print = print.field("range", format!("{} {}", start.value, end.value)),
        SourceKind::Files(files) => {
            for template in &files.paths {
                let path = bound.path(template).map_err(|report| report.message)?;
                print = print.field("path", &path.0);
            }
            // Formats, options and declared columns, without the places where they stand in the text.
            print = print.field("options", without_spans(&format!("{files:?}")));
            if let Some(table) = opened.tables.get(name) {
                print = print.field("schema", format!("{:?}", table.schema()));
            }
            for file in opened.files_of.get(name).into_iter().flatten() {
                let meta = &file.meta;
                let time = meta.last_modified.timestamp_nanos_opt().unwrap_or_default();
                let of = format!("{} {} {time} {:?}", file.store.as_str(), meta.size, meta.e_tag);
                print = print.field("file", meta.location.as_ref()).field("is", &of);
            }
        }
    }
    Ok(print.finish().to_string())
}

/// A debug text without `Span { .. }`, which changes when a line is added above.
fn without_spans(text: &str) -> String {
    let mut rest = text;
    let mut kept = String::with_capacity(text.len());
    while let Some(at) = rest.find("Span {") {
        kept.push_str(&rest[..at]);
        rest = &rest[at..];
        rest = rest.find('}').map_or("", |end| &rest[end + 1..]);
    }
    kept.push_str(rest);
    kept
}

/// A function of the query whose value is not one of its arguments alone.
fn changing(plan: &LogicalPlan) -> Option<String> {
    let mut found = None;
    let walked = plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expression| {
            expression.apply(|expression| {
                if let Expr::ScalarFunction(call) = expression
                    && call.func.signature().volatility != Volatility::Immutable
                {
                    found = Some(call.func.name().to_owned());
                    return Ok(TreeNodeRecursion::Stop);
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })?;
        Ok(if found.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    match walked {
        Ok(_) => found,
        Err(error) => Some(error.strip_backtrace()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_in_the_text_are_no_part_of_an_identity() {
        let text = "A { b: Spanned { value: 1, span: Span { file: 0, start: 3 } }, c: 2 }";
        assert_eq!(without_spans(text), "A { b: Spanned { value: 1, span:  }, c: 2 }");
    }
}
