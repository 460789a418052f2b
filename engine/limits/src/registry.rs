//! The limits of all connections of a process.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::{ConnectionLimits, LimitError, LimitSettings, LimitState};

/// Limits by tenant and connection, so that all steps of the process share them. Clones share the registry.
#[derive(Debug, Clone, Default)]
pub struct LimitRegistry(Arc<Mutex<HashMap<Key, ConnectionLimits>>>);

/// Whose connection, and its name.
type Key = (Arc<str>, Arc<str>);

impl LimitRegistry {
    /// The limits of a tenant's connection, made at the first call. Settings that changed since take the place of the
    /// old ones: steps that hold those keep them until they end, and the new bucket starts empty.
    ///
    /// # Errors
    /// Settings that make no sense; what was there stays.
    pub fn get(&self, tenant: &str, name: &str, settings: &LimitSettings) -> Result<ConnectionLimits, LimitError> {
        let key = (Arc::from(tenant), Arc::from(name));
        let mut map = self.0.lock();
        if let Some(limits) = map.get(&key).filter(|limits| limits.settings() == settings) {
            return Ok(limits.clone());
        }
        let limits = ConnectionLimits::new(name, settings.clone())?;
        map.insert(key, limits.clone());
        Ok(limits)
    }

    /// Where all of them stand: tenant, connection, state, in the order of the names.
    pub fn states(&self) -> Vec<(Arc<str>, Arc<str>, LimitState)> {
        let all: Vec<_> = self.0.lock().iter().map(|(key, limits)| (key.clone(), limits.clone())).collect();
        let mut states: Vec<_> =
            all.into_iter().map(|((tenant, name), limits)| (tenant, name, limits.state())).collect();
        states.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
        states
    }
}
