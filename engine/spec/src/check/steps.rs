//! What must hold for steps of every kind: settings that their kind takes, and settings that fit together.

use std::collections::HashMap;
use std::time::Duration;

use super::Checker;
use crate::codes;
use crate::diagnostic::Diagnostic;
use crate::model::{
    CachePolicy, CacheTier, Effects, FAILURE_CODES, LookupStep, MaxErrors, OnError, Retry, Step, StepKind,
};
use crate::names::{bad_name, is_identifier};
use crate::span::{Span, Spanned};
use crate::suggest::listed;

/// What `sql` steps take of the settings about items: the engine runs them as part of its own plans.
const SQL_TAKES: &[&str] = &["on_error", "max_errors", "cache"];

impl Checker<'_> {
    pub(super) fn step(&mut self, step: &Step) {
        match &step.kind {
            StepKind::Sql(sql) => {
                if sql.text.text.trim().is_empty() {
                    let message = format!("the query of step `{}` is empty", step.name.value);
                    let report = Diagnostic::error(codes::BAD_VALUE, message).at(sql.text.span, "");
                    self.report(report.help("write a query, such as `SELECT * FROM source`"));
                }
            }
            StepKind::Http(http) => {
                for template in http.templates() {
                    self.template(template);
                }
            }
            StepKind::Lookup(lookup) => self.lookup(step, lookup),
            StepKind::Command(command) => {
                for template in command.templates() {
                    self.template(template);
                }
            }
            StepKind::Python(_) => {}
            StepKind::Gpu(gpu) => self.template(&gpu.top_k.corpus),
            StepKind::Model(model) => {
                self.template(&model.file);
                if let Some((tensor, _)) = model.inputs.iter().find(|(_, columns)| columns.is_empty()) {
                    let message = format!("input `{tensor}` of step `{}` has no columns", step.name.value);
                    let report = Diagnostic::error(codes::BAD_VALUE, message).at(model.inputs.span, "");
                    self.report(report.help("name the columns of each input: `inputs: {x: [length, width]}`"));
                }
            }
        }
        if let Some(connection) = step.kind.connection()
            && !is_identifier(connection)
        {
            self.report(bad_name("connection", connection, connection.span));
        }
        if let Some(from) = step.kind.from()
            && from.value == step.name.value
        {
            let message = format!("step `{}` takes its own rows", step.name.value);
            let report = Diagnostic::error(codes::CYCLE, message).at(from.span, "");
            self.report(report.help("let `from` name another step or a source"));
        }
        self.items(step);
    }

    fn lookup(&mut self, step: &Step, lookup: &LookupStep) {
        let name = &step.name.value;
        let text = &lookup.query.text;
        if text.trim().is_empty() {
            let report = Diagnostic::error(codes::BAD_VALUE, format!("the query of step `{name}` is empty"))
                .at(lookup.query.span, "");
            self.report(report.help("write a query, such as `SELECT seats FROM planes WHERE tail = {tail}`"));
        }
        for (at, _) in text.match_indices("${") {
            // `$${` begins a quoted text in PostgreSQL.
            if text[..at].ends_with('$') {
                continue;
            }
            let end = text[at..].find('}').map_or(text.len(), |length| at + length + 1);
            let report = Diagnostic::error(
                codes::BAD_TEMPLATE,
                format!("the query of step `{name}` takes no parameters or variables"),
            )
            .at(lookup.query.span_of(at..end), "no text is pasted into a query");
            self.report(report.help(
                "add the value as a column in a SQL step before this one (`SELECT *, $name AS name FROM ...`), and \
                 write `{name}` here",
            ));
        }
    }

    fn items(&mut self, step: &Step) {
        let (name, items) = (&step.name.value, &step.items);
        for (key, place) in items.present() {
            let help = match (&step.kind, key) {
                (StepKind::Sql(_), key) if !SQL_TAKES.contains(&key) => {
                    format!("remove it; a `sql` step takes {} of these settings", listed(SQL_TAKES.iter().copied()))
                }
                (StepKind::Http(_), "batch") => {
                    "say how many items go into one request in `many`: `max_items` and `max_bytes`".to_owned()
                }
                _ => continue,
            };
            let kind = step.kind.key();
            let report = Diagnostic::error(codes::NOT_APPLICABLE, format!("`{key}` does not apply to a `{kind}` step"))
                .at(place, format!("`{name}` is a `{kind}` step"));
            self.report(report.help(help));
        }
        if let Some(memory) = &step.resources.memory
            && !matches!(step.kind, StepKind::Sql(_))
        {
            let kind = step.kind.key();
            let message = format!("`resources.memory` does not apply to a `{kind}` step");
            let report = Diagnostic::error(codes::NOT_APPLICABLE, message).at(memory.span, "");
            self.report(report.help(
                "remove it; what an executor does of such steps at a time is bounded by `in_flight` and its slots",
            ));
        }
        if let Some(retry) = &items.retry {
            self.retry(name, retry);
        }
        if let Some(most) = &items.max_errors {
            self.max_errors(name, most);
        }
        let durations = [("timeout", &items.timeout), ("deadline", &items.deadline)];
        for (key, time) in durations {
            self.duration(name, key, time.as_ref(), true);
        }
        if let (Some(timeout), Some(deadline)) = (&items.timeout, &items.deadline)
            && timeout.value > deadline.value
        {
            let report = Diagnostic::error(
                codes::BAD_COMBINATION,
                format!("one attempt of step `{name}` may take longer than all of them together"),
            )
            .at(timeout.span, "the time of one attempt")
            .at(deadline.span, "the time of an item, all attempts together");
            self.report(report.help("let `deadline` be at least `timeout`"));
        }
        let counts =
            [("in_flight", &items.in_flight), ("batch.rows", &items.batch.rows), ("batch.bytes", &items.batch.bytes)];
        for (key, count) in counts {
            if let Some(count) = count.as_ref().filter(|count| count.value == 0) {
                let report = Diagnostic::error(codes::BAD_VALUE, format!("`{key}` of step `{name}` is zero"));
                self.report(report.at(count.span, "").help("give at least 1"));
            }
        }
        if let Some(cache) = &items.cache {
            self.cache(step, cache);
        }
        if let Some(Spanned { value: OnError::Default(values), span }) = &items.on_error
            && values.is_empty()
        {
            let message = format!("`on_error` of step `{name}` has a default without columns");
            let report = Diagnostic::error(codes::BAD_VALUE, message).at(*span, "");
            self.report(report.help("list columns of the step and their values: `{default: {score: 0}}`"));
        }
    }

    /// Whole milliseconds, and more than nothing where `positive`.
    fn duration(&mut self, step: &str, key: &str, time: Option<&Spanned<Duration>>, positive: bool) {
        let Some(time) = time else { return };
        let wrong = if positive && time.value.is_zero() {
            "is no time at all"
        } else if time.value.subsec_nanos() % 1_000_000 != 0 {
            "is not a whole number of milliseconds"
        } else {
            return;
        };
        let report = Diagnostic::error(codes::BAD_VALUE, format!("`{key}` of step `{step}` {wrong}"));
        self.report(report.at(time.span, "").help("write a time such as `250ms`, `5s` or `2m`"));
    }

    fn retry(&mut self, step: &str, retry: &Spanned<Retry>) {
        let place = |span: Span| if span.is_none() { retry.span } else { span };
        if let Some(attempts) = retry.attempts.as_ref().filter(|attempts| attempts.value == 0) {
            let report = Diagnostic::error(codes::BAD_VALUE, format!("step `{step}` is given no attempt at all"));
            self.report(report.at(place(attempts.span), "").help("the first attempt counts: give at least 1"));
        }
        if let Some(factor) = retry.factor.as_ref().filter(|factor| !(factor.is_finite() && factor.value >= 1.0)) {
            let report = Diagnostic::error(codes::BAD_VALUE, format!("`factor` of step `{step}` is below 1"));
            self.report(report.at(place(factor.span), "").help("give a number of 1 or more, so that waits grow"));
        }
        for (key, time) in [
            ("initial_backoff", &retry.initial_backoff),
            ("max_backoff", &retry.max_backoff),
            ("max_retry_after", &retry.max_retry_after),
        ] {
            self.duration(step, key, time.as_ref(), false);
        }
        if let (Some(initial), Some(most)) = (&retry.initial_backoff, &retry.max_backoff)
            && initial.value > most.value
        {
            let report = Diagnostic::error(
                codes::BAD_COMBINATION,
                format!("the first wait of step `{step}` is longer than the longest"),
            )
            .at(initial.span, "the first wait")
            .at(most.span, "the longest");
            self.report(report.help("let `max_backoff` be at least `initial_backoff`"));
        }
        for code in retry.codes.iter().filter(|code| !FAILURE_CODES.contains(&code.value.as_str())) {
            self.report(crate::read::bad_word("`codes`", &code.value, FAILURE_CODES, place(code.span)));
        }
        for status in retry.statuses.iter().filter(|status| !(100..=599).contains(&status.value)) {
            let report = Diagnostic::error(codes::BAD_VALUE, format!("`{}` is not a status", status.value));
            self.report(report.at(place(status.span), "").help("statuses lie between 100 and 599"));
        }
    }

    fn max_errors(&mut self, step: &str, most: &Spanned<MaxErrors>) {
        if let MaxErrors::Share { share, after } = most.value {
            if !(0.0..=1.0).contains(&share) {
                let message = format!("`max_errors` of step `{step}` is not a share from 0% to 100%");
                self.report(Diagnostic::error(codes::BAD_VALUE, message).at(most.span, "").help("such as `1%`"));
            }
            if after == Some(0) {
                let message = format!("`max_errors` of step `{step}` is judged after no items");
                self.report(Diagnostic::error(codes::BAD_VALUE, message).at(most.span, "").help("give at least 1"));
            }
        }
    }

    /// A SQL step's result is kept whole, on disk, by what it hangs on.
    fn result_cache(&mut self, step: &Step, cache: &Spanned<CachePolicy>) {
        let name = &step.name.value;
        let key = cache.key.iter().flatten().next().map(|key| key.span);
        let tier = cache.tier.as_ref().filter(|tier| tier.value != CacheTier::Disk).map(|tier| tier.span);
        let size = cache.max_size.as_ref().map(|size| size.span);
        let connection = cache.connection.as_ref().map(|connection| connection.span);
        let places = [("key", key), ("tier", tier), ("max_size", size), ("connection", connection)];
        for (setting, place) in places.into_iter().filter_map(|(setting, place)| Some((setting, place?))) {
            let message = format!("`{setting}` does not apply to the cache of `{name}`, whose result is kept whole");
            let report = Diagnostic::error(codes::NOT_APPLICABLE, message).at(place, "");
            self.report(report.help("a `sql` step takes `cache: {ttl: ...}`; it is kept on disk, within `cache.disk`"));
        }
        if step.items.on_error.is_some() || step.items.max_errors.is_some() {
            let message = format!("the result of step `{name}` cannot be kept: it has an error policy");
            let report = Diagnostic::error(codes::BAD_COMBINATION, message).at(cache.span, "");
            self.report(report.help("put the conversions that may fail into a step of their own, without `cache`"));
        }
    }

    fn cache(&mut self, step: &Step, cache: &Spanned<CachePolicy>) {
        let name = &step.name.value;
        self.duration(name, "ttl", cache.ttl.as_ref(), true);
        if let StepKind::Sql(_) = &step.kind {
            return self.result_cache(step, cache);
        }
        if let Some(effects) = step.items.effects.as_ref().filter(|effects| effects.value == Effects::Once) {
            let report = Diagnostic::error(
                codes::BAD_COMBINATION,
                format!("step `{name}` has effects each time, so its answers cannot be kept instead"),
            )
            .at(cache.span, "a cache leaves calls out")
            .at(effects.span, "every call counts");
            self.report(report.help("remove `cache`, or declare `effects: idempotent` if calling twice does no harm"));
        }
        let redis = cache.tier.as_ref().filter(|tier| tier.value == CacheTier::Redis);
        match (redis, &cache.connection) {
            (Some(tier), None) => {
                let report = Diagnostic::error(
                    codes::MISSING_KEY,
                    format!("the cache of step `{name}` does not say which redis server"),
                );
                self.report(report.at(tier.span, "").help("add `connection: NAME`, a redis connection"));
            }
            (None, Some(connection)) => {
                let report = Diagnostic::error(
                    codes::NOT_APPLICABLE,
                    format!("`connection` does not apply to the cache of step `{name}`"),
                )
                .at(connection.span, "only answers in redis need a connection");
                self.report(report.help("add `tier: redis`, or remove it"));
            }
            _ => {}
        }
        let mut seen: HashMap<&str, Span> = HashMap::new();
        for column in cache.key.iter().flatten() {
            if let Some(earlier) = seen.insert(&column.value, column.span) {
                let message = format!("the cache key of step `{name}` has column `{}` twice", column.value);
                let report = Diagnostic::error(codes::BAD_VALUE, message)
                    .at(column.span, "the second time")
                    .at(earlier, "the first time");
                self.report(report.help("remove one of the two"));
            }
        }
    }
}
