//! Answers for machines: `--output json` from every command, and from those that fail.

use crate::support::{Answer, Scratch};

fn json(answer: &Answer) -> serde_json::Value {
    serde_json::from_str(&answer.out).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
}

#[test]
fn every_command_answers_in_json() {
    let scratch = Scratch::new();
    let made = scratch.rowmill(&["init", "starter", "--output", "json"]).ok();
    assert_eq!(json(&made)["files"][0], "starter/flow.yaml");
    let shown = scratch.rowmill(&["config", "show", "--output", "json", "--threads", "3"]).ok();
    let settings = json(&shown)["settings"].as_array().unwrap().clone();
    let threads = settings.iter().find(|setting| setting["key"] == "execution.threads").unwrap();
    assert_eq!(threads["value"], "3");
    let page = scratch.rowmill(&["error", "rm0304", "--output", "json"]).ok();
    assert_eq!(json(&page)["code"], "RM0304");
    let rows =
        scratch.rowmill(&["sql", "SELECT 1 AS a, NULL AS b UNION ALL SELECT 2, 'x' ORDER BY a", "--output=json"]);
    assert_eq!(rows.ok().out, "{\"a\":1}\n{\"a\":2,\"b\":\"x\"}\n");
    // What is said for this command wins over what is said for all.
    let csv = scratch.rowmill(&["sql", "SELECT 1 AS a", "--output", "json", "--format", "csv"]).ok();
    assert_eq!(csv.out, "a\n1\n");
}

#[test]
fn every_failure_answers_in_json() {
    let scratch = Scratch::new();
    scratch.write("flow.yaml", "rowmill: 1\n");
    for (arguments, code) in [
        (&["run", "flow.yaml", "--nonsense", "--output", "json"][..], 2),
        (&["run", "--output=json"], 2),
        (&["nonsense", "--output", "json"], 2),
        (&["error", "RM9999", "--output", "json"], 2),
        (&["run", "nothing.yaml", "--output", "json"], 2),
        (&["run", "flow.yaml", "--memory", "lots", "--output", "json"], 2),
        (&["sql", "SELECT * FROM nothing", "--output", "json"], 1),
        (&["check", "flow.yaml", "--output", "json"], 1),
    ] {
        let answer = scratch.rowmill(arguments);
        assert_eq!(answer.code, code, "{arguments:?} {answer:?}");
        let said = json(&answer);
        assert_eq!(said["outcome"], "failed", "{arguments:?}");
        assert_eq!(said["exit_code"], code, "{arguments:?}");
        let error = &said["errors"][0];
        assert!(error["code"].as_str().unwrap().starts_with("RM"), "{arguments:?} {error}");
        assert!(!error["message"].as_str().unwrap().is_empty(), "{arguments:?}");
    }
    let asked = scratch.command().args(["run"]).env("ROWMILL_OUTPUT__FORMAT", "json").output().unwrap();
    assert_eq!(json(&asked.into())["errors"][0]["code"], "RM0420");
    // Help is no error, and for people.
    assert!(scratch.rowmill(&["--help", "--output", "json"]).ok().out.contains("Usage"));
}
