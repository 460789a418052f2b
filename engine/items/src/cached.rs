//! The cache as the step operator uses it: a unit is probed whole, only misses are sent, one for each key, and what
//! came of them is stored when the unit is complete.
//!
//! Items of one unit with equal keys are sent once; the others get what the first got, its failure too. Only ok results
//! are stored.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::{concat_batches, interleave_record_batch};
use arrow::error::ArrowError;
use rowmill_cache::{CacheError, CacheKey, Entries, Freshness, ResultCache, StoredAt, keys, millis};
use rowmill_step::{Cardinality, Fingerprint, Outcome};

use crate::settle::{Left, Settled};
use crate::unit::{Loss, Piece, Rows, Unit};

/// A step's results by key.
#[derive(Debug, Clone)]
pub struct StepCache {
    /// The tiers.
    pub cache: ResultCache,
    /// Whose results: nobody reads another tenant's.
    pub tenant: Arc<str>,
    /// The step, with all that its results hang on.
    pub fingerprint: Fingerprint,
    /// Names of the input's columns that make the key.
    pub key: Vec<String>,
    /// Which entries are live.
    pub fresh: Freshness,
    /// How long entries of this step live, for tiers that drop them by themselves.
    pub ttl: Option<std::time::Duration>,
}

/// What probing a unit found.
pub(crate) struct Probed {
    pub(crate) settled: Settled,
    pub(crate) left: Left,
}

impl StepCache {
    fn scope(&self) -> rowmill_cache::Scope {
        rowmill_cache::Scope::new(&self.tenant, &self.fingerprint)
    }

    /// Forgets the step's results in every tier; returns what could not be cleared.
    pub async fn clear(&self) -> Vec<CacheError> {
        self.cache.clear(Some(&self.scope())).await
    }

    /// The keys of a batch of input.
    pub(crate) fn keys(&self, input: &RecordBatch) -> Result<Vec<CacheKey>, CacheError> {
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.key.len());
        for name in &self.key {
            let column = input.column_by_name(name);
            columns.push(Arc::clone(column.ok_or_else(|| CacheError::Shape(format!("there is no column `{name}`")))?));
        }
        keys(&self.tenant, &self.fingerprint, &columns, input.num_rows())
    }

    /// Looks up the rows of a unit that are still to do.
    pub(crate) async fn probe(
        self,
        unit: u64,
        todo: Vec<u32>,
        keys: Arc<Vec<CacheKey>>,
        schema: arrow::datatypes::SchemaRef,
    ) -> Probed {
        let wanted: Vec<CacheKey> = todo.iter().filter_map(|row| keys.get(*row as usize).copied()).collect();
        let probe = self.cache.probe(&self.scope(), &schema, &wanted, self.fresh).await;
        let mut settled = Settled { unit, cached: true, ..Settled::default() };
        let mut leaders: HashMap<CacheKey, u32> = HashMap::new();
        let (mut open, mut followers) = (Vec::new(), Vec::new());
        match probe.rows(&schema) {
            Ok((output, of)) if probe.found() > 0 => {
                settled.ok = probe.found();
                let sources = of.iter().filter_map(|index| todo.get(*index as usize).copied()).collect();
                settled.pieces.push(Piece { sources: Rows::List(sources), output, fresh: false });
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!("what the cache holds cannot be put together, and is passed over: {error}");
                return Probed { settled, left: Left { todo, followers } };
            }
        }
        for ((row, key), hit) in todo.into_iter().zip(wanted).zip(&probe.hits) {
            if hit.is_some() {
                continue;
            }
            match leaders.get(&key) {
                Some(leader) => followers.push((row, *leader)),
                None => {
                    leaders.insert(key, row);
                    open.push(row);
                }
            }
        }
        Probed { settled, left: Left { todo: open, followers } }
    }

    /// What a complete unit has to store: its keys and rows, in the order of the rows.
    pub(crate) fn to_store(&self, unit: &Unit, cardinality: Cardinality) -> Result<Option<Store>, ArrowError> {
        let Some(keys) = &unit.keys else { return Ok(None) };
        let mut fresh: Vec<&Piece> =
            unit.pieces.iter().filter(|piece| piece.fresh && piece.sources.len() > 0).collect();
        let Some(first) = fresh.first() else { return Ok(None) };
        let schema = first.output.schema();
        fresh.sort_by_key(|piece| piece.sources.at(0));
        let rows = concat_batches(&schema, fresh.iter().map(|piece| &piece.output))?;
        let mut stored: Vec<CacheKey> = Vec::with_capacity(rows.num_rows());
        let mut lengths: Vec<u32> = Vec::new();
        for piece in fresh {
            let mut last = None;
            for source in piece.sources.iter() {
                if last == Some(source) {
                    if let Some(length) = lengths.last_mut() {
                        *length += 1;
                    }
                    continue;
                }
                last = Some(source);
                stored.extend(keys.get(source as usize));
                lengths.push(1);
            }
        }
        let lengths = (cardinality == Cardinality::FanOut).then_some(lengths);
        Ok(Some(Store { cache: self.clone(), keys: stored, rows, lengths }))
    }
}

/// Results on their way into the cache.
pub(crate) struct Store {
    cache: StepCache,
    keys: Vec<CacheKey>,
    rows: RecordBatch,
    lengths: Option<Vec<u32>>,
}

impl Store {
    pub(crate) async fn store(self) {
        let entries = Entries {
            keys: &self.keys,
            rows: &self.rows,
            lengths: self.lengths.as_deref(),
            stored_at: StoredAt::All(millis(SystemTime::now())),
            ttl: self.cache.ttl,
        };
        self.cache.cache.store(&self.cache.scope(), entries).await;
    }
}

/// Gives the followers of a unit what the rows got that were sent for them; called when all of those are settled.
pub(crate) fn settle_followers(unit: &mut Unit) -> Result<Option<Settled>, ArrowError> {
    if unit.followers.is_empty() || unit.unsettled != unit.followers.len() {
        return Ok(None);
    }
    let followers = std::mem::take(&mut unit.followers);
    let mut of: HashMap<u32, Vec<u32>> = HashMap::new();
    for (row, leader) in followers {
        of.entry(leader).or_default().push(row);
    }
    let mut settled = Settled { unit: unit.number, cached: true, ..Settled::default() };
    for loss in &unit.losses {
        for row in of.remove(&loss.row).into_iter().flatten() {
            let failure = loss.failure.clone();
            settled.losses.push(Loss { row, failure, attempts: loss.attempts, outcome: loss.outcome });
        }
    }
    let mut places: Vec<(u32, usize, usize)> = Vec::new();
    let fresh: Vec<&Piece> = unit.pieces.iter().filter(|piece| piece.fresh).collect();
    for (at, piece) in fresh.iter().enumerate() {
        for (row, source) in piece.sources.iter().enumerate() {
            for follower in of.get(&source).into_iter().flatten() {
                places.push((*follower, at, row));
            }
        }
    }
    settled.ok = of.values().map(Vec::len).sum();
    if !places.is_empty() {
        places.sort_by_key(|(follower, _, _)| *follower);
        let batches: Vec<&RecordBatch> = fresh.iter().map(|piece| &piece.output).collect();
        let picks: Vec<(usize, usize)> = places.iter().map(|(_, at, row)| (*at, *row)).collect();
        let output = interleave_record_batch(&batches, &picks)?;
        let sources = Rows::List(places.into_iter().map(|(follower, _, _)| follower).collect());
        settled.pieces.push(Piece { sources, output, fresh: false });
    }
    Ok(Some(settled))
}

/// The outcome of items that are ok.
pub(crate) fn ok_outcome(settled: &Settled) -> Outcome {
    match settled.cached {
        true => Outcome::Cached,
        false => Outcome::Ok,
    }
}
