//! Columns as tensors and back. The first dimension of every tensor is the item.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray as _, BooleanArray, Float32Array, GenericListArray, ListArray, OffsetSizeTrait,
    PrimitiveArray, RecordBatch, StringArray,
};
use arrow::buffer::OffsetBuffer;
use arrow::compute::cast;
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Field, FieldRef, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use half::{bf16, f16};
use ort::value::{DynValue, Outlet, Tensor, TensorElementType as Element, ValueType};

/// The type of a tensor's elements as columns have it: numbers of 16 bits, which few queries can work with, as `Float32`,
/// which holds them all.
///
/// # Errors
/// For types that no column has.
fn arrow_type(element: Element) -> Result<DataType, String> {
    Ok(match element {
        Element::Float32 | Element::Float16 | Element::Bfloat16 => DataType::Float32,
        Element::Float64 => DataType::Float64,
        Element::Int8 => DataType::Int8,
        Element::Int16 => DataType::Int16,
        Element::Int32 => DataType::Int32,
        Element::Int64 => DataType::Int64,
        Element::Uint8 => DataType::UInt8,
        Element::Uint16 => DataType::UInt16,
        Element::Uint32 => DataType::UInt32,
        Element::Uint64 => DataType::UInt64,
        Element::Bool => DataType::Boolean,
        Element::String => DataType::Utf8,
        other => return Err(format!("elements of type {other} have no column type; cast them within the model")),
    })
}

/// An input or output of the model.
#[derive(Debug, Clone)]
pub(crate) struct Port {
    pub(crate) name: String,
    element: Element,
    item: DataType,
    /// Dimensions; -1 where any size will do.
    dims: Vec<i64>,
}

impl Port {
    /// # Errors
    /// For what is no tensor, or a tensor without a dimension for the items.
    pub(crate) fn try_new(outlet: &Outlet, what: &str) -> Result<Self, String> {
        let name = outlet.name().to_owned();
        let ValueType::Tensor { ty, shape, .. } = outlet.dtype() else {
            return Err(format!(
                "{what} `{name}` is no tensor; a model from scikit-learn is exported without `zipmap`"
            ));
        };
        let item = arrow_type(*ty).map_err(|error| format!("{what} `{name}`: {error}"))?;
        if shape.is_empty() {
            return Err(format!("{what} `{name}` is a single value, with no dimension for the items"));
        }
        Ok(Self { name, element: *ty, item, dims: shape.to_vec() })
    }

    /// Items that the model takes at once; `None` where it takes any number.
    pub(crate) fn items(&self) -> Option<usize> {
        usize::try_from(self.dims[0]).ok().filter(|items| *items > 0)
    }

    /// Numbers of one item, where they are known.
    fn width(&self) -> Option<usize> {
        self.dims[1..].iter().try_fold(1_usize, |width, dim| Some(width * usize::try_from(*dim).ok()?))
    }

    /// The column that the port gives.
    pub(crate) fn column_type(&self) -> DataType {
        match self.width() {
            Some(1) => self.item.clone(),
            _ => DataType::List(self.list_item()),
        }
    }

    fn list_item(&self) -> FieldRef {
        Arc::new(Field::new_list_field(self.item.clone(), true))
    }

    /// Whether columns of these types can be fed to the port.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn check(&self, fields: &[FieldRef]) -> Result<(), String> {
        let lists = fields.iter().filter(|field| item_of(field.data_type()).is_some()).count();
        for field in fields {
            let data_type = item_of(field.data_type()).unwrap_or(field.data_type());
            let fits = match self.item {
                DataType::Utf8 => data_type.is_string(),
                DataType::Boolean => *data_type == DataType::Boolean,
                // What stands behind the point would be lost without a word.
                _ if self.item.is_integer() => data_type.is_integer() || *data_type == DataType::Boolean,
                _ => data_type.is_numeric() || *data_type == DataType::Boolean,
            };
            if !fits {
                return Err(format!(
                    "column `{}` is {}, and input `{}` takes {}",
                    field.name(),
                    field.data_type(),
                    self.name,
                    self.item
                ));
            }
        }
        if lists > 0 && fields.len() > 1 {
            return Err(format!("input `{}` takes one list, or columns that are no lists", self.name));
        }
        match self.width() {
            Some(width) if lists == 0 && width != fields.len() => Err(format!(
                "input `{}` takes {width} numbers for an item, and gets {} columns",
                self.name,
                fields.len()
            )),
            None if self.dims.len() > 2 => Err(format!("input `{}` has several dimensions of any size", self.name)),
            _ => Ok(()),
        }
    }

    /// The tensor's dimensions for `items` items of `width` numbers.
    fn shape(&self, items: usize, width: usize) -> Vec<i64> {
        let size = |size: usize| i64::try_from(size).unwrap_or(i64::MAX);
        let mut shape = vec![size(items)];
        if self.dims.len() == 2 {
            shape.push(size(width));
        } else {
            shape.extend_from_slice(&self.dims[1..]);
        }
        shape
    }

    /// The rows of `columns` as one tensor. Rows with a null anywhere were taken out before.
    ///
    /// # Errors
    /// When a list has not the numbers that the model takes, or a value does not fit.
    pub(crate) fn tensor(&self, columns: &[ArrayRef]) -> Result<DynValue, String> {
        let items = columns.first().map_or(0, |column| column.len());
        let mut width = columns.len();
        let mut parts = Vec::with_capacity(columns.len());
        for column in columns {
            let flat = match column.data_type() {
                DataType::List(_) => flat(column.as_list::<i32>(), &mut width)?,
                DataType::LargeList(_) => flat(column.as_list::<i64>(), &mut width)?,
                DataType::FixedSizeList(item, _) => {
                    let lists = cast(column, &DataType::List(Arc::clone(item))).map_err(|error| error.to_string())?;
                    flat(lists.as_list::<i32>(), &mut width)?
                }
                _ => Arc::clone(column),
            };
            parts.push(strict(&flat, &self.item)?);
        }
        if let Some(wanted) = self.width().filter(|wanted| *wanted != width) {
            return Err(format!("input `{}` takes {wanted} numbers for an item, and got {width}", self.name));
        }
        let shape = self.shape(items, width);
        macro_rules! numbers {
            ($type:ty) => {{
                let parts: Vec<_> = parts.iter().map(|part| part.as_primitive::<$type>().values()).collect();
                let values = interleaved(items, &parts.iter().map(|part| &part[..]).collect::<Vec<_>>());
                Tensor::from_array((shape, values)).map(|tensor| tensor.into_dyn())
            }};
        }
        macro_rules! halves {
            ($type:ty) => {{
                let half = |value: &f32| {
                    let half = <$type>::from_f32(*value);
                    let fits = half.is_finite() || !value.is_finite();
                    fits.then_some(half).ok_or_else(|| too_large(*value, stringify!($type)))
                };
                let halves = |part: &ArrayRef| part.as_primitive::<Float32Type>().values().iter().map(half).collect();
                let parts = parts.iter().map(halves).collect::<Result<Vec<Vec<$type>>, String>>()?;
                let values = interleaved(items, &parts.iter().map(Vec::as_slice).collect::<Vec<_>>());
                Tensor::from_array((shape, values)).map(|tensor| tensor.into_dyn())
            }};
        }
        let tensor = match self.element {
            Element::Float16 => halves!(f16),
            Element::Bfloat16 => halves!(bf16),
            Element::Float32 => numbers!(Float32Type),
            Element::Float64 => numbers!(Float64Type),
            Element::Int8 => numbers!(Int8Type),
            Element::Int16 => numbers!(Int16Type),
            Element::Int32 => numbers!(Int32Type),
            Element::Int64 => numbers!(Int64Type),
            Element::Uint8 => numbers!(UInt8Type),
            Element::Uint16 => numbers!(UInt16Type),
            Element::Uint32 => numbers!(UInt32Type),
            Element::Uint64 => numbers!(UInt64Type),
            Element::Bool => {
                let parts: Vec<Vec<bool>> =
                    parts.iter().map(|part| part.as_boolean().values().iter().collect()).collect();
                let values = interleaved(items, &parts.iter().map(Vec::as_slice).collect::<Vec<_>>());
                Tensor::from_array((shape, values)).map(|tensor| tensor.into_dyn())
            }
            _ => {
                let texts = |part: &ArrayRef| -> Vec<String> {
                    part.as_string::<i32>().iter().map(|text| text.unwrap_or_default().to_owned()).collect()
                };
                let parts: Vec<Vec<String>> = parts.iter().map(texts).collect();
                let values = interleaved(items, &parts.iter().map(Vec::as_slice).collect::<Vec<_>>());
                Tensor::from_string_array((shape, values.as_slice())).map(|tensor| tensor.into_dyn())
            }
        };
        tensor.map_err(|error| error.to_string())
    }

    /// What the model answered, as a column of `items` rows.
    ///
    /// # Errors
    /// When the answer has not a row for each item.
    pub(crate) fn column(&self, value: &DynValue, items: usize) -> Result<ArrayRef, String> {
        macro_rules! numbers {
            ($type:ty) => {{
                let (shape, values) = value
                    .try_extract_tensor::<<$type as ArrowPrimitiveType>::Native>()
                    .map_err(|error| error.to_string())?;
                (
                    shape.to_vec(),
                    Arc::new(PrimitiveArray::<$type>::from_iter_values(values.iter().copied())) as ArrayRef,
                )
            }};
        }
        macro_rules! halves {
            ($type:ty) => {{
                let (shape, values) = value.try_extract_tensor::<$type>().map_err(|error| error.to_string())?;
                let values = Float32Array::from_iter_values(values.iter().map(|value| value.to_f32()));
                (shape.to_vec(), Arc::new(values) as ArrayRef)
            }};
        }
        let (shape, values) = match self.element {
            Element::Float16 => halves!(f16),
            Element::Bfloat16 => halves!(bf16),
            Element::Float32 => numbers!(Float32Type),
            Element::Float64 => numbers!(Float64Type),
            Element::Int8 => numbers!(Int8Type),
            Element::Int16 => numbers!(Int16Type),
            Element::Int32 => numbers!(Int32Type),
            Element::Int64 => numbers!(Int64Type),
            Element::Uint8 => numbers!(UInt8Type),
            Element::Uint16 => numbers!(UInt16Type),
            Element::Uint32 => numbers!(UInt32Type),
            Element::Uint64 => numbers!(UInt64Type),
            Element::Bool => {
                let (shape, values) = value.try_extract_tensor::<bool>().map_err(|error| error.to_string())?;
                (shape.to_vec(), Arc::new(BooleanArray::from(values.to_vec())) as ArrayRef)
            }
            _ => {
                let (shape, values) = value.try_extract_strings().map_err(|error| error.to_string())?;
                (shape.to_vec(), Arc::new(StringArray::from(values)) as ArrayRef)
            }
        };
        let rows = shape.first().and_then(|rows| usize::try_from(*rows).ok()).unwrap_or(0);
        if rows != items || values.len() % items.max(1) != 0 {
            return Err(format!("output `{}` has {rows} rows for {items} items", self.name));
        }
        let width = values.len().checked_div(items).unwrap_or(0);
        match self.width() {
            Some(1) if width == 1 || items == 0 => Ok(values),
            Some(1) => Err(format!("output `{}` has {width} values for an item, and promised one", self.name)),
            _ => {
                let offsets = OffsetBuffer::from_lengths(std::iter::repeat_n(width, items));
                let list = ListArray::try_new(self.list_item(), offsets, values, None);
                list.map(|list| Arc::new(list) as ArrayRef).map_err(|error| error.to_string())
            }
        }
    }
}

fn item_of(data_type: &DataType) -> Option<&DataType> {
    match data_type {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => Some(item.data_type()),
        _ => None,
    }
}

/// Values of one type; a value that does not fit is an error and never another value. Fractions are rounded.
fn strict(array: &ArrayRef, to: &DataType) -> Result<ArrayRef, String> {
    let options = arrow::compute::CastOptions { safe: false, ..Default::default() };
    let from = match array.data_type() {
        DataType::Boolean if to.is_numeric() => cast(array, &DataType::UInt8).map_err(|error| error.to_string())?,
        _ => Arc::clone(array),
    };
    if let (DataType::Float64, DataType::Float32) = (from.data_type(), to) {
        // Arrow would make an infinity of it.
        let large = |value: &&f64| value.is_finite() && !(**value as f32).is_finite();
        if let Some(value) = from.as_primitive::<Float64Type>().values().iter().find(large) {
            return Err(too_large(*value, "f32"));
        }
    }
    arrow::compute::cast_with_options(&from, to, &options).map_err(|error| error.to_string())
}

fn too_large(value: impl std::fmt::Display, of: &str) -> String {
    format!("{value} is too large for the model's numbers ({of})")
}

/// The items of lists that all have one length, which `width` becomes.
fn flat<O: OffsetSizeTrait>(lists: &GenericListArray<O>, width: &mut usize) -> Result<ArrayRef, String> {
    let length = |row: usize| lists.value_length(row).as_usize();
    *width = if lists.is_empty() { 1 } else { length(0) };
    if let Some(row) = (0..lists.len()).find(|row| length(*row) != *width) {
        return Err(format!("lists of {width} and of {} values in one group; they have one length", length(row)));
    }
    let from = lists.value_offsets().first().map_or(0, |from| from.as_usize());
    Ok(lists.values().slice(from, lists.len() * *width))
}

/// Parts that stand beside each other in every row; one part is already in order.
fn interleaved<T: Clone>(items: usize, parts: &[&[T]]) -> Vec<T> {
    match parts {
        [one] => one.to_vec(),
        parts => (0..items).flat_map(|item| parts.iter().map(move |part| part[item].clone())).collect(),
    }
}

/// Whether a row has a null in one of the columns, or in a list of one of them: the column's position.
pub(crate) fn null_in(columns: &RecordBatch, row: usize) -> Option<usize> {
    fn holed(array: &ArrayRef, row: usize) -> bool {
        array.is_null(row)
            || match array.data_type() {
                DataType::List(_) => array.as_list::<i32>().value(row).null_count() > 0,
                DataType::LargeList(_) => array.as_list::<i64>().value(row).null_count() > 0,
                DataType::FixedSizeList(..) => array.as_fixed_size_list().value(row).null_count() > 0,
                _ => false,
            }
    }
    columns.columns().iter().position(|column| holed(column, row))
}

/// Whether any row may have one: what [`null_in`] would look for row by row.
pub(crate) fn has_nulls(columns: &RecordBatch) -> bool {
    columns.columns().iter().any(|column| {
        column.null_count() > 0
            || match column.data_type() {
                DataType::List(_) => column.as_list::<i32>().values().null_count() > 0,
                DataType::LargeList(_) => column.as_list::<i64>().values().null_count() > 0,
                DataType::FixedSizeList(..) => column.as_fixed_size_list().values().null_count() > 0,
                _ => false,
            }
    })
}
