//! The right to decide, asked by whatever decides: placing, taking work, answering.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ballista_scheduler::scheduler_server::JobIdGenerator;
use parking_lot::Mutex;
use rowmill_cores::election::{ElectionAction, Elector};
use rowmill_cores::ids::Fence;
use rowmill_wire::handshake::Guard;
use rowmill_wire::leader::standby;
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// The elector of a process and the clock that it goes by.
#[derive(Debug)]
pub(crate) struct Clocked {
    began: Instant,
    elector: Mutex<Elector>,
}

impl Clocked {
    pub(crate) fn new(elector: Elector) -> Self {
        Self { began: Instant::now(), elector: Mutex::new(elector) }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Tells the elector something, and the time.
    pub(crate) fn tell(&self, what: impl FnOnce(&mut Elector, u64) -> Vec<ElectionAction>) -> Vec<ElectionAction> {
        // The clock is read inside: an elector whose time went back would be wrong.
        let mut elector = self.elector.lock();
        let now_ms = self.now_ms();
        what(&mut elector, now_ms)
    }

    /// When the elector wants to hear of the time next.
    pub(crate) fn deadline(&self) -> Instant {
        // An hour is as good as never, and does not overflow.
        let next_ms = self.elector.lock().next_deadline_ms().min(self.now_ms().saturating_add(3_600_000));
        self.began + Duration::from_millis(next_ms)
    }

    fn leads(&self) -> Option<Fence> {
        let elector = self.elector.lock();
        elector.leads(self.now_ms())
    }
}

/// A term of leadership. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Term {
    number: u64,
    elector: Option<Arc<Clocked>>,
}

impl Term {
    /// The term of a scheduler that is the only one: it has no number and never ends.
    pub(crate) fn only() -> Self {
        Self { number: 0, elector: None }
    }

    /// The term that begins with this fence.
    pub(crate) fn new(fence: Fence, elector: Arc<Clocked>) -> Self {
        Self { number: fence.0, elector: Some(elector) }
    }

    /// Its number: zero for a scheduler that is the only one.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Whether this process may decide now: by its own clock, and without asking anybody, so that one that was stopped
    /// and goes on knows at its first step.
    pub(crate) fn holds(&self) -> bool {
        self.elector.as_ref().is_none_or(|elector| elector.leads() == Some(Fence(self.number)))
    }

    /// # Errors
    /// The status of a scheduler that stands by, once the term is over.
    pub(crate) fn check(&self) -> Result<(), Status> {
        if self.holds() { Ok(()) } else { Err(standby(None)) }
    }

    /// Numbers for jobs that no other term gives: executors name files by them.
    pub(crate) fn job_ids(&self) -> Option<Arc<dyn JobIdGenerator>> {
        self.elector.as_ref().map(|_| Arc::new(JobIds { term: self.number, last: AtomicU64::new(0) }) as Arc<_>)
    }
}

/// Names of jobs: a number that grows, by the wall clock where that goes forward, and the term.
struct JobIds {
    term: u64,
    last: AtomicU64,
}

#[async_trait::async_trait]
impl JobIdGenerator for JobIds {
    async fn next_id(&self) -> String {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Microseconds: jobs are sorted by their names, which is by age.
        let now = u64::try_from(since.as_micros()).unwrap_or_default();
        let next = |last: u64| Some(last.saturating_add(1).max(now));
        let last = self.last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).unwrap_or_default();
        format!("{:014x}-{}", last.saturating_add(1).max(now), self.term)
    }
}

/// Lets those through who have a right, as long as the term holds.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    guard: Guard,
    term: Term,
}

impl Gate {
    pub(crate) fn new(guard: Guard, term: &Term) -> Self {
        Self { guard, term: term.clone() }
    }
}

impl Interceptor for Gate {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let request = self.guard.call(request)?;
        self.term.check()?;
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use rowmill_cores::election::ElectionOptions;
    use rowmill_cores::journal::Acquired;

    use super::*;

    #[test]
    fn a_term_holds_until_its_lease_may_have_run_out() {
        let elector = Elector::new(ElectionOptions { ttl_ms: 60, answer_ms: 20 });
        let elector = Arc::new(Clocked::new(elector));
        assert_eq!(elector.tell(Elector::tick), [ElectionAction::Acquire { request: 1 }]);
        elector.tell(|elector, now_ms| elector.acquired(1, Acquired::Granted(Fence(4)), now_ms));
        let term = Term::new(Fence(4), elector.clone());
        assert!(term.holds() && term.check().is_ok());
        assert!(!Term::new(Fence(3), elector).holds(), "an earlier term of the same process");
        std::thread::sleep(Duration::from_millis(70));
        assert!(!term.holds(), "nobody told it");
        assert!(term.check().is_err());
        assert!(Term::only().holds());
    }

    #[tokio::test]
    async fn names_of_jobs_grow_and_are_those_of_a_term() {
        let elector = Arc::new(Clocked::new(Elector::new(ElectionOptions::default())));
        let ids = Term::new(Fence(12), elector).job_ids().unwrap();
        let mut names = Vec::new();
        for _ in 0..1_000 {
            names.push(ids.next_id().await);
        }
        assert!(names.is_sorted() && names.windows(2).all(|two| two[0] != two[1]));
        assert!(names.iter().all(|name| name.ends_with("-12")));
        assert!(Term::only().job_ids().is_none());
    }
}
