//! Evaluates expressions for every row and leaves the results on the device. Bitmaps are written a 32-bit word per warp,
//! by a vote of its lanes.
use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use crate::batch::{DeviceBatch, DeviceColumn, bitmap_bytes};
use crate::compile::Floats;
use crate::device::{Arguments, Device, Launch};
use crate::error::Result;
use crate::expr::cuda::{Inputs, Writer};
use crate::expr::{GpuExpr, Physical, reference};
use crate::kernels;

/// `SELECT expressions FROM input`.
pub struct Project {
    expressions: Vec<GpuExpr>,
    columns: Vec<usize>,
    source: String,
    inputs: Inputs,
    output: SchemaRef,
}

impl Project {
    /// Plans the projection and writes its kernel.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] for what has no kernel.
    pub fn try_new(schema: &SchemaRef, expressions: Vec<(String, GpuExpr)>) -> Result<Self> {
        let mut writer = Writer::new(schema);
        let (mut before, mut row, mut after, mut parameters) =
            (String::new(), String::new(), String::new(), String::new());
        let mut fields = Vec::new();
        let mut columns = Vec::new();
        for (index, (name, expr)) in expressions.iter().enumerate() {
            let data_type = expr.data_type(schema)?;
            let kind = Physical::try_from(&data_type)?.cuda();
            let value = writer.write(expr)?;
            row.push_str(&writer.take());
            let _ = writeln!(before, "        {kind} o{index} = 0; bool ok{index} = false;");
            let _ = writeln!(row, "        o{index} = {}; ok{index} = {};", value.value, value.valid_text());
            let _ = writeln!(after, "        u32 valid{index} = __ballot_sync(ALL_LANES, ok{index});");
            let _ = writeln!(after, "        if (LANE == 0 && inside) bits{index}[row >> 5] = valid{index};");
            if data_type == DataType::Boolean {
                let _ = write!(parameters, ", u32* out{index}, u32* bits{index}");
                let _ = writeln!(after, "        u32 word{index} = __ballot_sync(ALL_LANES, o{index});");
                let _ = writeln!(after, "        if (LANE == 0 && inside) out{index}[row >> 5] = word{index};");
            } else {
                let _ = write!(parameters, ", {kind}* out{index}, u32* bits{index}");
                let _ = writeln!(after, "        if (inside) out{index}[row] = o{index};");
            }
            fields.push(Field::new(name, data_type, true));
            columns.extend(expr.columns());
        }
        let inputs = writer.inputs()?;
        let source = format!(
            "{}{}extern \"C\" __global__ void __launch_bounds__(256)\n\
             project(Inputs in, u64 rows, u32* faults{parameters}) {{\n    u32 fault = 0;\n    \
             for (u64 first = (u64)blockIdx.x * 256; first < rows; first += (u64)gridDim.x * 256) {{\n        \
             const u64 row = first + threadIdx.x;\n        const bool inside = row < rows;\n{before}        \
             if (inside) {{\n{row}        }}\n{after}    }}\n    if (fault) atomicOr(faults, fault);\n}}\n",
            kernels::COMMON,
            inputs.declaration
        );
        let expressions = expressions.into_iter().map(|(_, expr)| expr).collect();
        Ok(Self { expressions, columns, source, inputs, output: Arc::new(Schema::new(fields)) })
    }

    /// The kernel, for tests that compile it without a device.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Uploads the columns that the kernel reads.
    pub fn upload(&self, device: &Device, batch: &RecordBatch) -> Result<DeviceBatch> {
        super::upload_used(device, batch, &self.columns)
    }

    /// The projected batch, on the device.
    ///
    /// # Errors
    /// [`crate::Error::Data`] when a row fails.
    pub fn run(&self, device: &Device, batch: &DeviceBatch) -> Result<DeviceBatch> {
        let rows = batch.rows();
        let memory = device.memory();
        let faults = memory.allocate_filled(4, 0)?;
        let mut arguments = Arguments::default().words(self.inputs.words(batch)?).number(rows as u64).pointer(&faults);
        let mut columns = Vec::with_capacity(self.expressions.len());
        for field in self.output.fields() {
            let physical = Physical::try_from(field.data_type())?;
            let bytes = if physical == Physical::Bool { bitmap_bytes(rows) } else { rows * physical.bytes() };
            let (values, validity) = (memory.allocate(bytes)?, memory.allocate(bitmap_bytes(rows))?);
            arguments = arguments.pointer(&values).pointer(&validity);
            let data_type = field.data_type().clone();
            columns.push(Arc::new(DeviceColumn { data_type, rows, values, validity: Some(validity) }));
        }
        if rows > 0 {
            let function = device.function(&self.source, "project", Floats::AsOnCpu)?;
            let size = Launch { blocks: device.grid(rows), threads: 256, shared_bytes: 0 };
            // SAFETY: the kernel was written for these inputs and outputs and writes `rows` rows of each.
            unsafe { device.launch(&function, size, arguments) }?;
            device.check_faults(&faults)?;
        }
        DeviceBatch::try_new(Arc::clone(&self.output), columns, rows)
    }

    /// The same on the CPU.
    pub fn run_on_cpu(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let columns =
            self.expressions.iter().map(|expr| reference::evaluate(expr, batch)).collect::<Result<Vec<_>>>()?;
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.output), columns, &options)?)
    }
}
