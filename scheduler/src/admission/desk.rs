//! Jobs: they enter a queue, wait, get a place, and leave.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use ballista_core::JobId;
use parking_lot::Mutex;
use rowmill_cores::admission::{Admission, Decision, Refusal, Ticket};
use rowmill_cores::ids::{ClassId, QueueId, RunId, Tenant};
use rowmill_wire::handshake::TenantName;
use tokio::sync::oneshot;

use super::options::{AdmissionOptions, DEFAULT_QUEUE, QueueOptions};
use super::places::Places;

/// How many names of organisations, teams and classes are believed: they are kept for as long as the scheduler lives.
const MOST_NAMES: usize = 20_000;

/// Why a job was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// The queue holds what it may.
    #[error("{0}")]
    Full(String),
    /// It waited too long.
    #[error("{0}")]
    Late(String),
    /// Waiting would not help.
    #[error("{0}")]
    Never(String),
}

/// What asks for a place.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    /// The queue; empty for the default one.
    pub(crate) queue: String,
    /// Whom it is for.
    pub(crate) tenant: TenantName,
    /// The class that it mostly runs on.
    pub(crate) class: Arc<str>,
    /// Bytes that are kept while it waits.
    pub(crate) bytes: u64,
}

/// An extension of a job's configuration: its number here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Admitted(pub(crate) RunId);

/// A place in a queue, and then among what runs. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Place {
    desk: Arc<Desk>,
    run: RunId,
}

impl Place {
    /// The extension by which passes find the place of a job.
    pub(crate) fn mark(&self) -> Admitted {
        Admitted(self.run)
    }

    /// Ballista's name of the job: should whoever holds this never look, its end is noticed.
    pub(crate) fn name(&self, job: &JobId) {
        if let Some(run) = self.desk.inner.lock().runs.get_mut(&self.run) {
            run.job = Some(job.clone());
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.desk.leave(self.run);
    }
}

#[derive(Debug)]
struct Run {
    queue: QueueId,
    class: Arc<str>,
    tenant: Tenant,
    bytes: u64,
    /// Told when it may begin; taken then.
    waiter: Option<oneshot::Sender<Result<(), Refused>>>,
    job: Option<JobId>,
    /// Whether Ballista was seen running the job.
    seen: bool,
}

/// Numbers for names.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) queues: Vec<(Arc<str>, QueueOptions)>,
    organisations: HashMap<Arc<str>, u32>,
    pub(super) tenants: BTreeMap<Tenant, TenantName>,
    numbers: HashMap<TenantName, Tenant>,
    classes: HashMap<Arc<str>, ClassId>,
}

impl Names {
    pub(super) fn class(&mut self, class: &Arc<str>) -> ClassId {
        if let Some(id) = self.classes.get(class) {
            return *id;
        }
        // Where somebody invents classes, those after the last share a number: they have no executors anyway.
        let id = ClassId(u16::try_from(self.classes.len().min(MOST_NAMES)).unwrap_or(u16::MAX));
        if self.classes.len() < MOST_NAMES {
            self.classes.insert(class.clone(), id);
        }
        id
    }

    fn tenant(&mut self, name: &TenantName) -> Option<(Tenant, bool)> {
        if let Some(tenant) = self.numbers.get(name) {
            return Some((*tenant, false));
        }
        if self.numbers.len() >= MOST_NAMES {
            return None;
        }
        let next = u32::try_from(self.organisations.len()).ok()?;
        let organisation = *self.organisations.entry(name.organisation.clone()).or_insert(next);
        let tenant = Tenant { organisation, team: u32::try_from(self.numbers.len()).ok()? };
        self.numbers.insert(name.clone(), tenant);
        self.tenants.insert(tenant, name.clone());
        Some((tenant, true))
    }
}

pub(super) struct Inner {
    pub(super) core: Admission,
    pub(super) names: Names,
    pub(super) places: Places,
    runs: HashMap<RunId, Run>,
    waiting_bytes: u64,
    next_run: u128,
    /// Jobs that can never go on, and why.
    pub(super) failed: Vec<(JobId, String)>,
}

/// The queues of a scheduler.
pub(crate) struct Desk {
    options: AdmissionOptions,
    began: Instant,
    pub(super) inner: Mutex<Inner>,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").field("options", &self.options).finish_non_exhaustive()
    }
}

/// What a queue does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct QueueView {
    pub(crate) name: Arc<str>,
    pub(crate) options: QueueOptions,
    pub(crate) waiting: u32,
    pub(crate) running: u32,
    /// How long the oldest that waits has done so.
    pub(crate) oldest_ms: u64,
}

/// What a team has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TenantView {
    pub(crate) name: TenantName,
    pub(crate) jobs: u64,
    pub(crate) tasks: u64,
}

impl Desk {
    pub(crate) fn new(options: AdmissionOptions) -> Self {
        let queues = options.all_queues();
        let core = Admission::new(options.core(&queues));
        let names = Names { queues: queues.into_iter().collect(), ..Names::default() };
        let inner = Inner {
            core,
            names,
            places: Places::default(),
            runs: HashMap::new(),
            waiting_bytes: 0,
            next_run: 0,
            failed: Vec::new(),
        };
        Self { options, began: Instant::now(), inner: Mutex::new(inner) }
    }

    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Puts a job into its queue. What is received says that it may begin, or never will.
    ///
    /// # Errors
    /// The queue is full or unknown.
    pub(crate) fn enter(
        self: &Arc<Self>,
        ask: Ask,
    ) -> Result<(Place, oneshot::Receiver<Result<(), Refused>>), Refused> {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let wanted = if ask.queue.is_empty() { DEFAULT_QUEUE } else { &ask.queue };
        let position = inner.names.queues.iter().position(|(name, _)| &**name == wanted);
        let Some(queue) = position.and_then(|at| u16::try_from(at).ok()).map(QueueId) else {
            let known: Vec<&str> = inner.names.queues.iter().map(|(name, _)| &**name).collect();
            let shown = wanted.escape_default();
            return Err(Refused::Never(format!("the cluster has no queue `{shown}`; it has {}", known.join(", "))));
        };
        let Some((tenant, new)) = inner.names.tenant(&ask.tenant) else {
            return Err(Refused::Never("the scheduler knows too many organisations and teams".to_owned()));
        };
        if new {
            let (organisation, team) = self.options.tenant(&ask.tenant);
            inner.core.know(tenant, organisation, team);
        }
        let waiting_bytes = inner.waiting_bytes.saturating_add(ask.bytes);
        if waiting_bytes > self.options.most_waiting_bytes {
            let reason = format!(
                "the plans that wait on the cluster take {} bytes, and no more than {} are kept",
                inner.waiting_bytes, self.options.most_waiting_bytes
            );
            return Err(Refused::Full(reason));
        }
        let class = inner.names.class(&ask.class);
        inner.places.mind_class(&mut inner.core, class);
        inner.next_run += 1;
        let run = RunId(inner.next_run);
        let ticket = Ticket { run, queue, class, tenant };
        inner.core.enqueue(ticket, self.now_ms()).map_err(|refusal| match refusal {
            Refusal::QueueFull { waiting } => {
                Refused::Full(format!("the queue `{wanted}` of the cluster is full: {waiting} jobs wait in it"))
            }
            other => Refused::Never(format!("queue `{wanted}`: {other}")),
        })?;
        let (waiter, news) = oneshot::channel();
        let waits =
            Run { queue, class: ask.class, tenant, bytes: ask.bytes, waiter: Some(waiter), job: None, seen: false };
        inner.runs.insert(run, waits);
        inner.waiting_bytes = waiting_bytes;
        self.advance(inner);
        Ok((Place { desk: Arc::clone(self), run }, news))
    }

    fn leave(&self, run: RunId) {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        inner.end(run);
        self.advance(inner);
    }

    /// Begins what may begin, refuses what waited too long.
    pub(super) fn advance(&self, inner: &mut Inner) {
        let now_ms = self.now_ms();
        while let Some(decision) = inner.core.admit(now_ms) {
            inner.tell(decision);
        }
    }

    /// Looks at the time, and at what Ballista runs; returns jobs that can never go on.
    pub(crate) fn look(&self, running: &HashSet<String>) -> Vec<(JobId, String)> {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let mut ended = Vec::new();
        for (id, run) in &mut inner.runs {
            let Some(job) = &run.job else { continue };
            if running.contains(job.as_str()) {
                run.seen = true;
            } else if run.seen {
                ended.push(*id);
            }
        }
        for run in ended {
            inner.end(run);
        }
        self.advance(inner);
        std::mem::take(&mut inner.failed)
    }

    /// The queues in the order of their names.
    pub(crate) fn queues(&self) -> Vec<QueueView> {
        let inner = self.inner.lock();
        let now_ms = self.now_ms();
        (0..)
            .zip(&inner.names.queues)
            .filter_map(|(number, (name, options))| {
                let state = inner.core.queue(QueueId(number))?;
                Some(QueueView {
                    name: name.clone(),
                    options: options.clone(),
                    waiting: state.waiting,
                    running: state.running,
                    oldest_ms: state.oldest_ms.map_or(0, |since_ms| now_ms.saturating_sub(since_ms)),
                })
            })
            .collect()
    }

    /// The jobs of an organisation, or of a team, that run.
    pub(crate) fn jobs_of(&self, tenant: &TenantName) -> HashSet<String> {
        let inner = self.inner.lock();
        let own = |run: &&Run| inner.names.tenants.get(&run.tenant).is_some_and(|other| tenant.covers(other));
        inner.runs.values().filter(own).filter_map(|run| run.job.as_ref()).map(ToString::to_string).collect()
    }

    /// Teams that have something, in the order of their names.
    pub(crate) fn tenants(&self) -> Vec<TenantView> {
        let inner = self.inner.lock();
        let mut all: Vec<TenantView> = inner
            .names
            .tenants
            .iter()
            .map(|(tenant, name)| (inner.core.team(*tenant), name))
            .filter(|(usage, _)| usage.runs > 0 || usage.tasks > 0)
            .map(|(usage, name)| TenantView { name: name.clone(), jobs: usage.runs, tasks: usage.tasks })
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }
}

impl Inner {
    fn end(&mut self, run: RunId) {
        if let Some(run) = self.runs.remove(&run)
            && run.waiter.is_some()
        {
            self.waiting_bytes = self.waiting_bytes.saturating_sub(run.bytes);
        }
        self.core.end_run(run);
    }

    /// Tells a job what was decided about it.
    pub(super) fn tell(&mut self, decision: Decision) {
        let (run, news) = match decision {
            Decision::StartRun(run) => (run, Ok(())),
            Decision::RefuseRun { run, why } => (run, Err(Refused::Late(self.late(run, why)))),
            _ => return,
        };
        let Some(waits) = self.runs.get_mut(&run) else { return };
        if let Some(waiter) = waits.waiter.take() {
            self.waiting_bytes = self.waiting_bytes.saturating_sub(waits.bytes);
            // Whoever waited may have gone, and gives its place back.
            let _ = waiter.send(news);
        }
    }

    /// Why a job did not begin in time, as far as one can see.
    fn late(&self, run: RunId, why: Refusal) -> String {
        let Some(waits) = self.runs.get(&run) else { return why.to_string() };
        let waited_s = match why {
            Refusal::QueueTimeout { waited_ms } => waited_ms / 1_000,
            _ => 0,
        };
        let mut reasons = Vec::new();
        if let Some(((name, options), state)) =
            self.names.queues.get(usize::from(waits.queue.0)).zip(self.core.queue(waits.queue))
        {
            reasons.push(format!("it waited {waited_s} s in the queue `{name}` of the cluster"));
            reasons.push(match options.max_running {
                Some(most) if state.running >= most => format!("{most} jobs of it run, which is all it may have"),
                _ => format!("{} jobs of it run and {} wait", state.running, state.waiting),
            });
        }
        if !self.places.serves(&waits.class) {
            reasons.push(format!("no executor serves class {}", waits.class));
        }
        if let Some(name) = self.names.tenants.get(&waits.tenant) {
            let (team, organisation) =
                (self.core.team(waits.tenant), self.core.organisation(waits.tenant.organisation));
            reasons.push(format!("{name} runs {} jobs, its organisation {}", team.runs, organisation.runs));
        }
        reasons.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn desk(options: QueueOptions) -> Arc<Desk> {
        let queues = BTreeMap::from([("batch".into(), options)]);
        Arc::new(Desk::new(AdmissionOptions { queues, ..AdmissionOptions::default() }))
    }

    fn ask(queue: &str) -> Ask {
        Ask { queue: queue.to_owned(), tenant: TenantName::default(), class: "cpu".into(), bytes: 10 }
    }

    type News = oneshot::Receiver<Result<(), Refused>>;

    fn begun(news: &mut News) -> bool {
        matches!(news.try_recv(), Ok(Ok(())))
    }

    #[test]
    fn places_are_given_back_when_they_are_dropped() {
        let desk = desk(QueueOptions { max_running: Some(1), ..QueueOptions::default() });
        let (first, mut first_news) = desk.enter(ask("batch")).unwrap();
        let (second, mut second_news) = desk.enter(ask("batch")).unwrap();
        let (_third, mut third_news) = desk.enter(ask("batch")).unwrap();
        assert!(begun(&mut first_news) && !begun(&mut second_news));
        // Who goes while waiting takes nobody's place.
        drop(second);
        assert!(!begun(&mut third_news));
        drop(first);
        assert!(begun(&mut third_news));
        assert_eq!(desk.inner.lock().waiting_bytes, 0);
        let view = desk.queues().into_iter().find(|queue| &*queue.name == "batch").unwrap();
        assert_eq!((view.waiting, view.running), (0, 1));
    }

    #[test]
    fn a_full_queue_refuses_and_keeps_what_waits() {
        let desk = desk(QueueOptions { max_running: Some(1), max_queued: 2, ..QueueOptions::default() });
        let mut entered: Vec<_> = (0..3).map(|_| desk.enter(ask("batch")).unwrap()).collect();
        let refused = desk.enter(ask("batch")).unwrap_err();
        assert!(
            matches!(&refused, Refused::Full(why) if why.contains("`batch`") && why.contains("2 jobs")),
            "{refused}"
        );
        // Another queue has room of its own.
        assert!(desk.enter(ask("")).is_ok());
        let unknown = desk.enter(ask("nightly")).unwrap_err();
        assert!(matches!(&unknown, Refused::Never(why) if why.contains("batch, default")), "{unknown}");
        for _ in 0..3 {
            let (place, mut news) = entered.remove(0);
            assert!(begun(&mut news));
            drop(place);
        }
    }

    #[test]
    fn what_waits_too_long_is_told_why() {
        let options =
            QueueOptions { max_running: Some(1), timeout: Duration::from_millis(20), ..QueueOptions::default() };
        let desk = desk(options);
        let (_first, _news) = desk.enter(ask("batch")).unwrap();
        let (_second, mut news) = desk.enter(ask("batch")).unwrap();
        std::thread::sleep(Duration::from_millis(30));
        assert!(desk.look(&HashSet::new()).is_empty());
        match news.try_recv() {
            Ok(Err(Refused::Late(why))) => {
                assert!(
                    why.contains("`batch`") && why.contains("all it may have") && why.contains("class cpu"),
                    "{why}"
                );
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn plans_that_wait_are_bounded() {
        let queues =
            BTreeMap::from([("batch".into(), QueueOptions { max_running: Some(1), ..QueueOptions::default() })]);
        let options = AdmissionOptions { queues, most_waiting_bytes: 25, ..AdmissionOptions::default() };
        let desk = Arc::new(Desk::new(options));
        let _entered: Vec<_> = (0..3).map(|_| desk.enter(ask("batch")).unwrap()).collect();
        assert!(matches!(desk.enter(ask("batch")), Err(Refused::Full(_))));
    }

    #[test]
    fn a_job_whose_end_nobody_looked_at_is_over() {
        let desk = desk(QueueOptions { max_running: Some(1), ..QueueOptions::default() });
        let (first, _news) = desk.enter(ask("batch")).unwrap();
        let (_second, mut news) = desk.enter(ask("batch")).unwrap();
        let job = JobId::new("job-1");
        first.name(&job);
        // Not yet planned, then running, then gone.
        desk.look(&HashSet::new());
        desk.look(&HashSet::from([job.to_string()]));
        assert!(!begun(&mut news));
        desk.look(&HashSet::new());
        assert!(begun(&mut news));
        drop(first);
        let view = desk.queues().into_iter().find(|queue| &*queue.name == "batch").unwrap();
        assert_eq!(view.running, 1);
    }
}
