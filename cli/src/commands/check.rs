//! `rowmill check`

use super::{open_session, open_workflow, warn};
use crate::args::WorkflowArguments;
use crate::exit;
use crate::output::failure;
use crate::settings::Settings;

pub(crate) async fn check(arguments: &WorkflowArguments, settings: &Settings) -> u8 {
    let (workflow, inputs) = match open_workflow(arguments, settings) {
        Ok(opened) => opened,
        Err(code) => return code,
    };
    let session = match open_session(settings) {
        Ok(session) => session,
        Err(code) => return code,
    };
    let (sources, steps, sinks) = (workflow.sources.len(), workflow.steps.len(), workflow.sinks.len());
    match session.check(workflow, &inputs).await {
        Ok(warnings) => {
            match settings.is_json() {
                true => println!("{}", serde_json::json!({"outcome": "ok", "warnings": warnings.to_json()})),
                false => {
                    warn(&warnings, settings);
                    println!("ok: {sources} sources, {steps} steps, {sinks} sinks");
                }
            }
            exit::SUCCESS
        }
        Err(reports) => failure(&reports, settings.is_json(), settings.is_colored()),
    }
}
