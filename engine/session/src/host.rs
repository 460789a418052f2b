//! What a session brings to steps that are not SQL: their kinds, connections and limits.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use rowmill_engine::calls::{CacheOptions, Caches, Host, RedisUrl};
use rowmill_gpu_plan::{GpuContext, GpuOptions};
use rowmill_limits::{BreakerSettings, LimitSettings};
use rowmill_spec::config::{Connection, ConnectionKind};
use rowmill_step::{SecretRef, StaticConnections, StepFactory};

/// Every step kind that Rowmill has, Python functions with this interpreter, and with a GPU of its own.
pub fn kinds(python: &str) -> Vec<Arc<dyn StepFactory>> {
    kinds_with(python, &GpuContext::new(GpuOptions::default()), None)
}

/// Every step kind that Rowmill has. Another kind is one more line.
pub(crate) fn kinds_with(
    python: &str,
    gpu: &Arc<GpuContext>,
    model_library: Option<&Path>,
) -> Vec<Arc<dyn StepFactory>> {
    vec![
        Arc::new(rowmill_step_gpu::GpuFactory::new(crate::gpu::device_of(gpu))),
        Arc::new(rowmill_step_model::ModelFactory::new(model_library)),
        Arc::new(rowmill_step_http::HttpFactory),
        Arc::new(rowmill_step_lookup::LookupFactory),
        Arc::new(rowmill_step_command::CommandFactory),
        Arc::new(rowmill_step_python::PythonFactory::new(python)),
    ]
}

/// The host for these connections.
pub(crate) fn host(connections: &[Connection], kinds: &[Arc<dyn StepFactory>], cache: &CacheOptions) -> Host {
    let mut known = StaticConnections::default();
    let mut limit_settings = BTreeMap::new();
    for connection in connections {
        known = known.with(&connection.name, connection.options.clone());
        limit_settings.insert(connection.name.clone(), limits(connection));
    }
    Host {
        kinds: kinds.iter().map(|kind| (kind.kind(), Arc::clone(kind))).collect(),
        connections: Arc::new(known),
        caches: Caches::new(CacheOptions { redis: redis(connections), ..cache.clone() }),
        limit_settings,
        ..Host::default()
    }
}

/// The URLs of Redis connections. One whose password is not there is left without it; the server then says so.
fn redis(connections: &[Connection]) -> HashMap<String, RedisUrl> {
    let mut urls = HashMap::new();
    for connection in connections.iter().filter(|connection| connection.kind == ConnectionKind::Redis) {
        let Some(Ok(mut url)) = connection.options.get("url").and_then(|url| url.as_str()).map(url::Url::parse) else {
            continue;
        };
        let password = connection.options.get("password").cloned();
        let secret = password.and_then(|password| serde_json::from_value::<SecretRef>(password).ok());
        if let Some(secret) = secret {
            match secret.read() {
                Ok(secret) => drop(url.set_password(Some(secret.expose()))),
                Err(failure) => tracing::warn!("connection `{}`: {}", connection.name, failure.message()),
            }
        }
        urls.insert(connection.name.clone(), RedisUrl(url.to_string()));
    }
    urls
}

fn limits(connection: &Connection) -> LimitSettings {
    let limits = &connection.limits;
    LimitSettings {
        requests_per_second: limits.requests_per_second,
        burst: limits.burst.map(|burst| u32::try_from(burst).unwrap_or(u32::MAX)),
        tokens_per_minute: limits.tokens_per_minute.map(|tokens| tokens as f64),
        max_in_flight: limits.max_in_flight.map(|most| usize::try_from(most).unwrap_or(usize::MAX)),
        breaker: limits.breaker.map(|breaker| BreakerSettings {
            failures: u32::try_from(breaker.failures).unwrap_or(u32::MAX),
            window: breaker.window,
            cool_down: breaker.cool_down,
        }),
        pause_on_retry_after: false,
    }
}
