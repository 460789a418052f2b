//! How the stages of a retry use those of the version before: see [`super::retry`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::{DataFusionError, Result};
use rowmill_items::Earlier;
use rowmill_spec::{Diagnostic, Span};
use rowmill_step::Redactor;
use rowmill_store::{ChunkCommit, ChunkSpec, CommitResult, CommittedChunk, RunId, StageId};

use super::Durable;
use super::retry::{Before, CallShape, Index, RetryChoice, StageBefore};
use super::stages::{Stop, Work};
use crate::calls::Call;
use crate::compile::Compiled;
use crate::compile::check_types::Body;
use crate::compile::cut_segments::Root;
use crate::elsewhere::Reported;
use crate::error::find_source;

/// What a stage of calls takes from the version before.
pub(super) enum Known {
    /// Nothing.
    Nothing,
    /// Its chunks are what they were: those without open items are taken as they are.
    Same { shape: CallShape, manifest: BTreeMap<u64, ChunkSpec>, committed: BTreeMap<u64, CommittedChunk> },
    /// Its items come in other chunks.
    Paired(Arc<Index>, SchemaRef),
}

impl CallShape {
    fn of(call: &Call, folder: PathBuf, redactor: &Redactor, choice: RetryChoice) -> Self {
        CallShape {
            folder,
            reads: call.shape.input.fields().iter().map(|field| field.name().clone()).collect(),
            cardinality: call.executor.describe().cardinality,
            repeatable: call.policy.effects.repeatable(),
            redactor: redactor.clone(),
            choice,
        }
    }
}

impl Before {
    /// Reads what is known of a version.
    pub(super) async fn read(
        durable: &Durable,
        run: RunId,
        version: u32,
        choice: RetryChoice,
    ) -> Result<Self, rowmill_store::Error> {
        let mut before = Before { choice, stages: HashMap::new() };
        for stage in patiently!(durable.store.stages(run, version))? {
            let manifest = durable.manifest(run, stage.id).await?;
            let committed = durable.committed(run, stage.id).await?;
            before.stages.insert(stage.name.clone(), StageBefore { stage, manifest, committed });
        }
        Ok(before)
    }

    /// Refuses a retry in which calls that are made once would have to be made again, because what they gave cannot be
    /// told from what their equals gave. Called before the next version is begun.
    pub(super) fn refuse_unclear(
        &self,
        compiled: &Compiled,
        folder: &Path,
        redactor: &Redactor,
    ) -> Result<(), Diagnostic> {
        let mut changed: HashSet<&str> = HashSet::new();
        for segment in &compiled.cut.segments {
            let Root::Step(name) = &segment.root else { continue };
            let mut other = segment.inputs.iter().any(|input| changed.contains(input.as_str()));
            let body = compiled.steps.get(name).map(|step| &step.body);
            if let (Some(Body::Call(call)), Some(found)) = (body, self.stages.get(name)) {
                let shape = CallShape::of(call, folder.to_owned(), redactor, self.choice);
                match shape.refuse_unclear(found, other) {
                    Ok(open) => other |= open,
                    Err(error) => match find_source::<Reported>(&error) {
                        Some(Reported { report, .. }) => {
                            let place = compiled.workflow.steps.get(name).map_or(Span::NONE, |step| step.name.span);
                            let message = format!("step `{name}`: {}", report.message);
                            return Err(Diagnostic { message, ..report.clone() }.at(place, "its calls are made once"));
                        }
                        // A file that cannot be read is reported by whoever needs it.
                        None => other = true,
                    },
                }
            }
            if other {
                changed.insert(name);
            }
        }
        Ok(())
    }
}

impl Work<'_> {
    /// Reads the version before, if this is a later one. What is tried again is `choice`, or what an interrupted
    /// attempt at this version chose.
    pub(super) async fn look_back(&mut self, choice: Option<RetryChoice>) -> Result<(), Stop> {
        if self.version <= 1 {
            return Ok(());
        }
        let begun = patiently!(self.durable.store.stages(self.run, self.version))?;
        let chosen = begun.first().and_then(|stage| serde_json::from_slice(&stage.payload).ok());
        let choice = chosen.or(choice).unwrap_or_default();
        self.before = Some(Before::read(self.durable, self.run, self.version - 1, choice).await?);
        Ok(())
    }

    /// What a stage's record carries: which items are tried again.
    pub(super) fn stage_payload(&self) -> Vec<u8> {
        let choice = self.before.as_ref().map(|before| before.choice);
        choice.and_then(|choice| serde_json::to_vec(&choice).ok()).unwrap_or_default()
    }

    /// The stage of this name in the version before, if it was brought to its end.
    pub(super) fn stage_before(&self, name: &str) -> Option<&StageBefore> {
        let stage = self.before.as_ref()?.stages.get(name)?;
        (stage.stage.chunk_count.is_some() && stage.committed.len() == stage.manifest.len()).then_some(stage)
    }

    /// Takes a stage of rows over as it is. False where it is another one, or its input changed.
    pub(super) async fn take_rows(&self, stage: StageId, name: &str, print: &str, changed: bool) -> Result<bool, Stop> {
        let Some(before) = self.stage_before(name).filter(|before| !changed && before.stage.fingerprint == print)
        else {
            return Ok(false);
        };
        if !self.is_sealed(stage).await? {
            patiently!(self.durable.store.drop_unsealed_chunks(&self.fence, stage))?;
            patiently!(self.durable.store.put_chunks(&self.fence, stage, &before.manifest, true))?;
        }
        let commits: Vec<ChunkCommit> = before.committed.iter().map(|chunk| again(&chunk.commit, stage)).collect();
        self.commit(&commits).await?;
        Ok(true)
    }

    /// Commits chunks that need no work.
    pub(super) async fn commit(&self, commits: &[ChunkCommit]) -> Result<(), Stop> {
        for commits in commits.chunks(1000) {
            let results = patiently!(self.durable.store.commit_chunks(&self.fence, commits))?;
            if results.contains(&CommitResult::Fenced) {
                return Err(Stop::Lost);
            }
        }
        Ok(())
    }

    /// What the chunks of a stage of calls take from the version before, and whether its rows are other ones now.
    /// Chunks that need no work are committed.
    pub(super) async fn known(
        &self,
        stage: StageId,
        call: &Call,
        redactor: &Redactor,
        changed: bool,
    ) -> Result<(Known, bool), Stop> {
        let (Some(before), Some(found)) = (self.before.as_ref(), self.stage_before(&call.step)) else {
            return Ok((Known::Nothing, self.version > 1));
        };
        let shape = CallShape::of(call, self.durable.folder_of(self.run), redactor, before.choice);
        if changed {
            let (new, version) = (self.manifest(stage).await?, self.version);
            let before = StageBefore {
                stage: found.stage.clone(),
                manifest: found.manifest.clone(),
                committed: found.committed.clone(),
            };
            let index = tokio::task::spawn_blocking(move || Index::build(shape, &before, &new, version)).await;
            let index = index.map_err(|error| DataFusionError::ExecutionJoin(Box::new(error)))??;
            return Ok((Known::Paired(Arc::new(index), Arc::clone(&call.shape.output)), true));
        }
        let by_chunk = |chunk: &CommittedChunk| (chunk.commit.chunk.chunk, chunk.clone());
        let mut committed: BTreeMap<u64, CommittedChunk> = found.committed.iter().map(by_chunk).collect();
        let mut done = Vec::new();
        for (chunk, commit) in &committed {
            if !tokio::task::block_in_place(|| shape.has_open(commit))? {
                done.push((*chunk, again(&commit.commit, stage)));
            }
        }
        for (chunk, _) in &done {
            committed.remove(chunk);
        }
        let done: Vec<ChunkCommit> = done.into_iter().map(|(_, commit)| commit).collect();
        self.commit(&done).await?;
        let changed = !committed.is_empty();
        let manifest = found.manifest.iter().map(|spec| (spec.chunk, spec.clone())).collect();
        Ok((Known::Same { shape, manifest, committed }, changed))
    }
}

impl Known {
    /// What is known of the items of one chunk.
    pub(super) fn earlier(&self, chunk: u64) -> Result<Option<Earlier>> {
        match self {
            Known::Nothing => Ok(None),
            Known::Same { shape, manifest, committed } => match (manifest.get(&chunk), committed.get(&chunk)) {
                (Some(spec), Some(committed)) => shape.of_same(spec, committed).map(Some),
                _ => Ok(None),
            },
            Known::Paired(index, columns) => index.earlier(chunk, columns).map(Some),
        }
    }
}

/// A commit of the version before as one of this version: of the same files.
fn again(commit: &ChunkCommit, stage: StageId) -> ChunkCommit {
    ChunkCommit { chunk: stage.chunk(commit.chunk.chunk), ..commit.clone() }
}
