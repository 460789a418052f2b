//! What a step's text says about its items, as the step operator goes by it.

use arrow::array::{RecordBatch, new_null_array};
use arrow::datatypes::SchemaRef;
use indexmap::IndexMap;
use rowmill_items::{Order, StepPolicy};
use rowmill_spec::{Diagnostic, RawValue, Step};
use rowmill_step::{Effects, OnError, RetryPolicy, StepDescription};

use crate::types::{logical_name, logical_type, scalar};

/// The policy of a step that adds the columns `adds`.
pub(super) fn policy(
    step: &Step,
    description: &StepDescription,
    adds: &SchemaRef,
    errors: &mut Vec<Diagnostic>,
) -> StepPolicy {
    let items = &step.items;
    let mut policy = StepPolicy::of(description);
    if let Some(effects) = &items.effects {
        policy.effects = Effects::from(effects.value);
    }
    if let Some(on_error) = &items.on_error {
        match OnError::from_spec(&on_error.value, |values| default_row(step, values, adds)) {
            Ok(on_error) => policy.on_error = on_error,
            Err(reports) => errors.extend(reports),
        }
    }
    policy.max_errors = items.max_errors.as_ref().map(|most| most.value.into());
    if let Some(retry) = &items.retry {
        policy.retry = RetryPolicy::from(&retry.value);
        if let Err(message) = policy.retry.check() {
            let report = Diagnostic::error("RM0406", format!("`retry` of step `{}`: {message}", step.name.value));
            errors.push(report.at(retry.span, ""));
        }
    }
    policy.timeout = items.timeout.as_ref().map(|time| time.value);
    policy.deadline = items.deadline.as_ref().map(|time| time.value);
    policy.target = rowmill_step::batch_target(step, policy.target);
    if let Some(order) = &items.order {
        policy.order = match order.value {
            rowmill_spec::RowOrder::Input => Order::Input,
            rowmill_spec::RowOrder::Any => Order::Any,
        };
    }
    policy
}

/// One row of the step's columns out of `on_error: {default: {...}}`; columns that are not named are null.
fn default_row(
    step: &Step,
    values: &IndexMap<String, RawValue>,
    adds: &SchemaRef,
) -> Result<RecordBatch, Vec<Diagnostic>> {
    let name = &step.name.value;
    let mut errors = Vec::new();
    for (column, value) in values {
        if adds.index_of(column).is_err() {
            let known: Vec<&str> = adds.fields().iter().map(|field| field.name().as_str()).collect();
            errors.push(
                Diagnostic::error("RM0304", format!("step `{name}` has no column `{column}` to give a default"))
                    .at(value.name.span, "")
                    .help(format!("it adds {}", known.join(", "))),
            );
        }
    }
    let mut columns = Vec::new();
    for field in adds.fields() {
        let Some(value) = values.get(field.name()) else {
            if !field.is_nullable() {
                errors.push(
                    Diagnostic::error(
                        "RM0404",
                        format!("the default of step `{name}` lacks column `{}`, which cannot be null", field.name()),
                    )
                    .at(step.items.place("on_error"), ""),
                );
            }
            columns.push(new_null_array(field.data_type(), 1));
            continue;
        };
        let Some(kind) = logical_type(field.data_type()) else {
            errors.push(
                Diagnostic::error(
                    "RM0408",
                    format!(
                        "column `{}` of type {} cannot have a default",
                        field.name(),
                        logical_name(field.data_type())
                    ),
                )
                .at(value.span, ""),
            );
            continue;
        };
        let made = value.read(&kind).and_then(|value| {
            let wrong = |message: String| Diagnostic::error("RM0403", message).at(value.span, "");
            let array = scalar(&value.value).and_then(|value| value.to_array()).map_err(|e| wrong(e.to_string()))?;
            arrow::compute::cast(&array, field.data_type()).map_err(|error| wrong(error.to_string()))
        });
        match made {
            Ok(array) => columns.push(array),
            Err(report) => errors.push(report),
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    RecordBatch::try_new(adds.clone(), columns)
        .map_err(|error| vec![Diagnostic::error("RM0403", error.to_string()).at(step.items.place("on_error"), "")])
}
