//! Durable runs: start, go on, list, look into, cancel.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use rowmill::step::Outcome;
use rowmill::store::{CancelResult, PageRequest, Run, RunFilter, RunStatus, Stage};
use rowmill::{Diagnostics, Inputs, Runs, RunsOptions, Workflow};
use rowmill_engine::durable::{fingerprint, inspect};

use crate::batches::Batches;
use crate::errors::from_reports;
use crate::runtime::wait;
use crate::session::{At, Shared, session_at, shared};
use crate::workflow::{described, run_to_end};

/// Where durable runs live, as this session is configured.
fn options(py: Python<'_>, shared: &Shared) -> PyResult<RunsOptions> {
    rowmill_cli::runs_options(shared.config.clone(), shared.settings.clone())
        .map_err(|reports| from_reports(py, &reports))
}

/// Does something with the runs of this session; where there is no store yet, one is made.
fn with_runs<T, F>(py: Python<'_>, work: impl FnOnce(Runs) -> F + Send + 'static) -> PyResult<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Diagnostics>> + Send + 'static,
{
    let shared = shared(py)?;
    let (session, options) = (shared.session.clone(), options(py, &shared)?);
    let done = wait(py, async move { work(session.runs(options).await?).await })?;
    done.map_err(|reports| from_reports(py, &reports))
}

/// The file of a workflow's text: a run that goes on looks there whether the text is the one that it began with. A
/// text that has no file of its own gets one beside the runs, named by what is in it.
fn filed(folder: &Path, name: &str, text: &str) -> PyResult<PathBuf> {
    let end = if name.ends_with(".sql") { "sql" } else { "yaml" };
    let folder = std::path::absolute(folder)?.join("workflows");
    let path = folder.join(format!("{}.{end}", fingerprint(text)));
    if !path.exists() {
        std::fs::create_dir_all(&folder)?;
        // Under a name of its own until it is whole.
        let fresh = folder.join(format!("{}.part", uuid::Uuid::now_v7()));
        std::fs::write(&fresh, text)?;
        std::fs::rename(&fresh, &path)?;
    }
    Ok(path)
}

/// A workflow's text and the file that it was read from, if it was.
pub(crate) struct Origin {
    /// The file's name, or its end where there is no file.
    pub(crate) name: String,
    pub(crate) path: Option<PathBuf>,
    pub(crate) text: String,
}

/// Runs a workflow durably to its end; `started` hears the run's id.
pub(crate) fn run_durably<'py>(
    py: Python<'py>,
    workflow: Arc<Workflow>,
    inputs: Inputs,
    origin: &Origin,
    progress: Option<Py<PyAny>>,
    started: Py<PyAny>,
    at: At,
) -> PyResult<Bound<'py, PyDict>> {
    let shared = shared(py)?;
    let (session, options) = (session_at(py, at)?, options(py, &shared)?);
    let path = match &origin.path {
        None => filed(&options.folder, &origin.name, &origin.text)?,
        Some(path) => {
            let now = rowmill::read_text(path).map_err(|reports| from_reports(py, &reports))?;
            if now != origin.text {
                let text = format!("{} changed since it was loaded; load it again", path.display());
                return Err(PyValueError::new_err(text));
            }
            path.clone()
        }
    };
    let report = run_to_end(py, progress, move |cancel, watch| async move {
        let runs = session.runs(options).await?;
        let told = |run| tell(&started, run);
        runs.run(&path, workflow, &inputs, &cancel, watch.as_ref(), told).await
    })?;
    described(py, report)
}

fn tell(started: &Py<PyAny>, run: rowmill::store::RunId) {
    Python::attach(|py| {
        if let Err(error) = started.call1(py, (run.to_string(),)) {
            error.write_unraisable(py, None);
        }
    });
}

/// Goes on with a run, to its end.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "they are those of the Python method")]
pub(crate) fn resume_run<'py>(
    py: Python<'py>,
    name: String,
    steal: bool,
    restart: bool,
    unknown: bool,
    progress: Option<Py<PyAny>>,
    started: Py<PyAny>,
    at: At,
) -> PyResult<Bound<'py, PyDict>> {
    crate::steps::look_around(py)?;
    let shared = shared(py)?;
    let (session, options) = (session_at(py, at)?, options(py, &shared)?);
    let report = run_to_end(py, progress, move |cancel, watch| async move {
        let runs = session.runs(options).await?;
        let run = runs.named(&name).await?;
        let told = |run| tell(&started, run);
        runs.resume(run, rowmill::ResumeOptions { steal, restart, unknown }, &cancel, watch.as_ref(), told).await
    })?;
    described(py, report)
}

/// Tries the items of a finished run again that failed, and publishes another version of its result.
#[pyfunction]
pub(crate) fn retry_run<'py>(
    py: Python<'py>,
    name: String,
    unknown: bool,
    progress: Option<Py<PyAny>>,
    started: Py<PyAny>,
    at: At,
) -> PyResult<Bound<'py, PyDict>> {
    crate::steps::look_around(py)?;
    let shared = shared(py)?;
    let (session, options) = (session_at(py, at)?, options(py, &shared)?);
    let report = run_to_end(py, progress, move |cancel, watch| async move {
        let runs = session.runs(options).await?;
        let run = runs.named(&name).await?;
        let told = |run| tell(&started, run);
        runs.retry(run, unknown, &cancel, watch.as_ref(), told).await
    })?;
    described(py, report)
}

/// Runs from new to old, with their stages.
#[pyfunction]
pub(crate) fn list_runs<'py>(
    py: Python<'py>,
    status: Option<String>,
    workflow: Option<String>,
    limit: u32,
) -> PyResult<Bound<'py, PyList>> {
    let statuses = match status.as_deref().map(str::parse::<RunStatus>).transpose() {
        Ok(status) => status.into_iter().collect(),
        Err(error) => {
            let known: Vec<&str> = RunStatus::ALL.iter().map(|status| status.as_str()).collect();
            return Err(PyValueError::new_err(format!("{error}; known are {}", known.join(", "))));
        }
    };
    let filter = RunFilter { statuses, workflow_name: workflow, ..RunFilter::default() };
    let found = with_runs(py, move |runs| async move {
        let page = runs.list(filter, &PageRequest::first(limit.max(1))).await?;
        let mut found = Vec::with_capacity(page.items.len());
        for run in page.items {
            let stages = runs.stages(&run).await?;
            found.push((run, stages));
        }
        Ok(found)
    })?;
    let list = PyList::empty(py);
    for (run, stages) in found {
        list.append(stored(py, &run, &stages)?)?;
    }
    Ok(list)
}

/// A run by its id, the beginning of one, or `last`.
#[pyfunction]
pub(crate) fn find_run(py: Python<'_>, name: String) -> PyResult<Bound<'_, PyDict>> {
    let (run, stages) = with_runs(py, move |runs| async move {
        let run = runs.find(runs.named(&name).await?).await?;
        let stages = runs.stages(&run).await?;
        Ok((run, stages))
    })?;
    stored(py, &run, &stages)
}

/// The items of a run that are not simply ok.
#[pyfunction]
pub(crate) fn run_items(py: Python<'_>, name: String) -> PyResult<Batches> {
    let batches = with_runs(py, move |runs| async move { runs.item_rows(runs.named(&name).await?).await })?;
    Ok(Batches { schema: inspect::items_schema(), batches })
}

/// The words of outcomes.
#[pyfunction]
pub(crate) fn outcome_names() -> Vec<&'static str> {
    Outcome::ALL.iter().map(|outcome| outcome.as_str()).collect()
}

/// Asks for a run to be cancelled; says what came of it.
#[pyfunction]
pub(crate) fn cancel_run(py: Python<'_>, name: String, reason: Option<String>) -> PyResult<String> {
    let answer =
        with_runs(py, move |runs| async move { runs.cancel(runs.named(&name).await?, reason.as_deref()).await })?;
    Ok(match answer {
        CancelResult::Requested => "requested".to_owned(),
        CancelResult::Cancelled => "cancelled".to_owned(),
        CancelResult::AlreadyEnded(status) => status.to_string(),
    })
}

fn stored<'py>(py: Python<'py>, run: &Run, stages: &[Stage]) -> PyResult<Bound<'py, PyDict>> {
    let answer = PyDict::new(py);
    answer.set_item("id", run.id.to_string())?;
    answer.set_item("workflow", &run.workflow_name)?;
    answer.set_item("status", run.status.as_str())?;
    answer.set_item("error", &run.error)?;
    answer.set_item("actor", &run.actor)?;
    answer.set_item("created_ms", run.created_ms)?;
    answer.set_item("started_ms", run.started_ms)?;
    answer.set_item("ended_ms", run.ended_ms)?;
    let parameters = PyDict::new(py);
    for (name, value) in &run.parameters {
        parameters.set_item(name, value.as_str().map_or_else(|| value.to_string(), str::to_owned))?;
    }
    answer.set_item("parameters", parameters)?;
    let outcomes = PyDict::new(py);
    for step in stages.iter().flat_map(|stage| &stage.counts) {
        let of_step = PyDict::new(py);
        for (outcome, many) in Outcome::ALL.iter().zip(step.counts.to_array()) {
            of_step.set_item(outcome.as_str(), many)?;
        }
        outcomes.set_item(&step.step, of_step)?;
    }
    answer.set_item("outcomes", outcomes)?;
    Ok(answer)
}
