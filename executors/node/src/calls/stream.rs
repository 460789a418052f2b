//! One client's stream: opens the step, attempts its groups, answers every one of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::array::{RecordBatch, UInt32Array, UInt64Array};
use rowmill_step::{BatchReply, Failure, FailureCode, ItemBatch, ItemIds, ItemKeys, KeyDeriver, Sent, attempt};
use rowmill_wire::calls::{
    Ask, ClientMessage, ExecutorMessage, FailureMessage, GroupHead, Groups, OpenStep, Opened, Refused, Tell, unpack,
};
use rowmill_wire::jobs::BEAT;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::answers::{Answer, ENOUGH_ANSWERS, ENOUGH_BYTES, bytes_of, messages};
use super::warm::InUse;
use super::{Calls, Counted};

/// A client that says nothing for so long is gone: one that was stopped keeps its connection open.
const SILENCE: Duration = Duration::from_secs(60);

type Out = mpsc::Sender<Result<ExecutorMessage, Status>>;

/// The client is gone, or does not keep to the protocol.
struct Gone;

async fn tell(out: &Out, tell: Tell) -> Result<(), Gone> {
    match tokio::time::timeout(SILENCE, out.send(Ok(tell.into()))).await {
        Ok(Ok(())) => Ok(()),
        _ => Err(Gone),
    }
}

pub(super) async fn serve(calls: &Arc<Calls>, mut asks: Streaming<ClientMessage>, out: Out) {
    let open = match tokio::time::timeout(SILENCE, asks.message()).await {
        Ok(Ok(Some(ClientMessage { ask: Some(Ask::Open(open)) }))) => open,
        _ => {
            let _ = out.send(Err(Status::invalid_argument("a stream of calls begins with a step to open"))).await;
            return;
        }
    };
    if calls.draining.is_cancelled() {
        let _ = tell(&out, Tell::Refused(Refused { failure: None, draining: true })).await;
        return;
    }
    let opened = tokio::select! {
        opened = open_step(calls, &open) => opened,
        Gone = beat(&out) => return,
    };
    let step = match opened {
        Ok(step) => step,
        Err(failure) => {
            tracing::warn!(step = open.step, "not opened: {}", failure.message());
            let failure = Some(FailureMessage::from(&failure));
            let _ = tell(&out, Tell::Refused(Refused { failure, draining: false })).await;
            return;
        }
    };
    let (slots, most) = calls.room(&open.class, open.in_flight);
    if tell(&out, Tell::Opened(Opened { most })).await.is_err() {
        return;
    }
    let serving = Serving {
        keys: Arc::new(KeyDeriver::new(&open.run, &open.step)),
        calls: Arc::clone(calls),
        step: Arc::new(step),
        slots,
        most: most as usize,
        running: JoinSet::new(),
        cancels: HashMap::new(),
        out,
    };
    let _gone = serving.run(asks).await;
}

/// Says that this process lives, while something takes its time.
async fn beat(out: &Out) -> Gone {
    loop {
        tokio::time::sleep(BEAT).await;
        if let Err(gone) = tell(out, Tell::Beat(0)).await {
            return gone;
        }
    }
}

async fn open_step(calls: &Arc<Calls>, open: &OpenStep) -> Result<InUse, Failure> {
    let refuse = |message: String| Failure::received(FailureCode::Setup, &message);
    if !calls.name.serves(&open.class) {
        return Err(refuse(format!("this executor does not serve class {}", open.class)));
    }
    let Some(builder) = calls.builder.clone() else {
        return Err(Failure::fixed(FailureCode::Setup, "this executor runs SQL only"));
    };
    let (warm, wanted) = (Arc::clone(&calls.warm), open.clone());
    let built = tokio::task::spawn_blocking(move || warm.open(&wanted, builder.as_ref())).await;
    let step = built.map_err(|error| refuse(format!("building the step failed: {error}")))??;
    // A secret that is not here is found now and not with the first item. What may pass is for the attempts to meet.
    match step.step.session().await {
        Ok(session) => step.step.keep(session),
        Err(failure) if failure.code() == FailureCode::Setup => return Err(failure),
        Err(failure) => tracing::debug!(step = open.step, "the first session: {}", failure.message()),
    }
    Ok(step)
}

/// A step that is served.
struct Serving {
    calls: Arc<Calls>,
    step: Arc<InUse>,
    keys: Arc<KeyDeriver>,
    slots: Option<Arc<Semaphore>>,
    most: usize,
    running: JoinSet<Answer>,
    /// Of the groups that run: no further item is begun; nothing goes on.
    cancels: HashMap<u64, (CancellationToken, CancellationToken)>,
    out: Out,
}

impl Serving {
    async fn run(mut self, mut asks: Streaming<ClientMessage>) -> Result<(), Gone> {
        let mut beats = tokio::time::interval(BEAT);
        let (mut heard, mut told) = (Instant::now(), false);
        let calls = Arc::clone(&self.calls);
        loop {
            tokio::select! {
                message = asks.message() => {
                    heard = Instant::now();
                    match message {
                        Ok(Some(ClientMessage { ask: Some(ask) })) => self.hear(ask).await?,
                        Ok(Some(_)) => {}
                        // It has what it wanted, or is gone; what still runs ends with this.
                        Ok(None) | Err(_) => return Ok(()),
                    }
                }
                Some(ended) = self.running.join_next() => {
                    let Ok(answer) = ended else {
                        // An attempt's own panics are caught; this is one of ours, and its group has no answer.
                        let _ = self.out.send(Err(Status::internal("an attempt ended without an answer"))).await;
                        return Err(Gone);
                    };
                    self.answer(answer).await?;
                }
                _ = beats.tick() => {
                    if heard.elapsed() > SILENCE {
                        tracing::warn!("a client was silent for {} s and is given up", SILENCE.as_secs());
                        return Err(Gone);
                    }
                    tell(&self.out, Tell::Beat(u32::try_from(self.running.len()).unwrap_or(u32::MAX))).await?;
                }
                () = calls.draining.cancelled(), if !told => {
                    told = true;
                    tell(&self.out, Tell::Draining(true)).await?;
                }
            }
        }
    }

    async fn hear(&mut self, ask: Ask) -> Result<(), Gone> {
        match ask {
            Ask::Groups(groups) => self.take(groups).await,
            Ask::Cancel(cancel) => {
                for id in cancel.ids {
                    let Some((stop, end)) = self.cancels.get(&id) else { continue };
                    stop.cancel();
                    if !cancel.begun_go_on {
                        end.cancel();
                    }
                }
                Ok(())
            }
            Ask::Beat(_) => Ok(()),
            Ask::Open(_) => self.broken("a stream of calls has one step").await,
        }
    }

    async fn broken(&self, why: &str) -> Result<(), Gone> {
        let _ = self.out.send(Err(Status::invalid_argument(why))).await;
        Err(Gone)
    }

    async fn take(&mut self, groups: Groups) -> Result<(), Gone> {
        let shape = &self.step.step.shape;
        let rows = match unpack(&groups.rows, &shape.input) {
            Ok(rows) => rows,
            Err(error) => return self.broken(&format!("rows that cannot be read: {error}")).await,
        };
        let total: usize = groups.heads.iter().map(|head| head.rows as usize).sum();
        if total != rows.num_rows() || self.running.len() + groups.heads.len() > self.most {
            return self.broken("groups that do not fit their rows, or more of them than were asked for").await;
        }
        let mut first = 0;
        for head in groups.heads {
            let length = head.rows as usize;
            let columns = rows.slice(first, length);
            first += length;
            let Some(ids) = ids_of(&head) else { return self.broken("a group without its items' names").await };
            self.begin(&head, columns, ids);
        }
        Ok(())
    }

    fn begin(&mut self, head: &GroupHead, columns: RecordBatch, ids: ItemIds) {
        let (stop, cancel) = (self.calls.over.child_token(), self.calls.over.child_token());
        self.cancels.insert(head.id, (stop.clone(), cancel.clone()));
        let batch = ItemBatch {
            columns,
            keys: ItemKeys::new(ids, Arc::clone(&self.keys)),
            attempt: head.attempt,
            deadline: head.time_us.map(|time| Instant::now() + Duration::from_micros(time)),
            stop,
            cancel,
            place: None,
        };
        let (id, step, slots) = (head.id, Arc::clone(&self.step), self.slots.clone());
        let counted = Counted::new(&self.calls, |calls| &calls.groups);
        let calls = Arc::clone(&self.calls);
        self.running.spawn(async move {
            let result = attempt_one(&step, slots, batch).await;
            drop(counted);
            let result = result.map_err(|failure| match failure.code() {
                // Taken back from an executor that leaves: another one makes the attempt, if it may be made again.
                FailureCode::Cancelled if calls.over.is_cancelled() => failure.retryable(true).lost(),
                FailureCode::Setup => failure.at(&format!("executor {}", calls.name)).reported_as("RM0711"),
                _ => failure,
            });
            (id, result)
        });
    }

    /// Sends an answer, and with it what else is ready.
    async fn answer(&mut self, first: Answer) -> Result<(), Gone> {
        let mut bytes = bytes_of(&first);
        let mut answers = vec![first];
        // Attempts that end together are answered together.
        tokio::task::yield_now().await;
        while bytes < ENOUGH_BYTES && answers.len() < ENOUGH_ANSWERS {
            let Some(Ok(answer)) = self.running.try_join_next() else { break };
            bytes += bytes_of(&answer);
            answers.push(answer);
        }
        for (id, _) in &answers {
            self.cancels.remove(id);
        }
        for results in messages(answers, &self.step.step.shape.output) {
            tell(&self.out, Tell::Results(results)).await?;
        }
        Ok(())
    }
}

/// The items of a group; `None` where the lists are not of its length.
fn ids_of(head: &GroupHead) -> Option<ItemIds> {
    let rows = head.rows as usize;
    if head.item_files.is_empty() && head.item_rows.is_empty() {
        let end = head.first_row.checked_add(u64::from(head.rows))?;
        return Some(ItemIds::Range { file: head.file, rows: head.first_row..end });
    }
    (head.item_files.len() == rows && head.item_rows.len() == rows).then(|| ItemIds::Columns {
        file: UInt32Array::from(head.item_files.clone()),
        row: UInt64Array::from(head.item_rows.clone()),
    })
}

/// One attempt: a slot where the class has them, a session, the step.
async fn attempt_one(step: &InUse, slots: Option<Arc<Semaphore>>, batch: ItemBatch) -> Result<BatchReply, Failure> {
    let step = &step.step;
    let stop = batch.stop.clone();
    let not_begun = || Failure::fixed(FailureCode::Cancelled, "the attempt was not begun").sent(Sent::Never);
    let _slot = match slots {
        None => None,
        Some(slots) => tokio::select! {
            biased;
            () = stop.cancelled() => return Err(not_begun()),
            slot = slots.acquire_owned() => slot.ok(),
        },
    };
    let mut session = tokio::select! {
        biased;
        () = stop.cancelled() => return Err(not_begun()),
        session = step.session() => session?,
    };
    let made = attempt(session.as_mut(), batch, &step.context, &step.shape, step.cardinality).await;
    if made.usable {
        step.keep(session);
    }
    made.result
}
