//! From what a workflow says to executors: the factory that each step kind has, and the workflow's words for
//! policies and types as the values that this crate goes by.

use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, TimeUnit};
use rowmill_spec::{Diagnostic, LogicalType, Piece, Span, Step, Template, codes};

use crate::{BatchTarget, Effects, FailureCode, Jitter, MaxErrors, OnError, RetryPolicy, StepExecutor};

/// Turns a template into text with the run's parameters and variables, unescaped.
pub type Fill<'a> = &'a dyn Fn(&Template) -> Result<String, Diagnostic>;

/// Makes executors of one kind from what a workflow says.
pub trait StepFactory: std::fmt::Debug + Send + Sync {
    /// The key of the kind in the text.
    fn kind(&self) -> &'static str;

    /// Makes the executor of a step. `fill` gives a template's text with the run's values in it; the factory sees to
    /// it that no value is taken for anything but text (see [`fill_with`]).
    ///
    /// # Errors
    /// What is wrong with the options, each with its place.
    fn build(&self, step: &Step, fill: Fill<'_>) -> Result<Arc<dyn StepExecutor>, Vec<Diagnostic>>;

    /// As [`StepFactory::build`], for a workflow whose relative paths start from `base`: for kinds that look for things
    /// beside it.
    ///
    /// # Errors
    /// As [`StepFactory::build`].
    fn build_in(&self, step: &Step, fill: Fill<'_>, _base: &Path) -> Result<Arc<dyn StepExecutor>, Vec<Diagnostic>> {
        self.build(step, fill)
    }
}

/// The text of a template whose values, and nothing else, went through `escape`.
///
/// # Errors
/// Those of `fill` and of `escape`; a sentence of the latter is put at the value's place.
pub fn fill_with(
    template: &Template,
    fill: Fill<'_>,
    escape: impl Fn(&str) -> Result<String, String>,
) -> Result<String, Diagnostic> {
    let mut text = String::with_capacity(template.text.len());
    for piece in &template.pieces {
        match piece {
            Piece::Literal(literal) => text.push_str(literal),
            Piece::Param(name) | Piece::Var(name) => {
                let one = Template { text: template.text.clone(), span: template.span, pieces: vec![piece.clone()] };
                let value = fill(&one)?;
                text.push_str(&escape(&value).map_err(|message| {
                    Diagnostic::error(codes::BAD_VALUE, format!("the value of `{}` {message}", name.value))
                        .at(name.span, "")
                        .help("give another value")
                })?);
            }
        }
    }
    Ok(text)
}

/// The report of an option that an executor refuses, at the option's place or, where that is not known, at the step's
/// name.
pub fn refused(step: &Step, option: &str, message: &str, place: Span) -> Diagnostic {
    let name = &step.name;
    let place = if place.is_none() { name.span } else { place };
    Diagnostic::error(codes::BAD_VALUE, format!("`{option}` of step `{}`: {message}", name.value))
        .at(place, "")
        .help(format!("correct `{option}`; docs/reference/workflow.md says what a `{}` step takes", step.kind.key()))
}

/// The report of a step that came to the factory of another kind.
pub fn wrong_kind(step: &Step, factory: &str) -> Vec<Diagnostic> {
    let message = format!(
        "step `{}` is a `{}` step and came to the maker of `{factory}` steps",
        step.name.value,
        step.kind.key()
    );
    vec![Diagnostic::error(codes::INTERNAL, message).fault(rowmill_spec::Fault::Internal).help("please report this")]
}

/// The Arrow type in which a step kind makes a column of a logical type.
pub fn arrow_type(kind: &LogicalType) -> DataType {
    let unit_of = |unit: rowmill_spec::TimeUnit| match unit {
        rowmill_spec::TimeUnit::Second => TimeUnit::Second,
        rowmill_spec::TimeUnit::Millisecond => TimeUnit::Millisecond,
        rowmill_spec::TimeUnit::Microsecond => TimeUnit::Microsecond,
        rowmill_spec::TimeUnit::Nanosecond => TimeUnit::Nanosecond,
    };
    match kind {
        LogicalType::Bool => DataType::Boolean,
        LogicalType::Int8 => DataType::Int8,
        LogicalType::Int16 => DataType::Int16,
        LogicalType::Int32 => DataType::Int32,
        LogicalType::Int64 => DataType::Int64,
        LogicalType::UInt8 => DataType::UInt8,
        LogicalType::UInt16 => DataType::UInt16,
        LogicalType::UInt32 => DataType::UInt32,
        LogicalType::UInt64 => DataType::UInt64,
        LogicalType::Float32 => DataType::Float32,
        LogicalType::Float64 => DataType::Float64,
        LogicalType::Decimal { precision, scale } => DataType::Decimal128(*precision, *scale),
        LogicalType::String => DataType::Utf8,
        LogicalType::Binary => DataType::Binary,
        LogicalType::Date => DataType::Date32,
        LogicalType::Time(unit) => match unit_of(*unit) {
            unit @ (TimeUnit::Second | TimeUnit::Millisecond) => DataType::Time32(unit),
            unit => DataType::Time64(unit),
        },
        LogicalType::Timestamp { unit, zone } => DataType::Timestamp(unit_of(*unit), zone.as_deref().map(Arc::from)),
        LogicalType::List(item) => DataType::List(Arc::new(Field::new_list_field(arrow_type(item), true))),
        LogicalType::Struct(fields) => DataType::Struct(
            fields.iter().map(|(name, kind)| Field::new(name, arrow_type(kind), true)).collect::<Fields>(),
        ),
    }
}

/// A group's size as the step's text has it, and as the kind has it otherwise.
pub fn batch_target(step: &Step, mut target: BatchTarget) -> BatchTarget {
    let size = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    let items = &step.items;
    if let Some(rows) = &items.batch.rows {
        target.rows = size(rows.value);
    }
    if let Some(bytes) = &items.batch.bytes {
        target.bytes = size(bytes.value);
    }
    if let Some(in_flight) = &items.in_flight {
        target.in_flight = size(in_flight.value);
    }
    target
}

impl From<rowmill_spec::Effects> for Effects {
    fn from(effects: rowmill_spec::Effects) -> Self {
        match effects {
            rowmill_spec::Effects::Pure => Self::Pure,
            rowmill_spec::Effects::Idempotent => Self::Idempotent,
            rowmill_spec::Effects::Once => Self::Once,
        }
    }
}

impl From<rowmill_spec::Jitter> for Jitter {
    fn from(jitter: rowmill_spec::Jitter) -> Self {
        match jitter {
            rowmill_spec::Jitter::Full => Self::Full,
            rowmill_spec::Jitter::None => Self::None,
        }
    }
}

impl From<rowmill_spec::MaxErrors> for MaxErrors {
    fn from(most: rowmill_spec::MaxErrors) -> Self {
        match most {
            rowmill_spec::MaxErrors::Count(count) => Self::Count(count),
            rowmill_spec::MaxErrors::Share { share, after } => {
                Self::Share { share, after: after.unwrap_or(Self::DEFAULT_AFTER) }
            }
        }
    }
}

impl From<&rowmill_spec::Retry> for RetryPolicy {
    /// What the text leaves open is as by default; codes that this crate does not know are left out (the text's reader
    /// refuses them).
    fn from(retry: &rowmill_spec::Retry) -> Self {
        let default = Self::default();
        let initial_backoff = retry.initial_backoff.as_ref().map(|wait| wait.value);
        let max_backoff = retry.max_backoff.as_ref().map(|wait| wait.value);
        // One of the two alone never contradicts the default of the other.
        let initial = initial_backoff
            .unwrap_or_else(|| default.initial_backoff.min(max_backoff.unwrap_or(default.initial_backoff)));
        Self {
            attempts: retry.attempts.as_ref().map_or(default.attempts, |attempts| attempts.value),
            initial_backoff: initial,
            factor: retry.factor.as_ref().map_or(default.factor, |factor| factor.value),
            max_backoff: max_backoff.unwrap_or_else(|| default.max_backoff.max(initial)),
            jitter: retry.jitter.as_ref().map_or(default.jitter, |jitter| jitter.value.into()),
            honour_retry_after: retry.honour_retry_after.as_ref().map_or(default.honour_retry_after, |keep| keep.value),
            max_retry_after: retry.max_retry_after.as_ref().map_or(default.max_retry_after, |wait| wait.value),
            retry_codes: retry.codes.iter().filter_map(|code| FailureCode::from_name(&code.value)).collect(),
            retry_statuses: retry.statuses.iter().map(|status| status.value).collect(),
        }
    }
}

impl<D> OnError<D> {
    /// The policy of a text; `default` makes what the engine keeps of the default's values.
    ///
    /// # Errors
    /// Those of `default`.
    pub fn from_spec<E>(
        policy: &rowmill_spec::OnError,
        default: impl FnOnce(&indexmap::IndexMap<String, rowmill_spec::RawValue>) -> Result<D, E>,
    ) -> Result<Self, E> {
        Ok(match policy {
            rowmill_spec::OnError::Fail => Self::Fail,
            rowmill_spec::OnError::Skip => Self::Skip,
            rowmill_spec::OnError::DeadLetter => Self::DeadLetter,
            rowmill_spec::OnError::Default(values) => Self::Default(default(values)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_text_knows_the_codes_that_may_be_retried() {
        // What is never an item's fate is not offered: a step that cannot start, a run that was cancelled.
        let mut known: Vec<&str> = FailureCode::ALL.iter().map(|code| code.as_str()).collect();
        known.retain(|code| !matches!(*code, "setup" | "cancelled"));
        assert_eq!(rowmill_spec::FAILURE_CODES, known);
    }

    #[test]
    fn policies_come_over() {
        let default = RetryPolicy::default();
        assert_eq!(RetryPolicy::from(&rowmill_spec::Retry::default()), default);
        assert_eq!(RetryPolicy::from(&rowmill_spec::Retry::attempts(1)), RetryPolicy::none());
        let text = "rowmill: 1\nname: f\nsteps:\n  s:\n    lookup: {from: t, connection: c, query: 'SELECT {a}'}\n    retry: {max_backoff: 50ms, codes: [status], statuses: 500, jitter: none}\n    max_errors: 1%\n    on_error: {default: {a: 1}}\n";
        let workflow = rowmill_spec::parse_yaml("t.yaml", text).unwrap();
        let items = &workflow.steps["s"].items;
        let retry = RetryPolicy::from(&items.retry.as_ref().unwrap().value);
        assert_eq!(retry.check(), Ok(()));
        assert_eq!((retry.initial_backoff, retry.max_backoff), (Duration::from_millis(50), Duration::from_millis(50)));
        assert_eq!((retry.retry_codes, retry.retry_statuses), (vec![FailureCode::Status], vec![500]));
        assert_eq!(
            MaxErrors::from(items.max_errors.as_ref().unwrap().value),
            MaxErrors::Share { share: 0.01, after: MaxErrors::DEFAULT_AFTER }
        );
        let policy = OnError::from_spec(&items.on_error.as_ref().unwrap().value, |values| Ok::<_, ()>(values.len()));
        assert_eq!(policy, Ok(OnError::Default(1)));
    }

    #[test]
    fn only_values_are_escaped() {
        let template = Template::of("{a} ${params.p} {b}");
        let fill = |one: &Template| Ok(one.fill(|_| Some("<v>".to_owned())).unwrap());
        let text = fill_with(&template, &fill, |value| Ok(value.replace('<', "&lt;"))).unwrap();
        assert_eq!(text, "{a} &lt;v> {b}");
        assert!(fill_with(&template, &fill, |_| Err("is bad".to_owned())).unwrap_err().message.contains("`p` is bad"));
    }
}
