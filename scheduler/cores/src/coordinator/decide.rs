//! The parts of the coordinator's decisions: attempts that are given up or tried again, chunks that may go, runs that end.

use super::run::{ChunkState, Run};
use super::{Action, Coordinator, Failure, RunEnd, Timer};
use crate::ids::{AttemptId, ChunkKey, ExecutorId, ReservationId, RunId};
use crate::sabotage::Mutant;
use crate::seed::mix;

impl Coordinator {
    pub(super) fn take(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.out)
    }

    pub(super) fn live(&mut self, run: RunId) -> Option<&mut Run> {
        let lenient = self.sabotage.is(Mutant::LaunchAfterCancel);
        self.runs.get_mut(&run).filter(|run| lenient || run.end.is_none())
    }

    /// Where an attempt runs, if it is its chunk's current one.
    pub(super) fn current(&mut self, attempt: AttemptId) -> Option<(ExecutorId, ReservationId)> {
        let key = attempt.key;
        match self.live(key.run)?.chunk(key.stage, key.chunk)?.state {
            ChunkState::Running { attempt: current, executor, reservation } if current == attempt => {
                Some((executor, reservation))
            }
            _ => None,
        }
    }

    /// Whether the attempt is the one whose output stands, or is about to.
    pub(super) fn finished_well(&mut self, attempt: AttemptId) -> bool {
        let key = attempt.key;
        let chunk = self.runs.get_mut(&key.run).and_then(|run| run.chunk(key.stage, key.chunk));
        chunk.is_some_and(|chunk| chunk.winner == Some(attempt) || chunk.state == ChunkState::Committing { attempt })
    }

    pub(super) fn set_due(&mut self, key: ChunkKey, due_ms: u64) {
        self.clear_due(key);
        if let Some(chunk) = self.runs.get_mut(&key.run).and_then(|run| run.chunk(key.stage, key.chunk)) {
            chunk.due_ms = Some(due_ms);
            self.timers.insert((due_ms, Timer::Chunk(key)));
        }
    }

    pub(super) fn clear_due(&mut self, key: ChunkKey) {
        let chunk = self.runs.get_mut(&key.run).and_then(|run| run.chunk(key.stage, key.chunk));
        if let Some(due_ms) = chunk.and_then(|chunk| chunk.due_ms.take()) {
            self.timers.remove(&(due_ms, Timer::Chunk(key)));
        }
    }

    pub(super) fn forget_place(&mut self, key: ChunkKey, executor: ExecutorId) {
        self.clear_due(key);
        if let Some(keys) = self.on_executor.get_mut(&executor) {
            keys.remove(&key);
            if keys.is_empty() {
                self.on_executor.remove(&executor);
            }
        }
    }

    /// A running attempt is taken as lost: its executor is told to stop, its resources are free, its chunk goes again.
    pub(super) fn give_up(&mut self, key: ChunkKey, now_ms: u64) {
        let state = self.live(key.run).and_then(|run| run.chunk(key.stage, key.chunk)).map(|chunk| chunk.state);
        if let Some(ChunkState::Running { attempt, executor, reservation }) = state {
            self.forget_place(key, executor);
            self.out.push(Action::Cancel { attempt, executor });
            self.out.push(Action::Release(reservation));
            self.try_again(key, None, now_ms);
        }
    }

    /// Plans the next try of a chunk. `failed` says whether the attempt failed by itself and may be repeated; `None`
    /// that it was lost.
    pub(super) fn try_again(&mut self, key: ChunkKey, failed: Option<bool>, now_ms: u64) {
        let (options, seed) = (self.options, self.seed);
        if failed.is_some() && self.sabotage.is(Mutant::DropRetry) {
            return;
        }
        let Some(run) = self.live(key.run) else { return };
        let max_attempts = run.plan.stages[key.stage as usize].max_attempts;
        let Some(chunk) = run.chunk(key.stage, key.chunk) else { return };
        let (over, tries) = if let Some(retryable) = failed {
            chunk.failed += 1;
            (!retryable || chunk.failed >= max_attempts, chunk.failed)
        } else {
            chunk.lost += 1;
            (chunk.lost > options.max_lost, chunk.lost)
        };
        if over {
            let failure = if failed.is_some() { Failure::Chunk(key) } else { Failure::Lost(key) };
            run.set(key.stage, key.chunk, ChunkState::Backoff);
            self.end(key.run, RunEnd::Failed(failure), now_ms);
            return;
        }
        if failed.is_none() && tries == 1 {
            // The first loss says nothing about the chunk: it goes at once.
            run.set(key.stage, key.chunk, ChunkState::Ready);
            self.advance(key.run, now_ms);
            return;
        }
        run.set(key.stage, key.chunk, ChunkState::Backoff);
        let doubled = options.retry_base_ms.saturating_mul(1 << (tries - 1).min(20));
        let wait_ms = doubled.min(options.retry_cap_ms).max(1);
        // Between half the wait and the whole, so that what failed together does not come back together.
        let salt = mix(seed ^ mix(u64::from(key.chunk) << 32 | u64::from(key.stage)) ^ u64::from(tries));
        self.set_due(key, now_ms.saturating_add(wait_ms / 2 + salt % (wait_ms / 2 + 1)));
        // The others may have waited for this one's place.
        self.advance(key.run, now_ms);
    }

    pub(super) fn chunk_due(&mut self, key: ChunkKey, now_ms: u64) {
        let immortal = self.sabotage.is(Mutant::ImmortalLease);
        let Some(run) = self.live(key.run) else { return };
        let Some(chunk) = run.chunk(key.stage, key.chunk) else { return };
        chunk.due_ms = None;
        match chunk.state {
            ChunkState::Running { .. } if !immortal => self.give_up(key, now_ms),
            ChunkState::Committing { attempt } => {
                self.set_due(key, now_ms.saturating_add(self.options.journal_ms));
                self.out.push(Action::Commit(attempt));
            }
            ChunkState::Backoff => {
                run.set(key.stage, key.chunk, ChunkState::Ready);
                self.advance(key.run, now_ms);
            }
            _ => {}
        }
    }

    /// Asks for places for what may go, and ends the run when nothing is left.
    pub(super) fn advance(&mut self, id: RunId, now_ms: u64) {
        let options = self.options;
        let Some(run) = self.live(id) else { return };
        if run.open() == 0 {
            if run.end.is_none() {
                self.end(id, RunEnd::Succeeded, now_ms);
            }
            return;
        }
        let admissible = run.take_admissible(&options).into_iter().map(|(stage, chunk)| {
            let plan = &run.plan.stages[stage as usize];
            Action::Request { key: ChunkKey { run: id, stage, chunk }, class: plan.class, needs: plan.needs }
        });
        let requests: Vec<Action> = admissible.collect();
        self.out.extend(requests);
    }

    pub(super) fn end(&mut self, id: RunId, end: RunEnd, now_ms: u64) {
        let Some(run) = self.runs.get_mut(&id).filter(|run| run.end.is_none()) else { return };
        run.end = Some(end);
        let mut busy = Vec::new();
        for (stage, entry) in (0u32..).zip(&run.stages) {
            for (chunk, entry) in (0u32..).zip(&entry.chunks) {
                if entry.state == ChunkState::Asked || entry.due_ms.is_some() {
                    busy.push((ChunkKey { run: id, stage, chunk }, entry.state));
                }
            }
        }
        if !self.sabotage.is(Mutant::LaunchAfterCancel) {
            for (key, state) in busy {
                self.clear_due(key);
                match state {
                    ChunkState::Asked => self.out.push(Action::Withdraw(key)),
                    ChunkState::Running { attempt, executor, reservation } => {
                        self.forget_place(key, executor);
                        self.out.push(Action::Cancel { attempt, executor });
                        self.out.push(Action::Release(reservation));
                    }
                    _ => {}
                }
            }
        }
        self.announce_end(id, end, now_ms);
    }

    pub(super) fn announce_end(&mut self, id: RunId, end: RunEnd, now_ms: u64) {
        let due_ms = now_ms.saturating_add(self.options.journal_ms);
        if let Some(run) = self.runs.get_mut(&id) {
            run.end_due_ms = Some(due_ms);
            self.timers.insert((due_ms, Timer::Run(id)));
            self.out.push(Action::End { run: id, end });
        }
    }

    /// The planted mistake: what was given up is taken after all.
    pub(super) fn commit_late(&mut self, attempt: AttemptId, now_ms: u64) {
        let key = attempt.key;
        let open = self
            .live(key.run)
            .filter(|run| run.end.is_none())
            .and_then(|run| run.chunk(key.stage, key.chunk))
            .is_some_and(|chunk| chunk.state != ChunkState::Committed);
        if open {
            if let Some(run) = self.live(key.run) {
                run.set(key.stage, key.chunk, ChunkState::Committing { attempt });
            }
            self.set_due(key, now_ms.saturating_add(self.options.journal_ms));
            self.out.push(Action::Commit(attempt));
        }
    }
}
