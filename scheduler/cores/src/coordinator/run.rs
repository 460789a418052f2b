//! The state of one run: which chunks wait, are ready, run, commit, are committed; and which of the ready may go.

use std::collections::BTreeSet;

use super::plan::{PlanError, Reads, RunPlan};
use super::{Options, RunEnd};
use crate::ids::{AttemptId, ExecutorId, ReservationId};
use crate::sabotage::{Mutant, Sabotage};

/// Where a chunk stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChunkState {
    /// Some of its inputs are not committed.
    Waiting,
    /// All inputs are there; it waits for its turn.
    Ready,
    /// A failed attempt waits for its next try. No slot is held.
    Backoff,
    /// Admission was asked for a place.
    Asked,
    /// An attempt runs.
    Running { attempt: AttemptId, executor: ExecutorId, reservation: ReservationId },
    /// An attempt has finished and the journal was asked to commit it.
    Committing { attempt: AttemptId },
    /// Its output stands.
    Committed,
}

#[derive(Debug, Clone)]
pub(super) struct Chunk {
    pub(super) state: ChunkState,
    /// Inputs that are not committed: one for each chunk-by-chunk input, one for each barrier.
    missing: u32,
    /// Attempts launched under this scheduler's fence.
    pub(super) launched: u32,
    /// Attempts that failed by themselves.
    pub(super) failed: u32,
    /// Attempts that were lost with their executor or lease.
    pub(super) lost: u32,
    /// The attempt of this scheduler that was committed.
    pub(super) winner: Option<AttemptId>,
    /// When something must happen to it.
    pub(super) due_ms: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Stage {
    pub(super) chunks: Vec<Chunk>,
    ready: BTreeSet<u32>,
    /// Asked, running or committing.
    in_flight: u32,
    pub(super) committed: u32,
    readers: Vec<(u32, Reads)>,
    windowed_readers: Vec<u32>,
    /// Chunks that were let through although the window was full, because nothing else could go on.
    pub(super) relieved: u32,
}

#[derive(Debug)]
pub(super) struct Run {
    pub(super) plan: RunPlan,
    pub(super) stages: Vec<Stage>,
    open: u64,
    in_flight: u32,
    backing_off: u32,
    /// Set when the run is over; the journal has not confirmed it yet.
    pub(super) end: Option<RunEnd>,
    pub(super) end_due_ms: Option<u64>,
    sabotage: Sabotage,
}

impl Run {
    /// Builds the state from a valid plan and the chunks that the journal holds.
    pub(super) fn try_new(
        plan: RunPlan,
        committed: impl IntoIterator<Item = (u32, u32)>,
        sabotage: Sabotage,
    ) -> Result<Self, PlanError> {
        let windowed = plan.windowed_readers();
        let mut stages: Vec<Stage> = plan
            .stages
            .iter()
            .zip(windowed)
            .map(|(stage, windowed_readers)| Stage {
                chunks: vec![
                    Chunk {
                        state: ChunkState::Waiting,
                        missing: u32::try_from(stage.inputs.len()).unwrap_or(u32::MAX),
                        launched: 0,
                        failed: 0,
                        lost: 0,
                        winner: None,
                        due_ms: None,
                    };
                    stage.chunks as usize
                ],
                ready: BTreeSet::new(),
                in_flight: 0,
                committed: 0,
                readers: Vec::new(),
                windowed_readers,
                relieved: 0,
            })
            .collect();
        for (reader, stage) in (0u32..).zip(&plan.stages) {
            for input in &stage.inputs {
                stages[input.stage as usize].readers.push((reader, input.reads));
            }
        }
        let open = plan.stages.iter().map(|stage| u64::from(stage.chunks)).sum();
        let mut run = Self { plan, stages, open, in_flight: 0, backing_off: 0, end: None, end_due_ms: None, sabotage };
        for stage in 0..run.stages.len() {
            if run.stages[stage].chunks.is_empty() {
                run.stage_completed(stage);
            }
        }
        for (stage, chunk) in committed {
            let known = run.stages.get(stage as usize).and_then(|stage| stage.chunks.get(chunk as usize));
            if known.is_none() {
                return Err(PlanError::Journal { stage, chunk });
            }
            if !sabotage.is(Mutant::ForgetJournal) {
                run.commit(stage, chunk);
            }
        }
        for stage in &mut run.stages {
            for (number, chunk) in (0u32..).zip(&mut stage.chunks) {
                if chunk.missing == 0 && chunk.state == ChunkState::Waiting {
                    chunk.state = ChunkState::Ready;
                    stage.ready.insert(number);
                }
            }
        }
        Ok(run)
    }

    /// Chunks that are not committed.
    pub(super) fn open(&self) -> u64 {
        self.open
    }

    pub(super) fn chunk(&mut self, stage: u32, chunk: u32) -> Option<&mut Chunk> {
        self.stages.get_mut(stage as usize)?.chunks.get_mut(chunk as usize)
    }

    /// Moves a chunk to another state and keeps the counts. Its deadline is forgotten.
    pub(super) fn set(&mut self, stage: u32, chunk: u32, state: ChunkState) {
        let in_flight = |state: &ChunkState| {
            matches!(state, ChunkState::Asked | ChunkState::Running { .. } | ChunkState::Committing { .. })
        };
        let entry = &mut self.stages[stage as usize];
        let old = std::mem::replace(&mut entry.chunks[chunk as usize].state, state);
        entry.chunks[chunk as usize].due_ms = None;
        if in_flight(&old) != in_flight(&state) {
            if in_flight(&state) {
                entry.in_flight += 1;
                self.in_flight += 1;
            } else {
                entry.in_flight -= 1;
                self.in_flight -= 1;
            }
        }
        match (old == ChunkState::Backoff, state == ChunkState::Backoff) {
            (true, false) => self.backing_off -= 1,
            (false, true) => self.backing_off += 1,
            _ => {}
        }
        if state == ChunkState::Ready {
            entry.ready.insert(chunk);
        } else {
            entry.ready.remove(&chunk);
        }
    }

    /// Marks a chunk as committed and makes its readers ready. False when it was already.
    pub(super) fn commit(&mut self, stage: u32, chunk: u32) -> bool {
        if self.stages[stage as usize].chunks[chunk as usize].state == ChunkState::Committed {
            return false;
        }
        self.set(stage, chunk, ChunkState::Committed);
        self.open -= 1;
        let entry = &mut self.stages[stage as usize];
        entry.committed += 1;
        let complete = entry.committed as usize == entry.chunks.len();
        let first = entry.committed == 1;
        let readers = entry.readers.clone();
        for (reader, reads) in readers {
            if reads == Reads::ChunkByChunk {
                self.input_arrived(reader, chunk);
            }
        }
        if complete || (first && self.sabotage.is(Mutant::EagerBarrier)) {
            self.stage_completed(stage as usize);
        }
        true
    }

    fn stage_completed(&mut self, stage: usize) {
        let readers = self.stages[stage].readers.clone();
        for (reader, _) in readers.into_iter().filter(|(_, reads)| *reads == Reads::All) {
            for chunk in (0u32..).take(self.stages[reader as usize].chunks.len()) {
                self.input_arrived(reader, chunk);
            }
        }
    }

    fn input_arrived(&mut self, stage: u32, chunk: u32) {
        let entry = &mut self.stages[stage as usize].chunks[chunk as usize];
        entry.missing = entry.missing.saturating_sub(1);
        if entry.missing == 0 && entry.state == ChunkState::Waiting {
            self.set(stage, chunk, ChunkState::Ready);
        }
    }

    /// The ready chunks that may go now: late stages first, so that what was made is used before more is made; within a
    /// stage the lowest first; no stage further ahead of its slowest reader than the window, and no more in flight than
    /// the stage and `options` allow.
    pub(super) fn take_admissible(&mut self, options: &Options) -> Vec<(u32, u32)> {
        let mut taken = Vec::new();
        for stage in (0..self.stages.len()).rev() {
            while let Some(&chunk) = self.stages[stage].ready.first() {
                let bound = self.plan.stages[stage].max_in_flight.min(options.max_in_flight_per_stage);
                if self.stages[stage].in_flight >= bound || !self.within_window(stage) {
                    break;
                }
                self.set(stage as u32, chunk, ChunkState::Asked);
                taken.push((stage as u32, chunk));
            }
        }
        if taken.is_empty() && self.in_flight == 0 && self.backing_off == 0 {
            // Windows never stop a run. Two inputs of one reader may have run ahead on different chunks; the chunk
            // with the lowest number is the one that somebody waits for.
            let lowest = (0u32..)
                .zip(&self.stages)
                .filter_map(|(stage, entry)| entry.ready.first().map(|&chunk| (chunk, u32::MAX - stage)))
                .min();
            if let Some((chunk, stage)) = lowest {
                let stage = u32::MAX - stage;
                self.stages[stage as usize].relieved += 1;
                self.set(stage, chunk, ChunkState::Asked);
                taken.push((stage, chunk));
            }
        }
        taken
    }

    fn within_window(&self, stage: usize) -> bool {
        let entry = &self.stages[stage];
        let made = entry.committed + entry.in_flight;
        self.sabotage.is(Mutant::NoWindow)
            || entry
                .windowed_readers
                .iter()
                .all(|&reader| made.saturating_sub(self.stages[reader as usize].committed) < self.plan.window)
    }

    /// For each stage that a reader holds back: how many committed outputs nobody has consumed, less those let through
    /// on purpose. The simulation holds it against the window.
    #[cfg(test)]
    pub(crate) fn largest_backlog(&self) -> u32 {
        let backlog = |stage: &Stage| {
            let slowest = stage.windowed_readers.iter().map(|&reader| self.stages[reader as usize].committed).min();
            slowest.map_or(0, |slowest| stage.committed.saturating_sub(slowest).saturating_sub(stage.relieved))
        };
        self.stages.iter().map(backlog).max().unwrap_or(0)
    }
}
