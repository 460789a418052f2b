//! YAML to a tree of nodes with places, within limits.
//!
//! Owns what a YAML text may be: one document, no anchors, aliases, merge keys or tags, no key twice, and limits on
//! size, depth and count that hold while the text is parsed, so that a hostile text ends in an error before it costs
//! anything. What the nodes mean is for `read` and `config`.

mod feed;
mod node;
mod offsets;
mod scalar;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::rc::Rc;

use saphyr_parser::{BufferedInput, Event, Parser, ScalarStyle, ScanError};

use crate::codes;
use crate::diagnostic::Diagnostic;
use crate::report::Reporter;
use crate::span::{Span, Spanned, TextId};
use feed::{Brake, Feed, MAX_FLOW_ENTRIES};
pub(crate) use node::{Kind, Node, Scalar, Style, quote};
use offsets::Offsets;

/// The longest text that is read, in bytes. Who reads files asks for it before reading.
pub const MAX_TEXT_BYTES: usize = 16 * 1024 * 1024;
/// The deepest nesting.
pub const MAX_DEPTH: usize = 64;
/// The most nodes (scalars, lists, mappings, keys).
pub const MAX_NODES: usize = 1_000_000;

/// Says whether a text is short enough to be looked at.
pub(crate) fn check_size(bytes: usize) -> Result<(), Diagnostic> {
    if bytes <= MAX_TEXT_BYTES {
        return Ok(());
    }
    Err(Diagnostic::error(
        codes::TEXT_LIMIT,
        format!("the text has {bytes} bytes, more than the {MAX_TEXT_BYTES} that are read"),
    )
    .help("data belongs in files that a source reads"))
}

/// Parses `text` to its one document; `None` where it holds nothing, or where an error was reported.
pub(crate) fn parse(id: TextId, text: &str, reporter: &mut Reporter) -> Option<Node> {
    if let Err(report) = check_size(text.len()) {
        reporter.push(report);
        return None;
    }
    // A byte order mark is no part of the text, but of its offsets.
    let body = text.strip_prefix('\u{feff}').unwrap_or(text);
    let errors_before = reporter.errors();
    let root = Builder::new(id, text, body).run(reporter);
    match root {
        Ok(Some(node)) => Some(node),
        Ok(None) => {
            if reporter.errors() == errors_before {
                reporter.push(
                    Diagnostic::error(codes::EMPTY_TEXT, "the text is empty")
                        .at(Span::new(id, 0..0), "nothing but comments stands here")
                        .help("write `key: value` lines; a workflow begins with `rowmill: 1`"),
                );
            }
            None
        }
        Err(report) => {
            reporter.push(*report);
            None
        }
    }
}

/// A list or a mapping that is still open.
struct Frame {
    start: usize,
    kind: FrameKind,
}

enum FrameKind {
    Sequence(Vec<Node>),
    Mapping { entries: Vec<(Spanned<String>, Node)>, seen: HashMap<String, usize>, key: Option<Key> },
}

/// A key whose value is awaited.
enum Key {
    Fresh(Spanned<String>),
    /// One that was reported; its value is dropped.
    Refused,
}

struct Builder<'a> {
    id: TextId,
    body: &'a str,
    /// Bytes before the body.
    shift: usize,
    offsets: Offsets<'a>,
    stack: Vec<Frame>,
    root: Option<Node>,
    nodes: usize,
    /// See `flow_follows`.
    next_thing: usize,
}

type Failure = Box<Diagnostic>;

impl<'a> Builder<'a> {
    fn new(id: TextId, text: &'a str, body: &'a str) -> Self {
        Builder {
            id,
            body,
            shift: text.len() - body.len(),
            offsets: Offsets::new(body),
            stack: Vec::new(),
            root: None,
            nodes: 0,
            next_thing: 0,
        }
    }

    fn span(&self, start: usize, end: usize) -> Span {
        Span::new(self.id, start + self.shift..end.max(start) + self.shift)
    }

    fn run(mut self, reporter: &mut Reporter) -> Result<Option<Node>, Failure> {
        let brake = Rc::new(Brake::default());
        let feed = Feed { chars: self.body.chars(), brake: Rc::clone(&brake) };
        let mut parser = Parser::new(BufferedInput::new(feed));
        let mut documents = 0;
        let mut last_end = 0;
        // Errors that leave the text readable are gathered, up to a number that a person can read.
        while !reporter.full() {
            brake.entries.set(0);
            brake.in_flow.set(self.flow_follows(last_end));
            let (event, span) = match parser.next_event() {
                None => break,
                Some(Ok(found)) => found,
                Some(Err(_)) if brake.passed.get() => {
                    let at = self.span(last_end, last_end);
                    return Err(Box::new(
                        Diagnostic::error(
                            codes::TEXT_LIMIT,
                            format!("a bracketed list or mapping has more than {MAX_FLOW_ENTRIES} entries"),
                        )
                        .at(at, "it begins after this")
                        .help("write it as a block, one entry a line"),
                    ));
                }
                Some(Err(error)) => return Err(Box::new(self.syntax_error(&error))),
            };
            let start = self.offsets.byte(span.start.index());
            let end = self.offsets.byte(span.end.index());
            last_end = last_end.max(end);
            match event {
                Event::DocumentStart(_) => {
                    documents += 1;
                    if documents > 1 {
                        return Err(Box::new(
                            Diagnostic::error(codes::UNSUPPORTED_YAML, "the text holds more than one document")
                                .at(self.span(start, end), "a second document begins here")
                                .help("put each workflow in a file of its own"),
                        ));
                    }
                }
                Event::Alias(_) => {
                    return Err(Box::new(
                        Diagnostic::error(codes::UNSUPPORTED_YAML, "aliases are not used in workflows")
                            .at(self.span(start, end), "an alias")
                            .help("write the value out at each place")
                            .help("put quotes around a text that begins with `*`"),
                    ));
                }
                Event::Scalar(value, style, anchor, tag) => {
                    self.refuse_properties(anchor, tag.is_some(), start, end)?;
                    self.scalar(value.into_owned(), style, start, end, reporter)?;
                }
                Event::SequenceStart(anchor, tag) => {
                    self.refuse_properties(anchor, tag.is_some(), start, end)?;
                    self.open(start, FrameKind::Sequence(Vec::new()))?;
                }
                Event::MappingStart(anchor, tag) => {
                    self.refuse_properties(anchor, tag.is_some(), start, end)?;
                    let seen = HashMap::new();
                    self.open(start, FrameKind::Mapping { entries: Vec::new(), seen, key: None })?;
                }
                Event::SequenceEnd | Event::MappingEnd => self.close(start, end)?,
                Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
            }
        }
        Ok(self.root)
    }

    /// Whether the next thing after byte `from` is a bracketed list or mapping; indicators, blanks and comments between
    /// are passed over, and once only: events that end before the last thing found have the same thing next.
    fn flow_follows(&mut self, from: usize) -> bool {
        let bytes = self.body.as_bytes();
        if from > self.next_thing || self.next_thing == 0 {
            let mut at = from;
            while let Some(byte) = bytes.get(at) {
                match byte {
                    b' ' | b'\t' | b'\r' | b'\n' | b',' | b':' | b'-' | b'?' | b']' | b'}' => at += 1,
                    b'#' => at = self.line_end(at),
                    _ => break,
                }
            }
            self.next_thing = at;
        }
        matches!(bytes.get(self.next_thing), Some(b'[' | b'{'))
    }

    fn refuse_properties(&self, anchor: usize, tagged: bool, start: usize, end: usize) -> Result<(), Failure> {
        let (what, help) = if anchor > 0 {
            ("anchors are", "write the value out at each place")
        } else if tagged {
            ("tags are", "remove the tag; the type of a value follows from its key")
        } else {
            return Ok(());
        };
        Err(Box::new(
            Diagnostic::error(codes::UNSUPPORTED_YAML, format!("{what} not used in workflows"))
                .at(self.span(start, end.min(self.line_end(start))), "")
                .help(help),
        ))
    }

    fn line_end(&self, from: usize) -> usize {
        self.body.get(from..).and_then(|rest| rest.find(['\n', '\r'])).map_or(self.body.len(), |found| from + found)
    }

    /// Counts a node against the limit.
    fn count(&mut self, at: usize) -> Result<(), Failure> {
        self.nodes += 1;
        if self.nodes <= MAX_NODES {
            return Ok(());
        }
        Err(Box::new(
            Diagnostic::error(codes::TEXT_LIMIT, format!("the text holds more than {MAX_NODES} values"))
                .at(self.span(at, at), "the first one beyond the limit")
                .help("data belongs in files that a source reads"),
        ))
    }

    fn open(&mut self, start: usize, kind: FrameKind) -> Result<(), Failure> {
        self.count(start)?;
        if let Some(Frame { kind: FrameKind::Mapping { key: None, .. }, .. }) = self.stack.last() {
            return Err(Box::new(
                Diagnostic::error(codes::UNSUPPORTED_YAML, "a key must be a text, not a list or a mapping")
                    .at(self.span(start, start + 1), "this is a key")
                    .help("put quotes around a value that holds `{`, `[` or `? `"),
            ));
        }
        if self.stack.len() >= MAX_DEPTH {
            return Err(Box::new(
                Diagnostic::error(codes::TEXT_LIMIT, format!("the text is nested deeper than {MAX_DEPTH} levels"))
                    .at(self.span(start, start), "the first one beyond the limit"),
            ));
        }
        self.stack.push(Frame { start, kind });
        Ok(())
    }

    fn close(&mut self, start: usize, end: usize) -> Result<(), Failure> {
        let Some(frame) = self.stack.pop() else { return Ok(()) };
        // A bracket belongs to the node (but not the comment after it, which the parser counts in); the end of a block
        // is where its last entry ends.
        let bracketed = matches!(self.body.as_bytes().get(start), Some(b']' | b'}')) && end > start;
        let last = |span: Option<Span>| span.map_or(frame.start, |span| span.end as usize - self.shift);
        let (inner_end, kind) = match frame.kind {
            FrameKind::Sequence(items) => (last(items.last().map(|item| item.span)), Kind::Sequence(items)),
            FrameKind::Mapping { entries, .. } => {
                (last(entries.last().map(|(_, value)| value.span)), Kind::Mapping(entries))
            }
        };
        let span = self.span(frame.start, if bracketed { start + 1 } else { inner_end });
        self.value(Node { span, kind });
        Ok(())
    }

    fn scalar(
        &mut self,
        value: String,
        style: ScalarStyle,
        start: usize,
        end: usize,
        reporter: &mut Reporter,
    ) -> Result<(), Failure> {
        self.count(start)?;
        let style = match style {
            ScalarStyle::Plain => Style::Plain,
            ScalarStyle::SingleQuoted => Style::Single,
            ScalarStyle::DoubleQuoted => Style::Double,
            ScalarStyle::Literal | ScalarStyle::Folded => Style::Block,
        };
        let span = self.scalar_span(&value, style, start, end);
        let is_key = matches!(self.stack.last(), Some(Frame { kind: FrameKind::Mapping { key: None, .. }, .. }));
        if !is_key {
            self.value(Node { span, kind: Kind::Scalar(Scalar { value: value.into_boxed_str(), style }) });
            return Ok(());
        }
        let merge = style == Style::Plain && value == "<<";
        let id = self.id;
        let Some(Frame { kind: FrameKind::Mapping { entries, seen, key }, .. }) = self.stack.last_mut() else {
            return Ok(());
        };
        *key = Some(if merge {
            reporter.push(
                Diagnostic::error(codes::UNSUPPORTED_YAML, "merge keys are not used in workflows")
                    .at(span, "a merge key")
                    .help("write the keys out at each place"),
            );
            Key::Refused
        } else if let Some(earlier) = seen.get(&value).and_then(|at| entries.get(*at)) {
            reporter.push(
                Diagnostic::error(codes::DUPLICATE_KEY, format!("key `{value}` stands twice in one mapping"))
                    .at(span, "the second time")
                    .at(Span { text: id, ..earlier.0.span }, "the first time")
                    .help("remove or rename one of the two"),
            );
            Key::Refused
        } else {
            seen.insert(value.clone(), entries.len());
            Key::Fresh(Spanned::new(value, span))
        });
        Ok(())
    }

    /// The bytes that a scalar takes: without the comment after a quoted one and the blank lines after a block.
    fn scalar_span(&self, value: &str, style: Style, start: usize, end: usize) -> Span {
        let source = self.body.get(start..end).unwrap_or("");
        let length = match style {
            Style::Plain => {
                // An empty plain scalar is given the place of the indicator before it.
                if value.is_empty() { return self.span(start.min(end), start) } else { source.trim_end().len() }
            }
            Style::Single | Style::Double => {
                scalar::read_flow(source, 0, style).map_or(source.trim_end().len(), |flow| flow.length)
            }
            Style::Block => source.trim_end().len(),
        };
        self.span(start, start + length)
    }

    /// Gives a finished node to what holds it.
    fn value(&mut self, node: Node) {
        match self.stack.last_mut().map(|frame| &mut frame.kind) {
            None => self.root = Some(node),
            Some(FrameKind::Sequence(items)) => items.push(node),
            Some(FrameKind::Mapping { entries, key, .. }) => {
                if let Some(Key::Fresh(name)) = key.take() {
                    entries.push((name, node));
                }
            }
        }
    }

    fn syntax_error(&self, error: &ScanError) -> Diagnostic {
        let at = self.offsets.byte(error.marker().index());
        let at = at.min(self.body.len());
        let end = self.body.get(at..).and_then(|rest| rest.chars().next()).filter(|c| !c.is_whitespace());
        let line = self.body.get(..at).unwrap_or("").rsplit('\n').next().unwrap_or("");
        let report = Diagnostic::error(codes::YAML_SYNTAX, format!("the text is not valid YAML: {}", error.info()))
            .at(self.span(at, at + end.map_or(0, char::len_utf8)), "here");
        if error.info().contains("unknown anchor") {
            return Diagnostic::error(codes::UNSUPPORTED_YAML, "aliases are not used in workflows")
                .at(self.span(at, at + end.map_or(0, char::len_utf8)), "an alias")
                .help("put quotes around a text that begins with `*`");
        }
        let line_rest = self.body.get(at..self.line_end(at)).unwrap_or("");
        let help = if line.trim_start_matches(' ').starts_with('\t') || self.body[at..].starts_with('\t') {
            "indent with spaces; YAML does not take tabs"
        } else if format!("{line}{line_rest}").contains("${") {
            "between `{` and `}`, put quotes around a path that holds `${...}`"
        } else if error.info().contains("mapping values are not allowed") {
            "put quotes around a value that holds `: `, or write it as a block after `|`"
        } else if error.info().contains("quoted scalar") {
            "close the quote that opens here"
        } else if error.info().contains("recursion limit") {
            "the text is nested too deep"
        } else if line.contains(['`', '@', '%']) || error.info().contains("unexpected character") {
            "put quotes around a value that begins with a special character"
        } else {
            "look at the line above, too: lines of one mapping are indented alike, and each has `key: value`"
        };
        report.help(help)
    }
}
