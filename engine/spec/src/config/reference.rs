//! The reference page, generated from the catalogue.

use std::fmt::Write as _;

use super::catalogue::{SETTINGS, env_name};
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
    connections(&mut page);
    page
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
