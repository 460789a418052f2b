//! The engine that every frame of the process shares.

use std::path::PathBuf;
use std::sync::Arc;

use datafusion::execution::SessionState;
use parking_lot::RwLock;
use pyo3::prelude::*;
use rowmill::Session;
use rowmill_step_python::{Program, PythonFactory, Worker};

use crate::errors::{from_engine, from_reports};

/// The session, and a state to build plans with.
pub(crate) struct Shared {
    pub(crate) session: Session,
    /// For looking up functions and building plans; queries run in states of their own.
    pub(crate) state: SessionState,
    /// The configuration's file and settings, as they were given.
    pub(crate) config: Option<PathBuf>,
    pub(crate) settings: Vec<(String, String)>,
    /// Functions and folders of this program, for Python steps of workflows.
    pub(crate) program: Program,
}

static SHARED: RwLock<Option<Arc<Shared>>> = RwLock::new(None);

/// The session of this process, opened on first use with the configuration of the folder and the environment.
pub(crate) fn shared(py: Python<'_>) -> PyResult<Arc<Shared>> {
    if let Some(shared) = SHARED.read().as_ref() {
        return Ok(Arc::clone(shared));
    }
    configure(py, None, Vec::new())?;
    match SHARED.read().as_ref() {
        Some(shared) => Ok(Arc::clone(shared)),
        None => Err(pyo3::exceptions::PyRuntimeError::new_err("the session is being replaced")),
    }
}

/// Opens a session with this configuration file and these settings, and makes it the one that new frames use.
#[pyfunction]
#[pyo3(signature = (config, settings))]
pub(crate) fn configure(py: Python<'_>, config: Option<PathBuf>, settings: Vec<(String, String)>) -> PyResult<()> {
    let read = rowmill_cli::session_options(config.clone(), settings.clone());
    let mut read = read.map_err(|reports| from_reports(py, &reports))?;
    // Functions that workflows of this program brought are still there in another session.
    let program = SHARED.read().as_ref().map(|shared| shared.program.clone()).unwrap_or_default();
    read.options.kinds.push(Arc::new(python_steps(py, read.options.python.clone(), &program)?));
    let session = Session::try_new(read.options).map_err(|error| from_engine(py, &error))?;
    crate::runtime::set_threads(read.threads)?;
    let state = ordered(session.engine().session(false));
    *SHARED.write() = Some(Arc::new(Shared { session, state, config, settings, program }));
    Ok(())
}

/// A cluster: the address of its scheduler, or `local`, and the file of its token.
pub(crate) type At = Option<(String, Option<PathBuf>)>;

/// The session for a workflow that runs on a cluster, or here.
pub(crate) fn session_at(py: Python<'_>, at: At) -> PyResult<Session> {
    let shared = shared(py)?;
    let Some((address, token_file)) = at else { return Ok(shared.session.clone()) };
    let read = rowmill_cli::session_options_on(&address, token_file, shared.config.clone(), shared.settings.clone());
    let mut read = read.map_err(|reports| from_reports(py, &reports))?;
    read.options.kinds.push(Arc::new(python_steps(py, read.options.python.clone(), &shared.program)?));
    Session::try_new(read.options).map_err(|error| from_engine(py, &error))
}

/// Python steps of workflows in this interpreter, where no other is configured.
fn python_steps(py: Python<'_>, configured: Option<String>, program: &Program) -> PyResult<PythonFactory> {
    let own: Option<String> = py.import("sys")?.getattr("executable")?.extract()?;
    let is_own = configured.is_none() || configured == own;
    let python = configured.or(own).unwrap_or_else(|| "python3".to_owned());
    let mut factory = PythonFactory::new(python);
    if is_own {
        // The file beside this module, whose processes need not load the rest of the package.
        let package: PathBuf = py.import("rowmill")?.getattr("__file__")?.extract()?;
        factory.worker = Worker::File(package.with_file_name("_worker.py"));
    }
    factory.program = program.clone();
    factory.printed = crate::workers::to_python();
    Ok(factory)
}

impl Shared {
    /// A state with a catalog of its own, in which names can be registered.
    pub(crate) fn own_state(&self) -> SessionState {
        ordered(self.session.engine().session(false))
    }

    /// A state for running one plan: its clock stands still. It shares its catalog with all others, so nothing is
    /// registered in it.
    pub(crate) fn query_state(&self, spilling_joins: bool) -> SessionState {
        // A copy, for registering every function anew takes longer than a small query.
        let mut state = self.state.clone();
        state.config_mut().options_mut().optimizer.prefer_hash_join = !spilling_joins;
        let options = Arc::clone(state.config().options());
        state.execution_props_mut().mark_start_execution(options);
        state
    }
}

/// Rows come back in the order they went in: batches are not dealt out round robin, and partitions (contiguous parts
/// of files and tables) are put together in order.
fn ordered(mut state: SessionState) -> SessionState {
    state.config_mut().options_mut().optimizer.enable_round_robin_repartition = false;
    state
}
