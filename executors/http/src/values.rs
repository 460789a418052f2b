//! Column values as text, without allocating for the types that matter.

use std::io::Write as _;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, LargeStringArray, PrimitiveArray, StringArray, StringViewArray,
};
use arrow::datatypes::{DataType, Int32Type, Int64Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};

/// One column of a batch, ready to be written as text.
pub(crate) enum Texts<'a> {
    Utf8(&'a StringArray),
    LargeUtf8(&'a LargeStringArray),
    Utf8View(&'a StringViewArray),
    Int32(&'a PrimitiveArray<Int32Type>),
    Int64(&'a PrimitiveArray<Int64Type>),
    Boolean(&'a BooleanArray),
    Other(&'a ArrayRef, ArrayFormatter<'a>),
}

/// Dates and times as RFC 3339; a NULL never gets here.
fn format_options() -> FormatOptions<'static> {
    FormatOptions::new().with_display_error(false)
}

/// Whether values of this type have a text that can stand in a path, a query, a header or a text body.
pub(crate) fn has_text(data_type: &DataType) -> bool {
    match data_type {
        DataType::Dictionary(_, value) => has_text(value),
        other => {
            other.is_numeric()
                || other.is_temporal()
                || matches!(
                    other,
                    DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Boolean | DataType::Null
                )
        }
    }
}

impl<'a> Texts<'a> {
    /// The text view of a column whose type [`has_text`].
    pub(crate) fn new(array: &'a ArrayRef) -> Result<Self, arrow::error::ArrowError> {
        Ok(match array.data_type() {
            DataType::Utf8 => Self::Utf8(array.as_string()),
            DataType::LargeUtf8 => Self::LargeUtf8(array.as_string()),
            DataType::Utf8View => Self::Utf8View(array.as_string_view()),
            DataType::Int32 => Self::Int32(array.as_primitive()),
            DataType::Int64 => Self::Int64(array.as_primitive()),
            DataType::Boolean => Self::Boolean(array.as_boolean()),
            _ => Self::Other(array, ArrayFormatter::try_new(array.as_ref(), &OPTIONS)?),
        })
    }

    /// Whether the row is NULL.
    pub(crate) fn is_null(&self, row: usize) -> bool {
        match self {
            Self::Utf8(array) => array.is_null(row),
            Self::LargeUtf8(array) => array.is_null(row),
            Self::Utf8View(array) => array.is_null(row),
            Self::Int32(array) => array.is_null(row),
            Self::Int64(array) => array.is_null(row),
            Self::Boolean(array) => array.is_null(row),
            // A dictionary may point at a NULL among its values.
            Self::Other(array, _) => {
                array.is_null(row) || array.logical_nulls().is_some_and(|nulls| nulls.is_null(row))
            }
        }
    }

    /// Calls `with` with the row's text; NULL is the empty text.
    pub(crate) fn with<T>(&self, row: usize, scratch: &mut Vec<u8>, with: impl FnOnce(&[u8]) -> T) -> T {
        scratch.clear();
        match self {
            _ if self.is_null(row) => with(b""),
            Self::Utf8(array) => with(array.value(row).as_bytes()),
            Self::LargeUtf8(array) => with(array.value(row).as_bytes()),
            Self::Utf8View(array) => with(array.value(row).as_bytes()),
            // Writing to a Vec cannot fail.
            Self::Int32(array) => {
                let _ = write!(scratch, "{}", array.value(row));
                with(scratch)
            }
            Self::Int64(array) => {
                let _ = write!(scratch, "{}", array.value(row));
                with(scratch)
            }
            Self::Boolean(array) => with(if array.value(row) { b"true" } else { b"false" }),
            Self::Other(_, formatter) => {
                let _ = write!(scratch, "{}", formatter.value(row));
                with(scratch)
            }
        }
    }
}

static OPTIONS: std::sync::LazyLock<FormatOptions<'static>> = std::sync::LazyLock::new(format_options);

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{DictionaryArray, Float64Array, TimestampMicrosecondArray};
    use std::sync::Arc;

    fn texts(array: ArrayRef) -> Vec<String> {
        let view = Texts::new(&array).unwrap();
        let mut scratch = Vec::new();
        (0..array.len()).map(|row| view.with(row, &mut scratch, |t| String::from_utf8(t.to_vec()).unwrap())).collect()
    }

    #[test]
    fn values_read_as_a_person_writes_them() {
        assert_eq!(texts(Arc::new(StringArray::from(vec![Some("a"), None]))), ["a", ""]);
        assert_eq!(texts(Arc::new(Float64Array::from(vec![1.5, -0.25]))), ["1.5", "-0.25"]);
        let time = TimestampMicrosecondArray::from(vec![1_000_000]).with_timezone("UTC");
        assert_eq!(texts(Arc::new(time)), ["1970-01-01T00:00:01Z"]);
        let dictionary: DictionaryArray<Int32Type> = vec![Some("x"), None, Some("x")].into_iter().collect();
        assert_eq!(texts(Arc::new(dictionary)), ["x", "", "x"]);
        assert!(!has_text(&DataType::Binary));
    }
}
