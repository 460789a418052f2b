//! Steps beside `sql`, and what steps do about their items, as YAML.

use indexmap::IndexMap;

use super::{Writer, list, path, type_text, word};
use crate::config::format_bytes;
use crate::model::{
    CommandStep, GpuStep, HttpBody, HttpMany, HttpStep, ItemPolicy, JsonTemplate, Limit, LookupStep, MaxErrors,
    ModelStep, OnError, OutputColumn, PythonStep, ResponseSource, ResultMatch, Retry,
};
use crate::span::Spanned;
use crate::template::Template;
use crate::types::LogicalType;
use crate::units::{format_duration, format_share};
use crate::yaml::quote;

impl Writer {
    /// A value that has a text, if there is one.
    pub(super) fn maybe<T>(&mut self, key: &str, value: &Option<T>, text: impl FnOnce(&T) -> String) {
        if let Some(value) = value {
            self.line(key, &text(value));
        }
    }

    /// A key and its lines; `{}` where there are none, so that the key stays a mapping.
    fn block(&mut self, key: &str, empty: bool, inside: impl FnOnce(&mut Self)) {
        if empty {
            self.line(key, "{}");
        } else {
            self.nested(key, inside);
        }
    }

    pub(super) fn items(&mut self, items: &ItemPolicy) {
        self.maybe("effects", &items.effects, |value| value.as_str().to_owned());
        match items.on_error.as_ref().map(|policy| &policy.value) {
            Some(OnError::Default(values)) => self.nested("on_error", |writer| {
                writer.block("default", values.is_empty(), |writer| {
                    for (column, value) in values {
                        writer.line(column, &value.to_yaml());
                    }
                });
            }),
            Some(policy) => self.line("on_error", policy.as_str()),
            None => {}
        }
        match items.max_errors.as_ref().map(|most| most.value) {
            Some(MaxErrors::Count(count)) => self.line("max_errors", &count.to_string()),
            Some(MaxErrors::Share { share, after: None }) => self.line("max_errors", &format_share(share)),
            Some(MaxErrors::Share { share, after: Some(after) }) => self.nested("max_errors", |writer| {
                writer.line("share", &format_share(share));
                writer.line("after", &after.to_string());
            }),
            None => {}
        }
        if let Some(retry) = &items.retry {
            self.retry(retry);
        }
        self.maybe("timeout", &items.timeout, |time| format_duration(time.value));
        self.maybe("deadline", &items.deadline, |time| format_duration(time.value));
        if items.batch.rows.is_some() || items.batch.bytes.is_some() {
            self.nested("batch", |writer| {
                writer.maybe("rows", &items.batch.rows, |rows| rows.value.to_string());
                writer.maybe("bytes", &items.batch.bytes, |bytes| format_bytes(bytes.value));
            });
        }
        self.maybe("in_flight", &items.in_flight, |count| count.value.to_string());
        if let Some(cache) = &items.cache {
            self.block("cache", cache.value == crate::model::CachePolicy::default(), |writer| {
                writer.maybe("key", &cache.key, |columns| names(columns));
                writer.maybe("ttl", &cache.ttl, |time| format_duration(time.value));
                writer.maybe("tier", &cache.tier, |tier| tier.as_str().to_owned());
                writer.maybe("max_size", &cache.max_size, |size| format_bytes(size.value));
                writer.maybe("connection", &cache.connection, |name| word(name));
            });
        }
        self.maybe("order", &items.order, |order| order.as_str().to_owned());
    }

    fn retry(&mut self, retry: &Retry) {
        self.block("retry", *retry == Retry::default(), |writer| {
            writer.maybe("attempts", &retry.attempts, |attempts| attempts.value.to_string());
            writer.maybe("initial_backoff", &retry.initial_backoff, |time| format_duration(time.value));
            writer.maybe("factor", &retry.factor, |factor| factor.value.to_string());
            writer.maybe("max_backoff", &retry.max_backoff, |time| format_duration(time.value));
            writer.maybe("jitter", &retry.jitter, |jitter| jitter.as_str().to_owned());
            writer.maybe("honour_retry_after", &retry.honour_retry_after, |keep| keep.value.to_string());
            writer.maybe("max_retry_after", &retry.max_retry_after, |time| format_duration(time.value));
            if !retry.codes.is_empty() {
                writer.line("codes", &names(&retry.codes));
            }
            if !retry.statuses.is_empty() {
                writer.line("statuses", &list(retry.statuses.iter().map(|status| status.value.to_string())));
            }
        });
    }

    pub(super) fn http(&mut self, http: &HttpStep) {
        self.line("from", &word(&http.from));
        self.line("connection", &word(&http.connection));
        self.maybe("method", &http.method, |method| quote(method));
        self.line("path", &path(&http.path));
        self.pairs("query", &http.query);
        self.pairs("headers", &http.headers);
        if let Some(body) = &http.body {
            self.nested("body", |writer| writer.http_body(body));
        }
        self.block("response", http.response.is_empty(), |writer| {
            for (name, column) in &http.response.value {
                writer.nested(name, |writer| {
                    let kind = &column.kind.value;
                    match &column.source.value {
                        ResponseSource::Json(pointer) => {
                            writer.line("json", &quote(pointer));
                            writer.line("type", &type_text(kind));
                        }
                        ResponseSource::Body => writer.line("body", &type_text(kind)),
                        ResponseSource::Status => writer.line("status", &type_text(kind)),
                        ResponseSource::Header(header) => writer.line("header", &quote(header)),
                    }
                    writer.maybe("nullable", &column.nullable, |nullable| nullable.value.to_string());
                });
            }
        });
        self.maybe("ok", &http.ok, |ranges| {
            list(ranges.value.iter().map(
                |(first, last)| {
                    if first == last { first.to_string() } else { format!("{first}-{last}") }
                },
            ))
        });
        self.maybe("not_found", &http.not_found, |word_of| quote(word_of.as_str()));
        let statuses = |statuses: &Spanned<Vec<u16>>| list(statuses.value.iter().map(ToString::to_string));
        self.maybe("not_found_statuses", &http.not_found_statuses, statuses);
        self.maybe("retry_statuses", &http.retry_statuses, statuses);
        if let Some(many) = &http.many {
            self.nested("many", |writer| writer.http_many(many));
        }
        self.maybe("idempotency_header", &http.idempotency_header, |header| {
            header.value.as_ref().map_or("none".to_owned(), |name| quote(name))
        });
    }

    fn http_body(&mut self, body: &HttpBody) {
        match body {
            HttpBody::Json(json) => self.line("json", &flow(json)),
            HttpBody::Text { text, content_type } => {
                self.line("text", &path(text));
                self.maybe("content_type", content_type, |kind| quote(kind));
            }
            HttpBody::Form(fields) if fields.is_empty() => self.line("form", "{}"),
            HttpBody::Form(fields) => self.pairs("form", fields),
            HttpBody::Column { name, content_type } => {
                self.line("column", &quote(name));
                self.maybe("content_type", content_type, |kind| quote(kind));
            }
        }
    }

    fn http_many(&mut self, many: &HttpMany) {
        self.line("max_items", &many.max_items.value.to_string());
        self.maybe("max_bytes", &many.max_bytes, |bytes| format_bytes(bytes.value));
        self.maybe("envelope", &many.envelope, flow);
        self.maybe("results", &many.results, |pointer| quote(pointer));
        match many.matching.as_ref().map(|matching| &matching.value) {
            Some(ResultMatch::Order) => self.line("match", "order"),
            Some(ResultMatch::Key { column, pointer }) => self.nested("match", |writer| {
                writer.line("column", &quote(column));
                writer.line("pointer", &quote(pointer));
            }),
            None => {}
        }
        self.maybe("error", &many.error, |pointer| quote(pointer));
    }

    pub(super) fn lookup(&mut self, lookup: &LookupStep) {
        self.line("from", &word(&lookup.from));
        self.line("connection", &word(&lookup.connection));
        self.text("query", &lookup.query.text);
        self.kinds("types", &lookup.types);
        self.maybe("on_missing", &lookup.on_missing, |word_of| quote(word_of.as_str()));
        self.maybe("matches", &lookup.matches, |word_of| word_of.as_str().to_owned());
    }

    pub(super) fn command(&mut self, command: &CommandStep) {
        self.line("from", &word(&command.from));
        self.line("argv", &list(command.argv.value.iter().map(path)));
        self.maybe("format", &command.format, |format| format.as_str().to_owned());
        self.line("reads", &names(&command.reads.value));
        self.output(&command.output.value);
        self.maybe("fan_out", &command.fan_out, |fan_out| fan_out.value.to_string());
        if !command.env.is_empty() {
            self.nested("env", |writer| {
                for (name, value) in &command.env {
                    writer.line(name, &path(value));
                }
            });
        }
        if !command.pass_env.is_empty() {
            self.line("pass_env", &names(&command.pass_env));
        }
        if !command.secret_env.is_empty() {
            self.nested("secret_env", |writer| {
                for (name, secret) in &command.secret_env {
                    writer.line(name, &quote(&secret.value.to_string()));
                }
            });
        }
        self.maybe("working_directory", &command.working_directory, path);
        self.maybe("memory", &command.memory, size);
        self.maybe("cpu_seconds", &command.cpu_seconds, count);
        self.maybe("open_files", &command.open_files, count);
        self.maybe("file_bytes", &command.file_bytes, size);
        self.maybe("max_answer_bytes", &command.max_answer_bytes, |bytes| format_bytes(bytes.value));
        self.maybe("version", &command.version, |version| quote(version));
    }

    pub(super) fn gpu(&mut self, gpu: &GpuStep) {
        self.line("from", &word(&gpu.from));
        let top_k = &gpu.top_k.value;
        self.nested("top_k", |writer| {
            writer.line("column", &quote(&top_k.column));
            writer.line("corpus", &path(&top_k.corpus));
            writer.maybe("corpus_column", &top_k.corpus_column, |column| quote(column));
            writer.maybe("id", &top_k.id, |column| quote(column));
            writer.line("k", &top_k.k.value.to_string());
            writer.maybe("metric", &top_k.metric, |metric| metric.as_str().to_owned());
        });
    }

    pub(super) fn model(&mut self, model: &ModelStep) {
        self.line("from", &word(&model.from));
        self.line("file", &path(&model.file));
        self.block("inputs", model.inputs.is_empty(), |writer| {
            for (tensor, columns) in &model.inputs.value {
                writer.line(tensor, &names(columns));
            }
        });
        if let Some(output) = &model.output {
            self.block("output", output.is_empty(), |writer| {
                for (column, tensor) in &output.value {
                    writer.line(column, &quote(tensor));
                }
            });
        }
        self.maybe("device", &model.device, |device| device.as_str().to_owned());
    }

    pub(super) fn python(&mut self, python: &PythonStep) {
        self.line("from", &word(&python.from));
        self.line("function", &quote(&python.function));
        self.line("reads", &names(&python.reads.value));
        self.output(&python.output.value);
        self.maybe("given", &python.given, |given| given.as_str().to_owned());
        self.maybe("fan_out", &python.fan_out, |fan_out| fan_out.value.to_string());
        self.maybe("calls", &python.calls, |calls| calls.value.to_string());
        self.maybe("rate_limit", &python.rate_limit, |rate| rate.value.to_string());
        self.maybe("version", &python.version, |version| quote(version));
        self.maybe("start_timeout", &python.start_timeout, |time| format_duration(time.value));
        self.maybe("memory", &python.memory, size);
        self.maybe("cpu_seconds", &python.cpu_seconds, count);
        self.maybe("open_files", &python.open_files, count);
        self.maybe("max_answer_bytes", &python.max_answer_bytes, |bytes| format_bytes(bytes.value));
    }

    /// The columns that a program or a function adds.
    fn output(&mut self, columns: &IndexMap<String, OutputColumn>) {
        self.block("output", columns.is_empty(), |writer| {
            for (name, column) in columns {
                match &column.nullable {
                    None => writer.line(name, &type_text(&column.kind)),
                    Some(nullable) => writer.nested(name, |writer| {
                        writer.line("type", &type_text(&column.kind));
                        writer.line("nullable", &nullable.value.to_string());
                    }),
                }
            }
        });
    }

    fn kinds(&mut self, key: &str, kinds: &IndexMap<String, Spanned<LogicalType>>) {
        if !kinds.is_empty() {
            self.columns(key, kinds);
        }
    }

    /// Texts by name; a name that stands several times gets a list.
    fn pairs(&mut self, key: &str, pairs: &[(Spanned<String>, Template)]) {
        if pairs.is_empty() {
            return;
        }
        let mut grouped: IndexMap<&str, Vec<&Template>> = IndexMap::new();
        for (name, text) in pairs {
            grouped.entry(&name.value).or_default().push(text);
        }
        self.nested(key, |writer| {
            for (name, texts) in grouped {
                match texts.as_slice() {
                    [one] => writer.line(name, &path(one)),
                    several => writer.line(name, &list(several.iter().map(|text| path(text)))),
                }
            }
        });
    }
}

fn size(limit: &Spanned<Limit>) -> String {
    match limit.value {
        Limit::None => "none".to_owned(),
        Limit::Most(bytes) => format_bytes(bytes),
    }
}

fn count(limit: &Spanned<Limit>) -> String {
    match limit.value {
        Limit::None => "none".to_owned(),
        Limit::Most(count) => count.to_string(),
    }
}

fn names(names: &[Spanned<String>]) -> String {
    list(names.iter().map(|name| quote(name)))
}

/// JSON as YAML on one line; JSON's own quoting is not that of YAML where line separators are concerned.
fn flow(json: &JsonTemplate) -> String {
    match json {
        JsonTemplate::Null => "null".to_owned(),
        JsonTemplate::Bool(value) => value.to_string(),
        JsonTemplate::Number(number) => number.to_string(),
        JsonTemplate::Text(text) => path(text),
        JsonTemplate::List(items) => list(items.iter().map(flow)),
        JsonTemplate::Object(fields) => {
            let fields: Vec<String> =
                fields.iter().map(|(name, value)| format!("{}: {}", quote(name), flow(value))).collect();
            format!("{{{}}}", fields.join(", "))
        }
    }
}
