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

#[cfg(test)]
mod tests {
    use rowmill_step::{Effects, StepFactory};

    use super::*;

    fn step(text: &str) -> Step {
        let text = format!("rowmill: 1\nname: f\nparams: {{p: string}}\nsteps:\n  s:\n{text}");
        let mut workflow = rowmill_spec::parse_yaml("t.yaml", &text).unwrap_or_else(|reports| panic!("{reports}"));
        workflow.steps.swap_remove("s").unwrap()
    }

    fn options_of(text: &str, value: &str) -> Result<HttpOptions, Vec<Diagnostic>> {
        let step = step(text);
        let StepKind::Http(http) = &step.kind else { panic!("no http step") };
        let fill = |template: &rowmill_spec::Template| Ok(template.fill(|_| Some(value.to_owned())).unwrap());
        let mut filling = Filling { fill: &fill, reports: Vec::new() };
        let options = options(&step, http, &mut filling);
        if filling.reports.is_empty() { Ok(options) } else { Err(filling.reports) }
    }

    const STEP: &str = "    http:\n      from: t\n      connection: c\n      method: POST\n      path: '/v1/{faa}/${params.p}'\n      query: {q: '{a} ${params.p}', r: [x, y]}\n      headers: {H: '${params.p}'}\n      body: {json: {a: '{a}', p: '${params.p}', n: 1}}\n      response: {temp: {json: /t, type: float64, nullable: false}, code: {status: int32}}\n      ok: [200, 201-202]\n      not_found: null\n      idempotency_header: none\n    effects: idempotent\n    timeout: 2s\n    in_flight: 7\n";

    #[test]
    fn values_of_parameters_are_text_and_nothing_else() {
        let options = options_of(STEP, "{x}/../?#").unwrap();
        assert_eq!(options.path, "/v1/{faa}/%7Bx%7D%2F..%2F%3F%23");
        assert_eq!(options.query[0].1, "{a} {{x}}/../?#");
        assert_eq!(options.headers[0].1, "{{x}}/../?#");
        let Some(BodyTemplate::Json(body)) = &options.body else { panic!("no JSON body") };
        assert_eq!(*body, serde_json::json!({"a": "{a}", "p": "{{x}}/../?#", "n": 1}));
        assert!(options_of(STEP, "").is_err(), "an empty value leads elsewhere");
    }

    #[test]
    fn everything_that_the_text_says_comes_over() {
        let options = options_of(STEP, "v").unwrap();
        assert_eq!((options.connection.as_str(), options.method.as_str()), ("c", "POST"));
        assert_eq!(options.query.len(), 3);
        assert_eq!((options.ok.len(), options.ok[1].last), (2, 202));
        assert_eq!((options.not_found, options.idempotency_header.as_deref()), (NotFound::Null, None));
        assert_eq!((options.in_flight, options.timeout), (7, Some(std::time::Duration::from_secs(2))));
        assert_eq!(options.effects, Some(Effects::Idempotent));
        assert!(!options.response[0].nullable && options.response[1].source == Source::Status);
    }

    #[test]
    fn an_executor_is_made_and_refusals_point_at_the_option() {
        let fill = |_: &rowmill_spec::Template| Ok("v".to_owned());
        let good = step(&STEP.replace(", nullable: false", ""));
        let executor = HttpFactory.build(&good, &fill).unwrap();
        assert_eq!(executor.describe().reads, ["faa", "a"]);
        for (from, to, place) in [
            ("method: POST", "method: post", "post"),
            ("'/v1/{faa}/${params.p}'", "v1", "v1"),
            ("ok: [200, 201-202]", "ok: 404", "404"),
        ] {
            let text = STEP.replace(", nullable: false", "").replace(from, to);
            let reports = HttpFactory.build(&step(&text), &fill).unwrap_err();
            let span = reports[0].labels[0].0;
            let whole = format!("rowmill: 1\nname: f\nparams: {{p: string}}\nsteps:\n  s:\n{text}");
            assert_eq!(&whole[span.start as usize..span.end as usize], place, "{reports:?}");
        }
        let many = STEP.replace("'/v1/{faa}/${params.p}'", "/v1").replace("{q: '{a} ${params.p}', r: [x, y]}", "{}").replace(
            "      ok:",
            "      many: {max_items: 5, envelope: {of: '${params.p}', all: '{items}'}, match: {column: a, pointer: /a}}\n      ok:",
        );
        assert!(options_of(&many, "{items}").is_err(), "a value marks no place");
        let options = options_of(&many, "{x}").unwrap();
        let envelope = options.many.unwrap().envelope.unwrap();
        assert_eq!(envelope, serde_json::json!({"of": "{x}", "all": "{items}"}));
    }
}
