//! Filter, projection and aggregates over one batch in one kernel that reads every column once.
//!
//! ```text
//! columns ─▶ thread: filter, arguments, accumulators in registers ─▶ block: shuffle + shared memory ─▶ partials
//!                                                                             host: merge in block order ─▶ outputs
//! ```
//! The launch's size depends only on the rows and the device, and partials are merged in the order of the blocks: float
//! sums are the same in every run on one kind of device.
use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};

use super::aggregate::{Aggregate, AggregatePlan};
use crate::batch::DeviceBatch;
use crate::compile::Floats;
use crate::device::{Arguments, Device, Launch};
use crate::error::{Error, Result};
use crate::expr::cuda::{Inputs, Writer};
use crate::expr::{GpuExpr, reference};
use crate::kernels;

/// How often a batch that does not fit is halved before the CPU finishes it.
const HALVINGS: u32 = 3;

/// `SELECT aggregates FROM input WHERE filter`.
pub struct FilterAggregate {
    schema: SchemaRef,
    filter: Option<GpuExpr>,
    plan: AggregatePlan,
    columns: Vec<usize>,
    source: String,
    inputs: Inputs,
    output: SchemaRef,
}

/// The accumulators over the rows seen so far. States of several batches are merged in any order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AggregateState(Vec<u64>);

impl FilterAggregate {
    /// Plans the query and writes its kernel; nothing is compiled yet.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for what has no kernel; the plan then stays on the CPU.
    pub fn try_new(schema: SchemaRef, filter: Option<GpuExpr>, aggregates: &[Aggregate]) -> Result<Self> {
        if let Some(filter) = &filter
            && filter.data_type(&schema)? != arrow::datatypes::DataType::Boolean
        {
            return Err(Error::Invalid("a filter is boolean".into()));
        }
        let plan = AggregatePlan::try_new(&schema, aggregates, false)?;
        // The kernel sees only the columns it reads, so that only those are uploaded.
        let mut columns: Vec<usize> = filter.iter().chain(&plan.arguments).flat_map(GpuExpr::columns).collect();
        columns.sort_unstable();
        columns.dedup();
        let (source, inputs) = write_kernel(&schema, filter.as_ref(), &plan)?;
        let output = Arc::new(Schema::new(plan.fields.clone()));
        Ok(Self { schema, filter, plan, columns, source, inputs, output })
    }

    /// The schema of the one row that comes out.
    pub fn output_schema(&self) -> &SchemaRef {
        &self.output
    }

    /// The kernel, for tests that compile it without a device.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The columns the kernel reads.
    pub fn columns(&self) -> &[usize] {
        &self.columns
    }

    /// Bytes per row that the kernel reads.
    pub fn row_bytes(&self) -> Result<f64> {
        self.inputs.row_bytes(&self.schema)
    }

    /// The state of no rows.
    pub fn start(&self) -> AggregateState {
        AggregateState(self.plan.identity())
    }

    /// Adds `from` to `to`.
    pub fn merge(&self, to: &mut AggregateState, from: &AggregateState) {
        self.plan.merge(&mut to.0, &from.0);
    }

    /// The aggregates over a batch that is on the device and has the input's schema.
    ///
    /// # Errors
    /// [`Error::Data`] when a row that passes the filter fails.
    pub fn run(&self, device: &Device, batch: &DeviceBatch) -> Result<AggregateState> {
        if batch.schema().fields().len() != self.schema.fields().len() {
            return Err(Error::Invalid("the batch on the device does not have the input's columns".into()));
        }
        let mut state = self.start();
        if batch.rows() == 0 {
            return Ok(state);
        }
        let function = device.function(&self.source, "filter_aggregate", Floats::AsOnCpu)?;
        let blocks = device.grid(batch.rows());
        let words = self.plan.state_words.max(1);
        let partials = device.memory().allocate(blocks as usize * words * 8)?;
        let faults = device.memory().allocate_filled(4, 0)?;
        let arguments = Arguments::default()
            .words(self.inputs.words(batch)?)
            .number(batch.rows() as u64)
            .pointer(&partials)
            .pointer(&faults);
        // SAFETY: the kernel was written for these columns, reads `rows` rows of each, and writes one state per block.
        unsafe { device.launch(&function, Launch { blocks, threads: 256, shared_bytes: 0 }, arguments) }?;
        device.check_faults(&faults)?;
        for partial in device.download_words(&partials, blocks as usize * words)?.chunks_exact(words) {
            self.plan.merge(&mut state.0, partial);
        }
        Ok(state)
    }

    /// Uploads the columns that are needed and aggregates them. A batch that does not fit is halved up to three
    /// times; what then still does not fit is the caller's to finish on the CPU.
    pub fn run_host(&self, device: &Device, batch: &RecordBatch) -> Result<AggregateState> {
        self.run_halving(device, batch, HALVINGS)
    }

    fn run_halving(&self, device: &Device, batch: &RecordBatch, halvings: u32) -> Result<AggregateState> {
        match self.upload(device, batch).and_then(|on_device| self.run(device, &on_device)) {
            Err(Error::OutOfMemory { .. }) if halvings > 0 && batch.num_rows() > 1 => {
                device.memory().trim()?;
                let half = batch.num_rows() / 2;
                let mut state = self.run_halving(device, &batch.slice(0, half), halvings - 1)?;
                let rest = self.run_halving(device, &batch.slice(half, batch.num_rows() - half), halvings - 1)?;
                self.merge(&mut state, &rest);
                Ok(state)
            }
            other => other,
        }
    }

    /// Uploads the columns that the kernel reads; the others become empty placeholders of the same type.
    pub fn upload(&self, device: &Device, batch: &RecordBatch) -> Result<DeviceBatch> {
        super::upload_used(device, batch, &self.columns)
    }

    /// The same on the CPU, with Arrow's kernels.
    pub fn run_on_cpu(&self, batch: &RecordBatch) -> Result<AggregateState> {
        let rows = reference::passing(batch, self.filter.as_ref())?;
        let arguments =
            self.plan.arguments.iter().map(|expr| reference::evaluate(expr, &rows)).collect::<Result<Vec<_>>>()?;
        let mut states = [self.plan.identity()];
        self.plan.accumulate(&mut states, &vec![0; rows.num_rows()], &arguments)?;
        let [state] = states;
        Ok(AggregateState(state))
    }

    /// The one row of outputs.
    ///
    /// # Errors
    /// [`Error::Data`] when an average of decimals does not fit its type.
    pub fn finish(&self, state: &AggregateState) -> Result<RecordBatch> {
        let columns = self.plan.finish(1, |word| vec![state.0[word]])?;
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(1));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.output), columns, &options)?)
    }
}

fn write_kernel(schema: &Schema, filter: Option<&GpuExpr>, plan: &AggregatePlan) -> Result<(String, Inputs)> {
    let mut writer = Writer::new(schema);
    let mut row = String::new();
    if let Some(filter) = filter {
        let passes = writer.write(filter)?;
        row.push_str(&writer.take());
        let _ = writeln!(row, "        if (!({} && {})) continue;", passes.valid_text(), passes.value);
    }
    let arguments = plan.arguments.iter().map(|expr| writer.write(expr)).collect::<Result<Vec<_>>>()?;
    row.push_str(&writer.take());
    let (mut start, mut reduce) = (String::new(), String::new());
    for (index, word) in plan.words.iter().enumerate() {
        let (op, at) = (word.op.name(), word.offset);
        let (value, condition) = plan.taken(word, &arguments);
        let _ = writeln!(row, "        if ({condition}) w{index} = {op}::of(w{index}, {value});");
        let identity = kernels::identity(word.op);
        if word.op.is_wide() {
            let _ = writeln!(start, "    i128 w{index} = {identity};");
            let _ = writeln!(reduce, "    w{index} = block_reduce_wide<{op}>(w{index}, scratch);");
            let _ = writeln!(
                reduce,
                "    if (threadIdx.x == 0) {{ mine[{at}] = (u64)w{index}; mine[{}] = (u64)((u128)w{index} >> 64); }}",
                at + 1
            );
        } else {
            let _ = writeln!(start, "    u64 w{index} = {identity};");
            let _ = writeln!(reduce, "    w{index} = block_reduce<{op}>(w{index}, scratch);");
            let _ = writeln!(reduce, "    if (threadIdx.x == 0) mine[{at}] = w{index};");
        }
    }
    let inputs = writer.inputs()?;
    let source = format!(
        "{}{}extern \"C\" __global__ void __launch_bounds__(256)\n\
         filter_aggregate(Inputs in, u64 rows, u64* partials, u32* faults) {{\n    \
         __shared__ u64 scratch[64];\n    u32 fault = 0;\n{start}    \
         for (u64 row = (u64)blockIdx.x * 256 + threadIdx.x; row < rows; row += (u64)gridDim.x * 256) {{\n{row}    }}\n    \
         if (fault) atomicOr(faults, fault);\n    \
         u64* mine = partials + (u64)blockIdx.x * {};\n{reduce}}}\n",
        kernels::COMMON,
        inputs.declaration,
        plan.state_words.max(1),
    );
    Ok((source, inputs))
}
