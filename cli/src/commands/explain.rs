//! `rowmill explain`

use super::{open_session_on, open_workflow};
use crate::args::{ClusterArguments, ExplainFormat, WorkflowArguments};
use crate::exit;
use crate::output::failure;
use crate::settings::Settings;

pub(crate) async fn explain(
    arguments: &WorkflowArguments,
    format: ExplainFormat,
    cluster: &ClusterArguments,
    settings: &Settings,
) -> u8 {
    let (workflow, inputs) = match open_workflow(arguments, settings) {
        Ok(opened) => opened,
        Err(code) => return code,
    };
    let session = match open_session_on(cluster, settings).await {
        Ok(session) => session,
        Err(code) => return code,
    };
    let plans = matches!(format, ExplainFormat::Text | ExplainFormat::Json);
    match session.explain(workflow, &inputs, plans).await {
        Ok(explanation) => {
            let text = match format {
                ExplainFormat::Text if settings.is_json() => {
                    serde_json::to_string_pretty(&explanation).unwrap_or_default()
                }
                ExplainFormat::Json => serde_json::to_string_pretty(&explanation).unwrap_or_default(),
                ExplainFormat::Text => explanation.to_text(),
                ExplainFormat::Mermaid => explanation.to_mermaid(),
                ExplainFormat::Dot => explanation.to_dot(),
            };
            print!("{text}");
            if !text.ends_with('\n') {
                println!();
            }
            exit::SUCCESS
        }
        Err(reports) => failure(&reports, settings.is_json(), settings.is_colored()),
    }
}
