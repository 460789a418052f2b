//! One slot of an http step: requests are built, sent and their answers read here.

use std::sync::Arc;
use std::time::SystemTime;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, FieldRef};
use arrow::json::writer::EncoderOptions;
use async_trait::async_trait;
use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Method, Request, Response, StatusCode, Url};
use rowmill_step::{
    BatchReply, Failure, FailureCode, ItemBatch, Reservation, Sent, StepContext, StepSession, StepShape, Usage,
};
use serde_json::Value;
use tokio::time::Instant;

use crate::client::{ForbiddenAddress, HttpClient, chain};
use crate::extract::Answer;
use crate::json_body::JsonSource;
use crate::many::{Part, assign};
use crate::options::{Body, ManyPlan, NotFound, Plan};
use crate::retry_after;
use crate::template::{Place, Unfit};
use crate::values::Texts;

/// How much of the body of a refusal is read for its message.
const EXCERPT_BYTES: usize = 8 << 10;
/// Bodies up to this size are not taken from the step's memory one by one.
const UNRESERVED_BYTES: usize = 64 << 10;
/// The longest URL that is sent; longer ones fail at servers in worse ways.
const MAX_URL_BYTES: usize = 64 << 10;

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

/// A request ready to go. Kept apart from the columns, which do not live across awaits.
struct Ready {
    url: Url,
    headers: HeaderMap,
    body: Option<Bytes>,
}

/// A whole answer.
struct Received {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    _memory: Option<Reservation>,
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

    fn unfit(&self, unfit: Unfit) -> Failure {
        let column = |index: usize| self.plan.columns.get(index).map_or("?", String::as_str);
        let message = match unfit {
            Unfit::Missing(index) => format!("column `{}` is NULL or empty and stands in the path", column(index)),
            Unfit::DotSegment => "a segment of the path would be `.` or `..`".to_owned(),
            Unfit::Control(index) => {
                format!("column `{}` holds a control character and stands in a header", column(index))
            }
        };
        self.fail(FailureCode::BadInput, message).sent(Sent::Never)
    }

    /// Builds the request of one item, or with `many` of all of them.
    fn build(
        &mut self,
        batch: &ItemBatch,
        rows: std::ops::Range<usize>,
        many: Option<&ManyPlan>,
    ) -> Result<Ready, Failure> {
        let plan = self.plan.clone();
        let columns = batch.columns.columns();
        let texts = texts(columns).map_err(|e| self.internal(&e))?;
        let row = rows.start;
        let mut url = std::mem::take(&mut self.url);
        let mut scratch = std::mem::take(&mut self.scratch);
        url.clear();
        url.extend_from_slice(self.client.base_text.as_bytes());
        let written = write_url(&plan, &texts, row, &mut scratch, &mut url);
        let parsed = match written {
            Err(unfit) => Err(self.unfit(unfit)),
            Ok(()) if url.len() > MAX_URL_BYTES => {
                Err(self.fail(FailureCode::TooLarge, "the address is longer than 64 KiB").sent(Sent::Never))
            }
            Ok(()) => std::str::from_utf8(&url)
                .ok()
                .and_then(|text| Url::parse(text).ok())
                // Encoding makes this impossible; it is checked all the same, since everything hangs on it.
                .filter(|parsed| parsed.origin() == self.client.base.origin() && parsed.username().is_empty())
                .ok_or_else(|| self.fail(FailureCode::BadInput, "the address is not valid").sent(Sent::Never)),
        };
        self.url = url;
        let parsed = parsed?;
        let mut headers = self.client.headers.clone();
        for (name, template) in &plan.headers {
            if template.has_null(&texts, row) {
                continue;
            }
            let mut value = Vec::new();
            template.write(&texts, row, Place::Header, &mut scratch, &mut value).map_err(|unfit| self.unfit(unfit))?;
            let value = HeaderValue::from_maybe_shared(Bytes::from(value)).map_err(|_| {
                self.fail(FailureCode::BadInput, format!("header `{name}` cannot hold this value")).sent(Sent::Never)
            })?;
            headers.insert(name.clone(), value);
        }
        if let Some(name) = &plan.key_header {
            let key = if many.is_some() { batch.keys.request_key() } else { batch.keys.key(row) };
            // Hexadecimal digits are always a header's value.
            if let Ok(value) = HeaderValue::from_bytes(&key.to_text()) {
                headers.insert(name.clone(), value);
            }
        }
        let body = self.build_body(&plan, &texts, batch, rows, many, &mut scratch, &mut headers)?;
        self.scratch = scratch;
        Ok(Ready { url: parsed, headers, body })
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one request, borrowed from one place")]
    fn build_body(
        &self,
        plan: &Plan,
        texts: &[Texts<'_>],
        batch: &ItemBatch,
        rows: std::ops::Range<usize>,
        many: Option<&ManyPlan>,
        scratch: &mut Vec<u8>,
        headers: &mut HeaderMap,
    ) -> Result<Option<Bytes>, Failure> {
        let row = rows.start;
        let mut body = Vec::new();
        match &plan.body {
            Body::None => return Ok(None),
            Body::Json(template) => {
                let columns = batch.columns.columns();
                let typed = template.typed_columns();
                let mut source = JsonSource::try_new(texts, columns, &self.fields, typed, &self.encoder_options)
                    .map_err(|e| self.internal(&e))?;
                match many {
                    None => template.write(row, &mut source, scratch, &mut body),
                    Some(many) => {
                        let mut items = |out: &mut Vec<u8>| {
                            out.push(b'[');
                            for (index, row) in rows.clone().enumerate() {
                                if index > 0 {
                                    out.push(b',');
                                }
                                template.write(row, &mut source, scratch, out);
                            }
                            out.push(b']');
                        };
                        match &many.envelope {
                            Some(envelope) => envelope.write_envelope(&mut body, items),
                            None => items(&mut body),
                        }
                    }
                }
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            }
            Body::Text(template, content_type) => {
                template.write(texts, row, Place::Body, scratch, &mut body).map_err(|unfit| self.unfit(unfit))?;
                headers.insert(CONTENT_TYPE, content_type.clone());
            }
            Body::Form(fields) => {
                for (name, template) in fields.iter().filter(|(_, template)| !template.has_null(texts, row)) {
                    if !body.is_empty() {
                        body.push(b'&');
                    }
                    body.extend_from_slice(name);
                    body.push(b'=');
                    template.write_query(texts, row, scratch, &mut body);
                }
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
            }
            Body::Column(column, content_type) => {
                let array = batch.columns.column(*column);
                match array.data_type() {
                    DataType::Binary if array.is_valid(row) => {
                        body.extend_from_slice(array.as_binary::<i32>().value(row));
                    }
                    DataType::LargeBinary if array.is_valid(row) => {
                        body.extend_from_slice(array.as_binary::<i64>().value(row));
                    }
                    DataType::Binary | DataType::LargeBinary => {}
                    _ => texts[*column].with(row, scratch, |text| body.extend_from_slice(text)),
                }
                headers.insert(CONTENT_TYPE, content_type.clone());
            }
        }
        Ok(Some(Bytes::from(body)))
    }

    /// Sends one request and reads the whole answer, within the deadline.
    async fn exchange(&self, ready: Ready, batch: &ItemBatch, usage: &mut Usage) -> Result<Received, Failure> {
        let limit = self.plan.options.timeout.map_or(self.client.timeout, |timeout| timeout.min(self.client.timeout));
        let end = Instant::now() + limit;
        let end = batch.deadline.map_or(end, |deadline| deadline.min(end));
        usage.sent_bytes += ready.body.as_ref().map_or(0, |body| body.len() as u64);
        tokio::select! {
            biased;
            received = self.follow(ready, usage) => received,
            () = batch.cancel.cancelled() => Err(self.fail(FailureCode::Cancelled, "cancelled while waiting for the answer")),
            () = tokio::time::sleep_until(end) => {
                Err(self.fail(FailureCode::Timeout, format!("no whole answer within {} ms", limit.as_millis())))
            }
        }
    }

    /// Sends, and follows redirects within the origin if the connection allows any.
    async fn follow(&self, ready: Ready, usage: &mut Usage) -> Result<Received, Failure> {
        let Ready { mut url, headers, body } = ready;
        let may_follow = matches!(self.plan.method, Method::GET | Method::HEAD);
        let mut left = if may_follow { self.client.max_redirects } else { 0 };
        loop {
            usage.calls += 1;
            let mut request = Request::new(self.plan.method.clone(), url.clone());
            *request.headers_mut() = headers.clone();
            if let Some(body) = &body {
                *request.body_mut() = Some(body.clone().into());
            }
            let response = self.client.client.execute(request).await.map_err(|error| self.transport(error))?;
            if left > 0 && response.status().is_redirection() {
                let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
                let next = location.and_then(|location| url.join(location).ok());
                match next {
                    Some(next) if next.origin() == url.origin() => {
                        left -= 1;
                        url = next;
                        continue;
                    }
                    Some(next) => {
                        let message = format!(
                            "it redirects to another origin ({}), which is never followed",
                            next.origin().ascii_serialization()
                        );
                        return Err(self
                            .fail(FailureCode::Forbidden, message)
                            .status(response.status().as_u16())
                            .sent(Sent::Answered));
                    }
                    None => {}
                }
            }
            return self.receive(response, usage).await;
        }
    }

    async fn receive(&self, mut response: Response, usage: &mut Usage) -> Result<Received, Failure> {
        let status = response.status();
        let headers = std::mem::take(response.headers_mut());
        let ok = self.is_ok(status);
        // Of a refusal only the beginning is read, for its message; what it holds beyond that is cut off.
        let cap = if ok { self.client.max_response_bytes } else { EXCERPT_BYTES };
        let mut memory: Option<Reservation> = None;
        let mut first = Bytes::new();
        let mut rest: Vec<u8> = Vec::new();
        loop {
            let chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(_) if !ok => break,
                Err(error) => return Err(self.transport(error).status(status.as_u16())),
            };
            let so_far = if rest.is_empty() { first.len() } else { rest.len() };
            if so_far + chunk.len() > cap {
                if !ok {
                    rest.extend_from_slice(if rest.is_empty() { &first } else { &[] });
                    rest.extend_from_slice(&chunk[..cap - so_far]);
                    break;
                }
                // Dropping the response closes the connection, so nothing more is read or unpacked.
                return Err(self
                    .fail(FailureCode::TooLarge, format!("the answer is larger than {cap} bytes after decompression"))
                    .status(status.as_u16())
                    .sent(Sent::Answered));
            }
            if so_far + chunk.len() > UNRESERVED_BYTES {
                let held = memory.get_or_insert_with(|| Reservation::new(self.context.memory.clone()));
                held.grow(so_far + chunk.len() - held.bytes()).map_err(|failure| failure.sent(Sent::Maybe))?;
            }
            if so_far == 0 {
                first = chunk;
            } else {
                if rest.is_empty() {
                    rest.extend_from_slice(&first);
                }
                rest.extend_from_slice(&chunk);
            }
        }
        let body = if rest.is_empty() { first } else { Bytes::from(rest) };
        usage.received_bytes += body.len() as u64;
        Ok(Received { status, headers, body, _memory: memory })
    }

    fn is_ok(&self, status: StatusCode) -> bool {
        self.plan.options.ok.iter().any(|range| (range.first..=range.last).contains(&status.as_u16()))
    }

    /// What a client's error means and how far the call came.
    fn transport(&self, error: reqwest::Error) -> Failure {
        let error = error.without_url();
        let text = chain(&error);
        if let Some(forbidden) = find::<ForbiddenAddress>(&error) {
            return self.fail(FailureCode::Forbidden, forbidden.to_string()).retryable(false).sent(Sent::Never);
        }
        if error.is_builder() {
            return self.fail(FailureCode::BadInput, text).sent(Sent::Never);
        }
        if error.is_connect() {
            // A certificate that is refused is refused next time too.
            let certificate = text.contains("certificate");
            return self.fail(FailureCode::Connect, text).retryable(!certificate).sent(Sent::Never);
        }
        if error.is_timeout() {
            return self.fail(FailureCode::Timeout, text);
        }
        self.fail(FailureCode::Transport, text)
    }

    /// What a status that is not a success means.
    fn refusal(&self, received: &Received) -> Failure {
        let status = received.status.as_u16();
        let wait = received
            .headers
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| retry_after::parse(value, SystemTime::now()));
        let (code, sent) = match status {
            429 => (FailureCode::RateLimited, Sent::Refused),
            // The request may not have been read whole, or something behind may have done its work.
            408 | 425 | 500.. => (FailureCode::Status, Sent::Maybe),
            _ => (FailureCode::Status, Sent::Answered),
        };
        let retryable = self.plan.options.retry_statuses.contains(&status);
        let mut message = format!("it answered {}", received.status);
        if received.status.is_redirection() {
            message.push_str("; redirects are not followed here");
        } else {
            let text = String::from_utf8_lossy(&received.body);
            let text = text.trim();
            if !text.is_empty() {
                message.push_str(": ");
                message.push_str(text);
            }
        }
        self.fail(code, message).status(status).retryable(retryable).retry_after(wait).sent(sent)
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

fn write_url(
    plan: &Plan,
    texts: &[Texts<'_>],
    row: usize,
    scratch: &mut Vec<u8>,
    url: &mut Vec<u8>,
) -> Result<(), Unfit> {
    plan.path.write_path(texts, row, scratch, url)?;
    let mut separator = b'?';
    for (name, template) in &plan.query {
        if !template.is_constant() && template.has_null(texts, row) {
            continue;
        }
        url.push(separator);
        separator = b'&';
        url.extend_from_slice(name);
        url.push(b'=');
        template.write_query(texts, row, scratch, url);
    }
    Ok(())
}

/// The text views of the columns. Columns that only go into a JSON body may have no text; nobody asks for it then.
fn texts(columns: &[arrow::array::ArrayRef]) -> Result<Vec<Texts<'_>>, arrow::error::ArrowError> {
    columns.iter().map(Texts::new).collect()
}

fn find<'e, E: std::error::Error + 'static>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        next = error.source();
    }
    None
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
