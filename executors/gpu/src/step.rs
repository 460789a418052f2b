//! The executor: one search for a group of items.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, Float32Array, Int32Array, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use rowmill_gpu::device::Device;
use rowmill_gpu::ops::top_k::{Corpus as Search, Metric, Neighbour};
use rowmill_step::{
    BatchReply, BatchTarget, CallCost, Cardinality, Effects, Failure, FailureCode, FingerprintBuilder, ItemBatch, Sent,
    StepContext, StepDescription, StepExecutor, StepSession, StepShape, Usage,
};
use tokio::sync::OnceCell;

use crate::corpus;

/// The device for a corpus of so many rows and bytes, and the time that searches in memory take before it goes there;
/// `None` where it is searched on the CPU.
pub type DeviceFor = Arc<dyn Fn(u64, u64) -> Option<(Arc<Device>, Duration)> + Send + Sync>;

/// The columns that the step adds.
const NEIGHBOUR: &str = "neighbour";
const SCORE: &str = "score";
const RANK: &str = "rank";

/// A search.
#[derive(Debug, Clone)]
pub struct TopKOptions {
    /// The item's column of embeddings.
    pub column: String,
    /// The corpus.
    pub corpus: PathBuf,
    /// Its column of embeddings.
    pub corpus_column: String,
    /// Its column that names a row.
    pub id: Option<String>,
    /// Rows for each item at most.
    pub k: usize,
    /// What similar means.
    pub metric: Metric,
    /// The size of groups.
    pub target: BatchTarget,
}

/// A `gpu` step with `top_k`.
pub struct TopKStep {
    options: Arc<TopKOptions>,
    description: StepDescription,
    device: DeviceFor,
    loaded: Arc<OnceCell<Loaded>>,
}

struct Loaded {
    search: Arc<Search>,
    ids: Option<ArrayRef>,
    dims: usize,
}

impl fmt::Debug for TopKStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TopKStep").field("options", &self.options).finish_non_exhaustive()
    }
}

impl TopKStep {
    /// Groups as large as a search likes them: the corpus is read once for up to 64 queries.
    pub const TARGET: BatchTarget = BatchTarget { rows: 4096, bytes: 64 << 20, in_flight: 1 };

    /// A step; nothing is read yet.
    pub fn new(options: TopKOptions, device: DeviceFor) -> Self {
        let stamp = std::fs::metadata(&options.corpus).ok();
        let modified = stamp.as_ref().and_then(|stamp| stamp.modified().ok());
        let fingerprint = FingerprintBuilder::new("gpu", 1)
            .field("corpus", options.corpus.to_string_lossy().as_bytes())
            // Another corpus under the same name is another step: cached answers of the old one do not count.
            .field("size", format!("{:?}", stamp.map(|stamp| stamp.len())))
            .field("modified", format!("{modified:?}"))
            .field("column", &options.column)
            .field("corpus_column", &options.corpus_column)
            .field("id", format!("{:?}", options.id))
            .field("k", options.k.to_string())
            .field("metric", format!("{:?}", options.metric));
        let description = StepDescription {
            kind: "gpu",
            summary: format!("the {} rows of {} most like `{}`", options.k, options.corpus.display(), options.column),
            reads: vec![options.column.clone()],
            effects: Effects::Pure,
            cardinality: Cardinality::FanOut,
            target: options.target,
            connections: Vec::new(),
            fingerprint: fingerprint.finish(),
        };
        Self { options: Arc::new(options), description, device, loaded: Arc::default() }
    }
}

#[async_trait]
impl StepExecutor for TopKStep {
    fn describe(&self) -> &StepDescription {
        &self.description
    }

    async fn output_schema(&self, input: &SchemaRef, context: &StepContext) -> Result<SchemaRef, Failure> {
        let wrong = |message: String| context.failure(FailureCode::Setup, message).sent(Sent::Never);
        let options = &self.options;
        if let Some(field) = input.fields().first()
            && !corpus::is_embedding(field.data_type())
        {
            return Err(wrong(format!(
                "column `{}` is {}, not a list of numbers as embeddings are",
                field.name(),
                field.data_type()
            )));
        }
        let schema = corpus::schema(&options.corpus).map_err(wrong)?;
        let column = schema.field(corpus::find(&schema, &options.corpus_column, &options.corpus).map_err(wrong)?);
        if !corpus::is_embedding(column.data_type()) {
            return Err(wrong(format!(
                "column `{}` of the corpus is {}, not a list of numbers as embeddings are",
                column.name(),
                column.data_type()
            )));
        }
        let id = match &options.id {
            Some(id) => schema.field(corpus::find(&schema, id, &options.corpus).map_err(wrong)?).data_type().clone(),
            None => DataType::Int64,
        };
        Ok(Arc::new(Schema::new(vec![
            Field::new(NEIGHBOUR, id, true),
            Field::new(SCORE, DataType::Float32, true),
            Field::new(RANK, DataType::Int32, true),
        ])))
    }

    async fn open(&self, context: &StepContext, shape: &StepShape) -> Result<Box<dyn StepSession>, Failure> {
        let (options, device) = (Arc::clone(&self.options), Arc::clone(&self.device));
        let load = self.loaded.get_or_try_init(|| async {
            let read = tokio::task::spawn_blocking(move || {
                let read = corpus::read(&options.corpus, &options.corpus_column, options.id.as_deref())?;
                let dims = usize::try_from(read.embeddings.value_length()).unwrap_or(0);
                let bytes = read.embeddings.values().to_data().get_slice_memory_size().unwrap_or(0);
                let device = device(read.embeddings.len() as u64, bytes as u64);
                let search = Search::once_it_pays(&read.embeddings, options.metric, device);
                let search = search.map_err(|error| format!("the corpus {}: {error}", options.corpus.display()))?;
                Ok(Loaded { search: Arc::new(search), ids: read.ids, dims })
            });
            match read.await {
                Ok(Ok(loaded)) => Ok(loaded),
                Ok(Err(message)) => {
                    Err(context.failure(FailureCode::Setup, String::as_str(&message)).sent(Sent::Never))
                }
                Err(error) => Err(context.failure(FailureCode::Internal, error.to_string()).sent(Sent::Never)),
            }
        });
        load.await?;
        Ok(Box::new(Session {
            options: Arc::clone(&self.options),
            loaded: Arc::clone(&self.loaded),
            context: context.clone(),
            shape: shape.clone(),
        }))
    }

    fn cost(&self, _batch: &ItemBatch) -> CallCost {
        CallCost { requests: 0, tokens: 0 }
    }
}

struct Session {
    options: Arc<TopKOptions>,
    loaded: Arc<OnceCell<Loaded>>,
    context: StepContext,
    shape: StepShape,
}

#[async_trait]
impl StepSession for Session {
    async fn execute(&mut self, batch: ItemBatch) -> Result<BatchReply, Failure> {
        let bug = |message: String| self.context.failure(FailureCode::Internal, message).sent(Sent::Never);
        let Some(loaded) = self.loaded.get() else { return Err(bug("the corpus is not loaded".to_owned())) };
        let column = batch.columns.column(0);
        let queries = corpus::embeddings(column, Some(loaded.dims)).map_err(&bug)?;
        let (search, k, list) = (Arc::clone(&loaded.search), self.options.k, queries.list);
        // A search takes all cores for as long as it lasts: not on a thread that others wait for.
        let found = match batch.rows() {
            0 => Ok(Ok(Vec::new())),
            _ => tokio::task::spawn_blocking(move || search.search(&list, k)).await,
        };
        let found = match found {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return Err(bug(error.to_string())),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(error) => return Err(bug(error.to_string())),
        };
        let mut reply = self.reply(&found, loaded.ids.as_ref()).map_err(|error| bug(error.to_string()))?;
        reply.failures = queries
            .wrong
            .into_iter()
            .map(|(row, error)| {
                let failure = self.context.failure(FailureCode::BadInput, error).sent(Sent::Never);
                (u32::try_from(row).unwrap_or(u32::MAX), failure)
            })
            .collect();
        Ok(reply)
    }
}

impl Session {
    fn reply(&self, found: &[Vec<Neighbour>], ids: Option<&ArrayRef>) -> Result<BatchReply, arrow::error::ArrowError> {
        let hits = || found.iter().flatten();
        let rows = UInt32Array::from_iter_values(hits().map(|hit| hit.row));
        let neighbours: ArrayRef = match ids {
            Some(ids) => take(ids, &rows, None)?,
            None => Arc::new(Int64Array::from_iter_values(hits().map(|hit| i64::from(hit.row)))),
        };
        let scores = Float32Array::from_iter_values(hits().map(|hit| hit.score));
        let ranks = Int32Array::from_iter_values(
            found.iter().flat_map(|hits| (1..=hits.len()).map(|rank| i32::try_from(rank).unwrap_or(i32::MAX))),
        );
        let columns: Vec<ArrayRef> = vec![neighbours, Arc::new(scores), Arc::new(ranks)];
        let output = RecordBatch::try_new(Arc::clone(&self.shape.output), columns)?;
        let sources = found
            .iter()
            .enumerate()
            .flat_map(|(item, hits)| std::iter::repeat_n(u32::try_from(item).unwrap_or(u32::MAX), hits.len()));
        Ok(BatchReply {
            source_rows: Some(sources.collect()),
            output,
            skipped: Vec::new(),
            failures: Vec::new(),
            usage: Usage::default(),
        })
    }
}
