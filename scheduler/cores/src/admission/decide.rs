//! The parts of a decision: runs that time out or start, chunks that get a place.

use std::collections::BTreeSet;

use super::waiting::Look;
use super::{Admission, Decision, LOOKS, Options, Refusal, Request, Started};
use crate::ids::{ChunkKey, ClassId, QueueId, Tenant};
use crate::resources::Usage;
use crate::sabotage::Mutant;

impl Admission {
    pub(super) fn time_out_run(&mut self, now_ms: u64) -> Option<Decision> {
        for (id, queue) in &self.queues {
            let oldest = queue.waiting.values().filter_map(|waiting| waiting.by_age().next()).min();
            let Some((since_ms, key)) = oldest else { continue };
            let timeout_ms = self.options.queues.get(id)?.timeout_ms;
            if since_ms.saturating_add(timeout_ms) <= now_ms {
                self.end_run(key.run);
                let why = Refusal::QueueTimeout { waited_ms: now_ms - since_ms };
                return Some(Decision::RefuseRun { run: key.run, why });
            }
        }
        None
    }

    /// When the head of this queue counts as having come, given its priority.
    pub(super) fn rank(&self, queue: QueueId, oldest_ms: u64) -> i128 {
        let priority = self.options.queues.get(&queue).map_or(0, |options| options.priority);
        let ageing_ms = if self.sabotage.is(Mutant::NoAgeing) { u64::MAX } else { self.options.ageing_ms };
        i128::from(oldest_ms) - i128::from(priority) * i128::from(ageing_ms)
    }

    pub(super) fn start_run(&mut self) -> Option<Decision> {
        let mut order: Vec<(i128, QueueId, ClassId)> = Vec::new();
        for (id, queue) in &self.queues {
            if queue.running >= self.options.queues.get(id)?.max_running {
                continue;
            }
            for (class, waiting) in &queue.waiting {
                let Started { runs, most } = self.started.get(class).copied().unwrap_or_default();
                let Some(oldest_ms) = waiting.oldest_ms() else { continue };
                if most.is_none_or(|most| runs < most) {
                    order.push((self.rank(*id, oldest_ms), *id, *class));
                }
            }
        }
        order.sort_unstable();
        let (options, organisations, teams) = (&self.options, &self.organisations, &self.teams);
        for (_, id, class) in order {
            let queue = self.queues.get_mut(&id)?;
            let waiting = queue.waiting.get_mut(&class)?;
            let found = waiting.find(|head| {
                let tenant = head.tenant;
                let organisation = organisations.get(&tenant.organisation).copied().unwrap_or_default();
                let team = teams.get(&tenant).copied().unwrap_or_default();
                if options.organisation(tenant.organisation).quota.refuses_run(&organisation).is_some() {
                    Look::ParkOrganisation
                } else if options.team(tenant).quota.refuses_run(&team).is_some() {
                    Look::ParkTeam
                } else {
                    Look::Take(())
                }
            });
            let Some((head, ())) = found else { continue };
            waiting.granted(&head, weights(options, head.tenant));
            queue.queued -= 1;
            queue.running += 1;
            self.started.entry(class).or_default().runs += 1;
            let run = head.key.run;
            if let Some((_, started)) = self.tickets.get_mut(&run) {
                *started = true;
            }
            self.usage(head.tenant, |usage| usage.runs += 1);
            return Some(Decision::StartRun(run));
        }
        None
    }

    pub(super) fn grant(&mut self, now_ms: u64) -> Option<Decision> {
        let mut order: Vec<(i128, QueueId, ClassId)> = Vec::new();
        for ((queue, class), waiting) in &self.chunks {
            if let Some(oldest_ms) = waiting.oldest_ms()
                && (self.executors.has_room(*class) || self.sabotage.is(Mutant::Overcommit))
            {
                order.push((self.rank(*queue, oldest_ms), *queue, *class));
            }
        }
        order.sort_unstable();
        // One next in turn per class, whichever queue it waits in.
        let mut next_in_turn: BTreeSet<ClassId> = BTreeSet::new();
        for (_, queue, class) in order {
            let waiting = self.chunks.get_mut(&(queue, class))?;
            let (options, organisations, teams) = (&self.options, &self.organisations, &self.teams);
            let (executors, misfits, watch_ms) = (&mut self.executors, &mut self.misfits, &mut self.next_watch_ms);
            let one_more = self.sabotage.is(Mutant::QuotaOffByOne);
            let mut looks = 0;
            let found = waiting.find(|head| {
                let tenant = head.tenant;
                let mut organisation = organisations.get(&tenant.organisation).copied().unwrap_or_default();
                let mut team = teams.get(&tenant).copied().unwrap_or_default();
                if one_more {
                    organisation.tasks = organisation.tasks.saturating_sub(1);
                    team.tasks = team.tasks.saturating_sub(1);
                }
                let quota = &options.organisation(tenant.organisation).quota;
                if quota.refuses_task(&organisation, &head.needs).is_some() {
                    return Look::ParkOrganisation;
                }
                if options.team(tenant).quota.refuses_task(&team, &head.needs).is_some() {
                    return Look::ParkTeam;
                }
                if let Some(executor) = executors.choose(head) {
                    return Look::Take(executor);
                }
                if !next_in_turn.contains(&class) {
                    if executors.could_fit(head) {
                        next_in_turn.insert(class);
                        if head.since_ms.saturating_add(options.hold_after_ms) <= now_ms {
                            executors.hold(head, now_ms.saturating_add(options.hold_after_ms.saturating_mul(4)));
                        }
                    } else if misfits.insert(head.key, head.since_ms).is_none() {
                        *watch_ms = 0;
                    }
                }
                looks += 1;
                if looks >= LOOKS { Look::Stop } else { Look::Next }
            });
            let Some((mut head, executor)) = found else { continue };
            head.needs = self.executors.needs_on(executor, &head.needs);
            waiting.granted(&head, weights(&self.options, head.tenant));
            self.requests.remove(&head.key);
            self.misfits.remove(&head.key);
            self.executors.unhold(class, head.key);
            let Request { key, tenant, needs, .. } = head;
            let reservation = self.reserve(key, tenant, executor, needs, now_ms);
            return Some(Decision::Grant { key, executor, reservation });
        }
        None
    }

    pub(super) fn drop_request(&mut self, tenant: Tenant, key: ChunkKey) {
        if let Some((queue, class)) = self.requests.remove(&key) {
            if let Some(waiting) = self.chunks.get_mut(&(queue, class)) {
                waiting.remove(tenant, key);
            }
            self.executors.unhold(class, key);
            self.misfits.remove(&key);
        }
    }

    pub(super) fn usage(&mut self, tenant: Tenant, change: impl Fn(&mut Usage)) {
        change(self.organisations.entry(tenant.organisation).or_default());
        change(self.teams.entry(tenant).or_default());
    }

    pub(super) fn unpark(&mut self, tenant: Tenant) {
        for waiting in self.chunks.values_mut() {
            waiting.unpark(tenant.organisation);
        }
        for queue in self.queues.values_mut() {
            for waiting in queue.waiting.values_mut() {
                waiting.unpark(tenant.organisation);
            }
        }
    }
}

fn weights(options: &Options, tenant: Tenant) -> (u32, u32) {
    (options.organisation(tenant.organisation).weight, options.team(tenant).weight)
}
