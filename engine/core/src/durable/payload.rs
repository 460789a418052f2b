//! What is kept of a run beside its workflow's text, so that another process can go on with it.

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use rowmill_spec::{Diagnostic, Fault, Value, Workflow};
use rowmill_store::{NewRun, RunId};
use serde::{Deserialize, Serialize};

use crate::compile::{Compiled, Inputs};

/// What is kept of a run beside its workflow's text; see [`read_payload`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Payload {
    /// Version of this form.
    pub format: u32,
    /// The folder that relative paths start from.
    pub base: PathBuf,
    /// The workflow's file, for messages and for the check whether it changed.
    pub path: PathBuf,
    /// Parameters that were given.
    pub params: Vec<(String, String)>,
    /// Variables that were given.
    pub vars: Vec<(String, String)>,
    /// What `now()` is.
    pub started: DateTime<Utc>,
    /// Source files as they were when the run began.
    pub files: Vec<Stamp>,
}

/// A source file as it was.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stamp {
    store: String,
    path: String,
    size: u64,
    modified: DateTime<Utc>,
    etag: Option<String>,
}

impl Stamp {
    /// The file's path in its store.
    pub fn path(&self) -> &str {
        &self.path
    }
}

pub(super) const PAYLOAD_FORMAT: u32 = 1;

/// Reads what is kept of a run.
///
/// # Errors
/// When it is of a newer form, or damaged.
pub fn read_payload(run: &rowmill_store::Run) -> Result<Payload, Diagnostic> {
    let wrong = |message: String| {
        Diagnostic::error("RM0801", format!("run {}: {message}", run.id))
            .fault(Fault::Environment)
            .help("use the version of Rowmill that wrote it, or start the workflow anew")
    };
    let payload: Payload = serde_json::from_slice(&run.payload).map_err(|error| wrong(error.to_string()))?;
    match payload.format == PAYLOAD_FORMAT {
        true => Ok(payload),
        false => Err(wrong(format!("its record has form {}, known is {PAYLOAD_FORMAT}", payload.format))),
    }
}

/// The record of a run that begins.
///
/// # Errors
/// When it cannot be written down.
pub(super) fn new_run(
    run: RunId,
    workflow: &Workflow,
    text: &str,
    payload: &Payload,
    actor: &str,
) -> Result<NewRun, Diagnostic> {
    let internal = |error: serde_json::Error| Diagnostic::error("RM0900", error.to_string()).fault(Fault::Internal);
    let parameters = payload.params.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
    Ok(NewRun {
        id: run,
        workflow_name: workflow.name.value.clone(),
        workflow_text: text.to_owned(),
        workflow_fingerprint: fingerprint(text),
        parameters,
        organisation: "default".to_owned(),
        team: "default".to_owned(),
        labels: Default::default(),
        actor: actor.to_owned(),
        submit_key: None,
        payload: serde_json::to_vec(payload).map_err(internal)?,
    })
}

/// Tells one text from another.
pub fn fingerprint(text: &str) -> String {
    let print = rowmill_step::FingerprintBuilder::new("workflow", 1).field("text", text).finish();
    print.0.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The parameters of a run as text, whichever way they were given.
pub(super) fn given_params(inputs: &Inputs) -> Vec<(String, String)> {
    let mut params = inputs.params.clone();
    params.extend(inputs.values.iter().map(|(name, value)| (name.clone(), value.to_string())));
    params
}

/// The inputs of a run that goes on.
///
/// # Errors
/// When a variable's value does not fit the type that the workflow declares.
pub fn inputs_of(workflow: &Workflow, payload: &Payload) -> Result<Inputs, Diagnostic> {
    let mut inputs = Inputs { base: payload.base.clone(), params: payload.params.clone(), ..Inputs::default() };
    for (name, text) in &payload.vars {
        let Some(variable) = workflow.vars.get(name) else { continue };
        let value = Value::parse(&variable.kind, text)
            .map_err(|error| Diagnostic::error("RM0403", format!("variable `{name}`: {error}")))?;
        inputs.vars.insert(name.clone(), value);
    }
    Ok(inputs)
}

/// Source files as they are.
pub(super) fn stamps(compiled: &Compiled) -> Vec<Stamp> {
    let mut stamps: Vec<Stamp> = compiled
        .files
        .iter()
        .map(|file| Stamp {
            store: file.store.as_str().to_owned(),
            path: file.meta.location.to_string(),
            size: file.meta.size,
            modified: file.meta.last_modified,
            etag: file.meta.e_tag.clone(),
        })
        .collect();
    stamps.sort();
    stamps
}
