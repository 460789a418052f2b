//! Every wrong text under `testdata/errors/text` has its rendered report beside it.
//!
//! `UPDATE_EXPECT=1` writes the reports anew; look at the difference before keeping it.

use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/errors/text")
}

fn cases() -> Vec<PathBuf> {
    let mut cases: Vec<PathBuf> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension != "stderr"))
        .collect();
    cases.sort();
    cases
}

/// The report of a wrong text; texts whose names begin with `vars` or `config` are read as such files.
fn report(path: &Path) -> String {
    let name = path.file_name().unwrap().to_str().unwrap();
    let text = std::fs::read_to_string(path).unwrap();
    let result = if name.starts_with("vars") {
        rowmill_spec::parse_values(name, &text).map(|_| ())
    } else if name.starts_with("config") {
        let inputs = rowmill_spec::config::Inputs { project: Some((name.to_owned(), text)), ..Default::default() };
        rowmill_spec::config::Config::load(&inputs).map(|_| ())
    } else {
        rowmill_spec::parse(name, &text).map(|_| ())
    };
    result.expect_err(name).render(false)
}

#[test]
fn reports_are_as_expected() {
    let update = std::env::var_os("UPDATE_EXPECT").is_some();
    let cases = cases();
    assert!(cases.len() >= 25, "only {} cases", cases.len());
    let mut wrong = Vec::new();
    for path in cases {
        let actual = report(&path);
        let expected = path.with_extension("stderr");
        if update {
            std::fs::write(&expected, actual).unwrap();
        } else if std::fs::read_to_string(&expected).unwrap_or_default() != actual {
            wrong.push(format!("{}:\n{actual}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "reports differ (UPDATE_EXPECT=1 writes them):\n\n{}", wrong.join("\n"));
}

#[test]
fn every_report_has_a_code_with_a_page_and_a_next_move() {
    for path in cases() {
        let report = report(&path);
        for line in report.lines().filter(|line| line.starts_with("error[")) {
            let code = line.strip_prefix("error[").unwrap().split(']').next().unwrap();
            assert!(rowmill_spec::codes::lookup(code).is_some(), "{code} in {}", path.display());
        }
        assert!(report.contains("= help: ") || report.contains("help: "), "no help in {}:\n{report}", path.display());
    }
}

#[test]
fn no_expected_report_is_left_over() {
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "stderr") {
            assert!(
                path.with_extension("yaml").exists() || path.with_extension("sql").exists(),
                "{} has no text",
                path.display()
            );
        }
    }
}
