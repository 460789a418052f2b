//! `SELECT keys, aggregates FROM input WHERE filter GROUP BY keys`, from one group to tens of millions.
//!
//! ```text
//! row ─▶ filter, key word(s), arguments          (written for the query, registers only)
//!         │ few groups: a table per block in shared memory, its rows first summed per warp
//!         ▼ many groups, or no room there
//!        one table in device memory: [key or owner row][accumulators...] per slot, linear probing, atomics
//!         │ the table is sized from a sample and rebuilt four times larger when it gets too full
//!         ▼
//!        compacted on the device, finished into Arrow columns on the host
//! ```
//! Keys that fit 64 bits are compared in the slot itself. Wider keys keep the number of the first row with that key;
//! whoever meets the slot compares with that row's columns. Keys equal each other as in DataFusion's GROUP BY: nulls are
//! one group, -0.0 is 0.0, NaNs are equal bit by bit. The order of the groups is arbitrary. Float sums are added in
//! arbitrary order and differ between runs in their last bits.
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::aggregate::{Aggregate, AggregatePlan, WordOp};
use super::keys::KeyPlan;
use crate::batch::DeviceBatch;
use crate::compile::Floats;
use crate::device::{Arguments, Device, Launch};
use crate::error::{Error, Result};
use crate::expr::cuda::{Inputs, Writer};
use crate::expr::{GpuExpr, reference};
use crate::kernels;
use crate::memory::DeviceBuffer;

/// Rows that are grouped first to learn how many groups there are.
const SAMPLE_ROWS: usize = 65_536;
/// Up to this many groups in the sample the blocks keep tables of their own.
const SHARED_GROUPS: usize = 4_096;
/// Shared memory of a block's table: two blocks of 512 threads on every device since sm_75.
const SHARED_BYTES: usize = 32 * 1024;
const THREADS: u32 = 512;

/// The query.
pub struct GroupBy {
    schema: SchemaRef,
    filter: Option<GpuExpr>,
    keys: KeyPlan,
    plan: AggregatePlan,
    columns: Vec<usize>,
    source: String,
    inputs: Inputs,
    output: SchemaRef,
    shared_slots: usize,
}

/// A finished table in device memory.
struct Table {
    /// `capacity` slots by hash, then one for the null key and one for the key that means "empty".
    slots: DeviceBuffer,
    capacity: usize,
    groups: usize,
}

impl GroupBy {
    /// Plans the query and writes its kernels; nothing is compiled yet.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for what has no kernel; the plan then stays on the CPU.
    pub fn try_new(
        schema: SchemaRef,
        filter: Option<GpuExpr>,
        keys: Vec<(String, GpuExpr)>,
        aggregates: &[Aggregate],
    ) -> Result<Self> {
        if let Some(filter) = &filter
            && filter.data_type(&schema)? != DataType::Boolean
        {
            return Err(Error::Invalid("a filter is boolean".into()));
        }
        let plan = AggregatePlan::try_new(&schema, aggregates, true)?;
        let mut fields = Vec::new();
        for (name, key) in &keys {
            fields.push(Field::new(name, key.data_type(&schema)?, true));
        }
        fields.extend(plan.fields.iter().cloned());
        let keys = KeyPlan::try_new(&schema, keys.into_iter().map(|(_, key)| key).collect())?;
        let mut columns: Vec<usize> =
            filter.iter().chain(&keys.expressions).chain(&plan.arguments).flat_map(GpuExpr::columns).collect();
        columns.sort_unstable();
        columns.dedup();
        let stride = 1 + plan.state_words;
        // A power of two of slots that fits; a wide state leaves few.
        let shared_slots = (SHARED_BYTES / (stride * 8) / 2 + 1).next_power_of_two().max(32);
        let (source, inputs) = write_kernels(&schema, filter.as_ref(), &keys, &plan, shared_slots)?;
        let output = Arc::new(Schema::new(fields));
        Ok(Self { schema, filter, keys, plan, columns, source, inputs, output, shared_slots })
    }

    /// The schema of the groups: the keys, then the aggregates.
    pub fn output_schema(&self) -> &SchemaRef {
        &self.output
    }

    /// The kernels, for tests that compile them without a device.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Bytes per row that the kernel reads.
    pub fn row_bytes(&self) -> Result<f64> {
        self.inputs.row_bytes(&self.schema)
    }

    /// Uploads the columns that the kernel reads.
    pub fn upload(&self, device: &Device, batch: &RecordBatch) -> Result<DeviceBatch> {
        super::upload_used(device, batch, &self.columns)
    }

    /// The groups of a batch that is on the device, in arbitrary order.
    ///
    /// # Errors
    /// [`Error::Data`] when a row that passes the filter fails; [`Error::OutOfMemory`] when the table does not fit.
    pub fn run(&self, device: &Device, batch: &DeviceBatch) -> Result<RecordBatch> {
        if batch.schema().fields().len() != self.schema.fields().len() {
            return Err(Error::Invalid("the batch on the device does not have the input's columns".into()));
        }
        if batch.rows() >= u32::MAX as usize {
            return Err(Error::Unsupported("more than four thousand million rows in one batch".into()));
        }
        let table = self.build(device, batch)?;
        self.collect(device, batch, &table)
    }

    fn build(&self, device: &Device, batch: &DeviceBatch) -> Result<Table> {
        let rows = batch.rows();
        let (mut capacity, mut shared) = (rows.max(16) * 2, true);
        if rows > 2 * SAMPLE_ROWS {
            // The sample's table never overflows.
            let sample = self
                .try_build(device, batch, SAMPLE_ROWS, 2 * SAMPLE_ROWS, true)?
                .ok_or_else(|| Error::Invalid("a sample filled a table of twice its rows".into()))?;
            shared = sample.groups <= SHARED_GROUPS;
            // With groups that repeat within the sample, few are missing from it; otherwise any number may be.
            capacity = if sample.groups <= SAMPLE_ROWS / 4 { sample.groups * 8 + 1024 } else { rows * 2 };
        }
        capacity = capacity.next_power_of_two();
        loop {
            if let Some(table) = self.try_build(device, batch, rows, capacity, shared)? {
                return Ok(table);
            }
            capacity *= 4;
        }
    }

    /// Groups the first `rows` rows; `None` when the table gets too full.
    fn try_build(
        &self,
        device: &Device,
        batch: &DeviceBatch,
        rows: usize,
        capacity: usize,
        shared: bool,
    ) -> Result<Option<Table>> {
        let stride = 1 + self.plan.state_words;
        let memory = device.memory();
        let slots = memory.allocate((capacity + 2) * stride * 8)?;
        let control = memory.allocate_filled(16, 0)?;
        let clear = device.function(&self.source, "clear_table", Floats::AsOnCpu)?;
        let arguments = Arguments::default().pointer(&slots).number(capacity as u64 + 2);
        let size = Launch { blocks: device.grid(capacity + 2), threads: 256, shared_bytes: 0 };
        // SAFETY: writes `capacity + 2` slots, which the buffer holds.
        unsafe { device.launch(&clear, size, arguments) }?;
        if rows > 0 {
            let function = device.function(&self.source, "group_rows", Floats::AsOnCpu)?;
            let arguments = Arguments::default()
                .words(self.inputs.words(batch)?)
                .number(rows as u64)
                .pointer(&slots)
                .number(capacity as u64)
                .number(u64::from(shared))
                .pointer(&control);
            let shared_bytes = if shared { self.shared_slots * stride * 8 } else { 0 };
            let shared_bytes = u32::try_from(shared_bytes).unwrap_or(u32::MAX);
            let size = Launch { blocks: device.grid(rows.div_ceil(2)), threads: THREADS, shared_bytes };
            // SAFETY: the kernel was written for these columns and this slot layout; slots beyond the table are never
            // computed, because positions are taken modulo its capacity.
            unsafe { device.launch(&function, size, arguments) }?;
        }
        let control = device.download_u32(&control, 2)?;
        let (faults, groups) = (control[0], control[1] as usize);
        if let Some(fault) = crate::DataFault::from_bits(faults) {
            return Err(fault.into());
        }
        Ok((faults == 0).then_some(Table { slots, capacity, groups }))
    }

    fn collect(&self, device: &Device, batch: &DeviceBatch, table: &Table) -> Result<RecordBatch> {
        let groups = table.groups;
        let key_words = self.keys.words;
        let memory = device.memory();
        let columns = key_words + self.plan.state_words;
        let out = memory.allocate(columns * groups * 8)?;
        let counter = memory.allocate_filled(4, 0)?;
        if groups > 0 {
            let function = device.function(&self.source, "collect_groups", Floats::AsOnCpu)?;
            let arguments = Arguments::default()
                .words(self.inputs.words(batch)?)
                .pointer(&table.slots)
                .number(table.capacity as u64)
                .pointer(&out)
                .number(groups as u64)
                .pointer(&counter);
            let size = Launch { blocks: device.grid(table.capacity + 2), threads: 256, shared_bytes: 0 };
            // SAFETY: there are `groups` slots in use, counted when they were taken, and as many rows in `out`.
            unsafe { device.launch(&function, size, arguments) }?;
        }
        let words = device.download_words(&out, columns * groups)?;
        let column = |at: usize| words[at * groups..(at + 1) * groups].to_vec();
        let mut arrays = self.keys.decode(&self.output, groups, column)?;
        arrays.extend(self.plan.finish(groups, |word| column(key_words + word))?);
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(groups));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.output), arrays, &options)?)
    }

    /// The same on the CPU.
    pub fn run_on_cpu(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let rows = reference::passing(batch, self.filter.as_ref())?;
        let evaluate =
            |exprs: &[GpuExpr]| exprs.iter().map(|expr| reference::evaluate(expr, &rows)).collect::<Result<Vec<_>>>();
        let key_words = self.keys.encode(&evaluate(&self.keys.expressions)?, rows.num_rows())?;
        let mut numbers: HashMap<&[u64], u32, ahash::RandomState> = HashMap::default();
        let mut groups = Vec::with_capacity(rows.num_rows());
        let mut found: Vec<&[u64]> = Vec::new();
        for key in &key_words {
            let next = u32::try_from(found.len()).unwrap_or(u32::MAX);
            groups.push(*numbers.entry(key.as_slice()).or_insert_with(|| {
                found.push(key);
                next
            }));
        }
        let mut states = vec![self.plan.identity(); found.len()];
        self.plan.accumulate(&mut states, &groups, &evaluate(&self.plan.arguments)?)?;
        let keys = |word: usize| found.iter().map(|key| key[word]).collect();
        let mut arrays = self.keys.decode(&self.output, found.len(), keys)?;
        arrays.extend(self.plan.finish(found.len(), |word| states.iter().map(|state| state[word]).collect())?);
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(found.len()));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.output), arrays, &options)?)
    }
}

/// Writes `clear_table`, `group_rows` and `collect_groups` behind the fixed part in `kernels/group_by.cu`.
fn write_kernels(
    schema: &Schema,
    filter: Option<&GpuExpr>,
    keys: &KeyPlan,
    plan: &AggregatePlan,
    shared_slots: usize,
) -> Result<(String, Inputs)> {
    let mut writer = Writer::new(schema);
    // The key of a row, as a function: also called for the owner of a slot and when groups are collected.
    let key_values = keys.expressions.iter().map(|key| writer.write(key)).collect::<Result<Vec<_>>>()?;
    let mut key_text = writer.take();
    key_text.push_str(&keys.write(&key_values));
    writer.leave_scope();

    let mut row = String::new();
    if let Some(filter) = filter {
        let passes = writer.write(filter)?;
        row.push_str(&writer.take());
        let _ = writeln!(row, "        if (!({} && {})) return false;", passes.valid_text(), passes.value);
    }
    let arguments = plan.arguments.iter().map(|expr| writer.write(expr)).collect::<Result<Vec<_>>>()?;
    row.push_str(&writer.take());
    let (mut identities, mut global, mut shared, mut reduce) =
        (String::new(), String::new(), String::new(), String::new());
    for word in &plan.words {
        let (op, at) = (word.op.name(), word.offset);
        let (value, condition) = plan.taken(word, &arguments);
        if let Some(fault) = plan.fault(word, &arguments) {
            let _ = writeln!(row, "        {fault}");
        }
        let identity = kernels::identity(word.op);
        let _ = writeln!(identities, "    state[{at}] = {identity};");
        if word.op == WordOp::AddI128 {
            let _ = writeln!(identities, "    state[{}] = 0;", at + 1);
            let _ = writeln!(
                row,
                "        {{ i128 wide = ({condition}) ? {value} : 0; state[{at}] = (u64)wide; state[{}] = (u64)((u128)wide >> 64); }}",
                at + 1
            );
            let _ = writeln!(global, "    add_wide(slot + {at}, state[{at}], state[{}]);", at + 1);
            let _ = writeln!(shared, "    add_wide(slot + {at}, state[{at}], state[{}]);", at + 1);
            let _ = writeln!(reduce, "    reduce_wide(state + {at}, mine);");
        } else {
            let _ = writeln!(row, "        state[{at}] = ({condition}) ? {value} : (u64){identity};");
            let _ = writeln!(global, "    atomic_{op}(slot + {at}, state[{at}]);");
            let _ = writeln!(shared, "    shared_{op}(slot + {at}, state[{at}]);");
            let _ = writeln!(reduce, "    state[{at}] = warp_reduce_all<{op}>(mine ? state[{at}] : (u64){identity});");
        }
    }
    let inputs = writer.inputs()?;
    let source = format!(
        "{}{}\n#define STATE_WORDS {}\n#define KEY_WORDS {}\n#define PACKED {}\n#define NULL_KEY_SLOT {}\n#define SHARED_SLOTS {}u\n\
         {}\
         __device__ __forceinline__ void key_of(const Inputs& in, u64 row, u64* key, bool& is_null, u32& fault) {{\n{key_text}}}\n\
         __device__ __forceinline__ bool state_of(const Inputs& in, u64 row, u64* state, u32& fault) {{\n{row}        return true;\n}}\n\
         __device__ __forceinline__ void start_state(u64* state) {{\n{identities}}}\n\
         __device__ __forceinline__ void add_global(u64* slot, const u64* state) {{\n{global}}}\n\
         __device__ __forceinline__ void add_shared(u64* slot, const u64* state) {{\n{shared}}}\n\
         __device__ __forceinline__ void reduce_state(u64* state, bool mine) {{\n{reduce}}}\n{}",
        kernels::COMMON,
        kernels::ATOMICS,
        plan.state_words,
        keys.words,
        u8::from(keys.packed),
        u8::from(keys.has_null_slot),
        shared_slots,
        inputs.declaration,
        kernels::GROUP_BY,
    );
    Ok((source, inputs))
}
