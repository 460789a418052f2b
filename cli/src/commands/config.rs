//! `rowmill config` and `rowmill error`

use rowmill::spec::{Diagnostic, Diagnostics, codes, json_schema};
use serde_json::{Value as Json, json};

use crate::args::ConfigAction;
use crate::exit;
use crate::output::{failure, table};
use crate::settings::Settings;

/// Shows the configuration or a schema.
pub(crate) fn config(action: ConfigAction, settings: &Settings) -> u8 {
    match action {
        ConfigAction::Show if settings.is_json() => {
            let shown: Vec<Json> = settings
                .config()
                .show()
                .map(|shown| json!({"key": shown.key, "value": shown.value, "from": shown.origin.to_string()}))
                .collect();
            println!("{}", json!({"settings": shown}));
        }
        ConfigAction::Show => {
            let rows: Vec<Vec<String>> = settings
                .config()
                .show()
                .map(|shown| {
                    vec![
                        shown.key.to_owned(),
                        shown.value.unwrap_or_else(|| "(not set)".to_owned()),
                        shown.origin.to_string(),
                    ]
                })
                .collect();
            print!("{}", table(&["setting", "value", "from"], &rows));
        }
        ConfigAction::WorkflowSchema => print_json(&json_schema::workflow_schema()),
        ConfigAction::ConfigSchema => print_json(&json_schema::config_schema()),
    }
    exit::SUCCESS
}

fn print_json(schema: &Json) {
    println!("{}", serde_json::to_string_pretty(schema).unwrap_or_default());
}

/// Prints the page of an error code.
pub(crate) fn error(code: &str, settings: &Settings) -> u8 {
    let wanted = code.trim().to_ascii_uppercase();
    let Some(entry) = codes::CODES.iter().find(|entry| entry.code == wanted) else {
        let unknown =
            Diagnostic::error("RM0420", format!("there is no error code {wanted}")).help("codes look like RM0304");
        let reports = Diagnostics { reports: vec![unknown], ..Diagnostics::default() };
        return failure(&reports, settings.is_json(), settings.is_colored());
    };
    match settings.is_json() {
        true => println!(
            "{}",
            json!({
                "code": entry.code, "title": entry.title, "explanation": entry.explanation, "action": entry.action,
            })
        ),
        false => print!("{}", entry.page()),
    }
    exit::SUCCESS
}
