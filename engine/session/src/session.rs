//! A session: one engine, and what can be done with a workflow on it.

use std::sync::Arc;

use rowmill_engine::compile::Inputs;
use rowmill_engine::compile::explain::{Explanation, check_workflow, explain_workflow};
use rowmill_engine::error::report;
use rowmill_engine::local::{self, Observer, RunError, RunReport};
use rowmill_engine::runtime::{Engine, EngineOptions};
use rowmill_engine::sql::SqlContext;
use rowmill_spec::{Diagnostics, Workflow};
use tokio_util::sync::CancellationToken;

use crate::options::SessionOptions;

/// What can go wrong below the reports of a workflow.
pub type SqlError = datafusion::common::DataFusionError;

/// One engine in this process. Sessions are cheap to clone and share memory, spill space and caches.
#[derive(Debug, Clone)]
pub struct Session {
    engine: Arc<Engine>,
}

impl Session {
    /// A session.
    ///
    /// # Errors
    /// When the spill folder cannot be used.
    pub fn try_new(options: SessionOptions) -> Result<Session, SqlError> {
        let engine = Engine::try_new(EngineOptions::from(&options))?;
        Ok(Session { engine: Arc::new(engine) })
    }

    /// The engine behind the session.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Checks a workflow to its last column, unneeded steps included, and gives its warnings.
    ///
    /// # Errors
    /// Everything that is wrong with it, at once.
    pub async fn check(&self, workflow: Arc<Workflow>, inputs: &Inputs) -> Result<Diagnostics, Diagnostics> {
        check_workflow(&self.engine, workflow, inputs).await
    }

    /// Explains what a workflow will do; with `plans`, down to the physical plans.
    ///
    /// # Errors
    /// As [`Session::check`].
    pub async fn explain(
        &self,
        workflow: Arc<Workflow>,
        inputs: &Inputs,
        plans: bool,
    ) -> Result<Explanation, Diagnostics> {
        explain_workflow(&self.engine, workflow, inputs, plans).await
    }

    /// Runs a workflow to its end.
    ///
    /// # Errors
    /// As [`local::run`].
    pub async fn run(&self, workflow: Arc<Workflow>, inputs: &Inputs) -> Result<RunReport, RunError> {
        self.run_observed(workflow, inputs, &CancellationToken::new(), &()).await
    }

    /// Runs a workflow that can be cancelled and is watched.
    ///
    /// # Errors
    /// As [`local::run`].
    pub async fn run_observed(
        &self,
        workflow: Arc<Workflow>,
        inputs: &Inputs,
        cancel: &CancellationToken,
        observer: &dyn Observer,
    ) -> Result<RunReport, RunError> {
        local::run(&self.engine, workflow, inputs, cancel, observer).await
    }

    /// A context for free SQL on this engine, in which a file is a table by its quoted path: `FROM 'x.parquet'`.
    pub fn sql_context(&self) -> SqlContext {
        SqlContext::new(&self.engine)
    }

    /// An SQL error as a report.
    pub fn report(error: &SqlError) -> Diagnostics {
        Diagnostics { reports: vec![report(error)], ..Diagnostics::default() }
    }
}
