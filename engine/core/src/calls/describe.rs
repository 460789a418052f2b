//! Checks a step that is not SQL: its options, its connection, the columns it reads and adds, its policy.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arrow::datatypes::{Field, Schema, SchemaRef};
use rowmill_cache::Freshness;
use rowmill_items::{StepCache, StepPolicy, Tally};
use rowmill_spec::{Diagnostic, Piece, Span, Step, Template};
use rowmill_step::{
    Failure, FailureCode, Fingerprint, FingerprintBuilder, NoLimit, SecretRef, StepDescription, StepShape, caught,
};
use tokio_util::sync::CancellationToken;

use super::policy::policy;
use super::{Call, Host};
use crate::compile::bind_values::Bound;
use crate::compile::sql_errors::nearest;
use crate::elsewhere::Attempts;

/// Checks `step`, which takes rows with the columns `input`.
///
/// # Errors
/// Everything that is wrong with it, as far as it can be known.
pub async fn describe(step: &Step, input: &SchemaRef, bound: &Bound, host: &Host) -> Result<Call, Vec<Diagnostic>> {
    let name = &step.name.value;
    let kind = step.kind.key();
    let Some(from) = step.kind.from() else {
        return Err(vec![Diagnostic::error("RM0900", format!("step `{name}` takes rows from nowhere"))]);
    };
    let Some(factory) = host.kinds.get(kind) else {
        return Err(vec![
            Diagnostic::error("RM0209", format!("step `{name}` is of kind `{kind}`, which this program does not have"))
                .at(step.name.span, "")
                .help("the program that runs the workflow must bring the kind; the `rowmill` command has all of them"),
        ]);
    };
    if let Some(connection) = step.kind.connection()
        && let Err(failure) = host.connections.settings(&connection.value)
    {
        let report = Diagnostic::error("RM0411", format!("step `{name}`: {}", failure.message()));
        return Err(vec![
            report
                .at(connection.span, "")
                .help(format!("declare it in the configuration: `connections: {{{}: ...}}`", connection.value)),
        ]);
    }
    let (executor, values) = {
        // What the step's templates name is what another process needs to build it as here.
        let named = RefCell::new(BTreeMap::new());
        let fill = |template: &Template| {
            for piece in &template.pieces {
                let name = match piece {
                    Piece::Literal(_) => continue,
                    Piece::Param(name) => format!("params.{}", name.value),
                    Piece::Var(name) => format!("vars.{}", name.value),
                };
                let one = Template { text: String::new(), span: template.span, pieces: vec![piece.clone()] };
                let text = bound.text(&one)?;
                named.borrow_mut().insert(name, text);
            }
            bound.text(template)
        };
        let executor = factory.build_in(step, &fill, &bound.base)?;
        (executor, named.into_inner())
    };
    let description = executor.describe().clone();
    let mut errors = Vec::new();
    let mut read = Vec::new();
    for column in &description.reads {
        match input.index_of(column) {
            Ok(at) => read.push(input.field(at).as_ref().clone().with_nullable(true)),
            Err(_) => {
                let columns = input.fields().iter().map(|field| field.name().as_str());
                let report = Diagnostic::error(
                    "RM0304",
                    format!("step `{name}` uses column `{column}`, which `{}` does not have", from.value),
                )
                .at(step.name.span, "");
                errors.push(match nearest(column, columns.clone()) {
                    Some(other) => report.help(format!("did you mean `{other}`?")),
                    None => report.help(format!("it has {}", columns.collect::<Vec<_>>().join(", "))),
                });
            }
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let read: SchemaRef = Arc::new(Schema::new(read));
    let context = host.context("check", name, &CancellationToken::new(), Arc::new(NoLimit));
    let adds = caught(executor.output_schema(&read, &context), &context).await;
    let adds = adds.map_err(|failure| vec![cannot_describe(name, step.name.span, &failure)])?;
    for field in adds.fields() {
        if input.index_of(field.name()).is_ok() {
            errors.push(
                Diagnostic::error(
                    "RM0311",
                    format!("step `{name}` adds a column `{}`, which `{}` has already", field.name(), from.value),
                )
                .at(step.name.span, "")
                .help("give it another name, or leave the column out in a SQL step before"),
            );
        }
    }
    let policy = policy(step, &description, &adds, &mut errors);
    let cache = cache(step, input, &description, &policy, host, &mut errors).await;
    let shape = StepShape { input: read, output: adds };
    let mut executor = executor;
    if let Some(elsewhere) = &host.elsewhere {
        let class = step.resources.class.as_ref().map_or_else(|| step.kind.class(), |class| class.value.clone());
        let attempts = Attempts {
            step,
            values: &values,
            base: &bound.base,
            class: class.as_str(),
            effects: policy.effects,
            in_flight: policy.target.in_flight,
            executor: &executor,
            shape: &shape,
        };
        match elsewhere.attempts(attempts) {
            Ok(other) => executor = other,
            Err(report) => errors.push(report),
        }
    }
    match errors.is_empty() {
        true => Ok(Call {
            step: Arc::from(name.as_str()),
            shape,
            from: from.value.clone(),
            input: Arc::clone(input),
            policy,
            connections: description.connections.clone(),
            calls_per_second: step.kind.calls_per_second(),
            cache,
            tally: Arc::new(Tally::default()),
            executor,
        }),
        false => Err(errors),
    }
}

/// Settings of a connection that say whom a step asks; the others say how.
const WHOM: [&str; 6] = ["base_url", "url", "headers", "user", "database", "path"];

/// What a step's results hang on: what it does, by which columns items are told apart, whom it asks, and with whose credentials. Whoever has other credentials
/// may be answered otherwise, and must not see what others were answered.
fn with_connections(description: &StepDescription, key: &[String], host: &Host) -> Result<Fingerprint, Failure> {
    let mut print = FingerprintBuilder::new("answers", 2).field("step", description.fingerprint.to_string());
    // One value of `id` is another question than the same value of `v`.
    for name in key {
        print = print.field("key", name);
    }
    for name in &description.connections {
        let settings = host.connections.settings(name)?;
        print = print.field("connection", name.as_bytes());
        let mut open = Vec::new();
        for (key, value) in settings.options.as_object().into_iter().flatten() {
            if WHOM.contains(&key.as_str()) {
                print = print.field(key, value.to_string());
            } else {
                open.push(value);
            }
        }
        while let Some(value) = open.pop() {
            match value {
                serde_json::Value::Object(object) => open.extend(object.values()),
                serde_json::Value::Array(list) => open.extend(list),
                serde_json::Value::String(text) => {
                    if let Ok(reference) = SecretRef::try_from(text.clone()) {
                        print = print.field("credential", host.connections.resolve(&reference)?.expose());
                    }
                }
                _ => {}
            }
        }
    }
    Ok(print.finish())
}

/// The step's cache, if it has one.
async fn cache(
    step: &Step,
    input: &SchemaRef,
    description: &StepDescription,
    policy: &StepPolicy,
    host: &Host,
    errors: &mut Vec<Diagnostic>,
) -> Option<(StepCache, Option<Duration>)> {
    let wanted = step.items.cache.as_ref()?;
    let name = &step.name.value;
    if !policy.effects.repeatable() {
        let report = Diagnostic::error("RM0113", format!("step `{name}` has effects `once`, so it cannot be cached"));
        errors.push(
            report
                .at(wanted.span, "")
                .help("what is not sent has no effect; if sending again does no harm, say `effects: idempotent`"),
        );
        return None;
    }
    let mut key = description.reads.clone();
    if let Some(columns) = &wanted.value.key {
        for column in columns {
            if input.index_of(&column.value).is_err() {
                let report =
                    Diagnostic::error("RM0304", format!("step `{name}` has no column `{}` to cache by", column.value));
                let known: Vec<&str> = input.fields().iter().map(|field| field.name().as_str()).collect();
                errors.push(report.at(column.span, "").help(format!("it has {}", known.join(", "))));
            }
        }
        key = columns.iter().map(|column| column.value.clone()).collect();
    }
    let ttl = wanted.value.ttl.as_ref().map(|ttl| ttl.value);
    let fingerprint = match with_connections(description, &key, host) {
        Ok(fingerprint) => fingerprint,
        Err(failure) => {
            let report = Diagnostic::error("RM0410", format!("the cache of step `{name}`: {}", failure.message()));
            errors.push(report.at(wanted.span, "").fault(rowmill_spec::Fault::Environment));
            return None;
        }
    };
    match host.caches.of_step(name, &wanted.value).await {
        Ok(cache) => {
            let cache = StepCache {
                cache,
                tenant: Arc::clone(&host.tenant),
                fingerprint,
                key,
                fresh: Freshness::new(SystemTime::now(), ttl),
                ttl,
            };
            Some((cache, ttl))
        }
        Err(message) => {
            let report = Diagnostic::error("RM0412", format!("the cache of step `{name}`: {message}"));
            errors.push(report.at(wanted.span, "").fault(rowmill_spec::Fault::Environment));
            None
        }
    }
}

/// All columns of the step: those of its input, then those it adds.
pub fn columns(call: &Call) -> SchemaRef {
    let fields: Vec<Field> =
        call.input.fields().iter().chain(call.shape.output.fields()).map(|field| field.as_ref().clone()).collect();
    Arc::new(Schema::new(fields))
}

fn cannot_describe(name: &str, place: Span, failure: &Failure) -> Diagnostic {
    let report = Diagnostic::error("RM0412", format!("step `{name}`: {}", failure.message())).at(place, "");
    match failure.code() {
        FailureCode::Setup => report.help("correct the step or its connection"),
        _ => report
            .fault(rowmill_spec::Fault::Environment)
            .help("the step's columns are asked of the other side; it must be reachable while a workflow is checked"),
    }
}
