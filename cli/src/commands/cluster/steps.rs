//! Builds steps for an executor, by the same list of step kinds as everywhere, with this process's configuration:
//! connections and secrets are its own, and only names of them come in.

use std::path::Path;
use std::sync::Arc;

use rowmill::spec::{Diagnostic, Piece, Template, parse_yaml};
use rowmill::step::{Failure, FailureCode, Sent, StepContext};
use rowmill::{Diagnostics, Session, SessionOptions};
use rowmill_executor::{BuildsSteps, BuiltStep};
use rowmill_wire::calls::OpenStep;
use tokio_util::sync::CancellationToken;

/// The share of an executor's memory that answers of calls may take; the rest is for tasks.
const MEMORY_SHARE: u64 = 4;

/// Builds steps.
#[derive(Debug)]
pub(super) struct Steps(Session);

impl Steps {
    /// With these settings.
    ///
    /// # Errors
    /// When the spill folder cannot be used.
    pub(super) fn try_new(options: SessionOptions) -> Result<Arc<Self>, Diagnostics> {
        let memory = options.memory_bytes.unwrap_or_else(rowmill::options::default_memory_bytes) / MEMORY_SHARE;
        let options = SessionOptions { memory_bytes: Some(memory.max(1)), ..options };
        Session::try_new(options).map(|session| Arc::new(Self(session))).map_err(|error| Session::report(&error))
    }
}

fn refuse(message: &str) -> Failure {
    Failure::received(FailureCode::Setup, message).sent(Sent::Never)
}

fn refuse_all(reports: &[Diagnostic]) -> Failure {
    let messages: Vec<&str> = reports.iter().map(|report| report.message.as_str()).collect();
    refuse(&messages.join("; "))
}

impl BuildsSteps for Steps {
    fn build(&self, open: &OpenStep, cancel: &CancellationToken) -> Result<BuiltStep, Failure> {
        let host = self.0.engine().host();
        let workflow = parse_yaml("step.yaml", &open.text).map_err(|reports| refuse_all(&reports.reports))?;
        let Some(step) = workflow.steps.get(&open.step) else {
            return Err(refuse(&format!("what came holds no step `{}`", open.step)));
        };
        let Some(factory) = host.kinds.get(step.kind.key()) else {
            return Err(refuse(&format!("this executor has no steps of kind `{}`", step.kind.key())));
        };
        let fill = |template: &Template| -> Result<String, Diagnostic> {
            let mut text = String::new();
            for piece in &template.pieces {
                let name = match piece {
                    Piece::Literal(literal) => {
                        text.push_str(literal);
                        continue;
                    }
                    Piece::Param(name) => format!("params.{}", name.value),
                    Piece::Var(name) => format!("vars.{}", name.value),
                };
                // Whoever sent the step sent what its templates name.
                let value = open.values.get(&name);
                let value =
                    value.ok_or_else(|| Diagnostic::error("RM0900", format!("the value of `{name}` is missing")));
                text.push_str(value?);
            }
            Ok(text)
        };
        let executor = factory.build_in(step, &fill, Path::new(&open.base)).map_err(|reports| refuse_all(&reports))?;
        let scope = self.0.engine().scope("calls", cancel, std::env::temp_dir());
        let context = StepContext {
            tenant: Arc::from(open.tenant.as_str()),
            ..host.context("calls", &open.step, cancel, scope.memory)
        };
        Ok(BuiltStep { executor, context })
    }
}
