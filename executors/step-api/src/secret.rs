//! Secrets: where they come from, and values that never show themselves.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Failure, FailureCode};

/// A secret's value. `Debug` and `Display` never show it, and it cannot be serialised.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl AsRef<str>) -> Self {
        Self(Arc::from(value.as_ref()))
    }

    /// The value itself, to be handed to the client library and nowhere else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(***)")
    }
}

impl std::fmt::Display for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// Where a secret comes from: `env:NAME` or `file:/path`. Only this is stored, logged or sent to other machines.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SecretRef {
    /// An environment variable of the process that makes the call.
    Env(String),
    /// A file on the machine that makes the call; one line break at its end does not count.
    File(String),
}

impl TryFrom<String> for SecretRef {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("env", name)) if !name.is_empty() => Ok(Self::Env(name.to_owned())),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.to_owned())),
            // The text may be the secret itself, so it is not repeated.
            _ => Err("a secret is written `env:NAME` or `file:/path`, never in plain text".to_owned()),
        }
    }
}

impl From<SecretRef> for String {
    fn from(from: SecretRef) -> Self {
        match from {
            SecretRef::Env(name) => format!("env:{name}"),
            SecretRef::File(path) => format!("file:{path}"),
        }
    }
}

/// A secret larger than this is somebody's mistake in a path.
const MAX_SECRET_BYTES: u64 = 1 << 20;

impl SecretRef {
    /// Reads the secret now.
    ///
    /// # Errors
    /// A failure that names the variable or file, never what is in it.
    pub fn read(&self) -> Result<Secret, Failure> {
        let missing = |text: String| Failure::named(FailureCode::Setup, text);
        let value = match self {
            Self::Env(name) => std::env::var(name).map_err(|_| {
                missing(format!("the environment variable `{}` is not set (or is not UTF-8)", clip(name)))
            })?,
            Self::File(path) => {
                let size = std::fs::metadata(path)
                    .map_err(|e| missing(format!("the secret file `{}` cannot be read: {}", clip(path), e.kind())))?
                    .len();
                if size > MAX_SECRET_BYTES {
                    return Err(missing(format!("the secret file `{}` is larger than 1 MiB", clip(path))));
                }
                let text = std::fs::read_to_string(path)
                    .map_err(|e| missing(format!("the secret file `{}` cannot be read: {}", clip(path), e.kind())))?;
                let text = text.strip_suffix('\n').unwrap_or(&text);
                text.strip_suffix('\r').unwrap_or(text).to_owned()
            }
        };
        if value.is_empty() {
            return Err(missing(format!("the secret at `{}` is empty", clip(&String::from(self.clone())))));
        }
        Ok(Secret::new(value))
    }
}

fn clip(name: &str) -> String {
    name.chars().take(120).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_never_shows_itself() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret} {secret:?}"), "*** Secret(***)");
        let error = serde_json::from_str::<SecretRef>("\"hunter2\"").unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn references_are_read_lazily_and_say_what_is_missing() {
        let reference: SecretRef = serde_json::from_str("\"env:ROWMILL_NO_SUCH_SECRET\"").unwrap();
        assert!(reference.read().unwrap_err().message().contains("ROWMILL_NO_SUCH_SECRET"));
        let path = std::env::temp_dir().join(format!("rowmill-secret-{}", std::process::id()));
        std::fs::write(&path, "s3cret\r\n").unwrap();
        let secret = SecretRef::File(path.to_string_lossy().into_owned()).read().unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(secret.expose(), "s3cret");
    }
}
