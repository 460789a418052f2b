//! Whether a CSV file holds a line break inside quotes.
//!
//! A CSV file can be read by several tasks only if every line break ends a row. Nobody declares that, and being wrong
//! about it loses rows in silence; so the file is looked through once, at memory speed, before it is split.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Looks through the file for a line break between quotes.
///
/// # Errors
/// When the file cannot be read.
pub fn has_quoted_line_break(path: &Path, quote: u8, escape: Option<u8>) -> std::io::Result<bool> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0_u8; 1 << 20];
    let mut quoted = false;
    let mut escaped = false;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(false);
        }
        if scan(&buffer[..read], quote, escape, &mut quoted, &mut escaped) {
            return Ok(true);
        }
    }
}

/// Goes on over `bytes` from the state of those before. A doubled quote closes and opens again, which is right here.
fn scan(bytes: &[u8], quote: u8, escape: Option<u8>, quoted: &mut bool, escaped: &mut bool) -> bool {
    if let Some(escape) = escape {
        // With an escape character every byte counts; such files are rare.
        for byte in bytes {
            match *byte {
                _ if *escaped => *escaped = false,
                byte if byte == escape && *quoted => *escaped = true,
                byte if byte == quote => *quoted = !*quoted,
                b'\n' | b'\r' if *quoted => return true,
                _ => {}
            }
        }
        return false;
    }
    let mut rest = bytes;
    loop {
        let at = memchr::memchr(quote, rest);
        let field = &rest[..at.unwrap_or(rest.len())];
        if *quoted && memchr::memchr2(b'\n', b'\r', field).is_some() {
            return true;
        }
        let Some(at) = at else { return false };
        *quoted = !*quoted;
        rest = &rest[at + 1..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaks(text: &str, escape: Option<u8>) -> bool {
        scan(text.as_bytes(), b'"', escape, &mut false, &mut false)
    }

    #[test]
    fn a_line_break_between_quotes_is_found() {
        assert!(!breaks("a,\"b\"\n\"c\"\"d\",e\n", None));
        assert!(breaks("a,\"b\nc\"\n", None));
        assert!(breaks("a,\"b\"\"\nc\"\n", None));
        assert!(!breaks("a,\"b\\\"\",c\nd\n", Some(b'\\')));
        assert!(breaks("a,\"b\\\"\nc\"\n", Some(b'\\')));
    }

    #[test]
    fn the_state_goes_over_the_edge_of_a_buffer() {
        let (mut quoted, mut escaped) = (false, false);
        assert!(!scan(b"a,\"b", b'"', None, &mut quoted, &mut escaped));
        assert!(scan(b"c\nd\"", b'"', None, &mut quoted, &mut escaped));
    }
}
