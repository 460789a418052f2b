//! What the scanner reads from: characters, with a brake on texts that it would hold in memory whole.

use std::cell::Cell;
use std::rc::Rc;
use std::str::Chars;

/// The most entries of a bracketed list or mapping that the scanner must hold at once, because the whole of it might
/// still turn out to be a key.
pub(super) const MAX_FLOW_ENTRIES: u32 = 65_536;

/// What the scanner reads from, with a brake: see [`MAX_FLOW_ENTRIES`].
pub(super) struct Feed<'a> {
    pub(super) chars: Chars<'a>,
    pub(super) brake: Rc<Brake>,
}

#[derive(Default)]
pub(super) struct Brake {
    /// Whether what follows is a bracketed list or mapping.
    pub(super) in_flow: Cell<bool>,
    /// Entries read since the last event.
    pub(super) entries: Cell<u32>,
    /// Whether the limit was passed; the scanner was then told that the text ends.
    pub(super) passed: Cell<bool>,
}

impl Iterator for Feed<'_> {
    type Item = char;

    fn next(&mut self) -> Option<char> {
        let c = self.chars.next()?;
        if matches!(c, ',' | '[' | '{' | ':') && self.brake.in_flow.get() {
            self.brake.entries.set(self.brake.entries.get() + 1);
            if self.brake.entries.get() > MAX_FLOW_ENTRIES {
                self.brake.passed.set(true);
                return None;
            }
        }
        Some(c)
    }
}
