//! What a step gets from the engine: names, connections, secrets, memory, cancellation.

use std::any::Any;
use std::future::Future;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::{Connections, Failure, FailureCode, KeyDeriver, Redactor, Secret, SecretRef, SharedClients};

/// What a step gets from the engine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct StepContext {
    /// The run's id.
    pub run: Arc<str>,
    /// The step's name in the workflow.
    pub step: Arc<str>,
    /// The tenant on whose behalf it runs.
    pub tenant: Arc<str>,
    /// Settings of connections by name.
    pub connections: Arc<dyn Connections>,
    /// Clients that all steps of the process share.
    pub clients: Arc<SharedClients>,
    /// Takes secrets out of text.
    pub redactor: Redactor,
    /// Cancelled when the run is.
    pub cancel: CancellationToken,
    /// Memory for buffers.
    pub memory: Arc<dyn Reserve>,
    /// The step's span; sessions that start tasks instrument them with it.
    pub span: tracing::Span,
}

impl StepContext {
    /// A context with nothing but names: no connections, memory without limit, a fresh cancel token.
    pub fn new(run: &str, step: &str, tenant: &str) -> Self {
        Self {
            run: Arc::from(run),
            step: Arc::from(step),
            tenant: Arc::from(tenant),
            connections: Arc::new(crate::StaticConnections::default()),
            clients: Arc::default(),
            redactor: Redactor::new(),
            cancel: CancellationToken::new(),
            memory: Arc::new(NoLimit),
            span: tracing::Span::none(),
        }
    }

    /// The settings of a connection, as the step kind that uses it reads them.
    ///
    /// # Errors
    /// [`FailureCode::Setup`]: there is no such connection, or its settings are not what the step kind expects.
    pub fn connection<T: DeserializeOwned>(&self, name: &str) -> Result<T, Failure> {
        self.connections.settings(name)?.parse(&self.redactor)
    }

    /// Resolves a secret and plants it in the redactor before anybody sees it.
    ///
    /// # Errors
    /// [`FailureCode::Setup`], naming where the secret should have been.
    pub fn secret(&self, reference: &SecretRef) -> Result<Secret, Failure> {
        let secret = self.connections.resolve(reference)?;
        self.redactor.plant(&secret);
        Ok(secret)
    }

    /// The client of a connection, made once per process by `init` and shared by every step that names it.
    ///
    /// # Errors
    /// Those of `init`; the next caller tries again.
    pub async fn client<T, F>(&self, name: &str, init: impl FnOnce() -> F + Send) -> Result<Arc<T>, Failure>
    where
        T: Any + Send + Sync,
        F: Future<Output = Result<T, Failure>> + Send,
    {
        // Tenants never share a client: its credentials may be theirs.
        self.clients.get_or_init(&self.tenant, name, init).await
    }

    /// Makes the keys of this step's items.
    pub fn keys(&self) -> KeyDeriver {
        KeyDeriver::new(&self.run, &self.step)
    }

    /// A failure whose text may hold anything; see [`Failure::new`].
    pub fn failure(&self, code: FailureCode, message: impl AsRef<str>) -> Failure {
        Failure::new(code, message, &self.redactor)
    }
}

/// Memory that buffers must be taken from.
pub trait Reserve: std::fmt::Debug + Send + Sync {
    /// Takes `bytes`; false if there is no room.
    fn try_grow(&self, bytes: usize) -> bool;
    /// Gives `bytes` back.
    fn shrink(&self, bytes: usize);
}

/// Memory without a limit, for tests and tools.
#[derive(Debug, Clone, Copy)]
pub struct NoLimit;

impl Reserve for NoLimit {
    fn try_grow(&self, _bytes: usize) -> bool {
        true
    }

    fn shrink(&self, _bytes: usize) {}
}

/// Bytes that were taken and go back when this is dropped.
#[derive(Debug)]
pub struct Reservation {
    from: Arc<dyn Reserve>,
    bytes: usize,
}

impl Reservation {
    /// A reservation of nothing.
    pub fn new(from: Arc<dyn Reserve>) -> Self {
        Self { from, bytes: 0 }
    }

    /// Takes `bytes` more.
    ///
    /// # Errors
    /// [`FailureCode::Exhausted`] if there is no room; what was taken before stays.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Failure> {
        if !self.from.try_grow(bytes) {
            return Err(Failure::fixed(FailureCode::Exhausted, "there is no memory left for the step's buffers"));
        }
        self.bytes += bytes;
        Ok(())
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Gives everything back.
    pub fn free(&mut self) {
        self.from.shrink(std::mem::take(&mut self.bytes));
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.free();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Debug)]
    struct Pool(AtomicUsize);

    impl Reserve for Pool {
        fn try_grow(&self, bytes: usize) -> bool {
            self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| free.checked_sub(bytes)).is_ok()
        }

        fn shrink(&self, bytes: usize) {
            self.0.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    #[test]
    fn what_is_taken_goes_back() {
        let pool = Arc::new(Pool(AtomicUsize::new(100)));
        let mut held = Reservation::new(pool.clone());
        held.grow(60).unwrap();
        assert_eq!(held.grow(60).unwrap_err().code(), FailureCode::Exhausted);
        assert_eq!(held.bytes(), 60);
        drop(held);
        assert_eq!(pool.0.load(Ordering::Relaxed), 100);
    }
}
