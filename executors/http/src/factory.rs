//! From the text of an `http` step to its executor.

use std::sync::Arc;

use rowmill_spec::{Diagnostic, HttpBody, JsonTemplate, OnMissing, ResponseSource, ResultMatch, Step, StepKind};
use rowmill_step::{Fill, StepExecutor, StepFactory, arrow_type, fill_with, refused, wrong_kind};
use serde_json::Value;

use crate::options::{BodyTemplate, HttpOptions, Many, Matching, NotFound, ResponseColumn, Source, StatusRange};
use crate::step::HttpStep;
use crate::template::encode;

/// The largest group of items in one request, unless the text says otherwise.
const MANY_BYTES: usize = 1 << 20;

/// Makes executors of `http` steps.
///
/// Values of parameters are text and nothing else: braces in them name no columns, and in a path they stay inside
/// their segment.
#[derive(Debug, Default, Clone, Copy)]
pub struct HttpFactory;

impl StepFactory for HttpFactory {
    fn kind(&self) -> &'static str {
        "http"
    }

    fn build(&self, step: &Step, fill: Fill<'_>) -> Result<Arc<dyn StepExecutor>, Vec<Diagnostic>> {
        let StepKind::Http(http) = &step.kind else { return Err(wrong_kind(step, self.kind())) };
        let mut filling = Filling { fill, reports: Vec::new() };
        let options = options(step, http, &mut filling);
        if !filling.reports.is_empty() {
            return Err(filling.reports);
        }
        match HttpStep::try_new(options) {
            Ok(executor) => Ok(Arc::new(executor)),
            Err(error) => {
                let own = step.items.place(error.option);
                let place = if own.is_none() { http.place(error.option) } else { own };
                Err(vec![refused(step, error.option, &error.message, place)])
            }
        }
    }
}

/// Fills templates, gathering what goes wrong.
struct Filling<'a> {
    fill: Fill<'a>,
    reports: Vec<Diagnostic>,
}

impl Filling<'_> {
    fn with(&mut self, template: &rowmill_spec::Template, escape: impl Fn(&str) -> Result<String, String>) -> String {
        fill_with(template, self.fill, escape).unwrap_or_else(|report| {
            self.reports.push(report);
            String::new()
        })
    }

    /// Values name no columns.
    fn text(&mut self, template: &rowmill_spec::Template) -> String {
        self.with(template, |value| Ok(value.replace('{', "{{").replace('}', "}}")))
    }

    /// Values stay inside their segment, like those of columns.
    fn path(&mut self, template: &rowmill_spec::Template) -> String {
        self.with(template, |value| {
            if value.is_empty() {
                return Err("is empty, so the path would lead elsewhere".to_owned());
            }
            let mut encoded = Vec::with_capacity(value.len());
            encode(value.as_bytes(), &mut encoded);
            String::from_utf8(encoded).map_err(|_| "cannot stand in a path".to_owned())
        })
    }

    fn pairs(&mut self, pairs: &[(rowmill_spec::Spanned<String>, rowmill_spec::Template)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, text)| (name.value.clone(), self.text(text))).collect()
    }

    /// JSON whose strings name columns.
    fn json(&mut self, json: &JsonTemplate) -> Value {
        self.json_with(json, &mut Self::text)
    }

    /// JSON whose strings name none; only what the workflow itself says marks the place of the items.
    fn envelope(&mut self, json: &JsonTemplate) -> Value {
        self.json_with(json, &mut |filling, template| {
            filling.with(template, |value| {
                if value == "{items}" { Err("marks the place of the items".to_owned()) } else { Ok(value.to_owned()) }
            })
        })
    }

    fn json_with(
        &mut self,
        json: &JsonTemplate,
        text: &mut dyn FnMut(&mut Self, &rowmill_spec::Template) -> String,
    ) -> Value {
        match json {
            JsonTemplate::Null => Value::Null,
            JsonTemplate::Bool(value) => Value::Bool(*value),
            JsonTemplate::Number(number) => Value::Number(number.clone()),
            JsonTemplate::Text(template) => Value::String(text(self, template)),
            JsonTemplate::List(items) => items.iter().map(|item| self.json_with(item, text)).collect(),
            JsonTemplate::Object(fields) => {
                Value::Object(fields.iter().map(|(name, value)| (name.clone(), self.json_with(value, text))).collect())
            }
        }
    }
}

fn options(step: &Step, http: &rowmill_spec::HttpStep, filling: &mut Filling<'_>) -> HttpOptions {
    let method = http.method.as_ref().map_or("GET", |method| &method.value);
    let path = filling.path(&http.path);
    let mut options = HttpOptions::new(&http.connection, method, &path);
    options.query = filling.pairs(&http.query);
    options.headers = filling.pairs(&http.headers);
    options.body = http.body.as_ref().map(|body| match &body.value {
        HttpBody::Json(json) => BodyTemplate::Json(filling.json(json)),
        HttpBody::Text { text, content_type } => BodyTemplate::Text {
            template: filling.text(text),
            content_type: content_type
                .as_ref()
                .map_or("text/plain; charset=utf-8".to_owned(), |kind| kind.value.clone()),
        },
        HttpBody::Form(fields) => BodyTemplate::Form(filling.pairs(fields)),
        HttpBody::Column { name, content_type } => BodyTemplate::Column {
            name: name.value.clone(),
            content_type: content_type
                .as_ref()
                .map_or("application/octet-stream".to_owned(), |kind| kind.value.clone()),
        },
    });
    options.response = http
        .response
        .iter()
        .map(|(name, column)| ResponseColumn {
            name: name.clone(),
            data_type: arrow_type(&column.kind),
            nullable: column.nullable.as_ref().is_none_or(|nullable| nullable.value),
            source: match &column.source.value {
                ResponseSource::Json(pointer) => Source::Json(pointer.clone()),
                ResponseSource::Body => Source::Body,
                ResponseSource::Status => Source::Status,
                ResponseSource::Header(header) => Source::Header(header.clone()),
            },
        })
        .collect();
    if let Some(ok) = &http.ok {
        options.ok = ok.iter().map(|(first, last)| StatusRange { first: *first, last: *last }).collect();
    }
    if let Some(policy) = &http.not_found {
        options.not_found = match policy.value {
            OnMissing::Null => NotFound::Null,
            OnMissing::Skip => NotFound::Skip,
            OnMissing::Fail => NotFound::Fail,
        };
    }
    if let Some(statuses) = &http.not_found_statuses {
        options.not_found_statuses = statuses.value.clone();
    }
    if let Some(statuses) = &http.retry_statuses {
        options.retry_statuses = statuses.value.clone();
    }
    let size = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    options.many = http.many.as_ref().map(|many| Many {
        max_items: size(many.max_items.value),
        max_bytes: many.max_bytes.as_ref().map_or(MANY_BYTES, |bytes| size(bytes.value)),
        envelope: many.envelope.as_ref().map(|envelope| filling.envelope(envelope)),
        results: many.results.as_ref().map_or_else(String::new, |pointer| pointer.value.clone()),
        matching: match many.matching.as_ref().map(|matching| &matching.value) {
            None | Some(ResultMatch::Order) => Matching::Order,
            Some(ResultMatch::Key { column, pointer }) => {
                Matching::Key { column: column.clone(), pointer: pointer.clone() }
            }
        },
        error: many.error.as_ref().map(|pointer| pointer.value.clone()),
    });
    if let Some(header) = &http.idempotency_header {
        options.idempotency_header = header.value.clone();
    }
    options.effects = step.items.effects.as_ref().map(|effects| effects.value.into());
    options.timeout = step.items.timeout.as_ref().map(|timeout| timeout.value);
    if let Some(in_flight) = &step.items.in_flight {
        options.in_flight = size(in_flight.value);
    }
    options
}
