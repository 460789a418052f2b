//! The secrets that open a cluster: its own token, which joins and submits, and tokens that submit alone.

use std::fmt;
use std::sync::Arc;

/// What a token must not be shorter than, in bytes.
const SHORTEST_TOKEN: usize = 16;
/// What a name of an organisation or a team may not be longer than, in bytes.
const LONGEST_NAME: usize = 128;

/// Why a token is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It could be guessed.
    #[error("the cluster token has {0} characters; use at least 16 random ones, such as `openssl rand -hex 32` prints")]
    Short(usize),
    /// It cannot travel in a header.
    #[error("the cluster token may hold letters, digits and -_.~+/= only")]
    Character,
    /// A line of the list of submitters is written otherwise. The token is not shown.
    #[error(
        "line {line} of the tokens that submit: {why}; a line is TOKEN, TOKEN ORGANISATION or TOKEN ORGANISATION/TEAM"
    )]
    Line {
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
}

/// A secret that processes share. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Arc<str>);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

impl Token {
    /// Takes a token from text; blanks around it are dropped.
    ///
    /// # Errors
    /// It is short or holds a character that headers do not carry.
    pub fn try_new(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() < SHORTEST_TOKEN {
            return Err(TokenError::Short(text.chars().count()));
        }
        if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.~+/=".contains(&byte)) {
            return Err(TokenError::Character);
        }
        Ok(Self(text.into()))
    }

    /// The token itself, for the header that carries it.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }

    /// Compares in a time that does not depend on where the texts differ.
    pub(crate) fn matches(&self, other: &str) -> bool {
        let (own, other) = (self.0.as_bytes(), other.as_bytes());
        let mut difference = own.len() ^ other.len();
        for (at, byte) in own.iter().enumerate() {
            // Without the black box a compiler may leave the loop at the first difference.
            difference |= std::hint::black_box(usize::from(byte ^ other.get(at).copied().unwrap_or(0)));
        }
        difference == 0
    }
}

/// Whom work is done for: what quotas and fair shares go by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct TenantName {
    /// The organisation; empty for none.
    pub organisation: Arc<str>,
    /// The team in it; empty for none.
    pub team: Arc<str>,
}

impl TenantName {
    /// Reads `ORGANISATION` or `ORGANISATION/TEAM`.
    ///
    /// # Errors
    /// A name is empty, too long, or holds other characters than letters, digits and -_. ; the text says so.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (organisation, team) = text.split_once('/').map_or((text, None), |(own, team)| (own, Some(team)));
        Ok(Self { organisation: name(organisation)?, team: team.map(name).transpose()?.unwrap_or_default() })
    }

    /// Whether what belongs to `other` is this one's business: an organisation's is each of its teams', a team's its own.
    pub fn covers(&self, other: &Self) -> bool {
        self.organisation == other.organisation && (self.team.is_empty() || self.team == other.team)
    }
}

impl fmt::Display for TenantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.organisation.is_empty(), self.team.is_empty()) {
            (true, true) => f.write_str("nobody in particular"),
            (_, true) => f.write_str(&self.organisation),
            _ => write!(f, "{}/{}", self.organisation, self.team),
        }
    }
}

/// A name of an organisation, a team or a queue.
///
/// # Errors
/// It is empty, too long, or holds other characters; the text says so.
pub fn name(text: &str) -> Result<Arc<str>, String> {
    let plain = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    match text {
        "" => Err("a name is empty".to_owned()),
        long if long.len() > LONGEST_NAME => Err(format!("a name has more than {LONGEST_NAME} bytes")),
        other if !other.chars().all(plain) => {
            Err(format!("`{}` holds more than letters, digits and -_.", other.escape_default()))
        }
        good => Ok(good.into()),
    }
}

/// A token that submits and does not join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submitter {
    pub(crate) token: Token,
    pub(crate) tenant: Option<TenantName>,
}

impl Submitter {
    /// Whoever holds this token submits, for `tenant` alone where one is given.
    pub fn new(token: Token, tenant: Option<TenantName>) -> Self {
        Self { token, tenant }
    }

    /// Reads a list: a token on each line, alone or followed by whom it submits for. Empty lines and those that begin
    /// with `#` count for nothing.
    ///
    /// # Errors
    /// A line is written otherwise.
    pub fn read(text: &str) -> Result<Vec<Self>, TokenError> {
        let mut all: Vec<Self> = Vec::new();
        for (line, text) in (1..).zip(text.lines()) {
            let text = text.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let wrong = |why: String| TokenError::Line { line, why };
            let mut words = text.split_whitespace();
            let token = Token::try_new(words.next().unwrap_or_default()).map_err(|error| wrong(error.to_string()))?;
            let tenant = words.next().map(TenantName::parse).transpose().map_err(wrong)?;
            if words.next().is_some() {
                return Err(wrong("there is more on it".to_owned()));
            }
            if all.iter().any(|other| other.token == token) {
                return Err(wrong("the token was on an earlier line".to_owned()));
            }
            all.push(Self { token, tenant });
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_long_and_never_printed() {
        assert_eq!(Token::try_new("short").unwrap_err(), TokenError::Short(5));
        assert_eq!(Token::try_new("0123456789abcdef x").unwrap_err(), TokenError::Character);
        let submitters = Submitter::read("0123456789abcdef org/team").unwrap();
        assert!(!format!("{submitters:?}").contains("0123456789abcdef"));
    }

    #[test]
    fn whole_texts_are_compared() {
        let token = Token::try_new("0123456789abcdef").unwrap();
        assert!(token.matches("0123456789abcdef"));
        for other in ["", "0123456789abcde", "0123456789abcdeg", "0123456789abcdef0", "x123456789abcdef"] {
            assert!(!token.matches(other), "{other}");
        }
    }

    #[test]
    fn submitters_are_read_line_by_line() {
        let text = "# who\n\n0123456789abcdef\nfedcba9876543210 acme\n 00000000000000000 acme/data \n";
        let all = Submitter::read(text).unwrap();
        assert_eq!(all.len(), 3);
        assert_eq!(all[0].tenant, None);
        assert_eq!(all[1].tenant, Some(TenantName { organisation: "acme".into(), team: "".into() }));
        assert_eq!(all[2].tenant.as_ref().unwrap().to_string(), "acme/data");
        let secret = "0123456789abcdef0123456789";
        for wrong in ["short", &format!("{secret} a b"), &format!("{secret} a/"), &format!("{secret}\n{secret}")] {
            let error = Submitter::read(wrong).unwrap_err();
            assert!(!error.to_string().contains(secret), "{error}");
        }
    }
}
