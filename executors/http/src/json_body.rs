//! JSON bodies made from a JSON template: a string that is one `{column}` becomes the column's value with its type, a
//! string with columns inside stays a string. Values are always escaped, so no value can change the body's shape.

use arrow::array::ArrayRef;
use arrow::datatypes::FieldRef;
use arrow::json::writer::{EncoderOptions, NullableEncoder, make_encoder};
use serde_json::Value;

use crate::template::{Piece, Template};
use crate::values::Texts;

/// A piece of a JSON template.
#[derive(Debug, Clone, PartialEq)]
enum Part {
    /// JSON as it stands.
    Raw(Vec<u8>),
    /// The column's value as JSON.
    Typed(usize),
    /// A string with columns inside.
    Text(Template),
    /// Where the array of items goes.
    Items,
}

/// A JSON template, ready to be written row by row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct JsonTemplate(Vec<Part>);

/// The word that stands for the array of items in an envelope.
const ITEMS: &str = "{items}";

impl JsonTemplate {
    /// Compiles a template; columns that it names are added to `columns`. With `envelope`, the string `{items}` marks
    /// the place of the items and must stand there exactly once, and no column may be named.
    pub(crate) fn compile(value: &Value, columns: &mut Vec<String>, envelope: bool) -> Result<Self, String> {
        let mut compiler = Compiler { parts: Vec::new(), raw: Vec::new(), columns, envelope, items: 0, depth: 0 };
        compiler.value(value)?;
        compiler.flush();
        if envelope && compiler.items != 1 {
            return Err(format!("the envelope holds `\"{ITEMS}\"` {} times instead of once", compiler.items));
        }
        Ok(Self(compiler.parts))
    }

    /// The columns that are inserted with their types.
    pub(crate) fn typed_columns(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().filter_map(|part| if let Part::Typed(column) = part { Some(*column) } else { None })
    }

    /// The columns that are inserted as text.
    pub(crate) fn text_columns(&self) -> impl Iterator<Item = usize> + '_ {
        let pieces =
            self.0.iter().filter_map(|part| if let Part::Text(template) = part { Some(&template.0) } else { None });
        pieces.flatten().filter_map(|piece| if let Piece::Column(column) = piece { Some(*column) } else { None })
    }

    /// Writes one row.
    pub(crate) fn write(&self, row: usize, source: &mut JsonSource<'_>, scratch: &mut Vec<u8>, out: &mut Vec<u8>) {
        for part in &self.0 {
            match part {
                Part::Raw(raw) => out.extend_from_slice(raw),
                Part::Typed(column) => source.value(*column, row, out),
                Part::Text(template) => {
                    let mut text = Vec::new();
                    // Plain text refuses nothing.
                    let _ = template.write(source.texts, row, crate::template::Place::Body, scratch, &mut text);
                    string(&String::from_utf8_lossy(&text), out);
                }
                Part::Items => {}
            }
        }
    }

    /// Writes an envelope around the items that `items` writes.
    pub(crate) fn write_envelope(&self, out: &mut Vec<u8>, items: impl FnOnce(&mut Vec<u8>)) {
        let mut items = Some(items);
        for part in &self.0 {
            match part {
                Part::Raw(raw) => out.extend_from_slice(raw),
                Part::Items => {
                    if let Some(items) = items.take() {
                        items(out);
                    }
                }
                Part::Typed(_) | Part::Text(_) => {}
            }
        }
    }
}

fn string(text: &str, out: &mut Vec<u8>) {
    // Writing to a Vec cannot fail, and a string always has a JSON form.
    let _ = serde_json::to_writer(out, text);
}

struct Compiler<'a> {
    parts: Vec<Part>,
    raw: Vec<u8>,
    columns: &'a mut Vec<String>,
    envelope: bool,
    items: usize,
    depth: usize,
}

impl Compiler<'_> {
    fn flush(&mut self) {
        if !self.raw.is_empty() {
            self.parts.push(Part::Raw(std::mem::take(&mut self.raw)));
        }
    }

    fn part(&mut self, part: Part) {
        self.flush();
        self.parts.push(part);
    }

    fn value(&mut self, value: &Value) -> Result<(), String> {
        if self.depth > 64 {
            return Err("the JSON template is nested deeper than 64 levels".to_owned());
        }
        match value {
            Value::String(text) if self.envelope => {
                if text == ITEMS {
                    self.items += 1;
                    self.part(Part::Items);
                } else {
                    string(text, &mut self.raw);
                }
            }
            Value::String(text) => {
                let template = Template::parse(text, self.columns)?;
                if let Some(column) = template.only_column() {
                    self.part(Part::Typed(column));
                } else if template.is_constant() {
                    let plain: String = template
                        .0
                        .iter()
                        .map(|piece| if let Piece::Text(text) = piece { text.as_str() } else { "" })
                        .collect();
                    string(&plain, &mut self.raw);
                } else {
                    self.part(Part::Text(template));
                }
            }
            Value::Array(values) => {
                self.depth += 1;
                self.raw.push(b'[');
                for (index, value) in values.iter().enumerate() {
                    if index > 0 {
                        self.raw.push(b',');
                    }
                    self.value(value)?;
                }
                self.raw.push(b']');
                self.depth -= 1;
            }
            Value::Object(fields) => {
                self.depth += 1;
                self.raw.push(b'{');
                for (index, (key, value)) in fields.iter().enumerate() {
                    if index > 0 {
                        self.raw.push(b',');
                    }
                    string(key, &mut self.raw);
                    self.raw.push(b':');
                    self.value(value)?;
                }
                self.raw.push(b'}');
                self.depth -= 1;
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => self.raw.extend_from_slice(value.to_string().as_bytes()),
        }
        Ok(())
    }
}

/// Where values come from: one batch's columns as text, and as JSON for those that are inserted with their types.
pub(crate) struct JsonSource<'a> {
    pub(crate) texts: &'a [Texts<'a>],
    encoders: Vec<Option<NullableEncoder<'a>>>,
}

impl<'a> JsonSource<'a> {
    pub(crate) fn try_new(
        texts: &'a [Texts<'a>],
        columns: &'a [ArrayRef],
        fields: &'a [FieldRef],
        typed: impl Iterator<Item = usize>,
        options: &'a EncoderOptions,
    ) -> Result<Self, arrow::error::ArrowError> {
        let mut encoders: Vec<_> = columns.iter().map(|_| None).collect();
        for column in typed {
            // Strings and small numbers are written directly; only the rest needs an encoder.
            let direct = matches!(
                texts[column],
                Texts::Utf8(_)
                    | Texts::LargeUtf8(_)
                    | Texts::Utf8View(_)
                    | Texts::Int32(_)
                    | Texts::Int64(_)
                    | Texts::Boolean(_)
            );
            if !direct && encoders[column].is_none() {
                encoders[column] = Some(make_encoder(&fields[column], columns[column].as_ref(), options)?);
            }
        }
        Ok(Self { texts, encoders })
    }

    /// Writes one value as JSON.
    pub(crate) fn value(&mut self, column: usize, row: usize, out: &mut Vec<u8>) {
        if let Some(encoder) = &mut self.encoders[column] {
            if encoder.is_null(row) {
                out.extend_from_slice(b"null");
            } else {
                encoder.encode(row, out);
            }
            return;
        }
        match &self.texts[column] {
            text if text.is_null(row) => out.extend_from_slice(b"null"),
            Texts::Utf8(array) => string(array.value(row), out),
            Texts::LargeUtf8(array) => string(array.value(row), out),
            Texts::Utf8View(array) => string(array.value(row), out),
            number => number.with(row, &mut Vec::new(), |text| out.extend_from_slice(text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Float64Array, Int64Array, StringArray};
    use arrow::datatypes::{DataType, Field};
    use serde_json::json;
    use std::sync::Arc;

    #[test]
    fn values_go_in_with_their_types_and_cannot_break_out() {
        let mut names = Vec::new();
        let template =
            json!({"id": "{id}", "note": "for {name}!", "x": ["{x}", 1, null], "{{k}}": "{{v}}", "n": "{name}"});
        let template = JsonTemplate::compile(&template, &mut names, false).unwrap();
        assert_eq!(names, ["id", "name", "x"]);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from(vec![Some(7), None])),
            Arc::new(StringArray::from(vec!["a\",\"admin\":true,\"\u{7}", "b"])),
            Arc::new(Float64Array::from(vec![1.5, f64::NAN])),
        ];
        let fields: Vec<FieldRef> =
            columns.iter().map(|c| Arc::new(Field::new("c", c.data_type().clone(), true))).collect();
        let texts: Vec<_> = columns.iter().map(|c| Texts::new(c).unwrap()).collect();
        let options = EncoderOptions::default();
        let mut source = JsonSource::try_new(&texts, &columns, &fields, template.typed_columns(), &options).unwrap();
        let mut write = |row| {
            let mut out = Vec::new();
            template.write(row, &mut source, &mut Vec::new(), &mut out);
            serde_json::from_slice::<Value>(&out).unwrap()
        };
        let name = "a\",\"admin\":true,\"\u{7}";
        let expected = json!({"id": 7, "note": format!("for {name}!"), "x": [1.5, 1, null], "{{k}}": "{v}", "n": name});
        assert_eq!(write(0), expected);
        assert_eq!(write(1)["id"], Value::Null);
        assert_eq!(write(1)["x"][0], Value::Null);
        assert_eq!(fields[0].data_type(), &DataType::Int64);
    }

    #[test]
    fn an_envelope_has_one_place_for_items() {
        let envelope = json!({"model": "m", "inputs": "{items}"});
        let template = JsonTemplate::compile(&envelope, &mut vec![], true).unwrap();
        let mut out = Vec::new();
        template.write_envelope(&mut out, |out| out.extend_from_slice(b"[1,2]"));
        assert_eq!(out, br#"{"model":"m","inputs":[1,2]}"#);
        assert!(JsonTemplate::compile(&json!({}), &mut vec![], true).unwrap_err().contains("0 times"));
    }
}
