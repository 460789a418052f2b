//! The executor: each session keeps one model warm and runs it over a group of items at once.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::{concat, take_record_batch};
use arrow::datatypes::{Field, FieldRef, Schema, SchemaRef};
use async_trait::async_trait;
use ort::session::Session;
use ort::value::DynValue;
use parking_lot::Mutex;
use rowmill_spec::ModelDevice;
use rowmill_step::{
    BatchReply, BatchTarget, CallCost, Cardinality, Effects, Failure, FailureCode, FingerprintBuilder, ItemBatch, Sent,
    StepContext, StepDescription, StepExecutor, StepSession, StepShape, Usage,
};

use crate::runtime;
use crate::tensors::{Port, has_nulls, null_in};

/// A model and its columns.
#[derive(Debug, Clone)]
pub struct ModelOptions {
    /// The file.
    pub file: PathBuf,
    /// The columns of each input, by the input's name.
    pub inputs: Vec<(String, Vec<String>)>,
    /// The output of each column that is added; all outputs where absent.
    pub output: Option<Vec<(String, String)>>,
    /// Where it runs.
    pub device: ModelDevice,
    /// The file of ONNX Runtime; it is looked for where absent.
    pub library: Option<PathBuf>,
    /// The size of groups.
    pub target: BatchTarget,
}

/// A `model` step.
#[derive(Debug)]
pub struct ModelStep {
    options: Arc<ModelOptions>,
    description: StepDescription,
    /// The model that was loaded to describe it: the first session takes it over.
    described: Mutex<Option<Model>>,
}

/// A loaded model: which ports the step uses.
#[derive(Debug)]
struct Model {
    session: Session,
    /// Ports with the positions of their columns among those that the step reads.
    inputs: Vec<(Port, Vec<usize>)>,
    /// Columns with their ports.
    outputs: Vec<(String, Port)>,
}

impl ModelStep {
    /// One model at a time, which has all cores; groups that keep them busy.
    pub const TARGET: BatchTarget = BatchTarget { rows: 1024, bytes: 32 << 20, in_flight: 1 };

    /// A step; nothing is loaded yet.
    pub fn new(options: ModelOptions) -> Self {
        let mut reads: Vec<String> = Vec::new();
        for column in options.inputs.iter().flat_map(|(_, columns)| columns) {
            if !reads.contains(column) {
                reads.push(column.clone());
            }
        }
        let stamp = std::fs::metadata(&options.file).ok();
        let modified = stamp.as_ref().and_then(|stamp| stamp.modified().ok());
        let fingerprint = FingerprintBuilder::new("model", 1)
            .field("file", options.file.to_string_lossy().as_bytes())
            // Another model under the same name is another step: cached answers of the old one do not count.
            .field("size", format!("{:?}", stamp.map(|stamp| stamp.len())))
            .field("modified", format!("{modified:?}"))
            .field("inputs", format!("{:?}", options.inputs))
            .field("output", format!("{:?}", options.output));
        let description = StepDescription {
            kind: "model",
            summary: format!("{} on {}", options.file.display(), options.device.as_str()),
            reads,
            effects: Effects::Pure,
            cardinality: Cardinality::OneToOne,
            target: options.target,
            connections: Vec::new(),
            fingerprint: fingerprint.finish(),
        };
        Self { options: Arc::new(options), description, described: Mutex::new(None) }
    }

    async fn load(&self, context: &StepContext) -> Result<Model, Failure> {
        let (options, reads) = (Arc::clone(&self.options), self.description.reads.clone());
        match tokio::task::spawn_blocking(move || Model::load(&options, &reads)).await {
            Ok(Ok(model)) => Ok(model),
            Ok(Err(message)) => Err(context.failure(FailureCode::Setup, message).sent(Sent::Never)),
            Err(error) => Err(context.failure(FailureCode::Internal, error.to_string()).sent(Sent::Never)),
        }
    }
}

impl Model {
    fn load(options: &ModelOptions, reads: &[String]) -> Result<Self, String> {
        let session = runtime::load(&options.file, options.device, options.library.as_deref())?;
        let whose = |message: String| format!("the model {}: {message}", options.file.display());
        let names = |outlets: &[ort::value::Outlet]| {
            outlets.iter().map(|outlet| outlet.name().to_owned()).collect::<Vec<_>>().join(", ")
        };
        let mut inputs = Vec::new();
        for outlet in session.inputs() {
            let given = options.inputs.iter().find(|(name, _)| name == outlet.name());
            let Some((_, columns)) = given else {
                return Err(whose(format!("input `{}` gets no columns; add it to `inputs`", outlet.name())));
            };
            let places = columns.iter().filter_map(|column| reads.iter().position(|read| read == column));
            inputs.push((Port::try_new(outlet, "input").map_err(whose)?, places.collect()));
        }
        if let Some((unknown, _)) =
            options.inputs.iter().find(|(name, _)| !session.inputs().iter().any(|outlet| outlet.name() == name))
        {
            return Err(whose(format!("there is no input `{unknown}`; there are {}", names(session.inputs()))));
        }
        let all =
            || session.outputs().iter().map(|outlet| (outlet.name().to_owned(), outlet.name().to_owned())).collect();
        let mut outputs = Vec::new();
        for (column, tensor) in options.output.clone().unwrap_or_else(all) {
            let Some(outlet) = session.outputs().iter().find(|outlet| outlet.name() == tensor) else {
                return Err(whose(format!("there is no output `{tensor}`; there are {}", names(session.outputs()))));
            };
            outputs.push((column, Port::try_new(outlet, "output").map_err(whose)?));
        }
        Ok(Self { session, inputs, outputs })
    }

    /// Items at once; `None` for any number.
    fn items(&self) -> Option<usize> {
        self.inputs.iter().find_map(|(port, _)| port.items())
    }

    fn run(&mut self, columns: &RecordBatch) -> Result<Vec<ArrayRef>, String> {
        let rows = columns.num_rows();
        let at_once = self.items().unwrap_or(rows).max(1);
        let mut parts: Vec<Vec<ArrayRef>> = self.outputs.iter().map(|_| Vec::new()).collect();
        for from in (0..rows).step_by(at_once) {
            let items = at_once.min(rows - from);
            // A model of fixed size gets its last items several times over.
            let chosen = UInt32Array::from_iter_values((0..at_once).map(|at| (from + at.min(items - 1)) as u32));
            let group = match at_once == rows {
                true => columns.clone(),
                false => take_record_batch(columns, &chosen).map_err(|error| error.to_string())?,
            };
            let mut tensors: Vec<(String, DynValue)> = Vec::with_capacity(self.inputs.len());
            for (port, places) in &self.inputs {
                let columns: Vec<ArrayRef> = places.iter().map(|at| Arc::clone(group.column(*at))).collect();
                tensors.push((port.name.clone(), port.tensor(&columns)?));
            }
            let answers = self.session.run(tensors).map_err(|error| error.to_string())?;
            for ((_, port), parts) in self.outputs.iter().zip(&mut parts) {
                let Some(value) = answers.get(&port.name) else {
                    return Err(format!("the model gave no output `{}`", port.name));
                };
                parts.push(port.column(value, at_once)?.slice(0, items));
            }
        }
        let joined = parts.iter().map(|parts| {
            let parts: Vec<&dyn arrow::array::Array> = parts.iter().map(AsRef::as_ref).collect();
            concat(&parts).map_err(|error| error.to_string())
        });
        joined.collect()
    }
}

#[async_trait]
impl StepExecutor for ModelStep {
    fn describe(&self) -> &StepDescription {
        &self.description
    }

    async fn output_schema(&self, input: &SchemaRef, context: &StepContext) -> Result<SchemaRef, Failure> {
        let model = self.load(context).await?;
        for (port, places) in &model.inputs {
            let fields: Vec<FieldRef> = places.iter().map(|at| Arc::clone(&input.fields()[*at])).collect();
            port.check(&fields).map_err(|message| context.failure(FailureCode::Setup, message).sent(Sent::Never))?;
        }
        let fields = model.outputs.iter().map(|(column, port)| Field::new(column, port.column_type(), true));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        *self.described.lock() = Some(model);
        Ok(schema)
    }

    async fn open(&self, context: &StepContext, shape: &StepShape) -> Result<Box<dyn StepSession>, Failure> {
        let described = self.described.lock().take();
        let model = match described {
            Some(model) => model,
            None => self.load(context).await?,
        };
        Ok(Box::new(ModelSession {
            model: Arc::new(Mutex::new(model)),
            context: context.clone(),
            shape: shape.clone(),
        }))
    }

    fn cost(&self, _batch: &ItemBatch) -> CallCost {
        CallCost { requests: 0, tokens: 0 }
    }
}

struct ModelSession {
    model: Arc<Mutex<Model>>,
    context: StepContext,
    shape: StepShape,
}

#[async_trait]
impl StepSession for ModelSession {
    async fn execute(&mut self, batch: ItemBatch) -> Result<BatchReply, Failure> {
        let failure = |code, message: String| self.context.failure(code, message).sent(Sent::Never);
        let mut columns = batch.columns;
        let mut failures = Vec::new();
        if has_nulls(&columns) {
            let mut kept = Vec::with_capacity(columns.num_rows());
            for row in 0..columns.num_rows() {
                let number = u32::try_from(row).unwrap_or(u32::MAX);
                match null_in(&columns, row) {
                    None => kept.push(number),
                    Some(column) => {
                        let name = columns.schema_ref().field(column).name().clone();
                        let message = format!("column `{name}` is null, and a model takes no nulls");
                        failures.push((number, failure(FailureCode::BadInput, message)));
                    }
                }
            }
            columns = take_record_batch(&columns, &UInt32Array::from(kept))
                .map_err(|error| failure(FailureCode::Internal, error.to_string()))?;
        }
        if columns.num_rows() == 0 {
            let output = RecordBatch::new_empty(Arc::clone(&self.shape.output));
            return Ok(BatchReply { failures, ..BatchReply::all_ok(output) });
        }
        let model = Arc::clone(&self.model);
        // A model takes all cores for as long as it runs: not on a thread that others wait for.
        let answer = tokio::task::spawn_blocking(move || model.lock().run(&columns)).await;
        let columns = match answer {
            Ok(Ok(columns)) => columns,
            // Some item's values, as far as can be told: halving the group finds it.
            Ok(Err(message)) => return Err(failure(FailureCode::Rejected, message)),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(error) => return Err(failure(FailureCode::Internal, error.to_string())),
        };
        let output = RecordBatch::try_new(Arc::clone(&self.shape.output), columns)
            .map_err(|error| failure(FailureCode::Decode, error.to_string()))?;
        Ok(BatchReply { output, source_rows: None, skipped: Vec::new(), failures, usage: Usage::default() })
    }
}
