//! The Redis tier: one value for each key, shared by machines.
//!
//! ```text
//! rowmill:c1:SCOPE:KEY  (hexadecimal)  =  sum:[16] stored_at_ms:i64 body
//! ```
//!
//! `body` is an Arrow IPC stream of the key's rows; `sum` the first half of a BLAKE3 hash over the name and everything
//! behind it, so that a value that was changed, or lies under another name, is a miss. Redis forgets a value by itself
//! when its time to live is over. A Redis that is gone is a warning, and misses until it is tried again.

use std::time::{Duration, Instant};

use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use fred::clients::Client;
use fred::interfaces::{ClientLike as _, KeysInterface as _};
use fred::types::config::Config;
use fred::types::{Builder, ClusterHash, CustomCommand, Expiration, Value};
use parking_lot::Mutex;

use crate::ipc::{decode, encode, same};
use crate::memory::compact_views;
use crate::{CacheError, CacheKey, CacheTier, Entries, Freshness, Hit, Probe, Scope, TierStats};

/// Keys of one MGET, and values of one pipeline: bounds what is in memory at once.
const GROUP: usize = 1024;

/// How long values are kept that have no time to live.
const DEFAULT_TTL: Duration = Duration::from_secs(30 * 24 * 3600);

const HEAD: usize = 24;

/// Where the Redis tier is.
#[derive(Clone)]
pub struct RedisOptions {
    /// Its address, `redis://[[user]:password@]host[:port][/database]`; never printed.
    pub url: String,
    /// The longest wait for a connection or for the answer to one group of keys.
    pub timeout: Duration,
    /// How long it is left alone after it failed.
    pub back_off: Duration,
    /// Values larger than this are not stored.
    pub max_value_bytes: usize,
}

impl RedisOptions {
    /// Redis at an address, with a second's patience, left alone for five seconds when it is gone.
    pub fn new(url: impl Into<String>) -> Self {
        let (timeout, back_off) = (Duration::from_secs(1), Duration::from_secs(5));
        Self { url: url.into(), timeout, back_off, max_value_bytes: 1 << 20 }
    }
}

impl std::fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisOptions").field("timeout", &self.timeout).field("back_off", &self.back_off).finish()
    }
}

/// A cache in Redis.
pub struct RedisTier {
    config: Config,
    options: RedisOptions,
    /// Held while a connection is made, so that one is.
    link: tokio::sync::Mutex<Link>,
    stats: Mutex<TierStats>,
}

#[derive(Default)]
struct Link {
    client: Option<Client>,
    /// It failed; it is left alone until then.
    down_until: Option<Instant>,
}

impl std::fmt::Debug for RedisTier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RedisTier")
    }
}

impl RedisTier {
    /// A tier at that address; the connection is made when it is first asked.
    ///
    /// # Errors
    /// The address is not one of Redis, or asks for TLS, which this client is built without.
    pub fn new(options: RedisOptions) -> Result<Self, CacheError> {
        if options.url.split_once(':').is_none_or(|(scheme, _)| scheme != "redis") {
            let what = "its address begins with `redis://`; TLS (`rediss://`) and clusters are not there yet: put a \
                        tunnel in front, or leave the tier out";
            return Err(CacheError::Redis(what.to_owned()));
        }
        // The library's words may hold the address and its password.
        let mut config = Config::from_url_centralized(&options.url).map_err(|_| {
            CacheError::Redis("the address is not like `redis://[[user]:password@]host[:port][/database]`".to_owned())
        })?;
        config.fail_fast = true;
        let stats = Mutex::new(TierStats { tier: "redis", ..TierStats::default() });
        Ok(Self { config, options, link: tokio::sync::Mutex::default(), stats })
    }

    /// A connection, or `None` while Redis is left alone.
    async fn client(&self) -> Option<Client> {
        let mut link = self.link.lock().await;
        if let Some(client) = &link.client {
            return Some(client.clone());
        }
        if link.down_until.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        match self.connect().await {
            Ok(client) => {
                link.client = Some(client.clone());
                link.down_until = None;
                Some(client)
            }
            Err(reason) => {
                self.down(&mut link, &reason);
                None
            }
        }
    }

    async fn connect(&self) -> Result<Client, String> {
        let timeout = self.options.timeout;
        let client = Builder::from_config(self.config.clone())
            .with_connection_config(|config| {
                config.connection_timeout = timeout;
                config.internal_command_timeout = timeout;
                config.max_command_attempts = 1;
            })
            .with_performance_config(|config| config.default_command_timeout = timeout)
            .build()
            .map_err(|error| error.to_string())?;
        match tokio::time::timeout(timeout, client.init()).await {
            Ok(Ok(_)) => Ok(client),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no connection in time".to_owned()),
        }
    }

    fn down(&self, link: &mut Link, reason: &str) {
        link.client = None;
        link.down_until = Some(Instant::now() + self.options.back_off);
        tracing::warn!(
            reason,
            back_off_ms = u64::try_from(self.options.back_off.as_millis()).unwrap_or(u64::MAX),
            "Redis does not answer; what it caches is a miss for now"
        );
    }

    /// Waits for an answer; a failure is a warning, and Redis is left alone for a while.
    async fn ask<T>(
        &self,
        client: &Client,
        question: impl Future<Output = Result<T, fred::error::Error>>,
    ) -> Option<T> {
        let reason = match tokio::time::timeout(self.options.timeout, question).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        let mut link = self.link.lock().await;
        // Whoever asked at the same time may have noticed already, and another connection may be there by now.
        if link.client.as_ref().is_some_and(|current| current.id() == client.id()) {
            self.down(&mut link, &reason);
        }
        None
    }
}

fn name(prefix: &str, key: CacheKey) -> String {
    format!("{prefix}{:032x}", key.0)
}

fn prefix(scope: &Scope) -> String {
    format!("rowmill:c1:{}:", scope.name())
}

fn sum(name: &str, rest: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes()).update(rest);
    let mut half = [0u8; 16];
    half.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    half
}

fn pack(name: &str, stored_at_ms: i64, body: &[u8]) -> Vec<u8> {
    let mut value = vec![0u8; 16];
    value.extend(stored_at_ms.to_le_bytes());
    value.extend_from_slice(body);
    let sum = sum(name, &value[16..]);
    value[..16].copy_from_slice(&sum);
    value
}

/// When it was stored, and its body; `None` if it is not what [`pack`] made under this name.
fn unpack<'a>(name: &str, value: &'a [u8]) -> Option<(i64, &'a [u8])> {
    let (head, body) = value.split_at_checked(HEAD)?;
    let stored_at_ms = i64::from_le_bytes(head[16..].try_into().ok()?);
    (sum(name, &value[16..]) == head[..16]).then_some((stored_at_ms, body))
}

#[async_trait]
impl CacheTier for RedisTier {
    async fn probe(
        &self,
        scope: &Scope,
        schema: &SchemaRef,
        keys: &[CacheKey],
        fresh: Freshness,
    ) -> Result<Probe, CacheError> {
        let prefix = prefix(scope);
        let mut probe = Probe::misses(keys.len());
        let mut pieces = Vec::new();
        let mut next_row = 0u32;
        let mut unreadable = 0;
        for (group, keys) in keys.chunks(GROUP).enumerate() {
            let Some(client) = self.client().await else { break };
            let names: Vec<String> = keys.iter().map(|key| name(&prefix, *key)).collect();
            let Some(values) = self.ask(&client, client.mget::<Vec<Value>, _>(names.clone())).await else { break };
            for (index, (name, value)) in names.iter().zip(&values).enumerate() {
                let Some(value) = value.as_bytes() else { continue };
                let found = unpack(name, value).and_then(|(at, body)| Some((at, decode(body)?)));
                let Some((stored_at_ms, batch)) = found else {
                    unreadable += 1;
                    continue;
                };
                if !fresh.is_live(stored_at_ms) || !same(batch.schema_ref(), schema) {
                    continue;
                }
                let rows = u32::try_from(batch.num_rows()).unwrap_or(u32::MAX);
                probe.hits[group * GROUP + index] = Some(Hit { batch: 0, row: next_row, rows, stored_at_ms });
                next_row = next_row.saturating_add(rows);
                pieces.push(batch.with_schema(schema.clone())?);
            }
        }
        if !pieces.is_empty() {
            probe.batches.push(concat_batches(schema, &pieces)?);
        }
        let mut stats = self.stats.lock();
        stats.hits += pieces.len() as u64;
        stats.misses += (keys.len() - pieces.len()) as u64;
        stats.unreadable += unreadable;
        Ok(probe)
    }

    async fn store(&self, scope: &Scope, entries: Entries<'_>) -> Result<(), CacheError> {
        entries.check()?;
        let prefix = prefix(scope);
        let ttl = entries.ttl.unwrap_or(DEFAULT_TTL);
        // Redis counts from when it hears of a value, which is not before it was stored.
        let ttl_ms = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX / 2).clamp(1, i64::MAX / 2);
        let all: Vec<_> = entries.iter().collect();
        for group in all.chunks(GROUP) {
            let Some(client) = self.client().await else { return Ok(()) };
            let pipeline = client.pipeline();
            let mut stored = 0;
            for (key, row, rows, stored_at_ms) in group {
                let batch = compact_views(entries.rows.slice(*row as usize, *rows as usize));
                let name = name(&prefix, *key);
                let value = pack(&name, *stored_at_ms, &encode(&batch, false)?);
                if value.len() > self.options.max_value_bytes {
                    continue;
                }
                stored += 1;
                let set = pipeline.set::<Value, _, _>(
                    name,
                    Value::Bytes(value.into()),
                    Some(Expiration::PX(ttl_ms)),
                    None,
                    false,
                );
                // Queued in memory; the answers come with the whole pipeline.
                set.await.map_err(|error| CacheError::Redis(error.to_string()))?;
            }
            if stored == 0 {
                continue;
            }
            if self.ask(&client, pipeline.all::<Vec<Value>>()).await.is_none() {
                return Ok(());
            }
            self.stats.lock().stored += stored;
        }
        Ok(())
    }

    async fn stats(&self) -> TierStats {
        self.stats.lock().clone()
    }

    async fn clear(&self, scope: Option<&Scope>) -> Result<(), CacheError> {
        let pattern = scope.map_or_else(|| "rowmill:c1:*".to_owned(), |scope| format!("{}*", prefix(scope)));
        let gone = || CacheError::Redis("it does not answer; nothing more was cleared".to_owned());
        let mut cursor = "0".to_owned();
        loop {
            let client = self.client().await.ok_or_else(gone)?;
            let command = CustomCommand::new_static("SCAN", ClusterHash::Random, false);
            let arguments = vec![cursor, "MATCH".to_owned(), pattern.clone(), "COUNT".to_owned(), "1000".to_owned()];
            let scan = client.custom::<(String, Vec<String>), String>(command, arguments);
            let (next, names) = self.ask(&client, scan).await.ok_or_else(gone)?;
            if !names.is_empty() {
                self.ask(&client, client.unlink::<i64, _>(names)).await.ok_or_else(gone)?;
            }
            if next == "0" {
                return Ok(());
            }
            cursor = next;
        }
    }
}
