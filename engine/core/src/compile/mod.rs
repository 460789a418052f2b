//! From a typed workflow to a DAG that is checked to its last column, before anything runs.
//!
//! One pass per file, each named by a verb; a pass reads what those before it left and leaves alone what its own
//! comment says.
//!
//! ```text
//!  Workflow ─ bind_values ─▶ parameters and paths with their values
//!           ─ resolve_names ▶ parsed SQL, who reads whom, what is needed
//!           ─ open_sources ─▶ tables with schemas
//!           ─ check_types ──▶ a logical plan and a schema for each step
//!           ─ cut_segments ─▶ segments (planned together) and stages (run together)
//!           ─ plan_segments ▶ physical plans, one for each sink
//! ```
//!
//! Every pass gathers what it finds wrong and goes on where it can; the next one begins only if nothing was. The
//! compiler reads the heads of source files; it writes nothing.

pub mod bind_values;
pub mod check_types;
pub mod cut_segments;
pub mod explain;
mod guard_steps;
pub mod kept_results;
pub mod open_sources;
pub mod plan_segments;
pub mod resolve_names;
pub mod sql_errors;
pub mod tables;
mod typed_lists;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use datafusion::execution::SessionState;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use indexmap::IndexMap;
use rowmill_spec::{Diagnostic, Diagnostics, Severity, Value, Workflow};

pub use check_types::CheckedStep;
pub use cut_segments::{Cut, Segment, Stage};
pub use plan_segments::{Planned, PlannedSink, plan};

use crate::calls::Host;
use crate::plan::meter::Meter;
use crate::sinks::SinkTarget;
use crate::sources::files::SourceFile;
use crate::sources::stores::StoreOptions;

/// Steps in one workflow: what still compiles within seconds. Larger ones are better written as a loop over data.
pub const MAX_STEPS: usize = 10_000;

/// What a run gives to a workflow, beside its text.
#[derive(Debug, Default, Clone)]
pub struct Inputs {
    /// `--set name=value`, as text.
    pub params: Vec<(String, String)>,
    /// Parameters given by a program, already typed; they win over the text form.
    pub values: BTreeMap<String, Value>,
    /// Variables of the environment, typed.
    pub vars: BTreeMap<String, Value>,
    /// Tables for sources that the program provides.
    pub tables: HashMap<String, Arc<dyn TableProvider>>,
    /// Steps and sources whose rows the program collects; they are needed as if a sink took them.
    pub collect: Vec<String>,
    /// Whether to look at steps and sources that nobody needs too (`check` does, `run` does not).
    pub everything: bool,
    /// The folder that relative paths start from.
    pub base: PathBuf,
}

/// A workflow that compiled.
#[derive(Debug)]
pub struct Compiled {
    /// What was written.
    pub workflow: Arc<Workflow>,
    /// The session it was planned in; one instant is `now()` for all of it.
    pub state: SessionState,
    /// Steps in the order of their dependencies; those that nobody needs are left out.
    pub steps: IndexMap<String, CheckedStep>,
    /// Tables of the sources that were opened, by declared name.
    pub source_tables: HashMap<String, Arc<dyn TableProvider>>,
    /// Names of steps that nobody needs.
    pub unneeded: Vec<String>,
    /// Where the results go.
    pub sinks: Vec<SinkTarget>,
    /// The cut into segments and stages.
    pub cut: Cut,
    /// Rows and bytes that leave each step, and each source.
    pub meters: IndexMap<String, Arc<Meter>>,
    /// Every file that will be read.
    pub files: Vec<SourceFile>,
    /// Warnings.
    pub warnings: Diagnostics,
}

impl Compiled {
    /// The columns of a step or source.
    pub fn schema_of(&self, name: &str) -> Option<SchemaRef> {
        let step = self.steps.get(name).map(|step| Arc::clone(&step.schema));
        step.or_else(|| self.source_tables.get(name).map(|table| table.schema()))
    }
}

/// Checks a workflow and cuts it into segments.
///
/// # Errors
/// Everything that is wrong with it, at once.
pub fn compile<'a>(
    workflow: Arc<Workflow>,
    inputs: &'a Inputs,
    state: SessionState,
    stores: &'a StoreOptions,
    host: &'a Host,
) -> BoxFuture<'a, Result<Compiled, Diagnostics>> {
    compile_workflow(workflow, inputs, state, stores, host).boxed()
}

async fn compile_workflow(
    workflow: Arc<Workflow>,
    inputs: &Inputs,
    state: SessionState,
    stores: &StoreOptions,
    host: &Host,
) -> Result<Compiled, Diagnostics> {
    let mut reports = Reports { workflow: Arc::clone(&workflow), reports: Vec::new() };
    if workflow.steps.len() > MAX_STEPS {
        reports.push(
            Diagnostic::error(
                "RM0208",
                format!("the workflow has {} steps; {MAX_STEPS} is the limit", workflow.steps.len()),
            )
            .at(workflow.name.span, "")
            .help("many steps of one shape are better written as one step over more rows"),
        );
        return Err(reports.into_diagnostics());
    }
    let bound = bind_values::bind(&workflow, inputs, &mut reports);
    let names = resolve_names::resolve(&workflow, inputs, &mut reports);
    reports.stop_on_errors()?;
    let opened = open_sources::open(&workflow, inputs, &bound, &names, &state, stores, &mut reports).await;
    let sinks = crate::sinks::targets(&workflow, &bound, &inputs.base, &state, stores, &mut reports);
    let checked = check_types::check(&workflow, &names, &bound, &opened, &state, host, &mut reports).await;
    crate::sinks::check_columns(&sinks, &checked, &opened, &mut reports);
    reports.stop_on_errors()?;
    let cut = cut_segments::cut(&workflow, inputs, &names, &checked, &sinks);
    Ok(Compiled {
        steps: checked.steps,
        unneeded: names.unneeded,
        sinks,
        cut,
        meters: checked.meters,
        files: opened.files,
        source_tables: opened.tables,
        warnings: reports.into_diagnostics(),
        workflow,
        state,
    })
}

/// What the passes have found so far.
#[derive(Debug)]
pub struct Reports {
    workflow: Arc<Workflow>,
    reports: Vec<Diagnostic>,
}

impl Reports {
    /// Adds a finding; the same one at the same place is said once.
    pub fn push(&mut self, report: Diagnostic) {
        let known = self
            .reports
            .iter()
            .any(|other| other.code == report.code && other.labels == report.labels && other.message == report.message);
        if !known {
            self.reports.push(report);
        }
    }

    fn stop_on_errors(&mut self) -> Result<(), Diagnostics> {
        match self.reports.iter().any(|report| report.severity == Severity::Error) {
            true => {
                Err(Diagnostics { reports: std::mem::take(&mut self.reports), texts: Arc::clone(&self.workflow.texts) })
            }
            false => Ok(()),
        }
    }

    fn into_diagnostics(self) -> Diagnostics {
        Diagnostics { texts: Arc::clone(&self.workflow.texts), reports: self.reports }
    }
}
