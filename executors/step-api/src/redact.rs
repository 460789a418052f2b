//! Takes secrets and terminal tricks out of text before anybody reads it.
//!
//! Every resolved secret is planted here, and with it the forms in which services echo it: base64 (both alphabets, at
//! each of the three positions it can have inside a longer encoded text, such as `user:password`), percent-encoding,
//! JSON escapes and hexadecimal. Clean text costs one pass of an Aho-Corasick automaton.

use std::collections::BTreeSet;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use parking_lot::RwLock;

use crate::Secret;

/// What stands in the place of a secret.
const MASK: &str = "***";
/// A piece of base64 shorter than this would match ordinary words.
const MIN_FRAGMENT_CHARS: usize = 6;
/// The longest message a failure carries, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 2048;

/// Removes planted secrets from text. Clones share what is planted.
#[derive(Clone, Default)]
pub struct Redactor {
    inner: Arc<RwLock<Planted>>,
}

#[derive(Default)]
struct Planted {
    patterns: BTreeSet<String>,
    automaton: Option<Arc<AhoCorasick>>,
}

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Redactor({} patterns)", self.inner.read().patterns.len())
    }
}

impl Redactor {
    /// A redactor that knows no secret yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Plants a secret: from now on no text that passes shows it in any of its forms.
    pub fn plant(&self, secret: &Secret) {
        let forms = forms(secret.expose());
        let mut inner = self.inner.write();
        let before = inner.patterns.len();
        inner.patterns.extend(forms);
        if inner.patterns.len() > before {
            // Leftmost-longest, so that of two secrets that begin alike the longer one goes whole. Building fails only
            // for pattern sets of billions of bytes; then everything is masked rather than nothing (see `redact`).
            inner.automaton =
                AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&inner.patterns).ok().map(Arc::new);
        }
    }

    /// The text without secrets.
    pub fn redact(&self, text: &str) -> String {
        let (automaton, none) = {
            let inner = self.inner.read();
            (inner.automaton.clone(), inner.patterns.is_empty())
        };
        match automaton {
            None if none => text.to_owned(),
            None => MASK.to_owned(),
            Some(automaton) => {
                let mut clean = String::with_capacity(text.len());
                automaton.replace_all_with(text, &mut clean, |_, _, out| {
                    out.push_str(MASK);
                    true
                });
                clean
            }
        }
    }

    /// The text as it may be stored and shown: without secrets, control characters made visible, at most
    /// [`MAX_MESSAGE_BYTES`] long.
    pub fn clean(&self, text: &str) -> String {
        // Secrets go first: cutting or escaping before that could leave half of one behind.
        neutralise(&self.redact(text), MAX_MESSAGE_BYTES)
    }
}

/// Makes control characters (ANSI escapes, line breaks other than `\n`, bidirectional overrides) visible as `\u{..}`
/// and cuts the text to `max_bytes`, saying so.
pub fn neutralise(text: &str, max_bytes: usize) -> String {
    use std::fmt::Write as _;
    let mut clean = String::with_capacity(text.len().min(max_bytes) + 16);
    for character in text.chars() {
        if clean.len() + character.len_utf8() > max_bytes {
            clean.push_str("… (cut)");
            break;
        }
        let hidden = matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if (character.is_control() && character != '\n' && character != '\t') || hidden {
            // Writing to a String cannot fail.
            let _ = write!(clean, "\\u{{{:x}}}", u32::from(character));
        } else {
            clean.push(character);
        }
    }
    clean
}

/// The forms in which a secret can appear.
fn forms(secret: &str) -> BTreeSet<String> {
    let mut forms = BTreeSet::new();
    if secret.is_empty() {
        return forms;
    }
    forms.insert(secret.to_owned());
    for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
        forms.insert(engine.encode(secret));
        // Inside a longer text the secret starts at 0, 1 or 2 bytes past a group of three. Encode it there and keep
        // the characters that depend on the secret alone.
        for lead in 0..3usize {
            let mut padded = vec![0u8; lead];
            padded.extend_from_slice(secret.as_bytes());
            let encoded = engine.encode(&padded);
            let first = (lead * 8).div_ceil(6);
            let last = padded.len() * 8 / 6;
            if last.saturating_sub(first) >= MIN_FRAGMENT_CHARS {
                forms.insert(encoded[first..last].to_owned());
            }
        }
    }
    for upper in [true, false] {
        // Encoders differ in what they leave alone: everything but the unreserved characters, or only what breaks a
        // URL, or a space as `+`.
        forms.insert(secret.bytes().map(|b| if upper { format!("%{b:02X}") } else { format!("%{b:02x}") }).collect());
        for keep in ["-._~", "-._~!$&'()*+,;=:@/?", "-._*"] {
            forms.insert(percent(secret, keep, upper, false));
            forms.insert(percent(secret, keep, upper, true));
        }
        let hex: String = secret.bytes().map(|b| if upper { format!("{b:02X}") } else { format!("{b:02x}") }).collect();
        if hex.len() >= MIN_FRAGMENT_CHARS {
            forms.insert(hex);
        }
    }
    if let Ok(quoted) = serde_json::to_string(secret) {
        let inner = &quoted[1..quoted.len() - 1];
        forms.insert(inner.to_owned());
        forms.insert(inner.replace('/', "\\/"));
    }
    forms.extend(html(secret));
    forms.insert(format!("{secret:?}").trim_matches('"').to_owned());
    forms.remove("");
    forms
}

/// How pages and XML write the text; escapers differ in what they do about quotes.
fn html(text: &str) -> impl Iterator<Item = String> {
    let basic = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let double = ["\"", "&quot;", "&#34;", "&#x22;"];
    let single = ["'", "&#39;", "&#x27;", "&apos;", "&#039;"];
    double.into_iter().flat_map(move |double| {
        let basic = basic.replace('"', double);
        single.into_iter().map(move |single| basic.replace('\'', single))
    })
}

fn percent(text: &str, keep: &str, upper: bool, plus: bool) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || keep.as_bytes().contains(&byte) {
            out.push(char::from(byte));
        } else if plus && byte == b' ' {
            out.push('+');
        } else if upper {
            out.push_str(&format!("%{byte:02X}"));
        } else {
            out.push_str(&format!("%{byte:02x}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;

    #[test]
    fn every_form_of_a_canary_is_removed() {
        let canary = "c4n/ry+s3cret \"with\" ü";
        let redactor = Redactor::new();
        redactor.plant(&Secret::new(canary));
        let json = serde_json::to_string(canary).unwrap();
        for text in [
            canary.to_owned(),
            format!("Authorization: Basic {}", STANDARD.encode(format!("user:{canary}"))),
            format!("Authorization: Basic {}", STANDARD.encode(format!("me:{canary}:x"))),
            URL_SAFE_NO_PAD.encode(canary),
            percent(canary, "-._~", true, false),
            percent(canary, "-._~", false, true),
            canary.bytes().map(|byte| format!("%{byte:02x}")).collect(),
            "c4n/ry+s3cret &quot;with&quot; ü".to_owned(),
            json,
            format!("{canary:?}"),
        ] {
            let clean = redactor.redact(&text);
            assert!(clean.contains(MASK), "{text} -> {clean}");
            for part in ["s3cret", "czNjcmV0", "c4n"] {
                assert!(!clean.contains(part), "{text} -> {clean}");
            }
        }
        assert_eq!(redactor.redact("nothing here"), "nothing here");
    }

    #[test]
    fn terminal_tricks_become_visible_and_long_text_is_cut() {
        let clean = neutralise("a\u{1b}[31mred\r\u{202e}x\n\tend\0", 100);
        assert_eq!(clean, "a\\u{1b}[31mred\\u{d}\\u{202e}x\n\tend\\u{0}");
        let cut = neutralise(&"é".repeat(5000), MAX_MESSAGE_BYTES);
        assert!(cut.len() <= MAX_MESSAGE_BYTES + 16 && cut.ends_with("(cut)"));
    }

    #[test]
    fn a_secret_at_the_cut_does_not_survive_in_part() {
        let redactor = Redactor::new();
        redactor.plant(&Secret::new("verysecretvalue"));
        let text = format!("{}verysecretvalue", "x".repeat(MAX_MESSAGE_BYTES - 8));
        assert!(!redactor.clean(&text).contains("verys"));
    }

    proptest! {
        #[test]
        fn base64_in_any_position_hides_the_secret(secret in "[a-zA-Z0-9]{8,40}", before in ".{0,9}", after in ".{0,9}") {
            let redactor = Redactor::new();
            redactor.plant(&Secret::new(&secret));
            let clean = redactor.redact(&STANDARD.encode(format!("{before}{secret}{after}")));
            prop_assert!(clean.contains(MASK));
        }
    }
}
