//! The promises: what holds after every step, at every launch and grant, and at the end.

use super::{Checked, World};
use crate::coordinator::Reads;
use crate::ids::{AttemptId, ChunkKey, ExecutorId, Tenant};
use crate::resources::{Resources, Usage};

impl World {
    /// No two schedulers both believe that they lead and would both be believed by the store.
    pub(super) fn check_owners(&self) -> Checked {
        let owners = self
            .schedulers
            .iter()
            .filter(|scheduler| scheduler.leader.as_ref().is_some_and(|leader| self.lease.holds(leader.fence)))
            .count();
        if owners > 1 { Err("two schedulers could both commit".to_owned()) } else { Ok(()) }
    }

    /// What is launched is wanted, its inputs are committed, and nobody has committed it.
    pub(super) fn check_launch(&self, number: usize, attempt: AttemptId) -> Checked {
        let key = attempt.key;
        let Some(leader) = &self.schedulers[number].leader else { return Ok(()) };
        if leader.ended.contains(&key.run) {
            return Err(format!("{key} was launched after its run had ended"));
        }
        let run = self.runs.iter().find(|run| run.id == key.run).ok_or("launched an unknown run")?;
        for input in &run.plan.stages[key.stage as usize].inputs {
            let chunks = match input.reads {
                Reads::ChunkByChunk => key.chunk..key.chunk + 1,
                Reads::All => 0..run.plan.stages[input.stage as usize].chunks,
            };
            for chunk in chunks {
                if self.commits.winner(ChunkKey { run: key.run, stage: input.stage, chunk }).is_none() {
                    return Err(format!("{key} was launched before its input, stage {} chunk {chunk}", input.stage));
                }
            }
        }
        if self.lease.holds(leader.fence) && self.commits.winner(key).is_some() {
            return Err(format!("{key} was launched although it is committed"));
        }
        Ok(())
    }

    /// No quota is exceeded, no executor is given more than it has.
    pub(super) fn check_reserved(&self, number: usize, executor: ExecutorId, tenant: Tenant) -> Checked {
        let Some(leader) = &self.schedulers[number].leader else { return Ok(()) };
        let mut team = Usage::default();
        let mut organisation = Usage::default();
        let mut on_executor = Resources::default();
        for (owner, place, needs) in leader.reserved.values() {
            if *place == executor {
                on_executor = on_executor.plus(needs);
            }
            for (usage, same) in
                [(&mut organisation, owner.organisation == tenant.organisation), (&mut team, *owner == tenant)]
            {
                if same {
                    usage.tasks += 1;
                    usage.held = usage.held.plus(needs);
                }
            }
        }
        if !self.options.organisation(tenant.organisation).quota.allows(&organisation) {
            return Err(format!("organisation {} holds {organisation:?}", tenant.organisation));
        }
        if !self.options.team(tenant).quota.allows(&team) {
            return Err(format!("team {tenant:?} holds {team:?}"));
        }
        match leader.capacity.get(&executor) {
            Some(capacity) if on_executor.fits_in(capacity) => Ok(()),
            Some(capacity) => Err(format!("{executor:?} has {capacity:?} and was given {on_executor:?}")),
            None => Err(format!("{executor:?} was given work and is not known")),
        }
    }

    /// Every run ended as it should.
    pub(super) fn check_ends(&self) -> Checked {
        for run in &self.runs {
            let succeeded = self.commits.ended(run.id) == Some(true);
            if run.unserved && succeeded {
                return Err(format!("{:?} succeeded on a class that nobody serves", run.id));
            }
            if !run.unserved && !run.cancelled && !succeeded {
                return Err(format!("{:?} failed although every fault had healed", run.id));
            }
            if succeeded {
                for (stage, plan) in (0..).zip(&run.plan.stages) {
                    for chunk in 0..plan.chunks {
                        if self.commits.winner(ChunkKey { run: run.id, stage, chunk }).is_none() {
                            return Err(format!("{:?} succeeded without stage {stage} chunk {chunk}", run.id));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Nothing is reserved once all runs are over.
    pub(super) fn check_nothing_left(&self) -> Checked {
        for scheduler in &self.schedulers {
            if let Some(leader) = &scheduler.leader
                && self.lease.holds(leader.fence)
            {
                let (_, waiting, reserved) = leader.admission.counts();
                if waiting + reserved > 0 || !leader.reserved.is_empty() {
                    return Err(format!("{waiting} requests and {reserved} reservations are left over"));
                }
            }
        }
        Ok(())
    }
}
