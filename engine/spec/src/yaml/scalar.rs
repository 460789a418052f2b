//! Where each byte of a scalar's value stands in the file.
//!
//! The parser hands out a scalar's value without telling how it came about: a block has lost its indentation, a quoted
//! text its escapes, and line breaks were folded. Here the source of the scalar is read a second time beside its value,
//! so that a place in a query can be shown in the file. Rules: YAML 1.2.2, sections 7.3 (flow) and 8.1 (block).

use super::Style;

/// Pairs (byte of the value, byte of the file); see [`crate::MappedText::pieces`].
pub(crate) type Pieces = Vec<(u32, u32)>;

/// A flow scalar read from its source: its value, its pieces, and how many bytes of the source it took.
#[derive(Debug, PartialEq)]
pub(crate) struct Flow {
    pub(crate) value: String,
    pub(crate) pieces: Pieces,
    pub(crate) length: usize,
}

/// Reads a plain or quoted scalar whose source begins at the start of `source`, which stands at byte `base` of the
/// file. A plain scalar takes all of `source`; a quoted one ends at its quote. `None` where the source is not one.
pub(crate) fn read_flow(source: &str, base: usize, style: Style) -> Option<Flow> {
    let mut out = Builder { value: String::with_capacity(source.len()), pieces: Vec::new(), base };
    let quote = match style {
        Style::Plain => None,
        Style::Single => Some('\''),
        Style::Double => Some('"'),
        Style::Block => return None,
    };
    let mut at = quote.map_or(0, char::len_utf8);
    loop {
        let rest = source.get(at..)?;
        let Some(c) = rest.chars().next() else {
            // The end of the source ends a plain scalar only.
            return quote.is_none().then(|| out.finish(at));
        };
        if Some(c) == quote {
            if c == '\'' && rest.starts_with("''") {
                out.push('\'', at);
                at += 2;
                continue;
            }
            return Some(out.finish(at + 1));
        }
        if c == '\\' && quote == Some('"') {
            if let Some(length) = line_break(rest.get(1..)?) {
                // An escaped line break joins the lines; blank lines after it count in full.
                at += 1 + length;
                at = out.breaks(source, at, true);
            } else {
                let (decoded, length) = escape(rest)?;
                out.push(decoded, at);
                at += length;
            }
            continue;
        }
        if matches!(c, ' ' | '\t' | '\n' | '\r') {
            let blanks = rest.len() - rest.trim_start_matches([' ', '\t']).len();
            if line_break(rest.get(blanks..)?).is_none() {
                for (offset, blank) in rest.get(..blanks)?.char_indices() {
                    out.push(blank, at + offset);
                }
                at += blanks;
            } else {
                at = out.breaks(source, at + blanks, false);
            }
            continue;
        }
        out.push(c, at);
        at += c.len_utf8();
    }
}

/// The pieces of a block scalar (`|` or `>`) whose first line of content begins at byte `start` of `text`, indented by
/// `indent` columns, and that ends before `end`. `None` where value and source do not fit together.
pub(crate) fn block_pieces(text: &str, start: usize, end: usize, indent: usize, value: &str) -> Option<Pieces> {
    let mut out = Builder { value: String::new(), pieces: Vec::new(), base: 0 };
    // `done` bytes of the value have their place.
    let mut done = 0;
    let mut at = start;
    let mut first = true;
    // Places of line breaks that the value has not yet taken up; at first those of blank lines before the content.
    let blank_lines = value.len() - value.trim_start_matches('\n').len();
    let mut pending = breaks_before(text, start, blank_lines);
    while at < end || first {
        let line_end = text.get(at..)?.find(['\n', '\r']).map_or(text.len(), |found| at + found);
        let content_at = if first { at } else { at + indentation(text.get(at..line_end)?, indent) };
        let content = text.get(content_at..line_end)?;
        if !content.is_empty() {
            let mut breaks = pending.drain(..);
            let mut last_break = start;
            while !value.get(done..)?.starts_with(content) {
                let c = value.get(done..)?.chars().next().filter(|c| matches!(c, ' ' | '\n'))?;
                last_break = breaks.next().unwrap_or(last_break);
                out.place(done, last_break);
                done += c.len_utf8();
            }
            drop(breaks);
            out.place(done, content_at);
            done += content.len();
        }
        pending.push(line_end);
        first = false;
        match line_break(text.get(line_end..)?) {
            Some(length) => at = line_end + length,
            None => break,
        }
    }
    // What is left of the value are the line breaks that chomping kept.
    let mut breaks = pending.into_iter();
    let mut last_break = end;
    for (offset, c) in value.get(done..)?.char_indices() {
        if c != '\n' {
            return None;
        }
        last_break = breaks.next().unwrap_or(last_break);
        out.place(done + offset, last_break);
    }
    Some(out.pieces)
}

/// The places of the last `count` line breaks before byte `from`, in ascending order.
fn breaks_before(text: &str, from: usize, count: usize) -> Vec<usize> {
    let mut places = Vec::with_capacity(count);
    let mut end = from;
    while places.len() < count {
        let Some(at) = text.get(..end).and_then(|before| before.rfind(['\n', '\r'])) else { break };
        let pair = text.get(..=at).is_some_and(|before| before.ends_with("\r\n"));
        end = if pair { at - 1 } else { at };
        places.push(end);
    }
    places.reverse();
    places
}

/// Up to `indent` spaces at the start of a line.
fn indentation(line: &str, indent: usize) -> usize {
    line.bytes().take(indent).take_while(|byte| *byte == b' ').count()
}

/// The length of the line break at the start of `text`.
fn line_break(text: &str) -> Option<usize> {
    if text.starts_with("\r\n") {
        Some(2)
    } else if text.starts_with(['\n', '\r']) {
        Some(1)
    } else {
        None
    }
}

/// The character that an escape sequence at the start of `text` stands for, and the sequence's length.
fn escape(text: &str) -> Option<(char, usize)> {
    let kind = text.chars().nth(1)?;
    let digits = match kind {
        'x' => 2,
        'u' => 4,
        'U' => 8,
        _ => {
            let decoded = match kind {
                '0' => '\0',
                'a' => '\x07',
                'b' => '\x08',
                't' | '\t' => '\t',
                'n' => '\n',
                'v' => '\x0b',
                'f' => '\x0c',
                'r' => '\r',
                'e' => '\x1b',
                ' ' => ' ',
                '"' => '"',
                '/' => '/',
                '\\' => '\\',
                'N' => '\u{85}',
                '_' => '\u{a0}',
                'L' => '\u{2028}',
                'P' => '\u{2029}',
                _ => return None,
            };
            return Some((decoded, 1 + kind.len_utf8()));
        }
    };
    let code = u32::from_str_radix(text.get(2..2 + digits)?, 16).ok()?;
    Some((char::from_u32(code)?, 2 + digits))
}

struct Builder {
    value: String,
    pieces: Pieces,
    base: usize,
}

impl Builder {
    /// Appends a character that stands at `at` of the source.
    fn push(&mut self, c: char, at: usize) {
        self.place(self.value.len(), self.base + at);
        self.value.push(c);
    }

    /// Says that byte `value` of the value stands at byte `file` of the file; silent when that follows already.
    fn place(&mut self, value: usize, file: usize) {
        let follows = self.pieces.last().is_some_and(|(last_value, last_file)| {
            file as u64 == u64::from(*last_file) + (value as u64 - u64::from(*last_value))
        });
        if !follows {
            self.pieces.push((value as u32, file as u32));
        }
    }

    /// Folds the line breaks and blanks from `at` on; returns where content goes on. One break is a space (nothing
    /// after an escaped break), each further one a line break.
    fn breaks(&mut self, source: &str, mut at: usize, escaped: bool) -> usize {
        let mut found = Vec::new();
        loop {
            let rest = source.get(at..).unwrap_or("");
            if let Some(length) = line_break(rest) {
                found.push(at);
                at += length;
            } else if rest.starts_with([' ', '\t']) {
                at += 1;
            } else {
                break;
            }
        }
        match (escaped, found.as_slice()) {
            (true, all) | (false, [_, all @ ..]) if escaped || !all.is_empty() => {
                for place in all {
                    self.push('\n', *place);
                }
            }
            (false, [one]) => self.push(' ', *one),
            _ => {}
        }
        at
    }

    fn finish(self, length: usize) -> Flow {
        Flow { value: self.value, pieces: self.pieces, length }
    }
}
