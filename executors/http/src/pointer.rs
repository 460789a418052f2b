//! JSON pointers (RFC 6901).

use serde_json::Value;

use crate::options::{OptionsError, wrong};

/// A pointer, split once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pointer(Vec<String>);

impl Pointer {
    pub(crate) fn parse(option: &'static str, text: &str) -> Result<Self, OptionsError> {
        if text.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let Some(rest) = text.strip_prefix('/') else {
            return wrong(option, format!("`{text}` is not a JSON pointer: it is empty or begins with `/`"));
        };
        Ok(Self(rest.split('/').map(|token| token.replace("~1", "/").replace("~0", "~")).collect()))
    }

    pub(crate) fn find<'v>(&self, value: &'v Value) -> Option<&'v Value> {
        self.0.iter().try_fold(value, |value, token| match value {
            Value::Object(fields) => fields.get(token),
            // A leading zero or sign is no index.
            Value::Array(values) if token == "0" || !token.starts_with(['0', '+']) => {
                values.get(token.parse::<usize>().ok()?)
            }
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pointers_follow_the_rfc() {
        let value = json!({"a/b": {"~": [10, 20]}, "": 1});
        let find = |text: &str| Pointer::parse("x", text).unwrap().find(&value).cloned();
        assert_eq!(find("/a~1b/~0/1"), Some(json!(20)));
        assert_eq!(find("/"), Some(json!(1)));
        assert_eq!(find(""), Some(value.clone()));
        assert_eq!(find("/a~1b/~0/01"), None);
        assert_eq!(find("/nope/x"), None);
        assert!(Pointer::parse("x", "a").is_err());
    }
}
