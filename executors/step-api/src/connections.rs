//! Connections by name: their settings, and the clients that a process keeps for them.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::OnceCell;

use crate::{Failure, FailureCode, Redactor, Secret, SecretRef};

/// Where a step finds connections. The engine implements it over the configuration; plans carry names only.
pub trait Connections: std::fmt::Debug + Send + Sync {
    /// The settings of one connection.
    ///
    /// # Errors
    /// [`FailureCode::Setup`] if there is none of that name.
    fn settings(&self, name: &str) -> Result<Arc<ConnectionSettings>, Failure>;

    /// Resolves a secret; callers go through [`crate::StepContext::secret`], which also plants it in the redactor.
    ///
    /// # Errors
    /// [`FailureCode::Setup`], naming where the secret should have been.
    fn resolve(&self, reference: &SecretRef) -> Result<Secret, Failure> {
        reference.read()
    }
}

/// The settings of one connection, as the configuration holds them: secrets are references.
#[derive(Clone)]
pub struct ConnectionSettings {
    /// The connection's name.
    pub name: Arc<str>,
    /// Its settings, which the step kind that uses it reads into its own type.
    pub options: Value,
}

impl std::fmt::Debug for ConnectionSettings {
    // The options hold no secrets by rule; addresses are nobody's business in a debug print either.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ConnectionSettings({})", self.name)
    }
}

impl ConnectionSettings {
    /// Reads the options into the type that the step kind expects, which refuses unknown keys.
    ///
    /// # Errors
    /// [`FailureCode::Setup`] that names the connection and what is wrong with which key.
    pub fn parse<T: DeserializeOwned>(&self, redactor: &Redactor) -> Result<T, Failure> {
        T::deserialize(&self.options).map_err(|error| {
            Failure::new(FailureCode::Setup, format!("connection `{}`: {error}", self.name), redactor)
                .sent(crate::Sent::Never)
        })
    }
}

/// Connections held in a map: for tools and tests, and for an engine that reads its configuration once.
#[derive(Debug, Default, Clone)]
pub struct StaticConnections(HashMap<String, Arc<ConnectionSettings>>);

impl StaticConnections {
    /// Adds one connection.
    #[must_use]
    pub fn with(mut self, name: &str, options: Value) -> Self {
        let settings = ConnectionSettings { name: Arc::from(name), options };
        self.0.insert(name.to_owned(), Arc::new(settings));
        self
    }
}

impl Connections for StaticConnections {
    fn settings(&self, name: &str) -> Result<Arc<ConnectionSettings>, Failure> {
        self.0.get(name).cloned().ok_or_else(|| {
            let mut known: Vec<_> = self.0.keys().map(String::as_str).collect();
            known.sort_unstable();
            let known = if known.is_empty() { "there are none".to_owned() } else { known.join(", ") };
            Failure::named(FailureCode::Setup, format!("there is no connection `{name}` (known: {known})"))
                .sent(crate::Sent::Never)
        })
    }
}

/// One client: its type, whose it is, and of which connection.
type ClientKey = (TypeId, Arc<str>, String);

/// A client, once it is made.
type Cell = Arc<OnceCell<Arc<dyn Any + Send + Sync>>>;

/// Clients that a process keeps, one per type, tenant and connection, each made once.
#[derive(Default)]
pub struct SharedClients(Mutex<HashMap<ClientKey, Cell>>);

impl std::fmt::Debug for SharedClients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SharedClients({})", self.0.lock().len())
    }
}

impl SharedClients {
    /// The client, made by `init` if there is none yet. Callers that come meanwhile wait for the first; if it fails,
    /// the next one tries.
    ///
    /// # Errors
    /// Those of `init`.
    pub async fn get_or_init<T, F>(
        &self,
        tenant: &Arc<str>,
        name: &str,
        init: impl FnOnce() -> F + Send,
    ) -> Result<Arc<T>, Failure>
    where
        T: Any + Send + Sync,
        F: Future<Output = Result<T, Failure>> + Send,
    {
        let cell = {
            let mut map = self.0.lock();
            map.entry((TypeId::of::<T>(), tenant.clone(), name.to_owned())).or_default().clone()
        };
        let client = cell
            .get_or_try_init(|| async {
                let made: Arc<dyn Any + Send + Sync> = Arc::new(init().await?);
                Ok::<_, Failure>(made)
            })
            .await?;
        // The key holds the type, so the cast cannot miss.
        client
            .clone()
            .downcast::<T>()
            .map_err(|_| Failure::fixed(FailureCode::Internal, "a shared client has the wrong type"))
    }

    /// Forgets a connection's clients, so that the next step makes them anew from changed settings. Steps that hold
    /// one keep it until they end.
    pub fn forget(&self, name: &str) {
        self.0.lock().retain(|(_, _, client), _| client != name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StepContext;
    use serde::Deserialize;
    use serde_json::json;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Settings {
        url: String,
    }

    #[test]
    fn wrong_names_and_settings_are_named() {
        let mut context = StepContext::new("run", "step", "tenant");
        let connections = StaticConnections::default()
            .with("good", json!({"url": "http://x"}))
            .with("bad", json!({"url": "http://x", "port": 1}));
        context.connections = Arc::new(connections);
        assert_eq!(context.connection::<Settings>("good").unwrap().url, "http://x");
        let unknown = context.connection::<Settings>("nope").unwrap_err();
        assert!(unknown.message().contains("`nope`") && unknown.message().contains("bad, good"), "{unknown}");
        let bad = context.connection::<Settings>("bad").unwrap_err();
        assert!(bad.message().contains("`bad`") && bad.message().contains("port"), "{bad}");
        assert_eq!(bad.code(), FailureCode::Setup);
    }

    #[tokio::test]
    async fn a_client_is_made_once_and_again_only_after_a_failure_or_forgetting() {
        let context = StepContext::new("run", "step", "tenant");
        let made = &AtomicUsize::new(0);
        let get = |fail: bool| {
            context.client::<String, _>("db", move || {
                made.fetch_add(1, Ordering::Relaxed);
                async move {
                    tokio::task::yield_now().await;
                    if fail { Err(Failure::fixed(FailureCode::Connect, "no")) } else { Ok("client".to_owned()) }
                }
            })
        };
        assert!(get(true).await.is_err());
        let (a, b) = futures::join!(get(false), get(false));
        assert!(Arc::ptr_eq(&a.unwrap(), &b.unwrap()));
        assert_eq!(made.load(Ordering::Relaxed), 2);
        context.clients.forget("db");
        get(false).await.unwrap();
        assert_eq!(made.load(Ordering::Relaxed), 3);
        let mut other = context.clone();
        other.tenant = Arc::from("other");
        let theirs = other.client::<String, _>("db", || async { Ok("theirs".to_owned()) }).await.unwrap();
        assert_eq!(*theirs, "theirs");
    }
}
