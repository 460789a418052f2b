//! One mapping of the text against its table of keys: unknown and missing keys, and values of simple shapes.

use indexmap::IndexMap;

use crate::codes;
use crate::diagnostic::Diagnostic;
use crate::keys::{Shape, Table};
use crate::names::{self, is_identifier, normalize};
use crate::report::Reporter;
use crate::span::{MappedText, Span, Spanned, TextId};
use crate::suggest::{did_you_mean, listed, nearest};
use crate::template::Template;
use crate::types::LogicalType;
use crate::yaml::{Kind, Node, Scalar, Style};

/// What every part of the reader needs.
pub(crate) struct Reading<'a> {
    pub(crate) id: TextId,
    pub(crate) text: &'a str,
    pub(crate) reporter: &'a mut Reporter,
}

/// The values of a mapping's keys, in the order of its table.
pub(crate) struct Fields<'n> {
    table: &'static Table,
    found: Vec<Option<(&'n Spanned<String>, &'n Node)>>,
    /// What unknown keys were probably meant to be; they are reported already.
    meant: Vec<&'static str>,
}

impl<'n> Fields<'n> {
    /// The node of a key, if the text has it.
    pub(crate) fn get(&self, name: &str) -> Option<&'n Node> {
        self.entry(name).map(|(_, node)| node)
    }

    /// The key as it stands in the text, and its node.
    pub(crate) fn entry(&self, name: &str) -> Option<(&'n Spanned<String>, &'n Node)> {
        let at = self.table.keys.iter().position(|key| key.name == name);
        debug_assert!(at.is_some(), "{} has no key `{name}`", self.table.what);
        self.found.get(at?).copied().flatten()
    }

    /// Whether an unknown key was probably meant to be one of these.
    pub(crate) fn misspelt(&self, keys: &[&str]) -> bool {
        self.meant.iter().any(|meant| keys.contains(meant))
    }

    /// The keys that the text has, in the order of the table.
    pub(crate) fn present(&self) -> impl Iterator<Item = (&'n Spanned<String>, &'n Node)> {
        self.found.iter().copied().flatten()
    }
}

impl Reading<'_> {
    pub(crate) fn report(&mut self, report: Diagnostic) {
        self.reporter.push(report);
    }

    /// Reads a mapping against its table. `place` is where a missing key is reported: the mapping's own key. `None`
    /// where the node is no mapping, which is reported.
    pub(crate) fn fields<'n>(
        &mut self,
        table: &'static Table,
        node: &'n Node,
        place: Span,
        who: &str,
    ) -> Option<Fields<'n>> {
        let entries = self.mapping(node, who)?;
        let mut found: Vec<Option<(&Spanned<String>, &Node)>> = vec![None; table.keys.len()];
        let mut meant: Vec<&'static str> = Vec::new();
        for (name, value) in entries {
            match table.keys.iter().position(|key| key.name == name.value) {
                Some(at) => found[at] = Some((name, value)),
                None => {
                    self.unknown_key(table, name);
                    meant.extend(nearest(&name.value, table.keys.iter().map(|key| key.name)));
                }
            }
        }
        for (key, _) in table.keys.iter().zip(&found).filter(|(key, found)| key.required && found.is_none()) {
            // The version is looked at first, and told by a code of its own.
            // A misspelt key is told as such, and not as missing too.
            if matches!(key.shape, Shape::Version) || meant.contains(&key.name) {
                continue;
            }
            let report = Diagnostic::error(codes::MISSING_KEY, format!("{who} has no `{}`", key.name))
                .at(place, format!("`{}` is missing here", key.name));
            self.report(report.help(format!("add `{}: ...`: {}", key.name, lower_first(key.about))));
        }
        Some(Fields { table, found, meant })
    }

    fn unknown_key(&mut self, table: &'static Table, name: &Spanned<String>) {
        let known = || table.keys.iter().map(|key| key.name);
        let shown: String = name.value.chars().take(60).collect();
        let report =
            Diagnostic::error(codes::UNKNOWN_KEY, format!("unknown key `{shown}` in {}", table.what)).at(name.span, "");
        let report = match did_you_mean(&name.value, known()) {
            Some(help) => report.help(help),
            None if name.value.ends_with([')', '>']) => {
                report.help("between `{` and `}`, put a value that holds a comma in quotes")
            }
            None => report,
        };
        self.report(report.help(format!("known here: {}", listed(known()))));
    }

    /// The entries of a mapping; an empty value stands for an empty mapping.
    pub(crate) fn mapping<'n>(&mut self, node: &'n Node, who: &str) -> Option<&'n [(Spanned<String>, Node)]> {
        match &node.kind {
            Kind::Mapping(entries) => Some(entries),
            Kind::Scalar(scalar) if scalar.is_null() => Some(&[]),
            _ => {
                self.wrong_type(node, &format!("{who} must be a mapping"), "write `key: value` lines, indented");
                None
            }
        }
    }

    /// Reports a node of the wrong type: "`header` must be true or false, not a list".
    pub(crate) fn wrong_type(&mut self, node: &Node, must: &str, help: &str) {
        let noun = node.noun();
        let report = Diagnostic::error(codes::WRONG_TYPE, format!("{must}, not {noun}"))
            .at(self.first_line(node.span), format!("this is {noun}"));
        let help = if help.is_empty() {
            "write a single value; put a text that looks like something else in quotes"
        } else {
            help
        };
        self.report(report.help(help));
    }

    /// The part of a span that lies in its first line, so that a report on a long mapping stays short.
    pub(crate) fn first_line(&self, span: Span) -> Span {
        let line = self.text.get(span.start as usize..span.end as usize).and_then(|text| text.find(['\n', '\r']));
        match line {
            Some(length) => Span { end: span.start + length as u32, ..span },
            None => span,
        }
    }

    fn scalar<'n>(&mut self, node: &'n Node, must: &str, help: &str) -> Option<&'n Scalar> {
        match &node.kind {
            Kind::Scalar(scalar) if !scalar.is_null() => Some(scalar),
            _ => {
                self.wrong_type(node, must, help);
                None
            }
        }
    }

    /// A text for people or for paths: any scalar but null.
    pub(crate) fn text(&mut self, node: &Node, what: &str) -> Option<Spanned<String>> {
        let scalar = self.scalar(node, &format!("{what} must be a text"), "")?;
        Some(Spanned::new(scalar.value.to_string(), node.span))
    }

    /// A text with a map into the file.
    pub(crate) fn mapped(&mut self, node: &Node, what: &str) -> Option<MappedText> {
        self.scalar(node, &format!("{what} must be a text"), "")?;
        node.mapped(self.text)
    }

    /// `true` or `false`.
    pub(crate) fn boolean(&mut self, node: &Node, what: &str) -> Option<bool> {
        let must = format!("{what} must be true or false");
        let scalar = self.scalar(node, &must, "")?;
        match (&*scalar.value, scalar.style) {
            ("true" | "True" | "TRUE", Style::Plain) => Some(true),
            ("false" | "False" | "FALSE", Style::Plain) => Some(false),
            (word, _) => {
                let help = match word.to_ascii_lowercase().as_str() {
                    "yes" | "on" | "true" => "write `true`, without quotes",
                    "no" | "off" | "false" => "write `false`, without quotes",
                    _ => "write `true` or `false`",
                };
                self.wrong_type(node, &must, help);
                None
            }
        }
    }

    /// A whole number, at least `least`.
    pub(crate) fn integer(&mut self, node: &Node, what: &str, least: i64) -> Option<i64> {
        let must = format!("{what} must be a whole number");
        let scalar = self.scalar(node, &must, "")?;
        let digits = scalar.value.strip_prefix(['-', '+']).unwrap_or(&scalar.value);
        if scalar.style != Style::Plain || digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            self.wrong_type(node, &must, "write digits only, without quotes");
            return None;
        }
        match scalar.value.parse::<i64>() {
            Ok(value) if value >= least => Some(value),
            _ => {
                let report = Diagnostic::error(codes::BAD_VALUE, format!("{what} is out of range"))
                    .at(node.span, "")
                    .help(format!("it lies between {least} and {}", i64::MAX));
                self.report(report);
                None
            }
        }
    }

    /// One ASCII character; `\t` in quotes is one.
    pub(crate) fn character(&mut self, node: &Node, what: &str) -> Option<u8> {
        let scalar = self.scalar(node, &format!("{what} must be one character"), "put it in quotes")?;
        match scalar.value.as_bytes() {
            [byte] if byte.is_ascii() && !matches!(byte, b'\n' | b'\r' | 0) => Some(*byte),
            _ => {
                let report = Diagnostic::error(codes::BAD_VALUE, format!("{what} must be one ASCII character"))
                    .at(node.span, "");
                let help = if &*scalar.value == "\\t" || scalar.value.eq_ignore_ascii_case("tab") {
                    "write a tab as \"\\t\", in double quotes"
                } else {
                    "line breaks and characters beyond ASCII do not work"
                };
                self.report(report.help(help));
                None
            }
        }
    }

    /// One of some words.
    pub(crate) fn word<T>(
        &mut self,
        node: &Node,
        what: &str,
        words: &'static [&'static str],
        read: fn(&str) -> Option<T>,
    ) -> Option<Spanned<T>> {
        let scalar = self.scalar(
            node,
            &format!("{what} must be a word"),
            &format!("it is one of {}", listed(words.iter().copied())),
        )?;
        if let Some(value) = read(&scalar.value) {
            return Some(Spanned::new(value, node.span));
        }
        self.report(bad_word(what, &scalar.value, words, node.span));
        None
    }

    /// A type.
    pub(crate) fn logical_type(&mut self, node: &Node, what: &str) -> Option<Spanned<LogicalType>> {
        self.scalar(node, &format!("{what} must be the text of a type"), "such as `int64` or `timestamp(us, UTC)`")?;
        let source = node.mapped(self.text)?;
        match LogicalType::parse(&source.text) {
            Ok(kind) => Some(Spanned::new(kind, node.span)),
            Err(error) => {
                self.report(bad_type(what, &error, source.span_of(error.range.clone())));
                None
            }
        }
    }

    /// A path with `${...}`.
    pub(crate) fn template(&mut self, node: &Node, what: &str) -> Option<Template> {
        let source = self.mapped(node, what)?;
        if source.text.trim().is_empty() {
            let report = Diagnostic::error(codes::BAD_VALUE, format!("{what} is empty")).at(node.span, "");
            self.report(report.help("write a path, such as `data/flights.parquet`"));
            return None;
        }
        match Template::parse(&source) {
            Ok(template) => Some(template),
            Err(error) => {
                let report = Diagnostic::error(codes::BAD_TEMPLATE, format!("in {what}, {}", error.message))
                    .at(source.span_of(error.range), "")
                    .help("write `${params.NAME}` or `${vars.NAME}`; for a literal `${` write `$${`");
                self.report(report);
                None
            }
        }
    }

    /// One value or a list of them.
    pub(crate) fn one_or_many<T>(
        &mut self,
        node: &Node,
        mut read: impl FnMut(&mut Self, &Node) -> Option<T>,
    ) -> Vec<T> {
        match &node.kind {
            Kind::Sequence(items) => items.iter().filter_map(|item| read(self, item)).collect(),
            _ => read(self, node).into_iter().collect(),
        }
    }

    /// A mapping from names to values; a name that cannot be used is reported, and its value read all the same.
    pub(crate) fn named<T>(
        &mut self,
        node: &Node,
        section: &str,
        what: &str,
        mut read: impl FnMut(&mut Self, Spanned<String>, &Node) -> Option<T>,
    ) -> IndexMap<String, T> {
        let mut values: IndexMap<String, T> = IndexMap::new();
        let mut places: IndexMap<String, Span> = IndexMap::new();
        for (key, value) in self.mapping(node, section).unwrap_or(&[]) {
            if self.reporter.full() {
                break;
            }
            let name = Spanned::new(normalize(&key.value), key.span);
            if !is_identifier(&name) {
                self.report(names::bad_name(what, &name, name.span));
                read(self, name, value);
                continue;
            }
            if let Some(earlier) = places.insert(name.value.clone(), name.span) {
                let report =
                    Diagnostic::error(codes::DUPLICATE_KEY, format!("`{}` stands twice in one mapping", name.value))
                        .at(name.span, "the second time, the same characters written differently")
                        .at(earlier, "the first time");
                self.report(report.help("remove or rename one of the two"));
                continue;
            }
            if let Some(value) = read(self, name.clone(), value) {
                values.insert(name.value, value);
            }
        }
        values
    }

    /// Columns and their types; a column may have any name.
    pub(crate) fn columns(&mut self, node: &Node, section: &str) -> IndexMap<String, Spanned<LogicalType>> {
        let mut columns = IndexMap::new();
        for (key, value) in self.mapping(node, section).unwrap_or(&[]) {
            let name = normalize(&key.value);
            // The tail of a type that a comma has cut off, which is reported already: `{a: decimal(5, 2)}`.
            let tail = name.ends_with([')', '>']) && matches!(&value.kind, Kind::Scalar(scalar) if scalar.is_null());
            if tail && self.reporter.errors() > 0 {
                continue;
            }
            if name.is_empty() {
                self.report(Diagnostic::error(codes::BAD_NAME, "a column needs a name").at(key.span, ""));
                continue;
            }
            let kind = self.logical_type(value, &format!("the type of column `{name}`"));
            if let Some(kind) = kind
                && columns.insert(name.clone(), kind).is_some()
            {
                let report = Diagnostic::error(codes::DUPLICATE_KEY, format!("column `{name}` stands twice"));
                self.report(report.at(key.span, "the second time").help("remove one of the two"));
            }
        }
        columns
    }
}

/// A report about a word that is not one of those allowed.
pub(crate) fn bad_word(what: &str, word: &str, words: &[&'static str], span: Span) -> Diagnostic {
    let shown: String = word.chars().take(60).collect();
    let report = Diagnostic::error(codes::BAD_VALUE, format!("`{shown}` is not a known value of {what}")).at(span, "");
    let report = match did_you_mean(word, words.iter().copied()) {
        Some(help) => report.help(help),
        None => report,
    };
    report.help(format!("it is one of {}", listed(words.iter().copied())))
}

/// A report about the text of a type.
pub(crate) fn bad_type(what: &str, error: &crate::types::TypeError, span: Span) -> Diagnostic {
    let report = Diagnostic::error(codes::BAD_TYPE, format!("{what} cannot be read: {}", error.message)).at(span, "");
    if error.unclosed {
        return report.help("between `{` and `}`, put a type that holds a comma in quotes");
    }
    match &error.help {
        Some(help) => report.help(help.clone()),
        None => report.help("types are for example `int64`, `decimal(18, 2)`, `timestamp(us, UTC)`, `list<string>`"),
    }
}

fn lower_first(text: &str) -> String {
    let mut chars = text.trim_end_matches('.').chars();
    chars.next().map(|first| first.to_lowercase().chain(chars).collect()).unwrap_or_default()
}

/// Says that `Shape` of a key and what the reader asks for agree; used by the test that walks all tables.
#[cfg(test)]
pub(crate) fn example(shape: Shape) -> String {
    match shape {
        Shape::Version => "1".to_owned(),
        Shape::Text | Shape::WorkflowName | Shape::Columns => "some_text".to_owned(),
        Shape::Name => "s".to_owned(),
        Shape::Sql => "SELECT 1".to_owned(),
        Shape::Path | Shape::Paths => "out/x.csv".to_owned(),
        Shape::Bool => "true".to_owned(),
        Shape::Character => "'|'".to_owned(),
        Shape::Count(_) | Shape::Integer | Shape::Literal => "7".to_owned(),
        Shape::Type => "int64".to_owned(),
        Shape::Word(words) | Shape::OpenWord(words) => words[0].to_owned(),
        Shape::Object(_) | Shape::TypeOr(_) => "{}".to_owned(),
        Shape::Named(inner) | Shape::Map(inner) => format!("{{x: {}}}", example(*inner)),
        Shape::Either(shapes) => example(shapes[0]),
        Shape::Template | Shape::Templates => "some ${params.x}".to_owned(),
        Shape::TemplateList => "[some, text]".to_owned(),
        Shape::Duration => "5s".to_owned(),
        Shape::Size => "4MB".to_owned(),
        Shape::Rate => "50/s".to_owned(),
        Shape::Share => "1%".to_owned(),
        Shape::Factor => "1.5".to_owned(),
        Shape::Statuses | Shape::StatusRanges => "[200, 404]".to_owned(),
        Shape::WordOrNull(_) => "null".to_owned(),
        Shape::Json => "{a: [1, x, null]}".to_owned(),
        Shape::Secret => "env:NAME".to_owned(),
    }
}
