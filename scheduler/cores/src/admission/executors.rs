//! The executors that have joined: what they have, what is taken, which are kept free for somebody.

use std::collections::{BTreeMap, BTreeSet};

use super::Request;
use super::types::{ExecutorSpec, JoinError};
use crate::ids::{ChunkKey, ClassId, ExecutorId, ReservationId};
use crate::resources::Resources;
use crate::routing::{Candidate, Router};
use crate::sabotage::{Mutant, Sabotage};

#[derive(Debug)]
pub(super) struct Executor {
    pub(super) spec: ExecutorSpec,
    pub(super) used: Resources,
    pub(super) reservations: BTreeSet<ReservationId>,
    draining: bool,
    held_for: Option<ChunkKey>,
}

impl Executor {
    fn fits(&self, request: &Request, room: &Resources) -> bool {
        let needs = request.needs.on(&self.spec.capacity);
        !self.draining && self.spec.tags.holds(request.route.required) && needs.fits_in(room)
    }

    fn free(&self) -> Resources {
        self.spec.capacity.minus(&self.used)
    }
}

#[derive(Debug, Clone, Copy)]
struct Hold {
    key: ChunkKey,
    executor: ExecutorId,
    until_ms: u64,
}

#[derive(Debug, Default)]
pub(super) struct Executors {
    pub(super) all: BTreeMap<ExecutorId, Executor>,
    by_class: BTreeMap<ClassId, BTreeSet<ExecutorId>>,
    /// Those of a class that have a free slot and are not draining.
    with_room: BTreeMap<ClassId, BTreeSet<ExecutorId>>,
    holds: BTreeMap<ClassId, Hold>,
    router: Router,
    candidates: Vec<Candidate>,
    pub(super) sabotage: Sabotage,
}

impl Executors {
    pub(super) fn join(&mut self, spec: ExecutorSpec, largest: &Resources) -> Result<(), JoinError> {
        if self.all.contains_key(&spec.id) {
            return Err(JoinError::Duplicate);
        }
        if spec.classes.is_empty() {
            return Err(JoinError::NoClass);
        }
        if spec.capacity.slots == 0 || spec.weight == 0 {
            return Err(JoinError::NoSlot);
        }
        if !spec.capacity.fits_in(largest) {
            return Err(JoinError::TooLarge);
        }
        let id = spec.id;
        for class in &spec.classes {
            self.by_class.entry(*class).or_default().insert(id);
        }
        let executor = Executor {
            spec,
            used: Resources::default(),
            reservations: BTreeSet::new(),
            draining: false,
            held_for: None,
        };
        self.all.insert(id, executor);
        self.index(id);
        Ok(())
    }

    /// Takes an executor out and returns what was reserved on it.
    pub(super) fn leave(&mut self, id: ExecutorId) -> BTreeSet<ReservationId> {
        self.drain(id);
        self.router.forget(id);
        let Some(executor) = self.all.remove(&id) else { return BTreeSet::new() };
        for class in &executor.spec.classes {
            if let Some(ids) = self.by_class.get_mut(class) {
                ids.remove(&id);
            }
        }
        executor.reservations
    }

    /// Places nothing more on an executor.
    pub(super) fn drain(&mut self, id: ExecutorId) {
        let Some(executor) = self.all.get_mut(&id) else { return };
        executor.draining = true;
        executor.held_for = None;
        self.holds.retain(|_, hold| hold.executor != id);
        self.index(id);
    }

    /// Whether the class has an executor that takes work.
    pub(super) fn serves(&self, class: ClassId) -> bool {
        self.by_class
            .get(&class)
            .is_some_and(|ids| ids.iter().any(|id| self.all.get(id).is_some_and(|executor| !executor.draining)))
    }

    /// Whether some executor of the class has a free slot.
    pub(super) fn has_room(&self, class: ClassId) -> bool {
        self.with_room.get(&class).is_some_and(|ids| !ids.is_empty())
    }

    /// Whether some executor would take the request if it were idle.
    pub(super) fn could_fit(&self, request: &Request) -> bool {
        let ids = self.by_class.get(&request.class);
        ids.into_iter()
            .flatten()
            .filter_map(|id| self.all.get(id))
            .any(|executor| executor.fits(request, &executor.spec.capacity))
    }

    /// Chooses an executor with room for the request.
    pub(super) fn choose(&mut self, request: &Request) -> Option<ExecutorId> {
        let careless = self.sabotage.is(Mutant::Overcommit);
        let ids = if careless { &self.by_class } else { &self.with_room };
        self.candidates.clear();
        for id in ids.get(&request.class).into_iter().flatten() {
            let Some(executor) = self.all.get(id) else { continue };
            let room = if careless { executor.spec.capacity } else { executor.free() };
            if executor.held_for.is_none_or(|key| key == request.key) && executor.fits(request, &room) {
                self.candidates.push(Candidate {
                    id: *id,
                    weight: executor.spec.weight,
                    busy_slots: executor.used.slots,
                    tags: executor.spec.tags,
                });
            }
        }
        self.router.pick(request.class, &request.route, &self.candidates)
    }

    /// What needs come to on this executor.
    pub(super) fn needs_on(&self, id: ExecutorId, needs: &Resources) -> Resources {
        self.all.get(&id).map_or(*needs, |executor| needs.on(&executor.spec.capacity))
    }

    pub(super) fn reserve(&mut self, id: ExecutorId, reservation: ReservationId, needs: &Resources) {
        if let Some(executor) = self.all.get_mut(&id) {
            executor.used = executor.used.plus(needs);
            executor.reservations.insert(reservation);
            self.index(id);
        }
    }

    pub(super) fn free(&mut self, id: ExecutorId, reservation: ReservationId, needs: &Resources) {
        if let Some(executor) = self.all.get_mut(&id) {
            executor.used = executor.used.minus(needs);
            executor.reservations.remove(&reservation);
            self.index(id);
        }
    }

    /// Keeps an executor free for a request that many small ones overtake: the one with the most free slots of those
    /// that are large enough. One per class at a time.
    pub(super) fn hold(&mut self, request: &Request, until_ms: u64) {
        if self.holds.contains_key(&request.class) {
            return;
        }
        let best = self
            .by_class
            .get(&request.class)
            .into_iter()
            .flatten()
            .filter_map(|id| self.all.get(id))
            .filter(|executor| executor.held_for.is_none() && executor.fits(request, &executor.spec.capacity))
            .max_by_key(|executor| (executor.free().slots, executor.spec.id))
            .map(|executor| executor.spec.id);
        if let Some(executor) = best {
            self.holds.insert(request.class, Hold { key: request.key, executor, until_ms });
            if let Some(executor) = self.all.get_mut(&executor) {
                executor.held_for = Some(request.key);
            }
        }
    }

    /// The request has gone, one way or the other.
    pub(super) fn unhold(&mut self, class: ClassId, key: ChunkKey) {
        if self.holds.get(&class).is_some_and(|hold| hold.key == key) {
            self.drop_hold(class);
        }
    }

    /// Ends holds that lasted too long.
    pub(super) fn expire_holds(&mut self, now_ms: u64) {
        let over: Vec<ClassId> =
            self.holds.iter().filter(|(_, hold)| hold.until_ms <= now_ms).map(|(class, _)| *class).collect();
        for class in over {
            self.drop_hold(class);
        }
    }

    pub(super) fn next_hold_end_ms(&self) -> Option<u64> {
        self.holds.values().map(|hold| hold.until_ms).min()
    }

    fn drop_hold(&mut self, class: ClassId) {
        if let Some(hold) = self.holds.remove(&class)
            && let Some(executor) = self.all.get_mut(&hold.executor)
        {
            executor.held_for = None;
        }
    }

    fn index(&mut self, id: ExecutorId) {
        let Some(executor) = self.all.get(&id) else { return };
        let open = !executor.draining && executor.free().slots > 0;
        for class in &executor.spec.classes {
            let ids = self.with_room.entry(*class).or_default();
            if open {
                ids.insert(id);
            } else {
                ids.remove(&id);
            }
        }
    }
}
