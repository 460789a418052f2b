//! Chunk files: Arrow IPC, written under attempt-unique names, synced before anybody hears of them.
//!
//! A disk may give back other bytes than were written, and Arrow's reader would take them for values. So behind Arrow's
//! file stands a checksum of it, which is compared before anything is read.

use std::fmt;
use std::fs::File;
use std::hash::Hasher as _;
use std::io::{BufWriter, Read as _, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::reader::{FileReader, StreamReader};
use arrow::ipc::writer::FileWriter;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, ReplaceChildrenOptions};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};
use futures::{StreamExt as _, TryStreamExt as _};
use twox_hash::XxHash64;

/// What a file with a checksum ends with. Before it stands XXH64 of everything before that, with the lowest byte first.
const MARK: &[u8; 8] = b"XXH64.01";
/// Bytes of the checksum and the mark.
const TAIL: usize = 16;

/// A file, and the checksum of what was written to it so far.
struct Summed {
    file: BufWriter<File>,
    sum: XxHash64,
}

impl Write for Summed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let taken = self.file.write(bytes)?;
        self.sum.write(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// A chunk that is written: a file, and how much is in it.
#[derive(Debug, Clone)]
pub(crate) struct ChunkFile {
    pub(crate) path: PathBuf,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
}

/// Writes one chunk.
pub(crate) struct ChunkWriter {
    path: PathBuf,
    rows: u64,
    file: FileWriter<Summed>,
}

impl ChunkWriter {
    /// A new file. An old one of the name is what a dead attempt left, and is replaced.
    pub(crate) fn create(path: &Path, schema: &SchemaRef) -> Result<Self, ArrowError> {
        if let Some(folder) = path.parent() {
            create_folder(folder)?;
        }
        let file = Summed { file: BufWriter::new(File::create(path)?), sum: XxHash64::with_seed(0) };
        let file = FileWriter::try_new(file, schema)?;
        Ok(ChunkWriter { path: path.to_owned(), rows: 0, file })
    }

    pub(crate) fn write(&mut self, batch: &RecordBatch) -> Result<(), ArrowError> {
        self.rows += batch.num_rows() as u64;
        self.file.write(batch)
    }

    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// Ends the file. It and its name are on disk when this returns: only then may a journal speak of it.
    pub(crate) fn finish(mut self) -> Result<ChunkFile, ArrowError> {
        self.file.finish()?;
        let Summed { mut file, sum } = self.file.into_inner()?;
        file.write_all(&sum.finish().to_le_bytes())?;
        file.write_all(MARK)?;
        let file = file.into_inner().map_err(|error| ArrowError::from(error.into_error()))?;
        file.sync_all()?;
        let bytes = file.metadata()?.len();
        if let Some(folder) = self.path.parent() {
            File::open(folder)?.sync_all()?;
            // The folder's own name: whoever made it may not have come to its sync yet.
            if let Some(above) = folder.parent() {
                File::open(above)?.sync_all()?;
            }
        }
        Ok(ChunkFile { path: self.path, rows: self.rows, bytes })
    }

    /// [`ChunkWriter::finish`] on a thread that may wait for the disk.
    pub(crate) async fn finish_aside(self) -> Result<ChunkFile> {
        let finished = tokio::task::spawn_blocking(move || self.finish()).await;
        Ok(finished.map_err(|error| DataFusionError::ExecutionJoin(Box::new(error)))??)
    }
}

/// Makes a folder and those above it; their names are on disk when this returns.
pub(crate) fn create_folder(folder: &Path) -> std::io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let Some(above) = folder.parent() else { return std::fs::create_dir_all(folder) };
    let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
    create_folder(above)?;
    match std::fs::create_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    File::open(above)?.sync_all()
}

/// Reads a chunk. The error names the file, and is one of the disk whatever is wrong with it.
pub(crate) fn read_chunk(path: &Path) -> Result<Vec<RecordBatch>, DataFusionError> {
    Ok(read_file(path)?.1)
}

/// Reads a chunk as one batch; errors as [`read_chunk`].
pub(crate) fn read_whole(path: &Path) -> Result<RecordBatch, DataFusionError> {
    let (schema, batches) = read_file(path)?;
    match batches.as_slice() {
        [one] => Ok(one.clone()),
        _ => Ok(concat_batches(&schema, &batches)?),
    }
}

fn read_file(path: &Path) -> Result<(SchemaRef, Vec<RecordBatch>), DataFusionError> {
    let read = || {
        let mut file = File::open(path)?;
        if !is_intact(&mut file)? {
            // Runs of earlier versions have files without a checksum. Arrow's reader looks for the end of its own.
            let reader = FileReader::try_new_buffered(file, None)?;
            let schema = reader.schema();
            return Ok((schema, reader.collect::<Result<Vec<_>, ArrowError>>()?));
        }
        let start = start_of_stream(&mut file)?;
        file.seek(SeekFrom::Start(start))?;
        let reader = StreamReader::try_new_buffered(file, None)?;
        let schema = reader.schema();
        Ok((schema, reader.collect::<Result<Vec<_>, ArrowError>>()?))
    };
    read().map_err(|error: ArrowError| {
        let kind = match &error {
            ArrowError::IoError(_, io) => io.kind(),
            _ => std::io::ErrorKind::InvalidData,
        };
        let message = format!(
            "the chunk {} cannot be read: {error}; if it is lost, `rowmill resume --restart` starts over",
            path.display()
        );
        ArrowError::IoError(message.clone(), std::io::Error::new(kind, message)).into()
    })
}

/// Holds the bytes of a file against its checksum; false where it has none.
///
/// # Errors
/// They are not those that were written.
fn is_intact(file: &mut File) -> std::io::Result<bool> {
    let length = file.metadata()?.len();
    let Some(mut left) = length.checked_sub(TAIL as u64) else { return Ok(false) };
    let mut tail = [0; TAIL];
    file.seek(SeekFrom::Start(left))?;
    file.read_exact(&mut tail)?;
    let (sum, mark) = tail.split_at(TAIL - MARK.len());
    if mark != MARK {
        return Ok(false);
    }
    let mut own = XxHash64::with_seed(0);
    let mut buffer = vec![0; 1 << 18];
    file.rewind()?;
    while left > 0 {
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        file.read_exact(&mut buffer[..most])?;
        own.write(&buffer[..most]);
        left -= most as u64;
    }
    match own.finish().to_le_bytes() == sum {
        true => Ok(true),
        false => Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "its bytes are not those that were written")),
    }
}

/// Where the first message of a file begins: after a magic word and zeros up to the writer's alignment.
fn start_of_stream(file: &mut File) -> std::io::Result<u64> {
    let mut head = [0; 128];
    file.rewind()?;
    file.read_exact(&mut head)?;
    let begins = head.iter().position(|byte| *byte == 0xff);
    begins
        .map(|at| at as u64)
        .ok_or_else(|| std::io::Error::new(std::io::ErrorKind::InvalidData, "it has no beginning"))
}

/// Cuts a stream into chunks of exactly `chunk_rows` rows, the last one shorter, so that the cut does not depend on
/// how the rows came in batches. `name` gives the path of each chunk.
pub(crate) async fn write_chunks(
    mut rows: SendableRecordBatchStream,
    chunk_rows: usize,
    name: impl Fn(usize) -> PathBuf,
) -> Result<Vec<ChunkFile>> {
    let schema = rows.schema();
    let mut written: Vec<ChunkFile> = Vec::new();
    let mut writer: Option<ChunkWriter> = None;
    while let Some(batch) = rows.next().await.transpose()? {
        let mut rest = batch;
        while rest.num_rows() > 0 {
            let mut open = match writer.take() {
                Some(open) => open,
                None => ChunkWriter::create(&name(written.len()), &schema)?,
            };
            let room = chunk_rows - open.rows() as usize;
            let taken = rest.slice(0, room.min(rest.num_rows()));
            rest = rest.slice(taken.num_rows(), rest.num_rows() - taken.num_rows());
            // Slices of large buffers are written whole, so what is written is cut first.
            open.write(&taken)?;
            match open.rows() as usize == chunk_rows {
                true => written.push(open.finish_aside().await?),
                false => writer = Some(open),
            }
        }
    }
    if let Some(open) = writer {
        written.push(open.finish_aside().await?);
    }
    Ok(written)
}

/// The files of a stage, by partition; known once all of its chunks are committed.
pub(crate) type LateFiles = Arc<OnceLock<Vec<Arc<Vec<PathBuf>>>>>;

/// Chunks as the leaf of a plan; in one partition their order is the order of the rows.
#[derive(Debug)]
pub(crate) struct ChunkScanExec {
    step: Arc<str>,
    files: LateFiles,
    properties: Arc<PlanProperties>,
}

impl ChunkScanExec {
    pub(crate) fn new(step: Arc<str>, files: Vec<PathBuf>, schema: SchemaRef) -> Self {
        ChunkScanExec::partitioned(step, vec![files], schema)
    }

    pub(crate) fn partitioned(step: Arc<str>, files: Vec<Vec<PathBuf>>, schema: SchemaRef) -> Self {
        let partitions = files.len();
        let files = OnceLock::from(files.into_iter().map(Arc::new).collect::<Vec<_>>());
        ChunkScanExec::over(step, Arc::new(files), partitions, schema)
    }

    /// Over one partition of files that are known when it is read; before, it can be planned with.
    pub(crate) fn late(step: Arc<str>, files: &LateFiles, schema: SchemaRef) -> Self {
        ChunkScanExec::over(step, Arc::clone(files), 1, schema)
    }

    fn over(step: Arc<str>, files: LateFiles, partitions: usize, schema: SchemaRef) -> Self {
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(partitions),
            EmissionType::Incremental,
            Boundedness::Bounded,
        ));
        ChunkScanExec { step, files, properties }
    }

    /// Whether these are the files that it reads.
    pub(crate) fn reads(&self, files: &LateFiles) -> bool {
        Arc::ptr_eq(&self.files, files)
    }

    /// The same over one file.
    pub(crate) fn of_file(&self, file: PathBuf) -> Self {
        ChunkScanExec::new(Arc::clone(&self.step), vec![file], self.schema())
    }
}

impl DisplayAs for ChunkScanExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkScanExec: {}", self.step)?;
        match self.files.get() {
            Some(files) => write!(f, ", {} chunks", files.iter().map(|files| files.len()).sum::<usize>()),
            None => Ok(()),
        }
    }
}

impl ExecutionPlan for ChunkScanExec {
    fn name(&self) -> &str {
        "ChunkScanExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _visit: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn with_new_children(self: Arc<Self>, _children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, _context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let Some(all) = self.files.get() else {
            return internal_err!("chunks of step {} are read before they are made", self.step);
        };
        let Some(files) = all.get(partition).map(Arc::clone) else {
            return internal_err!("there is no partition {partition} of chunks");
        };
        let batches = futures::stream::iter(0..files.len())
            .then(move |at| {
                let path = files.get(at).cloned().unwrap_or_default();
                async move {
                    let read = tokio::task::spawn_blocking(move || read_chunk(&path)).await;
                    read.map_err(|error| DataFusionError::ExecutionJoin(Box::new(error)))?
                }
            })
            .map_ok(|batches| futures::stream::iter(batches.into_iter().map(Ok)))
            .try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), batches)))
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, StringArray};

    use super::*;

    #[test]
    fn every_changed_byte_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chunk.arrow");
        let numbers = Arc::new(Int64Array::from_iter_values(0..50)) as _;
        let texts = Arc::new(StringArray::from_iter_values((0..50).map(|at| format!("text {at}")))) as _;
        let batch = RecordBatch::try_from_iter([("n", numbers), ("t", texts)]).unwrap();
        let mut writer = ChunkWriter::create(&path, &batch.schema()).unwrap();
        writer.write(&batch).unwrap();
        assert_eq!(writer.finish().unwrap().rows, 50);
        assert_eq!(read_chunk(&path).unwrap(), vec![batch.clone()]);
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0x10;
            std::fs::write(&path, &changed).unwrap();
            assert!(read_chunk(&path).is_err(), "byte {at} of {}", whole.len());
        }
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            // All but the checksum is a file as earlier versions wrote them.
            assert_eq!(read_chunk(&path).is_ok(), length == whole.len() - TAIL, "{length} bytes of {}", whole.len());
        }
    }
}
