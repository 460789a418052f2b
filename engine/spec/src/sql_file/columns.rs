//! Lists of columns, with types as SQL or as a workflow writes them.

use sqlparser::tokenizer::Token;

use super::tokens::{Cursor, Refused};
use crate::codes;
use crate::diagnostic::Diagnostic;
use crate::names::normalize;
use crate::read::bad_type;
use crate::report::Reporter;
use crate::span::{Span, Spanned};
use crate::types::LogicalType;

/// Whether the columns of a list have types.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Types {
    Required,
    Optional,
    Refused,
}

pub(super) type Column = (Spanned<String>, Option<Spanned<LogicalType>>);

/// `(name type, name, ...)`
pub(super) fn column_list(
    cursor: &mut Cursor<'_>,
    types: Types,
    reporter: &mut Reporter,
) -> Result<Vec<Column>, Refused> {
    cursor.demand(&Token::LParen, "a list of columns")?;
    let mut columns: Vec<Column> = Vec::new();
    loop {
        let (name, span) = cursor.name("a column")?;
        let name = Spanned::new(normalize(&name), span);
        let range = cursor.until_comma();
        let kind = match (types, range.is_empty()) {
            (Types::Required, true) => {
                let report = Diagnostic::error(codes::MISSING_KEY, format!("column `{}` has no type", name.value));
                reporter.push(report.at(span, "").help(format!("write `{} BIGINT`", name.value)));
                None
            }
            (Types::Refused, false) => {
                let report = Diagnostic::error(codes::NOT_APPLICABLE, "a copy takes its types from its query");
                reporter.push(report.at(cursor.span(&range), "").help("remove the type"));
                None
            }
            (_, true) => None,
            (_, false) => column_type(cursor, &name, &range, reporter),
        };
        match columns.iter().find(|(earlier, _)| earlier.value == name.value) {
            Some((earlier, _)) => reporter.push(
                Diagnostic::error(codes::DUPLICATE_NAME, format!("column `{}` stands twice", name.value))
                    .at(span, "the second time")
                    .at(earlier.span, "the first time")
                    .help("remove one of the two"),
            ),
            None => columns.push((name, kind)),
        }
        if !cursor.take_token(&Token::Comma) {
            break;
        }
    }
    cursor.demand(&Token::RParen, "a list of columns")?;
    Ok(columns)
}

fn column_type(
    cursor: &Cursor<'_>,
    column: &Spanned<String>,
    range: &std::ops::Range<usize>,
    reporter: &mut Reporter,
) -> Option<Spanned<LogicalType>> {
    let text = cursor.text.get(range.clone()).unwrap_or("");
    let span = cursor.span(range);
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ").to_ascii_lowercase();
    // What SQL calls these differs from what a workflow calls them.
    let sql = match words.as_str() {
        "int" | "integer" => Some(LogicalType::Int32),
        "float" => Some(LogicalType::Float32),
        "double precision" => Some(LogicalType::Float64),
        "bytea" | "blob" | "varbinary" => Some(LogicalType::Binary),
        word if ["varchar(", "char(", "character varying"].iter().any(|prefix| word.starts_with(prefix))
            || word == "char" =>
        {
            Some(LogicalType::String)
        }
        _ => None,
    };
    if let Some(kind) = sql {
        return Some(Spanned::new(kind, span));
    }
    match LogicalType::parse(text) {
        Ok(kind) => Some(Spanned::new(kind, span)),
        Err(error) => {
            let place = Span::new(cursor.id, range.start + error.range.start..range.start + error.range.end);
            let help = words.ends_with("not null").then_some("columns have no constraints here; remove `NOT NULL`");
            let mut report = bad_type(&format!("the type of column `{}`", column.value), &error, place);
            if let Some(help) = help {
                report.help = vec![help.to_owned()];
            }
            reporter.push(report);
            None
        }
    }
}
