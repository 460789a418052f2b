//! Pass: gives parameters and variables their values, and fills in the templates of paths.
//!
//! Values are typed here, and reach SQL as typed literals of a plan, never as text. Leaves the SQL text alone.

use std::collections::BTreeMap;
use std::path::PathBuf;

use datafusion::common::ScalarValue;
use rowmill_spec::template::Piece;
use rowmill_spec::{Diagnostic, Span, Spanned, Template, Value, Workflow};

use super::{Inputs, Reports};
use crate::types::scalar;

/// Names with their values.
#[derive(Debug, Default)]
pub struct Bound {
    /// Parameters.
    pub params: BTreeMap<String, Value>,
    /// Variables.
    pub vars: BTreeMap<String, Value>,
    /// Parameters as DataFusion takes them.
    pub scalars: Vec<(String, ScalarValue)>,
    /// The folder that relative paths start from.
    pub base: PathBuf,
}

impl Bound {
    /// The text of a template that is no path: values as they are. Whoever uses it sees to it that no value is taken
    /// for anything but text.
    pub fn text(&self, template: &Template) -> Result<String, Diagnostic> {
        let mut text = String::new();
        for piece in &template.pieces {
            let (kind, name, value) = match piece {
                Piece::Literal(literal) => {
                    text.push_str(literal);
                    continue;
                }
                Piece::Param(name) => ("params", name, self.params.get(&name.value)),
                Piece::Var(name) => ("vars", name, self.vars.get(&name.value)),
            };
            match value {
                Some(Value::Null(_)) => {
                    return Err(refused(name, format!("{kind}.{} is null and cannot be part of a text", name.value)));
                }
                Some(value) => text.push_str(&value.to_string()),
                // A name without a value was reported where it was bound.
                None => {}
            }
        }
        Ok(text)
    }

    /// Fills in a template that makes a path.
    ///
    /// A value that stands alone may be any path. One that is a part of a path must stay below it: absolute values,
    /// `..`, backslashes and NUL are refused, so that a parameter cannot lead a sink out of its folder.
    pub fn path(&self, template: &Template) -> Result<(String, Span), Box<Diagnostic>> {
        let mut path = String::new();
        let alone = template.pieces.len() == 1;
        for piece in &template.pieces {
            let (kind, name, value) = match piece {
                Piece::Literal(text) => {
                    path.push_str(text);
                    continue;
                }
                Piece::Param(name) => ("params", name, self.params.get(&name.value)),
                Piece::Var(name) => ("vars", name, self.vars.get(&name.value)),
            };
            // A name without a value was reported where it was bound.
            let Some(value) = value else { continue };
            let text = match value {
                Value::Null(_) => {
                    return Err(Box::new(refused(
                        name,
                        format!("{kind}.{} is null and cannot be part of a path", name.value),
                    )));
                }
                value => value.to_string(),
            };
            let leads_out =
                text.starts_with('/') || text.contains(['\\', '\0']) || text.split('/').any(|part| part == "..");
            // A variable at the front is a folder of the environment: `${vars.data}/flights.parquet`.
            let is_root = path.is_empty() && !text.contains('\0');
            if !alone && !is_root && (leads_out || text.is_empty()) {
                return Err(Box::new(
                    refused(
                        name,
                        format!("the value {text:?} of {kind}.{} leads out of the path it is part of", name.value),
                    )
                    .help("a value inside a path is a name or a relative path without `..`"),
                ));
            }
            path.push_str(&text);
        }
        Ok((path, template.span))
    }
}

fn refused(name: &Spanned<String>, message: String) -> Diagnostic {
    Diagnostic::error("RM0409", message).at(name.span, "")
}

/// Binds every parameter and variable.
pub fn bind(workflow: &Workflow, inputs: &Inputs, reports: &mut Reports) -> Bound {
    let mut bound = Bound { base: inputs.base.clone(), ..Bound::default() };
    for (name, _) in &inputs.params {
        if !workflow.params.contains_key(name) {
            reports.push(unknown("parameter", name, workflow.params.keys(), "RM0401"));
        }
    }
    for name in inputs.vars.keys() {
        if !workflow.vars.contains_key(name) {
            reports.push(unknown("variable", name, workflow.vars.keys(), "RM0402"));
        }
    }
    for (name, param) in &workflow.params {
        let given = inputs.params.iter().rev().find(|(given, _)| given == name).map(|(_, text)| text.as_str());
        let value = match (inputs.values.get(name), given) {
            (Some(value), _) => Ok(value.clone()),
            (None, Some(text)) => Value::parse(&param.kind, text).map_err(|error| error.to_string()),
            (None, None) => match &param.default {
                Some(default) => Ok(default.value.clone()),
                None => {
                    reports.push(
                        Diagnostic::error("RM0404", format!("parameter `{name}` has no value"))
                            .at(param.name.span, "declared here without a default")
                            .help(format!("give one: --set {name}={}", example(&param.kind))),
                    );
                    continue;
                }
            },
        };
        match value {
            Ok(value) => {
                match scalar(&value) {
                    Ok(scalar) => bound.scalars.push((name.clone(), scalar)),
                    Err(error) => {
                        reports.push(wrong_value("parameter", name, &error.strip_backtrace(), param.kind.span))
                    }
                }
                bound.params.insert(name.clone(), value);
            }
            Err(reason) => reports.push(wrong_value("parameter", name, &reason, param.kind.span)),
        }
    }
    for (name, variable) in &workflow.vars {
        let value = match (inputs.vars.get(name), &variable.default) {
            (Some(value), _) => value.clone(),
            (None, Some(default)) => default.value.clone(),
            (None, None) => {
                reports.push(
                    Diagnostic::error("RM0404", format!("variable `{name}` has no value"))
                        .at(variable.name.span, "declared here without a default")
                        .help("give it in a file of variables: --vars FILE"),
                );
                continue;
            }
        };
        bound.vars.insert(name.clone(), value);
    }
    bound
}

fn wrong_value(what: &str, name: &str, reason: &str, span: Span) -> Diagnostic {
    Diagnostic::error("RM0403", format!("{what} `{name}`: {reason}")).at(span, "its type is declared here")
}

fn unknown<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a String>, code: &'static str) -> Diagnostic {
    let known: Vec<&String> = known.collect();
    let report = Diagnostic::error(code, format!("the workflow has no {what} `{name}`"));
    let nearest = known
        .iter()
        .map(|other| (strsim::damerau_levenshtein(name, other), other))
        .filter(|(distance, _)| *distance <= name.len().max(3) / 3)
        .min();
    match (nearest, known.is_empty()) {
        (Some((_, other)), _) => report.help(format!("did you mean `{other}`?")),
        (None, true) => report.help(format!("it declares no {what}s")),
        (None, false) => {
            let names: Vec<&str> = known.iter().map(|name| name.as_str()).collect();
            report.help(format!("it declares {}", names.join(", ")))
        }
    }
}

fn example(kind: &rowmill_spec::LogicalType) -> &'static str {
    use rowmill_spec::LogicalType::*;
    match kind {
        Bool => "true",
        Int8 | Int16 | Int32 | Int64 | UInt8 | UInt16 | UInt32 | UInt64 => "1",
        Float32 | Float64 | Decimal { .. } => "1.5",
        Date => "2026-01-31",
        Time(_) => "12:30:00",
        Timestamp { .. } => "2026-01-31T12:30:00",
        String | Binary => "text",
        List(_) => "'[1, 2]'",
        Struct(_) => "'{...}'",
    }
}
