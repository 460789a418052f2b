//! What the run store knows of a stage: that it is there, its manifest, its commits, its status.

use rowmill_spec::{Diagnostic, Fault};
use rowmill_store::{ChunkSpec, CommittedChunk, Error, NewStage, PageRequest, RunId, StageId, StageStatus};

use super::{Stop, Work};
use crate::durable::Durable;
use crate::durable::chunks::ChunkFile;

impl Durable {
    /// The commits of a stage.
    pub(in crate::durable) async fn committed(&self, run: RunId, stage: StageId) -> Result<Vec<CommittedChunk>, Error> {
        let mut all = Vec::new();
        let mut page = PageRequest::first(10_000);
        loop {
            let found = patiently!(self.store.committed(run, stage, &page))?;
            all.extend(found.items);
            match found.next {
                Some(next) => page = PageRequest::after(next, 10_000),
                None => return Ok(all),
            }
        }
    }

    /// The chunks of a stage.
    pub(in crate::durable) async fn manifest(&self, run: RunId, stage: StageId) -> Result<Vec<ChunkSpec>, Error> {
        let mut all = Vec::new();
        let mut page = PageRequest::first(10_000);
        loop {
            let found = patiently!(self.store.chunks(run, stage, &page))?;
            all.extend(found.items);
            match found.next {
                Some(next) => page = PageRequest::after(next, 10_000),
                None => return Ok(all),
            }
        }
    }
}

impl Work<'_> {
    /// Registers the next stage.
    pub(super) async fn stage(&self, next: &mut u32, name: &str, class: &str, print: String) -> Result<StageId, Stop> {
        let id = StageId { version: self.version, stage: *next };
        *next += 1;
        let stage = NewStage {
            id,
            name: name.to_owned(),
            class: class.to_owned(),
            fingerprint: print,
            payload: self.stage_payload(),
        };
        match patiently!(self.durable.store.put_stages(&self.fence, std::slice::from_ref(&stage))) {
            Err(rowmill_store::Error::Conflict { .. }) => Err(self.changed_stage(name)),
            Err(error) => Err(error.into()),
            Ok(()) => Ok(id),
        }
    }

    /// A stage that was begun is another one now.
    pub(super) fn changed_stage(&self, name: &str) -> Stop {
        let message = format!("run {}: stage `{name}` is not what it was when the run began", self.run);
        Stop::Report(Box::new(Diagnostic::error("RM0802", message).fault(Fault::Data).help(
            "the workflow, its configuration, a program or function that it calls, or Rowmill itself changed; start over with `rowmill resume --restart`",
        )))
    }

    pub(in crate::durable) async fn committed(&self, stage: StageId) -> Result<Vec<CommittedChunk>, Stop> {
        Ok(self.durable.committed(self.run, stage).await?)
    }

    pub(in crate::durable) async fn manifest(&self, stage: StageId) -> Result<Vec<ChunkSpec>, Stop> {
        Ok(self.durable.manifest(self.run, stage).await?)
    }

    pub(in crate::durable) async fn is_sealed(&self, stage: StageId) -> Result<bool, Stop> {
        let stages = patiently!(self.durable.store.stages(self.run, self.version))?;
        Ok(stages.iter().any(|known| known.id == stage && known.chunk_count.is_some()))
    }

    pub(super) async fn status(&self, stage: StageId, status: StageStatus) -> Result<(), Stop> {
        Ok(patiently!(self.durable.store.set_stage_status(&self.fence, stage, status, None))?)
    }

    /// The attempt's number among those of the run: its fencing token.
    pub(super) fn attempt_number(&self) -> u32 {
        u32::try_from(self.fence.token).unwrap_or(u32::MAX)
    }

    pub(super) fn spec(&self, chunk: u64, file: &ChunkFile) -> ChunkSpec {
        ChunkSpec {
            chunk,
            path: self.relative(&file.path),
            etag: None,
            size_bytes: Some(file.bytes),
            row_start: None,
            row_count: Some(file.rows),
            schema_fingerprint: String::new(),
            partitions: 1,
            payload: Vec::new(),
        }
    }
}

/// The run store's form of outcome counts.
pub(in crate::durable) fn store_counts(counts: &rowmill_step::OutcomeCounts) -> rowmill_store::OutcomeCounts {
    rowmill_store::OutcomeCounts::from_array(rowmill_step::Outcome::ALL.map(|outcome| counts.get(outcome)))
}
