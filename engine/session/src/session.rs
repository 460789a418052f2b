//! A session: one engine, and what can be done with a workflow on it.

use std::sync::Arc;

use datafusion::common::{DataFusionError, Result as DataFusionResult};
use datafusion::execution::context::SessionContext;
use datafusion::sql::parser::{DFParser, Statement};
use rowmill_engine::compile::explain::{Explanation, explain};
use rowmill_engine::compile::{Inputs, compile, plan};
use rowmill_engine::error::report;
use rowmill_engine::local::{self, Observer, RunError, RunReport};
use rowmill_engine::runtime::{Engine, EngineOptions};
use rowmill_engine::sinks::StagedSink;
use rowmill_spec::{Diagnostics, Workflow};
use tokio_util::sync::CancellationToken;

use crate::options::SessionOptions;

/// A context for free SQL.
pub type SqlContext = SessionContext;
/// What can go wrong in it.
pub type SqlError = DataFusionError;
/// One parsed statement.
pub type SqlStatement = Statement;

/// Parses a text of statements.
///
/// # Errors
/// When it is not SQL.
pub fn split_statements(text: &str) -> DataFusionResult<Vec<SqlStatement>> {
    Ok(DFParser::parse_sql(text)?.into_iter().collect())
}

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
    pub fn try_new(options: SessionOptions) -> DataFusionResult<Session> {
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
        let inputs = Inputs { everything: true, ..inputs.clone() };
        let compiled = compile(workflow, &inputs, self.engine.session(false), &self.engine.options().stores).await?;
        Ok(compiled.warnings)
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
        let texts = Arc::clone(&workflow.texts);
        let compiled = compile(workflow, inputs, self.engine.session(false), &self.engine.options().stores).await?;
        if !plans {
            return Ok(explain(&compiled, None));
        }
        let places: Vec<StagedSink> = compiled.sinks.iter().map(StagedSink::imagined).collect();
        match plan(&compiled, inputs, &places).await {
            Ok(planned) => Ok(explain(&compiled, Some(&planned))),
            Err(error) => Err(Diagnostics { reports: vec![report(&error)], texts }),
        }
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
    pub fn sql_context(&self) -> SessionContext {
        SessionContext::new_with_state(self.engine.session(false)).enable_url_table()
    }

    /// An SQL error as a report.
    pub fn report(error: &DataFusionError) -> Diagnostics {
        Diagnostics { reports: vec![report(error)], ..Diagnostics::default() }
    }
}
