//! Hash joins on equal keys: inner, left, left semi and left anti. The right side is built into a table on the device,
//! the left side probes it twice: once to count, so that the output has its exact size, and once to write.
//!
//! Null keys match nothing. The order of the matches of one row is arbitrary; the order of the left rows is kept.
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::{Array, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::{Field, Schema, SchemaRef};

use super::gather::{exclusive_sum, gather_batch};
use super::keys::KeyPlan;
use crate::batch::DeviceBatch;
use crate::compile::Floats;
use crate::device::{Arguments, Device, Launch};
use crate::error::{Error, Result};
use crate::expr::cuda::{Inputs, Writer};
use crate::expr::{GpuExpr, Physical, reference};
use crate::kernels;
use crate::memory::DeviceBuffer;

/// Which rows come out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JoinKind {
    /// Each pair of rows with equal keys.
    Inner,
    /// Each pair, and left rows without a match with nulls on the right.
    Left,
    /// Left rows that have a match, once.
    LeftSemi,
    /// Left rows that have none.
    LeftAnti,
}

/// A join.
pub struct Join {
    kind: JoinKind,
    left: Side,
    right: Side,
    output: SchemaRef,
}

struct Side {
    schema: SchemaRef,
    keys: KeyPlan,
    source: String,
    inputs: Inputs,
}

/// The key words of one side on the device.
struct Keys {
    words: DeviceBuffer,
    usable: DeviceBuffer,
    rows: usize,
}

impl Join {
    /// Plans `left JOIN right ON on.0 = on.1 AND ...` and writes its kernels.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the two sides of a condition have different types, [`Error::Unsupported`] for floats as
    /// keys and for columns without a fixed width.
    pub fn try_new(left: SchemaRef, right: SchemaRef, on: Vec<(GpuExpr, GpuExpr)>, kind: JoinKind) -> Result<Self> {
        for field in left.fields().iter().chain(right.fields()) {
            Physical::try_from(field.data_type())?;
        }
        for (l, r) in &on {
            let (l, r) = (l.data_type(&left)?, r.data_type(&right)?);
            if l != r {
                return Err(Error::Invalid(format!("a join compares {l} with {r}; cast one of them first")));
            }
        }
        let (left_keys, right_keys) = on.into_iter().unzip();
        let mut fields: Vec<Field> = left.fields().iter().map(|field| field.as_ref().clone()).collect();
        if matches!(kind, JoinKind::Inner | JoinKind::Left) {
            let outer = kind == JoinKind::Left;
            fields.extend(right.fields().iter().map(|f| f.as_ref().clone().with_nullable(outer || f.is_nullable())));
        }
        let output = Arc::new(Schema::new(fields));
        Ok(Self { kind, left: Side::try_new(left, left_keys)?, right: Side::try_new(right, right_keys)?, output })
    }

    /// The schema of the result: the left columns, then for inner and left joins the right ones.
    pub fn output_schema(&self) -> &SchemaRef {
        &self.output
    }

    /// The kernels, for tests that compile them without a device.
    pub fn sources(&self) -> Vec<String> {
        vec![self.left.source.clone(), self.right.source.clone(), join_source()]
    }

    /// The joined batch, on the device.
    ///
    /// # Errors
    /// [`Error::Data`] when a key fails, [`Error::Unsupported`] for more than four thousand million result rows,
    /// [`Error::OutOfMemory`].
    pub fn run(&self, device: &Device, left: &DeviceBatch, right: &DeviceBatch) -> Result<DeviceBatch> {
        let (probe, build) = (self.left.encode(device, left)?, self.right.encode(device, right)?);
        let (counts, total, heads, next) = self.count(device, &probe, &build)?;
        let memory = device.memory();
        let (left_rows, right_rows) = (memory.allocate(total * 4)?, memory.allocate(total * 4)?);
        exclusive_sum(device, &counts, probe.rows)?;
        if total > 0 {
            let function = device.function(&join_source(), "write_matches", Floats::AsOnCpu)?;
            let arguments = self
                .probe_arguments(&probe, &build, &heads, &next)
                .pointer(&counts)
                .number(total as u64)
                .pointer(&left_rows)
                .pointer(&right_rows);
            let size = Launch { blocks: device.grid(probe.rows), threads: 256, shared_bytes: 0 };
            // SAFETY: the exclusive sums give each row as many places as it was counted to write.
            unsafe { device.launch(&function, size, arguments) }?;
        }
        let left_out = gather_batch(device, left, Arc::clone(&self.left.schema), &left_rows, total, false)?;
        let mut columns = left_out.columns().to_vec();
        if matches!(self.kind, JoinKind::Inner | JoinKind::Left) {
            let may_miss = self.kind == JoinKind::Left;
            let schema = Arc::clone(&self.right.schema);
            columns.extend_from_slice(gather_batch(device, right, schema, &right_rows, total, may_miss)?.columns());
        }
        DeviceBatch::try_new(Arc::clone(&self.output), columns, total)
    }

    /// Builds the table and counts the output: counts per left row, their total, the table.
    fn count(
        &self,
        device: &Device,
        probe: &Keys,
        build: &Keys,
    ) -> Result<(DeviceBuffer, usize, DeviceBuffer, DeviceBuffer)> {
        let memory = device.memory();
        let slots = (build.rows * 2).next_power_of_two().max(32);
        let heads = memory.allocate_filled(slots * 4, 0)?;
        let next = memory.allocate(build.rows * 4)?;
        let counts = memory.allocate(probe.rows * 4)?;
        let total = memory.allocate_filled(8, 0)?;
        let text = join_source();
        if build.rows > 0 {
            let arguments = Arguments::default()
                .pointer(&build.words)
                .pointer(&build.usable)
                .number(build.rows as u64)
                .number(self.right.keys.words as u64)
                .pointer(&heads)
                .number(slots as u64 - 1)
                .pointer(&next);
            let size = Launch { blocks: device.grid(build.rows), threads: 256, shared_bytes: 0 };
            // SAFETY: hashes are masked to the slots, and `next` has an entry per row.
            unsafe { device.launch(&device.function(&text, "build_table", Floats::AsOnCpu)?, size, arguments) }?;
        }
        if probe.rows > 0 {
            let arguments = self.probe_arguments(probe, build, &heads, &next).pointer(&counts).pointer(&total);
            let size = Launch { blocks: device.grid(probe.rows), threads: 256, shared_bytes: 0 };
            // SAFETY: chains hold only rows of the build side, and `counts` has an entry per left row.
            unsafe { device.launch(&device.function(&text, "count_matches", Floats::AsOnCpu)?, size, arguments) }?;
        }
        let total = device.download_words(&total, 1)?[0];
        let total = u32::try_from(total).map_err(|_| Error::Unsupported(format!("a join with {total} result rows")))?;
        Ok((counts, total as usize, heads, next))
    }

    fn probe_arguments(&self, probe: &Keys, build: &Keys, heads: &DeviceBuffer, next: &DeviceBuffer) -> Arguments {
        Arguments::default()
            .pointer(&probe.words)
            .pointer(&probe.usable)
            .number(probe.rows as u64)
            .pointer(&build.words)
            .number(build.rows as u64)
            .number(self.left.keys.words as u64)
            .pointer(heads)
            .number((heads.bytes() / 4) as u64 - 1)
            .pointer(next)
            .number(match self.kind {
                JoinKind::Inner => 0,
                JoinKind::Left => 1,
                JoinKind::LeftSemi => 2,
                JoinKind::LeftAnti => 3,
            })
    }

    /// The same on the CPU.
    pub fn run_on_cpu(&self, left: &RecordBatch, right: &RecordBatch) -> Result<RecordBatch> {
        let (probe, build) = (self.left.encode_on_cpu(left)?, self.right.encode_on_cpu(right)?);
        let mut table: HashMap<&[u64], Vec<u32>, ahash::RandomState> = HashMap::default();
        for (row, key) in build.iter().enumerate() {
            if let Some(key) = key {
                table.entry(key).or_default().push(u32::try_from(row).unwrap_or(u32::MAX));
            }
        }
        let (mut left_rows, mut right_rows) = (Vec::new(), Vec::new());
        for (row, key) in probe.iter().enumerate() {
            let row = u32::try_from(row).unwrap_or(u32::MAX);
            let matches = key.as_ref().and_then(|key| table.get(key.as_slice())).map_or(&[][..], Vec::as_slice);
            match self.kind {
                JoinKind::Inner | JoinKind::Left if !matches.is_empty() => {
                    left_rows.extend(std::iter::repeat_n(row, matches.len()));
                    right_rows.extend(matches.iter().copied().map(Some));
                }
                JoinKind::Left => {
                    left_rows.push(row);
                    right_rows.push(None);
                }
                JoinKind::LeftSemi if !matches.is_empty() => left_rows.push(row),
                JoinKind::LeftAnti if matches.is_empty() => left_rows.push(row),
                _ => {}
            }
        }
        let (left_rows, right_rows) = (UInt32Array::from(left_rows), UInt32Array::from(right_rows));
        let mut columns =
            left.columns().iter().map(|c| take(c, &left_rows, None)).collect::<std::result::Result<Vec<_>, _>>()?;
        if matches!(self.kind, JoinKind::Inner | JoinKind::Left) {
            for column in right.columns() {
                columns.push(take(column, &right_rows, None)?);
            }
        }
        let options = RecordBatchOptions::new().with_row_count(Some(left_rows.len()));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.output), columns, &options)?)
    }
}

/// The kernels that are the same for every join.
fn join_source() -> String {
    format!("{}{}", kernels::COMMON, kernels::HASH_JOIN)
}

impl Side {
    fn try_new(schema: SchemaRef, keys: Vec<GpuExpr>) -> Result<Self> {
        let keys = KeyPlan::for_join(&schema, keys)?;
        let mut writer = Writer::new(&schema);
        let values = keys.expressions.iter().map(|key| writer.write(key)).collect::<Result<Vec<_>>>()?;
        let mut row = writer.take();
        let _ = writeln!(row, "        u64 key[{}];", keys.words);
        row.push_str(&keys.write(&values));
        let usable: Vec<&str> = values.iter().map(|value| value.valid_text()).collect();
        let _ = writeln!(row, "        usable[row] = {};", usable.join(" && "));
        for word in 0..keys.words {
            let _ = writeln!(row, "        words[{word} * rows + row] = key[{word}];");
        }
        let inputs = writer.inputs()?;
        let source = format!(
            "{}{}{}extern \"C\" __global__ void __launch_bounds__(256)\n\
             join_keys(Inputs in, u64 rows, u64* words, u8* usable, u32* faults) {{\n    u32 fault = 0;\n    \
             for (u64 row = (u64)blockIdx.x * 256 + threadIdx.x; row < rows; row += (u64)gridDim.x * 256) {{\n{row}    }}\n    \
             if (fault) atomicOr(faults, fault);\n}}\n",
            kernels::COMMON,
            kernels::ATOMICS,
            inputs.declaration
        );
        Ok(Self { schema, keys, source, inputs })
    }

    fn encode(&self, device: &Device, batch: &DeviceBatch) -> Result<Keys> {
        let rows = batch.rows();
        if batch.schema().fields().len() != self.schema.fields().len() {
            return Err(Error::Invalid("the batch on the device does not have the input's columns".into()));
        }
        if rows >= u32::MAX as usize {
            return Err(Error::Unsupported("more than four thousand million rows in one batch".into()));
        }
        let memory = device.memory();
        let words = memory.allocate(self.keys.words * rows * 8)?;
        let usable = memory.allocate(rows)?;
        if rows > 0 {
            let faults = memory.allocate_filled(4, 0)?;
            let function = device.function(&self.source, "join_keys", Floats::AsOnCpu)?;
            let arguments = Arguments::default()
                .words(self.inputs.words(batch)?)
                .number(rows as u64)
                .pointer(&words)
                .pointer(&usable)
                .pointer(&faults);
            let size = Launch { blocks: device.grid(rows), threads: 256, shared_bytes: 0 };
            // SAFETY: the kernel was written for these columns and writes `rows` keys.
            unsafe { device.launch(&function, size, arguments) }?;
            device.check_faults(&faults)?;
        }
        Ok(Keys { words, usable, rows })
    }

    /// Key words per row; `None` for keys with a null.
    fn encode_on_cpu(&self, batch: &RecordBatch) -> Result<Vec<Option<Vec<u64>>>> {
        let arrays =
            self.keys.expressions.iter().map(|key| reference::evaluate(key, batch)).collect::<Result<Vec<_>>>()?;
        let words = self.keys.encode(&arrays, batch.num_rows())?;
        let usable = |row: usize| arrays.iter().all(|array| array.is_valid(row));
        Ok(words.into_iter().enumerate().map(|(row, key)| usable(row).then_some(key)).collect())
    }
}
