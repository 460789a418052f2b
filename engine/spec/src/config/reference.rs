//! The reference page, generated from the catalogue.

use std::fmt::Write as _;

use super::catalogue::{SETTINGS, env_name};

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
    page
}
