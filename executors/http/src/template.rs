//! Text with `{column}` in it, and how values are made harmless for the place they go to.

use crate::values::Texts;

/// A piece of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    Text(String),
    /// Index into the step's list of columns.
    Column(usize),
}

/// Text with columns in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Template(pub(crate) Vec<Piece>);

/// Where a value goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// A header: control characters are refused.
    Header,
    /// A body of plain text: as it is.
    Body,
}

/// Why a value cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// A NULL or empty value where one must stand (column index).
    Missing(usize),
    /// A value that would make a segment `.` or `..`.
    DotSegment,
    /// A control character in a header (column index).
    Control(usize),
}

impl Template {
    /// Reads `text`; `{{` and `}}` are braces. Columns that it names are added to `columns`.
    pub(crate) fn parse(text: &str, columns: &mut Vec<String>) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            plain.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                plain.push_str(brace);
                rest = after;
            } else if brace == "}" {
                return Err(format!("`}}` without `{{` in `{text}`; write `}}}}` for a brace"));
            } else {
                let end = rest.find('}').ok_or_else(|| format!("`{{` is not closed in `{text}`"))?;
                let name = rest[..end].trim();
                if name.is_empty() || name.contains('{') {
                    return Err(format!("`{{{}}}` in `{text}` names no column", &rest[..end]));
                }
                if !plain.is_empty() {
                    pieces.push(Piece::Text(std::mem::take(&mut plain)));
                }
                pieces.push(Piece::Column(index_of(name, columns)));
                rest = &rest[end + 1..];
            }
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain));
        }
        Ok(Self(pieces))
    }

    /// Whether it names no column.
    pub(crate) fn is_constant(&self) -> bool {
        self.0.iter().all(|piece| matches!(piece, Piece::Text(_)))
    }

    /// Whether it is one column and nothing else.
    pub(crate) fn only_column(&self) -> Option<usize> {
        match self.0.as_slice() {
            [Piece::Column(column)] => Some(*column),
            _ => None,
        }
    }

    /// Whether any column in it is NULL in this row.
    pub(crate) fn has_null(&self, texts: &[Texts<'_>], row: usize) -> bool {
        self.0.iter().any(|piece| matches!(piece, Piece::Column(column) if texts[*column].is_null(row)))
    }

    /// Writes the row's text for its place. A NULL is the empty text.
    pub(crate) fn write(
        &self,
        texts: &[Texts<'_>],
        row: usize,
        place: Place,
        scratch: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<(), Unfit> {
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => out.extend_from_slice(text.as_bytes()),
                Piece::Column(column) => texts[*column].with(row, scratch, |value| match place {
                    Place::Header if value.iter().any(|byte| *byte < 0x20 && *byte != b'\t' || *byte == 0x7f) => {
                        Err(Unfit::Control(*column))
                    }
                    Place::Header | Place::Body => {
                        out.extend_from_slice(value);
                        Ok(())
                    }
                })?,
            }
        }
        Ok(())
    }

    /// Writes the row's value of a query parameter; constant text is encoded too.
    pub(crate) fn write_query(&self, texts: &[Texts<'_>], row: usize, scratch: &mut Vec<u8>, out: &mut Vec<u8>) {
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => encode(text.as_bytes(), out),
                Piece::Column(column) => texts[*column].with(row, scratch, |value| encode(value, out)),
            }
        }
    }

    /// Writes the row's path. A value stays inside its segment: it is encoded, it may not be empty (the request would
    /// then address the collection instead of the thing), and no segment that holds one may come out as `.` or `..`.
    pub(crate) fn write_path(
        &self,
        texts: &[Texts<'_>],
        row: usize,
        scratch: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<(), Unfit> {
        let start = out.len();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => out.extend_from_slice(text.as_bytes()),
                Piece::Column(column) => texts[*column].with(row, scratch, |value| {
                    if value.is_empty() {
                        return Err(Unfit::Missing(*column));
                    }
                    encode(value, out);
                    Ok(())
                })?,
            }
        }
        let dots = |segment: &[u8]| segment == b"." || segment == b"..";
        if !self.is_constant() && out[start..].split(|byte| *byte == b'/').any(dots) {
            return Err(Unfit::DotSegment);
        }
        Ok(())
    }
}

/// The index of a column in the list, added if it is new.
pub(crate) fn index_of(name: &str, columns: &mut Vec<String>) -> usize {
    columns.iter().position(|known| known == name).unwrap_or_else(|| {
        columns.push(name.to_owned());
        columns.len() - 1
    })
}

/// Percent-encodes everything but RFC 3986's unreserved characters.
pub(crate) fn encode(value: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in value {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(*byte);
        } else {
            out.extend_from_slice(&[b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, StringArray};
    use std::sync::Arc;

    fn path(template: &str, value: &str) -> Result<String, Unfit> {
        let mut columns = Vec::new();
        let template = Template::parse(template, &mut columns).unwrap();
        let array: ArrayRef = Arc::new(StringArray::from(vec![value]));
        let texts = [Texts::new(&array).unwrap()];
        let (mut scratch, mut out) = (Vec::new(), Vec::new());
        template.write_path(&texts, 0, &mut scratch, &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn values_stay_inside_their_segment() {
        assert_eq!(path("/a/{x}/b", "/../").unwrap(), "/a/%2F..%2F/b");
        assert_eq!(path("/a/{x}", "//evil.com@h:1?q#f").unwrap(), "/a/%2F%2Fevil.com%40h%3A1%3Fq%23f");
        assert_eq!(path("/a/{x}", "%2e%2e").unwrap(), "/a/%252e%252e");
        assert_eq!(path("/a/{x}", "a\r\nHost: b").unwrap(), "/a/a%0D%0AHost%3A%20b");
        assert_eq!(path("/a/{x}", "ü").unwrap(), "/a/%C3%BC");
        assert_eq!(path("/a/{x}/b", ".."), Err(Unfit::DotSegment));
        assert_eq!(path("/a/.{x}/b", "."), Err(Unfit::DotSegment));
        assert_eq!(path("/a/{x}", ""), Err(Unfit::Missing(0)));
        assert_eq!(path("/{{x}}/{x}", "v").unwrap(), "/{x}/v");
    }

    #[test]
    fn headers_refuse_control_characters() {
        let mut columns = Vec::new();
        let template = Template::parse("v={x}", &mut columns).unwrap();
        let array: ArrayRef = Arc::new(StringArray::from(vec!["a\r\nEvil: 1", "ok", "n\0l"]));
        let texts = [Texts::new(&array).unwrap()];
        let write = |row| template.write(&texts, row, Place::Header, &mut vec![], &mut vec![]);
        assert_eq!((write(0), write(1), write(2)), (Err(Unfit::Control(0)), Ok(()), Err(Unfit::Control(0))));
    }

    #[test]
    fn broken_templates_say_where() {
        let error = |text| Template::parse(text, &mut vec![]).unwrap_err();
        assert!(error("/a/{x").contains("not closed"));
        assert!(error("/a/x}").contains("without"));
        assert!(error("/a/{}").contains("names no column"));
    }
}
