//! Fair order among children of one node: organisations of a queue, teams of an organisation, runs of a team.
//!
//! Start-time fair queueing (Goyal, Vin, Cheng 1996): each child carries a virtual time that grows by cost over weight
//! with every grant; the smallest goes first. A child that returns continues where it left, but never before the time of
//! the last grant, so that nobody saves up a claim and nobody sheds one by leaving for a moment.

use std::collections::{BTreeMap, BTreeSet};

/// What one slot costs a child of weight 1.
const UNIT: u64 = 1 << 20;

#[derive(Debug)]
pub(super) struct Fair<K> {
    /// Children with work, in order: virtual time, then who came first.
    order: BTreeSet<(u64, u64, K)>,
    active: BTreeMap<K, (u64, u64)>,
    /// Virtual times of children without work that are ahead of `now`.
    ahead: BTreeMap<K, u64>,
    now: u64,
    arrivals: u64,
}

impl<K> Default for Fair<K> {
    fn default() -> Self {
        Self { order: BTreeSet::new(), active: BTreeMap::new(), ahead: BTreeMap::new(), now: 0, arrivals: 0 }
    }
}

impl<K: Copy + Ord> Fair<K> {
    pub(super) fn is_empty(&self) -> bool {
        self.active.is_empty()
    }

    /// A child has work.
    pub(super) fn activate(&mut self, child: K) {
        if self.active.contains_key(&child) {
            return;
        }
        let start = self.ahead.remove(&child).unwrap_or(0).max(self.now);
        self.arrivals += 1;
        self.active.insert(child, (start, self.arrivals));
        self.order.insert((start, self.arrivals, child));
    }

    /// A child has no work, or may not be served now.
    pub(super) fn deactivate(&mut self, child: K) {
        if let Some((time, arrival)) = self.active.remove(&child) {
            self.order.remove(&(time, arrival, child));
            if time > self.now {
                self.ahead.insert(child, time);
            }
        }
    }

    /// A child was served: `slots` at `weight`.
    pub(super) fn charge(&mut self, child: K, slots: u32, weight: u32) {
        let cost = (u64::from(slots.max(1)) * UNIT / u64::from(weight.max(1))).max(1);
        if let Some((time, arrival)) = self.active.get_mut(&child) {
            self.order.remove(&(*time, *arrival, child));
            self.now = self.now.max(*time);
            *time = time.saturating_add(cost);
            self.order.insert((*time, *arrival, child));
        }
        if self.ahead.len() > 2 * self.active.len() + 16 {
            let now = self.now;
            self.ahead.retain(|_, time| *time > now);
        }
    }

    /// Children in fair order.
    pub(super) fn iter(&self) -> impl Iterator<Item = K> + '_ {
        self.order.iter().map(|(_, _, child)| *child)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve(fair: &mut Fair<char>, weights: impl Fn(char) -> u32) -> char {
        let child = fair.iter().next().unwrap();
        fair.charge(child, 1, weights(child));
        child
    }

    #[test]
    fn weights_share_the_grants() {
        let mut fair = Fair::default();
        fair.activate('a');
        fair.activate('b');
        let served: String = (0..8).map(|_| serve(&mut fair, |child| if child == 'a' { 3 } else { 1 })).collect();
        assert_eq!(served.matches('a').count(), 6, "{served}");
    }

    #[test]
    fn leaving_for_a_moment_gains_nothing() {
        let mut fair = Fair::default();
        fair.activate('b');
        let mut served = String::new();
        for _ in 0..6 {
            fair.activate('a');
            served.push(serve(&mut fair, |_| 1));
            fair.deactivate('a');
        }
        assert_eq!(served.matches('a').count(), 3, "{served}");
    }

    #[test]
    fn sleeping_saves_nothing() {
        let mut fair = Fair::default();
        fair.activate('a');
        for _ in 0..100 {
            serve(&mut fair, |_| 1);
        }
        fair.activate('b');
        let served: String = (0..6).map(|_| serve(&mut fair, |_| 1)).collect();
        assert_eq!(served.matches('b').count(), 3, "{served}");
    }
}
