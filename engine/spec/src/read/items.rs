//! What a step does about its items: `effects` to `order`.

use indexmap::IndexMap;

use super::values::RawValue;
use super::{Fields, Reading};
use crate::codes;
use crate::diagnostic::Diagnostic;
use crate::keys;
use crate::model::{
    BatchSize, CachePolicy, CacheTier, Effects, FAILURE_CODES, ItemPolicy, Jitter, MaxErrors, OnError, Retry, RowOrder,
};
use crate::names::normalize;
use crate::read::bad_word;
use crate::span::Spanned;
use crate::yaml::{Kind, Node};

/// Reads what the fields of a step say about its items.
pub(super) fn items(reading: &mut Reading<'_>, fields: &Fields<'_>, who: &str) -> ItemPolicy {
    ItemPolicy {
        effects: fields
            .get("effects")
            .and_then(|node| reading.word(node, "`effects`", Effects::WORDS, Effects::from_word)),
        on_error: fields.get("on_error").and_then(|node| on_error(reading, node, who)),
        max_errors: fields.get("max_errors").and_then(|node| max_errors(reading, node, who)),
        retry: fields.get("retry").and_then(|node| retry(reading, node, who)),
        timeout: fields.get("timeout").and_then(|node| reading.duration(node, "`timeout`")),
        deadline: fields.get("deadline").and_then(|node| reading.duration(node, "`deadline`")),
        batch: fields.entry("batch").map_or_else(BatchSize::default, |(key, node)| batch(reading, key, node, who)),
        in_flight: fields.get("in_flight").and_then(|node| reading.count(node, "`in_flight`", 1)),
        cache: fields.entry("cache").and_then(|(key, node)| cache(reading, key, node, who)),
        order: fields.get("order").and_then(|node| reading.word(node, "`order`", RowOrder::WORDS, RowOrder::from_word)),
    }
}

fn on_error(reading: &mut Reading<'_>, node: &Node, who: &str) -> Option<Spanned<OnError>> {
    if let Kind::Scalar(scalar) = &node.kind
        && &*scalar.value == "default"
    {
        let report =
            Diagnostic::error(codes::BAD_VALUE, "`on_error: default` does not say the values").at(node.span, "");
        reading.report(report.help("write `on_error: {default: {column: value}}`"));
        return None;
    }
    if !matches!(node.kind, Kind::Mapping(_)) {
        return reading.word(node, "`on_error`", keys::ON_ERROR_WORDS, |word| match word {
            "fail" => Some(OnError::Fail),
            "skip" => Some(OnError::Skip),
            "dead_letter" => Some(OnError::DeadLetter),
            _ => None,
        });
    }
    let fields = reading.fields(&keys::ON_ERROR, node, node.span, &format!("`on_error` of {who}"))?;
    let values = fields.get("default")?;
    let mut defaults: IndexMap<String, RawValue> = IndexMap::new();
    for (name, value) in reading.mapping(values, "`default`")? {
        let name = Spanned::new(normalize(&name.value), name.span);
        match RawValue::from_node(name.clone(), value) {
            Some(raw) if !name.value.is_empty() => {
                if defaults.insert(name.value.clone(), raw).is_some() {
                    let report =
                        Diagnostic::error(codes::DUPLICATE_KEY, format!("column `{}` stands twice", name.value));
                    reading.report(report.at(name.span, "the second time").help("remove one of the two"));
                }
            }
            _ => reading.wrong_type(
                value,
                &format!("the default of column `{}` must be a single value or a list of them", name.value),
                "",
            ),
        }
    }
    Some(Spanned::new(OnError::Default(defaults), node.span))
}

fn max_errors(reading: &mut Reading<'_>, node: &Node, who: &str) -> Option<Spanned<MaxErrors>> {
    let most = match &node.kind {
        Kind::Mapping(_) => {
            let fields = reading.fields(&keys::MAX_ERRORS, node, node.span, &format!("`max_errors` of {who}"))?;
            let after = fields.get("after").and_then(|node| reading.count(node, "`after`", 1));
            let share = fields.get("share").and_then(|node| reading.share(node, "`share`"))?;
            MaxErrors::Share { share: share.value, after: after.map(|after| after.value) }
        }
        Kind::Scalar(scalar) if scalar.value.contains('%') => {
            MaxErrors::Share { share: reading.share(node, "`max_errors`")?.value, after: None }
        }
        Kind::Scalar(_) => MaxErrors::Count(reading.count(node, "`max_errors`", 0)?.value),
        Kind::Sequence(_) => {
            reading.wrong_type(node, "`max_errors` must be a count or a share", "write `100`, or `1%`");
            return None;
        }
    };
    Some(Spanned::new(most, node.span))
}

fn attempts(reading: &mut Reading<'_>, node: &Node, what: &str) -> Option<Spanned<u32>> {
    let attempts = reading.integer(node, what, 1)?;
    match u32::try_from(attempts) {
        Ok(attempts) => Some(Spanned::new(attempts, node.span)),
        Err(_) => {
            let report = Diagnostic::error(codes::BAD_VALUE, format!("{what} is out of range"));
            reading.report(report.at(node.span, "").help(format!("it lies between 1 and {}", u32::MAX)));
            None
        }
    }
}

fn retry(reading: &mut Reading<'_>, node: &Node, who: &str) -> Option<Spanned<Retry>> {
    match &node.kind {
        Kind::Scalar(scalar) if &*scalar.value == "none" => Some(Spanned::new(Retry::attempts(1), node.span)),
        Kind::Mapping(_) => {
            let fields = reading.fields(&keys::RETRY, node, node.span, &format!("`retry` of {who}"))?;
            let mut time = |name: &str| fields.get(name).and_then(|node| reading.duration(node, &format!("`{name}`")));
            let (initial_backoff, max_backoff, max_retry_after) =
                (time("initial_backoff"), time("max_backoff"), time("max_retry_after"));
            let codes = fields.get("codes").map_or_else(Vec::new, |node| {
                reading.one_or_many(node, |reading, node| {
                    let word = reading.text(node, "`codes`")?;
                    if FAILURE_CODES.contains(&word.value.as_str()) {
                        return Some(word);
                    }
                    reading.report(bad_word("`codes`", &word.value, FAILURE_CODES, node.span));
                    None
                })
            });
            Some(Spanned::new(
                Retry {
                    attempts: fields.get("attempts").and_then(|node| attempts(reading, node, "`attempts`")),
                    initial_backoff,
                    factor: fields.get("factor").and_then(|node| reading.factor(node, "`factor`")),
                    max_backoff,
                    jitter: fields
                        .get("jitter")
                        .and_then(|node| reading.word(node, "`jitter`", Jitter::WORDS, Jitter::from_word)),
                    honour_retry_after: fields
                        .get("honour_retry_after")
                        .and_then(|node| reading.flag(node, "`honour_retry_after`")),
                    max_retry_after,
                    codes,
                    statuses: fields.get("statuses").map_or_else(Vec::new, |node| reading.statuses(node, "`statuses`")),
                },
                node.span,
            ))
        }
        Kind::Scalar(scalar) if !scalar.is_null() && scalar.value.parse::<i64>().is_ok() => {
            let attempts = attempts(reading, node, "`retry`")?;
            Some(Spanned::new(Retry { attempts: Some(attempts), ..Retry::default() }, node.span))
        }
        _ => {
            let help = "write `retry: 5` (attempts in all), `retry: none`, or `retry: {attempts: 5, max_backoff: 10s}`";
            reading.wrong_type(node, "`retry` must be a number of attempts, `none` or a mapping", help);
            None
        }
    }
}

fn batch(reading: &mut Reading<'_>, key: &Spanned<String>, node: &Node, who: &str) -> BatchSize {
    let Some(fields) = reading.fields(&keys::BATCH, node, key.span, &format!("`batch` of {who}")) else {
        return BatchSize::default();
    };
    BatchSize {
        rows: fields.get("rows").and_then(|node| reading.count(node, "`rows`", 1)),
        bytes: fields.get("bytes").and_then(|node| reading.size(node, "`bytes`")),
    }
}

fn cache(reading: &mut Reading<'_>, key: &Spanned<String>, node: &Node, who: &str) -> Option<Spanned<CachePolicy>> {
    let fields = reading.fields(&keys::CACHE, node, key.span, &format!("`cache` of {who}"))?;
    let columns = fields.get("key").map(|node| {
        if matches!(&node.kind, Kind::Sequence(items) if items.is_empty()) {
            let report = Diagnostic::error(codes::BAD_VALUE, format!("the cache key of {who} has no columns"));
            reading.report(report.at(node.span, "").help("list at least one column, or remove `key`"));
        }
        reading.one_or_many(node, |reading, node| reading.column_name(node, "`key`"))
    });
    let policy = CachePolicy {
        key: columns,
        ttl: fields.get("ttl").and_then(|node| reading.duration(node, "`ttl`")),
        tier: fields.get("tier").and_then(|node| reading.word(node, "`tier`", CacheTier::WORDS, CacheTier::from_word)),
        max_size: fields.get("max_size").and_then(|node| reading.size(node, "`max_size`")),
        connection: fields.get("connection").and_then(|node| reading.outer_name(node, "connection")),
    };
    let place = if matches!(node.kind, Kind::Scalar(_)) { key.span } else { node.span };
    Some(Spanned::new(policy, place))
}
