//! Partitions: which of those that wait get the slots that are free.
//!
//! Each pass begins with what is: executors, the tasks that the graphs say run, the partitions that wait. What the core
//! believes is made to agree with that, and then it is asked until it has no more to give.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use ballista_core::JobId;
use rowmill_cores::admission::{Admission, Decision, ExecutorSpec, Refusal};
use rowmill_cores::ids::{ChunkKey, ClassId, ExecutorId, ReservationId, RunId};
use rowmill_cores::resources::Resources;
use rowmill_cores::routing::{Route, Strategy, TagSet};
use rowmill_wire::class::Demand;

use super::desk::{Desk, Inner, Names};
use crate::placement::slots_for;

/// The class whose executors' GPUs count.
const GPU: &str = "gpu";
/// Jobs of a class that are handed to Ballista for each slot, and at least.
const JOBS_PER_SLOT: u32 = 2;
const FEWEST_JOBS: u32 = 16;
/// The number of a task that was taken up without having been asked for.
const ADOPTED: u32 = u32::MAX;

/// An executor as a pass finds it.
#[derive(Debug, Clone)]
pub(crate) struct Executor {
    /// Its name.
    pub(crate) name: String,
    /// The classes that it serves.
    pub(crate) classes: Vec<Arc<str>>,
    /// Its slots.
    pub(crate) slots: u32,
    /// Memory of its tasks, as it says itself; zero while it has not said.
    pub(crate) memory_bytes: u64,
    /// Whether it takes tasks.
    pub(crate) open: bool,
}

/// An attempt's name in the graphs: job, stage, the stage's attempt, task.
pub(crate) type TaskName = (JobId, usize, usize, usize);

/// A task that the graphs say runs.
#[derive(Debug, Clone)]
pub(crate) struct RunningTask {
    pub(crate) name: TaskName,
    pub(crate) run: RunId,
    pub(crate) executor: String,
    pub(crate) slots: u32,
    /// Memory that was asked for it.
    pub(crate) memory_bytes: u64,
}

/// A running stage with partitions that wait.
#[derive(Debug, Clone)]
pub(crate) struct Stage {
    pub(crate) job: JobId,
    pub(crate) run: RunId,
    pub(crate) stage: usize,
    /// What waits: partitions, or one task that takes them all.
    pub(crate) units: usize,
    pub(crate) demand: Demand,
}

/// What a pass may bind: executors and reservations, by job and stage.
pub(crate) type Grants = HashMap<(JobId, usize), Vec<(String, ReservationId)>>;

#[derive(Debug)]
struct Known {
    id: ExecutorId,
    slots: u32,
    memory_bytes: u64,
    open: bool,
}

/// What a stage has asked for and not been given.
#[derive(Debug, Default)]
struct Asked {
    chunks: VecDeque<u32>,
    next: u32,
}

/// What one slot of a class comes to.
#[derive(Debug, Clone, Default)]
struct Capacity {
    /// Of all executors that take tasks.
    slots: u32,
    /// Of the largest one.
    most: u32,
    /// The smallest share of an executor's memory, so that plain tasks fit wherever there is a slot.
    slot_memory_bytes: Option<u64>,
    /// Slots and memory of each executor that has said what it has.
    shares: Vec<(u32, u64)>,
}

impl Capacity {
    /// Slots that have so much memory, on whichever executor has it at all.
    fn slots_for(&self, bytes: u64) -> u32 {
        let large = self.shares.iter().filter(|(_, memory)| *memory >= bytes);
        large.map(|(slots, memory)| slots_for(bytes, *memory, *slots)).max().unwrap_or(1)
    }
}

/// What is known from pass to pass.
#[derive(Debug, Default)]
pub(super) struct Places {
    executors: BTreeMap<String, Known>,
    next_executor: u64,
    capacities: HashMap<Arc<str>, Capacity>,
    minded: BTreeSet<ClassId>,
    asked: BTreeMap<(RunId, u32), Asked>,
    held: HashMap<TaskName, Vec<ReservationId>>,
}

impl Places {
    /// Whether the class has an executor that takes tasks.
    pub(super) fn serves(&self, class: &str) -> bool {
        self.capacities.get(class).is_some_and(|capacity| capacity.slots > 0)
    }

    /// Makes sure that jobs of a class are counted, before a pass has seen any.
    pub(super) fn mind_class(&mut self, core: &mut Admission, class: ClassId) {
        if self.minded.insert(class) {
            core.limit_class(class, FEWEST_JOBS);
        }
    }

    fn meet_executors(&mut self, core: &mut Admission, names: &mut Names, executors: &[Executor]) {
        let there: HashMap<&str, &Executor> = executors.iter().map(|own| (own.name.as_str(), own)).collect();
        self.executors.retain(|name, known| {
            // One that opens again, or comes back with other slots or memory, begins anew.
            let stays = there.get(name.as_str()).is_some_and(|own| {
                own.slots == known.slots && own.memory_bytes == known.memory_bytes && (known.open || !own.open)
            });
            if !stays {
                core.leave(known.id);
            }
            stays
        });
        self.capacities.clear();
        for own in executors {
            if own.open {
                for class in &own.classes {
                    let capacity = self.capacities.entry(class.clone()).or_default();
                    capacity.slots = capacity.slots.saturating_add(own.slots);
                    capacity.most = capacity.most.max(own.slots);
                    if own.memory_bytes > 0 {
                        let share = own.memory_bytes / u64::from(own.slots.max(1));
                        capacity.slot_memory_bytes =
                            Some(capacity.slot_memory_bytes.map_or(share, |least| least.min(share)));
                        capacity.shares.push((own.slots, own.memory_bytes));
                    }
                }
            }
            if let Some(known) = self.executors.get_mut(&own.name) {
                if known.open && !own.open {
                    core.drain(known.id);
                    known.open = false;
                }
                continue;
            }
            self.next_executor += 1;
            let id = ExecutorId(self.next_executor);
            let capacity = Resources {
                slots: own.slots,
                cpu_milli: 1_000 * u64::from(own.slots),
                // One that has not said what it has is taken to have enough.
                memory_bytes: if own.memory_bytes == 0 { u64::MAX } else { own.memory_bytes },
                // What tasks take of it is reckoned for quotas; slots say what fits.
                gpu_milli: u64::MAX,
            };
            let classes = own.classes.iter().map(|class| names.class(class)).collect();
            let spec = ExecutorSpec { id, classes, capacity, weight: own.slots.max(1), tags: TagSet::default() };
            if let Err(error) = core.join(spec) {
                tracing::warn!(executor = own.name, "nothing is placed there: {error}");
                continue;
            }
            if !own.open {
                core.drain(id);
            }
            self.executors.insert(
                own.name.clone(),
                Known { id, slots: own.slots, memory_bytes: own.memory_bytes, open: own.open },
            );
        }
        for class in self.capacities.keys() {
            self.minded.insert(names.class(class));
        }
        let limits: HashMap<ClassId, u32> =
            self.capacities.iter().map(|(class, capacity)| (names.class(class), capacity.slots)).collect();
        for class in &self.minded {
            let slots = limits.get(class).copied().unwrap_or(0);
            core.limit_class(*class, slots.saturating_mul(JOBS_PER_SLOT).max(FEWEST_JOBS));
        }
    }

    fn meet_tasks(&mut self, core: &mut Admission, tasks: &[RunningTask], now_ms: u64) {
        let running: HashSet<&TaskName> = tasks.iter().map(|task| &task.name).collect();
        self.held.retain(|name, reservations| {
            // What runs keeps its reservations; those that went with an executor are made anew below.
            let stands = running.contains(name) && reservations.iter().all(|id| core.renew(*id, now_ms));
            if !stands {
                reservations.iter().for_each(|id| core.release(*id));
            }
            stands
        });
        for task in tasks {
            if self.held.contains_key(&task.name) {
                continue;
            }
            let Some(known) = self.executors.get(&task.executor) else { continue };
            let key = ChunkKey { run: task.run, stage: task.name.1 as u32, chunk: ADOPTED };
            let cpu_milli = 1_000 * u64::from(task.slots);
            let needs =
                Resources { slots: task.slots, cpu_milli, memory_bytes: task.memory_bytes, ..Resources::default() };
            if let Some(id) = core.adopt(key, known.id, needs, now_ms) {
                self.held.insert(task.name.clone(), vec![id]);
            }
        }
    }

    fn needs(&self, demand: &Demand) -> Resources {
        let none = Capacity::default();
        let capacity = self.capacities.get(&demand.class).unwrap_or(&none);
        let slots = match demand.memory_bytes {
            0 => demand.slots.max(1),
            bytes => demand.slots.max(capacity.slots_for(bytes)),
        };
        let most = slots.min(capacity.most.max(1));
        Resources {
            slots: if capacity.most > 0 && slots > capacity.most { Resources::WHOLE } else { slots },
            cpu_milli: 1_000 * u64::from(most),
            memory_bytes: match demand.memory_bytes {
                0 => capacity.slot_memory_bytes.unwrap_or(0).saturating_mul(u64::from(most)),
                bytes => bytes,
            },
            gpu_milli: match &*demand.class {
                GPU => 1_000 * u64::from(most) / u64::from(capacity.most.max(1)),
                _ => 0,
            },
        }
    }
}

impl Inner {
    /// Makes each stage ask for as much as it has waiting, and no more than there are slots.
    fn meet_stages(&mut self, stages: &[Stage], strategy: Strategy, now_ms: u64) {
        let there: BTreeSet<(RunId, u32)> = stages.iter().map(|stage| (stage.run, stage.stage as u32)).collect();
        let (core, places) = (&mut self.core, &mut self.places);
        let mut asked = std::mem::take(&mut places.asked);
        asked.retain(|(run, stage), asked| {
            let stays = there.contains(&(*run, *stage));
            if !stays {
                for chunk in &asked.chunks {
                    core.withdraw(ChunkKey { run: *run, stage: *stage, chunk: *chunk });
                }
            }
            stays
        });
        for stage in stages {
            let number = stage.stage as u32;
            let class = self.names.class(&stage.demand.class);
            let most = places.capacities.get(&stage.demand.class).map_or(1, |capacity| capacity.slots.max(1));
            let want = stage.units.min(most as usize);
            let needs = places.needs(&stage.demand);
            let key = rowmill_cores::seed::mix(stage.stage as u64);
            let route = Route { strategy, key, ..Route::default() };
            let own = asked.entry((stage.run, number)).or_default();
            while own.chunks.len() > want {
                let Some(chunk) = own.chunks.pop_back() else { break };
                core.withdraw(ChunkKey { run: stage.run, stage: number, chunk });
            }
            while own.chunks.len() < want {
                let chunk = own.next;
                own.next = if chunk + 1 < ADOPTED { chunk + 1 } else { 0 };
                match core.request(ChunkKey { run: stage.run, stage: number, chunk }, class, needs, route, now_ms) {
                    Ok(()) => own.chunks.push_back(chunk),
                    Err(Refusal::Duplicate) => {}
                    Err(Refusal::OverQuota { limit }) => {
                        let reason = format!(
                            "one partition of stage {number} needs more {} than the quota of its organisation or team \
                             allows at a time",
                            format!("{limit:?}").to_lowercase()
                        );
                        if !self.failed.iter().any(|(job, _)| *job == stage.job) {
                            self.failed.push((stage.job.clone(), reason));
                        }
                        break;
                    }
                    // The job is over, and Ballista does not know yet.
                    Err(_) => break,
                }
            }
        }
        places.asked = asked;
    }

    fn no_longer_asked(&mut self, key: ChunkKey) {
        if let Some(asked) = self.places.asked.get_mut(&(key.run, key.stage))
            && let Some(at) = asked.chunks.iter().position(|chunk| *chunk == key.chunk)
        {
            asked.chunks.remove(at);
        }
    }
}

impl Desk {
    /// One pass: what is there, what runs, what waits; and what of it goes where.
    pub(crate) fn place(
        &self,
        executors: &[Executor],
        tasks: &[RunningTask],
        stages: &[Stage],
        strategy: Strategy,
    ) -> Grants {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let now_ms = self.now_ms();
        inner.places.meet_executors(&mut inner.core, &mut inner.names, executors);
        inner.places.meet_tasks(&mut inner.core, tasks, now_ms);
        inner.meet_stages(stages, strategy, now_ms);
        let names: HashMap<ExecutorId, String> =
            inner.places.executors.iter().map(|(name, known)| (known.id, name.clone())).collect();
        let jobs: HashMap<(RunId, u32), (JobId, usize)> =
            stages.iter().map(|stage| ((stage.run, stage.stage as u32), (stage.job.clone(), stage.stage))).collect();
        let mut grants = Grants::new();
        while let Some(decision) = inner.core.decide(now_ms) {
            match decision {
                Decision::Grant { key, executor, reservation } => {
                    inner.no_longer_asked(key);
                    match (jobs.get(&(key.run, key.stage)), names.get(&executor)) {
                        (Some(stage), Some(name)) => {
                            grants.entry(stage.clone()).or_default().push((name.clone(), reservation));
                        }
                        _ => inner.core.release(reservation),
                    }
                }
                Decision::RefuseChunk { key, why } => {
                    inner.no_longer_asked(key);
                    // A class that nobody serves is the watch's business; it asks again with the next pass.
                    if matches!(why, Refusal::NoFit { .. })
                        && let Some((job, stage)) = jobs.get(&(key.run, key.stage))
                    {
                        inner.failed.push((job.clone(), format!("stage {stage}: {why}")));
                    }
                }
                Decision::StartRun(_) | Decision::RefuseRun { .. } => inner.tell(decision),
                // What runs was prolonged above; the watch warns.
                Decision::Expired { .. } | Decision::Unserved { .. } => {}
            }
        }
        grants
    }

    /// A task was bound: it holds these reservations until the graphs do not name it any more.
    pub(crate) fn bound(&self, task: TaskName, reservations: Vec<ReservationId>) {
        self.inner.lock().places.held.insert(task, reservations);
    }

    /// Grants that could not be used.
    pub(crate) fn unused(&self, reservations: impl IntoIterator<Item = ReservationId>) {
        let mut inner = self.inner.lock();
        for reservation in reservations {
            inner.core.release(reservation);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rowmill_wire::handshake::TenantName;

    use super::super::{AdmissionOptions, Ask, Place, QuotaOptions};
    use super::*;

    fn executor(name: &str, class: &str, slots: u32) -> Executor {
        let classes = vec![class.into()];
        Executor { name: name.to_owned(), classes, slots, memory_bytes: u64::from(slots) << 30, open: true }
    }

    fn enter(desk: &Arc<Desk>, tenant: &str) -> Place {
        let tenant = if tenant.is_empty() { TenantName::default() } else { TenantName::parse(tenant).unwrap() };
        let (place, mut news) =
            desk.enter(Ask { queue: String::new(), tenant, class: "cpu".into(), bytes: 1 }).unwrap();
        assert_eq!(news.try_recv(), Ok(Ok(())));
        place
    }

    fn stage(place: &Place, job: &str, units: usize) -> Stage {
        let demand = Demand::plain("cpu");
        Stage { job: JobId::from(job.to_owned()), run: place.mark().0, stage: 1, units, demand }
    }

    fn given(grants: &Grants, job: &str) -> usize {
        grants.get(&(JobId::from(job.to_owned()), 1)).map_or(0, Vec::len)
    }

    /// Binds all grants, as tasks of one partition each.
    fn bind(desk: &Desk, grants: Grants, stages: &[Stage], running: &mut Vec<RunningTask>) {
        for ((job, stage), grants) in grants {
            let run = stages.iter().find(|own| own.job == job).unwrap().run;
            for (executor, reservation) in grants {
                let name = (job.clone(), stage, 0, running.len());
                desk.bound(name.clone(), vec![reservation]);
                running.push(RunningTask { name, run, executor, slots: 1, memory_bytes: 0 });
            }
        }
    }

    #[test]
    fn a_large_job_does_not_starve_a_small_one() {
        let desk = Arc::new(Desk::new(AdmissionOptions::default()));
        let (large, small) = (enter(&desk, ""), enter(&desk, ""));
        let executors = [executor("a", "cpu", 2), executor("b", "cpu", 2)];
        let mut stages = vec![stage(&large, "large", 1_000)];
        let mut running = Vec::new();
        let grants = desk.place(&executors, &running, &stages, Strategy::default());
        assert_eq!(given(&grants, "large"), 4, "alone it gets everything");
        bind(&desk, grants, &stages, &mut running);
        stages[0].units -= 4;
        // One comes later with three partitions: it gets the next free slots.
        stages.push(stage(&small, "small", 3));
        assert!(desk.place(&executors, &running, &stages, Strategy::default()).is_empty());
        running.remove(0);
        let grants = desk.place(&executors, &running, &stages, Strategy::default());
        assert_eq!((given(&grants, "large"), given(&grants, "small")), (0, 1));
        bind(&desk, grants, &stages, &mut running);
        stages[1].units -= 1;
        running.drain(0..3);
        let grants = desk.place(&executors, &running, &stages, Strategy::default());
        assert!(given(&grants, "small") >= 1, "{grants:?}");
        assert_eq!(given(&grants, "large") + given(&grants, "small"), 3);
    }

    #[test]
    fn a_quota_of_tasks_holds_and_others_get_the_rest() {
        let quota = QuotaOptions { tasks: Some(1), ..QuotaOptions::default() };
        let quotas = BTreeMap::from([("acme/data".to_owned(), quota)]);
        let desk = Arc::new(Desk::new(AdmissionOptions { quotas, ..AdmissionOptions::default() }));
        let (bound, free) = (enter(&desk, "acme/data"), enter(&desk, "acme/web"));
        let executors = [executor("a", "cpu", 4)];
        let stages = [stage(&bound, "bound", 10), stage(&free, "free", 10)];
        let mut running = Vec::new();
        let grants = desk.place(&executors, &running, &stages, Strategy::default());
        assert_eq!((given(&grants, "bound"), given(&grants, "free")), (1, 3));
        bind(&desk, grants, &stages, &mut running);
        let tenants = desk.tenants();
        assert_eq!(tenants.len(), 2);
        assert_eq!((tenants[0].name.to_string().as_str(), tenants[0].tasks), ("acme/data", 1));
        // What ends is free for the same team again.
        running.retain(|task| task.name.0.as_str() != "bound");
        assert_eq!(given(&desk.place(&executors, &running, &stages, Strategy::default()), "bound"), 1);
    }

    #[test]
    fn a_partition_that_breaks_the_quota_alone_fails_its_job() {
        let quota = QuotaOptions { memory_bytes: Some(1 << 20), ..QuotaOptions::default() };
        let quotas = BTreeMap::from([("*".to_owned(), quota)]);
        let desk = Arc::new(Desk::new(AdmissionOptions { quotas, ..AdmissionOptions::default() }));
        let place = enter(&desk, "");
        let grants = desk.place(&[executor("a", "cpu", 2)], &[], &[stage(&place, "job", 1)], Strategy::default());
        assert!(grants.is_empty());
        let failed = desk.look(&HashSet::new());
        assert!(matches!(failed.as_slice(), [(_, why)] if why.contains("memory")), "{failed:?}");
    }

    #[test]
    fn a_partition_that_asks_for_memory_takes_the_slots_that_have_it() {
        let desk = Arc::new(Desk::new(AdmissionOptions::default()));
        let [half, most, all, plain] = [(); 4].map(|()| enter(&desk, ""));
        let large = Executor { memory_bytes: 64 << 30, ..executor("large", "cpu", 4) };
        let executors = [executor("small", "cpu", 4), large];
        let asking = |place: &Place, job: &str, memory_bytes: u64| Stage {
            demand: Demand::plain("cpu").with_memory(memory_bytes),
            ..stage(place, job, 10)
        };
        // Half of the small one's memory: two at a time there, and as many on the other, whatever that has.
        let grants = desk.place(&executors, &[], &[asking(&half, "half", 2 << 30)], Strategy::default());
        assert_eq!(given(&grants, "half"), 4, "{grants:?}");
        desk.unused(grants.into_values().flatten().map(|(_, reservation)| reservation));
        // More than the small one has.
        let grants = desk.place(&executors, &[], &[asking(&most, "most", 16 << 30)], Strategy::default());
        let places: Vec<&String> = grants.values().flatten().map(|(name, _)| name).collect();
        assert_eq!(places, ["large"; 4]);
        desk.unused(grants.into_values().flatten().map(|(_, reservation)| reservation));
        // More than anybody has waits for somebody, and keeps nobody from the slots.
        let stages = [asking(&all, "all", 65 << 30), stage(&plain, "plain", 20)];
        let grants = desk.place(&executors, &[], &stages, Strategy::default());
        assert_eq!((given(&grants, "all"), given(&grants, "plain")), (0, 8));
    }

    #[test]
    fn memory_of_what_runs_is_kept_when_an_executor_says_what_it_has() {
        let desk = Arc::new(Desk::new(AdmissionOptions::default()));
        let place = enter(&desk, "");
        let unknown = Executor { memory_bytes: 0, ..executor("a", "cpu", 4) };
        let stages = [Stage { demand: Demand::plain("cpu").with_memory(3 << 30), ..stage(&place, "job", 10) }];
        let grants = desk.place(&[unknown], &[], &stages, Strategy::default());
        assert_eq!(given(&grants, "job"), 4, "nothing is known yet");
        desk.unused(grants.into_values().flatten().map(|(_, reservation)| reservation));
        let running = RunningTask {
            name: (JobId::from("job".to_owned()), 1, 0, 0),
            run: place.mark().0,
            executor: "a".to_owned(),
            slots: 1,
            memory_bytes: 3 << 30,
        };
        let grants = desk.place(&[executor("a", "cpu", 4)], &[running], &stages, Strategy::default());
        assert_eq!(given(&grants, "job"), 0, "one has three of its four");
        let grants = desk.place(&[executor("a", "cpu", 4)], &[], &stages, Strategy::default());
        assert_eq!(given(&grants, "job"), 1);
    }

    #[test]
    fn what_is_believed_follows_the_graphs() {
        let desk = Arc::new(Desk::new(AdmissionOptions::default()));
        let place = enter(&desk, "");
        let stages = [stage(&place, "job", 10)];
        let mut running = Vec::new();
        let grants = desk.place(&[executor("a", "cpu", 2)], &running, &stages, Strategy::default());
        bind(&desk, grants, &stages, &mut running);
        // The executor goes, its tasks are rolled back; another comes.
        let grants = desk.place(&[executor("b", "cpu", 2)], &[], &stages, Strategy::default());
        assert_eq!(given(&grants, "job"), 2);
        // Grants that were not used are free again, and a task that nobody asked for takes its slot.
        desk.unused(grants.into_values().flatten().map(|(_, reservation)| reservation));
        let name = (JobId::from("job".to_owned()), 1, 0, 7);
        let stranger = RunningTask { name, run: place.mark().0, executor: "b".to_owned(), slots: 1, memory_bytes: 0 };
        let grants = desk.place(&[executor("b", "cpu", 2)], &[stranger], &stages, Strategy::default());
        assert_eq!(given(&grants, "job"), 1);
        // A job whose place was given back gets nothing.
        drop(place);
        assert!(desk.place(&[executor("c", "cpu", 2)], &[], &stages, Strategy::default()).is_empty());
    }

    #[test]
    fn a_draining_executor_gets_nothing_until_it_opens_again() {
        let desk = Arc::new(Desk::new(AdmissionOptions::default()));
        let place = enter(&desk, "");
        let stages = [stage(&place, "job", 10)];
        let closed = Executor { open: false, ..executor("a", "cpu", 2) };
        assert!(desk.place(&[closed], &[], &stages, Strategy::default()).is_empty());
        assert_eq!(given(&desk.place(&[executor("a", "cpu", 2)], &[], &stages, Strategy::default()), "job"), 2);
    }
}
