//! The executor: a command step as the engine sees it.

use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use async_trait::async_trait;
use rowmill_step::{
    CallCost, Failure, FailureCode, FingerprintBuilder, ItemBatch, Sent, StepContext, StepDescription, StepExecutor,
    StepSession, StepShape,
};

use crate::options::{CommandOptions, OptionsError};
use crate::session::CommandSession;

/// A command step, checked. Each session owns one process.
#[derive(Debug)]
pub struct CommandStep {
    options: Arc<CommandOptions>,
    description: StepDescription,
}

impl CommandStep {
    /// Checks the options.
    ///
    /// # Errors
    /// The first option that is wrong, by name.
    pub fn try_new(options: CommandOptions) -> Result<Self, OptionsError> {
        options.check()?;
        let mut fingerprint = FingerprintBuilder::new("command", 1)
            .field("format", options.format.as_str())
            .field("cardinality", format!("{:?}", options.cardinality))
            .field("directory", format!("{:?}", options.working_directory));
        for arg in &options.argv {
            fingerprint = fingerprint.field("arg", arg);
        }
        for (name, value) in &options.env {
            fingerprint = fingerprint.field("env", name).field("value", value);
        }
        for name in options.pass_env.iter().chain(options.secret_env.keys()) {
            fingerprint = fingerprint.field("env", name);
        }
        for name in &options.reads {
            fingerprint = fingerprint.field("reads", name);
        }
        for field in options.output.fields() {
            fingerprint =
                fingerprint.field("output", format!("{} {} {}", field.name(), field.data_type(), field.is_nullable()));
        }
        let description = StepDescription {
            kind: "command",
            summary: format!("{:?} ({})", options.argv, options.format.as_str()),
            reads: options.reads.clone(),
            effects: options.effects,
            cardinality: options.cardinality,
            target: options.target,
            connections: Vec::new(),
            fingerprint: fingerprint.finish(),
        };
        Ok(Self { options: Arc::new(options), description })
    }
}

#[async_trait]
impl StepExecutor for CommandStep {
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
            let unfit = matches!(field.data_type(), DataType::Union(..) | DataType::RunEndEncoded(..));
            if unfit {
                return wrong(format!("column `{}` is a {}, which no program gets", field.name(), field.data_type()));
            }
        }
        Ok(self.options.output.clone())
    }

    async fn open(&self, context: &StepContext, shape: &StepShape) -> Result<Box<dyn StepSession>, Failure> {
        Ok(Box::new(CommandSession::open(self.options.clone(), context.clone(), shape.clone()).await?))
    }

    fn cost(&self, batch: &ItemBatch) -> CallCost {
        CallCost { requests: u32::try_from(batch.rows()).unwrap_or(u32::MAX), tokens: 0 }
    }
}
