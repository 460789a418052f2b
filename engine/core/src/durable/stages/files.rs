//! The files of a run: where they lie, how they are read again, which of them nobody needs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::physical_plan::ExecutionPlan;
use rowmill_spec::{Diagnostic, Fault};
use rowmill_store::{CommittedChunk, StageId};

use super::{Stop, Work};
use crate::durable::chunks::ChunkScanExec;

impl Work<'_> {
    /// Outputs are kept relative to the run's folder, so that the folder can be moved.
    pub(super) fn path(&self, output: &str) -> PathBuf {
        self.durable.folder_of(self.run).join(output)
    }

    /// A path as the journal keeps it.
    pub(super) fn relative(&self, path: &Path) -> String {
        let folder = self.durable.folder_of(self.run);
        path.strip_prefix(&folder).unwrap_or(path).display().to_string()
    }

    /// Where a stage's files lie. The name is for people; file systems take 255 bytes, and names may be longer.
    pub(super) fn stage_folder(&self, stage: StageId, name: &str) -> PathBuf {
        let short = &name[..name.floor_char_boundary(100)];
        self.durable.folder_of(self.run).join(format!("v{}-{}-{short}", stage.version, stage.stage))
    }

    pub(super) fn ledgers(&self, chunks: &[CommittedChunk]) -> Vec<PathBuf> {
        chunks.iter().filter_map(|chunk| chunk.commit.ledger.as_ref()).map(|ledger| self.path(ledger)).collect()
    }

    pub(super) fn scan(&self, name: &str, chunks: &[CommittedChunk], schema: SchemaRef) -> Arc<dyn ExecutionPlan> {
        let files = chunks.iter().map(|chunk| self.path(&chunk.commit.output)).collect();
        Arc::new(ChunkScanExec::new(Arc::from(name), files, schema))
    }

    pub(super) fn cannot_write(&self, path: &Path, message: &str) -> Stop {
        let report = Diagnostic::error("RM0704", format!("{}: {message}", path.display())).fault(Fault::Environment);
        Stop::Report(Box::new(
            report.help("durable runs live in `state.dir`; check who owns it and whether it is full"),
        ))
    }

    /// Removes files that no manifest and no commit of any version names: those of attempts that died, or, for a
    /// process that lost the run to another, only its own.
    pub(in crate::durable) async fn sweep(&self, only_own: bool) -> Result<(), Stop> {
        let folder = self.durable.folder_of(self.run);
        // File names end with the token of the attempt.
        let own = only_own.then(|| format!("-{}.", self.fence.token));
        let mut kept: BTreeSet<PathBuf> = BTreeSet::new();
        for version in 1..=self.version {
            for stage in patiently!(self.durable.store.stages(self.run, version))? {
                // A manifest that is sealed and not committed yet is committed by whoever has the run now.
                kept.extend(self.manifest(stage.id).await?.into_iter().map(|spec| folder.join(spec.path)));
                for chunk in self.committed(stage.id).await? {
                    kept.insert(folder.join(&chunk.commit.output));
                    kept.extend(chunk.commit.ledger.map(|ledger| folder.join(ledger)));
                }
            }
        }
        // A process that slept here, while the run went on without it, is told so before it removes anything.
        if !only_own {
            patiently!(self.durable.store.renew(&self.fence, self.durable.lease))?;
        }
        let swept = tokio::task::spawn_blocking(move || remove_others(&folder, &kept, own.as_deref())).await;
        if let Ok(Err(error)) | Err(error) = swept.map_err(std::io::Error::other) {
            // They only take room, until `rowmill gc`.
            tracing::warn!("files of interrupted attempts of run {} stay: {error}", self.run);
        }
        Ok(())
    }
}

/// Removes every file below a run's folder that is not one of these, or every such file with a mark in its name.
fn remove_others(folder: &Path, kept: &BTreeSet<PathBuf>, mark: Option<&str>) -> std::io::Result<()> {
    for stage in std::fs::read_dir(folder)? {
        let stage = stage?;
        if !stage.file_type()?.is_dir() {
            continue;
        }
        for file in std::fs::read_dir(stage.path())? {
            let file = file?;
            let path = file.path();
            let marked = mark.is_none_or(|mark| file.file_name().to_string_lossy().contains(mark));
            if marked && !kept.contains(&path) {
                std::fs::remove_file(&path)?;
            }
        }
    }
    Ok(())
}
