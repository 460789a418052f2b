//! The coordinator: runs, their stages and chunks, attempts under leases, retries, commits, cancel, resume.
//!
//! It decides and does nothing. Every event returns [`Action`]s, which the driver carries out in order: requests go to
//! [`crate::admission`], launches and cancels to executors, commits to the journal.
//!
//! ```text
//!  Waiting ─inputs committed─▶ Ready ─window─▶ Asked ─placed─▶ Running ─finished─▶ Committing ─▶ Committed
//!                                ▲                                │ lease ran out, executor lost, failed
//!                                └──────────── Backoff ◀──────────┘
//! ```
//! What an attempt reports counts only while it is the chunk's current attempt: a late message of one that was given up
//! changes nothing. The journal, not this core, is the judge of who commits; a scheduler that was replaced is told so by
//! the journal ([`CommitAnswer::FencedOff`]) and stops.

mod decide;
mod plan;
mod run;
mod types;

use std::collections::{BTreeMap, BTreeSet};

pub use plan::{Input, PlanError, Reads, RunPlan, StagePlan};
pub use types::{Action, Failure, Options, RunEnd, TaskResult};

use self::run::{ChunkState, Run};
use crate::ids::{AttemptId, ChunkKey, ExecutorId, Fence, ReservationId, RunId};
use crate::journal::CommitAnswer;
use crate::sabotage::{Mutant, Sabotage};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Chunk(ChunkKey),
    Run(RunId),
}

/// The coordinator of all runs of one scheduler, under one fence.
#[derive(Debug)]
pub struct Coordinator {
    options: Options,
    fence: Fence,
    seed: u64,
    runs: BTreeMap<RunId, Run>,
    on_executor: BTreeMap<ExecutorId, BTreeSet<ChunkKey>>,
    timers: BTreeSet<(u64, Timer)>,
    out: Vec<Action>,
    sabotage: Sabotage,
}

impl Coordinator {
    /// A coordinator that launches and commits under `fence`. The seed spreads retries.
    pub fn new(options: Options, fence: Fence, seed: u64) -> Self {
        Self {
            options,
            fence,
            seed,
            runs: BTreeMap::new(),
            on_executor: BTreeMap::new(),
            timers: BTreeSet::new(),
            out: Vec::new(),
            sabotage: Sabotage::default(),
        }
    }

    #[cfg(test)]
    pub(crate) fn sabotaged(mut self, sabotage: Sabotage) -> Self {
        self.sabotage = sabotage;
        self
    }

    /// Begins a run, or resumes it: `committed` are the chunks that the journal holds, by stage and chunk.
    ///
    /// # Errors
    /// The plan is wrong, the run is under way, or the journal does not fit the plan.
    pub fn submit(
        &mut self,
        run: RunId,
        plan: RunPlan,
        committed: impl IntoIterator<Item = (u32, u32)>,
        now_ms: u64,
    ) -> Result<Vec<Action>, PlanError> {
        plan.validate()?;
        if self.runs.contains_key(&run) {
            return Err(PlanError::Duplicate);
        }
        let state = Run::try_new(plan, committed, self.sabotage)?;
        self.runs.insert(run, state);
        self.advance(run, now_ms);
        Ok(self.take())
    }

    /// Admission found a place for a chunk.
    pub fn placed(
        &mut self,
        key: ChunkKey,
        executor: ExecutorId,
        reservation: ReservationId,
        now_ms: u64,
    ) -> Vec<Action> {
        let (fence, lease_ms) = (self.fence, self.options.lease_ms);
        let launched = self.live(key.run).and_then(|run| {
            let chunk = run.chunk(key.stage, key.chunk).filter(|chunk| chunk.state == ChunkState::Asked)?;
            chunk.launched += 1;
            let attempt = AttemptId { key, fence, number: chunk.launched };
            run.set(key.stage, key.chunk, ChunkState::Running { attempt, executor, reservation });
            Some(attempt)
        });
        if let Some(attempt) = launched {
            self.on_executor.entry(executor).or_default().insert(key);
            self.set_due(key, now_ms.saturating_add(lease_ms));
            self.out.push(Action::Launch { attempt, executor });
        } else {
            // The request was withdrawn while it was granted.
            self.out.push(Action::Release(reservation));
        }
        self.take()
    }

    /// Admission refuses a chunk for good: its class has no executor, it fits nowhere, or it waited too long.
    pub fn refused(&mut self, key: ChunkKey, now_ms: u64) -> Vec<Action> {
        let asked = self
            .live(key.run)
            .and_then(|run| run.chunk(key.stage, key.chunk))
            .is_some_and(|chunk| chunk.state == ChunkState::Asked);
        if asked {
            self.end(key.run, RunEnd::Failed(Failure::Refused(key)), now_ms);
        }
        self.take()
    }

    /// An attempt gives a sign of life. One that is not current any more is told to stop.
    pub fn alive(&mut self, attempt: AttemptId, executor: ExecutorId, now_ms: u64) -> Vec<Action> {
        match self.current(attempt) {
            Some((_, reservation)) => {
                self.set_due(attempt.key, now_ms.saturating_add(self.options.lease_ms));
                self.out.push(Action::Renew(reservation));
            }
            // A heartbeat may arrive after the report that the attempt is done: its output must not be thrown away.
            None if self.finished_well(attempt) => {}
            None => self.out.push(Action::Cancel { attempt, executor }),
        }
        self.take()
    }

    /// An attempt is over. Late and doubled reports change nothing.
    pub fn finished(&mut self, attempt: AttemptId, result: TaskResult, now_ms: u64) -> Vec<Action> {
        let key = attempt.key;
        let Some((executor, reservation)) = self.current(attempt) else {
            if self.sabotage.is(Mutant::TrustLateResult) && result == TaskResult::Succeeded {
                self.commit_late(attempt, now_ms);
            }
            return self.take();
        };
        self.forget_place(key, executor);
        self.out.push(Action::Release(reservation));
        match result {
            TaskResult::Succeeded => {
                if let Some(run) = self.live(key.run) {
                    run.set(key.stage, key.chunk, ChunkState::Committing { attempt });
                }
                self.set_due(key, now_ms.saturating_add(self.options.journal_ms));
                self.out.push(Action::Commit(attempt));
            }
            TaskResult::Failed { retryable } => self.try_again(key, Some(retryable), now_ms),
            TaskResult::HandedBack => self.try_again(key, None, now_ms),
        }
        self.take()
    }

    /// The journal's answer to [`Action::Commit`].
    pub fn commit_answered(&mut self, attempt: AttemptId, answer: CommitAnswer, now_ms: u64) -> Vec<Action> {
        let key = attempt.key;
        let committing = self
            .live(key.run)
            .and_then(|run| run.chunk(key.stage, key.chunk))
            .is_some_and(|chunk| chunk.state == ChunkState::Committing { attempt });
        match answer {
            CommitAnswer::FencedOff => self.out.push(Action::StepDown),
            _ if !committing => {}
            CommitAnswer::Committed | CommitAnswer::Lost => {
                self.clear_due(key);
                if let Some(run) = self.live(key.run) {
                    if answer == CommitAnswer::Committed
                        && let Some(chunk) = run.chunk(key.stage, key.chunk)
                    {
                        chunk.winner = Some(attempt);
                    }
                    run.commit(key.stage, key.chunk);
                }
                self.advance(key.run, now_ms);
            }
            CommitAnswer::RunEnded => self.end(key.run, RunEnd::Cancelled, now_ms),
        }
        self.take()
    }

    /// An executor is gone: what ran there runs elsewhere.
    pub fn executor_lost(&mut self, executor: ExecutorId, now_ms: u64) -> Vec<Action> {
        for key in self.on_executor.remove(&executor).unwrap_or_default() {
            self.give_up(key, now_ms);
        }
        self.take()
    }

    /// Admission freed a reservation that nobody prolonged.
    pub fn reservation_lost(&mut self, key: ChunkKey, lost: ReservationId, now_ms: u64) -> Vec<Action> {
        let current = self.live(key.run).and_then(|run| run.chunk(key.stage, key.chunk)).map(|chunk| chunk.state);
        if let Some(ChunkState::Running { reservation, .. }) = current
            && reservation == lost
            && !self.sabotage.is(Mutant::ImmortalLease)
        {
            self.give_up(key, now_ms);
        }
        self.take()
    }

    /// Ends a run; its attempts are told to stop.
    pub fn cancel(&mut self, run: RunId, now_ms: u64) -> Vec<Action> {
        if self.live(run).is_some() {
            self.end(run, RunEnd::Cancelled, now_ms);
        }
        self.take()
    }

    /// The journal holds the run's end: it is forgotten here.
    pub fn end_answered(&mut self, run: RunId) {
        if let Some(state) = self.runs.get(&run)
            && state.end.is_some()
        {
            if let Some(due_ms) = state.end_due_ms {
                self.timers.remove(&(due_ms, Timer::Run(run)));
            }
            self.runs.remove(&run);
        }
    }

    /// When [`Self::tick`] has something to do.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.timers.first().map(|(due_ms, _)| *due_ms)
    }

    /// Time passes: leases end, retries begin, silent journals are asked again.
    pub fn tick(&mut self, now_ms: u64) -> Vec<Action> {
        while let Some(&(due_ms, timer)) = self.timers.first() {
            if due_ms > now_ms {
                break;
            }
            self.timers.pop_first();
            match timer {
                Timer::Run(run) => {
                    if let Some(end) = self.runs.get(&run).and_then(|state| state.end) {
                        self.announce_end(run, end, now_ms);
                    }
                }
                Timer::Chunk(key) => self.chunk_due(key, now_ms),
            }
        }
        self.take()
    }

    /// Runs that are not over.
    pub fn live_runs(&self) -> impl Iterator<Item = RunId> + '_ {
        self.runs.iter().filter(|(_, run)| run.end.is_none()).map(|(id, _)| *id)
    }

    /// Chunks of a run that are not committed; `None` for a run that is not known.
    pub fn open_chunks(&self, run: RunId) -> Option<u64> {
        self.runs.get(&run).map(Run::open)
    }

    #[cfg(test)]
    pub(crate) fn largest_backlog_over_window(&self) -> Option<u32> {
        self.runs.values().map(|run| run.largest_backlog().saturating_sub(run.plan.window)).max()
    }
}

#[cfg(test)]
mod tests;
