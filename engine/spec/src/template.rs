//! Texts with holes: `out/${params.date}/report.parquet`.

use std::ops::Range;

use crate::names::{is_identifier, normalize};
use crate::span::{MappedText, Span, Spanned};

/// A piece of a template.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// Text that stands as it is.
    Literal(String),
    /// `${params.NAME}`.
    Param(Spanned<String>),
    /// `${vars.NAME}`.
    Var(Spanned<String>),
}

/// A text with references to parameters and variables, to be filled in when the workflow is bound.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    /// The text as written.
    pub text: String,
    /// Where it stands.
    pub span: Span,
    /// Its pieces, in order; literals are never adjacent nor empty.
    pub pieces: Vec<Piece>,
}

impl Template {
    /// A template without references.
    pub fn literal(text: impl Into<String>) -> Self {
        let text = text.into();
        Template { pieces: vec![Piece::Literal(text.clone())], text, span: Span::NONE }
    }

    /// A text that may hold references. One that cannot be read is kept as text without pieces, and reported by the
    /// check of the workflow that it comes into.
    pub fn of(text: impl Into<String>) -> Self {
        let source = MappedText::bare(text);
        Template::parse(&source).unwrap_or(Template { text: source.text, span: Span::NONE, pieces: Vec::new() })
    }

    /// Whether nothing needs to be filled in.
    pub fn is_literal(&self) -> bool {
        self.pieces.iter().all(|piece| matches!(piece, Piece::Literal(_)))
    }
}

/// Why a template could not be read, at a place of its text.
#[derive(Debug, Clone, PartialEq)]
pub struct TemplateError {
    /// "`${` is not closed".
    pub message: String,
    /// Bytes of the template's text.
    pub range: Range<usize>,
}

impl Template {
    /// Reads `${params.NAME}` and `${vars.NAME}`; `$${` stands for a literal `${`, every other `$` for itself.
    pub fn parse(source: &MappedText) -> Result<Self, TemplateError> {
        let text = source.text.as_str();
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut at = 0;
        while let Some(found) = text.get(at..).and_then(|rest| rest.find("${")) {
            let open = at + found;
            if text[at..open].ends_with('$') {
                literal.push_str(&text[at..open]);
                literal.push('{');
                at = open + 2;
                continue;
            }
            literal.push_str(&text[at..open]);
            let Some(length) = text[open..].find('}') else {
                return Err(TemplateError { message: "`${` is not closed by `}`".to_owned(), range: open..text.len() });
            };
            let close = open + length;
            let inner = &text[open + 2..close];
            let Some((scope, name)) = inner.split_once('.') else {
                let message = format!("`${{{inner}}}` names neither a parameter nor a variable");
                return Err(TemplateError { message, range: open..close + 1 });
            };
            let name_at = open + 2 + scope.len() + 1;
            let name = Spanned::new(normalize(name), source.span_of(name_at..close));
            if !is_identifier(&name) {
                let message = format!("`{}` is not a name", name.value);
                return Err(TemplateError { message, range: name_at..close });
            }
            let piece = match scope {
                "params" => Piece::Param(name),
                "vars" => Piece::Var(name),
                _ => {
                    let message = format!("`{scope}` is neither `params` nor `vars`");
                    return Err(TemplateError { message, range: open + 2..open + 2 + scope.len() });
                }
            };
            if !literal.is_empty() {
                pieces.push(Piece::Literal(std::mem::take(&mut literal)));
            }
            pieces.push(piece);
            at = close + 1;
        }
        literal.push_str(text.get(at..).unwrap_or(""));
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal));
        }
        Ok(Template { text: text.to_owned(), span: source.span, pieces })
    }

    /// The text, where nothing needs to be filled in.
    pub fn as_literal(&self) -> Option<&str> {
        match self.pieces.as_slice() {
            [] => Some(""),
            [Piece::Literal(text)] => Some(text),
            _ => None,
        }
    }

    /// The text with its references filled in; `None` where `value` has none for a reference.
    pub fn fill(&self, mut value: impl FnMut(&Piece) -> Option<String>) -> Option<String> {
        let mut filled = String::with_capacity(self.text.len());
        for piece in &self.pieces {
            match piece {
                Piece::Literal(text) => filled.push_str(text),
                reference => filled.push_str(&value(reference)?),
            }
        }
        Some(filled)
    }

    /// The end of the text that does not depend on values, from which a format is told: `.csv.gz`.
    pub fn literal_tail(&self) -> &str {
        match self.pieces.last() {
            Some(Piece::Literal(text)) => text,
            _ => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Template, TemplateError> {
        Template::parse(&MappedText::bare(text))
    }

    #[test]
    fn references_and_escapes() {
        let template = parse("a/${params.x}/${vars.y}$z/$${params.x}").unwrap();
        assert_eq!(template.pieces.len(), 5);
        assert!(!template.is_literal());
        let filled = template.fill(|piece| match piece {
            Piece::Param(name) => Some(format!("P-{}", name.value)),
            Piece::Var(name) => Some(format!("V-{}", name.value)),
            Piece::Literal(_) => None,
        });
        assert_eq!(filled.as_deref(), Some("a/P-x/V-y$z/${params.x}"));
        assert_eq!(parse("plain.csv").unwrap().as_literal(), Some("plain.csv"));
        assert_eq!(parse("").unwrap().pieces, []);
        assert_eq!(parse("$${").unwrap().as_literal(), Some("${"));
    }

    #[test]
    fn errors_name_their_place() {
        assert_eq!(parse("ab${params.x").unwrap_err().range, 2..12);
        assert_eq!(parse("${env.x}").unwrap_err().range, 2..5);
        assert_eq!(parse("${x}").unwrap_err().range, 0..4);
        assert_eq!(parse("${params.}").unwrap_err().range, 9..9);
        assert_eq!(parse("${params.a b}").unwrap_err().range, 9..12);
    }
}
