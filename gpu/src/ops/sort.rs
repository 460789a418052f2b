//! Sorts a batch on the device by any number of columns: a stable radix sort of row numbers, from the last key to the
//! first, then one gather per column. Floats sort by IEEE totalOrder, as Arrow's kernels sort them.
//!
//! ```text
//! key column ─▶ unsigned words of the same order ─▶ one pass per byte that the type has ─▶ one pass for its nulls
//! ```
use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::{SortColumn, SortOptions, lexsort_to_indices, take_record_batch};
use arrow::datatypes::SchemaRef;

use super::gather::{BLOCK_KEYS, exclusive_sum, gather_batch, sort_source};
use crate::batch::DeviceBatch;
use crate::compile::Floats;
use crate::device::{Arguments, Device, Launch};
use crate::error::{Error, Result};
use crate::expr::cuda::{Inputs, Writer};
use crate::expr::{GpuExpr, Physical, reference};
use crate::kernels;
use crate::memory::DeviceBuffer;

/// One key of a sort.
#[derive(Debug, Clone)]
pub struct SortKey {
    /// What is sorted by.
    pub expr: GpuExpr,
    /// Largest first.
    pub descending: bool,
    /// Nulls before everything else.
    pub nulls_first: bool,
}

/// `SELECT * FROM input ORDER BY keys LIMIT limit`.
pub struct Sort {
    schema: SchemaRef,
    keys: Vec<SortKey>,
    encoded: Vec<Encoded>,
    limit: Option<usize>,
}

/// A key's kernel and the passes it takes.
struct Encoded {
    source: String,
    inputs: Inputs,
    /// Bytes of the low and the high word.
    bytes: [u32; 2],
}

/// Keys and row numbers, before and after a pass.
struct Lanes {
    rows: [DeviceBuffer; 2],
    keys: [DeviceBuffer; 2],
    counts: DeviceBuffer,
    current: usize,
    count: usize,
    blocks: u32,
}

impl Sort {
    /// Plans the sort and writes its kernels.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for what has no kernel; all columns of the input have fixed widths, since all are moved.
    pub fn try_new(schema: SchemaRef, keys: Vec<SortKey>, limit: Option<usize>) -> Result<Self> {
        for field in schema.fields() {
            Physical::try_from(field.data_type())?;
        }
        let encoded = keys.iter().map(|key| encode(&schema, key)).collect::<Result<Vec<_>>>()?;
        Ok(Self { schema, keys, encoded, limit })
    }

    /// The kernels, for tests that compile them without a device.
    pub fn sources(&self) -> Vec<String> {
        self.encoded.iter().map(|encoded| encoded.source.clone()).chain([sort_source()]).collect()
    }

    /// The sorted batch, on the device.
    ///
    /// # Errors
    /// [`Error::Data`] when a key fails, [`Error::OutOfMemory`].
    pub fn run(&self, device: &Device, batch: &DeviceBatch) -> Result<DeviceBatch> {
        let count = batch.rows();
        if batch.schema().fields().len() != self.schema.fields().len() {
            return Err(Error::Invalid("the batch on the device does not have the input's columns".into()));
        }
        if count >= u32::MAX as usize {
            return Err(Error::Unsupported("more than four thousand million rows in one batch".into()));
        }
        let memory = device.memory();
        let blocks = count.div_ceil(BLOCK_KEYS);
        let mut lanes = Lanes {
            rows: [memory.allocate(count * 4)?, memory.allocate(count * 4)?],
            keys: [memory.allocate(count * 8)?, memory.allocate(count * 8)?],
            counts: memory.allocate(256 * blocks * 4)?,
            current: 0,
            count,
            blocks: u32::try_from(blocks).unwrap_or(u32::MAX),
        };
        if count > 0 {
            lanes.start(device)?;
            for encoded in self.encoded.iter().rev() {
                self.sort_by(device, batch, encoded, &mut lanes)?;
            }
        }
        let kept = self.limit.map_or(count, |limit| limit.min(count));
        gather_batch(device, batch, Arc::clone(&self.schema), &lanes.rows[lanes.current], kept, false)
    }

    fn sort_by(&self, device: &Device, batch: &DeviceBatch, encoded: &Encoded, lanes: &mut Lanes) -> Result<()> {
        let memory = device.memory();
        let words =
            [memory.allocate(lanes.count * 8)?, memory.allocate(lanes.count * 8)?, memory.allocate(lanes.count * 8)?];
        let faults = memory.allocate_filled(4, 0)?;
        let function = device.function(&encoded.source, "order_keys", Floats::AsOnCpu)?;
        let mut arguments = Arguments::default().words(encoded.inputs.words(batch)?).number(lanes.count as u64);
        for buffer in words.iter().chain([&faults]) {
            arguments = arguments.pointer(buffer);
        }
        let size = Launch { blocks: device.grid(lanes.count), threads: 256, shared_bytes: 0 };
        // SAFETY: the kernel was written for these columns and writes one word per row to each of the three buffers.
        unsafe { device.launch(&function, size, arguments) }?;
        device.check_faults(&faults)?;
        let [low, high, nulls] = &words;
        lanes.passes(device, low, encoded.bytes[0])?;
        lanes.passes(device, high, encoded.bytes[1])?;
        lanes.passes(device, nulls, 1)
    }

    /// The same on the CPU.
    pub fn run_on_cpu(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let mut columns = self
            .keys
            .iter()
            .map(|key| {
                let options = SortOptions { descending: key.descending, nulls_first: key.nulls_first };
                Ok(SortColumn { values: reference::evaluate(&key.expr, batch)?, options: Some(options) })
            })
            .collect::<Result<Vec<_>>>()?;
        // The row's number as the last key makes the order of equal rows certain.
        let rows = u32::try_from(batch.num_rows()).map_err(|_| Error::Unsupported("that many rows".into()))?;
        let numbers: ArrayRef = Arc::new(UInt32Array::from_iter_values(0..rows));
        columns.push(SortColumn { values: numbers, options: None });
        Ok(take_record_batch(batch, &lexsort_to_indices(&columns, self.limit)?)?)
    }
}

impl Lanes {
    fn start(&self, device: &Device) -> Result<()> {
        let function = device.function(&sort_source(), "first_order", Floats::AsOnCpu)?;
        let arguments = Arguments::default().pointer(&self.rows[0]).number(self.count as u64);
        let size = Launch { blocks: device.grid(self.count), threads: 256, shared_bytes: 0 };
        // SAFETY: writes `count` row numbers.
        unsafe { device.launch(&function, size, arguments) }
    }

    /// Sorts by the low `bytes` bytes of `source`, whose words are in the order of the rows.
    fn passes(&mut self, device: &Device, source: &DeviceBuffer, bytes: u32) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let text = sort_source();
        let function = |name: &str| device.function(&text, name, Floats::AsOnCpu);
        let count = self.count as u64;
        let gather = Arguments::default()
            .pointer(source)
            .pointer(&self.rows[self.current])
            .pointer(&self.keys[self.current])
            .number(count);
        let size = Launch { blocks: device.grid(self.count), threads: 256, shared_bytes: 0 };
        // SAFETY: row numbers are below `count`, and all four buffers hold `count` entries.
        unsafe { device.launch(&function("gather_keys")?, size, gather) }?;
        let size = Launch { blocks: self.blocks, threads: 256, shared_bytes: 0 };
        for byte in 0..bytes {
            let (from, to) = (self.current, 1 - self.current);
            let shift = u64::from(byte) * 8;
            let arguments =
                Arguments::default().pointer(&self.keys[from]).number(count).number(shift).pointer(&self.counts);
            // SAFETY: `counts` holds 256 numbers per block.
            unsafe { device.launch(&function("count_digits")?, size, arguments) }?;
            exclusive_sum(device, &self.counts, 256 * self.blocks as usize)?;
            let arguments = Arguments::default()
                .pointer(&self.keys[from])
                .pointer(&self.rows[from])
                .number(count)
                .number(shift)
                .pointer(&self.counts)
                .pointer(&self.keys[to])
                .pointer(&self.rows[to]);
            // SAFETY: the sums of the counts are a permutation of the `count` places.
            unsafe { device.launch(&function("scatter")?, size, arguments) }?;
            self.current = to;
        }
        Ok(())
    }
}

fn encode(schema: &SchemaRef, key: &SortKey) -> Result<Encoded> {
    let physical = Physical::try_from(&key.expr.data_type(schema)?)?;
    let mut writer = Writer::new(schema);
    let value = writer.write(&key.expr)?;
    let text = writer.take();
    let inputs = writer.inputs()?;
    // Narrow types keep only their own bytes: flipping the sign bit is enough for their order.
    let (low, high, bytes) = match physical {
        Physical::I128 => ("(u64)v".into(), "ordered((i64)((u128)v >> 64))", [8, 8]),
        Physical::I8 | Physical::I16 | Physical::I32 => (
            format!("ordered((i64)v) ^ 0x8000000000000000ull ^ {}ull", 1_u64 << (physical.bytes() * 8 - 1)),
            "0",
            [physical.bytes() as u32, 0],
        ),
        other => ("ordered(v)".into(), "0", [other.bytes() as u32, 0]),
    };
    let flip = if key.descending { "~" } else { "" };
    let (null, other) = if key.nulls_first { (0, 1) } else { (1, 0) };
    let mut body = String::new();
    let _ = write!(
        body,
        "{text}        const {kind} v = {value};\n        const bool valid = {valid};\n        \
         low[row] = valid ? {flip}({low}) : 0;\n        high[row] = valid ? {flip}(u64)({high}) : 0;\n        \
         nulls[row] = valid ? {other} : {null};\n",
        kind = physical.cuda(),
        value = value.value,
        valid = value.valid_text(),
    );
    let source = format!(
        "{}{}extern \"C\" __global__ void __launch_bounds__(256)\n\
         order_keys(Inputs in, u64 rows, u64* low, u64* high, u64* nulls, u32* faults) {{\n    u32 fault = 0;\n    \
         for (u64 row = (u64)blockIdx.x * 256 + threadIdx.x; row < rows; row += (u64)gridDim.x * 256) {{\n{body}    }}\n    \
         if (fault) atomicOr(faults, fault);\n}}\n",
        kernels::COMMON,
        inputs.declaration
    );
    Ok(Encoded { source, inputs, bytes })
}
