//! The executor: a Python step as the engine sees it.

use std::sync::{Arc, OnceLock};

use arrow::datatypes::{DataType, SchemaRef};
use async_trait::async_trait;
use rowmill_step::{
    CallCost, Failure, FailureCode, FingerprintBuilder, ItemBatch, Sent, StepContext, StepDescription, StepExecutor,
    StepSession, StepShape,
};

use crate::options::{Function, Kind, OptionsError, PythonOptions};
use crate::session::PythonSession;

/// A Python step, checked. Each session owns one worker process.
#[derive(Debug)]
pub struct PythonStep {
    options: Arc<PythonOptions>,
    description: StepDescription,
    /// How the function said that it is called, where the options do not.
    told: OnceLock<Kind>,
}

impl PythonStep {
    /// Checks the options.
    ///
    /// # Errors
    /// The first option that is wrong, by name.
    pub fn try_new(options: PythonOptions) -> Result<Self, OptionsError> {
        options.check()?;
        let mut fingerprint = FingerprintBuilder::new("python", 1)
            .field("kind", options.kind.map_or("asked", Kind::as_str))
            .field("given", options.given.unwrap_or_default())
            .field("many", options.many.to_string())
            .field("source", options.source.as_deref().unwrap_or_default());
        fingerprint = match &options.function {
            Function::Named(name) => fingerprint.field("function", name),
            Function::Pickled(bytes) => fingerprint.field("pickle", bytes),
        };
        for name in options.reads.iter().chain(&options.flavors) {
            fingerprint = fingerprint.field("reads", name);
        }
        for field in options.output.fields() {
            fingerprint =
                fingerprint.field("output", format!("{} {} {}", field.name(), field.data_type(), field.is_nullable()));
        }
        let description = StepDescription {
            kind: "python",
            summary: match &options.function {
                Function::Named(name) => name.clone(),
                Function::Pickled(_) => options.what.clone(),
            },
            reads: options.reads.clone(),
            effects: options.effects,
            cardinality: options.cardinality(),
            target: options.target,
            connections: Vec::new(),
            fingerprint: fingerprint.finish(),
        };
        Ok(Self { options: Arc::new(options), description, told: OnceLock::new() })
    }
}

#[async_trait]
impl StepExecutor for PythonStep {
    fn stays_here(&self) -> Option<&'static str> {
        match &self.options.function {
            Function::Named(_) => None,
            Function::Pickled(_) => Some("its function lives in the program that runs the workflow"),
        }
    }

    fn describe(&self) -> &StepDescription {
        &self.description
    }

    async fn output_schema(&self, input: &SchemaRef, context: &StepContext) -> Result<SchemaRef, Failure> {
        let wrong = |message: String| Err(context.failure(FailureCode::Setup, message).sent(Sent::Never));
        let came: Vec<_> = input.fields().iter().map(|field| field.name().as_str()).collect();
        if came != self.options.reads {
            return wrong(format!("the step reads columns {:?}, {came:?} came", self.options.reads));
        }
        for field in input.fields() {
            if matches!(field.data_type(), DataType::RunEndEncoded(..)) {
                return wrong(format!("column `{}` is a {}, which no function gets", field.name(), field.data_type()));
            }
        }
        if self.options.kind.is_none() {
            // A function of a workflow's text is looked for when that is checked, not when its first item has come.
            let kind = PythonSession::check(&self.options, context).await?;
            let _ = self.told.set(kind);
        }
        Ok(self.options.output.clone())
    }

    async fn open(&self, context: &StepContext, shape: &StepShape) -> Result<Box<dyn StepSession>, Failure> {
        Ok(Box::new(PythonSession::open(self.options.clone(), context.clone(), shape.clone()).await?))
    }

    fn cost(&self, batch: &ItemBatch) -> CallCost {
        let calls = match self.options.kind.or_else(|| self.told.get().copied()) {
            Some(Kind::Batch) => 1,
            _ => u32::try_from(batch.rows()).unwrap_or(u32::MAX),
        };
        CallCost { requests: calls, tokens: 0 }
    }
}
