//! Pages that are generated from the code are as the code says. `UPDATE_DOCS=1` writes them.

use std::path::{Path, PathBuf};

use rowmill_spec::{codes, config, json_schema, reference};

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")
}

fn pretty(schema: &serde_json::Value) -> String {
    format!("{}\n", serde_json::to_string_pretty(schema).unwrap())
}

fn pages() -> Vec<(PathBuf, String)> {
    let mut pages = vec![
        (docs().join("errors/README.md"), codes::index_page()),
        (docs().join("reference/configuration.md"), config::reference_page()),
        (docs().join("reference/workflow.md"), reference::workflow_page()),
        (docs().join("reference/workflow.schema.json"), pretty(&json_schema::workflow_schema())),
        (docs().join("reference/config.schema.json"), pretty(&json_schema::config_schema())),
    ];
    pages.extend(codes::CODES.iter().map(|code| (docs().join(format!("errors/{}.md", code.code)), code.page())));
    pages
}

#[test]
fn pages_are_current() {
    let update = std::env::var_os("UPDATE_DOCS").is_some();
    let mut stale = Vec::new();
    for (path, text) in pages() {
        if update {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
        } else if std::fs::read_to_string(&path).unwrap_or_default() != text {
            stale.push(path);
        }
    }
    assert!(stale.is_empty(), "these pages are stale (UPDATE_DOCS=1 writes them): {stale:#?}");
}

#[test]
fn every_error_page_has_a_code() {
    let known: Vec<PathBuf> = pages().into_iter().map(|(path, _)| path).collect();
    for entry in std::fs::read_dir(docs().join("errors")).unwrap() {
        let path = entry.unwrap().path();
        assert!(known.contains(&path), "{} belongs to no code", path.display());
    }
}

/// The first block of code of a page.
fn block(page: &str, language: &str) -> String {
    let text = std::fs::read_to_string(docs().join("reference").join(page)).unwrap();
    let (_, rest) = text.split_once(&format!("```{language}\n")).unwrap();
    rest.split_once("```").unwrap().0.to_owned()
}

#[test]
fn examples_of_the_pages_are_read() {
    for (page, language, name) in [("workflow.md", "yaml", "flow.yaml"), ("sql-file.md", "sql", "flow.sql")] {
        let workflow = rowmill_spec::parse(name, &block(page, language)).unwrap_or_else(|reports| panic!("{reports}"));
        assert_eq!((workflow.name.value.as_str(), workflow.steps.len()), ("flight-delays", 2), "{page}");
    }
    let config = block("configuration.md", "yaml");
    let inputs = config::Inputs { project: Some(("rowmill.yaml".to_owned(), config)), ..Default::default() };
    assert_eq!(config::Config::load(&inputs).unwrap().execution.memory_bytes, Some(2 << 30));
}
