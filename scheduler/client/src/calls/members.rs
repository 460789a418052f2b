//! Which executor makes the next attempt: decisions alone, no network and no clock of their own.

use std::collections::BTreeMap;
use std::time::Duration;

use rowmill_cores::ids::{ClassId, ExecutorId};
use rowmill_cores::routing::{Candidate, Route, Router, Strategy, TagSet};
use rowmill_cores::seed::mix;
use rowmill_step::Failure;
use rowmill_wire::calls::crew::CrewMember;
use tokio::time::Instant;

/// The wait before an executor is tried again that was lost or did not answer, at first and at most.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// How an executor stands to the step.
#[derive(Debug, Clone)]
enum State {
    /// It was asked to open the step.
    Opening,
    /// It takes groups, so many at a time.
    Open(u32),
    /// It cannot open the step.
    Refused(Failure),
    /// It went, or does not answer; it is tried again if it is still listed then.
    Lost(Instant),
    /// It answers what it has and takes nothing new.
    Leaving,
}

#[derive(Debug)]
struct Member {
    name: String,
    address: String,
    slots: u32,
    state: State,
    /// Groups that it has.
    busy: u32,
    /// Rises with each stream to it, so that what belonged to an earlier one is told apart.
    stream: u64,
    /// Streams that ended badly, one after the other.
    losses: u32,
    /// Whether the scheduler names it.
    listed: bool,
}

/// A stream to open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ToOpen {
    pub(crate) id: ExecutorId,
    pub(crate) stream: u64,
    pub(crate) name: String,
    pub(crate) address: String,
}

/// Who makes the next attempt.
#[derive(Debug)]
pub(crate) enum Pick {
    /// This one; a place is taken.
    Go(ExecutorId, u64),
    /// All are busy.
    Full,
    /// Nobody serves the class, since then.
    Nobody(Instant),
    /// Whoever serves it cannot open the step.
    Refused(Failure),
}

/// The executors that serve a step's class.
#[derive(Debug)]
pub(crate) struct Members {
    strategy: Strategy,
    router: Router,
    known: BTreeMap<ExecutorId, Member>,
    streams: u64,
    /// Since when no group can go anywhere.
    nobody: Option<Instant>,
}

/// The id of an executor: the same in every process, so that keys lead to the same one.
fn id_of(name: &str) -> ExecutorId {
    ExecutorId(name.bytes().fold(0, |hash, byte| mix(hash ^ u64::from(byte))))
}

impl Members {
    pub(crate) fn new(strategy: Strategy, now: Instant) -> Self {
        Self { strategy, router: Router::default(), known: BTreeMap::new(), streams: 0, nobody: Some(now) }
    }

    /// The scheduler names these. Who is new is to be asked.
    pub(crate) fn listed(&mut self, crew: &[CrewMember], now: Instant) -> Vec<ToOpen> {
        for member in self.known.values_mut() {
            member.listed = false;
        }
        let mut open = Vec::new();
        for member in crew {
            let id = id_of(&member.name);
            if let Some(known) = self.known.get_mut(&id) {
                known.listed = true;
                continue;
            }
            self.streams += 1;
            let stream = self.streams;
            let (name, address, slots) = (member.name.clone(), member.address.clone(), member.slots.max(1));
            open.push(ToOpen { id, stream, name: name.clone(), address: address.clone() });
            let state = State::Opening;
            let new = Member { name, address, slots, state, busy: 0, stream, losses: 0, listed: true };
            self.known.insert(id, new);
        }
        self.clear(now);
        open
    }

    /// Forgets who is neither named nor of use, and notes whether anybody is left.
    fn clear(&mut self, now: Instant) {
        let router = &mut self.router;
        self.known.retain(|id, member| {
            let stays = member.listed || matches!(member.state, State::Opening | State::Open(_) | State::Leaving);
            if !stays {
                router.forget(*id);
            }
            stays
        });
        let open = self.known.values().any(|member| matches!(member.state, State::Open(_)));
        self.nobody = if open { None } else { self.nobody.or(Some(now)) };
    }

    fn of_stream(&mut self, id: ExecutorId, stream: u64) -> Option<&mut Member> {
        self.known.get_mut(&id).filter(|member| member.stream == stream)
    }

    /// It opened the step and takes so many groups at a time.
    pub(crate) fn opened(&mut self, id: ExecutorId, stream: u64, most: u32, now: Instant) {
        if let Some(member) = self.of_stream(id, stream) {
            member.state = State::Open(most.max(1));
            member.losses = 0;
        }
        self.clear(now);
    }

    /// It cannot open the step. Tells whether others do.
    pub(crate) fn refused(&mut self, id: ExecutorId, stream: u64, why: Failure, now: Instant) -> bool {
        if let Some(member) = self.of_stream(id, stream) {
            member.state = State::Refused(why);
        }
        self.clear(now);
        self.nobody.is_none()
    }

    /// It takes nothing new.
    pub(crate) fn leaving(&mut self, id: ExecutorId, stream: u64, now: Instant) {
        if let Some(member) = self.of_stream(id, stream) {
            member.state = State::Leaving;
        }
        self.clear(now);
    }

    /// The stream to it ended, however it did.
    pub(crate) fn ended(&mut self, id: ExecutorId, stream: u64, now: Instant) {
        // Who refused need not be asked again: it would refuse again, until it is another process.
        let refused = self.of_stream(id, stream).is_some_and(|member| matches!(member.state, State::Refused(_)));
        if !refused {
            self.lost(id, stream, now);
        }
    }

    /// It went.
    fn lost(&mut self, id: ExecutorId, stream: u64, now: Instant) {
        if let Some(member) = self.of_stream(id, stream) {
            let wait = FIRST_WAIT.saturating_mul(1 << member.losses.min(10)).min(LONGEST_WAIT);
            member.state = State::Lost(now + wait);
            member.losses += 1;
            member.busy = 0;
        }
        self.clear(now);
    }

    /// When the next lost one is to be tried again.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let due = self.known.values().filter_map(|member| match member.state {
            State::Lost(again) if member.listed => Some(again),
            _ => None,
        });
        due.min()
    }

    /// Those that are to be tried again now.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<ToOpen> {
        let mut open = Vec::new();
        for (id, member) in &mut self.known {
            if matches!(member.state, State::Lost(again) if again <= now) && member.listed {
                self.streams += 1;
                member.stream = self.streams;
                member.state = State::Opening;
                let (name, address) = (member.name.clone(), member.address.clone());
                open.push(ToOpen { id: *id, stream: member.stream, name, address });
            }
        }
        open
    }

    /// Chooses who makes an attempt, and takes a place there.
    pub(crate) fn pick(&mut self, key: u64, now: Instant) -> Pick {
        let candidates: Vec<Candidate> = self
            .known
            .iter()
            .filter(|(_, member)| matches!(member.state, State::Open(most) if member.busy < most))
            .map(|(id, member)| Candidate {
                id: *id,
                weight: member.slots,
                busy_slots: member.busy,
                tags: TagSet::default(),
            })
            .collect();
        let route = Route { strategy: self.strategy, key, ..Route::default() };
        if let Some(id) = self.router.pick(ClassId(0), &route, &candidates)
            && let Some(member) = self.known.get_mut(&id)
        {
            member.busy += 1;
            return Pick::Go(id, member.stream);
        }
        let Some(since) = self.nobody else { return Pick::Full };
        let hope = self.known.values().any(|member| matches!(member.state, State::Opening | State::Lost(_)));
        let refusal = self.known.values().find_map(|member| match &member.state {
            State::Refused(why) => Some(why.clone()),
            _ => None,
        });
        match refusal {
            Some(why) if !hope => Pick::Refused(why),
            _ => Pick::Nobody(since.min(now)),
        }
    }

    /// A place is free again.
    pub(crate) fn free(&mut self, id: ExecutorId, stream: u64) {
        if let Some(member) = self.of_stream(id, stream) {
            member.busy = member.busy.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use rowmill_step::FailureCode;

    use super::*;

    fn crew(names: &[&str]) -> Vec<CrewMember> {
        let member = |name: &&str| CrewMember { name: (*name).to_owned(), address: format!("{name}:1"), slots: 2 };
        names.iter().map(member).collect()
    }

    fn members(names: &[&str], now: Instant) -> Members {
        let mut members = Members::new(Strategy::RoundRobin, now);
        for open in members.listed(&crew(names), now) {
            members.opened(open.id, open.stream, 2, now);
        }
        members
    }

    fn go(members: &mut Members, now: Instant) -> (ExecutorId, u64) {
        match members.pick(0, now) {
            Pick::Go(id, stream) => (id, stream),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn places_are_taken_in_turn_up_to_what_each_takes() {
        let now = Instant::now();
        let mut members = members(&["io.1", "io.2"], now);
        let picks: Vec<_> = (0..4).map(|_| go(&mut members, now)).collect();
        assert_ne!(picks[0].0, picks[1].0);
        assert_eq!(picks[0].0, picks[2].0);
        assert!(matches!(members.pick(0, now), Pick::Full));
        members.free(picks[1].0, picks[1].1);
        assert_eq!(go(&mut members, now), picks[1]);
    }

    #[test]
    fn what_belonged_to_a_lost_stream_frees_nothing_of_the_next() {
        let now = Instant::now();
        let mut members = members(&["io.1"], now);
        let old = go(&mut members, now);
        members.ended(old.0, old.1, now);
        assert!(matches!(members.pick(0, now), Pick::Nobody(since) if since == now));
        assert!(members.due(now).is_empty(), "it waits a moment");
        let later = now + LONGEST_WAIT;
        let again = members.due(later);
        assert_eq!(again.len(), 1);
        members.opened(again[0].id, again[0].stream, 1, later);
        let new = go(&mut members, later);
        members.free(old.0, old.1);
        assert!(matches!(members.pick(0, later), Pick::Full), "the place is still taken");
        members.free(new.0, new.1);
        go(&mut members, later);
        // A report of the old stream's end does not touch the new one.
        members.ended(old.0, old.1, later);
        assert!(matches!(members.pick(0, later), Pick::Full));
    }

    #[test]
    fn a_refusal_counts_when_nobody_else_can_be_hoped_for() {
        let now = Instant::now();
        let mut members = Members::new(Strategy::RoundRobin, now);
        assert!(matches!(members.pick(0, now), Pick::Nobody(_)));
        let open = members.listed(&crew(&["io.1", "io.2"]), now);
        let why = || Failure::fixed(FailureCode::Setup, "no connection");
        assert!(!members.refused(open[0].id, open[0].stream, why(), now));
        assert!(matches!(members.pick(0, now), Pick::Nobody(_)), "the other may");
        members.opened(open[1].id, open[1].stream, 1, now);
        let (id, stream) = go(&mut members, now);
        assert_eq!(id, open[1].id);
        members.leaving(id, stream, now);
        assert!(matches!(members.pick(0, now), Pick::Refused(_)));
        // Who refused and is gone is forgotten, and may come again under another name.
        members.listed(&crew(&[]), now);
        assert!(matches!(members.pick(0, now), Pick::Nobody(_)));
        assert_eq!(members.listed(&crew(&["io.3"]), now).len(), 1);
    }

    #[test]
    fn a_key_stays_with_its_executor_while_that_has_room() {
        let now = Instant::now();
        let mut members = Members { strategy: Strategy::ConsistentHash, ..members(&["io.1", "io.2", "io.3"], now) };
        let first = go(&mut members, now);
        assert_eq!(go(&mut members, now), first);
        assert_ne!(go(&mut members, now).0, first.0, "it is full");
    }
}
