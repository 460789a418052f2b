//! The requests that wait in one queue for one class: a tree of organisations, teams and runs in fair order, first come
//! first served within a run.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::Request;
use super::fair::Fair;
use crate::ids::{ChunkKey, RunId, Tenant};

#[derive(Debug, Default)]
struct Team {
    runs: Fair<RunId>,
    requests: BTreeMap<RunId, VecDeque<Request>>,
}

#[derive(Debug, Default)]
struct Organisation {
    teams: Fair<u32>,
    by_team: BTreeMap<u32, Team>,
    /// Teams with requests that may not be served until something is returned.
    parked: BTreeSet<u32>,
    waiting: usize,
}

/// What to do after looking at a candidate.
pub(super) enum Look<T> {
    /// Take it.
    Take(T),
    /// Try the next run.
    Next,
    /// Nothing of this team may go: put the team aside until somebody returns something.
    ParkTeam,
    /// Nothing of this organisation may go.
    ParkOrganisation,
    /// Stop looking.
    Stop,
}

/// The requests of one queue for one class.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    organisations: Fair<u32>,
    by_organisation: BTreeMap<u32, Organisation>,
    /// Organisations with requests that may not be served until something is returned.
    parked: BTreeSet<u32>,
    /// By the time they were made: the oldest decides the queue's rank.
    since: BTreeSet<(u64, ChunkKey)>,
}

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.since.is_empty()
    }

    /// When the oldest request was made.
    pub(super) fn oldest_ms(&self) -> Option<u64> {
        self.since.first().map(|(since_ms, _)| *since_ms)
    }

    /// Oldest first.
    pub(super) fn by_age(&self) -> impl Iterator<Item = (u64, ChunkKey)> + '_ {
        self.since.iter().copied()
    }

    pub(super) fn push(&mut self, request: Request) {
        let Tenant { organisation, team } = request.tenant;
        self.since.insert((request.since_ms, request.key));
        let branch = self.by_organisation.entry(organisation).or_default();
        let leaf = branch.by_team.entry(team).or_default();
        leaf.requests.entry(request.key.run).or_default().push_back(request);
        leaf.runs.activate(request.key.run);
        branch.waiting += 1;
        if !branch.parked.contains(&team) {
            branch.teams.activate(team);
            if !self.parked.contains(&organisation) {
                self.organisations.activate(organisation);
            }
        }
    }

    /// Takes a request out, wherever it stands.
    pub(super) fn remove(&mut self, tenant: Tenant, key: ChunkKey) -> Option<Request> {
        let branch = self.by_organisation.get_mut(&tenant.organisation)?;
        let leaf = branch.by_team.get_mut(&tenant.team)?;
        let queue = leaf.requests.get_mut(&key.run)?;
        let position = queue.iter().position(|request| request.key == key)?;
        let request = queue.remove(position)?;
        self.since.remove(&(request.since_ms, key));
        self.prune(tenant, key.run);
        Some(request)
    }

    /// Takes back whatever is empty after a request of `run` left.
    fn prune(&mut self, tenant: Tenant, run: RunId) {
        let Some(branch) = self.by_organisation.get_mut(&tenant.organisation) else { return };
        let Some(leaf) = branch.by_team.get_mut(&tenant.team) else { return };
        branch.waiting -= 1;
        if leaf.requests.get(&run).is_some_and(VecDeque::is_empty) {
            leaf.requests.remove(&run);
            leaf.runs.deactivate(run);
        }
        if leaf.requests.is_empty() {
            branch.teams.deactivate(tenant.team);
            branch.parked.remove(&tenant.team);
        }
        if branch.teams.is_empty() {
            self.organisations.deactivate(tenant.organisation);
        }
        if branch.waiting == 0 {
            self.parked.remove(&tenant.organisation);
        }
    }

    /// Shows the head of each run in fair order until one is taken; returns what was taken.
    pub(super) fn find<T>(&mut self, mut look: impl FnMut(&Request) -> Look<T>) -> Option<(Request, T)> {
        let mut parked: Vec<(u32, Option<u32>)> = Vec::new();
        let mut found = None;
        'organisations: for organisation in self.organisations.iter() {
            let Some(branch) = self.by_organisation.get(&organisation) else { continue };
            'teams: for team in branch.teams.iter() {
                let Some(leaf) = branch.by_team.get(&team) else { continue };
                for run in leaf.runs.iter() {
                    let Some(head) = leaf.requests.get(&run).and_then(VecDeque::front) else { continue };
                    match look(head) {
                        Look::Take(value) => {
                            found = Some((*head, value));
                            break 'organisations;
                        }
                        Look::Next => {}
                        Look::ParkTeam => {
                            parked.push((organisation, Some(team)));
                            continue 'teams;
                        }
                        Look::ParkOrganisation => {
                            parked.push((organisation, None));
                            continue 'organisations;
                        }
                        Look::Stop => break 'organisations,
                    }
                }
            }
        }
        for (organisation, team) in parked {
            if let Some(team) = team {
                let Some(branch) = self.by_organisation.get_mut(&organisation) else { continue };
                branch.teams.deactivate(team);
                branch.parked.insert(team);
                if branch.teams.is_empty() {
                    self.organisations.deactivate(organisation);
                }
            } else {
                self.organisations.deactivate(organisation);
                self.parked.insert(organisation);
            }
        }
        found
    }

    /// Charges a grant to its run, team and organisation, by their weights, and takes the request out.
    pub(super) fn granted(&mut self, request: &Request, weights: (u32, u32)) {
        let Tenant { organisation, team } = request.tenant;
        let slots = request.needs.slots;
        self.organisations.charge(organisation, slots, weights.0);
        if let Some(branch) = self.by_organisation.get_mut(&organisation) {
            branch.teams.charge(team, slots, weights.1);
            if let Some(leaf) = branch.by_team.get_mut(&team) {
                leaf.runs.charge(request.key.run, slots, 1);
            }
        }
        self.remove(request.tenant, request.key);
    }

    /// Something of an organisation's was returned: what was put aside may be served again.
    pub(super) fn unpark(&mut self, organisation: u32) {
        let Some(branch) = self.by_organisation.get_mut(&organisation) else { return };
        for team in std::mem::take(&mut branch.parked) {
            branch.teams.activate(team);
        }
        self.parked.remove(&organisation);
        if !branch.teams.is_empty() {
            self.organisations.activate(organisation);
        }
    }
}
