//! Secrets: where they are, never what they are, unless one is asked to resolve itself.

use std::fmt;
use std::path::{Path, PathBuf};

/// A secret, or where to find it. Neither `Debug` nor `Display` shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Inner);

#[derive(Clone, PartialEq, Eq)]
enum Inner {
    Env(String),
    File(PathBuf),
    Given(String),
}

/// Why a secret could not be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretError(String);

impl fmt::Display for SecretError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for SecretError {}

impl Secret {
    /// Reads a reference, `env:NAME` or `file:/path`; `None` where the text is neither.
    pub fn reference(text: &str) -> Option<Self> {
        if let Some(name) = text.strip_prefix("env:") {
            let fits = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            return fits.then(|| Secret(Inner::Env(name.to_owned())));
        }
        let path = text.strip_prefix("file:")?;
        (!path.is_empty() && !path.contains('\0')).then(|| Secret(Inner::File(PathBuf::from(path))))
    }

    /// A secret itself, as an environment variable gives it.
    pub fn given(secret: impl Into<String>) -> Self {
        Secret(Inner::Given(secret.into()))
    }

    /// The secret. `env` looks up a variable, `file` reads a file; a file's last line break is no part of the secret.
    ///
    /// # Errors
    /// Names the variable or the file that is missing, and nothing else.
    pub fn resolve(
        &self,
        env: impl FnOnce(&str) -> Option<String>,
        file: impl FnOnce(&Path) -> std::io::Result<String>,
    ) -> Result<String, SecretError> {
        let secret = match &self.0 {
            Inner::Given(secret) => secret.clone(),
            Inner::Env(name) => {
                env(name).ok_or_else(|| SecretError(format!("the environment variable {name} is not set")))?
            }
            Inner::File(path) => {
                let text = file(path).map_err(|error| {
                    SecretError(format!("the file {} cannot be read: {}", path.display(), error.kind()))
                })?;
                text.strip_suffix('\n').map_or(text.as_str(), |text| text.strip_suffix('\r').unwrap_or(text)).to_owned()
            }
        };
        if secret.is_empty() {
            return Err(SecretError(format!("the secret at {self} is empty")));
        }
        Ok(secret)
    }
}

impl fmt::Display for Secret {
    /// Where the secret is: `env:NAME`, `file:/path`, or `(secret)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Inner::Env(name) => write!(f, "env:{name}"),
            Inner::File(path) => write!(f, "file:{}", path.display()),
            Inner::Given(_) => f.write_str("(secret)"),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOT_FOUND: fn(&Path) -> std::io::Result<String> = |_| Err(std::io::ErrorKind::NotFound.into());

    #[test]
    fn references_resolve() {
        let secret = Secret::reference("env:KEY").unwrap();
        assert_eq!(secret.resolve(|name| Some(format!("{name}!")), NOT_FOUND).unwrap(), "KEY!");
        assert_eq!(
            secret.resolve(|_| None, NOT_FOUND).unwrap_err().to_string(),
            "the environment variable KEY is not set"
        );
        let secret = Secret::reference("file:/run/key").unwrap();
        assert_eq!(secret.resolve(|_| None, |_| Ok("abc\r\n".to_owned())).unwrap(), "abc");
        assert!(secret.resolve(|_| None, |_| Ok("\n".to_owned())).is_err());
        for bad in ["env:", "env:A B", "file:", "plain"] {
            assert!(Secret::reference(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_given_secret_is_never_shown() {
        let secret = Secret::given("canary-1234");
        assert!(!format!("{secret} {secret:?} {:?}", Some(&secret)).contains("canary"));
        assert_eq!(secret.resolve(|_| None, NOT_FOUND).unwrap(), "canary-1234");
    }
}
