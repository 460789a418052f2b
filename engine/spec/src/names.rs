//! What a name may be.
//!
//! One rule for every name that SQL or a template uses: a letter or `_`, then letters, digits and `_`, in Unicode
//! normal form C, its case kept. SQL folds case, so two names that differ only in case collide.

use unicode_normalization::{UnicodeNormalization, is_nfc};

use crate::codes;
use crate::diagnostic::Diagnostic;
use crate::span::Span;

/// The longest name, in characters.
pub const MAX_NAME_CHARS: usize = 128;
/// Characters of a resource class's name.
const MAX_CLASS_CHARS: usize = 40;

/// A text in Unicode normal form C.
pub fn normalize(name: &str) -> String {
    if is_nfc(name) { name.to_owned() } else { name.nfc().collect() }
}

/// What two names share when SQL takes them for the same.
pub fn fold(name: &str) -> String {
    normalize(name).to_lowercase()
}

/// Whether SQL can use the name without quotes.
pub fn is_identifier(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|first| first.is_alphabetic() || first == '_')
        && chars.all(|c| c.is_alphanumeric() || c == '_')
        && name.chars().count() <= MAX_NAME_CHARS
}

/// Whether a workflow may have the name: an identifier that may also hold `-`.
pub fn is_workflow_name(name: &str) -> bool {
    is_identifier(&name.replace('-', "_")) && !name.starts_with('-')
}

/// Whether a word can be a resource class. Executors of a cluster carry theirs in their own names, so the rule is
/// narrower than that of other names, and the cluster's own.
pub(crate) fn is_class(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_lowercase())
        && word.len() <= MAX_CLASS_CHARS
        && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-'))
}

/// A report about a name that cannot be used; `what` is "step", "source" and so on.
pub(crate) fn bad_name(what: &str, name: &str, span: Span) -> Diagnostic {
    let dash = if what == "workflow" { ", `-`" } else { "" };
    let mut shown: String = name.chars().take(40).collect();
    if shown.len() < name.len() {
        shown.push('…');
    }
    let report = Diagnostic::error(codes::BAD_NAME, format!("`{shown}` cannot be the name of a {what}"))
        .at(span, format!("names begin with a letter or `_` and hold letters, digits{dash} and `_`"));
    if name.chars().count() > MAX_NAME_CHARS {
        return report.help(format!("names have at most {MAX_NAME_CHARS} characters"));
    }
    match repaired(name, what == "workflow") {
        Some(name) => report.help(format!("write `{name}`")),
        None => report.help("for example `clean` or `step_2`"),
    }
}

/// The nearest name that can be used.
fn repaired(name: &str, dash: bool) -> Option<String> {
    let fits = |c: char| c.is_alphanumeric() || c == '_' || (dash && c == '-');
    let mut repaired: String = name.trim().chars().map(|c| if fits(c) { c } else { '_' }).collect();
    if !repaired.chars().any(char::is_alphanumeric) {
        return None;
    }
    if repaired.starts_with(|c: char| c.is_numeric() || c == '-') {
        repaired.insert(0, '_');
    }
    if dash { is_workflow_name(&repaired) } else { is_identifier(&repaired) }.then_some(repaired)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers() {
        for good in ["a", "_", "Größe", "step_2", "数据"] {
            assert!(is_identifier(good), "{good}");
        }
        for bad in ["", "2a", "a-b", "a b", "a.b", "é\u{301} ", "$x", &"a".repeat(129)] {
            assert!(!is_identifier(bad), "{bad}");
        }
        assert!(is_workflow_name("flight-delays") && !is_workflow_name("-x") && !is_workflow_name("a.b"));
    }

    #[test]
    fn composed_and_decomposed_are_one_name() {
        assert_eq!(normalize("e\u{301}"), "é");
        assert_eq!(fold("E\u{301}"), fold("é"));
    }

    #[test]
    fn a_spelling_is_suggested() {
        let help = |what, name| bad_name(what, name, Span::NONE).help;
        assert_eq!(help("step", "a b-c"), ["write `a_b_c`"]);
        assert_eq!(help("step", "2nd"), ["write `_2nd`"]);
        assert_eq!(help("step", "---"), ["for example `clean` or `step_2`"]);
        assert_eq!(help("workflow", "my flow"), ["write `my_flow`"]);
    }
}
