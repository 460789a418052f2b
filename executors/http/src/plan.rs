//! The options of an http step, checked and compiled once.

use std::time::Duration;

use arrow::datatypes::{Field, Schema, SchemaRef};
use reqwest::Method;
use reqwest::header::{HeaderName, HeaderValue};
use rowmill_step::Effects;

use crate::extract::Extractor;
use crate::json_body::JsonTemplate;
use crate::options::{BodyTemplate, HttpOptions, Many, Matching, NotFound, OptionsError, Source, wrong};
use crate::pointer::Pointer;
use crate::template::{Template, encode, index_of};

/// Headers that belong to the transport.
const RESERVED: [&str; 9] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "te",
    "upgrade",
    "trailer",
    "keep-alive",
    "proxy-authorization",
];

/// The body, compiled.
#[derive(Debug, Clone)]
pub(crate) enum Body {
    None,
    Json(JsonTemplate),
    Text(Template, HeaderValue),
    Form(Vec<(Vec<u8>, Template)>),
    Column(usize, HeaderValue),
}

/// Many items, compiled.
#[derive(Debug, Clone)]
pub(crate) struct ManyPlan {
    pub(crate) max_items: usize,
    pub(crate) max_bytes: usize,
    pub(crate) envelope: Option<JsonTemplate>,
    pub(crate) results: Pointer,
    pub(crate) key: Option<(usize, Pointer)>,
    pub(crate) error: Option<Pointer>,
}

/// The options, checked and compiled.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) options: HttpOptions,
    pub(crate) method: Method,
    /// The columns that are read.
    pub(crate) columns: Vec<String>,
    pub(crate) path: Template,
    /// Names already encoded.
    pub(crate) query: Vec<(Vec<u8>, Template)>,
    pub(crate) headers: Vec<(HeaderName, Template)>,
    pub(crate) body: Body,
    pub(crate) effects: Effects,
    pub(crate) many: Option<ManyPlan>,
    pub(crate) key_header: Option<HeaderName>,
    pub(crate) extractor: Extractor,
    pub(crate) output: SchemaRef,
}

impl Plan {
    pub(crate) fn compile(options: HttpOptions) -> Result<Self, OptionsError> {
        let method = Method::from_bytes(options.method.as_bytes())
            .ok()
            .filter(|method| {
                !matches!(*method, Method::CONNECT | Method::TRACE)
                    && options.method.bytes().all(|b| b.is_ascii_uppercase())
            })
            .ok_or(OptionsError {
                option: "method",
                message: format!("`{}` is not a method such as GET or POST", options.method),
            })?;
        let safe = matches!(method, Method::GET | Method::HEAD | Method::OPTIONS);
        let mut columns = Vec::new();
        if !options.path.starts_with('/')
            || options.path.contains(['?', '#', '\\'])
            || options.path.chars().any(char::is_control)
        {
            return wrong("path", "a path begins with `/` and holds no `?`, `#` or `\\`; the query has its own option");
        }
        if options.path.split('/').any(|segment| segment == "." || segment == "..") {
            return wrong("path", "a path holds no `.` or `..` segments");
        }
        let path = parse("path", &options.path, &mut columns)?;
        let mut query = Vec::new();
        for (name, template) in &options.query {
            query.push((encoded(name), parse("query", template, &mut columns)?));
        }
        let mut headers = Vec::new();
        for (name, template) in &options.headers {
            let header = header_name("headers", name)?;
            if template.bytes().any(|byte| byte < 0x20 && byte != b'\t' || byte == 0x7f) {
                return wrong("headers", format!("`{name}` holds a control character"));
            }
            headers.push((header, parse("headers", template, &mut columns)?));
        }
        let body = compile_body(&options, &mut columns)?;
        let many = match &options.many {
            None => None,
            Some(many) => Some(compile_many(many, &options, &body, &mut columns)?),
        };
        if many.is_some() {
            let constant = path.is_constant()
                && query.iter().all(|(_, template)| template.is_constant())
                && headers.iter().all(|(_, template)| template.is_constant());
            if !constant {
                return wrong("many", "with many items in one request, path, query and headers cannot name columns");
            }
        }
        if options.response.is_empty() {
            return wrong("response", "a step adds at least one column; `status` is one");
        }
        for range in &options.ok {
            if range.first > range.last || range.first < 200 || range.last > 299 {
                return wrong("ok", format!("{}-{} is not a range within 200-299", range.first, range.last));
            }
        }
        if options.not_found == NotFound::Null
            && let Some(column) = options.response.iter().find(|c| !c.nullable && c.source != Source::Status)
        {
            return wrong("not_found", format!("`null` needs column `{}` to be nullable", column.name));
        }
        if options.in_flight == 0 {
            return wrong("in_flight", "at least 1");
        }
        if options.timeout == Some(Duration::ZERO) {
            return wrong("timeout", "longer than nothing");
        }
        let key_header = match &options.idempotency_header {
            Some(name) if !safe => Some(header_name("idempotency_header", name)?),
            _ => None,
        };
        let effects = options.effects.unwrap_or(if safe { Effects::Idempotent } else { Effects::Once });
        let fields: Vec<_> =
            options.response.iter().map(|c| Field::new(&c.name, c.data_type.clone(), c.nullable)).collect();
        for (index, field) in fields.iter().enumerate() {
            if fields[..index].iter().any(|other| other.name() == field.name()) {
                return wrong("response", format!("column `{}` is named twice", field.name()));
            }
        }
        let extractor = Extractor::compile(&options.response)?;
        let output = SchemaRef::new(Schema::new(fields));
        Ok(Self { method, columns, path, query, headers, body, effects, many, key_header, extractor, output, options })
    }
}

fn parse(option: &'static str, text: &str, columns: &mut Vec<String>) -> Result<Template, OptionsError> {
    Template::parse(text, columns).map_err(|message| OptionsError { option, message })
}

fn encoded(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    encode(name.as_bytes(), &mut out);
    out
}

fn header_name(option: &'static str, name: &str) -> Result<HeaderName, OptionsError> {
    match HeaderName::from_bytes(name.as_bytes()) {
        Ok(header) if RESERVED.contains(&header.as_str()) => {
            wrong(option, format!("`{name}` belongs to the transport and cannot be set"))
        }
        Ok(header) => Ok(header),
        Err(_) => wrong(option, format!("`{}` is not a header's name", name.escape_debug())),
    }
}

fn content_type(text: &str) -> Result<HeaderValue, OptionsError> {
    HeaderValue::from_str(text).or_else(|_| wrong("body", format!("`{}` is not a content type", text.escape_debug())))
}

fn compile_body(options: &HttpOptions, columns: &mut Vec<String>) -> Result<Body, OptionsError> {
    Ok(match &options.body {
        None => Body::None,
        Some(BodyTemplate::Json(value)) => Body::Json(
            JsonTemplate::compile(value, columns, false).map_err(|message| OptionsError { option: "body", message })?,
        ),
        Some(BodyTemplate::Text { template, content_type: kind }) => {
            Body::Text(parse("body", template, columns)?, content_type(kind)?)
        }
        Some(BodyTemplate::Form(fields)) => {
            let mut compiled = Vec::new();
            for (name, template) in fields {
                compiled.push((encoded(name), parse("body", template, columns)?));
            }
            Body::Form(compiled)
        }
        Some(BodyTemplate::Column { name, content_type: kind }) => {
            Body::Column(index_of(name, columns), content_type(kind)?)
        }
    })
}

fn compile_many(
    many: &Many,
    options: &HttpOptions,
    body: &Body,
    columns: &mut Vec<String>,
) -> Result<ManyPlan, OptionsError> {
    if !matches!(body, Body::Json(_)) {
        return wrong("many", "many items in one request need a JSON body, the template of one item");
    }
    if many.max_items == 0 {
        return wrong("many", "at least one item in a request");
    }
    if let Some(column) = options.response.iter().find(|column| column.source == Source::Body) {
        return wrong("response", format!("column `{}`: one body for many items belongs to none of them", column.name));
    }
    let envelope = many
        .envelope
        .as_ref()
        .map(|value| JsonTemplate::compile(value, &mut Vec::new(), true))
        .transpose()
        .map_err(|message| OptionsError { option: "many", message })?;
    let key = match &many.matching {
        Matching::Order => None,
        Matching::Key { column, pointer } => Some((index_of(column, columns), Pointer::parse("many", pointer)?)),
    };
    Ok(ManyPlan {
        max_items: many.max_items,
        max_bytes: many.max_bytes,
        envelope,
        results: Pointer::parse("many", &many.results)?,
        key,
        error: many.error.as_deref().map(|pointer| Pointer::parse("many", pointer)).transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{ResponseColumn, StatusRange};
    use arrow::datatypes::DataType;
    use serde_json::json;

    fn good() -> HttpOptions {
        HttpOptions {
            response: vec![ResponseColumn::json("a", "/a", DataType::Int64)],
            ..HttpOptions::new("c", "POST", "/x/{id}")
        }
    }

    fn option(options: HttpOptions) -> &'static str {
        Plan::compile(options).unwrap_err().option
    }

    #[test]
    fn effects_follow_the_method_unless_declared() {
        let effects = |method: &str, declared| {
            Plan::compile(HttpOptions { method: method.to_owned(), effects: declared, ..good() }).unwrap().effects
        };
        assert_eq!(effects("GET", None), Effects::Idempotent);
        assert_eq!(effects("POST", None), Effects::Once);
        assert_eq!(effects("DELETE", None), Effects::Once);
        assert_eq!(effects("POST", Some(Effects::Pure)), Effects::Pure);
    }

    #[test]
    fn wrong_options_are_named() {
        assert!(Plan::compile(good()).is_ok());
        for method in ["get", "CONNECT", "A B", ""] {
            assert_eq!(option(HttpOptions { method: method.to_owned(), ..good() }), "method");
        }
        for path in ["x", "/x?y=1", "/a/../b", "/a\\b", "/{x", "/a\r\nb"] {
            assert_eq!(option(HttpOptions { path: path.to_owned(), ..good() }), "path", "{path}");
        }
        for (name, value) in [("Host", "x"), ("a b", "x"), ("x", "a\r\nb"), ("content-length", "1")] {
            let headers = vec![(name.to_owned(), value.to_owned())];
            assert_eq!(option(HttpOptions { headers, ..good() }), "headers", "{name}");
        }
        assert_eq!(option(HttpOptions { response: vec![], ..good() }), "response");
        assert_eq!(option(HttpOptions { response: [good().response, good().response].concat(), ..good() }), "response");
        assert_eq!(option(HttpOptions { in_flight: 0, ..good() }), "in_flight");
        assert_eq!(option(HttpOptions { ok: vec![StatusRange { first: 200, last: 404 }], ..good() }), "ok");
        let many = Many {
            max_items: 10,
            max_bytes: 1 << 20,
            envelope: None,
            results: String::new(),
            matching: Matching::Order,
            error: None,
        };
        let json = Some(BodyTemplate::Json(json!({"id": "{id}"})));
        assert_eq!(
            option(HttpOptions { many: Some(many.clone()), body: json.clone(), ..good() }),
            "many",
            "path names a column"
        );
        let fixed = HttpOptions { path: "/x".to_owned(), many: Some(many), ..good() };
        assert_eq!(option(fixed.clone()), "many", "no JSON body");
        assert!(Plan::compile(HttpOptions { body: json, ..fixed }).is_ok());
    }
}
