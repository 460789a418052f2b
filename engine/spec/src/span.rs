//! Where things stand in the text: spans, spanned values, and text whose bytes were rearranged by YAML.

use std::ops::{Deref, Range};
use std::sync::Arc;

/// One text of a workflow (its file, an included SQL file, a variables file), by its place in [`Texts`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TextId(pub u32);

/// A range of bytes in one text. A value that a program made, not a text, has [`Span::NONE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Span {
    /// The text the range lies in.
    pub text: TextId,
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

impl Span {
    /// No place: the value came from a program.
    pub const NONE: Span = Span { text: TextId(u32::MAX), start: 0, end: 0 };

    /// A span over `range` of `text`.
    pub fn new(text: TextId, range: Range<usize>) -> Self {
        Span { text, start: range.start as u32, end: range.end as u32 }
    }

    /// Whether this span points nowhere.
    pub fn is_none(&self) -> bool {
        *self == Span::NONE
    }
}

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Its place.
    pub span: Span,
}

impl<T> Spanned<T> {
    /// `value`, found at `span`.
    pub fn new(value: T, span: Span) -> Self {
        Spanned { value, span }
    }

    /// `value`, made by a program.
    pub fn bare(value: T) -> Self {
        Spanned { value, span: Span::NONE }
    }
}

impl<T> Deref for Spanned<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

/// The texts that spans point into, with the names to show for them.
#[derive(Debug, Clone, Default)]
pub struct Texts {
    texts: Vec<(Arc<str>, Arc<str>)>,
}

impl Texts {
    /// No texts.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a text; `name` is what a report calls it, usually its path.
    pub fn add(&mut self, name: impl Into<Arc<str>>, text: impl Into<Arc<str>>) -> TextId {
        self.texts.push((name.into(), text.into()));
        TextId((self.texts.len() - 1) as u32)
    }

    /// How many texts there are.
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// Adds all texts of another set; a span of that set points to the same place once its id is raised by the result.
    pub fn append(&mut self, other: &Texts) -> u32 {
        let shift = self.texts.len() as u32;
        self.texts.extend(other.texts.iter().cloned());
        shift
    }

    /// The name and the text, or `None` for an id of another set (or of [`Span::NONE`]).
    pub fn get(&self, id: TextId) -> Option<(&str, &str)> {
        self.texts.get(id.0 as usize).map(|(name, text)| (name.as_ref(), text.as_ref()))
    }

    /// The texts with stars in the masked places; every other byte keeps its place.
    pub(crate) fn masked(&self, masks: &[Span]) -> Texts {
        let mut shown = Texts::new();
        for (id, (name, text)) in self.texts.iter().enumerate() {
            let mut bytes = text.as_bytes().to_vec();
            for span in masks.iter().filter(|span| span.text.0 as usize == id) {
                for byte in bytes.get_mut(span.start as usize..span.end as usize).into_iter().flatten() {
                    if !matches!(byte, b'\n' | b'\r') {
                        *byte = b'*';
                    }
                }
            }
            shown.add(name.clone(), String::from_utf8_lossy(&bytes));
        }
        shown
    }

    /// Line and column of the start of a span, both from 1, columns counted in characters.
    pub fn line_column(&self, span: Span) -> Option<(usize, usize)> {
        let (_, text) = self.get(span.text)?;
        let before = text.get(..span.start as usize)?;
        let line = before.bytes().filter(|b| *b == b'\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        Some((line, column))
    }
}

/// A text taken out of a file in pieces: the value of a YAML block scalar has lost its indentation, and a quoted one
/// its escapes, so a place in the value is found in the file through a map.
#[derive(Debug, Clone, PartialEq)]
pub struct MappedText {
    /// The text itself.
    pub text: String,
    /// Where the whole of it stands in the file.
    pub span: Span,
    /// Pairs (byte of the value, byte of the file), ascending: from the first on, both run in step until the next pair.
    pub pieces: Vec<(u32, u32)>,
}

impl MappedText {
    /// Text that stands in no file.
    pub fn bare(text: impl Into<String>) -> Self {
        MappedText { text: text.into(), span: Span::NONE, pieces: Vec::new() }
    }

    /// Text that lies in the file as it is, from the start of `span`.
    pub fn plain(text: impl Into<String>, span: Span) -> Self {
        MappedText { text: text.into(), span, pieces: vec![(0, span.start)] }
    }

    /// The place in the file of `range` of the value; the span of the whole where that is not known.
    pub fn span_of(&self, range: Range<usize>) -> Span {
        match (self.file_offset(range.start), self.file_offset(range.end.saturating_sub(1).max(range.start))) {
            (Some(start), Some(last)) if last >= start => {
                let end = if range.end > range.start { last + 1 } else { last };
                Span { text: self.span.text, start, end }
            }
            _ => self.span,
        }
    }

    /// The byte of the value at a line and column, both from 1, columns counted in characters (as `sqlparser` does).
    pub fn offset_at(&self, line: u64, column: u64) -> Option<usize> {
        let mut start = 0;
        for _ in 1..line {
            start += self.text.get(start..)?.find('\n')? + 1;
        }
        let rest = self.text.get(start..)?;
        let within = rest.char_indices().nth(column.checked_sub(1)? as usize).map_or(rest.len(), |(at, _)| at);
        Some(start + within)
    }

    fn file_offset(&self, offset: usize) -> Option<u32> {
        if self.span.is_none() {
            return None;
        }
        let offset = offset as u32;
        let at = self.pieces.partition_point(|(value, _)| *value <= offset).checked_sub(1)?;
        let (value, file) = self.pieces[at];
        Some(file + (offset - value))
    }
}
