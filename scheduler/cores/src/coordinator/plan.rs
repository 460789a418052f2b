//! A run's stages as the coordinator sees them: how many chunks, of which class, reading what.
//!
//! ```text
//!  scan(cpu, 8 chunks) ──chunk by chunk──▶ call(io, 8) ──all chunks──▶ totals(cpu, 1)
//! ```
//! Chunk 3 of `call` is ready when chunk 3 of `scan` has committed; `totals` when all of `call` has.

use std::collections::BTreeSet;

use crate::ids::ClassId;
use crate::resources::Resources;

/// How a stage reads another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// Chunk `i` reads chunk `i`: both have the same number of chunks.
    ChunkByChunk,
    /// Every chunk reads all chunks: a barrier.
    All,
}

/// One input of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Input {
    /// The position of the stage that is read; smaller than the reader's own.
    pub stage: u32,
    /// How it is read.
    pub reads: Reads,
}

/// One stage of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StagePlan {
    /// Which executors may run it.
    pub class: ClassId,
    /// How many chunks it has; none is an empty input.
    pub chunks: u32,
    /// What it reads.
    pub inputs: Vec<Input>,
    /// What one task of it takes.
    pub needs: Resources,
    /// How many times a chunk is tried before its run fails.
    pub max_attempts: u32,
    /// How many of its chunks may be asked for or run at a time.
    pub max_in_flight: u32,
}

/// A run's stages, inputs before their readers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunPlan {
    /// The stages.
    pub stages: Vec<StagePlan>,
    /// How far a stage may be ahead of the slowest stage that reads it chunk by chunk, in chunks.
    pub window: u32,
}

/// What is wrong with a plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// An input that does not come earlier: the plan has a cycle or is out of order.
    #[error(
        "stage {stage} reads stage {input}, which does not come before it; order the stages so that inputs come first"
    )]
    Order {
        /// The reader.
        stage: u32,
        /// What it reads.
        input: u32,
    },
    /// Chunk by chunk over different numbers of chunks.
    #[error("stage {stage} has {chunks} chunks and reads stage {input} chunk by chunk, which has {input_chunks}")]
    Chunks {
        /// The reader.
        stage: u32,
        /// Its chunks.
        chunks: u32,
        /// What it reads.
        input: u32,
        /// The input's chunks.
        input_chunks: u32,
    },
    /// A bound of zero, which would stop the run for ever.
    #[error("{name} of stage {stage} is 0; it must be at least 1")]
    Zero {
        /// The stage.
        stage: u32,
        /// Which bound.
        name: &'static str,
    },
    /// The run is known already.
    #[error("the run is already under way")]
    Duplicate,
    /// The journal speaks of a chunk that the plan does not have.
    #[error("the journal holds chunk {chunk} of stage {stage}, which the plan does not have")]
    Journal {
        /// The stage.
        stage: u32,
        /// The chunk.
        chunk: u32,
    },
}

impl RunPlan {
    /// Checks order, chunk counts and bounds.
    pub fn validate(&self) -> Result<(), PlanError> {
        for (stage, plan) in (0u32..).zip(&self.stages) {
            let bounds = [
                ("max_attempts", plan.max_attempts),
                ("max_in_flight", plan.max_in_flight),
                ("window", self.window),
                ("slots", plan.needs.slots),
            ];
            if let Some((name, _)) = bounds.into_iter().find(|(_, value)| *value == 0) {
                return Err(PlanError::Zero { stage, name });
            }
            for input in &plan.inputs {
                let Some(read) = self.stages.get(input.stage as usize).filter(|_| input.stage < stage) else {
                    return Err(PlanError::Order { stage, input: input.stage });
                };
                if input.reads == Reads::ChunkByChunk && read.chunks != plan.chunks {
                    return Err(PlanError::Chunks {
                        stage,
                        chunks: plan.chunks,
                        input: input.stage,
                        input_chunks: read.chunks,
                    });
                }
            }
        }
        Ok(())
    }

    /// For each stage, the readers that hold it back: those that read it chunk by chunk and can keep up with it.
    ///
    /// A reader that also waits for a barrier above which this stage (or something it reads) lies cannot keep up: it
    /// begins when the barrier's input is complete, and to wait for it would be to wait for oneself. Such an edge spools.
    /// The plan must be valid.
    pub(crate) fn windowed_readers(&self) -> Vec<Vec<u32>> {
        let count = self.stages.len();
        // Per stage: itself and all above it; and what must be complete before any of its chunks can run.
        let mut above: Vec<BTreeSet<u32>> = Vec::with_capacity(count);
        let mut complete_before: Vec<BTreeSet<u32>> = Vec::with_capacity(count);
        for (stage, plan) in (0u32..).zip(&self.stages) {
            let mut ancestors = BTreeSet::from([stage]);
            let mut barriers = BTreeSet::new();
            for input in &plan.inputs {
                let read = input.stage as usize;
                ancestors.extend(&above[read]);
                match input.reads {
                    Reads::ChunkByChunk => barriers.extend(&complete_before[read]),
                    Reads::All => barriers.extend(&above[read]),
                }
            }
            above.push(ancestors);
            complete_before.push(barriers);
        }
        let mut readers = vec![Vec::new(); count];
        for (stage, plan) in (0u32..).zip(&self.stages) {
            for input in plan.inputs.iter().filter(|input| input.reads == Reads::ChunkByChunk) {
                let read = input.stage as usize;
                let waits_for_itself = complete_before[stage as usize]
                    .difference(&complete_before[read])
                    .any(|barrier| above[read].contains(barrier));
                if !waits_for_itself {
                    readers[read].push(stage);
                }
            }
        }
        readers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(chunks: u32, inputs: &[(u32, Reads)]) -> StagePlan {
        StagePlan {
            class: ClassId(0),
            chunks,
            inputs: inputs.iter().map(|&(stage, reads)| Input { stage, reads }).collect(),
            needs: Resources::PLAIN,
            max_attempts: 1,
            max_in_flight: 1,
        }
    }

    #[test]
    fn wrong_plans_are_refused() {
        let plan = |stages| RunPlan { stages, window: 1 };
        assert_eq!(plan(vec![stage(1, &[(0, Reads::All)])]).validate(), Err(PlanError::Order { stage: 0, input: 0 }));
        assert_eq!(
            plan(vec![stage(2, &[]), stage(3, &[(0, Reads::ChunkByChunk)])]).validate(),
            Err(PlanError::Chunks { stage: 1, chunks: 3, input: 0, input_chunks: 2 })
        );
        assert_eq!(
            RunPlan { stages: vec![stage(1, &[])], window: 0 }.validate(),
            Err(PlanError::Zero { stage: 0, name: "window" })
        );
    }

    #[test]
    fn a_reader_behind_a_barrier_of_the_same_source_spools() {
        use Reads::{All, ChunkByChunk};
        // 0 → 1 → 3, and 0 ⇒ 2 ⇒ 3 through a barrier: 3 starts when all of 0 is done, so 1 must not wait for it.
        let plan = RunPlan {
            stages: vec![
                stage(4, &[]),
                stage(4, &[(0, ChunkByChunk)]),
                stage(1, &[(0, All)]),
                stage(4, &[(1, ChunkByChunk), (2, All)]),
            ],
            window: 1,
        };
        assert_eq!(plan.windowed_readers(), [vec![1], vec![], vec![], vec![]]);
    }

    #[test]
    fn below_a_barrier_chunks_flow_in_step_again() {
        use Reads::{All, ChunkByChunk};
        let plan =
            RunPlan { stages: vec![stage(4, &[]), stage(2, &[(0, All)]), stage(2, &[(1, ChunkByChunk)])], window: 1 };
        assert_eq!(plan.windowed_readers(), [vec![], vec![2], vec![]]);
    }
}
