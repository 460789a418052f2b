//! One slot: a process, and what becomes of items when it dies, hangs or talks nonsense.

use std::sync::Arc;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use rowmill_step::{BatchReply, Failure, FailureCode, ItemBatch, Sent, StepContext, StepSession, StepShape};

use crate::arrow_frames::ArrowFrames;
use crate::json_lines;
use crate::options::{CommandOptions, Format};
use crate::process::Process;

/// One slot.
pub(crate) struct CommandSession {
    pub(crate) options: Arc<CommandOptions>,
    pub(crate) context: StepContext,
    pub(crate) shape: StepShape,
    /// The process, taken out while a group is worked on: whoever drops that work drops, and so kills, the process.
    idle: Option<Running>,
}

/// A process and how far the conversation with it has come.
pub(crate) struct Running {
    pub(crate) process: Process,
    pub(crate) frames: Option<ArrowFrames>,
    /// The `id` of the next line.
    pub(crate) next_id: u64,
}

/// How a conversation ended before it was over.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The output ended: the process died, or closed it.
    Ended,
    /// Nothing came for too long.
    Silent,
    /// The group's deadline passed.
    Deadline,
    /// The run was cancelled.
    Cancelled,
    /// What came is not an answer.
    Nonsense(String),
    /// What came is larger than allowed.
    TooLarge,
}

impl CommandSession {
    /// Starts the process, so that a program that does not exist is found before any item is touched.
    pub(crate) async fn open(
        options: Arc<CommandOptions>,
        context: StepContext,
        shape: StepShape,
    ) -> Result<Self, Failure> {
        let mut session = Self { options, context, shape, idle: None };
        session.idle = Some(session.start().await?);
        Ok(session)
    }

    pub(crate) async fn start(&self) -> Result<Running, Failure> {
        let process = Process::start(&self.options, &self.context).await?;
        let frames =
            match self.options.format {
                Format::JsonLines => None,
                Format::Arrow => Some(ArrowFrames::try_new(&self.shape).map_err(|error| {
                    self.context.failure(FailureCode::Internal, error.to_string()).sent(Sent::Never)
                })?),
            };
        Ok(Running { process, frames, next_id: 0 })
    }

    /// The running process, or a new one.
    pub(crate) async fn running(&mut self) -> Result<Running, Failure> {
        match self.idle.take() {
            Some(running) => Ok(running),
            None => self.start().await,
        }
    }

    pub(crate) fn keep(&mut self, running: Running) {
        self.idle = Some(running);
    }

    /// Ends a process with which the conversation broke, and says what that means for the item it was about.
    pub(crate) async fn failure(&self, running: Running, broken: Broken) -> Failure {
        let (code, message) = match broken {
            Broken::Cancelled => {
                // Nobody waits for last words.
                drop(running);
                return Failure::fixed(FailureCode::Cancelled, "cancelled while the program worked on it");
            }
            Broken::Deadline | Broken::Silent => {
                drop(running);
                let message = match (&broken, self.options.item_timeout) {
                    (Broken::Silent, Some(limit)) => {
                        format!("no answer within {} ms; the program was killed", limit.as_millis())
                    }
                    _ => "no answer before the deadline; the program was killed".to_owned(),
                };
                return self.context.failure(FailureCode::Timeout, message);
            }
            Broken::Ended => (FailureCode::Crashed, None),
            Broken::Nonsense(text) => (FailureCode::Decode, Some(text)),
            Broken::TooLarge => {
                let text = format!("the answer is larger than {} bytes", self.options.max_answer_bytes);
                (FailureCode::TooLarge, Some(text))
            }
        };
        let (how, stderr) = running.process.post_mortem().await;
        let message = message.unwrap_or_else(|| format!("the program died while it worked on this item: {how}"));
        let redactor = &self.context.redactor;
        let message = if stderr.is_empty() { message } else { format!("{message}\n{}", end_of(&stderr)) };
        let failure = Failure::new(code, message, redactor);
        if stderr.is_empty() { failure } else { failure.field("stderr", stderr, redactor) }
    }
}

/// The last lines of a text, for a message; all of it travels as a field.
fn end_of(stderr: &str) -> String {
    let lines: Vec<&str> = stderr.lines().rev().take(3).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

#[async_trait]
impl StepSession for CommandSession {
    async fn execute(&mut self, batch: ItemBatch) -> Result<BatchReply, Failure> {
        if batch.rows() == 0 {
            let output = RecordBatch::new_empty(self.shape.output.clone());
            let source_rows = matches!(self.options.cardinality, rowmill_step::Cardinality::FanOut).then(Vec::new);
            return Ok(BatchReply { source_rows, ..BatchReply::all_ok(output) });
        }
        match self.options.format {
            Format::JsonLines => json_lines::group(self, &batch).await,
            Format::Arrow => crate::arrow_frames::group(self, &batch).await,
        }
    }

    async fn close(mut self: Box<Self>) -> Result<(), Failure> {
        match self.idle.take() {
            Some(mut running) => {
                if let Some(frames) = &mut running.frames {
                    frames.finish(&mut running.process).await;
                }
                running.process.close(&self.context).await
            }
            None => Ok(()),
        }
    }
}
