//! `rowmill init`

use std::fs;
use std::io::Write as _;
use std::path::Path;

use crate::exit;

const WORKFLOW: &str = include_str!("init/flow.yaml");
const DATA: &str = include_str!("init/orders.csv");

/// Writes a workflow and its data, and overwrites nothing.
pub(crate) fn init(folder: &Path) -> u8 {
    let files = [("flow.yaml", WORKFLOW), ("orders.csv", DATA)];
    if let Err(error) = fs::create_dir_all(folder) {
        eprintln!("error: cannot create {}: {error}", folder.display());
        return exit::ENVIRONMENT;
    }
    if let Some((name, _)) = files.iter().find(|(name, _)| folder.join(name).exists()) {
        eprintln!("error: {} exists already; nothing was written", folder.join(name).display());
        return exit::USAGE;
    }
    for (name, text) in files {
        let path = folder.join(name);
        let written = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()));
        if let Err(error) = written {
            eprintln!("error: cannot write {}: {error}", path.display());
            return exit::ENVIRONMENT;
        }
    }
    let flow = folder.join("flow.yaml");
    println!("wrote {} and {}", flow.display(), folder.join("orders.csv").display());
    println!("next: rowmill run {} --preview", flow.display());
    exit::SUCCESS
}
