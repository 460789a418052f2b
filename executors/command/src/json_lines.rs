//! The JSON lines format: one line per item, one line per answer, in order.

use std::io::Write as _;

use arrow::array::RecordBatch;
use arrow::json::ReaderBuilder;
use arrow::json::writer::{LineDelimited, WriterBuilder};
use rowmill_step::{
    BatchReply, Cardinality, Effects, Failure, FailureCode, ItemBatch, Reservation, Sent, Usage, json_fits,
};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use crate::options::CommandOptions;
use crate::process::Process;
use crate::session::{Broken, CommandSession, Running};

/// So many deaths in a row without a single answer in between mean that the program cannot work at all.
const MAX_DEATHS: u32 = 5;

/// An answer's line.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: u64,
    #[serde(default, deserialize_with = "present")]
    ok: Option<Value>,
    #[serde(default)]
    error: Option<LineError>,
    #[serde(default)]
    skip: bool,
}

/// Keeps `"ok": null` apart from no `ok` at all.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// An error: its text, or an object.
#[derive(Debug)]
struct LineError {
    message: String,
    retryable: bool,
}

impl<'de> Deserialize<'de> for LineError {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        match Value::deserialize(deserializer)? {
            Value::String(message) => Ok(Self { message, retryable: false }),
            Value::Object(fields) => {
                let message = match fields.get("message") {
                    Some(Value::String(text)) => text.clone(),
                    _ => return Err(D::Error::custom("`error` has no `message`")),
                };
                let retryable = fields.get("retryable").and_then(Value::as_bool).unwrap_or(false);
                Ok(Self { message, retryable })
            }
            _ => Err(D::Error::custom("`error` is a text or an object with `message`")),
        }
    }
}

/// What became of an item.
enum Answer {
    Rows(Vec<Value>),
    Skip,
    Failed(Failure),
}

/// Works on a group.
pub(crate) async fn group(session: &mut CommandSession, batch: &ItemBatch) -> Result<BatchReply, Failure> {
    let rows = batch.rows();
    let items = encode(batch).map_err(|error| {
        session.context.failure(FailureCode::BadInput, format!("the items have no JSON: {error}")).sent(Sent::Never)
    })?;
    let mut memory = Reservation::new(session.context.memory.clone());
    memory.grow(items.iter().map(Vec::len).sum()).map_err(|failure| failure.sent(Sent::Never))?;
    let mut usage = Usage::default();
    let mut answers: Vec<Answer> = Vec::with_capacity(rows);
    let mut deaths = 0;
    while answers.len() < rows {
        let mut running = match session.running().await {
            Ok(running) => running,
            // With answers in hand, only the rest fails.
            Err(failure) if answers.is_empty() => return Err(failure),
            Err(failure) => {
                answers.resize_with(rows, || Answer::Failed(failure.clone()));
                break;
            }
        };
        let before = answers.len();
        let talk = converse(session, &mut running, &items, &mut answers, batch, &mut usage).await;
        let broken = match talk {
            Ok(true) => {
                session.keep(running);
                if answers.len() < rows {
                    let rest = Failure::fixed(FailureCode::Cancelled, "cancelled before its turn came");
                    answers.resize_with(rows, || Answer::Failed(rest.clone().sent(Sent::Never)));
                }
                continue;
            }
            Ok(false) => continue,
            Err(broken) => broken,
        };
        let end = match broken {
            Broken::Deadline => Some((FailureCode::Timeout, "its group's deadline passed before its turn came")),
            Broken::Cancelled => Some((FailureCode::Cancelled, "cancelled before its turn came")),
            _ => None,
        };
        deaths = if answers.len() > before { 1 } else { deaths + 1 };
        let failure = session.failure(running, broken).await;
        answers.push(Answer::Failed(failure));
        let hopeless = (FailureCode::Crashed, "not sent: the program died again and again without an answer");
        if let Some((code, text)) = end.or((deaths >= MAX_DEATHS).then_some(hopeless)) {
            let rest = Failure::fixed(code, text).sent(Sent::Never);
            answers.resize_with(rows, || Answer::Failed(rest.clone()));
        }
    }
    assemble(session, answers, usage)
}

/// The items as JSON objects, one each.
fn encode(batch: &ItemBatch) -> Result<Vec<Vec<u8>>, arrow::error::ArrowError> {
    let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(Vec::new());
    writer.write(&batch.columns)?;
    writer.finish()?;
    let lines = writer.into_inner();
    let mut items: Vec<Vec<u8>> = lines.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    // A batch without columns has no lines, and the last line ends with a break too.
    items.truncate(batch.rows());
    items.resize_with(batch.rows(), || b"{}".to_vec());
    Ok(items)
}

/// Sends items and reads answers until every item has one, no more are to be begun, or the conversation breaks. False if
/// the process must not be used again.
async fn converse(
    session: &CommandSession,
    running: &mut Running,
    items: &[Vec<u8>],
    answers: &mut Vec<Answer>,
    batch: &ItemBatch,
    usage: &mut Usage,
) -> Result<bool, Broken> {
    let options = session.options.clone();
    let one_by_one = options.effects == Effects::Once;
    while answers.len() < items.len() {
        if batch.stop.is_cancelled() {
            return Ok(true);
        }
        let first = answers.len();
        let last = if one_by_one { first + 1 } else { items.len() };
        let first_id = running.next_id;
        let mut lines = Vec::new();
        for (offset, item) in items[first..last].iter().enumerate() {
            // Writing to a Vec cannot fail.
            let _ = write!(lines, "{{\"id\":{},\"item\":", first_id + offset as u64);
            lines.extend_from_slice(item);
            lines.extend_from_slice(b"}\n");
        }
        usage.calls += (last - first) as u64;
        usage.sent_bytes += lines.len() as u64;
        running.next_id += (last - first) as u64;
        let Process { stdin, stdout, watch, .. } = &mut running.process;
        let write = async {
            if let Some(stdin) = stdin.as_mut() {
                // A program that stopped reading shows in its output, which is where it is looked at.
                let _ = stdin.write_all(&lines).await;
                let _ = stdin.flush().await;
            }
            std::future::pending::<Broken>().await
        };
        let read = async {
            let mut line = Vec::new();
            for offset in 0..(last - first) as u64 {
                read_line(stdout, &mut line, &options, batch.deadline).await?;
                usage.received_bytes += line.len() as u64;
                answers.push(parse(session, &line, first_id + offset)?);
            }
            Ok(())
        };
        tokio::select! {
            biased;
            done = read => done?,
            broken = write => return Err(broken),
            broken = watch.kill_group_when_dead() => return Err(broken),
            () = batch.cancel.cancelled() => return Err(Broken::Cancelled),
        }
        if !running.process.stdout.buffer().is_empty() {
            // More lines than items: the answers stand, but nobody knows what this process says next.
            return Ok(false);
        }
    }
    Ok(true)
}

/// Reads one line, its break not included.
async fn read_line(
    stdout: &mut (impl AsyncBufRead + Unpin),
    line: &mut Vec<u8>,
    options: &CommandOptions,
    deadline: Option<Instant>,
) -> Result<(), Broken> {
    line.clear();
    let silent = options.item_timeout.map(|timeout| Instant::now() + timeout);
    let read = async {
        loop {
            let available = stdout.fill_buf().await.map_err(|_| Broken::Ended)?;
            if available.is_empty() {
                return Err(Broken::Ended);
            }
            let end = available.iter().position(|byte| *byte == b'\n');
            let take = end.unwrap_or(available.len());
            if line.len() + take > options.max_answer_bytes {
                return Err(Broken::TooLarge);
            }
            line.extend_from_slice(&available[..take]);
            stdout.consume(end.map_or(take, |end| end + 1));
            if end.is_some() {
                return Ok(());
            }
        }
    };
    // What is there already is taken before any clock is looked at.
    let end = match (silent, deadline) {
        (Some(silent), Some(deadline)) => Some(silent.min(deadline)),
        (silent, deadline) => silent.or(deadline),
    };
    let Some(end) = end else { return read.await };
    tokio::time::timeout_at(end, read).await.unwrap_or_else(|_| {
        if deadline.is_some_and(|deadline| deadline <= end) { Err(Broken::Deadline) } else { Err(Broken::Silent) }
    })
}

/// Reads an answer.
fn parse(session: &CommandSession, line: &[u8], id: u64) -> Result<Answer, Broken> {
    let nonsense = |what: String| {
        let shown = String::from_utf8_lossy(&line[..line.len().min(200)]).into_owned();
        Broken::Nonsense(format!("the program's line is not an answer ({what}): {shown}"))
    };
    let answer: Line = serde_json::from_slice(line).map_err(|error| nonsense(error.to_string()))?;
    if answer.id != id {
        return Err(nonsense(format!("it answers {} where {id} was next", answer.id)));
    }
    let fans_out = session.options.cardinality == Cardinality::FanOut;
    match answer {
        Line { ok: Some(value), error: None, skip: false, .. } => match value {
            Value::Array(rows) if fans_out => Ok(Answer::Rows(rows)),
            Value::Object(_) => Ok(Answer::Rows(vec![value])),
            _ => {
                let what = if fans_out { "an object or a list of them" } else { "an object" };
                let failure = session.context.failure(FailureCode::Decode, format!("`ok` is not {what}"));
                Ok(Answer::Failed(failure.sent(Sent::Answered)))
            }
        },
        Line { ok: None, error: Some(error), skip: false, .. } => {
            let failure = session.context.failure(FailureCode::Rejected, error.message);
            Ok(Answer::Failed(failure.retryable(error.retryable).sent(Sent::Answered)))
        }
        Line { ok: None, error: None, skip: true, .. } => Ok(Answer::Skip),
        _ => Err(nonsense("it has not exactly one of `ok`, `error` and `skip`".to_owned())),
    }
}

/// Puts the answers together; rows that do not fit the declared columns fail alone.
fn assemble(session: &CommandSession, answers: Vec<Answer>, usage: Usage) -> Result<BatchReply, Failure> {
    let mut rows: Vec<Value> = Vec::with_capacity(answers.len());
    let mut sources: Vec<u32> = Vec::with_capacity(answers.len());
    let mut skipped = Vec::new();
    let mut failures: Vec<(u32, Failure)> = Vec::new();
    for (index, answer) in answers.into_iter().enumerate() {
        let index = index as u32;
        match answer {
            Answer::Rows(values) => {
                sources.extend(std::iter::repeat_n(index, values.len()));
                rows.extend(values);
            }
            Answer::Skip => skipped.push(index),
            Answer::Failed(failure) => failures.push((index, failure)),
        }
    }
    let output = match read_rows(session, &rows) {
        Ok(output) => output,
        Err(_) => {
            // Find the rows that are to blame; their items fail whole.
            let mut bad: Vec<(u32, Failure)> = Vec::new();
            for (row, source) in rows.iter().zip(&sources) {
                if bad.last().is_some_and(|(last, _)| last == source) {
                    continue;
                }
                if let Err(what) = read_rows(session, std::slice::from_ref(row)) {
                    let text = format!("the answer does not fit the declared columns: {what}");
                    bad.push((*source, session.context.failure(FailureCode::Decode, text).sent(Sent::Answered)));
                }
            }
            let is_bad = |source: &u32| bad.binary_search_by_key(source, |(index, _)| *index).is_ok();
            let mut kept = sources.iter().map(|source| !is_bad(source));
            rows.retain(|_| kept.next().unwrap_or(false));
            sources.retain(|source| !is_bad(source));
            failures.extend(bad);
            failures.sort_by_key(|(index, _)| *index);
            read_rows(session, &rows)
                .map_err(|what| session.context.failure(FailureCode::Decode, what).sent(Sent::Answered))?
        }
    };
    let source_rows = (session.options.cardinality == Cardinality::FanOut).then_some(sources);
    Ok(BatchReply { output, source_rows, skipped, failures, usage })
}

fn read_rows(session: &CommandSession, rows: &[Value]) -> Result<RecordBatch, String> {
    let schema = session.shape.output.clone();
    if rows.is_empty() {
        return Ok(RecordBatch::new_empty(schema));
    }
    for row in rows {
        for field in schema.fields() {
            let value = row.get(field.name()).unwrap_or(&Value::Null);
            json_fits(value, field.data_type()).map_err(|what| format!("column `{}`: {what}", field.name()))?;
        }
    }
    let mut decoder =
        ReaderBuilder::new(schema).with_batch_size(rows.len()).build_decoder().map_err(|error| error.to_string())?;
    decoder.serialize(rows).map_err(|error| error.to_string())?;
    let batch = decoder.flush().map_err(|error| error.to_string())?;
    batch.filter(|batch| batch.num_rows() == rows.len()).ok_or_else(|| "rows were lost".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_strictly() {
        let line = |text: &str| serde_json::from_str::<Line>(text);
        assert!(line(r#"{"id":1,"ok":{"a":1}}"#).unwrap().ok.is_some());
        assert_eq!(line(r#"{"id":1,"ok":null}"#).unwrap().ok, Some(Value::Null));
        assert_eq!(line(r#"{"id":1,"error":"x"}"#).unwrap().error.unwrap().message, "x");
        assert!(line(r#"{"id":1,"error":{"message":"x","retryable":true}}"#).unwrap().error.unwrap().retryable);
        for bad in [r#"{"ok":{}}"#, r#"{"id":-1,"ok":{}}"#, r#"{"id":1,"okay":{}}"#, r#"{"id":1,"error":7}"#, "hello"] {
            assert!(line(bad).is_err(), "{bad}");
        }
    }
}
