//! Layers, origins, secrets, and a catalogue that everything goes by.

use super::catalogue::{SETTINGS, env_name};
use super::*;
use crate::json_schema::config_schema;

fn project(text: &str) -> Inputs {
    Inputs { project: Some(("rowmill.yaml".to_owned(), text.to_owned())), ..Inputs::default() }
}

fn env(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// A value that each kind takes, and that is not the default.
fn other_value(setting: &Setting) -> String {
    match setting.kind {
        Kind::BytesOrAuto => "3GiB".to_owned(),
        Kind::CountOrAuto(_) => "3".to_owned(),
        Kind::PathOrAuto | Kind::Text => "some/text".to_owned(),
        Kind::Url => "https://example.com".to_owned(),
        Kind::Word(words) => words.iter().find(|word| Some(**word) != setting.default).unwrap().to_string(),
        Kind::Bool => "true".to_owned(),
        Kind::Secret | Kind::WordOrSecret(_) => "env:SOME_SECRET".to_owned(),
        Kind::Bytes => "3GiB".to_owned(),
        Kind::Count(_) | Kind::Number(_) | Kind::Rate => "3".to_owned(),
        Kind::Duration | Kind::DurationOrNone => "3s".to_owned(),
        Kind::TextMap | Kind::TextList => "a".to_owned(),
    }
}

#[test]
fn defaults_are_those_of_the_catalogue() {
    let config = Config::default();
    assert_eq!(config, Config::load(&Inputs::default()).unwrap());
    assert_eq!(config.execution.memory_bytes, None);
    assert_eq!(config.log.level, "warn");
    for (shown, setting) in config.show().zip(SETTINGS) {
        assert_eq!(shown.key, setting.key);
        assert_eq!(shown.value.as_deref(), setting.default, "{}", setting.key);
        assert_eq!(shown.origin.layer, Layer::Default);
    }
}

#[test]
fn every_setting_has_an_effect_from_every_layer() {
    for setting in SETTINGS {
        let value = other_value(setting);
        let defaults = Config::default();
        let mut parts: Vec<&str> = setting.key.split('.').collect();
        let last = parts.pop().unwrap();
        let mut text = String::new();
        for (depth, part) in parts.iter().enumerate() {
            text.push_str(&format!("{}{part}:\n", "  ".repeat(depth)));
        }
        text.push_str(&format!("{}{last}: {value}\n", "  ".repeat(parts.len())));
        let inputs = [
            (Layer::User, Inputs { user: project(&text).project, ..Inputs::default() }),
            (Layer::Project, project(&text)),
            (Layer::Environment, Inputs { env: vec![env(&env_name(setting.key), &value)], ..Inputs::default() }),
            (Layer::Flag, Inputs { flags: vec![env(setting.key, &value)], ..Inputs::default() }),
        ];
        for (layer, inputs) in inputs {
            let config = Config::load(&inputs).unwrap_or_else(|reports| panic!("{reports}"));
            assert_eq!(config.origin(setting.key).unwrap().layer, layer);
            let same = config.execution == defaults.execution
                && config.output == defaults.output
                && config.log == defaults.log
                && config.object_store == defaults.object_store
                && config.state == defaults.state
                && config.cache == defaults.cache
                && config.python == defaults.python
                && config.gpu == defaults.gpu
                && config.model == defaults.model
                && config.cluster == defaults.cluster;
            assert!(!same, "{} changes nothing", setting.key);
        }
    }
}

#[test]
fn stronger_layers_win() {
    let mut inputs = project("execution: {memory: 2GB, threads: 2, partitions: 2}\n");
    inputs.user = Some(("user.yaml".to_owned(), "execution: {memory: 1GB, batch_rows: 100}\n".to_owned()));
    inputs.env = vec![env("ROWMILL_EXECUTION__THREADS", "3"), env("PATH", "x"), env("ROWMILL_CONFIG", "f")];
    inputs.reserved_env = vec!["ROWMILL_CONFIG".to_owned()];
    inputs.flags = vec![env("execution.partitions", "auto")];
    let config = Config::load(&inputs).unwrap();
    assert_eq!(config.execution.memory_bytes, Some(2_000_000_000));
    assert_eq!(config.execution.batch_rows, Some(100));
    assert_eq!(config.execution.threads, Some(3));
    assert_eq!(config.execution.partitions, None);
    let origin = |key| config.origin(key).unwrap().to_string();
    assert_eq!(origin("execution.memory"), "project file rowmill.yaml:1:21");
    assert_eq!(origin("execution.batch_rows"), "user file user.yaml:1:38");
    assert_eq!(origin("execution.threads"), "environment variable ROWMILL_EXECUTION__THREADS");
    assert_eq!(origin("execution.partitions"), "flag execution.partitions");
    assert_eq!(origin("execution.temp_dir"), "default");
    assert_eq!(config.origin("execution.nothing"), None);
}

#[test]
fn all_errors_of_all_layers_are_told() {
    let mut inputs = project("execution: {memroy: 2GB, threads: 0}\n");
    inputs.user = Some(("user.yaml".to_owned(), "output: {color: blue}\n".to_owned()));
    inputs.env = vec![env("ROWMILL_EXECUTION_MEMORY", "1GB"), env("ROWMILL_LOG__LEVEL", "")];
    inputs.flags = vec![env("execution.thread", "1"), env("threads", "1")];
    let reports = Config::load(&inputs).unwrap_err();
    let text = reports.render(false);
    assert_eq!(reports.reports.len(), 7, "{text}");
    for part in [
        "did you mean `memory`",
        "did you mean `ROWMILL_EXECUTION__MEMORY`",
        "did you mean `execution.threads`",
        "user.yaml:1:17",
    ] {
        assert!(text.contains(part), "{part} is missing:\n{text}");
    }
}

#[test]
fn secrets_are_never_shown() {
    let key = "object_store.s3.secret_access_key";
    let plain = project("object_store: {s3: {secret_access_key: canary-1}}\n");
    let reports = Config::load(&plain).unwrap_err();
    assert_eq!(reports.reports[0].code, crate::codes::PLAIN_SECRET);
    let flag = Inputs { flags: vec![env(key, "canary-2")], ..Inputs::default() };
    let flags = Config::load(&flag).unwrap_err();
    let config = Config::load(&Inputs { env: vec![env(&env_name(key), "canary-3")], ..Inputs::default() }).unwrap();
    let shown: Vec<Shown<'_>> = config.show().collect();
    let everything = format!(
        "{config:?} {config:#?} {shown:?} {} {} {} {}",
        reports.render(true),
        flags.render(false),
        reports.to_json(),
        flags.to_json(),
    );
    assert!(!everything.contains("canary"), "{everything}");
    let secret = config.object_store.s3.secret_access_key.unwrap();
    assert_eq!(secret.resolve(|_| None, |_| Ok(String::new())).unwrap(), "canary-3");
}

#[test]
fn a_secret_on_the_line_of_another_error_is_not_shown() {
    for text in [
        "object_store: {s3: {secret_access_key: canary-1, regoin: x}}\n",
        "object_store: {s3: {secret_acces_key: canary-1}}\n",
        "object_store: {s3: {secrets: [canary-1, {a: canary-2}]}}\n",
        "object_store:\n  s3:\n    secret_access_key: canary: 1\n",
        "object_store: {s3: {secret_access_key: canary-1\n",
        "object_store: {s3: {secret_access_key: [canary-1]}}\n",
        "object_store: {s3: {secret_access_key: x, secret_access_key: canary-1}}\n",
    ] {
        let rendered = Config::load(&project(text)).unwrap_err().render(false);
        assert!(!rendered.contains("canary"), "{rendered}");
        assert!(rendered.contains("rowmill.yaml:"), "{rendered}");
    }
}

#[test]
fn files_without_settings_are_fine() {
    for text in ["", "# nothing\n", "\n  \n# x\n", "execution:\n"] {
        assert_eq!(Config::load(&project(text)).unwrap().execution, Execution::default(), "{text:?}");
    }
    assert!(Config::load(&project("- a\n")).is_err());
    assert!(Config::load(&project("execution: 5\n")).is_err());
    assert!(Config::load(&project("execution: {memory: {a: 1}}\n")).is_err());
}

#[test]
fn schema_and_catalogue_know_the_same_settings() {
    fn walk(schema: &serde_json::Value, path: &str, found: &mut Vec<String>) {
        match schema.get("properties").and_then(|properties| properties.as_object()) {
            Some(properties) => {
                assert_eq!(schema["additionalProperties"], false);
                for (name, inner) in properties {
                    walk(inner, format!("{path}.{name}").trim_start_matches('.'), found);
                }
            }
            None => found.push(path.to_owned()),
        }
    }
    let mut found = Vec::new();
    let mut schema = config_schema();
    // Connections have tables of their own.
    schema["properties"].as_object_mut().unwrap().shift_remove("connections").unwrap();
    // So have queues and quotas, which are named by people.
    for named in ["queues", "quotas"] {
        let cluster = schema["properties"]["cluster"]["properties"].as_object_mut().unwrap();
        cluster.shift_remove(named).unwrap();
    }
    walk(&schema, "", &mut found);
    let known: Vec<&str> = SETTINGS.iter().map(|setting| setting.key).collect();
    assert_eq!(found, known);
}
