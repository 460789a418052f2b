//! The operators. Each file holds one: its Rust side, its CPU reference, and the text of the kernel that is written for
//! its query; kernels that are the same for every query stand in `kernels/`.
pub mod aggregate;
pub mod filter_aggregate;
pub mod gather;
pub mod group_by;
pub mod join;
mod keys;
pub mod project;
pub mod sort;
pub mod top_k;

use std::sync::Arc;

use arrow::array::RecordBatch;

use crate::batch::{DeviceBatch, DeviceColumn};
use crate::device::Device;
use crate::error::Result;

/// Uploads `columns` of a batch and leaves the others empty: operators name columns by their position in the input.
pub(crate) fn upload_used(device: &Device, batch: &RecordBatch, columns: &[usize]) -> Result<DeviceBatch> {
    let used = (0..batch.num_columns()).map(|at| {
        if columns.contains(&at) {
            return DeviceColumn::upload(device, batch.column(at)).map(Arc::new);
        }
        let data_type = batch.column(at).data_type();
        let (values, validity) = (device.memory().allocate(0)?, None);
        Ok(Arc::new(DeviceColumn { data_type: data_type.clone(), rows: batch.num_rows(), values, validity }))
    });
    DeviceBatch::try_new(batch.schema(), used.collect::<Result<Vec<_>>>()?, batch.num_rows())
}
