//! A SQL step's whole result, kept in files from one run to the next.
//!
//! The first run writes its rows aside as they pass; when all of them have passed, the files get their name by one
//! rename. A later run whose step hangs on the same things reads them instead of running anything below. Nothing here
//! fails a run that would succeed without it: a result that cannot be written is not kept, and one that is not whole
//! is made again.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, Statistics};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, ReplaceChildrenOptions};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties as _, PlanProperties, StatisticsArgs,
};
use futures::StreamExt as _;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::compile::kept_results::KeptKey;
use crate::durable::chunks::{ChunkFile, ChunkScanExec, ChunkWriter};

const MANIFEST: &str = "manifest.json";
/// A result in the making that nobody touched for so long belongs to nobody.
const LEFT_AFTER: Duration = Duration::from_secs(24 * 3600);
/// A result that was asked for within this time may be about to be read by another process.
const IN_USE: Duration = Duration::from_secs(600);

/// Which files make a result, partition by partition, with their sizes.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    step: String,
    partitions: Vec<Vec<(String, u64)>>,
}

/// Where results are kept.
#[derive(Debug, Clone)]
pub struct KeptResults {
    /// The folder.
    pub folder: PathBuf,
    /// Bytes of all results together.
    pub max_bytes: u64,
    /// When the run began: what is too old is judged by it.
    pub started: SystemTime,
}

impl KeptResults {
    /// The plan of a step whose result is kept: reads it if it is there, else makes it with `plan` and keeps it.
    pub fn plan(&self, step: &str, key: &KeptKey, plan: Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
        let place = self.folder.join(&key.key);
        match found(&place, key.ttl, self.started) {
            Some(partitions) => {
                tracing::info!("step {step}: its result is kept in {}", place.display());
                // Who was used last goes last.
                if let Ok(file) = std::fs::File::open(place.join(MANIFEST)) {
                    let _untouched = file.set_times(std::fs::FileTimes::new().set_accessed(SystemTime::now()));
                }
                Arc::new(ChunkScanExec::partitioned(Arc::from(step), partitions, plan.schema()))
            }
            None => Arc::new(KeptExec::new(step, place, self.max_bytes, plan)),
        }
    }
}

/// The files of a result that is whole and not too old.
fn found(place: &Path, ttl: Option<Duration>, started: SystemTime) -> Option<Vec<Vec<PathBuf>>> {
    let text = std::fs::read(place.join(MANIFEST)).ok()?;
    let made = std::fs::metadata(place.join(MANIFEST)).and_then(|meta| meta.modified()).ok()?;
    if ttl.is_some_and(|ttl| started.duration_since(made).is_ok_and(|age| age >= ttl)) {
        return None;
    }
    let manifest: Manifest = serde_json::from_slice(&text).ok()?;
    let file = |(name, size): &(String, u64)| {
        let path = place.join(name);
        (std::fs::metadata(&path).ok()?.len() == *size).then_some(path)
    };
    manifest.partitions.iter().map(|files| files.iter().map(file).collect()).collect()
}

/// Passes rows on, and writes them aside.
#[derive(Debug)]
pub struct KeptExec {
    step: Arc<str>,
    place: PathBuf,
    max_bytes: u64,
    input: Arc<dyn ExecutionPlan>,
    making: Arc<Making>,
}

/// A result that is being made: gone with the plan unless all of it was written.
#[derive(Debug)]
struct Making {
    folder: PathBuf,
    /// Files by partition, once its rows have ended; none when the result is not to be kept any more.
    done: Mutex<Option<Vec<Option<Vec<ChunkFile>>>>>,
}

impl Drop for Making {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.folder);
    }
}

impl KeptExec {
    fn new(step: &str, place: PathBuf, max_bytes: u64, input: Arc<dyn ExecutionPlan>) -> Self {
        let folder = place.with_extension(format!("{}.tmp", Uuid::new_v4().simple()));
        let partitions = input.output_partitioning().partition_count();
        let making = Arc::new(Making { folder, done: Mutex::new(Some(vec![None; partitions])) });
        KeptExec { step: Arc::from(step), place, max_bytes, input, making }
    }
}

impl DisplayAs for KeptExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeptExec: the result of {} is kept for later runs", self.step)
    }
}

impl ExecutionPlan for KeptExec {
    fn name(&self) -> &str {
        "KeptExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _visit: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let input = children.into_iter().next().unwrap_or_else(|| Arc::clone(&self.input));
        Ok(Arc::new(KeptExec::new(&self.step, self.place.clone(), self.max_bytes, input)))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let rows = self.input.execute(partition, context)?;
        let writer = Aside {
            step: Arc::clone(&self.step),
            place: self.place.clone(),
            max_bytes: self.max_bytes,
            partition,
            schema: self.input.schema(),
            making: Arc::clone(&self.making),
            open: None,
        };
        let passed = futures::stream::unfold((rows, Some(writer)), |(mut rows, mut writer)| async move {
            let batch = match rows.next().await {
                None => {
                    if let Some(writer) = writer.take() {
                        tokio::task::block_in_place(|| writer.end());
                    }
                    return None;
                }
                Some(batch) => batch,
            };
            match (&batch, writer.take()) {
                (Ok(rows), Some(aside)) => writer = tokio::task::block_in_place(|| aside.write(rows)),
                (Err(_), Some(aside)) => aside.give_up("its step failed"),
                (_, None) => {}
            }
            Some((batch, (rows, writer)))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), passed)))
    }

    fn statistics_from_inputs(
        &self,
        inputs: &[Arc<Statistics>],
        _arguments: &StatisticsArgs,
    ) -> Result<Arc<Statistics>> {
        let unknown = || Arc::new(Statistics::new_unknown(&self.input.schema()));
        Ok(inputs.first().cloned().unwrap_or_else(unknown))
    }
}

/// Writes one partition.
struct Aside {
    step: Arc<str>,
    place: PathBuf,
    max_bytes: u64,
    partition: usize,
    schema: SchemaRef,
    making: Arc<Making>,
    open: Option<ChunkWriter>,
}

impl Aside {
    /// Nothing, where the result is not to be kept any more.
    fn write(mut self, rows: &arrow::array::RecordBatch) -> Option<Self> {
        if self.making.done.lock().is_none() {
            return None;
        }
        match self.write_to_file(rows) {
            Ok(()) => Some(self),
            Err(error) => {
                self.give_up(&error.to_string());
                None
            }
        }
    }

    fn write_to_file(&mut self, rows: &arrow::array::RecordBatch) -> Result<(), arrow::error::ArrowError> {
        if self.open.is_none() {
            let path = self.making.folder.join(format!("{:04}.arrow", self.partition));
            self.open = Some(ChunkWriter::create(&path, &self.schema)?);
        }
        match &mut self.open {
            Some(open) => open.write(rows),
            None => Ok(()),
        }
    }

    fn give_up(self, why: &str) {
        if self.making.done.lock().take().is_some() {
            tracing::warn!("the result of step {} is not kept: {why}", self.step);
        }
    }

    /// The partition's rows have ended; the last one gives the result its name.
    fn end(mut self) {
        let file = match self.open.take().map(ChunkWriter::finish).transpose() {
            Ok(file) => file,
            Err(error) => return self.give_up(&error.to_string()),
        };
        let all = {
            let mut done = self.making.done.lock();
            let Some(partitions) = done.as_mut() else { return };
            if let Some(own) = partitions.get_mut(self.partition) {
                *own = Some(file.into_iter().collect());
            }
            match partitions.iter().all(Option::is_some) {
                true => done.take(),
                false => return,
            }
        };
        let partitions: Vec<Vec<ChunkFile>> = all.into_iter().flatten().flatten().collect();
        if let Err(error) = self.publish(&partitions) {
            tracing::warn!("the result of step {} is not kept: {error}", self.step);
        }
    }

    fn publish(&self, partitions: &[Vec<ChunkFile>]) -> std::io::Result<()> {
        let folder = &self.making.folder;
        std::fs::create_dir_all(folder)?;
        let named = |file: &ChunkFile| {
            let name = file.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            (name, file.bytes)
        };
        let manifest = Manifest {
            step: self.step.to_string(),
            partitions: partitions.iter().map(|files| files.iter().map(named).collect()).collect(),
        };
        let path = folder.join(MANIFEST);
        std::fs::write(&path, serde_json::to_vec(&manifest).map_err(std::io::Error::other)?)?;
        std::fs::File::open(&path)?.sync_all()?;
        std::fs::File::open(folder)?.sync_all()?;
        let bytes: u64 = partitions.iter().flatten().map(|file| file.bytes).sum();
        if bytes > self.max_bytes {
            return Err(std::io::Error::other(format!("it has {bytes} bytes, and `cache.disk` is {}", self.max_bytes)));
        }
        // One that is too old, or not whole, makes room.
        if self.place.exists() {
            std::fs::remove_dir_all(&self.place)?;
        }
        std::fs::rename(folder, &self.place)?;
        if let Some(above) = self.place.parent() {
            std::fs::File::open(above)?.sync_all()?;
            make_room(above, &self.place, self.max_bytes)?;
        }
        Ok(())
    }
}

/// Removes results that were used longest ago, until the rest fits; `own` stays, and so does what was used just now, if
/// need be above the bound.
fn make_room(folder: &Path, own: &Path, max_bytes: u64) -> std::io::Result<()> {
    let mut results: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        // What a process that was killed left.
        let age = std::fs::metadata(&path).and_then(|meta| meta.modified()).ok().and_then(|at| at.elapsed().ok());
        if path.extension().is_some_and(|end| end == "tmp") && age.is_some_and(|age| age > LEFT_AFTER) {
            std::fs::remove_dir_all(&path)?;
            continue;
        }
        let Ok(manifest) = std::fs::metadata(path.join(MANIFEST)) else { continue };
        let used = manifest.accessed().or_else(|_| manifest.modified())?;
        results.push((used, bytes_in(&path), path));
    }
    let mut all: u64 = results.iter().map(|(_, bytes, _)| bytes).sum();
    results.sort();
    for (used, bytes, path) in results {
        if all <= max_bytes {
            return Ok(());
        }
        // A time ahead of the clock counts as now.
        if path != own && used.elapsed().is_ok_and(|age| age > IN_USE) {
            std::fs::remove_dir_all(&path)?;
            all -= bytes;
        }
    }
    Ok(())
}

fn bytes_in(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|meta| meta.len()).sum()
}

/// How many results a folder holds, and their bytes.
pub fn holdings(folder: &Path) -> (u64, u64) {
    let Ok(entries) = std::fs::read_dir(folder) else { return (0, 0) };
    let results = entries.flatten().map(|entry| entry.path()).filter(|path| path.join(MANIFEST).exists());
    results.fold((0, 0), |(count, bytes), path| (count + 1, bytes + bytes_in(&path)))
}
