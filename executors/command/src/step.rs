//! The executor: a command step as the engine sees it.

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use async_trait::async_trait;
use rowmill_step::{
    CallCost, Failure, FailureCode, FingerprintBuilder, ItemBatch, Sent, StepContext, StepDescription, StepExecutor,
    StepSession, StepShape,
};

use crate::options::{CommandOptions, Format, OptionsError};
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
        let mut fingerprint = FingerprintBuilder::new("command", 2)
            .field("format", options.format.as_str())
            .field("cardinality", format!("{:?}", options.cardinality))
            .field("directory", format!("{:?}", options.working_directory));
        for arg in &options.argv {
            fingerprint = fingerprint.field("arg", arg);
        }
        fingerprint = fingerprint.field("version", &options.version);
        for (path, bytes) in program(&options) {
            fingerprint = fingerprint.field("program", path).field("bytes", bytes);
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

/// Bytes of a program that are read, to tell one version of it from another.
const PROGRAM_BYTES: u64 = 16 << 20;

/// Endings of scripts, which are read as programs are where an interpreter gets them as an argument.
const SCRIPTS: [&str; 12] = ["py", "sh", "bash", "js", "mjs", "ts", "rb", "pl", "php", "lua", "r", "jl"];

/// The files that the program consists of, as far as they can be known: itself where it is named by a path, and scripts
/// among its arguments. One that cannot be read counts as absent; the start of the process says what is wrong with it.
fn program(options: &CommandOptions) -> Vec<(String, Vec<u8>)> {
    let is_script = |arg: &str| {
        let ending = Path::new(arg).extension().and_then(|ending| ending.to_str());
        ending.is_some_and(|ending| SCRIPTS.contains(&ending.to_ascii_lowercase().as_str()))
    };
    let mut files = Vec::new();
    for (at, arg) in options.argv.iter().enumerate() {
        if (at == 0 && arg.contains('/')) || (at > 0 && is_script(arg)) {
            let path = options.working_directory.as_ref().map_or_else(|| arg.into(), |folder| folder.join(arg));
            let mut bytes = Vec::new();
            let is_file = std::fs::metadata(&path).is_ok_and(|known| known.is_file());
            if is_file
                && std::fs::File::open(&path).and_then(|file| file.take(PROGRAM_BYTES).read_to_end(&mut bytes)).is_ok()
            {
                files.push((arg.clone(), bytes));
            }
        }
    }
    files
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

    fn times_items(&self) -> bool {
        self.options.format == Format::JsonLines
    }

    fn cost(&self, batch: &ItemBatch) -> CallCost {
        CallCost { requests: u32::try_from(batch.rows()).unwrap_or(u32::MAX), tokens: 0 }
    }
}
