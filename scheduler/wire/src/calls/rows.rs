//! Rows of several groups as one Arrow IPC stream, so that a group of one item costs little more than its bytes.

use std::sync::Arc;

use datafusion::arrow::array::{Array as _, ArrayRef, AsArray as _, RecordBatch, RecordBatchOptions};
use datafusion::arrow::compute::concat_batches;
use datafusion::arrow::datatypes::{DataType, Schema, SchemaRef};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::ipc::reader::StreamReader;
use datafusion::arrow::ipc::writer::StreamWriter;

/// The rows of `batches`, one after the other.
///
/// # Errors
/// Their columns are not those of `schema`, or have no form in IPC.
pub fn pack(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Vec<u8>, ArrowError> {
    let mut writer = StreamWriter::try_new(Vec::new(), schema)?;
    match batches {
        [one] => writer.write(&compact(one)?)?,
        many => writer.write(&concat_batches(schema, &many.iter().map(compact).collect::<Result<Vec<_>, _>>()?)?)?,
    }
    writer.into_inner()
}

/// The batch with views that hold on to no more than they show: a view takes the whole of its texts along, and a group
/// is often one row of thousands.
fn compact(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let has_views =
        batch.columns().iter().any(|column| matches!(column.data_type(), DataType::Utf8View | DataType::BinaryView));
    if !has_views {
        return Ok(batch.clone());
    }
    let columns = batch.columns().iter().map(|column| match column.data_type() {
        DataType::Utf8View => Arc::new(column.as_string_view().gc()) as ArrayRef,
        DataType::BinaryView => Arc::new(column.as_binary_view().gc()) as ArrayRef,
        _ => Arc::clone(column),
    });
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(batch.schema(), columns.collect(), &options)
}

/// The rows of a message, under the schema that was agreed.
///
/// # Errors
/// They are no Arrow IPC stream of one batch with these columns.
pub fn unpack(bytes: &[u8], schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let mut reader = StreamReader::try_new(bytes, None)?;
    let Some(batch) = reader.next().transpose()? else { return Ok(RecordBatch::new_empty(SchemaRef::clone(schema))) };
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(SchemaRef::clone(schema), batch.columns().to_vec(), &options)
}

/// A schema as bytes.
///
/// # Errors
/// It has no form in IPC.
pub fn write_schema(schema: &Schema) -> Result<Vec<u8>, ArrowError> {
    let mut writer = StreamWriter::try_new(Vec::new(), schema)?;
    writer.finish()?;
    writer.into_inner()
}

/// A schema from bytes.
///
/// # Errors
/// They are none.
pub fn read_schema(bytes: &[u8]) -> Result<SchemaRef, ArrowError> {
    Ok(StreamReader::try_new(bytes, None)?.schema())
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::{DictionaryArray, Int64Array, StringArray, StringViewArray};
    use datafusion::arrow::datatypes::{Field, Int32Type};

    use super::*;

    #[test]
    fn rows_of_groups_come_out_as_they_went_in() {
        let words: DictionaryArray<Int32Type> = vec![Some("a"), None, Some("b"), Some("a")].into_iter().collect();
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("n", Arc::new(Int64Array::from(vec![Some(1), None, Some(3), Some(4)]))),
            ("t", Arc::new(StringArray::from(vec!["", "é", "x", "y"]))),
            ("v", Arc::new(StringViewArray::from(vec!["short", "a text that is longer than twelve", "", "z"]))),
            ("d", Arc::new(words)),
        ];
        let fields: Vec<Field> =
            columns.iter().map(|(name, column)| Field::new(*name, column.data_type().clone(), true)).collect();
        let schema = Arc::new(Schema::new(fields));
        let whole =
            RecordBatch::try_new(schema.clone(), columns.into_iter().map(|(_, column)| column).collect()).unwrap();
        for groups in [vec![whole.clone()], (0..4).map(|at| whole.slice(at, 1)).collect(), vec![]] {
            let rows: usize = groups.iter().map(RecordBatch::num_rows).sum();
            let back = unpack(&pack(&schema, &groups).unwrap(), &schema).unwrap();
            assert_eq!(back, whole.slice(0, rows));
        }
        assert_eq!(read_schema(&write_schema(&schema).unwrap()).unwrap(), schema);
    }

    #[test]
    fn a_step_that_reads_nothing_has_rows_all_the_same() {
        let schema = Arc::new(Schema::empty());
        let row = |rows| {
            let options = RecordBatchOptions::new().with_row_count(Some(rows));
            RecordBatch::try_new_with_options(schema.clone(), vec![], &options).unwrap()
        };
        for groups in [vec![row(3)], vec![row(1), row(1)]] {
            let rows: usize = groups.iter().map(RecordBatch::num_rows).sum();
            assert_eq!(unpack(&pack(&schema, &groups).unwrap(), &schema).unwrap().num_rows(), rows);
        }
    }

    #[test]
    fn one_row_of_many_texts_takes_its_own_text_along() {
        let texts = StringViewArray::from_iter_values((0..1000).map(|at| format!("{at:0>100}")));
        let schema = Arc::new(Schema::new(vec![Field::new("t", DataType::Utf8View, true)]));
        let whole = RecordBatch::try_new(schema.clone(), vec![Arc::new(texts)]).unwrap();
        assert!(pack(&schema, &[whole.slice(500, 1)]).unwrap().len() < 2_000);
        assert!(pack(&schema, &[whole.slice(500, 1), whole.slice(7, 1)]).unwrap().len() < 2_000);
    }

    #[test]
    fn other_columns_are_refused() {
        let own = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)]));
        let other = Arc::new(Schema::new(vec![Field::new("n", DataType::Utf8, true)]));
        let batch = RecordBatch::try_new(own.clone(), vec![Arc::new(Int64Array::from(vec![1]))]).unwrap();
        let bytes = pack(&own, &[batch]).unwrap();
        assert!(unpack(&bytes, &other).is_err());
        assert!(unpack(&bytes[..bytes.len() / 2], &own).is_err());
        assert!(unpack(b"no such thing", &own).is_err());
    }
}
