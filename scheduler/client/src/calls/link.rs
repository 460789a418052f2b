//! A stream to one executor: groups that wait go out together, answers find whoever waits for them, and when it breaks
//! everybody hears how far their group came.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use datafusion::arrow::array::{Array as _, RecordBatch};
use datafusion::arrow::datatypes::SchemaRef;
use parking_lot::Mutex;
use rowmill_cores::ids::ExecutorId;
use rowmill_step::{BatchReply, Failure, FailureCode, ItemBatch, ItemIds, Redactor, Sent, StepShape, Whereabouts};
use rowmill_wire::calls::{
    Ask, Cancel, ClientMessage, ExecutorMessage, GroupHead, Groups, OpenStep, ROWS_BYTES, Results, Tell, attempts,
    pack, unpack,
};
use rowmill_wire::jobs::BEAT;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tonic::Streaming;
use tonic::transport::Channel;

use super::crew::Ticket;

/// An executor that says nothing for so long is given up: it is stopped, or out of reach.
const SILENCE: Duration = Duration::from_secs(4 * BEAT.as_secs());
/// What goes into one message.
const ENOUGH_GROUPS: usize = 512;
const ENOUGH_BYTES: usize = 1 << 20;
/// Messages that wait for the network.
const AHEAD: usize = 2;

/// What a link tells of itself.
#[derive(Debug)]
pub(super) enum News {
    /// The step is open there, and takes so many groups at a time.
    Opened(Arc<Link>, u32),
    /// The step cannot be opened there.
    Refused(Failure),
    /// It takes nothing new.
    Leaving,
    /// It ended.
    Ended(String),
}

/// Where a link tells its news.
#[derive(Debug)]
pub(super) struct Teller {
    pub(super) id: ExecutorId,
    pub(super) stream: u64,
    pub(super) to: mpsc::Sender<(ExecutorId, u64, News)>,
}

impl Teller {
    pub(super) async fn tell(&self, news: News) {
        // Nobody listens when the run has ended.
        let _ = self.to.send((self.id, self.stream, news)).await;
    }
}

/// A group on its way out.
struct Outgoing {
    id: u64,
    columns: RecordBatch,
    ids: ItemIds,
    attempt: u32,
    deadline: Option<Instant>,
    bytes: usize,
}

enum Out {
    Group(Box<Outgoing>),
    Cancel(u64),
    /// What is under way in the group goes on.
    Stop(u64),
}

/// A group without an answer.
#[derive(Debug)]
struct Pending {
    answer: oneshot::Sender<Result<BatchReply, Failure>>,
    /// Its place there, which is free when the answer is here.
    _ticket: Arc<Ticket>,
    /// Whether it was handed to the network.
    sent: bool,
}

/// A stream to one executor.
#[derive(Debug)]
pub(super) struct Link {
    at: Arc<Whereabouts>,
    outbox: mpsc::UnboundedSender<Out>,
    /// `None` when the stream has ended.
    pending: Mutex<Option<HashMap<u64, Pending>>>,
    next: AtomicU64,
    redactor: Redactor,
}

impl Link {
    /// Hands a group in.
    ///
    /// # Errors
    /// The stream has ended, and the group was not sent.
    pub(super) fn submit(
        &self,
        batch: &ItemBatch,
        ticket: Arc<Ticket>,
    ) -> Result<(u64, oneshot::Receiver<Result<BatchReply, Failure>>), Failure> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, receiver) = oneshot::channel();
        let group = Outgoing {
            id,
            bytes: bytes_of(&batch.columns),
            columns: batch.columns.clone(),
            ids: batch.keys.ids().clone(),
            attempt: batch.attempt,
            deadline: batch.deadline,
        };
        {
            let mut pending = self.pending.lock();
            let Some(pending) = pending.as_mut() else { return Err(self.lost("it went before", Sent::Never)) };
            pending.insert(id, Pending { answer, _ticket: ticket, sent: false });
        }
        // No more groups than the executor has places for, so this does not grow without bound.
        if self.outbox.send(Out::Group(Box::new(group))).is_err() {
            self.answer(id, Err(self.lost("it went before", Sent::Never)));
        }
        Ok((id, receiver))
    }

    /// Says that nobody waits for a group any more; it is answered all the same.
    pub(super) fn cancel(&self, id: u64) {
        let _ended = self.outbox.send(Out::Cancel(id));
    }

    /// Says that no further item of a group is to be begun.
    pub(super) fn stop(&self, id: u64) {
        let _ended = self.outbox.send(Out::Stop(id));
    }

    fn answer(&self, id: u64, result: Result<BatchReply, Failure>) {
        let pending = self.pending.lock().as_mut().and_then(|pending| pending.remove(&id));
        if let Some(pending) = pending {
            // Whoever gave up waiting does not mind.
            let _ = pending.answer.send(result);
        }
    }

    /// The executor.
    pub(super) fn at(&self) -> &Arc<Whereabouts> {
        &self.at
    }

    /// Whether groups can be handed in.
    pub(super) fn is_open(&self) -> bool {
        self.pending.lock().is_some()
    }

    fn is_idle(&self) -> bool {
        self.pending.lock().as_ref().is_none_or(HashMap::is_empty)
    }

    /// A group that was lost with its executor: a call that may be made again is made again elsewhere.
    pub(super) fn lost(&self, why: &str, sent: Sent) -> Failure {
        lost(&self.at.process, why, sent)
    }

    fn end(&self, why: &str) {
        let pending = self.pending.lock().take();
        for pending in pending.into_iter().flat_map(HashMap::into_values) {
            let sent = if pending.sent { Sent::Maybe } else { Sent::Never };
            let _ = pending.answer.send(Err(self.lost(why, sent)));
        }
    }
}

/// See [`Link::lost`].
pub(super) fn lost(executor: &str, why: &str, sent: Sent) -> Failure {
    let message = format!("executor {executor} was lost: {why}");
    Failure::received(FailureCode::Crashed, &message).retryable(true).sent(sent).lost()
}

/// Bytes of a slice's own rows.
fn bytes_of(batch: &RecordBatch) -> usize {
    let bytes = batch.columns().iter().map(|column| column.to_data().get_slice_memory_size().unwrap_or(0));
    bytes.sum()
}

/// A stream from its beginning to its end, which is also when this future is dropped.
pub(super) struct Opening {
    pub(super) at: Whereabouts,
    pub(super) open: OpenStep,
    pub(super) shape: StepShape,
    pub(super) redactor: Redactor,
}

/// The end of a link, also when whoever drives it is dropped.
struct Ends(Arc<Link>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.end("the run ended");
    }
}

impl Opening {
    /// Opens the step and serves the stream; tells what happens, its end included.
    pub(super) async fn run(self, channel: Channel, news: Teller) {
        let ended = self.serve(channel, &news).await;
        let (Ok(why) | Err(why)) = ended;
        news.tell(News::Ended(why)).await;
    }

    async fn serve(self, channel: Channel, news: &Teller) -> Result<String, String> {
        let (asks, queue) = mpsc::channel(AHEAD);
        let open = ClientMessage::from(Ask::Open(self.open.clone()));
        let queued = futures::stream::unfold(queue, |mut queue| async move { Some((queue.recv().await?, queue)) });
        let stream = futures::StreamExt::chain(futures::stream::iter([open]), queued);
        let silent = || format!("nothing was heard of it for {} s", SILENCE.as_secs());
        let beginning = tokio::time::timeout(SILENCE, attempts(channel, stream)).await;
        let mut tells = beginning.map_err(|_| silent())?.map_err(|status| status.message().to_owned())?;
        let most = loop {
            match hear(&mut tells).await? {
                Tell::Opened(opened) => break opened.most,
                Tell::Refused(refused) => {
                    if refused.draining {
                        return Err("it is about to leave".to_owned());
                    }
                    let failure = refused.failure.unwrap_or_default().into_failure(&self.redactor);
                    let failure = failure.at(&format!("executor {}", self.at.process)).sent(Sent::Never);
                    news.tell(News::Refused(failure.reported_as("RM0711"))).await;
                    return Ok("it refused the step".to_owned());
                }
                _ => {}
            }
        };
        let (outbox, waiting) = mpsc::unbounded_channel();
        let link = Arc::new(Link {
            at: Arc::new(self.at),
            outbox,
            pending: Mutex::new(Some(HashMap::new())),
            next: AtomicU64::new(0),
            redactor: self.redactor,
        });
        let ends = Ends(Arc::clone(&link));
        news.tell(News::Opened(Arc::clone(&link), most)).await;
        let why = tokio::select! {
            why = send_all(&link, waiting, asks, &self.shape.input) => why,
            why = hear_all(&link, tells, &self.shape.output, news) => why,
        };
        link.end(&why);
        drop(ends);
        Ok(why)
    }
}

async fn hear(tells: &mut Streaming<ExecutorMessage>) -> Result<Tell, String> {
    loop {
        match tokio::time::timeout(SILENCE, tells.message()).await {
            Ok(Ok(Some(ExecutorMessage { tell: Some(tell) }))) => return Ok(tell),
            Ok(Ok(Some(_))) => {}
            Ok(Ok(None)) => return Err("it ended the stream".to_owned()),
            Ok(Err(status)) => return Err(status.message().to_owned()),
            Err(_) => return Err(format!("nothing was heard of it for {} s", SILENCE.as_secs())),
        }
    }
}

/// Hears answers until the stream ends; why it did.
async fn hear_all(link: &Link, mut tells: Streaming<ExecutorMessage>, schema: &SchemaRef, news: &Teller) -> String {
    let mut leaving = false;
    loop {
        match hear(&mut tells).await {
            Ok(Tell::Results(results)) => {
                if let Err(why) = settle(link, results, schema) {
                    return why;
                }
            }
            Ok(Tell::Draining(_)) => {
                leaving = true;
                news.tell(News::Leaving).await;
            }
            Ok(_) => {}
            Err(why) => return why,
        }
        if leaving && link.is_idle() {
            return "it leaves, and has answered everything".to_owned();
        }
    }
}

fn settle(link: &Link, results: Results, schema: &SchemaRef) -> Result<(), String> {
    let broken = |error: String| format!("an answer cannot be read: {error}");
    let rows = match results.rows.is_empty() {
        true => RecordBatch::new_empty(Arc::clone(schema)),
        false => unpack(&results.rows, schema).map_err(|error| broken(error.to_string()))?,
    };
    let total: usize = results.outcomes.iter().map(|outcome| outcome.rows as usize).sum();
    if total != rows.num_rows() {
        return Err(broken(format!("it tells of {total} rows and holds {}", rows.num_rows())));
    }
    let mut first = 0;
    for outcome in results.outcomes {
        let (id, length) = (outcome.id, outcome.rows as usize);
        let own = rows.slice(first, length);
        first += length;
        link.answer(id, outcome.into_result(own, &link.redactor));
    }
    Ok(())
}

/// Sends what waits, several groups at once, until the stream ends; why it did.
async fn send_all(
    link: &Link,
    mut waiting: mpsc::UnboundedReceiver<Out>,
    asks: mpsc::Sender<ClientMessage>,
    schema: &SchemaRef,
) -> String {
    let mut beats = tokio::time::interval(BEAT);
    loop {
        let first = tokio::select! {
            biased;
            out = waiting.recv() => out,
            _ = beats.tick() => {
                if asks.send(Ask::Beat(true).into()).await.is_err() {
                    return "the stream broke".to_owned();
                }
                continue;
            }
        };
        let Some(first) = first else { return "nobody uses it".to_owned() };
        let (mut groups, mut cancelled, mut stopped, mut bytes) = (Vec::new(), Vec::new(), Vec::new(), 0);
        let mut take = |out, groups: &mut Vec<Outgoing>| match out {
            Out::Group(group) => {
                bytes += group.bytes;
                groups.push(*group);
                bytes < ENOUGH_BYTES && groups.len() < ENOUGH_GROUPS
            }
            Out::Cancel(id) => {
                cancelled.push(id);
                true
            }
            Out::Stop(id) => {
                stopped.push(id);
                true
            }
        };
        if take(first, &mut groups) {
            // Groups of one item come in swarms.
            tokio::task::yield_now().await;
            while let Ok(out) = waiting.try_recv() {
                if !take(out, &mut groups) {
                    break;
                }
            }
        }
        for message in messages(link, groups, schema) {
            if asks.send(Ask::Groups(message).into()).await.is_err() {
                return "the stream broke".to_owned();
            }
        }
        for (ids, begun_go_on) in [(stopped, true), (cancelled, false)] {
            if !ids.is_empty() && asks.send(Ask::Cancel(Cancel { ids, begun_go_on }).into()).await.is_err() {
                return "the stream broke".to_owned();
            }
        }
    }
}

/// The messages that carry these groups, noted as sent: one, unless it would be too large.
fn messages(link: &Link, groups: Vec<Outgoing>, schema: &SchemaRef) -> Vec<Groups> {
    if groups.is_empty() {
        return Vec::new();
    }
    let batches: Vec<RecordBatch> = groups.iter().map(|group| group.columns.clone()).collect();
    let failure = match pack(schema, &batches) {
        Ok(rows) if rows.len() <= ROWS_BYTES => {
            let mut pending = link.pending.lock();
            for group in &groups {
                if let Some(pending) = pending.as_mut().and_then(|pending| pending.get_mut(&group.id)) {
                    pending.sent = true;
                }
            }
            return vec![Groups { heads: groups.into_iter().map(head).collect(), rows }];
        }
        Ok(_) => Failure::fixed(FailureCode::TooLarge, "the group is larger than an executor takes (56 MiB)"),
        Err(error) => Failure::received(FailureCode::BadInput, &format!("the group cannot be sent: {error}")),
    };
    if let [group] = groups.as_slice() {
        link.answer(group.id, Err(failure.retryable(false).sent(Sent::Never)));
        return Vec::new();
    }
    groups.into_iter().flat_map(|group| messages(link, vec![group], schema)).collect()
}

fn head(group: Outgoing) -> GroupHead {
    let left = group.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    let head = GroupHead {
        id: group.id,
        rows: u32::try_from(group.columns.num_rows()).unwrap_or(u32::MAX),
        attempt: group.attempt,
        time_us: left.map(|left| u64::try_from(left.as_micros()).unwrap_or(u64::MAX)),
        ..GroupHead::default()
    };
    match group.ids {
        ItemIds::Range { file, rows } => GroupHead { file, first_row: rows.start, ..head },
        ItemIds::Columns { file, row } => {
            GroupHead { item_files: file.values().to_vec(), item_rows: row.values().to_vec(), ..head }
        }
    }
}
