//! From the text of a path to an object store, a prefix in it, and a pattern.

use std::path::{Component, Path, PathBuf};

use datafusion::execution::object_store::ObjectStoreUrl;
use glob::Pattern;
use object_store::path::Path as ObjectPath;
use url::Url;

/// Where a path points.
#[derive(Debug, Clone)]
pub struct Location {
    /// The path as the workflow says it, for messages.
    pub text: String,
    /// Scheme and authority: which store.
    pub store: ObjectStoreUrl,
    /// The URL itself, without a pattern; carries what a store's builder needs (bucket, account).
    pub url: Url,
    /// The path in the store up to the first segment with a wildcard.
    pub prefix: ObjectPath,
    /// Whether the path ends in `/`: a directory is meant.
    pub directory: bool,
    /// What follows `prefix` and holds wildcards.
    pub pattern: Option<Pattern>,
}

impl Location {
    /// Whether this is a path of this machine.
    pub fn is_local(&self) -> bool {
        self.url.scheme() == "file"
    }

    /// The path on this machine, for local locations without a pattern.
    pub fn local_path(&self) -> Option<PathBuf> {
        // Through its components: a trailing `/` would make the system look inside.
        self.url.to_file_path().ok().map(|path| path.components().collect())
    }
}

/// Why a path cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It holds a NUL byte.
    #[error("the path holds a NUL byte")]
    Nul,
    /// Nothing is left of it.
    #[error("the path is empty")]
    Empty,
    /// It is no URL.
    #[error("`{text}` is not a URL: {reason}")]
    Url {
        /// The text.
        text: String,
        /// What the URL parser says.
        reason: String,
    },
    /// No store for the scheme.
    #[error(
        "no object store is known for `{scheme}://`; known are s3, s3a, gs, az, abfs, abfss, azure, http, https, file and plain paths"
    )]
    Scheme {
        /// The scheme.
        scheme: String,
    },
    /// Its wildcards make no pattern.
    #[error("`{pattern}` is not a pattern: {reason}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Reads `text`; a relative local path is taken from `base`, the folder of the workflow.
pub fn locate(text: &str, base: &Path) -> Result<Location, Error> {
    if text.contains('\0') {
        return Err(Error::Nul);
    }
    if text.trim().is_empty() {
        return Err(Error::Empty);
    }
    match text.split_once("://") {
        Some((scheme, _)) if scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.')) => {
            locate_url(text, scheme)
        }
        _ => locate_local(text, base),
    }
}

fn locate_url(text: &str, scheme: &str) -> Result<Location, Error> {
    if !matches!(
        scheme,
        "s3" | "s3a" | "gs" | "az" | "adl" | "azure" | "abfs" | "abfss" | "http" | "https" | "file" | "memory"
    ) {
        return Err(Error::Scheme { scheme: scheme.to_owned() });
    }
    // A `?` of a URL begins its query only for HTTP; elsewhere it is a wildcard, as in a shell.
    let rest = &text[scheme.len() + 3..];
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let http = scheme.starts_with("http");
    let (fixed, pattern) = match http {
        true => (path.to_owned(), None),
        false => split_pattern(path),
    };
    let url = Url::parse(&format!("{scheme}://{authority}/{fixed}"))
        .map_err(|error| Error::Url { text: text.to_owned(), reason: error.to_string() })?;
    let prefix = ObjectPath::from_url_path(url.path())
        .map_err(|error| Error::Url { text: text.to_owned(), reason: error.to_string() })?;
    finish(text, url, prefix, fixed.ends_with('/') || fixed.is_empty(), pattern)
}

fn locate_local(text: &str, base: &Path) -> Result<Location, Error> {
    let whole = base.join(text);
    // A file whose name holds a wildcard character is that file.
    let (path, pattern) = match std::fs::symlink_metadata(&whole).is_ok() {
        true => (whole, None),
        false => {
            let (fixed, pattern) = split_pattern(text);
            (base.join(fixed), pattern)
        }
    };
    let directory = text.ends_with('/') || path.is_dir();
    let absolute =
        std::path::absolute(&path).map_err(|error| Error::Url { text: text.to_owned(), reason: error.to_string() })?;
    let absolute = without_dots(&absolute);
    let url = match directory {
        true => Url::from_directory_path(&absolute),
        false => Url::from_file_path(&absolute),
    }
    .map_err(|()| Error::Url { text: text.to_owned(), reason: "it is not a path of this machine".to_owned() })?;
    let prefix = ObjectPath::from_url_path(url.path())
        .map_err(|error| Error::Url { text: text.to_owned(), reason: error.to_string() })?;
    finish(text, url, prefix, directory, pattern)
}

fn finish(
    text: &str,
    url: Url,
    prefix: ObjectPath,
    directory: bool,
    pattern: Option<String>,
) -> Result<Location, Error> {
    let store = ObjectStoreUrl::parse(&url[url::Position::BeforeScheme..url::Position::BeforePath])
        .map_err(|error| Error::Url { text: text.to_owned(), reason: error.to_string() })?;
    let pattern = pattern
        .map(|pattern| Pattern::new(&pattern).map_err(|error| Error::Pattern { pattern, reason: error.msg.to_owned() }))
        .transpose()?;
    Ok(Location { text: text.to_owned(), store, url, prefix, directory, pattern })
}

/// Splits before the first segment that holds a wildcard.
fn split_pattern(path: &str) -> (String, Option<String>) {
    let Some(wildcard) = path.find(['*', '?', '[']) else { return (path.to_owned(), None) };
    let cut = path[..wildcard].rfind('/').map_or(0, |slash| slash + 1);
    (path[..cut].to_owned(), Some(path[cut..].to_owned()))
}

/// Takes `.` and `..` out of an absolute path by its text, as a URL does.
fn without_dots(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                clean.pop();
            }
            other => clean.push(other),
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_paths_start_at_the_workflow() {
        let there = locate("data/../x/*.parquet", Path::new("/base")).unwrap();
        assert_eq!(there.prefix.as_ref(), "base/x");
        assert_eq!(there.pattern.unwrap().as_str(), "*.parquet");
        assert!(there.url.scheme() == "file");
    }

    #[test]
    fn urls_keep_their_bucket() {
        let there = locate("s3://bucket/a/b?/c*.csv", Path::new("/")).unwrap();
        assert_eq!(there.store.as_str(), "s3://bucket/");
        assert_eq!(there.prefix.as_ref(), "a");
        assert_eq!(there.pattern.unwrap().as_str(), "b?/c*.csv");
        let there = locate("https://host/x.csv?sig=1", Path::new("/")).unwrap();
        assert_eq!(there.url.query(), Some("sig=1"));
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(matches!(locate("ftp://x/y", Path::new("/")), Err(Error::Scheme { .. })));
        assert!(matches!(locate("", Path::new("/")), Err(Error::Empty)));
        assert!(matches!(locate("a\0b", Path::new("/")), Err(Error::Nul)));
        assert!(matches!(locate("a/[", Path::new("/")), Err(Error::Pattern { .. })));
    }
}
