//! The executors of one step of one run: who they are, streams to them, places for groups.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use datafusion::common::runtime::SpawnedTask;
use parking_lot::Mutex;
use rowmill_cores::ids::ExecutorId;
use rowmill_step::{Failure, FailureCode, Redactor, Sent, StepShape, Whereabouts};
use rowmill_wire::calls::OpenStep;
use rowmill_wire::calls::crew::{Crew as Named, watch};
use rowmill_wire::jobs::BEAT;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::Streaming;

use super::link::{Link, News, Opening, Teller};
use super::members::{Members, Pick, ToOpen};
use crate::reach::{ConnectError, connect};
use crate::submit::Cluster;

/// A scheduler that says nothing for so long is asked anew.
const SILENCE: Duration = Duration::from_secs(4 * BEAT.as_secs());
/// The wait before it is asked anew.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// How long a group may wait for an executor before a warning.
const WARN: Duration = Duration::from_secs(4);
/// How long one waits for an executor where the scheduler never said.
const QUEUE: Duration = Duration::from_secs(300);
/// How long a scheduler that was never heard of is waited for.
const FIRST_ANSWER: Duration = Duration::from_secs(10);

/// What is known of the scheduler.
#[derive(Debug, Clone)]
struct Scheduler {
    /// Why it refuses, if it does.
    refused: Option<String>,
    /// Since when, and why, it gives no answer.
    silent: Option<(Instant, String)>,
    /// Whether it ever answered this process.
    answered: bool,
    /// How long work waits for executors.
    queue_timeout: Duration,
}

#[derive(Debug)]
struct Shared {
    class: String,
    step: String,
    patience: Duration,
    members: Mutex<Members>,
    links: Mutex<HashMap<(ExecutorId, u64), Arc<Link>>>,
    scheduler: Mutex<Scheduler>,
    /// Executors came or went, or a place is free.
    changed: Notify,
    warned: AtomicBool,
}

/// A place at an executor; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) link: Arc<Link>,
    id: ExecutorId,
    stream: u64,
    shared: Arc<Shared>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.shared.members.lock().free(self.id, self.stream);
        self.shared.changed.notify_one();
    }
}

/// The executors of one step of one run.
#[derive(Debug)]
pub(super) struct Crew {
    shared: Arc<Shared>,
    // Everything ends with it.
    _keeper: SpawnedTask<()>,
}

impl Crew {
    pub(super) fn start(cluster: &Cluster, open: OpenStep, shape: StepShape, redactor: Redactor) -> Self {
        let now = Instant::now();
        let shared = Arc::new(Shared {
            class: open.class.clone(),
            step: open.step.clone(),
            patience: cluster.options().patience,
            members: Mutex::new(Members::new(cluster.options().routing, now)),
            links: Mutex::default(),
            scheduler: Mutex::new(Scheduler {
                refused: None,
                silent: Some((now, "it has not answered yet".to_owned())),
                // Another step, or SQL, may have heard of it: it is waited for as one that went.
                answered: cluster.inner.answered.load(Ordering::Relaxed),
                queue_timeout: QUEUE,
            }),
            changed: Notify::new(),
            warned: AtomicBool::new(false),
        });
        let keeper = Keeper { cluster: cluster.clone(), shared: Arc::clone(&shared), open, shape, redactor };
        Self { shared, _keeper: SpawnedTask::spawn(keeper.keep()) }
    }

    /// Waits for a place.
    ///
    /// # Errors
    /// Nobody serves the class in time, or whoever does cannot open the step; the cluster is gone, or refuses.
    pub(super) async fn place(&self, key: u64) -> Result<Arc<Ticket>, Failure> {
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            let now = Instant::now();
            let picked = self.shared.members.lock().pick(key, now);
            let until = match picked {
                Pick::Go(id, stream) => match self.ticket(id, stream) {
                    Some(ticket) => return Ok(ticket),
                    None => continue,
                },
                Pick::Refused(failure) => return Err(failure),
                Pick::Full => None,
                Pick::Nobody(since) => Some(self.wait_until(since, now)?),
            };
            match until {
                None => changed.await,
                Some(until) => {
                    tokio::select! {
                        () = changed => {}
                        () = tokio::time::sleep_until(until) => {}
                    }
                }
            }
        }
    }

    fn ticket(&self, id: ExecutorId, stream: u64) -> Option<Arc<Ticket>> {
        let link = self.shared.links.lock().get(&(id, stream)).cloned();
        match link.filter(|link| link.is_open()) {
            Some(link) => Some(Arc::new(Ticket { link, id, stream, shared: Arc::clone(&self.shared) })),
            None => {
                // It ended a moment ago.
                self.shared.members.lock().ended(id, stream, Instant::now());
                None
            }
        }
    }

    /// Until when to wait where nobody serves the class since `since`.
    fn wait_until(&self, since: Instant, now: Instant) -> Result<Instant, Failure> {
        let Shared { class, step, .. } = self.shared.as_ref();
        let fail = |code, message: String| {
            let failure = Failure::received(FailureCode::Setup, &message).retryable(false);
            Err(failure.sent(Sent::Never).reported_as(code))
        };
        let scheduler = self.shared.scheduler.lock().clone();
        if let Some(why) = scheduler.refused {
            return fail("RM0708", format!("the cluster refuses this process: {why}"));
        }
        let mut ends = vec![since + scheduler.queue_timeout];
        if now >= since + scheduler.queue_timeout {
            let waited = scheduler.queue_timeout.as_secs();
            return fail("RM0707", format!("no executor of class {class} came in {waited} s to make the step's calls"));
        }
        if let Some((silent, why)) = scheduler.silent {
            let patience =
                if scheduler.answered { self.shared.patience } else { self.shared.patience.min(FIRST_ANSWER) };
            let end = silent.max(since) + patience;
            if now >= end {
                let waited = patience.as_secs();
                return fail("RM0709", format!("the cluster gave no sign of life for {waited} s: {why}"));
            }
            ends.push(end);
        }
        if now >= since + WARN {
            if !self.shared.warned.swap(true, Ordering::Relaxed) {
                tracing::warn!(step, "waiting: the cluster has no executor of class {class} that takes the step");
            }
        } else {
            ends.push(since + WARN);
        }
        Ok(ends.into_iter().min().unwrap_or(now))
    }
}

/// Keeps streams to whoever serves the class.
struct Keeper {
    cluster: Cluster,
    shared: Arc<Shared>,
    open: OpenStep,
    shape: StepShape,
    redactor: Redactor,
}

impl Keeper {
    async fn keep(self) {
        let (to, mut news) = mpsc::channel(16);
        let mut streams = JoinSet::new();
        let named = self.named();
        tokio::pin!(named);
        let mut crew: Option<(Arc<str>, Streaming<Named>)> = None;
        loop {
            let due = self.shared.members.lock().next_due();
            let due = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            let to_open = tokio::select! {
                opened = &mut named, if crew.is_none() => {
                    crew = Some(opened);
                    Vec::new()
                }
                message = next(&mut crew), if crew.is_some() => match message {
                    Ok(message) => self.heard(message),
                    Err(why) => {
                        self.silent(why);
                        if let Some((address, _)) = crew.take() {
                            self.cluster.lose(&address);
                        }
                        named.set(self.named());
                        Vec::new()
                    }
                },
                Some((id, stream, told)) = news.recv() => {
                    self.told(id, stream, told);
                    Vec::new()
                }
                Some(_) = streams.join_next(), if !streams.is_empty() => Vec::new(),
                () = due => self.shared.members.lock().due(Instant::now()),
            };
            for open in to_open {
                let teller = Teller { id: open.id, stream: open.stream, to: to.clone() };
                streams.spawn(self.stream(open, teller));
            }
        }
    }

    /// One stream to one executor, from its beginning to its end.
    fn stream(&self, to: ToOpen, teller: Teller) -> impl Future<Output = ()> + Send + 'static {
        let opening = Opening {
            at: Whereabouts { process: to.name, host: host_of(&to.address).to_owned() },
            open: self.open.clone(),
            shape: self.shape.clone(),
            redactor: self.redactor.clone(),
        };
        let cluster = self.cluster.clone();
        async move {
            match connect(cluster.options(), &to.address).await {
                Ok(channel) => opening.run(channel, teller).await,
                Err(error) => teller.tell(News::Ended(error.to_string())).await,
            }
        }
    }

    /// Asks the scheduler, until it answers.
    async fn named(&self) -> (Arc<str>, Streaming<Named>) {
        loop {
            let asked = self.cluster.ask(|channel| watch(channel, &self.shared.class)).await;
            match asked.map_err(ConnectError::from) {
                Ok(crew) => return crew,
                Err(ConnectError::Refused(why) | ConnectError::Insecure(why)) => {
                    self.shared.scheduler.lock().refused = Some(why);
                    self.shared.changed.notify_waiters();
                }
                Err(ConnectError::Silent(why)) => self.silent(why),
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    fn silent(&self, why: String) {
        let mut scheduler = self.shared.scheduler.lock();
        let since = scheduler.silent.take().map_or_else(Instant::now, |(since, _)| since);
        scheduler.silent = Some((since, why));
    }

    fn heard(&self, crew: Named) -> Vec<ToOpen> {
        {
            let mut scheduler = self.shared.scheduler.lock();
            scheduler.refused = None;
            scheduler.silent = None;
            scheduler.answered = true;
            scheduler.queue_timeout = Duration::from_millis(crew.queue_timeout_ms);
        }
        let open = self.shared.members.lock().listed(&crew.members, Instant::now());
        self.shared.changed.notify_waiters();
        open
    }

    fn told(&self, id: ExecutorId, stream: u64, news: News) {
        let (step, now) = (&self.shared.step, Instant::now());
        let mut members = self.shared.members.lock();
        match news {
            News::Opened(link, most) => {
                self.shared.links.lock().insert((id, stream), link);
                members.opened(id, stream, most, now);
                self.shared.warned.store(false, Ordering::Relaxed);
            }
            News::Refused(failure) => {
                let others = members.refused(id, stream, failure.clone(), now);
                if others {
                    tracing::warn!(step, "an executor does not take the step, others do: {}", failure.message());
                }
            }
            News::Leaving => members.leaving(id, stream, now),
            News::Ended(why) => {
                tracing::debug!(step, "a stream to an executor ended: {why}");
                self.shared.links.lock().remove(&(id, stream));
                members.ended(id, stream, now);
            }
        }
        drop(members);
        self.shared.changed.notify_waiters();
    }
}

/// The machine of an address `host:port`.
fn host_of(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

async fn next(crew: &mut Option<(Arc<str>, Streaming<Named>)>) -> Result<Named, String> {
    let Some((_, crew)) = crew else { return std::future::pending().await };
    match tokio::time::timeout(SILENCE, crew.message()).await {
        Ok(Ok(Some(message))) => Ok(message),
        Ok(Ok(None)) => Err("the scheduler stopped".to_owned()),
        Ok(Err(status)) => Err(status.message().to_owned()),
        Err(_) => Err(format!("nothing was heard for {} s", SILENCE.as_secs())),
    }
}
