//! The texts of types: `decimal(12, 2)`, `list<struct<name: string, at: timestamp(ms, UTC)>>`.

use std::fmt;
use std::ops::Range;

use super::{LogicalType, TimeUnit, zone};
use crate::names::normalize;
use crate::suggest::nearest;

/// The deepest nesting of a type.
const MAX_DEPTH: usize = 32;

/// Words that name a type without arguments, the first of each type being its own name.
const WORDS: &[(&str, LogicalType)] = &[
    ("bool", LogicalType::Bool),
    ("boolean", LogicalType::Bool),
    ("int8", LogicalType::Int8),
    ("tinyint", LogicalType::Int8),
    ("int16", LogicalType::Int16),
    ("smallint", LogicalType::Int16),
    ("int32", LogicalType::Int32),
    ("int64", LogicalType::Int64),
    ("int", LogicalType::Int64),
    ("bigint", LogicalType::Int64),
    ("uint8", LogicalType::UInt8),
    ("uint16", LogicalType::UInt16),
    ("uint32", LogicalType::UInt32),
    ("uint64", LogicalType::UInt64),
    ("float32", LogicalType::Float32),
    ("real", LogicalType::Float32),
    ("float64", LogicalType::Float64),
    ("float", LogicalType::Float64),
    ("double", LogicalType::Float64),
    ("string", LogicalType::String),
    ("text", LogicalType::String),
    ("utf8", LogicalType::String),
    ("varchar", LogicalType::String),
    ("binary", LogicalType::Binary),
    ("bytes", LogicalType::Binary),
    ("date", LogicalType::Date),
];

/// Words that take arguments.
const FAMILIES: &[&str] = &["decimal", "time", "timestamp", "list", "struct"];

/// Every word with which a type may begin, for suggestions and the JSON schema.
pub(crate) fn words() -> impl Iterator<Item = &'static str> {
    WORDS.iter().map(|(word, _)| *word).chain(FAMILIES.iter().copied())
}

/// Why a text is not a type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeError {
    /// "`strng` is not a type".
    pub message: String,
    /// The next move, where there is an obvious one.
    pub help: Option<String>,
    /// Bytes of the text.
    pub range: Range<usize>,
    /// Whether the text ends before a parenthesis or an angle bracket is closed.
    pub unclosed: bool,
}

impl fmt::Display for TypeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.help {
            Some(help) => write!(f, " ({help})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for TypeError {}

impl std::str::FromStr for LogicalType {
    type Err = TypeError;

    fn from_str(text: &str) -> Result<Self, TypeError> {
        LogicalType::parse(text)
    }
}

impl LogicalType {
    /// Reads the text of a type; capitals do not matter in its words.
    pub fn parse(text: &str) -> Result<LogicalType, TypeError> {
        let mut reader = Reader { text, at: 0 };
        let kind = reader.read_type(0)?;
        reader.blanks();
        if reader.at < text.len() {
            return Err(reader.error("the type ends before this", reader.at..text.len()));
        }
        Ok(kind)
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn error(&self, message: impl Into<String>, range: Range<usize>) -> TypeError {
        TypeError { message: message.into(), help: None, range, unclosed: false }
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or("")
    }

    fn blanks(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    /// Takes `c` if it comes next, blanks aside.
    fn take(&mut self, c: char) -> bool {
        self.blanks();
        let found = self.rest().starts_with(c);
        if found {
            self.at += c.len_utf8();
        }
        found
    }

    fn demand(&mut self, c: char, what: &str) -> Result<(), TypeError> {
        if self.take(c) {
            return Ok(());
        }
        let end = self.rest().chars().next().map_or(self.at, |next| self.at + next.len_utf8());
        let unclosed = matches!(c, ')' | '>') && end == self.at;
        Err(TypeError { unclosed, ..self.error(format!("{what} needs a `{c}` here"), self.at..end) })
    }

    /// The longest run of characters that fit.
    fn run(&mut self, fits: impl Fn(char) -> bool) -> (&'a str, Range<usize>) {
        self.blanks();
        let rest = self.rest();
        let length = rest.find(|c| !fits(c)).unwrap_or(rest.len());
        let range = self.at..self.at + length;
        self.at = range.end;
        (&rest[..length], range)
    }

    fn read_type(&mut self, depth: usize) -> Result<LogicalType, TypeError> {
        let (word, range) = self.run(|c| c.is_alphanumeric() || c == '_');
        if depth > MAX_DEPTH {
            return Err(self.error(format!("types are nested at most {MAX_DEPTH} deep"), range));
        }
        if word.is_empty() {
            return Err(self.error("a type is missing here", range));
        }
        let lower = word.to_ascii_lowercase();
        if let Some((_, kind)) = WORDS.iter().find(|(name, _)| *name == lower) {
            return Ok(kind.clone());
        }
        match lower.as_str() {
            "decimal" | "numeric" => self.decimal(range),
            "time" => Ok(LogicalType::Time(if self.take('(') {
                let unit = self.unit()?;
                self.demand(')', "`time(unit`")?;
                unit
            } else {
                TimeUnit::Microsecond
            })),
            "timestamp" => self.timestamp(),
            "list" => {
                self.demand('<', "`list`")?;
                let item = self.read_type(depth + 1)?;
                self.demand('>', "`list<`")?;
                Ok(LogicalType::List(Box::new(item)))
            }
            "struct" => self.fields(depth),
            _ => {
                let help = match lower.as_str() {
                    "integer" => Some("write `int32` or `int64`".to_owned()),
                    "datetime" => Some("write `timestamp`".to_owned()),
                    "str" | "char" | "object" => Some("write `string`".to_owned()),
                    "number" => Some("write `float64` or `decimal(precision, scale)`".to_owned()),
                    "array" => Some("write `list<T>`".to_owned()),
                    _ => nearest(&lower, words()).map(|word| format!("did you mean `{word}`?")),
                };
                Err(TypeError { message: format!("`{word}` is not a type"), help, range, unclosed: false })
            }
        }
    }

    fn decimal(&mut self, word: Range<usize>) -> Result<LogicalType, TypeError> {
        if !self.take('(') {
            return Err(TypeError {
                message: "`decimal` needs a precision and a scale".to_owned(),
                help: Some("write for example `decimal(18, 2)`".to_owned()),
                range: word,
                unclosed: false,
            });
        }
        let (precision, place) = self.number()?;
        if !(1..=38).contains(&precision) {
            return Err(self.error("a decimal has 1 to 38 digits", place));
        }
        let scale = if self.take(',') {
            let (scale, place) = self.number()?;
            if scale > precision {
                return Err(self.error("a decimal has no more digits after the point than in all", place));
            }
            scale
        } else {
            0
        };
        self.demand(')', "`decimal(`")?;
        Ok(LogicalType::Decimal { precision: precision as u8, scale: scale as i8 })
    }

    fn number(&mut self) -> Result<(u32, Range<usize>), TypeError> {
        let (digits, range) = self.run(|c| c.is_ascii_digit() || c == '-');
        match digits.parse() {
            Ok(number) => Ok((number, range)),
            Err(_) => Err(self.error("a count of digits is missing here", range)),
        }
    }

    fn unit(&mut self) -> Result<TimeUnit, TypeError> {
        let (word, range) = self.run(|c| c.is_alphanumeric());
        match word.to_ascii_lowercase().as_str() {
            "s" => Ok(TimeUnit::Second),
            "ms" => Ok(TimeUnit::Millisecond),
            "us" => Ok(TimeUnit::Microsecond),
            "ns" => Ok(TimeUnit::Nanosecond),
            _ => Err(self.error("a unit is `s`, `ms`, `us` or `ns`", range)),
        }
    }

    fn timestamp(&mut self) -> Result<LogicalType, TypeError> {
        if !self.take('(') {
            return Ok(LogicalType::Timestamp { unit: TimeUnit::Microsecond, zone: None });
        }
        let unit = self.unit()?;
        let zone = if self.take(',') {
            let (name, range) = self.run(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '_' | '+' | '-' | ':'));
            match zone::check(name) {
                Ok(()) => Some(name.to_owned()),
                Err(message) => return Err(self.error(message, range)),
            }
        } else {
            None
        };
        self.demand(')', "`timestamp(`")?;
        Ok(LogicalType::Timestamp { unit, zone })
    }

    fn fields(&mut self, depth: usize) -> Result<LogicalType, TypeError> {
        self.demand('<', "`struct`")?;
        let mut fields: Vec<(String, LogicalType)> = Vec::new();
        loop {
            let (name, range) = self.run(|c| !matches!(c, ':' | ',' | '<' | '>') && !c.is_whitespace());
            if name.is_empty() {
                return Err(self.error("a field's name is missing here", range));
            }
            let name = normalize(name);
            if fields.iter().any(|(earlier, _)| *earlier == name) {
                return Err(self.error(format!("field `{name}` stands twice"), range));
            }
            self.demand(':', "a field")?;
            fields.push((name, self.read_type(depth + 1)?));
            if !self.take(',') {
                break;
            }
        }
        self.demand('>', "`struct<`")?;
        Ok(LogicalType::Struct(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_reads_back() {
        for text in [
            "bool",
            "int8",
            "int16",
            "int32",
            "int64",
            "uint8",
            "uint16",
            "uint32",
            "uint64",
            "float32",
            "float64",
            "decimal(38, 38)",
            "string",
            "binary",
            "date",
            "time(ns)",
            "timestamp(s)",
            "timestamp(ms, UTC)",
            "timestamp(us, America/New_York)",
            "timestamp(ns, +05:30)",
            "list<list<int8>>",
            "struct<a: int64, b c>",
        ] {
            match LogicalType::parse(text) {
                Ok(kind) => assert_eq!(kind.to_string(), text),
                Err(error) => assert_eq!(text, "struct<a: int64, b c>", "{error}"),
            }
        }
        assert_eq!(
            LogicalType::parse("Struct< a :INT , b: list<decimal(5)> >").unwrap().to_string(),
            "struct<a: int64, b: list<decimal(5, 0)>>"
        );
    }

    #[test]
    fn aliases() {
        for (alias, name) in [
            ("int", "int64"),
            ("bigint", "int64"),
            ("double", "float64"),
            ("float", "float64"),
            ("text", "string"),
            ("utf8", "string"),
            ("boolean", "bool"),
            ("timestamp", "timestamp(us)"),
            ("numeric(4,2)", "decimal(4, 2)"),
        ] {
            assert_eq!(LogicalType::parse(alias).unwrap().to_string(), name);
        }
    }

    #[test]
    fn errors_name_their_place() {
        let error = |text: &str| {
            let error = LogicalType::parse(text).unwrap_err();
            (error.range.clone(), error.to_string())
        };
        assert_eq!(error("strng"), (0..5, "`strng` is not a type (did you mean `string`?)".to_owned()));
        assert_eq!(error("integer").1, "`integer` is not a type (write `int32` or `int64`)");
        assert_eq!(error("decimal(39, 2)").0, 8..10);
        assert_eq!(error("decimal(5, 6)").0, 11..12);
        assert_eq!(error("decimal(5, -1)").0, 11..13);
        assert_eq!(error("list<int64").0, 10..10);
        assert_eq!(error("int64 x").0, 6..7);
        assert_eq!(error("timestamp(us, Mars/Base)").0, 14..23);
        assert_eq!(error("struct<a: int8, a: int8>").0, 16..17);
        assert_eq!(error("").0, 0..0);
        assert!(LogicalType::parse(&"list<".repeat(100_000)).is_err());
    }
}
