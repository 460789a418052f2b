//! The request of one item, or of many: address, headers and body out of columns.

use arrow::array::{Array as _, AsArray as _};
use arrow::datatypes::DataType;
use bytes::Bytes;
use reqwest::Url;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use rowmill_step::{Failure, FailureCode, ItemBatch, Sent};

use super::{HttpSession, texts};
use crate::json_body::JsonSource;
use crate::plan::{Body, ManyPlan, Plan};
use crate::template::{Place, Unfit};
use crate::values::Texts;

/// The longest URL that is sent; longer ones fail at servers in worse ways.
const MAX_URL_BYTES: usize = 64 << 10;

/// A request ready to go. Kept apart from the columns, which do not live across awaits.
pub(super) struct Ready {
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Option<Bytes>,
}

impl HttpSession {
    fn unfit(&self, unfit: Unfit) -> Failure {
        let column = |index: usize| self.plan.columns.get(index).map_or("?", String::as_str);
        let message = match unfit {
            Unfit::Missing(index) => format!("column `{}` is NULL or empty and stands in the path", column(index)),
            Unfit::DotSegment => "a segment of the path would be `.` or `..`".to_owned(),
            Unfit::Control(index) => {
                format!("column `{}` holds a control character and stands in a header", column(index))
            }
        };
        self.fail(FailureCode::BadInput, message).sent(Sent::Never)
    }

    /// Builds the request of one item, or with `many` of all of them.
    pub(super) fn build(
        &mut self,
        batch: &ItemBatch,
        rows: std::ops::Range<usize>,
        many: Option<&ManyPlan>,
    ) -> Result<Ready, Failure> {
        let plan = self.plan.clone();
        let columns = batch.columns.columns();
        let texts = texts(columns).map_err(|e| self.internal(&e))?;
        let row = rows.start;
        let mut url = std::mem::take(&mut self.url);
        let mut scratch = std::mem::take(&mut self.scratch);
        url.clear();
        url.extend_from_slice(self.client.base_text.as_bytes());
        let written = write_url(&plan, &texts, row, &mut scratch, &mut url);
        let parsed = match written {
            Err(unfit) => Err(self.unfit(unfit)),
            Ok(()) if url.len() > MAX_URL_BYTES => {
                Err(self.fail(FailureCode::TooLarge, "the address is longer than 64 KiB").sent(Sent::Never))
            }
            Ok(()) => std::str::from_utf8(&url)
                .ok()
                .and_then(|text| Url::parse(text).ok())
                // Encoding makes this impossible; it is checked all the same, since everything hangs on it.
                .filter(|parsed| parsed.origin() == self.client.base.origin() && parsed.username().is_empty())
                .ok_or_else(|| self.fail(FailureCode::BadInput, "the address is not valid").sent(Sent::Never)),
        };
        self.url = url;
        let parsed = parsed?;
        let mut headers = self.client.headers.clone();
        for (name, template) in &plan.headers {
            if template.has_null(&texts, row) {
                continue;
            }
            let mut value = Vec::new();
            template.write(&texts, row, Place::Header, &mut scratch, &mut value).map_err(|unfit| self.unfit(unfit))?;
            let value = HeaderValue::from_maybe_shared(Bytes::from(value)).map_err(|_| {
                self.fail(FailureCode::BadInput, format!("header `{name}` cannot hold this value")).sent(Sent::Never)
            })?;
            headers.insert(name.clone(), value);
        }
        if let Some(name) = &plan.key_header {
            let key = if many.is_some() { batch.keys.request_key() } else { batch.keys.key(row) };
            // Hexadecimal digits are always a header's value.
            if let Ok(value) = HeaderValue::from_bytes(&key.to_text()) {
                headers.insert(name.clone(), value);
            }
        }
        let body = self.build_body(&plan, &texts, batch, rows, many, &mut scratch, &mut headers)?;
        self.scratch = scratch;
        Ok(Ready { url: parsed, headers, body })
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one request, borrowed from one place")]
    fn build_body(
        &self,
        plan: &Plan,
        texts: &[Texts<'_>],
        batch: &ItemBatch,
        rows: std::ops::Range<usize>,
        many: Option<&ManyPlan>,
        scratch: &mut Vec<u8>,
        headers: &mut HeaderMap,
    ) -> Result<Option<Bytes>, Failure> {
        let row = rows.start;
        let mut body = Vec::new();
        match &plan.body {
            Body::None => return Ok(None),
            Body::Json(template) => {
                let columns = batch.columns.columns();
                let typed = template.typed_columns();
                let mut source = JsonSource::try_new(texts, columns, &self.fields, typed, &self.encoder_options)
                    .map_err(|e| self.internal(&e))?;
                match many {
                    None => template.write(row, &mut source, scratch, &mut body),
                    Some(many) => {
                        let mut items = |out: &mut Vec<u8>| {
                            out.push(b'[');
                            for (index, row) in rows.clone().enumerate() {
                                if index > 0 {
                                    out.push(b',');
                                }
                                template.write(row, &mut source, scratch, out);
                            }
                            out.push(b']');
                        };
                        match &many.envelope {
                            Some(envelope) => envelope.write_envelope(&mut body, items),
                            None => items(&mut body),
                        }
                    }
                }
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            }
            Body::Text(template, content_type) => {
                template.write(texts, row, Place::Body, scratch, &mut body).map_err(|unfit| self.unfit(unfit))?;
                headers.insert(CONTENT_TYPE, content_type.clone());
            }
            Body::Form(fields) => {
                for (name, template) in fields.iter().filter(|(_, template)| !template.has_null(texts, row)) {
                    if !body.is_empty() {
                        body.push(b'&');
                    }
                    body.extend_from_slice(name);
                    body.push(b'=');
                    template.write_query(texts, row, scratch, &mut body);
                }
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
            }
            Body::Column(column, content_type) => {
                let array = batch.columns.column(*column);
                match array.data_type() {
                    DataType::Binary if array.is_valid(row) => {
                        body.extend_from_slice(array.as_binary::<i32>().value(row));
                    }
                    DataType::LargeBinary if array.is_valid(row) => {
                        body.extend_from_slice(array.as_binary::<i64>().value(row));
                    }
                    DataType::Binary | DataType::LargeBinary => {}
                    _ => texts[*column].with(row, scratch, |text| body.extend_from_slice(text)),
                }
                headers.insert(CONTENT_TYPE, content_type.clone());
            }
        }
        Ok(Some(Bytes::from(body)))
    }
}

fn write_url(
    plan: &Plan,
    texts: &[Texts<'_>],
    row: usize,
    scratch: &mut Vec<u8>,
    url: &mut Vec<u8>,
) -> Result<(), Unfit> {
    plan.path.write_path(texts, row, scratch, url)?;
    let mut separator = b'?';
    for (name, template) in &plan.query {
        if !template.is_constant() && template.has_null(texts, row) {
            continue;
        }
        url.push(separator);
        separator = b'&';
        url.extend_from_slice(name);
        url.push(b'=');
        template.write_query(texts, row, scratch, url);
    }
    Ok(())
}
