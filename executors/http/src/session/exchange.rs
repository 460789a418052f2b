//! One request and its whole answer: deadline, redirects, the size of the answer, and what went wrong.

use std::time::SystemTime;

use bytes::Bytes;
use reqwest::header::{HeaderMap, LOCATION, RETRY_AFTER};
use reqwest::{Method, Request, Response, StatusCode};
use rowmill_step::{Failure, FailureCode, ItemBatch, Reservation, Sent, Usage};
use tokio::time::Instant;

use super::HttpSession;
use super::request::Ready;
use crate::client::{ForbiddenAddress, chain};
use crate::retry_after;

/// How much of the body of a refusal is read for its message.
pub(super) const EXCERPT_BYTES: usize = 8 << 10;
/// Bodies up to this size are not taken from the step's memory one by one.
const UNRESERVED_BYTES: usize = 64 << 10;

/// A whole answer.
pub(super) struct Received {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    _memory: Option<Reservation>,
}

impl HttpSession {
    /// Sends one request and reads the whole answer, within the deadline.
    pub(super) async fn exchange(
        &self,
        ready: Ready,
        batch: &ItemBatch,
        usage: &mut Usage,
    ) -> Result<Received, Failure> {
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
            if response.status().is_redirection() && left == 0 && may_follow && self.client.max_redirects > 0 {
                let message = format!(
                    "it answered {} after {} redirects, and `max_redirects` allows no more",
                    response.status(),
                    self.client.max_redirects
                );
                let status = response.status().as_u16();
                return Err(self.fail(FailureCode::Status, message).status(status).sent(Sent::Answered));
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

    pub(super) fn is_ok(&self, status: StatusCode) -> bool {
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
    pub(super) fn refusal(&self, received: &Received) -> Failure {
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
