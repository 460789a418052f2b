//! Tiers over each other: what is not found above is looked for below, and what is found below moves up.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;

use crate::{CacheKey, CacheTier, Entries, Freshness, Probe, Scope, StoredAt, TierStats};

/// A cache of one or more tiers, fastest first. It never fails: a tier that cannot be asked is warned about and its
/// keys are misses. Clones share the tiers.
#[derive(Debug, Clone, Default)]
pub struct ResultCache(Arc<[Arc<dyn CacheTier>]>);

impl ResultCache {
    /// A cache over these tiers, fastest first.
    pub fn new(tiers: Vec<Arc<dyn CacheTier>>) -> Self {
        Self(tiers.into())
    }

    /// The tiers, fastest first.
    pub fn tiers(&self) -> &[Arc<dyn CacheTier>] {
        &self.0
    }

    /// Looks keys up, tier by tier; hits of lower tiers are stored in those above them with their own times.
    pub async fn probe(&self, scope: &Scope, schema: &SchemaRef, keys: &[CacheKey], fresh: Freshness) -> Probe {
        let mut found = Probe::misses(keys.len());
        // Indexes of keys that no tier had so far.
        let mut open: Vec<usize> = (0..keys.len()).collect();
        for (level, tier) in self.0.iter().enumerate() {
            if open.is_empty() {
                break;
            }
            let all = open.len() == keys.len();
            let asked: Vec<CacheKey> = if all { Vec::new() } else { open.iter().map(|index| keys[*index]).collect() };
            let asked = if all { keys } else { &asked };
            let probe = match tier.probe(scope, schema, asked, fresh).await {
                Ok(probe) if probe.hits.len() == asked.len() => probe,
                Ok(_) => continue,
                Err(error) => {
                    tracing::warn!(%error, "a tier of the cache could not be asked; its entries are misses");
                    continue;
                }
            };
            self.promote(level, scope, schema, asked, &probe).await;
            if found.batches.is_empty() && all {
                open = (0..).zip(&probe.hits).filter(|(_, hit)| hit.is_none()).map(|(index, _)| index).collect();
                found = probe;
                continue;
            }
            let offset = u32::try_from(found.batches.len()).unwrap_or(u32::MAX);
            found.batches.extend(probe.batches);
            let mut still = Vec::new();
            for (index, hit) in open.into_iter().zip(probe.hits) {
                match hit {
                    Some(mut hit) => {
                        hit.batch += offset;
                        found.hits[index] = Some(hit);
                    }
                    None => still.push(index),
                }
            }
            open = still;
        }
        found
    }

    /// Stores what `probe` found at `level` in the tiers above.
    async fn promote(&self, level: usize, scope: &Scope, schema: &SchemaRef, asked: &[CacheKey], probe: &Probe) {
        if level == 0 || probe.found() == 0 {
            return;
        }
        let rows = match probe.rows(schema) {
            Ok((rows, _)) => rows,
            Err(error) => {
                tracing::warn!(%error, "what a lower tier of the cache found stays there");
                return;
            }
        };
        let hits = asked.iter().zip(&probe.hits).filter_map(|(key, hit)| hit.map(|hit| (*key, hit)));
        let (keys, hits): (Vec<_>, Vec<_>) = hits.unzip();
        let lengths: Vec<u32> = hits.iter().map(|hit| hit.rows).collect();
        let times: Vec<i64> = hits.iter().map(|hit| hit.stored_at_ms).collect();
        let entries =
            Entries { keys: &keys, rows: &rows, lengths: Some(&lengths), stored_at: StoredAt::Each(&times), ttl: None };
        for tier in &self.0[..level] {
            if let Err(error) = tier.store(scope, entries).await {
                tracing::warn!(%error, "a tier of the cache could not store what a lower one had");
            }
        }
    }

    /// Stores results in every tier.
    pub async fn store(&self, scope: &Scope, entries: Entries<'_>) {
        for tier in self.0.iter() {
            if let Err(error) = tier.store(scope, entries).await {
                tracing::warn!(%error, "a tier of the cache could not store results");
            }
        }
    }

    /// What the tiers hold, fastest first.
    pub async fn stats(&self) -> Vec<TierStats> {
        let mut stats = Vec::with_capacity(self.0.len());
        for tier in self.0.iter() {
            stats.push(tier.stats().await);
        }
        stats
    }

    /// Forgets a step's entries, or all, in every tier; returns what could not be cleared.
    pub async fn clear(&self, scope: Option<&Scope>) -> Vec<crate::CacheError> {
        let mut errors = Vec::new();
        for tier in self.0.iter() {
            errors.extend(tier.clear(scope).await.err());
        }
        errors
    }
}
