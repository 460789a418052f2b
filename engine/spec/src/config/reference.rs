//! The reference page, generated from the catalogue.

use std::fmt::Write as _;

use super::catalogue::{SETTINGS, env_name};
use super::cluster::{ClusterKey, QUEUE, QUOTA};
use super::connections::{ConnectionKey, KINDS, LIMITS, keys_of};

/// The page of all settings, as Markdown.
pub fn reference_page() -> String {
    let mut page = String::from(
        "# Configuration\n\n\
         Configuration says where and how workflows run on this machine; what a workflow does stands in its own text.\n\
         This page is generated from the catalogue in `engine/spec/src/config/catalogue.rs`.\n\n\
         Layers, each stronger than those before it:\n\n\
         1. the defaults below,\n\
         2. the user's file,\n\
         3. the project's file,\n\
         4. environment variables: `ROWMILL_`, then the key in capitals with `__` for each dot,\n\
         5. flags.\n\n\
         Files are YAML, nested by the parts of a key:\n\n\
         ```yaml\n\
         execution:\n  memory: 2GiB\n\
         object_store:\n  s3:\n    secret_access_key: env:MY_KEY\n\
         ```\n\n\
         An unknown setting is an error in every layer. Secrets are given as `env:NAME` or `file:/path`, or by their\n\
         environment variable; a secret in plain text in a file or a flag is refused, and none is ever shown.\n",
    );
    let mut section = "";
    for setting in SETTINGS {
        let prefix = setting.key.rsplit_once('.').map_or("", |(prefix, _)| prefix);
        if prefix != section {
            section = prefix;
            let _ = writeln!(page, "\n## {section}");
        }
        let default = setting.default.map_or("not set".to_owned(), |text| format!("`{text}`"));
        let _ = writeln!(
            page,
            "\n### `{}`\n\n{}\n\n- Type: {}\n- Default: {default}\n- Environment: `{}`",
            setting.key,
            setting.about,
            setting.kind.describe(),
            env_name(setting.key),
        );
    }
    cluster(&mut page);
    connections(&mut page);
    page
}

/// The sections that a scheduler's queues and quotas stand in.
fn cluster(page: &mut String) {
    page.push_str(
        "\n## cluster.queues, cluster.quotas\n\n\
         A scheduler reads them from files. A queue that no file names does not exist, but for `default`, which has the\n\
         defaults below unless a file says otherwise. A quota is named ORGANISATION or ORGANISATION/TEAM; `*` holds for\n\
         each organisation without an entry, `ORGANISATION/*` for each team of it without one, `*/*` for every other team.\n\n\
         ```yaml\n\
         cluster:\n  queues:\n    interactive: {priority: 10, max_running: 20}\n    nightly: {max_running: 2, timeout: 12h}\n\
         \u{20} quotas:\n    acme: {jobs: 50, cpu: 64, memory: 256GiB}\n    acme/research: {weight: 3, gpu: 2}\n    '*': {jobs: 10}\n\
         ```\n",
    );
    for (name, keys) in [("queue", QUEUE), ("quota", QUOTA)] {
        let _ = writeln!(page, "\n### a {name}\n\n| key | takes | default | about |\n|---|---|---|---|");
        for ClusterKey { key, takes, default, about } in keys {
            let _ = writeln!(page, "| `{key}` | {} | {default} | {about} |", takes.describe());
        }
    }
}

/// The section of connections: kinds, their keys, and the limits of all.
fn connections(page: &mut String) {
    page.push_str(
        "\n## connections\n\n\
         `connections` names what steps reach: services, databases, caches. Each has a `kind`, the keys of its kind,\n\
         and limits that hold for the whole process. Layers are united key by key; single keys are also set by\n\
         environment variables such as `ROWMILL_CONNECTIONS__WEATHER__BASE_URL` and by flags such as\n\
         `connections.weather.base_url`, mappings (`headers`) in files only. A name holds small letters, digits and\n\
         single `_`. Secrets are references everywhere; a secret itself in its environment variable is read from\n\
         there when it is needed.\n\n\
         ```yaml\n\
         connections:\n  weather:\n    kind: http\n    base_url: https://api.example.com\n\
         \u{20}   auth: {bearer: {token: env:WEATHER_TOKEN}}\n\
         \u{20}   limits: {requests_per_second: 50, burst: 10, max_in_flight: 64}\n\
         \u{20} fleet:\n    kind: postgres\n    url: postgres://reader@db.example.com/fleet\n\
         \u{20}   password: file:/run/secrets/fleet\n\
         ```\n",
    );
    for kind in KINDS {
        let _ = writeln!(
            page,
            "\n### connections of kind `{}`\n\n| key | takes | default | about |\n|---|---|---|---|",
            kind.as_str()
        );
        rows(page, keys_of(kind));
    }
    page.push_str("\n### limits of every connection\n\n| key | takes | default | about |\n|---|---|---|---|\n");
    rows(page, LIMITS);
}

fn rows(page: &mut String, keys: &[ConnectionKey]) {
    for key in keys {
        let default = key.default.map_or(String::new(), |text| format!("`{text}`"));
        let _ = writeln!(page, "| `{}` | {} | {default} | {} |", key.key, key.takes.describe(), key.about);
    }
}
