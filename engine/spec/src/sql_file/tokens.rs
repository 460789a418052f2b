//! Tokens of a SQL file with their bytes, and a cursor over those of one statement.

use std::ops::Range;

use sqlparser::dialect::GenericDialect;
use sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer, Whitespace};

use crate::codes;
use crate::diagnostic::Diagnostic;
use crate::span::{Span, TextId};

/// A token that means something: neither blank nor comment.
#[derive(Debug, Clone)]
pub(super) struct Lexeme {
    pub(super) token: Token,
    pub(super) range: Range<usize>,
}

/// A statement's tokens, without its semicolon; or a comment between statements.
#[derive(Debug)]
pub(super) enum Part {
    Statement(Vec<Lexeme>),
    /// The text of a `--` comment, and its bytes.
    Comment(String, Range<usize>),
}

/// Byte offsets of lines, to find the bytes of sqlparser's lines and columns.
struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Lines { text, starts: std::iter::once(0).chain(breaks).collect() }
    }

    /// The byte of a line and a column, both from 1, columns in characters. `near` is the byte of an earlier place, so
    /// that long lines are not walked from their beginnings for each token.
    fn byte(&self, at: Location, near: &mut (Location, usize)) -> usize {
        let line = usize::try_from(at.line).unwrap_or(usize::MAX).saturating_sub(1);
        let Some(&start) = self.starts.get(line) else { return self.text.len() };
        let (from, skip) = if near.0.line == at.line && near.0.column <= at.column {
            (near.1, at.column - near.0.column)
        } else {
            (start, at.column.saturating_sub(1))
        };
        let rest = self.text.get(from..).unwrap_or("");
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let byte = from + rest.char_indices().nth(skip).map_or(rest.len(), |(offset, _)| offset);
        *near = (at, byte);
        byte
    }
}

/// The longest statement, in bytes. Tokens take a hundred times the memory of their text, so that a text is cut into
/// statements a window at a time, and a statement must fit in one.
pub(super) const MAX_STATEMENT_BYTES: usize = 512 * 1024;
const WINDOW_BYTES: usize = 32 * 1024;

/// Cuts a text into statements and the comments between them, and hands each out; stops when `visit` says false.
///
/// Tokens up to a semicolon do not depend on what follows it, so the tokens of a window are good up to its last one.
pub(super) fn split(id: TextId, text: &str, mut visit: impl FnMut(Part) -> bool) -> Result<(), Box<Diagnostic>> {
    let mut position = 0;
    let mut window = WINDOW_BYTES;
    while position < text.len() {
        let end = text.floor_char_boundary(position + window);
        let slice = text.get(position..end).unwrap_or("");
        let whole = end == text.len();
        let lines = Lines::new(slice);
        let mut tokens = Vec::new();
        let result = Tokenizer::new(&GenericDialect {}, slice).tokenize_with_location_into_buf(&mut tokens);
        let closed = tokens.iter().rposition(|token| token.token == Token::SemiColon).map_or(0, |at| at + 1);
        let good = if whole && result.is_ok() { tokens.len() } else { closed };
        if good == 0 {
            if let (true, Err(error)) = (whole, &result) {
                let at = position + lines.byte(error.location, &mut (Location::new(1, 1), 0));
                let message = format!("the SQL cannot be read: {}", error.message);
                let report = Diagnostic::error(codes::SQL_FILE_SYNTAX, message).at(Span::new(id, at..at), "here");
                return Err(Box::new(report.help("close the quote, the comment or the string that begins here")));
            }
            if window >= MAX_STATEMENT_BYTES {
                let report = Diagnostic::error(
                    codes::TEXT_LIMIT,
                    format!("a statement is longer than {MAX_STATEMENT_BYTES} bytes"),
                );
                let report = report.at(Span::new(id, position..position), "it begins after this");
                return Err(Box::new(
                    report.help("close it with `;`; long lists of values belong in a file that is read"),
                ));
            }
            window *= 2;
            continue;
        }
        tokens.truncate(good);
        match parts(tokens, &lines, position, &mut visit) {
            Some(next) if !(whole && result.is_ok()) => position = next,
            _ => return Ok(()),
        }
        window = WINDOW_BYTES;
    }
    Ok(())
}

/// Hands out the parts of a window that begins at byte `base`; the end of the last token, or `None` to stop.
fn parts(
    tokens: Vec<TokenWithSpan>,
    lines: &Lines<'_>,
    base: usize,
    visit: &mut impl FnMut(Part) -> bool,
) -> Option<usize> {
    let mut near = (Location::new(1, 1), 0);
    let mut statement: Vec<Lexeme> = Vec::new();
    let mut end = base;
    for token in tokens {
        let start = base + lines.byte(token.span.start, &mut near);
        end = base + lines.byte(token.span.end, &mut near);
        match token.token {
            Token::EOF => {}
            Token::SemiColon => {
                if !statement.is_empty() && !visit(Part::Statement(std::mem::take(&mut statement))) {
                    return None;
                }
            }
            Token::Whitespace(Whitespace::SingleLineComment { comment, prefix }) if statement.is_empty() => {
                let comment_end = start + prefix.len() + comment.trim_end().len();
                if prefix == "--" && !visit(Part::Comment(comment, start..comment_end)) {
                    return None;
                }
            }
            Token::Whitespace(_) => {}
            token => statement.push(Lexeme { token, range: start..end }),
        }
    }
    if !statement.is_empty() && !visit(Part::Statement(statement)) {
        return None;
    }
    Some(end)
}

/// Walks over the tokens of one statement.
pub(super) struct Cursor<'a> {
    pub(super) id: TextId,
    pub(super) text: &'a str,
    tokens: &'a [Lexeme],
    at: usize,
}

/// A report that ends the reading of a statement.
pub(super) type Refused = Box<Diagnostic>;

impl<'a> Cursor<'a> {
    pub(super) fn new(id: TextId, text: &'a str, tokens: &'a [Lexeme]) -> Self {
        Cursor { id, text, tokens, at: 0 }
    }

    pub(super) fn peek(&self) -> Option<&'a Lexeme> {
        self.tokens.get(self.at)
    }

    pub(super) fn next(&mut self) -> Option<&'a Lexeme> {
        let token = self.tokens.get(self.at);
        self.at += usize::from(token.is_some());
        token
    }

    pub(super) fn span(&self, range: &Range<usize>) -> Span {
        Span::new(self.id, range.clone())
    }

    /// The place of the next token, or just after the last one.
    pub(super) fn here(&self) -> Span {
        match (self.peek(), self.tokens.last()) {
            (Some(token), _) => self.span(&token.range),
            (None, Some(last)) => Span::new(self.id, last.range.end..last.range.end),
            (None, None) => Span::new(self.id, 0..0),
        }
    }

    pub(super) fn first(&self) -> Span {
        self.tokens.first().map_or(Span::NONE, |token| self.span(&token.range))
    }

    pub(super) fn refuse(&self, message: impl Into<String>, help: impl Into<String>) -> Refused {
        Box::new(Diagnostic::error(codes::SQL_FILE_SYNTAX, message).at(self.here(), "here").help(help))
    }

    /// Whether the next token is this word, unquoted, in any case.
    pub(super) fn sees(&self, word: &str) -> bool {
        self.sees_at(0, word)
    }

    pub(super) fn sees_at(&self, ahead: usize, word: &str) -> bool {
        matches!(
            self.tokens.get(self.at + ahead).map(|lexeme| &lexeme.token),
            Some(Token::Word(found)) if found.quote_style.is_none() && found.value.eq_ignore_ascii_case(word)
        )
    }

    pub(super) fn take(&mut self, word: &str) -> bool {
        let found = self.sees(word);
        self.at += usize::from(found);
        found
    }

    /// Takes several words in a row, or none of them.
    pub(super) fn take_all(&mut self, words: &[&str]) -> bool {
        let found = words.iter().enumerate().all(|(ahead, word)| self.sees_at(ahead, word));
        self.at += if found { words.len() } else { 0 };
        found
    }

    pub(super) fn take_token(&mut self, token: &Token) -> bool {
        let found = self.peek().is_some_and(|next| next.token == *token);
        self.at += usize::from(found);
        found
    }

    pub(super) fn demand(&mut self, token: &Token, what: &str) -> Result<Range<usize>, Refused> {
        match self.peek() {
            Some(next) if next.token == *token => {
                self.at += 1;
                Ok(next.range.clone())
            }
            _ => Err(self.refuse(format!("{what} needs a `{token}` here"), format!("write `{token}`"))),
        }
    }

    /// A name, quoted or not.
    pub(super) fn name(&mut self, what: &str) -> Result<(String, Span), Refused> {
        match self.peek() {
            Some(Lexeme { token: Token::Word(word), range }) => {
                self.at += 1;
                Ok((word.value.clone(), self.span(range)))
            }
            _ => Err(self.refuse(format!("the name of {what} is missing here"), "names are letters, digits and `_`")),
        }
    }

    /// The bytes up to a comma or the parenthesis that closes this level, which are left.
    pub(super) fn until_comma(&mut self) -> Range<usize> {
        let start = self.peek().map_or(self.text.len(), |token| token.range.start);
        let mut end = start;
        let mut depth = 0_usize;
        while let Some(next) = self.peek() {
            match next.token {
                Token::Comma if depth == 0 => break,
                Token::RParen if depth == 0 => break,
                Token::LParen | Token::Lt => depth += 1,
                Token::RParen | Token::Gt => depth = depth.saturating_sub(1),
                Token::ShiftRight => depth = depth.saturating_sub(2),
                _ => {}
            }
            end = next.range.end;
            self.at += 1;
        }
        start..end
    }

    /// The bytes from the next token to the end of the statement.
    pub(super) fn rest(&mut self) -> Range<usize> {
        let end = self.tokens.last().map_or(0, |token| token.range.end);
        let start = self.peek().map_or(end, |token| token.range.start);
        self.at = self.tokens.len();
        start..end
    }

    /// The bytes between this parenthesis and the one that closes it, which is passed over.
    pub(super) fn parenthesized(&mut self) -> Result<Range<usize>, Refused> {
        let open = self.here();
        let start = self.demand(&Token::LParen, "this")?.end;
        let mut depth = 1_usize;
        let (mut first, mut end) = (None, start);
        while let Some(next) = self.next() {
            match next.token {
                Token::LParen => depth += 1,
                Token::RParen => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Ok(first.unwrap_or(end)..end);
            }
            first.get_or_insert(next.range.start);
            end = next.range.end;
        }
        Err(Box::new(
            Diagnostic::error(codes::SQL_FILE_SYNTAX, "a parenthesis is not closed")
                .at(open, "it opens here")
                .help("close it with `)`"),
        ))
    }
}
