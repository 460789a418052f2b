//! Values of settings from texts.

use std::fmt;
use std::time::Duration;

use super::catalogue::Kind;
use super::secret::Secret;
use crate::suggest::{did_you_mean, listed};
use crate::units::{format_duration, parse_duration};

/// A value that was read; `auto` is `None` outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Setting {
    Auto,
    Bytes(u64),
    Count(u64),
    Bool(bool),
    Word(&'static str),
    Text(String),
    Secret(Secret),
    /// A number as written, which `f64` reads.
    Rate(String),
    /// `None` is `none`.
    Duration(Option<Duration>),
    Texts(Vec<(String, String)>),
    List(Vec<String>),
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Setting::Auto => f.write_str("auto"),
            Setting::Bytes(bytes) => f.write_str(&format_bytes(*bytes)),
            Setting::Count(count) => write!(f, "{count}"),
            Setting::Bool(value) => write!(f, "{value}"),
            Setting::Word(word) => f.write_str(word),
            Setting::Text(text) => f.write_str(text),
            Setting::Secret(secret) => write!(f, "{secret}"),
            Setting::Rate(text) => f.write_str(text),
            Setting::Duration(None) => f.write_str("none"),
            Setting::Duration(Some(time)) => f.write_str(&format_duration(*time)),
            Setting::Texts(pairs) => {
                let pairs: Vec<String> = pairs.iter().map(|(name, text)| format!("{name}: {text}")).collect();
                write!(f, "{{{}}}", pairs.join(", "))
            }
            Setting::List(items) => write!(f, "[{}]", items.join(", ")),
        }
    }
}

/// Why a text is not a value of a setting.
pub(super) enum Refusal {
    /// It cannot be read, for this reason.
    Bad(String),
    /// A secret in plain text, which must not be repeated in a report.
    PlainSecret,
}

/// Reads the value of a setting. A secret itself is taken only where `plain_secrets` says so.
pub(super) fn read(kind: Kind, text: &str, plain_secrets: bool) -> Result<Setting, Refusal> {
    let trimmed = text.trim();
    let bad = |reason: String| Err(Refusal::Bad(reason));
    if trimmed.is_empty() {
        return bad(format!("it is empty; give {}", kind.describe()));
    }
    match kind {
        Kind::BytesOrAuto | Kind::CountOrAuto(_) | Kind::PathOrAuto if trimmed == "auto" => Ok(Setting::Auto),
        Kind::BytesOrAuto => match parse_bytes(trimmed) {
            Ok(0) => bad("it must be more than nothing".to_owned()),
            Ok(bytes) => Ok(Setting::Bytes(bytes)),
            Err(reason) => bad(reason),
        },
        Kind::CountOrAuto(most) => match trimmed.parse::<u64>() {
            Ok(count) if (1..=most).contains(&count) => Ok(Setting::Count(count)),
            _ => bad(format!("`{trimmed}` is not {}", kind.describe())),
        },
        Kind::PathOrAuto | Kind::Text => Ok(Setting::Text(trimmed.to_owned())),
        Kind::Url => {
            if trimmed.starts_with("https://") || trimmed.starts_with("http://") {
                Ok(Setting::Text(trimmed.to_owned()))
            } else {
                bad(format!("`{trimmed}` is not {}", kind.describe()))
            }
        }
        Kind::Bool => match trimmed.to_ascii_lowercase().as_str() {
            "true" => Ok(Setting::Bool(true)),
            "false" => Ok(Setting::Bool(false)),
            _ => bad(format!("`{trimmed}` is neither `true` nor `false`")),
        },
        Kind::Word(words) => match words.iter().find(|word| **word == trimmed) {
            Some(word) => Ok(Setting::Word(word)),
            None => {
                let near = did_you_mean(trimmed, words.iter().copied()).map(|help| format!("; {help}"));
                bad(format!("`{trimmed}` is not one of {}{}", listed(words.iter().copied()), near.unwrap_or_default()))
            }
        },
        Kind::WordOrSecret(word) if trimmed == word => Ok(Setting::Text(word.to_owned())),
        Kind::Bytes => match parse_bytes(trimmed) {
            Ok(0) => bad("it must be more than nothing".to_owned()),
            Ok(bytes) => Ok(Setting::Bytes(bytes)),
            Err(reason) => bad(reason),
        },
        Kind::Count(most) | Kind::Number(most) => match trimmed.parse::<u64>() {
            Ok(0) if matches!(kind, Kind::Count(_)) => bad(format!("`{trimmed}` is not {}", kind.describe())),
            Ok(count) if count <= most => Ok(Setting::Count(count)),
            _ => bad(format!("`{trimmed}` is not {}", kind.describe())),
        },
        Kind::Rate => match trimmed.parse::<f64>() {
            Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(Setting::Rate(trimmed.to_owned())),
            _ => bad(format!("`{trimmed}` is not {}", kind.describe())),
        },
        Kind::DurationOrNone if trimmed == "none" => Ok(Setting::Duration(None)),
        Kind::Duration | Kind::DurationOrNone => match parse_duration(trimmed) {
            Ok(time) if time.is_zero() => bad("it must be more than nothing".to_owned()),
            Ok(time) => Ok(Setting::Duration(Some(time))),
            Err(reason) => bad(reason),
        },
        Kind::TextMap => bad("it is a mapping, which stands in a configuration file".to_owned()),
        Kind::TextList => Ok(Setting::List(
            trimmed.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect(),
        )),
        Kind::Secret | Kind::WordOrSecret(_) => match Secret::reference(trimmed) {
            Some(secret) => Ok(Setting::Secret(secret)),
            None if plain_secrets => Ok(Setting::Secret(Secret::given(text))),
            None => Err(Refusal::PlainSecret),
        },
    }
}

const UNITS: &[(&str, u64)] = &[
    ("tib", 1 << 40),
    ("gib", 1 << 30),
    ("mib", 1 << 20),
    ("kib", 1 << 10),
    ("tb", 1_000_000_000_000),
    ("gb", 1_000_000_000),
    ("mb", 1_000_000),
    ("kb", 1_000),
    ("b", 1),
];

/// Reads a size: `2GB` (powers of 1000), `1.5GiB` (powers of 1024), or a plain number of bytes.
///
/// # Errors
/// A sentence that says what was wrong.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let wrong = || format!("`{text}` is not a size; write it as `512MB` or `2GiB`");
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = unit.trim().to_ascii_lowercase();
    let factor = match UNITS.iter().find(|(name, _)| *name == unit) {
        Some((_, factor)) => *factor,
        None if unit.is_empty() => 1,
        None => {
            let single = ["k", "m", "g", "t"].contains(&unit.as_str());
            return Err(if single {
                let letter = unit.to_uppercase();
                format!(
                    "`{text}` is not a size; write `{number}{letter}B` (powers of 1000) or `{number}{letter}iB` (powers of 1024)"
                )
            } else {
                wrong()
            });
        }
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.contains('.') || fraction.len() > 9 || (number.contains('.') && fraction.is_empty())
    {
        return Err(wrong());
    }
    let whole: u128 = whole.parse().map_err(|_| wrong())?;
    let scale = 10_u128.pow(fraction.len() as u32);
    let part: u128 = if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| wrong())? };
    let bytes = whole
        .checked_mul(u128::from(factor))
        .and_then(|bytes| bytes.checked_add(part * u128::from(factor) / scale))
        .ok_or_else(wrong)?;
    u64::try_from(bytes).map_err(|_| format!("`{text}` is more than any machine has"))
}

/// The shortest exact text of a size.
pub(crate) fn format_bytes(bytes: u64) -> String {
    let names = ["TiB", "GiB", "MiB", "KiB", "TB", "GB", "MB", "KB"];
    UNITS
        .iter()
        .zip(names)
        .filter(|((_, factor), _)| bytes > 0 && bytes.is_multiple_of(*factor))
        .map(|((_, factor), name)| format!("{}{name}", bytes / factor))
        .min_by_key(String::len)
        .unwrap_or_else(|| format!("{bytes}B"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("2GB", 2_000_000_000), ("2GiB", 1 << 31), ("1.5 GiB", 3 << 29), ("0.5kb", 500), ("17", 17), ("17 B", 17)]
        {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for bad in ["", "GB", "2G", "2 XB", "-1GB", "1.2.3GB", "1.GB", "99999999999TB", "1e9", "٣GB"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
        assert!(parse_bytes("2G").unwrap_err().contains("`2GB`"));
        for bytes in [1, 17, 1000, 1024, 1536, 2_000_000_000, 1 << 31, u64::MAX] {
            assert_eq!(parse_bytes(&format_bytes(bytes)), Ok(bytes));
        }
    }
}
