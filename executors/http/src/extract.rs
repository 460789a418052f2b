//! Answers into columns. Values must have the declared type: a number is not taken for a text or the other way round,
//! except that a text column takes any JSON as its text, and dates, times and decimals are read from text or numbers.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryBuilder, BooleanArray, BooleanBuilder, Float64Builder, Int32Builder, Int64Builder,
    RecordBatch, StringBuilder, new_null_array,
};
use arrow::compute::{CastOptions, cast_with_options, concat, filter_record_batch};
use arrow::datatypes::{DataType, Field, FieldRef, SchemaRef};
use arrow::json::ReaderBuilder;
use reqwest::header::{HeaderMap, HeaderName};
use rowmill_step::json_fits;
use serde_json::Value;

use crate::options::{OptionsError, ResponseColumn, Source};
use crate::pointer::Pointer;

/// Where a column comes from, compiled.
#[derive(Debug, Clone)]
enum From {
    Json(Pointer, String),
    Body,
    Status,
    Header(HeaderName),
}

/// Reads answers into columns.
#[derive(Debug, Clone)]
pub(crate) struct Extractor {
    columns: Vec<(From, FieldRef)>,
    needs_json: bool,
}

/// One item's answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answer<'a> {
    /// The JSON of the answer, or of the item's element of it; `None` if there is nothing for the item.
    pub(crate) json: Option<&'a Value>,
    pub(crate) body: &'a [u8],
    pub(crate) status: u16,
    pub(crate) headers: &'a HeaderMap,
    /// There is nothing for the item: every column but the status is NULL.
    pub(crate) absent: bool,
}

/// How values of a type are gathered.
enum Builder {
    Utf8(StringBuilder),
    Int64(Int64Builder),
    Int32(Int32Builder),
    Float64(Float64Builder),
    Boolean(BooleanBuilder),
    Binary(BinaryBuilder),
    /// Scalars whose type reads them from text.
    Cast(StringBuilder),
    /// Lists, structs, maps: each value read by itself.
    Nested(Vec<ArrayRef>),
}

/// What an item's answer lacks.
type Fault = String;

impl Extractor {
    pub(crate) fn compile(columns: &[ResponseColumn]) -> Result<Self, OptionsError> {
        let mut compiled = Vec::new();
        for column in columns {
            let wrong = |message: String| OptionsError { option: "response", message };
            let data_type = &column.data_type;
            let fits = match &column.source {
                Source::Status => matches!(data_type, DataType::Int32 | DataType::Int64 | DataType::UInt16),
                Source::Body => matches!(data_type, DataType::Utf8 | DataType::Binary),
                Source::Header(_) => *data_type == DataType::Utf8,
                Source::Json(_) => json_type_fits(data_type),
            };
            if !fits {
                return Err(wrong(format!("column `{}` cannot have the type {data_type}", column.name)));
            }
            let from = match &column.source {
                Source::Json(pointer) => From::Json(Pointer::parse("response", pointer)?, pointer.clone()),
                Source::Body => From::Body,
                Source::Status => From::Status,
                Source::Header(name) => From::Header(
                    HeaderName::from_bytes(name.as_bytes())
                        .map_err(|_| wrong(format!("`{}` is not a header's name", name.escape_debug())))?,
                ),
            };
            compiled.push((from, Arc::new(Field::new(&column.name, data_type.clone(), column.nullable))));
        }
        let needs_json = compiled.iter().any(|(from, _)| matches!(from, From::Json(..)));
        Ok(Self { columns: compiled, needs_json })
    }

    /// Whether any column is read from JSON.
    pub(crate) fn needs_json(&self) -> bool {
        self.needs_json
    }

    /// The columns of the answers that can be read, in order, and what is wrong with the others, by index.
    pub(crate) fn read<'a>(
        &self,
        answers: impl ExactSizeIterator<Item = Answer<'a>>,
        output: &SchemaRef,
    ) -> Result<(RecordBatch, Vec<(u32, Fault)>), arrow::error::ArrowError> {
        let rows = answers.len();
        let mut builders: Vec<_> = self.columns.iter().map(|(_, field)| Builder::new(field, rows)).collect();
        let mut faults: Vec<(u32, Fault)> = Vec::new();
        for (row, answer) in answers.enumerate() {
            let mut fault = None;
            for ((from, field), builder) in self.columns.iter().zip(&mut builders) {
                let pushed = push(from, field, builder, &answer);
                if let Err(message) = pushed {
                    builder.null(field);
                    fault.get_or_insert_with(|| format!("column `{}`: {message}", field.name()));
                }
            }
            if let Some(fault) = fault {
                faults.push((row as u32, fault));
            }
        }
        let mut columns = Vec::with_capacity(builders.len());
        for ((_, field), builder) in self.columns.iter().zip(builders) {
            columns.push(builder.finish(field, rows, &mut faults)?);
        }
        if faults.is_empty() {
            let batch = RecordBatch::try_new(output.clone(), columns)?;
            return Ok((batch, faults));
        }
        faults.sort_by_key(|(row, _)| *row);
        faults.dedup_by_key(|(row, _)| *row);
        // Rows that failed hold NULLs where there may be none, so they go before the schema is looked at.
        let nullable: Vec<_> = output.fields().iter().map(|f| f.as_ref().clone().with_nullable(true)).collect();
        let all = RecordBatch::try_new(Arc::new(arrow::datatypes::Schema::new(nullable)), columns)?;
        let keep: BooleanArray =
            (0..rows as u32).map(|row| Some(faults.binary_search_by_key(&row, |(row, _)| *row).is_err())).collect();
        let kept = filter_record_batch(&all, &keep)?;
        Ok((RecordBatch::try_new(output.clone(), kept.columns().to_vec())?, faults))
    }
}

fn json_type_fits(data_type: &DataType) -> bool {
    use DataType::{Dictionary, Interval, Null, RunEndEncoded, Union};
    match data_type {
        Null | Union(..) | RunEndEncoded(..) | Dictionary(..) | Interval(_) => false,
        DataType::Duration(_) | DataType::LargeBinary | DataType::FixedSizeBinary(_) | DataType::BinaryView => false,
        DataType::Binary => false,
        DataType::List(field) | DataType::LargeList(field) | DataType::FixedSizeList(field, _) => {
            json_type_fits(field.data_type())
        }
        DataType::Struct(fields) => fields.iter().all(|field| json_type_fits(field.data_type())),
        _ => true,
    }
}

fn push(from: &From, field: &Field, builder: &mut Builder, answer: &Answer<'_>) -> Result<(), Fault> {
    match from {
        From::Status => builder.integer(i64::from(answer.status)),
        _ if answer.absent => {
            builder.null(field);
            Ok(())
        }
        From::Json(pointer, text) => {
            let value = answer.json.and_then(|json| pointer.find(json)).filter(|value| !value.is_null());
            match value {
                None if field.is_nullable() => {
                    builder.null(field);
                    Ok(())
                }
                None => Err(format!("the answer has nothing at `{text}`")),
                Some(value) => builder
                    .value(value, field)
                    .map_err(|what| format!("the answer has {} at `{text}`, which is not {what}", excerpt(value))),
            }
        }
        From::Body => match builder {
            Builder::Binary(builder) => {
                builder.append_value(answer.body);
                Ok(())
            }
            Builder::Utf8(builder) => {
                builder.append_value(std::str::from_utf8(answer.body).map_err(|_| "the body is not UTF-8".to_owned())?);
                Ok(())
            }
            _ => Err("a body is text or bytes".to_owned()),
        },
        From::Header(name) => match (answer.headers.get(name), builder) {
            (Some(value), Builder::Utf8(builder)) => {
                builder.append_value(String::from_utf8_lossy(value.as_bytes()));
                Ok(())
            }
            (None, builder) if field.is_nullable() => {
                builder.null(field);
                Ok(())
            }
            _ => Err(format!("the answer has no header `{name}`")),
        },
    }
}

/// A short piece of a value for a message.
fn excerpt(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

impl Builder {
    fn new(field: &Field, rows: usize) -> Self {
        match field.data_type() {
            DataType::Utf8 => Self::Utf8(StringBuilder::with_capacity(rows, rows * 16)),
            DataType::Int64 => Self::Int64(Int64Builder::with_capacity(rows)),
            DataType::Int32 => Self::Int32(Int32Builder::with_capacity(rows)),
            DataType::Float64 => Self::Float64(Float64Builder::with_capacity(rows)),
            DataType::Boolean => Self::Boolean(BooleanBuilder::with_capacity(rows)),
            DataType::Binary => Self::Binary(BinaryBuilder::with_capacity(rows, rows * 64)),
            other if other.is_nested() => Self::Nested(Vec::with_capacity(rows)),
            _ => Self::Cast(StringBuilder::with_capacity(rows, rows * 16)),
        }
    }

    fn null(&mut self, field: &Field) {
        match self {
            Self::Utf8(builder) | Self::Cast(builder) => builder.append_null(),
            Self::Int64(builder) => builder.append_null(),
            Self::Int32(builder) => builder.append_null(),
            Self::Float64(builder) => builder.append_null(),
            Self::Boolean(builder) => builder.append_null(),
            Self::Binary(builder) => builder.append_null(),
            Self::Nested(values) => values.push(new_null_array(field.data_type(), 1)),
        }
    }

    fn integer(&mut self, value: i64) -> Result<(), Fault> {
        match self {
            Self::Int64(builder) => builder.append_value(value),
            Self::Int32(builder) => {
                builder.append_value(i32::try_from(value).map_err(|_| "a 32-bit integer".to_owned())?)
            }
            Self::Cast(builder) => builder.append_value(value.to_string()),
            _ => return Err("an integer".to_owned()),
        }
        Ok(())
    }

    /// Adds a value, or says what it should have been.
    fn value(&mut self, value: &Value, field: &Field) -> Result<(), Fault> {
        let not = |what: &str| Err(what.to_owned());
        match (self, value) {
            (Self::Utf8(builder), Value::String(text)) => builder.append_value(text),
            (Self::Utf8(builder), other) => builder.append_value(other.to_string()),
            (this @ (Self::Int64(_) | Self::Int32(_)), Value::Number(number)) => {
                // 5.0 is how some services write 5.
                let whole = number.as_i64().or_else(|| {
                    let float = number.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 9e15)?;
                    Some(float as i64)
                });
                return this.integer(whole.ok_or_else(|| "an integer that fits".to_owned())?);
            }
            (Self::Int64(_) | Self::Int32(_), _) => return not("an integer"),
            (Self::Float64(builder), Value::Number(number)) => match number.as_f64() {
                Some(float) => builder.append_value(float),
                None => return not("a number that fits"),
            },
            (Self::Float64(_), _) => return not("a number"),
            (Self::Boolean(builder), Value::Bool(value)) => builder.append_value(*value),
            (Self::Boolean(_), _) => return not("true or false"),
            (Self::Binary(_), _) => return not("bytes"),
            (Self::Cast(builder), Value::String(text)) => {
                if field.data_type().is_integer() {
                    return not("an integer");
                }
                builder.append_value(text);
            }
            (Self::Cast(builder), Value::Number(number)) => builder.append_value(number.to_string()),
            (Self::Cast(_), _) => return not("a value of its type"),
            (Self::Nested(values), value) => values.push(nested(value, field)?),
        }
        Ok(())
    }

    fn finish(
        self,
        field: &Field,
        rows: usize,
        faults: &mut Vec<(u32, Fault)>,
    ) -> Result<ArrayRef, arrow::error::ArrowError> {
        Ok(match self {
            Self::Utf8(mut builder) => Arc::new(builder.finish()),
            Self::Int64(mut builder) => Arc::new(builder.finish()),
            Self::Int32(mut builder) => Arc::new(builder.finish()),
            Self::Float64(mut builder) => Arc::new(builder.finish()),
            Self::Boolean(mut builder) => Arc::new(builder.finish()),
            Self::Binary(mut builder) => Arc::new(builder.finish()),
            Self::Cast(mut builder) => {
                let texts = builder.finish();
                let cast =
                    cast_with_options(&texts, field.data_type(), &CastOptions { safe: true, ..Default::default() })?;
                for row in (0..rows).filter(|row| texts.is_valid(*row) && cast.is_null(*row)) {
                    let value = excerpt(&Value::String(texts.value(row).to_owned()));
                    let fault = format!("column `{}`: {value} is not a {}", field.name(), field.data_type());
                    faults.push((row as u32, fault));
                }
                cast
            }
            Self::Nested(values) if values.is_empty() => arrow::array::new_empty_array(field.data_type()),
            Self::Nested(values) => {
                let arrays: Vec<_> = values.iter().map(AsRef::as_ref).collect();
                concat(&arrays)?
            }
        })
    }
}

/// One nested value, read by Arrow's own JSON reader.
fn nested(value: &Value, field: &Field) -> Result<ArrayRef, Fault> {
    let not = || format!("a {}", field.data_type());
    json_fits(value, field.data_type()).map_err(|_| not())?;
    let mut decoder =
        ReaderBuilder::new_with_field(field.clone().with_nullable(true)).build_decoder().map_err(|_| not())?;
    decoder.serialize(&[value]).map_err(|_| not())?;
    let batch = decoder.flush().map_err(|_| not())?.ok_or_else(not)?;
    Ok(batch.column(0).clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::AsArray;
    use arrow::datatypes::{Decimal128Type, Int64Type, Schema, TimeUnit, TimestampMillisecondType};
    use serde_json::json;

    fn read(columns: &[ResponseColumn], answers: &[Value]) -> (RecordBatch, Vec<(u32, Fault)>) {
        let fields: Vec<_> = columns.iter().map(|c| Field::new(&c.name, c.data_type.clone(), c.nullable)).collect();
        let headers = HeaderMap::new();
        let answer = |json| Answer { json: Some(json), body: b"", status: 200, headers: &headers, absent: false };
        Extractor::compile(columns).unwrap().read(answers.iter().map(answer), &Arc::new(Schema::new(fields))).unwrap()
    }

    #[test]
    fn values_get_their_types_and_wrong_ones_fail_alone() {
        let columns = [
            ResponseColumn::json("n", "/n", DataType::Int64),
            ResponseColumn { nullable: false, ..ResponseColumn::json("s", "/s", DataType::Utf8) },
        ];
        let answers = [
            json!({"n": 1, "s": "a"}),
            json!({"n": "1", "s": "b"}),
            json!({"n": 2}),
            json!({"n": null, "s": {"x": 1}}),
            json!({"n": 1.5, "s": "c"}),
            json!({"n": 4.0, "s": 7}),
        ];
        let (batch, faults) = read(&columns, &answers);
        assert_eq!(batch.column(0).as_primitive::<Int64Type>().iter().collect::<Vec<_>>(), [Some(1), None, Some(4)]);
        assert_eq!(batch.column(1).as_string::<i32>().iter().flatten().collect::<Vec<_>>(), ["a", "{\"x\":1}", "7"]);
        let rows: Vec<_> = faults.iter().map(|(row, _)| *row).collect();
        assert_eq!(rows, [1, 2, 4]);
        assert!(faults[0].1.contains("\"1\"") && faults[0].1.contains("an integer"), "{}", faults[0].1);
        assert!(faults[1].1.contains("nothing at `/s`"));
    }

    #[test]
    fn times_decimals_and_nested_values() {
        let list = DataType::List(Arc::new(Field::new("item", DataType::Int64, true)));
        let columns = [
            ResponseColumn::json("t", "/t", DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))),
            ResponseColumn::json("d", "/d", DataType::Decimal128(10, 2)),
            ResponseColumn::json("l", "/l", list),
        ];
        let answers = [
            json!({"t": "1970-01-01T00:00:01Z", "d": 12.5, "l": [1, 2]}),
            json!({"t": "soon", "d": "1", "l": []}),
            json!({"t": null, "d": null, "l": null}),
            json!({"t": null, "d": "x", "l": [1]}),
            json!({"t": null, "d": 1, "l": ["a"]}),
        ];
        let (batch, faults) = read(&columns, &answers);
        assert_eq!(faults.iter().map(|(row, _)| *row).collect::<Vec<_>>(), [1, 3, 4], "{faults:?}");
        assert_eq!(batch.column(0).as_primitive::<TimestampMillisecondType>().value(0), 1000);
        assert_eq!(batch.column(1).as_primitive::<Decimal128Type>().value(0), 1250);
        assert_eq!(batch.column(2).as_list::<i32>().value_length(0), 2);
        assert!(batch.column(2).is_null(1));
    }

    #[test]
    fn types_that_json_cannot_fill_are_refused() {
        for data_type in [DataType::Binary, DataType::Null, DataType::Duration(TimeUnit::Second)] {
            assert!(Extractor::compile(&[ResponseColumn::json("x", "", data_type)]).is_err());
        }
    }
}
