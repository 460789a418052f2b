//! How many bytes rows take: what a slice itself holds, not what the buffers behind it hold.

use arrow::array::{Array, AsArray as _, OffsetSizeTrait, RecordBatch};
use arrow::datatypes::DataType;

/// Bytes of a batch's own rows.
pub(crate) fn batch_bytes(batch: &RecordBatch) -> usize {
    batch.columns().iter().map(|column| array_bytes(column.as_ref())).sum()
}

fn array_bytes(array: &dyn Array) -> usize {
    let rows = array.len();
    let nulls = if array.nulls().is_some() { rows.div_ceil(8) } else { 0 };
    if let Some(width) = array.data_type().primitive_width() {
        return nulls + rows * width;
    }
    nulls
        + match array.data_type() {
            DataType::Null => 0,
            DataType::Boolean => rows.div_ceil(8),
            DataType::Utf8 => 4 * rows + span(array.as_string::<i32>().value_offsets()),
            DataType::LargeUtf8 => 8 * rows + span(array.as_string::<i64>().value_offsets()),
            DataType::Binary => 4 * rows + span(array.as_binary::<i32>().value_offsets()),
            DataType::LargeBinary => 8 * rows + span(array.as_binary::<i64>().value_offsets()),
            // Arrow's own count leaves out what the views point to.
            DataType::Utf8View => 16 * rows + array.as_string_view().total_buffer_bytes_used(),
            DataType::BinaryView => 16 * rows + array.as_binary_view().total_buffer_bytes_used(),
            DataType::Struct(_) => array.as_struct().columns().iter().map(|child| array_bytes(child.as_ref())).sum(),
            DataType::List(_) => list_bytes::<i32>(array),
            DataType::LargeList(_) => list_bytes::<i64>(array),
            _ => array.to_data().get_slice_memory_size().unwrap_or_else(|_| array.get_array_memory_size()),
        }
}

fn span<O: OffsetSizeTrait>(offsets: &[O]) -> usize {
    match (offsets.first(), offsets.last()) {
        (Some(first), Some(last)) => last.as_usize() - first.as_usize(),
        _ => 0,
    }
}

fn list_bytes<O: OffsetSizeTrait>(array: &dyn Array) -> usize {
    let list = array.as_list::<O>();
    let start = list.value_offsets().first().map_or(0, |first| first.as_usize());
    let values = list.values().slice(start, span(list.value_offsets()));
    list.len() * size_of::<O>() + array_bytes(values.as_ref())
}

/// Where groups end, so that each has at most `rows` rows and, unless it is one row, at most `bytes` bytes.
pub(crate) fn group_ends(batch: &RecordBatch, rows: usize, bytes: usize) -> Vec<u32> {
    let mut ends = Vec::new();
    let mut start = 0;
    while start < batch.num_rows() {
        let most = rows.clamp(1, batch.num_rows() - start);
        let fits = |length: usize| batch_bytes(&batch.slice(start, length)) <= bytes;
        // Doubling first: what is looked at is in proportion to the group, not to what is left of the batch.
        let mut low = 1;
        while low < most && fits((2 * low).min(most)) {
            low = (2 * low).min(most);
        }
        let mut high = (2 * low).min(most);
        while low < high {
            let middle = (low + high).div_ceil(2);
            match fits(middle) {
                true => low = middle,
                false => high = middle - 1,
            }
        }
        start += low;
        ends.push(start as u32);
    }
    ends
}
