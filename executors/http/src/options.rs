//! What a workflow says about an http step, and what is wrong with it where it is. `plan.rs` checks and compiles it.

use std::time::Duration;

use arrow::datatypes::DataType;
use rowmill_step::Effects;
use serde_json::Value;

/// What is wrong with a step's options; the text names the option.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{option}`: {message}")]
pub struct OptionsError {
    /// The option.
    pub option: &'static str,
    /// What is wrong, and what would be right.
    pub message: String,
}

pub(crate) fn wrong<T>(option: &'static str, message: impl Into<String>) -> Result<T, OptionsError> {
    Err(OptionsError { option, message: message.into() })
}

/// What a workflow says about an http step. Texts may hold `{column}`; `{{` and `}}` are braces.
#[derive(Debug, Clone)]
pub struct HttpOptions {
    /// Name of the connection.
    pub connection: String,
    /// The method, in capitals.
    pub method: String,
    /// Path after the connection's base, beginning with `/`. Values stay inside their segment; a NULL or empty value is
    /// an item error.
    pub path: String,
    /// Query parameters. One with a NULL in it is left out.
    pub query: Vec<(String, String)>,
    /// Headers. One with a NULL in it is left out; control characters are an item error.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Option<BodyTemplate>,
    /// What sending again means; by default GET, HEAD and OPTIONS are idempotent and everything else is `once`.
    pub effects: Option<Effects>,
    /// The columns that the step adds.
    pub response: Vec<ResponseColumn>,
    /// Statuses that mean success.
    pub ok: Vec<StatusRange>,
    /// Statuses that mean that there is nothing for this item.
    pub not_found_statuses: Vec<u16>,
    /// What to do about those, and about items that an answer for many leaves out.
    pub not_found: NotFound,
    /// Statuses worth another attempt.
    pub retry_statuses: Vec<u16>,
    /// Sends many items in one request.
    pub many: Option<Many>,
    /// Time for one request, if shorter than the connection's.
    pub timeout: Option<Duration>,
    /// Requests at once.
    pub in_flight: usize,
    /// The header that carries the idempotency key; it is sent with every method but GET, HEAD and OPTIONS.
    pub idempotency_header: Option<String>,
}

impl HttpOptions {
    /// Options with the defaults: 2xx is success, 404 fails, 64 requests at once.
    pub fn new(connection: &str, method: &str, path: &str) -> Self {
        Self {
            connection: connection.to_owned(),
            method: method.to_owned(),
            path: path.to_owned(),
            query: Vec::new(),
            headers: Vec::new(),
            body: None,
            effects: None,
            response: Vec::new(),
            ok: vec![StatusRange { first: 200, last: 299 }],
            not_found_statuses: vec![404],
            not_found: NotFound::Fail,
            retry_statuses: vec![408, 425, 429, 500, 502, 503, 504],
            many: None,
            timeout: None,
            in_flight: 64,
            idempotency_header: Some("Idempotency-Key".to_owned()),
        }
    }
}

/// A range of statuses, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusRange {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

/// A body.
#[derive(Debug, Clone)]
pub enum BodyTemplate {
    /// JSON: a string that is one `{column}` becomes the value with its type.
    Json(Value),
    /// Text as it is.
    Text {
        /// The text.
        template: String,
        /// Its content type.
        content_type: String,
    },
    /// A form, percent-encoded; a field with a NULL in it is left out.
    Form(Vec<(String, String)>),
    /// The bytes of one text or binary column.
    Column {
        /// The column.
        name: String,
        /// Its content type.
        content_type: String,
    },
}

/// A column that the step adds.
#[derive(Debug, Clone)]
pub struct ResponseColumn {
    /// Its name.
    pub name: String,
    /// Its type.
    pub data_type: DataType,
    /// Whether it may be NULL; if not, a missing value is an item error.
    pub nullable: bool,
    /// Where it comes from.
    pub source: Source,
}

impl ResponseColumn {
    /// A nullable column from a JSON pointer.
    pub fn json(name: &str, pointer: &str, data_type: DataType) -> Self {
        Self { name: name.to_owned(), data_type, nullable: true, source: Source::Json(pointer.to_owned()) }
    }
}

/// Where a column comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A JSON pointer (RFC 6901) into the answer; with [`Many`] into the item's element of it. `""` is all of it.
    Json(String),
    /// The whole body as text or bytes.
    Body,
    /// The status.
    Status,
    /// A header.
    Header(String),
}

/// What to do when there is nothing for an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotFound {
    /// The columns are NULL.
    Null,
    /// The row is dropped.
    Skip,
    /// The item fails.
    Fail,
}

/// Many items in one request. The body must be JSON; it is the template of one item.
#[derive(Debug, Clone)]
pub struct Many {
    /// Items of a request at most.
    pub max_items: usize,
    /// Bytes of the items' columns at most.
    pub max_bytes: usize,
    /// What stands around the array of items, with the string `"{items}"` in its place; a bare array if `None`.
    pub envelope: Option<Value>,
    /// JSON pointer to the array of results.
    pub results: String,
    /// Which result is whose.
    pub matching: Matching,
    /// JSON pointer within a result to its error; anything there but null, false and `""` fails the item.
    pub error: Option<String>,
}

/// Which result of an answer for many items is whose.
#[derive(Debug, Clone)]
pub enum Matching {
    /// The results come in the order of the items, as many as there are items.
    Order,
    /// A result names its item.
    Key {
        /// The item's column.
        column: String,
        /// JSON pointer to the same value within the result.
        pointer: String,
    },
}
