//! Reads a corpus: a column of embeddings and, where one is named, a column of names of rows.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray as _, FixedSizeListArray, Float32Array, GenericListArray, OffsetSizeTrait,
};
use arrow::buffer::NullBuffer;
use arrow::compute::{cast, concat};
use arrow::datatypes::{DataType, Field, Float32Type, SchemaRef};
use arrow::ipc::reader::FileReader;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

/// Embeddings and the names of their rows.
#[derive(Debug)]
pub(crate) struct Corpus {
    pub(crate) embeddings: FixedSizeListArray,
    pub(crate) ids: Option<ArrayRef>,
}

/// An Arrow IPC file begins so.
const ARROW_MAGIC: &[u8] = b"ARROW1";

fn is_arrow(path: &Path) -> Result<bool, String> {
    use std::io::Read as _;
    let mut head = [0; ARROW_MAGIC.len()];
    let mut file = File::open(path).map_err(|error| unreadable(path, &error))?;
    match file.read_exact(&mut head) {
        Ok(()) => Ok(head == *ARROW_MAGIC),
        Err(error) => Err(unreadable(path, &error)),
    }
}

fn unreadable(path: &Path, error: &dyn std::fmt::Display) -> String {
    format!("cannot read the corpus {}: {error}", path.display())
}

/// The columns of a corpus file; reads its head only.
///
/// # Errors
/// When it cannot be read, in words that name the file.
pub(crate) fn schema(path: &Path) -> Result<SchemaRef, String> {
    if is_arrow(path)? {
        let file = File::open(path).map_err(|error| unreadable(path, &error))?;
        return FileReader::try_new(file, None).map(|reader| reader.schema()).map_err(|error| unreadable(path, &error));
    }
    let file = File::open(path).map_err(|error| unreadable(path, &error))?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| unreadable(path, &error))?;
    Ok(Arc::clone(builder.schema()))
}

/// The position of a column.
///
/// # Errors
/// When there is none of that name.
pub(crate) fn find(schema: &SchemaRef, column: &str, path: &Path) -> Result<usize, String> {
    schema.index_of(column).map_err(|_| {
        let known: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        format!("the corpus {} has no column `{column}`; it has {}", path.display(), known.join(", "))
    })
}

/// Reads a corpus whole.
///
/// # Errors
/// When the file or its columns are not what a corpus is, in words that name the file.
pub(crate) fn read(path: &Path, column: &str, id: Option<&str>) -> Result<Corpus, String> {
    let schema = schema(path)?;
    let mut wanted = vec![find(&schema, column, path)?];
    if let Some(id) = id {
        wanted.push(find(&schema, id, path)?);
    }
    let file = File::open(path).map_err(|error| unreadable(path, &error))?;
    let batches = if is_arrow(path)? {
        // Dictionaries make a projection of the reader's own no cheaper: columns are chosen from what was mapped in.
        let reader = FileReader::try_new(file, None).map_err(|error| unreadable(path, &error))?;
        reader.map(|batch| batch?.project(&wanted)).collect::<Result<Vec<_>, _>>()
    } else {
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| unreadable(path, &error))?;
        let mask = ProjectionMask::roots(builder.parquet_schema(), wanted.iter().copied());
        let reader = builder.with_projection(mask).build().map_err(|error| unreadable(path, &error))?;
        // Projected columns come in the order of the file.
        let order: Vec<usize> = wanted.iter().map(|at| wanted.iter().filter(|other| *other < at).count()).collect();
        reader.map(|batch| batch?.project(&order)).collect::<Result<Vec<_>, _>>()
    };
    let batches = batches.map_err(|error| unreadable(path, &error))?;
    let gather = |at: usize, data_type: &DataType| -> Result<ArrayRef, String> {
        let parts: Vec<&dyn Array> = batches.iter().map(|batch| batch.column(at).as_ref()).collect();
        match parts.is_empty() {
            true => Ok(arrow::array::new_empty_array(data_type)),
            false => concat(&parts).map_err(|error| unreadable(path, &error)),
        }
    };
    let whose = format!("column `{column}` of the corpus {}", path.display());
    let lists = gather(0, schema.field(wanted[0]).data_type())?;
    let Embeddings { list, wrong } = embeddings(&lists, None).map_err(|error| format!("{whose}: {error}"))?;
    if let Some((row, error)) = wrong.first() {
        return Err(format!("{whose}, row {row}: {error}"));
    }
    let ids = match wanted.get(1) {
        Some(at) => Some(gather(1, schema.field(*at).data_type())?),
        None => None,
    };
    Ok(Corpus { embeddings: list, ids })
}

/// Lists of one length, and the rows that had another one or a null inside: those are null in `list`.
pub(crate) struct Embeddings {
    pub(crate) list: FixedSizeListArray,
    pub(crate) wrong: Vec<(usize, String)>,
}

/// A column of lists of numbers as lists of `dims` numbers (of the first row's length where it is not said).
///
/// # Errors
/// When the column holds something else.
pub(crate) fn embeddings(array: &ArrayRef, dims: Option<usize>) -> Result<Embeddings, String> {
    match array.data_type() {
        DataType::FixedSizeList(item, length)
            if matches!(item.data_type(), DataType::Float32 | DataType::Float16 | DataType::UInt16)
                && dims.is_none_or(|dims| usize::try_from(*length) == Ok(dims))
                && array.as_fixed_size_list().values().null_count() == 0 =>
        {
            Ok(Embeddings { list: array.as_fixed_size_list().clone(), wrong: Vec::new() })
        }
        DataType::FixedSizeList(item, _) => {
            let lists = cast(array, &DataType::List(Arc::clone(item))).map_err(|error| error.to_string())?;
            ragged(lists.as_list::<i32>(), dims)
        }
        DataType::List(_) => ragged(array.as_list::<i32>(), dims),
        DataType::LargeList(_) => ragged(array.as_list::<i64>(), dims),
        other => Err(format!("{other} is no list of numbers")),
    }
}

/// Whether a column of this type can hold embeddings.
pub(crate) fn is_embedding(data_type: &DataType) -> bool {
    match data_type {
        DataType::FixedSizeList(item, _) | DataType::List(item) | DataType::LargeList(item) => {
            item.data_type().is_numeric()
        }
        _ => false,
    }
}

fn ragged<O: OffsetSizeTrait>(list: &GenericListArray<O>, dims: Option<usize>) -> Result<Embeddings, String> {
    let length = |row: usize| list.value_length(row).as_usize();
    let first = || (0..list.len()).find(|row| list.is_valid(*row)).map(length);
    let dims = dims.or_else(first).unwrap_or(1);
    let values = cast(list.values(), &DataType::Float32).map_err(|error| error.to_string())?;
    let values = values.as_primitive::<Float32Type>();
    let (mut flat, mut valid, mut wrong) = (Vec::with_capacity(list.len() * dims), Vec::new(), Vec::new());
    for row in 0..list.len() {
        let from = list.value_offsets()[row].as_usize();
        let error = if list.is_null(row) {
            None
        } else if length(row) != dims {
            Some(format!("an embedding of {} numbers among those of {dims}", length(row)))
        } else if values.slice(from, dims).null_count() > 0 {
            Some("a null in an embedding".to_owned())
        } else {
            flat.extend_from_slice(&values.values()[from..from + dims]);
            valid.push(true);
            continue;
        };
        wrong.extend(error.map(|error| (row, error)));
        flat.resize(flat.len() + dims, 0.0);
        valid.push(false);
    }
    let nulls = Some(NullBuffer::from(valid)).filter(|nulls| nulls.null_count() > 0);
    let item = Arc::new(Field::new_list_field(DataType::Float32, true));
    let length = i32::try_from(dims).map_err(|_| format!("embeddings of {dims} numbers"))?;
    let list = FixedSizeListArray::try_new(item, length, Arc::new(Float32Array::from(flat)), nulls);
    Ok(Embeddings { list: list.map_err(|error| error.to_string())?, wrong })
}
