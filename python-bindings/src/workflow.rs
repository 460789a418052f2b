//! Workflows: read from text or built in Python, checked, explained and run.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use indexmap::IndexMap;
use parking_lot::Mutex;
use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use rowmill::spec::{LogicalType, ResourceClass, Resources, Value, Workflow, WorkflowBuilder};
use rowmill::{Inputs, Meter, Observer, RunError, RunReport, Tally};
use tokio_util::sync::CancellationToken;

use crate::batches::Batches;
use crate::errors::{cancelled, from_reports};
use crate::files::{Options, here};
use crate::frame::PyFrame;
use crate::runs::{Origin, run_durably};
use crate::runtime::{LISTEN, leave, listen, threads, wait};
use crate::session::{At, session_at, shared};

/// How long a run that was cancelled may take to clean up before Python goes on without it.
const CLEANING: Duration = Duration::from_secs(5);

/// A workflow.
#[pyclass(frozen, module = "rowmill._native", name = "NativeWorkflow")]
pub(crate) struct PyWorkflow {
    workflow: Arc<Workflow>,
    base: PathBuf,
    /// Where it was read from; `None` where it was built.
    origin: Option<Origin>,
}

/// Steps that a Python program takes to build a workflow.
#[pyclass(module = "rowmill._native", name = "NativeBuilder")]
pub(crate) struct PyBuilder {
    builder: Mutex<Option<WorkflowBuilder>>,
}

impl PyBuilder {
    fn change(&self, change: impl FnOnce(WorkflowBuilder) -> WorkflowBuilder) -> PyResult<()> {
        let mut slot = self.builder.lock();
        match slot.take() {
            Some(builder) => {
                *slot = Some(change(builder));
                Ok(())
            }
            None => Err(PyRuntimeError::new_err("the workflow was built before")),
        }
    }
}

fn kind_of(name: &str, kind: &str) -> PyResult<LogicalType> {
    LogicalType::parse(kind).map_err(|error| PyValueError::new_err(format!("`{name}`: type `{kind}`: {error}")))
}

#[pymethods]
impl PyBuilder {
    #[new]
    fn new(name: &str, description: Option<String>) -> PyBuilder {
        let mut builder = Workflow::builder(name);
        if let Some(text) = description {
            builder = builder.description(text);
        }
        PyBuilder { builder: Mutex::new(Some(builder)) }
    }

    #[pyo3(signature = (name, kind, default))]
    fn param(&self, name: String, kind: &str, default: Option<String>) -> PyResult<()> {
        let kind = kind_of(&name, kind)?;
        let default = default
            .map(|text| Value::parse(&kind, &text).map_err(|error| PyValueError::new_err(format!("`{name}`: {error}"))))
            .transpose()?;
        self.change(|builder| builder.param(name, kind, default))
    }

    fn source_files(&self, name: String, paths: Vec<String>, options: &Bound<'_, PyDict>) -> PyResult<()> {
        let options = Options::from_python(options)?;
        self.change(|builder| builder.source_files_with(name, paths, |files| options.for_source(files)))
    }

    fn source_range(&self, name: String, start: i64, end: i64) -> PyResult<()> {
        self.change(|builder| builder.range(name, start, end))
    }

    fn source_provided(&self, name: String) -> PyResult<()> {
        self.change(|builder| builder.source_provided(name))
    }

    /// A step that calls a function; see `steps::python`.
    fn python(&self, name: String, said: &Bound<'_, PyDict>) -> PyResult<()> {
        let (step, items, resources) = crate::steps::python(said)?;
        self.change(|builder| builder.step(name, step, items, resources))
    }

    #[pyo3(signature = (name, text, class))]
    fn sql(&self, name: String, text: String, class: Option<&str>) -> PyResult<()> {
        let resources = class.map(|word| Resources::class(ResourceClass::from_word(word))).unwrap_or_default();
        self.change(|builder| builder.sql_with(name, text, resources))
    }

    fn sink(&self, name: String, from: String, path: String, options: &Bound<'_, PyDict>) -> PyResult<()> {
        let options = Options::from_python(options)?;
        self.change(|builder| builder.sink_with(name, from, path, |sink| options.for_sink(sink)))
    }

    fn build(&self, py: Python<'_>, base: Option<PathBuf>) -> PyResult<PyWorkflow> {
        let builder = self.builder.lock().take();
        let builder = builder.ok_or_else(|| PyRuntimeError::new_err("the workflow was built before"))?;
        let workflow = builder.build().map_err(|reports| from_reports(py, &reports))?;
        Ok(PyWorkflow { workflow: Arc::new(workflow), base: base.unwrap_or_else(here), origin: None })
    }
}

/// The workflow in a file.
#[pyfunction]
pub(crate) fn load_workflow(py: Python<'_>, path: PathBuf) -> PyResult<PyWorkflow> {
    let (workflow, inputs) = rowmill::load(&path).map_err(|reports| from_reports(py, &reports))?;
    let text = rowmill::read_text(&path).map_err(|reports| from_reports(py, &reports))?;
    let path = std::path::absolute(path)?;
    let origin = Origin { name: path.display().to_string(), path: Some(path), text };
    Ok(PyWorkflow { workflow, base: inputs.base, origin: Some(origin) })
}

/// The workflow in a text; the end of `name` tells its form.
#[pyfunction]
pub(crate) fn parse_workflow(py: Python<'_>, name: &str, text: &str, base: Option<PathBuf>) -> PyResult<PyWorkflow> {
    let workflow = rowmill::spec::parse(name, text).map_err(|reports| from_reports(py, &reports))?;
    let origin = Origin { name: name.to_owned(), path: None, text: text.to_owned() };
    Ok(PyWorkflow { workflow: Arc::new(workflow), base: base.unwrap_or_else(here), origin: Some(origin) })
}

/// Names of sources, steps and sinks, and parameters with their types.
type Parts = (Vec<String>, Vec<String>, Vec<String>, Vec<(String, String)>);

/// What a run is given: parameters as texts, frames for provided sources, names to collect.
type Given<'py> = (Vec<(String, String)>, HashMap<String, PyFrame>, Vec<String>, Option<PathBuf>);

impl PyWorkflow {
    fn inputs(&self, py: Python<'_>, given: Given<'_>) -> PyResult<Inputs> {
        crate::steps::look_around(py)?;
        let (params, frames, collect, vars) = given;
        let mut inputs = Inputs { params, collect, base: self.base.clone(), ..Inputs::default() };
        for (name, frame) in frames {
            inputs.tables.insert(name, frame.table());
        }
        if let Some(path) = vars {
            inputs.vars = rowmill::load_vars(&path, &self.workflow).map_err(|reports| from_reports(py, &reports))?;
        }
        Ok(inputs)
    }
}

#[pymethods]
impl PyWorkflow {
    fn name(&self) -> &str {
        &self.workflow.name.value
    }

    /// Names of sources, steps and sinks, and parameters with their types.
    fn parts(&self) -> Parts {
        let of = &self.workflow;
        (
            of.sources.keys().cloned().collect(),
            of.steps.keys().cloned().collect(),
            of.sinks.keys().cloned().collect(),
            of.params.iter().map(|(name, param)| (name.clone(), param.kind.value.to_string())).collect(),
        )
    }

    fn to_yaml(&self, py: Python<'_>) -> PyResult<String> {
        self.workflow.to_yaml().map_err(|reports| from_reports(py, &reports))
    }

    /// Checks it to its last column. Gives the warnings, rendered.
    fn check(&self, py: Python<'_>, given: Given<'_>) -> PyResult<Vec<String>> {
        let inputs = self.inputs(py, given)?;
        let (session, workflow) = (shared(py)?.session.clone(), Arc::clone(&self.workflow));
        let checked = wait(py, async move { session.check(workflow, &inputs).await })?;
        Ok(rendered(&checked.map_err(|reports| from_reports(py, &reports))?))
    }

    /// What it will do, as JSON; with `plans`, down to the physical plans.
    fn explain(&self, py: Python<'_>, given: Given<'_>, form: &str, at: At) -> PyResult<String> {
        let inputs = self.inputs(py, given)?;
        let (session, workflow) = (session_at(py, at)?, Arc::clone(&self.workflow));
        let plans = matches!(form, "text" | "json");
        let explained = wait(py, async move { session.explain(workflow, &inputs, plans).await })?;
        let explained = explained.map_err(|reports| from_reports(py, &reports))?;
        match form {
            "text" => Ok(explained.to_text()),
            "mermaid" => Ok(explained.to_mermaid()),
            "dot" => Ok(explained.to_dot()),
            "json" => serde_json::to_string(&explained).map_err(|error| PyRuntimeError::new_err(error.to_string())),
            other => {
                Err(PyValueError::new_err(format!("there is no form `{other}`; it is text, mermaid, dot or json")))
            }
        }
    }

    /// Runs it to its end, on a cluster if one is given. `progress` is called with `{name: (rows, bytes)}` as it goes.
    #[pyo3(signature = (given, progress, at))]
    fn run<'py>(
        &self,
        py: Python<'py>,
        given: Given<'_>,
        progress: Option<Py<PyAny>>,
        at: At,
    ) -> PyResult<Bound<'py, PyDict>> {
        let inputs = self.inputs(py, given)?;
        let (session, workflow) = (session_at(py, at)?, Arc::clone(&self.workflow));
        let report = run_to_end(py, progress, move |cancel, watch| async move {
            session.run_observed(workflow, &inputs, &cancel, watch.as_ref()).await
        })?;
        described(py, report)
    }

    /// Whether its text asks for durable runs.
    fn is_durable(&self) -> bool {
        self.workflow.durable
    }

    /// As `run`, durably; `started` is called with the run's id before anything else happens.
    fn run_durably<'py>(
        &self,
        py: Python<'py>,
        given: Given<'_>,
        progress: Option<Py<PyAny>>,
        started: Py<PyAny>,
        at: At,
    ) -> PyResult<Bound<'py, PyDict>> {
        let inputs = self.inputs(py, given)?;
        let workflow = Arc::clone(&self.workflow);
        match &self.origin {
            Some(origin) => run_durably(py, workflow, inputs, origin, progress, started, at),
            None => {
                let text = self.to_yaml(py)?;
                let origin = Origin { name: "workflow.yaml".to_owned(), path: None, text };
                run_durably(py, workflow, inputs, &origin, progress, started, at)
            }
        }
    }
}

fn rendered(reports: &rowmill::Diagnostics) -> Vec<String> {
    let one = |report: &rowmill::spec::Diagnostic| {
        rowmill::Diagnostics { reports: vec![report.clone()], texts: Arc::clone(&reports.texts) }.render(false)
    };
    reports.reports.iter().map(one).collect()
}

pub(crate) fn described(py: Python<'_>, report: RunReport) -> PyResult<Bound<'_, PyDict>> {
    let answer = PyDict::new(py);
    answer.set_item("id", report.id.to_string())?;
    answer.set_item("workflow", &report.workflow)?;
    answer.set_item("elapsed_s", report.elapsed.as_secs_f64())?;
    answer.set_item("replanned", report.replanned)?;
    answer.set_item("unneeded", &report.unneeded)?;
    answer.set_item("warnings", rendered(&report.warnings))?;
    let steps = PyList::empty(py);
    for step in &report.steps {
        let one = PyDict::new(py);
        one.set_item("name", &step.name)?;
        one.set_item("class", &step.class)?;
        one.set_item("rows", step.rows)?;
        one.set_item("bytes", step.bytes)?;
        one.set_item("batches", step.batches)?;
        steps.append(one)?;
    }
    answer.set_item("steps", steps)?;
    let sinks = PyList::empty(py);
    for sink in &report.sinks {
        let one = PyDict::new(py);
        one.set_item("name", &sink.name)?;
        one.set_item("path", &sink.path)?;
        one.set_item("rows", sink.rows)?;
        one.set_item("format", sink.format.as_str())?;
        let partitions: Vec<(String, String)> =
            sink.partitions.iter().map(|(name, kind)| (name.clone(), kind.to_string())).collect();
        one.set_item("partitions", partitions)?;
        sinks.append(one)?;
    }
    answer.set_item("sinks", sinks)?;
    let items = PyDict::new(py);
    for step in &report.items {
        let outcomes = PyDict::new(py);
        for (outcome, many) in step.counts.outcomes.iter() {
            outcomes.set_item(outcome.to_string(), many)?;
        }
        let samples = step.samples.iter();
        let samples: Vec<(&str, &str, &str)> =
            samples.map(|one| (one.item.as_str(), one.outcome, one.reason.as_str())).collect();
        items.set_item(&step.step, (outcomes, samples, step.failures()))?;
    }
    answer.set_item("items", items)?;
    let collected = PyDict::new(py);
    for (name, batches) in report.collected {
        let schema = batches.first().map(|batch| batch.schema());
        let Some(schema) = schema else {
            collected.set_item(name, py.None())?;
            continue;
        };
        collected.set_item(name, Py::new(py, Batches { schema, batches })?)?;
    }
    answer.set_item("collected", collected)?;
    Ok(answer)
}

/// Hands the meters of a run to the thread that waits for it.
#[derive(Default)]
pub(crate) struct Watch {
    meters: Mutex<Option<IndexMap<String, Arc<Meter>>>>,
}

impl Observer for Watch {
    fn started(
        &self,
        _run: uuid::Uuid,
        meters: &IndexMap<String, Arc<Meter>>,
        _tallies: &IndexMap<String, Arc<Tally>>,
    ) {
        *self.meters.lock() = Some(meters.clone());
    }
}

impl Watch {
    fn tell(&self, py: Python<'_>, progress: &Py<PyAny>) -> PyResult<()> {
        let Some(meters) = self.meters.lock().clone() else { return Ok(()) };
        let seen = PyDict::new(py);
        for (name, meter) in &meters {
            seen.set_item(name, (meter.rows(), meter.bytes()))?;
        }
        progress.call1(py, (seen,))?;
        Ok(())
    }
}

/// Waits without the GIL for a run. Ctrl-C cancels it and waits until it has cleaned up.
pub(crate) fn run_to_end<F>(
    py: Python<'_>,
    progress: Option<Py<PyAny>>,
    work: impl FnOnce(CancellationToken, Arc<Watch>) -> F,
) -> PyResult<RunReport>
where
    F: Future<Output = Result<RunReport, RunError>> + Send + 'static,
{
    if let Some(function) = &progress
        && !function.bind(py).is_callable()
    {
        return Err(PyTypeError::new_err("progress is a function or nothing"));
    }
    let (cancel, watch) = (CancellationToken::new(), Arc::new(Watch::default()));
    let (sender, mut receiver) = sync_channel(1);
    let work = work(cancel.clone(), Arc::clone(&watch));
    let threads = threads()?;
    threads.spawn(async move {
        // The receiver is gone if nobody waits any more.
        let _ = sender.send(work.await);
    })?;
    let mut stopped: Option<PyErr> = None;
    let mut patience = CLEANING;
    loop {
        match listen(py, &mut receiver) {
            Ok(outcome) => {
                if let (Some(function), None) = (&progress, &stopped) {
                    watch.tell(py, function)?;
                }
                return match (outcome, stopped) {
                    (Ok(report), None) => Ok(report),
                    // A second too late: it is done, but whoever pressed the key should hear of the key.
                    (_, Some(signal)) => Err(signal),
                    (Err(RunError::Failed(reports)), None) => Err(from_reports(py, &reports)),
                    (Err(RunError::Cancelled), None) => Err(cancelled(py)),
                };
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(PyRuntimeError::new_err("the run ended without an answer: an operator panicked"));
            }
            Err(RecvTimeoutError::Timeout) => {
                if let (Some(function), None) = (&progress, &stopped)
                    && let Err(error) = watch.tell(py, function)
                {
                    cancel.cancel();
                    stopped = Some(error);
                }
                let pressed = py.check_signals().err();
                match (pressed, stopped.take()) {
                    (Some(signal), None) => {
                        cancel.cancel();
                        stopped = Some(signal);
                    }
                    (pressed, Some(first)) => {
                        patience = patience.saturating_sub(LISTEN);
                        if pressed.is_some() || patience.is_zero() {
                            // Pressed again, or an operator holds every thread: what is left lies in a hidden folder,
                            // which the next run of the same sink removes.
                            leave(&threads);
                            return Err(first);
                        }
                        stopped = Some(first);
                    }
                    (None, None) => {}
                }
            }
        }
    }
}
