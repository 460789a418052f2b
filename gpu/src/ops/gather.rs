//! Rows by their numbers and exclusive sums, on the device: the last steps of sorts and joins.
use std::sync::Arc;

use arrow::datatypes::SchemaRef;

use crate::batch::{DeviceBatch, DeviceColumn, bitmap_bytes};
use crate::compile::Floats;
use crate::device::{Arguments, Device, Launch};
use crate::error::{Error, Result};
use crate::expr::Physical;
use crate::kernels;
use crate::memory::DeviceBuffer;

/// What a block of the scan and the sort works on; `BLOCK_KEYS` in `radix_sort.cu`.
pub(crate) const BLOCK_KEYS: usize = 4096;

fn source(text: &str) -> String {
    format!("{}{text}", kernels::COMMON)
}

/// The source of the sort and scan kernels.
pub fn sort_source() -> String {
    source(kernels::RADIX_SORT)
}

/// The source of the gathering kernels.
pub fn gather_source() -> String {
    source(kernels::GATHER)
}

/// Columns of `batch` in the order of `count` row numbers. With `may_miss` the number `u32::MAX` yields a null.
pub(crate) fn gather_batch(
    device: &Device,
    batch: &DeviceBatch,
    schema: SchemaRef,
    rows: &DeviceBuffer,
    count: usize,
    may_miss: bool,
) -> Result<DeviceBatch> {
    let columns = batch
        .columns()
        .iter()
        .map(|column| gather_column(device, column, rows, count, may_miss).map(Arc::new))
        .collect::<Result<Vec<_>>>()?;
    DeviceBatch::try_new(schema, columns, count)
}

fn gather_column(
    device: &Device,
    column: &DeviceColumn,
    rows: &DeviceBuffer,
    count: usize,
    may_miss: bool,
) -> Result<DeviceColumn> {
    let physical = Physical::try_from(&column.data_type)?;
    let is_bits = physical == Physical::Bool;
    let bytes = if is_bits { bitmap_bytes(count) } else { count * physical.bytes() };
    let values = device.memory().allocate(bytes)?;
    let name = match physical.bytes() {
        _ if is_bits => "gather_bits",
        1 => "gather_1",
        2 => "gather_2",
        4 => "gather_4",
        8 => "gather_8",
        _ => "gather_16",
    };
    let run = |name: &str, from: Option<&DeviceBuffer>, to: &DeviceBuffer| {
        if count == 0 {
            return Ok(());
        }
        let function = device.function(&gather_source(), name, Floats::AsOnCpu)?;
        let arguments = Arguments::default().maybe(from).pointer(rows).pointer(to).number(count as u64);
        let size = Launch { blocks: device.grid(count), threads: 256, shared_bytes: 0 };
        // SAFETY: the row numbers are rows of the column or u32::MAX, and the output holds `count` values.
        unsafe { device.launch(&function, size, arguments) }
    };
    run(name, Some(&column.values), &values)?;
    let validity = if may_miss || column.validity.is_some() {
        let bits = device.memory().allocate(bitmap_bytes(count))?;
        run("gather_bits", column.validity.as_ref(), &bits)?;
        Some(bits)
    } else {
        None
    };
    Ok(DeviceColumn { data_type: column.data_type.clone(), rows: count, values, validity })
}

/// The exclusive sum of `length` 32-bit numbers, in place. Their total fits 32 bits.
pub(crate) fn exclusive_sum(device: &Device, values: &DeviceBuffer, length: usize) -> Result<()> {
    if values.bytes() < length * 4 {
        return Err(Error::Invalid("a sum over more numbers than there are".into()));
    }
    let runs = length.div_ceil(BLOCK_KEYS);
    if runs == 0 {
        return Ok(());
    }
    let sums = device.memory().allocate(runs * 4)?;
    let blocks = u32::try_from(runs).map_err(|_| Error::Unsupported("a sum over that many numbers".into()))?;
    let text = sort_source();
    let function = |name: &str| device.function(&text, name, Floats::AsOnCpu);
    let size = Launch { blocks, threads: 256, shared_bytes: 0 };
    let arguments = Arguments::default().pointer(values).number(length as u64).pointer(&sums);
    // SAFETY: each block reads a run of `values` within `length` and writes one sum.
    unsafe { device.launch(&function("sum_runs")?, size, arguments) }?;
    let arguments = Arguments::default().pointer(&sums).number(runs as u64);
    // SAFETY: one block over `runs` sums.
    unsafe { device.launch(&function("scan_one")?, Launch { blocks: 1, ..size }, arguments) }?;
    let arguments = Arguments::default().pointer(values).number(length as u64).pointer(&sums);
    // SAFETY: each block rewrites its run of `values` within `length`.
    unsafe { device.launch(&function("scan_runs")?, size, arguments) }
}
