//! Workflows from files.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use rowmill_engine::compile::Inputs;
use rowmill_spec::{Diagnostic, Diagnostics, Fault, Value, Workflow};

/// Why a file gave no workflow.
pub type LoadError = Diagnostics;

/// Reads the workflow at `path` (`.yaml`, `.yml` or `.sql`). The inputs that come back take relative paths from its
/// folder; parameters are for the caller to add.
///
/// # Errors
/// When the file cannot be read, is too large for a workflow, or its text is wrong.
pub fn load(path: &Path) -> Result<(Arc<Workflow>, Inputs), LoadError> {
    let text = read_text(path)?;
    let workflow = rowmill_spec::parse(&path.display().to_string(), &text)?;
    let base = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let base = std::path::absolute(base).unwrap_or_else(|_| base.to_owned());
    Ok((Arc::new(workflow), Inputs { base, ..Inputs::default() }))
}

/// Reads a file of variables, each as the type that `workflow` declares.
///
/// # Errors
/// When it cannot be read, holds a variable that is not declared, or a value that is not of its type.
pub fn load_vars(path: &Path, workflow: &Workflow) -> Result<BTreeMap<String, Value>, Diagnostics> {
    let text = read_text(path)?;
    let values = rowmill_spec::parse_values(&path.display().to_string(), &text)?;
    let mut vars = BTreeMap::new();
    let mut reports = Vec::new();
    for (name, raw) in &values.entries {
        let Some(variable) = workflow.vars.get(name) else {
            let report =
                Diagnostic::error("RM0402", format!("the workflow has no variable `{name}`")).at(raw.name.span, "");
            let known: Vec<&str> = workflow.vars.keys().map(String::as_str).collect();
            reports.push(match known.is_empty() {
                true => report.help("it declares no variables"),
                false => report.help(format!("it declares {}", known.join(", "))),
            });
            continue;
        };
        match raw.read(&variable.kind) {
            Ok(value) => {
                vars.insert(name.clone(), value.value);
            }
            Err(report) => reports.push(report),
        }
    }
    match reports.is_empty() {
        true => Ok(vars),
        false => Err(Diagnostics { reports, texts: values.texts }),
    }
}

/// Reads a text of a workflow's size, and not a byte more than the parser would take.
///
/// # Errors
/// When it cannot be read, is larger, or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, Diagnostics> {
    let refused = |code, message: String, fault| Diagnostics {
        reports: vec![Diagnostic::error(code, message).fault(fault)],
        ..Diagnostics::default()
    };
    let shown = path.display();
    let file = std::fs::File::open(path).map_err(|error| {
        let fault = match error.kind() {
            std::io::ErrorKind::NotFound => Fault::Workflow,
            _ => Fault::Environment,
        };
        refused("RM0121", format!("cannot read {shown}: {error}"), fault)
    })?;
    let limit = rowmill_spec::MAX_TEXT_BYTES as u64;
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| refused("RM0121", format!("cannot read {shown}: {error}"), Fault::Environment))?;
    if bytes.len() as u64 > limit {
        let size = std::fs::metadata(path).map_or(0, |meta| meta.len());
        return Err(refused(
            "RM0102",
            format!("{shown} has {size} bytes; a workflow has at most {limit}"),
            Fault::Workflow,
        ));
    }
    // What some editors put before a text says nothing about it.
    let bytes = match bytes.strip_prefix(b"\xef\xbb\xbf") {
        Some(rest) => rest.to_vec(),
        None => bytes,
    };
    String::from_utf8(bytes).map_err(|error| {
        refused("RM0121", format!("{shown} is not UTF-8 at byte {}", error.utf8_error().valid_up_to()), Fault::Workflow)
    })
}
