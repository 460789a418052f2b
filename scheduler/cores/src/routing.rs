//! Which of the executors that fit gets a task.

use std::collections::BTreeMap;

use crate::ids::{ClassId, ExecutorId};
use crate::seed::mix;

/// A set of tags, one bit for each: `region=eu`, `disk=nvme` and so on. Whoever drives the cores numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, PartialOrd, Ord)]
pub struct TagSet(pub u128);

impl TagSet {
    /// Whether all of `wanted` are there.
    pub const fn holds(self, wanted: Self) -> bool {
        self.0 & wanted.0 == wanted.0
    }

    /// How many of `wanted` are there.
    pub const fn matches(self, wanted: Self) -> u32 {
        (self.0 & wanted.0).count_ones()
    }
}

/// How to choose among executors that fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, PartialOrd, Ord)]
pub enum Strategy {
    /// One after the other.
    RoundRobin,
    /// The one with the fewest slots taken, relative to its weight.
    #[default]
    LeastConnections,
    /// In proportion to the weights.
    Weighted,
    /// Always the same one for a key while it fits, so that its caches stay warm; few keys move when executors come and
    /// go.
    ConsistentHash,
    /// The one that has most of the preferred tags; among equals the least loaded.
    Locality,
}

/// What a task asks of the choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Route {
    /// How to choose.
    pub strategy: Strategy,
    /// What [`Strategy::ConsistentHash`] hashes.
    pub key: u64,
    /// Tags without which an executor does not fit.
    pub required: TagSet,
    /// Tags that [`Strategy::Locality`] looks for.
    pub preferred: TagSet,
}

/// An executor that fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Which one.
    pub id: ExecutorId,
    /// Its share; at least 1.
    pub weight: u32,
    /// Slots that are taken.
    pub busy_slots: u32,
    /// Its tags.
    pub tags: TagSet,
}

/// Remembers what the strategies need between choices.
#[derive(Debug, Default)]
pub struct Router {
    last: BTreeMap<ClassId, ExecutorId>,
    /// Smooth weighted round robin's running weights.
    running: BTreeMap<ExecutorId, i64>,
}

impl Router {
    /// Chooses among `candidates`, which stand in the order of their ids; `None` when there are none.
    pub fn pick(&mut self, class: ClassId, route: &Route, candidates: &[Candidate]) -> Option<ExecutorId> {
        match route.strategy {
            Strategy::RoundRobin => {
                let last = self.last.get(&class).copied();
                let next = candidates.iter().find(|candidate| last.is_none_or(|last| candidate.id > last));
                let id = next.or(candidates.first())?.id;
                self.last.insert(class, id);
                Some(id)
            }
            Strategy::LeastConnections => least_loaded(candidates.iter()),
            Strategy::Weighted => self.weighted(candidates),
            Strategy::ConsistentHash => {
                // Rendezvous hashing with weights (Thaler, Ravishankar 1998): the largest -weight / ln(u) wins.
                let score = |candidate: &Candidate| {
                    let bits = mix(route.key ^ mix(candidate.id.0)) >> 11;
                    let unit = (bits as f64 + 0.5) / (1u64 << 53) as f64;
                    -f64::from(candidate.weight) / unit.ln()
                };
                candidates.iter().max_by(|a, b| score(a).total_cmp(&score(b))).map(|candidate| candidate.id)
            }
            Strategy::Locality => {
                let best = candidates.iter().map(|candidate| candidate.tags.matches(route.preferred)).max()?;
                least_loaded(candidates.iter().filter(|candidate| candidate.tags.matches(route.preferred) == best))
            }
        }
    }

    /// An executor has gone.
    pub fn forget(&mut self, executor: ExecutorId) {
        self.running.remove(&executor);
    }

    fn weighted(&mut self, candidates: &[Candidate]) -> Option<ExecutorId> {
        let mut best: Option<(i64, ExecutorId)> = None;
        let mut total = 0i64;
        for candidate in candidates {
            let running = self.running.entry(candidate.id).or_default();
            *running += i64::from(candidate.weight);
            total += i64::from(candidate.weight);
            if best.is_none_or(|(weight, _)| *running > weight) {
                best = Some((*running, candidate.id));
            }
        }
        let (_, id) = best?;
        if let Some(running) = self.running.get_mut(&id) {
            *running -= total;
        }
        Some(id)
    }
}

fn least_loaded<'a>(candidates: impl Iterator<Item = &'a Candidate>) -> Option<ExecutorId> {
    // Load is slots taken over weight; compared crosswise so that no fraction is lost.
    candidates
        .min_by(|a, b| {
            let left = u64::from(a.busy_slots) * u64::from(b.weight);
            let right = u64::from(b.busy_slots) * u64::from(a.weight);
            left.cmp(&right).then(a.id.cmp(&b.id))
        })
        .map(|candidate| candidate.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(spec: &[(u64, u32, u32)]) -> Vec<Candidate> {
        spec.iter()
            .map(|&(id, weight, busy_slots)| Candidate {
                id: ExecutorId(id),
                weight,
                busy_slots,
                tags: TagSet(u128::from(id)),
            })
            .collect()
    }

    fn route(strategy: Strategy) -> Route {
        Route { strategy, ..Route::default() }
    }

    fn picks(strategy: Strategy, candidates: &[Candidate], count: usize) -> Vec<u64> {
        let mut router = Router::default();
        (0..count).map(|_| router.pick(ClassId(0), &route(strategy), candidates).unwrap().0).collect()
    }

    #[test]
    fn round_robin_takes_turns_while_executors_come_and_go() {
        let mut router = Router::default();
        let mut next = |spec: &[u64]| {
            let candidates = candidates(&spec.iter().map(|&id| (id, 1, 0)).collect::<Vec<_>>());
            router.pick(ClassId(0), &route(Strategy::RoundRobin), &candidates).map(|id| id.0)
        };
        assert_eq!(
            [next(&[1, 2, 3]), next(&[1, 2, 3]), next(&[1, 3]), next(&[1, 2, 3]), next(&[])],
            [Some(1), Some(2), Some(3), Some(1), None]
        );
    }

    #[test]
    fn least_connections_looks_at_weights() {
        assert_eq!(picks(Strategy::LeastConnections, &candidates(&[(1, 1, 2), (2, 4, 6), (3, 1, 2)]), 1), [2]);
    }

    #[test]
    fn weighted_is_smooth() {
        assert_eq!(
            picks(Strategy::Weighted, &candidates(&[(1, 5, 0), (2, 1, 0), (3, 1, 0)]), 7),
            [1, 1, 2, 1, 3, 1, 1]
        );
    }

    #[test]
    fn a_key_stays_and_few_keys_move() {
        let all = candidates(&[(1, 1, 0), (2, 1, 0), (3, 1, 0), (4, 2, 0)]);
        let fewer = &all[1..];
        let mut router = Router::default();
        let (mut moved, mut on_heavy) = (0, 0);
        for key in 0..10_000 {
            let route = Route { key, ..route(Strategy::ConsistentHash) };
            let before = router.pick(ClassId(0), &route, &all).unwrap();
            let after = router.pick(ClassId(0), &route, fewer).unwrap();
            if before != ExecutorId(1) {
                assert_eq!(before, after, "key {key} moved although its executor stayed");
            } else {
                moved += 1;
            }
            on_heavy += u32::from(before == ExecutorId(4));
        }
        assert!((1_800..2_200).contains(&moved), "{moved}");
        assert!((3_800..4_200).contains(&on_heavy), "{on_heavy}");
    }

    #[test]
    fn locality_prefers_tags_then_load() {
        let mut router = Router::default();
        let candidates = candidates(&[(1, 1, 0), (3, 1, 5), (7, 1, 9)]);
        let route = |preferred| Route { preferred: TagSet(preferred), ..route(Strategy::Locality) };
        assert_eq!(router.pick(ClassId(0), &route(2), &candidates), Some(ExecutorId(3)));
        assert_eq!(router.pick(ClassId(0), &route(6), &candidates), Some(ExecutorId(7)));
        assert_eq!(router.pick(ClassId(0), &route(8), &candidates), Some(ExecutorId(1)));
    }
}
