//! Writes the records of the effect log to the run's store, many at a time.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rowmill_step::{Failure, FailureCode, Redactor, Sent};
use rowmill_store::{ChunkEffects, ChunkId, EffectBatch, EffectRecord, Fence, RunStore};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

/// How long results wait for company before they are written.
pub(crate) const FLUSH: Duration = Duration::from_millis(100);
/// Bytes that are written at once without waiting.
const FLUSH_BYTES: usize = 8 << 20;
/// Bytes that wait for a slow store; beyond them no calls are begun.
const QUEUED_BYTES: usize = 64 << 20;
/// How long a store that says "later" is asked again.
const PATIENCE: Duration = Duration::from_secs(60);

/// Writes the records of all chunks of a run to its store, many at a time. Its task writes what is left and ends when
/// the writer is closed or dropped.
#[derive(Debug)]
pub struct EffectWriter {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: Arc<dyn RunStore>,
    fence: Fence,
    queue: Mutex<Queue>,
    /// There is something to write.
    wake: Notify,
    /// Something was written.
    written: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    records: Vec<EffectRecord>,
    bytes: usize,
    /// Bytes that are on their way to the store.
    writing: usize,
    /// Those who wait until everything up to here is on disk.
    waiters: Vec<oneshot::Sender<Result<(), Failure>>>,
    /// Why nothing is written any more.
    broken: Option<Failure>,
    closed: bool,
}

impl EffectWriter {
    /// A writer with its task.
    #[expect(clippy::disallowed_methods, reason = "the task writes what is left and ends when the writer is dropped")]
    pub fn start(store: Arc<dyn RunStore>, fence: Fence) -> Arc<Self> {
        let shared =
            Arc::new(Shared { store, fence, queue: Mutex::default(), wake: Notify::new(), written: Notify::new() });
        tokio::spawn(Shared::work(Arc::clone(&shared)));
        Arc::new(Self { shared })
    }

    /// Writes what is left and ends the task. Nothing is taken after that.
    ///
    /// # Errors
    /// When the store does not take it.
    pub async fn close(&self) -> Result<(), Failure> {
        let result = self.flush().await;
        self.shared.end();
        result
    }

    /// Waits until everything that was recorded is on disk.
    ///
    /// # Errors
    /// When the store does not take it.
    pub async fn flush(&self) -> Result<(), Failure> {
        self.write(Vec::new()).await
    }

    /// What the store holds of a chunk.
    pub(crate) async fn effects(&self, chunk: ChunkId) -> Result<ChunkEffects, rowmill_store::Error> {
        self.shared.store.effects(self.shared.fence.run, chunk).await
    }

    /// Adds records and waits until they are on disk.
    pub(crate) async fn write(&self, records: Vec<EffectRecord>) -> Result<(), Failure> {
        let done = {
            let mut queue = self.shared.queue.lock();
            queue.check()?;
            let (sender, done) = oneshot::channel();
            queue.add(records);
            queue.waiters.push(sender);
            done
        };
        self.shared.wake.notify_one();
        done.await.unwrap_or_else(|_gone| Err(closed()))
    }

    /// Adds records that are written within [`FLUSH`].
    pub(crate) fn record(&self, records: Vec<EffectRecord>) -> Result<(), Failure> {
        let mut queue = self.shared.queue.lock();
        queue.check()?;
        let first = queue.records.is_empty();
        queue.add(records);
        let full = queue.bytes >= FLUSH_BYTES;
        drop(queue);
        if first || full {
            self.shared.wake.notify_one();
        }
        Ok(())
    }

    /// Waits while more is queued than a store that keeps up would leave.
    pub(crate) async fn room(&self) {
        loop {
            let written = self.shared.written.notified();
            tokio::pin!(written);
            written.as_mut().enable();
            {
                let queue = self.shared.queue.lock();
                if queue.bytes + queue.writing < QUEUED_BYTES || queue.check().is_err() {
                    return;
                }
            }
            written.await;
        }
    }
}

impl Drop for EffectWriter {
    fn drop(&mut self) {
        self.shared.end();
    }
}

impl Shared {
    fn end(&self) {
        self.queue.lock().closed = true;
        self.wake.notify_one();
    }

    async fn work(self: Arc<Self>) {
        loop {
            self.wake.notified().await;
            // Results may wait for company; whoever waits for a record may not.
            let flush_at = Instant::now() + FLUSH;
            while !self.queue.lock().hurries() {
                tokio::select! {
                    () = tokio::time::sleep_until(flush_at) => break,
                    () = self.wake.notified() => {}
                }
            }
            let (records, waiters, closed) = {
                let mut queue = self.queue.lock();
                queue.writing = std::mem::take(&mut queue.bytes);
                (std::mem::take(&mut queue.records), std::mem::take(&mut queue.waiters), queue.closed)
            };
            let result = self.append(records).await;
            {
                let mut queue = self.queue.lock();
                queue.writing = 0;
                if let Err(failure) = &result {
                    queue.broken.get_or_insert_with(|| failure.clone());
                }
            }
            self.written.notify_waiters();
            for waiter in waiters {
                let _ = waiter.send(result.clone());
            }
            if closed {
                return;
            }
        }
    }

    /// One flush, repeated with the same identity while the store says that another try can help.
    async fn append(&self, records: Vec<EffectRecord>) -> Result<(), Failure> {
        // What was recorded before a flush that failed is lost, so nothing after it may count as written.
        if let Some(broken) = &self.queue.lock().broken {
            return Err(broken.clone());
        }
        if records.is_empty() {
            return Ok(());
        }
        let batch = EffectBatch::new(records);
        let mut wait = Duration::from_millis(50);
        let started = Instant::now();
        loop {
            match self.store.append_effects(&self.fence, &batch).await {
                Ok(_appended) => return Ok(()),
                Err(error) if error.is_retryable() && started.elapsed() < PATIENCE => {
                    tracing::warn!("the effect log could not be written and is tried again: {error}");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(Duration::from_secs(2));
                }
                Err(error) => {
                    let message = format!("the effect log cannot be written: {error}");
                    // The store's errors never hold secrets.
                    return Err(Failure::new(FailureCode::Setup, message, &Redactor::new()).sent(Sent::Never));
                }
            }
        }
    }
}

impl Queue {
    fn add(&mut self, records: Vec<EffectRecord>) {
        self.bytes += records.iter().map(|record| record.bytes.len() + 32).sum::<usize>();
        self.records.extend(records);
    }

    fn hurries(&self) -> bool {
        !self.waiters.is_empty() || self.bytes >= FLUSH_BYTES || self.closed
    }

    fn check(&self) -> Result<(), Failure> {
        match &self.broken {
            Some(broken) => Err(broken.clone()),
            None if self.closed => Err(closed()),
            None => Ok(()),
        }
    }
}

fn closed() -> Failure {
    Failure::fixed(FailureCode::Cancelled, "the effect log was closed").sent(Sent::Never)
}
