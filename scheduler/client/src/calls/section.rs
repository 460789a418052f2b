//! A step as it is sent: a workflow that holds it alone, with the texts that its templates name.

use std::path::Path;

use indexmap::IndexMap;
use rowmill_engine::elsewhere::Attempts;
use rowmill_spec::{
    CommandStep, Diagnostic, Fault, LogicalType, Param, Piece, Spanned, Step, StepKind, Template, Variable, Workflow,
};
use rowmill_wire::calls::{OpenStep, write_schema};

/// The step, but for the run and the tenant, which are known when it runs.
///
/// # Errors
/// It has no form as text.
pub(super) fn section(attempts: &Attempts<'_>) -> Result<OpenStep, Diagnostic> {
    let name = &attempts.step.name.value;
    let fail = |why: String| {
        Diagnostic::error("RM0900", format!("step `{name}` cannot be sent to a cluster: {why}")).fault(Fault::Internal)
    };
    let text = workflow(attempts).to_yaml().map_err(|reports| fail(reports.to_string()))?;
    let base = std::path::absolute(attempts.base).unwrap_or_else(|_| attempts.base.to_owned());
    Ok(OpenStep {
        step: name.clone(),
        text,
        values: attempts.values.clone(),
        base: base.display().to_string(),
        class: attempts.class.to_owned(),
        in_flight: u32::try_from(attempts.in_flight).unwrap_or(u32::MAX),
        run: String::new(),
        tenant: String::new(),
        input: write_schema(&attempts.shape.input).map_err(|error| fail(error.to_string()))?,
        output: write_schema(&attempts.shape.output).map_err(|error| fail(error.to_string()))?,
    })
}

fn workflow(attempts: &Attempts<'_>) -> Workflow {
    let mut step = Step { description: None, ..attempts.step.clone() };
    if let StepKind::Command(command) = &mut step.kind {
        anchor(command, attempts);
    }
    let kind = || Spanned::bare(LogicalType::String);
    let named = |scope: &str| {
        let names = attempts.values.keys().filter_map(|key| key.split_once('.'));
        let names = names.filter(|(own, _)| *own == scope).map(|(_, name)| name.to_owned());
        names.collect::<Vec<String>>()
    };
    let param = |name: String| {
        (name.clone(), Param { name: Spanned::bare(name), kind: kind(), default: None, description: None })
    };
    let variable = |name: String| {
        (name.clone(), Variable { name: Spanned::bare(name), kind: kind(), default: None, description: None })
    };
    Workflow {
        name: Spanned::bare("step".to_owned()),
        description: None,
        params: named("params").into_iter().map(param).collect(),
        vars: named("vars").into_iter().map(variable).collect(),
        sources: IndexMap::new(),
        steps: IndexMap::from([(step.name.value.clone(), step)]),
        sinks: IndexMap::new(),
        durable: false,
        texts: std::sync::Arc::default(),
        warnings: Vec::new(),
    }
}

/// Here a command starts in this process's folder, or in one below it. The executor's folder is another, so this one is
/// said.
fn anchor(command: &mut CommandStep, attempts: &Attempts<'_>) {
    let Ok(folder) = std::env::current_dir() else { return };
    let absolute = command.working_directory.as_ref().is_some_and(|path| match path.pieces.first() {
        Some(Piece::Literal(text)) => Path::new(text).is_absolute(),
        Some(Piece::Param(name)) => is_absolute(attempts, "params", name),
        Some(Piece::Var(name)) => is_absolute(attempts, "vars", name),
        None => false,
    });
    if !absolute {
        let folder = folder.display().to_string().replace("${", "$${");
        let path = match &command.working_directory {
            Some(below) => format!("{folder}/{}", below.text),
            None => folder,
        };
        command.working_directory = Some(Template::of(path));
    }
}

fn is_absolute(attempts: &Attempts<'_>, scope: &str, name: &str) -> bool {
    attempts.values.get(&format!("{scope}.{name}")).is_some_and(|text| Path::new(text).is_absolute())
}
