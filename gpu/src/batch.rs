//! Record batches on the device. Columns keep Arrow's layout, except that they begin at row 0: slices are cut and
//! their bitmaps shifted while they are uploaded, so that no kernel knows about offsets.
use std::sync::Arc;

use arrow::array::{Array, ArrayData, ArrayRef, FixedSizeListArray, RecordBatch, make_array};
use arrow::buffer::{BooleanBuffer, Buffer, NullBuffer};
use arrow::datatypes::{DataType, SchemaRef};

use crate::device::Device;
use crate::error::{Error, Result};
use crate::expr::Physical;
use crate::memory::DeviceBuffer;

/// One column on the device.
#[derive(Debug)]
pub struct DeviceColumn {
    /// Arrow's type; fixed-width types and `FixedSizeList` of floats.
    pub data_type: DataType,
    /// Rows.
    pub rows: usize,
    /// The values: `rows` times the type's width; for `Boolean` a bitmap; for a list its child's values.
    pub values: DeviceBuffer,
    /// One bit per row, or `None` where every row has a value. Padded to whole 32-bit words.
    pub validity: Option<DeviceBuffer>,
}

/// A record batch on the device. Columns are shared: projecting a batch copies nothing.
#[derive(Debug, Clone)]
pub struct DeviceBatch {
    schema: SchemaRef,
    columns: Vec<Arc<DeviceColumn>>,
    rows: usize,
}

/// The bytes of a bitmap of `rows` rows in whole 32-bit words.
pub(crate) fn bitmap_bytes(rows: usize) -> usize {
    rows.div_ceil(32) * 4
}

pub(crate) fn padded_bitmap(bits: &BooleanBuffer) -> Vec<u8> {
    let mut bytes = bits.sliced().as_slice()[..bits.len().div_ceil(8)].to_vec();
    bytes.resize(bitmap_bytes(bits.len()), 0);
    bytes
}

/// How wide one row's values are; for lists all items of a row.
fn row_bytes(data_type: &DataType) -> Result<usize> {
    match data_type {
        DataType::FixedSizeList(item, length) => {
            let item = item.data_type();
            let width = match item {
                DataType::Float16 => 2,
                _ => Physical::try_from(item)?.bytes(),
            };
            Ok(usize::try_from(*length).unwrap_or(0) * width)
        }
        other => Ok(Physical::try_from(other)?.bytes()),
    }
}

impl DeviceColumn {
    /// Copies an array to the device.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for types without a fixed width, [`Error::OutOfMemory`] when the budget is spent.
    pub fn upload(device: &Device, array: &dyn Array) -> Result<Self> {
        let rows = array.len();
        let data = array.to_data();
        let values = match array.data_type() {
            DataType::Boolean => {
                let bits = BooleanBuffer::new(data.buffers()[0].clone(), data.offset(), rows);
                device.upload(&padded_bitmap(&bits))?
            }
            DataType::FixedSizeList(item, length) => {
                let width = row_bytes(array.data_type())?;
                let list = FixedSizeListArray::from(data.clone());
                let first = usize::try_from(list.value_offset(0)).unwrap_or(0);
                let child = list.values().to_data();
                if child.null_count() > 0 {
                    return Err(Error::Unsupported("a list column with null items".into()));
                }
                let item_bytes = width / usize::try_from(*length).unwrap_or(1).max(1);
                let start = (child.offset() + first) * item_bytes;
                let bytes = child.buffers().first().map_or(&[][..], Buffer::as_slice);
                let range = bytes
                    .get(start..start + rows * width)
                    .ok_or_else(|| Error::Invalid(format!("a list column of {item} is shorter than its rows")))?;
                device.upload(range)?
            }
            other => {
                let width = row_bytes(other)?;
                let start = data.offset() * width;
                device.upload(&data.buffers()[0].as_slice()[start..start + rows * width])?
            }
        };
        let validity = match data.nulls() {
            Some(nulls) if nulls.null_count() > 0 => Some(device.upload(&padded_bitmap(nulls.inner()))?),
            _ => None,
        };
        Ok(Self { data_type: array.data_type().clone(), rows, values, validity })
    }

    /// Copies the column to the host.
    pub fn download(&self, device: &Device) -> Result<ArrayRef> {
        let nulls = match &self.validity {
            Some(bits) => {
                let bytes = device.download(bits, bitmap_bytes(self.rows))?;
                Some(NullBuffer::new(BooleanBuffer::new(bytes.into(), 0, self.rows)))
            }
            None => None,
        };
        let bytes = match self.data_type {
            DataType::Boolean => bitmap_bytes(self.rows),
            _ => self.rows * row_bytes(&self.data_type)?,
        };
        let values = aligned(&device.download(&self.values, bytes)?);
        let builder = ArrayData::builder(self.data_type.clone()).len(self.rows).nulls(nulls);
        let data = match &self.data_type {
            DataType::FixedSizeList(item, length) => {
                let items = self.rows * usize::try_from(*length).unwrap_or(0);
                let child = ArrayData::builder(item.data_type().clone()).len(items).add_buffer(values).build()?;
                builder.add_child_data(child).build()?
            }
            _ => builder.add_buffer(values).build()?,
        };
        Ok(make_array(data))
    }

    /// What the column takes on the device.
    pub fn bytes(&self) -> usize {
        self.values.bytes() + self.validity.as_ref().map_or(0, DeviceBuffer::bytes)
    }
}

/// Arrow wants 16-byte alignment for decimals; a `Vec<u8>` promises none.
fn aligned(bytes: &[u8]) -> Buffer {
    Buffer::from_slice_ref(bytes)
}

impl DeviceBatch {
    /// Copies a batch to the device.
    pub fn upload(device: &Device, batch: &RecordBatch) -> Result<Self> {
        let all: Vec<usize> = (0..batch.num_columns()).collect();
        Self::upload_columns(device, batch, &all)
    }

    /// Copies only `columns`, in that order: what an operator does not read stays on the host.
    pub fn upload_columns(device: &Device, batch: &RecordBatch, columns: &[usize]) -> Result<Self> {
        let schema = Arc::new(batch.schema().project(columns)?);
        let columns = columns
            .iter()
            .map(|&at| Ok(Arc::new(DeviceColumn::upload(device, batch.column(at))?)))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { schema, columns, rows: batch.num_rows() })
    }

    /// A batch of columns that are on the device already.
    ///
    /// # Errors
    /// [`Error::Invalid`] when their number, types or rows contradict the schema.
    pub fn try_new(schema: SchemaRef, columns: Vec<Arc<DeviceColumn>>, rows: usize) -> Result<Self> {
        let fits = schema.fields().len() == columns.len()
            && schema.fields().iter().zip(&columns).all(|(f, c)| *f.data_type() == c.data_type && c.rows == rows);
        if !fits {
            return Err(Error::Invalid("the columns on the device do not have the schema's types and rows".into()));
        }
        Ok(Self { schema, columns, rows })
    }

    /// Copies the batch to the host.
    pub fn download(&self, device: &Device) -> Result<RecordBatch> {
        let columns = self.columns.iter().map(|column| column.download(device)).collect::<Result<Vec<_>>>()?;
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(self.rows));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?)
    }

    /// The schema.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The columns.
    pub fn columns(&self) -> &[Arc<DeviceColumn>] {
        &self.columns
    }

    /// The rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// What the batch takes on the device.
    pub fn bytes(&self) -> usize {
        self.columns.iter().map(|column| column.bytes()).sum()
    }
}
