//! Python functions as steps of workflows: from what `rowmill._step` says to the step of a workflow's text.

use std::time::Duration;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use rowmill::spec::{
    Effects, ItemPolicy, Limit, MaxErrors, PythonGiven, PythonStep, Rate, ResourceClass, Resources, Retry, Spanned,
    Value,
};
use rowmill_engine::types::{logical_name, logical_type};
use rowmill_step_python::BROUGHT;

use crate::cdata;
use crate::session::shared;
use crate::workers::word;

/// Keeps a pickled function for steps of workflows that run in this program, and gives its name in their text.
#[pyfunction]
pub(crate) fn bring(py: Python<'_>, name: &str, pickle: &Bound<'_, PyBytes>) -> PyResult<String> {
    let print = rowmill_engine::durable::fingerprint(&format!("{:?}", pickle.as_bytes()));
    let name = format!("{name}_{}", print.get(..16).unwrap_or(&print));
    shared(py)?.program.add(name.clone(), pickle.as_bytes());
    Ok(format!("{BROUGHT}:{name}"))
}

/// Has workers look for modules where this program does.
pub(crate) fn look_around(py: Python<'_>) -> PyResult<()> {
    let folders: Vec<Bound<'_, PyAny>> = py.import("sys")?.getattr("path")?.extract()?;
    let here = std::env::current_dir().unwrap_or_default();
    // What is no text (a path object) is passed over, as imports do.
    let folders = folders.iter().filter_map(|folder| folder.extract::<String>().ok());
    let folders = folders.map(|folder| if folder.is_empty() { here.display().to_string() } else { folder });
    let program = shared(py)?.program.clone();
    program.look_in(folders.collect());
    let logging = py.import("rowmill._functions")?.getattr("logging_of")?.call0()?;
    program.log_as(crate::workers::logging(&logging)?);
    Ok(())
}

/// A step, what it does about its items, and what it needs.
pub(crate) fn python(said: &Bound<'_, PyDict>) -> PyResult<(PythonStep, ItemPolicy, Resources)> {
    let get =
        |key: &str| said.get_item(key)?.ok_or_else(|| PyTypeError::new_err(format!("a Python step says its `{key}`")));
    let count = |key: &str| get(key)?.extract::<Option<u64>>();
    let mut step = PythonStep::new(get("from")?.extract::<String>()?, get("function")?.extract::<String>()?);
    for column in get("reads")?.extract::<Vec<String>>()? {
        step = step.read(column);
    }
    let schema = cdata::schema_from_python(&get("output")?)?;
    for field in schema.fields() {
        let kind = logical_type(field.data_type()).ok_or_else(|| {
            let kind = logical_name(field.data_type());
            PyTypeError::new_err(format!("column `{}` is {kind}, which a workflow's text cannot say", field.name()))
        })?;
        step = step.column(field.name(), kind);
    }
    if let Some(given) = get("given")?.extract::<Option<String>>()? {
        step = step.given(word("kind of argument", &given, PythonGiven::from_word(&given))?);
    }
    if get("fan_out")?.extract()? {
        step = step.fan_out();
    }
    if let Some(calls) = count("calls")? {
        step = step.calls(calls);
    }
    if let Some((calls, seconds)) = get("rate")?.extract::<Option<(u64, u32)>>()? {
        step = step.rate_limit(Rate { calls, seconds });
    }
    if let Some(bytes) = count("memory_bytes")? {
        step.memory = Some(Spanned::bare(Limit::Most(bytes)));
    }
    let effects: String = get("effects")?.extract()?;
    let mut items = ItemPolicy::default().effects(word("kind of effects", &effects, Effects::from_word(&effects))?);
    let on_error: String = get("on_error")?.extract()?;
    items = match on_error.as_str() {
        "fail" => items,
        "skip" => items.skip_errors(),
        "dead_letter" => items.dead_letters(),
        _ => items.default_on_error(defaults(&get("default")?)?),
    };
    if let Some((number, is_share)) = get("max_errors")?.extract::<Option<(f64, bool)>>()? {
        items = items.max_errors(match is_share {
            true => MaxErrors::Share { share: number, after: None },
            false => MaxErrors::Count(number as u64),
        });
    }
    let retries: u32 = get("retries")?.extract()?;
    if retries > 0 {
        items = items.retry(Retry::attempts(retries.saturating_add(1)));
    }
    if let Some(seconds) = get("timeout_s")?.extract::<Option<f64>>()? {
        items = items.timeout(Duration::from_millis((seconds * 1000.0).ceil() as u64));
    }
    if let Some(rows) = count("group_rows")? {
        items = items.batch_rows(rows);
    }
    if let Some(workers) = count("workers")? {
        items = items.in_flight(workers);
    }
    let cache = get("cache")?;
    if !cache.is_none() {
        items = items.cache(crate::items::cache_policy(cache.cast::<PyDict>()?)?);
    }
    let class: Option<String> = get("class")?.extract()?;
    let resources = class.map(|class| Resources::class(ResourceClass::from_word(&class))).unwrap_or_default();
    Ok((step, items, resources))
}

/// The row that stands in for those that failed, as values of a workflow's text.
fn defaults(row: &Bound<'_, PyAny>) -> PyResult<Vec<(String, Value)>> {
    let row = cdata::batch_from_python(row)?;
    let mut values = Vec::new();
    for (field, column) in row.schema().fields().iter().zip(row.columns()) {
        use arrow::array::Array as _;
        // A column that is not named is null.
        if column.is_null(0) {
            continue;
        }
        let wrong = |why: String| PyValueError::new_err(format!("the default of column `{}`: {why}", field.name()));
        let kind = logical_type(field.data_type())
            .ok_or_else(|| wrong(format!("{} has no text", logical_name(field.data_type()))))?;
        let text = arrow::util::display::array_value_to_string(column, 0).map_err(|error| wrong(error.to_string()))?;
        values.push((field.name().clone(), Value::parse(&kind, &text).map_err(wrong)?));
    }
    Ok(values)
}
