//! Python functions inside a query, in this process: over batches as an operator, over columns as an expression.
//!
//! The function that is called here is always an adapter of `rowmill._functions`: it takes a batch with the columns
//! that the user's function reads and answers with a batch of declared columns. Columns cross without a copy, and the
//! thread holds the GIL only while the function runs.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, UInt32Type};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, exec_err, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{
    ColumnarValue, Expr, LogicalPlan, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TableType, Volatility,
};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, EmissionType, ReplaceChildrenOptions};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties as _, PlanProperties,
};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::batches::{Batch, engine_error};
use crate::cdata;
use crate::errors::{Raised, from_engine};
use crate::expr::{PyExpr, user_call};
use crate::frame::PyFrame;
use crate::items::Items;

/// In an answer: the row of the input that each row belongs to.
const ROW: &str = "__row";
/// Rows that a function sees at once where nothing else is said: a column of numbers, and what is made of it, stay in the
/// cache of one core.
const SLICE_ROWS: usize = 1 << 16;

/// An adapter, and what it answers with.
struct Call {
    name: String,
    function: Py<PyAny>,
    schema: SchemaRef,
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Call {
    /// Calls the function for one batch. It may take long, so the runtime is told.
    fn call(&self, batch: RecordBatch) -> Result<RecordBatch> {
        let call = || {
            Python::attach(|py| {
                let answer = Py::new(py, Batch { batch }).and_then(|batch| {
                    let answer = self.function.call1(py, (batch,))?;
                    cdata::batch_from_python(answer.bind(py))
                });
                answer.map_err(|error| Raised::wrap(py, &self.name, error))
            })
        };
        match tokio::runtime::Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
            Ok(tokio::runtime::RuntimeFlavor::MultiThread) => tokio::task::block_in_place(call),
            _ => call(),
        }
    }

    /// Whether the answer has the columns that were declared; with `__row` before them in addition.
    fn check(&self, answer: &RecordBatch, offset: usize) -> Result<()> {
        let came = answer.schema();
        let fits = came.fields().len() == self.schema.fields().len() + offset
            && came
                .fields()
                .iter()
                .skip(offset)
                .zip(self.schema.fields())
                .all(|(came, said)| came.name() == said.name() && came.data_type() == said.data_type());
        match fits {
            true => Ok(()),
            false => internal_err!("`{}` answered with columns {:?}", self.name, came.fields()),
        }
    }
}

/// What becomes of the input's columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// The answer is all there is.
    Nothing,
    /// The answer's columns come beside them, or in place of those of the same name.
    All,
}

/// A function over the rows of a plan, as a table: DataFusion plans below it and above it, never across it.
#[derive(Debug)]
struct MapTable {
    input: LogicalPlan,
    shape: Arc<Shape>,
}

/// What the operator does to a batch.
#[derive(Debug)]
struct Shape {
    call: Call,
    /// Columns of the input that the function reads.
    reads: Vec<usize>,
    keep: Keep,
    /// Columns of the input that go on, and columns of the answer in their places.
    output: Vec<Place>,
    schema: SchemaRef,
    /// Rows of a call: exactly so many, or no more than a default.
    batch_rows: Option<usize>,
    /// What holds for its items, where the engine's step operator calls the function.
    items: Option<Arc<Items>>,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    Input(usize),
    Answer(usize),
}

impl Shape {
    fn try_new(call: Call, input: &Schema, reads: &[String], keep: Keep, batch_rows: Option<usize>) -> Result<Shape> {
        let reads = reads.iter().map(|name| Ok(input.index_of(name)?)).collect::<Result<Vec<_>>>()?;
        let answer = Arc::clone(&call.schema);
        let mut output = Vec::new();
        let mut fields = Vec::new();
        if keep == Keep::All {
            for (at, field) in input.fields().iter().enumerate() {
                match answer.index_of(field.name()) {
                    Ok(from) => {
                        output.push(Place::Answer(from));
                        fields.push(Arc::clone(&answer.fields()[from]));
                    }
                    Err(_) => {
                        output.push(Place::Input(at));
                        fields.push(Arc::clone(field));
                    }
                }
            }
        }
        for (at, field) in answer.fields().iter().enumerate() {
            if keep == Keep::Nothing || input.index_of(field.name()).is_err() {
                output.push(Place::Answer(at));
                fields.push(Arc::clone(field));
            }
        }
        let schema = Arc::new(Schema::new(Fields::from(fields)));
        Ok(Shape { call, reads, keep, output, schema, batch_rows, items: None })
    }

    /// The function over one batch.
    fn apply(&self, input: &RecordBatch) -> Result<RecordBatch> {
        let answer = self.call.call(input.project(&self.reads)?)?;
        self.finish(input, answer)
    }

    /// The rows that come out, of those that went in and what the function made of them.
    fn finish(&self, input: &RecordBatch, answer: RecordBatch) -> Result<RecordBatch> {
        let counted = answer.schema().fields().first().is_some_and(|field| field.name() == ROW);
        self.call.check(&answer, usize::from(counted))?;
        let mut kept = input.clone();
        if counted {
            let rows = answer.column(0).as_primitive_opt::<UInt32Type>();
            let Some(rows) = rows else {
                return internal_err!("`{}` answered with rows that are no numbers", self.call.name);
            };
            check_rows(rows, input.num_rows(), &self.call.name)?;
            if self.keep == Keep::All {
                kept = take_record_batch(input, rows)?;
            }
        } else if self.keep == Keep::All && answer.num_rows() != input.num_rows() {
            return exec_err!(
                "`{}` answered with {} rows for {}; a step keeps one row for each, a generator or map_batches need not",
                self.call.name,
                answer.num_rows(),
                input.num_rows()
            );
        }
        let columns: Vec<ArrayRef> = self
            .output
            .iter()
            .map(|place| match place {
                Place::Input(at) => Arc::clone(kept.column(*at)),
                Place::Answer(at) => Arc::clone(answer.column(*at + usize::from(counted))),
            })
            .collect();
        let options = RecordBatchOptions::new().with_row_count(Some(answer.num_rows()));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?)
    }
}

fn check_rows(rows: &UInt32Array, most: usize, name: &str) -> Result<()> {
    let ordered = rows.values().windows(2).all(|pair| pair[0] <= pair[1]);
    let known = rows.values().last().is_none_or(|last| (*last as usize) < most);
    match ordered && known && rows.null_count() == 0 {
        true => Ok(()),
        false => internal_err!("`{name}` answered with rows that are not those of its input"),
    }
}

#[async_trait]
impl TableProvider for MapTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.shape.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let input = state.create_physical_plan(&self.input).await?;
        let shape = &self.shape;
        let plan: Arc<dyn ExecutionPlan> = match &shape.items {
            None => Arc::new(PythonExec::new(Arc::clone(shape), input)),
            Some(items) => {
                let places = shape.output.iter().map(|place| match place {
                    Place::Input(at) => (*at, false),
                    Place::Answer(at) => (*at, true),
                });
                let places: Vec<_> = places.collect();
                items.plan(input, &shape.reads, &shape.call.schema, &places, &shape.schema).await?
            }
        };
        let Some(columns) = projection else { return Ok(plan) };
        let schema = plan.schema();
        let columns = columns.iter().map(|at| {
            let name = schema.field(*at).name();
            (Arc::new(Column::new(name, *at)) as Arc<dyn PhysicalExpr>, name.clone())
        });
        Ok(Arc::new(ProjectionExec::try_new(columns.collect::<Vec<_>>(), plan)?))
    }
}

/// A function of the user's over the batches of a partition, in order.
#[derive(Debug)]
struct PythonExec {
    shape: Arc<Shape>,
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl PythonExec {
    fn new(shape: Arc<Shape>, input: Arc<dyn ExecutionPlan>) -> PythonExec {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&shape.schema)),
            datafusion::physical_plan::Partitioning::UnknownPartitioning(input.output_partitioning().partition_count()),
            EmissionType::Incremental,
            input.boundedness(),
        );
        PythonExec { shape, input, properties: Arc::new(properties) }
    }
}

impl DisplayAs for PythonExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PythonExec: {}", self.shape.call.name)?;
        match self.shape.batch_rows {
            Some(rows) => write!(f, ", batch={rows}"),
            None => Ok(()),
        }
    }
}

impl ExecutionPlan for PythonExec {
    fn name(&self) -> &str {
        "PythonExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
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
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.is_empty()) {
            (Some(input), true) => Ok(Arc::new(PythonExec::new(Arc::clone(&self.shape), input))),
            _ => internal_err!("a function has one input"),
        }
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, context)?;
        let shape = Arc::clone(&self.shape);
        let sized = sized(input, shape.batch_rows, SLICE_ROWS);
        let schema = Arc::clone(&shape.schema);
        let mapped = sized.map(move |batch| shape.apply(&batch?));
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, mapped)))
    }
}

/// Batches of exactly so many rows (the last one fewer), or without copying, of no more than the default.
fn sized(
    input: SendableRecordBatchStream,
    rows: Option<usize>,
    most: usize,
) -> BoxStream<'static, Result<RecordBatch>> {
    match rows {
        Some(rows) => {
            let gather = Gather { schema: input.schema(), input, rows, held: Vec::new(), count: 0, ended: false };
            futures::stream::try_unfold(gather, |mut gather| async move {
                Ok(gather.next().await?.map(|batch| (batch, gather)))
            })
            .boxed()
        }
        None => {
            let cut = input.map(move |batch| match batch {
                Ok(batch) => (0..batch.num_rows())
                    .step_by(most)
                    .map(|at| Ok(batch.slice(at, most.min(batch.num_rows() - at))))
                    .collect::<Vec<_>>(),
                Err(error) => vec![Err(error)],
            });
            cut.flat_map(futures::stream::iter).boxed()
        }
    }
}

/// Gathers rows until there are enough for a call.
struct Gather {
    input: SendableRecordBatchStream,
    schema: SchemaRef,
    rows: usize,
    held: Vec<RecordBatch>,
    count: usize,
    ended: bool,
}

impl Gather {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        while self.count < self.rows && !self.ended {
            match self.input.next().await.transpose()? {
                Some(batch) => {
                    self.count += batch.num_rows();
                    self.held.push(batch);
                }
                None => self.ended = true,
            }
        }
        if self.count == 0 {
            return Ok(None);
        }
        let mut held = std::mem::take(&mut self.held);
        let all = match held.len() {
            1 => held.remove(0),
            _ => concat_batches(&self.schema, &held)?,
        };
        let batch = all.slice(0, self.rows.min(self.count));
        self.count -= batch.num_rows();
        if self.count > 0 {
            self.held.push(all.slice(batch.num_rows(), self.count));
        }
        Ok(Some(batch))
    }
}

/// Has the system's allocator keep what functions free. Each call makes a column of some hundred kilobytes; where those
/// go back to the system at once, the next call pays for new pages, which costs ten times the work of adding a number.
/// Whoever set the allocator up by its environment variables is left alone.
fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn mallopt(parameter: std::ffi::c_int, value: std::ffi::c_int) -> std::ffi::c_int;
        }
        const TRIM_THRESHOLD: std::ffi::c_int = -1;
        const MMAP_THRESHOLD: std::ffi::c_int = -3;
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| {
            let set = |name: &str| std::env::var_os(name).is_some();
            if set("MALLOC_TRIM_THRESHOLD_") || set("MALLOC_MMAP_THRESHOLD_") || set("GLIBC_TUNABLES") {
                return;
            }
            // SAFETY: glibc documents both calls for use at any time; what it refuses stays as it is.
            unsafe {
                mallopt(TRIM_THRESHOLD, 128 << 20);
                mallopt(MMAP_THRESHOLD, 32 << 20);
            }
        });
    }
}

/// A frame of what a function makes of another: `reads` are the columns that it is given, `schema` (an object with
/// `__arrow_c_schema__`) those that it answers with, which come beside the others if `keep`.
#[pyfunction]
#[pyo3(signature = (frame, name, function, reads, schema, keep, batch_rows, items = None))]
#[expect(clippy::too_many_arguments, reason = "they are keywords in Python, where this is called once")]
pub(crate) fn map_frame(
    py: Python<'_>,
    frame: &PyFrame,
    name: String,
    function: Py<PyAny>,
    reads: Vec<String>,
    schema: &Bound<'_, PyAny>,
    keep: bool,
    batch_rows: Option<usize>,
    items: Option<&Bound<'_, PyDict>>,
) -> PyResult<PyFrame> {
    keep_freed_memory();
    if batch_rows == Some(0) {
        return Err(PyValueError::new_err("a batch has at least one row"));
    }
    let call = Call { name, function, schema: cdata::schema_from_python(schema)? };
    let input = frame.arrow_schema();
    for column in &reads {
        if input.index_of(column).is_err() {
            let known: Vec<&str> = input.fields().iter().map(|field| field.name().as_str()).collect();
            return Err(PyValueError::new_err(format!(
                "`{}` reads column `{column}`, which the frame does not have; it has {}",
                call.name,
                known.join(", ")
            )));
        }
    }
    let keep = if keep { Keep::All } else { Keep::Nothing };
    let shared = Arc::clone(&frame.shared);
    let items = items
        .map(|said| Items::from_python(said, &call.function, &reads, &call.schema, shared))
        .transpose()?
        .map(Arc::new);
    let shape = Shape::try_new(call, &input, &reads, keep, batch_rows).map_err(|error| from_engine(py, &error))?;
    let shape = Shape { items, ..shape };
    let table = MapTable { input: frame.plan.clone(), shape: Arc::new(shape) };
    PyFrame::of_table(Arc::clone(&frame.shared), Arc::new(table)).map_err(|error| from_engine(py, &error))
}

/// A function of the user's over columns, as an expression.
#[derive(Debug)]
struct PythonFunction {
    call: Call,
    signature: Signature,
}

// Two functions are the same only if they are one: what a Python function does cannot be compared.
impl PartialEq for PythonFunction {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for PythonFunction {}

impl Hash for PythonFunction {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.call.name.hash(state);
    }
}

impl ScalarUDFImpl for PythonFunction {
    fn name(&self) -> &str {
        &self.call.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        match self.call.schema.fields().first() {
            Some(field) => Ok(field.data_type().clone()),
            None => internal_err!("a function without an answer"),
        }
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = arguments.number_rows;
        let columns = ColumnarValue::values_to_arrays(&arguments.args)?;
        let columns = columns.into_iter().map(|column| match column.len() == rows {
            true => Ok(column),
            // Constants alone come as one row.
            false => arrow::compute::take(&column, &UInt32Array::from(vec![0; rows]), None).map_err(engine_error),
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let fields: Vec<Field> = columns
            .iter()
            .enumerate()
            .map(|(at, column)| Field::new(format!("_{at}"), column.data_type().clone(), true))
            .collect();
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)?;
        let answer = self.call.call(batch)?;
        self.call.check(&answer, 0)?;
        if answer.num_rows() != rows {
            return exec_err!("`{}` answered with {} rows for {rows}", self.call.name, answer.num_rows());
        }
        Ok(ColumnarValue::Array(Arc::clone(answer.column(0))))
    }
}

/// A call of a function of the user's. With `pure` the engine may call it once for equal arguments and move it around.
#[pyfunction]
pub(crate) fn call_function(
    name: String,
    function: Py<PyAny>,
    arguments: Vec<PyExpr>,
    schema: &Bound<'_, PyAny>,
    pure: bool,
) -> PyResult<PyExpr> {
    let call = Call { name, function, schema: cdata::schema_from_python(schema)? };
    keep_freed_memory();
    let volatility = if pure { Volatility::Immutable } else { Volatility::Volatile };
    let signature = Signature::any(arguments.len(), volatility);
    Ok(user_call(ScalarUDF::new_from_impl(PythonFunction { call, signature }), arguments))
}
