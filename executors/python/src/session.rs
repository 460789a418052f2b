//! One slot: a worker process, and what becomes of items when it dies, hangs or talks nonsense.

use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _, RecordBatch};
use arrow::buffer::Buffer;
use arrow::compute::{CastOptions, cast_with_options, concat_batches};
use arrow::datatypes::{SchemaRef, UInt32Type};
use async_trait::async_trait;
use rowmill_step::{
    BatchReply, Cardinality, Effects, Failure, FailureCode, ItemBatch, Sent, StepContext, StepSession, StepShape, Usage,
};
use serde_json::{Value as Json, json};
use tokio::io::AsyncWriteExt as _;
use tokio::time::Instant;

use crate::options::{Function, Kind, PythonOptions};
use crate::process::{Process, no_shared_memory};
use crate::shared::{Place, Shared};
use crate::wire::{Broken, Frame, decode, encode, encode_schema, plain_schema, read_frame};

/// In an answer: the item that each row belongs to.
const ROW: &str = "__row";

/// One slot.
pub(crate) struct PythonSession {
    options: Arc<PythonOptions>,
    context: StepContext,
    shape: StepShape,
    /// The columns as they are sent.
    sent: SchemaRef,
    /// How the function is called.
    kind: Kind,
    /// The process, taken out while a group is worked on: whoever drops that work drops, and so kills, the process.
    idle: Option<Process>,
}

/// When a conversation must be over.
struct Patience<'a> {
    until: Option<(Instant, bool)>,
    cancel: &'a tokio_util::sync::CancellationToken,
}

impl PythonSession {
    /// Starts the process and has it load the function, so that what cannot be loaded is found before any item is
    /// touched.
    pub(crate) async fn open(
        options: Arc<PythonOptions>,
        context: StepContext,
        shape: StepShape,
    ) -> Result<Self, Failure> {
        let sent = plain_schema(&shape.input);
        let kind = options.kind.unwrap_or(Kind::Row);
        let mut session = Self { options, context, shape, sent, kind, idle: None };
        let (process, kind) = session.start(false).await?;
        session.idle = Some(process);
        session.kind = kind;
        Ok(session)
    }

    /// Has a process look at the function, without making what it needs (a model) nor calling it; says how it is called.
    pub(crate) async fn check(options: &Arc<PythonOptions>, context: &StepContext) -> Result<Kind, Failure> {
        let shape = StepShape { input: options.output.clone(), output: options.output.clone() };
        let session = Self {
            options: options.clone(),
            context: context.clone(),
            sent: plain_schema(&shape.input),
            shape,
            kind: Kind::Row,
            idle: None,
        };
        session.start(true).await.map(|(_, kind)| kind)
    }

    /// Starts a process; says how the function is called.
    async fn start(&self, check: bool) -> Result<(Process, Kind), Failure> {
        let options = &self.options;
        // Who only looks at the function is given no columns.
        let mut process = Process::start(options, &self.context, options.shared_memory && !check).await?;
        let internal = |error: String| self.context.failure(FailureCode::Internal, error).sent(Sent::Never);
        let schema = encode_schema(&plain_schema(&self.shape.output)).map_err(|error| internal(error.to_string()))?;
        let (name, pickle): (Json, &[u8]) = match &options.function {
            Function::Named(name) => (json!(name), &[]),
            Function::Pickled(bytes) => (Json::Null, bytes),
        };
        let head = json!({
            "function": name,
            "check": check,
            "kind": options.kind.map(Kind::as_str),
            "what": options.what,
            "flavors": options.flavors,
            "given": options.given,
            "fan_out": options.fan_out,
            "arguments": options.reads,
            // Where the function tells, one column may come alone or in a mapping.
            "many": if options.kind.is_none() && !options.many { Json::Null } else { json!(options.many) },
            "in_flight": options.in_flight,
            "sys_path": options.sys_path,
            "pickle_bytes": pickle.len(),
            "logging": options.logging.as_ref().map(|of| json!({"level": of.level, "format": of.format})),
            "shared": process.shared.as_ref().map(Shared::to_json),
        });
        let body = [schema.as_slice(), pickle].concat();
        let patience =
            Patience { until: Some((Instant::now() + options.start_timeout, true)), cancel: &self.context.cancel };
        match converse(&mut process, &Frame::new(&head, body), options.max_answer_bytes, &patience).await {
            Ok((head, _)) if head["ready"] == true => {
                let kind = options.kind.or_else(|| head["kind"].as_str().and_then(Kind::from_word));
                let kind = kind.filter(|kind| kind.cardinality() == options.cardinality());
                let kind = kind.ok_or_else(|| internal("the worker does not say how the function is called".into()))?;
                if let Some(why) = head["unshared"].as_str() {
                    no_shared_memory(options, why);
                    process.shared = None;
                }
                Ok((process, kind))
            }
            Ok((head, _)) => {
                let failure = self.raised(&head["failed"], FailureCode::Setup);
                Err(failure.sent(Sent::Never))
            }
            Err(broken) => Err(self.failure(process, broken, "while it loaded the function").await.sent(Sent::Never)),
        }
    }

    /// A failure of what the worker says was raised.
    fn raised(&self, raised: &Json, code: FailureCode) -> Failure {
        let text = |key: &str| raised[key].as_str().unwrap_or_default();
        let message = match (text("type"), text("message")) {
            ("", "") => "the function failed".to_owned(),
            (kind, "") => kind.to_owned(),
            (kind, message) => format!("{kind}: {message}"),
        };
        let redactor = &self.context.redactor;
        let failure = Failure::new(code, message, redactor).field("traceback", text("traceback"), redactor);
        let passes = raised["retryable"].as_bool().unwrap_or(self.options.raised_passes);
        failure.retryable(passes).sent(Sent::Answered)
    }

    /// Ends a process with which the conversation broke, and says what that means for the items it was about.
    async fn failure(&self, process: Process, broken: Broken, when: &str) -> Failure {
        let (code, message) = match broken {
            Broken::Cancelled => {
                // Nobody waits for last words.
                drop(process);
                return Failure::fixed(FailureCode::Cancelled, "cancelled while the function worked on it");
            }
            Broken::Deadline | Broken::Silent => {
                drop(process);
                let message = format!("no answer in time {when}; the process was killed");
                return self.context.failure(FailureCode::Timeout, message);
            }
            Broken::Ended => (FailureCode::Crashed, None),
            Broken::Nonsense(text) => (FailureCode::Decode, Some(text)),
            Broken::TooLarge(cap) => (FailureCode::TooLarge, Some(format!("the answer is larger than {cap} bytes"))),
        };
        let (how, printed) = process.post_mortem().await;
        let message = message.unwrap_or_else(|| format!("the worker process died {when}: {how}"));
        let redactor = &self.context.redactor;
        let failure = Failure::new(code, message, redactor);
        if printed.is_empty() { failure } else { failure.field("stderr", printed, redactor) }
    }

    /// Sends a group and reads the answer; a process with which that broke is gone.
    async fn group(&mut self, batch: &ItemBatch, usage: &mut Usage) -> Result<BatchReply, Failure> {
        let mut process = match self.idle.take() {
            Some(process) => process,
            None => self.start(false).await?.0,
        };
        let unsent = |error: arrow::error::ArrowError| {
            self.context.failure(FailureCode::BadInput, error.to_string()).sent(Sent::Never)
        };
        let place = match process.shared.as_mut().map(|shared| shared.put(&batch.columns, &self.sent)) {
            None => None,
            Some(Ok(place)) => place,
            Some(Err(error)) => {
                no_shared_memory(&self.options, &error.to_string());
                None
            }
        };
        let body = match place {
            Some(_) => Vec::new(),
            None => encode(&batch.columns, &self.sent).map_err(unsent)?,
        };
        let held = process.shared.as_mut().map(Shared::held);
        let frame = Frame::new(&json!({"rows": batch.rows(), "at": place.map(Place::to_json), "held": held}), body);
        usage.calls += 1;
        usage.sent_bytes += frame.bytes() as u64 + place.map_or(0, Place::length);
        let silent = self.options.group_timeout.map(|timeout| (Instant::now() + timeout, true));
        let deadline = batch.deadline.map(|deadline| (deadline, false));
        let until = silent.into_iter().chain(deadline).min_by_key(|(at, _)| *at);
        let patience = Patience { until, cancel: &batch.cancel };
        let answer = converse(&mut process, &frame, self.options.max_answer_bytes, &patience).await;
        let (head, body) = match answer {
            Ok(answer) => answer,
            Err(broken) => return Err(self.failure(process, broken, "while it worked on this item").await),
        };
        let body = match self.body(&mut process, &head, body) {
            Ok(body) => body,
            Err(broken) => {
                return Err(self.failure(process, broken, "while it answered").await.sent(Sent::Answered));
            }
        };
        usage.received_bytes += body.len() as u64;
        if !head["failed"].is_null() {
            // The function raised for the group as a whole: which of its items had their effects is not known.
            self.idle = Some(process);
            return Err(self.raised(&head["failed"], FailureCode::Rejected).sent(Sent::Maybe));
        }
        match decode(body) {
            Ok(output) => match self.assemble(&head, &output, batch.rows()) {
                Ok(reply) => {
                    if reply.failures.iter().any(|(_, failure)| ran_out_of_memory(failure)) {
                        return self.out_of_memory(process, reply, batch.rows());
                    }
                    self.idle = Some(process);
                    Ok(reply)
                }
                // Who breaks the rules once is not trusted with the next group.
                Err(text) => Err(self.context.failure(FailureCode::Decode, text).sent(Sent::Answered)),
            },
            Err(broken) => Err(self.failure(process, broken, "while it answered").await.sent(Sent::Answered)),
        }
    }

    /// The stream of an answer: what came with its frame, or what lies in shared memory.
    fn body(&self, process: &mut Process, head: &Json, body: Vec<u8>) -> Result<Buffer, Broken> {
        let Some(shared) = process.shared.as_mut() else { return Ok(Buffer::from_vec(body)) };
        shared.settle(&head["held"]);
        if let Some(why) = head["unshared"].as_str() {
            no_shared_memory(&self.options, why);
        }
        match Place::from_json(&head["at"])? {
            Some(place) => shared.get(place, self.options.max_answer_bytes),
            None => Ok(Buffer::from_vec(body)),
        }
    }

    /// Takes the declared columns, the failures and the owners out of an answer.
    fn assemble(&self, head: &Json, answer: &RecordBatch, items: usize) -> Result<BatchReply, String> {
        let mut failures = Vec::new();
        for entry in head["failures"].as_array().into_iter().flatten() {
            let row = entry[0].as_u64().and_then(|row| u32::try_from(row).ok()).ok_or("a failure of no item")?;
            failures.push((row, self.raised(&entry[1], FailureCode::Rejected)));
        }
        failures.sort_by_key(|(row, _)| *row);
        let owners: Option<Vec<u32>> = match answer.column_by_name(ROW) {
            Some(rows) => {
                let rows = rows.as_primitive_opt::<UInt32Type>().ok_or("`__row` is no uint32")?;
                Some(rows.values().to_vec())
            }
            None => None,
        };
        let columns = self.shape.output.fields().iter().map(|field| {
            let column = answer.column_by_name(field.name());
            let column = column.ok_or_else(|| format!("the answer has no column `{}`", field.name()))?;
            strict_cast(column, field.data_type(), field.name())
        });
        let columns = columns.collect::<Result<Vec<_>, String>>()?;
        let output = RecordBatch::try_new(self.shape.output.clone(), columns).map_err(|error| error.to_string())?;
        let source_rows = match (self.options.cardinality(), owners) {
            (Cardinality::FanOut, Some(owners)) => Some(owners),
            (Cardinality::FanOut, None) => return Err("the answer does not say whose its rows are".to_owned()),
            (Cardinality::OneToOne, _) if output.num_rows() + failures.len() == items => None,
            (Cardinality::OneToOne, _) => {
                return Err(format!(
                    "the answer has {} rows and {} failures for {items} items",
                    output.num_rows(),
                    failures.len()
                ));
            }
        };
        Ok(BatchReply { output, source_rows, skipped: Vec::new(), failures, usage: Usage::default() })
    }

    /// A function that leaks fills its process, and then every row fails: the process goes. Where rows may be sent again
    /// they are, in smaller groups, until those that need too much stand alone.
    fn out_of_memory(&self, process: Process, reply: BatchReply, rows: usize) -> Result<BatchReply, Failure> {
        drop(process);
        let first = reply.failures.iter().find(|(_, failure)| ran_out_of_memory(failure));
        match first {
            Some((_, failure)) if rows > 1 && self.options.effects != Effects::Once => {
                Err(failure.clone().sent(Sent::Maybe))
            }
            _ => Ok(reply),
        }
    }

    /// Sends items one at a time: when the process dies it is known which item it was about.
    async fn one_by_one(&mut self, batch: &ItemBatch) -> Result<BatchReply, Failure> {
        let fans_out = self.options.cardinality() == Cardinality::FanOut;
        let mut usage = Usage::default();
        let (mut outputs, mut owners, mut failures) = (Vec::new(), Vec::new(), Vec::new());
        for item in 0..batch.rows() {
            let row = item as u32;
            match self.group(&batch.slice(item, 1), &mut usage).await {
                Ok(reply) => {
                    failures.extend(reply.failures.into_iter().map(|(_, failure)| (row, failure)));
                    owners.extend(std::iter::repeat_n(row, reply.output.num_rows()));
                    outputs.push(reply.output);
                }
                // What was answered before stays answered; the rest of the group never left.
                Err(failure) => failures.push((row, failure)),
            }
            let over = batch.deadline.is_some_and(|deadline| Instant::now() >= deadline);
            let ends = self.options.stop_at_failure && !failures.is_empty();
            if over || ends || batch.stop.is_cancelled() {
                let (code, text) = match over {
                    true => (FailureCode::Timeout, "its group's time was over before it was sent"),
                    false if ends => (FailureCode::Cancelled, "not sent, for an item before it failed"),
                    false => (FailureCode::Cancelled, "cancelled before it was sent"),
                };
                let rest = (row + 1)..batch.rows() as u32;
                failures.extend(rest.map(|row| (row, Failure::fixed(code, text).sent(Sent::Never))));
                break;
            }
        }
        let schema = self.shape.output.clone();
        let output = concat_batches(&schema, &outputs)
            .map_err(|error| self.context.failure(FailureCode::Internal, error.to_string()))?;
        let source_rows = fans_out.then_some(owners);
        Ok(BatchReply { output, source_rows, skipped: Vec::new(), failures, usage })
    }
}

/// Whether what was raised says that memory was used up.
fn ran_out_of_memory(failure: &Failure) -> bool {
    failure.message() == "MemoryError" || failure.message().starts_with("MemoryError: ")
}

fn strict_cast(column: &ArrayRef, kind: &arrow::datatypes::DataType, name: &str) -> Result<ArrayRef, String> {
    if column.data_type() == kind {
        return Ok(column.clone());
    }
    let strict = CastOptions { safe: false, ..CastOptions::default() };
    cast_with_options(column, kind, &strict)
        .map_err(|error| format!("column `{name}` is a {} and not a {kind}: {error}", column.data_type()))
}

/// Sends a frame and waits for the one that answers it.
async fn converse(
    process: &mut Process,
    frame: &Frame,
    cap: usize,
    patience: &Patience<'_>,
) -> Result<(Json, Vec<u8>), Broken> {
    let Process { stdin, stdout, watch, .. } = process;
    let write = async {
        if let Some(stdin) = stdin.as_mut() {
            // A process that stopped reading shows in its output, which is where it is looked at.
            let _ = stdin.write_all(&frame.head).await;
            let _ = stdin.write_all(&frame.body).await;
            let _ = stdin.flush().await;
        }
        std::future::pending::<Broken>().await
    };
    let clock = async {
        match patience.until {
            Some((at, silent)) => {
                tokio::time::sleep_until(at).await;
                if silent { Broken::Silent } else { Broken::Deadline }
            }
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        answer = read_frame(stdout, cap) => answer,
        broken = write => Err(broken),
        broken = watch.kill_group_when_dead() => Err(broken),
        () = patience.cancel.cancelled() => Err(Broken::Cancelled),
        broken = clock => Err(broken),
    }
}

#[async_trait]
impl StepSession for PythonSession {
    async fn execute(&mut self, batch: ItemBatch) -> Result<BatchReply, Failure> {
        if batch.rows() == 0 {
            let output = RecordBatch::new_empty(self.shape.output.clone());
            let source_rows = (self.options.cardinality() == Cardinality::FanOut).then(Vec::new);
            return Ok(BatchReply { source_rows, ..BatchReply::all_ok(output) });
        }
        if self.options.effects == Effects::Once && self.kind.one_by_one() {
            return self.one_by_one(&batch).await;
        }
        let mut usage = Usage::default();
        let reply = self.group(&batch, &mut usage).await?;
        Ok(BatchReply { usage, ..reply })
    }

    async fn close(mut self: Box<Self>) -> Result<(), Failure> {
        match self.idle.take() {
            Some(process) => process.close(&self.context).await,
            None => Ok(()),
        }
    }
}
