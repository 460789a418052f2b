//! What a session brings to steps that are not SQL: their kinds, connections and limits.

use std::collections::BTreeMap;
use std::sync::Arc;

use rowmill_engine::calls::Host;
use rowmill_limits::{BreakerSettings, LimitSettings};
use rowmill_spec::config::Connection;
use rowmill_step::{StaticConnections, StepFactory};

/// Every step kind that Rowmill has. Another kind is one more line.
pub fn kinds() -> Vec<Arc<dyn StepFactory>> {
    vec![
        Arc::new(rowmill_step_http::HttpFactory),
        Arc::new(rowmill_step_lookup::LookupFactory),
        Arc::new(rowmill_step_command::CommandFactory),
    ]
}

/// The host for these connections.
pub(crate) fn host(connections: &[Connection], kinds: &[Arc<dyn StepFactory>]) -> Host {
    let mut known = StaticConnections::default();
    let mut limit_settings = BTreeMap::new();
    for connection in connections {
        known = known.with(&connection.name, connection.options.clone());
        limit_settings.insert(connection.name.clone(), limits(connection));
    }
    Host {
        kinds: kinds.iter().map(|kind| (kind.kind(), Arc::clone(kind))).collect(),
        connections: Arc::new(known),
        limit_settings,
        ..Host::default()
    }
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
