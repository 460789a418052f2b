//! `vector_top_k(query, corpus, k [, metric])`: the rows of a corpus of embeddings that are most similar to each query.
//!
//! ```sql
//! SELECT q.id, docs.ids[hit.position] AS doc, hit.score
//! FROM (SELECT id, unnest(vector_top_k(embedding, (SELECT array_agg(embedding ORDER BY id) FROM docs), 10)) AS hit
//!       FROM queries) AS q ...
//! ```
//! The corpus is one array of embeddings, the same for every row: a subquery is computed once. `position` is the place in
//! that array, from 1, as SQL counts; `score` the cosine (or `'dot'`: the dot product, `'l2'`: the distance). Best first;
//! equal scores in the order of the array. A query that is null has a null result; an embedding that is null, holds a
//! NaN, or (by cosine) is all zeros, is never found.
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Weak};

use arrow::array::{
    Array, ArrayRef, AsArray as _, FixedSizeListArray, Float32Array, GenericListArray, Int64Array, ListArray,
    OffsetSizeTrait, StructArray,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Float32Type};
use datafusion::common::{Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use parking_lot::Mutex;
use rowmill_gpu::ops::top_k::{Corpus, Metric, Neighbour};

use crate::context::GpuContext;

/// The most results of one query.
const MAX_K: i64 = 1 << 20;

/// The function, over the device of `gpu` where that pays.
pub fn vector_top_k(gpu: Arc<GpuContext>) -> Arc<ScalarUDF> {
    Arc::new(ScalarUDF::from(VectorTopK {
        gpu,
        signature: Signature::user_defined(Volatility::Immutable),
        last: Mutex::new(None),
    }))
}

/// The corpus that was searched last: the batches of a query, and its partitions, share it.
struct Prepared {
    of: Weak<dyn Array>,
    metric: Metric,
    corpus: Option<Arc<Corpus>>,
}

struct VectorTopK {
    gpu: Arc<GpuContext>,
    signature: Signature,
    last: Mutex<Option<Prepared>>,
}

impl fmt::Debug for VectorTopK {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VectorTopK")
    }
}

impl PartialEq for VectorTopK {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.gpu, &other.gpu)
    }
}
impl Eq for VectorTopK {}
impl Hash for VectorTopK {
    fn hash<H: Hasher>(&self, state: &mut H) {
        "vector_top_k".hash(state);
    }
}

/// `position` and `score`.
fn hit_fields() -> Fields {
    Fields::from(vec![Field::new("position", DataType::Int64, false), Field::new("score", DataType::Float32, false)])
}

fn hit_item() -> FieldRef {
    Arc::new(Field::new_list_field(DataType::Struct(hit_fields()), true))
}

/// Whether a type is a list of numbers, as embeddings are.
fn is_embedding(data_type: &DataType) -> bool {
    match data_type {
        DataType::FixedSizeList(item, _) | DataType::List(item) | DataType::LargeList(item) => {
            item.data_type().is_numeric()
        }
        _ => false,
    }
}

impl ScalarUDFImpl for VectorTopK {
    fn name(&self) -> &str {
        "vector_top_k"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let (3 | 4) = types.len() else {
            return plan_err!(
                "vector_top_k takes a query, a corpus, k and perhaps a metric, not {} values",
                types.len()
            );
        };
        if !is_embedding(&types[0]) && types[0] != DataType::Null {
            return plan_err!("vector_top_k searches with an array of numbers, not with {}", types[0]);
        }
        let corpus = match &types[1] {
            DataType::FixedSizeList(item, _) | DataType::List(item) | DataType::LargeList(item) => item.data_type(),
            DataType::Null => &DataType::Null,
            other => return plan_err!("the corpus of vector_top_k is an array of embeddings, not {other}"),
        };
        if !is_embedding(corpus) && *corpus != DataType::Null {
            return plan_err!(
                "the corpus of vector_top_k is an array of embeddings, such as `(SELECT array_agg(embedding) FROM \
                 docs)`; this is an array of {corpus}"
            );
        }
        if !types[2].is_integer() && types[2] != DataType::Null {
            return plan_err!("k of vector_top_k is a whole number, not {}", types[2]);
        }
        let mut coerced = vec![types[0].clone(), types[1].clone(), DataType::Int64];
        coerced.extend(types.get(3).map(|_| DataType::Utf8));
        Ok(coerced)
    }

    fn return_type(&self, _types: &[DataType]) -> Result<DataType> {
        Ok(DataType::List(hit_item()))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = args.number_rows;
        let (queries, corpus, k, metric) = match args.args.as_slice() {
            [queries, corpus, k] => (queries, corpus, k, None),
            [queries, corpus, k, metric] => (queries, corpus, k, Some(metric)),
            _ => return exec_err!("vector_top_k takes three or four values"),
        };
        let (ColumnarValue::Scalar(corpus), ColumnarValue::Scalar(k)) = (corpus, k) else {
            return exec_err!(
                "the corpus and k of vector_top_k are the same for every row: give k as a number, and the corpus as a \
                 subquery of one row, such as `(SELECT array_agg(embedding) FROM docs)`"
            );
        };
        let metric = match metric {
            None => Metric::Cosine,
            Some(ColumnarValue::Scalar(ScalarValue::Utf8(Some(word)))) => metric_of(word)?,
            Some(_) => return exec_err!("the metric of vector_top_k is one of 'cosine', 'dot' and 'l2'"),
        };
        let k = match k {
            ScalarValue::Int64(Some(k)) if (1..=MAX_K).contains(k) => usize::try_from(*k).unwrap_or(1),
            other => return exec_err!("k of vector_top_k is a number from 1 to {MAX_K}, not {other}"),
        };
        let queries = queries.to_array(rows)?;
        let Some(corpus) = self.corpus(corpus, metric)? else {
            return Ok(ColumnarValue::Array(hits(&queries, Vec::new())?));
        };
        if queries.null_count() == queries.len() || *queries.data_type() == DataType::Null {
            return Ok(ColumnarValue::Array(hits(&queries, Vec::new())?));
        }
        let embeddings = embeddings(&queries, "the query")?;
        match corpus.search(&embeddings, k) {
            Ok(found) => Ok(ColumnarValue::Array(hits(&queries, found)?)),
            Err(error) => exec_err!("vector_top_k: {error}"),
        }
    }
}

impl VectorTopK {
    /// The corpus, ready to be searched; `None` for one without rows.
    fn corpus(&self, value: &ScalarValue, metric: Metric) -> Result<Option<Arc<Corpus>>> {
        let array: ArrayRef = match value {
            ScalarValue::List(array) => Arc::clone(array) as _,
            ScalarValue::LargeList(array) => Arc::clone(array) as _,
            ScalarValue::FixedSizeList(array) => Arc::clone(array) as _,
            _ if value.is_null() => return Ok(None),
            other => return exec_err!("the corpus of vector_top_k is an array of embeddings, not {other}"),
        };
        // Held while the corpus is made: the partitions of a query wait for it instead of making it each.
        let mut last = self.last.lock();
        if let Some(prepared) = last.as_ref()
            && prepared.metric == metric
            && prepared.of.upgrade().is_some_and(|of| std::ptr::addr_eq(Arc::as_ptr(&of), Arc::as_ptr(&array)))
        {
            return Ok(prepared.corpus.clone());
        }
        let rows = match array.data_type() {
            _ if array.is_empty() || array.is_null(0) => None,
            DataType::List(_) => Some(array.as_list::<i32>().value(0)),
            DataType::LargeList(_) => Some(array.as_list::<i64>().value(0)),
            _ => Some(array.as_fixed_size_list().value(0)),
        };
        let corpus = match rows.filter(|rows| rows.null_count() < rows.len()) {
            None => None,
            Some(rows) => {
                let list = embeddings(&rows, "the corpus")?;
                let bytes = list.values().to_data().get_slice_memory_size().unwrap_or(0) as u64;
                let device = self.gpu.corpus_device(list.len() as u64, bytes);
                match Corpus::once_it_pays(&list, metric, device) {
                    Ok(corpus) => Some(Arc::new(corpus)),
                    Err(error) => return exec_err!("the corpus of vector_top_k: {error}"),
                }
            }
        };
        *last = Some(Prepared { of: Arc::downgrade(&array), metric, corpus: corpus.clone() });
        Ok(corpus)
    }
}

fn metric_of(word: &str) -> Result<Metric> {
    match word {
        "cosine" => Ok(Metric::Cosine),
        "dot" => Ok(Metric::Dot),
        "l2" => Ok(Metric::L2),
        other => exec_err!("`{other}` is no metric of vector_top_k; there are 'cosine', 'dot' and 'l2'"),
    }
}

/// A column of lists of numbers as lists of one length of `Float32`, `Float16` or, for bfloat16, `UInt16`.
fn embeddings(array: &ArrayRef, what: &str) -> Result<FixedSizeListArray> {
    if let DataType::FixedSizeList(item, _) = array.data_type()
        && matches!(item.data_type(), DataType::Float32 | DataType::Float16 | DataType::UInt16)
    {
        return Ok(array.as_fixed_size_list().clone());
    }
    match array.data_type() {
        DataType::FixedSizeList(_, length) => {
            let list = array.as_fixed_size_list();
            let item = Arc::new(Field::new_list_field(DataType::Float32, true));
            let values = cast(list.values(), &DataType::Float32)?;
            Ok(FixedSizeListArray::try_new(item, *length, values, list.nulls().cloned())?)
        }
        DataType::List(_) => ragged(array.as_list::<i32>(), what),
        DataType::LargeList(_) => ragged(array.as_list::<i64>(), what),
        other => exec_err!("{what} of vector_top_k is {other}, not an array of numbers"),
    }
}

/// Lists of any length as lists of one length; null lists are filled up.
fn ragged<O: OffsetSizeTrait>(list: &GenericListArray<O>, what: &str) -> Result<FixedSizeListArray> {
    let length = |row: usize| list.value_length(row).as_usize();
    let first = (0..list.len()).find(|row| list.is_valid(*row));
    let dims = first.map_or(1, length);
    if let Some(row) = (0..list.len()).find(|row| list.is_valid(*row) && length(*row) != dims) {
        return exec_err!(
            "{what} of vector_top_k has embeddings of {dims} and of {} numbers; all have the same length",
            length(row)
        );
    }
    let values = cast(list.values(), &DataType::Float32)?;
    let values = values.as_primitive::<Float32Type>();
    let mut flat = Vec::with_capacity(list.len() * dims);
    for row in 0..list.len() {
        let from = list.value_offsets()[row].as_usize();
        match list.is_valid(row) {
            true if values.slice(from, dims).null_count() > 0 => {
                return exec_err!("{what} of vector_top_k has a null in an embedding");
            }
            true => flat.extend_from_slice(&values.values()[from..from + dims]),
            false => flat.resize(flat.len() + dims, 0.0),
        }
    }
    let item = Arc::new(Field::new_list_field(DataType::Float32, true));
    let length = i32::try_from(dims).unwrap_or(i32::MAX);
    Ok(FixedSizeListArray::try_new(item, length, Arc::new(Float32Array::from(flat)), list.nulls().cloned())?)
}

/// The result column; rows without an entry in `found` are empty, rows whose query is null are null.
fn hits(queries: &ArrayRef, found: Vec<Vec<Neighbour>>) -> Result<ArrayRef> {
    let nulls = match queries.data_type() {
        DataType::Null => Some(NullBuffer::new_null(queries.len())),
        _ => queries.nulls().cloned(),
    };
    let lengths: Vec<usize> = (0..queries.len())
        .map(|row| match nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
            true => 0,
            false => found.get(row).map_or(0, Vec::len),
        })
        .collect();
    let kept: Vec<Neighbour> =
        found.iter().zip(&lengths).flat_map(|(hits, length)| hits.iter().take(*length).copied()).collect();
    let offsets = OffsetBuffer::<i32>::from_lengths(lengths);
    let positions = Int64Array::from_iter_values(kept.iter().map(|hit| i64::from(hit.row) + 1));
    let scores = Float32Array::from_iter_values(kept.iter().map(|hit| hit.score));
    let items = StructArray::try_new(hit_fields(), vec![Arc::new(positions), Arc::new(scores)], None)?;
    Ok(Arc::new(ListArray::try_new(hit_item(), offsets, Arc::new(items), nulls)?))
}
