//! `rowmill config` and `rowmill error`

use rowmill::spec::{codes, json_schema};

use crate::args::ConfigAction;
use crate::exit;
use crate::output::table;
use crate::settings::Settings;

/// Shows the configuration or a schema.
pub(crate) fn config(action: ConfigAction, settings: &Settings) -> u8 {
    match action {
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

fn print_json(schema: &serde_json::Value) {
    println!("{}", serde_json::to_string_pretty(schema).unwrap_or_default());
}

/// Prints the page of an error code.
pub(crate) fn error(code: &str) -> u8 {
    let wanted = code.trim().to_ascii_uppercase();
    match codes::CODES.iter().find(|entry| entry.code == wanted) {
        Some(entry) => {
            print!("{}", entry.page());
            exit::SUCCESS
        }
        None => {
            eprintln!("error: there is no code {wanted}; codes look like RM0304");
            exit::USAGE
        }
    }
}
