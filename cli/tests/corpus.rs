//! Every wrong workflow of testdata/errors/engine, with the report it gets.
//!
//! `UPDATE_EXPECT=1` writes the reports; read them before they are committed.

use crate::support::{Scratch, checkout};

#[test]
fn every_wrong_workflow_gets_its_report() {
    let folder = checkout().join("testdata/errors/engine");
    let scratch = Scratch::new();
    let mut wrong = Vec::new();
    let mut seen = 0;
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for path in files.iter().filter(|path| path.extension().is_some_and(|ending| ending == "yaml")) {
        seen += 1;
        let answer =
            scratch.command().current_dir(&folder).arg("check").arg(path.file_name().unwrap()).output().unwrap();
        let report = String::from_utf8_lossy(&answer.stderr).replace(&checkout().display().to_string(), "CHECKOUT");
        if answer.status.code() == Some(0) {
            wrong.push(format!("{} was not refused", path.display()));
            continue;
        }
        assert!(!report.contains("panicked") && !report.contains("RM0900"), "{}\n{report}", path.display());
        let expected = path.with_extension("stderr");
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            std::fs::write(&expected, &report).unwrap();
        } else if std::fs::read_to_string(&expected).unwrap_or_default() != report {
            wrong.push(format!("{}:\n{report}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen >= 40, "only {seen} wrong workflows");
}

#[test]
fn five_errors_are_five_reports() {
    let scratch = Scratch::new();
    let path = checkout().join("testdata/errors/engine/five_errors.yaml");
    let answer = scratch.rowmill(&["check", path.to_str().unwrap(), "--output", "json"]);
    let json: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!(answer.code, 1);
    assert!(json["errors"].as_array().unwrap().len() >= 5, "{}", answer.out);
}
