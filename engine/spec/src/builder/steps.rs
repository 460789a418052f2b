//! Steps beside `sql`, and what steps do about their items, built in Rust.
//!
//! Texts may hold `${params.NAME}` and `${vars.NAME}`; one that cannot be read is told when the workflow is built.

use std::time::Duration;

use crate::config::Secret;
use crate::model::{
    CachePolicy, CommandFormat, CommandStep, Effects, GpuStep, HttpBody, HttpMany, HttpStep, ItemPolicy, JsonTemplate,
    Limit, LookupStep, Matches, MaxErrors, Metric, ModelDevice, ModelStep, OnError, OnMissing, OutputColumn,
    PythonGiven, PythonStep, Rate, ResponseColumn, ResponseSource, Retry, RowOrder, StepKind,
};
use crate::names::normalize;
use crate::read::RawValue;
use crate::span::Spanned;
use crate::template::Template;
use crate::types::{LogicalType, Value};

impl From<HttpStep> for StepKind {
    fn from(step: HttpStep) -> Self {
        StepKind::Http(Box::new(step))
    }
}

impl From<LookupStep> for StepKind {
    fn from(step: LookupStep) -> Self {
        StepKind::Lookup(Box::new(step))
    }
}

impl From<CommandStep> for StepKind {
    fn from(step: CommandStep) -> Self {
        StepKind::Command(Box::new(step))
    }
}

impl From<PythonStep> for StepKind {
    fn from(step: PythonStep) -> Self {
        StepKind::Python(Box::new(step))
    }
}

impl From<GpuStep> for StepKind {
    fn from(step: GpuStep) -> Self {
        StepKind::Gpu(Box::new(step))
    }
}

impl From<ModelStep> for StepKind {
    fn from(step: ModelStep) -> Self {
        StepKind::Model(Box::new(step))
    }
}

impl GpuStep {
    /// With the corpus's column of embeddings.
    pub fn corpus_column(mut self, column: impl Into<String>) -> Self {
        self.top_k.value.corpus_column = some(column.into());
        self
    }

    /// With the corpus's column that names a row.
    pub fn id(mut self, column: impl Into<String>) -> Self {
        self.top_k.value.id = some(column.into());
        self
    }

    /// With what similar means.
    pub fn metric(mut self, metric: Metric) -> Self {
        self.top_k.value.metric = some(metric);
        self
    }
}

impl ModelStep {
    /// With a column that takes an output of the model; without any the step adds all outputs.
    pub fn column(mut self, column: impl Into<String>, output: impl Into<String>) -> Self {
        let columns = self.output.get_or_insert_with(|| Spanned::bare(indexmap::IndexMap::new()));
        columns.value.insert(normalize(&column.into()), Spanned::bare(output.into()));
        self
    }

    /// Where it runs.
    pub fn device(mut self, device: ModelDevice) -> Self {
        self.device = some(device);
        self
    }
}

fn some<T>(value: T) -> Option<Spanned<T>> {
    Some(Spanned::bare(value))
}

fn bare(text: impl Into<String>) -> Spanned<String> {
    Spanned::bare(normalize(&text.into()))
}

impl HttpStep {
    /// With this method, in capitals.
    pub fn method(mut self, method: impl Into<String>) -> Self {
        self.method = some(method.into());
        self
    }

    /// With one more parameter of the query.
    pub fn query(mut self, name: impl Into<String>, text: impl Into<String>) -> Self {
        self.query.push((Spanned::bare(name.into()), Template::of(text)));
        self
    }

    /// With one more header.
    pub fn header(mut self, name: impl Into<String>, text: impl Into<String>) -> Self {
        self.headers.push((Spanned::bare(name.into()), Template::of(text)));
        self
    }

    /// With this body.
    pub fn body(mut self, body: HttpBody) -> Self {
        self.body = some(body);
        self
    }

    /// With a column found in the JSON of the answer.
    pub fn json(self, name: impl Into<String>, pointer: impl Into<String>, kind: LogicalType) -> Self {
        self.column(name, kind, ResponseSource::Json(pointer.into()))
    }

    /// With a column from anywhere in the answer; it may be null.
    pub fn column(mut self, name: impl Into<String>, kind: LogicalType, source: ResponseSource) -> Self {
        let column = ResponseColumn { kind: Spanned::bare(kind), nullable: None, source: Spanned::bare(source) };
        self.response.value.insert(normalize(&name.into()), column);
        self
    }

    /// With these statuses as success, each a range with both ends.
    pub fn ok(mut self, ranges: impl IntoIterator<Item = (u16, u16)>) -> Self {
        self.ok = some(ranges.into_iter().collect());
        self
    }

    /// What to do when there is nothing for an item.
    pub fn not_found(mut self, policy: OnMissing) -> Self {
        self.not_found = some(policy);
        self
    }

    /// Sends many items in one request.
    pub fn many(mut self, many: HttpMany) -> Self {
        self.many = some(many);
        self
    }
}

impl HttpMany {
    /// So many items of a request at most, everything else as by default.
    pub fn new(max_items: u64) -> Self {
        HttpMany {
            max_items: Spanned::bare(max_items),
            max_bytes: None,
            envelope: None,
            results: None,
            matching: None,
            error: None,
        }
    }
}

impl From<&serde_json::Value> for JsonTemplate {
    /// Strings become templates.
    fn from(json: &serde_json::Value) -> Self {
        match json {
            serde_json::Value::Null => JsonTemplate::Null,
            serde_json::Value::Bool(value) => JsonTemplate::Bool(*value),
            serde_json::Value::Number(number) => JsonTemplate::Number(number.clone()),
            serde_json::Value::String(text) => JsonTemplate::Text(Template::of(text)),
            serde_json::Value::Array(items) => JsonTemplate::List(items.iter().map(Into::into).collect()),
            serde_json::Value::Object(fields) => {
                JsonTemplate::Object(fields.iter().map(|(name, value)| (name.clone(), value.into())).collect())
            }
        }
    }
}

impl LookupStep {
    /// With a type for a column whose own is not wanted or not known.
    pub fn kind(mut self, column: impl Into<String>, kind: LogicalType) -> Self {
        self.types.insert(normalize(&column.into()), Spanned::bare(kind));
        self
    }

    /// What to do with an item for which there is no row.
    pub fn on_missing(mut self, policy: OnMissing) -> Self {
        self.on_missing = some(policy);
        self
    }

    /// What to do with an item for which there are several rows.
    pub fn matches(mut self, policy: Matches) -> Self {
        self.matches = some(policy);
        self
    }
}

impl CommandStep {
    /// With one more column that the program gets.
    pub fn read(mut self, column: impl Into<String>) -> Self {
        self.reads.value.push(bare(column));
        self
    }

    /// With one more column that it adds; it may be null.
    pub fn column(mut self, name: impl Into<String>, kind: LogicalType) -> Self {
        let column = OutputColumn { kind: Spanned::bare(kind), nullable: None };
        self.output.value.insert(normalize(&name.into()), column);
        self
    }

    /// How items and answers are written.
    pub fn format(mut self, format: CommandFormat) -> Self {
        self.format = some(format);
        self
    }

    /// Gives any number of rows for an item.
    pub fn fan_out(mut self) -> Self {
        self.fan_out = some(true);
        self
    }

    /// With an environment variable.
    pub fn env(mut self, name: impl Into<String>, text: impl Into<String>) -> Self {
        self.env.insert(name.into(), Template::of(text));
        self
    }

    /// With an environment variable whose value is a secret.
    pub fn secret_env(mut self, name: impl Into<String>, secret: Secret) -> Self {
        self.secret_env.insert(name.into(), Spanned::bare(secret));
        self
    }

    /// With a limit on a process's memory in bytes.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = some(Limit::Most(bytes));
        self
    }
}

impl PythonStep {
    /// With one more column that is an argument.
    pub fn read(mut self, column: impl Into<String>) -> Self {
        self.reads.value.push(bare(column));
        self
    }

    /// With one more column that it adds; it may be null.
    pub fn column(mut self, name: impl Into<String>, kind: LogicalType) -> Self {
        let column = OutputColumn { kind: Spanned::bare(kind), nullable: None };
        self.output.value.insert(normalize(&name.into()), column);
        self
    }

    /// What it is given, where its annotations do not say.
    pub fn given(mut self, given: PythonGiven) -> Self {
        self.given = some(given);
        self
    }

    /// Gives any number of rows for an item.
    pub fn fan_out(mut self) -> Self {
        self.fan_out = some(true);
        self
    }

    /// Calls in a time, of all processes together.
    pub fn rate_limit(mut self, rate: Rate) -> Self {
        self.rate_limit = some(rate);
        self
    }

    /// Calls of an async function at a time, in each process.
    pub fn calls(mut self, calls: u64) -> Self {
        self.calls = some(calls);
        self
    }

    /// Tells one version of the function from another, for caches.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = some(version.into());
        self
    }

    /// With a limit on a process's data in bytes.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = some(Limit::Most(bytes));
        self
    }
}

impl ItemPolicy {
    /// What running the step again means.
    pub fn effects(mut self, effects: Effects) -> Self {
        self.effects = some(effects);
        self
    }

    /// Drops rows that failed.
    pub fn skip_errors(mut self) -> Self {
        self.on_error = some(OnError::Skip);
        self
    }

    /// Drops rows that failed, and keeps them for a later look.
    pub fn dead_letters(mut self) -> Self {
        self.on_error = some(OnError::DeadLetter);
        self
    }

    /// Lets rows that failed flow on with these values in the step's columns.
    pub fn default_on_error<C: Into<String>>(mut self, values: impl IntoIterator<Item = (C, Value)>) -> Self {
        let raw = |(column, value): (C, Value)| {
            let raw = RawValue::new(column, &value);
            (raw.name.value.clone(), raw)
        };
        self.on_error = some(OnError::Default(values.into_iter().map(raw).collect()));
        self
    }

    /// How much may go wrong before the run stops.
    pub fn max_errors(mut self, most: MaxErrors) -> Self {
        self.max_errors = some(most);
        self
    }

    /// When an item is tried again.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = some(retry);
        self
    }

    /// The longest that one attempt may take.
    pub fn timeout(mut self, time: Duration) -> Self {
        self.timeout = some(time);
        self
    }

    /// The longest that an item may take, all its attempts and waits together.
    pub fn deadline(mut self, time: Duration) -> Self {
        self.deadline = some(time);
        self
    }

    /// Items that are handed on together at most.
    pub fn batch_rows(mut self, rows: u64) -> Self {
        self.batch.rows = some(rows);
        self
    }

    /// Bytes of the columns of items that are handed on together at most.
    pub fn batch_bytes(mut self, bytes: u64) -> Self {
        self.batch.bytes = some(bytes);
        self
    }

    /// Requests, queries or programs at once.
    pub fn in_flight(mut self, count: u64) -> Self {
        self.in_flight = some(count);
        self
    }

    /// Keeps answers.
    pub fn cache(mut self, cache: CachePolicy) -> Self {
        self.cache = some(cache);
        self
    }

    /// In which order rows come out.
    pub fn order(mut self, order: RowOrder) -> Self {
        self.order = some(order);
        self
    }
}
