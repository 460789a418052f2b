//! One slot of an http step: items in, what the answers say of each of them out. The request is built in `request.rs`,
//! and goes out and comes back in `exchange.rs`.

mod exchange;
mod request;

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::FieldRef;
use arrow::json::writer::EncoderOptions;
use async_trait::async_trait;
use reqwest::StatusCode;
use rowmill_step::{BatchReply, Failure, FailureCode, ItemBatch, Sent, StepContext, StepSession, StepShape, Usage};
use serde_json::Value;

use crate::client::HttpClient;
use crate::extract::Answer;
use crate::json_body::JsonSource;
use crate::many::{Part, assign};
use crate::options::NotFound;
use crate::plan::{ManyPlan, Plan};
use crate::values::Texts;
use exchange::{EXCERPT_BYTES, Received};

/// One slot.
pub(crate) struct HttpSession {
    plan: Arc<Plan>,
    client: Arc<HttpClient>,
    context: StepContext,
    shape: StepShape,
    fields: Vec<FieldRef>,
    encoder_options: EncoderOptions,
    scratch: Vec<u8>,
    url: Vec<u8>,
}

/// What became of one item.
enum Settled {
    Row(RecordBatch),
    Skipped,
    Failed(Failure),
}

impl HttpSession {
    pub(crate) fn try_new(
        plan: Arc<Plan>,
        client: Arc<HttpClient>,
        context: StepContext,
        shape: StepShape,
    ) -> Result<Self, Failure> {
        let fields = shape.input.fields().iter().cloned().collect();
        let encoder_options = EncoderOptions::default();
        Ok(Self { plan, client, context, shape, fields, encoder_options, scratch: Vec::new(), url: Vec::new() })
    }

    fn fail(&self, code: FailureCode, message: impl AsRef<str>) -> Failure {
        self.context.failure(code, message)
    }

    fn internal(&self, error: &arrow::error::ArrowError) -> Failure {
        self.fail(FailureCode::Internal, error.to_string()).sent(Sent::Maybe)
    }

    /// One item, one request.
    async fn one(&mut self, batch: &ItemBatch, row: usize, usage: &mut Usage) -> Settled {
        let ready = match self.build(batch, row..row + 1, None) {
            Ok(ready) => ready,
            Err(failure) => return Settled::Failed(failure),
        };
        let received = match self.exchange(ready, batch, usage).await {
            Ok(received) => received,
            Err(failure) => return Settled::Failed(failure),
        };
        let absent = self.plan.options.not_found_statuses.contains(&received.status.as_u16());
        if absent {
            match self.plan.options.not_found {
                NotFound::Skip => return Settled::Skipped,
                NotFound::Fail => {
                    let refusal = self.refusal(&received);
                    let not_found = self.fail(FailureCode::NotFound, refusal.message());
                    return Settled::Failed(not_found.status(received.status.as_u16()).sent(Sent::Answered));
                }
                NotFound::Null => {}
            }
        } else if !self.is_ok(received.status) {
            return Settled::Failed(self.refusal(&received));
        }
        let json = if absent || !self.plan.extractor.needs_json() {
            None
        } else {
            match serde_json::from_slice::<Value>(&received.body) {
                Ok(json) => Some(json),
                Err(error) => return Settled::Failed(self.not_json(&received, &error)),
            }
        };
        let answer = Answer {
            json: json.as_ref(),
            body: &received.body,
            status: received.status.as_u16(),
            headers: &received.headers,
            absent,
        };
        match self.plan.extractor.read(std::iter::once(answer), &self.shape.output) {
            Ok((_, faults)) if !faults.is_empty() => Settled::Failed(self.decode(&faults[0].1, received.status)),
            Ok((row, _)) => Settled::Row(row),
            Err(error) => Settled::Failed(self.internal(&error)),
        }
    }

    fn decode(&self, message: &str, status: StatusCode) -> Failure {
        self.fail(FailureCode::Decode, message).status(status.as_u16()).sent(Sent::Answered)
    }

    fn not_json(&self, received: &Received, error: &serde_json::Error) -> Failure {
        let text = String::from_utf8_lossy(&received.body[..received.body.len().min(EXCERPT_BYTES)]);
        self.decode(&format!("the answer is not JSON ({error}): {text}"), received.status)
    }

    /// Many items, one request.
    async fn many(&mut self, batch: &ItemBatch, plan: &ManyPlan, usage: &mut Usage) -> Result<BatchReply, Failure> {
        let rows = batch.rows();
        let (ready, keys) = {
            let keys = self.keys(batch, plan)?;
            (self.build(batch, 0..rows, Some(plan))?, keys)
        };
        let received = self.exchange(ready, batch, usage).await?;
        if !self.is_ok(received.status) {
            return Err(self.refusal(&received));
        }
        let json: Value = serde_json::from_slice(&received.body).map_err(|error| self.not_json(&received, &error))?;
        let parts = assign(plan, &json, rows, &keys).map_err(|message| self.decode(&message, received.status))?;
        let mut failures: Vec<(u32, Failure)> = Vec::new();
        let mut skipped = Vec::new();
        let mut answers = Vec::with_capacity(rows);
        let mut owners = Vec::with_capacity(rows);
        let status = received.status.as_u16();
        for (row, part) in parts.iter().enumerate() {
            let (json, absent) = match part {
                Part::Result(result) => (Some(*result), false),
                Part::Error(text) => {
                    let failure = self.fail(FailureCode::Rejected, text).status(status).sent(Sent::Answered);
                    failures.push((row as u32, failure));
                    continue;
                }
                Part::Absent => match self.plan.options.not_found {
                    NotFound::Null => (None, true),
                    NotFound::Skip => {
                        skipped.push(row as u32);
                        continue;
                    }
                    NotFound::Fail => {
                        let message = "the answer leaves this item out";
                        failures.push((row as u32, self.fail(FailureCode::NotFound, message).sent(Sent::Answered)));
                        continue;
                    }
                },
            };
            answers.push(Answer { json, body: b"", status, headers: &received.headers, absent });
            owners.push(row as u32);
        }
        let (output, faults) =
            self.plan.extractor.read(answers.into_iter(), &self.shape.output).map_err(|error| self.internal(&error))?;
        if !faults.is_empty() {
            let bad =
                faults.into_iter().map(|(index, text)| (owners[index as usize], self.decode(&text, received.status)));
            failures.extend(bad);
            failures.sort_by_key(|(row, _)| *row);
        }
        Ok(BatchReply { skipped, failures, ..BatchReply::all_ok(output) })
    }

    /// The items' keys as JSON, where results are matched by key.
    fn keys(&self, batch: &ItemBatch, plan: &ManyPlan) -> Result<Vec<Vec<u8>>, Failure> {
        let Some((column, _)) = plan.key else { return Ok(Vec::new()) };
        let columns = batch.columns.columns();
        let texts = texts(columns).map_err(|e| self.internal(&e))?;
        let mut source =
            JsonSource::try_new(&texts, columns, &self.fields, std::iter::once(column), &self.encoder_options)
                .map_err(|e| self.internal(&e))?;
        Ok((0..batch.rows())
            .map(|row| {
                let mut key = Vec::new();
                source.value(column, row, &mut key);
                key
            })
            .collect())
    }
}

/// The text views of the columns. Columns that only go into a JSON body may have no text; nobody asks for it then.
fn texts(columns: &[arrow::array::ArrayRef]) -> Result<Vec<Texts<'_>>, arrow::error::ArrowError> {
    columns.iter().map(Texts::new).collect()
}

#[async_trait]
impl StepSession for HttpSession {
    async fn execute(&mut self, batch: ItemBatch) -> Result<BatchReply, Failure> {
        let mut usage = Usage::default();
        let rows = batch.rows();
        if rows == 0 {
            return Ok(BatchReply::all_ok(RecordBatch::new_empty(self.shape.output.clone())));
        }
        if let Some(many) = self.plan.many.clone() {
            let reply = self.many(&batch, &many, &mut usage).await?;
            return Ok(BatchReply { usage, ..reply });
        }
        if rows == 1 {
            // The common case: a group of one, whose failure is the group's.
            return match self.one(&batch, 0, &mut usage).await {
                Settled::Row(output) => Ok(BatchReply { usage, ..BatchReply::all_ok(output) }),
                Settled::Skipped => {
                    let output = RecordBatch::new_empty(self.shape.output.clone());
                    Ok(BatchReply { skipped: vec![0], usage, ..BatchReply::all_ok(output) })
                }
                Settled::Failed(failure) => Err(failure),
            };
        }
        // A larger group is worked off one by one: this is one slot, and limits were asked for one request at a time.
        let (mut pieces, mut skipped, mut failures) = (Vec::with_capacity(rows), Vec::new(), Vec::new());
        for row in 0..rows {
            if batch.stop.is_cancelled() {
                let unsent = Failure::fixed(FailureCode::Cancelled, "cancelled before it was sent").sent(Sent::Never);
                failures.extend((row..rows).map(|row| (row as u32, unsent.clone())));
                break;
            }
            match self.one(&batch, row, &mut usage).await {
                Settled::Row(piece) => pieces.push(piece),
                Settled::Skipped => skipped.push(row as u32),
                Settled::Failed(failure) => failures.push((row as u32, failure)),
            }
        }
        let output = arrow::compute::concat_batches(&self.shape.output, &pieces).map_err(|e| self.internal(&e))?;
        Ok(BatchReply { skipped, failures, usage, ..BatchReply::all_ok(output) })
    }
}
