//! Rows as the fields of a CSV file: text is quoted here, and the writer quotes nothing.
//!
//! The writer underneath writes an absent value and an empty text alike. Here an empty text is `""` and an absent
//! value is nothing between two delimiters, as DuckDB and PostgreSQL write them. A sink that says
//! `csv: {null: ...}` marks what is absent by that text, and an empty text is nothing.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringViewBuilder};
use arrow::datatypes::DataType;
use datafusion::common::{Result, internal_err};
use datafusion::logical_expr::{
    ColumnarValue, Expr, LogicalPlan, LogicalPlanBuilder, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility, cast,
};
use rowmill_spec::CsvOptions;

/// Delimiters that numbers, dates and the like may hold; all other values are then text too.
const IN_VALUES: &[u8] = b"+-.: ";

/// `rows` with every column as the writer shall write it, except those in `folders`, which name folders.
///
/// # Errors
/// When the plan cannot be built.
pub(super) fn as_fields(rows: LogicalPlan, csv: &CsvOptions, folders: &[String]) -> Result<LogicalPlan> {
    let style =
        Style { delimiter: csv.delimiter, quote: csv.quote, comment: csv.comment, marks_empty: csv.null.is_none() };
    let function = ScalarUDF::new_from_impl(CsvField { style, signature: Signature::any(1, Volatility::Immutable) });
    let everything = csv.delimiter.is_ascii_alphanumeric() || IN_VALUES.contains(&csv.delimiter);
    let schema = Arc::clone(rows.schema());
    let columns: Vec<Expr> = schema
        .iter()
        .map(|(qualifier, field)| {
            let column = Expr::from((qualifier, field));
            if folders.contains(field.name()) {
                return column;
            }
            let mut header = field.name().clone();
            if style.must_quote(header.as_bytes()) {
                header = style.quoted(&header);
            }
            match everything || is_text(field.data_type()) {
                true => function.call(vec![cast(column, DataType::Utf8View)]).alias(header),
                false => column.alias(header),
            }
        })
        .collect();
    LogicalPlanBuilder::from(rows).project(columns)?.build()
}

fn is_text(kind: &DataType) -> bool {
    match kind {
        DataType::Dictionary(_, values) => is_text(values),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        _ => false,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Style {
    delimiter: u8,
    quote: u8,
    comment: Option<u8>,
    marks_empty: bool,
}

impl Style {
    fn must_quote(self, text: &[u8]) -> bool {
        match text.first() {
            None => self.marks_empty,
            Some(first) => {
                self.comment == Some(*first)
                    || memchr::memchr3(self.delimiter, self.quote, b'\n', text).is_some()
                    || memchr::memchr(b'\r', text).is_some()
            }
        }
    }

    fn quoted(self, text: &str) -> String {
        let quote = char::from(self.quote);
        let mut field = String::with_capacity(text.len() + 2);
        field.push(quote);
        for c in text.chars() {
            if c == quote {
                field.push(quote);
            }
            field.push(c);
        }
        field.push(quote);
        field
    }
}

/// `csv_field(text)`: the text as a field.
#[derive(Debug, PartialEq, Eq, Hash)]
struct CsvField {
    style: Style,
    signature: Signature,
}

impl ScalarUDFImpl for CsvField {
    fn name(&self) -> &str {
        "csv_field"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8View)
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [text] = arguments.args.as_slice() else { return internal_err!("csv_field takes one argument") };
        let text = text.to_array(arguments.number_rows)?;
        Ok(ColumnarValue::Array(fields(text, self.style)?))
    }
}

fn fields(array: ArrayRef, style: Style) -> Result<ArrayRef> {
    let Some(texts) = array.as_string_view_opt() else {
        return internal_err!("csv_field takes text, not {}", array.data_type());
    };
    if !texts.iter().flatten().any(|text| style.must_quote(text.as_bytes())) {
        return Ok(array);
    }
    let mut fields = StringViewBuilder::with_capacity(texts.len());
    for text in texts {
        match text {
            Some(text) if style.must_quote(text.as_bytes()) => fields.append_value(style.quoted(text)),
            text => fields.append_option(text),
        }
    }
    Ok(Arc::new(fields.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::StringViewArray;

    #[test]
    fn only_what_needs_quotes_gets_them() {
        let style = Style { delimiter: b';', quote: b'"', comment: Some(b'#'), marks_empty: true };
        let texts = [Some("plain"), Some(""), None, Some("a;b"), Some("say \"x\""), Some("two\nlines"), Some("#1")];
        let array: ArrayRef = Arc::new(StringViewArray::from_iter(texts));
        let written = fields(Arc::clone(&array), style).unwrap();
        let written: Vec<Option<&str>> = written.as_string_view().iter().collect();
        let expected = [
            Some("plain"),
            Some("\"\""),
            None,
            Some("\"a;b\""),
            Some("\"say \"\"x\"\"\""),
            Some("\"two\nlines\""),
            Some("\"#1\""),
        ];
        assert_eq!(written, expected);
        let marked = Style { marks_empty: false, ..style };
        assert_eq!(fields(array.slice(0, 3), marked).unwrap().as_string_view(), array.slice(0, 3).as_string_view());
    }
}
