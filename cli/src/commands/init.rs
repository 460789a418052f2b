//! `rowmill init`

use std::fs;
use std::io::Write as _;
use std::path::Path;

use rowmill::spec::{Diagnostic, Diagnostics, Fault};

use crate::exit;
use crate::output::failure;
use crate::settings::Settings;

const WORKFLOW: &str = include_str!("init/flow.yaml");
const DATA: &str = include_str!("init/orders.csv");

/// Writes a workflow and its data, and overwrites nothing.
pub(crate) fn init(folder: &Path, settings: &Settings) -> u8 {
    let refuse = |report: Diagnostic| {
        let reports = Diagnostics { reports: vec![report], ..Diagnostics::default() };
        failure(&reports, settings.is_json(), settings.is_colored())
    };
    let files = [("flow.yaml", WORKFLOW), ("orders.csv", DATA)];
    if let Err(error) = fs::create_dir_all(folder) {
        return refuse(cannot("create", folder, &error));
    }
    if let Some((name, _)) = files.iter().find(|(name, _)| folder.join(name).exists()) {
        let message = format!("{} exists already; nothing was written", folder.join(name).display());
        return refuse(Diagnostic::error("RM0420", message).help("name another folder"));
    }
    for (name, text) in files {
        let path = folder.join(name);
        let written = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()));
        if let Err(error) = written {
            return refuse(cannot("write", &path, &error));
        }
    }
    let flow = folder.join("flow.yaml");
    if settings.is_json() {
        println!("{}", serde_json::json!({"outcome": "ok", "files": files.map(|(name, _)| folder.join(name))}));
        return exit::SUCCESS;
    }
    println!("wrote {} and {}", flow.display(), folder.join("orders.csv").display());
    println!("next: rowmill run {} --preview", flow.display());
    exit::SUCCESS
}

fn cannot(action: &str, path: &Path, error: &std::io::Error) -> Diagnostic {
    let code = if error.kind() == std::io::ErrorKind::PermissionDenied { "RM0703" } else { "RM0704" };
    Diagnostic::error(code, format!("cannot {action} {}: {error}", path.display())).fault(Fault::Environment)
}
